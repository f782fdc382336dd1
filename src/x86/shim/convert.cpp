// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/convert.hpp"

#include <bit>
#include <cstddef>
#include <cstring>

namespace vmm::shim {

// The library's snapshots are laid out as KVM's, so a copy of the bytes is a copy of the fields.
static_assert(sizeof(kvm_regs) == sizeof(x86::Regs));
static_assert(offsetof(kvm_regs, r8) == offsetof(x86::Regs, r8) &&
              offsetof(kvm_regs, rsp) == offsetof(x86::Regs, rsp) &&
              offsetof(kvm_regs, rflags) == offsetof(x86::Regs, rflags));
static_assert(sizeof(kvm_segment) == sizeof(x86::Segment) &&
              offsetof(kvm_segment, type) == offsetof(x86::Segment, type) &&
              offsetof(kvm_segment, unusable) == offsetof(x86::Segment, unusable));
static_assert(offsetof(kvm_sregs, ldt) == offsetof(x86::Sregs, ldt) &&
              offsetof(kvm_sregs, gdt) == offsetof(x86::Sregs, gdt) &&
              offsetof(kvm_sregs, cr8) == offsetof(x86::Sregs, cr8) &&
              offsetof(kvm_sregs, interrupt_bitmap) == sizeof(x86::Sregs));
static_assert(sizeof(kvm_fpu) == sizeof(x86::Fpu) &&
              offsetof(kvm_fpu, xmm) == offsetof(x86::Fpu, xmm) &&
              offsetof(kvm_fpu, mxcsr) == offsetof(x86::Fpu, mxcsr));

kvm_regs to_kvm(const x86::Regs& regs) noexcept
{
    return std::bit_cast<kvm_regs>(regs);
}

x86::Regs from_kvm(const kvm_regs& regs) noexcept
{
    return std::bit_cast<x86::Regs>(regs);
}

kvm_sregs to_kvm(const x86::Sregs& sregs) noexcept
{
    kvm_sregs out{};
    std::memcpy(&out, &sregs, sizeof sregs);
    return out;
}

x86::Sregs from_kvm(const kvm_sregs& sregs) noexcept
{
    x86::Sregs out;
    std::memcpy(static_cast<void*>(&out), &sregs, sizeof out);
    return out;
}

kvm_fpu to_kvm(const x86::Fpu& fpu) noexcept
{
    return std::bit_cast<kvm_fpu>(fpu);
}

x86::Fpu from_kvm(const kvm_fpu& fpu) noexcept
{
    return std::bit_cast<x86::Fpu>(fpu);
}

std::vector<kvm_cpuid_entry2> to_kvm(std::span<const x86::CpuidEntry> entries)
{
    std::vector<kvm_cpuid_entry2> out;
    out.reserve(entries.size());
    for (const x86::CpuidEntry& e : entries) {
        out.push_back({e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx, {}});
    }
    return out;
}

std::vector<x86::CpuidEntry> from_kvm(std::span<const kvm_cpuid_entry2> entries)
{
    std::vector<x86::CpuidEntry> out;
    out.reserve(entries.size());
    for (const kvm_cpuid_entry2& e : entries) {
        out.push_back({e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx});
    }
    return out;
}

}  // namespace vmm::shim
