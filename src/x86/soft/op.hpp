// SPDX-License-Identifier: Apache-2.0

/// @file
/// One instruction made ready to execute, and the three places that know how.

#pragma once

#include <cstddef>
#include <cstdint>

#include "x86/soft/insn.hpp"

namespace vmm::x86::soft {

struct Cpu;
struct Op;

/// Executes `*op` and returns the next operation to execute in this block, or null to go back to
/// the run loop, with `cpu.rip` set to where the guest continues.  May throw `Fault` or
/// `LeaveForMmio` (see fault.hpp).  Ends with `return next(cpu, op)` or `return leave(cpu, op)`
/// (dispatch.hpp).
using Handler = const Op* (*)(Cpu& cpu, const Op* op);

/// How an operand's effective address becomes linear.
enum class AddressKind : std::uint8_t {
    Flat64,     ///< 64-bit code, no FS/GS: linear is effective.
    Based64,    ///< 64-bit code with FS or GS: base added.
    Segmented,  ///< 16- and 32-bit code: base, limit and type apply.
    Flat32,     ///< 32-bit code, a segment that has all of 4 GiB: linear is effective.
};

struct Op {
    Handler handler{};
    Handler interpret{};  ///< Executes the instruction: `handler`, unless that is something else.
    std::uint64_t immediate{};
    const void* aux{};  ///< Belongs to the handler: a native thunk, a chained block …
    std::int32_t displacement{};
    std::uint16_t offset{};  ///< Of this instruction from the start of its block.
    std::uint8_t length{};
    /// Registers as byte offsets into `CpuState::gpr`, so that AH…BH are `4*8+…`-free: slot*8, or
    /// slot*8+1 for the high byte registers.
    std::uint8_t reg{};
    std::uint8_t rm{};
    std::uint8_t base{};  ///< Byte offset too; `zero_slot` where there is none.
    std::uint8_t index{};
    std::uint8_t scale{};
    std::uint8_t segment{};  ///< `SegmentIndex` of the memory operand.
    AddressKind address_kind{};
    std::uint8_t operand_size{};
    std::uint8_t address_size{};
    std::uint8_t memory_size{};
    std::uint8_t vvvv{};  ///< Register number.
    bool rep{};
    bool repne{};
    bool lock{};
    std::uint8_t extra{};  ///< Belongs to the handler.
    /// A MOV between general registers and memory: of all other state it needs no more than the
    /// segments, and changes none.
    bool plain_move{};

    [[nodiscard]] std::uint16_t next_offset() const noexcept
    {
        return static_cast<std::uint16_t>(offset + length);
    }
};

inline constexpr std::uint8_t zero_slot = 16 * 8;       ///< Always 0.
inline constexpr std::uint8_t block_rip_slot = 17 * 8;  ///< RIP of the block's first byte.
inline constexpr std::uint8_t carry_slot = 18 * 8;      ///< Always 2 to the 32.

/// What selecting a handler may depend on besides the instruction.  All that is here is part of
/// the key of a block.
struct SelectContext {
    CodeSize code_size{};
    bool protected_mode{};  ///< CR0.PE and not virtual-8086.
    bool virtual_8086{};
    bool flat{};  ///< 32-bit code whose CS, DS, ES and SS have all of 4 GiB (`is_flat`).
};

/// Each knows a part of the instruction set: returns null for what is not its own.  The block
/// builder has filled the operand fields of `op`; they add `immediate`, `aux`, `extra` as needed.
/// Features (Insn::isa) have been checked against the guest's CPUID.
[[nodiscard]] Handler select_integer(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_system(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_native(const Insn& insn, const SelectContext& context, Op& op);

}  // namespace vmm::x86::soft
