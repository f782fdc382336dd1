// SPDX-License-Identifier: Apache-2.0

/// @file
/// The vector instructions that may be executed natively, and what their operands are.

#pragma once

#include <cstdint>

#include "x86/soft/insn.hpp"

namespace vmm::x86::soft {

/// Operands in the manual's letters (SDM Vol. 2D "Codes for Addressing Method"), destination
/// first: V/W vector register, and vector register or memory; P/Q the same for MMX; G/E general.
enum class VectorForm : std::uint8_t {
    VW,
    WV,
    VE,
    EV,
    GW,
    PQ,
    QP,
    PE,
    EP,
    GQ,
    VQ,   ///< Vector from MMX or memory.
    PW,   ///< MMX from vector or memory.
    ShV,  ///< Shift by immediate, vector (groups 12-14).
    ShP,  ///< The same for MMX.
};

namespace vector_flag {
inline constexpr std::uint16_t fp = 1U << 0U;         ///< Obeys and changes MXCSR.
inline constexpr std::uint16_t vvvv = 1U << 1U;       ///< VEX form has a third operand.
inline constexpr std::uint16_t vvvv_reg = 1U << 2U;   ///< The same, if rm is a register.
inline constexpr std::uint16_t imm = 1U << 3U;        ///< 8-bit immediate.
inline constexpr std::uint16_t unaligned = 1U << 4U;  ///< Legacy 16-byte memory may be misaligned.
inline constexpr std::uint16_t aligned = 1U << 5U;    ///< VEX memory must be aligned, too.
inline constexpr std::uint16_t flags = 1U << 6U;      ///< Writes EFLAGS and no register.
inline constexpr std::uint16_t xmm0 = 1U << 7U;       ///< XMM0 is an implicit source.
inline constexpr std::uint16_t is4 = 1U << 8U;        ///< Fourth operand in imm[7:4].
inline constexpr std::uint16_t legacy = 1U << 9U;     ///< Has no VEX form.
inline constexpr std::uint16_t vex = 1U << 10U;       ///< Has only VEX forms.
inline constexpr std::uint16_t merges = 1U << 11U;    ///< VEX form reads its destination.
inline constexpr std::uint16_t string = 1U << 12U;    ///< PCMPxSTRx.
inline constexpr std::uint16_t wide = 1U << 13U;      ///< REX.W counts, though no GPR is explicit.
}  // namespace vector_flag

/// One line of the allow list: opcodes `first` … `last` of a map with one of the prefixes.
struct VectorLine {
    std::uint8_t first;
    std::uint8_t last;
    std::uint8_t prefixes;  ///< Bit `pp`.
    VectorForm form;
    std::uint16_t flags;
};

/// The line for `insn`, or null if it is not on the list.
[[nodiscard]] const VectorLine* find_vector_line(const Insn& insn) noexcept;

/// The low address bits that have to be 0 when `insn` accesses memory, or 0 if any address will do.
[[nodiscard]] std::uint8_t alignment_of(const Insn& insn, const VectorLine& line) noexcept;

}  // namespace vmm::x86::soft
