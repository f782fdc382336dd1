// SPDX-License-Identifier: Apache-2.0

/// @file
/// Near branches: Jcc JMP CALL RET LOOP JCXZ; BOUND.

#include "x86/soft/fault.hpp"
#include "x86/soft/integer.hpp"
#include "x86/soft/page_walk.hpp"
#include "x86/soft/stack.hpp"

namespace vmm::x86::soft {

void check_branch_target(const Cpu& cpu, std::uint64_t rip)
{
    if (cpu.code_size == CodeSize::Bits64) {
        if (!is_canonical(cpu, rip)) {
            raise(Vector::GP, 0);
        }
    } else if (rip > cpu.seg[Cs].limit) {
        raise(Vector::GP, 0);
    }
}

namespace {

/// How a target is computed.
enum class Code : std::uint8_t {
    Bits64,
    Bits32,  ///< 32-bit operands in 32-bit code: RIP wraps at 4 GiB.
    Any,     ///< By operand size; never linked.
};

template <Code C>
[[nodiscard, gnu::always_inline]] inline std::uint64_t target_of(const Cpu& cpu,
                                                                 const Op& op) noexcept
{
    const std::uint64_t target = cpu.block_rip() + op.immediate;
    if constexpr (C == Code::Bits64) {
        return target;
    } else if constexpr (C == Code::Bits32) {
        return target & 0xffff'ffffU;
    } else {
        return op.operand_size == 2 ? target & 0xffffU : target & 0xffff'ffffU;
    }
}

template <Code C>
[[gnu::always_inline]] inline const Op* take(Cpu& cpu, const Op* op)
{
    if constexpr (C == Code::Any) {
        const std::uint64_t target = target_of<C>(cpu, *op);
        check_branch_target(cpu, target);
        return follow(cpu, target);
    } else {
        return branch(cpu, op, target_of<C>(cpu, *op));
    }
}

template <unsigned Condition, Code C>
const Op* jump_if(Cpu& cpu, const Op* op)
{
    if (condition<Condition>(cpu.arithmetic_flags)) {
        return take<C>(cpu, op);
    }
    return next(cpu, op);
}

template <Code C>
const Op* jump(Cpu& cpu, const Op* op)
{
    return take<C>(cpu, op);
}

/// LOOPNE, LOOPE, LOOP and JCXZ, by opcode.
template <unsigned Opcode, typename Counter, Code C>
const Op* loop(Cpu& cpu, const Op* op)
{
    auto count = gpr_at<Counter>(cpu, Rcx * 8);
    bool taken = false;
    if constexpr (Opcode == 3) {
        taken = count == 0;
    } else {
        --count;
        taken = count != 0;
        const bool zero = (cpu.arithmetic_flags & flag::zf) != 0;
        if constexpr (Opcode == 0) {
            taken = taken && !zero;
        } else if constexpr (Opcode == 1) {
            taken = taken && zero;
        }
    }
    if constexpr (C == Code::Any) {
        if (taken) {
            check_branch_target(cpu, target_of<C>(cpu, *op));
        }
    } else if (taken && op->aux == nullptr && op->extra != linkable) {
        check_branch_target(cpu, target_of<C>(cpu, *op));  // Before the count is final.
    }
    if constexpr (Opcode != 3) {
        set_gpr<Counter>(cpu, Rcx * 8, count);
    }
    if (taken) {
        return take<C>(cpu, op);
    }
    return next(cpu, op);
}

template <Code C>
const Op* call(Cpu& cpu, const Op* op)
{
    const std::uint64_t target = target_of<C>(cpu, *op);
    if (C == Code::Any || (op->aux == nullptr && op->extra != linkable)) [[unlikely]] {
        check_branch_target(cpu, target);
    }
    if constexpr (C == Code::Bits64) {
        push_64(cpu, cpu.block_rip() + op->next_offset());
        return branch(cpu, op, target);
    } else {
        push(cpu, op->operand_size, cpu.next_rip(*op));
        if constexpr (C == Code::Any) {
            return follow(cpu, target);
        } else {
            return branch(cpu, op, target);
        }
    }
}

/// Ends at `target`, which came from a register or memory, after `commit()`.
template <typename Commit>
[[gnu::always_inline]] inline const Op* go_to(Cpu& cpu, std::uint64_t target, const Commit& commit)
{
    const JumpEntry& entry = jump_entry(cpu, target);
    if (is_known_target(cpu, entry, target) && may_continue(cpu)) [[likely]] {
        const Op* const first = entry.first;
        commit();
        return enter_block(cpu, first, target);
    }
    check_branch_target(cpu, target);
    commit();
    return leave_to(cpu, target);
}

const Op* return_64(Cpu& cpu, const Op* op)
{
    const std::uint64_t sp = cpu.gpr[Rsp];
    const auto target = fast_load<std::uint64_t>(cpu, Ss, sp);
    return go_to(cpu, target, [&] { cpu.gpr[Rsp] = sp + 8 + op->immediate; });
}

[[gnu::noinline]] std::uint64_t pop_target(Cpu& cpu, const Op& op)
{
    const std::uint64_t target = peek(cpu, op.operand_size, 0);
    check_branch_target(cpu, target);
    drop(cpu, op.operand_size + op.immediate);
    return target;
}

const Op* return_any(Cpu& cpu, const Op* op)
{
    const std::uint64_t target = pop_target(cpu, *op);
    return follow(cpu, target);
}

/// The operand of an indirect branch.
template <bool Memory>
[[nodiscard, gnu::always_inline]] inline std::uint64_t indirect_target(Cpu& cpu, const Op& op)
{
    if constexpr (Memory) {
        const std::uint64_t linear = linear_address(cpu, op, op.operand_size, Access::Read);
        switch (op.operand_size) {
        case 2: return fast_load<std::uint16_t>(cpu, segment_of(op), linear);
        case 4: return fast_load<std::uint32_t>(cpu, segment_of(op), linear);
        default: return fast_load<std::uint64_t>(cpu, segment_of(op), linear);
        }
    } else {
        switch (op.operand_size) {
        case 2: return gpr_at<std::uint16_t>(cpu, op.rm);
        case 4: return gpr_at<std::uint32_t>(cpu, op.rm);
        default: return gpr_at<std::uint64_t>(cpu, op.rm);
        }
    }
}

template <bool Memory>
const Op* jump_indirect(Cpu& cpu, const Op* op)
{
    return go_to(cpu, indirect_target<Memory>(cpu, *op), [] {});
}

template <bool Memory>
const Op* call_indirect(Cpu& cpu, const Op* op)
{
    const std::uint64_t target = indirect_target<Memory>(cpu, *op);
    const bool known = is_known_target(cpu, jump_entry(cpu, target), target);
    if (!known) [[unlikely]] {
        check_branch_target(cpu, target);
    }
    if (op->operand_size == 8) [[likely]] {
        push_64(cpu, cpu.block_rip() + op->next_offset());
    } else {
        push(cpu, op->operand_size, cpu.next_rip(*op));
    }
    return follow(cpu, target);
}

template <typename T>
[[gnu::noinline]] void check_bounds(Cpu& cpu, const Op& op)
{
    using Signed = std::make_signed_t<T>;
    const std::uint64_t linear = linear_address(cpu, op, 2 * sizeof(T), Access::Read);
    const auto index = static_cast<Signed>(gpr_at<T>(cpu, op.reg));
    const auto bound = [&](std::uint64_t at) {
        return static_cast<Signed>(fast_load<T>(cpu, segment_of(op), at & 0xffff'ffffU));
    };
    // The upper bound is not looked at if the lower one decides.
    if (index < bound(linear) || index > bound(linear + sizeof(T))) {
        raise(Vector::BR);
    }
}

/// Operand size and code size as a `Code`.
template <typename Choose>
Handler by_code(const Insn& insn, const SelectContext& context, Op& op, const Choose& choose)
{
    op.immediate = op.next_offset() + insn.immediate;
    op.aux = nullptr;
    op.extra = linkable;
    if (context.code_size == CodeSize::Bits64) {
        return choose(std::integral_constant<Code, Code::Bits64>{});
    }
    if (context.code_size == CodeSize::Bits32 && insn.operand_size == 4) {
        return choose(std::integral_constant<Code, Code::Bits32>{});
    }
    op.extra = 0;
    return choose(std::integral_constant<Code, Code::Any>{});
}

Handler select_loop(const Insn& insn, const SelectContext& context, Op& op)
{
    return by_code(insn, context, op, [&](auto code) {
        return by_number<4>(insn.opcode & 3U, [&](auto kind) {
            return by_size(insn.address_size, [&](auto type) -> Handler {
                return loop<kind.value, typename decltype(type)::type, code.value>;
            });
        });
    });
}

Handler select_jcc(const Insn& insn, const SelectContext& context, Op& op)
{
    return by_code(insn, context, op, [&](auto code) {
        return by_number<16>(insn.opcode & 15U, [&](auto number) -> Handler {
            return jump_if<number.value, code.value>;
        });
    });
}

}  // namespace

Handler select_branch(const Insn& insn, const SelectContext& context, Op& op)
{
    const unsigned opcode = insn.opcode;
    if (insn.vex) {
        return nullptr;
    }
    if (insn.map == OpcodeMap::Map0F) {
        return opcode >= 0x80 && opcode <= 0x8f ? select_jcc(insn, context, op) : nullptr;
    }
    if (insn.map != OpcodeMap::Primary) {
        return nullptr;
    }
    if (opcode >= 0x70 && opcode <= 0x7f) {
        return select_jcc(insn, context, op);
    }
    const bool wide = context.code_size == CodeSize::Bits64;
    switch (opcode) {
    case 0x62:
        if (!insn.has_memory) {
            return nullptr;
        }
        return insn.operand_size == 2 ? plain<check_bounds<std::uint16_t>>
                                      : plain<check_bounds<std::uint32_t>>;
    case 0xc2:
    case 0xc3:
        op.immediate = opcode == 0xc2 ? insn.immediate & 0xffffU : 0;
        return wide ? return_64 : return_any;
    case 0xe0:
    case 0xe1:
    case 0xe2:
    case 0xe3: return select_loop(insn, context, op);
    case 0xe8:
        return by_code(insn, context, op, [](auto code) -> Handler { return call<code.value>; });
    case 0xe9:
    case 0xeb:
        return by_code(insn, context, op, [](auto code) -> Handler { return jump<code.value>; });
    case 0xff:
        if (insn.group == 2) {
            return insn.has_memory ? call_indirect<true> : call_indirect<false>;
        }
        if (insn.group == 4) {
            return insn.has_memory ? jump_indirect<true> : jump_indirect<false>;
        }
        return nullptr;
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
