// SPDX-License-Identifier: Apache-2.0

/// @file
/// What every device does with the bytes of an access.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vmm::device::detail {

/// What a port reads as when nothing answers.
inline constexpr std::uint8_t open_bus = 0xff;

inline void fill_open_bus(std::span<std::byte> data) noexcept
{
    std::fill(data.begin(), data.end(), std::byte{open_bus});
}

[[nodiscard]] constexpr std::uint8_t to_u8(std::byte value) noexcept
{
    return std::to_integer<std::uint8_t>(value);
}

/// A byte of `value`, counted from the least significant.
[[nodiscard]] constexpr std::uint8_t byte_of(std::uint64_t value, unsigned index) noexcept
{
    return index < 8 ? static_cast<std::uint8_t>(value >> (8 * index)) : std::uint8_t{0};
}

}  // namespace vmm::device::detail
