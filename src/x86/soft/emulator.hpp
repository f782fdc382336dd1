// SPDX-License-Identifier: Apache-2.0

/// @file
/// The library's instruction emulator: the software engine's interpreter, an instruction at a time.
///
/// An engine on hardware has it do what hardware leaves to software: accesses to MMIO, string port
/// I/O, task switches, control registers.  It works on the canonical state, so what an instruction
/// does is stated once in the library.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "vmm/result.hpp"
#include "x86/engine.hpp"

namespace vmm::x86::soft {

/// One vCPU's.  As an engine's vCPU it also runs guest code for as long as it is asked to.
class Emulator : public EngineVcpu {
public:
    /// Delivers what waits to be delivered (`inject`, a debug trap), or else executes the
    /// instruction at RIP; faults are delivered.  Null: done, with all state as it is then.
    /// Otherwise an exit: of an access that waits for the caller, after which `complete()` goes on.
    /// Call `state_changed()` before where the state was changed.
    virtual const EngineExit* step() noexcept = 0;

    /// What `step_move()` has done.
    struct MoveStep {
        bool is_move{};  ///< Else nothing: `step()` is to be called.
        bool faulted{};  ///< The fault is delivered: segments have changed too.
        bool repeats{};  ///< `complete()` may need, and change, all of the state.
        const EngineExit* exit{};
    };
    /// As `step()`, if the instruction is a MOV between general registers and memory (or MOVZX,
    /// MOVSX) and nothing is to be delivered before it.  Of the state it needs registers and
    /// segments, and changes registers.
    virtual MoveStep step_move() noexcept = 0;

    /// Completes the access that the last exit left waiting, if one did, and nothing else.  Null:
    /// done; otherwise the instruction's next exit.
    virtual const EngineExit* complete() noexcept = 0;

    /// Code at a linear address as the paging of now has it, without side effects; control
    /// registers and EFER (and under PAE paging PDPTEs) must be as the guest has them.  False: it
    /// is not in one page of a slot.
    virtual bool peek(std::uint64_t linear, std::span<std::byte> code) noexcept = 0;
};

/// What the vCPUs of one VM share.
class EmulatorVm : public EngineVm {
public:
    [[nodiscard]] virtual std::unique_ptr<Emulator> create_emulator(VcpuHost& host) = 0;
};

/// An emulator for a VM with this memory, which outlives it; errors as `create_soft_vm()`.
[[nodiscard]] Result<std::unique_ptr<EmulatorVm>> create_emulator_vm(PhysicalMemory& memory);

}  // namespace vmm::x86::soft
