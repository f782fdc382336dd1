// SPDX-License-Identifier: Apache-2.0

/// @file
/// The VMCB's fields by name.  The numbers are those of APM Vol. 2 "Layout of VMCB" and "SVM
/// Intercept Exit Codes"; the fields lie where `vmm_svm` has them.

#pragma once

#include <array>
#include <cstdint>

#include "vmm/register.hpp"
#include "x86/helper/helper_abi.h"

namespace vmm::x86::svm {

/// An intercept by its bit: 32 bits a word, from offset 0 of the VMCB.
enum class Intercept : std::uint8_t {
    ReadCr0 = 0,
    WriteCr0 = 16,
    WriteCr4 = 20,
    WriteCr8 = 24,
    UndefinedOpcode = 70,
    Interrupt = 96,
    VirtualInterrupt = 100,
    SelectiveCr0Write = 101,
    Cpuid = 114,
    Iret = 116,
    Pause = 119,
    Hlt = 120,
    Port = 123,
    TaskSwitch = 125,
    Vmmcall = 129,
    Invpcid = 162,
};

/// Words of intercepts.
class Intercepts {
public:
    static constexpr std::size_t word_count = 6;

    constexpr Intercepts& add(Intercept one) noexcept
    {
        const auto bit = static_cast<unsigned>(one);
        words_.at(bit / 32U) |= 1U << (bit % 32U);
        return *this;
    }
    /// MOV to and from DR0 to DR7.
    constexpr Intercepts& add_debug_registers() noexcept
    {
        words_[1] |= 0x00ff'00ffU;
        return *this;
    }
    [[nodiscard]] constexpr const std::array<std::uint32_t, word_count>& words() const noexcept
    {
        return words_;
    }

private:
    std::array<std::uint32_t, word_count> words_{};
};

/// EXITCODE.
enum class ExitCode : std::uint64_t {
    WriteCr8 = 0x18,
    DebugException = 0x41,
    AlignmentCheck = 0x51,
    VirtualInterrupt = 0x64,
    Iret = 0x74,
    Shutdown = 0x7f,
    Hlt = 0x78,
    Cpuid = 0x72,
    Port = 0x7b,
    Msr = 0x7c,
    Vmmcall = 0x81,
    FerrFreeze = 0x7e,
    /// What the emulator carries out, from the first to the last of them.
    FirstInstruction = 0x00,
    LastInstruction = 0xa4,
    NestedPageFault = 0x400,
    Invalid = ~std::uint64_t{0},
};

/// Offset 60h of the VMCB, as far as it is the caller's.
class InterruptControl final : public Register<InterruptControl> {
public:
    using Register::Register;

    static constexpr Field<InterruptControl, 3, 0> tpr{};
    static constexpr Field<InterruptControl, 8> irq{};
    static constexpr Field<InterruptControl, 19, 16> priority{};
    static constexpr Field<InterruptControl, 20> ignore_tpr{};
};

/// EXITINFO1 of an access to a port.
class PortInfo final : public Register<PortInfo> {
public:
    using Register::Register;

    static constexpr Field<PortInfo, 0> input{};
    static constexpr Field<PortInfo, 2> string{};
    static constexpr Field<PortInfo, 6, 4> size{};  ///< In bytes: 1, 2 or 4.
    static constexpr Field<PortInfo, 31, 16> port{};
};

/// INTERRUPT_SHADOW.
inline constexpr std::uint32_t interrupt_shadow = 1;

}  // namespace vmm::x86::svm
