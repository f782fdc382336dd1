// SPDX-License-Identifier: Apache-2.0

/// @file
/// VMM_RUN with the guest's FPU registers in place.
///
/// The helper switches no FPU state: the guest runs on the registers of the thread that calls, and
/// the host's kernel saves and restores those with the thread as it always does.  So they are
/// loaded right before the system call and taken right behind it.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "x86/cpu_state.hpp"

namespace vmm::x86::hardware {

/// x87, SSE and AVX state as XSAVE has it, without AVX where the host has none.
struct alignas(64) FpuImage {
    std::array<std::byte, 832> bytes{};

    void store(const FpuRegisters& registers) noexcept;
    void load(FpuRegisters& registers) const noexcept;
};

/// Executes VMM_RUN.  0, or an errno negated.
int run_guest(int vcpu, FpuImage& fpu) noexcept;

}  // namespace vmm::x86::hardware
