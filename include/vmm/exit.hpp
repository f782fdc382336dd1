// SPDX-License-Identifier: Apache-2.0

/// @file
/// Why a virtual CPU stopped running guest code.
///
///     vmm::Result<vmm::Exit> exit = vcpu.run();
///     exit->visit(vmm::Overloaded{
///         [&](const vmm::PortWrite& e) { console.write(e.data); },
///         [&](const vmm::Halt&) { done = true; },
///         [&](const auto& e) { … }});
///
/// A caller sees what KVM would show it, under KVM's conditions.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "vmm/address.hpp"
#include "vmm/export.hpp"
#include "vmm/x86/msr_filter.hpp"

namespace vmm {

/// The guest read from an I/O port.  Fill `data` before the next `Vcpu::run()`.
///
/// `data` aliases the vCPU's run area and is valid until then; it starts out as all ones, what
/// an empty bus answers.
struct PortRead {
    Port port;
    std::uint8_t width;         ///< Bytes per access: 1, 2 or 4.
    std::span<std::byte> data;  ///< `width` bytes times the repeat count of a string access.
};

/// The guest wrote `data` to an I/O port.
struct PortWrite {
    Port port;
    std::uint8_t width;  ///< Bytes per access: 1, 2 or 4.
    std::span<const std::byte> data;
};

/// The guest read guest-physical memory that no slot backs.  Fill `data` (1 to 8 bytes, all ones
/// to begin with) before the next run.  Wider or page-crossing accesses come as several exits.
struct MmioRead {
    Gpa gpa;
    std::span<std::byte> data;
};

/// The guest wrote `data` (1 to 8 bytes) to guest-physical memory that no slot backs, or to a
/// read-only slot.
struct MmioWrite {
    Gpa gpa;
    std::span<const std::byte> data;
};

/// The guest executed RDMSR, and the caller is to say what it gives (`Vm::set_msr_exits`,
/// KVM_EXIT_X86_RDMSR).  Fill `answer` before the next run: 0, without a fault, to begin with.
struct MsrRead {
    std::uint32_t index;
    x86::MsrExitReason reason;
    x86::MsrAnswer* answer;  ///< In the vCPU's run area; valid until the next run.
};

/// The guest executed WRMSR, and the caller is to say whether it raises #GP(0): `answer->fault`
/// (KVM_EXIT_X86_WRMSR).
struct MsrWrite {
    std::uint32_t index;
    x86::MsrExitReason reason;
    std::uint64_t value;
    x86::MsrAnswer* answer;  ///< As of `MsrRead`.
};

/// The guest executed HLT.  Only without an interrupt controller: with one, HLT waits inside
/// `run()`.
struct Halt {};

/// The guest triple-faulted.
struct Shutdown {};

/// `Vcpu::Kicker::kick()` ended the run.  The state is consistent; run again to go on.
struct Interrupted {};

/// An external interrupt can be injected now (`Vcpu::request_irq_window`).
struct IrqWindow {};

/// The guest ended a level-triggered interrupt that the caller's I/O APIC sent: of a vector that
/// one of the first GSIs of `Vm::create_split_irqchip()` leads to (KVM_EXIT_IOAPIC_EOI).
struct IoapicEoi {
    std::uint8_t vector;
};

/// The vCPU's dirty ring is full but for what is reserved (`Vm::enable_dirty_rings`,
/// KVM_EXIT_DIRTY_RING_FULL).  It goes on when entries were collected and freed
/// (`Vm::reset_dirty_rings`); until then each run ends so.
struct DirtyRingFull {};

/// The guest made a hypercall that the caller is to answer (`Vm::set_hypercall_exits`,
/// KVM_EXIT_HYPERCALL).  What `*result` holds at the next run is in RAX then: 0 to begin with,
/// which is success.
struct Hypercall {
    std::uint64_t number;
    std::array<std::uint64_t, 3> arguments;  ///< RBX, RCX, RDX.
    bool long_mode;                          ///< Of 64-bit code; else they have 32 bits.
    std::uint64_t* result;                   ///< In the vCPU's run area; valid until the next run.
};

/// The guest has read or written the task priority of its local APIC, by its page or an x2APIC MSR;
/// that is done already (`Vcpu::report_tpr_accesses`, KVM_EXIT_TPR_ACCESS).
struct TprAccess {
    Gva rip;  ///< Of the instruction that did.
    bool is_write;
};

/// What a debugger asked for came about (`Vcpu::set_guest_debug`, KVM_EXIT_DEBUG).
struct Debug {
    std::uint8_t exception;  ///< 1: a step or a breakpoint of DR7.  3: INT3.
    /// Linear address of the next instruction, or of the one that a breakpoint stands on.
    Gva pc;
    /// With exception 1: what came about, as DR6 tells it.  The guest's DR6 stays as it was.
    std::uint64_t dr6;
    std::uint64_t dr7;  ///< With exception 1: the DR7 in force.
};

/// The engine cannot execute the instruction at RIP, e.g. code in no memory slot.  RIP stands at
/// it; running again meets it again.
struct InternalError {
    std::span<const std::uint8_t> instruction;  ///< What could be fetched, 0 to 15 bytes.
};

/// The hardware refused the state that it was asked to enter.
struct EntryFailure {
    /// VM-instruction error or VMEXIT code; on `kvm` also the errno of what refused the state.
    std::uint64_t hardware_reason;
};

/// Two engines in lockstep (`KvmOptions::lockstep`) differ.  The vCPU goes no further.
struct Difference {
    /// What differs, both states, and the code around; for a human, many lines.
    std::string_view report;
};

namespace core {
class VcpuCore;
}

/// What ended a `Vcpu::run()`: exactly one of the structs above.
///
/// A value; copying it is cheap.  Valid until the next `run()` of its vCPU.
class VMM_API Exit {
public:
    using Reason = std::variant<PortRead,  //
                                PortWrite,
                                MmioRead,
                                MmioWrite,
                                MsrRead,
                                MsrWrite,
                                Halt,
                                Shutdown,
                                Interrupted,
                                IrqWindow,
                                IoapicEoi,
                                DirtyRingFull,
                                Hypercall,
                                TprAccess,
                                Debug,
                                InternalError,
                                EntryFailure,
                                Difference>;

    Exit(const Reason& reason, core::VcpuCore* vcpu) noexcept : reason_{reason}, vcpu_{vcpu} {}

    [[nodiscard]] const Reason& reason() const noexcept { return reason_; }

    template <typename T>
    [[nodiscard]] bool is() const noexcept
    {
        return std::holds_alternative<T>(reason_);
    }
    /// The payload, or null if the reason is another.
    template <typename T>
    [[nodiscard]] const T* get_if() const noexcept
    {
        return std::get_if<T>(&reason_);
    }
    /// Calls the visitor with the payload.  A visitor without a catch-all stops compiling when a
    /// reason is added, which is how one finds the code that must handle it.
    template <typename Visitor>
    decltype(auto) visit(Visitor&& visitor) const
    {
        return std::visit(std::forward<Visitor>(visitor), reason_);
    }

    /// The reason's name, e.g. "port write".
    [[nodiscard]] const char* name() const noexcept;

    /// Finishes the pending I/O, MMIO or MSR access, or hypercall, without running another
    /// instruction: RIP and registers become final, as after KVM_RUN with `immediate_exit`.  The
    /// data of a read must have been filled.  Does nothing where nothing is pending.
    ///
    /// @return false if the instruction has one more access, which the next `run()` returns at
    /// once.
    bool complete() const noexcept;

private:
    Reason reason_;
    core::VcpuCore* vcpu_;
};

static_assert(std::is_trivially_copyable_v<Exit>, "an exit is passed by value on the hot path");

/// Builds a visitor from lambdas.
template <typename... Fs>
struct Overloaded : Fs... {
    using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

}  // namespace vmm
