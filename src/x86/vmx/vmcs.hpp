// SPDX-License-Identifier: Apache-2.0

/// @file
/// The VMCS's fields by name, as far as they are the caller's.  The numbers are those of SDM
/// Vol. 3C "Virtual Machine Control Structures" and "VMX Basic Exit Reasons"; the fields lie where
/// `vmm_vmx` has them.

#pragma once

#include <cstdint>

#include "vmm/register.hpp"
#include "vmm/x86/state.hpp"

namespace vmm::x86::vmx {

/// Primary processor-based VM-execution controls.
class PrimaryControls final : public Register<PrimaryControls, std::uint32_t> {
public:
    using Register::Register;

    static constexpr Field<PrimaryControls, 2> interrupt_window_exiting{};
    static constexpr Field<PrimaryControls, 7> hlt_exiting{};
    static constexpr Field<PrimaryControls, 22> nmi_window_exiting{};
};

/// Secondary processor-based VM-execution controls.
class SecondaryControls final : public Register<SecondaryControls, std::uint32_t> {
public:
    using Register::Register;

    static constexpr Field<SecondaryControls, 3> enable_rdtscp{};
    static constexpr Field<SecondaryControls, 12> enable_invpcid{};
};

/// Guest interruptibility state.
class Interruptibility final : public Register<Interruptibility, std::uint32_t> {
public:
    using Register::Register;

    static constexpr Field<Interruptibility, 0> blocking_by_sti{};
    static constexpr Field<Interruptibility, 1> blocking_by_mov_ss{};
    static constexpr Field<Interruptibility, 3> blocking_by_nmi{};
};

/// Exit reason: the basic one, and whether the entry failed.
class ExitReason final : public Register<ExitReason, std::uint32_t> {
public:
    using Register::Register;

    static constexpr Field<ExitReason, 15, 0> basic{};
    static constexpr Field<ExitReason, 31> entry_failure{};
};

/// Basic exit reasons.
enum class BasicReason : std::uint16_t {
    ExceptionOrNmi = 0,
    ExternalInterrupt = 1,
    TripleFault = 2,
    InitSignal = 3,
    InterruptWindow = 7,
    NmiWindow = 8,
    TaskSwitch = 9,
    Cpuid = 10,
    Getsec = 11,
    Hlt = 12,
    Invd = 13,
    Invlpg = 14,
    Rdpmc = 15,
    Rdtsc = 16,
    Rsm = 17,
    Vmcall = 18,
    Vmclear = 19,
    Vmlaunch = 20,
    Vmptrld = 21,
    Vmptrst = 22,
    Vmread = 23,
    Vmresume = 24,
    Vmwrite = 25,
    Vmxoff = 26,
    Vmxon = 27,
    ControlRegister = 28,
    DebugRegister = 29,
    IoInstruction = 30,
    Rdmsr = 31,
    Wrmsr = 32,
    InvalidGuestState = 33,
    MsrLoading = 34,
    Mwait = 36,
    MonitorTrapFlag = 37,
    Monitor = 39,
    Pause = 40,
    MachineCheck = 41,
    GdtrOrIdtr = 46,
    LdtrOrTr = 47,
    EptViolation = 48,
    EptMisconfiguration = 49,
    Invept = 50,
    Rdtscp = 51,
    Invvpid = 53,
    Wbinvd = 54,
    Xsetbv = 55,
    Rdrand = 57,
    Invpcid = 58,
    Vmfunc = 59,
    Encls = 60,
    Rdseed = 61,
    Xsaves = 63,
    Xrstors = 64,
    Umwait = 67,
    Tpause = 68,
    Loadiwkey = 69,
};

/// Exit qualification of an I/O instruction.
class IoQualification final : public Register<IoQualification> {
public:
    using Register::Register;

    static constexpr Field<IoQualification, 2, 0> size_minus_one{};
    static constexpr Field<IoQualification, 3> input{};
    static constexpr Field<IoQualification, 4> string{};
    static constexpr Field<IoQualification, 31, 16> port{};
};

/// Exit qualification of an access to a control register.
class CrQualification final : public Register<CrQualification> {
public:
    using Register::Register;

    static constexpr Field<CrQualification, 3, 0> number{};
    static constexpr Field<CrQualification, 5, 4> access{};  ///< 0: MOV to it.
};

/// Exit qualification of a debug exception, and pending debug exceptions: bits as in DR6.
inline constexpr std::uint64_t debug_exception_bits = 0x600f;
inline constexpr std::uint64_t pending_debug_bits = 0x400f;

/// What the guest may change in CR0 and CR4 without an exit.
inline constexpr std::uint64_t guests_cr0 =
    mask_of(Cr0::PE, Cr0::MP, Cr0::EM, Cr0::TS, Cr0::WP, Cr0::AM);
inline constexpr std::uint64_t guests_cr4 =
    mask_of(Cr4::TSD, Cr4::DE, Cr4::PGE, Cr4::PCE, Cr4::OSFXSR, Cr4::OSXMMEXCPT);

}  // namespace vmm::x86::vmx
