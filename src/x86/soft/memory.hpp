// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest memory as instructions see it: linear addresses in, values or faults out.
///
/// Every function may throw `Fault` (#PF, #GP, #SS, #AC) or `LeaveForMmio`.  `segment` decides
/// between #SS and #GP for a non-canonical address and plays no other role: `linear` has its base
/// in it already (`linear_address()`).

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "x86/soft/cpu.hpp"
#include "x86/soft/fault.hpp"

// Guest memory is shared with other vCPUs and with the VMM: a race in it is the guest's.
#define VMM_GUEST_RACY __attribute__((no_sanitize("thread")))

namespace vmm::x86::soft {

inline constexpr std::uint64_t page_size = 4096;
inline constexpr std::uint64_t page_mask = page_size - 1;

enum class Access : std::uint8_t { Read, Write, ReadWrite, Execute };

/// `volatile` keeps program order (the host's TSO is the guest's); unaligned is allowed.
template <typename T>
struct [[gnu::packed, gnu::may_alias]] Unaligned
{
    T value;
};

template <typename T>
[[nodiscard]] VMM_GUEST_RACY inline T load_host(const std::byte* from) noexcept
{
    // SAFETY: `from` points at sizeof(T) bytes of mapped guest memory; the type carries no
    // alignment and may alias what else lies in guest RAM.
    return reinterpret_cast<const volatile Unaligned<T>*>(from)->value;
}

template <typename T>
VMM_GUEST_RACY inline void store_host(std::byte* to, T value) noexcept
{
    // SAFETY: as above.
    reinterpret_cast<volatile Unaligned<T>*>(to)->value = value;
}

// --- Out of line (mmu.cpp): TLB misses, page crossings, MMIO, permission checks.
void read_slow(Cpu& cpu, SegmentIndex segment, std::uint64_t linear, void* to, std::size_t size);
void write_slow(Cpu& cpu,
                SegmentIndex segment,
                std::uint64_t linear,
                const void* from,
                std::size_t size);
/// Reads for an instruction that will write the same bytes: faults as the write would.
void read_for_write_slow(Cpu& cpu,
                         SegmentIndex segment,
                         std::uint64_t linear,
                         void* to,
                         std::size_t size);

/// How a `try_…` below has ended.
enum class Tried : std::uint8_t {
    Done,
    Mmio,       ///< Nothing has been done: `gpa` leads to MMIO.
    PageFault,  ///< Which is in `Cpu::page_fault`.
};

/// The same without an exception for a page fault (but for others).  @pre The access lies in one
/// page; no alignment check or data breakpoint applies.
[[nodiscard]] Tried try_read(Cpu& cpu,
                             SegmentIndex segment,
                             std::uint64_t linear,
                             void* to,
                             std::size_t size,
                             std::uint64_t& gpa);
[[nodiscard]] Tried try_write(Cpu& cpu,
                              SegmentIndex segment,
                              std::uint64_t linear,
                              const void* from,
                              std::size_t size,
                              std::uint64_t& gpa);

/// The host address of `size` bytes at `linear`, after the same checks as the access itself, or
/// null where they are no plain memory in one page (crossing, MMIO, code page on write): use the
/// value functions then.
[[nodiscard]] std::byte* direct(Cpu& cpu,
                                SegmentIndex segment,
                                std::uint64_t linear,
                                std::size_t size,
                                Access access);

/// As `direct`, but fills no more than up to the end of the page: the number of bytes is in `size`.
/// For string instructions.
[[nodiscard]] std::byte* direct_run(Cpu& cpu,
                                    SegmentIndex segment,
                                    std::uint64_t linear,
                                    std::size_t& size,
                                    Access access);

/// Throws what a write of `size` bytes would throw, writes nothing.
void probe_write(Cpu& cpu, SegmentIndex segment, std::uint64_t linear, std::size_t size);

/// Implicit supervisor accesses: descriptor tables, TSS, the stack of an interrupt (which has its
/// own CPL: `user` says that the access is made with CPL 3's rights).
void read_system(Cpu& cpu, std::uint64_t linear, void* to, std::size_t size);
void write_system(Cpu& cpu, std::uint64_t linear, const void* from, std::size_t size);
/// A stack access made on behalf of privilege level `cpl` (the new stack of a gate).
void write_stack(Cpu& cpu, std::uint64_t linear, const void* from, std::size_t size, unsigned cpl);
void probe_stack(Cpu& cpu, std::uint64_t linear, std::size_t size, unsigned cpl);

/// Fetches code: copies up to `size` bytes at `linear`, at least one, never beyond its page.
struct CodePage {
    std::uint64_t gpa{};      ///< Of the byte at `linear`.
    const std::byte* host{};  ///< Of the byte at `linear`; null where code lies in no memory slot.
    std::size_t size{};       ///< To the end of the page.
    bool global{};
    std::uint8_t page_shift{12};  ///< Of the page in the paging structures.
};
/// Throws the fault of an instruction fetch (#PF, #GP) where there is one.
[[nodiscard]] CodePage fetch_page(Cpu& cpu, std::uint64_t linear);

/// Of all address spaces; and global pages, or not.  The first also has where physical pages lie
/// looked up anew, which `forget_pages` does alone, and `flush_translations` does not.
void flush_tlb_all(Cpu& cpu) noexcept;
void forget_pages(Cpu& cpu) noexcept;
void flush_translations(Cpu& cpu) noexcept;
/// Of all address spaces: code that is reached next is compared with memory first.
void flush_fetch_tlb(Cpu& cpu) noexcept;
void flush_tlb_non_global(Cpu& cpu) noexcept;
/// Of the current address space, and global pages.
void flush_tlb_page(Cpu& cpu, std::uint64_t linear) noexcept;
/// CR3 has been written: what is still known of its PCID counts if `keep`.
void switch_address_space(Cpu& cpu, bool keep) noexcept;
/// Drops all but global pages of one PCID.
void forget_address_space(Cpu& cpu, std::uint16_t pcid) noexcept;
/// The next write to the host page (or to any page) goes through `write_slow`.
void drop_write_translations(Cpu& cpu, const std::byte* host_page) noexcept;
void drop_write_translations(Cpu& cpu) noexcept;
/// Loads the PDPTE registers from the table at `cr3` (PAE paging without long mode).  False, and
/// nothing changed, where a present entry has a reserved bit set: #GP(0).  SDM Vol. 3A "PDPTE
/// Registers": on a write of CR3, and of CR0 or CR4 bits that bring PAE paging about.
[[nodiscard]] bool load_pdptes(Cpu& cpu, std::uint64_t cr3) noexcept;

/// Translation without side effects, for KVM_TRANSLATE and debuggers.  @pre The vCPU is in the
/// guest (`SoftVm::enter_guest`).
[[nodiscard]] bool translate_quietly(Cpu& cpu, std::uint64_t linear, std::uint64_t& gpa) noexcept;

/// Runs `action(host pointer)` while no other vCPU of the VM executes guest code, or on the
/// bounce buffer of an MMIO location: for locked accesses that cross a page or touch MMIO.
using LockedAction = void (*)(std::byte* bytes, void* context);
void locked_slow(Cpu& cpu,
                 SegmentIndex segment,
                 std::uint64_t linear,
                 std::size_t size,
                 LockedAction action,
                 void* context);

template <typename T>
[[nodiscard, gnu::always_inline]] inline const TlbEntry& tlb_entry(const Cpu& cpu,
                                                                   std::uint64_t linear) noexcept
{
    return cpu.tlb->entries[(linear >> 12U) % Tlb::entry_count];
}

/// The value at `linear`.
template <typename T>
[[nodiscard, gnu::always_inline]] inline T load(Cpu& cpu,
                                                SegmentIndex segment,
                                                std::uint64_t linear)
{
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    // The page of the last byte against the entry of the first: a crossing access goes slow.
    if (entry.read_tag == ((linear + sizeof(T) - 1U) & ~std::uint64_t{0xfff})) [[likely]] {
        // SAFETY: the entry maps this page of guest memory (see `TlbEntry::addend`).
        return load_host<T>(reinterpret_cast<const std::byte*>(linear + entry.addend));
    }
    T value;
    read_slow(cpu, segment, linear, &value, sizeof(T));
    return value;
}

template <typename T>
[[gnu::always_inline]] inline void store(Cpu& cpu,
                                         SegmentIndex segment,
                                         std::uint64_t linear,
                                         T value)
{
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    if (entry.write_tag == ((linear + sizeof(T) - 1U) & ~std::uint64_t{0xfff})) [[likely]] {
        // SAFETY: as in `load`.
        store_host<T>(reinterpret_cast<std::byte*>(linear + entry.addend), value);
        return;
    }
    write_slow(cpu, segment, linear, &value, sizeof(T));
}

/// The value at `linear`, to be followed by a `store` there in the same instruction: faults as a
/// write, so that the store cannot.
template <typename T>
[[nodiscard, gnu::always_inline]] inline T load_for_write(Cpu& cpu,
                                                          SegmentIndex segment,
                                                          std::uint64_t linear)
{
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    if (entry.write_tag == ((linear + sizeof(T) - 1U) & ~std::uint64_t{0xfff})) [[likely]] {
        // SAFETY: as in `load`.
        return load_host<T>(reinterpret_cast<const std::byte*>(linear + entry.addend));
    }
    T value;
    read_for_write_slow(cpu, segment, linear, &value, sizeof(T));
    return value;
}

/// The linear address of `offset` in `segment`, for an access of `size` bytes: checks limit and
/// type in 16- and 32-bit code (segmentation.cpp), adds the base.  #GP(0) or #SS(0).
[[nodiscard]] std::uint64_t segmented_address(Cpu& cpu,
                                              SegmentIndex segment,
                                              std::uint64_t offset,
                                              std::size_t size,
                                              Access access);

/// Whether 32-bit code runs in segments that are as good as none: CS, DS, ES and SS begin at 0, end
/// at 4 GiB, and the last three can be written to.
[[nodiscard]] bool is_flat(const Cpu& cpu) noexcept;

/// The linear address of `offset` in a segment of flat code.
[[nodiscard, gnu::always_inline]] inline std::uint64_t flat_address(Cpu& cpu,
                                                                    SegmentIndex segment,
                                                                    std::uint64_t offset,
                                                                    std::size_t size,
                                                                    Access access)
{
    if (offset + size <= std::uint64_t{1} << 32U) [[likely]] {
        return offset;
    }
    return segmented_address(cpu, segment, offset, size, access);
}

template <typename T>
[[nodiscard, gnu::always_inline]] inline T& gpr_at(Cpu& cpu, std::uint8_t byte_offset) noexcept
{
    // SAFETY: the offset came from a register number (op.hpp); registers are little-endian
    // uint64_t, their low parts are their narrower names.
    using Register [[gnu::may_alias]] = T;
    return *reinterpret_cast<Register*>(reinterpret_cast<std::byte*>(cpu.gpr.data()) + byte_offset);
}

/// The effective address of `op`'s memory operand, cut to the address size.
[[nodiscard, gnu::always_inline]] inline std::uint64_t effective_address(Cpu& cpu,
                                                                         const Op& op) noexcept
{
    const std::uint64_t address = gpr_at<std::uint64_t>(cpu, op.base) +
                                  (gpr_at<std::uint64_t>(cpu, op.index) << op.scale) +
                                  static_cast<std::uint64_t>(std::int64_t{op.displacement});
    if (op.address_size == 8) [[likely]] {
        return address;
    }
    return op.address_size == 4 ? address & 0xffff'ffffU : address & 0xffffU;
}

/// The linear address of `op`'s memory operand for an access of `size` bytes.
[[nodiscard, gnu::always_inline]] inline std::uint64_t linear_address(Cpu& cpu,
                                                                      const Op& op,
                                                                      std::size_t size,
                                                                      Access access)
{
    const std::uint64_t address = effective_address(cpu, op);
    if (op.address_kind == AddressKind::Flat64) [[likely]] {
        return address;
    }
    if (op.address_kind == AddressKind::Based64) {
        return address + cpu.seg[op.segment].base;
    }
    const auto segment = static_cast<SegmentIndex>(op.segment);
    return op.address_kind == AddressKind::Flat32
               ? flat_address(cpu, segment, address, size, access)
               : segmented_address(cpu, segment, address, size, access);
}

}  // namespace vmm::x86::soft
