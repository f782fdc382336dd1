// SPDX-License-Identifier: Apache-2.0

/// @file
/// The oracle's source of chance: small, fast, the same on every host.

#pragma once

#include <array>
#include <cstdint>

namespace vmm::oracle {

/// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
public:
    explicit Random(std::uint64_t seed) noexcept : state_{seed} {}

    std::uint64_t operator()() noexcept
    {
        state_ += 0x9e37'79b9'7f4a'7c15U;
        std::uint64_t value = state_;
        value = (value ^ (value >> 30U)) * 0xbf58'476d'1ce4'e5b9U;
        value = (value ^ (value >> 27U)) * 0x94d0'49bb'1331'11ebU;
        return value ^ (value >> 31U);
    }

    /// 0 … limit - 1.
    std::uint32_t below(std::uint32_t limit) noexcept
    {
        return static_cast<std::uint32_t>(((*this)() >> 32U) * limit >> 32U);
    }
    bool percent(std::uint32_t chance) noexcept { return below(100) < chance; }
    std::uint8_t byte() noexcept { return static_cast<std::uint8_t>((*this)() >> 56U); }

    template <typename T, std::size_t size>
    const T& one_of(const std::array<T, size>& list) noexcept
    {
        return list[below(static_cast<std::uint32_t>(size))];
    }

private:
    std::uint64_t state_;
};

}  // namespace vmm::oracle
