// SPDX-License-Identifier: Apache-2.0

/// @file
/// What of an instruction's result the host can judge: the tables of what the manuals leave
/// undefined, and of what the host's kernel or its CPUID decides instead of the CPU.

#pragma once

#include <cstdint>
#include <string>

#include "oracle/case.hpp"
#include "oracle/encoding.hpp"

namespace vmm::oracle {

struct Verdict {
    /// Why the host cannot judge it at all; null: it can.
    const char* not_judged{};
    std::uint64_t undefined_flags{};
    /// Bit by register: its value is undefined.
    std::uint32_t undefined_registers{};
    /// Bytes at the end of an eight-byte word of the stack that may or may not be written.
    bool partial_push{};
};

[[nodiscard]] Verdict judge(const Case& each);

/// What differs of the engine's outcome, in words; empty: nothing.
[[nodiscard]] std::string difference(const Case& each,
                                     const Outcome& native,
                                     const Outcome& engine,
                                     const Verdict& verdict);

}  // namespace vmm::oracle
