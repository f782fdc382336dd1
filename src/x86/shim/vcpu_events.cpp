// SPDX-License-Identifier: Apache-2.0

/// @file
/// vCPU ioctls: events that are pending or being delivered.

#include <cerrno>

#include <linux/kvm.h>

#include "x86/shim/vcpu_file.hpp"

namespace vmm::shim {

namespace {

/// Whether the exception brings the address for CR2, or bits for DR6.
bool has_payload(unsigned vector) noexcept
{
    constexpr unsigned db = 1;
    constexpr unsigned pf = 14;
    return vector == db || vector == pf;
}

}  // namespace

kvm_vcpu_events events_of(Vcpu& vcpu, KnownEvents known)
{
    const x86::VcpuEvents events = vcpu.events();
    kvm_vcpu_events out{};
    out.exception.pending = events.exception.pending;
    out.exception.injected = events.exception.injected;
    if (known.payloads) {
        const bool has = events.exception.pending != 0 && has_payload(events.exception.nr);
        out.exception_has_payload = has ? 1 : 0;
        out.exception_payload = has ? events.exception_payload : 0;
        out.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    } else {
        out.exception.injected |= events.exception.pending;
    }
    out.exception.nr = events.exception.nr;
    out.exception.has_error_code = events.exception.has_error_code;
    out.exception.error_code = events.exception.error_code;
    out.interrupt.injected = events.interrupt.soft != 0 ? 0 : events.interrupt.injected;
    out.interrupt.nr = events.interrupt.nr;
    out.interrupt.shadow = events.interrupt.shadow;
    out.nmi.injected = events.nmi.injected;
    out.nmi.pending = events.nmi.pending;
    out.nmi.masked = events.nmi.masked;
    out.smi = {events.smi.smm, events.smi.pending, events.smi.smm_inside_nmi,
               events.smi.latched_init};
    out.flags |=
        KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
    if (known.triple_faults) {
        out.triple_fault.pending = events.triple_fault;
        out.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    }
    return out;
}

long set_events(Vcpu& vcpu, const kvm_vcpu_events& wanted, KnownEvents known)
{
    const __u32 valid = (known.payloads ? __u32{KVM_VCPUEVENT_VALID_PAYLOAD} : 0U) |
                        (known.triple_faults ? __u32{KVM_VCPUEVENT_VALID_TRIPLE_FAULT} : 0U) |
                        KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
                        KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
    if ((wanted.flags & ~valid) != 0) {
        return -EINVAL;
    }
    const x86::VcpuEvents before = vcpu.events();
    x86::VcpuEvents events;
    // Only who knows payloads can have one pending that is not being injected.
    const bool pending =
        (wanted.flags & KVM_VCPUEVENT_VALID_PAYLOAD) != 0 && wanted.exception.pending != 0;
    events.exception.pending = pending ? 1 : 0;
    events.exception.injected = pending ? std::uint8_t{0} : wanted.exception.injected;
    events.exception.nr = wanted.exception.nr;
    events.exception.has_error_code = wanted.exception.has_error_code;
    events.exception.error_code = wanted.exception.error_code;
    events.interrupt.injected = wanted.interrupt.injected;
    events.interrupt.nr = wanted.interrupt.nr;
    events.interrupt.soft = wanted.interrupt.soft;
    events.interrupt.shadow = (wanted.flags & KVM_VCPUEVENT_VALID_SHADOW) != 0
                                  ? wanted.interrupt.shadow
                                  : before.interrupt.shadow;
    events.nmi.injected = wanted.nmi.injected;
    events.nmi.masked = wanted.nmi.masked;
    events.nmi.pending = (wanted.flags & KVM_VCPUEVENT_VALID_NMI_PENDING) != 0 ? wanted.nmi.pending
                                                                               : before.nmi.pending;
    events.smi = (wanted.flags & KVM_VCPUEVENT_VALID_SMM) == 0
                     ? before.smi
                     : x86::VcpuEvents::Smi{wanted.smi.smm, wanted.smi.pending,
                                            wanted.smi.smm_inside_nmi, wanted.smi.latched_init};
    events.triple_fault = (wanted.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0
                              ? wanted.triple_fault.pending
                              : before.triple_fault;
    events.exception_payload = vcpu.sregs().cr2;  // Injecting #PF leaves CR2 as it is.
    if (events.exception.nr != 14) {
        events.exception_payload = 0;
    }
    if (pending && wanted.exception_has_payload != 0 && has_payload(wanted.exception.nr)) {
        events.exception_payload = wanted.exception_payload;
    }
    return result_of(vcpu.set_events(events));
}

namespace {

long get_vcpu_events(VcpuFile& file, kvm_vcpu_events& out)
{
    out = events_of(file.vcpu(), file.known_events());
    return 0;
}

long set_vcpu_events(VcpuFile& file, const kvm_vcpu_events& wanted)
{
    return set_events(file.vcpu(), wanted, file.known_events());
}

long interrupt(VcpuFile& file, const kvm_interrupt& wanted)
{
    if (wanted.irq > 0xffU) {
        return -EINVAL;
    }
    return result_of(file.vcpu().interrupt(static_cast<std::uint8_t>(wanted.irq)));
}

long nmi(VcpuFile& file, unsigned long /*argument*/)
{
    file.vcpu().nmi();
    return 0;
}

/// ENOTTY where there is none, as a kernel without CONFIG_KVM_SMM.
long smi(VcpuFile& file, unsigned long /*argument*/)
{
    return result_of(file.vcpu().smi());
}

long setup_mce(VcpuFile& file, const __u64& capabilities)
{
    return result_of(file.vcpu().setup_mce(capabilities));
}

long set_mce(VcpuFile& file, const kvm_x86_mce& error)
{
    return result_of(file.vcpu().inject_mce(
        {error.status, error.addr, error.misc, error.mcg_status, error.bank}));
}

constexpr Row<VcpuFile> rows[] = {
    {KVM_GET_VCPU_EVENTS, "KVM_GET_VCPU_EVENTS", writes<get_vcpu_events>},
    {KVM_SET_VCPU_EVENTS, "KVM_SET_VCPU_EVENTS", reads<set_vcpu_events>},
    {KVM_INTERRUPT, "KVM_INTERRUPT", reads<interrupt>},
    {KVM_NMI, "KVM_NMI", nmi},
    {KVM_SMI, "KVM_SMI", smi},
    {KVM_X86_SETUP_MCE, "KVM_X86_SETUP_MCE", reads<setup_mce>},
    {KVM_X86_SET_MCE, "KVM_X86_SET_MCE", reads<set_mce>},
};

}  // namespace

std::span<const Row<VcpuFile>> vcpu_event_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
