// SPDX-License-Identifier: Apache-2.0

#include "core/guest_physical.hpp"

namespace vmm::core {

x86::PhysicalMemory::Page GuestPhysical::page(std::uint64_t gfn) noexcept
{
    const auto table = slots_.read();
    const memory::Memslot* slot = table.find(gfn);
    if (slot == nullptr) {
        return {};
    }
    return {slot->host_page(gfn), !slot->is_read_only(), slot->logs_dirty()};
}

void GuestPhysical::mark_dirty(std::uint64_t gfn) noexcept
{
    const auto table = slots_.read();
    if (const memory::Memslot* slot = table.find(gfn)) {
        slot->mark_dirty(gfn);
    }
}

}  // namespace vmm::core
