// SPDX-License-Identifier: Apache-2.0

#include "x86/svm/vcpu.hpp"

#include <array>
#include <cstddef>
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

/// Where the CPU says how long the instruction is the helper answers, or it has the reason not to.
/// Where not, most have no prefix, and then it is two bytes; control registers are looked at in the
/// area, since all else of the segments is of no use here.
const EngineExit* SvmVcpu::handle_cpuid() noexcept
{
    using A = hardware::SegmentAttributes;
    const vmm_svm& from = area_->svm;
    const bool long_mode = Efer{from.efer}.get(Efer::LMA);
    const bool pae = Cr0{from.cr0}.get(Cr0::PG) && Cr4{from.cr4}.get(Cr4::PAE) && !long_mode;
    const A code{from.cs.attributes};
    const bool is_64 = long_mode && code.get(A::l);
    constexpr std::array no_prefix{std::byte{0x0f}, std::byte{0xa2}};

    CpuState& cpu = state(StateGroup::Registers);
    const std::uint64_t next = cpu.rip + no_prefix.size();
    const std::uint64_t last_rip = code.get(A::db) ? 0xffff'ffffU : 0xffffU;
    const bool is_watched = (cpu.rflags & Rflags::TF.mask) != 0 ||
                            (cpu.dr7 & Dr7::enables.mask) != 0 || cpu.inject.has_value();
    if ((vm_->features() & VMM_FEATURE_NEXT_RIP) != 0 || is_watched || pae ||
        (!is_64 && next > last_rip)) {
        return emulate();
    }
    cpu.cr0 = from.cr0 | hidden_cr0_;
    cpu.cr3 = from.cr3;
    cpu.cr4 = from.cr4;
    cpu.efer = from.efer;
    const std::uint64_t linear = is_64 ? cpu.rip : (from.cs.base + cpu.rip) & 0xffff'ffffU;
    std::array<std::byte, no_prefix.size()> bytes{};
    if (!emulator_->peek(linear, bytes) || bytes != no_prefix) {
        return emulate();
    }
    return HardwareVcpu::handle_cpuid(next);
}

/// QEMU 7.2's VMRUN takes no notice of a shadow: an interrupt window would open in the middle of
/// it.
bool SvmVcpu::cannot_enter() const noexcept
{
    return state_.irq_window_requested && (state_.sti_shadow || state_.mov_ss_shadow);
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
    case ExitCode::Cpuid: return handle_cpuid();
    case ExitCode::NestedPageFault: return emulate_access();
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
