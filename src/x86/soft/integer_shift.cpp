// SPDX-License-Identifier: Apache-2.0

/// @file
/// Shifts, rotates and double shifts.  The host computes result and flags; a count of 0 changes
/// neither, and the flags a count leaves undefined are what the host makes of them.

#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

namespace {

/// In the order of the opcode group.
enum class Shift : std::uint8_t { Rol, Ror, Rcl, Rcr, Shl, Shr, Sal, Sar };

/// All flags go through the instruction: rotates leave some as they were.
#define VMM_SHIFT(instruction)                                                                     \
    asm(VMM_LOAD_FLAGS instruction " %%cl, %[a]\n\tlahf\n\tseto %%al"                              \
        : [a] "+&q"(a), "+&a"(flags)                                                               \
        : "c"(count)                                                                               \
        : "cc")

/// @pre `count` is not 0, and less than the operand's bits or 32, 64.
template <Shift S, typename T>
[[nodiscard, gnu::always_inline]] inline T shift(T a,
                                                 std::uint8_t count,
                                                 std::uint16_t& flags) noexcept
{
    if constexpr (S == Shift::Rol) {
        VMM_SHIFT("rol");
    } else if constexpr (S == Shift::Ror) {
        VMM_SHIFT("ror");
    } else if constexpr (S == Shift::Rcl) {
        VMM_SHIFT("rcl");
    } else if constexpr (S == Shift::Rcr) {
        VMM_SHIFT("rcr");
    } else if constexpr (S == Shift::Shr) {
        VMM_SHIFT("shr");
    } else if constexpr (S == Shift::Sar) {
        VMM_SHIFT("sar");
    } else {
        VMM_SHIFT("shl");
    }
    return a;
}

template <typename T>
[[nodiscard, gnu::always_inline]] inline std::uint8_t masked(std::uint8_t count) noexcept
{
    return sizeof(T) == 8 ? count & 63U : count & 31U;
}

/// Where a count comes from.
enum class Count : std::uint8_t { Immediate, Cl };

template <Count C, typename T>
[[nodiscard, gnu::always_inline]] inline std::uint8_t count_of(Cpu& cpu, const Op& op) noexcept
{
    return masked<T>(C == Count::Immediate ? static_cast<std::uint8_t>(op.immediate)
                                           : gpr_at<std::uint8_t>(cpu, Rcx * 8));
}

template <Shift S, typename T, Count C>
const Op* shift_register(Cpu& cpu, const Op* op)
{
    const std::uint8_t count = count_of<C, T>(cpu, *op);
    const T value = gpr_at<T>(cpu, op->rm);
    if (count == 0) [[unlikely]] {
        set_gpr<T>(cpu, op->rm, value);  // A 32-bit destination is still written.
        return next(cpu, op);
    }
    std::uint16_t flags = cpu.arithmetic_flags;
    const T result = shift<S>(value, count, flags);
    cpu.arithmetic_flags = flags;
    set_gpr<T>(cpu, op->rm, result);
    return next(cpu, op);
}

template <Shift S, typename T, Count C>
[[gnu::noinline]] void shift_memory(Cpu& cpu, const Op& op)
{
    const std::uint64_t linear = linear_address(cpu, op, sizeof(T), Access::ReadWrite);
    const std::uint8_t count = count_of<C, T>(cpu, op);
    const T value = fast_load_for_write<T>(cpu, segment_of(op), linear);
    if (count == 0) {
        return;
    }
    std::uint16_t flags = cpu.arithmetic_flags;
    const T result = shift<S>(value, count, flags);
    fast_store<T>(cpu, segment_of(op), linear, result);
    cpu.arithmetic_flags = flags;
}

/// SHLD and SHRD by hand where the count exceeds 16-bit operands: undefined, but it must not
/// depend on the host.
template <bool Left, typename T>
[[nodiscard]] T double_shift(T a, T b, std::uint8_t count, std::uint16_t& flags) noexcept
{
    if (count > sizeof(T) * 8) {
        count = static_cast<std::uint8_t>(count % (sizeof(T) * 8));
        if (count == 0) {
            return a;
        }
    }
    if constexpr (Left) {
        asm(VMM_LOAD_FLAGS "shld %%cl, %[b], %[a]\n\tlahf\n\tseto %%al"
            : [a] "+&r"(a), "+&a"(flags)
            : [b] "r"(b), "c"(count)
            : "cc");
    } else {
        asm(VMM_LOAD_FLAGS "shrd %%cl, %[b], %[a]\n\tlahf\n\tseto %%al"
            : [a] "+&r"(a), "+&a"(flags)
            : [b] "r"(b), "c"(count)
            : "cc");
    }
    return a;
}

template <bool Left, typename T, Count C, bool Memory>
[[gnu::noinline]] void shift_double(Cpu& cpu, const Op& op)
{
    const std::uint8_t count = count_of<C, T>(cpu, op);
    const T source = gpr_at<T>(cpu, op.reg);
    std::uint16_t flags = cpu.arithmetic_flags;
    if constexpr (Memory) {
        const std::uint64_t linear = linear_address(cpu, op, sizeof(T), Access::ReadWrite);
        const T value = fast_load_for_write<T>(cpu, segment_of(op), linear);
        if (count == 0) {
            return;
        }
        const T result = double_shift<Left>(value, source, count, flags);
        fast_store<T>(cpu, segment_of(op), linear, result);
    } else {
        const T value = gpr_at<T>(cpu, op.rm);
        set_gpr<T>(cpu, op.rm,
                   count == 0 ? value : double_shift<Left>(value, source, count, flags));
    }
    cpu.arithmetic_flags = flags;
}

template <Count C>
Handler by_shift(const Insn& insn, Op& op)
{
    const unsigned size = width(insn);
    if (size == 1) {
        use_byte_registers(insn, op);
    }
    return by_number<8>(insn.group, [&](auto s) {
        return by_any_size(size, [&](auto type) -> Handler {
            using T = typename decltype(type)::type;
            constexpr auto kind = static_cast<Shift>(s.value);
            return insn.has_memory ? Handler{plain<shift_memory<kind, T, C>>}
                                   : Handler{shift_register<kind, T, C>};
        });
    });
}

template <bool Left, Count C>
Handler by_double_shift(const Insn& insn)
{
    return by_size(insn.operand_size, [&](auto type) -> Handler {
        using T = typename decltype(type)::type;
        return insn.has_memory ? Handler{plain<shift_double<Left, T, C, true>>}
                               : Handler{plain<shift_double<Left, T, C, false>>};
    });
}

}  // namespace

Handler select_shift(const Insn& insn, const SelectContext& /*context*/, Op& op)
{
    if (insn.map == OpcodeMap::Map0F) {
        switch (insn.opcode) {
        case 0xa4: return by_double_shift<true, Count::Immediate>(insn);
        case 0xa5: return by_double_shift<true, Count::Cl>(insn);
        case 0xac: return by_double_shift<false, Count::Immediate>(insn);
        case 0xad: return by_double_shift<false, Count::Cl>(insn);
        default: return nullptr;
        }
    }
    if (insn.map != OpcodeMap::Primary || insn.vex) {
        return nullptr;
    }
    switch (insn.opcode) {
    case 0xc0:
    case 0xc1: return by_shift<Count::Immediate>(insn, op);
    case 0xd0:
    case 0xd1: op.immediate = 1; return by_shift<Count::Immediate>(insn, op);
    case 0xd2:
    case 0xd3: return by_shift<Count::Cl>(insn, op);
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
