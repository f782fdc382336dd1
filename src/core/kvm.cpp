// SPDX-License-Identifier: Apache-2.0

#include "vmm/kvm.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "core/engines.hpp"
#include "core/log.hpp"
#include "core/probe.hpp"
#include "core/vm_core.hpp"
#include "x86/kvm/engine.hpp"
#include "x86/msr.hpp"
#include "x86/tsc.hpp"

namespace vmm {
namespace {

/// The library's own bound, or the engine's where that is lower.
int limit(Engine engine, int ours, int x86::kvm::Limits::*theirs)
{
    if (engine == Engine::Kvm) {
        if (const auto limits = x86::kvm::query_limits()) {
            return std::min(ours, (*limits).*theirs);
        }
    }
    return ours;
}

/// An engine asked for by name must work, or the answer says why it does not.
Result<void> check_by_name(Engine engine)
{
    const EngineReport report = core::probe_engine(engine);
    if (report.usable) {
        return success;
    }
    return Error{
        std::errc::no_such_device,
        fmt::format("engine {} does not work here: {}; {}", name(engine), report.reason,
                    report.fix.empty() ? "use engine soft or auto" : "to mend it, " + report.fix)};
}

/// The kernel's interrupt controllers are there on the kernel's KVM alone.
Result<void> check_irqchip(const KvmOptions& options)
{
    if (options.irqchip == IrqchipPlace::Library) {
        return success;
    }
    if (options.engine != Engine::Kvm || options.lockstep) {
        return Error{std::errc::invalid_argument,
                     fmt::format("irqchip kernel: {} has the library's interrupt controllers "
                                 "only; name the engine kvm, or take the irqchip library",
                                 options.lockstep
                                     ? "two engines in lockstep"
                                     : fmt::format("engine {}", name(options.engine)))};
    }
    VMM_TRY(const x86::kvm::Limits limits, x86::kvm::query_limits());
    if (!limits.irqchip) {
        return Error{std::errc::no_such_device,
                     "irqchip kernel: this /dev/kvm has no interrupt controllers; take the "
                     "irqchip library"};
    }
    return success;
}

}  // namespace

std::string_view name(IrqchipPlace place) noexcept
{
    return place == IrqchipPlace::Kernel ? "kernel" : "library";
}

std::optional<IrqchipPlace> irqchip_place_from_name(std::string_view wanted) noexcept
{
    for (const IrqchipPlace place : {IrqchipPlace::Library, IrqchipPlace::Kernel}) {
        if (wanted == name(place)) {
            return place;
        }
    }
    return std::nullopt;
}

Kvm::Kvm(Kvm&&) noexcept = default;
Kvm& Kvm::operator=(Kvm&&) noexcept = default;
Kvm::~Kvm() = default;

Result<Kvm> Kvm::open(const KvmOptions& options)
{
    if (options.engine == Engine::Auto || options.engine == Engine::Soft ||
        options.lockstep == Engine::Soft) {
        VMM_TRY_VOID(core::check_soft_mode());
    }
    if (options.lockstep) {
        VMM_TRY_VOID(check_by_name(*options.lockstep));
    }
    VMM_TRY_VOID(check_irqchip(options));
    if (options.engine != Engine::Auto) {
        VMM_TRY_VOID(check_by_name(options.engine));
        return Kvm{options};
    }
    EngineReport report;
    for (const Engine engine : {Engine::Vmx, Engine::Svm, Engine::Kvm, Engine::Soft}) {
        report = core::probe_engine(engine);
        if (report.automatic) {
            core::log().info("engine {}: {}", name(engine), report.reason);
            KvmOptions taken = options;
            taken.engine = engine;
            return Kvm{taken};
        }
        core::log().info("engine {} not taken: {}", name(engine), report.reason);
    }
    return Error{std::errc::no_such_device,
                 fmt::format("no engine works on this host; soft: {}; to mend it, {}",
                             report.reason, report.fix)};
}

Engine Kvm::engine() const noexcept
{
    return options_.engine;
}

int Kvm::check_extension(Capability capability) const noexcept
{
    switch (capability) {
    case Capability::Irqchip:
    case Capability::Hlt:
    case Capability::UserMemory:
    case Capability::ExtCpuid:
    case Capability::ExtEmulCpuid:
    case Capability::MpState:
    case Capability::DestroyMemoryRegionWorks:
    case Capability::UserNmi:
    case Capability::IrqInjectStatus:
    case Capability::JoinMemoryRegionsWorks:
    case Capability::Pit2:
    case Capability::VcpuEvents:
    case Capability::DebugRegs:
    case Capability::Xsave:
    case Capability::Xcrs:
    case Capability::GetTscKhz:
    case Capability::TscDeadlineTimer:
    case Capability::SignalMsi:
    case Capability::ReadonlyMem:
    case Capability::ImmediateExit:
    case Capability::Clocksource:
    case Capability::NopIoDelay:
    case Capability::SyncMmu:
    case Capability::SetGuestDebug:
    case Capability::ReinjectControl:
    case Capability::Irqfd:
    case Capability::SetBootCpuId:
    case Capability::PitState2:
    case Capability::Ioeventfd:
    case Capability::InternalErrorData:
    case Capability::KvmclockCtrl:
    case Capability::IrqfdResample:
    case Capability::DeviceCtrl:
    case Capability::X86RobustSinglestep:
    case Capability::VcpuAttributes:
    case Capability::MsrPlatformInfo:
    case Capability::X86TripleFaultEvent:
    case Capability::IoapicPolarityIgnored:
    case Capability::IoeventfdNoLength:
    case Capability::SplitIrqchip:
    case Capability::IoeventfdAnyLength:
    case Capability::GetMsrFeatures:
    case Capability::CoalescedPio:
    case Capability::ExceptionPayload:
    case Capability::AsyncPf:
    case Capability::AsyncPfInt:
    case Capability::EnforcePvFeatureCpuid:
    case Capability::X86UserSpaceMsr:
    case Capability::HaltPoll:
    case Capability::Vapic:
    case Capability::X86MsrFilter: return 1;
    case Capability::ManualDirtyLogProtect2: return 3;
    case Capability::ExitHypercall:
        return core::has_hypercall_exits(options_) ? 1 << core::VmCore::map_gpa_range : 0;
    case Capability::DisableQuirks2: return static_cast<int>(core::possible_quirks(options_));
    case Capability::TscControl:
    case Capability::VmTscControl: return core::has_tsc_scaling(options_) ? 1 : 0;
    case Capability::X86Smm: return core::has_smm(options_) ? 1 : 0;
    case Capability::Mce: return static_cast<int>(x86::max_mce_banks);
    case Capability::SetGuestDebug2: return 0x1f'0003;  // Steps, breakpoints, injection, blocking.
    case Capability::AdjustClock: return 0xe;  // KVM_CLOCK_TSC_STABLE, _REALTIME, _HOST_TSC.
    case Capability::MultiAddressSpace: return 2;
    case Capability::DirtyLogRing:
    case Capability::DirtyLogRingAcqRel:
        return core::has_dirty_rings(options_)
                   ? static_cast<int>(memory::DirtyRing::max_entries * sizeof(memory::DirtyGfn))
                   : 0;
    case Capability::IrqRouting: return 4096;
    case Capability::NrVcpus: return 64;
    case Capability::MaxVcpus:
        return limit(options_.engine, static_cast<int>(core::VmCore::max_vcpus),
                     &x86::kvm::Limits::vcpus);
    case Capability::MaxVcpuId:
        return limit(options_.engine, static_cast<int>(core::VmCore::vcpu_id_end),
                     &x86::kvm::Limits::vcpu_ids);
    case Capability::NrMemslots:
        return limit(options_.engine, static_cast<int>(memory::max_slots),
                     &x86::kvm::Limits::memory_slots);
    }
    return 0;
}

std::vector<x86::CpuidEntry> Kvm::supported_cpuid() const
{
    return core::supported_cpuid(options_);
}

std::vector<x86::CpuidEntry> Kvm::emulated_cpuid() const
{
    return core::emulated_cpuid(options_);
}

std::vector<std::uint32_t> Kvm::msr_index_list() const
{
    auto list = x86::msr_index_list();
    if (core::has_smm(options_)) {
        list.insert(list.end(), {x86::msr::smi_count, x86::msr::smbase});
    }
    return list;
}

std::vector<std::uint32_t> Kvm::msr_feature_list() const
{
    return x86::msr_feature_list();
}

std::optional<std::uint64_t> Kvm::feature_msr(std::uint32_t index) const noexcept
{
    std::uint64_t value = 0;
    return x86::read_feature_msr(index, value) ? std::optional{value} : std::nullopt;
}

std::uint64_t Kvm::mce_capabilities() const noexcept
{
    return x86::mce_capabilities;
}

std::uint32_t Kvm::tsc_khz() const noexcept
{
    return x86::host_tsc_khz();
}

Result<Vm> Kvm::create_vm() const
{
    VMM_TRY(auto vm, core::VmCore::create(options_));
    return Vm{std::move(vm)};
}

}  // namespace vmm
