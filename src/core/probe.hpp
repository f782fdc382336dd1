// SPDX-License-Identifier: Apache-2.0

/// @file
/// Looking at one engine.

#pragma once

#include "vmm/kvm.hpp"

namespace vmm::core {

/// Whether `engine` works here, found out by trying; quick enough for each `Kvm::open()`.
/// @pre `engine` is not `Auto`.
[[nodiscard]] EngineReport probe_engine(Engine engine);

}  // namespace vmm::core
