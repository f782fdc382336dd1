// SPDX-License-Identifier: Apache-2.0

/// @file
/// ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NOT NEG.  The host computes result and flags.

#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

namespace {

/// In the order of the opcode map; TEST behind it.
enum class Alu : std::uint8_t { Add, Or, Adc, Sbb, And, Sub, Xor, Cmp, Test };
enum class Unary : std::uint8_t { Inc, Dec, Not, Neg };

constexpr unsigned alu_count = 9;

constexpr bool writes(Alu operation) noexcept
{
    return operation != Alu::Cmp && operation != Alu::Test;
}

#define VMM_ALU(instruction)                                                                       \
    asm(instruction " %[b], %[a]\n\tlahf\n\tseto %%al"                                             \
        : [a] "+&q"(a), [f] "=&a"(flags)                                                           \
        : [b] "q"(b)                                                                               \
        : "cc")
#define VMM_ALU_CARRY(instruction)                                                                 \
    asm("btw $8, %w[f]\n\t" instruction " %[b], %[a]\n\tlahf\n\tseto %%al"                         \
        : [a] "+&q"(a), [f] "+&a"(flags)                                                           \
        : [b] "q"(b)                                                                               \
        : "cc")

/// `a` op `b`; `flags` in and out.
template <Alu A, typename T>
[[nodiscard, gnu::always_inline]] inline T compute(T a, T b, std::uint16_t& flags) noexcept
{
    if constexpr (A == Alu::Add) {
        VMM_ALU("add");
    } else if constexpr (A == Alu::Or) {
        VMM_ALU("or");
    } else if constexpr (A == Alu::Adc) {
        VMM_ALU_CARRY("adc");
    } else if constexpr (A == Alu::Sbb) {
        VMM_ALU_CARRY("sbb");
    } else if constexpr (A == Alu::And) {
        VMM_ALU("and");
    } else if constexpr (A == Alu::Sub) {
        VMM_ALU("sub");
    } else if constexpr (A == Alu::Xor) {
        VMM_ALU("xor");
    } else if constexpr (A == Alu::Cmp) {
        VMM_ALU("cmp");
    } else {
        VMM_ALU("test");
    }
    return a;
}

#define VMM_UNARY(instruction)                                                                     \
    asm("btw $8, %w[f]\n\t" instruction " %[a]\n\tlahf\n\tseto %%al"                               \
        : [a] "+&q"(a), [f] "+&a"(flags)                                                           \
        :                                                                                          \
        : "cc")

template <Unary U, typename T>
[[nodiscard, gnu::always_inline]] inline T compute(T a, std::uint16_t& flags) noexcept
{
    if constexpr (U == Unary::Inc) {
        VMM_UNARY("inc");
    } else if constexpr (U == Unary::Dec) {
        VMM_UNARY("dec");
    } else if constexpr (U == Unary::Neg) {
        VMM_UNARY("neg");
    } else {
        a = static_cast<T>(~a);
    }
    return a;
}

/// Replaces the value at `linear` by `change(value)`.
template <typename T, typename Change>
[[gnu::always_inline]] inline void modify(Cpu& cpu,
                                          SegmentIndex segment,
                                          std::uint64_t linear,
                                          const Change& change)
{
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    if (is_writable<T>(entry, linear)) [[likely]] {
        // SAFETY: as in `fast_load`.
        auto* const place = reinterpret_cast<std::byte*>(linear + entry.addend);
        store_host<T>(place, change(load_host<T>(place)));
        return;
    }
    store_slow<T>(cpu, segment, linear, change(load_for_write_slow<T>(cpu, segment, linear)));
}

template <Alu A, typename T>
const Op* alu_register(Cpu& cpu, const Op* op)
{
    std::uint16_t flags = cpu.arithmetic_flags;
    const T result = compute<A>(gpr_at<T>(cpu, op->rm), gpr_at<T>(cpu, op->reg), flags);
    cpu.arithmetic_flags = flags;
    if constexpr (writes(A)) {
        set_gpr<T>(cpu, op->rm, result);
    }
    return next(cpu, op);
}

template <Alu A, typename T>
const Op* alu_immediate(Cpu& cpu, const Op* op)
{
    std::uint16_t flags = cpu.arithmetic_flags;
    const T result = compute<A>(gpr_at<T>(cpu, op->rm), static_cast<T>(op->immediate), flags);
    cpu.arithmetic_flags = flags;
    if constexpr (writes(A)) {
        set_gpr<T>(cpu, op->rm, result);
    }
    return next(cpu, op);
}

/// XOR and SUB of a register with itself: a constant.
template <typename T>
const Op* zero_register(Cpu& cpu, const Op* op)
{
    set_gpr<T>(cpu, op->rm, 0);
    cpu.arithmetic_flags = flag::zf | flag::pf | 0x0200U;
    return next(cpu, op);
}

/// Register op memory.
template <Alu A, typename T, Mem M>
const Op* alu_load(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = operand_address<M>(cpu, *op, sizeof(T), Access::Read);
    const T source = fast_load<T>(cpu, segment_of(*op), linear);
    std::uint16_t flags = cpu.arithmetic_flags;
    const T result = compute<A>(gpr_at<T>(cpu, op->rm), source, flags);
    cpu.arithmetic_flags = flags;
    if constexpr (writes(A)) {
        set_gpr<T>(cpu, op->rm, result);
    }
    return next(cpu, op);
}

/// Memory op register, or immediate.
template <Alu A, typename T, Mem M, bool Immediate>
const Op* alu_memory(Cpu& cpu, const Op* op)
{
    constexpr Access access = writes(A) ? Access::ReadWrite : Access::Read;
    const std::uint64_t linear = operand_address<M>(cpu, *op, sizeof(T), access);
    const T source = Immediate ? static_cast<T>(op->immediate) : gpr_at<T>(cpu, op->reg);
    std::uint16_t flags = cpu.arithmetic_flags;
    if constexpr (writes(A)) {
        modify<T>(cpu, segment_of(*op), linear,
                  [&](T value) { return compute<A>(value, source, flags); });
    } else {
        const T value = fast_load<T>(cpu, segment_of(*op), linear);
        static_cast<void>(compute<A>(value, source, flags));
    }
    cpu.arithmetic_flags = flags;
    return next(cpu, op);
}

template <Unary U, typename T>
const Op* unary_register(Cpu& cpu, const Op* op)
{
    std::uint16_t flags = cpu.arithmetic_flags;
    const T result = compute<U>(gpr_at<T>(cpu, op->rm), flags);
    cpu.arithmetic_flags = flags;
    set_gpr<T>(cpu, op->rm, result);
    return next(cpu, op);
}

template <Unary U, typename T, Mem M>
const Op* unary_memory(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = operand_address<M>(cpu, *op, sizeof(T), Access::ReadWrite);
    std::uint16_t flags = cpu.arithmetic_flags;
    modify<T>(cpu, segment_of(*op), linear, [&](T value) { return compute<U>(value, flags); });
    cpu.arithmetic_flags = flags;
    return next(cpu, op);
}

// --- With LOCK

#define VMM_LOCKED(instruction)                                                                    \
    asm volatile("lock; " instruction " %[b], (%[m])\n\tlahf\n\tseto %%al"                         \
                 : [f] "=&a"(flags)                                                                \
                 : [b] "q"(b), [m] "r"(bytes)                                                      \
                 : "cc", "memory")
#define VMM_LOCKED_CARRY(instruction)                                                              \
    asm volatile("btw $8, %w[f]\n\tlock; " instruction " %[b], (%[m])\n\tlahf\n\tseto %%al"        \
                 : [f] "+&a"(flags)                                                                \
                 : [b] "q"(b), [m] "r"(bytes)                                                      \
                 : "cc", "memory")

template <Alu A, typename T>
std::uint16_t locked_compute(std::byte* bytes, T b, std::uint16_t flags) noexcept
{
    if constexpr (A == Alu::Add) {
        VMM_LOCKED("add");
    } else if constexpr (A == Alu::Or) {
        VMM_LOCKED("or");
    } else if constexpr (A == Alu::Adc) {
        VMM_LOCKED_CARRY("adc");
    } else if constexpr (A == Alu::Sbb) {
        VMM_LOCKED_CARRY("sbb");
    } else if constexpr (A == Alu::And) {
        VMM_LOCKED("and");
    } else if constexpr (A == Alu::Sub) {
        VMM_LOCKED("sub");
    } else {
        static_assert(A == Alu::Xor);
        VMM_LOCKED("xor");
    }
    return flags;
}

template <Alu A, typename T, bool Immediate>
[[gnu::noinline]] void locked_alu(Cpu& cpu, const Op& op)
{
    const std::uint64_t linear = linear_address(cpu, op, sizeof(T), Access::ReadWrite);
    const T source = Immediate ? static_cast<T>(op.immediate) : gpr_at<T>(cpu, op.reg);
    std::uint16_t flags = cpu.arithmetic_flags;
    locked<T>(cpu, segment_of(op), linear,
              [&](std::byte* bytes) { flags = locked_compute<A>(bytes, source, flags); });
    cpu.arithmetic_flags = flags;
}

template <Unary U, typename T>
[[gnu::noinline]] void locked_unary(Cpu& cpu, const Op& op)
{
    const std::uint64_t linear = linear_address(cpu, op, sizeof(T), Access::ReadWrite);
    std::uint16_t flags = cpu.arithmetic_flags;
    locked<T>(cpu, segment_of(op), linear, [&](std::byte* bytes) {
        const std::uint16_t before = flags;
        constexpr std::uint16_t kept = flag::cf;
        if constexpr (U == Unary::Inc) {
            flags = locked_compute<Alu::Add, T>(bytes, 1, flags);
            flags = static_cast<std::uint16_t>((flags & ~kept) | (before & kept));
        } else if constexpr (U == Unary::Dec) {
            flags = locked_compute<Alu::Sub, T>(bytes, 1, flags);
            flags = static_cast<std::uint16_t>((flags & ~kept) | (before & kept));
        } else if constexpr (U == Unary::Not) {
            static_cast<void>(locked_compute<Alu::Xor, T>(bytes, static_cast<T>(-1), flags));
        } else {
            T expected = load_host<T>(bytes);
            for (bool done = false; !done;) {
                flags = before;
                const T wanted = compute<Unary::Neg>(expected, flags);
                asm volatile("lock; cmpxchg %[wanted], (%[m])"
                             : "+&a"(expected), "=@ccz"(done)
                             : [wanted] "q"(wanted), [m] "r"(bytes)
                             : "memory");
            }
        }
    });
    cpu.arithmetic_flags = flags;
}

// --- Selection

template <typename Choose>
Handler by_alu(unsigned operation, const Choose& choose)
{
    return by_number<alu_count>(operation, choose);
}

Handler alu_rr(unsigned operation, unsigned size)
{
    return by_alu(operation, [&](auto a) {
        return by_any_size(size, [&](auto type) -> Handler {
            return alu_register<static_cast<Alu>(a.value), typename decltype(type)::type>;
        });
    });
}

Handler alu_ri(unsigned operation, unsigned size)
{
    return by_alu(operation, [&](auto a) {
        return by_any_size(size, [&](auto type) -> Handler {
            return alu_immediate<static_cast<Alu>(a.value), typename decltype(type)::type>;
        });
    });
}

Handler alu_rm(unsigned operation, unsigned size, const Op& op)
{
    return by_alu(operation, [&](auto a) {
        return by_any_size(size, [&](auto type) {
            return by_mem(op, [&](auto mem) -> Handler {
                return alu_load<static_cast<Alu>(a.value), typename decltype(type)::type,
                                mem.value>;
            });
        });
    });
}

template <bool Immediate>
Handler alu_m(unsigned operation, unsigned size, const Op& op)
{
    if (op.lock) {
        return by_number<static_cast<unsigned>(Alu::Cmp)>(operation, [&](auto a) {
            return by_any_size(size, [&](auto type) -> Handler {
                return plain<locked_alu<static_cast<Alu>(a.value), typename decltype(type)::type,
                                        Immediate>>;
            });
        });
    }
    return by_alu(operation, [&](auto a) {
        return by_any_size(size, [&](auto type) {
            return by_mem(op, [&](auto mem) -> Handler {
                return alu_memory<static_cast<Alu>(a.value), typename decltype(type)::type,
                                  mem.value, Immediate>;
            });
        });
    });
}

Handler unary(Unary operation, unsigned size, const Insn& insn, const Op& op)
{
    return by_number<4>(static_cast<unsigned>(operation), [&](auto u) {
        return by_any_size(size, [&](auto type) -> Handler {
            using T = typename decltype(type)::type;
            constexpr auto kind = static_cast<Unary>(u.value);
            if (!insn.has_memory) {
                return unary_register<kind, T>;
            }
            if (op.lock) {
                return plain<locked_unary<kind, T>>;
            }
            return by_mem(op,
                          [&](auto mem) -> Handler { return unary_memory<kind, T, mem.value>; });
        });
    });
}

/// op E, G and op G, E.
Handler two_operands(unsigned operation, bool to_register, const Insn& insn, Op& op)
{
    const unsigned size = width(insn);
    if (size == 1) {
        use_byte_registers(insn, op);
    }
    if (insn.has_memory) {
        if (!to_register) {
            return alu_m<false>(operation, size, op);
        }
        op.rm = op.reg;
        return alu_rm(operation, size, op);
    }
    if (to_register) {
        std::swap(op.rm, op.reg);
    }
    const bool constant = operation == static_cast<unsigned>(Alu::Xor) ||
                          operation == static_cast<unsigned>(Alu::Sub);
    if (constant && op.rm == op.reg && size >= 4) {
        return size == 4 ? Handler{zero_register<std::uint32_t>}
                         : Handler{zero_register<std::uint64_t>};
    }
    return alu_rr(operation, size);
}

/// op E, immediate.
Handler with_immediate(unsigned operation, const Insn& insn, Op& op)
{
    const unsigned size = width(insn);
    if (size == 1) {
        use_byte_registers(insn, op);
    }
    return insn.has_memory ? alu_m<true>(operation, size, op) : alu_ri(operation, size);
}

Handler accumulator(unsigned operation, const Insn& insn, Op& op)
{
    op.rm = 0;
    return alu_ri(operation, width(insn));
}

}  // namespace

Handler select_arithmetic(const Insn& insn, const SelectContext& /*context*/, Op& op)
{
    if (insn.map != OpcodeMap::Primary) {
        return nullptr;
    }
    constexpr auto test = static_cast<unsigned>(Alu::Test);
    const unsigned opcode = insn.opcode;
    if (opcode < 0x40 && (opcode & 7U) < 6) {
        const unsigned operation = opcode >> 3U;
        if ((opcode & 4U) != 0) {
            return accumulator(operation, insn, op);
        }
        return two_operands(operation, (opcode & 2U) != 0, insn, op);
    }
    if (opcode >= 0x40 && opcode <= 0x4f) {
        return unary(opcode < 0x48 ? Unary::Inc : Unary::Dec, insn.operand_size, insn, op);
    }
    if (opcode >= 0x80 && opcode <= 0x83) {
        return with_immediate(insn.group, insn, op);
    }
    if (opcode == 0x84 || opcode == 0x85) {
        return two_operands(test, false, insn, op);
    }
    if (opcode == 0xa8 || opcode == 0xa9) {
        return accumulator(test, insn, op);
    }
    if (opcode == 0xf6 || opcode == 0xf7) {
        if (insn.group <= 1) {
            return with_immediate(test, insn, op);
        }
        if (insn.group > 3) {
            return nullptr;
        }
    } else if ((opcode != 0xfe && opcode != 0xff) || insn.group > 1) {
        return nullptr;
    }
    const unsigned size = width(insn);
    if (size == 1) {
        use_byte_registers(insn, op);
    }
    const bool count = opcode >= 0xfe;
    const Unary first = count ? Unary::Inc : Unary::Not;
    const Unary second = count ? Unary::Dec : Unary::Neg;
    return unary((insn.group & 1U) == 0 ? first : second, size, insn, op);
}

}  // namespace vmm::x86::soft
