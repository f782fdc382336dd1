// SPDX-License-Identifier: Apache-2.0

#include "core/engines.hpp"

#include <utility>

#include <fmt/format.h>

#include "vmm/x86/quirk.hpp"
#include "x86/cpuid.hpp"
#include "x86/kvm/engine.hpp"
#include "x86/lockstep/engine.hpp"
#include "x86/pv_features.hpp"
#include "x86/soft/engine.hpp"
#include "x86/svm/engine.hpp"
#include "x86/tsc.hpp"
#include "x86/vmx/engine.hpp"

namespace vmm::core {

namespace {

using x86::soft::TranslationMode;

TranslationMode translation_of(SoftMode mode) noexcept
{
    switch (mode) {
    case SoftMode::Translator: return TranslationMode::On;
    case SoftMode::Interpreter: return TranslationMode::Off;
    case SoftMode::Stress: return TranslationMode::Stress;
    }
    return TranslationMode::On;
}

Result<std::unique_ptr<x86::EngineVm>> create_one(Engine engine,
                                                  int kick_signal,
                                                  const Result<TranslationMode>& mode,
                                                  x86::PhysicalMemory& pages,
                                                  x86::MemorySlots& slots)
{
    switch (engine) {
    case Engine::Soft: {
        VMM_TRY(const TranslationMode translation, Result<TranslationMode>{mode});
        return x86::soft::create_soft_vm(pages, translation);
    }
    case Engine::Kvm: return x86::kvm::create_kvm_vm(slots, kick_signal);
    case Engine::Svm: return x86::svm::create_svm_vm(pages, slots);
    case Engine::Vmx: return x86::vmx::create_vmx_vm(pages, slots);
    case Engine::Auto: break;
    }
    return Error{std::errc::no_such_device,
                 fmt::format("this version of vmm has no engine {}", name(engine))};
}

/// Whether the library can have a vCPU's TLB flushed.
bool has_tlb_flush(const KvmOptions& options) noexcept
{
    return options.engine != Engine::Kvm && !options.lockstep;
}

void offer_tlb_flush(std::vector<x86::CpuidEntry>& offer)
{
    constexpr x86::CpuidFeature feature = x86::feature::kvm_pv_tlb_flush;
    for (x86::CpuidEntry& entry : offer) {
        if (entry.function == feature.leaf) {
            entry.eax |= 1U << feature.bit;
        }
    }
}

/// Speculation control is the host CPU's on one engine and the library's on another.
void withdraw_speculation_control(std::vector<x86::CpuidEntry>& offer)
{
    for (x86::CpuidEntry& entry : offer) {
        if (entry.function == 7 && entry.index == 0) {
            entry.edx &= (1U << 10U) - 1U;
        } else if (entry.function == 0x8000'0008) {
            entry.ebx = 0;
        } else if (entry.function == 0x8000'0021) {
            entry.eax = 0;
        }
    }
}

}  // namespace

Result<std::unique_ptr<x86::EngineVm>> create_engine_vm(const KvmOptions& options,
                                                        GuestPhysical& memory)
{
    const Result<TranslationMode> first =
        x86::soft::translation_mode(translation_of(options.soft_mode));
    VMM_TRY(auto engine, create_one(options.engine, options.kick_signal, first, memory, memory));
    if (!options.lockstep) {
        return engine;
    }
    const Result<TranslationMode> second =
        options.lockstep_soft_mode ? translation_of(*options.lockstep_soft_mode) : first;
    const auto make_follower = [&](x86::PhysicalMemory& pages, x86::MemorySlots& slots) {
        return create_one(*options.lockstep, options.kick_signal, second, pages, slots);
    };
    return x86::lockstep::create_lockstep_vm(std::move(engine), memory, make_follower);
}

Result<void> check_soft_mode()
{
    VMM_TRY([[maybe_unused]] const TranslationMode mode, x86::soft::translation_mode());
    return success;
}

std::vector<x86::CpuidEntry> supported_cpuid(const KvmOptions& options)
{
    const std::uint32_t khz = x86::host_tsc_khz();
    const bool on_kvm = options.engine == Engine::Kvm || options.lockstep == Engine::Kvm;
    const bool on_svm = options.engine == Engine::Svm || options.lockstep == Engine::Svm;
    const bool on_vmx = options.engine == Engine::Vmx || options.lockstep == Engine::Vmx;
    const bool kernel_apics = options.irqchip == IrqchipPlace::Kernel;
    auto offer = on_kvm   ? x86::kvm::supported_cpuid(khz, kernel_apics)
                 : on_svm ? x86::svm::supported_cpuid(khz)
                 : on_vmx ? x86::vmx::supported_cpuid(khz)
                          : x86::supported_cpuid(khz);
    if (on_svm || on_vmx || (options.lockstep && options.lockstep != options.engine)) {
        withdraw_speculation_control(offer);
    }
    if (has_tlb_flush(options)) {
        offer_tlb_flush(offer);
    }
    return offer;
}

std::vector<x86::CpuidEntry> emulated_cpuid(const KvmOptions& options)
{
    const Engine follower = options.lockstep.value_or(options.engine);
    if (options.engine != follower) {
        return {};
    }
    switch (options.engine) {
    case Engine::Soft: {
        constexpr std::uint32_t last_leaf = 7;
        return {{.eax = last_leaf},
                {.function = last_leaf,
                 .flags = x86::CpuidEntry::significant_index,
                 .ecx = 1U << x86::feature::rdpid.bit}};
    }
    case Engine::Kvm: return x86::kvm::emulated_cpuid();
    case Engine::Svm:
    case Engine::Vmx:
    case Engine::Auto: break;
    }
    return {};
}

bool has_dirty_rings(const KvmOptions& options) noexcept
{
    if (options.engine == Engine::Kvm && !options.lockstep) {
        const auto limits = x86::kvm::query_limits();
        return limits && limits->dirty_ring_entries != 0U;
    }
    return options.engine == Engine::Soft || !options.lockstep;
}

bool has_smm(const KvmOptions& options) noexcept
{
    return options.engine != Engine::Kvm && !options.lockstep;
}

bool has_tsc_scaling(const KvmOptions& options) noexcept
{
    return options.engine == Engine::Soft &&
           options.lockstep.value_or(Engine::Soft) == Engine::Soft;
}

bool has_hypercall_exits(const KvmOptions& options) noexcept
{
    if (options.engine == Engine::Kvm && !options.lockstep) {
        constexpr std::uint32_t map_gpa_range = 1U << 12U;
        const auto limits = x86::kvm::query_limits();
        return limits && (limits->hypercall_exits & map_gpa_range) != 0U;
    }
    return !options.lockstep;
}

std::uint64_t possible_quirks(const KvmOptions& options) noexcept
{
    using namespace x86::quirk;
    if (options.engine == Engine::Kvm || options.lockstep == Engine::Kvm) {
        // KVM takes no new CPUID from a vCPU that has run, so bit 18 cannot be followed.
        const auto limits = x86::kvm::query_limits();
        return limits ? limits->quirks & (fix_hypercall_insn | mwait_never_ud_faults) : 0U;
    }
    return misc_enable_no_mwait | fix_hypercall_insn | mwait_never_ud_faults;
}

}  // namespace vmm::core
