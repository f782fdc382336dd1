// SPDX-License-Identifier: Apache-2.0

/// @file
/// The client's memory that is behind slots, for a signal handler to look up.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace vmm::shim {

/// Thread safety: all members from any thread; `contains()` is async-signal-safe.
class HostRanges {
public:
    /// What KVM_SET_USER_MEMORY_REGION has made of a slot; size 0: it is gone.  Of more slots than
    /// there is room for, the last are not known here.
    void set(std::uint32_t slot, std::uint64_t first, std::uint64_t size);
    [[nodiscard]] bool contains(std::uint64_t address) const noexcept;

private:
    static constexpr std::size_t capacity = 1024;
    struct Range {
        std::atomic<std::uint64_t> first{};
        std::atomic<std::uint64_t> size{};
    };

    std::mutex changes_;
    std::map<std::uint32_t, std::size_t> places_;  // By slot.
    std::array<Range, capacity> ranges_;
    std::atomic<std::size_t> used_{};
};

}  // namespace vmm::shim
