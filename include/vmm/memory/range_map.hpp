// SPDX-License-Identifier: Apache-2.0

/// @file
/// Disjoint ranges of 64-bit keys and what belongs to them, for look-up without branches.
///
///     using Map = vmm::memory::RangeMap<std::string_view>;
///     const Map map = Map{}.with({0x0, 0x9ffff, "low"}).with({0x100000, 0xffffff, "high"});
///     assert(map.find(0x9ffff)->value == "low");
///     assert(map.find(0xa0000) == nullptr);
///     assert(map.overlapping(0x90000, 0xa0000)->value == "low");
///
///     Map::Hint hint;                                 // the caller's, one a thread
///     assert(map.find(0x100000, hint)->value == "high");
///     assert(map.find(0x100001, hint)->value == "high");  // this time with one comparison
///
/// A map never changes; `with` and `without` make another.  It is one sorted array, which copies
/// as a block, and, for more than a few ranges, an index above it: the span of the keys is cut into
/// at least twice as many equal pieces as there are ranges, and for each piece the index tells
/// between which two entries to search.  Layouts that are even leave one or two candidates; in any
/// other the search is binary within the piece, with conditional moves in place of branches that a
/// processor cannot predict.
///
/// Includes nothing else of this library.

#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace vmm::memory {

/// What a range may lead to: copied with every change, so usually a pointer or a number.
template <typename V>
concept RangeValue = std::copyable<V> && std::is_nothrow_destructible_v<V>;

/// Thread safety: a map is immutable, except by assignment.
template <RangeValue V>
class RangeMap {
public:
    struct Entry {
        std::uint64_t first{};
        std::uint64_t last{};  ///< Inclusive, so that a range may end at the top.
        V value{};

        /// One comparison: a key below `first` wraps to more than any length.
        [[nodiscard]] bool contains(std::uint64_t key) const noexcept
        {
            return key - first <= last - first;
        }
    };

    /// Where a caller's last look-up ended.  Stays usable with any other map: a wrong hint costs a
    /// comparison, never a wrong answer.
    class Hint {
        friend RangeMap;
        std::uint32_t at_{};
    };

    RangeMap() = default;
    /// @pre `sorted` is sorted; the ranges are not empty and overlap nowhere.
    explicit RangeMap(std::vector<Entry> sorted) : entries_{std::move(sorted)} { make_index(); }

    /// The entry whose range has `key` in it, or null.
    [[nodiscard]] const Entry* find(std::uint64_t key) const noexcept
    {
        if (entries_.empty()) {
            return nullptr;
        }
        const Entry& entry = last_not_above(key);
        return entry.contains(key) ? &entry : nullptr;
    }

    /// The same; looks first where `hint` says, and leaves there where it found the key.
    [[nodiscard]] const Entry* find(std::uint64_t key, Hint& hint) const noexcept
    {
        if (hint.at_ < entries_.size()) {
            const Entry& entry = entries_[hint.at_];
            if (entry.contains(key)) {
                return &entry;
            }
        }
        const Entry* entry = find(key);
        if (entry != nullptr) {
            hint.at_ = static_cast<std::uint32_t>(entry - entries_.data());
        }
        return entry;
    }

    /// Some entry that has a key of [first, last], or null.
    [[nodiscard]] const Entry* overlapping(std::uint64_t first, std::uint64_t last) const noexcept
    {
        const auto above = upper_bound(last);
        if (above == entries_.begin()) {
            return nullptr;
        }
        const Entry& entry = *std::prev(above);
        return entry.last >= first ? &entry : nullptr;
    }

    [[nodiscard]] std::span<const Entry> entries() const noexcept { return entries_; }
    [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
    [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }

    /// This map and `entry`.  @pre Its range is not empty and overlaps no other's.
    [[nodiscard]] RangeMap with(Entry entry) const
    {
        const auto at = upper_bound(entry.first);
        RangeMap next;
        next.entries_.reserve(entries_.size() + 1);
        next.entries_.assign(entries_.begin(), at);
        next.entries_.push_back(std::move(entry));
        next.entries_.insert(next.entries_.end(), at, entries_.end());
        next.make_index();
        return next;
    }

    /// This map without the entry that begins at `first`, if there is one.
    [[nodiscard]] RangeMap without(std::uint64_t first) const
    {
        RangeMap next;
        next.entries_.reserve(entries_.size());
        for (const Entry& entry : entries_) {
            if (entry.first != first) {
                next.entries_.push_back(entry);
            }
        }
        next.make_index();
        return next;
    }

private:
    [[nodiscard]] auto upper_bound(std::uint64_t key) const noexcept
    {
        return std::upper_bound(
            entries_.begin(), entries_.end(), key,
            [](std::uint64_t wanted, const Entry& entry) { return wanted < entry.first; });
    }

    /// The entry with the greatest `first` that is not above `key`; any if all are above it.
    /// @pre There is an entry.
    [[nodiscard]] const Entry& last_not_above(std::uint64_t key) const noexcept
    {
        const Entry* at = entries_.data();
        if (entries_.size() == 1) {
            return *at;
        }
        if (entries_.size() <= few) {
            // Sums do not wait for one another as steps of a search do.
            std::size_t not_above = 0;
            for (const std::uint64_t first : later_firsts_) {
                not_above += static_cast<std::size_t>(first <= key);
            }
            // The greatest key is not below the places that no entry has.
            return at[std::min(not_above, entries_.size() - 1)];
        }
        // A key below the first entry wraps into the last piece, and is contained in nothing.
        const Piece& piece = pieces_[std::min((key - origin_) >> shift_, last_piece_)];
        at += piece.from;
        std::size_t count = piece.count;
        while (count > 1) {
            const std::size_t half = count / 2;
            // Arithmetic and not a choice: compilers make a branch of a choice.
            at += half & (std::size_t{0} - static_cast<std::size_t>(at[half].first <= key));
            count -= half;
        }
        return *at;
    }

    void make_index()
    {
        if (entries_.size() <= few) {
            later_firsts_.fill(std::numeric_limits<std::uint64_t>::max());
            for (std::size_t i = 1; i < entries_.size(); ++i) {
                later_firsts_[i - 1] = entries_[i].first;
            }
            return;
        }
        origin_ = entries_.front().first;
        const std::uint64_t span = entries_.back().first - origin_;
        const std::size_t wanted = std::bit_ceil(entries_.size()) * 2;
        const auto wanted_bits = static_cast<unsigned>(std::countr_zero(wanted));
        const auto span_bits = static_cast<unsigned>(std::bit_width(span));
        // 63 at most: a shift by 64 is not defined.
        shift_ = std::min(span_bits > wanted_bits ? span_bits - wanted_bits : 0U, 63U);
        last_piece_ = span >> shift_;
        pieces_.resize(last_piece_ + 1);
        std::uint64_t done = 0;
        for (std::size_t i = 1; i < entries_.size(); ++i) {
            const std::uint64_t distance = entries_[i].first - origin_;
            const std::uint64_t number = distance >> shift_;
            if (number > done) {
                // The pieces from the last one that an entry begins in to this one.
                std::fill(pieces_.begin() + static_cast<std::ptrdiff_t>(done + 1),
                          pieces_.begin() + static_cast<std::ptrdiff_t>(number + 1),
                          Piece{static_cast<std::uint32_t>(i - 1), 1});
                done = number;
            }
            Piece& piece = pieces_[number];
            if (distance == number << shift_) {
                piece.from = static_cast<std::uint32_t>(i);
            } else {
                ++piece.count;
            }
        }
    }

    /// The entries that a key of one piece may be in.
    struct Piece {
        std::uint32_t from{};
        std::uint32_t count{1};
    };

    // So many are searched faster than an index is read: measured, as all of this, by
    // vmm-components-bench.
    static constexpr std::size_t few = 8;

    std::vector<Entry> entries_;  // Sorted, disjoint.
    std::array<std::uint64_t, few - 1>
        later_firsts_{};  // Of at most `few` entries, without the first.
    std::vector<Piece> pieces_;
    std::uint64_t origin_{};
    std::uint64_t last_piece_{};
    unsigned shift_{};
};

}  // namespace vmm::memory
