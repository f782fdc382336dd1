// SPDX-License-Identifier: Apache-2.0

/// @file
/// Two engines that run the same guest, compared at every exit.
///
/// The leader runs on the guest's memory and is the one whose exits and state the core sees; the
/// follower runs on a copy.  Both go from exit to exit: no access is answered inside an engine, so
/// every port and MMIO access is a point where both stand still, are answered alike, and are
/// compared.  What an engine asks for without leaving (MSRs, the TSC of an engine that asks for it)
/// is answered to the leader once, recorded, and replayed to the follower.
///
/// Limits.  One vCPU.  A TSC that an engine reads from the hardware (RDTSC on `kvm`) is another in
/// each engine.  Interrupts go in only where both engines stand: at an exit, or at the window that
/// both were asked for from there; a guest that waits for one in a loop without any access waits
/// for ever.  A repeated string access to a port may be cut into exits differently.

#pragma once

#include <functional>
#include <memory>
#include <string>

#include "vmm/result.hpp"
#include "x86/engine.hpp"

namespace vmm::x86::lockstep {

/// Makes the follower over its memory.
using MakeEngine =
    std::function<Result<std::unique_ptr<EngineVm>>(PhysicalMemory& pages, MemorySlots& slots)>;

/// A difference leaves as `EngineExit::Difference`, once; `EngineExit::report` is its text.
[[nodiscard]] Result<std::unique_ptr<EngineVm>> create_lockstep_vm(std::unique_ptr<EngineVm> leader,
                                                                   MemorySlots& memory,
                                                                   const MakeEngine& make_follower);

}  // namespace vmm::x86::lockstep
