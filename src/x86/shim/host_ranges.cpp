// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/host_ranges.hpp"

namespace vmm::shim {

void HostRanges::set(std::uint32_t slot, std::uint64_t first, std::uint64_t size)
{
    const std::lock_guard lock{changes_};
    // A slot that is gone keeps its place, for the next of its number.
    auto found = places_.find(slot);
    if (found == places_.end()) {
        if (size == 0 || places_.size() == capacity) {
            return;
        }
        found = places_.emplace(slot, places_.size()).first;
    }
    Range& range = ranges_[found->second];
    range.size.store(0, std::memory_order_release);
    range.first.store(first, std::memory_order_release);
    range.size.store(size, std::memory_order_release);
    used_.store(places_.size(), std::memory_order_release);
}

bool HostRanges::contains(std::uint64_t address) const noexcept
{
    const std::size_t used = used_.load(std::memory_order_acquire);
    for (std::size_t i = 0; i < used; ++i) {
        const std::uint64_t size = ranges_[i].size.load(std::memory_order_acquire);
        const std::uint64_t first = ranges_[i].first.load(std::memory_order_acquire);
        if (address >= first && address - first < size) {
            return true;
        }
    }
    return false;
}

}  // namespace vmm::shim
