// SPDX-License-Identifier: Apache-2.0

/// @file
/// Copies in and out of guest memory, by guest-physical address.
///
///     alignas(4096) static std::array<std::byte, 0x2000> ram;
///     vmm::memory::MemslotTable<> slots;
///     slots.set({.size_bytes = ram.size(), .host = ram.data()}).value();
///
///     const vmm::memory::GuestMemory memory{slots};
///     assert(memory.write(vmm::Gpa{0xffe}, std::uint32_t{0x12345678}));  // pages 0 and 1
///     assert(memory.read<std::uint32_t>(vmm::Gpa{0xffe}) == 0x12345678U);
///     assert(!memory.read<std::uint32_t>(vmm::Gpa{0x1ffe}));  // half of it is nowhere
///
/// A guest runs while the VMM copies, so what is read may change at once and what is written may be
/// seen in part; that is the guest's affair, and never undefined behaviour here.  A copy moves
/// naturally aligned units of 8, 4, 2 and 1 bytes, each at once: an aligned integer is never seen
/// torn.  Read once, check the copy, use the copy.
///
/// Includes of this library: address.hpp, assert.hpp, result.hpp, memory/describe.hpp,
/// memory/epoch.hpp, memory/memslots.hpp, memory/range_map.hpp.  Links nothing.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>

#include "vmm/address.hpp"
#include "vmm/assert.hpp"
#include "vmm/memory/memslots.hpp"

namespace vmm::memory {

namespace detail {

/// An integer in memory whose type is the guest's business, hence no aliasing rule.
template <typename Unit>
struct __attribute__((__may_alias__)) InGuest {
    Unit value;
};

template <typename Unit>
inline void load_unit(std::byte* to, const std::byte* from) noexcept
{
    const auto* guest = static_cast<const InGuest<Unit>*>(static_cast<const void*>(from));
    const Unit unit = __atomic_load_n(&guest->value, __ATOMIC_RELAXED);
    std::memcpy(to, &unit, sizeof unit);
}

template <typename Unit>
inline void store_unit(std::byte* to, const std::byte* from) noexcept
{
    auto* guest = static_cast<InGuest<Unit>*>(static_cast<void*>(to));
    Unit unit{};
    std::memcpy(&unit, from, sizeof unit);
    __atomic_store_n(&guest->value, unit, __ATOMIC_RELAXED);
}

/// The widest unit that fits at a guest address of which `size` bytes are left.
inline std::size_t unit_at(const std::byte* guest, std::size_t size) noexcept
{
    // SAFETY: the number only, for its alignment.
    const auto at = reinterpret_cast<std::uintptr_t>(guest);
    std::size_t unit = 8;
    while (unit > size || at % unit != 0) {
        unit /= 2;
    }
    return unit;
}

inline void load_guest(std::byte* to, const std::byte* guest, std::size_t size) noexcept
{
    while (size != 0) {
        const std::size_t unit = unit_at(guest, size);
        switch (unit) {
        case 8:
            for (; size >= 8; size -= 8, to += 8, guest += 8) {
                load_unit<std::uint64_t>(to, guest);
            }
            continue;
        case 4: load_unit<std::uint32_t>(to, guest); break;
        case 2: load_unit<std::uint16_t>(to, guest); break;
        default: load_unit<std::uint8_t>(to, guest); break;
        }
        to += unit;
        guest += unit;
        size -= unit;
    }
}

inline void store_guest(std::byte* guest, const std::byte* from, std::size_t size) noexcept
{
    while (size != 0) {
        const std::size_t unit = unit_at(guest, size);
        switch (unit) {
        case 8:
            for (; size >= 8; size -= 8, from += 8, guest += 8) {
                store_unit<std::uint64_t>(guest, from);
            }
            continue;
        case 4: store_unit<std::uint32_t>(guest, from); break;
        case 2: store_unit<std::uint16_t>(guest, from); break;
        default: store_unit<std::uint8_t>(guest, from); break;
        }
        from += unit;
        guest += unit;
        size -= unit;
    }
}

}  // namespace detail

/// What may be copied in and out of guest memory.
template <typename T>
concept GuestCopyable = std::is_trivially_copyable_v<T> && std::is_default_constructible_v<T>;

/// One address space of a slot table as memory.  A view: copy it freely; the table must outlive it.
///
/// Thread safety: all members from any thread, also while the guest runs and slots change.
template <SlotPayload Payload = NoPayload, std::size_t AddressSpaces = 2>
class GuestMemory {
public:
    using Table = MemslotTable<Payload, AddressSpaces>;

    /// @pre `address_space < AddressSpaces`
    explicit GuestMemory(const Table& table, std::size_t address_space = 0) noexcept
        : table_{&table},
          address_space_{address_space}
    {
        VMM_ASSERT(address_space < AddressSpaces);
    }

    /// Copies out of the guest.  False, and `to` is undefined, if any byte is in no slot.
    [[nodiscard]] bool copy_out(Gpa from, std::span<std::byte> to) const noexcept
    {
        const auto table = table_->read();
        return for_each_piece(
            table, from, to.size(), [&](const Slot& slot, std::uint64_t offset, Piece piece) {
                detail::load_guest(to.data() + piece.done, slot.host + offset, piece.size);
                return true;
            });
    }

    /// Copies into the guest's memory as the VMM does it: into read-only slots too (their content
    /// has to come from somewhere).  False, and nothing is written, if any byte is in no slot.
    [[nodiscard]] bool copy_in(Gpa to, std::span<const std::byte> from) const noexcept
    {
        return copy_in_if(to, from, [](const Slot& /*slot*/) { return true; });
    }

    /// The same as the guest itself or a device of its writes: read-only memory refuses.  False,
    /// and nothing is written, if any byte is in no slot or in a read-only one.
    [[nodiscard]] bool guest_copy_in(Gpa to, std::span<const std::byte> from) const noexcept
    {
        return copy_in_if(to, from, [](const Slot& slot) { return !slot.is_read_only(); });
    }

    /// A `T` at `from`, or nothing if any byte is in no slot.
    template <GuestCopyable T>
    [[nodiscard]] std::optional<T> read(Gpa from) const noexcept
    {
        T value{};
        if (!copy_out(from, std::as_writable_bytes(std::span{&value, 1}))) {
            return std::nullopt;
        }
        return value;
    }

    /// As `copy_in()`.
    template <GuestCopyable T>
    [[nodiscard]] bool write(Gpa to, const T& value) const noexcept
    {
        return copy_in(to, std::as_bytes(std::span{&value, 1}));
    }

    /// As `guest_copy_in()`.
    template <GuestCopyable T>
    [[nodiscard]] bool guest_write(Gpa to, const T& value) const noexcept
    {
        return guest_copy_in(to, std::as_bytes(std::span{&value, 1}));
    }

    /// Puts `value` at `at` and gives what was there, in one step that no locked instruction of the
    /// guest comes between, as the guest itself: nothing if no slot has it or a read-only one.
    [[nodiscard]] std::optional<std::uint8_t> exchange(Gpa at, std::uint8_t value) const noexcept
    {
        const auto table = table_->read();
        const std::uint64_t gfn = at.value() >> page_bits;
        const Slot* slot = table.find(gfn, address_space_);
        if (slot == nullptr || slot->is_read_only()) {
            return std::nullopt;
        }
        std::byte* const byte = slot->host + (at.value() - (slot->base_gfn << page_bits));
        const std::uint8_t before = __atomic_exchange_n(
            static_cast<std::uint8_t*>(static_cast<void*>(byte)), value, __ATOMIC_SEQ_CST);
        slot->mark_dirty(gfn);
        return before;
    }

    /// The host memory behind `range`, if one slot has all of it: for the back-ends of devices,
    /// which hand it to the kernel (`readv`).
    ///
    /// Whatever is done with it races with the guest, and the caller has to `mark_dirty` what it
    /// writes.  It is valid until the slot is deleted, which the caller has to know of.
    [[nodiscard]] std::optional<std::span<std::byte>> host_range(GpaRange range) const noexcept
    {
        const auto table = table_->read();
        const std::uint64_t first = range.first().value();
        const Slot* slot = table.find(first >> page_bits, address_space_);
        if (slot == nullptr || !slot->contains(range.last().value() >> page_bits)) {
            return std::nullopt;
        }
        const std::uint64_t offset = first - (slot->base_gfn << page_bits);
        return std::span{slot->host + offset, range.last() - range.first() + 1};
    }

    /// Notes that `range` was written by way of `host_range()`.  Pages in no slot, or in one that
    /// does not log, are skipped.
    void mark_dirty(GpaRange range) const noexcept
    {
        const auto table = table_->read();
        std::uint64_t gfn = range.first().value() >> page_bits;
        const std::uint64_t last = range.last().value() >> page_bits;
        for (const auto& entry : table.entries(address_space_)) {
            const std::uint64_t from = std::max(gfn, entry.first);
            const std::uint64_t to = std::min(last, entry.last);
            for (std::uint64_t page = from; page <= to; ++page) {
                entry.value->mark_dirty(page);
            }
        }
    }

private:
    using Slot = typename Table::Slot;
    struct Piece {
        std::size_t done;
        std::size_t size;
    };

    /// Calls `visit(slot, offset, piece)` for the part of [at, at + size) in each slot, in order.
    /// False if some byte is in no slot, or as soon as `visit` says so.
    template <typename F>
    [[nodiscard]] bool for_each_piece(const typename Table::Reader& table,
                                      Gpa at,
                                      std::size_t size,
                                      F visit) const noexcept
    {
        if (size != 0 && !at.checked_add(size - 1)) {
            return false;
        }
        std::uint64_t gpa = at.value();
        std::size_t done = 0;
        while (done < size) {
            const Slot* slot = table.find(gpa >> page_bits, address_space_);
            if (slot == nullptr) {
                return false;
            }
            const std::uint64_t offset = gpa - (slot->base_gfn << page_bits);
            const std::uint64_t left = (slot->page_count << page_bits) - offset;
            const auto now = static_cast<std::size_t>(std::min<std::uint64_t>(left, size - done));
            if (!visit(*slot, offset, Piece{done, now})) {
                return false;
            }
            gpa += now;
            done += now;
        }
        return true;
    }

    template <typename F>
    [[nodiscard]] bool copy_in_if(Gpa to,
                                  std::span<const std::byte> from,
                                  F may_write) const noexcept
    {
        const auto table = table_->read();
        const bool all =
            for_each_piece(table, to, from.size(),
                           [&](const Slot& slot, std::uint64_t, Piece) { return may_write(slot); });
        return all && for_each_piece(table, to, from.size(),
                                     [&](const Slot& slot, std::uint64_t offset, Piece piece) {
                                         store(slot, offset, from.subspan(piece.done, piece.size));
                                         return true;
                                     });
    }

    static void store(const Slot& slot,
                      std::uint64_t offset,
                      std::span<const std::byte> from) noexcept
    {
        detail::store_guest(slot.host + offset, from.data(), from.size());
        if (slot.logs_dirty()) {
            const std::uint64_t last = (offset + from.size() - 1) >> page_bits;
            for (std::uint64_t page = offset >> page_bits; page <= last; ++page) {
                slot.dirty->set(page);
            }
        }
    }

    const Table* table_;
    std::size_t address_space_;
};

}  // namespace vmm::memory
