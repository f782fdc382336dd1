// SPDX-License-Identifier: Apache-2.0

/// @file
/// Loads and stores of MOV where the TLB does not have the page: as `read_slow` and `write_slow`,
/// but page faults and MMIO leave without an exception, and MMIO is completed without executing the
/// instruction again.  Guests reach devices by MOV more than by anything else.

#pragma once

#include <cstddef>
#include <cstdint>

#include "x86/soft/cpu.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

enum class Moved : std::uint8_t {
    Done,
    Repeats,  ///< Leave, with RIP at the instruction: the run loop or the caller is wanted.
    Leaves,   ///< Done; leave behind the instruction, for the caller.
};

/// Loads `size` bytes and has `take` put them where `slot` says.  Where `cpu.exit` asks for them
/// `complete_load()` does the rest.  Throws what `read_slow` throws, but #PF.
[[nodiscard]] Moved load_moved(Cpu& cpu,
                               const Op& op,
                               std::uint64_t linear,
                               std::size_t size,
                               std::uint8_t slot,
                               TakeLoaded take);

/// Stores.  Throws what `write_slow` throws, but #PF.
[[nodiscard]] Moved store_moved(Cpu& cpu,
                                const Op& op,
                                std::uint64_t linear,
                                const void* from,
                                std::size_t size);

/// The caller has answered what `load_moved` asked for.
void complete_load(Cpu& cpu);

}  // namespace vmm::x86::soft
