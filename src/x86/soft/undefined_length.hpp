// SPDX-License-Identifier: Apache-2.0

/// @file
/// How many bytes the processor fetches of what is no instruction.
///
/// Faults of fetching come before #UD (SDM Vol. 3A "Priority Among Concurrent Events"), and so does
/// #GP for more than 15 bytes.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "x86/soft/insn.hpp"

namespace vmm::x86::soft {

/// The length of the undefined instruction at the start of `bytes`, as far as they tell it: an
/// answer above their number means that more are needed to say.
[[nodiscard]] std::size_t undefined_length(std::span<const std::byte> bytes,
                                           CodeSize size) noexcept;

}  // namespace vmm::x86::soft
