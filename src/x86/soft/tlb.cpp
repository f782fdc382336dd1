// SPDX-License-Identifier: Apache-2.0

/// @file
/// The TLBs of a vCPU: filling, and forgetting no more than the guest asks for.

#include <bit>
#include <utility>

#include "x86/soft/block.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/page_walk.hpp"

namespace vmm::x86::soft {

namespace {

/// Calls `action` with the index of each used entry in `choose(word number)`.
template <typename Choose, typename Action>
void for_each_entry(Tlb& tlb, const Choose& choose, const Action& action)
{
    static_assert(Tlb::entry_count / 64 <= 64, "used_words has a bit for each word");
    for (std::uint64_t words = tlb.used_words; words != 0; words &= words - 1) {
        const auto word = static_cast<std::size_t>(std::countr_zero(words));
        for (std::uint64_t left = choose(word); left != 0; left &= left - 1) {
            action(word * 64 + static_cast<unsigned>(std::countr_zero(left)));
        }
        if (tlb.used[word] == 0) {
            tlb.used_words &= ~(std::uint64_t{1} << word);
        }
    }
}

void set_bit(Tlb::Bitmap& bitmap, std::size_t index, bool value) noexcept
{
    const std::uint64_t mask = std::uint64_t{1} << (index % 64);
    bitmap[index / 64] = value ? bitmap[index / 64] | mask : bitmap[index / 64] & ~mask;
}

void drop(Tlb& tlb, std::size_t index) noexcept
{
    tlb.entries[index].read_tag = Tlb::invalid_tag(index);
    tlb.entries[index].write_tag = Tlb::invalid_tag(index);
    set_bit(tlb.used, index, false);
}

void drop_non_global(Cpu& cpu) noexcept
{
    for (Tlb& tlb : cpu.tlbs) {
        for_each_entry(
            tlb, [&](std::size_t word) { return tlb.used[word] & ~tlb.global[word]; },
            [&](std::size_t index) { drop(tlb, index); });
    }
}

std::uint16_t current_pcid(const Cpu& cpu) noexcept
{
    return Cr4{cpu.cr4}.get(Cr4::PCIDE) ? cpu.cr3 & 0xfffU : 0U;
}

void forget_mmio(Cpu& cpu) noexcept
{
    if (std::exchange(cpu.mmio_tlb.used, false)) {
        cpu.mmio_tlb = MmioTlb{};
    }
}

/// Whether a data breakpoint may lie in the page: accesses to it must be seen one by one.
bool is_watched(const Cpu& cpu, std::uint64_t linear) noexcept
{
    for (const std::uint64_t address : cpu.breakpoint_addresses()) {
        // A breakpoint is aligned to its size, so it lies in one page; those that are disabled or
        // misaligned cost speed only.
        if ((address ^ linear) >> 12U == 0) {
            return true;
        }
    }
    return false;
}

}  // namespace

void fill_tlb(Cpu& cpu,
              TlbContext context,
              std::uint64_t linear,
              const std::byte* host,
              const WalkResult& result,
              bool write) noexcept
{
    if (cpu.data_breakpoints && is_watched(cpu, linear)) {
        return;
    }
    ++cpu.counters.tlb_fills;
    Tlb& tlb = cpu.tlbs[static_cast<std::size_t>(context)];
    const std::uint64_t page = linear & ~page_mask;
    const std::size_t index = (linear >> 12U) % Tlb::entry_count;
    TlbEntry& entry = tlb.entries[index];
    entry.read_tag = page;
    entry.write_tag = write ? page : Tlb::invalid_tag(index);
    // SAFETY: only to be added to `page` again (see `TlbEntry::addend`).
    entry.addend = reinterpret_cast<std::uintptr_t>(host) - page;
    entry.host = reinterpret_cast<std::uintptr_t>(host);
    tlb.page_shifts[index] = result.page_shift;
    set_bit(tlb.used, index, true);
    tlb.used_words |= std::uint64_t{1} << (index / 64);
    set_bit(tlb.global, index, result.global);
    set_bit(tlb.large, index, result.page_shift > 12);
}

void flush_tlb_all(Cpu& cpu) noexcept
{
    forget_pages(cpu);
    flush_translations(cpu);
}

void forget_pages(Cpu& cpu) noexcept
{
    for (PhysicalPageCache::Entry& entry : cpu.page_cache.entries) {
        entry.gfn = PhysicalPageCache::invalid;
    }
}

void flush_translations(Cpu& cpu) noexcept
{
    for (Tlb& tlb : cpu.tlbs) {
        for_each_entry(
            tlb, [&](std::size_t word) { return tlb.used[word]; },
            [&](std::size_t index) { drop(tlb, index); });
    }
    forget_mmio(cpu);
    ++cpu.counters.tlb_flushes;
    flush_fetch_tlb(cpu);
}

void flush_fetch_tlb(Cpu& cpu) noexcept
{
    cpu.fetch_tlb.flush_all();
    // CR3 may be another one by now.
    const FetchTlb::Space space = cpu.fetch_tlb.switch_to(current_pcid(cpu), false);
    cpu.jumps.mapping_changed();
    cpu.jumps.address_space_changed(space);
}

void flush_tlb_non_global(Cpu& cpu) noexcept
{
    drop_non_global(cpu);
    cpu.fetch_tlb.flush_non_global();
    forget_mmio(cpu);
    ++cpu.counters.tlb_flushes;
    cpu.jumps.local_mapping_changed();
}

void switch_address_space(Cpu& cpu, bool keep) noexcept
{
    drop_non_global(cpu);
    const FetchTlb::Space space = cpu.fetch_tlb.switch_to(current_pcid(cpu), keep);
    forget_mmio(cpu);
    ++cpu.counters.tlb_flushes;
    cpu.jumps.address_space_changed(space);
}

void forget_address_space(Cpu& cpu, std::uint16_t pcid) noexcept
{
    if (pcid == current_pcid(cpu)) {
        switch_address_space(cpu, false);
        return;
    }
    if (const auto index = cpu.fetch_tlb.forget(pcid)) {
        cpu.jumps.forget_address_space(*index);
    }
}

void flush_tlb_page(Cpu& cpu, std::uint64_t linear) noexcept
{
    if (!cpu.long_mode()) {
        linear &= 0xffff'ffffU;
    }
    for (Tlb& tlb : cpu.tlbs) {
        drop(tlb, (linear >> 12U) % Tlb::entry_count);
        // Other 4 KiB parts of the large page that holds `linear` go with it.
        for_each_entry(
            tlb, [&](std::size_t word) { return tlb.used[word] & tlb.large[word]; },
            [&](std::size_t index) {
                const std::uint64_t tag = tlb.entries[index].read_tag;
                if ((tag ^ linear) >> tlb.page_shifts[index] == 0) {
                    drop(tlb, index);
                }
            });
    }
    cpu.fetch_tlb.flush_page(linear);
    forget_mmio(cpu);
    ++cpu.counters.page_flushes;
    cpu.jumps.mapping_changed(linear);
}

void drop_write_translations(Cpu& cpu, const std::byte* host_page) noexcept
{
    if (host_page == nullptr) {
        return;
    }
    // SAFETY: compared only.
    const auto host = reinterpret_cast<std::uintptr_t>(host_page);
    for (Tlb& tlb : cpu.tlbs) {
        for_each_entry(
            tlb, [&](std::size_t word) { return tlb.used[word]; },
            [&](std::size_t index) {
                TlbEntry& entry = tlb.entries[index];
                if (entry.host == host) {
                    entry.write_tag = Tlb::invalid_tag(index);
                }
            });
    }
}

void drop_write_translations(Cpu& cpu) noexcept
{
    for (Tlb& tlb : cpu.tlbs) {
        for_each_entry(
            tlb, [&](std::size_t word) { return tlb.used[word]; },
            [&](std::size_t index) { tlb.entries[index].write_tag = Tlb::invalid_tag(index); });
    }
}

}  // namespace vmm::x86::soft
