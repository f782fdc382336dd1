// SPDX-License-Identifier: Apache-2.0

/// @file
/// VM ioctls: MSR filters, and MSR accesses that leave.

#include <cerrno>
#include <vector>

#include <linux/kvm.h>

#include "x86/shim/lists.hpp"
#include "x86/shim/vm_file.hpp"

namespace vmm::shim {

long set_msr_exits(VmFile& file, __u64 reasons)
{
    constexpr __u64 known =
        KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
    if ((reasons & ~known) != 0) {
        return -EINVAL;
    }
    file.vm().set_msr_exits({.invalid = (reasons & KVM_MSR_EXIT_REASON_INVAL) != 0,
                             .unknown = (reasons & KVM_MSR_EXIT_REASON_UNKNOWN) != 0,
                             .filtered = (reasons & KVM_MSR_EXIT_REASON_FILTER) != 0});
    return 0;
}

namespace {

/// 0, or a negative errno.
long take_range(const kvm_msr_filter_range& wanted, x86::MsrFilterRange& range)
{
    constexpr __u32 known = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
    if ((wanted.flags & ~known) != 0 || wanted.flags == 0 ||
        wanted.nmsrs > x86::MsrFilter::max_count) {
        return -EINVAL;
    }
    range.reads = (wanted.flags & KVM_MSR_FILTER_READ) != 0;
    range.writes = (wanted.flags & KVM_MSR_FILTER_WRITE) != 0;
    range.base = wanted.base;
    range.count = wanted.nmsrs;
    // SAFETY: the number only.
    const UserAddress bitmap{reinterpret_cast<unsigned long>(wanted.bitmap)};
    constexpr std::uint32_t bits = 64;
    return copy_list_in(range.allowed, bitmap, (wanted.nmsrs + bits - 1) / bits) ? 0 : -EFAULT;
}

long set_msr_filter(VmFile& file, const kvm_msr_filter& wanted)
{
    if ((wanted.flags & ~__u32{KVM_MSR_FILTER_DEFAULT_DENY}) != 0) {
        return -EINVAL;
    }
    x86::MsrFilter filter;
    filter.default_deny = (wanted.flags & KVM_MSR_FILTER_DEFAULT_DENY) != 0;
    for (const kvm_msr_filter_range& each : wanted.ranges) {
        if (each.nmsrs == 0) {
            continue;
        }
        if (const long taken = take_range(each, filter.ranges.emplace_back()); taken != 0) {
            return taken;
        }
    }
    return result_of(file.vm().set_msr_filter(filter));
}

constexpr Row<VmFile> rows[] = {
    {KVM_X86_SET_MSR_FILTER, "KVM_X86_SET_MSR_FILTER", reads<set_msr_filter>},
};

}  // namespace

std::span<const Row<VmFile>> vm_msr_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
