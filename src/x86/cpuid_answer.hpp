// SPDX-License-Identifier: Apache-2.0

/// @file
/// What CPUID answers in a state: the VMM's leaves, with the bits that follow the guest's
/// registers.

#pragma once

#include <cstdint>

#include "x86/cpu_state.hpp"

namespace vmm::x86 {

/// For EAX = `function`, ECX = `index`.  Of the registers CR4, XCR0 and XSS count.
[[nodiscard]] CpuidEntry answer_cpuid(const CpuState& state,
                                      std::uint64_t apic_base,
                                      std::uint32_t function,
                                      std::uint32_t index) noexcept;

}  // namespace vmm::x86
