// SPDX-License-Identifier: Apache-2.0

/// @file
/// Between the MMU's files: page-table walks, filling of TLBs, MMIO accesses.
///
/// SDM Vol. 3A "Paging"; APM Vol. 2 "Page Translation and Protection".

#pragma once

#include <cstddef>
#include <cstdint>

#include "x86/soft/cpu.hpp"

namespace vmm::x86::soft {

/// What an access wants from the paging structures.
struct WalkRequest {
    bool write{};
    bool fetch{};
    bool user{};         ///< With the rights of CPL 3.
    bool smap_lifted{};  ///< Supervisor data access, explicit, with EFLAGS.AC set.
    bool quiet{};        ///< No permissions, no accessed and dirty bits: only where it leads.
};

struct WalkResult {
    std::uint64_t gpa{};
    std::uint8_t page_shift{12};
    bool global{};
    bool
        writable{};  ///< A write with the same rights would succeed and change no paging structure.
};

/// Translates `linear`, which is canonical (or cut to 32 bits), in the current paging mode and sets
/// accessed and dirty bits.  False: #PF with `error_code`.
[[nodiscard]] bool walk(Cpu& cpu,
                        std::uint64_t linear,
                        const WalkRequest& request,
                        WalkResult& result,
                        std::uint32_t& error_code) noexcept;

/// The page from the vCPU's cache, or from the memory slots.
[[nodiscard]] PhysicalMemory::Page physical_page(Cpu& cpu, std::uint64_t gfn) noexcept;

/// Whether linear addresses are 57 bits wide.
[[nodiscard]] bool is_canonical(const Cpu& cpu, std::uint64_t linear) noexcept;

/// Remembers a translation.  `host`: of the page's first byte.
void fill_tlb(Cpu& cpu,
              TlbContext context,
              std::uint64_t linear,
              const std::byte* host,
              const WalkResult& result,
              bool write) noexcept;

/// One MMIO access of any size within a page: answered by the library, replayed, or `LeaveForMmio`.
void mmio_read(Cpu& cpu, std::uint64_t gpa, std::byte* to, std::size_t size);
void mmio_write(Cpu& cpu, std::uint64_t gpa, const std::byte* from, std::size_t size);

}  // namespace vmm::x86::soft
