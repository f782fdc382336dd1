// SPDX-License-Identifier: Apache-2.0

/// @file
/// Which engines work here, found out by trying.

#include "core/probe.hpp"

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>

#include <cpuid.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/kvm_probe.hpp"
#include "core/probe_guest.hpp"
#include "core/vm_core.hpp"
#include "vmm/kvm.hpp"
#include "x86/cpuid.hpp"
#include "x86/soft/native.hpp"
#include "x86/tsc.hpp"

namespace vmm {
namespace {

struct PageDeleter {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
};

/// Runs the probe guest through the public API.
Result<void> run_probe_guest(Vm& vm)
{
    constexpr std::size_t page = 4096;
    const std::unique_ptr<std::byte, PageDeleter> memory{
        static_cast<std::byte*>(std::aligned_alloc(page, core::probe_guest_memory))};
    if (memory == nullptr) {
        return Error{std::errc::not_enough_memory, "probe guest: no memory"};
    }
    std::fill_n(memory.get(), core::probe_guest_memory, std::byte{});
    core::place_probe_guest(memory.get());
    VMM_TRY_VOID(vm.set_user_memory_region({.slot = 0,
                                            .guest_phys_addr = Gpa{0},
                                            .size_bytes = core::probe_guest_memory,
                                            .host = memory.get()}));
    VMM_TRY(Vcpu vcpu, vm.create_vcpu(0));
    VMM_TRY_VOID(vcpu.set_cpuid(x86::supported_cpuid(x86::host_tsc_khz())));
    x86::Sregs sregs = vcpu.sregs();
    sregs.cs.selector = 0;
    sregs.cs.base = 0;
    VMM_TRY_VOID(vcpu.set_sregs(sregs));
    vcpu.set_regs({.rip = core::probe_guest_entry, .rflags = 2});

    std::string said;
    for (;;) {
        VMM_TRY(const Exit exit, vcpu.run());
        if (const auto* out = exit.get_if<PortWrite>(); out != nullptr && said.size() < 4) {
            said.push_back(std::to_integer<char>(out->data[0]));
            continue;
        }
        if (exit.is<Halt>() && said == "RPLE") {
            return success;
        }
        return Error{std::errc::io_error,
                     fmt::format("the probe guest ended with \"{}\" after \"{}\" instead of a halt "
                                 "after \"RPLE\"",
                                 exit.name(), said)};
    }
}

EngineReport probe_soft()
{
    EngineReport report{Engine::Soft, false, {}, {}};
    const auto tried = []() -> Result<double> {
        VMM_TRY_VOID(x86::soft::native_available());
        VMM_TRY(auto vm_core, core::VmCore::create(Engine::Soft));
        Vm vm{std::move(vm_core)};
        const auto begin = std::chrono::steady_clock::now();
        VMM_TRY_VOID(run_probe_guest(vm));
        return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin)
            .count();
    }();
    report.usable = tried.has_value();
    if (tried) {
        report.reason =
            fmt::format("a guest ran through real, protected and long mode in {:.1f} ms", *tried);
    } else {
        report.reason = tried.error().message();
        report.fix = "allow this process to map executable memory";
    }
    return report;
}

/// `thorough`: say what /dev/kvm would be good for, which takes it tens of milliseconds.
EngineReport probe_kvm(bool thorough)
{
    EngineReport report{Engine::Kvm, false, "this version of vmm has no kvm engine", {}};
    if (thorough) {
        report.reason = core::describe_host_kvm() + "; " + report.reason;
    }
    return report;
}

/// Whether CPUID offers the feature.
bool host_has(std::uint32_t leaf, unsigned bit)
{
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    return __get_cpuid(leaf, &eax, &ebx, &ecx, &edx) != 0 && ((ecx >> bit) & 1U) != 0U;
}

EngineReport probe_hardware(Engine engine)
{
    const bool is_vmx = engine == Engine::Vmx;
    const bool present = is_vmx ? host_has(1, 5) : host_has(0x8000'0001, 2);
    return {engine,
            false,
            fmt::format("the CPU {} {}; this version of vmm has no helper module",
                        present ? "offers" : "does not offer", is_vmx ? "VMX" : "SVM"),
            {}};
}

}  // namespace

std::string_view name(Engine engine) noexcept
{
    switch (engine) {
    case Engine::Auto: return "auto";
    case Engine::Soft: return "soft";
    case Engine::Kvm: return "kvm";
    case Engine::Svm: return "svm";
    case Engine::Vmx: return "vmx";
    }
    return "unknown";
}

std::optional<Engine> engine_from_name(std::string_view wanted) noexcept
{
    for (const Engine engine :
         {Engine::Auto, Engine::Soft, Engine::Kvm, Engine::Svm, Engine::Vmx}) {
        if (wanted == name(engine)) {
            return engine;
        }
    }
    return std::nullopt;
}

EngineReport core::probe_engine(Engine engine)
{
    switch (engine) {
    case Engine::Vmx:
    case Engine::Svm: return probe_hardware(engine);
    case Engine::Kvm: return probe_kvm(false);
    case Engine::Soft: break;
    case Engine::Auto: break;
    }
    return probe_soft();
}

std::vector<EngineReport> probe_engines()
{
    return {probe_hardware(Engine::Vmx), probe_hardware(Engine::Svm), probe_kvm(true),
            probe_soft()};
}

}  // namespace vmm
