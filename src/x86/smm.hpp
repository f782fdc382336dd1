// SPDX-License-Identifier: Apache-2.0

/// @file
/// System-management mode: what of a CPU is saved when it enters, and how it begins there.
///
/// The save area is AMD64's, which KVM has for its guests too: APM Vol. 2 "SMRAM State-Save Area",
/// 512 bytes at SMBASE + 0xfe00.  SDM Vol. 3C "System Management Mode" has another for Intel's.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "x86/cpu_state.hpp"

namespace vmm::x86 {

inline constexpr std::uint32_t smbase_at_reset = 0x30000;
/// Of the save area, from SMBASE on.
inline constexpr std::uint32_t smm_save_offset = 0xfe00;

using SmmSaveArea = std::array<std::byte, 512>;

[[nodiscard]] SmmSaveArea save_for_smm(const CpuState& state, std::uint32_t smbase) noexcept;

/// The state in which the handler begins, at SMBASE + 0x8000.
void enter_smm(CpuState& state, std::uint32_t smbase) noexcept;

/// What RSM loads: all but whether NMIs are blocked.  The caller checks whether a CPU can be in
/// that state.
///
/// @return false if the debug registers have reserved bits set.
[[nodiscard]] bool load_after_smm(CpuState& state,
                                  const SmmSaveArea& area,
                                  std::uint32_t& smbase) noexcept;

}  // namespace vmm::x86
