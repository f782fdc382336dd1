// SPDX-License-Identifier: Apache-2.0

/// @file
/// `CpuState` to KVM and back, group by group, when somebody asks.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "x86/exception_payload.hpp"
#include "x86/kvm/vcpu.hpp"
#include "x86/msr.hpp"
#include "x86/tsc.hpp"

namespace vmm::x86::kvm {
namespace {

bool has(StateGroup groups, StateGroup one) noexcept
{
    return (groups & one) != StateGroup::None;
}

/// The XSAVE area in the standard format.  SDM Vol. 1 "XSAVE Area".
struct XsaveArea {
    static constexpr std::size_t mxcsr = 24;
    static constexpr std::size_t xmm = 160;
    static constexpr std::size_t header = 512;
    static constexpr std::size_t ymm_high = 576;
    static constexpr std::uint64_t x87_sse = 3;
    static constexpr std::uint64_t avx = 4;

    alignas(64) std::array<std::byte, 4096> bytes{};
};
constexpr auto get_xsave = _IOR(KVMIO, 0xa4, XsaveArea);
constexpr auto set_xsave = _IOW(KVMIO, 0xa5, XsaveArea);

/// An MSR and its place in the state.
struct StateMsr {
    std::uint32_t index;
    std::uint64_t CpuState::*place;
};
constexpr std::array state_msrs{
    StateMsr{msr::star, &CpuState::star},
    StateMsr{msr::lstar, &CpuState::lstar},
    StateMsr{msr::cstar, &CpuState::cstar},
    StateMsr{msr::fmask, &CpuState::fmask},
    StateMsr{msr::kernel_gs_base, &CpuState::kernel_gs_base},
    StateMsr{msr::sysenter_cs, &CpuState::sysenter_cs},
    StateMsr{msr::sysenter_esp, &CpuState::sysenter_esp},
    StateMsr{msr::sysenter_eip, &CpuState::sysenter_eip},
    StateMsr{msr::tsc_aux, &CpuState::tsc_aux},
    StateMsr{msr::xss, &CpuState::xss},
};

/// Where KVM has no such MSR for this guest its value is 0.
std::uint64_t read_one(const UniqueFd& vcpu, std::uint32_t index) noexcept
{
    MsrList list{};
    list.count = 1;
    list.entries[0].index = index;
    return ::ioctl(vcpu.get(), get_msrs, &list) == 1 ? list.entries[0].data : 0U;
}

bool write_one(const UniqueFd& vcpu, std::uint32_t index, std::uint64_t value) noexcept
{
    MsrList list{};
    list.count = 1;
    list.entries[0].index = index;
    list.entries[0].data = value;
    return ::ioctl(vcpu.get(), set_msrs, &list) == 1;
}

}  // namespace

CpuState& KvmVcpu::fetch_state(StateGroup wanted) noexcept
{
    const StateGroup missing = wanted - current();
    set_current(current() | wanted);
    if (has(missing, StateGroup::Registers)) {
        load_registers();
    }
    if (has(missing, StateGroup::Segments)) {
        load_segments();
    }
    if (has(missing, StateGroup::Fpu)) {
        load_fpu();
    }
    if (has(missing, StateGroup::Debug)) {
        load_debug();
    }
    if (has(missing, StateGroup::Msrs)) {
        load_msrs();
    }
    return state_;
}

void KvmVcpu::state_changed(StateGroup changed) noexcept
{
    changed_ = changed_ | changed;
}

bool KvmVcpu::store() noexcept
{
    // An event comes with registers of its own, and goes last.
    if (events_changed()) {
        store_events();
    }
    const StateGroup changed = changed_;
    const bool stored = (!has(changed, StateGroup::Segments) || store_segments()) &&
                        (!has(changed, StateGroup::Fpu) || store_fpu()) &&
                        (!has(changed, StateGroup::Debug) || store_debug()) &&
                        (!has(changed, StateGroup::Msrs) || store_msrs());
    if (!stored) {
        return false;
    }
    if (has(changed, StateGroup::Registers)) {
        store_registers();
    }
    if (apic_ && !store_run_area()) {
        return false;
    }
    store_tsc_offset();
    changed_ = StateGroup::None;
    return true;
}

bool KvmVcpu::store_run_area() noexcept
{
    const auto dirty = std::exchange(run_->kvm_dirty_regs, 0U);
    return ((dirty & KVM_SYNC_X86_REGS) == 0U ||
            ::ioctl(fd_.get(), KVM_SET_REGS, &run_->s.regs.regs) == 0) &&
           ((dirty & KVM_SYNC_X86_EVENTS) == 0U ||
            ::ioctl(fd_.get(), KVM_SET_VCPU_EVENTS, &run_->s.regs.events) == 0);
}

void KvmVcpu::reload() noexcept
{
    kvm_sregs sregs{};
    if (::ioctl(fd_.get(), KVM_GET_REGS, &run_->s.regs.regs) == 0 &&
        ::ioctl(fd_.get(), KVM_GET_VCPU_EVENTS, &run_->s.regs.events) == 0 &&
        ::ioctl(fd_.get(), KVM_GET_SREGS, &sregs) == 0) {
        run_->cr8 = sregs.cr8;
        run_->apic_base = sregs.apic_base;
    }
    set_current(StateGroup::None);
}

// --- Registers and events: in the run area, where KVM_RUN puts and takes them itself.

void KvmVcpu::load_registers() noexcept
{
    const kvm_regs& r = run_->s.regs.regs;
    const std::array<std::uint64_t, 16> values{r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp,
                                               r.rsi, r.rdi, r.r8,  r.r9,  r.r10, r.r11,
                                               r.r12, r.r13, r.r14, r.r15};
    std::copy(values.begin(), values.end(), state_.gpr.begin());
    state_.rip = r.rip;
    state_.rflags = r.rflags;
    load_events(run_->s.regs.events);
}

void KvmVcpu::load_events(const kvm_vcpu_events& events) noexcept
{
    state_.mov_ss_shadow = (events.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS) != 0;
    state_.sti_shadow = (events.interrupt.shadow & KVM_X86_SHADOW_INT_STI) != 0;
    state_.nmi_blocked = events.nmi.masked != 0;
    state_.pending_debug = 0;
    if (kvm_has_nmi_ && events.nmi.pending == 0) {
        kvm_has_nmi_ = false;
        state_.nmi_delivered = true;
    }
    state_.inject.reset();
    if (events.exception.injected != 0) {
        Event event{EventKind::HardwareException, events.exception.nr};
        event.has_error_code = events.exception.has_error_code != 0;
        event.error_code = events.exception.error_code;
        if (event.vector == static_cast<std::uint8_t>(Vector::PF)) {
            event.payload = state(StateGroup::Segments).cr2;
        }
        state_.inject = event;
    } else if (events.nmi.injected != 0) {
        state_.inject = Event{EventKind::Nmi, static_cast<std::uint8_t>(Vector::NMI)};
    } else if (events.interrupt.injected != 0) {
        state_.inject = Event{events.interrupt.soft != 0 ? EventKind::SoftwareInterrupt
                                                         : EventKind::ExternalInterrupt,
                              events.interrupt.nr};
    }
    kvms_event_ = state_.inject;
}

void KvmVcpu::store_registers() noexcept
{
    kvm_regs& r = run_->s.regs.regs;
    const auto& g = state_.gpr;
    r = {};
    r.rax = g[Rax];
    r.rbx = g[Rbx];
    r.rcx = g[Rcx];
    r.rdx = g[Rdx];
    r.rsi = g[Rsi];
    r.rdi = g[Rdi];
    r.rsp = g[Rsp];
    r.rbp = g[Rbp];
    r.r8 = g[R8];
    r.r9 = g[R9];
    r.r10 = g[R10];
    r.r11 = g[R11];
    r.r12 = g[R12];
    r.r13 = g[R13];
    r.r14 = g[R14];
    r.r15 = g[R15];
    r.rip = state_.rip;
    r.rflags = state_.rflags;
    run_->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}

bool KvmVcpu::events_changed() const noexcept
{
    return has(changed_, StateGroup::Registers) ||
           (has(current(), StateGroup::Registers) && state_.inject != kvms_event_) ||
           state_.nmi_window_requested != kvm_has_nmi_;
}

/// KVM injects what it is told to and leaves the exception's registers to whoever tells it.
void KvmVcpu::apply_payload() noexcept
{
    if (!state_.inject || state_.inject == kvms_event_) {
        return;
    }
    const Event event = *state_.inject;
    if (const StateGroup group = payload_group(event); group != StateGroup::None) {
        x86::apply_payload(state(group), event);
        state_changed(group);
    }
}

void KvmVcpu::store_events() noexcept
{
    static_cast<void>(state(StateGroup::Registers));
    apply_payload();
    kvm_vcpu_events& e = run_->s.regs.events;
    e = {};
    e.flags = KVM_VCPUEVENT_VALID_SHADOW;
    if (!apic_ || nmi_pending_wanted_) {  // KVM knows of those that it delivers itself.
        e.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
    }
    e.interrupt.shadow = static_cast<std::uint8_t>(
        (state_.mov_ss_shadow ? std::uint8_t{KVM_X86_SHADOW_INT_MOV_SS} : 0U) |
        (state_.sti_shadow ? std::uint8_t{KVM_X86_SHADOW_INT_STI} : 0U));
    e.nmi.masked = state_.nmi_blocked ? 1 : 0;
    kvm_has_nmi_ = state_.nmi_window_requested && !state_.nmi_delivered;
    e.nmi.pending = kvm_has_nmi_ || nmi_pending_wanted_.value_or(false) ? 1 : 0;
    nmi_pending_wanted_.reset();
    if (state_.inject) {
        const Event& event = *state_.inject;
        switch (event.kind) {
        case EventKind::HardwareException:
        case EventKind::SoftwareException:
        case EventKind::PrivilegedSoftwareException:
            e.exception.injected = 1;
            e.exception.nr = event.vector;
            e.exception.has_error_code = event.has_error_code ? 1 : 0;
            e.exception.error_code = event.error_code;
            break;
        case EventKind::Nmi: e.nmi.injected = 1; break;
        case EventKind::SoftwareInterrupt: e.interrupt.soft = 1; [[fallthrough]];
        case EventKind::ExternalInterrupt:
            e.interrupt.injected = 1;
            e.interrupt.nr = event.vector;
            break;
        }
    }
    kvms_event_ = state_.inject;
    run_->kvm_dirty_regs |= KVM_SYNC_X86_EVENTS;
}

// --- What an ioctl fetches.

void KvmVcpu::load_segments() noexcept
{
    kvm_sregs s{};
    if (::ioctl(fd_.get(), KVM_GET_SREGS, &s) != 0) {
        return;
    }
    // The structs have one layout: bit_cast checks the size.
    state_.seg[Es] = std::bit_cast<Segment>(s.es);
    state_.seg[Cs] = std::bit_cast<Segment>(s.cs);
    state_.seg[Ss] = std::bit_cast<Segment>(s.ss);
    state_.seg[Ds] = std::bit_cast<Segment>(s.ds);
    state_.seg[Fs] = std::bit_cast<Segment>(s.fs);
    state_.seg[Gs] = std::bit_cast<Segment>(s.gs);
    state_.tr = std::bit_cast<Segment>(s.tr);
    state_.ldt = std::bit_cast<Segment>(s.ldt);
    state_.gdt = std::bit_cast<DescriptorTable>(s.gdt);
    state_.idt = std::bit_cast<DescriptorTable>(s.idt);
    state_.cr0 = s.cr0;
    state_.cr2 = s.cr2;
    state_.cr3 = s.cr3;
    state_.cr4 = s.cr4;
    state_.efer = s.efer;
}

bool KvmVcpu::store_segments() noexcept
{
    kvm_sregs s{};
    s.es = std::bit_cast<kvm_segment>(state_.seg[Es]);
    s.cs = std::bit_cast<kvm_segment>(state_.seg[Cs]);
    s.ss = std::bit_cast<kvm_segment>(state_.seg[Ss]);
    s.ds = std::bit_cast<kvm_segment>(state_.seg[Ds]);
    s.fs = std::bit_cast<kvm_segment>(state_.seg[Fs]);
    s.gs = std::bit_cast<kvm_segment>(state_.seg[Gs]);
    s.tr = std::bit_cast<kvm_segment>(state_.tr);
    s.ldt = std::bit_cast<kvm_segment>(state_.ldt);
    s.gdt = std::bit_cast<kvm_dtable>(state_.gdt);
    s.idt = std::bit_cast<kvm_dtable>(state_.idt);
    s.cr0 = state_.cr0;
    s.cr2 = state_.cr2;
    s.cr3 = state_.cr3;
    s.cr4 = state_.cr4;
    s.cr8 = apic_ ? run_->cr8 : host_.read_cr8();
    s.efer = state_.efer;
    s.apic_base = apic_ ? run_->apic_base : host_.apic_base();
    return ::ioctl(fd_.get(), KVM_SET_SREGS, &s) == 0;
}

void KvmVcpu::load_fpu() noexcept
{
    XsaveArea area;
    if (::ioctl(fd_.get(), get_xsave, &area) == 0) {
        std::uint64_t components = 0;
        std::memcpy(&components, area.bytes.data() + XsaveArea::header, sizeof components);
        FpuRegisters& to = state_.fpu;
        std::memcpy(to.x87.data(), area.bytes.data(), XsaveArea::xmm);
        std::memcpy(&to.mxcsr, area.bytes.data() + XsaveArea::mxcsr, sizeof to.mxcsr);
        for (std::size_t i = 0; i < to.ymm.size(); ++i) {
            to.ymm[i] = {};
            std::memcpy(to.ymm[i].data(), area.bytes.data() + XsaveArea::xmm + 16 * i, 16);
            if ((components & XsaveArea::avx) != 0) {
                std::memcpy(to.ymm[i].data() + 16, area.bytes.data() + XsaveArea::ymm_high + 16 * i,
                            16);
            }
        }
    }
    kvm_xcrs xcrs{};
    state_.xcr0 = 1;
    if (::ioctl(fd_.get(), KVM_GET_XCRS, &xcrs) == 0 && xcrs.nr_xcrs > 0) {
        state_.xcr0 = xcrs.xcrs[0].value;
    }
}

bool KvmVcpu::store_fpu() noexcept
{
    XsaveArea area;
    const FpuRegisters& from = state_.fpu;
    const std::uint64_t components =
        XsaveArea::x87_sse | (state_.cpuid.supported_xcr0() & XsaveArea::avx);
    std::memcpy(area.bytes.data(), from.x87.data(), XsaveArea::xmm);
    std::memcpy(area.bytes.data() + XsaveArea::mxcsr, &from.mxcsr, sizeof from.mxcsr);
    std::memset(area.bytes.data() + XsaveArea::mxcsr + 4, 0, 4);
    std::memcpy(area.bytes.data() + XsaveArea::header, &components, sizeof components);
    for (std::size_t i = 0; i < from.ymm.size(); ++i) {
        std::memcpy(area.bytes.data() + XsaveArea::xmm + 16 * i, from.ymm[i].data(), 16);
        std::memcpy(area.bytes.data() + XsaveArea::ymm_high + 16 * i, from.ymm[i].data() + 16, 16);
    }
    if (::ioctl(fd_.get(), set_xsave, &area) != 0) {
        return false;
    }
    kvm_xcrs xcrs{};
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0].value = state_.xcr0;
    // A CPU without XSAVE has no XCR0 to set.
    return ::ioctl(fd_.get(), KVM_SET_XCRS, &xcrs) == 0 || state_.xcr0 == 1;
}

void KvmVcpu::load_debug() noexcept
{
    kvm_debugregs d{};
    if (::ioctl(fd_.get(), KVM_GET_DEBUGREGS, &d) == 0) {
        std::copy(std::begin(d.db), std::end(d.db), state_.dr.begin());
        state_.dr6 = d.dr6;
        state_.dr7 = d.dr7;
    }
}

bool KvmVcpu::store_debug() noexcept
{
    kvm_debugregs d{};
    std::copy(state_.dr.begin(), state_.dr.end(), std::begin(d.db));
    d.dr6 = state_.dr6;
    d.dr7 = state_.dr7;
    return ::ioctl(fd_.get(), KVM_SET_DEBUGREGS, &d) == 0;
}

void KvmVcpu::load_msrs() noexcept
{
    for (const StateMsr& each : state_msrs) {
        state_.*each.place = read_one(fd_, each.index);
    }
}

bool KvmVcpu::store_msrs() noexcept
{
    for (const StateMsr& each : state_msrs) {
        const std::uint64_t value = state_.*each.place;
        if (!write_one(fd_, each.index, value) && value != 0) {
            errno = EINVAL;
            return false;
        }
    }
    return true;
}

/// Guest and core read one clock: the host's TSC plus this.
void KvmVcpu::store_tsc_offset() noexcept
{
    if (tsc_offset_ == state_.tsc_offset) {
        return;
    }
    kvm_device_attr attribute{};
    attribute.group = KVM_VCPU_TSC_CTRL;
    attribute.attr = KVM_VCPU_TSC_OFFSET;
    // SAFETY: an address as KVM wants it, an integer.
    attribute.addr = reinterpret_cast<std::uintptr_t>(&state_.tsc_offset);
    if (::ioctl(fd_.get(), KVM_SET_DEVICE_ATTR, &attribute) != 0) {
        // Before Linux 5.16: by value, which KVM may round to other vCPUs' clocks.  What came of
        // it counts.
        write_one(fd_, msr::tsc, read_host_tsc() + state_.tsc_offset);
        const std::uint64_t before = read_host_tsc();
        const std::uint64_t guest = read_one(fd_, msr::tsc);
        const std::uint64_t after = read_host_tsc();
        state_.tsc_offset = guest - (before + (after - before) / 2);
    }
    tsc_offset_ = state_.tsc_offset;
}

// --- CPUID, and the MSRs that stay with KVM.

Result<void> KvmVcpu::set_cpuid(Cpuid cpuid)
{
    const auto list = std::make_unique<CpuidList>();
    const std::span<const CpuidEntry> entries = cpuid.entries();
    if (entries.size() > CpuidList::most) {
        return Error{
            std::errc::argument_list_too_long,
            fmt::format("set_cpuid: {} entries, KVM takes {}", entries.size(), CpuidList::most)};
    }
    for (const CpuidEntry& e : entries) {
        kvm_cpuid_entry2& to = list->entries[list->count++];
        to.function = e.function;
        to.index = e.index;
        to.flags = e.flags;
        to.eax = e.eax;
        to.ebx = e.ebx;
        to.ecx = e.ecx;
        to.edx = e.edx;
    }
    if (::ioctl(fd_.get(), set_cpuid2, list.get()) != 0) {
        const Error error = Error::from_errno("KVM_SET_CPUID2");
        return Error{static_cast<std::errc>(error.errno_value()),
                     "set_cpuid: " + error.message() +
                         "; KVM takes what Kvm::supported_cpuid() lists, and no change once the "
                         "vCPU has run"};
    }
    state_.cpuid = std::move(cpuid);
    return success;
}

bool KvmVcpu::has_msr(std::uint32_t index) const noexcept
{
    constexpr std::uint32_t flush_cmd = 0x10b;
    return vm_->keeps_apic_msr(index) || index == msr::spec_ctrl || index == msr::pred_cmd ||
           index == msr::arch_capabilities || index == flush_cmd;
}

bool KvmVcpu::read_msr(std::uint32_t index, std::uint64_t& value) noexcept
{
    static_cast<void>(!apic_ || store());
    MsrList list{};
    list.count = 1;
    list.entries[0].index = index;
    if (::ioctl(fd_.get(), get_msrs, &list) != 1) {
        return false;
    }
    value = list.entries[0].data;
    return true;
}

bool KvmVcpu::write_msr(std::uint32_t index, std::uint64_t value) noexcept
{
    // A deadline is one of the counter as the core has set it.
    static_cast<void>(!apic_ || store());
    if (!write_one(fd_, index, value)) {
        return false;
    }
    if (index == msr::apic_base) {
        run_->apic_base = value;
    } else if (vm_->keeps_apic_msr(index)) {
        reload();  // An x2APIC's task priority is CR8.
    }
    return true;
}

}  // namespace vmm::x86::kvm
