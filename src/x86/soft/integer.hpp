// SPDX-License-Identifier: Apache-2.0

/// @file
/// What the handlers of integer instructions share: operands, flags, the stack, branches.

#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "x86/soft/cpu.hpp"
#include "x86/soft/dispatch.hpp"
#include "x86/soft/insn.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

// --- Selection by part; null for what is not theirs.
[[nodiscard]] Handler select_arithmetic(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_move(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_shift(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_bit_test(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_multiply(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_exchange(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_branch(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_stack(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_flag(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_string(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_port_io(const Insn& insn, const SelectContext& context, Op& op);

/// #GP(0) where a near branch may not go: beyond CS's limit, or to a non-canonical address.
void check_branch_target(const Cpu& cpu, std::uint64_t rip);

// --- Operands

/// The slot of byte register `number`: AH … BH are 4 … 7 without REX.
[[nodiscard]] constexpr std::uint8_t byte_slot(const Insn& insn, unsigned number) noexcept
{
    const bool high = !insn.has_rex && number >= 4 && number < 8;
    return static_cast<std::uint8_t>(high ? (number - 4) * 8 + 1 : number * 8);
}

/// Makes `op.reg` and `op.rm` slots of byte registers.
inline void use_byte_registers(const Insn& insn, Op& op) noexcept
{
    op.reg = byte_slot(insn, insn.reg);
    op.rm = byte_slot(insn, insn.rm);
}

/// Writes a general register as instructions do: 32 bits clear the upper half.
template <typename T>
[[gnu::always_inline]] inline void set_gpr(Cpu& cpu, std::uint8_t slot, T value) noexcept
{
    if constexpr (sizeof(T) == 4) {
        gpr_at<std::uint64_t>(cpu, slot) = value;
    } else {
        gpr_at<T>(cpu, slot) = value;
    }
}

/// The forms of a memory operand that are worth a handler of their own.
enum class Mem : std::uint8_t {
    Base,     ///< 64-bit code, no FS/GS, 64-bit address without index.
    Indexed,  ///< The same with an index.
    Any,
};

[[nodiscard]] inline Mem mem_form(const Op& op) noexcept
{
    if (op.address_kind != AddressKind::Flat64 || op.address_size != 8) {
        return Mem::Any;
    }
    return op.index == zero_slot ? Mem::Base : Mem::Indexed;
}

template <Mem M>
[[nodiscard, gnu::always_inline]] inline std::uint64_t operand_address(Cpu& cpu,
                                                                       const Op& op,
                                                                       std::size_t size,
                                                                       Access access)
{
    if constexpr (M == Mem::Any) {
        return linear_address(cpu, op, size, access);
    } else {
        std::uint64_t address = gpr_at<std::uint64_t>(cpu, op.base) +
                                static_cast<std::uint64_t>(std::int64_t{op.displacement});
        if constexpr (M == Mem::Indexed) {
            address += gpr_at<std::uint64_t>(cpu, op.index) << op.scale;
        }
        return address;
    }
}

[[nodiscard, gnu::always_inline]] inline SegmentIndex segment_of(const Op& op) noexcept
{
    return static_cast<SegmentIndex>(op.segment);
}

/// The slow paths as functions of values: a handler with a local whose address escapes does not
/// end in a jump.
template <typename T>
[[gnu::noinline, gnu::cold]] T load_slow(Cpu& cpu, SegmentIndex segment, std::uint64_t linear)
{
    T value;
    read_slow(cpu, segment, linear, &value, sizeof(T));
    return value;
}
template <typename T>
[[gnu::noinline, gnu::cold]] T load_for_write_slow(Cpu& cpu,
                                                   SegmentIndex segment,
                                                   std::uint64_t linear)
{
    T value;
    read_for_write_slow(cpu, segment, linear, &value, sizeof(T));
    return value;
}
template <typename T>
[[gnu::noinline, gnu::cold]] void store_slow(Cpu& cpu,
                                             SegmentIndex segment,
                                             std::uint64_t linear,
                                             T value)
{
    write_slow(cpu, segment, linear, &value, sizeof(T));
}

template <typename T>
[[nodiscard, gnu::always_inline]] inline bool is_readable(const TlbEntry& entry,
                                                          std::uint64_t linear) noexcept
{
    return entry.read_tag == ((linear + sizeof(T) - 1U) & ~std::uint64_t{0xfff});
}
template <typename T>
[[nodiscard, gnu::always_inline]] inline bool is_writable(const TlbEntry& entry,
                                                          std::uint64_t linear) noexcept
{
    return entry.write_tag == ((linear + sizeof(T) - 1U) & ~std::uint64_t{0xfff});
}

template <typename T>
[[nodiscard, gnu::always_inline]] inline T fast_load(Cpu& cpu,
                                                     SegmentIndex segment,
                                                     std::uint64_t linear)
{
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    if (is_readable<T>(entry, linear)) [[likely]] {
        // SAFETY: the entry maps this page of guest memory (see `TlbEntry::addend`).
        return load_host<T>(reinterpret_cast<const std::byte*>(linear + entry.addend));
    }
    return load_slow<T>(cpu, segment, linear);
}

template <typename T>
[[gnu::always_inline]] inline void fast_store(Cpu& cpu,
                                              SegmentIndex segment,
                                              std::uint64_t linear,
                                              T value)
{
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    if (is_writable<T>(entry, linear)) [[likely]] {
        // SAFETY: as in `fast_load`.
        store_host<T>(reinterpret_cast<std::byte*>(linear + entry.addend), value);
        return;
    }
    store_slow<T>(cpu, segment, linear, value);
}

template <typename T>
[[nodiscard, gnu::always_inline]] inline T fast_load_for_write(Cpu& cpu,
                                                               SegmentIndex segment,
                                                               std::uint64_t linear)
{
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    if (is_writable<T>(entry, linear)) [[likely]] {
        // SAFETY: as in `fast_load`.
        return load_host<T>(reinterpret_cast<const std::byte*>(linear + entry.addend));
    }
    return load_for_write_slow<T>(cpu, segment, linear);
}

// --- Handlers from functions, for what is not worth a tight one: `Body` commits or throws.

template <void (*Body)(Cpu&, const Op&)>
const Op* plain(Cpu& cpu, const Op* op)
{
    Body(cpu, *op);
    return next(cpu, op);
}
template <void (*Body)(Cpu&, const Op&)>
const Op* leaving(Cpu& cpu, const Op* op)
{
    Body(cpu, *op);
    return leave(cpu, op);
}

// --- Atomic access

/// Where a locked access of `T` at `linear` can use the host's lock prefix; null where it must go
/// through `locked_slow`: no plain memory, across pages, or across lines (which the host's kernel
/// may refuse).
template <typename T>
[[nodiscard]] inline std::byte* locked_pointer(Cpu& cpu, SegmentIndex segment, std::uint64_t linear)
{
    constexpr std::uint64_t line = 64;
    const TlbEntry& entry = tlb_entry<T>(cpu, linear);
    if (linear % line + sizeof(T) > line) {
        return nullptr;
    }
    if (is_writable<T>(entry, linear)) [[likely]] {
        // SAFETY: as in `fast_load`.
        return reinterpret_cast<std::byte*>(linear + entry.addend);
    }
    return direct(cpu, segment, linear, sizeof(T), Access::ReadWrite);
}

/// Calls `action(bytes)` once with the address of the operand, or of a copy of it while no other
/// vCPU runs; `action` works with a lock prefix.
template <typename T, typename Action>
void locked(Cpu& cpu, SegmentIndex segment, std::uint64_t linear, Action action)
{
    if (std::byte* const bytes = locked_pointer<T>(cpu, segment, linear)) {
        action(bytes);
        return;
    }
    locked_slow(
        cpu, segment, linear, sizeof(T),
        [](std::byte* bytes, void* context) { (*static_cast<Action*>(context))(bytes); }, &action);
}

// --- Flags.  `Cpu::arithmetic_flags` has CF 8, PF 10, AF 12, ZF 14, SF 15, OF 0.

/// Assembly: the host's arithmetic flags are those in AX, which it changes.  So an instruction that
/// leaves a flag undefined leaves what it would if the guest ran on the host.
#define VMM_LOAD_FLAGS "addb $0x7f, %%al\n\tsahf\n\t"

namespace flag {
inline constexpr std::uint16_t cf = 1U << 8U;
inline constexpr std::uint16_t pf = 1U << 10U;
inline constexpr std::uint16_t af = 1U << 12U;
inline constexpr std::uint16_t zf = 1U << 14U;
inline constexpr std::uint16_t sf = 1U << 15U;
inline constexpr std::uint16_t of = 1U << 0U;
}  // namespace flag

/// Condition `Code` of Jcc, SETcc, CMOVcc.
template <unsigned Code>
[[nodiscard, gnu::always_inline]] inline bool condition(std::uint16_t flags) noexcept
{
    constexpr unsigned kind = Code >> 1U;
    bool result = false;
    if constexpr (kind == 0) {
        result = (flags & flag::of) != 0;
    } else if constexpr (kind == 1) {
        result = (flags & flag::cf) != 0;
    } else if constexpr (kind == 2) {
        result = (flags & flag::zf) != 0;
    } else if constexpr (kind == 3) {
        result = (flags & (flag::cf | flag::zf)) != 0;
    } else if constexpr (kind == 4) {
        result = (flags & flag::sf) != 0;
    } else if constexpr (kind == 5) {
        result = (flags & flag::pf) != 0;
    } else if constexpr (kind == 6) {
        result = (((flags >> 15U) ^ flags) & 1U) != 0;
    } else {
        result = ((((flags >> 15U) ^ flags) & 1U) | (flags & flag::zf)) != 0;
    }
    return result != ((Code & 1U) != 0);
}

// --- Choosing an instance of a handler template at run time

template <typename T>
struct Type {
    using type = T;
};

/// `choose(Type<T>)` for the unsigned type of `size` bytes (2, 4, 8).
template <typename Choose>
[[nodiscard]] Handler by_size(unsigned size, const Choose& choose)
{
    switch (size) {
    case 2: return choose(Type<std::uint16_t>{});
    case 4: return choose(Type<std::uint32_t>{});
    default: return choose(Type<std::uint64_t>{});
    }
}
/// The same with bytes.
template <typename Choose>
[[nodiscard]] Handler by_any_size(unsigned size, const Choose& choose)
{
    return size == 1 ? choose(Type<std::uint8_t>{}) : by_size(size, choose);
}

template <typename Choose>
[[nodiscard]] Handler by_mem(const Op& op, const Choose& choose)
{
    switch (mem_form(op)) {
    case Mem::Base: return choose(std::integral_constant<Mem, Mem::Base>{});
    case Mem::Indexed: return choose(std::integral_constant<Mem, Mem::Indexed>{});
    case Mem::Any: break;
    }
    return choose(std::integral_constant<Mem, Mem::Any>{});
}

/// `choose(integral_constant<unsigned, value>)` for value < Count.
template <unsigned Count, typename Choose>
[[nodiscard]] Handler by_number(unsigned value, const Choose& choose)
{
    if constexpr (Count == 0) {
        return nullptr;
    } else {
        if (value == Count - 1) {
            return choose(std::integral_constant<unsigned, Count - 1>{});
        }
        return by_number<Count - 1>(value, choose);
    }
}

/// Operand size of an opcode whose bit 0 tells bytes (0) from words.
[[nodiscard]] inline unsigned width(const Insn& insn) noexcept
{
    return (insn.opcode & 1U) != 0 ? insn.operand_size : 1U;
}

}  // namespace vmm::x86::soft
