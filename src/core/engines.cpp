// SPDX-License-Identifier: Apache-2.0

#include "core/engines.hpp"

#include <fmt/format.h>

#include "x86/cpuid.hpp"
#include "x86/kvm/engine.hpp"
#include "x86/soft/engine.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {

Result<std::unique_ptr<x86::EngineVm>> create_engine_vm(const KvmOptions& options,
                                                        GuestPhysical& memory)
{
    switch (options.engine) {
    case Engine::Soft: return x86::soft::create_soft_vm(memory);
    case Engine::Kvm: return x86::kvm::create_kvm_vm(memory, options.kick_signal);
    case Engine::Auto:
    case Engine::Svm:
    case Engine::Vmx: break;
    }
    return Error{std::errc::no_such_device,
                 fmt::format("this version of vmm has no engine {}", name(options.engine))};
}

std::vector<x86::CpuidEntry> supported_cpuid(Engine engine)
{
    const std::uint32_t khz = x86::host_tsc_khz();
    return engine == Engine::Kvm ? x86::kvm::supported_cpuid(khz) : x86::supported_cpuid(khz);
}

}  // namespace vmm::core
