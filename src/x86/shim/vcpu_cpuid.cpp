// SPDX-License-Identifier: Apache-2.0

/// @file
/// vCPU ioctls: CPUID and MSRs.

#include <algorithm>
#include <cerrno>
#include <vector>

#include <linux/kvm.h>

#include "x86/shim/convert.hpp"
#include "x86/shim/lists.hpp"
#include "x86/shim/vcpu_file.hpp"

namespace vmm::shim {
namespace {

/// KVM knows linear addresses of 48 and of 57 bits, and takes 0 for 48.
bool has_known_address_size(const std::vector<x86::CpuidEntry>& entries) noexcept
{
    constexpr std::uint32_t sizes = 0x8000'0008;
    return std::all_of(entries.begin(), entries.end(), [](const x86::CpuidEntry& leaf) {
        const std::uint32_t linear_bits = leaf.eax >> 8U & 0xffU;
        return leaf.function != sizes || linear_bits == 0 || linear_bits == 48 || linear_bits == 57;
    });
}

long set_entries(VcpuFile& file, const std::vector<x86::CpuidEntry>& entries)
{
    if (!has_known_address_size(entries)) {
        return -EINVAL;
    }
    // A guest that has run knows its CPU.
    if (file.has_run()) {
        return entries == file.vcpu().cpuid() ? 0 : -EINVAL;
    }
    return result_of(file.vcpu().set_cpuid(entries));
}

long set_cpuid2(VcpuFile& file, unsigned long argument)
{
    std::vector<kvm_cpuid_entry2> entries;
    const long taken = take_cpuid(argument, entries);
    return taken == 0 ? set_entries(file, from_kvm(entries)) : taken;
}

/// The older form, without sub-leaves.
long set_cpuid(VcpuFile& file, unsigned long argument)
{
    std::vector<kvm_cpuid_entry> old;
    if (const long taken = take_cpuid(argument, old); taken != 0) {
        return taken;
    }
    std::vector<x86::CpuidEntry> entries;
    entries.reserve(old.size());
    for (const kvm_cpuid_entry& e : old) {
        entries.push_back({e.function, 0, 0, e.eax, e.ebx, e.ecx, e.edx});
    }
    return set_entries(file, entries);
}

long get_cpuid2(VcpuFile& file, unsigned long argument)
{
    return give_cpuid(argument, to_kvm(file.vcpu().cpuid()));
}

long get_msrs(VcpuFile& file, unsigned long argument)
{
    return for_each_msr(argument, true, [&](kvm_msr_entry& entry) {
        const auto value = file.vcpu().msr(entry.index);
        if (!value) {
            static_cast<void>(refused(value.error()));
            return false;
        }
        entry.data = *value;
        return true;
    });
}

long set_msrs(VcpuFile& file, unsigned long argument)
{
    return for_each_msr(argument, false, [&](const kvm_msr_entry& entry) {
        return result_of(file.vcpu().set_msr(entry.index, entry.data)) == 0;
    });
}

constexpr Row<VcpuFile> rows[] = {
    {request::set_cpuid, "KVM_SET_CPUID", set_cpuid},
    {request::set_cpuid2, "KVM_SET_CPUID2", set_cpuid2},
    {request::get_cpuid2, "KVM_GET_CPUID2", get_cpuid2},
    {request::get_msrs, "KVM_GET_MSRS", get_msrs},
    {request::set_msrs, "KVM_SET_MSRS", set_msrs},
};

}  // namespace

std::span<const Row<VcpuFile>> vcpu_cpuid_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
