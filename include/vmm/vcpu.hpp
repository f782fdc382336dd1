// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual CPU.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/exit.hpp"
#include "vmm/export.hpp"
#include "vmm/memory/dirty_ring.hpp"
#include "vmm/result.hpp"
#include "vmm/statistics.hpp"
#include "vmm/x86/irqchip_state.hpp"
#include "vmm/x86/state.hpp"

namespace vmm {

/// A virtual CPU.  Created by `Vm::create_vcpu()`, in the state that RESET leaves (SDM Vol. 3A
/// "Processor State After Reset").
///
/// Thread safety: one thread at a time; whichever thread calls `run()` is the vCPU.  Only a
/// `Kicker` and `statistics()` reach it from elsewhere.
///
/// State set here is what the next `run()` continues with.  After a port, MMIO or MSR exit,
/// RIP and registers are final only once that access is completed: by the next `run()`, or by
/// `Exit::complete()`.
class VMM_API Vcpu {
public:
    /// Ends a run.  Copyable; safe to keep after its vCPU is gone.
    ///
    /// Thread safety: any thread, at any time.
    class VMM_API Kicker {
    public:
        /// Makes the current `run()`, or the next if none is running, return `Interrupted`.
        /// Never lost; several kicks before that return count as one.  Async-signal-safe, for a
        /// handler on the thread that runs the vCPU, too.
        void kick() const noexcept;

    private:
        friend class Vcpu;
        explicit Kicker(std::weak_ptr<core::VcpuCore> vcpu) noexcept : vcpu_{std::move(vcpu)} {}

        std::weak_ptr<core::VcpuCore> vcpu_;
    };

    explicit Vcpu(std::shared_ptr<core::VcpuCore> core) noexcept;
    Vcpu(Vcpu&&) noexcept;
    Vcpu& operator=(Vcpu&&) noexcept;
    Vcpu(const Vcpu&) = delete;
    Vcpu& operator=(const Vcpu&) = delete;
    ~Vcpu();

    [[nodiscard]] std::uint32_t id() const noexcept;
    [[nodiscard]] Kicker kicker() const noexcept;

    /// KVM_RUN: runs guest code until something needs the caller.
    ///
    /// What the guest does, however wrong, is an `Exit`; an error means that the host could not
    /// run it.  EFAULT: a slot's memory is not there, as the process has unmapped it; `run()` tries
    /// again.  (`soft` touches the memory itself, so there it is a SIGSEGV of the process.)
    Result<Exit> run() noexcept;

    /// Where pages are logged that this vCPU writes (`Vm::enable_dirty_rings`): memory of the
    /// caller, who takes entries out by a `memory::DirtyRingReader`.  It must be zero, and outlive
    /// the VM.  Pages written before this is set are entries of another vCPU's ring, or none.
    ///
    /// @return EINVAL for another number of entries than the VM's rings have, or where it has none;
    /// EEXIST the second time.
    Result<void> set_dirty_ring(std::span<memory::DirtyGfn> entries);

    // --- State.

    [[nodiscard]] x86::Regs regs() const noexcept;
    /// KVM_SET_REGS.  Bit 1 of RFLAGS is set for you; a pending exception is dropped.
    void set_regs(const x86::Regs& regs) noexcept;

    [[nodiscard]] x86::Sregs sregs() const noexcept;
    /// KVM_SET_SREGS.
    ///
    /// @return EINVAL for a combination that no CPU of this CPUID can be in; the message names
    /// the field, its value, and what is permitted.
    Result<void> set_sregs(const x86::Sregs& sregs);

    [[nodiscard]] x86::Fpu fpu() const noexcept;
    void set_fpu(const x86::Fpu& fpu) noexcept;

    [[nodiscard]] x86::Xsave xsave() const noexcept;
    /// KVM_SET_XSAVE.
    ///
    /// @return EINVAL for reserved MXCSR bits or components beyond what CPUID offers.
    Result<void> set_xsave(const x86::Xsave& xsave);

    [[nodiscard]] std::uint64_t xcr0() const noexcept;
    /// KVM_SET_XCRS.  @return EINVAL as XSETBV would raise #GP(0).
    Result<void> set_xcr0(std::uint64_t value);

    /// KVM_SET_CPUID2: what the guest's CPUID instruction reports and which features it has.
    ///
    /// @return EINVAL for a feature that the engine cannot offer, E2BIG above 256 entries.
    Result<void> set_cpuid(std::span<const x86::CpuidEntry> entries);
    [[nodiscard]] std::vector<x86::CpuidEntry> cpuid() const;

    /// KVM_GET_MSRS for one MSR.  @return EINVAL if there is no such MSR.
    [[nodiscard]] Result<std::uint64_t> msr(std::uint32_t index) const;
    /// KVM_SET_MSRS for one MSR.  @return EINVAL if there is no such MSR or the value is reserved.
    Result<void> set_msr(std::uint32_t index, std::uint64_t value);

    [[nodiscard]] x86::VcpuEvents events() const noexcept;
    /// KVM_SET_VCPU_EVENTS.  @return EINVAL for a vector above 31 in `exception`.
    Result<void> set_events(const x86::VcpuEvents& events);

    [[nodiscard]] x86::DebugRegs debug_regs() const noexcept;
    /// KVM_SET_DEBUGREGS.  @return EINVAL if the upper half of DR6 or DR7 is not zero.
    Result<void> set_debug_regs(const x86::DebugRegs& regs);

    /// KVM_SET_GUEST_DEBUG: what leaves with `Debug` from now on, instead of what was set before.
    /// A breakpoint that was met is met again by the next run: take it away, and step, to get on.
    ///
    /// @return EINVAL for a DR7 that does not fit in 32 bits.
    Result<void> set_guest_debug(const x86::GuestDebug& debug);

    [[nodiscard]] x86::MpState mp_state() const noexcept;
    /// KVM_SET_MP_STATE.  @return EINVAL for other than `Runnable` without an irqchip.
    Result<void> set_mp_state(x86::MpState state);

    /// KVM_GET_LAPIC.  @return EINVAL without an irqchip.
    [[nodiscard]] Result<x86::irqchip::LapicState> lapic() const;
    Result<void> set_lapic(const x86::irqchip::LapicState& lapic);

    /// KVM_TRANSLATE: the guest-physical address of a linear one, or nothing if it is unmapped.
    [[nodiscard]] std::optional<Gpa> translate(Gva linear) const noexcept;

    /// What this vCPU has done since its creation.  Any thread, while the guest runs: each number
    /// is exact, but not all are of one instant.
    ///
    /// Counters with KVM's names mean what KVM's do: `exits` that left guest code, whether the
    /// library or the caller answered; of them `io_exits` for ports, and `mmio_exits` to the
    /// caller; `halt_exits`, `irq_window_exits`, `nmi_window_exits`, `hypercalls`; `signal_exits`,
    /// runs that a kick ended; `request_irq_exits`, runs that ended with `IrqWindow`;
    /// `irq_injections`, `nmi_injections`; `halt_wakeup`, `halt_wait_ns`, `blocking`;
    /// `halt_attempted_poll`, `halt_successful_poll`, `halt_poll_success_ns`, `halt_poll_fail_ns`.
    ///
    /// Engine `soft` has also: `tlb_flush`, `invlpg` (KVM's names), `blocks` of guest code decoded,
    /// `translations` of them into host code, `chains` of one translation to another, `code_resets`
    /// for want of memory for them, `tlb_fills`, `faults` of the guest, and `run_loops`, blocks
    /// that were gone on to the slow way.  Engine `kvm` has what the host's KVM tells of the others
    /// of its own (Linux 5.14): `pf_taken`, `insn_emulation`, `fpu_reload` …
    [[nodiscard]] VcpuStatistics statistics() const;

    // --- Interrupts, where the VM has no PIC of its own: no irqchip, or a split one.

    /// KVM_INTERRUPT: delivers `vector` as soon as the guest allows.
    ///
    /// With a split irqchip LINT0 of the local APIC must let it through (ExtINT), until when it
    /// waits.
    ///
    /// @return ENXIO where the VM has a PIC, EEXIST while another one waits.
    Result<void> interrupt(std::uint8_t vector);
    /// What KVM_RUN tells with each exit; cheaper than `regs()` and `sregs()`.  With an irqchip
    /// `ready_for_interrupt_injection` is always set, as with KVM.
    [[nodiscard]] x86::RunState run_state() const noexcept;
    /// CR8 alone, the task priority, as KVM_RUN takes it.  @return EINVAL above 15.
    Result<void> set_cr8(std::uint64_t value);
    /// Whether the guest would take an interrupt now (ready_for_interrupt_injection).
    [[nodiscard]] bool ready_for_interrupt_injection() const noexcept;
    /// Asks for an `IrqWindow` exit as soon as the guest would take one.
    void request_irq_window(bool wanted) noexcept;
    /// KVM_NMI.  Any thread.
    void nmi() noexcept;
    /// KVM_SMI: the guest enters system-management mode, where it sees the memory of address space
    /// 1.  Any thread.  @return ENOTTY on an engine without (`Capability::X86Smm`).
    Result<void> smi();

    /// KVM_TPR_ACCESS_REPORTING: whether accesses to the local APIC's task priority leave with
    /// `TprAccess`.
    void report_tpr_accesses(bool wanted) noexcept;
    /// KVM_SET_VAPIC_ADDR: a word of guest memory by which guest code without exits sees and sets
    /// its task priority.  Before guest code runs it gets the priority in bits 7:0, that of the
    /// interrupt in service in 15:8 and the vector that is requested in 31:24; what bits 7:0 are
    /// afterwards is the priority.  0: there is none.
    ///
    /// @return EINVAL without an irqchip or where no slot has the word.
    Result<void> set_vapic_address(Gpa word);

    // --- Time, and machine checks.

    /// KVM_VCPU_TSC_OFFSET: what the guest's TSC is ahead of the host's, at its own rate.  Setting
    /// it leaves IA32_TSC_ADJUST as it is.
    [[nodiscard]] std::uint64_t tsc_offset() const noexcept;
    void set_tsc_offset(std::uint64_t offset) noexcept;

    /// KVM_SET_TSC_KHZ: the rate at which the guest's TSC runs, 0 for the host's.  Its value jumps
    /// to that of a counter which had run so since the host's was 0, plus the offset; kvmclock goes
    /// on.
    ///
    /// @return EINVAL above 2^31 - 2, or, on an engine that cannot scale
    /// (`Capability::TscControl`), for what differs from the host's by more than 250 ppm.
    Result<void> set_tsc_khz(std::uint32_t khz);
    /// What was set, or the host's.
    [[nodiscard]] std::uint32_t tsc_khz() const noexcept;

    /// KVM_KVMCLOCK_CTRL: tells the guest, by kvmclock, that it was stopped, so that its watchdogs
    /// do not bark.  @return EINVAL if the guest has not enabled kvmclock.
    Result<void> notify_guest_stopped();

    /// KVM_CAP_ENFORCE_PV_FEATURE_CPUID: whether KVM's MSRs and hypercalls exist for the guest only
    /// where CPUID leaf 0x40000001 offers them; not so at first.
    void enforce_pv_features(bool enforced) noexcept;

    /// KVM_X86_SETUP_MCE: what IA32_MCG_CAP reports: the number of banks (1 to 32) and bits of
    /// `Kvm::mce_capabilities()`.  SDM Vol. 3B "Machine-Check Architecture".
    ///
    /// @return EINVAL for another number of banks or other bits.
    Result<void> setup_mce(std::uint64_t mcg_cap);
    /// KVM_X86_SET_MCE: an error of the hardware.  An uncorrected one raises #MC, or is a
    /// `Shutdown` if the guest has it disabled or has not handled the one before.
    ///
    /// @return EINVAL for a bank that there is not, or a status without its valid bit.
    Result<void> inject_mce(const x86::MachineCheck& error);

private:
    std::shared_ptr<core::VcpuCore> core_;
};

}  // namespace vmm
