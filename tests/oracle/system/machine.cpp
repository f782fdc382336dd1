// SPDX-License-Identifier: Apache-2.0

#include "oracle/system/machine.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <string_view>
#include <utility>

#include "metronome.hpp"
#include "x86/cpuid.hpp"

namespace vmm::oracle {

/// A VM and its vCPU, used for many guests: making one costs more than a guest.
struct Machine::Instance {
    Vm vm;
    Vcpu vcpu;
};

Machine::Machine(const KvmOptions& options)
    : options_{options},
      memory_{static_cast<std::byte*>(std::aligned_alloc(4096, Layout::memory)), &std::free}
{
    kvm_.emplace(Kvm::open(options_).value());
    const auto entries = kvm_->supported_cpuid();
    const x86::Cpuid cpuid{entries};
    offer_.nx = cpuid.has(x86::feature::nx);
    offer_.smep = cpuid.has(x86::feature::smep);
    offer_.smap = cpuid.has(x86::feature::smap);
    offer_.umip = cpuid.has(x86::feature::umip);
    if (options.lockstep != Engine::Soft) {
        trust_judge();
    }
}

Machine::~Machine() = default;

/// What the engine that judges cannot be asked, and why.
void Machine::trust_judge()
{
    for (const EngineReport& report : probe_engines()) {
        if (report.engine == Engine::Kvm && !report.automatic) {
            // A KVM without hardware behind it: its emulator runs kernel-mode code, and what it
            // has no hardware for (user code outside of 64-bit mode, IOPL, breakpoints, TF)
            // differs.
            offer_.modes = 0x10;
            offer_.user = offer_.breakpoints = offer_.single_step = offer_.limits = false;
        }
    }
    const char* const judge = std::getenv("VMM_SYSTEM_JUDGE");  // NOLINT(concurrency-mt-unsafe)
    if (judge != nullptr && std::string_view{judge} == "qemu") {
        // QEMU's machine with SVM: its CPU checks no segment limits, leaves accessed bits alone,
        // does not arm DR7 at VMRUN, and ends the machine ("invalid tss type") when user code of a
        // 32-bit guest is interrupted.
        offer_.modes = 0x31;
        offer_.breakpoints = offer_.limits = false;
    }
}

void Machine::start()
{
    instance_.reset();
    Vm vm = kvm_->create_vm().value();
    vm.set_user_memory_region(
          {.guest_phys_addr = Gpa{0}, .size_bytes = Layout::memory, .host = memory_.get()})
        .value();
    Vcpu vcpu = vm.create_vcpu(0).value();
    vcpu.set_cpuid(kvm_->supported_cpuid()).value();
    instance_ = std::make_unique<Instance>(Instance{std::move(vm), std::move(vcpu)});
}

void Machine::set_state(const Guest& guest)
{
    Vcpu& vcpu = instance_->vcpu;
    static_cast<void>(
        instance_->vm.memory().write(Gpa{0}, std::span<const std::byte>{guest.memory}));
    vcpu.set_events({}).value();
    vcpu.set_regs(guest.regs);
    vcpu.set_sregs(guest.sregs).value();
    vcpu.set_debug_regs(guest.debug).value();
    vcpu.set_fpu(x86::Fpu{.fcw = 0x37f, .mxcsr = 0x1f80});
    const std::array<std::pair<std::uint32_t, std::uint64_t>, 8> msrs{{
        {0xc000'0081, 0x0018'0008'0000'0000 | (Layout::handlers + 0x206)},
        {0xc000'0082, Layout::handlers + 0x208},
        {0xc000'0083, Layout::handlers + 0x20a},
        {0xc000'0084, 0x4700},
        {0xc000'0102, 0x1234'5000},
        {0x174, 8},
        {0x175, Layout::stacks + 0x4800},
        {0x176, Layout::handlers + 0x20c},
    }};
    for (const auto& [index, value] : msrs) {
        vcpu.set_msr(index, value).value();
    }
}

Outcome Machine::follow()
{
    constexpr int most_exits = 64;
    int kicks = 0;
    for (int i = 0; i < most_exits; ++i) {
        const Exit exit = instance_->vcpu.run().value();
        if (const auto* difference = exit.get_if<Difference>()) {
            std::string report{difference->report};
            instance_.reset();
            // Or it never came to its exit.
            const bool unsupported = report.find("| internal error") != std::string::npos ||
                                     report.find("| interrupted") != std::string::npos;
            return {unsupported ? Outcome::Kind::Unsupported : Outcome::Kind::Differ,
                    std::move(report)};
        }
        if (const auto* read = exit.get_if<PortRead>()) {
            std::fill(read->data.begin(), read->data.end(), std::byte{0x5a});
        } else if (const auto* load = exit.get_if<MmioRead>()) {
            std::fill(load->data.begin(), load->data.end(), std::byte{0xa5});
        } else if (exit.is<Interrupted>()) {
            constexpr int most_kicks = 50;  // A second.
            if (++kicks > most_kicks) {
                instance_.reset();
                return {Outcome::Kind::Endless};
            }
            --i;
        } else if (!exit.is<PortWrite>() && !exit.is<MmioWrite>()) {
            if (!exit.is<Halt>()) {
                instance_.reset();  // KVM's vCPU is in pieces.
            }
            return {Outcome::Kind::Agree};
        }
    }
    instance_.reset();
    return {Outcome::Kind::Endless};
}

Outcome Machine::run(const Guest& guest)
{
    if (instance_ == nullptr) {
        start();
    }
    set_state(guest);
    // Now and then: each kick is an exit that both engines must come to.
    const test::Metronome metronome{instance_->vcpu.kicker(), std::chrono::milliseconds{20}};
    return follow();
}

Guest reduce(Machine& machine, Guest guest)
{
    for (std::size_t i = guest.pieces.size(); i-- > 0;) {
        Guest fewer = guest;
        fewer.pieces.erase(fewer.pieces.begin() + static_cast<std::ptrdiff_t>(i));
        fewer.place_code();
        if (!fewer.pieces.empty() && machine.run(fewer).kind == Outcome::Kind::Differ) {
            guest = std::move(fewer);
        }
    }
    return guest;
}

}  // namespace vmm::oracle
