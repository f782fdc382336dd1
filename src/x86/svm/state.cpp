// SPDX-License-Identifier: Apache-2.0

/// @file
/// `CpuState` to the area shared with the helper and back, group by group, when somebody asks.

#include <algorithm>
#include <array>
#include <utility>

#include "x86/msr.hpp"
#include "x86/svm/vcpu.hpp"

namespace vmm::x86::svm {
namespace {

bool has(StateGroup groups, StateGroup one) noexcept
{
    return (groups & one) != StateGroup::None;
}

/// With nested paging these would make the guest's memory uncached.
constexpr std::uint64_t caching = Cr0::CD.mask | Cr0::NW.mask;

struct StateMsr {
    std::uint64_t vmm_svm::*field;
    std::uint64_t CpuState::*place;
};

}  // namespace

vmm_segment to_vmcb(const Segment& segment) noexcept
{
    using A = SegmentAttributes;
    const bool present = segment.present != 0 && segment.unusable == 0;
    const auto attributes = A{0}.with(A::type, segment.type & 15U)
                                .with(A::s, segment.s != 0)
                                .with(A::dpl, segment.dpl & 3U)
                                .with(A::present, present)
                                .with(A::avl, segment.avl != 0)
                                .with(A::l, segment.l != 0)
                                .with(A::db, segment.db != 0)
                                .with(A::g, segment.g != 0);
    return {segment.selector, static_cast<std::uint16_t>(attributes.raw()), segment.limit,
            segment.base};
}

vmm_segment to_vmcb(const DescriptorTable& table) noexcept
{
    return {0, 0, table.limit, table.base};
}

Segment segment_of(const vmm_segment& field) noexcept
{
    using A = SegmentAttributes;
    const A attributes{field.attributes};
    Segment segment;
    segment.base = field.base;
    segment.limit = field.limit;
    segment.selector = field.selector;
    segment.type = static_cast<std::uint8_t>(attributes.get(A::type));
    segment.s = attributes.get(A::s) ? 1 : 0;
    segment.dpl = static_cast<std::uint8_t>(attributes.get(A::dpl));
    segment.present = attributes.get(A::present) ? 1 : 0;
    segment.avl = attributes.get(A::avl) ? 1 : 0;
    segment.l = attributes.get(A::l) ? 1 : 0;
    segment.db = attributes.get(A::db) ? 1 : 0;
    // The bit is not kept for every segment; limits beyond 1 MiB have it.
    segment.g = attributes.get(A::g) || field.limit > 0xf'ffffU ? 1 : 0;
    segment.unusable = segment.present == 0 ? 1 : 0;
    return segment;
}

DescriptorTable table_of(const vmm_segment& field) noexcept
{
    DescriptorTable table;
    table.base = field.base;
    table.limit = static_cast<std::uint16_t>(field.limit);
    return table;
}

CpuState& SvmVcpu::state(StateGroup current) noexcept
{
    const StateGroup missing = current - current_;
    current_ = current_ | current;
    if (has(missing, StateGroup::Registers)) {
        load_registers();
    }
    if (has(missing, StateGroup::Segments)) {
        load_segments();
    }
    if (has(missing, StateGroup::Fpu)) {
        fpu_.load(state_.fpu);
    }
    if (has(missing, StateGroup::Debug)) {
        load_debug();
    }
    if (has(missing, StateGroup::Msrs)) {
        load_msrs();
    }
    return state_;
}

void SvmVcpu::state_changed(StateGroup changed) noexcept
{
    changed_ = changed_ | changed;
    emulator_->state_changed();
}

// --- From the area.

void SvmVcpu::load_registers() noexcept
{
    std::copy(std::begin(area_->gpr), std::end(area_->gpr), state_.gpr.begin());
    state_.rip = area_->rip;
    state_.rflags = area_->rflags;
    // SVM has one shadow for both.
    state_.sti_shadow = (area_->svm.int_state & interrupt_shadow) != 0;
    state_.mov_ss_shadow = false;
    state_.pending_debug = 0;
    load_event();
}

void SvmVcpu::load_event() noexcept
{
    using F = EventField;
    const F field{area_->svm.event_inj};
    state_.inject.reset();
    if (field.get(F::valid)) {
        Event event{};
        event.vector = static_cast<std::uint8_t>(field.get(F::vector));
        switch (field.get(F::type)) {
        case F::external_interrupt: event.kind = EventKind::ExternalInterrupt; break;
        case F::nmi:
            event.kind = EventKind::Nmi;
            event.vector = static_cast<std::uint8_t>(Vector::NMI);
            break;
        case F::software_interrupt: event.kind = EventKind::SoftwareInterrupt; break;
        default:
            event.kind = EventKind::HardwareException;
            event.has_error_code = field.get(F::has_error_code);
            event.error_code = event.has_error_code ? area_->svm.event_inj_error : 0;
            if (event.vector == static_cast<std::uint8_t>(Vector::PF)) {
                event.payload = area_->svm.cr2;
            }
            break;
        }
        state_.inject = event;
    }
    held_event_ = state_.inject;
}

void SvmVcpu::load_segments() noexcept
{
    const vmm_svm& from = area_->svm;
    state_.seg[Es] = segment_of(from.es);
    state_.seg[Cs] = segment_of(from.cs);
    state_.seg[Ss] = segment_of(from.ss);
    state_.seg[Ds] = segment_of(from.ds);
    state_.seg[Fs] = segment_of(from.fs);
    state_.seg[Gs] = segment_of(from.gs);
    state_.seg[Ss].dpl = static_cast<std::uint8_t>(from.cpl & 3U);
    state_.ldt = segment_of(from.ldtr);
    state_.tr = segment_of(from.tr);
    state_.gdt = table_of(from.gdtr);
    state_.idt = table_of(from.idtr);
    state_.cr0 = from.cr0 | hidden_cr0_;
    state_.cr2 = from.cr2;
    state_.cr3 = from.cr3;
    state_.cr4 = from.cr4;
    state_.efer = from.efer;
}

void SvmVcpu::load_debug() noexcept
{
    // DR0 to DR3 are the guest's only by way of the emulator.
    state_.dr6 = area_->svm.dr6;
    state_.dr7 = area_->svm.dr7;
}

namespace {

constexpr std::array state_msrs{
    std::pair{&vmm_svm::star, &CpuState::star},
    std::pair{&vmm_svm::lstar, &CpuState::lstar},
    std::pair{&vmm_svm::cstar, &CpuState::cstar},
    std::pair{&vmm_svm::sfmask, &CpuState::fmask},
    std::pair{&vmm_svm::kernel_gs_base, &CpuState::kernel_gs_base},
    std::pair{&vmm_svm::sysenter_cs, &CpuState::sysenter_cs},
    std::pair{&vmm_svm::sysenter_esp, &CpuState::sysenter_esp},
    std::pair{&vmm_svm::sysenter_eip, &CpuState::sysenter_eip},
};

}  // namespace

void SvmVcpu::load_msrs() noexcept
{
    for (const auto& [field, place] : state_msrs) {
        state_.*place = area_->svm.*field;
    }
}

// --- To the area.

void SvmVcpu::store() noexcept
{
    const StateGroup changed = changed_;
    // The core sets `inject` without a word; what comes with an exception goes to other groups.
    if (has(current_, StateGroup::Registers)) {
        store_event();
        store_registers();
    }
    if (has(changed | changed_, StateGroup::Segments)) {
        store_segments();
    }
    if (has(changed, StateGroup::Fpu)) {
        fpu_.store(state_.fpu);
    }
    if (has(changed | changed_, StateGroup::Debug)) {
        store_debug();
    }
    if (has(changed, StateGroup::Msrs)) {
        store_msrs();
    }
    store_controls();
}

void SvmVcpu::store_registers() noexcept
{
    std::copy_n(state_.gpr.begin(), 16, std::begin(area_->gpr));
    area_->rip = state_.rip;
    area_->rflags = state_.rflags;
    area_->svm.int_state = state_.sti_shadow || state_.mov_ss_shadow ? interrupt_shadow : 0;
}

void SvmVcpu::store_event() noexcept
{
    using F = EventField;
    F field{0};
    if (state_.inject) {
        const Event& event = *state_.inject;
        std::uint64_t type = F::external_interrupt;
        if (event.kind == EventKind::Nmi) {
            type = F::nmi;
            state_.nmi_blocked = true;
        } else if (event.kind == EventKind::HardwareException) {
            type = F::exception;
        }
        field = field.with(F::valid, true).with(F::type, type).with(F::vector, event.vector);
        field = field.with(F::has_error_code, event.has_error_code);
        area_->svm.event_inj_error = event.error_code;
        // Hardware injects what it is told to; the exception's registers are the software's.
        if (event.kind == EventKind::HardwareException && state_.inject != held_event_) {
            if (event.vector == static_cast<std::uint8_t>(Vector::PF)) {
                state(StateGroup::Segments).cr2 = event.payload;
                changed_ = changed_ | StateGroup::Segments;
            } else if (event.vector == static_cast<std::uint8_t>(Vector::DB)) {
                constexpr std::uint64_t breakpoints = 0xf;
                CpuState& cpu = state(StateGroup::Debug);
                if (event.payload != 0) {
                    cpu.dr6 = (cpu.dr6 & ~breakpoints) | Dr6::reset | event.payload;
                }
                cpu.dr7 &= ~Dr7::GD.mask;
                changed_ = changed_ | StateGroup::Debug;
            }
        }
    }
    area_->svm.event_inj = static_cast<std::uint32_t>(field.raw());
}

void SvmVcpu::store_segments() noexcept
{
    vmm_svm& to = area_->svm;
    to.es = to_vmcb(state_.seg[Es]);
    to.cs = to_vmcb(state_.seg[Cs]);
    to.ss = to_vmcb(state_.seg[Ss]);
    to.ds = to_vmcb(state_.seg[Ds]);
    to.fs = to_vmcb(state_.seg[Fs]);
    to.gs = to_vmcb(state_.seg[Gs]);
    to.ldtr = to_vmcb(state_.ldt);
    to.tr = to_vmcb(state_.tr);
    to.gdtr = to_vmcb(state_.gdt);
    to.idtr = to_vmcb(state_.idt);
    hidden_cr0_ = state_.cr0 & caching;
    const std::uint64_t cr0 = state_.cr0 & ~caching;
    if (to.cr0 != cr0 || to.cr3 != state_.cr3 || to.cr4 != state_.cr4 || to.efer != state_.efer) {
        area_->dirty |= VMM_DIRTY_TLB;
    }
    to.cr0 = cr0;
    to.cr2 = state_.cr2;
    to.cr3 = state_.cr3;
    to.cr4 = state_.cr4;
    to.efer = state_.efer;
    area_->dirty |= VMM_DIRTY_SEGMENTS | VMM_DIRTY_SYSTEM;
}

void SvmVcpu::store_debug() noexcept
{
    std::copy(state_.dr.begin(), state_.dr.end(), std::begin(area_->dr));
    area_->svm.dr6 = state_.dr6;
    area_->svm.dr7 = state_.dr7;
    area_->dirty |= VMM_DIRTY_DEBUG;
}

void SvmVcpu::store_msrs() noexcept
{
    for (const auto& [field, place] : state_msrs) {
        area_->svm.*field = state_.*place;
    }
    area_->tsc_aux = state_.tsc_aux;
    area_->dirty |= VMM_DIRTY_MSRS;
}

/// MSRs that VMLOAD and VMSAVE switch are the guest's own, unless the caller's filter has one.
std::uint32_t SvmVcpu::choose_options() noexcept
{
    static constexpr std::array passed{
        msr::sysenter_cs, msr::sysenter_esp, msr::sysenter_eip, msr::star,    msr::lstar,
        msr::cstar,       msr::fmask,        msr::fs_base,      msr::gs_base, msr::kernel_gs_base};
    const std::uint64_t filters = vm_->msr_filters();
    if (std::exchange(msr_filters_seen_, filters) != filters) {
        const bool all_allowed = std::all_of(passed.begin(), passed.end(), [&](std::uint32_t each) {
            return host_.allows_msr(each, false) && host_.allows_msr(each, true);
        });
        options_ = all_allowed ? 0U : VMM_SVM_INTERCEPT_ALL_MSRS;
    }
    return options_;
}

/// What is intercepted, and what else goes in with every entry.
void SvmVcpu::store_controls() noexcept
{
    Intercepts wanted;
    wanted.add_debug_registers()
        .add(Intercept::WriteCr8)
        .add(Intercept::SelectiveCr0Write)
        .add(Intercept::Cpuid)
        .add(Intercept::Hlt)
        .add(Intercept::TaskSwitch)
        .add(Intercept::Vmmcall);
    using C = InterruptControl;
    C control = C{0}.with(C::tpr, host_.read_cr8() & 15U);
    if (state_.irq_window_requested) {
        wanted.add(Intercept::VirtualInterrupt);
        control = control.with(C::irq, true).with(C::ignore_tpr, true).with(C::priority, 15);
    }
    if (state_.nmi_blocked) {
        wanted.add(Intercept::Iret);
    }
    if (hidden_cr0_ != 0) {
        wanted.add(Intercept::ReadCr0).add(Intercept::WriteCr0);
    }
    area_->svm.int_ctl = static_cast<std::uint32_t>(control.raw());
    area_->xcr0 = state_.xcr0;
    const std::uint32_t options = choose_options();
    if (intercepts_ != wanted.words() || area_->tsc_offset != state_.tsc_offset ||
        area_->svm.options != options) {
        area_->svm.options = options;
        intercepts_ = wanted.words();
        std::copy(intercepts_.begin(), intercepts_.end(), std::begin(area_->svm.intercepts));
        area_->tsc_offset = state_.tsc_offset;
        area_->dirty |= VMM_DIRTY_CONTROLS;
    }
}

}  // namespace vmm::x86::svm
