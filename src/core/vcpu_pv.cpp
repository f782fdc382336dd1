// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM's paravirtual features of a vCPU: hypercalls, kvmclock, stolen time, its APIC's shared
/// words.

#include <array>
#include <chrono>
#include <cstddef>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "core/vcpu_core.hpp"
#include "core/vm_core.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {
namespace {

using x86::StateGroup;

Gpa preempted_byte(Gpa steal_time) noexcept
{
    return Gpa{steal_time.value() + offsetof(x86::StealTime, preempted)};
}

}  // namespace

void VcpuCore::enforce_pv_features(bool enforced) noexcept
{
    enforces_pv_features_ = enforced;
    if (engine_apic_ != nullptr) {
        engine_apic_->enforce_pv_features(enforced);
    }
}

void VcpuCore::report_tpr_accesses(bool wanted) noexcept
{
    if (engine_apic_ != nullptr) {
        engine_apic_->report_tpr_accesses(wanted);
    }
    reports_tpr_ = wanted;
}

bool VcpuCore::has_pv_feature(x86::CpuidFeature feature) noexcept
{
    return !enforces_pv_features_ || state(StateGroup::None).cpuid.has(feature);
}

bool VcpuCore::access_pv_msr(std::uint32_t index, std::uint64_t& value, bool write) noexcept
{
    if (!write) {
        return pv_.read(index, value);
    }
    if (index == x86::msr::kvm_pv_eoi && (value & 1U) != 0U &&
        !vm_->exists(Gpa{value & ~std::uint64_t{1}})) {
        return false;
    }
    const bool done = pv_.write(index, value, lapic_ != nullptr);
    if (done && index == x86::msr::kvm_steal_time) {
        steal_time_tsc_ = 0;
        update_steal_time();
    }
    return done;
}

/// The guest looks once in a tick of its own; asking the kernel takes a microsecond.
void VcpuCore::update_steal_time() noexcept
{
    const std::optional<Gpa> at = pv_.steal_time();
    if (!at) {
        return;
    }
    const std::uint64_t now = x86::read_host_tsc();
    const std::uint64_t millisecond = vm_->tsc_khz();
    if (steal_time_tsc_ != 0U && now - steal_time_tsc_ < millisecond) {
        return;
    }
    steal_time_tsc_ = now;
    const std::uint64_t delay = run_delay_.ns();
    x86::StealTime time;
    const auto bytes = std::as_writable_bytes(std::span{&time, 1});
    if (!vm_->read_memory(*at, bytes)) {
        return;
    }
    // Odd while it changes; the guest may have given it an odd number to begin with.
    time.version |= 1U;
    flushes_tlb_ |= clear_preempted(*at);
    has_request_ |= flushes_tlb_;
    const auto but_preempted = [&] {
        // Another vCPU may be writing that byte.
        constexpr std::size_t at_preempted = offsetof(x86::StealTime, preempted);
        return vm_->write_for_guest(*at, bytes.first(at_preempted));
    };
    static_cast<void>(but_preempted());
    time.steal_ns += delay - std::exchange(stolen_ns_, delay);
    static_cast<void>(but_preempted());
    ++time.version;
    static_cast<void>(but_preempted());
}

/// While it waits others need not interrupt it to have its TLB flushed.
void VcpuCore::note_preempted() noexcept
{
    const std::optional<Gpa> at = pv_.steal_time();
    is_preempted_ = at && vm_->exchange_byte(preempted_byte(*at), x86::vcpu_preempted);
}

void VcpuCore::note_not_preempted() noexcept
{
    const std::optional<Gpa> at = pv_.steal_time();
    if (!std::exchange(is_preempted_, false) || !at) {
        return;
    }
    if (clear_preempted(*at)) {
        engine_->flush_tlb();
    }
}

/// It runs.  Whether another one asked, while it did not, for its TLB to be flushed.
bool VcpuCore::clear_preempted(Gpa steal_time) noexcept
{
    const auto said = vm_->exchange_byte(preempted_byte(steal_time), 0);
    return said && (*said & x86::vcpu_flush_tlb) != 0U;
}

/// KVM "KVM-specific MSRs", MSR_KVM_PV_EOI_EN: bit 0 of the guest's byte says that it may end its
/// interrupt by clearing that bit.
void VcpuCore::share_lapic() noexcept
{
    if (const std::optional<Gpa> at = pv_.silent_eoi(); at && lapic_->offer_silent_end()) {
        constexpr std::array set{std::byte{1}};
        static_cast<void>(vm_->write_for_guest(*at, set));
        eoi_is_shared_ = true;
    }
    if (vapic_word_.value() != 0U) [[unlikely]] {
        if (const auto word = lapic_->vapic_word()) {
            static_cast<void>(
                vm_->write_for_guest(vapic_word_, std::as_bytes(std::span{&*word, 1})));
        }
    }
}

void VcpuCore::take_back_lapic() noexcept
{
    if (std::exchange(eoi_is_shared_, false)) {
        const std::optional<Gpa> at = pv_.silent_eoi();
        std::array byte{std::byte{1}};
        // A guest that has turned it off has no place to say so in.
        const bool ended =
            at && vm_->read_memory(*at, byte) && (byte[0] & std::byte{1}) == std::byte{};
        if (at && !ended) {
            // It is still in service, and the guest's next EOI is one to be seen.
            constexpr std::array clear{std::byte{0}};
            static_cast<void>(vm_->write_for_guest(*at, clear));
        }
        lapic_->take_back_end(ended);
    }
    if (vapic_word_.value() != 0U) [[unlikely]] {
        std::array priority{std::byte{}};
        if (vm_->read_memory(vapic_word_, priority)) {
            lapic_->set_tpr(std::to_integer<std::uint8_t>(priority[0]));
        }
    }
}

Result<void> VcpuCore::set_vapic_address(Gpa word)
{
    if (engine_apic_ != nullptr) {
        return engine_apic_->set_vapic_address(word);
    }
    if (lapic_ == nullptr) {
        return Error{std::errc::invalid_argument,
                     "set_vapic_address: this VM has no irqchip, so there is no task priority"};
    }
    std::array<std::byte, 4> bytes{};
    if (word.value() != 0U && !vm_->read_memory(word, bytes)) {
        return Error{
            std::errc::invalid_argument,
            fmt::format("set_vapic_address({:#x}): no memory slot has that word", word.value())};
    }
    vapic_word_ = word;
    return success;
}

/// KVM's conditions: any read within the register, writes of the whole.
void VcpuCore::note_lapic_access(std::uint64_t offset, std::size_t size, bool is_write) noexcept
{
    constexpr auto tpr = static_cast<std::uint64_t>(x86::irqchip::LapicRegister::Tpr);
    constexpr std::size_t whole = 4;
    const std::uint64_t within = offset - tpr;
    if (is_write ? within == 0U && size == whole : within + size <= whole) {
        tpr_access_ = TprAccess{Gva{engine_->instruction_rip()}, is_write};
        has_request_ = true;
        engine_->request_exit();
    }
}

// --- Hypercalls.

void VcpuCore::hypercall(x86::CpuState& cpu) noexcept
{
    // KVM "Linux KVM Hypercall": EPERM from user mode; of the calls, those whose CPUID bits are
    // not offered do not exist.
    constexpr std::uint64_t vapic_poll_irq = 1;
    constexpr std::uint64_t kick_cpu = 5;
    constexpr std::uint64_t send_ipi = 10;
    constexpr std::uint64_t sched_yield = 11;
    constexpr std::int64_t eperm = -1;
    constexpr std::int64_t enosys = -1000;
    const bool is_64 = (cpu.efer & (1U << 10U)) != 0U && cpu.seg[x86::Cs].l != 0U;
    const std::uint64_t width = is_64 ? ~std::uint64_t{0} : 0xffff'ffffU;
    const std::uint64_t call = cpu.gpr[x86::Rax] & width;
    std::int64_t result = enosys;
    counters_.answered(ExitKind::Hypercall, cpu.gpr[x86::Rax], 0);
    if (cpu.seg[x86::Ss].dpl != 0U) {
        result = eperm;
    } else if (call == VmCore::map_gpa_range && vm_->leaves_for_hypercall(call)) {
        constexpr std::int64_t einval = -22;
        constexpr std::uint64_t page_size = 4096;
        const std::uint64_t gpa = cpu.gpr[x86::Rbx] & width;
        const std::uint64_t pages = cpu.gpr[x86::Rcx] & width;
        const std::uint64_t first = gpa / page_size;
        if (gpa % page_size == 0U && pages != 0U && first + pages > first) {
            leave_for_hypercall(cpu, is_64);
            return;
        }
        result = einval;
    } else if (call == vapic_poll_irq) {
        result = 0;
    } else if (call == kick_cpu && lapic_ != nullptr &&
               has_pv_feature(x86::feature::kvm_pv_unhalt)) {
        vm_->irqchip()->kick_cpu(static_cast<std::uint32_t>(cpu.gpr[x86::Rcx]));
        result = 0;
    } else if (call == sched_yield && has_pv_feature(x86::feature::kvm_pv_sched_yield)) {
        // To whom is the host's affair: its scheduler knows who is preempted.
        std::this_thread::yield();
        result = 0;
    } else if (call == send_ipi && lapic_ != nullptr &&
               has_pv_feature(x86::feature::kvm_pv_send_ipi)) {
        result = vm_->irqchip()->send_ipis(
            {cpu.gpr[x86::Rbx] & width, cpu.gpr[x86::Rcx] & width}, is_64 ? 64U : 32U,
            static_cast<std::uint32_t>(cpu.gpr[x86::Rdx]), cpu.gpr[x86::Rsi] & width);
    }
    cpu.gpr[x86::Rax] =
        is_64 ? static_cast<std::uint64_t>(result) : static_cast<std::uint32_t>(result);
}

void VcpuCore::leave_for_hypercall(const x86::CpuState& cpu, bool is_64) noexcept
{
    const std::uint64_t width = is_64 ? ~std::uint64_t{0} : 0xffff'ffffU;
    hypercall_result_ = 0;
    hypercall_ =
        Hypercall{cpu.gpr[x86::Rax] & width,
                  {cpu.gpr[x86::Rbx] & width, cpu.gpr[x86::Rcx] & width, cpu.gpr[x86::Rdx] & width},
                  is_64,
                  &hypercall_result_};
    hypercall_shown_ = false;
    has_request_ = true;
    engine_->request_exit();  // Before the next instruction: a hypercall ends a run of code.
}

void VcpuCore::finish_hypercall() noexcept
{
    x86::CpuState& cpu = state(StateGroup::Registers);
    cpu.gpr[x86::Rax] =
        hypercall_->long_mode ? hypercall_result_ : static_cast<std::uint32_t>(hypercall_result_);
    state_changed(StateGroup::Registers);
    hypercall_.reset();
    hypercall_shown_ = false;
}

// --- kvmclock.

Result<void> VcpuCore::notify_guest_stopped()
{
    if (!kvmclock_.is_enabled()) {
        return Error{std::errc::invalid_argument,
                     "notify_guest_stopped: the guest has not enabled kvmclock"};
    }
    kvmclock_.set_guest_stopped();
    clock_changed();
    return success;
}

void VcpuCore::update_kvmclock() noexcept
{
    const auto [host_tsc, ns] = vm_->clock_reference();
    static_cast<void>(kvmclock_.update(
        [this](Gpa at, std::span<const std::byte> bytes) {
            return vm_->write_for_guest(at, bytes);
        },
        tsc_ratio_.scale(host_tsc) + state(StateGroup::None).tsc_offset, ns, running_tsc_khz(),
        true));
}

bool VcpuCore::access_kvmclock_msr(std::uint32_t index, std::uint64_t& value, bool write) noexcept
{
    switch (index) {
    case x86::msr::kvm_system_time:
    case x86::msr::kvm_system_time_old:
        if (write) {
            kvmclock_.set_system_time(value);
            update_kvmclock();
        } else {
            value = kvmclock_.system_time();
        }
        return true;
    case x86::msr::kvm_wall_clock:
    case x86::msr::kvm_wall_clock_old:
        if (write) {
            const auto now = std::chrono::system_clock::now().time_since_epoch();
            const auto now_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
            static_cast<void>(kvmclock_.set_wall_clock(
                [this](Gpa at, std::span<const std::byte> bytes) {
                    return vm_->write_for_guest(at, bytes);
                },
                value, static_cast<std::uint64_t>(now_ns) - vm_->clock_ns()));
        } else {
            value = kvmclock_.wall_clock();
        }
        return true;
    default: return false;
    }
}

}  // namespace vmm::core
