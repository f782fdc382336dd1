// SPDX-License-Identifier: Apache-2.0

/// @file
/// The handler of an instruction that runs as a thunk, in the variants that matter for speed.

#pragma once

#include <cstddef>
#include <cstdint>

#include "x86/soft/dispatch.hpp"
#include "x86/soft/native_operand.hpp"

namespace vmm::x86::soft::native_detail {

enum class MemoryUse : std::uint8_t { None, Load, Store };
enum class FlagUse : std::uint8_t { None, Out, InOut };

/// Calls the thunk.  `fp`: under the guest's MXCSR, whose exceptions must all be masked.
template <bool fp>
[[gnu::always_inline]] inline std::uint64_t run(Cpu& cpu,
                                                const Op* op,
                                                Operands operands,
                                                std::byte* rm,
                                                std::uint64_t flags)
{
    const Thunk thunk = thunk_of(*op);
    std::byte* const reg = register_at(cpu, operands.reg);
    std::byte* const vvvv = register_at(cpu, operands.vvvv);
    // Instructions that read flags have no fourth operand.
    const std::uint64_t extra =
        flags != 0 ? flags : reinterpret_cast<std::uintptr_t>(register_at(cpu, operands.extra));
    if constexpr (fp) {
        make_mxcsr_live(cpu);
    }
    return thunk(reg, rm, vvvv, cpu.gpr.data(), extra);
}

std::uint64_t run_unmasked(Cpu& cpu, const Op* op, std::byte* rm, bool is_memory);
std::uint64_t run_slow(Cpu& cpu, const Op* op, std::byte* rm, bool fp, bool is_memory);
std::uint64_t execute_slow(Cpu& cpu, const Op* op, std::uint64_t linear, bool store, bool fp);
std::uint64_t execute_with_flags(Cpu& cpu, const Op* op, std::uint64_t linear);

/// `Op`: immediate holds the packed operands, aux the thunk, extra the alignment mask.
template <Unit unit, MemoryUse memory, bool fp, FlagUse flags>
const Op* execute(Cpu& cpu, const Op* op)
{
    check_unit<unit>(cpu);
    const Operands operands = Operands::of(*op);
    std::byte* rm = nullptr;
    std::uint64_t result = 0;
    [[maybe_unused]] std::uint64_t linear = 0;
    if constexpr (memory == MemoryUse::None) {
        rm = register_at(cpu, operands.rm);
    } else {
        constexpr bool store = memory == MemoryUse::Store;
        linear = linear_address(cpu, *op, op->memory_size, store ? Access::Write : Access::Read);
        if ((linear & op->extra) != 0) [[unlikely]] {
            raise(Vector::GP, 0);
        }
        rm = quick_pointer<store>(cpu, linear, op->memory_size);
    }
    bool slow = memory != MemoryUse::None && rm == nullptr;
    if constexpr (fp) {
        slow = slow || (cpu.fpu.mxcsr & mxcsr_masks) != mxcsr_masks;
    }
    if (slow) [[unlikely]] {
        if constexpr (memory == MemoryUse::None) {
            result = run_slow(cpu, op, rm, fp, false);
        } else if constexpr (flags == FlagUse::InOut) {
            result = execute_with_flags(cpu, op, linear);
        } else {
            result = execute_slow(cpu, op, linear, memory == MemoryUse::Store, fp);
        }
    } else {
        result = run<fp>(cpu, op, operands, rm,
                         flags == FlagUse::InOut ? cpu.arithmetic_flags : std::uint64_t{0});
    }
    if constexpr (flags != FlagUse::None) {
        cpu.arithmetic_flags = static_cast<std::uint16_t>(result);
    }
    return next(cpu, op);
}

}  // namespace vmm::x86::soft::native_detail
