// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <initializer_list>

#include <gtest/gtest.h>

#include "core/small_vm.hpp"
#include "machine.hpp"
#include "vmm/vcpu.hpp"

namespace vmm {
namespace {

using test::SmallVm;

constexpr std::uint64_t at = SmallVm::code_at;
constexpr std::uint64_t dr6_reset = 0xffff'0ff0;
constexpr std::uint64_t dr6_step = 1U << 14U;

/// Guests below a debugger, in real mode.  The judges are KVM on VMX (`tests/hardware.sh vmx`) and
/// a /dev/kvm without hardware, each where the other is at fault: Bochs adds or loses a step behind
/// a port access and behind registers that were written; the emulator of the latter knows no INT3
/// and no watchpoints.  QEMU's SVM intercepts none of it.
class GuestDebugTest : public test::EveryEngine {
protected:
    void SetUp() override
    {
        EveryEngine::SetUp();
        if (!IsSkipped() && engine() == Engine::Kvm && test::is_tcg_machine()) {
            GTEST_SKIP() << "QEMU's SVM does not intercept what a debugger needs";
        }
    }

    /// The run must end with `Debug`.
    static Debug expect_debug(Vcpu& vcpu)
    {
        const Exit exit = vcpu.run().value();
        EXPECT_TRUE(exit.is<Debug>()) << exit.name();
        return exit.is<Debug>() ? *exit.get_if<Debug>() : Debug{};
    }

    /// Runs the `out %al, $0x10` that the code begins with: steps begin on a page that the engine
    /// has.  (Bochs' VMX makes a step of one that is not.)
    static void begin(Vcpu& vcpu)
    {
        const Exit exit = vcpu.run().value();
        ASSERT_TRUE(exit.is<PortWrite>());
        exit.complete();
    }

    /// Vector `number` goes to code at 0x2000 that says so on port 0x20, and returns.
    static void handle(SmallVm& small, unsigned number)
    {
        small.place(number * 4U, {0x00, 0x20, 0x00, 0x00});
        small.place(0x2000, {0xe6, 0x20, 0xcf});  // out %al, $0x20; iret
    }
};
INSTANTIATE_TEST_SUITE_P(Engines, GuestDebugTest, test::engines, test::engine_name);

TEST_P(GuestDebugTest, AStepIsOneInstruction)
{
    SmallVm small{engine()};
    // out; mov $5, %al; add $2, %al; jmp +1; hlt; inc %ax; hlt
    small.place(at, {0xe6, 0x10, 0xb0, 0x05, 0x04, 0x02, 0xeb, 0x01, 0xf4, 0x40, 0xf4});
    Vcpu vcpu = small.vcpu();
    begin(vcpu);
    ASSERT_TRUE(vcpu.set_guest_debug({.single_step = true}));
    for (const std::uint64_t next : {at + 4U, at + 6U, at + 9U, at + 10U}) {
        const Debug debug = expect_debug(vcpu);
        EXPECT_EQ(debug.exception, 1U);
        EXPECT_EQ(debug.pc.value(), next);
        EXPECT_EQ(debug.dr6, dr6_reset | dr6_step);
        EXPECT_EQ(vcpu.regs().rip, next);
        EXPECT_EQ(vcpu.regs().rflags & 0x100U, 0U) << "TF is the debugger's";
    }
    EXPECT_EQ(vcpu.regs().rax & 0xffU, 8U);
    EXPECT_EQ(vcpu.debug_regs().dr6, dr6_reset) << "the guest's own";
    ASSERT_TRUE(vcpu.set_guest_debug({}));
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST_P(GuestDebugTest, StepsGoOnBehindRegistersThatTheDebuggerWrites)
{
    SmallVm small{engine()};
    small.place(at, {0xe6, 0x10, 0x90, 0x90, 0xf4});
    small.place(at + 0x100U, {0x40, 0x40, 0x40, 0xf4});  // inc %ax …
    Vcpu vcpu = small.vcpu();
    begin(vcpu);
    ASSERT_TRUE(vcpu.set_guest_debug({.single_step = true}));
    EXPECT_EQ(expect_debug(vcpu).pc.value(), at + 3U);
    x86::Regs regs = vcpu.regs();
    regs.rip = at + 0x100U;
    regs.rax = 7;
    vcpu.set_regs(regs);
    EXPECT_EQ(expect_debug(vcpu).pc.value(), at + 0x101U);
    EXPECT_EQ(expect_debug(vcpu).pc.value(), at + 0x102U);
    EXPECT_EQ(vcpu.regs().rax, 9U);
}

TEST_P(GuestDebugTest, AGuestThatLooksForTfWhileItIsSteppedFindsNone)
{
    SmallVm small{engine()};
    small.place(at, {0xe6, 0x10, 0x9c, 0x58, 0xf4});  // out; pushf; pop %ax; hlt
    Vcpu vcpu = small.vcpu();
    begin(vcpu);
    ASSERT_TRUE(vcpu.set_guest_debug({.single_step = true}));
    for (const std::uint64_t next : {at + 3U, at + 4U}) {
        EXPECT_EQ(expect_debug(vcpu).pc.value(), next);
    }
    EXPECT_EQ(vcpu.regs().rax & 0x100U, 0U);
}

TEST_P(GuestDebugTest, AStepOverAPortAccessComesAfterItsExit)
{
    SmallVm small{engine()};
    small.place(at, {0xe6, 0x10, 0xe4, 0x10, 0x40, 0xf4});  // out; in $0x10, %al; inc %ax; hlt
    Vcpu vcpu = small.vcpu();
    begin(vcpu);
    ASSERT_TRUE(vcpu.set_guest_debug({.single_step = true}));
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortRead>());
    exit.get_if<PortRead>()->data[0] = std::byte{0x40};
    EXPECT_EQ(expect_debug(vcpu).pc.value(), at + 4U);
    EXPECT_EQ(vcpu.regs().rax & 0xffU, 0x40U);
    EXPECT_EQ(expect_debug(vcpu).pc.value(), at + 5U);
}

TEST_P(GuestDebugTest, ASoftwareBreakpointLeavesAtTheInstruction)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm has no such exit";
    }
    SmallVm small{engine()};
    small.place(at, {0x90, 0xcc, 0x40, 0xf4});  // nop; int3; inc %ax; hlt
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_guest_debug({.software_breakpoints = true}));
    for (int again = 0; again < 2; ++again) {
        const Debug debug = expect_debug(vcpu);
        EXPECT_EQ(debug.exception, 3U);
        EXPECT_EQ(debug.pc.value(), at + 1U);
        EXPECT_EQ(vcpu.regs().rip, at + 1U);
    }
    // As debuggers do: the instruction that was there.
    ASSERT_TRUE(small.vm().memory().write(Gpa{at + 1U}, std::array{std::byte{0x90}}));
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    EXPECT_EQ(vcpu.regs().rax & 0xffffU, 1U);
}

TEST_P(GuestDebugTest, WithoutADebuggerInt3IsTheGuests)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm has no such exit";
    }
    SmallVm small{engine()};
    small.place(at, {0xcc, 0xf4});
    handle(small, 3);
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_guest_debug({.software_breakpoints = true}));
    EXPECT_EQ(expect_debug(vcpu).exception, 3U);
    ASSERT_TRUE(vcpu.set_guest_debug({}));
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
    EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{0x20});
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST_P(GuestDebugTest, ABreakpointOnAnInstruction)
{
    SmallVm small{engine()};
    small.place(at, {0x40, 0x40, 0x40, 0xf4});
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(
        vcpu.set_guest_debug({.hardware_breakpoints = true, .db = {0, at + 2U, 0, 0}, .dr7 = 0x4}));
    const Debug debug = expect_debug(vcpu);
    EXPECT_EQ(debug.exception, 1U);
    EXPECT_EQ(debug.pc.value(), at + 2U);
    EXPECT_EQ(debug.dr6 & 0xfU, 2U);
    EXPECT_EQ(vcpu.regs().rax & 0xffffU, 2U);
    // It stands there still, and so does another one on the same instruction.
    EXPECT_EQ(expect_debug(vcpu).dr6 & 0xfU, 2U);
    ASSERT_TRUE(vcpu.set_guest_debug(
        {.hardware_breakpoints = true, .db = {0, 0, 0, at + 2U}, .dr7 = 0x40}));
    EXPECT_EQ(expect_debug(vcpu).dr6 & 0xfU, 8U);
    EXPECT_EQ(vcpu.regs().rax & 0xffffU, 2U);
    ASSERT_TRUE(vcpu.set_guest_debug({}));
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST_P(GuestDebugTest, AWatchpointLeavesBehindTheWrite)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm has no such exit";
    }
    SmallVm small{engine()};
    // mov 0x3000, %al; mov %al, 0x3000; nop; hlt
    small.place(at, {0xa0, 0x00, 0x30, 0xa2, 0x00, 0x30, 0x90, 0xf4});
    Vcpu vcpu = small.vcpu();
    // Breakpoint 0: a write of one byte.
    ASSERT_TRUE(vcpu.set_guest_debug(
        {.hardware_breakpoints = true, .db = {0x3000, 0, 0, 0}, .dr7 = 0x1'0001}));
    const Debug debug = expect_debug(vcpu);
    EXPECT_EQ(debug.pc.value(), at + 6U);
    EXPECT_EQ(debug.dr6 & 0xfU, 1U);
    EXPECT_EQ(debug.dr7 & 0xff'ffffU & ~0x400U, 0x1'0001U);
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST_P(GuestDebugTest, TheGuestsDebugRegistersAreStillItsOwn)
{
    SmallVm small{engine()};
    // mov $0x1234, %ax; movzx %ax, %eax; mov %eax, %db2; mov %db2, %ebx; hlt
    small.place(
        at, {0xb8, 0x34, 0x12, 0x66, 0x0f, 0xb7, 0xc0, 0x0f, 0x23, 0xd0, 0x0f, 0x21, 0xd3, 0xf4});
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_guest_debug(
        {.hardware_breakpoints = true, .db = {0, 0, at + 13U, 0}, .dr7 = 0x10}));
    EXPECT_EQ(expect_debug(vcpu).pc.value(), at + 13U);
    EXPECT_EQ(vcpu.regs().rbx, 0x1234U);
    EXPECT_EQ(vcpu.debug_regs().db[2], 0x1234U);
    EXPECT_EQ(vcpu.debug_regs().dr7, 0x400U);
}

TEST_P(GuestDebugTest, GeneralDetectCatchesTheGuestsAccesses)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm has no such exit";
    }
    SmallVm small{engine()};
    small.place(at, {0x40, 0x0f, 0x21, 0xc3, 0xf4});  // inc %ax; mov %db0, %ebx; hlt
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_guest_debug({.hardware_breakpoints = true, .dr7 = 1U << 13U}));
    const Debug debug = expect_debug(vcpu);
    EXPECT_EQ(debug.exception, 1U);
    EXPECT_EQ(debug.pc.value(), at + 1U);
    EXPECT_EQ(debug.dr6, dr6_reset | 1U << 13U);
}

TEST_P(GuestDebugTest, WithoutADebuggerDebugExceptionsAreTheGuests)
{
    SmallVm small{engine()};
    small.place(at, {0x40, 0x40, 0xf4});
    handle(small, 1);
    Vcpu vcpu = small.vcpu();
    // INT3 is taken; that says nothing about #DB.
    ASSERT_TRUE(vcpu.set_guest_debug({.software_breakpoints = true}));
    ASSERT_TRUE(vcpu.set_debug_regs({.db = {at + 1U, 0, 0, 0}, .dr7 = 0x401}));
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
    EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{0x20});
    EXPECT_EQ(vcpu.debug_regs().dr6 & 0xfU, 1U);
}

TEST_P(GuestDebugTest, BlockedInterruptsWait)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm opens no window behind an access";
    }
    SmallVm small{engine()};
    small.place(at, {0xfb, 0x90, 0x90, 0xe6, 0x10, 0x90, 0xf4});  // sti; nop; nop; out; nop; hlt
    handle(small, 0x30);
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_guest_debug({.block_interrupts = true}));
    ASSERT_TRUE(vcpu.interrupt(0x30));
    Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
    EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{0x10});
    ASSERT_TRUE(vcpu.set_guest_debug({}));
    exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
    EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{0x20});
}

TEST_P(GuestDebugTest, ReservedBitsOfDr7AreRefused)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    const Result<void> refused =
        vcpu.set_guest_debug({.hardware_breakpoints = true, .dr7 = std::uint64_t{1} << 32U});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), std::errc::invalid_argument);
}

}  // namespace
}  // namespace vmm
