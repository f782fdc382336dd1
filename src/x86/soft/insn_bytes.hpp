// SPDX-License-Identifier: Apache-2.0

/// @file
/// How the bytes of an instruction divide, by the rules that hold for those that are none too.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "x86/soft/insn.hpp"

namespace vmm::x86::soft {

/// How many bytes there are up to the opcode and the ModRM byte, if it has one, with the latter. An
/// answer above the number of `bytes` means that more are needed to say.
[[nodiscard]] std::size_t head_length(std::span<const std::byte> bytes, CodeSize size) noexcept;

/// How many bytes the processor fetches of what is no instruction: faults of fetching come before
/// #UD (SDM Vol. 3A "Priority Among Concurrent Events"), and so does #GP for more than 15 bytes.
/// @return the length of the undefined instruction at the start of `bytes`, as far as they tell it:
/// an answer above their number means that more are needed to say.
[[nodiscard]] std::size_t undefined_length(std::span<const std::byte> bytes,
                                           CodeSize size) noexcept;

}  // namespace vmm::x86::soft
