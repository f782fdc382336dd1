// SPDX-License-Identifier: Apache-2.0

/// @file
/// Counting a vCPU's exits: always on, so it may cost a nanosecond or two.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "vmm/statistics.hpp"
#include "x86/counter.hpp"
#include "x86/kvmclock.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {

/// Thread safety: the vCPU's thread counts, any thread reads.
class ExitCounters {
public:
    /// @param wanted  Whether exits are counted; what happens beside them always is.
    /// @param timed_one_in  Of port, MMIO and MSR accesses; a power of two.
    ExitCounters(bool wanted, std::uint32_t timed_one_in, std::uint32_t tsc_khz) noexcept;

    /// The guest was left.
    void left(ExitKind kind, std::uint64_t where, std::uint64_t rip) noexcept
    {
        if (!wanted_) [[unlikely]] {
            return;
        }
        note(kind, where, rip);
        if (kind > last_access || --until_timed_ == 0U) [[unlikely]] {
            timed_kind_ = kind;
            started_ = x86::read_host_tsc();
        }
    }
    /// It is about to be entered again.
    void entering() noexcept
    {
        if (started_ != 0U) [[unlikely]] {
            finish(timed_kind_, started_);
            started_ = 0;
        }
    }

    /// Something in the library is asked by the guest: when, if this one is to be timed, else 0.
    [[nodiscard]] std::uint64_t asking() const noexcept
    {
        return until_timed_ == 1U && wanted_ ? x86::read_host_tsc() : 0U;
    }
    /// It has answered.
    void answered(ExitKind kind, std::uint64_t where, std::uint64_t asked) noexcept
    {
        if (!wanted_) [[unlikely]] {
            return;
        }
        note(kind, where, 0);
        --until_timed_;
        if (asked != 0U) [[unlikely]] {
            finish(kind, asked);
        }
    }

    [[nodiscard]] std::uint64_t total() const noexcept
    {
        return total_.load(std::memory_order_relaxed);
    }
    [[nodiscard]] std::uint64_t count(ExitKind kind) const noexcept
    {
        return counts_[static_cast<std::size_t>(kind)].value();
    }
    /// Of each kind that there was.
    [[nodiscard]] std::vector<ExitStatistics> by_kind() const;
    /// The last ones, the youngest last.
    [[nodiscard]] std::vector<ExitRecord> last() const;

    // What happens beside exits.
    x86::Counter signal_exits;
    x86::Counter request_irq_exits;
    x86::Counter irq_injections;
    x86::Counter nmi_injections;
    x86::Counter halt_wakeup;
    x86::Counter halt_wait_ns;
    x86::Counter halt_attempted_poll;
    x86::Counter halt_successful_poll;
    x86::Counter halt_poll_success_ns;
    x86::Counter halt_poll_fail_ns;
    x86::Counter blocking;  ///< 1 while it waits.
    std::array<x86::Counter, std::tuple_size_v<TimeHistogram>> halt_wait_hist;

    /// The bucket of a `TimeHistogram`.
    [[nodiscard]] static std::size_t bucket_of(std::uint64_t ns) noexcept;

private:
    static constexpr ExitKind last_access = ExitKind::MsrWrite;
    static constexpr std::size_t ring_size = 64;
    static constexpr unsigned where_bits = 56;  // A guest-physical address has 52.
    static constexpr std::uint64_t where_mask = (std::uint64_t{1} << where_bits) - 1U;

    struct Timed {
        x86::Counter count;
        x86::Counter total_ns;
        x86::Counter minimum_ns;
        x86::Counter maximum_ns;
        std::array<x86::Counter, std::tuple_size_v<TimeHistogram>> histogram;
    };
    struct Entry {
        std::atomic<std::uint64_t> kind_and_where{};
        std::atomic<std::uint64_t> rip{};
    };

    void note(ExitKind kind, std::uint64_t where, std::uint64_t rip) noexcept
    {
        ++counts_[static_cast<std::size_t>(kind)];
        const std::uint64_t number = total_.load(std::memory_order_relaxed);
        Entry& entry = ring_[number % ring_size];
        // Release: who sees this entry sees that the ring has come here (last()).
        entry.kind_and_where.store(static_cast<std::uint64_t>(kind) << where_bits |
                                       (where & where_mask),
                                   std::memory_order_release);
        entry.rip.store(rip, std::memory_order_release);
        total_.store(number + 1, std::memory_order_release);
    }
    void finish(ExitKind kind, std::uint64_t started) noexcept;

    const bool wanted_;
    std::uint32_t until_timed_{1};
    ExitKind timed_kind_{};
    std::uint64_t started_{};             // TSC; 0: the last exit is not timed.
    std::atomic<std::uint64_t> total_{};  // Also the number of the next entry of the ring.
    std::array<x86::Counter, exit_kinds> counts_;
    std::array<Entry, ring_size> ring_;
    std::array<Timed, exit_kinds> timed_;
    const std::uint32_t timed_one_in_;
    const x86::TscScale scale_;  // TSC to ns.
};

}  // namespace vmm::core
