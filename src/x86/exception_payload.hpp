// SPDX-License-Identifier: Apache-2.0

/// @file
/// What an exception leaves in CR2, DR6 and DR7 before its handler is entered (SDM Vol. 3A
/// "Interrupt 14", "Interrupt 1"): for whoever delivers one that `Event::payload` tells of.

#pragma once

#include "x86/engine.hpp"

namespace vmm::x86 {

/// Which part of the state `apply_payload()` changes; `None` for an event without.
[[nodiscard]] StateGroup payload_group(const Event& event) noexcept;

/// @pre `payload_group(event)` of `cpu` is current
void apply_payload(CpuState& cpu, const Event& event) noexcept;

}  // namespace vmm::x86
