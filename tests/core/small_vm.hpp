// SPDX-License-Identifier: Apache-2.0

/// @file
/// A VM with a little memory and a program, for tests of the public API.

#pragma once

#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "vmm/vmm.hpp"

namespace vmm::test {

/// A `/dev/kvm` without hardware behind it, as some cloud machines have: its emulator differs from
/// a CPU in places.  A test that meets one skips there and says which.
inline bool is_emulated_kvm(Engine engine)
{
    for (const EngineReport& report : probe_engines()) {
        if (report.engine == engine) {
            return engine == Engine::Kvm && !report.automatic;
        }
    }
    return false;
}

/// What a suite runs on.
struct EngineCase {
    // NOLINTNEXTLINE(google-explicit-constructor): an engine is one.
    EngineCase(Engine e, IrqchipPlace place = IrqchipPlace::Library) : engine{e}, irqchip{place} {}

    Engine engine;
    IrqchipPlace irqchip;
};

/// One test body, every engine: the suite's parameter is the engine, and who has the irqchip.
class EveryEngine : public testing::TestWithParam<EngineCase> {
protected:
    void SetUp() override
    {
        if (const auto kvm = Kvm::open(options()); !kvm) {
            GTEST_SKIP() << kvm.error().message();
        }
    }
    [[nodiscard]] static Engine engine() { return GetParam().engine; }
    [[nodiscard]] static bool has_kernel_irqchip()
    {
        return GetParam().irqchip == IrqchipPlace::Kernel;
    }
    [[nodiscard]] static KvmOptions options()
    {
        return {.engine = GetParam().engine, .irqchip = GetParam().irqchip};
    }
    [[nodiscard]] static bool is_emulated_kvm() { return test::is_emulated_kvm(engine()); }
};

inline const auto engine_name = [](const auto& test) {
    const EngineCase& what = test.param;
    const bool in_kernel = what.irqchip == IrqchipPlace::Kernel;
    return std::string{name(what.engine)} + (in_kernel ? "_kernel_irqchip" : "");
};

/// `INSTANTIATE_TEST_SUITE_P(Engines, X, test::engines, test::engine_name)`
inline const auto engines = testing::Values(Engine::Soft, Engine::Kvm, Engine::Svm, Engine::Vmx);
/// The same for what has to do with interrupt controllers.
inline const auto irqchips = testing::Values(EngineCase{Engine::Soft},
                                             EngineCase{Engine::Kvm},
                                             EngineCase{Engine::Svm},
                                             EngineCase{Engine::Vmx},
                                             EngineCase{Engine::Kvm, IrqchipPlace::Kernel});

/// 1 MiB of RAM at guest-physical 0; code runs in real mode with all segment bases 0.
class SmallVm {
public:
    static constexpr std::size_t memory_size = 0x10'0000;
    static constexpr std::uint16_t code_at = 0x1000;

    enum class Irqchip { None, Full };

    explicit SmallVm(Engine engine = Engine::Soft, Irqchip irqchip = Irqchip::None)
        : SmallVm{KvmOptions{.engine = engine}, irqchip}
    {
    }
    explicit SmallVm(const KvmOptions& options, Irqchip irqchip = Irqchip::None)
        : memory_{static_cast<std::byte*>(std::aligned_alloc(4096, memory_size)), &std::free},
          kvm_{Kvm::open(options).value()},
          vm_{kvm_.create_vm().value()}
    {
        std::fill_n(memory_.get(), memory_size, std::byte{});
        vm_.set_user_memory_region(
               {.guest_phys_addr = Gpa{0}, .size_bytes = memory_size, .host = memory_.get()})
            .value();
        if (irqchip == Irqchip::Full) {
            vm_.create_irqchip().value();
        }
    }

    void place(std::size_t at, std::initializer_list<unsigned> code)
    {
        for (const unsigned byte : code) {
            memory_.get()[at++] = static_cast<std::byte>(byte);
        }
    }

    /// A vCPU about to execute what lies at `code_at`; a stack grows down from 0x8000.
    Vcpu vcpu(std::uint32_t id = 0)
    {
        Vcpu vcpu = vm_.create_vcpu(id).value();
        vcpu.set_cpuid(kvm_.supported_cpuid()).value();
        x86::Sregs sregs = vcpu.sregs();
        sregs.cs.selector = 0;
        sregs.cs.base = 0;
        vcpu.set_sregs(sregs).value();
        vcpu.set_regs({.rsp = 0x8000, .rip = code_at, .rflags = 2});
        return vcpu;
    }

    [[nodiscard]] std::byte* memory() noexcept { return memory_.get(); }
    [[nodiscard]] unsigned byte_at(std::size_t at) const noexcept
    {
        return std::to_integer<unsigned>(memory_.get()[at]);
    }
    [[nodiscard]] Kvm& kvm() noexcept { return kvm_; }
    [[nodiscard]] Vm& vm() noexcept { return vm_; }

private:
    std::unique_ptr<std::byte, decltype(&std::free)> memory_;
    Kvm kvm_;
    Vm vm_;
};

}  // namespace vmm::test
