// SPDX-License-Identifier: Apache-2.0

#include "x86/svm/vcpu.hpp"

#include <utility>

#include "x86/svm/engine.hpp"

namespace vmm::x86::svm {

SvmVcpu::SvmVcpu(hardware::VcpuParts parts, VcpuHost& host)
    : HardwareVcpu{std::move(parts), host, [](vmm_vcpu_area& area) {
                       vmm_svm& part = area.svm;
                       return hardware::EventWords{part.event_inj, part.event_inj_error, part.cr2};
                   }}
{
}

Result<std::unique_ptr<EngineVcpu>> SvmVcpu::create(std::shared_ptr<hardware::HelperVm> vm,
                                                    VcpuHost& host,
                                                    std::uint32_t id)
{
    VMM_TRY(auto parts, hardware::VcpuParts::create(std::move(vm), id));
    return std::unique_ptr<EngineVcpu>{std::make_unique<SvmVcpu>(std::move(parts), host)};
}

/// DR6 and DR7 are as the exception has them.
const EngineExit* SvmVcpu::reflect(Vector vector) noexcept
{
    static_cast<void>(state(StateGroup::Debug));
    Event event{EventKind::HardwareException, static_cast<std::uint8_t>(vector)};
    event.has_error_code = vector == Vector::AC;
    return HardwareVcpu::reflect(event);
}

const EngineExit* SvmVcpu::handle_exit() noexcept
{
    switch (const ExitCode code{area_->svm.exit_code}) {
    case ExitCode::Shutdown: return &leave(EngineExit::Reason::Shutdown);
    case ExitCode::DebugException: return reflect(Vector::DB);
    case ExitCode::AlignmentCheck: return reflect(Vector::AC);
    case ExitCode::VirtualInterrupt: return nullptr;  // The window is open: the loop sees it.
    case ExitCode::Port: {
        using I = PortInfo;
        const I info{area_->svm.exit_info_1};
        if (info.get(I::string)) {
            return emulate();
        }
        return handle_port({.next_rip = area_->svm.exit_info_2,
                            .port = static_cast<std::uint16_t>(info.get(I::port)),
                            .size = static_cast<std::uint8_t>(info.get(I::size)),
                            .is_input = info.get(I::input)});
    }
    case ExitCode::NestedPageFault: return emulate();
    case ExitCode::WriteCr8: {
        // An interrupt may have become deliverable.
        const EngineExit* const exit = emulate();
        return exit != nullptr ? exit : &leave(EngineExit::Reason::Interrupted);
    }
    case ExitCode::FerrFreeze:
    case ExitCode::Invalid: return fail_entry(area_->svm.exit_code);
    default:
        if (code >= ExitCode::FirstInstruction && code <= ExitCode::LastInstruction) {
            return emulate();
        }
        return fail_entry(area_->svm.exit_code);
    }
}

Result<void> check_helper(std::string& fix)
{
    return hardware::check_helper(VMM_VENDOR_SVM, fix);
}

std::vector<CpuidEntry> supported_cpuid(std::uint32_t tsc_khz)
{
    return hardware::supported_cpuid(tsc_khz);
}

Result<std::unique_ptr<EngineVm>> create_svm_vm(PhysicalMemory& pages, MemorySlots& slots)
{
    return hardware::create_hardware_vm(pages, slots, &SvmVcpu::create);
}

}  // namespace vmm::x86::svm
