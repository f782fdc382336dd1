// SPDX-License-Identifier: Apache-2.0

/// @file
/// Instructions that the host CPU executes itself with the guest's operands: vector, x87 and
/// bit-manipulation instructions.
///
/// Guest and host are the same ISA, so such an instruction is re-encoded with fixed host registers
/// and wrapped into a small function, a *thunk*, that loads them from the guest's registers and
/// stores them back.  What a thunk does depends on its canonical form only, never on the guest's
/// register numbers, so that their number is bounded by the opcode maps.  Thunks live for ever.
///
/// Nothing that is not on the allow lists (vector_table.cpp, x87.cpp, native_integer.cpp) is ever
/// executed.

#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "vmm/result.hpp"
#include "x86/soft/cpu.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

/// Whether this process may create executable memory, which the engine needs.  The error says
/// what to allow.  Any thread; cheap after the first success.
[[nodiscard]] Result<void> native_available();

// --- FPU state at the API.  The vCPU is outside of `enter()`.

/// The state as KVM_GET_FPU has it.
void to_fpu(const CpuState& state, Fpu& fpu) noexcept;
/// Sets x87, XMM and MXCSR; reserved bits of MXCSR are dropped.  YMM high halves stay.
void from_fpu(CpuState& state, const Fpu& fpu) noexcept;
/// The state in the standard XSAVE format.
void to_xsave(const CpuState& state, Xsave& xsave) noexcept;
/// Sets x87, SSE and AVX state from a standard-format area.  EINVAL, changing nothing, if the area
/// has bits in XSTATE_BV beyond those the guest's CPUID offers, is compacted, has non-zero reserved
/// header bytes or reserved bits in MXCSR.
[[nodiscard]] Result<void> from_xsave(CpuState& state, const Xsave& xsave);

// --- The guest's x87 state and MXCSR in the host's FPU, where they stay between instructions.

/// Writes what is live back and leaves the host's FPU clean, with its own MXCSR.
void fpu_release_live(Cpu& cpu) noexcept;

/// To be called before anything that may use floating point: callbacks into the core, the end of
/// `enter()`, whatever may run user code or rehash a table.  Free when nothing is live.
/// `SoftVm::leave_guest()` does it.
[[gnu::always_inline]] inline void fpu_release(Cpu& cpu) noexcept
{
    if (cpu.x87_live || cpu.mxcsr_live) [[unlikely]] {
        fpu_release_live(cpu);
    }
}

// --- Thunks.

/// @param reg, rm, vvvv  the operands: guest registers or memory.
/// @param base  `CpuState::gpr`, for implicit operands.
/// @param extra  the arithmetic flags (flags_in) or the fourth operand (is4).
/// @return the arithmetic flags as `Cpu::arithmetic_flags` has them (flags_out).
using Thunk = std::uint64_t (*)(void* reg, void* rm, void* vvvv, void* base, std::uint64_t extra);

/// What an operand of a thunk is.
enum class Slot : std::uint8_t { None, Vector, Mmx, General, GeneralByte, Memory };

enum class ThunkKind : std::uint8_t {
    Plain,
    Mulx,         ///< RDX is a source.
    StringIndex,  ///< PCMPxSTRI: RAX, RDX are sources, RCX the destination.
    StringMask,   ///< PCMPxSTRM: RAX, RDX are sources, XMM0 the destination.
    X87,          ///< Works on the host's FPU, `opcode` and `modrm` as they are.
};

/// An instruction in canonical form.
struct ThunkSpec {
    ThunkKind kind{};
    bool vex{};
    bool wide{};         ///< W.
    bool long_vector{};  ///< VEX.L.
    bool operand16{};    ///< 66 as operand size, besides a mandatory prefix.
    std::uint8_t pp{};
    OpcodeMap map{};
    std::uint8_t opcode{};
    std::uint8_t modrm{};  ///< X87: all of it; otherwise the opcode extension where `reg` is None.
    bool has_immediate{};
    std::uint8_t immediate{};
    bool is4{};            ///< A fourth register in the immediate.
    bool implicit_xmm0{};  ///< XMM0 is a source.

    Slot reg{};
    Slot rm{};
    Slot vvvv{};
    bool load_reg{};
    bool store_reg{};
    bool store_rm{};
    bool load_vvvv{};
    bool store_vvvv{};
    bool flags_in{};
    bool flags_out{};

    friend auto operator<=>(const ThunkSpec&, const ThunkSpec&) = default;
};

/// The thunk of `spec`, made if it is new; null if no executable memory can be had.  Any thread.
[[nodiscard]] Thunk thunk_for(const ThunkSpec& spec);

/// What an instruction does whose thunk could not be made: leaves with an internal error.
[[nodiscard]] const Op* no_thunk(Cpu& cpu, const Op* op);
/// Raises #UD.
[[nodiscard]] const Op* undefined(Cpu& cpu, const Op* op);

/// VEX.W as it is in the bytes.  `Insn::rex_w` is clear in 16- and 32-bit code, where W does not
/// change the size of general registers but still tells vector instructions apart.
[[nodiscard]] bool vex_wide(const Insn& insn) noexcept;

// --- Selection by part; null for what is not theirs.
[[nodiscard]] Handler select_vector(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_masked(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_x87(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_state(const Insn& insn, const SelectContext& context, Op& op);
[[nodiscard]] Handler select_bits(const Insn& insn, const SelectContext& context, Op& op);

}  // namespace vmm::x86::soft
