// SPDX-License-Identifier: Apache-2.0

/// @file
/// The part of CPUID that differs from vCPU to vCPU.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmm/export.hpp"
#include "vmm/x86/state.hpp"

namespace vmm::x86 {

/// `entries` (as `Kvm::supported_cpuid()` gives them) for vCPU `id` of `count`: one package of
/// `count` cores, one thread each; APIC id = `id`.
///
/// SDM Vol. 3A "Hierarchical Mapping of Shared Resources"; APM Vol. 3 "Multiple Core Calculation".
[[nodiscard]] VMM_API std::vector<CpuidEntry> cpuid_for_vcpu(std::span<const CpuidEntry> entries,
                                                             std::uint32_t id,
                                                             std::uint32_t count);

}  // namespace vmm::x86
