// SPDX-License-Identifier: Apache-2.0

/// @file
/// Moves: MOV MOVZX MOVSX MOVSXD LEA CMOVcc SETcc BSWAP XLAT, conversions, NOPs.

#include <thread>

#include "x86/soft/fault.hpp"
#include "x86/soft/integer.hpp"
#include "x86/soft/memory_move.hpp"
#include "x86/soft/system_handlers.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

template <typename T>
const Op* move_register(Cpu& cpu, const Op* op)
{
    set_gpr<T>(cpu, op->rm, gpr_at<T>(cpu, op->reg));
    return next(cpu, op);
}

template <typename T>
const Op* move_immediate(Cpu& cpu, const Op* op)
{
    set_gpr<T>(cpu, op->rm, static_cast<T>(op->immediate));
    return next(cpu, op);
}

template <typename T>
void take_register(Cpu& cpu, std::uint8_t slot, const std::byte* data) noexcept
{
    set_gpr<T>(cpu, slot, load_host<T>(data));
}

/// Goes on behind a MOV that the TLB did not have the page of.
[[gnu::always_inline]] inline const Op* go_on_behind(Moved moved, Cpu& cpu, const Op* op)
{
    switch (moved) {
    case Moved::Repeats: return leave_to_same(cpu, op);
    case Moved::Leaves: return leave(cpu, op);
    case Moved::Done: break;
    }
    return next(cpu, op);
}

[[gnu::noinline, gnu::cold]] const Op* load_beyond_tlb(Cpu& cpu,
                                                       const Op* op,
                                                       std::uint64_t linear,
                                                       std::size_t size,
                                                       std::uint8_t slot,
                                                       TakeLoaded take)
{
    return go_on_behind(load_moved(cpu, *op, linear, size, slot, take), cpu, op);
}

/// By value: a handler with a local whose address escapes does not end in a jump.
[[gnu::noinline, gnu::cold]] Moved store_beyond_tlb(Cpu& cpu,
                                                    const Op& op,
                                                    std::uint64_t linear,
                                                    std::uint64_t value,
                                                    std::size_t size)
{
    return store_moved(cpu, op, linear, &value, size);
}

template <typename T>
[[gnu::always_inline]] inline const Op* load_to(Cpu& cpu,
                                                const Op* op,
                                                std::uint64_t linear,
                                                std::uint8_t slot,
                                                TakeLoaded take)
{
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    if (is_readable<T>(entry, linear)) [[likely]] {
        // SAFETY: as in `fast_load`.
        take(cpu, slot, reinterpret_cast<const std::byte*>(linear + entry.addend));
        return next(cpu, op);
    }
    return load_beyond_tlb(cpu, op, linear, sizeof(T), slot, take);
}

template <typename T>
[[gnu::always_inline]] inline const Op* store_from(Cpu& cpu,
                                                   const Op* op,
                                                   std::uint64_t linear,
                                                   T value)
{
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    if (is_writable<T>(entry, linear)) [[likely]] {
        // SAFETY: as in `fast_load`.
        store_host<T>(reinterpret_cast<std::byte*>(linear + entry.addend), value);
        return next(cpu, op);
    }
    return go_on_behind(store_beyond_tlb(cpu, *op, linear, value, sizeof(T)), cpu, op);
}

template <typename T, Mem M>
const Op* load_register(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = operand_address<M>(cpu, *op, sizeof(T), Access::Read);
    return load_to<T>(cpu, op, linear, op->reg, take_register<T>);
}

template <typename T, Mem M>
const Op* store_register(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = operand_address<M>(cpu, *op, sizeof(T), Access::Write);
    return store_from<T>(cpu, op, linear, gpr_at<T>(cpu, op->reg));
}

template <typename T, Mem M>
const Op* store_immediate(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = operand_address<M>(cpu, *op, sizeof(T), Access::Write);
    return store_from<T>(cpu, op, linear, static_cast<T>(op->immediate));
}

/// MOVZX, MOVSX, MOVSXD: `From` is signed where the sign is extended.
template <typename From, typename To>
[[nodiscard, gnu::always_inline]] inline To extend(std::make_unsigned_t<From> value) noexcept
{
    return static_cast<To>(static_cast<std::int64_t>(static_cast<From>(value)));
}

template <typename From, typename To>
const Op* extend_register(Cpu& cpu, const Op* op)
{
    using Raw = std::make_unsigned_t<From>;
    set_gpr<To>(cpu, op->reg, extend<From, To>(gpr_at<Raw>(cpu, op->rm)));
    return next(cpu, op);
}

template <typename From, typename To>
void take_extended(Cpu& cpu, std::uint8_t slot, const std::byte* data) noexcept
{
    set_gpr<To>(cpu, slot, extend<From, To>(load_host<std::make_unsigned_t<From>>(data)));
}

template <typename From, typename To, Mem M>
const Op* extend_memory(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = operand_address<M>(cpu, *op, sizeof(From), Access::Read);
    return load_to<std::make_unsigned_t<From>>(cpu, op, linear, op->reg, take_extended<From, To>);
}

template <typename From>
Handler select_extend(const Insn& insn, Op& op)
{
    op.plain_move = true;
    op.reg = static_cast<std::uint8_t>(insn.reg * 8U);
    if (sizeof(From) == 1) {
        op.rm = byte_slot(insn, insn.rm);
    }
    return by_size(insn.operand_size, [&](auto type) -> Handler {
        using To = typename decltype(type)::type;
        if (!insn.has_memory) {
            return extend_register<From, To>;
        }
        return by_mem(op, [&](auto mem) -> Handler { return extend_memory<From, To, mem.value>; });
    });
}

/// The fixed address of a MOV between the accumulator and memory.
[[nodiscard]] std::uint64_t fixed_address(Cpu& cpu, const Op& op, std::size_t size, Access access)
{
    if (op.address_kind == AddressKind::Based64) {
        return op.immediate + cpu.seg[op.segment].base;
    }
    if (op.address_kind == AddressKind::Segmented) {
        return segmented_address(cpu, segment_of(op), op.immediate, size, access);
    }
    if (op.address_kind == AddressKind::Flat32) {
        return flat_address(cpu, segment_of(op), op.immediate, size, access);
    }
    return op.immediate;
}

template <typename T>
const Op* load_accumulator(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = fixed_address(cpu, *op, sizeof(T), Access::Read);
    return load_to<T>(cpu, op, linear, 0, take_register<T>);
}

template <typename T>
const Op* store_accumulator(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = fixed_address(cpu, *op, sizeof(T), Access::Write);
    return store_from<T>(cpu, op, linear, gpr_at<T>(cpu, 0));
}

template <typename T, bool Simple>
const Op* load_address(Cpu& cpu, const Op* op)
{
    if constexpr (Simple) {
        set_gpr<T>(cpu, op->reg,
                   static_cast<T>(gpr_at<std::uint64_t>(cpu, op->base) +
                                  (gpr_at<std::uint64_t>(cpu, op->index) << op->scale) +
                                  static_cast<std::uint64_t>(std::int64_t{op->displacement})));
    } else {
        set_gpr<T>(cpu, op->reg, static_cast<T>(effective_address(cpu, *op)));
    }
    return next(cpu, op);
}

template <unsigned Code, typename T>
const Op* move_if(Cpu& cpu, const Op* op)
{
    const T value =
        condition<Code>(cpu.arithmetic_flags) ? gpr_at<T>(cpu, op->rm) : gpr_at<T>(cpu, op->reg);
    set_gpr<T>(cpu, op->reg, value);
    return next(cpu, op);
}

template <unsigned Code, typename T>
const Op* load_if(Cpu& cpu, const Op* op)
{
    // The operand is read, and may fault, whatever the condition.
    const std::uint64_t linear = linear_address(cpu, *op, sizeof(T), Access::Read);
    const T source = fast_load<T>(cpu, segment_of(*op), linear);
    set_gpr<T>(cpu, op->reg,
               condition<Code>(cpu.arithmetic_flags) ? source : gpr_at<T>(cpu, op->reg));
    return next(cpu, op);
}

template <unsigned Code>
const Op* set_register_if(Cpu& cpu, const Op* op)
{
    gpr_at<std::uint8_t>(cpu, op->rm) = condition<Code>(cpu.arithmetic_flags) ? 1 : 0;
    return next(cpu, op);
}

template <unsigned Code>
const Op* set_memory_if(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = linear_address(cpu, *op, 1, Access::Write);
    const std::uint8_t value = condition<Code>(cpu.arithmetic_flags) ? 1 : 0;
    fast_store<std::uint8_t>(cpu, segment_of(*op), linear, value);
    return next(cpu, op);
}

template <typename T>
const Op* swap_bytes(Cpu& cpu, const Op* op)
{
    if constexpr (sizeof(T) == 8) {
        set_gpr<T>(cpu, op->rm, __builtin_bswap64(gpr_at<T>(cpu, op->rm)));
    } else if constexpr (sizeof(T) == 4) {
        set_gpr<T>(cpu, op->rm, __builtin_bswap32(gpr_at<T>(cpu, op->rm)));
    } else {
        set_gpr<T>(cpu, op->rm, 0);  // Undefined; what processors do.
    }
    return next(cpu, op);
}

/// XLAT: the only instruction whose index is AL.
[[gnu::noinline]] void translate_byte(Cpu& cpu, const Op& op)
{
    std::uint64_t address = cpu.gpr[Rbx] + (cpu.gpr[Rax] & 0xffU);
    if (op.address_size == 4) {
        address &= 0xffff'ffffU;
    } else if (op.address_size == 2) {
        address &= 0xffffU;
    }
    std::uint64_t linear = address;
    if (op.address_kind == AddressKind::Based64) {
        linear += cpu.seg[op.segment].base;
    } else if (op.address_kind == AddressKind::Segmented) {
        linear = segmented_address(cpu, segment_of(op), address, 1, Access::Read);
    }
    gpr_at<std::uint8_t>(cpu, 0) = fast_load<std::uint8_t>(cpu, segment_of(op), linear);
}

/// CBW, CWDE, CDQE.
template <typename T>
const Op* widen_accumulator(Cpu& cpu, const Op* op)
{
    const auto half = static_cast<std::int64_t>(cpu.gpr[Rax]);
    if constexpr (sizeof(T) == 2) {
        set_gpr<T>(cpu, 0, static_cast<T>(static_cast<std::int8_t>(half)));
    } else if constexpr (sizeof(T) == 4) {
        set_gpr<T>(cpu, 0, static_cast<T>(static_cast<std::int16_t>(half)));
    } else {
        set_gpr<T>(cpu, 0, static_cast<T>(static_cast<std::int32_t>(half)));
    }
    return next(cpu, op);
}

/// CWD, CDQ, CQO.
template <typename T>
const Op* spread_sign(Cpu& cpu, const Op* op)
{
    using Signed = std::make_signed_t<T>;
    const auto value = static_cast<Signed>(gpr_at<T>(cpu, 0));
    set_gpr<T>(cpu, Rdx * 8, value < 0 ? static_cast<T>(-1) : T{0});
    return next(cpu, op);
}

const Op* no_operation(Cpu& cpu, const Op* op)
{
    return next(cpu, op);
}

/// PAUSE: most likely another vCPU is waited for.  If none is in the guest it is a delay, which
/// must not take as long as the host's scheduler takes to come back.
const Op* pause(Cpu& cpu, const Op* op)
{
    if (--cpu.translated.pauses_left < 0) {
        cpu.translated.pauses_left = TranslatedState::pauses;
        if (cpu.vm.has_others_in_guest(cpu)) {
            std::this_thread::yield();
        }
    } else {
        asm volatile("pause");
    }
    return next(cpu, op);
}

Handler select_mov(const Insn& insn, Op& op)
{
    op.plain_move = true;
    const unsigned size = width(insn);
    if (size == 1) {
        use_byte_registers(insn, op);
    }
    const bool to_register = (insn.opcode & 2U) != 0;
    if (!insn.has_memory) {
        if (to_register) {
            std::swap(op.rm, op.reg);
        }
        return by_any_size(size, [](auto type) -> Handler {
            return move_register<typename decltype(type)::type>;
        });
    }
    return by_any_size(size, [&](auto type) {
        using T = typename decltype(type)::type;
        return by_mem(op, [&](auto mem) -> Handler {
            return to_register ? Handler{load_register<T, mem.value>}
                               : Handler{store_register<T, mem.value>};
        });
    });
}

Handler select_mov_immediate(const Insn& insn, Op& op)
{
    op.plain_move = true;
    const unsigned size = width(insn);
    if (size == 1) {
        use_byte_registers(insn, op);
    }
    return by_any_size(size, [&](auto type) -> Handler {
        using T = typename decltype(type)::type;
        if (!insn.has_memory) {
            return move_immediate<T>;
        }
        return by_mem(op, [&](auto mem) -> Handler { return store_immediate<T, mem.value>; });
    });
}

Handler select_mov_accumulator(const Insn& insn, Op& op)
{
    op.plain_move = true;
    op.immediate = static_cast<std::uint64_t>(insn.displacement);
    return by_any_size(width(insn), [&](auto type) -> Handler {
        using T = typename decltype(type)::type;
        return (insn.opcode & 2U) == 0 ? Handler{load_accumulator<T>}
                                       : Handler{store_accumulator<T>};
    });
}

Handler select_lea(const Insn& insn, const Op& op)
{
    if (!insn.has_memory) {
        return undefined_instruction;
    }
    return by_size(insn.operand_size, [&](auto type) -> Handler {
        using T = typename decltype(type)::type;
        return op.address_size == 8 ? Handler{load_address<T, true>}
                                    : Handler{load_address<T, false>};
    });
}

Handler select_one_byte(const Insn& insn, const SelectContext& context, Op& op)
{
    const unsigned opcode = insn.opcode;
    if (opcode >= 0x88 && opcode <= 0x8b) {
        return select_mov(insn, op);
    }
    if (opcode >= 0xa0 && opcode <= 0xa3) {
        return select_mov_accumulator(insn, op);
    }
    if (opcode >= 0xb0 && opcode <= 0xbf) {
        if (opcode < 0xb8) {
            op.rm = byte_slot(insn, insn.rm);
            return move_immediate<std::uint8_t>;
        }
        return by_size(insn.operand_size, [](auto type) -> Handler {
            return move_immediate<typename decltype(type)::type>;
        });
    }
    switch (opcode) {
    case 0x63:
        if (context.code_size != CodeSize::Bits64) {
            return nullptr;  // ARPL
        }
        if (insn.operand_size == 2) {
            op.rm = static_cast<std::uint8_t>(insn.rm * 8U);
            return select_extend<std::uint16_t>(insn, op);
        }
        return select_extend<std::int32_t>(insn, op);
    case 0x8d: return select_lea(insn, op);
    case 0x90:
        if (insn.rep) {
            return pause;  // With REX.B too.
        }
        return insn.rm == 0 ? no_operation : nullptr;  // XCHG with R8
    case 0x98:
        return by_size(insn.operand_size, [](auto type) -> Handler {
            return widen_accumulator<typename decltype(type)::type>;
        });
    case 0x99:
        return by_size(insn.operand_size, [](auto type) -> Handler {
            return spread_sign<typename decltype(type)::type>;
        });
    case 0xc6:
    case 0xc7: return insn.group == 0 ? select_mov_immediate(insn, op) : nullptr;
    case 0xd7: return plain<translate_byte>;
    default: return nullptr;
    }
}

Handler select_conditional(const Insn& insn, Op& op)
{
    return by_number<16>(insn.opcode & 15U, [&](auto code) -> Handler {
        if ((insn.opcode & 0xf0U) == 0x90) {
            op.rm = byte_slot(insn, insn.rm);
            return insn.has_memory ? Handler{set_memory_if<code.value>}
                                   : Handler{set_register_if<code.value>};
        }
        return by_size(insn.operand_size, [&](auto type) -> Handler {
            using T = typename decltype(type)::type;
            return insn.has_memory ? Handler{load_if<code.value, T>}
                                   : Handler{move_if<code.value, T>};
        });
    });
}

Handler select_map_0f(const Insn& insn, Op& op)
{
    const unsigned opcode = insn.opcode;
    if ((opcode & 0xf0U) == 0x40 || (opcode & 0xf0U) == 0x90) {
        return select_conditional(insn, op);
    }
    if (opcode == 0x0d || (opcode >= 0x18 && opcode <= 0x1f)) {
        return no_operation;
    }
    switch (opcode) {
    case 0x0b:
    case 0xb9:
    case 0xff: return undefined_instruction;
    case 0xb6: return select_extend<std::uint8_t>(insn, op);
    case 0xb7: return select_extend<std::uint16_t>(insn, op);
    case 0xbe: return select_extend<std::int8_t>(insn, op);
    case 0xbf: return select_extend<std::int16_t>(insn, op);
    default: break;
    }
    if (opcode >= 0xc8 && opcode <= 0xcf) {
        return by_size(insn.operand_size, [](auto type) -> Handler {
            return swap_bytes<typename decltype(type)::type>;
        });
    }
    return nullptr;
}

}  // namespace

Handler select_move(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.vex) {
        return nullptr;
    }
    if (insn.map == OpcodeMap::Primary) {
        return select_one_byte(insn, context, op);
    }
    return insn.map == OpcodeMap::Map0F ? select_map_0f(insn, op) : nullptr;
}

}  // namespace vmm::x86::soft
