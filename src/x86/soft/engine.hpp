// SPDX-License-Identifier: Apache-2.0

/// @file
/// The software engine as the core sees it.

#pragma once

#include <memory>

#include "vmm/result.hpp"
#include "x86/engine.hpp"
#include "x86/soft/translation_mode.hpp"

namespace vmm::x86::soft {

/// An engine for a VM with this memory, which outlives it.  ENODEV-like errors say why the host
/// cannot run it (no executable memory).
[[nodiscard]] Result<std::unique_ptr<EngineVm>> create_soft_vm(PhysicalMemory& memory,
                                                               TranslationMode translation);

}  // namespace vmm::x86::soft
