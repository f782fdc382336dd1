// SPDX-License-Identifier: Apache-2.0

/// @file
/// `CpuState` to the VMCB's fields and back: what AMD has of its own.

#include <algorithm>
#include <array>
#include <utility>

#include "x86/msr.hpp"
#include "x86/svm/vcpu.hpp"

namespace vmm::x86::svm {

using hardware::caching;

// --- From the area.

void SvmVcpu::load_shadows() noexcept
{
    // SVM has one shadow for both.
    state_.sti_shadow = (area_->svm.int_state & interrupt_shadow) != 0;
    state_.mov_ss_shadow = false;
    state_.pending_debug = 0;
}

/// What the last exit has left in the VMCB.
void SvmVcpu::fetch() noexcept
{
    if (area_->stored != VMM_DIRTY_ALL) {
        static_cast<void>(hardware::helper_ioctl(fd_.get(), VMM_FETCH, nullptr));
    }
}

void SvmVcpu::load_segments() noexcept
{
    fetch();
    const vmm_svm& from = area_->svm;
    hardware::load_segment_fields(from, state_);
    state_.seg[Ss].dpl = static_cast<std::uint8_t>(from.cpl & 3U);
    state_.cr0 = from.cr0 | hidden_cr0_;
    state_.cr2 = from.cr2;
    state_.cr3 = from.cr3;
    state_.cr4 = from.cr4;
    state_.efer = from.efer;
}

void SvmVcpu::load_debug() noexcept
{
    fetch();
    // DR0 to DR3 are the guest's only by way of the emulator.
    state_.dr6 = area_->svm.dr6;
    state_.dr7 = area_->svm.dr7;
}

namespace {

/// Exits that need no more of the state than what every exit stores.
constexpr std::array small_exits =
    Intercepts{}.add(Intercept::Port).add(Intercept::VirtualInterrupt).words();

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
    fetch();
    for (const auto& [field, place] : state_msrs) {
        state_.*place = area_->svm.*field;
    }
}

// --- To the area.

void SvmVcpu::store_shadows() noexcept
{
    area_->svm.int_state = state_.sti_shadow || state_.mov_ss_shadow ? interrupt_shadow : 0;
}

void SvmVcpu::store_segments() noexcept
{
    vmm_svm& to = area_->svm;
    hardware::store_segment_fields(state_, to);
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

/// What is intercepted, and what else goes in with every entry.
void SvmVcpu::store_controls() noexcept
{
    static constexpr std::array passed{
        msr::sysenter_cs, msr::sysenter_esp, msr::sysenter_eip, msr::star,    msr::lstar,
        msr::cstar,       msr::fmask,        msr::fs_base,      msr::gs_base, msr::kernel_gs_base};
    using C = InterruptControl;
    C control = C{0}.with(C::tpr, host_.read_cr8() & 15U);
    if (state_.irq_window_requested) {
        control = control.with(C::irq, true).with(C::ignore_tpr, true).with(C::priority, 15);
    }
    area_->svm.int_ctl = static_cast<std::uint32_t>(control.raw());
    const auto choices = Choices{0}
                             .with(Choices::irq_window, state_.irq_window_requested)
                             .with(Choices::nmi_blocked, state_.nmi_blocked)
                             .with(Choices::hides_cr0, hidden_cr0_ != 0)
                             .with(Choices::intercepts_all_msrs, !may_pass_msrs(passed));
    if (choices_ != choices.raw() || area_->tsc_offset != state_.tsc_offset ||
        area_->xcr0 != state_.xcr0) [[unlikely]] {
        choices_ = choices.raw();
        area_->tsc_offset = state_.tsc_offset;
        area_->xcr0 = state_.xcr0;
        store_intercepts(choices);
    }
}

void SvmVcpu::store_intercepts(Choices choices) noexcept
{
    Intercepts wanted;
    wanted.add_debug_registers()
        .add(Intercept::WriteCr8)
        .add(Intercept::SelectiveCr0Write)
        .add(Intercept::UndefinedOpcode)  // VMCALL, which is a hypercall here too.
        .add(Intercept::Cpuid)
        .add(Intercept::Hlt)
        .add(Intercept::TaskSwitch)
        .add(Intercept::Vmmcall);
    if (choices.get(Choices::irq_window)) {
        wanted.add(Intercept::VirtualInterrupt);
    }
    if (choices.get(Choices::nmi_blocked)) {
        wanted.add(Intercept::Iret);
    }
    if (choices.get(Choices::hides_cr0)) {
        wanted.add(Intercept::ReadCr0).add(Intercept::WriteCr0);
    }
    const auto words = wanted.words();
    std::copy(words.begin(), words.end(), std::begin(area_->svm.intercepts));
    std::copy(small_exits.begin(), small_exits.end(), std::begin(area_->svm.small_exits));
    area_->svm.options =
        choices.get(Choices::intercepts_all_msrs) ? VMM_SVM_INTERCEPT_ALL_MSRS : 0U;
    area_->dirty |= VMM_DIRTY_CONTROLS;
}

}  // namespace vmm::x86::svm
