// SPDX-License-Identifier: Apache-2.0

#include "x86/kvm/apic.hpp"

#include <bit>
#include <span>

#include <fmt/format.h>

#include "x86/kvm/vcpu.hpp"
#include "x86/msr.hpp"

namespace vmm::x86::kvm {

using irqchip::LapicRegister;
using irqchip::LapicState;

// The run area shows IA32_APIC_BASE and CR8 after each KVM_RUN, and here after each change.

std::uint64_t KvmApic::apic_base() const noexcept
{
    return vcpu_.run_->apic_base;
}

bool KvmApic::set_apic_base(std::uint64_t value, irqchip::ApicBaseWriter /*writer*/) noexcept
{
    if (value == vcpu_.run_->apic_base) {
        return true;
    }
    return vcpu_.write_msr(msr::apic_base, value);
}

std::uint8_t KvmApic::cr8() const noexcept
{
    return static_cast<std::uint8_t>(vcpu_.run_->cr8);
}

void KvmApic::set_cr8(std::uint8_t value) noexcept
{
    if (vcpu_.run_->cr8 != value) {
        static_cast<void>(vcpu_.EngineVcpu::state(StateGroup::Segments));
        vcpu_.run_->cr8 = value;
        vcpu_.state_changed(StateGroup::Segments);
    }
}

LapicState KvmApic::state() const noexcept
{
    kvm_lapic_state out{};
    static_cast<void>(vcpu_.store());  // The task priority may be among what waits.
    static_cast<void>(::ioctl(vcpu_.fd_.get(), KVM_GET_LAPIC, &out));
    return std::bit_cast<LapicState>(out);
}

Result<void> KvmApic::set_state(const LapicState& state)
{
    const auto wanted = std::bit_cast<kvm_lapic_state>(state);
    static_cast<void>(vcpu_.store());
    VMM_TRY_VOID(control(vcpu_.fd_, KVM_SET_LAPIC, "KVM_SET_LAPIC", &wanted));
    vcpu_.run_->cr8 = state.get(LapicRegister::Tpr) >> 4U & 0xfU;
    return success;
}

/// KVM takes up INIT and SIPI when it is asked.
MpState KvmApic::mp_state() noexcept
{
    kvm_mp_state out{};
    static_cast<void>(vcpu_.store());
    static_cast<void>(::ioctl(vcpu_.fd_.get(), KVM_GET_MP_STATE, &out));
    vcpu_.reload();
    return static_cast<MpState>(out.mp_state);
}

Result<void> KvmApic::set_mp_state(MpState state)
{
    kvm_mp_state wanted{};
    wanted.mp_state = static_cast<std::uint32_t>(state);
    // KVM_SET_SREGS may wake a vCPU, and comes before what puts it to sleep.
    static_cast<void>(vcpu_.store());
    VMM_TRY_VOID(control(vcpu_.fd_, KVM_SET_MP_STATE, "KVM_SET_MP_STATE", &wanted));
    return success;
}

void KvmApic::inject_nmi() noexcept
{
    static_cast<void>(::ioctl(vcpu_.fd_.get(), KVM_NMI, 0UL));
}

bool KvmApic::is_nmi_pending() noexcept
{
    kvm_vcpu_events events{};
    static_cast<void>(vcpu_.store());
    return ::ioctl(vcpu_.fd_.get(), KVM_GET_VCPU_EVENTS, &events) == 0 && events.nmi.pending != 0;
}

void KvmApic::set_nmi_pending(bool pending) noexcept
{
    vcpu_.nmi_pending_wanted_ = pending;
    static_cast<void>(vcpu_.EngineVcpu::state(StateGroup::Registers));
    vcpu_.state_changed(StateGroup::Registers);
}

Result<void> KvmApic::interrupt(std::uint8_t vector)
{
    kvm_interrupt wanted{};
    wanted.irq = vector;
    if (const auto done = control(vcpu_.fd_, KVM_INTERRUPT, "KVM_INTERRUPT", &wanted); !done) {
        return Error{static_cast<std::errc>(done.error().errno_value()),
                     fmt::format("interrupt({}): {}; one is kept until the guest takes it: ask for "
                                 "an IrqWindow exit",
                                 vector, done.error().message())};
    }
    vcpu_.run_->ready_for_interrupt_injection = 0;
    return success;
}

bool KvmApic::takes_interrupts() const noexcept
{
    return vcpu_.run_->ready_for_interrupt_injection != 0;
}

void KvmApic::report_tpr_accesses(bool wanted) noexcept
{
    kvm_tpr_access_ctl reporting{};
    reporting.enabled = wanted ? 1 : 0;
    static_cast<void>(::ioctl(vcpu_.fd_.get(), KVM_TPR_ACCESS_REPORTING, &reporting));
}

Result<void> KvmApic::set_vapic_address(Gpa word)
{
    kvm_vapic_addr wanted{};
    wanted.vapic_addr = word.value();
    VMM_TRY_VOID(control(vcpu_.fd_, KVM_SET_VAPIC_ADDR, "KVM_SET_VAPIC_ADDR", &wanted));
    return success;
}

void KvmApic::enforce_pv_features(bool enforced) noexcept
{
    static_cast<void>(kvm::enforce_pv_features(vcpu_.fd_, enforced));
}

}  // namespace vmm::x86::kvm
