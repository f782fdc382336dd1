// SPDX-License-Identifier: Apache-2.0

/// @file
/// A vCPU's MSRs that are not the engine's own, and its time-stamp counter.

#include <cstdint>

#include "core/vcpu_core.hpp"
#include "core/vm_core.hpp"
#include "vmm/x86/quirk.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {
namespace {

using x86::StateGroup;

x86::MsrExitReason refusal_of(std::uint32_t index) noexcept
{
    return x86::is_known_msr(index) ? x86::MsrExitReason::Invalid : x86::MsrExitReason::Unknown;
}

}  // namespace

// --- The time-stamp counter.

std::uint64_t VcpuCore::guest_tsc() noexcept
{
    return tsc_ratio_.scale(x86::read_host_tsc()) + state(StateGroup::None).tsc_offset;
}

void VcpuCore::set_tsc_offset(std::uint64_t offset) noexcept
{
    state(StateGroup::None).tsc_offset = offset;
    if (lapic_ != nullptr) {
        lapic_->tsc_changed();
    }
    update_kvmclock();
}

void VcpuCore::set_host_tsc_offset(std::uint64_t offset) noexcept
{
    vm_->note_tsc_offset(offset, tsc_ratio_);
    set_tsc_offset(offset);
}

Result<void> VcpuCore::set_tsc_khz(std::uint32_t khz)
{
    VMM_TRY(tsc_ratio_, vm_->check_tsc_khz(khz));
    tsc_khz_ = khz != 0U ? khz : vm_->tsc_khz();
    set_tsc_offset(state(StateGroup::None).tsc_offset);
    return success;
}

bool VcpuCore::access_tsc_msr(std::uint32_t index,
                              std::uint64_t& value,
                              bool write,
                              x86::MsrAccess access) noexcept
{
    switch (index) {
    case x86::msr::tsc:
        if (write && access == x86::MsrAccess::Host) {
            set_tsc_offset(vm_->synchronised_tsc_offset(value, tsc_ratio_));
        } else if (write) {
            const std::uint64_t offset = value - tsc_ratio_.scale(x86::read_host_tsc());
            tsc_adjust_ += offset - state(StateGroup::None).tsc_offset;
            set_tsc_offset(offset);
        } else {
            value = guest_tsc();
        }
        return true;
    case x86::msr::tsc_adjust:
        if (write) {
            const std::uint64_t change = value - std::exchange(tsc_adjust_, value);
            if (access == x86::MsrAccess::Guest) {
                set_tsc_offset(state(StateGroup::None).tsc_offset + change);
            }  // A VMM sets the two apart.
        } else {
            value = tsc_adjust_;
        }
        return true;
    default: return false;
    }
}

std::uint32_t VcpuCore::running_tsc_khz() const noexcept
{
    return tsc_ratio_.is_one() ? vm_->tsc_khz() : tsc_khz_;
}

x86::irqchip::TscClock VcpuCore::tsc_clock()
{
    x86::irqchip::TscClock clock;
    clock.read = [this] { return guest_tsc(); };
    clock.to_ns_deadline = [this](std::uint64_t deadline) {
        const std::uint64_t now_ns = vm_->event_loop().now_ns();
        const std::uint64_t now = guest_tsc();
        if (deadline <= now) {
            return now_ns;
        }
        // A guest may set a deadline centuries away; a century is as good.
        constexpr std::uint64_t longest = std::uint64_t{1} << 60U;  // 36 years in ns.
        const std::uint32_t khz = running_tsc_khz();
        const std::uint64_t ms = (deadline - now) / khz;
        if (ms >= longest / 1'000'000U) {
            return now_ns + longest;
        }
        const std::uint64_t rest = (deadline - now) % khz;
        return now_ns + ms * 1'000'000U + rest * 1'000'000U / khz;
    };
    return clock;
}

// --- MSRs.

x86::MsrResult VcpuCore::read_msr(std::uint32_t index, std::uint64_t& value) noexcept
{
    return access_msr(index, value, false, x86::MsrAccess::Guest) ? x86::MsrResult::Done
                                                                  : refuse_msr(refusal_of(index));
}

x86::MsrResult VcpuCore::write_msr(std::uint32_t index, std::uint64_t value) noexcept
{
    return access_msr(index, value, true, x86::MsrAccess::Guest) ? x86::MsrResult::Done
                                                                 : refuse_msr(refusal_of(index));
}

bool VcpuCore::allows_msr(std::uint32_t index, bool write) noexcept
{
    return vm_->allows_msr(id_, index, write);
}

x86::MsrResult VcpuCore::refuse_msr(x86::MsrExitReason why) noexcept
{
    msr_refusal_ = why;
    return vm_->leaves_for_msr(why) ? x86::MsrResult::ToUser : x86::MsrResult::Fault;
}

bool VcpuCore::write_misc_enable(std::uint64_t value, x86::MsrAccess access) noexcept
{
    const x86::Cpuid& cpuid = state(StateGroup::None).cpuid;
    const bool changes = is_monitor_enabled() != ((value & x86::msr::misc_enable_mwait) != 0U);
    // SDM Vol. 4, IA32_MISC_ENABLE: a CPU without SSE3 has no such bit.
    if ((changes && !cpuid.has(x86::feature::sse3)) ||
        !msrs_.write(cpuid, x86::msr::misc_enable, value, access)) {
        return false;
    }
    if (changes && access == x86::MsrAccess::Host) {
        follow_misc_enable();
    } else if (changes) {
        monitor_changed_ = true;  // Not while the engine executes by the CPUID of now.
        has_request_ = true;
        engine_->request_exit();
    }
    return true;
}

bool VcpuCore::is_monitor_enabled() const noexcept
{
    return (msrs_.misc_enable() & x86::msr::misc_enable_mwait) != 0U;
}

void VcpuCore::follow_misc_enable() noexcept
{
    const x86::Cpuid& cpuid = state(StateGroup::None).cpuid;
    // An engine that took the leaves of before takes these.
    static_cast<void>(engine_->set_cpuid(cpuid.with(x86::feature::monitor, is_monitor_enabled())));
}

bool VcpuCore::access_msr(std::uint32_t index,
                          std::uint64_t& value,
                          bool write,
                          x86::MsrAccess access) noexcept
{
    if (const auto feature = x86::pv_feature_of(index)) {
        return has_pv_feature(*feature) &&
               (access_kvmclock_msr(index, value, write) || access_pv_msr(index, value, write));
    }
    if (access_tsc_msr(index, value, write, access)) {
        return true;
    }
    if (index == x86::msr::smbase || index == x86::msr::smi_count) {
        return access_smm_msr(index, value, write, access);
    }
    if (index == x86::msr::apic_base) {
        if (lapic_ == nullptr) {
            (write ? apic_base_ : value) = write ? value : apic_base_;
            return true;
        }
        if (!write) {
            value = lapic_->apic_base();
            return true;
        }
        return lapic_->set_apic_base(value, access == x86::MsrAccess::Host
                                                ? x86::irqchip::ApicBaseWriter::Host
                                                : x86::irqchip::ApicBaseWriter::Guest);
    }
    const bool is_apic = index == x86::msr::tsc_deadline ||
                         (index >= x86::msr::x2apic_first && index <= x86::msr::x2apic_last);
    if (is_apic) {
        if (lapic_ == nullptr) {
            // KVM: without an APIC the deadline reads as 0 and takes any value.
            value = write ? value : 0U;
            return index == x86::msr::tsc_deadline;
        }
        if (reports_tpr_ && access == x86::MsrAccess::Guest) [[unlikely]] {
            constexpr std::uint64_t register_size = 16;
            constexpr std::size_t whole = 4;
            note_lapic_access((index - x86::msr::x2apic_first) * register_size, whole, write);
        }
        const bool known = write ? lapic_->write_msr(index, value) : lapic_->read_msr(index, value);
        // A VMM saves and restores it without a look at the guest's CPUID; KVM lets it.
        return known || (access == x86::MsrAccess::Host && index == x86::msr::tsc_deadline);
    }
    if (index == x86::msr::platform_info && access == x86::MsrAccess::Guest &&
        !vm_->is_platform_info_readable()) {
        return false;
    }
    const x86::Cpuid& cpuid = state(StateGroup::None).cpuid;
    if (write && index == x86::msr::misc_enable &&
        !vm_->has_quirk(x86::quirk::misc_enable_no_mwait)) {
        return write_misc_enable(value, access);
    }
    return write ? msrs_.write(cpuid, index, value, access)
                 : msrs_.read(cpuid, index, value, access);
}

}  // namespace vmm::core
