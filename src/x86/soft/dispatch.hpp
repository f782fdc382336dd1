// SPDX-License-Identifier: Apache-2.0

/// @file
/// How a handler ends.
///
/// In GCC's optimised builds `next()` is a jump to the following handler, so that code runs without
/// returning to a loop; in other builds it returns, and the run loop calls.  Either way a handler
/// writes `return next(cpu, op);`.
///
/// Nothing guarantees that the compiler makes a jump of it (a local whose address escapes prevents
/// it).  Where it does not, the host's stack grows until the next branch sees it and returns to the
/// run loop: slow, but safe.

#pragma once

#include "x86/soft/cpu.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&    \
    !defined(__clang__)
inline constexpr bool threaded_dispatch = true;
#else
inline constexpr bool threaded_dispatch = false;
#endif

/// Continues with the operation after `op`.
[[gnu::always_inline]] inline const Op* next(Cpu& cpu, const Op* op)
{
    if constexpr (threaded_dispatch) {
        ++op;
        cpu.current = op;
        return op->handler(cpu, op);
    } else {
        return op + 1;
    }
}

/// Ends the block behind `op`: the guest continues at the instruction after it.
[[gnu::always_inline]] inline const Op* leave(Cpu& cpu, const Op* op)
{
    cpu.rip = cpu.next_rip(*op);
    return nullptr;
}

/// Ends the block: the guest continues at `rip`.
[[gnu::always_inline]] inline const Op* leave_to(Cpu& cpu, std::uint64_t rip)
{
    cpu.rip = rip;
    return nullptr;
}

/// Ends the block at the instruction itself: to be executed again, or completed.
inline const Op* leave_to_same(Cpu& cpu, const Op* op)
{
    return leave_to(cpu, cpu.ip_mask(cpu.block_rip() + op->offset));
}

// --- From block to block without the run loop.  Everything here is for branches that change
// nothing but RIP: what changes the mode, the mapping, IF or TF leaves.

/// Whether nobody wants the run loop's attention, and the host's stack is not in use.
[[nodiscard, gnu::always_inline]] inline bool may_continue(const Cpu& cpu) noexcept
{
    if constexpr (threaded_dispatch) {
        bool deep = false;
        asm("cmpq %[floor], %%rsp" : "=@ccb"(deep) : [floor] "m"(cpu.chain.floor));
        if (deep) [[unlikely]] {
            return false;
        }
    }
    return cpu.requests.load(std::memory_order_relaxed) == 0;
}

[[gnu::always_inline]] inline const Op* enter_block(Cpu& cpu, const Op* first, std::uint64_t rip)
{
    cpu.gpr[17] = rip;
    if constexpr (threaded_dispatch) {
        cpu.current = first;
        return first->handler(cpu, first);
    } else {
        return first;
    }
}

[[nodiscard, gnu::always_inline]] inline JumpEntry& jump_entry(Cpu& cpu, std::uint64_t rip) noexcept
{
    return cpu.chain.table[(rip ^ (rip >> 12U)) % Chain::table_size];
}

/// Whether code at `rip` has been executed in this mode since the mapping changed last: it may be
/// jumped to without a check.
[[nodiscard, gnu::always_inline]] inline bool is_known_target(const Cpu& cpu,
                                                              const JumpEntry& entry,
                                                              std::uint64_t rip) noexcept
{
    return entry.rip == rip && entry.generation == cpu.chain.generation;
}

/// Ends the block at a branch to `rip`, which has been checked.
[[gnu::always_inline]] inline const Op* follow(Cpu& cpu, std::uint64_t rip)
{
    const JumpEntry& entry = jump_entry(cpu, rip);
    if (is_known_target(cpu, entry, rip) && may_continue(cpu)) [[likely]] {
        return enter_block(cpu, entry.first, rip);
    }
    return leave_to(cpu, rip);
}

/// Ends the block behind an instruction that has changed RIP and more: mode, privilege, flags.
const Op* go_on_in_new_mode(Cpu& cpu);

/// `Op::extra` of a direct branch: its target is in the same page, so that `Op::aux` may lead there
/// (to the block's first operation) as long as both blocks live.
inline constexpr std::uint8_t linkable = 1;

/// The part of `branch` for targets that are not linked yet, or never are.
const Op* branch_unlinked(Cpu& cpu, const Op* op, std::uint64_t rip);

/// Ends the block at a direct branch to `rip`.
[[gnu::always_inline]] inline const Op* branch(Cpu& cpu, const Op* op, std::uint64_t rip)
{
    const auto* const target = static_cast<const Op*>(op->aux);
    if (target != nullptr && may_continue(cpu)) [[likely]] {
        return enter_block(cpu, target, rip);
    }
    return branch_unlinked(cpu, op, rip);
}

}  // namespace vmm::x86::soft
