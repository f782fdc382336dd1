// SPDX-License-Identifier: Apache-2.0

/// @file
/// A number that one thread counts and any thread may look at.

#pragma once

#include <atomic>
#include <cstdint>

namespace vmm::x86 {

/// As cheap as a bare integer: only its vCPU's thread changes it.
class Counter {
public:
    Counter() noexcept = default;

    Counter& operator++() noexcept { return *this += 1; }
    Counter& operator+=(std::uint64_t more) noexcept { return *this = value() + more; }
    Counter& operator=(std::uint64_t now) noexcept
    {
        value_.store(now, std::memory_order_relaxed);
        return *this;
    }
    [[nodiscard]] std::uint64_t value() const noexcept
    {
        return value_.load(std::memory_order_relaxed);
    }

private:
    std::atomic<std::uint64_t> value_{};
};

}  // namespace vmm::x86
