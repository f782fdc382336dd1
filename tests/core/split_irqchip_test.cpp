// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>

#include <sys/eventfd.h>

#include <gtest/gtest.h>

#include "core/small_vm.hpp"
#include "vmm/unique_fd.hpp"
#include "vmm/vcpu.hpp"
#include "vmm/vm.hpp"

namespace vmm {
namespace {

using test::SmallVm;

constexpr std::uint64_t at = SmallVm::code_at;
constexpr std::uint32_t level = 1U << 15U;
constexpr unsigned pins = 24;
constexpr std::uint64_t msi_address = 0xfee0'0000;

x86::irqchip::GsiRoute msi_route(std::uint32_t gsi, std::uint32_t data)
{
    x86::irqchip::GsiRoute route;
    route.gsi = gsi;
    route.type = x86::irqchip::GsiRouteType::Msi;
    route.msi_address = Gpa{msi_address};
    route.msi_data = data;
    return route;
}

/// A guest that has a local APIC, and a caller that has the other interrupt controllers.
class SplitIrqchipTest : public test::EveryEngine {
protected:
    void SetUp() override
    {
        EveryEngine::SetUp();
        if (!IsSkipped()) {
            small_.emplace(options());
            small_->vm().create_split_irqchip(pins).value();
        }
    }

    [[nodiscard]] SmallVm& small() { return *small_; }

    /// A vCPU whose local APIC is on (SVR), in real mode with FS at the APIC's page, and whose
    /// LINT0 is `lint0`.  Vector 0x31 and 0x32 lead to code that tells port 0x20 and ends the
    /// interrupt.
    Vcpu make_vcpu(std::uint32_t lint0)
    {
        for (const unsigned vector : {0x31U, 0x32U}) {
            small().place(vector * 4U, {0x00, 0x20, 0x00, 0x00});
        }
        // out %al, $0x20; mov %ebx, %fs:0xb0; iret
        small().place(0x2000,
                      {0xe6, 0x20, 0x66, 0x67, 0x64, 0x89, 0x1d, 0xb0, 0x00, 0x00, 0x00, 0xcf});
        Vcpu vcpu = small().vcpu();
        x86::Sregs sregs = vcpu.sregs();
        sregs.fs.base = 0xfee0'0000;
        sregs.fs.limit = 0xffff'ffff;
        vcpu.set_sregs(sregs).value();
        auto lapic = vcpu.lapic().value();
        const auto set = [&lapic](std::size_t reg, std::uint32_t value) {
            std::memcpy(lapic.regs.data() + reg, &value, sizeof value);
        };
        set(0xf0, 0x1ff);
        set(0x350, lint0);
        vcpu.set_lapic(lapic).value();
        return vcpu;
    }

    static void expect_port(const Exit& exit, std::uint16_t port)
    {
        ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
        EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{port});
    }

    static constexpr std::uint32_t masked = 0x1'0000;
    static constexpr std::uint32_t ext_int = 0x700;

private:
    std::optional<SmallVm> small_;
};
INSTANTIATE_TEST_SUITE_P(Engines, SplitIrqchipTest, test::irqchips, test::engine_name);

TEST_P(SplitIrqchipTest, ComesBeforeTheFirstVcpuAndOnce)
{
    EXPECT_EQ(small().vm().create_split_irqchip(pins).error().errno_value(), EEXIST);
    EXPECT_EQ(small().vm().create_irqchip().error().errno_value(), EEXIST);
    SmallVm late{options()};
    EXPECT_EQ(late.vm().create_split_irqchip(4097).error().errno_value(), EINVAL);
    const Vcpu vcpu = late.vcpu();
    EXPECT_EQ(late.vm().create_split_irqchip(pins).error().errno_value(), EEXIST);
}

TEST_P(SplitIrqchipTest, HasNeitherPicNorIoApicNorPit)
{
    EXPECT_EQ(small().vm().io_apic().error().errno_value(), ENXIO);
    EXPECT_EQ(small().vm().pic(x86::irqchip::ChipId::PicMaster).error().errno_value(), ENXIO);
    EXPECT_EQ(small().vm().create_pit().error().errno_value(), ENOENT);
    EXPECT_FALSE(small().vm().set_gsi_routing(
        std::array{x86::irqchip::pin_route(1, x86::irqchip::ChipId::IoApic, 1)}));
    small().place(at, {0xe6, 0x21, 0xf4});  // out %al, $0x21; hlt
    Vcpu vcpu = make_vcpu(masked);
    expect_port(vcpu.run().value(), 0x21);
}

TEST_P(SplitIrqchipTest, TheEndOfALevelTriggeredInterruptIsAnExit)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm opens no window behind STI";
    }
    ASSERT_TRUE(small().vm().set_gsi_routing(
        std::array{msi_route(3, level | 0x31U), msi_route(30, level | 0x32U)}));
    small().place(at, {0xfb, 0x90, 0xe6, 0x10, 0xf4});  // sti; nop; out %al, $0x10; hlt
    Vcpu vcpu = make_vcpu(masked);
    ASSERT_GT(small().vm().signal_msi(Gpa{msi_address}, level | 0x31U).value(), 0);
    expect_port(vcpu.run().value(), 0x20);
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<IoapicEoi>()) << exit.name();
    EXPECT_EQ(exit.get_if<IoapicEoi>()->vector, 0x31U);
    expect_port(vcpu.run().value(), 0x10);
    // Beyond the pins, and edge-triggered: nobody asks, but that KVM looks at the vector alone.
    for (const std::uint32_t message : {level | 0x32U, 0x31U}) {
        ASSERT_GT(small().vm().signal_msi(Gpa{msi_address}, message).value(), 0);
        x86::Regs regs = vcpu.regs();
        regs.rip = at;
        vcpu.set_regs(regs);
        expect_port(vcpu.run().value(), 0x20);
        if (has_kernel_irqchip() && message == 0x31U) {
            EXPECT_TRUE(vcpu.run()->is<IoapicEoi>());
        }
        expect_port(vcpu.run().value(), 0x10);
    }
}

TEST_P(SplitIrqchipTest, TheCallersPicGoesThroughLint0)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm opens no window behind STI";
    }
    small().place(at, {0xfb, 0x90, 0xe6, 0x10, 0x90, 0xe6, 0x11, 0xf4});
    Vcpu vcpu = make_vcpu(masked);
    ASSERT_TRUE(vcpu.interrupt(0x31));
    EXPECT_EQ(vcpu.interrupt(0x32).error().errno_value(), EEXIST);
    vcpu.request_irq_window(true);
    EXPECT_FALSE(vcpu.run_state().ready_for_interrupt_injection);
    expect_port(vcpu.run().value(), 0x10);  // LINT0 is masked: it waits, and there is no window.
    auto lapic = vcpu.lapic().value();
    std::memcpy(lapic.regs.data() + 0x350, &ext_int, sizeof ext_int);
    ASSERT_TRUE(vcpu.set_lapic(lapic));
    expect_port(vcpu.run().value(), 0x20);
    EXPECT_TRUE(vcpu.run()->is<IrqWindow>());
    EXPECT_TRUE(vcpu.run_state().ready_for_interrupt_injection);
    vcpu.request_irq_window(false);
    expect_port(vcpu.run().value(), 0x11);
}

TEST_P(SplitIrqchipTest, AResamplingIrqfdNeedsAnIoApicWhereItIsTheKernels)
{
    const UniqueFd raise{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    const UniqueFd resample{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    const auto assigned = small().vm().assign_irqfd(raise.get(), 3, resample.get());
    if (has_kernel_irqchip()) {
        EXPECT_EQ(assigned.error().errno_value(), EINVAL);
    } else {
        EXPECT_TRUE(assigned);
    }
}

TEST_P(SplitIrqchipTest, HltWaitsInRun)
{
    small().place(at, {0xfb, 0xe6, 0x10, 0xf4, 0xe6, 0x11, 0xf4});  // sti; out; hlt; out $0x11
    Vcpu vcpu = make_vcpu(ext_int);
    expect_port(vcpu.run().value(), 0x10);
    do {
        std::thread other{[kicker = vcpu.kicker()] {
            std::this_thread::sleep_for(std::chrono::milliseconds{1});
            kicker.kick();
        }};
        EXPECT_TRUE(vcpu.run()->is<Interrupted>());
        other.join();
    } while (vcpu.mp_state() != x86::MpState::Halted);
    ASSERT_TRUE(vcpu.interrupt(0x32));
    expect_port(vcpu.run().value(), 0x20);
    expect_port(vcpu.run().value(), 0x11);
}

}  // namespace
}  // namespace vmm
