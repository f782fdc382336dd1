// SPDX-License-Identifier: Apache-2.0

/// @file
/// How a handler ends.
///
/// In optimised builds `next()` is a jump to the following handler, so that a block runs without
/// returning to a loop; in other builds it returns, and the run loop calls.  Either way a handler
/// writes `return next(cpu, op);`.

#pragma once

#include "x86/soft/cpu.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) &&    \
    !defined(__clang_analyzer__)
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
#if defined(__clang__)
        [[clang::musttail]] return op->handler(cpu, op);
#else
        return op->handler(cpu, op);
#endif
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

}  // namespace vmm::x86::soft
