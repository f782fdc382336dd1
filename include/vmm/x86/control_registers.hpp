// SPDX-License-Identifier: Apache-2.0

/// @file
/// RFLAGS, CR0, CR4, EFER and the debug registers, field by field.  Names are the manuals'
/// mnemonics.

#pragma once

#include "vmm/register.hpp"

namespace vmm::x86 {

/// RFLAGS.  SDM Vol. 1 "EFLAGS Register".
class Rflags final : public Register<Rflags> {
public:
    using Register::Register;

    static constexpr Field<Rflags, 0> CF{};
    static constexpr Field<Rflags, 1> one{};  ///< Reads as 1.
    static constexpr Field<Rflags, 2> PF{};
    static constexpr Field<Rflags, 4> AF{};
    static constexpr Field<Rflags, 6> ZF{};
    static constexpr Field<Rflags, 7> SF{};
    static constexpr Field<Rflags, 8> TF{};
    static constexpr Field<Rflags, 9> IF{};
    static constexpr Field<Rflags, 10> DF{};
    static constexpr Field<Rflags, 11> OF{};
    static constexpr Field<Rflags, 13, 12> IOPL{};
    static constexpr Field<Rflags, 14> NT{};
    static constexpr Field<Rflags, 16> RF{};
    static constexpr Field<Rflags, 17> VM{};
    static constexpr Field<Rflags, 18> AC{};
    static constexpr Field<Rflags, 19> VIF{};
    static constexpr Field<Rflags, 20> VIP{};
    static constexpr Field<Rflags, 21> ID{};

    static constexpr std::uint64_t defined =
        mask_of(CF, PF, AF, ZF, SF, TF, IF, DF, OF, IOPL, NT, RF, VM, AC, VIF, VIP, ID);
};

/// CR0.  SDM Vol. 3A "Control Registers"; APM Vol. 2 "CR0 Register".
class Cr0 final : public Register<Cr0> {
public:
    using Register::Register;

    static constexpr Field<Cr0, 0> PE{};   ///< Protection enable.
    static constexpr Field<Cr0, 1> MP{};   ///< Monitor coprocessor.
    static constexpr Field<Cr0, 2> EM{};   ///< Emulation.
    static constexpr Field<Cr0, 3> TS{};   ///< Task switched.
    static constexpr Field<Cr0, 4> ET{};   ///< Extension type; always 1.
    static constexpr Field<Cr0, 5> NE{};   ///< Numeric error.
    static constexpr Field<Cr0, 16> WP{};  ///< Write protect.
    static constexpr Field<Cr0, 18> AM{};  ///< Alignment mask.
    static constexpr Field<Cr0, 29> NW{};  ///< Not write-through.
    static constexpr Field<Cr0, 30> CD{};  ///< Cache disable.
    static constexpr Field<Cr0, 31> PG{};  ///< Paging.

    static constexpr std::uint64_t defined = mask_of(PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG);

    /// Whether MOV to CR0 would accept this value.
    ///
    /// SDM Vol. 2B "MOV—Move to/from Control Registers": #GP(0) if PG is set with PE
    /// clear, or NW with CD clear, or a bit in 63:32 is set.
    [[nodiscard]] constexpr bool is_valid() const noexcept
    {
        if (get(PG) && !get(PE)) {
            return false;
        }
        if (get(NW) && !get(CD)) {
            return false;
        }
        return (raw() >> 32U) == 0U;
    }
};

/// CR4.  SDM Vol. 3A "Control Registers".
class Cr4 final : public Register<Cr4> {
public:
    using Register::Register;

    static constexpr Field<Cr4, 0> VME{};          ///< Virtual-8086 mode extensions.
    static constexpr Field<Cr4, 1> PVI{};          ///< Protected-mode virtual interrupts.
    static constexpr Field<Cr4, 2> TSD{};          ///< Time-stamp disable.
    static constexpr Field<Cr4, 3> DE{};           ///< Debugging extensions.
    static constexpr Field<Cr4, 4> PSE{};          ///< Page-size extensions.
    static constexpr Field<Cr4, 5> PAE{};          ///< Physical-address extension.
    static constexpr Field<Cr4, 6> MCE{};          ///< Machine-check enable.
    static constexpr Field<Cr4, 7> PGE{};          ///< Page-global enable.
    static constexpr Field<Cr4, 8> PCE{};          ///< Performance-counter enable.
    static constexpr Field<Cr4, 9> OSFXSR{};       ///< FXSAVE/FXRSTOR and SSE.
    static constexpr Field<Cr4, 10> OSXMMEXCPT{};  ///< Unmasked SIMD exceptions raise #XM.
    static constexpr Field<Cr4, 11> UMIP{};        ///< User-mode instruction prevention.
    static constexpr Field<Cr4, 12> LA57{};        ///< 57-bit linear addresses.
    static constexpr Field<Cr4, 13> VMXE{};        ///< VMX enable.
    static constexpr Field<Cr4, 14> SMXE{};        ///< SMX enable.
    static constexpr Field<Cr4, 16> FSGSBASE{};    ///< RDFSBASE and its kin.
    static constexpr Field<Cr4, 17> PCIDE{};       ///< Process-context identifiers.
    static constexpr Field<Cr4, 18> OSXSAVE{};     ///< XSAVE and extended states.
    static constexpr Field<Cr4, 20> SMEP{};        ///< Supervisor-mode execution prevention.
    static constexpr Field<Cr4, 21> SMAP{};        ///< Supervisor-mode access prevention.
    static constexpr Field<Cr4, 22> PKE{};         ///< Protection keys for user pages.
    static constexpr Field<Cr4, 23> CET{};         ///< Control-flow enforcement.
    static constexpr Field<Cr4, 24> PKS{};         ///< Protection keys for supervisor pages.
};

/// IA32_EFER (MSR C000_0080h).  SDM Vol. 3A "Extended Feature Enable Register".
class Efer final : public Register<Efer> {
public:
    using Register::Register;

    static constexpr Field<Efer, 0> SCE{};   ///< SYSCALL enable.
    static constexpr Field<Efer, 8> LME{};   ///< Long mode enable.
    static constexpr Field<Efer, 10> LMA{};  ///< Long mode active; read-only to software.
    static constexpr Field<Efer, 11> NXE{};  ///< Execute-disable enable.

    static constexpr std::uint64_t defined = mask_of(SCE, LME, LMA, NXE);
};

/// DR6.  SDM Vol. 3B "Debug Status Register".
class Dr6 final : public Register<Dr6> {
public:
    using Register::Register;

    static constexpr Field<Dr6, 3, 0> B{};  ///< Breakpoint condition detected, by number.
    static constexpr Field<Dr6, 13> BD{};   ///< Debug-register access detected.
    static constexpr Field<Dr6, 14> BS{};   ///< Single step.
    static constexpr Field<Dr6, 15> BT{};   ///< Task switch.

    static constexpr std::uint64_t reset = 0xffff'0ff0;
};

/// DR7.  SDM Vol. 3B "Debug Control Register".
class Dr7 final : public Register<Dr7> {
public:
    using Register::Register;

    static constexpr Field<Dr7, 7, 0> enables{};  ///< L0 G0 … L3 G3.
    static constexpr Field<Dr7, 13> GD{};         ///< General detect enable.

    static constexpr std::uint64_t reset = 0x400;
};

static_assert(Cr0::defined == 0xe005'003f);
static_assert(sizeof(Cr0) == sizeof(std::uint64_t));

}  // namespace vmm::x86
