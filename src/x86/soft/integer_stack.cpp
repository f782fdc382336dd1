// SPDX-License-Identifier: Apache-2.0

/// @file
/// PUSH POP PUSHA POPA ENTER LEAVE.

#include <array>

#include "x86/soft/fault.hpp"
#include "x86/soft/integer.hpp"
#include "x86/soft/stack.hpp"

namespace vmm::x86::soft {

void store_stack(Cpu& cpu, unsigned size, std::uint64_t sp, std::uint64_t value)
{
    const std::uint64_t linear = stack_address(cpu, sp, size, Access::Write);
    switch (size) {
    case 2: fast_store<std::uint16_t>(cpu, Ss, linear, static_cast<std::uint16_t>(value)); return;
    case 4: fast_store<std::uint32_t>(cpu, Ss, linear, static_cast<std::uint32_t>(value)); return;
    default: fast_store<std::uint64_t>(cpu, Ss, linear, value); return;
    }
}

std::uint64_t load_stack(Cpu& cpu, unsigned size, std::uint64_t sp)
{
    const std::uint64_t linear = stack_address(cpu, sp, size, Access::Read);
    switch (size) {
    case 2: return fast_load<std::uint16_t>(cpu, Ss, linear);
    case 4: return fast_load<std::uint32_t>(cpu, Ss, linear);
    default: return fast_load<std::uint64_t>(cpu, Ss, linear);
    }
}

void push(Cpu& cpu, unsigned size, std::uint64_t value)
{
    const std::uint64_t sp = stack_pointer(cpu, -static_cast<std::int64_t>(size));
    store_stack(cpu, size, sp, value);
    set_stack_pointer(cpu, sp);
}

std::uint64_t peek(Cpu& cpu, unsigned size, std::uint64_t offset)
{
    return load_stack(cpu, size, stack_pointer(cpu, static_cast<std::int64_t>(offset)));
}

void drop(Cpu& cpu, std::uint64_t bytes) noexcept
{
    set_stack_pointer(cpu, cpu.gpr[Rsp] + bytes);
}

namespace {

void write_gpr(Cpu& cpu, unsigned size, std::uint8_t slot, std::uint64_t value) noexcept
{
    switch (size) {
    case 2: set_gpr<std::uint16_t>(cpu, slot, static_cast<std::uint16_t>(value)); return;
    case 4: set_gpr<std::uint32_t>(cpu, slot, static_cast<std::uint32_t>(value)); return;
    default: set_gpr<std::uint64_t>(cpu, slot, value); return;
    }
}

const Op* push_register_64(Cpu& cpu, const Op* op)
{
    push_64(cpu, gpr_at<std::uint64_t>(cpu, op->rm));
    return next(cpu, op);
}

const Op* pop_register_64(Cpu& cpu, const Op* op)
{
    const std::uint64_t sp = cpu.gpr[Rsp];
    const auto value = fast_load<std::uint64_t>(cpu, Ss, sp);
    cpu.gpr[Rsp] = sp + 8;
    gpr_at<std::uint64_t>(cpu, op->rm) = value;
    return next(cpu, op);
}

const Op* push_immediate_64(Cpu& cpu, const Op* op)
{
    push_64(cpu, op->immediate);
    return next(cpu, op);
}

[[gnu::noinline]] void push_register(Cpu& cpu, const Op& op)
{
    push(cpu, op.operand_size, gpr_at<std::uint64_t>(cpu, op.rm));
}

[[gnu::noinline]] void pop_register(Cpu& cpu, const Op& op)
{
    const std::uint64_t value = peek(cpu, op.operand_size, 0);
    drop(cpu, op.operand_size);
    write_gpr(cpu, op.operand_size, op.rm, value);
}

[[gnu::noinline]] void push_immediate(Cpu& cpu, const Op& op)
{
    push(cpu, op.operand_size, op.immediate);
}

[[gnu::noinline]] void push_memory(Cpu& cpu, const Op& op)
{
    const std::uint64_t linear = linear_address(cpu, op, op.operand_size, Access::Read);
    std::uint64_t value = 0;
    switch (op.operand_size) {
    case 2: value = fast_load<std::uint16_t>(cpu, segment_of(op), linear); break;
    case 4: value = fast_load<std::uint32_t>(cpu, segment_of(op), linear); break;
    default: value = fast_load<std::uint64_t>(cpu, segment_of(op), linear); break;
    }
    push(cpu, op.operand_size, value);
}

/// The address of the destination is computed with the stack pointer of after the pop.
[[gnu::noinline]] void pop_memory(Cpu& cpu, const Op& op)
{
    const std::uint64_t value = peek(cpu, op.operand_size, 0);
    const std::uint64_t before = cpu.gpr[Rsp];
    drop(cpu, op.operand_size);
    try {
        const std::uint64_t linear = linear_address(cpu, op, op.operand_size, Access::Write);
        switch (op.operand_size) {
        case 2:
            fast_store<std::uint16_t>(cpu, segment_of(op), linear,
                                      static_cast<std::uint16_t>(value));
            break;
        case 4:
            fast_store<std::uint32_t>(cpu, segment_of(op), linear,
                                      static_cast<std::uint32_t>(value));
            break;
        default: fast_store<std::uint64_t>(cpu, segment_of(op), linear, value); break;
        }
    } catch (...) {
        cpu.gpr[Rsp] = before;
        throw;
    }
}

[[gnu::noinline]] void push_all(Cpu& cpu, const Op& op)
{
    const unsigned size = op.operand_size;
    const std::uint64_t first = stack_pointer(cpu, -static_cast<std::int64_t>(8 * size));
    // All or nothing: check before the first is written.
    for (unsigned i = 0; i < 8; ++i) {
        const std::uint64_t sp = (first + std::uint64_t{i} * size) & stack_mask(cpu);
        probe_write(cpu, Ss, stack_address(cpu, sp, size, Access::Write), size);
    }
    for (unsigned i = 0; i < 8; ++i) {
        const std::uint64_t sp = (first + std::uint64_t{i} * size) & stack_mask(cpu);
        store_stack(cpu, size, sp, cpu.gpr[7 - i]);
    }
    set_stack_pointer(cpu, first);
}

[[gnu::noinline]] void pop_all(Cpu& cpu, const Op& op)
{
    const unsigned size = op.operand_size;
    std::array<std::uint64_t, 8> values{};
    for (unsigned i = 0; i < 8; ++i) {
        values[i] = peek(cpu, size, std::uint64_t{i} * size);
    }
    drop(cpu, std::uint64_t{8} * size);
    for (unsigned i = 0; i < 8; ++i) {
        if (7 - i != Rsp) {
            write_gpr(cpu, size, static_cast<std::uint8_t>((7 - i) * 8), values[i]);
        }
    }
}

/// ENTER.  `extra` is the nesting level.
[[gnu::noinline]] void enter_frame(Cpu& cpu, const Op& op)
{
    const unsigned size = op.operand_size;
    const unsigned level = op.extra & 31U;
    const std::uint64_t mask = stack_mask(cpu);
    std::uint64_t sp = (cpu.gpr[Rsp] - size) & mask;
    store_stack(cpu, size, sp, cpu.gpr[Rbp]);
    const std::uint64_t frame = sp;
    if (level > 0) {
        std::uint64_t bp = cpu.gpr[Rbp];
        for (unsigned i = 1; i < level; ++i) {
            bp = (bp - size) & mask;
            const std::uint64_t link = load_stack(cpu, size, bp);
            sp = (sp - size) & mask;
            store_stack(cpu, size, sp, link);
        }
        sp = (sp - size) & mask;
        store_stack(cpu, size, sp, frame);
    }
    sp = (sp - (op.immediate & 0xffffU)) & mask;
    // The instruction ends as if it wrote there.
    probe_write(cpu, Ss, stack_address(cpu, sp, size, Access::Write), size);
    write_gpr(cpu, size, Rbp * 8, frame);
    set_stack_pointer(cpu, sp);
}

const Op* leave_frame_64(Cpu& cpu, const Op* op)
{
    const std::uint64_t frame = cpu.gpr[Rbp];
    const auto value = fast_load<std::uint64_t>(cpu, Ss, frame);
    cpu.gpr[Rsp] = frame + 8;
    cpu.gpr[Rbp] = value;
    return next(cpu, op);
}

[[gnu::noinline]] void leave_frame(Cpu& cpu, const Op& op)
{
    const std::uint64_t frame = cpu.gpr[Rbp] & stack_mask(cpu);
    const std::uint64_t value = load_stack(cpu, op.operand_size, frame);
    set_stack_pointer(cpu, frame + op.operand_size);
    write_gpr(cpu, op.operand_size, Rbp * 8, value);
}

}  // namespace

Handler select_stack(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.map != OpcodeMap::Primary || insn.vex) {
        return nullptr;
    }
    const bool wide = context.code_size == CodeSize::Bits64 && insn.operand_size == 8;
    const unsigned opcode = insn.opcode;
    if (opcode >= 0x50 && opcode <= 0x57) {
        return wide ? push_register_64 : plain<push_register>;
    }
    if (opcode >= 0x58 && opcode <= 0x5f) {
        return wide ? pop_register_64 : plain<pop_register>;
    }
    switch (opcode) {
    case 0x60: return plain<push_all>;
    case 0x61: return plain<pop_all>;
    case 0x68:
    case 0x6a: return wide ? push_immediate_64 : plain<push_immediate>;
    case 0x8f:
        if (insn.group != 0) {
            return nullptr;
        }
        if (!insn.has_memory) {
            return wide ? pop_register_64 : plain<pop_register>;
        }
        return plain<pop_memory>;
    case 0xff:
        if (insn.group != 6) {
            return nullptr;
        }
        if (!insn.has_memory) {
            return wide ? push_register_64 : plain<push_register>;
        }
        return plain<push_memory>;
    case 0xc8: op.extra = static_cast<std::uint8_t>(insn.immediate2); return plain<enter_frame>;
    case 0xc9: return wide ? leave_frame_64 : plain<leave_frame>;
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
