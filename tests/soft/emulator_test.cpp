// SPDX-License-Identifier: Apache-2.0

#include <array>

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"
#include "x86/soft/emulator.hpp"

namespace vmm::x86::soft {
namespace {

using test::GuestHost;
using test::GuestRam;
using Reason = EngineExit::Reason;

/// An emulator about to execute what lies at `code` in real mode, with all segment bases 0.
class EmulatorTest : public testing::Test {
protected:
    static constexpr std::uint64_t code = 0x1000;

    EmulatorTest()
        : vm{create_emulator_vm(ram).value()},
          emulator{vm->create_emulator(host)},
          cpu{emulator->state()}
    {
        reset_state(cpu, false);
        cpu.cpuid = Cpuid{supported_cpuid(1'000'000)};
        cpu.seg[Cs].selector = 0;
        cpu.seg[Cs].base = 0;
        cpu.rip = code;
        cpu.gpr[Rsp] = 0x8000;
        emulator->state_changed();
    }

    void place(std::uint64_t at, std::initializer_list<unsigned> bytes)
    {
        for (const unsigned byte : bytes) {
            *ram.at(at++) = static_cast<std::byte>(byte);
        }
    }

    GuestRam ram{std::size_t{1} << 20U};
    GuestHost host;
    std::unique_ptr<EmulatorVm> vm;
    std::unique_ptr<Emulator> emulator;
    CpuState& cpu;
};

TEST_F(EmulatorTest, ExecutesOneInstruction)
{
    place(code, {0x40, 0x40, 0x40});  // inc %ax, three times
    EXPECT_EQ(emulator->step(), nullptr);
    EXPECT_EQ(cpu.gpr[Rax], 1U);
    EXPECT_EQ(cpu.rip, code + 1);
}

TEST_F(EmulatorTest, SeesCodeThatSomebodyElseHasWritten)
{
    place(code, {0x40});  // inc %ax
    ASSERT_EQ(emulator->step(), nullptr);
    place(code, {0x48});  // dec %ax, with no word to the emulator
    cpu.rip = code;
    emulator->state_changed();
    EXPECT_EQ(emulator->step(), nullptr);
    EXPECT_EQ(cpu.gpr[Rax], 0U);
}

TEST_F(EmulatorTest, LeavesForAnMmioReadAndCompletesIt)
{
    place(code, {0xa0, 0x00, 0x00});  // mov 0, %al
    cpu.seg[Ds].base = 0x10'0000;
    emulator->state_changed();
    const EngineExit* exit = emulator->step();
    ASSERT_NE(exit, nullptr);
    ASSERT_EQ(exit->reason, Reason::MmioRead);
    EXPECT_EQ(exit->gpa, 0x10'0000U);
    exit->data[0] = std::byte{0x5a};
    EXPECT_EQ(emulator->complete(), nullptr);
    EXPECT_EQ(cpu.gpr[Rax], 0x5aU);
    EXPECT_EQ(cpu.rip, code + 3);
    EXPECT_EQ(emulator->complete(), nullptr) << "nothing is left";
    EXPECT_EQ(cpu.rip, code + 3);
}

TEST_F(EmulatorTest, ShowsEachAccessOfAnInstructionInTurn)
{
    place(code, {0xa4});  // movsb
    cpu.seg[Ds].base = cpu.seg[Es].base = 0x10'0000;
    emulator->state_changed();
    const EngineExit* exit = emulator->step();
    ASSERT_NE(exit, nullptr);
    ASSERT_EQ(exit->reason, Reason::MmioRead);
    exit->data[0] = std::byte{0x77};
    exit = emulator->complete();
    ASSERT_NE(exit, nullptr);
    ASSERT_EQ(exit->reason, Reason::MmioWrite);
    EXPECT_EQ(exit->data[0], std::byte{0x77});
    EXPECT_EQ(emulator->complete(), nullptr);
    EXPECT_EQ(cpu.rip, code + 1);
}

TEST_F(EmulatorTest, AMoveThatIsAskedForIsExecuted)
{
    place(code, {0xa0, 0x00, 0x00});  // mov 0, %al
    cpu.seg[Ds].base = 0x10'0000;
    emulator->state_changed();
    const Emulator::MoveStep step = emulator->step_move();
    EXPECT_TRUE(step.is_move);
    EXPECT_FALSE(step.faulted);
    EXPECT_FALSE(step.repeats);
    ASSERT_NE(step.exit, nullptr);
    ASSERT_EQ(step.exit->reason, Reason::MmioRead);
    step.exit->data[0] = std::byte{0x5a};
    EXPECT_EQ(emulator->complete(), nullptr);
    EXPECT_EQ(cpu.gpr[Rax], 0x5aU);
    EXPECT_EQ(cpu.rip, code + 3);
}

TEST_F(EmulatorTest, WhatIsNoPlainMoveIsNotExecutedAsOne)
{
    for (const auto& bytes : {std::array{0x40, 0x90, 0x90},     // inc %ax
                              std::array{0x8e, 0xd0, 0x90},     // mov %ax, %ss
                              std::array{0x0f, 0x20, 0xc0},     // mov %cr0, %eax
                              std::array{0x0f, 0x10, 0x07}}) {  // movups (%bx), %xmm0
        place(code, {static_cast<unsigned>(bytes[0]), static_cast<unsigned>(bytes[1]),
                     static_cast<unsigned>(bytes[2])});
        const CpuState before = cpu;
        const Emulator::MoveStep step = emulator->step_move();
        EXPECT_FALSE(step.is_move);
        EXPECT_EQ(step.exit, nullptr);
        EXPECT_EQ(cpu.rip, before.rip);
        EXPECT_EQ(cpu.gpr[Rax], before.gpr[Rax]);
        EXPECT_EQ(cpu.seg[Ss].selector, before.seg[Ss].selector);
    }
}

TEST_F(EmulatorTest, AMoveSaysThatItHasFaulted)
{
    place(13 * 4, {0x00, 0x30, 0x00, 0x00});
    place(code, {0xa1, 0xff, 0xff});  // mov 0xffff, %ax: beyond the limit
    const Emulator::MoveStep step = emulator->step_move();
    EXPECT_TRUE(step.is_move);
    EXPECT_TRUE(step.faulted);
    EXPECT_EQ(step.exit, nullptr);
    EXPECT_EQ(cpu.rip, 0x3000U);
}

TEST_F(EmulatorTest, AMoveSaysThatItIsExecutedOnceMore)
{
    place(0xf'ffff, {0x12});
    place(code, {0xa1, 0x00, 0x00});  // mov 0, %ax: half of it in memory
    cpu.seg[Ds].base = 0xf'ffff;
    emulator->state_changed();
    const Emulator::MoveStep step = emulator->step_move();
    EXPECT_TRUE(step.is_move);
    EXPECT_TRUE(step.repeats);
    ASSERT_NE(step.exit, nullptr);
    ASSERT_EQ(step.exit->reason, Reason::MmioRead);
    step.exit->data[0] = std::byte{0x34};
    EXPECT_EQ(emulator->complete(), nullptr);
    EXPECT_EQ(cpu.gpr[Rax], 0x3412U);
}

TEST_F(EmulatorTest, DeliversWhatWaitsInsteadOfAnInstruction)
{
    place(0x30 * 4, {0x00, 0x20, 0x00, 0x00});  // The interrupt table: 0000:2000.
    cpu.inject = Event{EventKind::SoftwareInterrupt, 0x30, 2};
    EXPECT_EQ(emulator->step(), nullptr);
    EXPECT_EQ(cpu.rip, 0x2000U);
    EXPECT_FALSE(cpu.inject.has_value());
    EXPECT_EQ(*ram.at(0x8000 - 6), std::byte{0x02}) << "the return address is behind the INT";
}

TEST_F(EmulatorTest, DeliversTheFaultOfAnInstruction)
{
    place(6 * 4, {0x00, 0x30, 0x00, 0x00});
    place(code, {0x0f, 0x0b});  // ud2
    EXPECT_EQ(emulator->step(), nullptr);
    EXPECT_EQ(cpu.rip, 0x3000U);
}

TEST_F(EmulatorTest, SaysThatItCannotFetch)
{
    cpu.seg[Cs].base = 0x4000'0000;
    emulator->state_changed();
    const EngineExit* const exit = emulator->step();
    ASSERT_NE(exit, nullptr);
    EXPECT_EQ(exit->reason, Reason::InternalError);
}

TEST_F(EmulatorTest, HeedsNoRequestToLeave)
{
    place(code, {0x40});
    emulator->request_exit();
    EXPECT_EQ(emulator->step(), nullptr);
    EXPECT_EQ(cpu.gpr[Rax], 1U);
}

}  // namespace
}  // namespace vmm::x86::soft
