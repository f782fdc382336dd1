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
    /// A segment register pushed as 32 bits: the upper half may be written, or not.
    bool partial_push{};
    /// Accesses in no defined order: the address of a page fault may be that many bytes away.
    std::uint64_t address_slack{};
    /// Several accesses in no defined order: any of their faults will do.
    bool any_fault{};
    /// With nothing to store, the address may be looked at, or not.
    bool may_fault{};
    /// Several stores: of those before one that faults, memory may show some.
    bool partial_stores{};
    /// POPA: of registers before one that faults, some may be loaded.
    bool partial_loads{};
    /// FXRSTOR, XRSTOR: of the state before the fault, some may be loaded.
    bool partial_fpu{};
    /// A string instruction that is repeated.
    bool repeats{};
    /// Repeated with 32-bit addresses in 64-bit code: RCX, RSI and RDI of one that faults, or
    /// has nothing to do, may have been extended.
    bool narrow_counters{};
    /// MMX: whether TOP and tags change if the instruction faults is not said.
    bool mmx_transition{};
    /// Dot products: an exception in the first step leaves those of the second undetected.
    bool several_steps{};
    /// Whether MXCSR has the flags of a result that then cannot be stored is not said.
    bool mxcsr_before_store{};
    /// The host is AMD's.
    bool is_amd{};
    /// On AMD's CPUs a gather that faults leaves elements of the mask as they were.
    bool gathers{};
};

/// Whether the host's CPU is AMD's.
[[nodiscard]] bool is_amd();

/// Of the case's first instruction; of one of several, if it is the one that `native` ended with.
[[nodiscard]] Verdict judge(const Case& each);
[[nodiscard]] Verdict judge(const Case& each, const Outcome& native);

/// What differs of the engine's outcome, in words; empty: nothing.
[[nodiscard]] std::string difference(const Case& each,
                                     const Outcome& native,
                                     const Outcome& engine,
                                     const Verdict& verdict);

}  // namespace vmm::oracle
