// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM_RUN: the order of its steps is KVM's, since clients lean on it.

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>

#include <linux/kvm.h>

#include "x86/shim/convert.hpp"
#include "x86/shim/log.hpp"
#include "x86/shim/signals.hpp"
#include "x86/shim/vcpu_file.hpp"

namespace vmm::shim {
namespace {

/// A field of the run area that the client may change at any time, its signal handlers too.
template <typename T>
T now(const T& field) noexcept
{
    return *const_cast<const volatile T*>(&field);
}

void show_port(kvm_run& area,
               unsigned direction,
               Port port,
               std::uint8_t width,
               std::size_t size) noexcept
{
    area.exit_reason = KVM_EXIT_IO;
    area.io.direction = static_cast<__u8>(direction);
    area.io.size = width;
    area.io.port = port.value();
    area.io.count = static_cast<__u32>(size / width);
    area.io.data_offset = shim_page_size;
}

void show_mmio(kvm_run& area, Gpa gpa, std::size_t size, bool write) noexcept
{
    area.exit_reason = KVM_EXIT_MMIO;
    area.mmio.phys_addr = gpa.value();
    area.mmio.len = static_cast<__u32>(size);
    area.mmio.is_write = write ? 1 : 0;
}

void show_msr(kvm_run& area,
              unsigned exit_reason,
              std::uint32_t index,
              x86::MsrExitReason reason,
              std::uint64_t data) noexcept
{
    area.exit_reason = exit_reason;
    area.msr = {};
    area.msr.reason = static_cast<__u32>(reason);
    area.msr.index = index;
    area.msr.data = data;
}

void show_emulation_error(kvm_run& area, std::span<const std::uint8_t> instruction) noexcept
{
    area.exit_reason = KVM_EXIT_INTERNAL_ERROR;
    auto& error = area.emulation_failure;
    error.suberror = KVM_INTERNAL_ERROR_EMULATION;
    error.ndata = 0;
    error.flags = 0;
    if (!instruction.empty()) {
        error.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
        error.ndata = 3;  // The flags, and two words of size and bytes.
        error.insn_size = static_cast<__u8>(instruction.size());
        std::memset(error.insn_bytes, 0x90, sizeof error.insn_bytes);
        std::copy(instruction.begin(), instruction.end(), &error.insn_bytes[0]);
    }
}

}  // namespace

/// Registers that the client has put into the area.  False: they are refused.
bool VcpuFile::load_synced(kvm_run& area)
{
    const __u64 dirty = now(area.kvm_dirty_regs);
    if ((dirty & KVM_SYNC_X86_REGS) != 0) {
        vcpu_.set_regs(from_kvm(area.s.regs.regs));
    }
    if ((dirty & KVM_SYNC_X86_SREGS) != 0 && set_sregs(vcpu_, area.s.regs.sregs) != 0) {
        return false;
    }
    if ((dirty & KVM_SYNC_X86_EVENTS) != 0 &&
        set_events(vcpu_, area.s.regs.events, known_events()) != 0) {
        return false;
    }
    area.kvm_dirty_regs = 0;
    return true;
}

/// The client has answered the access that it was shown.
void VcpuFile::take_answer(kvm_run& area) noexcept
{
    if (!pending_) {
        return;
    }
    if (const auto* in = pending_->get_if<PortRead>()) {
        std::memcpy(in->data.data(), area_.port_data(), in->data.size());
    } else if (const auto* read = pending_->get_if<MmioRead>()) {
        std::memcpy(read->data.data(), area.mmio.data,
                    std::min(read->data.size(), sizeof area.mmio.data));
    } else if (const auto* rdmsr = pending_->get_if<MsrRead>()) {
        *rdmsr->answer = {area.msr.data, area.msr.error != 0};
    } else if (const auto* wrmsr = pending_->get_if<MsrWrite>()) {
        wrmsr->answer->fault = area.msr.error != 0;
    } else if (const auto* call = pending_->get_if<Hypercall>()) {
        *call->result = area.hypercall.ret;
    }
}

long VcpuFile::show(kvm_run& area, const Exit& exit)
{
    return exit.visit(
        Overloaded{[&](const PortRead& e) {
                       show_port(area, KVM_EXIT_IO_IN, e.port, e.width, e.data.size());
                       std::memset(area_.port_data(), 0xff, e.data.size());
                       return 0L;
                   },
                   [&](const PortWrite& e) {
                       show_port(area, KVM_EXIT_IO_OUT, e.port, e.width, e.data.size());
                       std::memcpy(area_.port_data(), e.data.data(), e.data.size());
                       return 0L;
                   },
                   [&](const MmioRead& e) {
                       show_mmio(area, e.gpa, e.data.size(), false);
                       return 0L;
                   },
                   [&](const MmioWrite& e) {
                       show_mmio(area, e.gpa, e.data.size(), true);
                       std::memcpy(area.mmio.data, e.data.data(),
                                   std::min(e.data.size(), sizeof area.mmio.data));
                       return 0L;
                   },
                   [&](const MsrRead& e) {
                       show_msr(area, KVM_EXIT_X86_RDMSR, e.index, e.reason, 0);
                       return 0L;
                   },
                   [&](const MsrWrite& e) {
                       show_msr(area, KVM_EXIT_X86_WRMSR, e.index, e.reason, e.value);
                       return 0L;
                   },
                   [&](const Halt&) {
                       area.exit_reason = KVM_EXIT_HLT;
                       return 0L;
                   },
                   [&](const Shutdown&) {
                       area.exit_reason = KVM_EXIT_SHUTDOWN;
                       return 0L;
                   },
                   [&](const Interrupted&) {
                       area.exit_reason = KVM_EXIT_INTR;
                       return -long{EINTR};
                   },
                   [&](const IrqWindow&) {
                       area.exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
                       return 0L;
                   },
                   [&](const IoapicEoi& e) {
                       area.exit_reason = KVM_EXIT_IOAPIC_EOI;
                       area.eoi.vector = e.vector;
                       return 0L;
                   },
                   [&](const DirtyRingFull&) {
                       area.exit_reason = KVM_EXIT_DIRTY_RING_FULL;
                       return 0L;
                   },
                   [&](const Hypercall& e) {
                       area.exit_reason = KVM_EXIT_HYPERCALL;
                       area.hypercall = {};
                       area.hypercall.nr = e.number;
                       std::copy(e.arguments.begin(), e.arguments.end(), &area.hypercall.args[0]);
                       area.hypercall.longmode = e.long_mode ? 1 : 0;
                       return 0L;
                   },
                   [&](const TprAccess& e) {
                       area.exit_reason = KVM_EXIT_TPR_ACCESS;
                       area.tpr_access = {};
                       area.tpr_access.rip = e.rip.value();
                       area.tpr_access.is_write = e.is_write ? 1 : 0;
                       return 0L;
                   },
                   [&](const Debug& e) {
                       area.exit_reason = KVM_EXIT_DEBUG;
                       area.debug.arch = {};
                       area.debug.arch.exception = e.exception;
                       area.debug.arch.pc = e.pc.value();
                       area.debug.arch.dr6 = e.dr6;
                       area.debug.arch.dr7 = e.dr7;
                       return 0L;
                   },
                   [&](const InternalError& e) {
                       show_emulation_error(area, e.instruction);
                       return 0L;
                   },
                   [&](const EntryFailure& e) {
                       area.exit_reason = KVM_EXIT_FAIL_ENTRY;
                       area.fail_entry.hardware_entry_failure_reason = e.hardware_reason;
                       area.fail_entry.cpu = 0;
                       return 0L;
                   },
                   [&](const auto&) {
                       log(LogLevel::Error,
                           std::string{"vCPU exit that KVM's ABI has no name for: "} + exit.name());
                       show_emulation_error(area, {});
                       return 0L;
                   }});
}

void VcpuFile::show_state(kvm_run& area)
{
    const x86::RunState state = vcpu_.run_state();
    area.if_flag = state.if_flag ? 1 : 0;
    area.ready_for_interrupt_injection = state.ready_for_interrupt_injection ? 1 : 0;
    area.cr8 = state.cr8;
    area.flags = state.smm ? KVM_RUN_X86_SMM : 0;
    area.apic_base = state.apic_base;
    const __u64 valid = now(area.kvm_valid_regs);
    if (valid == 0) {
        return;
    }
    if ((valid & KVM_SYNC_X86_REGS) != 0) {
        area.s.regs.regs = to_kvm(vcpu_.regs());
    }
    if ((valid & KVM_SYNC_X86_SREGS) != 0) {
        area.s.regs.sregs = sregs_of(vcpu_);
    }
    if ((valid & KVM_SYNC_X86_EVENTS) != 0) {
        area.s.regs.events = events_of(vcpu_, known_events());
    }
}

long VcpuFile::run() noexcept
{
    // The scope ends last: handlers of signals that came meanwhile may use the vCPU.
    RunScope scope{kicker_, vm_->host_ranges(), run_mask_};
    const std::lock_guard lock{mutex_};
    try {
        const long result = run_locked(scope);
        show_state(area_.run());
        if (is_wanted(LogLevel::Trace)) {
            trace(link_name() + " KVM_RUN (exit " + std::to_string(area_.run().exit_reason) + ')',
                  result);
        }
        return result;
    } catch (const std::bad_alloc&) {
        return -ENOMEM;
    }
}

long VcpuFile::run_locked(RunScope& scope)
{
    kvm_run& area = area_.run();
    area.flags = 0;
    const bool has_irqchip = vm_->has_irqchip;
    if (vcpu_.mp_state() == x86::MpState::Uninitialized && now(area.immediate_exit) != 0) {
        return -EINTR;
    }
    constexpr __u64 known = KVM_SYNC_X86_VALID_FIELDS;
    if (((now(area.kvm_valid_regs) | now(area.kvm_dirty_regs)) & ~known) != 0) {
        return -EINVAL;
    }
    if (now(area.kvm_dirty_regs) != 0 && !load_synced(area)) {
        return -EINVAL;
    }
    if (!has_irqchip) {
        if (!vcpu_.set_cr8(now(area.cr8))) {
            return -EINVAL;
        }
    }
    vcpu_.request_irq_window(now(area.request_interrupt_window) != 0);
    take_answer(area);
    has_run_ = true;
    if (now(area.immediate_exit) != 0) {
        const bool complete = !pending_ || pending_->complete();
        pending_.reset();
        if (complete) {
            return -EINTR;
        }
    }
    const Result<Exit> exit = vcpu_.run();
    pending_.reset();
    if (scope.take_faults() && exit && exit->is<Interrupted>()) {
        return -EFAULT;
    }
    if (!exit) {
        return refused(exit.error());
    }
    if (exit->is<PortRead>() || exit->is<PortWrite>() || exit->is<MmioRead>() ||
        exit->is<MmioWrite>() || exit->is<MsrRead>() || exit->is<MsrWrite>() ||
        exit->is<Hypercall>()) {
        pending_ = *exit;
    }
    return show(area, *exit);
}

}  // namespace vmm::shim
