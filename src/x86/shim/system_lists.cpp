// SPDX-License-Identifier: Apache-2.0

/// @file
/// `/dev/kvm`: lists of what guests may be offered.

#include <cerrno>
#include <cstring>
#include <vector>

#include <linux/kvm.h>

#include "x86/shim/convert.hpp"
#include "x86/shim/lists.hpp"
#include "x86/shim/system_file.hpp"

namespace vmm::shim {
namespace {

/// The count goes out in any case, so that a client that asked with too small a list knows.
long give_msr_list(unsigned long argument, const std::vector<std::uint32_t>& list)
{
    const UserAddress user{argument};
    MsrListHead head;
    if (!copy_in(&head, user, sizeof head)) {
        return -EFAULT;
    }
    const std::uint32_t room = head.nmsrs;
    head.nmsrs = static_cast<std::uint32_t>(list.size());
    if (!copy_out(user, &head, sizeof head)) {
        return -EFAULT;
    }
    if (room < list.size()) {
        return -E2BIG;
    }
    return copy_list_out(user + sizeof head, list) ? 0 : -EFAULT;
}

long get_msr_index_list(SystemFile& file, unsigned long argument)
{
    return give_msr_list(argument, file.kvm().msr_index_list());
}

long get_msr_feature_index_list(SystemFile& file, unsigned long argument)
{
    return give_msr_list(argument, file.kvm().msr_feature_list());
}

long get_feature_msrs(SystemFile& file, unsigned long argument)
{
    return for_each_msr(argument, true, [&](kvm_msr_entry& entry) {
        const auto value = file.kvm().feature_msr(entry.index);
        entry.data = value.value_or(0);
        return value.has_value();
    });
}

/// Of the hypervisor's leaves KVM has two; clients that offer more add them.
void keep_kvms_leaves(std::vector<kvm_cpuid_entry2>& entries)
{
    constexpr std::uint32_t first = 0x4000'0000;
    constexpr std::uint32_t last = 0x4000'0001;
    constexpr std::uint32_t end = 0x4000'0100;
    std::erase_if(entries, [](const kvm_cpuid_entry2& leaf) {
        return leaf.function > last && leaf.function < end;
    });
    for (kvm_cpuid_entry2& leaf : entries) {
        if (leaf.function == first) {
            leaf.eax = last;
        }
    }
}

long get_supported_cpuid(SystemFile& file, unsigned long argument)
{
    std::vector<kvm_cpuid_entry2> entries = to_kvm(file.kvm().supported_cpuid());
    keep_kvms_leaves(entries);
    return give_cpuid(argument, entries);
}

long get_emulated_cpuid(SystemFile& file, unsigned long argument)
{
    return give_cpuid(argument, to_kvm(file.kvm().emulated_cpuid()), 1);
}

long get_mce_capabilities(SystemFile& file, __u64& out)
{
    out = file.kvm().mce_capabilities();
    return 0;
}

/// The one attribute of the system: the state components that a guest may have.
bool is_xcomp_attribute(const kvm_device_attr& attribute) noexcept
{
    return attribute.group == 0 && attribute.attr == KVM_X86_XCOMP_GUEST_SUPP;
}

long has_attribute(SystemFile& /*file*/, const kvm_device_attr& attribute)
{
    return is_xcomp_attribute(attribute) ? 0 : -ENXIO;
}

long get_attribute(SystemFile& file, const kvm_device_attr& attribute)
{
    if (!is_xcomp_attribute(attribute)) {
        return -ENXIO;
    }
    __u64 components = 1;
    for (const x86::CpuidEntry& leaf : file.kvm().supported_cpuid()) {
        if (leaf.function == 0xd && leaf.index == 0) {
            components = static_cast<__u64>(leaf.edx) << 32U | leaf.eax;
        }
    }
    return copy_out(UserAddress{attribute.addr}, components) ? 0 : -EFAULT;
}

constexpr Row<SystemFile> rows[] = {
    {request::get_msr_index_list, "KVM_GET_MSR_INDEX_LIST", get_msr_index_list},
    {request::get_msr_feature_index_list, "KVM_GET_MSR_FEATURE_INDEX_LIST",
     get_msr_feature_index_list},
    {request::get_msrs, "KVM_GET_MSRS", get_feature_msrs},
    {request::get_supported_cpuid, "KVM_GET_SUPPORTED_CPUID", get_supported_cpuid},
    {request::get_emulated_cpuid, "KVM_GET_EMULATED_CPUID", get_emulated_cpuid},
    {KVM_X86_GET_MCE_CAP_SUPPORTED, "KVM_X86_GET_MCE_CAP_SUPPORTED", writes<get_mce_capabilities>},
    {KVM_HAS_DEVICE_ATTR, "KVM_HAS_DEVICE_ATTR", reads<has_attribute>},
    {KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR", reads<get_attribute>},
};

}  // namespace

std::span<const Row<SystemFile>> system_list_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
