// SPDX-License-Identifier: Apache-2.0

/// @file
/// What a vCPU waits at while it has nothing to run.

#pragma once

#include <atomic>
#include <cstdint>

namespace vmm::core {

/// Counts rings, and lets a thread wait for the next one.  A futex instead of a condition variable,
/// because a signal handler may ring it, also one that interrupts the wait.
///
///     const auto seen = bell.rings();
///     if (!something_to_do()) {
///         bell.wait(seen);        // returns at once if rung since `seen`
///     }
///
/// Thread safety: all members from any thread; `ring()` is async-signal-safe.
class Doorbell {
public:
    void ring() noexcept;
    [[nodiscard]] std::uint32_t rings() const noexcept
    {
        return rings_.load(std::memory_order_seq_cst);
    }
    /// May return too soon, as when a signal came.
    void wait(std::uint32_t seen) noexcept;

private:
    std::atomic<std::uint32_t> rings_{};
    std::atomic<std::uint32_t> waiters_{};
};

}  // namespace vmm::core
