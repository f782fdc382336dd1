// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guests made at random, to be run on two engines: descriptor tables, page tables, an interrupt
/// table, and a few instructions that use them.

#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "vmm/x86/state.hpp"

namespace vmm::oracle {

using Random = std::mt19937_64;

/// Where things lie in the guest's 512 KiB, all mapped one to one.
struct Layout {
    static constexpr std::size_t memory = 0x8'0000;
    static constexpr std::uint32_t code = 0x1000;
    static constexpr std::uint32_t gdt = 0x2000;
    static constexpr std::uint32_t idt = 0x3000;
    static constexpr std::uint32_t ldt = 0x4000;
    static constexpr std::uint32_t tss = 0x5000;
    static constexpr std::uint32_t other_tss = 0x6000;
    static constexpr std::uint32_t pointers = 0x7000;  ///< Operands of far transfers and of LGDT.
    static constexpr std::uint32_t handlers = 0x8000;  ///< `hlt; hlt` for each vector.
    static constexpr std::uint32_t tables = 0x1'0000;  ///< Paging structures.
    static constexpr std::uint32_t data = 0x2'0000;    ///< Behind `window`.
    static constexpr std::uint32_t stacks = 0x3'0000;
    static constexpr std::uint32_t window = 0x4000'0000;  ///< Linear: pages of all permissions.
    static constexpr unsigned window_pages = 16;
};

enum class Mode : std::uint8_t { Real, Protected, Pae, Legacy, Long, Compatibility };

/// One piece of code, which stands for itself: guests are reduced by leaving pieces out.
struct Piece {
    std::string name;
    std::vector<std::uint8_t> bytes;
};

struct Guest {
    Mode mode{};
    std::vector<std::byte> memory;
    x86::Sregs sregs{};
    x86::Regs regs{};
    x86::DebugRegs debug{};
    std::vector<Piece> pieces;

    /// Lays the pieces, and a HLT behind them, into `memory`.
    void place_code();
};

/// What the engines offer the guest, and what the judge is to be trusted with.
struct Offer {
    bool nx{};
    bool smep{};
    bool smap{};
    bool umip{};
    unsigned modes{0x3f};    ///< Bit n: `Mode` n.
    bool user{true};         ///< Code at privilege level 3 to begin with.
    bool breakpoints{true};  ///< DR7.
    bool single_step{true};  ///< TF.
    bool limits{true};       ///< Segment limits, accessed bits.
};

[[nodiscard]] Guest generate(std::uint64_t seed, const Offer& offer);

}  // namespace vmm::oracle
