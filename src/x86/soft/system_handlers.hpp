// SPDX-License-Identifier: Apache-2.0

/// @file
/// What the files of system-instruction handlers share.

#pragma once

#include "x86/soft/dispatch.hpp"
#include "x86/soft/fault.hpp"
#include "x86/soft/insn.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

// Each answers for its file, with null for what is not there.
[[nodiscard]] Handler select_segment_instruction(const Insn& insn,
                                                 const SelectContext& context,
                                                 Op& op);
[[nodiscard]] Handler select_descriptor_instruction(const Insn& insn,
                                                    const SelectContext& context,
                                                    Op& op);
[[nodiscard]] Handler select_transfer_instruction(const Insn& insn,
                                                  const SelectContext& context,
                                                  Op& op);
[[nodiscard]] Handler select_control_instruction(const Insn& insn,
                                                 const SelectContext& context,
                                                 Op& op);
[[nodiscard]] Handler select_processor_instruction(const Insn& insn,
                                                   const SelectContext& context,
                                                   Op& op);

/// #UD.
const Op* undefined_instruction(Cpu& cpu, const Op* op);

/// #GP(0) unless CPL is 0.
inline void require_supervisor(const Cpu& cpu)
{
    if (cpu.cpl != 0U) {
        raise(Vector::GP, 0);
    }
}

/// Writes a register as instructions of `size` bytes do: 32 bits clear the upper half.
inline void write_register(Cpu& cpu, std::uint8_t slot, std::uint64_t value, unsigned size) noexcept
{
    if (size == 2U) {
        gpr_at<std::uint16_t>(cpu, slot) = static_cast<std::uint16_t>(value);
    } else if (size == 4U) {
        gpr_at<std::uint64_t>(cpu, slot) = value & 0xffff'ffffU;
    } else {
        gpr_at<std::uint64_t>(cpu, slot) = value;
    }
}

template <typename T>
[[nodiscard]] inline T load_operand(Cpu& cpu, const Op& op)
{
    return load<T>(cpu, static_cast<SegmentIndex>(op.segment),
                   linear_address(cpu, op, sizeof(T), Access::Read));
}

template <typename T>
inline void store_operand(Cpu& cpu, const Op& op, T value)
{
    store<T>(cpu, static_cast<SegmentIndex>(op.segment),
             linear_address(cpu, op, sizeof(T), Access::Write), value);
}

/// The r/m16 operand: a selector, a machine status word.
template <bool Memory>
[[nodiscard]] inline std::uint16_t load_rm16(Cpu& cpu, const Op& op)
{
    if constexpr (Memory) {
        return load_operand<std::uint16_t>(cpu, op);
    } else {
        return gpr_at<std::uint16_t>(cpu, op.rm);
    }
}

}  // namespace vmm::x86::soft
