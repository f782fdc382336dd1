// SPDX-License-Identifier: Apache-2.0

#include "x86/vmx/vcpu.hpp"

#include <utility>

#include "x86/vmx/engine.hpp"

namespace vmm::x86::vmx {
namespace {

/// SDM Vol. 3C "VM-Entry Controls for Event Injection": an exception has an error code where the
/// guest's CPU would push one.
bool pushes_error_code(Vector vector) noexcept
{
    switch (vector) {
    case Vector::DF:
    case Vector::TS:
    case Vector::NP:
    case Vector::SS:
    case Vector::GP:
    case Vector::PF:
    case Vector::AC: return true;
    default: return false;
    }
}

}  // namespace

VmxVcpu::VmxVcpu(hardware::VcpuParts parts, VcpuHost& host)
    : HardwareVcpu{std::move(parts), host, [](vmm_vcpu_area& area) {
                       vmm_vmx& part = area.vmx;
                       return hardware::EventWords{part.event_inj, part.event_inj_error, part.cr2};
                   }}
{
}

Result<std::unique_ptr<EngineVcpu>> VmxVcpu::create(std::shared_ptr<hardware::HelperVm> vm,
                                                    VcpuHost& host,
                                                    std::uint32_t id)
{
    VMM_TRY(auto parts, hardware::VcpuParts::create(std::move(vm), id));
    return std::unique_ptr<EngineVcpu>{std::make_unique<VmxVcpu>(std::move(parts), host)};
}

std::vector<std::pair<std::string_view, std::uint64_t>> VmxVcpu::counters() const
{
    auto all = HardwareVcpu::counters();
    all.emplace_back("invalid_guest_states", invalid_states_);
    return all;
}

/// What a CPU can be in, or be told, and VM entry does not take.  SDM Vol. 3C "Checks on Guest
/// Non-Register State", "VM-Entry Controls for Event Injection".
bool VmxVcpu::cannot_enter() const noexcept
{
    const bool shadow = state_.sti_shadow || state_.mov_ss_shadow;
    if (shadow && (state_.inject || (state_.rflags & Rflags::TF.mask) != 0)) {
        return true;
    }
    if (!state_.inject || state_.inject->kind != EventKind::HardwareException) {
        return false;
    }
    // In real mode no exception has one.
    const bool is_protected = (state_.cr0 & Cr0::PE.mask) != 0;
    const bool expected = is_protected && pushes_error_code(Vector{state_.inject->vector});
    return state_.inject->has_error_code != expected || state_.inject->error_code > 0x7fff;
}

/// A fault or trap that was intercepted for the host's sake.
const EngineExit* VmxVcpu::handle_exception() noexcept
{
    using F = hardware::EventField;
    const F field{area_->vmx.exit_event};
    const Vector vector{static_cast<std::uint8_t>(field.get(F::vector))};
    const bool is_ours = vector == Vector::DB || vector == Vector::AC;
    if (field.get(F::type) == F::privileged_software_exception || vector == Vector::UD ||
        (is_ours && state(StateGroup::Registers).inject)) {
        // INT1; VMMCALL or what is no instruction; or it came while another event was being
        // delivered, which begins anew.
        return emulate();
    }
    if (!is_ours) {
        return fail_entry(area_->vmx.exit_reason);
    }
    Event event{EventKind::HardwareException, static_cast<std::uint8_t>(vector)};
    if (vector == Vector::DB) {
        event.payload = area_->vmx.exit_qualification & debug_exception_bits;
    } else {
        event.has_error_code = true;
    }
    return reflect(event);
}

const EngineExit* VmxVcpu::handle_exit() noexcept
{
    using R = ExitReason;
    const R reason{area_->vmx.exit_reason};
    const BasicReason basic{static_cast<std::uint16_t>(reason.get(R::basic))};
    if (reason.get(R::entry_failure)) {
        if (basic != BasicReason::InvalidGuestState) {
            return fail_entry(reason.raw());
        }
        // Hardware's checks are stricter than what a CPU can be in.
        ++invalid_states_;
        return emulate();
    }
    switch (basic) {
    case BasicReason::ExceptionOrNmi: return handle_exception();
    case BasicReason::TripleFault: return &leave(EngineExit::Reason::Shutdown);
    case BasicReason::EptViolation: return emulate_access();
    case BasicReason::InterruptWindow:
    case BasicReason::NmiWindow: return nullptr;  // The loop sees that it is open.
    case BasicReason::IoInstruction: {
        using Q = IoQualification;
        const Q info{area_->vmx.exit_qualification};
        if (info.get(Q::string)) {
            return emulate();
        }
        return handle_port({.next_rip = area_->rip + area_->vmx.instruction_length,
                            .port = static_cast<std::uint16_t>(info.get(Q::port)),
                            .size = static_cast<std::uint8_t>(info.get(Q::size_minus_one) + 1),
                            .is_input = info.get(Q::input)});
    }
    case BasicReason::ControlRegister: {
        using Q = CrQualification;
        const Q access{area_->vmx.exit_qualification};
        const EngineExit* const exit = emulate();
        // An interrupt may have become deliverable.
        const bool is_cr8_write = access.get(Q::number) == 8 && access.get(Q::access) == 0;
        return exit != nullptr || !is_cr8_write ? exit : &leave(EngineExit::Reason::Interrupted);
    }
    case BasicReason::TaskSwitch:
    case BasicReason::Cpuid:
    case BasicReason::Getsec:
    case BasicReason::Hlt:
    case BasicReason::Invd:
    case BasicReason::Invlpg:
    case BasicReason::Rdpmc:
    case BasicReason::Rdtsc:
    case BasicReason::Rsm:
    case BasicReason::Vmcall:
    case BasicReason::Vmclear:
    case BasicReason::Vmlaunch:
    case BasicReason::Vmptrld:
    case BasicReason::Vmptrst:
    case BasicReason::Vmread:
    case BasicReason::Vmresume:
    case BasicReason::Vmwrite:
    case BasicReason::Vmxoff:
    case BasicReason::Vmxon:
    case BasicReason::DebugRegister:
    case BasicReason::Rdmsr:
    case BasicReason::Wrmsr:
    case BasicReason::Mwait:
    case BasicReason::Monitor:
    case BasicReason::Pause:
    case BasicReason::GdtrOrIdtr:
    case BasicReason::LdtrOrTr:
    case BasicReason::Invept:
    case BasicReason::Rdtscp:
    case BasicReason::Invvpid:
    case BasicReason::Wbinvd:
    case BasicReason::Xsetbv:
    case BasicReason::Rdrand:
    case BasicReason::Invpcid:
    case BasicReason::Vmfunc:
    case BasicReason::Encls:
    case BasicReason::Rdseed:
    case BasicReason::Xsaves:
    case BasicReason::Xrstors:
    case BasicReason::Umwait:
    case BasicReason::Tpause:
    case BasicReason::Loadiwkey: return emulate();
    // The helper's own, or nothing that it lets come.
    case BasicReason::ExternalInterrupt:
    case BasicReason::InitSignal:
    case BasicReason::InvalidGuestState:
    case BasicReason::MsrLoading:
    case BasicReason::MonitorTrapFlag:
    case BasicReason::MachineCheck:
    case BasicReason::EptMisconfiguration: break;
    }
    return fail_entry(reason.raw());
}

Result<void> check_helper(std::string& fix)
{
    return hardware::check_helper(VMM_VENDOR_VMX, fix);
}

std::vector<CpuidEntry> supported_cpuid(std::uint32_t tsc_khz)
{
    std::vector<CpuidEntry> offer = hardware::supported_cpuid(tsc_khz);
    const auto device = hardware::open_helper();
    const std::uint32_t features = device ? device->info.features : 0;
    if ((features & VMM_FEATURE_RDTSCP) == 0) {
        hardware::withdraw(offer, feature::rdtscp);
        hardware::withdraw(offer, feature::rdpid);
    }
    if ((features & VMM_FEATURE_INVPCID) == 0) {
        hardware::withdraw(offer, feature::invpcid);
    }
    if ((features & VMM_FEATURE_XSAVES) == 0) {
        hardware::withdraw(offer, feature::xsaves);
    }
    return offer;
}

Result<std::unique_ptr<EngineVm>> create_vmx_vm(PhysicalMemory& pages, MemorySlots& slots)
{
    return hardware::create_hardware_vm(pages, slots, &VmxVcpu::create);
}

}  // namespace vmm::x86::vmx
