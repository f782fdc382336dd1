// SPDX-License-Identifier: Apache-2.0

/// @file
/// The x87 state of a guest: the image it rests in, and its way to the host's FPU.
///
/// While `Cpu::x87_live` the registers, tags and status word are in the host's FPU.  FCW, FOP, FIP
/// and FDP of the image are the guest's at all times: the host's own pointers are never looked at.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "x86/soft/cpu.hpp"

namespace vmm::x86::soft {

/// Fields of the FXSAVE image.  SDM Vol. 1 "x87 State", FXSAVE area layout.
namespace x87_image {
inline constexpr std::size_t fcw = 0;
inline constexpr std::size_t fsw = 2;
inline constexpr std::size_t ftw = 4;  ///< Abridged: bit set, register not empty.
inline constexpr std::size_t fop = 6;
inline constexpr std::size_t fip = 8;
inline constexpr std::size_t fdp = 16;
inline constexpr std::size_t mxcsr = 24;
inline constexpr std::size_t mxcsr_mask = 28;
inline constexpr std::size_t st = 32;
inline constexpr std::size_t xmm = 160;
inline constexpr std::size_t end = 416;  ///< What follows belongs to software.

template <typename T>
[[nodiscard]] inline T get(const FpuRegisters& fpu, std::size_t offset) noexcept
{
    T value;
    std::memcpy(&value, fpu.x87.data() + offset, sizeof(T));
    return value;
}
template <typename T>
inline void set(FpuRegisters& fpu, std::size_t offset, T value) noexcept
{
    std::memcpy(fpu.x87.data() + offset, &value, sizeof(T));
}
}  // namespace x87_image

inline constexpr std::uint16_t x87_initial_fcw = 0x37f;
inline constexpr std::uint16_t x87_exceptions = 0x3f;

/// Bits of `Cpu::x87_pointer_rules`: what a CPU saves of the last instruction.
namespace x87_rule {
inline constexpr std::uint8_t selectors = 1;     ///< FCS and FDS exist.
inline constexpr std::uint8_t fdp_on_error = 2;  ///< FDP only with an unmasked exception.
inline constexpr std::uint8_t fop_on_error = 4;  ///< FOP likewise.
}  // namespace x87_rule

/// Those of the CPU that `cpuid` describes.
[[nodiscard]] std::uint8_t x87_pointer_rules(const Cpuid& cpuid) noexcept;
/// Whether FXSAVE and XSAVE store FOP, FIP and FDP as 0 unless there is an unmasked exception. Some
/// of AMD's CPUs do; none says so in CPUID, so that it is the host that is asked.
[[nodiscard]] bool x87_hides_pointers(const Cpuid& cpuid) noexcept;

/// An instruction that works on the host's FPU as it is, with another address for its operand.
struct X87Form {
    std::uint8_t memory_size{};  ///< 0: registers only.
    bool writes{};               ///< Memory.
    bool flags_read{};
    bool flags_written{};
};
/// The form of `insn`, an instruction of the primary map, if it has one.
[[nodiscard]] bool find_x87_form(const Insn& insn, X87Form& form) noexcept;

/// Moves the guest's state into the host's FPU.
void fpu_load_live(Cpu& cpu) noexcept;

/// Whether an unmasked exception is waiting to be signalled.
[[nodiscard]] bool x87_pending(const Cpu& cpu) noexcept;

/// Changes TOP.  The image has the registers as ST0 … ST7: they move.  @pre not live.
void x87_set_top(FpuRegisters& fpu, unsigned top) noexcept;

/// FNINIT.  The registers' contents stay, tagged empty.  @pre not live.
void x87_initialise(FpuRegisters& fpu) noexcept;

/// What every MMX instruction does to the x87 state: TOP becomes 0 (ST0 is MM0), all tags valid.
/// @pre not live.
void mmx_enter(FpuRegisters& fpu) noexcept;

/// The full tag word, from the registers' contents.  SDM Vol. 1 "x87 FPU Tag Word".
[[nodiscard]] std::uint16_t x87_full_tags(const FpuRegisters& fpu) noexcept;

/// FSTENV, FSAVE, FLDENV, FRSTOR and XSAVE's kin by their files.
[[nodiscard]] Handler select_x87_environment(const Insn& insn,
                                             const SelectContext& context,
                                             Op& op);

}  // namespace vmm::x86::soft
