// SPDX-License-Identifier: Apache-2.0

/// @file
/// The run loop and the blocks, through the engine's interface.

#include <thread>

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"

namespace vmm::x86::soft::test {
namespace {

TEST(GuestBasic, LongModeAddsAndHalts)
{
    Guest guest;
    guest.long_mode();
    guest.reg(Rax) = 41;
    guest.load(Guest::code, {0x48, 0xff, 0xc0, 0xf4});  // inc rax; hlt
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 42U);
    EXPECT_EQ(guest.state().rip, Guest::code + 4);
}

TEST(GuestBasic, ProtectedModeLoops)
{
    Guest guest;
    guest.protected_mode();
    guest.reg(Rcx) = 1000;
    guest.reg(Rax) = 0;
    guest.load(Guest::code, {0x83, 0xc0, 0x03, 0x49, 0x75, 0xfa, 0xf4});  // add eax,3; dec ecx; jnz
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 3000U);
    EXPECT_EQ(guest.reg(Rcx), 0U);
}

TEST(GuestBasic, RealModeUsesSixteenBits)
{
    Guest guest;
    guest.real_mode();
    guest.reg(Rax) = 0x1'0000'ffff;
    // inc ax; mov [0x10], ax; push ax; pop bx; loop-free; hlt
    guest.load(Guest::code, {0x40, 0xc7, 0x06, 0x10, 0x00, 0x34, 0x12, 0x50, 0x5b, 0xf4});
    guest.reg(Rbx) = 0xffff'ffff;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 0x1'0000'0000U);
    EXPECT_EQ(guest.reg(Rbx), 0xffff'0000U);
    EXPECT_EQ(guest.get<std::uint16_t>(Guest::data + 0x10), 0x1234);
    EXPECT_EQ(guest.reg(Rsp), 0x8000U);
}

TEST(GuestBasic, CallAndReturnAcrossPages)
{
    Guest guest;
    guest.long_mode();
    guest.reg(Rcx) = 100;
    guest.reg(Rax) = 0;
    // l: call code+0x1100; dec ecx; jnz l; hlt
    guest.load(Guest::code, {0xe8, 0xfb, 0x10, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xf7, 0xf4});
    guest.load(Guest::code + 0x1100, {0xff, 0xc0, 0xc3});
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 100U);
    EXPECT_EQ(guest.reg(Rsp), Guest::stack);
}

TEST(GuestBasic, InstructionAcrossPagesIsExecuted)
{
    Guest guest;
    guest.long_mode();
    const std::uint64_t at = Guest::code + 0xffd;
    guest.load(at, {0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xf4});
    guest.state().rip = at;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 0x1122'3344'5566'7788U);

    // The second page changes: by the VMM, with notice.
    guest.put<std::uint8_t>(Guest::code + 0x1000, 0xaa);
    guest.vm->memory_written(Gpa{Guest::code + 0x1000}, 1);
    guest.state().rip = at;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 0x1122'3344'5566'aa88U);
}

TEST(GuestBasic, FetchFaultOnTheSecondPageHasItsAddress)
{
    Guest guest;
    guest.long_mode();
    const std::uint64_t at = Guest::code + 0xffd;
    guest.load(at, {0x48, 0xb8, 0x88});
    guest.put<std::uint64_t>(Guest::tables + 0x3000 + (Guest::code / 4096 + 1) * 8, 0);
    guest.state().rip = at;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 14);
    EXPECT_EQ(guest.state().cr2, Guest::code + 0x1000);
    EXPECT_EQ(guest.stack_word(1), at);
}

TEST(GuestBasic, FaultRestoresRipAndCommitsNothing)
{
    Guest guest;
    guest.long_mode();
    guest.reg(Rax) = 5;
    guest.reg(Rbx) = 0x8000'0000;  // not mapped
    // add eax, 1; add [rbx], eax
    guest.load(Guest::code, {0x83, 0xc0, 0x01, 0x01, 0x03, 0xf4});
    guest.state().rflags = 0x893;  // CF, AF, SF, OF: those of the first add replace them
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 14);
    EXPECT_EQ(guest.state().cr2, 0x8000'0000U);
    EXPECT_EQ(guest.reg(Rax), 6U);
    EXPECT_EQ(guest.stack_word(0), 2U);               // write, not present
    EXPECT_EQ(guest.stack_word(1), Guest::code + 3);  // RIP of the add
    EXPECT_EQ(guest.stack_word(3) & 0x8d5U, 4U);      // 6 has two bits set: PF only
}

TEST(GuestBasic, DivideErrorLeavesRegisters)
{
    Guest guest;
    guest.long_mode();
    guest.reg(Rax) = 7;
    guest.reg(Rdx) = 9;
    guest.reg(Rcx) = 9;
    guest.load(Guest::code, {0x48, 0xf7, 0xf1});  // div rcx: the quotient does not fit
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 0);
    EXPECT_EQ(guest.reg(Rax), 7U);
    EXPECT_EQ(guest.reg(Rdx), 9U);
    EXPECT_EQ(guest.stack_word(0), Guest::code);
}

TEST(GuestBasic, UndefinedInstructionsRaise)
{
    const std::vector<std::vector<std::uint8_t>> cases{
        {0x0f, 0x0b},                          // ud2
        {0x06},                                // push es
        {0xf0, 0x48, 0x89, 0xc0},              // lock mov
        {0xf0, 0x01, 0xc0},                    // lock add on a register
        {0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0},  // vaddps zmm: EVEX
        {0x0f, 0x0f, 0xc1, 0x9e},              // pfadd: 3DNow!
    };
    for (const auto& bytes : cases) {
        Guest guest;
        guest.long_mode();
        guest.load(Guest::code, bytes);
        EXPECT_EQ(guest.run(), Reason::Halt);
        EXPECT_EQ(guest.halted_by_vector(), 6) << "opcode " << unsigned{bytes[0]};
        EXPECT_EQ(guest.stack_word(0), Guest::code);
    }
}

TEST(GuestBasic, SixteenBytesAreAGeneralProtectionFault)
{
    Guest guest;
    guest.long_mode();
    std::vector<std::uint8_t> bytes(15, 0x66);
    bytes.push_back(0x90);
    guest.load(Guest::code, bytes);
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 13);
}

TEST(GuestBasic, CodeOutsideOfMemoryIsAnInternalError)
{
    Guest guest;
    guest.long_mode();
    guest.state().rip = Guest::mmio;
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::InternalError);
}

TEST(GuestBasic, FetchBeyondTheLimitOfCs)
{
    Guest guest;
    guest.protected_mode();
    guest.state().seg[Cs].limit = static_cast<std::uint32_t>(Guest::code + 2);
    guest.vcpu->state_changed();
    // inc eax; inc eax; then two bytes of which one lies beyond the limit
    guest.load(Guest::code, {0x40, 0x40, 0x31, 0xc0});
    guest.reg(Rax) = 0;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 13);
    EXPECT_EQ(guest.reg(Rax), 2U);
}

TEST(GuestBasic, ATargetKnownToALargerSegmentIsBeyondTheLimitOfASmallerOne)
{
    constexpr std::uint64_t small = 0x0041'9b00'0000'0011;  // To code + 0x11.
    Guest guest;
    guest.protected_mode();
    guest.state().seg[Cs].limit = 0xf'ffff;
    guest.vcpu->state_changed();
    guest.put<std::uint64_t>(Guest::gdt + 0x28, small);
    // jmp ecx: inc eax; ljmp (the small segment):code, which has seen the target.
    guest.load(Guest::code, {0xff, 0xe1});
    guest.reg(Rcx) = Guest::code + 0x12;
    guest.load(Guest::code + 0x12, {0x40, 0xea, 0, 0, 1, 0, 0x28, 0});
    guest.reg(Rax) = 0;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 13);
    EXPECT_EQ(guest.reg(Rax), 1U);
}

TEST(GuestBasic, TheSameOffsetIsOtherCodeInEachOfManySegments)
{
    constexpr unsigned segments = 300;  // More than the engine tells apart at once.
    Guest guest;
    guest.real_mode();
    const auto paragraph = [](unsigned i) { return static_cast<std::uint16_t>(0x1000 + i * 2); };
    unsigned at = 0;
    unsigned sum = 0;
    for (unsigned i = 0; i < segments; ++i) {
        // 0: mov ax, at; add bx, ax; dec cx; jnz 1f; hlt; 1: ljmp next:0
        const unsigned next = (at + 7) % segments;
        const std::uint16_t to = paragraph(next);
        guest.load(paragraph(at) * 16U,
                   {0xb8, static_cast<std::uint8_t>(at), static_cast<std::uint8_t>(at >> 8U), 0x01,
                    0xc3, 0x49, 0x75, 0x01, 0xf4, 0xea, 0, 0, static_cast<std::uint8_t>(to),
                    static_cast<std::uint8_t>(to >> 8U)});
        sum += at;
        at = next;
    }
    guest.reg(Rbx) = 0;
    guest.reg(Rcx) = 3 * segments;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rbx) & 0xffffU, (3 * sum) & 0xffffU);
}

TEST(GuestBasic, RipRelativeOperandBeyondThirtyOneBits)
{
    Guest guest;
    guest.long_mode();
    // Behind the instruction plus the largest displacement: not mapped, and #PF says where.
    guest.load(Guest::code, {0x48, 0x8b, 0x05, 0xff, 0xff, 0xff, 0x7f});
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 14);
    EXPECT_EQ(guest.state().cr2, Guest::code + 7 + 0x7fff'ffff);
}

TEST(GuestBasic, KickEndsATightLoop)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0xff, 0xc0, 0xeb, 0xfc});  // l: inc eax; jmp l
    guest.reg(Rax) = 0;
    std::thread kicker{[&] { guest.vcpu->request_exit(); }};
    EXPECT_EQ(guest.run(), Reason::Interrupted);
    kicker.join();
    // Sticky: asked for before, it ends the next one.
    guest.vcpu->request_exit();
    EXPECT_EQ(guest.run(), Reason::Interrupted);
}

TEST(GuestBasic, KickEndsAnEndlessFault)
{
    Guest guest;
    guest.long_mode();
    // The #UD handler returns to the instruction.
    guest.load(Guest::code, {0x0f, 0x0b});
    guest.load(Guest::idt_code + 12, {0x48, 0xcf});  // iretq
    std::thread kicker{[&] { guest.vcpu->request_exit(); }};
    EXPECT_EQ(guest.run(), Reason::Interrupted);
    kicker.join();
}

TEST(GuestBasic, TripleFaultShutsDown)
{
    Guest guest;
    guest.long_mode();
    guest.state().idt.limit = 0;
    guest.vcpu->state_changed();
    guest.load(Guest::code, {0x0f, 0x0b});
    EXPECT_EQ(guest.run(), Reason::Shutdown);
}

TEST(GuestBasic, InjectedInterruptIsDeliveredFirst)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0xff, 0xc0, 0xf4});
    guest.state().rflags |= 0x200;
    guest.state().inject = Event{EventKind::ExternalInterrupt, 0x31, 0, false, 0, 0};
    guest.reg(Rax) = 0;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 0x31);
    EXPECT_FALSE(guest.state().inject);
    EXPECT_EQ(guest.reg(Rax), 0U);
    EXPECT_EQ(guest.stack_word(0), Guest::code);
}

TEST(GuestBasic, InterruptWindowOpensBehindTheShadowOfSti)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0xfb, 0xff, 0xc0, 0xff, 0xc0, 0xf4});  // sti; inc eax; inc eax; hlt
    guest.reg(Rax) = 0;
    guest.state().irq_window_requested = true;
    EXPECT_EQ(guest.run(), Reason::IrqWindow);
    EXPECT_EQ(guest.reg(Rax), 1U);
    EXPECT_EQ(guest.state().rip, Guest::code + 3);
    EXPECT_FALSE(guest.state().sti_shadow);
    guest.state().irq_window_requested = false;
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rax), 2U);
}

TEST(GuestBasic, StiHltHaltsWithInterruptsOnAndNoShadow)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0xfb, 0xf4});
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_TRUE((guest.state().rflags & 0x200U) != 0);
    EXPECT_FALSE(guest.state().sti_shadow);
}

TEST(GuestBasic, TrapFlagTrapsBehindEachInstruction)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0xff, 0xc0, 0xff, 0xc0, 0xf4});
    guest.reg(Rax) = 0;
    guest.state().rflags |= 0x100;
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 1);
    EXPECT_EQ(guest.reg(Rax), 1U);
    EXPECT_EQ(guest.stack_word(0), Guest::code + 2);
    EXPECT_TRUE((guest.state().dr6 & 0x4000U) != 0);
}

TEST(GuestBasic, InstructionBreakpointComesOnce)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0xff, 0xc0, 0xff, 0xc0, 0xf4});
    guest.load(Guest::idt_code + 2, {0x48, 0xcf});  // #DB: iretq, with RF in the image
    guest.reg(Rax) = 0;
    guest.state().dr[0] = Guest::code + 2;
    guest.state().dr7 = 0x401;
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), -1);
    EXPECT_EQ(guest.reg(Rax), 2U);
    EXPECT_TRUE((guest.state().dr6 & 1U) != 0);
    EXPECT_TRUE((guest.state().rflags & 0x10000U) == 0);
}

TEST(GuestBasic, DataBreakpointTrapsBehindTheInstruction)
{
    Guest guest;
    guest.long_mode();
    guest.load(Guest::code, {0x89, 0x03, 0xff, 0xc0, 0xf4});  // mov [rbx], eax; inc eax
    guest.reg(Rax) = 7;
    guest.reg(Rbx) = Guest::data;
    guest.state().dr[1] = Guest::data;
    guest.state().dr7 = 0x400 | (1U << 2U) | (1U << 20U) | (3U << 22U);  // 4 bytes, writes
    guest.vcpu->state_changed();
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 1);
    EXPECT_EQ(guest.get<std::uint32_t>(Guest::data), 7U);
    EXPECT_EQ(guest.reg(Rax), 7U);
    EXPECT_EQ(guest.stack_word(0), Guest::code + 2);
    EXPECT_EQ(guest.state().dr6 & 0xfU, 2U);
}

}  // namespace
}  // namespace vmm::x86::soft::test
