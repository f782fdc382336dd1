// SPDX-License-Identifier: Apache-2.0

/// @file
/// Which bytes of a program are an instruction, if only its end is known.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vmm::shim::raw {

/// Whether the bytes end with an instruction of `length` bytes, and not only look like it: however
/// the ones before are read, that is where an instruction begins.
[[nodiscard]] bool ends_with_instruction(std::span<const std::uint8_t> code,
                                         std::size_t length) noexcept;

}  // namespace vmm::shim::raw
