// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace vmm::x86::soft {

/// A set of pages of any size, hashed: it may hold a page that was not added, never the reverse.
class PageFilter {
public:
    void clear() noexcept { words_ = {}; }

    /// Adds the page of 2^`shift` bytes that holds `linear`.
    void add(std::uint64_t linear, unsigned shift) noexcept
    {
        const std::size_t hash = hash_of(linear, shift);
        words_[hash / 64] |= std::uint64_t{1} << (hash % 64);
    }
    /// Whether a page with `linear` may have been added.
    [[nodiscard]] bool may_hold(std::uint64_t linear) const noexcept
    {
        return std::any_of(shifts.begin(), shifts.end(), [&](unsigned shift) {
            const std::size_t hash = hash_of(linear, shift);
            return ((words_[hash / 64] >> (hash % 64)) & 1U) != 0;
        });
    }

private:
    static constexpr std::array<unsigned, 4> shifts{12, 21, 22, 30};

    [[nodiscard]] static std::size_t hash_of(std::uint64_t linear, unsigned shift) noexcept
    {
        return (((linear >> shift) + shift) * 0x9e37'79b9'7f4a'7c15U) >> 52U;
    }

    std::array<std::uint64_t, 64> words_{};
};

}  // namespace vmm::x86::soft
