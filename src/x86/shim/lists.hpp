// SPDX-License-Identifier: Apache-2.0

/// @file
/// The lists that ioctls take and give: a count, and that many entries behind it.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <linux/kvm.h>

#include "x86/shim/user_memory.hpp"

namespace vmm::shim {

// What comes before the entries.  KVM's own structures end with an array of no size, which C++ does
// not have: their size, which is a part of the ioctl's number, is another one here.
struct MsrListHead {
    std::uint32_t nmsrs{};
};
struct MsrsHead {
    std::uint32_t nmsrs{};
    std::uint32_t pad{};
};
struct CpuidHead {
    std::uint32_t nent{};
    std::uint32_t padding{};
};
struct RoutingHead {
    std::uint32_t nr{};
    std::uint32_t flags{};
};
struct SignalMaskHead {
    std::uint32_t len{};
};

namespace request {
inline constexpr unsigned get_msr_index_list = _IOWR(KVMIO, 0x02, MsrListHead);
inline constexpr unsigned get_supported_cpuid = _IOWR(KVMIO, 0x05, CpuidHead);
inline constexpr unsigned get_emulated_cpuid = _IOWR(KVMIO, 0x09, CpuidHead);
inline constexpr unsigned get_msr_feature_index_list = _IOWR(KVMIO, 0x0a, MsrListHead);
inline constexpr unsigned set_gsi_routing = _IOW(KVMIO, 0x6a, RoutingHead);
inline constexpr unsigned get_msrs = _IOWR(KVMIO, 0x88, MsrsHead);
inline constexpr unsigned set_msrs = _IOW(KVMIO, 0x89, MsrsHead);
inline constexpr unsigned set_cpuid = _IOW(KVMIO, 0x8a, CpuidHead);
inline constexpr unsigned set_signal_mask = _IOW(KVMIO, 0x8b, SignalMaskHead);
inline constexpr unsigned set_cpuid2 = _IOW(KVMIO, 0x90, CpuidHead);
inline constexpr unsigned get_cpuid2 = _IOWR(KVMIO, 0x91, CpuidHead);
}  // namespace request

/// KVM_MAX_CPUID_ENTRIES.
inline constexpr std::uint32_t max_cpuid_entries = 256;
/// KVM takes fewer than this many MSRs at once.
inline constexpr std::uint32_t max_msr_entries = 256;

/// `count` entries from `from` on.  False: EFAULT.
template <typename Entry>
[[nodiscard]] bool copy_list_in(std::vector<Entry>& to, UserAddress from, std::uint32_t count)
{
    to.resize(count);
    return copy_in(to.data(), from, count * sizeof(Entry));
}
template <typename Entry>
[[nodiscard]] bool copy_list_out(UserAddress to, const std::vector<Entry>& from) noexcept
{
    return copy_out(to, from.data(), from.size() * sizeof(Entry));
}

/// The entries of a `struct kvm_cpuid` or `kvm_cpuid2`.
///
/// @return 0, or a negative errno.
template <typename Entry>
[[nodiscard]] long take_cpuid(unsigned long argument, std::vector<Entry>& entries)
{
    const UserAddress user{argument};
    CpuidHead head;
    if (!copy_in(&head, user, sizeof head)) {
        return -EFAULT;
    }
    if (head.nent > max_cpuid_entries) {
        return -E2BIG;
    }
    return copy_list_in(entries, user + sizeof head, head.nent) ? 0 : -EFAULT;
}

/// Fills a `struct kvm_cpuid2`; where it is too small its count stays as it is.
///
/// @return 0, or a negative errno.
[[nodiscard]] inline long give_cpuid(unsigned long argument,
                                     const std::vector<kvm_cpuid_entry2>& entries,
                                     std::size_t least_room = 0)
{
    const UserAddress user{argument};
    CpuidHead head;
    if (!copy_in(&head, user, sizeof head)) {
        return -EFAULT;
    }
    if (head.nent < std::max(entries.size(), least_room)) {
        return -E2BIG;
    }
    head.nent = static_cast<std::uint32_t>(entries.size());
    return copy_list_out(user + sizeof head, entries) && copy_out(user, &head, sizeof head)
               ? 0
               : -EFAULT;
}

/// Lets `access(entry)` have each entry of a `struct kvm_msrs` until it says false.
///
/// @return KVM's: how many were had, or a negative errno.
template <typename F>
[[nodiscard]] long for_each_msr(unsigned long argument, bool write_back, F access)
{
    const UserAddress user{argument};
    MsrsHead head;
    if (!copy_in(&head, user, sizeof head)) {
        return -EFAULT;
    }
    if (head.nmsrs >= max_msr_entries) {
        return -E2BIG;
    }
    std::vector<kvm_msr_entry> entries;
    if (!copy_list_in(entries, user + sizeof head, head.nmsrs)) {
        return -EFAULT;
    }
    long done = 0;
    for (kvm_msr_entry& entry : entries) {
        if (!access(entry)) {
            break;
        }
        ++done;
    }
    if (write_back && !copy_list_out(user + sizeof head, entries)) {
        return -EFAULT;
    }
    return done;
}

}  // namespace vmm::shim
