// SPDX-License-Identifier: Apache-2.0

#include "core/exit_counters.hpp"

#include <algorithm>
#include <bit>

namespace vmm::core {

ExitCounters::ExitCounters(bool wanted, std::uint32_t timed_one_in, std::uint32_t tsc_khz) noexcept
    : wanted_{wanted},
      timed_one_in_{timed_one_in},
      scale_{x86::tsc_scale(tsc_khz)}
{
}

std::size_t ExitCounters::bucket_of(std::uint64_t ns) noexcept
{
    return std::min<std::size_t>(std::bit_width(ns), std::tuple_size_v<TimeHistogram> - 1);
}

void ExitCounters::finish(ExitKind kind, std::uint64_t started) noexcept
{
    const std::uint64_t now = x86::read_host_tsc();
    // Another CPU's counter may be behind.
    const std::uint64_t ns = now > started ? x86::scale_tsc(now - started, scale_) : 0U;
    Timed& timed = timed_[static_cast<std::size_t>(kind)];
    if (timed.count.value() == 0U || ns < timed.minimum_ns.value()) {
        timed.minimum_ns = ns;
    }
    if (ns > timed.maximum_ns.value()) {
        timed.maximum_ns = ns;
    }
    ++timed.count;
    timed.total_ns += ns;
    ++timed.histogram[bucket_of(ns)];
    // Not at a fixed distance: a guest's loop may have one, too.
    const auto random = static_cast<std::uint32_t>(now >> 3U);
    until_timed_ = timed_one_in_ / 2U + (random & (timed_one_in_ - 1U)) + 1U;
    if (timed_one_in_ == 1U) {
        until_timed_ = 1;
    }
}

std::vector<ExitStatistics> ExitCounters::by_kind() const
{
    std::vector<ExitStatistics> all;
    for (std::size_t i = 0; i < exit_kinds; ++i) {
        const std::uint64_t count = counts_[i].value();
        if (count == 0U) {
            continue;
        }
        const Timed& timed = timed_[i];
        ExitStatistics& one = all.emplace_back();
        one.kind = static_cast<ExitKind>(i);
        one.count = count;
        one.timed = timed.count.value();
        one.total_ns = timed.total_ns.value();
        one.minimum_ns = timed.minimum_ns.value();
        one.maximum_ns = timed.maximum_ns.value();
        std::transform(timed.histogram.begin(), timed.histogram.end(), one.histogram.begin(),
                       [](const x86::Counter& each) { return each.value(); });
    }
    return all;
}

std::vector<ExitRecord> ExitCounters::last() const
{
    const std::uint64_t end = total_.load(std::memory_order_acquire);
    const std::uint64_t begin = end > ring_size ? end - ring_size : 0U;
    std::vector<ExitRecord> records;
    for (std::uint64_t number = begin; number < end; ++number) {
        const Entry& entry = ring_[number % ring_size];
        const std::uint64_t word = entry.kind_and_where.load(std::memory_order_acquire);
        const Gva rip{entry.rip.load(std::memory_order_acquire)};
        records.push_back({static_cast<ExitKind>(word >> where_bits), word & where_mask, rip});
    }
    // The vCPU goes on meanwhile: what it may have written over, or is about to, does not count.
    const std::uint64_t now = total_.load(std::memory_order_acquire);
    if (now > end) {
        const std::uint64_t sound = now + 1U > ring_size ? now + 1U - ring_size : 0U;
        const std::uint64_t gone = std::min(sound > begin ? sound - begin : 0U, end - begin);
        records.erase(records.begin(), records.begin() + static_cast<std::ptrdiff_t>(gone));
    }
    return records;
}

}  // namespace vmm::core
