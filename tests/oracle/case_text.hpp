// SPDX-License-Identifier: Apache-2.0

/// @file
/// Cases as text: what the oracle prints of a difference, and what a regression test holds.
///
///     code=48d1e0 at=0x100 rax=0x8000000000000000 flags=0x202 ymm3=00… mem:0x20001000=0102…
///
/// What is not named has its plain value: registers 0, RSP in the middle of the data pages, flags
/// 202h, initial FPU state, memory 0, INT3 round the code.

#pragma once

#include <string>

#include "oracle/case.hpp"

namespace vmm::oracle {

/// A case with everything plain but its code, 64-bit code.
[[nodiscard]] Case plain_case();
/// Memory before a case, but for its patches.
[[nodiscard]] Arena plain_image();

/// Names what is not plain.
[[nodiscard]] std::string to_text(const Case& each, const Arena& image);
/// Throws std::invalid_argument that names what it does not understand.
void from_text(const std::string& text, Case& each, Arena& image);

}  // namespace vmm::oracle
