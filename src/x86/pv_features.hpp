// SPDX-License-Identifier: Apache-2.0

/// @file
/// MSRs of KVM's paravirtual features beside kvmclock.  KVM documentation "KVM-specific MSRs".

#pragma once

#include <cstdint>
#include <optional>

#include "vmm/address.hpp"
#include "x86/cpuid.hpp"

namespace vmm::x86 {

namespace feature {
// Known, and not offered unless the VMM does.
inline constexpr CpuidFeature kvm_pv_tlb_flush{0x4000'0001, 0, CpuidRegister::Eax, 9};
inline constexpr CpuidFeature kvm_pv_unhalt{0x4000'0001, 0, CpuidRegister::Eax, 7};
inline constexpr CpuidFeature kvm_pv_sched_yield{0x4000'0001, 0, CpuidRegister::Eax, 13};
}  // namespace feature

namespace msr {
inline constexpr std::uint32_t kvm_async_pf_en = 0x4b56'4d02;
inline constexpr std::uint32_t kvm_steal_time = 0x4b56'4d03;
inline constexpr std::uint32_t kvm_pv_eoi = 0x4b56'4d04;
inline constexpr std::uint32_t kvm_poll_control = 0x4b56'4d05;
inline constexpr std::uint32_t kvm_async_pf_int = 0x4b56'4d06;
inline constexpr std::uint32_t kvm_async_pf_ack = 0x4b56'4d07;
}  // namespace msr

/// The CPUID feature that an MSR of KVM's belongs to, kvmclock's too; nothing for other MSRs.
[[nodiscard]] std::optional<CpuidFeature> pv_feature_of(std::uint32_t msr) noexcept;

/// Of `StealTime::preempted`, with KVM_FEATURE_PV_TLB_FLUSH: set by the host while the vCPU does
/// not run, and by another vCPU that wants its TLB flushed before it does.
inline constexpr std::uint8_t vcpu_preempted = 1;
inline constexpr std::uint8_t vcpu_flush_tlb = 2;

/// What the guest reads of the time that its vCPU waited for a CPU: struct kvm_steal_time.  An odd
/// version means that it is being written.
struct StealTime {
    std::uint64_t steal_ns{};
    std::uint32_t version{};
    std::uint32_t flags{};
    std::uint8_t preempted{};
    std::uint8_t pad[3]{};
    std::uint32_t reserved[11]{};
};
static_assert(sizeof(StealTime) == 64);

/// What a guest has set up.  No page of its memory is ever out, so no asynchronous page fault is
/// ever pending.
class PvFeatures {
public:
    /// False: there is no such MSR among these.
    [[nodiscard]] bool read(std::uint32_t index, std::uint64_t& value) const noexcept;
    /// False: there is none, or the value is refused.
    [[nodiscard]] bool write(std::uint32_t index, std::uint64_t value, bool has_lapic) noexcept;

    /// Where the guest wants its stolen time.
    [[nodiscard]] std::optional<Gpa> steal_time() const noexcept
    {
        constexpr std::uint64_t enabled = 1;
        if ((steal_time_ & enabled) == 0U) {
            return std::nullopt;
        }
        return Gpa{steal_time_ & ~std::uint64_t{0x3f}};
    }
    /// Where the guest wants to be told that an interrupt needs no EOI.
    [[nodiscard]] std::optional<Gpa> silent_eoi() const noexcept;
    /// Whether the guest lets the host poll for it while it waits.
    [[nodiscard]] bool may_poll() const noexcept { return (poll_control_ & 1U) != 0U; }

private:
    std::uint64_t async_pf_{};
    std::uint64_t async_pf_vector_{};
    std::uint64_t steal_time_{};
    std::uint64_t pv_eoi_{};
    std::uint64_t poll_control_{1};  // The host may poll.
};

}  // namespace vmm::x86
