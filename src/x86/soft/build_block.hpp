// SPDX-License-Identifier: Apache-2.0

/// @file
/// From an instruction to an operation: operands, features, and who executes it.

#pragma once

#include "x86/soft/cpu.hpp"
#include "x86/soft/insn.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

/// Makes the operation of `insn`; `op.offset` is set.  What the guest's CPUID does not offer
/// raises #UD when it is executed.
void make_op(const Cpu& cpu, Insn& insn, const SelectContext& context, Op& op);

/// Whether the guest's CPUID has the instruction.
[[nodiscard]] bool is_offered(const Cpu& cpu, const Insn& insn) noexcept;

/// TZCNT and LZCNT are BSF and BSR with an ignored prefix where they do not exist.
void fall_back(const Cpu& cpu, Insn& insn) noexcept;

/// Whether decoding goes on behind the instruction: false for what always leaves.
[[nodiscard]] bool ends_block(const Insn& insn) noexcept;
/// Whether it is a near branch to a fixed distance.
[[nodiscard]] bool is_direct_branch(const Insn& insn) noexcept;

// --- Operations that are no instruction.

/// Of a dropped block: back to the run loop, at this instruction.
const Op* stale_op(Cpu& cpu, const Op* op);
/// Behind the last instruction: `op->immediate` is where the code goes on, from the block's start.
const Op* go_on_64(Cpu& cpu, const Op* op);
const Op* go_on(Cpu& cpu, const Op* op);
const Op* raise_ud(Cpu& cpu, const Op* op);
const Op* raise_gp(Cpu& cpu, const Op* op);
/// The engine does not know the instruction.
const Op* leave_unknown(Cpu& cpu, const Op* op);

}  // namespace vmm::x86::soft
