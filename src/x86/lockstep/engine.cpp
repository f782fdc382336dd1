// SPDX-License-Identifier: Apache-2.0

#include "x86/lockstep/engine.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "x86/lockstep/compare.hpp"
#include "x86/lockstep/shadow_memory.hpp"
#include "x86/msr.hpp"

namespace vmm::x86::lockstep {
namespace {

using Reason = EngineExit::Reason;

/// What the leader was told without leaving, for the follower.
struct Answer {
    enum class Kind : std::uint8_t { Tsc, ReadMsr, WriteMsr } kind{};
    std::uint32_t index{};
    std::uint64_t value{};
    MsrResult result{};
};

/// Answers no access, so that each is an exit.
class ExitingHost : public VcpuHost {
public:
    explicit ExitingHost(VcpuHost& real) noexcept : real_{real} {}

    bool mmio_read(Gpa /*gpa*/, std::span<std::byte> /*data*/) noexcept override { return false; }
    bool mmio_write(Gpa /*gpa*/, std::span<const std::byte> /*data*/) noexcept override
    {
        return false;
    }
    bool port_read(Port /*port*/, std::span<std::byte> /*data*/) noexcept override { return false; }
    bool port_write(Port /*port*/, std::span<const std::byte> /*data*/) noexcept override
    {
        return false;
    }
    bool allows_msr(std::uint32_t index, bool write) noexcept override
    {
        return real_.allows_msr(index, write);
    }
    MsrResult refuse_msr(MsrExitReason why) noexcept override { return real_.refuse_msr(why); }
    void hypercall(CpuState& state) noexcept override { real_.hypercall(state); }
    bool has_quirk(std::uint64_t quirk) noexcept override { return real_.has_quirk(quirk); }

protected:
    VcpuHost& real_;
};

class LeaderHost final : public ExitingHost {
public:
    LeaderHost(VcpuHost& real, std::deque<Answer>& answers) noexcept
        : ExitingHost{real},
          answers_{answers}
    {
    }
    MsrResult read_msr(std::uint32_t index, std::uint64_t& value) noexcept override
    {
        const MsrResult result = real_.read_msr(index, value);
        answers_.push_back({Answer::Kind::ReadMsr, index, value, result});
        return result;
    }
    MsrResult write_msr(std::uint32_t index, std::uint64_t value) noexcept override
    {
        const MsrResult result = real_.write_msr(index, value);
        answers_.push_back({Answer::Kind::WriteMsr, index, value, result});
        return result;
    }
    void write_cr8(std::uint64_t value) noexcept override { real_.write_cr8(value); }
    std::uint64_t read_cr8() noexcept override { return real_.read_cr8(); }
    std::uint64_t guest_tsc() noexcept override
    {
        const std::uint64_t tsc = real_.guest_tsc();
        answers_.push_back({Answer::Kind::Tsc, 0, tsc, MsrResult::Done});
        return tsc;
    }
    std::uint64_t apic_base() noexcept override { return real_.apic_base(); }

private:
    std::deque<Answer>& answers_;
};

class FollowerHost final : public ExitingHost {
public:
    FollowerHost(VcpuHost& real, std::deque<Answer>& answers) noexcept
        : ExitingHost{real},
          answers_{answers}
    {
    }
    MsrResult read_msr(std::uint32_t index, std::uint64_t& value) noexcept override
    {
        const Answer answer = take({Answer::Kind::ReadMsr, index, 0, {}});
        value = answer.value;
        return answer.result;
    }
    MsrResult write_msr(std::uint32_t index, std::uint64_t value) noexcept override
    {
        return take({Answer::Kind::WriteMsr, index, value, {}}).result;
    }
    void write_cr8(std::uint64_t value) noexcept override { cr8 = value; }
    std::uint64_t read_cr8() noexcept override { return cr8; }
    std::uint64_t guest_tsc() noexcept override
    {
        return take({Answer::Kind::Tsc, 0, 0, {}}).value;
    }
    std::uint64_t apic_base() noexcept override { return real_.apic_base(); }

    std::uint64_t cr8{};
    std::string difference{};

private:
    Answer take(const Answer& asked)
    {
        Answer answer{asked.kind, asked.index, 0, MsrResult::Fault};
        const bool same =
            !answers_.empty() && answers_.front().kind == asked.kind &&
            answers_.front().index == asked.index &&
            (asked.kind != Answer::Kind::WriteMsr || answers_.front().value == asked.value);
        if (same) {
            answer = answers_.front();
            answers_.pop_front();
        } else if (difference.empty()) {
            difference =
                fmt::format("  the follower {} {:#x} (value {:#x}), which the leader did not\n",
                            asked.kind == Answer::Kind::Tsc       ? "asks for the TSC,"
                            : asked.kind == Answer::Kind::ReadMsr ? "reads MSR"
                                                                  : "writes MSR",
                            asked.index, asked.value);
        }
        return answer;
    }

    std::deque<Answer>& answers_;
};

bool is_read(const EngineExit& exit) noexcept
{
    return exit.reason == Reason::PortRead || exit.reason == Reason::MmioRead;
}

bool is_access(const EngineExit& exit) noexcept
{
    return is_read(exit) || exit.reason == Reason::PortWrite || exit.reason == Reason::MmioWrite;
}

bool is_msr_access(const EngineExit& exit) noexcept
{
    return exit.reason == Reason::MsrRead || exit.reason == Reason::MsrWrite;
}

std::string describe_exit(const EngineExit& exit)
{
    constexpr std::array names{"interrupted",    "port read",     "port write", "mmio read",
                               "mmio write",     "halt",          "shutdown",   "msr read",
                               "msr write",      "irq window",    "nmi window", "debug",
                               "internal error", "entry failure", "difference"};
    std::string out = names[static_cast<std::size_t>(exit.reason)];
    if (is_msr_access(exit)) {
        out += fmt::format(" of {:#x}, value {:#x}", exit.msr, exit.msr_value);
    }
    if (is_access(exit)) {
        const bool is_port = exit.reason == Reason::PortRead || exit.reason == Reason::PortWrite;
        out += fmt::format(" at {:#x}, {} bytes", is_port ? exit.port : exit.gpa, exit.data.size());
        if (!is_read(exit)) {
            out += ":";
            for (const std::byte byte :
                 exit.data.first(std::min<std::size_t>(exit.data.size(), 16))) {
                out += fmt::format(" {:02x}", std::to_integer<unsigned>(byte));
            }
        }
    }
    return out;
}

bool same_exit(const EngineExit& a, const EngineExit& b)
{
    if (a.reason != b.reason || a.port != b.port || a.size != b.size || a.gpa != b.gpa ||
        a.msr != b.msr || a.msr_value != b.msr_value || a.data.size() != b.data.size()) {
        return false;
    }
    return is_read(a) || std::equal(a.data.begin(), a.data.end(), b.data.begin());
}

void copy_state(EngineVcpu& from, EngineVcpu& to)
{
    to.state(StateGroup::All) = from.state(StateGroup::All);
    to.state_changed(StateGroup::All);
}

class LockstepVcpu final : public EngineVcpu {
public:
    LockstepVcpu(VcpuHost& real, MemorySlots& memory, std::shared_ptr<ShadowMemory> shadow) noexcept
        : real_{real},
          memory_{memory},
          shadow_{std::move(shadow)},
          leader_host_{real, answers_},
          follower_host_{real, answers_}
    {
    }

    Result<void> create(EngineVm& leader, EngineVm& follower, std::uint32_t id)
    {
        VMM_TRY(leader_, leader.create_vcpu(leader_host_, id));
        VMM_TRY(follower_, follower.create_vcpu(follower_host_, id));
        hold(leader_->state(StateGroup::None), StateGroup::None);
        return success;
    }

    void state_changed(StateGroup changed) noexcept override
    {
        leader_->state_changed(changed);
        changed_ = true;
    }
    Result<void> set_cpuid(Cpuid cpuid) override
    {
        const Cpuid before = follower_->state(StateGroup::None).cpuid;
        VMM_TRY_VOID(follower_->set_cpuid(cpuid));
        Result<void> set = leader_->set_cpuid(std::move(cpuid));
        if (!set) {
            static_cast<void>(follower_->set_cpuid(before));
        }
        changed_ = true;
        return set;
    }
    // What speculation control there is differs by engine: a guest in lockstep is offered none.
    Result<void> set_guest_debug(const GuestDebug& debug) override
    {
        VMM_TRY_VOID(leader_->set_guest_debug(debug));
        return follower_->set_guest_debug(debug);
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
    void request_exit() noexcept override
    {
        leader_->request_exit();
        follower_->request_exit();
    }
    bool translate(std::uint64_t linear, std::uint64_t& gpa) noexcept override
    {
        return leader_->translate(linear, gpa);
    }

    const EngineExit& enter() noexcept override
    {
        if (exit_.reason == Reason::Difference) {
            return exit_;
        }
        for (;;) {
            if (!settle()) {
                return exit_;
            }
            synchronise();
            const EngineExit& led = leader_->enter();
            if (led.reason == Reason::Interrupted) {
                ahead_ = true;
                exit_ = led;
                return exit_;
            }
            ahead_ = false;
            if (!follow(led)) {
                return exit_;
            }
            if (pending_ && answer(led)) {
                continue;
            }
            exit_ = led;
            return exit_;
        }
    }

    bool complete_pending() noexcept override { return settle(); }

private:
    CpuState& fetch_state(StateGroup wanted) noexcept override { return leader_->state(wanted); }

    /// Offers an access of both to the library.
    bool answer(const EngineExit& exit) noexcept
    {
        const Port port{exit.port};
        const Gpa gpa{exit.gpa};
        std::span<std::byte> data = exit.data;
        const std::size_t size = exit.size;
        switch (exit.reason) {
        case Reason::MmioRead: return real_.mmio_read(gpa, data);
        case Reason::MmioWrite: return real_.mmio_write(gpa, data);
        case Reason::PortRead:
        case Reason::PortWrite:
            for (; !data.empty(); data = data.subspan(size)) {
                const std::span<std::byte> element = data.first(size);
                if (!(exit.reason == Reason::PortRead ? real_.port_read(port, element)
                                                      : real_.port_write(port, element))) {
                    return false;
                }
            }
            return true;
        default: return false;
        }
    }

    /// Completes what both left at.  False: there is a difference, which is in `exit_`.
    bool settle() noexcept
    {
        if (!std::exchange(pending_, false)) {
            return true;
        }
        if (is_msr_access(*led_)) {
            *followed_->msr_answer = *led_->msr_answer;
        }
        if (is_read(*led_)) {
            std::memcpy(followed_->data.data(), led_->data.data(), led_->data.size());
        }
        const bool leader_done = leader_->complete_pending();
        const bool follower_done = follower_->complete_pending();
        if (leader_done != follower_done) {
            return differ(fmt::format("  after {} the {} needs another access\n",
                                      describe_exit(*led_), leader_done ? "follower" : "leader"));
        }
        return !leader_done || compare();
    }

    /// The follower starts from where the leader does.
    void synchronise() noexcept
    {
        CpuState& leading = leader_->state(StateGroup::Registers);
        if (!started_ || (ahead_ && (changed_ || leading.inject.has_value()))) {
            // The follower stays behind: it cannot be stopped where a kick stopped the leader.
            shadow_->copy_all();
            changed_ = true;
            ahead_ = false;
        }
        started_ = true;
        if (ahead_) {
            return;
        }
        answers_.clear();
        if (std::exchange(changed_, false)) {
            copy_state(*leader_, *follower_);
        }
        CpuState& following = follower_->state(StateGroup::Registers);
        following.inject = leading.inject;
        following.irq_window_requested = leading.irq_window_requested;
        following.nmi_window_requested = leading.nmi_window_requested;
        following.tsc_offset = leading.tsc_offset;
        follower_host_.cr8 = real_.read_cr8();
        origin_ = leading.rip;
    }

    /// Runs the follower to where the leader is.
    bool follow(const EngineExit& led) noexcept
    {
        constexpr unsigned patience = 50;
        const EngineExit* followed = &follower_->enter();
        for (unsigned kicks = 0; followed->reason == Reason::Interrupted && kicks < patience;
             ++kicks) {
            // A kick meant for the leader: the follower has its exit still to come.
            followed = &follower_->enter();
        }
        led_ = &led;
        followed_ = followed;
        if (!follower_host_.difference.empty()) {
            return differ(follower_host_.difference);
        }
        if (!same_exit(led, *followed)) {
            return differ(fmt::format("  exit         {} | {}\n", describe_exit(led),
                                      describe_exit(*followed)));
        }
        if (!answers_.empty()) {
            return differ(
                fmt::format("  the follower did not ask for MSR {:#x} as the leader did\n",
                            answers_.front().index));
        }
        ++exits_;
        pending_ = is_access(led) || is_msr_access(led);
        // Of an access the registers are compared once it is complete: engines differ in how far
        // they are in its middle.  After a shutdown KVM has reset its vCPU.
        return pending_ || led.reason == Reason::Shutdown || compare();
    }

    bool compare() noexcept
    {
        std::string found =
            differences(leader_->state(StateGroup::All), follower_->state(StateGroup::All));
        if (real_.read_cr8() != follower_host_.cr8) {
            found +=
                fmt::format("  cr8          {:#x} | {:#x}\n", real_.read_cr8(), follower_host_.cr8);
        }
        constexpr std::uint64_t often = 1024;
        if (exits_ < 16 || exits_ % often == 0 || led_->reason == Reason::Halt) {
            constexpr std::size_t most_words = 8;
            for (const ShadowMemory::Word& word : shadow_->differences(most_words)) {
                found += fmt::format("  memory {:#x} {:#x} | {:#x}\n", word.gpa, word.original,
                                     word.shadow);
            }
        }
        return found.empty() || differ(found);
    }

    static std::vector<std::uint8_t> bytes_at(MemorySlots& memory,
                                              std::uint64_t gpa,
                                              std::size_t most)
    {
        std::vector<std::uint8_t> bytes;
        for (const MemorySlots::Region& region : memory.regions()) {
            if (gpa - region.gpa < region.size_bytes) {
                const std::uint64_t offset = gpa - region.gpa;
                bytes.resize(std::min<std::uint64_t>(most, region.size_bytes - offset));
                std::memcpy(bytes.data(), region.host + offset, bytes.size());
            }
        }
        return bytes;
    }

    std::string code_at(EngineVcpu& vcpu, MemorySlots& memory, std::uint64_t rip)
    {
        const CpuState& cpu = vcpu.state(StateGroup::All);
        const bool is_64 = Efer{cpu.efer}.get(Efer::LMA) && cpu.seg[Cs].l != 0;
        std::uint64_t gpa = 0;
        if (!vcpu.translate(is_64 ? rip : (cpu.seg[Cs].base + rip) & 0xffff'ffffU, gpa)) {
            return "  (not mapped)\n";
        }
        constexpr std::size_t bytes = 48;
        constexpr unsigned instructions = 6;
        return disassemble(cpu, rip, bytes_at(memory, gpa, bytes), instructions);
    }

    /// Always false: the caller has nothing more to compare.
    bool differ(const std::string& what) noexcept
    {
        report_ = fmt::format(
            "difference after {} common exits (leader | follower):\n{}"
            "leader:\n{}follower:\n{}code since the last exit:\n{}code at the leader:\n{}"
            "code at the follower:\n{}",
            exits_, what, describe(leader_->state(StateGroup::All)),
            describe(follower_->state(StateGroup::All)), code_at(*leader_, memory_, origin_),
            code_at(*leader_, memory_, leader_->state(StateGroup::Registers).rip),
            code_at(*follower_, *shadow_, follower_->state(StateGroup::Registers).rip));
        exit_ = EngineExit{};
        exit_.reason = Reason::Difference;
        exit_.report = report_;
        return false;
    }

    VcpuHost& real_;
    MemorySlots& memory_;
    std::shared_ptr<ShadowMemory> shadow_;
    std::deque<Answer> answers_;
    LeaderHost leader_host_;
    FollowerHost follower_host_;
    std::unique_ptr<EngineVcpu> leader_;
    std::unique_ptr<EngineVcpu> follower_;
    const EngineExit* led_{};
    const EngineExit* followed_{};
    EngineExit exit_;
    std::string report_;
    std::uint64_t exits_{};
    std::uint64_t origin_{};  ///< RIP where both stood last.
    bool started_{};
    bool changed_{true};  ///< The leader's state was changed from outside.
    bool ahead_{};        ///< A kick stopped the leader where the follower has not been.
    bool pending_{};      ///< Both wait for an access to be completed.
};

class LockstepVm final : public EngineVm {
public:
    LockstepVm(std::unique_ptr<EngineVm> leader,
               std::unique_ptr<EngineVm> follower,
               MemorySlots& memory,
               std::shared_ptr<ShadowMemory> shadow) noexcept
        : shadow_{std::move(shadow)},
          memory_{memory},
          leader_{std::move(leader)},
          follower_{std::move(follower)}
    {
    }

    Result<std::unique_ptr<EngineVcpu>> create_vcpu(VcpuHost& host, std::uint32_t id) override
    {
        if (has_vcpu_.exchange(true)) {
            return Error{std::errc::not_supported,
                         "create_vcpu: a VM in lockstep has one vCPU: the order in which several "
                         "run is no engine's to repeat"};
        }
        auto vcpu = std::make_unique<LockstepVcpu>(host, memory_, shadow_);
        VMM_TRY_VOID(vcpu->create(*leader_, *follower_, id));
        return std::unique_ptr<EngineVcpu>{std::move(vcpu)};
    }
    Result<void> memory_changed() override
    {
        shadow_->follow_slots();
        VMM_TRY_VOID(follower_->memory_changed());
        return leader_->memory_changed();
    }
    Result<void> collect_dirty_log(std::uint32_t slot) override
    {
        return leader_->collect_dirty_log(slot);
    }
    void dirty_log_cleared() noexcept override { leader_->dirty_log_cleared(); }
    Result<void> set_msr_filter(const MsrFilter& filter) override
    {
        VMM_TRY_VOID(follower_->set_msr_filter(filter));
        return leader_->set_msr_filter(filter);
    }
    Result<void> disable_quirks(std::uint64_t quirks) override
    {
        VMM_TRY_VOID(follower_->disable_quirks(quirks));
        return leader_->disable_quirks(quirks);
    }
    void memory_written(Gpa gpa, std::uint64_t size_bytes) noexcept override
    {
        leader_->memory_written(gpa, size_bytes);
        shadow_->copy(gpa.value(), size_bytes);
        follower_->memory_written(gpa, size_bytes);
    }

private:
    std::shared_ptr<ShadowMemory> shadow_;  // Outlives the follower.
    MemorySlots& memory_;
    std::unique_ptr<EngineVm> leader_;
    std::unique_ptr<EngineVm> follower_;
    std::atomic<bool> has_vcpu_{};
};

}  // namespace

Result<std::unique_ptr<EngineVm>> create_lockstep_vm(std::unique_ptr<EngineVm> leader,
                                                     MemorySlots& memory,
                                                     const MakeEngine& make_follower)
{
    auto shadow = std::make_shared<ShadowMemory>(memory);
    VMM_TRY(auto follower, make_follower(*shadow, *shadow));
    return std::unique_ptr<EngineVm>{std::make_unique<LockstepVm>(
        std::move(leader), std::move(follower), memory, std::move(shadow))};
}

}  // namespace vmm::x86::lockstep
