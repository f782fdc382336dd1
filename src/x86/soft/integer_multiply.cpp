// SPDX-License-Identifier: Apache-2.0

/// @file
/// MUL IMUL DIV IDIV and the decimal adjustments.

#include "x86/soft/fault.hpp"
#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

namespace {

/// The operand in ModRM.rm.
template <typename T>
[[nodiscard]] T source(Cpu& cpu, const Op& op)
{
    if (op.extra == 0) {
        return gpr_at<T>(cpu, op.rm);
    }
    const std::uint64_t linear = linear_address(cpu, op, sizeof(T), Access::Read);
    return fast_load<T>(cpu, segment_of(op), linear);
}

/// `flags` and `low` in and out; `instruction` multiplies the accumulator.
#define VMM_MULTIPLY(instruction, accumulator)                                                     \
    asm(VMM_LOAD_FLAGS "mov %[l], %%" accumulator "\n\t" instruction " %[f]\n\tmov %%" accumulator \
                       ", %[l]\n\tlahf\n\tseto %%al"                                               \
        : [l] "+&r"(low), "+&a"(flags), "=&d"(high)                                                \
        : [f] "r"(factor)                                                                          \
        : "cc")

/// high:low = low times `factor`.
template <typename T, bool Signed>
void multiply(T& low, T& high, T factor, std::uint16_t& flags) noexcept
{
    if constexpr (sizeof(T) == 2) {
        if constexpr (Signed) {
            VMM_MULTIPLY("imul", "ax");
        } else {
            VMM_MULTIPLY("mul", "ax");
        }
    } else if constexpr (sizeof(T) == 4) {
        if constexpr (Signed) {
            VMM_MULTIPLY("imul", "eax");
        } else {
            VMM_MULTIPLY("mul", "eax");
        }
    } else if constexpr (Signed) {
        VMM_MULTIPLY("imul", "rax");
    } else {
        VMM_MULTIPLY("mul", "rax");
    }
}

template <typename T, bool Signed>
[[gnu::noinline]] void multiply_accumulator(Cpu& cpu, const Op& op)
{
    const T factor = source<T>(cpu, op);
    std::uint16_t flags = cpu.arithmetic_flags;
    if constexpr (sizeof(T) == 1) {
        std::uint16_t product = gpr_at<std::uint8_t>(cpu, 0);
        if constexpr (Signed) {
            asm(VMM_LOAD_FLAGS "movzwl %w[p], %%eax\n\timulb %[f]\n\tmovzwl %%ax, %k[p]\n\t"
                               "lahf\n\tseto %%al"
                : [p] "+&r"(product), "+&a"(flags)
                : [f] "q"(factor)
                : "cc");
        } else {
            asm(VMM_LOAD_FLAGS "movzwl %w[p], %%eax\n\tmulb %[f]\n\tmovzwl %%ax, %k[p]\n\t"
                               "lahf\n\tseto %%al"
                : [p] "+&r"(product), "+&a"(flags)
                : [f] "q"(factor)
                : "cc");
        }
        gpr_at<std::uint16_t>(cpu, 0) = product;
    } else {
        T low = gpr_at<T>(cpu, 0);
        T high = 0;
        multiply<T, Signed>(low, high, factor, flags);
        set_gpr<T>(cpu, 0, low);
        set_gpr<T>(cpu, Rdx * 8, high);
    }
    cpu.arithmetic_flags = flags;
}

#define VMM_DIVIDE(instruction)                                                                    \
    asm(instruction " %[d]" : "+&a"(low), "+&d"(high) : [d] "r"(divisor) : "cc")

/// Whether the quotient of high:low by `divisor` fits: the host must not see a #DE.
template <typename T>
[[nodiscard]] bool fits_unsigned(T high, T divisor) noexcept
{
    return high < divisor;  // False for a divisor of 0, too.
}

template <typename T>
[[nodiscard]] T magnitude(T value) noexcept
{
    const bool negative = (value >> (sizeof(T) * 8 - 1)) != 0;
    return negative ? static_cast<T>(T{0} - value) : value;
}

template <typename T>
[[nodiscard]] bool fits_signed(T low, T high, T divisor) noexcept
{
    constexpr unsigned sign_bit = sizeof(T) * 8 - 1;
    constexpr T lowest = static_cast<T>(T{1} << sign_bit);
    if (divisor == 0) {
        return false;
    }
    const bool negative_dividend = (high >> sign_bit) != 0;
    const bool negative_quotient = negative_dividend != ((divisor >> sign_bit) != 0);
    if (negative_dividend) {
        low = static_cast<T>(T{0} - low);
        high = static_cast<T>(static_cast<T>(~high) + (low == 0 ? 1U : 0U));
    }
    divisor = magnitude(divisor);
    if (high >= divisor) {
        return false;
    }
    if constexpr (sizeof(T) == 1) {
        const auto dividend = static_cast<unsigned>((high << 8U) | low);
        const unsigned quotient = dividend / divisor;
        return quotient < lowest || (negative_quotient && quotient == lowest);
    } else {
        VMM_DIVIDE("div");
        return low < lowest || (negative_quotient && low == lowest);
    }
}

template <typename T, bool Signed>
[[gnu::noinline]] void divide(Cpu& cpu, const Op& op)
{
    const T divisor = source<T>(cpu, op);
    T low = gpr_at<T>(cpu, 0);
    T high = sizeof(T) == 1 ? gpr_at<T>(cpu, 1) : gpr_at<T>(cpu, Rdx * 8);
    if (!(Signed ? fits_signed(low, high, divisor) : fits_unsigned(high, divisor))) {
        raise(Vector::DE);
    }
    if constexpr (sizeof(T) == 1) {
        std::uint16_t dividend = gpr_at<std::uint16_t>(cpu, 0);
        if constexpr (Signed) {
            asm("idivb %[d]" : "+&a"(dividend) : [d] "q"(divisor) : "cc");
        } else {
            asm("divb %[d]" : "+&a"(dividend) : [d] "q"(divisor) : "cc");
        }
        gpr_at<std::uint16_t>(cpu, 0) = dividend;
    } else {
        if constexpr (Signed) {
            VMM_DIVIDE("idiv");
        } else {
            VMM_DIVIDE("div");
        }
        set_gpr<T>(cpu, 0, low);
        set_gpr<T>(cpu, Rdx * 8, high);
    }
    // The flags are undefined; processors leave them.
}

/// IMUL r, r/m (, immediate).
template <typename T, bool Immediate>
[[gnu::always_inline]] inline void multiply_to_register(Cpu& cpu, const Op& op, T factor) noexcept
{
    T result = Immediate ? static_cast<T>(op.immediate) : gpr_at<T>(cpu, op.reg);
    std::uint16_t flags = cpu.arithmetic_flags;
    asm(VMM_LOAD_FLAGS "imul %[f], %[r]\n\tlahf\n\tseto %%al"
        : [r] "+&r"(result), "+&a"(flags)
        : [f] "r"(factor)
        : "cc");
    cpu.arithmetic_flags = flags;
    set_gpr<T>(cpu, op.reg, result);
}

template <typename T, bool Immediate>
const Op* multiply_register(Cpu& cpu, const Op* op)
{
    multiply_to_register<T, Immediate>(cpu, *op, gpr_at<T>(cpu, op->rm));
    return next(cpu, op);
}

template <typename T, bool Immediate>
const Op* multiply_memory(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = linear_address(cpu, *op, sizeof(T), Access::Read);
    multiply_to_register<T, Immediate>(cpu, *op, fast_load<T>(cpu, segment_of(*op), linear));
    return next(cpu, op);
}

// --- Decimal adjustment.  SDM Vol. 1 "BCD and Packed BCD Integers"; the pseudocode of each.

/// SF, ZF and PF of AL; CF and AF as given, OF clear.
void set_decimal_flags(Cpu& cpu, bool carry, bool adjust) noexcept
{
    const std::uint8_t al = gpr_at<std::uint8_t>(cpu, 0);
    std::uint16_t flags = 0;
    asm("test %[v], %[v]\n\tlahf\n\tseto %%al" : "=&a"(flags) : [v] "q"(al) : "cc");
    constexpr unsigned kept = flag::sf | flag::zf | flag::pf | 0x0200U;
    cpu.arithmetic_flags = static_cast<std::uint16_t>((flags & kept) | (carry ? flag::cf : 0U) |
                                                      (adjust ? flag::af : 0U));
}

template <bool Subtract>
[[gnu::noinline]] void adjust_decimal(Cpu& cpu, const Op& /*op*/)
{
    std::uint8_t& al = gpr_at<std::uint8_t>(cpu, 0);
    const std::uint8_t before = al;
    const bool carry_before = (cpu.arithmetic_flags & flag::cf) != 0;
    bool carry = false;
    const bool adjust = (al & 0xfU) > 9 || (cpu.arithmetic_flags & flag::af) != 0;
    if (adjust) {
        carry = carry_before || (Subtract ? al < 6 : al > 0xf9);
        al = static_cast<std::uint8_t>(Subtract ? al - 6U : al + 6U);
    }
    if (before > 0x99 || carry_before) {
        al = static_cast<std::uint8_t>(Subtract ? al - 0x60U : al + 0x60U);
        carry = true;
    }
    set_decimal_flags(cpu, carry, adjust);
}

template <bool Subtract>
[[gnu::noinline]] void adjust_ascii(Cpu& cpu, const Op& /*op*/)
{
    std::uint16_t& ax = gpr_at<std::uint16_t>(cpu, 0);
    const bool adjust = (ax & 0xfU) > 9 || (cpu.arithmetic_flags & flag::af) != 0;
    if (adjust) {
        ax = static_cast<std::uint16_t>(Subtract ? ax - 0x106U : ax + 0x106U);
    }
    ax &= 0xff0fU;
    set_decimal_flags(cpu, adjust, adjust);
}

[[gnu::noinline]] void ascii_multiply(Cpu& cpu, const Op& op)
{
    const auto base = static_cast<std::uint8_t>(op.immediate);
    if (base == 0) {
        raise(Vector::DE);
    }
    const std::uint8_t al = gpr_at<std::uint8_t>(cpu, 0);
    gpr_at<std::uint16_t>(cpu, 0) =
        static_cast<std::uint16_t>((unsigned{al} / base) << 8U | (unsigned{al} % base));
    set_decimal_flags(cpu, false, false);
}

[[gnu::noinline]] void ascii_divide(Cpu& cpu, const Op& op)
{
    const unsigned ax = gpr_at<std::uint16_t>(cpu, 0);
    const auto base = static_cast<unsigned>(op.immediate & 0xffU);
    gpr_at<std::uint16_t>(cpu, 0) = static_cast<std::uint16_t>(((ax >> 8U) * base + ax) & 0xffU);
    set_decimal_flags(cpu, false, false);
}

Handler select_group_3(const Insn& insn, Op& op)
{
    const unsigned size = width(insn);
    if (size == 1) {
        use_byte_registers(insn, op);
    }
    op.extra = insn.has_memory ? 1 : 0;
    return by_any_size(size, [&](auto type) -> Handler {
        using T = typename decltype(type)::type;
        switch (insn.group) {
        case 4: return plain<multiply_accumulator<T, false>>;
        case 5: return plain<multiply_accumulator<T, true>>;
        case 6: return plain<divide<T, false>>;
        case 7: return plain<divide<T, true>>;
        default: return nullptr;
        }
    });
}

template <bool Immediate>
Handler select_imul(const Insn& insn)
{
    return by_size(insn.operand_size, [&](auto type) -> Handler {
        using T = typename decltype(type)::type;
        return insn.has_memory ? Handler{multiply_memory<T, Immediate>}
                               : Handler{multiply_register<T, Immediate>};
    });
}

}  // namespace

Handler select_multiply(const Insn& insn, const SelectContext& /*context*/, Op& op)
{
    if (insn.map == OpcodeMap::Map0F && insn.opcode == 0xaf && !insn.vex) {
        return select_imul<false>(insn);
    }
    if (insn.map != OpcodeMap::Primary) {
        return nullptr;
    }
    switch (insn.opcode) {
    case 0x69:
    case 0x6b: return select_imul<true>(insn);
    case 0xf6:
    case 0xf7: return insn.group >= 4 ? select_group_3(insn, op) : nullptr;
    case 0x27: return plain<adjust_decimal<false>>;
    case 0x2f: return plain<adjust_decimal<true>>;
    case 0x37: return plain<adjust_ascii<false>>;
    case 0x3f: return plain<adjust_ascii<true>>;
    case 0xd4: return plain<ascii_multiply>;
    case 0xd5: return plain<ascii_divide>;
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
