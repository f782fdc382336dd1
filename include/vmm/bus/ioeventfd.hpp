// SPDX-License-Identifier: Apache-2.0

/// @file
/// Doorbells: writes that signal an event and need no answer (KVM api.rst "KVM_IOEVENTFD").
///
///     struct Bell {  // models vmm::bus::EventSignal, as vmm::device::EventFd does
///         int* rings;
///         void signal() const noexcept { ++*rings; }
///         bool is_same(const Bell& other) const noexcept { return rings == other.rings; }
///     };
///
///     int rings = 0;
///     vmm::bus::IoEventTable<vmm::Gpa, Bell> events;
///     events.add({.address = vmm::Gpa{0xd0000050}, .length = 2, .datamatch = 1}, Bell{&rings})
///         .value();
///
///     const std::array<std::byte, 2> one{std::byte{1}, std::byte{0}};
///     assert(events.write(vmm::Gpa{0xd0000050}, one) && rings == 1);
///     assert(!events.write(vmm::Gpa{0xd0000050}, std::span{one}.first(1)));  // another length
///     assert(!events.write(vmm::Gpa{0xd0000052}, one));                      // another address
///
/// An event has an address and a length (1, 2, 4 or 8), and may ask for one value; then several can
/// share an address, one for each queue.  Length 0 stands for any length, also for an unknown one
/// (an empty span, see bus/io_bus.hpp).  A write matches at most one event: others are refused.
///
/// Events may come and go while writes run, under the rules of memory/epoch.hpp.
///
/// Includes of this library: address.hpp, assert.hpp, result.hpp, bus/device.hpp, bus/io_bus.hpp,
/// memory/describe.hpp, memory/epoch.hpp, memory/range_map.hpp.  Links nothing.

#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/bus/io_bus.hpp"
#include "vmm/memory/describe.hpp"
#include "vmm/memory/epoch.hpp"
#include "vmm/memory/range_map.hpp"
#include "vmm/result.hpp"

namespace vmm::bus {

/// What a matching write signals; any thread may.  Two are the same if a caller may name either to
/// take the event away.
// clang-format off
template <typename S>
concept EventSignal = std::move_constructible<S> && requires(const S& signal, const S& other) {
    { signal.signal() } noexcept;
    { signal.is_same(other) } noexcept -> std::convertible_to<bool>;
};
// clang-format on

/// Which writes signal: KVM's `struct kvm_ioeventfd`.
template <BusAddress A>
struct IoEvent {
    A address{};
    std::uint32_t length{};                    ///< 1, 2, 4, 8, or 0 for any.
    std::optional<std::uint64_t> datamatch{};  ///< Only writes of this little-endian value.

    friend bool operator==(const IoEvent&, const IoEvent&) = default;
};

/// The doorbells of one bus.
///
/// Thread safety: all members from any thread.  `write()` never waits for changes; a change returns
/// when no write can signal what it took away.
template <BusAddress A, EventSignal Signal>
class IoEventTable {
    struct Registered {
        IoEvent<A> event;
        Signal signal;
    };
    /// Those of one address, in `Generation::events`.
    struct Group {
        std::uint32_t first{};
        std::uint32_t count{};
    };
    using Map = memory::RangeMap<Group>;
    struct Generation {
        Map groups;
        std::vector<const Registered*> events;
    };

public:
    /// A caller's last-hit cache, one a thread.
    using Hint = typename Map::Hint;

    IoEventTable() = default;

    /// @return EINVAL for a length that is not 0, 1, 2, 4 or 8, for length 0 with a datamatch, or
    /// for a write that would wrap around; EEXIST if some write would match this and another event;
    /// ENOMEM.
    Result<void> add(const IoEvent<A>& event, Signal signal)
    {
        VMM_TRY_VOID(check(event));
        try {
            const std::lock_guard lock{changes_};
            for (const auto& other : registered_) {
                if (collide(other->event, event)) {
                    return Error{std::errc::file_exists,
                                 "add ioevent: " + name(event) + " would match writes that " +
                                     name(other->event) + " matches; remove that one first"};
                }
            }
            registered_.push_back(
                std::make_unique<Registered>(Registered{event, std::move(signal)}));
            try {
                publish();
            } catch (const std::bad_alloc&) {
                registered_.pop_back();
                throw;
            }
            return success;
        } catch (const std::bad_alloc&) {
            return Error{std::errc::not_enough_memory, "add ioevent: no memory for the table"};
        }
    }

    /// Takes away what was added with this event and this signal.
    ///
    /// @return ENOENT if there is none such, ENOMEM.
    Result<void> remove(const IoEvent<A>& event, const Signal& signal)
    {
        try {
            const std::lock_guard lock{changes_};
            const auto found =
                std::find_if(registered_.begin(), registered_.end(), [&](const auto& other) {
                    return other->event == event && other->signal.is_same(signal);
                });
            if (found == registered_.end()) {
                return Error{std::errc::no_such_file_or_directory,
                             "remove ioevent: " + name(event) + " was not added with this signal"};
            }
            // The order does not matter, so the last takes the place of the one that goes.
            std::swap(*found, registered_.back());
            std::unique_ptr<Registered> gone = std::move(registered_.back());
            registered_.pop_back();
            try {
                publish();
            } catch (const std::bad_alloc&) {
                registered_.push_back(std::move(gone));  // Has room: it was there just now.
                throw;
            }
            return success;
        } catch (const std::bad_alloc&) {
            return Error{std::errc::not_enough_memory, "remove ioevent: no memory for the table"};
        }
    }

    /// Signals the event that this write matches, if there is one.  False: there is none, the
    /// write is for somebody else.
    bool write(A address, std::span<const std::byte> data) const noexcept
    {
        const auto table = published_.read();
        return deliver(*table, table->groups.find(address.value()), data);
    }
    /// The same, faster if `hint`'s owner was there last.
    bool write(A address, std::span<const std::byte> data, Hint& hint) const noexcept
    {
        const auto table = published_.read();
        return deliver(*table, table->groups.find(address.value(), hint), data);
    }

    /// Whether there is an event at `address`, of whatever length and value.
    [[nodiscard]] bool watches(A address) const noexcept
    {
        return published_.read()->groups.find(address.value()) != nullptr;
    }

    [[nodiscard]] std::size_t size() const noexcept { return published_.read()->events.size(); }

private:
    static std::string name(const IoEvent<A>& event)
    {
        return "address " + memory::hex(event.address.value()) + ", length " +
               std::to_string(event.length) +
               (event.datamatch ? ", value " + memory::hex(*event.datamatch) : "");
    }

    static Result<void> check(const IoEvent<A>& event)
    {
        const std::uint32_t length = event.length;
        if (length > 8 || (length & (length - 1)) != 0) {
            return Error{std::errc::invalid_argument,
                         "add ioevent: length " + std::to_string(length) +
                             "; permitted are 1, 2, 4, 8, and 0 for any"};
        }
        if (length == 0 && event.datamatch) {
            return Error{std::errc::invalid_argument,
                         "add ioevent: a value to match needs a length to compare it in; length "
                         "0 matches by address alone"};
        }
        if (length > std::numeric_limits<std::uint64_t>::max() - event.address.value()) {
            return Error{std::errc::invalid_argument,
                         "add ioevent: " + name(event) + " wraps around"};
        }
        return success;
    }

    static bool collide(const IoEvent<A>& a, const IoEvent<A>& b) noexcept
    {
        if (a.address != b.address) {
            return false;
        }
        if (a.length == 0 || b.length == 0) {
            return true;
        }
        return a.length == b.length &&
               (!a.datamatch || !b.datamatch || *a.datamatch == *b.datamatch);
    }

    /// @pre `data` is 8 bytes or fewer.
    static std::uint64_t value_of(std::span<const std::byte> data) noexcept
    {
        std::uint64_t value = 0;
        for (std::size_t i = 0; i < data.size(); ++i) {
            value |= std::to_integer<std::uint64_t>(data[i]) << (8 * i);
        }
        return value;
    }

    static bool deliver(const Generation& table,
                        const typename Map::Entry* group,
                        std::span<const std::byte> data) noexcept
    {
        if (group == nullptr) {
            return false;
        }
        const std::uint64_t value = data.size() <= 8 ? value_of(data) : 0;
        const std::span events{table.events};
        for (const Registered* event : events.subspan(group->value.first, group->value.count)) {
            const IoEvent<A>& wanted = event->event;
            if (wanted.length == 0 || (wanted.length == data.size() &&
                                       (!wanted.datamatch || *wanted.datamatch == value))) {
                event->signal.signal();
                return true;
            }
        }
        return false;
    }

    void publish()
    {
        Generation next;
        next.events.reserve(registered_.size());
        for (const auto& event : registered_) {
            next.events.push_back(event.get());
        }
        std::sort(next.events.begin(), next.events.end(),
                  [](const Registered* a, const Registered* b) {
                      return a->event.address < b->event.address;
                  });
        std::vector<typename Map::Entry> groups;
        for (std::uint32_t i = 0; i < next.events.size(); ++i) {
            const std::uint64_t address = next.events[i]->event.address.value();
            if (groups.empty() || groups.back().first != address) {
                groups.push_back({address, address, {i, 0}});
            }
            ++groups.back().value.count;
        }
        next.groups = Map{std::move(groups)};
        published_.publish(std::move(next));
    }

    memory::Published<Generation> published_;
    std::mutex changes_;  // registered_, and the order of publications.
    std::vector<std::unique_ptr<Registered>> registered_;
};

}  // namespace vmm::bus
