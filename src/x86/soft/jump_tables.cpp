// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/jump_tables.hpp"

#include <algorithm>

namespace vmm::x86::soft {

namespace {

// A generation's lower bits: the mode, the number of CS.
constexpr unsigned cs_shift = 9;
constexpr unsigned generation_shift = 16;

}  // namespace

JumpTables::JumpTables(Chain& chain)
    : chain_(chain),
      entries_((table_count + 1) * Chain::table_size)
{
    renew_if([](const State&) { return true; });
    select_none();
}

void JumpTables::select_none() noexcept
{
    chain_.table = none();
    chain_.generation = 1;  // That of no entry, and not that of an entry of zeroes.
    chain_.unlinked = nullptr;
}

void JumpTables::select(Table which) noexcept
{
    chain_.table = entries(which);
    chain_.generation = state(which).generation << generation_shift;
}

void JumpTables::select_legacy(std::uint64_t mode, const CodeSegment& segment) noexcept
{
    const std::size_t number = number_of(segment);  // It may renew the table.
    select(Table::Legacy);
    chain_.generation |= mode | (number << cs_shift);
}

void JumpTables::note(Table which, const Page& page) noexcept
{
    State& noted = state(which);
    noted.is_used = true;
    noted.pages.add(page.linear, page.shift);
    noted.has_local = noted.has_local || !page.is_global;
}

void JumpTables::renew(State& state) noexcept
{
    if (state.is_used) {
        state.is_used = false;
        state.has_local = false;
        state.pages.clear();
    }
    state.generation = ++last_generation_;
}

template <typename IsMeant>
void JumpTables::renew_if(const IsMeant& is_meant) noexcept
{
    const auto renew_meant = [&](State& each) {
        if (is_meant(each)) {
            renew(each);
        }
    };
    std::for_each(states_.begin(), states_.end(), renew_meant);
    std::for_each(user_states_.begin(), user_states_.end(), renew_meant);
    adopt_generation();
}

/// The state of the selected table may have another generation now.
void JumpTables::adopt_generation() noexcept
{
    for (const Table which : {Table::Supervisor, Table::User, Table::Legacy}) {
        if (chain_.table == entries(which)) {
            constexpr std::uint64_t mode_bits = (std::uint64_t{1} << generation_shift) - 1U;
            chain_.generation =
                (state(which).generation << generation_shift) | (chain_.generation & mode_bits);
        }
    }
}

void JumpTables::mapping_changed() noexcept
{
    renew_if([](const State& state) { return state.is_used; });
}

void JumpTables::local_mapping_changed() noexcept
{
    renew_if([](const State& state) { return state.has_local; });
}

void JumpTables::mapping_changed(std::uint64_t linear) noexcept
{
    renew_if([&](const State& state) { return state.is_used && state.pages.may_hold(linear); });
}

void JumpTables::address_space_changed(FetchTlb::Space space) noexcept
{
    for (State& each : states_) {
        if (each.has_local) {
            renew(each);
        }
    }
    space_ = space.index;
    if (!space.is_kept) {
        renew(user_states_[space_]);
    }
    adopt_generation();
}

void JumpTables::forget_address_space(std::size_t index) noexcept
{
    renew(user_states_[index]);
}

void JumpTables::clear() noexcept
{
    mapping_changed();
    entries_.clear(0, entries_.size());
    select_none();
}

std::size_t JumpTables::number_of(const CodeSegment& segment) noexcept
{
    if (last_segment_ < segment_count_ && segments_[last_segment_] == segment) {
        return last_segment_;
    }
    const auto end = segments_.begin() + static_cast<std::ptrdiff_t>(segment_count_);
    const auto found = std::find(segments_.begin(), end, segment);
    last_segment_ = static_cast<std::size_t>(found - segments_.begin());
    if (found == end) {
        if (segment_count_ == segments_.size()) {
            renew(state(Table::Legacy));  // Their numbers are given anew.
            last_segment_ = 0;
            segment_count_ = 0;
        }
        segments_[last_segment_] = segment;
        ++segment_count_;
    }
    return last_segment_;
}

}  // namespace vmm::x86::soft
