// SPDX-License-Identifier: Apache-2.0

#include "x86/kvm/vcpu.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include <sys/mman.h>

#include "x86/msr.hpp"

namespace vmm::x86::kvm {

Result<RunArea> RunArea::map(const UniqueFd& vcpu, std::size_t size, off_t offset, const char* what)
{
    void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), offset);
    if (at == MAP_FAILED) {
        return Error::from_errno(what);
    }
    return RunArea{at, size};
}

Result<RunArea> RunArea::map(const UniqueFd& vcpu, int size)
{
    return map(vcpu, static_cast<std::size_t>(size), 0, "mmap of the vCPU's run area");
}

Result<RunArea> RunArea::map_ring(const UniqueFd& vcpu, std::uint32_t entries)
{
    constexpr off_t page_size = 4096;
    return map(vcpu, entries * sizeof(memory::DirtyGfn), KVM_DIRTY_LOG_PAGE_OFFSET * page_size,
               "mmap of the vCPU's dirty ring");
}

std::span<memory::DirtyGfn> RunArea::ring() const noexcept
{
    static_assert(sizeof(memory::DirtyGfn) == sizeof(kvm_dirty_gfn));
    // SAFETY: KVM's entries, in KVM's layout.
    return {reinterpret_cast<memory::DirtyGfn*>(run_), size_ / sizeof(memory::DirtyGfn)};
}

RunArea::RunArea(RunArea&& other) noexcept
    : run_{std::exchange(other.run_, nullptr)},
      size_{other.size_}
{
}

RunArea::~RunArea()
{
    if (run_ != nullptr) {
        static_cast<void>(::munmap(run_, size_));
    }
}

std::byte* RunArea::at(std::uint64_t offset) const noexcept
{
    // SAFETY: KVM's offsets lie in the area.
    return reinterpret_cast<std::byte*>(run_) + offset;
}

Result<std::unique_ptr<EngineVcpu>> KvmVcpu::create(std::shared_ptr<KvmVm> vm,
                                                    VcpuHost& host,
                                                    std::uint32_t id)
{
    UniqueFd fd{::ioctl(vm->fd().get(), KVM_CREATE_VCPU, static_cast<unsigned long>(id))};
    if (!fd) {
        return Error::from_errno("KVM_CREATE_VCPU");
    }
    VMM_TRY(RunArea run, RunArea::map(fd, vm->run_size()));
    std::optional<RunArea> ring;
    if (vm->dirty_ring_entries() != 0U) {
        VMM_TRY(RunArea mapped, RunArea::map_ring(fd, vm->dirty_ring_entries()));
        ring.emplace(std::move(mapped));
    }
    // With the library's APICs no hypercall that is not offered would find what it is about.
    static_cast<void>(enforce_pv_features(fd, !vm->has_apics()));
    return std::unique_ptr<EngineVcpu>{std::make_unique<KvmVcpu>(std::move(vm), host, std::move(fd),
                                                                 std::move(run), std::move(ring))};
}

KvmVcpu::KvmVcpu(std::shared_ptr<KvmVm> vm,
                 VcpuHost& host,
                 UniqueFd fd,
                 RunArea run,
                 std::optional<RunArea> ring) noexcept
    : vm_{std::move(vm)},
      host_{host},
      fd_{std::move(fd)},
      run_{std::move(run)},
      ring_{std::move(ring)},
      dirty_pages_{ring_ ? ring_->ring() : std::span<memory::DirtyGfn>{}},
      statistics_{fd_, vm_->has_apics()},
      kick_{vm_->kick_signal()}
{
    run_->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_EVENTS;
    if (vm_->has_apics()) {
        apic_.emplace(*this);
        reload();
    }
    hold(state_, StateGroup::All);  // The core gives it its reset state.
}

// --- Running.

const EngineExit& KvmVcpu::enter() noexcept
{
    if (std::exchange(exit_left_, false)) {
        return exit_;
    }
    take_msr_answer();
    const Kick::Window window{kick_, fd_};
    for (;;) {
        // An access that waits for its completion comes first, without guest code behind it.
        const bool requested = kick_.is_requested();
        if (requested && !completes_) {
            static_cast<void>(kick_.take());
            static_cast<void>(leave(EngineExit::Reason::Interrupted));
            return exit_;
        }
        if (run_once(requested) == Next::Leave) {
            return exit_;
        }
    }
}

/// The caller has answered the MSR access that it was shown.
void KvmVcpu::take_msr_answer() noexcept
{
    if (!completes_) {
        return;
    }
    if (exit_.reason == EngineExit::Reason::MsrRead) {
        run_->msr.data = msr_answer_.value;
    }
    if (exit_.reason == EngineExit::Reason::MsrRead ||
        exit_.reason == EngineExit::Reason::MsrWrite) {
        run_->msr.error = msr_answer_.fault ? 1 : 0;
    }
}

bool KvmVcpu::complete_pending() noexcept
{
    take_msr_answer();
    while (completes_ && !exit_left_) {
        exit_left_ = run_once(true) == Next::Leave;
    }
    return !exit_left_;
}

KvmVcpu::Next KvmVcpu::run_once(bool immediate) noexcept
{
    // KVM steps from the RIP that it had when it was asked to.
    if (!store() || (debugger_.single_step && !store_guest_debug())) {
        return fail_entry(static_cast<std::uint64_t>(errno));
    }
    const std::uint64_t cr8 = apic_ ? run_->cr8 : host_.read_cr8();
    run_->cr8 = cr8;
    run_->request_interrupt_window = state_.irq_window_requested ? 1 : 0;
    run_->immediate_exit = immediate ? 1 : 0;
    completes_ = false;
    const int result = ::ioctl(fd_.get(), KVM_RUN, 0UL);
    const int error = errno;
    set_current(StateGroup::None);
    changed_ = StateGroup::None;
    if (!apic_ && run_->cr8 != cr8) {
        host_.write_cr8(run_->cr8);
    }
    if (ring_) [[unlikely]] {
        take_dirty_pages();
    }
    if (result == 0) {
        return handle_exit();
    }
    if (error == EINTR || error == EAGAIN) {
        return Next::Run;
    }
    static_cast<void>(leave(EngineExit::Reason::HostError));
    exit_.hardware_reason = static_cast<std::uint64_t>(error);
    return Next::Leave;
}

/// KVM's ring into the library's log, which tells the caller's.
void KvmVcpu::take_dirty_pages() noexcept
{
    while (const auto page = dirty_pages_.take()) {
        vm_->memory().mark_slot_dirty(page->slot, page->page);
    }
}

KvmVcpu::Next KvmVcpu::leave(EngineExit::Reason reason) noexcept
{
    exit_ = EngineExit{};
    exit_.reason = reason;
    return Next::Leave;
}

KvmVcpu::Next KvmVcpu::fail_entry(std::uint64_t reason) noexcept
{
    static_cast<void>(leave(EngineExit::Reason::EntryFailure));
    exit_.hardware_reason = reason;
    return Next::Leave;
}

KvmVcpu::Next KvmVcpu::handle_exit() noexcept
{
    switch (run_->exit_reason) {
    case KVM_EXIT_IO: return handle_port();
    case KVM_EXIT_MMIO: return handle_mmio();
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR: return handle_msr();
    case KVM_EXIT_HYPERCALL: return handle_hypercall();
    case KVM_EXIT_HLT: return leave(EngineExit::Reason::Halt);
    case KVM_EXIT_IRQ_WINDOW_OPEN: return leave(EngineExit::Reason::IrqWindow);
    // The guest lowered CR8: an interrupt may have become deliverable.
    case KVM_EXIT_SET_TPR: return leave(EngineExit::Reason::Interrupted);
    case KVM_EXIT_DEBUG: return handle_debug();
    case KVM_EXIT_SHUTDOWN: return leave(EngineExit::Reason::Shutdown);
    case KVM_EXIT_INTERNAL_ERROR: return handle_internal_error();
    case KVM_EXIT_IOAPIC_EOI: return handle_eoi();
    case KVM_EXIT_TPR_ACCESS: return handle_tpr_access();
    case KVM_EXIT_DIRTY_RING_FULL: vm_->reset_dirty_rings(); return Next::Run;
    case KVM_EXIT_FAIL_ENTRY: return fail_entry(run_->fail_entry.hardware_entry_failure_reason);
    case KVM_EXIT_UNKNOWN: return fail_entry(run_->hw.hardware_exit_reason);
    default: return fail_entry(run_->exit_reason);
    }
}

KvmVcpu::Next KvmVcpu::handle_port() noexcept
{
    completes_ = true;
    const bool is_write = run_->io.direction == KVM_EXIT_IO_OUT;
    const std::size_t size = run_->io.size;
    const Port port{run_->io.port};
    std::span<std::byte> data{run_.at(run_->io.data_offset), size * run_->io.count};
    while (!data.empty()) {
        const std::span<std::byte> element = data.first(size);
        if (!(is_write ? host_.port_write(port, element) : host_.port_read(port, element))) {
            break;
        }
        data = data.subspan(size);
    }
    if (data.empty()) {
        return Next::Run;
    }
    static_cast<void>(
        leave(is_write ? EngineExit::Reason::PortWrite : EngineExit::Reason::PortRead));
    exit_.port = port.value();
    exit_.size = static_cast<std::uint8_t>(size);
    exit_.count = static_cast<std::uint32_t>(data.size() / size);
    exit_.data = data;
    if (!is_write) {
        std::fill(data.begin(), data.end(), std::byte{0xff});
    }
    return Next::Leave;
}

KvmVcpu::Next KvmVcpu::handle_mmio() noexcept
{
    completes_ = true;
    const Gpa gpa{run_->mmio.phys_addr};
    const std::size_t size = std::min<std::size_t>(run_->mmio.len, sizeof run_->mmio.data);
    const std::span<std::byte> data =
        std::as_writable_bytes(std::span{run_->mmio.data}).first(size);
    const bool is_write = run_->mmio.is_write != 0;
    if (is_write ? host_.mmio_write(gpa, data) : host_.mmio_read(gpa, data)) {
        return Next::Run;
    }
    static_cast<void>(
        leave(is_write ? EngineExit::Reason::MmioWrite : EngineExit::Reason::MmioRead));
    exit_.gpa = gpa.value();
    exit_.size = static_cast<std::uint8_t>(size);
    exit_.data = data;
    if (!is_write) {
        std::fill(data.begin(), data.end(), std::byte{0xff});
    }
    return Next::Leave;
}

MsrResult KvmVcpu::access_msr(std::uint32_t index, bool write, std::uint64_t& value) noexcept
{
    if (vm_->keeps_msr(index)) {
        // It has refused the value, has no such MSR for this guest, or was told to deny it.
        return host_.refuse_msr(static_cast<MsrExitReason>(run_->msr.reason));
    }
    if (!host_.allows_msr(index, write)) {
        return host_.refuse_msr(MsrExitReason::Filter);
    }
    return write ? host_.write_msr(index, value) : host_.read_msr(index, value);
}

KvmVcpu::Next KvmVcpu::handle_msr() noexcept
{
    completes_ = true;
    const bool is_write = run_->exit_reason == KVM_EXIT_X86_WRMSR;
    const std::uint32_t index = run_->msr.index;
    std::uint64_t value = is_write ? run_->msr.data : 0;
    const MsrResult result = access_msr(index, is_write, value);
    if (result == MsrResult::ToUser) {
        static_cast<void>(
            leave(is_write ? EngineExit::Reason::MsrWrite : EngineExit::Reason::MsrRead));
        exit_.msr = index;
        exit_.msr_value = value;
        msr_answer_ = {};
        exit_.msr_answer = &msr_answer_;
        return Next::Leave;
    }
    run_->msr.data = value;
    run_->msr.error = result == MsrResult::Fault ? 1 : 0;
    if (is_write && index == msr::apic_base && result == MsrResult::Done) {
        // CPUID shows the APIC as long as it is enabled, and KVM executes CPUID.
        static_cast<void>(state(StateGroup::Segments));
        state_changed(StateGroup::Segments);
    }
    return Next::Run;
}

/// KVM's next run moves RIP past the instruction and sets RAX to `ret`, before the core shows the
/// call to its caller.
KvmVcpu::Next KvmVcpu::handle_hypercall() noexcept
{
    completes_ = true;
    CpuState& cpu = state(StateGroup::Registers | StateGroup::Segments);
    host_.hypercall(cpu);
    run_->hypercall.ret = cpu.gpr[Rax];
    return Next::Run;
}

Result<void> KvmVcpu::set_guest_debug(const GuestDebug& debug)
{
    const GuestDebug before = std::exchange(debugger_, debug);
    if (store() && store_guest_debug()) {
        return success;
    }
    const Error failure = Error::from_errno("KVM_SET_GUEST_DEBUG");
    debugger_ = before;
    return failure;
}

bool KvmVcpu::store_guest_debug() noexcept
{
    kvm_guest_debug wanted{};
    wanted.control = debugger_.single_step ? KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP : 0U;
    if (debugger_.software_breakpoints) {
        wanted.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
    }
    if (debugger_.hardware_breakpoints) {
        wanted.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        std::copy(debugger_.db.begin(), debugger_.db.end(), std::begin(wanted.arch.debugreg));
        wanted.arch.debugreg[7] = debugger_.dr7;
    }
    if (apic_ && debugger_.block_interrupts) {
        wanted.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ;
    }
    return ::ioctl(fd_.get(), KVM_SET_GUEST_DEBUG, &wanted) == 0;
}

KvmVcpu::Next KvmVcpu::handle_debug() noexcept
{
    static_cast<void>(leave(EngineExit::Reason::Debug));
    exit_.debug.exception = static_cast<std::uint8_t>(run_->debug.arch.exception);
    exit_.debug.pc = run_->debug.arch.pc;
    exit_.debug.dr6 = run_->debug.arch.dr6;
    exit_.debug.dr7 = run_->debug.arch.dr7;
    return Next::Leave;
}

KvmVcpu::Next KvmVcpu::handle_eoi() noexcept
{
    static_cast<void>(leave(EngineExit::Reason::IoapicEoi));
    exit_.vector = run_->eoi.vector;
    return Next::Leave;
}

KvmVcpu::Next KvmVcpu::handle_tpr_access() noexcept
{
    static_cast<void>(leave(EngineExit::Reason::TprAccess));
    exit_.tpr_access = {run_->tpr_access.rip, run_->tpr_access.is_write != 0};
    return Next::Leave;
}

KvmVcpu::Next KvmVcpu::handle_internal_error() noexcept
{
    static_cast<void>(leave(EngineExit::Reason::InternalError));
    const auto& failure = run_->emulation_failure;
    constexpr std::uint64_t has_bytes = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
    if (failure.suberror == KVM_INTERNAL_ERROR_EMULATION && failure.ndata >= 3 &&
        (failure.flags & has_bytes) != 0) {
        const std::size_t size = std::min<std::size_t>(failure.insn_size, exit_.instruction.size());
        std::memcpy(exit_.instruction.data(), failure.insn_bytes, size);
        exit_.instruction_size = static_cast<std::uint8_t>(size);
    }
    return Next::Leave;
}

bool KvmVcpu::translate(std::uint64_t linear, std::uint64_t& gpa) noexcept
{
    if (!store()) {
        return false;
    }
    kvm_translation translation{};
    translation.linear_address = linear;
    if (::ioctl(fd_.get(), KVM_TRANSLATE, &translation) != 0 || translation.valid == 0) {
        return false;
    }
    gpa = translation.physical_address;
    return true;
}

}  // namespace vmm::x86::kvm
