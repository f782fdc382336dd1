// SPDX-License-Identifier: Apache-2.0

#include "core/guest_physical.hpp"

namespace vmm::core {
namespace {

x86::PhysicalMemory::Page page_of(const memory::MemslotTable<>& slots,
                                  std::uint64_t gfn,
                                  std::size_t address_space) noexcept
{
    const auto table = slots.read();
    const memory::Memslot* slot = table.find(gfn, address_space);
    if (slot == nullptr) {
        return {};
    }
    return {slot->host_page(gfn), !slot->is_read_only(), slot->logs_dirty()};
}

void mark_page(const memory::MemslotTable<>& slots,
               std::uint64_t gfn,
               std::size_t address_space) noexcept
{
    const auto table = slots.read();
    if (const memory::Memslot* slot = table.find(gfn, address_space)) {
        slot->mark_dirty(gfn);
    }
}

}  // namespace

std::vector<x86::MemorySlots::Region> GuestPhysical::regions()
{
    const auto table = slots_.read();
    std::vector<Region> all;
    for (const auto& entry : table.entries()) {
        const memory::Memslot& slot = *entry.value;
        all.push_back({slot.id, slot.base_gfn << memory::page_bits,
                       slot.page_count << memory::page_bits, slot.host, slot.is_read_only(),
                       slot.logs_dirty()});
    }
    return all;
}

void GuestPhysical::mark_slot_dirty(std::uint32_t slot, std::uint64_t page) noexcept
{
    const auto table = slots_.read();
    for (const auto& entry : table.entries()) {
        if (entry.value->id == slot) {
            entry.value->mark_dirty(entry.value->base_gfn + page);
        }
    }
}

x86::PhysicalMemory::Page GuestPhysical::page(std::uint64_t gfn) noexcept
{
    return page_of(slots_, gfn, 0);
}

void GuestPhysical::mark_dirty(std::uint64_t gfn) noexcept
{
    mark_page(slots_, gfn, 0);
}

x86::PhysicalMemory::Page GuestPhysical::Smm::page(std::uint64_t gfn) noexcept
{
    return page_of(slots_, gfn, 1);
}

void GuestPhysical::Smm::mark_dirty(std::uint64_t gfn) noexcept
{
    mark_page(slots_, gfn, 1);
}

bool GuestPhysical::logs_dirty() const noexcept
{
    const auto table = slots_.read();
    for (const std::size_t address_space : {0U, 1U}) {
        for (const auto& entry : table.entries(address_space)) {
            if (entry.value->logs_dirty()) {
                return true;
            }
        }
    }
    return false;
}

}  // namespace vmm::core
