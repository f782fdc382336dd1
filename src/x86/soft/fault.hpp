// SPDX-License-Identifier: Apache-2.0

/// @file
/// How an instruction of the software engine stops half-way.
///
/// Both types are thrown from wherever the instruction stands and caught by the run loop.
/// An instruction commits nothing (registers, flags, RIP) before its last access that may throw;
/// memory it has already written stays written, as on a real CPU.  They never leave the engine.

#pragma once

#include <cstdint>

#include "x86/cpu_state.hpp"

namespace vmm::x86::soft {

/// An exception of the guest.  RIP is that of the instruction: the run loop restores it.
struct Fault {
    Vector vector{};
    bool has_error_code{};
    std::uint32_t error_code{};
    std::uint64_t payload{};  ///< #PF: linear address.  #DB: DR6 bits.
};

/// The instruction needs an MMIO access answered by the caller; `Cpu::exit` describes it.  It is
/// executed again from its start once the answer is there (see `MmioReplay`).
struct LeaveForMmio {};

[[noreturn]] inline void raise(Vector vector)
{
    throw Fault{vector, false, 0, 0};
}
[[noreturn]] inline void raise(Vector vector, std::uint32_t error_code)
{
    throw Fault{vector, true, error_code, 0};
}
[[noreturn]] inline void raise_page_fault(std::uint32_t error_code, std::uint64_t linear)
{
    throw Fault{Vector::PF, true, error_code, linear};
}

/// Page-fault error code bits.  SDM Vol. 3A "Page-Fault Exceptions".
namespace page_fault {
inline constexpr std::uint32_t present = 1U << 0U;
inline constexpr std::uint32_t write = 1U << 1U;
inline constexpr std::uint32_t user = 1U << 2U;
inline constexpr std::uint32_t reserved = 1U << 3U;
inline constexpr std::uint32_t fetch = 1U << 4U;
}  // namespace page_fault

}  // namespace vmm::x86::soft
