// SPDX-License-Identifier: Apache-2.0

// System-management mode through the public API.

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>

#include "small_vm.hpp"

namespace vmm {
namespace {

using test::SmallVm;

constexpr std::uint64_t smbase = 0x30000;  // As RESET leaves it.
constexpr std::size_t smram_size = 0x10000;

class Smm : public test::EveryEngine {
protected:
    void SetUp() override
    {
        EveryEngine::SetUp();
        if (!IsSkipped() &&
            Kvm::open({engine()}).value().check_extension(Capability::X86Smm) == 0) {
            GTEST_SKIP() << "the engine has no system-management mode";
        }
    }
};

/// A VM whose vCPUs see 64 KiB at SMBASE in system-management mode, and nothing else.
class SmmVm {
public:
    explicit SmmVm(Engine engine, SmallVm::Irqchip irqchip = SmallVm::Irqchip::None)
        : small{engine, irqchip},
          smram_{static_cast<std::byte*>(std::aligned_alloc(4096, smram_size)), &std::free}
    {
        std::fill_n(smram_.get(), smram_size, std::byte{});
        small.vm()
            .set_user_memory_region({.slot = 0,
                                     .address_space = 1,
                                     .guest_phys_addr = Gpa{smbase},
                                     .size_bytes = smram_size,
                                     .host = smram_.get()})
            .value();
    }

    void handler(std::initializer_list<unsigned> code)
    {
        std::size_t at = 0x8000;
        for (const unsigned byte : code) {
            smram_.get()[at++] = static_cast<std::byte>(byte);
        }
    }
    template <typename T>
    [[nodiscard]] T saved(std::size_t at) const
    {
        T value{};
        std::memcpy(&value, smram_.get() + at, sizeof value);
        return value;
    }
    template <typename T>
    void save(std::size_t at, T value)
    {
        std::memcpy(smram_.get() + at, &value, sizeof value);
    }

    SmallVm small;

private:
    std::unique_ptr<std::byte, decltype(&std::free)> smram_;
};

constexpr auto handler = {0xb0U, 0xfeU, 0xe6U,
                          0x0eU, 0x0fU, 0xaaU};  // mov $0xfe, %al; out %al, $14; rsm

/// The next exit is a write to this port.
void expect_write(Vcpu& vcpu, unsigned port, unsigned value)
{
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
    EXPECT_EQ(exit.get_if<PortWrite>()->port.value(), port);
    EXPECT_EQ(std::to_integer<unsigned>(exit.get_if<PortWrite>()->data[0]), value);
}

TEST_P(Smm, AnSmiRunsTheHandlerAndRsmGoesOnWhereItCame)
{
    SmmVm vm{engine()};
    vm.handler(handler);
    vm.small.place(0x1000, {0xe6, 0x10, 0xe6, 0x11, 0xf4});  // out %al, $16; out %al, $17; hlt
    Vcpu vcpu = vm.small.vcpu();
    x86::Regs regs = vcpu.regs();
    regs.rax = 0x1234'5678'9abc'de42;
    regs.r15 = 15;
    regs.rflags |= x86::Rflags::IF.mask;
    vcpu.set_regs(regs);
    expect_write(vcpu, 0x10, 0x42);
    const x86::Sregs before = vcpu.sregs();
    EXPECT_FALSE(vcpu.run_state().smm);
    ASSERT_TRUE(vcpu.smi());
    EXPECT_EQ(vcpu.events().smi.pending, 1);
    expect_write(vcpu, 0x0e, 0xfe);
    EXPECT_TRUE(vcpu.run_state().smm);
    EXPECT_EQ(vcpu.events().smi.smm, 1);
    EXPECT_EQ(vcpu.events().smi.pending, 0);
    EXPECT_EQ(vcpu.events().nmi.masked, 1);
    EXPECT_EQ(vcpu.sregs().cs.base, smbase);
    EXPECT_EQ(vcpu.sregs().cs.selector, smbase >> 4U);
    EXPECT_EQ(vcpu.sregs().ds.limit, 0xffff'ffffU);
    EXPECT_EQ(vcpu.sregs().idt.limit, 0U);
    EXPECT_FALSE(vcpu.run_state().if_flag);
    EXPECT_EQ(vm.saved<std::uint64_t>(0xff78), 0x1002U) << "RIP";
    EXPECT_EQ(vm.saved<std::uint64_t>(0xfff8), 0x1234'5678'9abc'de42U) << "RAX";
    EXPECT_EQ(vm.saved<std::uint64_t>(0xff80), 15U) << "R15";
    EXPECT_EQ(vm.saved<std::uint32_t>(0xfefc), 0x20064U) << "revision";
    EXPECT_EQ(vm.saved<std::uint32_t>(0xff00), smbase);
    expect_write(vcpu, 0x11, 0x42);
    EXPECT_FALSE(vcpu.run_state().smm);
    EXPECT_EQ(vcpu.events().nmi.masked, 0);
    EXPECT_TRUE(vcpu.run_state().if_flag);
    EXPECT_EQ(vcpu.regs().rax, 0x1234'5678'9abc'de42U);
    EXPECT_EQ(vcpu.regs().r15, 15U);
    const x86::Sregs after = vcpu.sregs();
    EXPECT_EQ(after.cs, before.cs);
    EXPECT_EQ(after.ds, before.ds);
    EXPECT_EQ(after.tr, before.tr);
    EXPECT_EQ(after.idt, before.idt);
    EXPECT_EQ(after.cr0, before.cr0);
    EXPECT_EQ(vcpu.msr(0x34).value(), 1U) << "SMIs counted";
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
}

TEST_P(Smm, TheHandlersMemoryIsAnotherThanTheGuests)
{
    SmmVm vm{engine()};
    vm.handler(handler);
    // The guest has executed code at the handler's address, and does so again behind it.
    vm.small.place(0x1000, {0x9a, 0x00, 0x80, 0x00, 0x30, 0xe6, 0x10, 0xeb,
                            0xf7});                       // 1: lcall $0x3000, $0x8000; out; jmp 1b
    vm.small.place(smbase + 0x8000, {0xb0, 0x07, 0xcb});  // mov $7, %al; lret
    Vcpu vcpu = vm.small.vcpu();
    for (int round = 0; round < 3; ++round) {
        expect_write(vcpu, 0x10, 7);
        ASSERT_TRUE(vcpu.smi());
        expect_write(vcpu, 0x0e, 0xfe);
    }
    EXPECT_EQ(vm.small.byte_at(smbase + 0xfefc), 0U) << "the state was saved elsewhere";
}

TEST_P(Smm, AnSmiDuringTheHandlerWaitsForRsm)
{
    SmmVm vm{engine()};
    vm.handler(handler);
    vm.small.place(0x1000, {0xe6, 0x10, 0xe6, 0x11});
    Vcpu vcpu = vm.small.vcpu();
    ASSERT_TRUE(vcpu.smi());
    expect_write(vcpu, 0x0e, 0xfe);
    ASSERT_TRUE(vcpu.smi());
    ASSERT_TRUE(vcpu.smi());
    EXPECT_EQ(vcpu.events().smi.pending, 1);
    expect_write(vcpu, 0x0e, 0xfe);
    EXPECT_EQ(vcpu.events().smi.pending, 0);
    expect_write(vcpu, 0x10, 0);
    EXPECT_EQ(vcpu.msr(0x34).value(), 2U) << "two of the three were one";
}

TEST_P(Smm, NmisWaitForRsm)
{
    SmmVm vm{engine()};
    vm.handler(handler);
    vm.small.place(0x1000, {0xe6, 0x10, 0xf4});
    vm.small.place(2 * 4, {0x00, 0x20, 0x00, 0x00});  // The NMI's vector: 0:0x2000.
    vm.small.place(0x2000, {0xe6, 0x02, 0xcf});       // out %al, $2; iret
    Vcpu vcpu = vm.small.vcpu();
    ASSERT_TRUE(vcpu.smi());
    expect_write(vcpu, 0x0e, 0xfe);
    vcpu.nmi();
    expect_write(vcpu, 0x02, 0);
    EXPECT_FALSE(vcpu.run_state().smm);
    expect_write(vcpu, 0x10, 0);
}

TEST_P(Smm, AnSmiWakesAHaltAndTheGuestGoesOnBehindIt)
{
    SmmVm vm{engine(), SmallVm::Irqchip::Full};
    vm.handler(handler);
    vm.small.place(0x1000, {0xe6, 0x10, 0xf4, 0xe6, 0x11});  // out %al, $16; hlt; out %al, $17
    Vcpu vcpu = vm.small.vcpu();
    expect_write(vcpu, 0x10, 0);
    std::thread sender{[&] {
        while (vcpu.statistics().counter("blocking") == 0) {
            std::this_thread::yield();
        }
        ASSERT_TRUE(vcpu.smi());
    }};
    expect_write(vcpu, 0x0e, 0xfe);
    sender.join();
    expect_write(vcpu, 0x11, 0);
}

TEST_P(Smm, TheHandlerMayMoveSmbase)
{
    SmmVm vm{engine()};
    // movl $0x38000, %cs:0xff00; rsm
    vm.handler({0x2e, 0x66, 0xc7, 0x06, 0x00, 0xff, 0x00, 0x80, 0x03, 0x00, 0x0f, 0xaa});
    vm.small.place(0x1000, {0xe6, 0x10, 0xf4});
    Vcpu vcpu = vm.small.vcpu();
    EXPECT_EQ(vcpu.msr(0x9e).value(), smbase);
    ASSERT_TRUE(vcpu.smi());
    expect_write(vcpu, 0x10, 0);
    EXPECT_EQ(vcpu.msr(0x9e).value(), 0x38000U);
    ASSERT_TRUE(vcpu.set_msr(0x9e, smbase));
    EXPECT_EQ(vcpu.msr(0x9e).value(), smbase);
}

TEST_P(Smm, StateThatNoCpuCanBeInIsAShutdown)
{
    SmmVm vm{engine()};
    vm.handler(handler);
    Vcpu vcpu = vm.small.vcpu();
    ASSERT_TRUE(vcpu.smi());
    expect_write(vcpu, 0x0e, 0xfe);
    vm.save(0xff58, std::uint64_t{0x8000'0000});  // CR0: paging without protection.
    ASSERT_TRUE(vcpu.run().value().is<Shutdown>());
}

TEST_P(Smm, RsmOutsideIsUndefined)
{
    SmmVm vm{engine()};
    vm.small.place(6 * 4, {0x00, 0x20, 0x00, 0x00});
    vm.small.place(0x2000, {0xe6, 0x06});
    vm.small.place(0x1000, {0x0f, 0xaa});
    Vcpu vcpu = vm.small.vcpu();
    expect_write(vcpu, 0x06, 0);
}

TEST_P(Smm, IsPartOfTheEvents)
{
    SmmVm vm{engine()};
    vm.handler(handler);
    vm.small.place(0x1000, {0xe6, 0x10, 0xf4});
    Vcpu vcpu = vm.small.vcpu();
    x86::VcpuEvents events = vcpu.events();
    events.smi.pending = 1;
    ASSERT_TRUE(vcpu.set_events(events));
    expect_write(vcpu, 0x0e, 0xfe);
    events = vcpu.events();
    ASSERT_TRUE(vcpu.set_events(events)) << "as it was";
    EXPECT_TRUE(vcpu.run_state().smm);
    expect_write(vcpu, 0x10, 0);
}

INSTANTIATE_TEST_SUITE_P(Engines, Smm, test::engines, test::engine_name);

class NoSmm : public test::EveryEngine {};

TEST_P(NoSmm, IsSaidWhereThereIsNone)
{
    SmallVm small{engine()};
    if (small.kvm().check_extension(Capability::X86Smm) != 0) {
        GTEST_SKIP() << "the engine has it";
    }
    Vcpu vcpu = small.vcpu();
    EXPECT_EQ(vcpu.smi().error().code(), std::errc::inappropriate_io_control_operation);
    x86::VcpuEvents events = vcpu.events();
    events.smi.smm = 1;
    EXPECT_EQ(vcpu.set_events(events).error().code(), std::errc::invalid_argument);
    EXPECT_FALSE(vcpu.msr(0x9e));
}

INSTANTIATE_TEST_SUITE_P(Engines, NoSmm, test::engines, test::engine_name);

}  // namespace
}  // namespace vmm
