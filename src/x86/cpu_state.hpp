// SPDX-License-Identifier: Apache-2.0

/// @file
/// The canonical state of one virtual CPU.
///
/// Every engine is a function on this struct: enter with this state until something the core
/// must handle.  Between two entries the core reads and changes it freely.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "vmm/x86/state.hpp"
#include "x86/cpuid.hpp"

namespace vmm::x86 {

/// Index of a general-purpose register, as instructions encode it.
enum Gpr : unsigned {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15
};

/// Index of a segment register, as instructions encode it.
enum SegmentIndex : unsigned { Es, Cs, Ss, Ds, Fs, Gs };

/// Exception vectors.  SDM Vol. 3A "Protected-Mode Exceptions and Interrupts".
enum class Vector : std::uint8_t {
    DE = 0,
    DB = 1,
    NMI = 2,
    BP = 3,
    OF = 4,
    BR = 5,
    UD = 6,
    NM = 7,
    DF = 8,
    TS = 10,
    NP = 11,
    SS = 12,
    GP = 13,
    PF = 14,
    MF = 16,
    AC = 17,
    MC = 18,
    XM = 19,
};

/// What an event that is to be delivered through the IDT is.  SDM Vol. 3C "VM-Entry Controls for
/// Event Injection" and APM Vol. 2 "Event Injection" distinguish the same kinds.
enum class EventKind : std::uint8_t {
    ExternalInterrupt,
    Nmi,
    HardwareException,
    SoftwareInterrupt,            ///< INT n.
    PrivilegedSoftwareException,  ///< INT1.
    SoftwareException,            ///< INT3, INTO.
};

/// An event to be delivered through the IDT.
struct Event {
    EventKind kind{};
    std::uint8_t vector{};
    std::uint8_t instruction_length{};  ///< Software events: added to RIP for the pushed one.
    bool has_error_code{};
    std::uint32_t error_code{};
    std::uint64_t payload{};  ///< #PF: the address for CR2.  #DB: the bits to set in DR6.

    friend bool operator==(const Event&, const Event&) = default;
};

/// x87, SSE and AVX registers as an engine wants them at hand.  XSAVE images are converted at the
/// API.
struct alignas(64) FpuRegisters {
    /// FXSAVE64 image.  Only FCW, FSW, FTW, FOP, FIP, FDP and ST0-ST7 live here; MXCSR and XMM
    /// of the image are unused (see below).
    alignas(64) std::array<std::byte, 512> x87{};
    /// YMM0-YMM15; the low halves are the XMM registers.
    alignas(64) std::array<std::array<std::byte, 32>, 16> ymm{};
    std::uint32_t mxcsr{0x1f80};
};

/// Everything architectural that a virtual CPU holds.
struct CpuState {
    /// RAX … R15 by `Gpr`.  The three further slots belong to the engine while it runs.
    std::array<std::uint64_t, 19> gpr{};
    std::uint64_t rip{};
    std::uint64_t rflags{2};

    std::array<Segment, 6> seg{};  ///< By `SegmentIndex`.
    Segment ldt{};
    Segment tr{};
    DescriptorTable gdt{};
    DescriptorTable idt{};

    std::uint64_t cr0{};
    std::uint64_t cr2{};
    std::uint64_t cr3{};
    std::uint64_t cr4{};
    std::uint64_t cr8{};
    std::uint64_t efer{};
    std::uint64_t xcr0{1};
    std::uint64_t xss{};
    std::array<std::uint64_t, 4> dr{};
    std::uint64_t dr6{Dr6::reset};
    std::uint64_t dr7{Dr7::reset};

    // MSRs that instructions use directly.  FS.base and GS.base are in `seg`.
    std::uint64_t star{};
    std::uint64_t lstar{};
    std::uint64_t cstar{};
    std::uint64_t fmask{};
    std::uint64_t kernel_gs_base{};
    std::uint64_t sysenter_cs{};
    std::uint64_t sysenter_esp{};
    std::uint64_t sysenter_eip{};
    std::uint64_t tsc_aux{};
    std::uint64_t tsc_offset{};  ///< Guest TSC = host TSC + this.

    FpuRegisters fpu{};

    bool sti_shadow{};     ///< The instruction before was an STI that set IF.
    bool mov_ss_shadow{};  ///< The instruction before was MOV SS or POP SS.
    bool smm{};            ///< In system-management mode: memory is that of address space 1.
    bool nmi_blocked{};    ///< Between the delivery of an NMI and the next IRET.

    /// A #DB trap condition noticed but not yet delivered: DR6 bits, 0 if none.
    std::uint64_t pending_debug{};

    /// The core asks: deliver this before the first instruction.  The engine clears it when
    /// delivery has succeeded or turned into something else (a fault, a triple fault).
    std::optional<Event> inject{};
    /// The core asks: leave (`IrqWindow`) when an external interrupt could be delivered.
    bool irq_window_requested{};
    /// The core asks: leave (`NmiWindow`) when NMIs are no longer blocked.  An engine that cannot
    /// leave then delivers the NMI that the core has waiting, and sets `nmi_delivered`.
    bool nmi_window_requested{};
    bool nmi_delivered{};
    /// The core asks: leave (`Interrupted`) at the next instruction boundary without a shadow.
    bool smi_window_requested{};

    Cpuid cpuid{};  ///< What the guest sees, and what decides which bits and MSRs exist.
};

/// The state a processor has after RESET (or INIT, which keeps some registers).
/// SDM Vol. 3A "Processor State After Reset".
void reset_state(CpuState& state, bool init);

}  // namespace vmm::x86
