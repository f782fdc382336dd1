// SPDX-License-Identifier: Apache-2.0

/// @file
/// Intel VMX as an engine, through the helper module.
///
/// The helper enters the guest and hands every exit up; all else is here: what is intercepted, what
/// an exit means, which event goes in.  What an intercepted instruction does, the library's
/// emulator knows (`soft/emulator.hpp`).

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vmm/result.hpp"
#include "x86/engine.hpp"

namespace vmm::x86::vmx {

/// Whether the helper is there and speaks VMX; the error says what is missing, and `fix` what would
/// mend it.
[[nodiscard]] Result<void> check_helper(std::string& fix);

/// Of the library's offer (`x86::supported_cpuid`), what this host's CPU executes.
[[nodiscard]] std::vector<CpuidEntry> supported_cpuid(std::uint32_t tsc_khz);

/// An engine for a VM with this memory, which outlives it.
[[nodiscard]] Result<std::unique_ptr<EngineVm>> create_vmx_vm(PhysicalMemory& pages,
                                                              MemorySlots& slots);

}  // namespace vmm::x86::vmx
