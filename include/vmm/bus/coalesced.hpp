// SPDX-License-Identifier: Apache-2.0

/// @file
/// Coalesced I/O: writes that are put aside in a ring for the VMM to look at later, so that the
/// guest does not leave for each (KVM api.rst "KVM_REGISTER_COALESCED_MMIO").
///
///     vmm::bus::CoalescedPage page;                       // shared: KVM's layout
///     vmm::bus::CoalescedRing ring{page};
///     vmm::bus::CoalescedZones<vmm::Gpa> zones{vmm::bus::CoalescedKind::Mmio};
///     zones.add(*vmm::GpaRange::make(vmm::Gpa{0xa0000}, 0x20000)).value();
///
///     const std::array<std::byte, 2> data{std::byte{'A'}, std::byte{7}};
///     assert(zones.write(vmm::Gpa{0xa8000}, data, ring));   // put aside
///     assert(!zones.write(vmm::Gpa{0xc0000}, data, ring));  // in no zone: handle it now
///     ring.drain([](const vmm::bus::CoalescedEntry& write) {
///         assert(write.phys_addr == 0xa8000 && write.len == 2);
///     });
///
/// A full ring refuses, and the write has to be handled now: whoever does so drains the ring first,
/// which keeps the guest's order.
///
/// Includes of this library: address.hpp, assert.hpp, result.hpp, bus/device.hpp, bus/io_bus.hpp,
/// memory/describe.hpp, memory/epoch.hpp, memory/range_map.hpp.  Links nothing.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/bus/io_bus.hpp"
#include "vmm/memory/describe.hpp"
#include "vmm/memory/epoch.hpp"
#include "vmm/memory/range_map.hpp"
#include "vmm/result.hpp"

namespace vmm::bus {

/// One write put aside: KVM's `struct kvm_coalesced_mmio`.
struct CoalescedEntry {
    std::uint64_t phys_addr{};
    std::uint32_t len{};
    std::uint32_t pio{};  ///< 1: `phys_addr` is a port.
    std::array<std::byte, 8> data{};
};

/// The ring as both sides see it: KVM's `struct kvm_coalesced_mmio_ring` in one page.
///
/// `first` is the next to take and belongs to the consumer, `last` is the next to fill and belongs
/// to the producer.  One entry always stays free: `first == last` is empty.
struct CoalescedPage {
    static constexpr std::uint32_t entry_count = 170;

    std::uint32_t first{};
    std::uint32_t last{};
    std::array<CoalescedEntry, entry_count> entries{};
};

static_assert(sizeof(CoalescedEntry) == 24 && std::is_standard_layout_v<CoalescedEntry>);
static_assert(sizeof(CoalescedPage) == 4088 && offsetof(CoalescedPage, entries) == 8);

/// Either end of a ring in a page that both share.
///
/// Thread safety: `push()` from any thread, on one object; `pop()` and `drain()` from one thread at
/// a time, on any object.  Nothing that the other side does to the page is a memory error here.
class CoalescedRing {
public:
    /// `page` must outlive this.
    explicit CoalescedRing(CoalescedPage& page) noexcept : page_{&page} {}

    /// Puts a write aside.  False if the ring is full or `data` is more than 8 bytes.
    bool push(std::uint64_t address, std::span<const std::byte> data, bool pio) noexcept
    {
        if (data.size() > sizeof(CoalescedEntry::data)) {
            return false;
        }
        const std::lock_guard lock{producers_};
        const std::uint32_t at = last().load(std::memory_order_relaxed);
        if (at >= CoalescedPage::entry_count) {
            return false;  // The other side broke the page.
        }
        const std::uint32_t next = (at + 1) % CoalescedPage::entry_count;
        // Acquire pairs with pop(): the entry was read before it is overwritten.
        if (next == first().load(std::memory_order_acquire)) {
            return false;
        }
        CoalescedEntry& entry = page_->entries[at];
        entry.phys_addr = address;
        entry.len = static_cast<std::uint32_t>(data.size());
        entry.pio = pio ? 1 : 0;
        std::copy(data.begin(), data.end(), entry.data.begin());
        last().store(next, std::memory_order_release);
        return true;
    }

    /// Takes the oldest write, or nothing.
    [[nodiscard]] std::optional<CoalescedEntry> pop() noexcept
    {
        const std::uint32_t at = first().load(std::memory_order_relaxed);
        // Acquire pairs with push(): the entry is filled before it is counted.
        if (at == last().load(std::memory_order_acquire) || at >= CoalescedPage::entry_count) {
            return std::nullopt;
        }
        const CoalescedEntry entry = page_->entries[at];
        first().store((at + 1) % CoalescedPage::entry_count, std::memory_order_release);
        return entry;
    }

    /// Takes all writes, in order, and calls `visit` with each; not those that come meanwhile
    /// without end.  @return how many.
    template <std::invocable<const CoalescedEntry&> F>
    std::size_t drain(F visit)
    {
        std::size_t taken = 0;
        while (taken < CoalescedPage::entry_count) {
            const auto entry = pop();
            if (!entry) {
                break;
            }
            visit(*entry);
            ++taken;
        }
        return taken;
    }

private:
    [[nodiscard]] std::atomic_ref<std::uint32_t> first() noexcept
    {
        return std::atomic_ref{page_->first};
    }
    [[nodiscard]] std::atomic_ref<std::uint32_t> last() noexcept
    {
        return std::atomic_ref{page_->last};
    }

    CoalescedPage* page_;
    std::mutex producers_;
};

/// What the addresses of zones are.
enum class CoalescedKind : std::uint8_t { Mmio, Pio };

/// The zones of one bus whose writes are put aside.  Zones may overlap, as KVM's may.
///
/// Thread safety: all members from any thread.  `write()` never waits for changes of the zones.
template <BusAddress A>
class CoalescedZones {
    // From each start of a zone up to the next: how far the zones reach that began by then.
    using Reach = memory::RangeMap<std::uint64_t>;

public:
    using Range = AddressRange<A>;
    /// A caller's last-hit cache, one a thread.
    using Hint = typename Reach::Hint;

    /// As many as a bus has ranges.
    static constexpr std::size_t max_zones = 1000;

    explicit CoalescedZones(CoalescedKind kind) noexcept : kind_{kind} {}

    /// @return ENOSPC if there are 1,000 zones already, ENOMEM.
    Result<void> add(Range zone)
    {
        const std::lock_guard lock{changes_};
        if (zones_.size() >= max_zones) {
            return Error{std::errc::no_space_on_device,
                         "add coalesced zone: addresses " + memory::hex(zone.first().value()) +
                             " to " + memory::hex(zone.last().value()) + ": there are " +
                             std::to_string(max_zones) + " zones, which is all a bus can have"};
        }
        return change([&](std::vector<Range>& zones) { zones.push_back(zone); });
    }

    /// Takes away every zone that has all of `zone`.  None is no error, as for KVM.
    ///
    /// @return ENOMEM.
    Result<void> remove(Range zone)
    {
        const std::lock_guard lock{changes_};
        return change([&](std::vector<Range>& zones) {
            std::erase_if(zones, [&](Range other) { return other.contains(zone); });
        });
    }

    /// Puts a write aside in `ring`.  False if no zone has all of it or the ring refuses.
    bool write(A address, std::span<const std::byte> data, CoalescedRing& ring) const noexcept
    {
        const auto map = published_.read();
        return in_zone(map->find(address.value()), address, data.size()) &&
               ring.push(address.value(), data, kind_ == CoalescedKind::Pio);
    }
    /// The same, faster if `hint`'s owner was there last.
    bool write(A address,
               std::span<const std::byte> data,
               CoalescedRing& ring,
               Hint& hint) const noexcept
    {
        const auto map = published_.read();
        return in_zone(map->find(address.value(), hint), address, data.size()) &&
               ring.push(address.value(), data, kind_ == CoalescedKind::Pio);
    }

    /// Whether one zone has all of a write.
    [[nodiscard]] bool covers(A address, std::size_t size) const noexcept
    {
        const auto map = published_.read();
        return in_zone(map->find(address.value()), address, size);
    }

private:
    static bool in_zone(const typename Reach::Entry* entry, A address, std::size_t size) noexcept
    {
        // Some zone that began by `address` reaches its last byte, and so has it all.
        return entry != nullptr && size != 0 && entry->value >= address.value() &&
               size - 1 <= entry->value - address.value();
    }

    template <typename F>
    Result<void> change(F apply)
    {
        try {
            std::vector<Range> next = zones_;
            apply(next);
            std::sort(next.begin(), next.end(),
                      [](Range a, Range b) { return a.first() < b.first(); });
            published_.publish(reach_of(next));
            zones_.swap(next);
            return success;
        } catch (const std::bad_alloc&) {
            return Error{std::errc::not_enough_memory, "coalesced zones: no memory for the table"};
        }
    }

    static Reach reach_of(const std::vector<Range>& sorted)
    {
        std::vector<typename Reach::Entry> entries;
        std::uint64_t reach = 0;
        for (const Range zone : sorted) {
            const std::uint64_t first = zone.first().value();
            reach = std::max<std::uint64_t>(reach, zone.last().value());
            if (!entries.empty() && entries.back().first == first) {
                entries.back().value = reach;
                continue;
            }
            if (!entries.empty()) {
                entries.back().last = first - 1;
            }
            entries.push_back({first, std::numeric_limits<std::uint64_t>::max(), reach});
        }
        return Reach{std::move(entries)};
    }

    CoalescedKind kind_;
    memory::Published<Reach> published_;
    std::mutex changes_;  // zones_, and the order of publications.
    std::vector<Range> zones_;
};

}  // namespace vmm::bus
