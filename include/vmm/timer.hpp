// SPDX-License-Identifier: Apache-2.0

/// @file
/// Timers, as interrupt controllers and devices see them: the event loop implements them on
/// CLOCK_MONOTONIC, tests implement them on a clock they turn by hand.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace vmm {

/// A one-shot timer.  Destroying it cancels it and waits for a running call to end, unless
/// destroyed from within that call.
///
/// Thread safety: every member may be called from any thread.
class Timer {
public:
    Timer() = default;
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;
    Timer(Timer&&) = delete;
    Timer& operator=(Timer&&) = delete;
    virtual ~Timer() = default;

    /// Calls back once when the clock reaches `deadline_ns`; replaces an earlier deadline.  A
    /// deadline in the past expires at once, on the service's thread, never inside this call.
    virtual void arm(std::uint64_t deadline_ns) = 0;

    /// After this returns no call begins for a deadline set before; one may still be running.
    virtual void cancel() = 0;
};

/// A clock and the timers on it.
class TimerService {
public:
    TimerService() = default;
    TimerService(const TimerService&) = delete;
    TimerService& operator=(const TimerService&) = delete;
    TimerService(TimerService&&) = delete;
    TimerService& operator=(TimerService&&) = delete;
    virtual ~TimerService() = default;

    /// Nanoseconds on a clock that never goes back.
    [[nodiscard]] virtual std::uint64_t now_ns() const noexcept = 0;

    /// A timer that calls `on_expiry` on the service's thread.
    [[nodiscard]] virtual std::unique_ptr<Timer> create_timer(std::function<void()> on_expiry) = 0;
};

}  // namespace vmm
