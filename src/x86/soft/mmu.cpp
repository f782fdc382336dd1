// SPDX-License-Identifier: Apache-2.0

/// @file
/// Memory accesses that the inline paths of memory.hpp leave: TLB misses, page crossings, MMIO,
/// code pages, everything with a fault in it.
///
/// Each access first checks all of its pages, then touches memory.

#include <algorithm>
#include <array>
#include <cstring>

#include "x86/soft/block.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/page_walk.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

/// Where a piece of an access, which lies in one page, leads.
struct Target {
    std::byte* host{};    ///< Null: MMIO.
    std::uint64_t gpa{};  ///< Known only where memory is not plain.
    bool writable{};      ///< Clear with memory behind it: a read-only slot.
    bool code{};          ///< Writes must be reported to `SoftVm::code_written`.

    [[nodiscard]] bool is_plain(bool write) const noexcept
    {
        return host != nullptr && (!write || (writable && !code));
    }
};

TlbContext data_context(const Cpu& cpu, unsigned cpl) noexcept
{
    if (cpl == 3) {
        return TlbContext::User;
    }
    return Cr4{cpu.cr4}.get(Cr4::SMAP) && Rflags{cpu.rflags}.get(Rflags::AC)
               ? TlbContext::SupervisorUserAllowed
               : TlbContext::Supervisor;
}

TlbContext data_context(const Cpu& cpu) noexcept
{
    return data_context(cpu, cpu.cpl);
}

/// Cuts `linear` to 32 bits outside long mode; in it, the whole access must be canonical.
std::uint64_t checked_linear(const Cpu& cpu,
                             SegmentIndex segment,
                             std::uint64_t linear,
                             std::size_t size)
{
    if (!cpu.long_mode()) {
        return linear & 0xffff'ffffU;
    }
    if (!is_canonical(cpu, linear) || !is_canonical(cpu, linear + (size - 1))) {
        raise(segment == Ss ? Vector::SS : Vector::GP, 0);
    }
    return linear;
}

std::uint64_t advance(const Cpu& cpu, std::uint64_t linear, std::size_t by) noexcept
{
    return cpu.long_mode() ? linear + by : (linear + by) & 0xffff'ffffU;
}

std::size_t left_in_page(std::uint64_t linear) noexcept
{
    return page_size - (linear & page_mask);
}

/// Translates with the rights of `context` and fills its TLB.  False: a page fault with
/// `error_code`.
bool try_resolve(Cpu& cpu,
                 TlbContext context,
                 std::uint64_t linear,
                 bool write,
                 Target& target,
                 std::uint32_t& error_code)
{
    const Tlb& tlb = cpu.tlbs[static_cast<std::size_t>(context)];
    const TlbEntry& entry = tlb.entries[(linear >> 12U) % Tlb::entry_count];
    if ((write ? entry.write_tag : entry.read_tag) == (linear & ~page_mask)) {
        // SAFETY: the entry maps this page of guest memory (see `TlbEntry::addend`).
        target = {reinterpret_cast<std::byte*>(linear + entry.addend), 0, write, false};
        return true;
    }
    WalkRequest request{};
    request.write = write;
    request.user = context == TlbContext::User;
    request.smap_lifted = context == TlbContext::SupervisorUserAllowed;
    WalkResult result{};
    if (!walk(cpu, linear, request, result, error_code)) {
        return false;
    }
    const std::uint64_t gfn = result.gpa >> 12U;
    const PhysicalMemory::Page page = physical_page(cpu, gfn);
    if (page.host == nullptr) {
        target = {nullptr, result.gpa, false, false};
        return true;
    }
    const bool code = cpu.vm.is_code_page(gfn);
    if (write && page.writable && page.log_dirty) {
        cpu.vm.memory(cpu).mark_dirty(gfn);
    }
    // A write translation is there once nothing needs to know of the writes any more.
    const bool fill_write =
        page.writable && !code && (write || (result.writable && !page.log_dirty));
    fill_tlb(cpu, context, linear, page.host, result, fill_write);
    target = {page.host + (linear & page_mask), result.gpa, page.writable, code};
    return true;
}

/// The same; throws #PF.
Target resolve(Cpu& cpu, TlbContext context, std::uint64_t linear, bool write)
{
    Target target;
    std::uint32_t error_code = 0;
    if (!try_resolve(cpu, context, linear, write, target, error_code)) {
        raise_page_fault(error_code, linear);
    }
    return target;
}

/// Calls `action(linear, offset, size)` for each page of an access.
template <typename Action>
void for_each_page(const Cpu& cpu, std::uint64_t linear, std::size_t size, const Action& action)
{
    for (std::size_t offset = 0; offset < size;) {
        const std::uint64_t at = advance(cpu, linear, offset);
        const std::size_t part = std::min(size - offset, left_in_page(at));
        action(at, offset, part);
        offset += part;
    }
}

bool is_crossing(std::uint64_t linear, std::size_t size) noexcept
{
    return size > left_in_page(linear);
}

/// #AC(0) for a misaligned access.  SDM Vol. 3A "Alignment-Check Exception".
void check_alignment(const Cpu& cpu, std::uint64_t linear, std::size_t size)
{
    if (!cpu.alignment_check) {
        return;
    }
    std::uint64_t alignment = 1;
    if (size == 14 || size == 94) {
        alignment = 2;  // FSTENV and FSAVE with a 16-bit operand size.
    } else if (size == 28 || size == 108) {
        alignment = 4;
    } else if (size >= 16) {
        // Intel's processors check no vectors; those that must be aligned raise #GP.
        alignment = cpu.cpuid.is_intel() ? 1 : 16;
    } else if (size >= 8) {
        alignment = 8;
    } else if (size >= 4) {
        alignment = 4;
    } else if (size == 2) {
        alignment = 2;
    }
    if (linear % alignment != 0) {
        raise(Vector::AC, 0);
    }
}

/// Guest memory may be written by others at the same time: no memcpy here, which a sanitizer would
/// look into.
VMM_GUEST_RACY void copy_from_host(std::byte* to, const std::byte* from, std::size_t size) noexcept
{
    switch (size) {
    case 1: store_host(to, load_host<std::uint8_t>(from)); return;
    case 2: store_host(to, load_host<std::uint16_t>(from)); return;
    case 4: store_host(to, load_host<std::uint32_t>(from)); return;
    default: break;
    }
    while (size >= sizeof(std::uint64_t)) {
        store_host(to, load_host<std::uint64_t>(from));
        to += sizeof(std::uint64_t);
        from += sizeof(std::uint64_t);
        size -= sizeof(std::uint64_t);
    }
    for (; size != 0; --size) {
        store_host(to++, load_host<std::uint8_t>(from++));
    }
}

void read_piece(Cpu& cpu, const Target& target, std::byte* to, std::size_t size)
{
    if (target.host != nullptr) {
        copy_from_host(to, target.host, size);
    } else {
        mmio_read(cpu, target.gpa, to, size);
    }
}

void write_piece(Cpu& cpu, const Target& target, const std::byte* from, std::size_t size)
{
    if (target.host == nullptr || !target.writable) {
        mmio_write(cpu, target.gpa, from, size);
        return;
    }
    copy_from_host(target.host, from, size);
    if (target.code) {
        cpu.vm.code_written(cpu, target.gpa, size);
    }
}

/// Throws what an access of these pages throws; nothing is accessed.
/// @return whether some page of it is not memory (or read-only memory, for writes).
bool check_pages(Cpu& cpu, TlbContext context, std::uint64_t linear, std::size_t size, bool write)
{
    bool mmio = false;
    for_each_page(cpu, linear, size, [&](std::uint64_t at, std::size_t, std::size_t) {
        const Target target = resolve(cpu, context, at, write);
        mmio = mmio || target.host == nullptr || (write && !target.writable);
    });
    return mmio;
}

void read_pages(Cpu& cpu, TlbContext context, std::uint64_t linear, std::byte* to, std::size_t size)
{
    for_each_page(cpu, linear, size, [&](std::uint64_t at, std::size_t offset, std::size_t part) {
        read_piece(cpu, resolve(cpu, context, at, false), to + offset, part);
    });
}

/// Writes MMIO first: the instruction may leave for it and start again, and must then find memory
/// as it was.
void write_pages(Cpu& cpu,
                 TlbContext context,
                 std::uint64_t linear,
                 const std::byte* from,
                 std::size_t size,
                 bool mmio)
{
    if (mmio) {
        for_each_page(cpu, linear, size,
                      [&](std::uint64_t at, std::size_t offset, std::size_t part) {
                          const Target target = resolve(cpu, context, at, true);
                          if (target.host == nullptr || !target.writable) {
                              mmio_write(cpu, target.gpa, from + offset, part);
                          }
                      });
    }
    for_each_page(cpu, linear, size, [&](std::uint64_t at, std::size_t offset, std::size_t part) {
        const Target target = resolve(cpu, context, at, true);
        if (target.host != nullptr && target.writable) {
            write_piece(cpu, target, from + offset, part);
        }
    });
}

void read_with(Cpu& cpu, TlbContext context, std::uint64_t linear, void* to, std::size_t size)
{
    auto* const bytes = static_cast<std::byte*>(to);
    if (is_crossing(linear, size)) {
        static_cast<void>(check_pages(cpu, context, linear, size, false));
        read_pages(cpu, context, linear, bytes, size);
    } else {
        read_piece(cpu, resolve(cpu, context, linear, false), bytes, size);
    }
}

void write_with(Cpu& cpu,
                TlbContext context,
                std::uint64_t linear,
                const void* from,
                std::size_t size)
{
    const auto* const bytes = static_cast<const std::byte*>(from);
    if (is_crossing(linear, size)) {
        const bool mmio = check_pages(cpu, context, linear, size, true);
        write_pages(cpu, context, linear, bytes, size, mmio);
    } else {
        write_piece(cpu, resolve(cpu, context, linear, true), bytes, size);
    }
}

void note_access(Cpu& cpu, std::uint64_t linear, std::size_t size, bool write) noexcept
{
    if (cpu.data_breakpoints) {
        note_data_access(cpu, linear, size, write);
    }
}

/// Page faults come before alignment checks, and both before anything is touched.
bool check_data_access(Cpu& cpu, std::uint64_t linear, std::size_t size, bool write)
{
    const bool mmio = check_pages(cpu, data_context(cpu), linear, size, write);
    check_alignment(cpu, linear, size);
    return mmio;
}

}  // namespace

void read_slow(Cpu& cpu, SegmentIndex segment, std::uint64_t linear, void* to, std::size_t size)
{
    linear = checked_linear(cpu, segment, linear, size);
    if (cpu.alignment_check) {
        static_cast<void>(check_data_access(cpu, linear, size, false));
    }
    read_with(cpu, data_context(cpu), linear, to, size);
    note_access(cpu, linear, size, false);
}

void write_slow(Cpu& cpu,
                SegmentIndex segment,
                std::uint64_t linear,
                const void* from,
                std::size_t size)
{
    linear = checked_linear(cpu, segment, linear, size);
    if (cpu.alignment_check) {
        static_cast<void>(check_data_access(cpu, linear, size, true));
    }
    write_with(cpu, data_context(cpu), linear, from, size);
    note_access(cpu, linear, size, true);
}

void read_for_write_slow(Cpu& cpu,
                         SegmentIndex segment,
                         std::uint64_t linear,
                         void* to,
                         std::size_t size)
{
    linear = checked_linear(cpu, segment, linear, size);
    static_cast<void>(check_data_access(cpu, linear, size, true));
    read_pages(cpu, data_context(cpu), linear, static_cast<std::byte*>(to), size);
    note_access(cpu, linear, size, false);
}

namespace {

MmioTlb::Entry& mmio_entry(Cpu& cpu, std::uint64_t tag) noexcept
{
    return cpu.mmio_tlb.entries[((tag >> 12U) ^ tag) % MmioTlb::entry_count];
}

std::uint64_t mmio_tag(TlbContext context, std::uint64_t linear, bool write) noexcept
{
    return (linear & ~page_mask) | (static_cast<std::uint64_t>(context) << 1U) | (write ? 1U : 0U);
}

bool find_known_mmio(Cpu& cpu, std::uint64_t tag, std::uint64_t linear, std::uint64_t& gpa) noexcept
{
    const MmioTlb::Entry& entry = mmio_entry(cpu, tag);
    gpa = entry.gpa | (linear & page_mask);
    return entry.tag == tag;
}

/// False: `Cpu::page_fault` is pending.
bool try_for_move(Cpu& cpu, TlbContext context, std::uint64_t linear, bool write, Target& target)
{
    std::uint32_t error_code = 0;
    const bool found = try_resolve(cpu, context, linear, write, target, error_code);
    if (!found) {
        cpu.page_fault = {true, error_code, linear};
    }
    return found;
}

void remember_mmio(Cpu& cpu, std::uint64_t tag, std::uint64_t gpa) noexcept
{
    mmio_entry(cpu, tag) = {tag, gpa & ~page_mask};
    cpu.mmio_tlb.used = true;
}

}  // namespace

Tried try_read(Cpu& cpu,
               SegmentIndex segment,
               std::uint64_t linear,
               void* to,
               std::size_t size,
               std::uint64_t& gpa)
{
    linear = checked_linear(cpu, segment, linear, size);
    const TlbContext context = data_context(cpu);
    const std::uint64_t tag = mmio_tag(context, linear, false);
    if (find_known_mmio(cpu, tag, linear, gpa)) {
        return Tried::Mmio;
    }
    Target target;
    if (!try_for_move(cpu, context, linear, false, target)) {
        return Tried::PageFault;
    }
    if (target.host != nullptr) {
        copy_from_host(static_cast<std::byte*>(to), target.host, size);
        return Tried::Done;
    }
    gpa = target.gpa;
    remember_mmio(cpu, tag, gpa);
    return Tried::Mmio;
}

Tried try_write(Cpu& cpu,
                SegmentIndex segment,
                std::uint64_t linear,
                const void* from,
                std::size_t size,
                std::uint64_t& gpa)
{
    linear = checked_linear(cpu, segment, linear, size);
    const TlbContext context = data_context(cpu);
    const std::uint64_t tag = mmio_tag(context, linear, true);
    if (find_known_mmio(cpu, tag, linear, gpa)) {
        return Tried::Mmio;
    }
    Target target;
    if (!try_for_move(cpu, context, linear, true, target)) {
        return Tried::PageFault;
    }
    if (target.host != nullptr && target.writable) {
        write_piece(cpu, target, static_cast<const std::byte*>(from), size);
        return Tried::Done;
    }
    gpa = target.gpa;
    if (target.host == nullptr) {
        remember_mmio(cpu, tag, gpa);
    }
    return Tried::Mmio;
}

std::byte* direct(Cpu& cpu,
                  SegmentIndex segment,
                  std::uint64_t linear,
                  std::size_t size,
                  Access access)
{
    linear = checked_linear(cpu, segment, linear, size);
    const bool write = access == Access::Write || access == Access::ReadWrite;
    if (is_crossing(linear, size)) {
        static_cast<void>(check_data_access(cpu, linear, size, write));
        return nullptr;
    }
    const Target target = resolve(cpu, data_context(cpu), linear, write);
    check_alignment(cpu, linear, size);
    if (!target.is_plain(write)) {
        return nullptr;
    }
    note_access(cpu, linear, size, write);
    return target.host;
}

std::byte* direct_run(Cpu& cpu,
                      SegmentIndex segment,
                      std::uint64_t linear,
                      std::size_t& size,
                      Access access)
{
    if (cpu.alignment_check || cpu.data_breakpoints) {
        // Each element has its own alignment and breakpoints.
        return nullptr;
    }
    linear = checked_linear(cpu, segment, linear, 1);
    const bool write = access == Access::Write || access == Access::ReadWrite;
    const Target target = resolve(cpu, data_context(cpu), linear, write);
    size = std::min(size, left_in_page(linear));
    return target.is_plain(write) ? target.host : nullptr;
}

void probe_write(Cpu& cpu, SegmentIndex segment, std::uint64_t linear, std::size_t size)
{
    linear = checked_linear(cpu, segment, linear, size);
    static_cast<void>(check_data_access(cpu, linear, size, true));
}

void read_system(Cpu& cpu, std::uint64_t linear, void* to, std::size_t size)
{
    linear = checked_linear(cpu, Ds, linear, size);
    read_with(cpu, TlbContext::Supervisor, linear, to, size);
}

void write_system(Cpu& cpu, std::uint64_t linear, const void* from, std::size_t size)
{
    linear = checked_linear(cpu, Ds, linear, size);
    write_with(cpu, TlbContext::Supervisor, linear, from, size);
}

void write_stack(Cpu& cpu, std::uint64_t linear, const void* from, std::size_t size, unsigned cpl)
{
    linear = checked_linear(cpu, Ss, linear, size);
    write_with(cpu, data_context(cpu, cpl), linear, from, size);
}

void probe_stack(Cpu& cpu, std::uint64_t linear, std::size_t size, unsigned cpl)
{
    linear = checked_linear(cpu, Ss, linear, size);
    static_cast<void>(check_pages(cpu, data_context(cpu, cpl), linear, size, true));
}

CodePage fetch_page(Cpu& cpu, std::uint64_t linear)
{
    linear = checked_linear(cpu, Cs, linear, 1);
    const bool user = cpu.cpl == 3;
    const std::uint64_t offset = linear & page_mask;
    const std::uint64_t tag = (linear & ~page_mask) | (user ? 1U : 0U);
    FetchTlb::Entry& entry = cpu.fetch_tlb.entry(linear);
    if (!cpu.fetch_tlb.is_for(entry, tag)) {
        WalkRequest request{};
        request.fetch = true;
        request.user = user;
        WalkResult result{};
        std::uint32_t error_code = 0;
        if (!walk(cpu, linear, request, result, error_code)) {
            raise_page_fault(error_code, linear);
        }
        const PhysicalMemory::Page page = physical_page(cpu, result.gpa >> 12U);
        if (page.host == nullptr) {
            return {result.gpa, nullptr, left_in_page(linear), false, 12};
        }
        cpu.fetch_tlb.fill(entry,
                           {.tag = tag,
                            .gpa = result.gpa & ~page_mask,
                            .host = page.host,
                            .page_shift = result.page_shift},
                           result.global);
        cpu.blocks->revalidate(result.gpa >> 12U, page.host);
    }
    return {entry.gpa + offset, entry.host + offset, left_in_page(linear),
            cpu.fetch_tlb.is_global(entry), entry.page_shift};
}

void locked_slow(Cpu& cpu,
                 SegmentIndex segment,
                 std::uint64_t linear,
                 std::size_t size,
                 LockedAction action,
                 void* context)
{
    std::array<std::byte, 64> buffer{};
    if (size == 0 || size > buffer.size()) {
        raise(Vector::GP, 0);  // No locked instruction is that wide.
    }
    linear = checked_linear(cpu, segment, linear, size);
    const TlbContext rights = data_context(cpu);
    bool done = false;
    if (!check_data_access(cpu, linear, size, true)) {
        cpu.vm.exclusive(cpu, [&] {
            // Others have run since: mappings and slots may differ.
            if (!check_pages(cpu, rights, linear, size, true)) {
                read_pages(cpu, rights, linear, buffer.data(), size);
                action(buffer.data(), context);
                write_pages(cpu, rights, linear, buffer.data(), size, false);
                done = true;
            }
        });
    }
    if (!done) {
        read_pages(cpu, rights, linear, buffer.data(), size);
        action(buffer.data(), context);
        write_pages(cpu, rights, linear, buffer.data(), size, true);
    }
    note_access(cpu, linear, size, true);
}

}  // namespace vmm::x86::soft
