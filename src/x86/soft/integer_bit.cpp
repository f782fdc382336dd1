// SPDX-License-Identifier: Apache-2.0

/// @file
/// BT BTS BTR BTC, with their bit strings in memory, BSF and BSR.

#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

namespace {

enum class Bit : std::uint8_t { Test, Set, Reset, Complement };

template <Bit B, typename T>
[[nodiscard]] constexpr T changed(T value, T mask) noexcept
{
    if constexpr (B == Bit::Set) {
        return static_cast<T>(value | mask);
    } else if constexpr (B == Bit::Reset) {
        return static_cast<T>(value & static_cast<T>(~mask));
    } else if constexpr (B == Bit::Complement) {
        return static_cast<T>(value ^ mask);
    } else {
        return value;
    }
}

/// Only CF is defined; processors leave the others as they were.
[[gnu::always_inline]] inline void set_carry(Cpu& cpu, bool carry) noexcept
{
    cpu.arithmetic_flags = static_cast<std::uint16_t>(
        (cpu.arithmetic_flags & static_cast<std::uint16_t>(~flag::cf)) | (carry ? flag::cf : 0U));
}

template <Bit B, typename T, bool Immediate>
const Op* bit_of_register(Cpu& cpu, const Op* op)
{
    constexpr unsigned bits = sizeof(T) * 8;
    const auto index = Immediate ? static_cast<T>(op->immediate) : gpr_at<T>(cpu, op->reg);
    const T mask = static_cast<T>(T{1} << (index % bits));
    const T value = gpr_at<T>(cpu, op->rm);
    set_carry(cpu, (value & mask) != 0);
    if constexpr (B != Bit::Test) {
        set_gpr<T>(cpu, op->rm, changed<B>(value, mask));
    }
    return next(cpu, op);
}

/// The linear address of the word that holds bit `index`, which counts from the operand on.
template <typename T, bool Immediate>
[[nodiscard]] std::uint64_t bit_address(Cpu& cpu, const Op& op, T index, Access access)
{
    if constexpr (Immediate) {
        return linear_address(cpu, op, sizeof(T), access);
    } else {
        using Signed = std::make_signed_t<T>;
        constexpr int shift = sizeof(T) == 2 ? 4 : (sizeof(T) == 4 ? 5 : 6);
        const auto words = std::int64_t{static_cast<Signed>(index)} >> shift;
        std::uint64_t address =
            effective_address(cpu, op) + static_cast<std::uint64_t>(words) * sizeof(T);
        if (op.address_size == 4) {
            address &= 0xffff'ffffU;
        } else if (op.address_size == 2) {
            address &= 0xffffU;
        }
        if (op.address_kind == AddressKind::Segmented || op.address_kind == AddressKind::Flat32) {
            return segmented_address(cpu, segment_of(op), address, sizeof(T), access);
        }
        return op.address_kind == AddressKind::Based64 ? address + cpu.seg[op.segment].base
                                                       : address;
    }
}

template <Bit B, typename T, bool Immediate>
[[gnu::noinline]] void bit_of_memory(Cpu& cpu, const Op& op)
{
    constexpr unsigned bits = sizeof(T) * 8;
    constexpr Access access = B == Bit::Test ? Access::Read : Access::ReadWrite;
    const auto index = Immediate ? static_cast<T>(op.immediate) : gpr_at<T>(cpu, op.reg);
    const T mask = static_cast<T>(T{1} << (index % bits));
    const std::uint64_t linear = bit_address<T, Immediate>(cpu, op, index, access);
    if constexpr (B == Bit::Test) {
        set_carry(cpu, (fast_load<T>(cpu, segment_of(op), linear) & mask) != 0);
    } else {
        const T value = fast_load_for_write<T>(cpu, segment_of(op), linear);
        fast_store<T>(cpu, segment_of(op), linear, changed<B>(value, mask));
        set_carry(cpu, (value & mask) != 0);
    }
}

template <Bit B, typename T, bool Immediate>
[[gnu::noinline]] void locked_bit(Cpu& cpu, const Op& op)
{
    constexpr unsigned bits = sizeof(T) * 8;
    const auto index = Immediate ? static_cast<T>(op.immediate) : gpr_at<T>(cpu, op.reg);
    const T mask = static_cast<T>(T{1} << (index % bits));
    const std::uint64_t linear = bit_address<T, Immediate>(cpu, op, index, Access::ReadWrite);
    T before{};
    locked<T>(cpu, segment_of(op), linear, [&](std::byte* bytes) {
        T expected = load_host<T>(bytes);
        for (bool done = false; !done;) {
            const T wanted = changed<B>(expected, mask);
            asm volatile("lock; cmpxchg %[wanted], (%[m])"
                         : "+&a"(expected), "=@ccz"(done)
                         : [wanted] "q"(wanted), [m] "r"(bytes)
                         : "memory");
        }
        before = expected;
    });
    set_carry(cpu, (before & mask) != 0);
}

/// BSF (Forward) and BSR.  A source of 0 leaves the destination as it was.
template <bool Forward, typename T>
[[gnu::always_inline]] inline void scan_bits(Cpu& cpu, const Op& op, T source) noexcept
{
    std::uint16_t flags = cpu.arithmetic_flags;
    // As the host does: its other flags are undefined as well.
    T result = gpr_at<T>(cpu, op.reg);
    if (source == 0) {
        cpu.arithmetic_flags = flag::zf | flag::pf | 0x0200U;
        return;
    }
    if constexpr (Forward) {
        asm(VMM_LOAD_FLAGS "bsf %[s], %[r]\n\tlahf\n\tseto %%al"
            : [r] "+&r"(result), "+&a"(flags)
            : [s] "r"(source)
            : "cc");
    } else {
        asm(VMM_LOAD_FLAGS "bsr %[s], %[r]\n\tlahf\n\tseto %%al"
            : [r] "+&r"(result), "+&a"(flags)
            : [s] "r"(source)
            : "cc");
    }
    set_gpr<T>(cpu, op.reg, result);
    cpu.arithmetic_flags = flags;
}

template <bool Forward, typename T>
const Op* scan_register(Cpu& cpu, const Op* op)
{
    scan_bits<Forward, T>(cpu, *op, gpr_at<T>(cpu, op->rm));
    return next(cpu, op);
}

template <bool Forward, typename T>
const Op* scan_memory(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = linear_address(cpu, *op, sizeof(T), Access::Read);
    scan_bits<Forward, T>(cpu, *op, fast_load<T>(cpu, segment_of(*op), linear));
    return next(cpu, op);
}

template <bool Immediate>
Handler by_bit(unsigned kind, const Insn& insn, const Op& op)
{
    return by_number<4>(kind, [&](auto b) {
        return by_size(insn.operand_size, [&](auto type) -> Handler {
            using T = typename decltype(type)::type;
            constexpr auto bit = static_cast<Bit>(b.value);
            if (!insn.has_memory) {
                return bit_of_register<bit, T, Immediate>;
            }
            if (op.lock) {
                return plain<locked_bit<bit, T, Immediate>>;
            }
            return plain<bit_of_memory<bit, T, Immediate>>;
        });
    });
}

}  // namespace

Handler select_bit_test(const Insn& insn, const SelectContext& /*context*/, Op& op)
{
    if (insn.map != OpcodeMap::Map0F || insn.vex) {
        return nullptr;
    }
    switch (insn.opcode) {
    case 0xa3: return by_bit<false>(0, insn, op);
    case 0xab: return by_bit<false>(1, insn, op);
    case 0xb3: return by_bit<false>(2, insn, op);
    case 0xbb: return by_bit<false>(3, insn, op);
    case 0xba: return insn.group >= 4 ? by_bit<true>(insn.group - 4U, insn, op) : nullptr;
    case 0xbc:
    case 0xbd:
        if (insn.rep) {
            return nullptr;  // TZCNT, LZCNT
        }
        return by_size(insn.operand_size, [&](auto type) -> Handler {
            using T = typename decltype(type)::type;
            if (insn.opcode == 0xbc) {
                return insn.has_memory ? Handler{scan_memory<true, T>}
                                       : Handler{scan_register<true, T>};
            }
            return insn.has_memory ? Handler{scan_memory<false, T>}
                                   : Handler{scan_register<false, T>};
        });
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
