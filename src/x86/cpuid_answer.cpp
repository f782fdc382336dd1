// SPDX-License-Identifier: Apache-2.0

#include "x86/cpuid_answer.hpp"

#include <algorithm>

namespace vmm::x86 {
namespace {

constexpr std::uint32_t xsave_leaf = 0xd;
constexpr std::uint32_t xsave_header_end = 576;

/// Bytes of an XSAVE area with the components of `mask`.  SDM Vol. 1 "Standard Format of Extended
/// Region", "Compacted Format of Extended Region".
std::uint32_t xsave_size(const Cpuid& cpuid, std::uint64_t mask, bool compacted) noexcept
{
    std::uint32_t size = xsave_header_end;
    for (std::uint32_t component = 2; component < 63U; ++component) {
        if (((mask >> component) & 1U) == 0U) {
            continue;
        }
        const CpuidEntry* const entry = cpuid.find(xsave_leaf, component);
        if (entry == nullptr) {
            continue;
        }
        if (!compacted) {
            size = std::max(size, entry->ebx + entry->eax);
        } else {
            const bool is_aligned = (entry->ecx & 2U) != 0U;
            size = (is_aligned ? (size + 63U) & ~63U : size) + entry->eax;
        }
    }
    return size;
}

}  // namespace

CpuidEntry answer_cpuid(const CpuState& state,
                        std::uint64_t apic_base,
                        std::uint32_t function,
                        std::uint32_t index) noexcept
{
    CpuidEntry entry = state.cpuid.lookup(function, index);
    const Cr4 control{state.cr4};
    if (function == 1U) {
        constexpr std::uint32_t osxsave = 1U << 27U;
        constexpr std::uint32_t apic = 1U << 9U;
        constexpr std::uint64_t apic_enable = 1U << 11U;  // In IA32_APIC_BASE.
        entry.ecx = (entry.ecx & ~osxsave) | (control.get(Cr4::OSXSAVE) ? osxsave : 0U);
        if ((apic_base & apic_enable) == 0U) {
            entry.edx &= ~apic;
        }
    } else if (function == 7U && index == 0U) {
        constexpr std::uint32_t ospke = 1U << 4U;
        entry.ecx = (entry.ecx & ~ospke) | (control.get(Cr4::PKE) ? ospke : 0U);
    } else if (function == xsave_leaf && index == 0U && entry.ebx != 0U) {
        entry.ebx = xsave_size(state.cpuid, state.xcr0, false);
    } else if (function == xsave_leaf && index == 1U && entry.ebx != 0U) {
        entry.ebx = xsave_size(state.cpuid, state.xcr0 | state.xss, true);
    }
    return entry;
}

}  // namespace vmm::x86
