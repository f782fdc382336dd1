// SPDX-License-Identifier: Apache-2.0

/// @file
/// The way into a case and out of it again, on the host CPU: machine code at fixed addresses, and
/// the block of memory it works on.  Only the child process has them.

#pragma once

#include <array>
#include <cstdint>

#include "oracle/case.hpp"

namespace vmm::oracle {

inline constexpr std::uint64_t context_base = 0x3001'0000;
inline constexpr std::uint64_t signal_stack_base = 0x3002'0000;
inline constexpr std::uint64_t signal_stack_bytes = 0x1'0000;

/// An XSAVE area in standard form with x87, SSE and AVX state.  SDM Vol. 1 "XSAVE Area".
struct alignas(64) XsaveArea {
    std::array<std::uint8_t, 512> legacy{};
    std::uint64_t xstate_bv{};
    std::array<std::uint64_t, 7> header{};
    std::array<std::array<std::uint8_t, 16>, 16> ymm_high{};
};

/// What IRETQ pops.
struct ReturnFrame {
    std::uint64_t rip{};
    std::uint64_t cs{};
    std::uint64_t rflags{};
    std::uint64_t rsp{};
    std::uint64_t ss{};
};

struct Context {
    XsaveArea in_fpu{};
    XsaveArea out_fpu{};
    State in{};  ///< `gpr`, `fs_base`, `gs_base` and the data selectors are loaded.
    State out{};
    ReturnFrame frame{};
    std::uint64_t host_rsp{};
    std::uint64_t host_fs{};
    std::uint64_t host_gs{};
    std::uint64_t in_case{};
    std::uint64_t case_number{};
    std::uint64_t tick_case{};  ///< The case in which the last clock tick fell.
    std::uint64_t signal{};
    std::uint64_t signal_context{};  ///< The ucontext_t of `signal`.
    std::array<std::uint64_t, 16> scratch{};
};

/// Entry points of the stub.
struct Stub {
    /// Runs the case in the context.  0: it reached an exit, and `out` and `out_fpu` are filled;
    /// 1: a signal ended it, and `signal` and `signal_context` are.
    std::uint64_t (*run_case)(){};
    std::int64_t (*system_call)(std::int64_t number,
                                std::uint64_t a,
                                std::uint64_t b,
                                std::uint64_t c,
                                std::uint64_t d){};
    std::uint64_t on_signal{};
    std::uint64_t restorer{};
    /// Where the two SYSCALL instructions end: the only ones that the kernel may obey.
    std::array<std::uint64_t, 2> after_syscall{};
};

/// Maps and fills the pages.  Nothing, if the addresses are taken.
[[nodiscard]] bool map_stub(Stub& stub);

}  // namespace vmm::oracle
