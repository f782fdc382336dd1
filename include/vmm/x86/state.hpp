// SPDX-License-Identifier: Apache-2.0

/// @file
/// Snapshots of architectural state, with KVM's contents under KVM's names.  Plain data: no
/// invariants, no behaviour.  What a value must satisfy is said where it is set (`Vcpu`).

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "vmm/x86/control_registers.hpp"

namespace vmm::x86 {

/// General-purpose registers, RIP and RFLAGS (kvm_regs).
struct Regs {
    std::uint64_t rax{};
    std::uint64_t rbx{};
    std::uint64_t rcx{};
    std::uint64_t rdx{};
    std::uint64_t rsi{};
    std::uint64_t rdi{};
    std::uint64_t rsp{};
    std::uint64_t rbp{};
    std::uint64_t r8{};
    std::uint64_t r9{};
    std::uint64_t r10{};
    std::uint64_t r11{};
    std::uint64_t r12{};
    std::uint64_t r13{};
    std::uint64_t r14{};
    std::uint64_t r15{};
    std::uint64_t rip{};
    std::uint64_t rflags{};

    friend bool operator==(const Regs&, const Regs&) = default;
};

/// A segment register with its hidden part (kvm_segment).
struct Segment {
    std::uint64_t base{};
    std::uint32_t limit{};  ///< In bytes, granularity already applied.
    std::uint16_t selector{};
    std::uint8_t type{};  ///< Descriptor type, 4 bits.
    std::uint8_t present{};
    std::uint8_t dpl{};
    std::uint8_t db{};  ///< Default operation size / big.
    std::uint8_t s{};   ///< 1 code or data, 0 system.
    std::uint8_t l{};   ///< 64-bit code.
    std::uint8_t g{};
    std::uint8_t avl{};
    std::uint8_t unusable{};  ///< Null selector loaded.
    std::uint8_t padding{};

    friend bool operator==(const Segment&, const Segment&) = default;
};

/// GDTR or IDTR (kvm_dtable).
struct DescriptorTable {
    std::uint64_t base{};
    std::uint16_t limit{};
    std::array<std::uint16_t, 3> padding{};

    friend bool operator==(const DescriptorTable&, const DescriptorTable&) = default;
};

/// Segments, descriptor tables and control registers (kvm_sregs).
struct Sregs {
    Segment cs{};
    Segment ds{};
    Segment es{};
    Segment fs{};
    Segment gs{};
    Segment ss{};
    Segment tr{};
    Segment ldt{};
    DescriptorTable gdt{};
    DescriptorTable idt{};
    std::uint64_t cr0{};
    std::uint64_t cr2{};
    std::uint64_t cr3{};
    std::uint64_t cr4{};
    std::uint64_t cr8{};
    std::uint64_t efer{};
    std::uint64_t apic_base{};

    friend bool operator==(const Sregs&, const Sregs&) = default;
};

/// x87 and SSE state (kvm_fpu).
struct Fpu {
    std::array<std::array<std::uint8_t, 16>, 8> fpr{};  ///< ST0…ST7, 80 bits each.
    std::uint16_t fcw{};
    std::uint16_t fsw{};
    std::uint8_t ftwx{};  ///< Abridged tag word, as FXSAVE has it.
    std::uint8_t padding{};
    std::uint16_t last_opcode{};
    std::uint64_t last_ip{};
    std::uint64_t last_dp{};
    std::array<std::array<std::uint8_t, 16>, 16> xmm{};
    std::uint32_t mxcsr{};
    std::uint32_t padding2{};

    friend bool operator==(const Fpu&, const Fpu&) = default;
};

/// The XSAVE area, standard (not compacted) format (kvm_xsave).
struct alignas(64) Xsave {
    std::array<std::byte, 4096> region{};

    friend bool operator==(const Xsave&, const Xsave&) = default;
};

/// A model-specific register and its value (kvm_msr_entry).
struct MsrEntry {
    std::uint32_t index{};
    std::uint32_t reserved{};
    std::uint64_t data{};

    friend bool operator==(const MsrEntry&, const MsrEntry&) = default;
};

/// DR0-DR3, DR6 and DR7 (kvm_debugregs).
struct DebugRegs {
    std::array<std::uint64_t, 4> db{};
    std::uint64_t dr6{Dr6::reset};
    std::uint64_t dr7{Dr7::reset};

    friend bool operator==(const DebugRegs&, const DebugRegs&) = default;
};

/// What a debugger outside of the guest wants of a vCPU (kvm_guest_debug).
struct GuestDebug {
    /// Leaves with `Debug` after each instruction.  The guest sees no TF of it.
    bool single_step{};
    /// INT3 leaves with `Debug`, RIP at it, instead of raising #BP in the guest.
    bool software_breakpoints{};
    /// `db` and `dr7` are in force instead of the guest's DR0 to DR3 and DR7, which it still reads
    /// and writes, without effect.
    bool hardware_breakpoints{};
    /// No interrupt and no NMI is delivered: for a step that is to go through the code at hand.
    bool block_interrupts{};
    std::array<std::uint64_t, 4> db{};  ///< Linear addresses; see SDM Vol. 3B "Debug Registers".
    std::uint64_t dr7{};

    /// Whether debug exceptions (#DB) leave with `Debug`, the guest's own too.
    [[nodiscard]] bool takes_debug_exceptions() const noexcept
    {
        return single_step || hardware_breakpoints;
    }

    friend bool operator==(const GuestDebug&, const GuestDebug&) = default;
};

/// What a multiprocessor start-up left a vCPU in (KVM_GET_MP_STATE).
enum class MpState : std::uint32_t {
    Runnable = 0,
    Uninitialized = 1,  ///< An application processor before INIT.
    InitReceived = 2,   ///< Waiting for SIPI.
    Halted = 3,
    SipiReceived = 4,
};

/// Events that are pending or being delivered (kvm_vcpu_events).
struct VcpuEvents {
    struct Exception {
        std::uint8_t injected{};  ///< Was being delivered when the vCPU left the guest.
        std::uint8_t nr{};
        std::uint8_t has_error_code{};
        std::uint8_t pending{};
        std::uint32_t error_code{};

        friend bool operator==(const Exception&, const Exception&) = default;
    } exception{};
    struct Interrupt {
        std::uint8_t injected{};
        std::uint8_t nr{};
        std::uint8_t soft{};    ///< From INT n.
        std::uint8_t shadow{};  ///< Bit 0: MOV SS shadow; bit 1: STI shadow.

        friend bool operator==(const Interrupt&, const Interrupt&) = default;
    } interrupt{};
    struct Nmi {
        std::uint8_t injected{};
        std::uint8_t pending{};
        std::uint8_t masked{};
        std::uint8_t padding{};

        friend bool operator==(const Nmi&, const Nmi&) = default;
    } nmi{};
    struct Smi {
        std::uint8_t smm{};  ///< In system-management mode.
        std::uint8_t pending{};
        std::uint8_t smm_inside_nmi{};  ///< NMIs stay blocked after RSM.
        std::uint8_t latched_init{};    ///< An INIT waits for RSM.

        friend bool operator==(const Smi&, const Smi&) = default;
    } smi{};
    std::uint8_t triple_fault{};  ///< A triple fault is pending: the next run ends with `Shutdown`.
    std::uint32_t sipi_vector{};
    std::uint64_t exception_payload{};  ///< CR2 of a pending #PF, DR6 of a pending #DB.

    friend bool operator==(const VcpuEvents&, const VcpuEvents&) = default;
};

/// What KVM_RUN leaves in the run area beside the exit (kvm_run).
struct RunState {
    std::uint64_t cr8{};
    std::uint64_t apic_base{};
    bool if_flag{};                        ///< RFLAGS.IF.
    bool ready_for_interrupt_injection{};  ///< The guest would take an interrupt now.
    bool smm{};                            ///< In system-management mode (KVM_RUN_X86_SMM).

    friend bool operator==(const RunState&, const RunState&) = default;
};

/// An error that a machine-check bank reports (kvm_x86_mce).
struct MachineCheck {
    std::uint64_t status{};  ///< IA32_MCi_STATUS; bit 63, valid, must be set.
    std::uint64_t addr{};
    std::uint64_t misc{};
    std::uint64_t mcg_status{};
    std::uint8_t bank{};

    friend bool operator==(const MachineCheck&, const MachineCheck&) = default;
};

/// One leaf of CPUID (kvm_cpuid_entry2).
struct CpuidEntry {
    std::uint32_t function{};
    std::uint32_t index{};
    std::uint32_t flags{};  ///< Bit 0: `index` is significant.
    std::uint32_t eax{};
    std::uint32_t ebx{};
    std::uint32_t ecx{};
    std::uint32_t edx{};

    static constexpr std::uint32_t significant_index = 1;

    friend bool operator==(const CpuidEntry&, const CpuidEntry&) = default;
};

static_assert(std::is_trivially_copyable_v<Regs> && std::is_standard_layout_v<Regs>);
static_assert(sizeof(Regs) == 18 * sizeof(std::uint64_t),
              "no padding: snapshots are compared and hashed");
static_assert(sizeof(Segment) == 24 && sizeof(DescriptorTable) == 16);
static_assert(std::is_trivially_copyable_v<Sregs> && std::is_trivially_copyable_v<VcpuEvents>);

}  // namespace vmm::x86
