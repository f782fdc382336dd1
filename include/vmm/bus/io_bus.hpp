// SPDX-License-Identifier: Apache-2.0

/// @file
/// I/O buses: which device answers at an address.
///
///     class Scratch {  // models vmm::bus::Device
///     public:
///         void read(std::uint64_t offset, std::span<std::byte> data) noexcept
///         {
///             std::copy_n(bytes_.begin() + offset, data.size(), data.begin());
///         }
///         void write(std::uint64_t offset, std::span<const std::byte> data) noexcept
///         {
///             std::copy(data.begin(), data.end(), bytes_.begin() + offset);
///         }
///
///     private:
///         std::array<std::byte, 2> bytes_{};  // as many as its range has: it gets no other access
///     };
///
///     vmm::bus::IoBus<vmm::Port, std::shared_ptr<Scratch>> bus;
///     bus.add(*vmm::PortRange::make(vmm::Port{0x80}, 2), std::make_shared<Scratch>()).value();
///
///     std::array<std::byte, 2> data{std::byte{1}, std::byte{2}};
///     assert(bus.write(vmm::Port{0x80}, data));  // Scratch::write(0, data)
///     assert(!bus.read(vmm::Port{0x81}, data));  // half of it is outside
///     bus.remove(*vmm::PortRange::make(vmm::Port{0x80}, 2)).value();  // no thread is in it now
///
/// An access belongs to a range only if all of it fits.  Where nobody answers, the caller does:
/// with all ones, or by leaving to its own caller.  One class serves ports, MMIO and fast MMIO: on
/// a fast bus, accesses have no length (an empty span), because whoever caught the access did not
/// decode the instruction; such an access belongs to the range that its address is in.
///
/// Ranges may change while accesses run, under the rules of memory/epoch.hpp.
///
/// Includes of this library: address.hpp, assert.hpp, result.hpp, bus/device.hpp,
/// memory/describe.hpp, memory/epoch.hpp, memory/range_map.hpp.  Links nothing.

#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <string>
#include <utility>

#include "vmm/address.hpp"
#include "vmm/assert.hpp"
#include "vmm/bus/device.hpp"
#include "vmm/memory/describe.hpp"
#include "vmm/memory/epoch.hpp"
#include "vmm/memory/range_map.hpp"
#include "vmm/result.hpp"

namespace vmm::bus {

/// What a bus can be addressed by: `vmm::Port`, `vmm::Gpa`, or another `vmm::Address`.
// clang-format off
template <typename A>
concept BusAddress = requires(A address) {
    typename A::Value;
    { address.value() } noexcept -> std::same_as<typename A::Value>;
    { AddressRange<A>::make(address, typename A::Value{1}) };
};

/// Something that leads to a device: a pointer, raw or smart.
template <typename P>
concept DevicePointer = requires(const P& pointer) {
    *pointer;
    requires Device<std::remove_reference_t<decltype(*pointer)>>;
    { static_cast<bool>(pointer) };
};

/// What can sit at a range of a bus: a device, held by value, or a pointer to one.
template <typename D>
concept Attachable = std::move_constructible<D> && (Device<D> || DevicePointer<D>);
// clang-format on

/// Which accesses belong to a range.
enum class Match : std::uint8_t {
    Covering,  ///< All that fit inside.
    Exact,     ///< Only those with the range's own address and length.
};

/// Devices at disjoint ranges of addresses.
///
/// Thread safety: all members from any thread.  Accesses never wait for changes; devices are called
/// by several threads at once.  A change returns when no access can be in what it took away, so a
/// device must not change the bus that is calling it: it would wait for itself.
template <BusAddress A, Attachable D>
class IoBus {
    struct Attachment {
        AddressRange<A> range;
        Match match;
        D device;
    };
    using Map = memory::RangeMap<Attachment*>;

public:
    using Range = AddressRange<A>;
    /// A caller's last-hit cache, one a thread.
    using Hint = typename Map::Hint;

    /// KVM's limit (NR_IOBUS_DEVS).
    static constexpr std::size_t max_ranges = 1000;

    IoBus() = default;

    /// Puts `device` at `range`.
    ///
    /// @return EEXIST if the range overlaps another, ENOSPC if there are 1,000 already, EINVAL for
    /// a null pointer, ENOMEM.
    Result<void> add(Range range, D device, Match match = Match::Covering)
    {
        if constexpr (DevicePointer<D>) {
            if (!static_cast<bool>(device)) {
                return Error{std::errc::invalid_argument,
                             "add to bus: " + name(range) + ": the device is a null pointer"};
            }
        }
        const std::lock_guard lock{changes_};
        if (const Attachment* other = overlapping(range)) {
            return Error{std::errc::file_exists, "add to bus: " + name(range) + " overlaps " +
                                                     name(other->range) +
                                                     ", which is taken; remove that one first"};
        }
        if (attachments_.size() >= max_ranges) {
            return Error{std::errc::no_space_on_device,
                         "add to bus: " + name(range) + ": there are " +
                             std::to_string(max_ranges) + " ranges, which is all a bus can have"};
        }
        const std::uint64_t first = range.first().value();
        try {
            auto added = std::make_unique<Attachment>(Attachment{range, match, std::move(device)});
            Attachment* const at = added.get();
            const auto place = attachments_.emplace(first, std::move(added)).first;
            const Bump bump{generation_};
            try {
                published_.update([&](const Map& old) {
                    return old.with({first, range.last().value(), at});
                });
            } catch (const std::bad_alloc&) {
                attachments_.erase(place);
                throw;
            }
        } catch (const std::bad_alloc&) {
            return Error{std::errc::not_enough_memory, "add to bus: no memory for the table"};
        }
        return success;
    }

    /// Takes away what was added at exactly `range`, and destroys this bus's `D`.  Returns when no
    /// thread is in it.
    ///
    /// @return ENOENT if nothing was added there, ENOMEM.
    Result<void> remove(Range range)
    {
        const std::lock_guard lock{changes_};
        const std::uint64_t first = range.first().value();
        const auto found = attachments_.find(first);
        if (found == attachments_.end() || found->second->range != range) {
            const Attachment* other = overlapping(range);
            return Error{std::errc::no_such_file_or_directory,
                         "remove from bus: nothing was added at " + name(range) +
                             (other != nullptr ? "; there is " + name(other->range) : "")};
        }
        const Bump bump{generation_};
        try {
            published_.update([&](const Map& old) { return old.without(first); });
        } catch (const std::bad_alloc&) {
            return Error{std::errc::not_enough_memory, "remove from bus: no memory for the table"};
        }
        attachments_.erase(found);
        return success;
    }

    /// Lets the device at `address` answer.  False, and `data` is untouched, if no range has all
    /// of the access.
    bool read(A address, std::span<std::byte> data) const noexcept
    {
        const auto map = published_.read();
        return deliver_read(map->find(address.value()), address, data);
    }
    /// The same, faster if `hint`'s owner was there last.
    bool read(A address, std::span<std::byte> data, Hint& hint) const noexcept
    {
        const auto map = published_.read();
        return deliver_read(map->find(address.value(), hint), address, data);
    }

    /// Gives the device at `address` what is written.  False if no range has all of the access.
    bool write(A address, std::span<const std::byte> data) const noexcept
    {
        const auto map = published_.read();
        return deliver_write(map->find(address.value()), address, data);
    }
    bool write(A address, std::span<const std::byte> data, Hint& hint) const noexcept
    {
        const auto map = published_.read();
        return deliver_write(map->find(address.value(), hint), address, data);
    }

    /// Whether an access of `size` bytes would reach a device now; size 0: of unknown size.
    [[nodiscard]] bool answers(A address, std::size_t size) const noexcept
    {
        const auto map = published_.read();
        const auto* entry = map->find(address.value());
        return entry != nullptr && belongs(*entry, address, size);
    }

    /// Grows with each change, after accesses can meet it and before `add` or `remove` returns.
    /// What `answers` said stays true, but for changes that are going on, while this stays the
    /// same.
    [[nodiscard]] std::uint64_t generation() const noexcept
    {
        return generation_.load(std::memory_order_acquire);
    }

    /// How many ranges there are.
    [[nodiscard]] std::size_t size() const noexcept { return published_.read()->size(); }

private:
    using Entry = typename Map::Entry;

    /// Counts a change when its scope ends.
    struct Bump {
        std::atomic<std::uint64_t>& generation;

        explicit Bump(std::atomic<std::uint64_t>& of) noexcept : generation{of} {}
        Bump(const Bump&) = delete;
        Bump& operator=(const Bump&) = delete;
        Bump(Bump&&) = delete;
        Bump& operator=(Bump&&) = delete;
        ~Bump() { generation.fetch_add(1, std::memory_order_release); }
    };

    static std::string name(Range range)
    {
        return "addresses " + memory::hex(range.first().value()) + " to " +
               memory::hex(range.last().value());
    }

    /// @pre The entry's range has `address`.
    static bool belongs(const Entry& entry, A address, std::size_t size) noexcept
    {
        const std::uint64_t behind = size == 0 ? 0 : size - 1;  // The last byte, from `address`.
        if (behind > entry.last - address.value()) {
            return false;
        }
        return entry.value->match == Match::Covering ||
               (address.value() == entry.first &&
                (size == 0 || address.value() + behind == entry.last));
    }

    static auto& device_of(Attachment& attachment) noexcept
    {
        if constexpr (Device<D>) {
            return attachment.device;
        } else {
            return *attachment.device;
        }
    }

    static bool deliver_read(const Entry* entry, A address, std::span<std::byte> data) noexcept
    {
        if (entry == nullptr || !belongs(*entry, address, data.size())) {
            return false;
        }
        device_of(*entry->value).read(address.value() - entry->first, data);
        return true;
    }

    static bool deliver_write(const Entry* entry,
                              A address,
                              std::span<const std::byte> data) noexcept
    {
        if (entry == nullptr || !belongs(*entry, address, data.size())) {
            return false;
        }
        device_of(*entry->value).write(address.value() - entry->first, data);
        return true;
    }

    [[nodiscard]] const Attachment* overlapping(Range range) const noexcept
    {
        const auto map = published_.read();
        const auto* entry = map->overlapping(range.first().value(), range.last().value());
        return entry != nullptr ? entry->value : nullptr;
    }

    memory::Published<Map> published_;
    std::atomic<std::uint64_t> generation_{0};
    std::mutex changes_;  // attachments_, and the order of publications.
    std::map<std::uint64_t, std::unique_ptr<Attachment>> attachments_;  // By first address.
};

}  // namespace vmm::bus
