// SPDX-License-Identifier: Apache-2.0

#include "x86/hardware/vcpu.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

#include "x86/cpuid_answer.hpp"

namespace vmm::x86::hardware {
namespace {

constexpr std::uint64_t rflags_if = Rflags::IF.mask;

}  // namespace

Result<VcpuParts> VcpuParts::create(std::shared_ptr<HelperVm> vm, std::uint32_t id)
{
    vmm_create wanted{};
    wanted.argument = id;
    VMM_TRY(const int raw, call_helper(vm->fd(), VMM_CREATE_VCPU, "VMM_CREATE_VCPU", wanted));
    UniqueFd fd{raw};
    VMM_TRY(VcpuArea area, VcpuArea::map(fd));
    return VcpuParts{std::move(vm), std::move(fd), std::move(area)};
}

HardwareVcpu::HardwareVcpu(VcpuParts parts,
                           VcpuHost& host,
                           EventWords (*words)(vmm_vcpu_area& area))
    : vm_{std::move(parts.vm)},
      host_{host},
      fd_{std::move(parts.fd)},
      area_{std::move(parts.area)},
      emulator_{vm_->emulator().create_emulator(host)},
      state_{emulator_->state()},
      words_{words(*area_)}
{
    hold(state_, StateGroup::All);
    vm_->add(*this);
}

HardwareVcpu::~HardwareVcpu()
{
    vm_->remove(*this);
}

Result<void> HardwareVcpu::set_cpuid(Cpuid cpuid)
{
    const std::size_t most = std::min<std::size_t>(cpuid.entries().size(), VMM_MAX_CPUID);
    VMM_TRY_VOID(emulator_->set_cpuid(std::move(cpuid)));
    cpuid_leaves_.resize(most);
    cpuid_changed_ = true;
    return success;
}

Result<void> HardwareVcpu::set_guest_debug(const GuestDebug& debug)
{
    VMM_TRY_VOID(emulator_->set_guest_debug(debug));
    is_debugged_ = debug != GuestDebug{};
    return success;
}

bool HardwareVcpu::has_msr(std::uint32_t /*index*/) const noexcept
{
    return false;
}

bool HardwareVcpu::read_msr(std::uint32_t /*index*/, std::uint64_t& /*value*/) noexcept
{
    return false;
}

bool HardwareVcpu::write_msr(std::uint32_t /*index*/, std::uint64_t /*value*/) noexcept
{
    return false;
}

bool HardwareVcpu::translate(std::uint64_t linear, std::uint64_t& gpa) noexcept
{
    static_cast<void>(state(StateGroup::All));
    emulator_->state_changed();
    return emulator_->translate(linear, gpa);
}

std::vector<std::pair<std::string_view, std::uint64_t>> HardwareVcpu::counters() const
{
    return {{"guest_entries", area_->entries},
            {"cpuid_by_helper", area_->served},
            {"emulated", emulated_},
            {"tlb_flush", flushes_}};
}

// --- Kicks.  The helper looks at `immediate_exit` after it has set `running`, and after it has
// told itself which CPU to interrupt.

void HardwareVcpu::request_exit() noexcept
{
    emulator_->request_exit();
    __atomic_store_n(&area_->immediate_exit, 1U, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&area_->running, __ATOMIC_SEQ_CST) != 0U) {
        const int error = errno;
        static_cast<void>(helper_ioctl(fd_.get(), VMM_KICK, nullptr));
        errno = error;
    }
}

bool HardwareVcpu::take_request() noexcept
{
    return __atomic_load_n(&area_->immediate_exit, __ATOMIC_SEQ_CST) != 0U &&
           __atomic_exchange_n(&area_->immediate_exit, 0U, __ATOMIC_SEQ_CST) != 0U;
}

// --- Running.

const EngineExit& HardwareVcpu::leave(EngineExit::Reason reason) noexcept
{
    exit_ = EngineExit{};
    exit_.reason = reason;
    return exit_;
}

const EngineExit* HardwareVcpu::fail_entry(std::uint64_t reason) noexcept
{
    static_cast<void>(leave(EngineExit::Reason::EntryFailure));
    exit_.hardware_reason = reason;
    return &exit_;
}

const EngineExit* HardwareVcpu::report_host_error(int error) noexcept
{
    static_cast<void>(leave(EngineExit::Reason::HostError));
    exit_.hardware_reason = static_cast<std::uint64_t>(error);
    return &exit_;
}

/// Nothing to inject, nothing waited for, no shadow: by far the most entries.
bool HardwareVcpu::is_plain() const noexcept
{
    return !state_.inject && state_.pending_debug == 0 && !state_.sti_shadow &&
           !state_.mov_ss_shadow && !state_.nmi_window_requested && !state_.irq_window_requested &&
           !state_.smi_window_requested;
}

/// What hardware has no means for, or a debugger wants to watch.
bool HardwareVcpu::must_emulate() const noexcept
{
    const bool software_event =
        state_.inject && state_.inject->kind >= EventKind::SoftwareInterrupt;
    const bool shadow = state_.sti_shadow || state_.mov_ss_shadow;
    // No hardware says when an SMI could be taken: what is in its way is gone after one step.
    const bool delays_smi = state_.smi_window_requested && (shadow || state_.inject.has_value());
    return software_event || state_.pending_debug != 0 || delays_smi ||
           (state_.nmi_window_requested && !state_.nmi_blocked && shadow) || cannot_enter();
}

/// A window that the core waits for and that is open.
const EngineExit* HardwareVcpu::open_window() noexcept
{
    if (state_.inject || state_.pending_debug != 0 || state_.sti_shadow || state_.mov_ss_shadow) {
        return nullptr;
    }
    if (state_.nmi_window_requested && !state_.nmi_blocked) {
        return &leave(EngineExit::Reason::NmiWindow);
    }
    if (state_.smi_window_requested) {
        return &leave(EngineExit::Reason::Interrupted);
    }
    if (state_.irq_window_requested && (state_.rflags & rflags_if) != 0) {
        return &leave(EngineExit::Reason::IrqWindow);
    }
    return nullptr;
}

/// Where the entry is no plain one.
const EngineExit* HardwareVcpu::go_on() noexcept
{
    if (const EngineExit* const exit = open_window()) {
        return exit;
    }
    return must_emulate() ? emulate() : run_hardware();
}

const EngineExit& HardwareVcpu::enter() noexcept
{
    if (exit_left_) {
        exit_left_ = false;
        return *left_;
    }
    // The rest of an instruction comes first.
    if (port_read_.size != 0) {
        complete_port_read();
    }
    if (emulation_waits_) {
        if (const EngineExit* exit = emulator_->complete()) {
            return *exit;
        }
        emulation_waits_ = false;
    }
    for (;;) {
        if (take_request()) {
            return leave(EngineExit::Reason::Interrupted);
        }
        if (is_debugged_ || state_.smm) {
            // Watched, and in system-management mode, whose memory the helper has not, a guest runs
            // on the interpreter.
            static_cast<void>(state(StateGroup::All));
            changed_ = StateGroup::All;
            may_change_cpuid_ = true;
            emulator_->state_changed();
            area_->dirty |= VMM_DIRTY_TLB;
            emulation_waits_ = true;
            return emulator_->enter();
        }
        static_cast<void>(state(StateGroup::Registers));
        if (const EngineExit* const exit = is_plain() ? run_hardware() : go_on()) {
            return *exit;
        }
    }
}

bool HardwareVcpu::complete_pending() noexcept
{
    complete_port_read();
    if (!exit_left_ && emulation_waits_) {
        left_ = emulator_->complete();
        emulation_waits_ = exit_left_ = left_ != nullptr;
    }
    return !exit_left_;
}

void HardwareVcpu::move_past_instruction(std::uint64_t next) noexcept
{
    state_.rip = next;
    state_.rflags &= ~Rflags::RF.mask;
    state_.sti_shadow = state_.mov_ss_shadow = false;
    moved_ = true;
}

/// By the guest itself.  DR7 is changed by the emulator alone: a guest's access is intercepted, and
/// so is #DB.
bool HardwareVcpu::is_watched() const noexcept
{
    return (state_.rflags & Rflags::TF.mask) != 0 || (state_.dr7 & Dr7::enables.mask) != 0;
}

/// IN and OUT, the most frequent exits, without the emulator.  The CPU has checked the permission.
const EngineExit* HardwareVcpu::handle_port(const PortAccess& access) noexcept
{
    const CpuState& cpu = state(StateGroup::Registers);
    if (is_watched() || access.size == 0 || access.size > port_data_.size()) {
        return emulate();
    }
    const Port port{access.port};
    const std::span<std::byte> data = std::span{port_data_}.first(access.size);
    const bool may_answer = host_.may_answer_port(port, access.size);
    if (access.is_input) {
        port_read_ = PortRead{cpu.rip, access.next_rip, access.size};
        if (may_answer && host_.port_read(port, data)) {
            complete_port_read();
            return nullptr;
        }
        exit_.reason = EngineExit::Reason::PortRead;
        port_data_.fill(std::byte{0xff});
    } else {
        std::memcpy(port_data_.data(), state_.gpr.data(), port_data_.size());
        move_past_instruction(access.next_rip);
        if (may_answer && host_.port_write(port, data)) {
            return nullptr;
        }
        exit_.reason = EngineExit::Reason::PortWrite;
    }
    exit_.port = port.value();
    exit_.size = access.size;
    exit_.count = 1;
    exit_.data = data;
    return &exit_;
}

const EngineExit* HardwareVcpu::handle_cpuid(std::uint64_t next_rip) noexcept
{
    CpuState& cpu = state(StateGroup::Registers);
    const CpuidEntry answer =
        answer_cpuid(cpu, host_.apic_base(), static_cast<std::uint32_t>(cpu.gpr[Rax]),
                     static_cast<std::uint32_t>(cpu.gpr[Rcx]));
    cpu.gpr[Rax] = answer.eax;
    cpu.gpr[Rbx] = answer.ebx;
    cpu.gpr[Rcx] = answer.ecx;
    cpu.gpr[Rdx] = answer.edx;
    changed_ = changed_ | StateGroup::Registers;
    move_past_instruction(next_rip);
    return nullptr;
}

/// Not where the VMM has set other registers meanwhile.
void HardwareVcpu::complete_port_read() noexcept
{
    const std::size_t size = std::exchange(port_read_.size, 0);
    if (size == 0 || state(StateGroup::Registers).rip != port_read_.rip) {
        return;
    }
    std::uint32_t value = 0;
    std::memcpy(&value, port_data_.data(), sizeof value);
    std::uint64_t& rax = state_.gpr[Rax];
    switch (size) {
    case 1: rax = (rax & ~std::uint64_t{0xff}) | (value & 0xffU); break;
    case 2: rax = (rax & ~std::uint64_t{0xffff}) | (value & 0xffffU); break;
    default: rax = value; break;
    }
    area_->gpr[Rax] = rax;
    move_past_instruction(port_read_.next);
}

/// One instruction, or the delivery of one event.
const EngineExit* HardwareVcpu::emulate() noexcept
{
    static_cast<void>(state(StateGroup::All));
    ++emulated_;
    changed_ = StateGroup::All;
    may_change_cpuid_ = true;
    const EngineExit* const exit = emulator_->step();
    emulation_waits_ = exit != nullptr;
    return exit;
}

const EngineExit* HardwareVcpu::emulate_access() noexcept
{
    static_cast<void>(state(StateGroup::Registers | StateGroup::Segments));
    if (is_watched() || state_.inject || state_.pending_debug != 0) {
        return emulate();
    }
    const soft::Emulator::MoveStep step = emulator_->step_move();
    if (!step.is_move) {
        return emulate();
    }
    ++emulated_;
    changed_ = changed_ | StateGroup::Registers;
    if (step.faulted) {
        changed_ = changed_ | StateGroup::Segments;
    }
    if (step.repeats) {
        static_cast<void>(state(StateGroup::All));
        changed_ = StateGroup::All;
        may_change_cpuid_ = true;
    }
    emulation_waits_ = step.exit != nullptr;
    return step.exit;
}

void HardwareVcpu::store() noexcept
{
    // The core sets `inject` without a word; what comes with an exception goes to other groups.
    if ((current() & StateGroup::Registers) != StateGroup::None) {
        words_.event = 0;
        if (state_.inject) {
            store_event();
        }
        if ((changed_ & StateGroup::Registers) != StateGroup::None) {
            store_registers();
        } else if (std::exchange(moved_, false)) {
            store_position();
        }
    }
    if (changed_ != StateGroup::None) {
        store_groups();
    }
    store_controls();
    if (may_change_cpuid_ || cpuid_changed_) [[unlikely]] {
        store_cpuid();
    }
}

void HardwareVcpu::store_position() noexcept
{
    area_->rip = state_.rip;
    area_->rflags = state_.rflags;
    store_shadows();
}

const EngineExit* HardwareVcpu::run_hardware() noexcept
{
    store();
    const int result = run_guest(fd_.get(), fpu_);
    if (result != 0 && result != -EINTR) {
        // With EINVAL the helper says what it refused.
        return area_->reason != VMM_REASON_NONE ? fail_entry(area_->reason)
                                                : report_host_error(-result);
    }
    set_current(StateGroup::None);
    changed_ = StateGroup::None;
    switch (area_->exit_kind) {
    case VMM_EXIT_MEMORY: return report_host_error(static_cast<int>(area_->error));
    case VMM_EXIT_FAILED: return fail_entry(area_->error);
    case VMM_EXIT_HARDWARE: return result == 0 ? handle_exit() : nullptr;
    case VMM_EXIT_DIRTY: vm_->page_written(area_->dirty_slot, area_->dirty_page); return nullptr;
    default: return nullptr;  // A signal, or a kick, which the loop looks at.
    }
}

/// A fault that was intercepted for the host's sake is the guest's all the same.
const EngineExit* HardwareVcpu::reflect(Event event) noexcept
{
    state(StateGroup::Registers).inject = event;
    return nullptr;
}

}  // namespace vmm::x86::hardware
