// SPDX-License-Identifier: Apache-2.0

/// @file
/// Instructions on segment registers: MOV, PUSH, POP, LDS and its kin.

#include "x86/soft/descriptor.hpp"
#include "x86/soft/stack.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/system_handlers.hpp"

namespace vmm::x86::soft {

namespace {

// `Op::extra`: the segment register.

template <bool Memory>
const Op* mov_from_segment(Cpu& cpu, const Op* op)
{
    const std::uint16_t selector = cpu.seg[op->extra].selector;
    if constexpr (Memory) {
        store_operand<std::uint16_t>(cpu, *op, selector);
    } else {
        write_register(cpu, op->rm, selector, op->operand_size);
    }
    return next(cpu, op);
}

/// Ends an instruction that has loaded DS, ES, FS or GS: what follows may be decoded for flat
/// segments, or for others.
const Op* next_in_segments(Cpu& cpu, const Op* op, bool was_flat)
{
    return is_flat(cpu) == was_flat ? next(cpu, op) : leave(cpu, op);
}

template <bool Memory>
const Op* mov_to_segment(Cpu& cpu, const Op* op)
{
    const bool was_flat = is_flat(cpu);
    load_segment(cpu, static_cast<SegmentIndex>(op->extra), load_rm16<Memory>(cpu, *op));
    return next_in_segments(cpu, op, was_flat);
}

/// SDM Vol. 2B "MOV": interrupts are held back until after the next instruction.
template <bool Memory>
const Op* mov_to_ss(Cpu& cpu, const Op* op)
{
    load_segment(cpu, Ss, load_rm16<Memory>(cpu, *op));
    cpu.mov_ss_shadow = true;
    return leave(cpu, op);
}

void set_stack_pointer(Cpu& cpu, std::uint64_t pointer, std::uint64_t mask) noexcept
{
    // A 16-bit stack leaves the upper bits; a 32-bit one clears them.
    cpu.gpr[Rsp] = mask == 0xffffU ? (cpu.gpr[Rsp] & ~mask) | (pointer & mask) : pointer & mask;
}

/// SDM Vol. 2B "PUSH": with a 32-bit operand the upper half of the slot is not written.
const Op* push_segment(Cpu& cpu, const Op* op)
{
    const std::uint64_t mask = stack_mask(cpu);
    const std::uint64_t pointer = cpu.gpr[Rsp] - op->operand_size;
    const std::uint16_t selector = cpu.seg[op->extra].selector;
    const std::size_t written = op->operand_size == 8U ? 8U : 2U;
    const std::uint64_t linear =
        cpu.code_64() ? pointer
                      : segmented_address(cpu, Ss, pointer & mask, written, Access::Write);
    if (written == 8U) {
        store<std::uint64_t>(cpu, Ss, linear, selector);
    } else {
        store<std::uint16_t>(cpu, Ss, linear, selector);
    }
    set_stack_pointer(cpu, pointer, mask);
    return next(cpu, op);
}

void do_pop_segment(Cpu& cpu, const Op& op)
{
    const std::uint64_t mask = stack_mask(cpu);
    const std::uint64_t pointer = cpu.gpr[Rsp];
    const std::uint64_t linear =
        cpu.code_64() ? pointer : segmented_address(cpu, Ss, pointer & mask, 2, Access::Read);
    const auto selector = load<std::uint16_t>(cpu, Ss, linear);
    load_segment(cpu, static_cast<SegmentIndex>(op.extra), selector);
    // As wide as the stack was that it was popped from.
    set_stack_pointer(cpu, pointer + op.operand_size, mask);
}

const Op* pop_segment(Cpu& cpu, const Op* op)
{
    const bool was_flat = is_flat(cpu);
    do_pop_segment(cpu, *op);
    return next_in_segments(cpu, op, was_flat);
}

const Op* pop_ss(Cpu& cpu, const Op* op)
{
    do_pop_segment(cpu, *op);
    cpu.mov_ss_shadow = true;
    return leave(cpu, op);
}

/// LDS, LES, LFS, LGS, LSS.
void do_load_far_pointer(Cpu& cpu, const Op& op)
{
    const auto segment = static_cast<SegmentIndex>(op.segment);
    const unsigned size = op.operand_size;
    const std::uint64_t linear = linear_address(cpu, op, size + 2U, Access::Read);
    std::uint64_t offset = 0;
    if (size == 8U) {
        offset = load<std::uint64_t>(cpu, segment, linear);
    } else if (size == 4U) {
        offset = load<std::uint32_t>(cpu, segment, linear);
    } else {
        offset = load<std::uint16_t>(cpu, segment, linear);
    }
    const auto selector = load<std::uint16_t>(cpu, segment, linear + size);
    load_segment(cpu, static_cast<SegmentIndex>(op.extra), selector);
    write_register(cpu, op.reg, offset, size);
}

const Op* load_far_pointer(Cpu& cpu, const Op* op)
{
    const bool was_flat = is_flat(cpu);
    do_load_far_pointer(cpu, *op);
    return next_in_segments(cpu, op, was_flat);
}

Handler select_move(const Insn& insn, Op& op)
{
    const bool memory = insn.mod != 3U;
    // REX.R plays no part: six registers exist.
    op.extra = insn.group;
    if (insn.group > Gs) {
        return undefined_instruction;
    }
    if (insn.opcode == 0x8c) {
        return memory ? mov_from_segment<true> : mov_from_segment<false>;
    }
    if (insn.group == Cs) {
        return undefined_instruction;
    }
    if (insn.group == Ss) {
        return memory ? mov_to_ss<true> : mov_to_ss<false>;
    }
    return memory ? mov_to_segment<true> : mov_to_segment<false>;
}

Handler far_pointer(const Insn& insn, Op& op, SegmentIndex segment)
{
    op.extra = static_cast<std::uint8_t>(segment);
    return insn.mod == 3U ? undefined_instruction : load_far_pointer;
}

Handler select_one_byte_segment(const Insn& insn, const SelectContext& context, Op& op)
{
    const bool is_64 = context.code_size == CodeSize::Bits64;
    switch (insn.opcode) {
    case 0x8c:
    case 0x8e: return select_move(insn, op);
    case 0x06:
    case 0x0e:
    case 0x16:
    case 0x1e: op.extra = insn.opcode >> 3U; return is_64 ? undefined_instruction : push_segment;
    case 0x17: op.extra = Ss; return is_64 ? undefined_instruction : pop_ss;
    case 0x07:
    case 0x1f: op.extra = insn.opcode >> 3U; return is_64 ? undefined_instruction : pop_segment;
    case 0xc4: return is_64 ? undefined_instruction : far_pointer(insn, op, Es);
    case 0xc5: return is_64 ? undefined_instruction : far_pointer(insn, op, Ds);
    default: return nullptr;
    }
}

}  // namespace

Handler select_segment_instruction(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.map == OpcodeMap::Primary) {
        return select_one_byte_segment(insn, context, op);
    }
    if (insn.map != OpcodeMap::Map0F) {
        return nullptr;
    }
    // 64-bit code has no 32-bit stack slots.
    const bool is_64 = context.code_size == CodeSize::Bits64;
    const bool pushes = insn.opcode == 0xa0 || insn.opcode == 0xa8;
    const bool pops = insn.opcode == 0xa1 || insn.opcode == 0xa9;
    if (pushes || pops) {
        op.extra = insn.opcode < 0xa8 ? Fs : Gs;
        if (is_64 && op.operand_size == 4U) {
            op.operand_size = 8;
        }
        return pushes ? push_segment : pop_segment;
    }
    switch (insn.opcode) {
    case 0xb2: return far_pointer(insn, op, Ss);
    case 0xb4: return far_pointer(insn, op, Fs);
    case 0xb5: return far_pointer(insn, op, Gs);
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
