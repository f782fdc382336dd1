// SPDX-License-Identifier: Apache-2.0

/// @file
/// XCHG XADD CMPXCHG CMPXCHG8B CMPXCHG16B.

#include <array>

#include "x86/soft/fault.hpp"
#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

namespace {

template <typename T>
const Op* exchange_registers(Cpu& cpu, const Op* op)
{
    const T one = gpr_at<T>(cpu, op->rm);
    const T other = gpr_at<T>(cpu, op->reg);
    set_gpr<T>(cpu, op->rm, other);
    set_gpr<T>(cpu, op->reg, one);
    return next(cpu, op);
}

/// Locked with or without the prefix.
template <typename T>
[[gnu::noinline]] void exchange_memory(Cpu& cpu, const Op& op)
{
    const std::uint64_t linear = linear_address(cpu, op, sizeof(T), Access::ReadWrite);
    T value = gpr_at<T>(cpu, op.reg);
    locked<T>(cpu, segment_of(op), linear, [&](std::byte* bytes) {
        asm volatile("xchg %[v], (%[m])" : [v] "+q"(value) : [m] "r"(bytes) : "memory");
    });
    set_gpr<T>(cpu, op.reg, value);
}

template <typename T>
[[nodiscard]] std::uint16_t flags_of_sum(T a, T b) noexcept
{
    std::uint16_t flags = 0;
    asm("add %[b], %[a]\n\tlahf\n\tseto %%al" : [a] "+&q"(a), "=&a"(flags) : [b] "q"(b) : "cc");
    return flags;
}

template <typename T>
[[nodiscard]] std::uint16_t flags_of_comparison(T a, T b) noexcept
{
    std::uint16_t flags = 0;
    asm("cmp %[b], %[a]\n\tlahf\n\tseto %%al" : "=&a"(flags) : [a] "q"(a), [b] "q"(b) : "cc");
    return flags;
}

template <typename T>
[[gnu::noinline]] void exchange_add_registers(Cpu& cpu, const Op& op)
{
    const T destination = gpr_at<T>(cpu, op.rm);
    const T source = gpr_at<T>(cpu, op.reg);
    cpu.arithmetic_flags = flags_of_sum(destination, source);
    set_gpr<T>(cpu, op.reg, destination);
    set_gpr<T>(cpu, op.rm, static_cast<T>(destination + source));
}

template <typename T>
[[gnu::noinline]] void exchange_add_memory(Cpu& cpu, const Op& op)
{
    const std::uint64_t linear = linear_address(cpu, op, sizeof(T), Access::ReadWrite);
    const T source = gpr_at<T>(cpu, op.reg);
    T before = source;
    if (op.lock) {
        locked<T>(cpu, segment_of(op), linear, [&](std::byte* bytes) {
            before = source;
            asm volatile("lock; xadd %[v], (%[m])"
                         : [v] "+q"(before)
                         : [m] "r"(bytes)
                         : "cc", "memory");
        });
    } else {
        before = fast_load_for_write<T>(cpu, segment_of(op), linear);
        fast_store<T>(cpu, segment_of(op), linear, static_cast<T>(before + source));
    }
    cpu.arithmetic_flags = flags_of_sum(before, source);
    set_gpr<T>(cpu, op.reg, before);
}

/// What CMPXCHG leaves: the accumulator is written only where the comparison failed.
template <typename T>
void finish_compare(Cpu& cpu, T accumulator, T before) noexcept
{
    cpu.arithmetic_flags = flags_of_comparison(accumulator, before);
    if (accumulator != before) {
        set_gpr<T>(cpu, 0, before);
    }
}

template <typename T>
[[gnu::noinline]] void compare_exchange_registers(Cpu& cpu, const Op& op)
{
    const T accumulator = gpr_at<T>(cpu, 0);
    const T before = gpr_at<T>(cpu, op.rm);
    const T source = gpr_at<T>(cpu, op.reg);
    finish_compare(cpu, accumulator, before);
    if (accumulator == before) {
        set_gpr<T>(cpu, op.rm, source);
    }
}

template <typename T>
[[gnu::noinline]] void compare_exchange_memory(Cpu& cpu, const Op& op)
{
    const std::uint64_t linear = linear_address(cpu, op, sizeof(T), Access::ReadWrite);
    const T accumulator = gpr_at<T>(cpu, 0);
    const T source = gpr_at<T>(cpu, op.reg);
    T before = accumulator;
    if (op.lock) {
        locked<T>(cpu, segment_of(op), linear, [&](std::byte* bytes) {
            before = accumulator;
            asm volatile("lock; cmpxchg %[s], (%[m])"
                         : "+&a"(before)
                         : [s] "q"(source), [m] "r"(bytes)
                         : "cc", "memory");
        });
    } else {
        // The destination is written in either case.
        before = fast_load_for_write<T>(cpu, segment_of(op), linear);
        fast_store<T>(cpu, segment_of(op), linear, before == accumulator ? source : before);
    }
    finish_compare(cpu, accumulator, before);
}

void set_zf(Cpu& cpu, bool zero) noexcept
{
    cpu.arithmetic_flags = static_cast<std::uint16_t>(
        (cpu.arithmetic_flags & static_cast<std::uint16_t>(~flag::zf)) | (zero ? flag::zf : 0U));
}

/// CMPXCHG8B.  Atomic with or without the prefix: allowed, and it saves a second way.
[[gnu::noinline]] void compare_exchange_8(Cpu& cpu, const Op& op)
{
    using T = std::uint64_t;
    const std::uint64_t linear = linear_address(cpu, op, sizeof(T), Access::ReadWrite);
    const T expected = (cpu.gpr[Rdx] << 32U) | (cpu.gpr[Rax] & 0xffff'ffffU);
    const T wanted = (cpu.gpr[Rcx] << 32U) | (cpu.gpr[Rbx] & 0xffff'ffffU);
    T before = expected;
    locked<T>(cpu, segment_of(op), linear, [&](std::byte* bytes) {
        before = expected;
        asm volatile("lock; cmpxchg %[s], (%[m])"
                     : "+&a"(before)
                     : [s] "r"(wanted), [m] "r"(bytes)
                     : "cc", "memory");
    });
    set_zf(cpu, before == expected);
    if (before != expected) {
        cpu.gpr[Rax] = before & 0xffff'ffffU;
        cpu.gpr[Rdx] = before >> 32U;
    }
}

[[gnu::noinline]] void compare_exchange_16(Cpu& cpu, const Op& op)
{
    using Pair = std::array<std::uint64_t, 2>;
    const std::uint64_t linear = linear_address(cpu, op, sizeof(Pair), Access::ReadWrite);
    if (linear % sizeof(Pair) != 0) {
        raise(Vector::GP, 0);
    }
    std::uint64_t low = cpu.gpr[Rax];
    std::uint64_t high = cpu.gpr[Rdx];
    bool equal = false;
    locked<Pair>(cpu, segment_of(op), linear, [&](std::byte* bytes) {
        low = cpu.gpr[Rax];
        high = cpu.gpr[Rdx];
        asm volatile("lock; cmpxchg16b (%[m])"
                     : "+&a"(low), "+&d"(high), "=@ccz"(equal)
                     : "b"(cpu.gpr[Rbx]), "c"(cpu.gpr[Rcx]), [m] "r"(bytes)
                     : "memory");
    });
    set_zf(cpu, equal);
    if (!equal) {
        cpu.gpr[Rax] = low;
        cpu.gpr[Rdx] = high;
    }
}

}  // namespace

Handler select_exchange(const Insn& insn, const SelectContext& /*context*/, Op& op)
{
    const unsigned opcode = insn.opcode;
    if (insn.vex) {
        return nullptr;
    }
    if (insn.map == OpcodeMap::Primary) {
        if (opcode >= 0x90 && opcode <= 0x97) {
            op.reg = 0;
            return by_size(insn.operand_size, [](auto type) -> Handler {
                return exchange_registers<typename decltype(type)::type>;
            });
        }
        if (opcode != 0x86 && opcode != 0x87) {
            return nullptr;
        }
    } else if (insn.map != OpcodeMap::Map0F) {
        return nullptr;
    }
    const bool exchange = insn.map == OpcodeMap::Primary;
    const bool compare = !exchange && (opcode == 0xb0 || opcode == 0xb1);
    const bool add = !exchange && (opcode == 0xc0 || opcode == 0xc1);
    if (!exchange && opcode == 0xc7 && insn.group == 1 && insn.has_memory) {
        return insn.rex_w ? plain<compare_exchange_16> : plain<compare_exchange_8>;
    }
    if (!exchange && !compare && !add) {
        return nullptr;
    }
    if (width(insn) == 1) {
        use_byte_registers(insn, op);
    }
    return by_any_size(width(insn), [&](auto type) -> Handler {
        using T = typename decltype(type)::type;
        if (exchange) {
            return insn.has_memory ? Handler{plain<exchange_memory<T>>}
                                   : Handler{exchange_registers<T>};
        }
        if (add) {
            return insn.has_memory ? Handler{plain<exchange_add_memory<T>>}
                                   : Handler{plain<exchange_add_registers<T>>};
        }
        return insn.has_memory ? Handler{plain<compare_exchange_memory<T>>}
                               : Handler{plain<compare_exchange_registers<T>>};
    });
}

}  // namespace vmm::x86::soft
