// SPDX-License-Identifier: Apache-2.0

/// @file
/// `CpuState` to the VMCS's fields and back: what Intel has of its own.

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "x86/msr.hpp"
#include "x86/vmx/vcpu.hpp"

namespace vmm::x86::vmx {
namespace {

constexpr std::array state_msrs{
    std::pair{&vmm_vmx::star, &CpuState::star},
    std::pair{&vmm_vmx::lstar, &CpuState::lstar},
    std::pair{&vmm_vmx::sfmask, &CpuState::fmask},
    std::pair{&vmm_vmx::kernel_gs_base, &CpuState::kernel_gs_base},
    std::pair{&vmm_vmx::sysenter_cs, &CpuState::sysenter_cs},
    std::pair{&vmm_vmx::sysenter_esp, &CpuState::sysenter_esp},
    std::pair{&vmm_vmx::sysenter_eip, &CpuState::sysenter_eip},
};

/// Exits that need neither segments nor control registers.
constexpr std::uint64_t bit_of(BasicReason reason) noexcept
{
    return std::uint64_t{1} << static_cast<unsigned>(reason);
}
constexpr std::uint64_t small_exits = bit_of(BasicReason::IoInstruction) |
                                      bit_of(BasicReason::InterruptWindow) |
                                      bit_of(BasicReason::NmiWindow);

bool uses_pae_paging(const CpuState& state) noexcept
{
    return Cr0{state.cr0}.get(Cr0::PG) && Cr4{state.cr4}.get(Cr4::PAE) &&
           !Efer{state.efer}.get(Efer::LMA);
}

/// SDM Vol. 3C "Checks on Guest Segment Registers": code and data are accessed.
void set_accessed(vmm_segment& field) noexcept
{
    using A = hardware::SegmentAttributes;
    const A attributes{field.attributes};
    if (attributes.get(A::s) && attributes.get(A::present)) {
        field.attributes |= 1U;
    }
}

}  // namespace

// --- From the area.

void VmxVcpu::load_shadows() noexcept
{
    using I = Interruptibility;
    const I blocking{area_->vmx.interruptibility};
    state_.sti_shadow = blocking.get(I::blocking_by_sti);
    state_.mov_ss_shadow = blocking.get(I::blocking_by_mov_ss);
    state_.nmi_blocked = blocking.get(I::blocking_by_nmi);
    state_.pending_debug = area_->vmx.pending_debug & pending_debug_bits;
}

void VmxVcpu::load_segments() noexcept
{
    constexpr std::uint32_t lazy = VMM_DIRTY_SEGMENTS | VMM_DIRTY_SYSTEM;
    if ((area_->stored & lazy) != lazy) {
        static_cast<void>(hardware::helper_ioctl(fd_.get(), VMM_FETCH, nullptr));
    }
    const vmm_vmx& from = area_->vmx;
    hardware::load_segment_fields(from, state_);
    state_.cr0 = (from.cr0 & ~from.cr0_mask) | (from.cr0_shadow & from.cr0_mask);
    state_.cr2 = from.cr2;
    state_.cr3 = from.cr3;
    state_.cr4 = (from.cr4 & ~from.cr4_mask) | (from.cr4_shadow & from.cr4_mask);
    state_.efer = from.efer;
}

/// MOV to and from debug registers is intercepted, and so is #DB.
void VmxVcpu::load_debug() noexcept {}

void VmxVcpu::load_msrs() noexcept
{
    state_.kernel_gs_base = area_->vmx.kernel_gs_base;
}

// --- To the area.

void VmxVcpu::store_shadows() noexcept
{
    using I = Interruptibility;
    const bool is_nmi = state_.inject && state_.inject->kind == EventKind::Nmi;
    area_->vmx.interruptibility = I{0}.with(I::blocking_by_sti, state_.sti_shadow)
                                      .with(I::blocking_by_mov_ss, state_.mov_ss_shadow)
                                      .with(I::blocking_by_nmi, state_.nmi_blocked && !is_nmi)
                                      .raw();
}

void VmxVcpu::store_segments() noexcept
{
    vmm_vmx& to = area_->vmx;
    hardware::store_segment_fields(state_, to);
    for (vmm_segment* const each : {&to.es, &to.cs, &to.ss, &to.ds, &to.fs, &to.gs}) {
        set_accessed(*each);
    }
    const std::uint64_t cr0 = state_.cr0 & ~hardware::caching;
    if (to.cr0 != cr0 || to.cr3 != state_.cr3 || to.cr4 != state_.cr4 || to.efer != state_.efer) {
        area_->dirty |= VMM_DIRTY_TLB;
    }
    to.cr0 = cr0;
    to.cr2 = state_.cr2;
    to.cr3 = state_.cr3;
    to.cr4 = state_.cr4;
    to.efer = state_.efer;
    if (uses_pae_paging(state_)) {
        store_pdptes();
    }
    area_->dirty |= VMM_DIRTY_SEGMENTS | VMM_DIRTY_SYSTEM;
    if (to.cr0_shadow != state_.cr0 || to.cr4_shadow != state_.cr4) {
        to.cr0_shadow = state_.cr0;
        to.cr4_shadow = state_.cr4;
        area_->dirty |= VMM_DIRTY_CONTROLS;
    }
}

/// SDM Vol. 3A "PDPTE Registers": as MOV to CR3 loads them.
void VmxVcpu::store_pdptes() noexcept
{
    constexpr unsigned page_bits = 12;
    constexpr std::uint64_t offset_in_page = 0xfe0;
    const PhysicalMemory::Page page = vm_->pages().page(state_.cr3 >> page_bits);
    if (page.host != nullptr) {
        std::memcpy(area_->vmx.pdptes, page.host + (state_.cr3 & offset_in_page),
                    sizeof area_->vmx.pdptes);
    } else {
        std::fill(std::begin(area_->vmx.pdptes), std::end(area_->vmx.pdptes), 0);
    }
}

void VmxVcpu::store_debug() noexcept
{
    std::copy(state_.dr.begin(), state_.dr.end(), std::begin(area_->dr));
    area_->vmx.dr7 = state_.dr7;
    area_->dirty |= VMM_DIRTY_DEBUG;
}

void VmxVcpu::store_msrs() noexcept
{
    for (const auto& [field, place] : state_msrs) {
        area_->vmx.*field = state_.*place;
    }
    // The upper half masks nothing, and Intel's CPUs do not take it.
    constexpr std::uint64_t flags = 0xffff'ffff;
    area_->vmx.sfmask &= flags;
    area_->tsc_aux = state_.tsc_aux;
    area_->dirty |= VMM_DIRTY_MSRS;
}

void VmxVcpu::store_controls() noexcept
{
    using P = PrimaryControls;
    using S = SecondaryControls;
    const auto primary =
        P{0}.with(P::hlt_exiting, true)
            .with(P::interrupt_window_exiting, state_.irq_window_requested)
            .with(P::nmi_window_exiting, state_.nmi_window_requested && state_.nmi_blocked);
    const bool has_tsc_aux = state_.cpuid.has(feature::rdtscp) || state_.cpuid.has(feature::rdpid);
    const auto secondary =
        S{0}.with(S::enable_rdtscp, has_tsc_aux && (vm_->features() & VMM_FEATURE_RDTSCP) != 0)
            .with(S::enable_invpcid, state_.cpuid.has(feature::invpcid) &&
                                         (vm_->features() & VMM_FEATURE_INVPCID) != 0);
    static constexpr std::array passed{msr::fs_base, msr::gs_base, msr::kernel_gs_base};
    const std::uint32_t options = may_pass_msrs(passed) ? 0U : VMM_VMX_INTERCEPT_ALL_MSRS;
    vmm_vmx& to = area_->vmx;
    if (to.primary != primary.raw() || to.secondary != secondary.raw() || to.options != options ||
        area_->tsc_offset != state_.tsc_offset || area_->xcr0 != state_.xcr0 ||
        to.small_exits != small_exits) {
        area_->xcr0 = state_.xcr0;
        to.exceptions =
            1U << static_cast<unsigned>(Vector::UD);  // VMMCALL, which is a hypercall here too.
        to.primary = primary.raw();
        to.secondary = secondary.raw();
        to.options = options;
        to.cr0_mask = ~guests_cr0;
        to.cr4_mask = ~guests_cr4;
        to.small_exits = small_exits;
        area_->tsc_offset = state_.tsc_offset;
        area_->dirty |= VMM_DIRTY_CONTROLS;
    }
}

}  // namespace vmm::x86::vmx
