// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/engine.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "x86/soft/block.hpp"
#include "x86/soft/cpu.hpp"
#include "x86/soft/emulator.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/native.hpp"
#include "x86/soft/page_walk.hpp"
#include "x86/soft/run_loop.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

class SoftEngineVcpu final : public Emulator {
public:
    SoftEngineVcpu(std::shared_ptr<SoftVm> vm, VcpuHost& host)
        : vm_(std::move(vm)),
          cpu_(*vm_, host),
          loop_(cpu_)
    {
        hold(cpu_, StateGroup::All);
    }

    void state_changed(StateGroup changed) noexcept override
    {
        if (changed == StateGroup::Registers) {
            // No TLB depends on them.  But who sets RIP may have written code just before.
            flush_fetch_tlb(cpu_);
            cpu_.mode_changed();
            loop_.state_changed();
            return;
        }
        const std::span<const CpuidEntry> entries = cpu_.cpuid.entries();
        if (!std::equal(entries.begin(), entries.end(), cpuid_.begin(), cpuid_.end())) {
            // Blocks know which instructions exist.
            cpuid_.assign(entries.begin(), entries.end());
            cpu_.blocks->clear();
        }
        cpu_.state_changed();
        loop_.state_changed();
    }

    Result<void> set_cpuid(Cpuid cpuid) override
    {
        cpu_.cpuid = std::move(cpuid);
        state_changed(StateGroup::All);
        return success;
    }

    Result<void> set_guest_debug(const GuestDebug& debug) override
    {
        cpu_.debugger = debug;
        cpu_.state_changed();
        return success;
    }

    bool has_msr(std::uint32_t /*index*/) const noexcept override { return false; }
    bool read_msr(std::uint32_t /*index*/, std::uint64_t& /*value*/) noexcept override
    {
        return false;
    }
    bool write_msr(std::uint32_t /*index*/, std::uint64_t /*value*/) noexcept override
    {
        return false;
    }

    const EngineExit& enter() noexcept override
    {
        if (std::exchange(exit_left_, false)) {
            return cpu_.exit;
        }
        start();
        if (!loop_.is_pending() || loop_.complete()) {
            loop_.run();
        }
        stop();
        return cpu_.exit;
    }

    const EngineExit* step() noexcept override
    {
        begin_step();
        const bool done = loop_.run_one();
        stop();
        return done ? nullptr : &cpu_.exit;
    }

    MoveStep step_move() noexcept override
    {
        begin_step();
        const RunLoop::Move move = loop_.run_move();
        stop();
        return {move.is_one, move.faulted, move.repeats, move.done ? nullptr : &cpu_.exit};
    }

    const EngineExit* complete() noexcept override
    {
        return complete_pending() || !std::exchange(exit_left_, false) ? nullptr : &cpu_.exit;
    }

    bool peek(std::uint64_t linear, std::span<std::byte> code) noexcept override
    {
        vm_->enter_guest(cpu_);
        std::uint64_t gpa = 0;
        const std::byte* host = nullptr;
        if ((linear & page_mask) + code.size() <= page_size &&
            translate_quietly(cpu_, linear, gpa)) {
            host = vm_->memory(cpu_).page(gpa / page_size).host;
        }
        if (host != nullptr) {
            for (std::size_t i = 0; i < code.size(); ++i) {
                code[i] = load_host<std::byte>(host + (gpa & page_mask) + i);
            }
        }
        vm_->leave_guest(cpu_);
        return host != nullptr;
    }

    bool complete_pending() noexcept override
    {
        if (!loop_.is_pending()) {
            return !exit_left_;
        }
        start();
        const bool done = loop_.complete();
        stop();
        exit_left_ = !done;
        return done;
    }

    std::uint64_t instruction_rip() noexcept override { return cpu_.instruction_rip(); }

    void request_exit() noexcept override
    {
        cpu_.requests.fetch_or(request::exit, std::memory_order_seq_cst);
    }

    bool translate(std::uint64_t linear, std::uint64_t& gpa) noexcept override
    {
        vm_->enter_guest(cpu_);
        const bool mapped = translate_quietly(cpu_, linear, gpa);
        vm_->leave_guest(cpu_);
        return mapped;
    }

    std::vector<std::pair<std::string_view, std::uint64_t>> counters() const override
    {
        const Counters& counted = cpu_.counters;
        return {{"blocks", counted.blocks.value()},
                {"translations", counted.translations.value()},
                {"chains", counted.chains.value()},
                {"code_resets", counted.code_resets.value()},
                {"tlb_fills", counted.tlb_fills.value()},
                {"tlb_flush", counted.tlb_flushes.value()},
                {"invlpg", counted.page_flushes.value()},
                {"faults", counted.faults.value()},
                {"run_loops", counted.run_loops.value()}};
    }

private:
    void start() noexcept
    {
        vm_->enter_guest(cpu_);
        cpu_.set_arithmetic_flags(cpu_.rflags);
        cpu_.gpr[zero_slot / 8] = 0;
        cpu_.gpr[carry_slot / 8] = std::uint64_t{1} << 32U;
    }

    /// What else runs this guest changes code and page tables without a word: no translation is
    /// kept, and with the next one of a page its code is compared with what was decoded.
    void begin_step() noexcept
    {
        start();
        cpu_.translations_changed();
    }

    void stop() noexcept
    {
        cpu_.rflags = cpu_.flags();
        fpu_release(cpu_);
        vm_->leave_guest(cpu_);
    }

    std::shared_ptr<SoftVm> vm_;
    Cpu cpu_;
    RunLoop loop_;
    std::vector<CpuidEntry> cpuid_;  ///< What blocks have been decoded for.
    bool exit_left_{};               ///< `complete_pending()` has met an exit for the next enter().
};

class SoftEngineVm final : public EmulatorVm {
public:
    SoftEngineVm(PhysicalMemory& memory, TranslationMode translation)
        : vm_(std::make_shared<SoftVm>(memory, translation))
    {
    }

    std::unique_ptr<Emulator> create_emulator(VcpuHost& host) override
    {
        return std::make_unique<SoftEngineVcpu>(vm_, host);
    }

    Result<std::unique_ptr<EngineVcpu>> create_vcpu(VcpuHost& host, std::uint32_t /*id*/) override
    {
        return std::unique_ptr<EngineVcpu>{create_emulator(host)};
    }

    Result<void> memory_changed() override
    {
        vm_->memory_changed();
        return success;
    }
    Result<void> collect_dirty_log(std::uint32_t /*slot*/) override { return success; }
    void dirty_log_cleared() noexcept override { vm_->dirty_log_cleared(); }
    // Each access asks the host.
    Result<void> set_msr_filter(const MsrFilter& /*filter*/) override { return success; }
    void memory_written(Gpa gpa, std::uint64_t size_bytes) noexcept override
    {
        vm_->memory_written(gpa.value(), size_bytes);
    }

private:
    std::shared_ptr<SoftVm> vm_;
};

}  // namespace

Result<std::unique_ptr<EngineVm>> create_soft_vm(PhysicalMemory& memory,
                                                 TranslationMode translation)
{
    if (Result<void> available = native_available(); !available) {
        return available.error();
    }
    return std::unique_ptr<EngineVm>{std::make_unique<SoftEngineVm>(memory, translation)};
}

Result<std::unique_ptr<EmulatorVm>> create_emulator_vm(PhysicalMemory& memory)
{
    if (Result<void> available = native_available(); !available) {
        return available.error();
    }
    return std::unique_ptr<EmulatorVm>{
        std::make_unique<SoftEngineVm>(memory, TranslationMode::Off)};
}

}  // namespace vmm::x86::soft
