// SPDX-License-Identifier: Apache-2.0

#include "core/dirty_rings.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace vmm::core {
namespace {

/// The ring of the vCPU that this thread runs.
thread_local VcpuDirtyRing* logging_to = nullptr;

constexpr unsigned slot_bits = 16;  // Of the number in an entry; the address space is above.

/// The slot of a number in an entry, which may be anything; null if there is none.
const memory::Memslot* find_slot(const memory::MemslotTable<>::Reader& table,
                                 std::uint32_t number) noexcept
{
    const std::uint32_t address_space = number >> slot_bits;
    if (address_space > 1U) {
        return nullptr;
    }
    const auto slots = table.entries(address_space);
    const auto found = std::find_if(slots.begin(), slots.end(), [number](const auto& each) {
        return each.value->id == (number & 0xffffU);
    });
    return found != slots.end() ? found->value : nullptr;
}

/// False: there was no room.
bool push(VcpuDirtyRing& to, std::uint32_t slot, std::uint64_t page) noexcept
{
    const bool was_full = to.ring.is_full();
    const bool logged = to.ring.push(slot, page);
    if (!was_full && to.ring.is_full()) {
        to.vcpu->kick();
    }
    return logged;
}

}  // namespace

void DirtyRings::Logging::begin() noexcept
{
    before_ = std::exchange(logging_to, ring_);
}

void DirtyRings::Logging::end() noexcept
{
    logging_to = before_;
}

std::shared_ptr<VcpuDirtyRing> DirtyRings::add(x86::irqchip::VcpuSink& vcpu,
                                               std::span<memory::DirtyGfn> entries)
{
    auto ring = std::make_shared<VcpuDirtyRing>(*this, vcpu, entries);
    const std::lock_guard lock{mutex_};
    rings_.push_back(ring);
    return ring;
}

void DirtyRings::remove(const std::shared_ptr<VcpuDirtyRing>& ring) noexcept
{
    const std::lock_guard lock{mutex_};
    std::erase(rings_, ring);
    lost_ = true;  // What was in it and not yet collected.
}

void DirtyRings::page_dirtied(std::uint16_t address_space,
                              std::uint32_t slot,
                              std::uint64_t page) noexcept
{
    const std::uint32_t number = std::uint32_t{address_space} << slot_bits | slot;
    if (logging_to != nullptr && logging_to->owner == this) {
        if (!push(*logging_to, number, page)) {
            lost_ = true;
        }
        return;
    }
    const std::lock_guard lock{mutex_};
    if (rings_.empty() || !push(*rings_.front(), number, page)) {
        lost_ = true;
    }
}

/// Pages that are in another ring already are logged a second time, which is permitted.
void DirtyRings::log_lost(const memory::MemslotTable<>::Reader& table) noexcept
{
    for (const std::uint32_t address_space : {0U, 1U}) {
        for (const auto& entry : table.entries(address_space)) {
            const memory::Memslot& slot = *entry.value;
            if (!slot.logs_dirty()) {
                continue;
            }
            const std::uint32_t number = address_space << slot_bits | slot.id;
            for (std::size_t index = 0; index < slot.dirty->words(); ++index) {
                constexpr std::uint64_t bits = memory::DirtyBitmap::bits;
                for (std::uint64_t word = slot.dirty->word(index); word != 0; word &= word - 1) {
                    const auto bit = static_cast<std::uint64_t>(std::countr_zero(word));
                    if (!push(*rings_.front(), number, index * bits + bit)) {
                        lost_ = true;  // The others once these were collected.
                        return;
                    }
                }
            }
        }
    }
}

std::uint32_t DirtyRings::reset()
{
    const std::lock_guard lock{mutex_};
    const auto table = slots_.read();
    std::size_t freed = 0;
    std::uint32_t last_number = ~0U;
    const memory::Memslot* last = nullptr;
    const auto clear = [&](std::uint32_t number, std::uint64_t page) {
        if (number != std::exchange(last_number, number)) {
            last = find_slot(table, number);
        }
        if (last != nullptr && last->logs_dirty() && page < last->page_count) {
            constexpr std::uint64_t bits = memory::DirtyBitmap::bits;
            last->dirty->clear(page / bits, std::uint64_t{1} << (page % bits));
        }
    };
    for (const auto& each : rings_) {
        freed += each->ring.reset(clear);
    }
    if (!rings_.empty() && lost_.exchange(false)) {
        log_lost(table);
    }
    return static_cast<std::uint32_t>(freed);
}

}  // namespace vmm::core
