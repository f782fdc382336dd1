// SPDX-License-Identifier: Apache-2.0

/// @file
/// Two CPU states side by side.

#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "x86/cpu_state.hpp"

namespace vmm::x86::lockstep {

/// One line for each field that differs in a way software could see; empty if none does.  Not
/// compared: the granularity, the attributes of unusable segments and the types of
/// segments in real mode, which engines keep differently, and which of STI and MOV SS cast an
/// interrupt shadow, which SVM does not tell.
[[nodiscard]] std::string differences(const CpuState& leader, const CpuState& follower);

/// General and control registers and segments, as in a crash dump.
[[nodiscard]] std::string describe(const CpuState& state);

/// Up to `most` instructions of `code`, which lies at `state`'s RIP or at `rip`.
[[nodiscard]] std::string disassemble(const CpuState& state,
                                      std::uint64_t rip,
                                      std::span<const std::uint8_t> code,
                                      unsigned most);

}  // namespace vmm::x86::lockstep
