// SPDX-License-Identifier: Apache-2.0

/// @file
/// vCPU ioctls: the local APIC and multiprocessor state.

#include <bit>
#include <cerrno>

#include <linux/kvm.h>

#include "x86/shim/log.hpp"
#include "x86/shim/vcpu_file.hpp"

namespace vmm::shim {
namespace {

using x86::irqchip::LapicRegister;
using x86::irqchip::LapicState;

static_assert(sizeof(kvm_lapic_state) == sizeof(LapicState));

/// In x2APIC mode ids have 32 bits; a client that has not said that it knows (KVM_CAP_X2APIC_API)
/// sees them where xAPIC mode has its 8.
bool id_is_shifted(VcpuFile& file)
{
    constexpr std::uint32_t apic_base = 0x1b;
    constexpr std::uint64_t x2apic = 1U << 10U;
    const auto base = file.vcpu().msr(apic_base);
    return base && (*base & x2apic) != 0 && !file.vm().x2apic_ids_are_32_bits;
}

long get_lapic(VcpuFile& file, kvm_lapic_state& out)
{
    auto state = file.vcpu().lapic();
    if (!state) {
        return refused(state.error());
    }
    if (id_is_shifted(file)) {
        state->set(LapicRegister::Id, state->get(LapicRegister::Id) << 24U);
    }
    out = std::bit_cast<kvm_lapic_state>(*state);
    return 0;
}

long set_lapic(VcpuFile& file, const kvm_lapic_state& wanted)
{
    auto state = std::bit_cast<LapicState>(wanted);
    if (id_is_shifted(file)) {
        state.set(LapicRegister::Id, state.get(LapicRegister::Id) >> 24U);
    }
    return result_of(file.vcpu().set_lapic(state));
}

long get_mp_state(VcpuFile& file, kvm_mp_state& out)
{
    out.mp_state = static_cast<__u32>(file.vcpu().mp_state());
    return 0;
}

long set_mp_state(VcpuFile& file, const kvm_mp_state& wanted)
{
    return result_of(file.vcpu().set_mp_state(static_cast<x86::MpState>(wanted.mp_state)));
}

long set_vapic_addr(VcpuFile& file, const kvm_vapic_addr& wanted)
{
    return result_of(file.vcpu().set_vapic_address(Gpa{wanted.vapic_addr}));
}

long tpr_access_reporting(VcpuFile& file, kvm_tpr_access_ctl& control)
{
    if (control.flags != 0) {
        return -EINVAL;
    }
    file.vcpu().report_tpr_accesses(control.enabled != 0);
    return 0;
}

constexpr Row<VcpuFile> rows[] = {
    {KVM_GET_LAPIC, "KVM_GET_LAPIC", writes<get_lapic>},
    {KVM_SET_LAPIC, "KVM_SET_LAPIC", reads<set_lapic>},
    {KVM_GET_MP_STATE, "KVM_GET_MP_STATE", writes<get_mp_state>},
    {KVM_SET_MP_STATE, "KVM_SET_MP_STATE", reads<set_mp_state>},
    {KVM_SET_VAPIC_ADDR, "KVM_SET_VAPIC_ADDR", reads<set_vapic_addr>},
    {KVM_TPR_ACCESS_REPORTING, "KVM_TPR_ACCESS_REPORTING", updates<tpr_access_reporting>},
};

}  // namespace

std::span<const Row<VcpuFile>> vcpu_apic_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
