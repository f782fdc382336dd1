// SPDX-License-Identifier: Apache-2.0

/// @file
/// How a device raises its interrupt without calling out under its lock.
///
///     {
///         const std::lock_guard lock{mutex_};
///         …
///         pin_.set(interrupt_pending_locked());   // remembers
///     }
///     pin_.deliver();                             // calls the line

#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>

#include "vmm/export.hpp"

namespace vmm::device {

/// A wire into an interrupt controller: called with the new level whenever it changes.  Empty
/// means not connected.  It may be called from any thread, by one at a time for each device.
using IrqLine = std::function<void(bool level)>;

/// The end of the wire at the device.
///
/// Changes are delivered in the order they were set, however many threads deliver, and none is
/// lost: a line that fell and rose again before anybody looked is still seen to fall and rise, so
/// that an edge-triggered input sees its edge.
///
/// Thread safety: all members may be called from any thread.
class VMM_API IrqPin final {
public:
    explicit IrqPin(IrqLine line) : line_{std::move(line)} {}

    /// Notes the level the pin has from now on.  Calls nobody: for use under the device's lock.
    void set(bool level) noexcept;
    /// Notes a fall and a rise.
    void set_edge() noexcept;
    /// Tells the line what was noted.  If another thread is telling it already, that thread does
    /// it and this call returns.
    /// @pre the caller holds no lock that the line could need
    void deliver() noexcept;

private:
    IrqLine line_;
    std::mutex mutex_;
    bool wanted_{false};
    bool delivered_{false};
    bool dip_{false};
    bool delivering_{false};
};

}  // namespace vmm::device
