// SPDX-License-Identifier: Apache-2.0

/// @file
/// Instructions that go through transfer.cpp, interrupt_return.cpp, fast_call.cpp, delivery.cpp.

#include <utility>

#include "x86/soft/descriptor.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/system_handlers.hpp"

namespace vmm::x86::soft {

namespace {

/// A fault of the new task has the new task's state: it is delivered here, before the run loop
/// restores RIP to an instruction that is over.
[[gnu::noinline]] void deliver_in_new_task(Cpu& cpu, const Fault& fault)
{
    if (!deliver_fault(cpu, fault)) {
        cpu.exit = EngineExit{};
        cpu.exit.reason = EngineExit::Reason::Shutdown;
        cpu.exit_pending = true;
    }
}

/// Ends the block: `action` has set RIP.
template <typename Action>
[[gnu::always_inline]] inline const Op* transfer(Cpu& cpu, const Action& action)
{
    try {
        action();
    } catch (const TaskFault& late) {
        deliver_in_new_task(cpu, late.fault);
        return nullptr;
    }
    return go_on_in_new_mode(cpu);
}

// `Op::immediate`: the offset of a far pointer; `Op::displacement`: its selector.

const Op* jump_far_immediate(Cpu& cpu, const Op* op)
{
    return transfer(cpu, [&] {
        far_jump(cpu, static_cast<std::uint16_t>(op->displacement), op->immediate, op->operand_size,
                 cpu.next_rip(*op));
    });
}

const Op* call_far_immediate(Cpu& cpu, const Op* op)
{
    return transfer(cpu, [&] {
        far_call(cpu, static_cast<std::uint16_t>(op->displacement), op->immediate, op->operand_size,
                 cpu.next_rip(*op));
    });
}

struct FarPointer {
    std::uint64_t offset{};
    std::uint16_t selector{};
};

FarPointer load_pointer(Cpu& cpu, const Op& op)
{
    const auto segment = static_cast<SegmentIndex>(op.segment);
    const unsigned size = op.operand_size;
    const std::uint64_t linear = linear_address(cpu, op, size + 2U, Access::Read);
    FarPointer pointer{};
    if (size == 8U) {
        pointer.offset = load<std::uint64_t>(cpu, segment, linear);
    } else if (size == 4U) {
        pointer.offset = load<std::uint32_t>(cpu, segment, linear);
    } else {
        pointer.offset = load<std::uint16_t>(cpu, segment, linear);
    }
    pointer.selector = load<std::uint16_t>(cpu, segment, linear + size);
    return pointer;
}

const Op* jump_far_memory(Cpu& cpu, const Op* op)
{
    const FarPointer to = load_pointer(cpu, *op);
    return transfer(
        cpu, [&] { far_jump(cpu, to.selector, to.offset, op->operand_size, cpu.next_rip(*op)); });
}

const Op* call_far_memory(Cpu& cpu, const Op* op)
{
    const FarPointer to = load_pointer(cpu, *op);
    return transfer(
        cpu, [&] { far_call(cpu, to.selector, to.offset, op->operand_size, cpu.next_rip(*op)); });
}

const Op* return_far(Cpu& cpu, const Op* op)
{
    far_return(cpu, op->operand_size, static_cast<std::uint16_t>(op->immediate));
    return nullptr;
}

const Op* iret(Cpu& cpu, const Op* op)
{
    return transfer(cpu, [&] { interrupt_return(cpu, op->operand_size, cpu.next_rip(*op)); });
}

const Op* software_event(Cpu& cpu, const Op* op, EventKind kind, std::uint8_t vector)
{
    Event event{};
    event.kind = kind;
    event.vector = vector;
    event.instruction_length = op->length;
    cpu.rip = cpu.instruction_rip();
    cpu.no_step_trap = true;
    return transfer(cpu, [&] { deliver_once(cpu, event); });
}

const Op* int_n(Cpu& cpu, const Op* op)
{
    return software_event(cpu, op, EventKind::SoftwareInterrupt,
                          static_cast<std::uint8_t>(op->immediate));
}

const Op* int3(Cpu& cpu, const Op* op)
{
    if (cpu.debugger.software_breakpoints) {
        cpu.rip = cpu.instruction_rip();
        cpu.exit = EngineExit{};
        cpu.exit.reason = EngineExit::Reason::Debug;
        cpu.exit.debug.exception = static_cast<std::uint8_t>(Vector::BP);
        cpu.exit.debug.pc = cpu.code_64() ? cpu.rip : (cpu.seg[Cs].base + cpu.rip) & 0xffff'ffffU;
        cpu.exit_pending = true;
        return nullptr;
    }
    return software_event(cpu, op, EventKind::SoftwareException,
                          static_cast<std::uint8_t>(Vector::BP));
}

/// INT1 takes along the traps that a MOV to SS before it has held back: one #DB for both.
const Op* int1(Cpu& cpu, const Op* op)
{
    const Op* const next = software_event(cpu, op, EventKind::PrivilegedSoftwareException,
                                          static_cast<std::uint8_t>(Vector::DB));
    if (cpu.pending_debug != 0U && !cpu.debugger.takes_debug_exceptions()) {
        constexpr std::uint64_t breakpoints = 0xf;
        cpu.dr6 = (cpu.dr6 & ~breakpoints) | Dr6::reset | std::exchange(cpu.pending_debug, 0);
    }
    return next;
}

const Op* into(Cpu& cpu, const Op* op)
{
    if ((cpu.arithmetic_flags & 1U) == 0U) {
        return next(cpu, op);
    }
    return software_event(cpu, op, EventKind::SoftwareException,
                          static_cast<std::uint8_t>(Vector::OF));
}

/// SYSCALL and SYSRET, unlike IRET and POPF, are stepped by the TF that they leave behind: a SYSRET
/// that sets it traps before the first instruction of user code.
void trap_by_new_flags(Cpu& cpu) noexcept
{
    constexpr std::uint64_t single_step_bit = 1U << 14U;
    const bool traps = Rflags{cpu.rflags}.get(Rflags::TF);
    cpu.no_step_trap = !traps && !cpu.debugger.single_step;
    if (traps) {
        cpu.pending_debug |= single_step_bit;
    }
}

const Op* syscall_handler(Cpu& cpu, const Op* op)
{
    syscall(cpu, cpu.next_rip(*op));
    trap_by_new_flags(cpu);
    return go_on_in_new_mode(cpu);
}

const Op* sysret_handler(Cpu& cpu, const Op* op)
{
    sysret(cpu, op->operand_size);
    trap_by_new_flags(cpu);
    return go_on_in_new_mode(cpu);
}

const Op* sysenter_handler(Cpu& cpu, const Op* /*op*/)
{
    sysenter(cpu);
    return nullptr;
}

const Op* sysexit_handler(Cpu& cpu, const Op* op)
{
    sysexit(cpu, op->operand_size);
    return nullptr;
}

Handler select_one_byte_transfer(const Insn& insn, const SelectContext& context, Op& op)
{
    const bool is_64 = context.code_size == CodeSize::Bits64;
    switch (insn.opcode) {
    case 0x9a:
    case 0xea:
        if (is_64) {
            return undefined_instruction;
        }
        op.immediate = insn.immediate;
        op.displacement = insn.immediate2;
        return insn.opcode == 0x9a ? call_far_immediate : jump_far_immediate;
    case 0xff:
        if (insn.group != 3U && insn.group != 5U) {
            return nullptr;
        }
        if (insn.mod == 3U) {
            return undefined_instruction;
        }
        return insn.group == 3U ? call_far_memory : jump_far_memory;
    case 0xca: op.immediate = insn.immediate & 0xffffU; return return_far;
    case 0xcb: op.immediate = 0; return return_far;
    case 0xcc: return int3;
    case 0xcd: op.immediate = insn.immediate & 0xffU; return int_n;
    case 0xce: return is_64 ? undefined_instruction : into;
    case 0xcf: return iret;
    case 0xf1: return int1;
    default: return nullptr;
    }
}

/// Far transfers, IRET, SYSRET and SYSEXIT take their operand size from the prefixes as they stand:
/// it is not 64 bits by default in 64-bit mode.
void set_plain_operand_size(const Insn& insn, const SelectContext& context, Op& op) noexcept
{
    if (context.code_size == CodeSize::Bits64 && insn.rex_w) {
        op.operand_size = 8;
    } else if (context.code_size == CodeSize::Bits16) {
        op.operand_size = insn.operand_size_override ? 4 : 2;
    } else {
        op.operand_size = insn.operand_size_override ? 2 : 4;
    }
}

}  // namespace

Handler select_transfer_instruction(const Insn& insn, const SelectContext& context, Op& op)
{
    Handler handler = nullptr;
    if (insn.map == OpcodeMap::Primary) {
        handler = select_one_byte_transfer(insn, context, op);
    } else if (insn.map == OpcodeMap::Map0F) {
        switch (insn.opcode) {
        case 0x05: handler = syscall_handler; break;
        case 0x07: handler = sysret_handler; break;
        case 0x34: handler = sysenter_handler; break;
        case 0x35: handler = sysexit_handler; break;
        default: break;
        }
    }
    if (handler != nullptr) {
        set_plain_operand_size(insn, context, op);
    }
    return handler;
}

}  // namespace vmm::x86::soft
