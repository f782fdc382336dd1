// SPDX-License-Identifier: Apache-2.0

/// @file
/// What an execution engine is to the core, and what the core offers it.
///
/// The engine is chosen at run time, so this boundary is virtual: a call costs about 2 ns and
/// what it wraps costs a world switch.  An engine knows the CPU state and guest-physical memory;
/// it knows no device, no other engine, and no interrupt controller but its own, if it has some
/// (`EngineVm::create_irqchip`).

#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/result.hpp"
#include "vmm/x86/msr_filter.hpp"
#include "vmm/x86/state.hpp"
#include "x86/cpu_state.hpp"
#include "x86/irqchip/apic_registers.hpp"
#include "x86/irqchip/controllers.hpp"

namespace vmm::x86 {

/// Guest-physical memory by page, as an engine's page tables and TLBs want it.
///
/// Thread safety: all members from any thread.
class PhysicalMemory {
public:
    struct Page {
        std::byte* host{};  ///< Null: no slot backs the page, accesses are MMIO.
        bool writable{};    ///< Clear for a read-only slot: reads are memory, writes are MMIO.
        bool log_dirty{};   ///< Writes must be reported with `mark_dirty` first.
    };

    virtual ~PhysicalMemory() = default;

    /// The 4 KiB page with frame number `gfn`.  `host` stays valid until the engine's
    /// `EngineVm::memory_changed()` has returned.
    [[nodiscard]] virtual Page page(std::uint64_t gfn) noexcept = 0;
    virtual void mark_dirty(std::uint64_t gfn) noexcept = 0;

    /// The memory that a CPU in system-management mode sees.
    [[nodiscard]] virtual PhysicalMemory& in_smm() noexcept { return *this; }
};

/// Guest-physical memory by slot, as an engine wants it that hands memory on instead of looking
/// pages up.
///
/// Thread safety: all members from any thread.
class MemorySlots {
public:
    struct Region {
        std::uint32_t slot{};
        std::uint64_t gpa{};
        std::uint64_t size_bytes{};
        std::byte* host{};
        bool read_only{};
        bool log_dirty{};

        friend bool operator==(const Region&, const Region&) = default;
    };

    virtual ~MemorySlots() = default;

    /// All slots, as they are now.
    [[nodiscard]] virtual std::vector<Region> regions() = 0;
    /// Page `page` of a slot was written.  Nothing happens if there is no such slot any more.
    virtual void mark_slot_dirty(std::uint32_t slot, std::uint64_t page) noexcept = 0;
    /// The same of each page whose bit is set.
    void mark_dirty_pages(std::uint32_t slot, std::span<const std::uint64_t> bitmap) noexcept
    {
        constexpr std::uint64_t bits = 64;
        for (std::size_t index = 0; index < bitmap.size(); ++index) {
            for (std::uint64_t left = bitmap[index]; left != 0; left &= left - 1) {
                mark_slot_dirty(slot, index * bits + static_cast<unsigned>(std::countr_zero(left)));
            }
        }
    }
};

/// How the core answered an MSR access.
enum class MsrResult : std::uint8_t {
    Done,
    Fault,   ///< #GP(0).
    ToUser,  ///< The caller answers: leave with `EngineExit::Reason::MsrRead` or `MsrWrite`.
};

/// What the core offers an engine while `enter()` runs.  Called on the vCPU's own thread.
class VcpuHost {
public:
    virtual ~VcpuHost() = default;

    /// Offers an access to the buses of the library.  False: nobody there answers, leave to
    /// the caller.
    virtual bool mmio_read(Gpa gpa, std::span<std::byte> data) noexcept = 0;
    virtual bool mmio_write(Gpa gpa, std::span<const std::byte> data) noexcept = 0;
    virtual bool port_read(Port port, std::span<std::byte> data) noexcept = 0;
    virtual bool port_write(Port port, std::span<const std::byte> data) noexcept = 0;

    /// False: nobody in the library answers an access of `size` bytes at `port`, and asking for it
    /// would be in vain.  Cheap, and never blocks; may say true too often.
    virtual bool may_answer_port(Port port, std::size_t size) noexcept
    {
        static_cast<void>(port);
        static_cast<void>(size);
        return true;
    }
    /// The same for MMIO.
    virtual bool may_answer_mmio(Gpa gpa, std::size_t size) noexcept
    {
        static_cast<void>(gpa);
        static_cast<void>(size);
        return true;
    }

    /// MSRs that are not plain CPU state (APIC, kvmclock, MTRRs, feature MSRs, unknown ones …).
    virtual MsrResult read_msr(std::uint32_t index, std::uint64_t& value) noexcept = 0;
    virtual MsrResult write_msr(std::uint32_t index, std::uint64_t value) noexcept = 0;

    /// Whether the filter lets the guest access an MSR; asked before any access, of those that the
    /// engine answers itself too.  Never blocks.
    virtual bool allows_msr(std::uint32_t index, bool write) noexcept
    {
        static_cast<void>(index);
        static_cast<void>(write);
        return true;
    }
    /// What becomes of an access that the filter denies or that the engine refuses itself: `Fault`
    /// or `ToUser`.
    virtual MsrResult refuse_msr(MsrExitReason why) noexcept
    {
        static_cast<void>(why);
        return MsrResult::Fault;
    }

    /// MOV to/from CR8.  The value has been checked.
    virtual void write_cr8(std::uint64_t value) noexcept = 0;
    virtual std::uint64_t read_cr8() noexcept = 0;

    /// IA32_APIC_BASE, for an engine whose CPUID shows whether the APIC is enabled.
    virtual std::uint64_t apic_base() noexcept
    {
        constexpr std::uint64_t enabled_bootstrap = 0xfee0'0900;
        return enabled_bootstrap;
    }

    /// The time-stamp counter the guest sees.
    virtual std::uint64_t guest_tsc() noexcept = 0;

    /// VMCALL/VMMCALL.  RAX holds the number and receives the result.
    virtual void hypercall(CpuState& state) noexcept = 0;

    /// Whether one of KVM's quirks (`vmm/x86/quirk.hpp`) is not turned off.
    virtual bool has_quirk(std::uint64_t quirk) noexcept
    {
        static_cast<void>(quirk);
        return true;
    }
};

/// Why an engine left the guest.
struct EngineExit {
    enum class Reason : std::uint8_t {
        Interrupted,  ///< `request_exit()` was called.
        PortRead,
        PortWrite,
        MmioRead,
        MmioWrite,
        Halt,      ///< HLT executed; RIP is past it.
        Shutdown,  ///< Triple fault.
        MsrRead,
        MsrWrite,
        IrqWindow,
        NmiWindow,
        Rsm,            ///< RSM executed in SMM: the core loads the state.
        Debug,          ///< `debug` says what; RIP stands at `debug.pc`.
        InternalError,  ///< The engine met an instruction that it knows no way to run.
        EntryFailure,   ///< The host refused to run the state; `hardware_reason` says why.
        Difference,     ///< Two engines in lockstep differ; `report` says in what.
        HostError,      ///< The host could not run the guest; `hardware_reason` is its errno.
        IoapicEoi,      ///< Of `EngineApic`: an interrupt of `vector` has ended that the caller's
                        ///< I/O APIC sent.
        TprAccess,      ///< Of `EngineApic`: `tpr_access` says what has been done already.
    };

    Reason reason{};
    std::uint8_t size{};  ///< Port and MMIO: bytes an element.
    std::uint16_t port{};
    std::uint32_t count{};  ///< Port: elements (string instructions).
    std::uint64_t gpa{};    ///< MMIO.
    std::uint32_t msr{};
    std::uint64_t msr_value{};  ///< MsrWrite.
    /// MSRs: filled by the caller.
    MsrAnswer* msr_answer{};
    /// Port and MMIO data: filled by the engine for writes, by the caller for reads.
    std::span<std::byte> data{};
    std::array<std::uint8_t, 15> instruction{};  ///< InternalError: the bytes at RIP.
    std::uint8_t instruction_size{};
    std::uint64_t hardware_reason{};  ///< EntryFailure, HostError.
    struct {
        std::uint64_t pc{};  ///< Linear.
        std::uint64_t dr6{};
        std::uint64_t dr7{};
        std::uint8_t exception{};
    } debug{};
    std::string_view report{};  ///< Difference.
    std::uint8_t vector{};      ///< IoapicEoi.
    struct {
        std::uint64_t rip{};
        bool is_write{};
    } tpr_access{};
};

/// Parts of `CpuState` that an engine may keep elsewhere until they are asked for.
enum class StateGroup : std::uint8_t {
    None = 0,       ///< `cpuid`, `tsc_offset`, `cr8` and the window requests: always at hand.
    Registers = 1,  ///< GPRs, RIP, RFLAGS; shadows, `nmi_blocked`, `pending_debug`, `inject`.
    Segments = 2,   ///< Segments, descriptor tables, CR0 to CR4, EFER.
    Fpu = 4,        ///< `fpu` and XCR0.
    Debug = 8,
    Msrs = 16,  ///< The rest.
    All = 31,
};

[[nodiscard]] constexpr StateGroup operator|(StateGroup a, StateGroup b) noexcept
{
    return StateGroup{
        static_cast<std::uint8_t>(static_cast<unsigned>(a) | static_cast<unsigned>(b))};
}
[[nodiscard]] constexpr StateGroup operator&(StateGroup a, StateGroup b) noexcept
{
    return StateGroup{
        static_cast<std::uint8_t>(static_cast<unsigned>(a) & static_cast<unsigned>(b))};
}
/// `a` without `b`.
[[nodiscard]] constexpr StateGroup operator-(StateGroup a, StateGroup b) noexcept
{
    return StateGroup{
        static_cast<std::uint8_t>(static_cast<unsigned>(a) & ~static_cast<unsigned>(b))};
}

/// A vCPU's local APIC where the engine has it.  Then INIT, SIPI, HLT, NMIs and the choice of
/// interrupts are the engine's too: `EngineVcpu::enter()` sleeps where the vCPU does, until
/// `request_exit()` at the latest, and leaves for none of them.
///
/// Thread safety: that of the `EngineVcpu`.
class EngineApic : public irqchip::ApicRegisters {
public:
    [[nodiscard]] virtual MpState mp_state() noexcept = 0;
    [[nodiscard]] virtual Result<void> set_mp_state(MpState state) = 0;

    /// One more NMI, as KVM_NMI: it waits as long as the guest blocks it, and ends HLT.
    virtual void inject_nmi() noexcept = 0;
    [[nodiscard]] virtual bool is_nmi_pending() noexcept = 0;
    virtual void set_nmi_pending(bool pending) noexcept = 0;

    /// A vector of the caller's PIC, as `Vcpu::interrupt()` has it.  Split irqchip.
    [[nodiscard]] virtual Result<void> interrupt(std::uint8_t vector) = 0;
    /// Whether it would be delivered at once, when the vCPU left the guest last.
    [[nodiscard]] virtual bool takes_interrupts() const noexcept = 0;

    virtual void report_tpr_accesses(bool wanted) noexcept = 0;
    [[nodiscard]] virtual Result<void> set_vapic_address(Gpa word) = 0;
    /// Of the paravirtual features that lean on the APIC, which are the engine's with it.
    virtual void enforce_pv_features(bool enforced) noexcept = 0;
};

/// One virtual CPU as an engine runs it.
///
/// Thread safety: calls are serialised by the owner, except `request_exit()`.
class EngineVcpu {
public:
    EngineVcpu() = default;
    EngineVcpu(const EngineVcpu&) = delete;
    EngineVcpu& operator=(const EngineVcpu&) = delete;
    EngineVcpu(EngineVcpu&&) = delete;
    EngineVcpu& operator=(EngineVcpu&&) = delete;
    virtual ~EngineVcpu() = default;

    /// The canonical state, of which the groups asked for are current.  Valid to read and change
    /// between two calls of `enter()`; after a change that is not only to `inject` and the window
    /// requests, call `state_changed()` with the groups that changed.
    [[nodiscard]] CpuState& state(StateGroup current) noexcept
    {
        return (current - current_) == StateGroup::None ? *held_ : fetch_state(current);
    }
    /// Drops what the engine has derived from the state (TLBs, mode).
    virtual void state_changed(StateGroup changed) noexcept = 0;

    [[nodiscard]] CpuState& state() noexcept { return state(StateGroup::All); }
    void state_changed() noexcept { state_changed(StateGroup::All); }

    /// What the guest sees from now on.  On error, which says what the engine cannot offer,
    /// nothing has changed.
    [[nodiscard]] virtual Result<void> set_cpuid(Cpuid cpuid) = 0;

    /// What leaves with `Debug` from now on.  `block_interrupts` is the core's affair.
    [[nodiscard]] virtual Result<void> set_guest_debug(const GuestDebug& debug) = 0;

    /// MSRs that the engine keeps itself, outside of `CpuState` and of the core's: speculation
    /// control where the host's CPU executes the guest.  False: this is none of them, or the value
    /// is refused.
    [[nodiscard]] virtual bool has_msr(std::uint32_t index) const noexcept = 0;
    [[nodiscard]] virtual bool read_msr(std::uint32_t index, std::uint64_t& value) noexcept = 0;
    [[nodiscard]] virtual bool write_msr(std::uint32_t index, std::uint64_t value) noexcept = 0;

    /// Runs guest code until something needs the core.  `exit.data` of the last port or MMIO read,
    /// `exit.msr_answer` of an MSR access must have been filled before: entering completes that
    /// instruction.
    virtual const EngineExit& enter() noexcept = 0;

    /// Completes the instruction that a port, MMIO or MSR exit left pending (RIP and registers
    /// become final) without running another one.  False if it needs one more access answered: the
    /// next `enter()` returns that exit at once.
    virtual bool complete_pending() noexcept = 0;

    /// Makes the current or the next `enter()` return `Interrupted` within a bounded number of
    /// instructions.  Any thread, async-signal-safe.  Sticky until consumed by that return.
    virtual void request_exit() noexcept = 0;

    /// Linear to physical, as the current paging mode has it, without side effects on A/D bits.
    /// False where it is not mapped.
    [[nodiscard]] virtual bool translate(std::uint64_t linear, std::uint64_t& gpa) noexcept = 0;

    /// Where the instruction begins that is asking the core for something.  Only within a call of
    /// the `VcpuHost`.
    [[nodiscard]] virtual std::uint64_t instruction_rip() noexcept
    {
        return state(StateGroup::Registers).rip;
    }

    /// The vCPU's local APIC if the engine has it; null: the core has it, or nobody.
    [[nodiscard]] virtual EngineApic* apic() noexcept { return nullptr; }

    /// Drops the translations of all linear addresses.
    virtual void flush_tlb() noexcept { state_changed(StateGroup::Segments); }

    /// What the engine has counted since its creation, by name.  Names have static lifetime.
    [[nodiscard]] virtual std::vector<std::pair<std::string_view, std::uint64_t>> counters() const
    {
        return {};
    }

protected:
    /// Makes these groups current: some of them are not.
    [[nodiscard]] virtual CpuState& fetch_state(StateGroup current) noexcept
    {
        static_cast<void>(current);
        return *held_;
    }

    /// Where the state is; before anybody asks for it.
    void hold(CpuState& state, StateGroup current) noexcept
    {
        held_ = &state;
        current_ = current;
    }
    /// The groups that the state has as the guest has them, or newer.
    [[nodiscard]] StateGroup current() const noexcept { return current_; }
    void set_current(StateGroup current) noexcept { current_ = current; }

private:
    CpuState* held_{};
    StateGroup current_{StateGroup::None};
};

/// What the vCPUs of one VM share in an engine.
class EngineVm {
public:
    EngineVm() = default;
    EngineVm(const EngineVm&) = delete;
    EngineVm& operator=(const EngineVm&) = delete;
    EngineVm(EngineVm&&) = delete;
    EngineVm& operator=(EngineVm&&) = delete;
    virtual ~EngineVm() = default;

    [[nodiscard]] virtual Result<std::unique_ptr<EngineVcpu>> create_vcpu(VcpuHost& host,
                                                                          std::uint32_t id) = 0;

    /// Interrupt controllers of the engine's own, which the VM and each vCPU from now on
    /// (`EngineVcpu::apic()`) have; before the first vCPU, once.
    ///
    /// @param io_apic_pins  Split: of the caller's I/O APIC.
    /// @return EINVAL where the engine has none.
    [[nodiscard]] virtual Result<std::unique_ptr<irqchip::Controllers>> create_irqchip(
        irqchip::IrqchipMode mode,
        std::uint32_t io_apic_pins)
    {
        static_cast<void>(mode);
        static_cast<void>(io_apic_pins);
        return Error{std::errc::invalid_argument,
                     "create_irqchip: this engine has no interrupt controllers of its own"};
    }

    /// Which vCPU is the bootstrap processor; before the first one.
    [[nodiscard]] virtual Result<void> set_boot_cpu_id(std::uint32_t id)
    {
        static_cast<void>(id);
        return success;
    }
    /// How long a vCPU with an `EngineApic` looks by itself whether it may go on.
    virtual void set_halt_poll_ns(std::uint32_t longest) noexcept { static_cast<void>(longest); }

    /// The slots changed.  Returns when no vCPU uses a translation from before the call.
    /// Not from a vCPU's thread inside `enter()`.  On error the engine runs on the slots of before.
    virtual Result<void> memory_changed() = 0;

    /// A slot's dirty bits are about to be taken: reports the writes not yet reported.
    virtual Result<void> collect_dirty_log(std::uint32_t slot) = 0;

    /// Dirty bits were cleared: returns when each further write reports its page again.
    virtual void dirty_log_cleared() noexcept = 0;

    /// From now on writes are reported by the vCPU that makes them, before `enter()` returns, and
    /// not only to `collect_dirty_log()`: so many at a time.  Before the first vCPU and the first
    /// slot that logs.
    [[nodiscard]] virtual Result<void> tell_each_write(std::uint32_t at_a_time)
    {
        static_cast<void>(at_a_time);
        return success;
    }

    /// The guest may access other MSRs now (`VcpuHost::allows_msr`).  Not from a vCPU's thread
    /// inside `enter()`.  On error nothing has changed.
    virtual Result<void> set_msr_filter(const MsrFilter& filter) = 0;

    /// `VcpuHost::has_quirk` has other answers now; an engine that does not ask it is told here.
    virtual Result<void> disable_quirks(std::uint64_t quirks)
    {
        static_cast<void>(quirks);
        return success;
    }

    /// The core leaves for these hypercalls, by number; an engine whose hypercalls another one
    /// answers is told here which it is to hand on.
    virtual Result<void> set_hypercall_exits(std::uint64_t calls)
    {
        static_cast<void>(calls);
        return success;
    }

    /// The VMM or a device wrote guest memory: code decoded from there is stale.
    virtual void memory_written(Gpa gpa, std::uint64_t size_bytes) noexcept = 0;
};

}  // namespace vmm::x86
