// SPDX-License-Identifier: Apache-2.0

/// @file
/// The stack as PUSH, POP, CALL and RET use it.

#pragma once

#include <cstdint>

#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

/// What RSP is cut to: by SS.B outside of 64-bit code.
[[nodiscard]] inline std::uint64_t stack_mask(const Cpu& cpu) noexcept
{
    if (cpu.code_64()) {
        return ~std::uint64_t{0};
    }
    return cpu.seg[Ss].db != 0 ? 0xffff'ffffU : 0xffffU;
}

/// Sets the part of RSP that the stack's size covers.
inline void set_stack_pointer(Cpu& cpu, std::uint64_t value) noexcept
{
    const std::uint64_t mask = stack_mask(cpu);
    if (mask == 0xffffU) {
        gpr_at<std::uint16_t>(cpu, Rsp * 8) = static_cast<std::uint16_t>(value);
    } else {
        cpu.gpr[Rsp] = value & mask;
    }
}

/// The linear address of `offset` in the stack segment.
[[nodiscard]] inline std::uint64_t stack_address(Cpu& cpu,
                                                 std::uint64_t offset,
                                                 std::size_t size,
                                                 Access access)
{
    if (cpu.code_64()) {
        return offset;
    }
    return segmented_address(cpu, Ss, offset, size, access);
}

/// The stack pointer `bytes` below (negative) or above the current one.
[[nodiscard]] inline std::uint64_t stack_pointer(const Cpu& cpu, std::int64_t bytes) noexcept
{
    return (cpu.gpr[Rsp] + static_cast<std::uint64_t>(bytes)) & stack_mask(cpu);
}

/// Stores `size` bytes of `value` at stack offset `sp`.
void store_stack(Cpu& cpu, unsigned size, std::uint64_t sp, std::uint64_t value);
/// Loads `size` bytes at stack offset `sp`.
[[nodiscard]] std::uint64_t load_stack(Cpu& cpu, unsigned size, std::uint64_t sp);

/// Pushes `size` (2, 4, 8) bytes of `value`.
void push(Cpu& cpu, unsigned size, std::uint64_t value);
/// What lies `offset` bytes above the top, without popping.
[[nodiscard]] std::uint64_t peek(Cpu& cpu, unsigned size, std::uint64_t offset);
/// Moves the stack pointer up.
void drop(Cpu& cpu, std::uint64_t bytes) noexcept;

/// In 64-bit code.
[[gnu::always_inline]] inline void push_64(Cpu& cpu, std::uint64_t value)
{
    const std::uint64_t sp = cpu.gpr[Rsp] - 8;
    fast_store<std::uint64_t>(cpu, Ss, sp, value);
    cpu.gpr[Rsp] = sp;
}

}  // namespace vmm::x86::soft
