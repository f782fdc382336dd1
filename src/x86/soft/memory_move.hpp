// SPDX-License-Identifier: Apache-2.0

/// @file
/// Loads and stores of MOV where the TLB does not have the page: as `read_slow` and `write_slow`,
/// but MMIO leaves to the caller without an exception, and is completed without executing the
/// instruction again.  Guests reach devices by MOV more than by anything else.

#pragma once

#include <cstddef>
#include <cstdint>

#include "x86/soft/cpu.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

/// Loads `size` bytes and has `take` put them where `slot` says.  False: `cpu.exit` asks for them;
/// `complete_load()` does the rest.  Throws what `read_slow` throws.
[[nodiscard]] bool load_moved(Cpu& cpu,
                              const Op& op,
                              std::uint64_t linear,
                              std::size_t size,
                              std::uint8_t slot,
                              TakeLoaded take);

/// Stores.  False: `cpu.exit` has them; the instruction is complete.  Throws what `write_slow`
/// throws.
[[nodiscard]] bool store_moved(
    Cpu& cpu, const Op& op, std::uint64_t linear, const void* from, std::size_t size);

/// The caller has answered what `load_moved` asked for.
void complete_load(Cpu& cpu);

}  // namespace vmm::x86::soft
