// SPDX-License-Identifier: Apache-2.0

#include "vmm/x86/topology.hpp"

#include <algorithm>
#include <bit>

namespace vmm::x86 {
namespace {

constexpr std::uint32_t level_thread = 1U << 8U;
constexpr std::uint32_t level_core = 2U << 8U;
constexpr std::uint32_t htt = 1U << 28U;

/// CPUID.0BH: level 0 is the thread, level 1 the core, the third ends the list.
void add_extended_topology(std::vector<CpuidEntry>& leaves, std::uint32_t id, std::uint32_t count)
{
    const std::uint32_t core_bits = std::bit_width(count - 1U);
    const std::uint32_t f = CpuidEntry::significant_index;
    leaves.push_back({0xb, 0, f, 0, 1, 0U | level_thread, id});
    leaves.push_back({0xb, 1, f, core_bits, count, 1U | level_core, id});
    leaves.push_back({0xb, 2, f, 0, 0, 2, id});
}

}  // namespace

std::vector<CpuidEntry> cpuid_for_vcpu(std::span<const CpuidEntry> entries,
                                       std::uint32_t id,
                                       std::uint32_t count)
{
    const std::uint32_t cores = std::max(count, 1U);
    std::vector<CpuidEntry> leaves;
    leaves.reserve(entries.size() + 3);
    bool extended_topology = false;
    for (CpuidEntry entry : entries) {
        switch (entry.function) {
        case 0x1:
            entry.ebx = (entry.ebx & 0xffffU) | (std::min(cores, 255U) << 16U) | (id << 24U);
            entry.edx = cores > 1U ? entry.edx | htt : entry.edx & ~htt;
            break;
        case 0x4:  // Caches: cores in the package; the last level is shared by all of them.
            if ((entry.eax & 0x1fU) != 0U) {
                const std::uint32_t level = (entry.eax >> 5U) & 7U;
                const std::uint32_t sharing = level >= 3U ? cores - 1U : 0U;
                entry.eax = (entry.eax & 0x3fffU) | (std::min(sharing, 0xfffU) << 14U) |
                            (std::min(cores - 1U, 0x3fU) << 26U);
            }
            break;
        case 0xb: extended_topology = true; continue;
        case 0x1f: continue;  // Its answer is then that of 0BH.
        case 0x8000'0001:
            // CmpLegacy: on AMD, the count in leaf 1 is one of cores.
            entry.ecx =
                cores > 1U && (entry.ecx & (1U << 0U)) != 0U ? entry.ecx | 2U : entry.ecx & ~2U;
            break;
        case 0x8000'0008:
            entry.ecx = (std::min(cores - 1U, 0xffU)) | (std::bit_width(cores - 1U) << 12U);
            break;
        default: break;
        }
        leaves.push_back(entry);
    }
    if (extended_topology) {
        add_extended_topology(leaves, id, cores);
    }
    return leaves;
}

}  // namespace vmm::x86
