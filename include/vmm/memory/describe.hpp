// SPDX-License-Identifier: Apache-2.0

/// @file
/// Numbers as the sentences of an `Error` show them.
///
///     assert(vmm::memory::hex(0xfee00000) == "0xfee00000");
///
/// Includes nothing else of this library.

#pragma once

#include <charconv>
#include <cstdint>
#include <iterator>
#include <string>

namespace vmm::memory {

/// `value` in lower-case hexadecimal with 0x before it.
[[nodiscard]] inline std::string hex(std::uint64_t value)
{
    char digits[16];
    const auto [end, error] = std::to_chars(std::begin(digits), std::end(digits), value, 16);
    static_cast<void>(error);  // 16 digits are enough for any 64-bit number.
    return "0x" + std::string(std::begin(digits), end);
}

}  // namespace vmm::memory
