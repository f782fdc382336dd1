// SPDX-License-Identifier: Apache-2.0

#include "core/vcpu_core.hpp"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "core/log.hpp"
#include "core/vm_core.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {
namespace {

using x86::EngineExit;
using x86::StateGroup;

constexpr std::uint64_t rflags_if = 1U << 9U;

Error host_error(int error)
{
    const std::error_code code{error, std::generic_category()};
    return Error{static_cast<std::errc>(error),
                 error == EFAULT ? "run: the guest touched memory of a slot where the process has "
                                   "no such memory (any more); map it, or remove the slot"
                                 : fmt::format("run: the host: {}", code.message())};
}

}  // namespace

Result<std::shared_ptr<VcpuCore>> VcpuCore::create(std::shared_ptr<VmCore> vm,
                                                   x86::EngineVm& engine,
                                                   std::uint32_t id)
{
    auto vcpu = std::make_shared<VcpuCore>(std::move(vm), id);
    VMM_TRY(vcpu->engine_, engine.create_vcpu(*vcpu, id));
    vcpu->engine_apic_ = vcpu->engine_->apic();
    vcpu->apic_ = vcpu->engine_apic_;
    x86::CpuState& state = vcpu->state();
    x86::reset_state(state, false);
    state.tsc_offset = vcpu->vm_->synchronised_tsc_offset(0, vcpu->tsc_ratio_);
    vcpu->mark_bootstrap();
    if (x86::irqchip::Irqchip* chip = vcpu->vm_->irqchip()) {
        vcpu->lapic_ = chip->create_lapic(id, *vcpu, vcpu->tsc_clock());
        if (vcpu->lapic_ == nullptr) {
            return Error{std::errc::file_exists,
                         fmt::format("create_vcpu({}): the local APIC of that id is in use", id)};
        }
        vcpu->apic_ = vcpu->lapic_.get();
        vcpu->mark_bootstrap();  // Now of the APIC.
        vcpu->mp_state_ =
            vcpu->is_bootstrap() ? x86::MpState::Runnable : x86::MpState::Uninitialized;
    }
    vcpu->state_changed();
    return vcpu;
}

VcpuCore::VcpuCore(std::shared_ptr<VmCore> vm, std::uint32_t id)
    : vm_{std::move(vm)},
      id_{id},
      tsc_khz_{vm_->guest_tsc_khz()},
      tsc_ratio_{x86::tsc_ratio_for(tsc_khz_, vm_->tsc_khz())},
      counters_{vm_->counts_exits(), vm_->timed_one_in(), vm_->tsc_khz()}
{
}

VcpuCore::~VcpuCore()
{
    if (lapic_ != nullptr) {
        vm_->irqchip()->remove_lapic(id_);
    }
    if (dirty_ring_ != nullptr) {
        vm_->dirty_rings()->remove(dirty_ring_);
    }
    vm_->forget_vcpu(id_);
}

bool VcpuCore::is_bootstrap() const noexcept
{
    return id_ == vm_->boot_cpu_id();
}

/// IA32_APIC_BASE.BSP: APICs have it by their id, the VM may have chosen another vCPU.
void VcpuCore::mark_bootstrap() noexcept
{
    constexpr std::uint64_t bsp = 1U << 8U;
    const std::uint64_t others = apic_base() & ~bsp;
    const std::uint64_t base = others | (is_bootstrap() ? bsp : 0U);
    if (apic_ == nullptr) {
        apic_base_ = base;
    } else {
        static_cast<void>(apic_->set_apic_base(base, x86::irqchip::ApicBaseWriter::Host));
    }
}

// --- Requests from other threads.

void VcpuCore::wake() noexcept
{
    engine_->request_exit();
    doorbell_.ring();
}

void VcpuCore::user_kick() noexcept
{
    kicked_.store(true, std::memory_order_release);
    wake();
}

void VcpuCore::kick() noexcept
{
    wake();
}

void VcpuCore::deliver_nmi() noexcept
{
    // SDM Vol. 3A "Handling Multiple NMIs": one is held pending while one is being handled.
    unsigned count = nmi_pending_.load(std::memory_order_relaxed);
    while (count < 2U && !nmi_pending_.compare_exchange_weak(count, count + 1U)) {
    }
    wake();
}

void VcpuCore::deliver_init() noexcept
{
    sipi_vector_.store(no_sipi);  // A SIPI from before this INIT is void.
    init_pending_.store(true);
    wake();
}

void VcpuCore::deliver_sipi(std::uint8_t vector) noexcept
{
    sipi_vector_.store(vector);
    wake();
}

void VcpuCore::unhalt() noexcept
{
    unhalted_.store(true);
    wake();
}

void VcpuCore::clock_changed() noexcept
{
    clock_changed_.store(true);
    wake();
}

Result<void> VcpuCore::set_dirty_ring(std::span<memory::DirtyGfn> entries)
{
    DirtyRings* const rings = vm_->dirty_rings();
    if (rings == nullptr || entries.size() != rings->entries()) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_dirty_ring: {} entries; the rings of this VM have {}",
                                 entries.size(), rings != nullptr ? rings->entries() : 0U)};
    }
    if (dirty_ring_ != nullptr) {
        return Error{std::errc::file_exists,
                     "set_dirty_ring: this vCPU has a ring already; one is all it can have"};
    }
    dirty_ring_ = rings->add(*this, entries);
    return success;
}

// --- The run loop.

Result<Exit> VcpuCore::run() noexcept
{
    const DirtyRings::Logging logging{dirty_ring_.get()};
    // Made where the caller wants it: the one that is returned is never copied.
    Result<Exit> result{Exit{Interrupted{}, this}};
    Exit& left = *result;
    for (;;) {
        // Looked at before they are taken: an exchange costs more than all else here.
        if (kicked_.load(std::memory_order_relaxed) &&
            kicked_.exchange(false, std::memory_order_acquire)) {
            complete_pending();
            ++counters_.signal_exits;
            return result;
        }
        if (lapic_ != nullptr) {
            if (const std::optional<std::uint8_t> ended = lapic_->take_eoi()) {
                complete_pending();
                left = Exit{IoapicEoi{*ended}, this};
                return result;
            }
        }
        if (has_request_ && handle_request(left)) [[unlikely]] {
            return result;
        }
        if (lapic_ != nullptr) {
            handle_init_and_sipi();
        }
        if (clock_changed_.load(std::memory_order_relaxed) && clock_changed_.exchange(false)) {
            update_kvmclock();
        }
        if (pv_.steal_time()) {
            update_steal_time();
            flush_tlb_if_asked();
        }
        if (!is_runnable()) {
            block();
            continue;
        }
        if (shutdown_) [[unlikely]] {
            shutdown_ = false;
            left = Exit{Shutdown{}, this};
            return result;
        }
        if (dirty_ring_ != nullptr && dirty_ring_->ring.is_full() && complete_pending()) {
            left = Exit{DirtyRingFull{}, this};
            return result;
        }
        if (may_have_event()) {
            choose_event();
        }
        if (lapic_ != nullptr) {
            share_lapic();
        }
        io_pending_ = false;
        counters_.entering();
        const EngineExit& exit = engine_->enter();
        if (lapic_ != nullptr) {
            take_back_lapic();
        }
        x86::CpuState& cpu = state(StateGroup::Registers);
        if (cpu.nmi_delivered) [[unlikely]] {
            note_delivered_nmi(cpu);
        }
        if (exit.reason == EngineExit::Reason::HostError) [[unlikely]] {
            result = host_error(static_cast<int>(exit.hardware_reason));
            return result;
        }
        if (handle(exit, cpu.rip, left)) {
            return result;
        }
    }
}

bool VcpuCore::handle_request(Exit& left) noexcept
{
    if (tpr_access_) {
        complete_pending();
        left = Exit{*std::exchange(tpr_access_, std::nullopt), this};
        return true;
    }
    if (hypercall_) {
        if (!std::exchange(hypercall_shown_, true)) {
            left = Exit{*hypercall_, this};
            return true;
        }
        finish_hypercall();
    }
    if (std::exchange(monitor_changed_, false)) {
        follow_misc_enable();
    }
    flush_tlb_if_asked();
    has_request_ = false;
    return false;
}

void VcpuCore::flush_tlb_if_asked() noexcept
{
    if (std::exchange(flushes_tlb_, false)) {
        engine_->flush_tlb();
    }
}

bool VcpuCore::complete_pending() noexcept
{
    if (hypercall_shown_) {
        finish_hypercall();
    }
    if (std::exchange(io_pending_, false)) {
        io_pending_ = !engine_->complete_pending();
    }
    return !io_pending_;
}

void VcpuCore::handle_init_and_sipi() noexcept
{
    if (has_latched_init()) {
        return;
    }
    if (init_pending_.load() && init_pending_.exchange(false)) {
        // What an access left half done must not reach the registers of after the reset.
        complete_pending();
        x86::reset_state(state(), true);
        state_changed();
        lapic_->init();
        mp_state_ = is_bootstrap() ? x86::MpState::Runnable : x86::MpState::InitReceived;
        io_pending_ = false;
    }
    if (sipi_vector_.load() == no_sipi) {
        return;
    }
    const int vector = sipi_vector_.exchange(no_sipi);
    // SDM Vol. 3A "MP Initialization Protocol": a SIPI counts only after INIT.
    if (mp_state_ == x86::MpState::InitReceived && vector != no_sipi) {
        x86::Segment& cs = state(StateGroup::Registers | StateGroup::Segments).seg[x86::Cs];
        cs.selector = static_cast<std::uint16_t>(vector << 8U);
        cs.base = static_cast<std::uint64_t>(vector) << 12U;
        state(StateGroup::Registers).rip = 0;
        state_changed(StateGroup::Registers | StateGroup::Segments);
        mp_state_ = x86::MpState::Runnable;
    }
}

/// SDM Vol. 3C "SMI Handler Execution Environment": an INIT waits for RSM.
bool VcpuCore::has_latched_init() noexcept
{
    return init_pending_.load() && state(StateGroup::Registers).smm;
}

bool VcpuCore::has_pic() const noexcept
{
    return vm_->has_full_irqchip();
}

bool VcpuCore::takes_user_interrupts() const noexcept
{
    return !has_pic() && (lapic_ == nullptr || lapic_->accepts_pic_interrupt());
}

bool VcpuCore::has_wake_event() noexcept
{
    const x86::CpuState& cpu = state(StateGroup::Registers);
    const bool takes_interrupts = (cpu.rflags & rflags_if) != 0U;
    const bool nmi = nmi_pending_.load(std::memory_order_relaxed) != 0U && !cpu.nmi_blocked;
    const bool init = init_pending_.load() && !cpu.smm;
    if (unhalted_.load(std::memory_order_relaxed)) {
        return true;
    }
    if (block_events_) {
        return init || cpu.pending_debug != 0U || cpu.inject.has_value();
    }
    return nmi || init || has_smi() || cpu.pending_debug != 0U || cpu.inject.has_value() ||
           (takes_interrupts && has_interrupt());
}

bool VcpuCore::is_runnable() noexcept
{
    switch (mp_state_) {
    case x86::MpState::Runnable: return true;
    case x86::MpState::Halted:
        if (!has_wake_event()) {
            return false;
        }
        unhalted_.store(false);
        mp_state_ = x86::MpState::Runnable;
        return true;
    case x86::MpState::Uninitialized:
    case x86::MpState::InitReceived:
    case x86::MpState::SipiReceived: break;
    }
    return false;
}

void VcpuCore::block() noexcept
{
    const bool halted = mp_state_ == x86::MpState::Halted;
    const std::uint64_t began = vm_->event_loop().now_ns();
    counters_.blocking = 1;
    note_preempted();
    wait_for_event();
    note_not_preempted();
    counters_.blocking = 0;
    if (halted) {
        const std::uint64_t waited = vm_->event_loop().now_ns() - began;
        counters_.halt_wait_ns += waited;
        ++counters_.halt_wait_hist[ExitCounters::bucket_of(waited)];
        if (has_wake_event()) {
            ++counters_.halt_wakeup;
        }
    }
}

bool VcpuCore::may_go_on() noexcept
{
    return kicked_.load(std::memory_order_relaxed) ||
           (init_pending_.load() && !has_latched_init()) || clock_changed_.load() ||
           sipi_vector_.load() != no_sipi ||
           (mp_state_ == x86::MpState::Halted && has_wake_event());
}

/// KVM "The KVM halt polling system".
bool VcpuCore::poll_for_event() noexcept
{
    const std::uint64_t longest = vm_->halt_poll_ns();
    if (longest == 0U || mp_state_ != x86::MpState::Halted || !pv_.may_poll()) {
        return false;
    }
    ++counters_.halt_attempted_poll;
    const std::uint64_t began = vm_->event_loop().now_ns();
    for (;;) {
        const bool done = may_go_on();
        const std::uint64_t polled = vm_->event_loop().now_ns() - began;
        if (done) {
            ++counters_.halt_successful_poll;
            counters_.halt_poll_success_ns += polled;
            return true;
        }
        if (polled >= longest) {
            counters_.halt_poll_fail_ns += polled;
            return false;
        }
        x86::pause();
    }
}

void VcpuCore::wait_for_event() noexcept
{
    if (poll_for_event()) {
        return;
    }
    for (;;) {
        const std::uint32_t seen = doorbell_.rings();
        if (may_go_on()) {
            return;
        }
        doorbell_.wait(seen);
    }
}

void VcpuCore::hand_over_nmis() noexcept
{
    if (nmi_pending_.load(std::memory_order_relaxed) == 0U) {
        return;
    }
    for (unsigned n = nmi_pending_.exchange(0); n != 0U; --n) {
        engine_apic_->inject_nmi();
    }
}

/// The NMI that waited for its window may be with the guest already.
void VcpuCore::note_delivered_nmi(x86::CpuState& cpu) noexcept
{
    cpu.nmi_delivered = false;
    nmi_pending_.fetch_sub(1);
    ++counters_.nmi_injections;
}

void VcpuCore::choose_event() noexcept
{
    x86::CpuState& cpu = state(StateGroup::Registers);
    choose_event(cpu);
    waits_for_window_ =
        cpu.nmi_window_requested || cpu.smi_window_requested || cpu.irq_window_requested;
}

/// SDM Vol. 3A "Priority Among Concurrent Events": traps of the instruction before, NMI, external
/// interrupt.
void VcpuCore::choose_event(x86::CpuState& cpu) noexcept
{
    cpu.nmi_window_requested = false;
    cpu.smi_window_requested = false;
    cpu.irq_window_requested = user_irq_window_ && !block_events_ && takes_user_interrupts();
    if (engine_apic_ != nullptr) {
        hand_over_nmis();  // The rest is the engine's.
        return;
    }
    if (block_events_) {
        return;
    }
    if (cpu.inject.has_value() || cpu.pending_debug != 0U || io_pending_) {
        // They come first, and so does the rest of an instruction; what else is pending waits for
        // the next window.
        cpu.smi_window_requested = has_smi();
        cpu.nmi_window_requested = nmi_pending_.load(std::memory_order_relaxed) != 0U;
        cpu.irq_window_requested |= has_interrupt();
        return;
    }
    const bool shadow = cpu.sti_shadow || cpu.mov_ss_shadow;
    if (has_smi()) {
        if (shadow) {
            cpu.smi_window_requested = true;
        } else {
            enter_smm();
        }
    }
    if (nmi_pending_.load(std::memory_order_relaxed) != 0U) {
        if (cpu.nmi_blocked) {
            // One more is kept while one is with the guest; two are where it has taken none of
            // them.
            unsigned two = 2;
            nmi_pending_.compare_exchange_strong(two, 1U);
        }
        if (cpu.nmi_blocked || shadow) {
            cpu.nmi_window_requested = true;
        } else {
            nmi_pending_.fetch_sub(1);
            cpu.inject = x86::Event{x86::EventKind::Nmi, 2};
            ++counters_.nmi_injections;
            cpu.nmi_window_requested = nmi_pending_.load(std::memory_order_relaxed) != 0U;
            cpu.irq_window_requested |= has_interrupt();
            return;
        }
    }
    if (!has_interrupt()) {
        return;
    }
    if (shadow || (cpu.rflags & rflags_if) == 0U) {
        cpu.irq_window_requested = true;
        return;
    }
    const std::optional<std::uint8_t> vector =
        has_user_interrupt() ? std::exchange(user_interrupt_, std::nullopt) : lapic_->acknowledge();
    if (vector) {
        cpu.inject = x86::Event{x86::EventKind::ExternalInterrupt, *vector};
        ++counters_.irq_injections;
    }
    // The PIC may have one too.
    cpu.irq_window_requested |= lapic_ != nullptr && lapic_->has_interrupt();
}

bool VcpuCore::handle(const EngineExit& exit, std::uint64_t rip, Exit& left) noexcept
{
    switch (exit.reason) {
    case EngineExit::Reason::Interrupted: counters_.left(ExitKind::Request, 0, rip); return false;
    case EngineExit::Reason::NmiWindow: counters_.left(ExitKind::NmiWindow, 0, rip); return false;
    case EngineExit::Reason::IrqWindow:
        counters_.left(ExitKind::IrqWindow, 0, rip);
        if (user_irq_window_ && !user_interrupt_ && takes_user_interrupts()) {
            ++counters_.request_irq_exits;
            left = Exit{IrqWindow{}, this};
            return true;
        }
        return false;
    case EngineExit::Reason::PortRead:
        io_pending_ = true;
        counters_.left(ExitKind::PortRead, exit.port, rip);
        left = Exit{PortRead{Port{exit.port}, exit.size, exit.data}, this};
        return true;
    case EngineExit::Reason::PortWrite:
        io_pending_ = true;
        counters_.left(ExitKind::PortWrite, exit.port, rip);
        left = Exit{PortWrite{Port{exit.port}, exit.size, exit.data}, this};
        return true;
    case EngineExit::Reason::MmioRead:
        io_pending_ = true;
        counters_.left(ExitKind::MmioRead, exit.gpa, rip);
        std::fill(exit.data.begin(), exit.data.end(), std::byte{0xff});
        left = Exit{MmioRead{Gpa{exit.gpa}, exit.data}, this};
        return true;
    case EngineExit::Reason::MmioWrite:
        io_pending_ = true;
        counters_.left(ExitKind::MmioWrite, exit.gpa, rip);
        left = Exit{MmioWrite{Gpa{exit.gpa}, exit.data}, this};
        return true;
    case EngineExit::Reason::Halt:
        counters_.left(ExitKind::Halt, 0, rip);
        if (lapic_ == nullptr) {
            left = Exit{Halt{}, this};
            return true;
        }
        mp_state_ = x86::MpState::Halted;
        return false;
    case EngineExit::Reason::Shutdown:
        counters_.left(ExitKind::Shutdown, 0, rip);
        left = Exit{Shutdown{}, this};
        return true;
    case EngineExit::Reason::Rsm:
        if (leave_smm()) {
            return false;
        }
        left = Exit{Shutdown{}, this};
        return true;
    case EngineExit::Reason::Debug:
        counters_.left(ExitKind::Debug, 0, rip);
        left = Exit{Debug{exit.debug.exception, Gva{exit.debug.pc}, exit.debug.dr6, exit.debug.dr7},
                    this};
        return true;
    case EngineExit::Reason::InternalError:
        counters_.left(ExitKind::InternalError, 0, rip);
        left = Exit{InternalError{{exit.instruction.data(), exit.instruction_size}}, this};
        return true;
    case EngineExit::Reason::Difference:
        counters_.left(ExitKind::Difference, 0, rip);
        left = Exit{Difference{exit.report}, this};
        return true;
    case EngineExit::Reason::EntryFailure:
        counters_.left(ExitKind::EntryFailure, 0, rip);
        left = Exit{EntryFailure{exit.hardware_reason}, this};
        return true;
    case EngineExit::Reason::MsrRead:
        io_pending_ = true;
        counters_.left(ExitKind::MsrRead, exit.msr, rip);
        left = Exit{MsrRead{exit.msr, msr_refusal_, exit.msr_answer}, this};
        return true;
    case EngineExit::Reason::MsrWrite:
        io_pending_ = true;
        counters_.left(ExitKind::MsrWrite, exit.msr, rip);
        left = Exit{MsrWrite{exit.msr, msr_refusal_, exit.msr_value, exit.msr_answer}, this};
        return true;
    case EngineExit::Reason::IoapicEoi:
        counters_.left(ExitKind::Request, 0, rip);
        left = Exit{IoapicEoi{exit.vector}, this};
        return true;
    case EngineExit::Reason::TprAccess:
        counters_.left(ExitKind::Request, 0, rip);
        left = Exit{TprAccess{Gva{exit.tpr_access.rip}, exit.tpr_access.is_write}, this};
        return true;
    case EngineExit::Reason::HostError: break;  // `run()` has returned it.
    }
    left = Exit{InternalError{{}}, this};
    return true;
}

// --- What the engine asks of the core.

bool VcpuCore::mmio_read(Gpa gpa, std::span<std::byte> data) noexcept
{
    const std::uint64_t asked = counters_.asking();
    if (reports_tpr_ && lapic_ != nullptr && lapic_->is_in_page(gpa)) [[unlikely]] {
        note_lapic_access(gpa.value() % x86::irqchip::LocalApic::page_size, data.size(), false);
    }
    if ((lapic_ == nullptr || !vm_->irqchip()->mmio_read(id_, gpa, data)) &&
        !vm_->mmio_bus.read(gpa, data)) {
        return false;
    }
    counters_.answered(ExitKind::DeviceMmioRead, gpa.value(), asked);
    return true;
}

bool VcpuCore::mmio_write(Gpa gpa, std::span<const std::byte> data) noexcept
{
    const std::uint64_t asked = counters_.asking();
    if (!answer_mmio_write(gpa, data)) {
        return false;
    }
    counters_.answered(ExitKind::DeviceMmioWrite, gpa.value(), asked);
    return true;
}

bool VcpuCore::answer_mmio_write(Gpa gpa, std::span<const std::byte> data) noexcept
{
    if (reports_tpr_ && lapic_ != nullptr && lapic_->is_in_page(gpa)) [[unlikely]] {
        note_lapic_access(gpa.value() % x86::irqchip::LocalApic::page_size, data.size(), true);
    }
    if (lapic_ != nullptr && vm_->irqchip()->mmio_write(id_, gpa, data)) {
        return true;
    }
    if (vm_->mmio_sinks.ring(gpa, data) || vm_->mmio_bus.write(gpa, data)) {
        return true;
    }
    bus::CoalescedRing* const ring = vm_->coalesced_ring();
    return ring != nullptr && vm_->mmio_sinks.put_aside(gpa, data, *ring);
}

bool VcpuCore::port_read(Port port, std::span<std::byte> data) noexcept
{
    const std::uint64_t asked = counters_.asking();
    if (!vm_->port_bus.read(port, data)) {
        return false;
    }
    counters_.answered(ExitKind::DevicePortRead, port.value(), asked);
    return true;
}

bool VcpuCore::port_write(Port port, std::span<const std::byte> data) noexcept
{
    const std::uint64_t asked = counters_.asking();
    if (!answer_port_write(port, data)) {
        return false;
    }
    counters_.answered(ExitKind::DevicePortWrite, port.value(), asked);
    return true;
}

bool VcpuCore::answer_port_write(Port port, std::span<const std::byte> data) noexcept
{
    if (vm_->port_sinks.ring(port, data) || vm_->port_bus.write(port, data)) {
        return true;
    }
    bus::CoalescedRing* const ring = vm_->coalesced_ring();
    return ring != nullptr && vm_->port_sinks.put_aside(port, data, *ring);
}

namespace {

/// Whether something on the bus or in the sinks answers; where nothing does, `unanswered` has it.
template <typename Bus, typename Sinks, typename Unanswered>
bool may_answer(const Bus& bus,
                const Sinks& sinks,
                Unanswered& unanswered,
                const Unanswered& asked) noexcept
{
    if (unanswered == asked) {
        return false;
    }
    if (bus.answers(asked.at, asked.size) || sinks.may_take(asked.at, asked.size)) {
        return true;
    }
    unanswered = asked;
    return false;
}

}  // namespace

// The generation is read before the look-up: a change that comes between is seen as one.

bool VcpuCore::may_answer_port(Port port, std::size_t size) noexcept
{
    const std::uint64_t generation = vm_->port_bus.generation() + vm_->port_sinks.generation();
    return may_answer(vm_->port_bus, vm_->port_sinks, unanswered_port_, {generation, port, size});
}

bool VcpuCore::may_answer_mmio(Gpa gpa, std::size_t size) noexcept
{
    if (lapic_ != nullptr && vm_->irqchip()->is_mmio(id_, gpa)) {
        return true;
    }
    const std::uint64_t generation = vm_->mmio_bus.generation() + vm_->mmio_sinks.generation();
    return may_answer(vm_->mmio_bus, vm_->mmio_sinks, unanswered_mmio_, {generation, gpa, size});
}

void VcpuCore::write_cr8(std::uint64_t value) noexcept
{
    if (apic_ != nullptr) {
        apic_->set_cr8(static_cast<std::uint8_t>(value));
    } else {
        state(StateGroup::None).cr8 = value;
    }
}

std::uint64_t VcpuCore::read_cr8() noexcept
{
    return apic_ != nullptr ? apic_->cr8() : state(StateGroup::None).cr8;
}

bool VcpuCore::has_quirk(std::uint64_t quirk) noexcept
{
    return vm_->has_quirk(quirk);
}

}  // namespace vmm::core
