// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/fetch_tlb.hpp"

#include <algorithm>

namespace vmm::x86::soft {

FetchTlb::FetchTlb() noexcept
{
    spaces_[0] = {0, epoch_};
}

void FetchTlb::fill(Entry& entry, const Entry& with, bool global) noexcept
{
    entry = with;
    entry.epoch = global ? global_epoch_ : epoch_;
    if (with.page_shift > 12) {
        large_.add(with.tag, with.page_shift);
    }
}

void FetchTlb::flush_all() noexcept
{
    flush_non_global();
    global_epoch_ = ++last_epoch_;
    large_.clear();
}

void FetchTlb::flush_non_global() noexcept
{
    const std::uint32_t pcid = spaces_[current_].pcid;
    spaces_.fill({});
    epoch_ = ++last_epoch_;
    spaces_[current_] = {pcid, epoch_};
}

void FetchTlb::flush_page(std::uint64_t linear) noexcept
{
    if (large_.may_hold(linear)) {
        // Any part of it may be known.
        for (std::size_t i = 0; i < entry_count; ++i) {
            Entry& entry = entries_.data()[i];
            if (entry.page_shift > 12 && is_for(entry, entry.tag) &&
                (entry.tag ^ linear) >> entry.page_shift == 0) {
                entry.epoch = 0;
            }
        }
    }
    Entry& only = entry(linear);
    if (is_for(only, only.tag) && (only.tag ^ linear) >> 12U == 0) {
        only.epoch = 0;
    }
}

FetchTlb::Space FetchTlb::switch_to(std::uint16_t pcid, bool keep) noexcept
{
    auto place = std::find_if(spaces_.begin(), spaces_.end(),
                              [&](const Known& known) { return known.pcid == pcid; });
    bool is_kept = keep && place != spaces_.end();
    if (place == spaces_.end()) {
        if (next_victim_ == current_) {
            next_victim_ = (next_victim_ + 1) % space_count;
        }
        place = spaces_.begin() + static_cast<std::ptrdiff_t>(next_victim_);
        next_victim_ = (next_victim_ + 1) % space_count;
    }
    if (!is_kept) {
        *place = {pcid, ++last_epoch_};
    }
    epoch_ = place->epoch;
    current_ = static_cast<std::size_t>(place - spaces_.begin());
    return {current_, is_kept};
}

std::optional<std::size_t> FetchTlb::forget(std::uint16_t pcid) noexcept
{
    const auto place = std::find_if(spaces_.begin(), spaces_.end(),
                                    [&](const Known& known) { return known.pcid == pcid; });
    if (place == spaces_.end()) {
        return std::nullopt;
    }
    *place = {};
    return static_cast<std::size_t>(place - spaces_.begin());
}

}  // namespace vmm::x86::soft
