// SPDX-License-Identifier: Apache-2.0

/// @file
/// Which engines work here, found out by trying.

#include "core/probe.hpp"

#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include <cpuid.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/engines.hpp"
#include "core/probe_guest.hpp"
#include "core/vm_core.hpp"
#include "vmm/kvm.hpp"
#include "x86/svm/engine.hpp"
#include "x86/vmx/engine.hpp"

namespace vmm {
namespace {

struct PageDeleter {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
};

using Clock = std::chrono::steady_clock;

/// How fast a guest went.
struct Run {
    Clock::duration all{};
    Clock::duration loop{};  ///< `probe_guest_instructions` in long mode, and an exit.
};

/// Runs the probe guest through the public API.
Result<Run> run_probe_guest(Engine engine)
{
    const auto begin = Clock::now();
    VMM_TRY(auto vm_core, core::VmCore::create({.engine = engine}));
    Vm vm{std::move(vm_core)};
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
    VMM_TRY_VOID(vcpu.set_cpuid(core::supported_cpuid({.engine = engine})));
    x86::Sregs sregs = vcpu.sregs();
    sregs.cs.selector = 0;
    sregs.cs.base = 0;
    VMM_TRY_VOID(vcpu.set_sregs(sregs));
    vcpu.set_regs({.rip = core::probe_guest_entry, .rflags = 2});

    std::string said;
    auto loop_begin = begin;
    Run run;
    for (;;) {
        VMM_TRY(const Exit exit, vcpu.run());
        if (const auto* out = exit.get_if<PortWrite>(); out != nullptr && said.size() < 4) {
            said.push_back(std::to_integer<char>(out->data[0]));
            const auto now = Clock::now();
            if (said.back() == 'L') {
                loop_begin = now;
            } else if (said.back() == 'E') {
                run.loop = now - loop_begin;
            }
            continue;
        }
        if (exit.is<Halt>() && said == "RPLE") {
            run.all = Clock::now() - begin;
            return run;
        }
        return Error{std::errc::io_error,
                     fmt::format("the probe guest ended with \"{}\" after \"{}\" instead of a halt "
                                 "after \"RPLE\"",
                                 exit.name(), said)};
    }
}

double milliseconds(Clock::duration time)
{
    return std::chrono::duration<double, std::milli>(time).count();
}

EngineReport probe_soft()
{
    EngineReport report{.engine = Engine::Soft};
    if (const auto mode = core::check_soft_mode(); !mode) {
        report.reason = mode.error().message();
        report.fix = "unset VMM_SOFT";
        return report;
    }
    const auto tried = run_probe_guest(Engine::Soft);
    report.usable = report.automatic = tried.has_value();
    if (tried) {
        report.reason =
            fmt::format("a guest ran through real, protected and long mode in {:.1f} ms",
                        milliseconds(tried->all));
    } else {
        report.reason = tried.error().message();
        report.fix = "allow this process to map executable memory";
    }
    return report;
}

/// What the probe guest's loop takes on the host's CPU itself.
Clock::duration native_loop()
{
    const auto begin = Clock::now();
    unsigned count = core::probe_guest_instructions / 2;
    asm volatile("1: dec %0; jnz 1b" : "+r"(count) : : "cc");
    return Clock::now() - begin;
}

/// `/dev/kvm` is there on many hosts that have no hardware for it; by name an engine is used as
/// soon as it runs guests at all, by `auto` only where the guest's loop goes at the speed of the
/// host's CPU.
EngineReport probe_by_running(Engine engine, const char* device, const char* fix)
{
    // An exit under nested virtualization costs as much as this loop; an emulator takes a
    // thousand times its time.  A busy host may spoil a run or two.
    constexpr int permitted_slowdown = 20;
    constexpr int hopeless_slowdown = 500;
    constexpr int tries = 3;
    EngineReport report{.engine = engine};
    Run best;
    for (int i = 0; i < tries && !report.automatic; ++i) {
        const auto tried = run_probe_guest(engine);
        if (!tried) {
            report.usable = false;
            report.reason = tried.error().message();
            report.fix = fix;
            return report;
        }
        if (i == 0 || tried->loop < best.loop) {
            best = *tried;
        }
        report.usable = true;
        const Clock::duration native = native_loop();
        report.automatic = best.loop <= permitted_slowdown * native;
        if (best.loop > hopeless_slowdown * native) {
            break;
        }
    }
    const double rate = core::probe_guest_instructions / milliseconds(best.loop) / 1000;
    report.reason =
        fmt::format("a guest ran through real, protected and long mode in {:.1f} ms, at "
                    "{:.1f} million instructions a second",
                    milliseconds(best.all), rate);
    if (!report.automatic) {
        report.reason +=
            fmt::format("; that is no hardware behind {}, so auto does not take it", device);
    }
    return report;
}

/// What a probe found, once it found the engine usable: a host does not change that soon, and a
/// probe may take tens of milliseconds.
class Found {
public:
    template <typename Probe>
    EngineReport get(const Probe& probe)
    {
        const std::lock_guard lock{mutex_};
        if (!report_ || !report_->usable) {
            report_ = probe();
        }
        return *report_;
    }

private:
    std::mutex mutex_;
    std::optional<EngineReport> report_;
};

EngineReport probe_kvm()
{
    static Found found;
    return found.get([] {
        return probe_by_running(Engine::Kvm, "/dev/kvm",
                                "use a host whose CPU and kernel offer KVM, load kvm_intel or "
                                "kvm_amd, and give this user access to /dev/kvm");
    });
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

constexpr const char* device_path = "/dev/vmm";
constexpr const char* report_fix = "look at the kernel's log, and report it with what it says";

EngineReport probe_vmx()
{
    constexpr unsigned vmx = 5;
    EngineReport report{.engine = Engine::Vmx};
    if (!host_has(1, vmx)) {
        report.reason = "the CPU does not offer VMX";
        return report;
    }
    if (const auto helper = x86::vmx::check_helper(report.fix); !helper) {
        report.reason = "the CPU offers VMX; " + helper.error().message();
        return report;
    }
    static Found found;
    return found.get([] { return probe_by_running(Engine::Vmx, device_path, report_fix); });
}

EngineReport probe_svm()
{
    constexpr unsigned svm = 2;
    EngineReport report{.engine = Engine::Svm};
    if (!host_has(0x8000'0001, svm)) {
        report.reason = "the CPU does not offer SVM";
        return report;
    }
    if (const auto helper = x86::svm::check_helper(report.fix); !helper) {
        report.reason = "the CPU offers SVM; " + helper.error().message();
        return report;
    }
    static Found found;
    return found.get([] { return probe_by_running(Engine::Svm, device_path, report_fix); });
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
    case Engine::Vmx: return probe_vmx();
    case Engine::Svm: return probe_svm();
    case Engine::Kvm: return probe_kvm();
    case Engine::Soft: break;
    case Engine::Auto: break;
    }
    return probe_soft();
}

std::string_view name(SoftMode mode) noexcept
{
    switch (mode) {
    case SoftMode::Translator: return "translator";
    case SoftMode::Interpreter: return "interpreter";
    case SoftMode::Stress: return "stress";
    }
    return "unknown";
}

std::optional<SoftMode> soft_mode_from_name(std::string_view wanted) noexcept
{
    for (const SoftMode mode : {SoftMode::Translator, SoftMode::Interpreter, SoftMode::Stress}) {
        if (wanted == name(mode)) {
            return mode;
        }
    }
    return std::nullopt;
}

std::vector<EngineReport> probe_engines()
{
    return {probe_vmx(), probe_svm(), probe_kvm(), probe_soft()};
}

}  // namespace vmm
