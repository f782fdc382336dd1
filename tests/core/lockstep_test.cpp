// SPDX-License-Identifier: Apache-2.0

// Two engines in lockstep: alike, and different on purpose.

#include <string>

#include <gtest/gtest.h>

#include "core/probe_guest.hpp"
#include "core/small_vm.hpp"
#include "x86/lockstep/compare.hpp"

namespace vmm {
namespace {

using test::SmallVm;

/// `soft` leads; what follows is the parameter.
class Lockstep : public testing::TestWithParam<Engine> {
protected:
    void SetUp() override
    {
        if (const auto kvm = Kvm::open({GetParam()}); !kvm) {
            GTEST_SKIP() << kvm.error().message();
        }
    }
    static KvmOptions options() { return {.engine = Engine::Soft, .lockstep = GetParam()}; }
};
INSTANTIATE_TEST_SUITE_P(Followers, Lockstep, test::engines, test::engine_name);

TEST_P(Lockstep, AGuestRunsToItsEndWithEachAccessAnsweredOnce)
{
    SmallVm small{options()};
    // in $0x10, %al; mov %al, 0x2000; out %al, $0x11; cpuid; hlt
    small.place(SmallVm::code_at,
                {0xe4, 0x10, 0xa2, 0x00, 0x20, 0xe6, 0x11, 0x31, 0xc0, 0x0f, 0xa2, 0xf4});
    Vcpu vcpu = small.vcpu();
    Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortRead>());
    exit.get_if<PortRead>()->data[0] = std::byte{0x42};
    exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>());
    EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{0x42});
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    EXPECT_EQ(small.byte_at(0x2000), 0x42U);
}

TEST_P(Lockstep, AnInjectedInterruptGoesToBoth)
{
    if (test::is_emulated_kvm(GetParam())) {
        GTEST_SKIP() << "this KVM opens no interrupt window before a HLT";
    }
    SmallVm small{options()};
    small.place(0x30 * 4, {0x00, 0x20, 0, 0});
    small.place(0x2000, {0xb0, 0x77, 0xe6, 0x80, 0xcf});  // mov $0x77, %al; out; iret
    small.place(SmallVm::code_at, {0xfb, 0xe6, 0x10, 0x90, 0xf4});
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    ASSERT_TRUE(vcpu.interrupt(0x30).has_value());
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>());
    EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{0x77});
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST_P(Lockstep, MemoryThatOnlyOneSeesIsADifferenceWithItsCode)
{
    SmallVm small{options()};
    // out %al, $0x10; mov 0x3000, %al; out %al, $0x11; hlt
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xa0, 0x00, 0x30, 0xe6, 0x11, 0xf4});
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    small.memory()[0x3000] = std::byte{1};  // Behind the back of the copy.
    Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<Difference>()) << exit.name();
    const std::string report{exit.get_if<Difference>()->report};
    EXPECT_NE(report.find("0x3000"), std::string::npos) << report;
    EXPECT_NE(report.find("rip 000000000000100"), std::string::npos) << report;
    EXPECT_NE(report.find("mov al, "), std::string::npos) << report;
    EXPECT_TRUE(vcpu.run()->is<Difference>());
}

TEST_P(Lockstep, AKickComesBackAndWhatIsSetThenGoesToBoth)
{
    SmallVm small{options()};
    small.place(SmallVm::code_at, {0xf4});
    Vcpu vcpu = small.vcpu();
    vcpu.kicker().kick();
    EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    x86::Regs regs = vcpu.regs();
    regs.rbx = 7;
    vcpu.set_regs(regs);
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    EXPECT_EQ(vcpu.regs().rbx, 7U);
}

TEST_P(Lockstep, ASecondVcpuIsRefused)
{
    SmallVm small{options()};
    const Vcpu vcpu = small.vcpu();
    EXPECT_EQ(small.vm().create_vcpu(1).error().errno_value(), EOPNOTSUPP);
}

/// Real, protected and long mode, with a loop that becomes hot.
TEST(LockstepModes, TranslatorAndInterpreterAgree)
{
    for (const SoftMode mode : {SoftMode::Translator, SoftMode::Stress}) {
        SmallVm small{KvmOptions{.engine = Engine::Soft,
                                 .lockstep = Engine::Soft,
                                 .soft_mode = mode,
                                 .lockstep_soft_mode = SoftMode::Interpreter}};
        core::place_probe_guest(small.memory());
        Vcpu vcpu = small.vcpu();
        vcpu.set_regs({.rip = core::probe_guest_entry, .rflags = 2});
        std::string said;
        Exit exit = vcpu.run().value();
        for (; exit.is<PortWrite>(); exit = vcpu.run().value()) {
            said.push_back(std::to_integer<char>(exit.get_if<PortWrite>()->data[0]));
        }
        EXPECT_TRUE(exit.is<Halt>()) << exit.name();
        EXPECT_EQ(said, "RPLE");
    }
}

TEST(LockstepCompare, ChangedFieldsAreNamedAndHiddenOnesAreNot)
{
    x86::CpuState a;
    x86::CpuState b = a;
    EXPECT_EQ(x86::lockstep::differences(a, b), "");
    b.cr2 = 5;
    b.seg[x86::Ds].g = 1;
    const std::string found = x86::lockstep::differences(a, b);
    EXPECT_NE(found.find("cr2"), std::string::npos);
    EXPECT_EQ(found.find("ds"), std::string::npos);
}

}  // namespace
}  // namespace vmm
