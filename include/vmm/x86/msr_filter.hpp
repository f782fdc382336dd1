// SPDX-License-Identifier: Apache-2.0

/// @file
/// Which MSRs a guest may access, and which accesses the caller answers.
///
///     // Reads of MSR 0x35 are the caller's; all else is as it was.
///     vmm::x86::MsrFilter filter;
///     filter.ranges.push_back({.reads = true, .base = 0x35, .count = 1, .allowed = {0}});
///     vm.set_msr_filter(filter).value();
///     vm.set_msr_exits({.filtered = true}).value();

#pragma once

#include <cstdint>
#include <vector>

namespace vmm::x86 {

/// MSRs from `base` on, and which of them may be accessed (kvm_msr_filter_range).
struct MsrFilterRange {
    bool reads{};   ///< Speaks of RDMSR.
    bool writes{};  ///< Speaks of WRMSR.
    std::uint32_t base{};
    std::uint32_t count{};
    /// Bit n % 64 of word n / 64 stands for MSR `base + n`: set, it may be accessed.
    std::vector<std::uint64_t> allowed{};

    friend bool operator==(const MsrFilterRange&, const MsrFilterRange&) = default;
};

/// What RDMSR and WRMSR may access (kvm_msr_filter).  Of several ranges that have an MSR the first
/// counts.  The x2APIC's, 0x800 to 0x8ff, are never filtered; the caller's own accesses are not
/// either.
struct MsrFilter {
    static constexpr std::size_t max_ranges = 16;
    static constexpr std::uint32_t max_count = 0x600 * 8;  ///< MSRs in one range.

    bool default_deny{};  ///< MSRs in no range may not be accessed.
    std::vector<MsrFilterRange> ranges{};

    friend bool operator==(const MsrFilter&, const MsrFilter&) = default;
};

/// Which accesses leave with `MsrRead` and `MsrWrite` instead of raising #GP(0)
/// (KVM_CAP_X86_USER_SPACE_MSR).
struct MsrExits {
    bool invalid{};   ///< The guest has the MSR, but not with this value or in this state.
    bool unknown{};   ///< There is no such MSR.
    bool filtered{};  ///< The filter denies it.

    friend bool operator==(const MsrExits&, const MsrExits&) = default;
};

/// Why an access of an MSR left, with KVM's numbers (KVM_MSR_EXIT_REASON_*).
enum class MsrExitReason : std::uint32_t { Invalid = 1, Unknown = 2, Filter = 4 };

/// The caller's answer to an MSR exit.
struct MsrAnswer {
    std::uint64_t value{};  ///< What RDMSR gives.
    bool fault{};           ///< The instruction raises #GP(0) instead.
};

}  // namespace vmm::x86
