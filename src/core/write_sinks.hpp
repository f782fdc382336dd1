// SPDX-License-Identifier: Apache-2.0

/// @file
/// Writes that nobody has to answer: they ring a doorbell (KVM_IOEVENTFD), or are put aside for the
/// VMM to look at later (KVM_REGISTER_COALESCED_MMIO).

#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <utility>

#include "vmm/bus/coalesced.hpp"
#include "vmm/bus/ioeventfd.hpp"
#include "vmm/device/irqfd.hpp"

namespace vmm::core {

/// Those of one bus.
///
/// Thread safety: all members from any thread; a write never waits for a change.
template <bus::BusAddress A>
class WriteSinks {
public:
    using Event = bus::IoEvent<A>;
    using Range = AddressRange<A>;

    explicit WriteSinks(bus::CoalescedKind kind) noexcept : zones_{kind} {}

    Result<void> add_event(const Event& event, int eventfd)
    {
        VMM_TRY(auto bell, device::EventFd::from_fd(eventfd));
        return changed(events_.add(event, std::move(bell)));
    }
    Result<void> remove_event(const Event& event, int eventfd)
    {
        VMM_TRY(const auto bell, device::EventFd::from_fd(eventfd));
        return changed(events_.remove(event, bell));
    }
    Result<void> add_zone(Range zone) { return changed(zones_.add(zone)); }
    Result<void> remove_zone(Range zone) { return changed(zones_.remove(zone)); }

    /// Rings the doorbell that this write matches.  False: there is none.
    bool ring(A address, std::span<const std::byte> data) const noexcept
    {
        return is_used() && events_.write(address, data);
    }
    /// Puts the write aside.  False: it is in no zone, or `ring` is full.
    bool put_aside(A address,
                   std::span<const std::byte> data,
                   bus::CoalescedRing& ring) const noexcept
    {
        return is_used() && zones_.write(address, data, ring);
    }
    /// Whether a write of `size` bytes may be for one of them.
    [[nodiscard]] bool may_take(A address, std::size_t size) const noexcept
    {
        return is_used() && (events_.watches(address) || zones_.covers(address, size));
    }
    /// Grows with each change, before it returns and after writes can meet it.
    [[nodiscard]] std::uint64_t generation() const noexcept
    {
        return generation_.load(std::memory_order_acquire);
    }

private:
    [[nodiscard]] bool is_used() const noexcept { return generation() != 0U; }

    Result<void> changed(Result<void> result)
    {
        generation_.fetch_add(1, std::memory_order_release);
        return result;
    }

    bus::IoEventTable<A, device::EventFd> events_;
    bus::CoalescedZones<A> zones_;
    std::atomic<std::uint64_t> generation_{0};
};

}  // namespace vmm::core
