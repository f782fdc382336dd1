// SPDX-License-Identifier: Apache-2.0

// Interrupt controllers through the public API, whoever has them.

#include <array>
#include <chrono>
#include <optional>
#include <string>
#include <thread>

#include <sys/eventfd.h>

#include <gtest/gtest.h>

#include "core/small_vm.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm {
namespace {

using test::SmallVm;
using x86::irqchip::ChipId;
using x86::irqchip::LapicRegister;
using x86::irqchip::LapicState;

constexpr Gpa to_apic_0{0xfee0'0000};

/// A guest that sleeps, and tells port 0x30 + n of vector 0x50 + n.
class IrqchipTest : public test::EveryEngine {
protected:
    void SetUp() override
    {
        EveryEngine::SetUp();
        if (!IsSkipped()) {
            small_.emplace(options(), SmallVm::Irqchip::Full);
        }
    }

    [[nodiscard]] SmallVm& small() { return *small_; }
    [[nodiscard]] Vm& vm() { return small_->vm(); }

    static constexpr unsigned vectors = 4;

    /// Its local APIC is on, FS leads to it, and each handler ends its interrupt there first, or,
    /// of the PIC's, at port 0x20.
    Vcpu sleeper(bool by_pic = false)
    {
        for (unsigned n = 0; n < vectors; ++n) {
            const unsigned at = 0x2000 + n * 0x20;
            small().place((0x50 + n) * 4U, {at & 0xffU, at >> 8U, 0, 0});
            if (by_pic) {
                // mov $0x20, %al; out %al, $0x20; out %al, $port; iret
                small().place(at, {0xb0, 0x20, 0xe6, 0x20, 0xe6, 0x30 + n, 0xcf});
            } else {
                small().place(at, {0x66, 0x31, 0xc0,                       // xor %eax, %eax
                                   0x64, 0x66, 0x67, 0xa3, 0xb0, 0, 0, 0,  // mov %eax, %fs:0xb0
                                   0xe6, 0x30 + n, 0xcf});                 // out; iret
            }
        }
        small().place(SmallVm::code_at, {0xfb, 0xf4, 0xeb, 0xfd});  // sti; 1: hlt; jmp 1b
        Vcpu vcpu = small().vcpu();
        x86::Sregs sregs = vcpu.sregs();
        sregs.fs.base = to_apic_0.value();
        sregs.fs.limit = 0xffff'ffff;
        vcpu.set_sregs(sregs).value();
        LapicState lapic = vcpu.lapic().value();
        lapic.set(LapicRegister::Svr, 0x1ff);
        lapic.set(LapicRegister::LvtLint0, by_pic ? 0x700 : 0x1'0000);  // ExtINT, or masked.
        vcpu.set_lapic(lapic).value();
        return vcpu;
    }

    static void expect_port(const Exit& exit, std::uint16_t port)
    {
        ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
        EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{port});
    }

    /// What `deed` does on another thread ends the vCPU's sleep.
    template <typename F>
    static Exit run_until(Vcpu& vcpu, F&& deed)
    {
        std::thread other{[&] {
            std::this_thread::sleep_for(std::chrono::milliseconds{1});
            deed();
        }};
        const Exit exit = vcpu.run().value();
        other.join();
        return exit;
    }

private:
    std::optional<SmallVm> small_;
};
INSTANTIATE_TEST_SUITE_P(Engines, IrqchipTest, test::irqchips, test::engine_name);

TEST_P(IrqchipTest, MessagesWakeAVcpu)
{
    Vcpu vcpu = sleeper();
    expect_port(run_until(vcpu, [&] { EXPECT_EQ(vm().signal_msi(to_apic_0, 0x50).value(), 1); }),
                0x30);
    expect_port(run_until(vcpu, [&] { EXPECT_EQ(vm().signal_msi(to_apic_0, 0x51).value(), 1); }),
                0x31);
    EXPECT_LE(vm().signal_msi(Gpa{0xfee0'5000}, 0x50).value(), 0) << "there is no APIC 5";
}

TEST_P(IrqchipTest, LinesLeadThroughTheIoApic)
{
    Vcpu vcpu = sleeper();
    auto io_apic = vm().io_apic().value();
    io_apic.redirection_table[5] = 0x50;
    io_apic.redirection_table[20] = 0x51 | 0x8000;  // Level-triggered.
    vm().set_io_apic(io_apic).value();
    expect_port(run_until(vcpu,
                          [&] {
                              EXPECT_GT(vm().set_irq_line(5, true).value(), 0);
                              EXPECT_GE(vm().set_irq_line(5, false).value(), 0);
                          }),
                0x30);
    EXPECT_EQ(vm().set_irq_line(21, true).value(), -1) << "masked";
    // As long as the line is up the interrupt comes again.
    expect_port(run_until(vcpu, [&] { EXPECT_GT(vm().set_irq_line(20, true).value(), 0); }), 0x31);
    expect_port(vcpu.run().value(), 0x31);
    vm().set_irq_line(20, false).value();
    vcpu.kicker().kick();
    EXPECT_TRUE(vcpu.run().value().is<Interrupted>());
    EXPECT_EQ(vm().io_apic().value().irr & 1U << 20U, 0U);
}

TEST_P(IrqchipTest, LinesLeadThroughThePic)
{
    Vcpu vcpu = sleeper(true);
    auto pic = vm().pic(ChipId::PicMaster).value();
    pic.irq_base = 0x50;
    pic.imr = 0xfd;
    vm().set_pic(ChipId::PicMaster, pic).value();
    for (int i = 0; i < 3; ++i) {
        expect_port(run_until(vcpu,
                              [&] {
                                  EXPECT_GT(vm().set_irq_line(1, true).value(), 0);
                                  vm().set_irq_line(1, false).value();
                              }),
                    0x31);
    }
}

TEST_P(IrqchipTest, RoutesAreReplacedWhole)
{
    Vcpu vcpu = sleeper();
    auto io_apic = vm().io_apic().value();
    io_apic.redirection_table[7] = 0x50;
    vm().set_io_apic(io_apic).value();
    vm().set_gsi_routing(std::array{x86::irqchip::pin_route(100, ChipId::IoApic, 7),
                                    x86::irqchip::msi_route(101, to_apic_0, 0x51)})
        .value();
    EXPECT_EQ(vm().set_irq_line(7, true).value(), -1) << "it leads nowhere now";
    expect_port(run_until(vcpu, [&] { vm().set_irq_line(100, true).value(); }), 0x30);
    expect_port(run_until(vcpu, [&] { vm().set_irq_line(101, true).value(); }), 0x31);
    for (const auto& wrong : {x86::irqchip::pin_route(5000, ChipId::IoApic, 1),
                              x86::irqchip::pin_route(5, ChipId::IoApic, 24),
                              x86::irqchip::pin_route(5, static_cast<ChipId>(3), 1)}) {
        EXPECT_EQ(vm().set_gsi_routing(std::array{wrong}).error().errno_value(), EINVAL);
    }
    expect_port(run_until(vcpu, [&] { vm().set_irq_line(101, true).value(); }), 0x31);
}

TEST_P(IrqchipTest, AnIrqfdIsAPulseUntilItIsDeassigned)
{
    Vcpu vcpu = sleeper();
    vm().set_gsi_routing(std::array{x86::irqchip::msi_route(40, to_apic_0, 0x52)}).value();
    const UniqueFd event{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    vm().assign_irqfd(event.get(), 40).value();
    EXPECT_EQ(vm().assign_irqfd(event.get(), 41).error().errno_value(), EBUSY);
    EXPECT_EQ(vm().assign_irqfd(-1, 41).error().errno_value(), EBADF);
    for (int i = 0; i < 3; ++i) {
        expect_port(run_until(vcpu, [&] { EXPECT_EQ(::eventfd_write(event.get(), 1), 0); }), 0x32);
    }
    vm().deassign_irqfd(event.get(), 40).value();
    vm().deassign_irqfd(event.get(), 40).value();
    EXPECT_EQ(::eventfd_write(event.get(), 1), 0);
    vcpu.kicker().kick();
    EXPECT_TRUE(vcpu.run().value().is<Interrupted>());
    EXPECT_EQ(vcpu.lapic().value().get(static_cast<LapicRegister>(0x220)), 0U) << "none requested";
}

TEST_P(IrqchipTest, ThePitTicks)
{
    vm().create_pit().value();
    Vcpu vcpu = sleeper(true);
    auto pic = vm().pic(ChipId::PicMaster).value();
    pic.irq_base = 0x50;
    pic.imr = 0xfe;
    vm().set_pic(ChipId::PicMaster, pic).value();
    auto pit = vm().pit().value();
    pit.channels[0].mode = 2;
    pit.channels[0].count = 2'000;
    vm().set_pit(pit).value();
    for (int i = 0; i < 3; ++i) {
        expect_port(vcpu.run().value(), 0x30);
    }
}

TEST_P(IrqchipTest, ThePitHasTheSpeakersPort)
{
    vm().create_pit().value();
    // in $0x61, %al; out %al, $0x30
    small().place(SmallVm::code_at, {0xe4, 0x61, 0xe6, 0x30});
    Vcpu vcpu = small().vcpu();
    expect_port(vcpu.run().value(), 0x30);
}

TEST_P(IrqchipTest, AnNmiWakesAVcpu)
{
    Vcpu vcpu = sleeper();
    small().place(2 * 4, {0x00, 0x28, 0, 0});
    small().place(0x2800, {0xe6, 0x40, 0xcf});  // out; iret
    for (int i = 0; i < 3; ++i) {
        expect_port(run_until(vcpu, [&] { vcpu.nmi(); }), 0x40);
    }
}

TEST_P(IrqchipTest, StatesOfAVcpuAreKeptAndObeyed)
{
    small().place(SmallVm::code_at, {0xe6, 0x10, 0xf4});
    Vcpu vcpu = small().vcpu();
    for (const x86::MpState state :
         {x86::MpState::Uninitialized, x86::MpState::InitReceived, x86::MpState::Halted}) {
        vcpu.set_mp_state(state).value();
        EXPECT_EQ(vcpu.mp_state(), state);
        vcpu.kicker().kick();
        EXPECT_TRUE(vcpu.run().value().is<Interrupted>());
    }
    vcpu.set_mp_state(x86::MpState::Runnable).value();
    expect_port(vcpu.run().value(), 0x10);
    EXPECT_EQ(vcpu.set_mp_state(static_cast<x86::MpState>(99)).error().errno_value(), EINVAL);
}

TEST_P(IrqchipTest, RegistersOfAVcpuThatWaitsForASipiAreKept)
{
    SmallVm& vm = small();
    Vcpu first = vm.vcpu(0);
    Vcpu second = vm.vcpu(1);
    EXPECT_EQ(second.mp_state(), x86::MpState::Uninitialized);
    x86::Regs regs{.rax = 0x1234, .rsp = 0x7000, .rip = 0x1800, .rflags = 2};
    second.set_regs(regs);
    second.kicker().kick();
    EXPECT_TRUE(second.run().value().is<Interrupted>());
    EXPECT_EQ(second.regs(), regs);
    vm.place(0x1800, {0xe6, 0x11, 0xf4});
    second.set_mp_state(x86::MpState::Runnable).value();
    expect_port(second.run().value(), 0x11);
    EXPECT_EQ(second.regs().rax, 0x1234U);
}

TEST_P(IrqchipTest, ThePriorityIsCr8)
{
    Vcpu vcpu = small().vcpu();
    LapicState lapic = vcpu.lapic().value();
    lapic.set(LapicRegister::Tpr, 0x50);
    vcpu.set_lapic(lapic).value();
    EXPECT_EQ(vcpu.sregs().cr8, 5U);
    vcpu.set_cr8(7).value();
    EXPECT_EQ(vcpu.lapic().value().get(LapicRegister::Tpr), 0x70U);
    x86::Sregs sregs = vcpu.sregs();
    sregs.cr8 = 9;
    vcpu.set_sregs(sregs).value();
    EXPECT_EQ(vcpu.run_state().cr8, 9U);
    EXPECT_EQ(vcpu.lapic().value().get(LapicRegister::Tpr), 0x90U);
}

TEST_P(IrqchipTest, AnX2ApicsIdHas32Bits)
{
    Vcpu first = small().vcpu(0);
    Vcpu other = small().vcpu(3);
    const std::uint64_t base = other.sregs().apic_base;
    EXPECT_EQ(other.lapic().value().get(LapicRegister::Id), 3U << 24U);
    other.set_msr(0x1b, base | 0x400U).value();
    EXPECT_EQ(other.sregs().apic_base, base | 0x400U);
    EXPECT_EQ(other.msr(0x1b).value(), base | 0x400U);
    EXPECT_EQ(other.lapic().value().get(LapicRegister::Id), 3U);
    EXPECT_EQ(other.msr(0x802).value(), 3U);
    other.set_msr(0x808, 0x40).value();
    EXPECT_EQ(other.run_state().cr8, 4U);
    const LapicState lapic = other.lapic().value();
    other.set_lapic(lapic).value();
    EXPECT_EQ(other.lapic().value().get(LapicRegister::Id), 3U);
    EXPECT_FALSE(other.set_msr(0x1b, base | 0x200U)) << "a reserved bit";
}

TEST_P(IrqchipTest, AnNmiThatIsPendingIsState)
{
    Vcpu vcpu = sleeper();
    small().place(2 * 4, {0x00, 0x28, 0, 0});
    small().place(0x2800, {0xe6, 0x40, 0xcf});  // out; iret
    x86::VcpuEvents events = vcpu.events();
    EXPECT_EQ(events.nmi.pending, 0U);
    events.nmi.pending = 1;
    vcpu.set_events(events).value();
    EXPECT_EQ(vcpu.events().nmi.pending, 1U);
    // Taken back.
    events.nmi.pending = 0;
    vcpu.set_events(events).value();
    EXPECT_EQ(vcpu.events().nmi.pending, 0U);
    vcpu.nmi();
    EXPECT_EQ(vcpu.events().nmi.pending, 1U);
    const x86::Regs regs = vcpu.regs();
    vcpu.set_regs(regs);
    expect_port(vcpu.run().value(), 0x40);
    EXPECT_EQ(vcpu.events().nmi.pending, 0U);
    EXPECT_EQ(vcpu.events().nmi.masked, 1U) << "until IRET";
}

TEST_P(IrqchipTest, ADeadlineWakesAVcpu)
{
    Vcpu vcpu = sleeper();
    LapicState lapic = vcpu.lapic().value();
    constexpr std::uint32_t deadline_mode = 2U << 17U;
    lapic.set(LapicRegister::LvtTimer, deadline_mode | 0x53U);
    vcpu.set_lapic(lapic).value();
    vcpu.set_msr(0x10, 1'000'000).value();
    constexpr std::uint64_t far = std::uint64_t{1} << 60U;
    vcpu.set_msr(0x6e0, far).value();
    EXPECT_EQ(vcpu.msr(0x6e0).value(), far);
    const std::uint64_t deadline = vcpu.msr(0x10).value() + small().kvm().tsc_khz();
    vcpu.set_msr(0x6e0, deadline).value();
    expect_port(vcpu.run().value(), 0x33);
    if (!is_emulated_kvm()) {  // Whose guests have the host's TSC.
        EXPECT_GE(vcpu.msr(0x10).value(), deadline);
    }
    EXPECT_EQ(vcpu.msr(0x6e0).value(), 0U);
}

TEST(IrqchipPlaces, TheKernelsIsThereOnTheKernelsKvmAlone)
{
    for (const Engine engine : {Engine::Auto, Engine::Soft, Engine::Svm, Engine::Vmx}) {
        const auto kvm = Kvm::open({.engine = engine, .irqchip = IrqchipPlace::Kernel});
        ASSERT_FALSE(kvm);
        EXPECT_EQ(kvm.error().errno_value(), EINVAL);
        EXPECT_NE(kvm.error().message().find("engine kvm"), std::string::npos);
    }
    EXPECT_FALSE(Kvm::open(
        {.engine = Engine::Kvm, .lockstep = Engine::Soft, .irqchip = IrqchipPlace::Kernel}));
    for (const IrqchipPlace place : {IrqchipPlace::Library, IrqchipPlace::Kernel}) {
        EXPECT_EQ(irqchip_place_from_name(name(place)), place);
    }
    EXPECT_FALSE(irqchip_place_from_name("split"));
}

}  // namespace
}  // namespace vmm
