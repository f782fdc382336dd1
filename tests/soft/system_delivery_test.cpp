// SPDX-License-Identifier: Apache-2.0

/// Interrupts and exceptions through the IDT in every mode.

#include "soft/system_fixture.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint64_t handler = 0x1'2340;
constexpr unsigned vector = 0x30;
constexpr std::uint32_t gate_selector_error = vector * 8 + 2;

Event interrupt(unsigned number = vector)
{
    Event event{};
    event.kind = EventKind::ExternalInterrupt;
    event.vector = static_cast<std::uint8_t>(number);
    return event;
}

Event software(unsigned number = vector, EventKind kind = EventKind::SoftwareInterrupt)
{
    Event event{};
    event.kind = kind;
    event.vector = static_cast<std::uint8_t>(number);
    event.instruction_length = 2;
    return event;
}

Event exception(Vector number, std::optional<std::uint32_t> error = std::nullopt)
{
    Event event{};
    event.kind = EventKind::HardwareException;
    event.vector = static_cast<std::uint8_t>(number);
    event.has_error_code = error.has_value();
    event.error_code = error.value_or(0);
    return event;
}

Outcome once(SystemMachine& machine, const Event& event)
{
    return outcome_of(machine.cpu, [&] { deliver_once(machine.cpu, event); });
}

// --- Real mode

TEST(DeliverReal, PushesThreeWords)
{
    SystemMachine machine;
    machine.set_real();
    machine.memory.put<std::uint32_t>(vector * 4, 0x2000'1234);
    constexpr std::uint64_t flags = 0x202 | Rflags::TF.mask | Rflags::AC.mask | Rflags::CF.mask;
    machine.cpu.set_flags(flags);
    ASSERT_TRUE(deliver(machine.cpu, software()));
    EXPECT_EQ(machine.cpu.rip, 0x1234U);
    EXPECT_EQ(machine.cpu.seg[Cs].base, 0x2'0000U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0x7ffaU);
    EXPECT_EQ(machine.at<std::uint16_t>(0x7ffe), flags & 0xffffU);
    EXPECT_EQ(machine.at<std::uint16_t>(0x7ffc), 0x1000U);
    EXPECT_EQ(machine.at<std::uint16_t>(0x7ffa), 0x102U) << "behind the instruction";
    EXPECT_EQ(machine.cpu.flags(), 2U | Rflags::CF.mask);
}

TEST(DeliverReal, ExceptionsHaveNoErrorCode)
{
    SystemMachine machine;
    machine.set_real();
    ASSERT_TRUE(deliver(machine.cpu, exception(Vector::GP, 0x1234)));
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0x7ffaU);
    EXPECT_EQ(machine.at<std::uint16_t>(0x7ffa), 0x100U) << "at the instruction";
}

TEST(DeliverReal, LimitOfTheTable)
{
    SystemMachine machine;
    machine.set_real();
    machine.cpu.idt.limit = vector * 4 + 3;
    EXPECT_EQ(once(machine, software()), fine);
    machine.set_real();
    machine.cpu.idt.limit = vector * 4 + 2;
    EXPECT_EQ(once(machine, software()), fault(Vector::GP, gate_selector_error));
    // Neither #GP nor #DF have an entry: shutdown.
    machine.cpu.idt.limit = 3;
    EXPECT_FALSE(deliver(machine.cpu, software()));
}

TEST(DeliverReal, FirstDoubleFaultsThenShutsDown)
{
    SystemMachine machine;
    machine.set_real();
    machine.cpu.idt.limit = 8 * 4 + 3;  // #DF is the last that has an entry.
    machine.memory.put<std::uint32_t>(8 * 4, 0x2000'4321);
    ASSERT_TRUE(deliver(machine.cpu, exception(Vector::GP, 0)));
    EXPECT_EQ(machine.cpu.rip, 0x4321U) << "#GP while #GP is delivered";
}

// --- Protected mode

struct GateCase {
    unsigned level;
    std::uint64_t gate;
    Event event;
    Outcome outcome;
};

TEST(DeliverProtected, Checks)
{
    const Outcome gate_gp = fault(Vector::GP, gate_selector_error);
    const GateCase cases[] = {
        {0, gate_descriptor(code0, handler, 0x8e), software(), fine},
        {3, gate_descriptor(code0, handler, 0xee), software(), fine},
        {3, gate_descriptor(code0, handler, 0x8e), software(), gate_gp},
        {3, gate_descriptor(code0, handler, 0x8e), software(vector, EventKind::SoftwareException),
         gate_gp},
        {3, gate_descriptor(code0, handler, 0x8e),
         software(vector, EventKind::PrivilegedSoftwareException), fine},
        {3, gate_descriptor(code0, handler, 0x8e), interrupt(), fine},
        {3, gate_descriptor(code0, handler, 0xe7), software(), fine},
        {0, gate_descriptor(code0, handler, 0x0e), software(),
         fault(Vector::NP, gate_selector_error)},
        {0, gate_descriptor(code0, handler, 0x0e), interrupt(),
         fault(Vector::NP, gate_selector_error + 1)},
        {0, gate_descriptor(code0, handler, 0x8c), software(), gate_gp},
        {0, gate_descriptor(code0, handler, 0x9e), software(), gate_gp},
        {0, 0, interrupt(), fault(Vector::GP, gate_selector_error + 1)},
        {0, gate_descriptor(0, handler, 0x8e), software(), fault(Vector::GP)},
        {0, gate_descriptor(0, handler, 0x8e), interrupt(), fault(Vector::GP, 1)},
        {0, gate_descriptor(beyond, handler, 0x8e), interrupt(), fault(Vector::GP, beyond + 1)},
        {0, gate_descriptor(data0, handler, 0x8e), software(), fault(Vector::GP, data0)},
        {0, gate_descriptor(code3, handler, 0x8e), software(), fault(Vector::GP, code3 & 0xfffc)},
        {0, gate_descriptor(absent_code0, handler, 0x8e), interrupt(),
         fault(Vector::NP, absent_code0 + 1)},
        {0, gate_descriptor(small_code0, handler, 0x8e), interrupt(), fault(Vector::GP, 1)},
        {3, gate_descriptor(code3, handler, 0xee), software(), fine},
        {3, gate_descriptor(conforming0, handler, 0xee), software(), fine},
    };
    for (const GateCase& test : cases) {
        SystemMachine machine;
        machine.set_protected(test.level);
        machine.set_gate(vector, test.gate);
        EXPECT_EQ(once(machine, test.event), test.outcome)
            << std::hex << test.gate << " at CPL " << test.level;
    }
}

TEST(DeliverProtected, TableLimit)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.set_gate(vector, gate_descriptor(code0, handler, 0x8e));
    machine.cpu.idt.limit = vector * 8 + 6;
    EXPECT_EQ(once(machine, interrupt()), fault(Vector::GP, gate_selector_error + 1));
    machine.cpu.idt.limit = vector * 8 + 7;
    EXPECT_EQ(once(machine, interrupt()), fine);
}

TEST(DeliverProtected, SameLevelFrame)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.set_gate(14, gate_descriptor(code0, handler, 0x8f));
    machine.cpu.set_flags(0x202 | Rflags::NT.mask | Rflags::TF.mask);
    Fault page_fault{Vector::PF, true, 7, 0x1234'5678};
    ASSERT_TRUE(deliver_fault(machine.cpu, page_fault));
    EXPECT_EQ(machine.cpu.cr2, 0x1234'5678U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top - 16);
    EXPECT_EQ(machine.at<std::uint32_t>(stack_top - 4),
              0x202U | Rflags::NT.mask | Rflags::TF.mask | Rflags::RF.mask);
    EXPECT_EQ(machine.at<std::uint32_t>(stack_top - 8), code0);
    EXPECT_EQ(machine.at<std::uint32_t>(stack_top - 12), code_rip);
    EXPECT_EQ(machine.at<std::uint32_t>(stack_top - 16), 7U);
    EXPECT_EQ(machine.cpu.flags(), 0x202U) << "a trap gate leaves IF; TF, NT and RF go";
    EXPECT_EQ(machine.cpu.rip, handler);
}

TEST(DeliverProtected, InnerLevelFrameAndBack)
{
    SystemMachine machine;
    machine.set_protected(3);
    machine.set_gate(vector, gate_descriptor(code0, handler, 0x8e));
    machine.cpu.set_flags(0x202);
    ASSERT_TRUE(deliver(machine.cpu, interrupt()));
    EXPECT_EQ(machine.cpu.cpl, 0U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack0_top - 20);
    EXPECT_EQ(machine.cpu.seg[Ss].selector, data0);
    EXPECT_EQ(machine.cpu.seg[Cs].selector, code0);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 4), data3);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 8), stack_top);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 12), 0x202U);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 16), code3);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 20), code_rip);
    EXPECT_EQ(machine.cpu.flags(), 2U);
    interrupt_return(machine.cpu, 4, 0);
    EXPECT_EQ(machine.cpu.cpl, 3U);
    EXPECT_EQ(machine.cpu.rip, code_rip);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top);
    EXPECT_EQ(machine.cpu.flags(), 0x202U);
}

TEST(DeliverProtected, SixteenBitGateFromLevel3ToLevel1)
{
    SystemMachine machine;
    machine.set_protected(3);
    machine.set_gate(13, gate_descriptor(code1 & 0xfffc, 0xffff'2340, 0x86));
    ASSERT_TRUE(deliver(machine.cpu, exception(Vector::GP, 0x1'2345)));
    EXPECT_EQ(machine.cpu.cpl, 1U);
    EXPECT_EQ(machine.cpu.seg[Cs].selector, code1);
    EXPECT_EQ(machine.cpu.rip, 0x2340U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack1_top - 12);
    EXPECT_EQ(machine.at<std::uint16_t>(stack1_top - 12), 0x2345U);
}

TEST(DeliverProtected, StackOfTheInnerLevelIsChecked)
{
    const auto deliver_with = [](std::uint16_t stack, std::uint32_t pointer, std::uint32_t limit) {
        SystemMachine machine;
        machine.set_protected(3);
        machine.set_gate(vector, gate_descriptor(code0, handler, 0x8e));
        machine.memory.put<std::uint32_t>(tss_base + 4, pointer);
        machine.memory.put<std::uint16_t>(tss_base + 8, stack);
        machine.cpu.tr.limit = limit;
        return once(machine, interrupt());
    };
    EXPECT_EQ(deliver_with(data0, stack0_top, 0x67), fine);
    EXPECT_EQ(deliver_with(data0, stack0_top, 8), fault(Vector::TS, tss + 1));
    EXPECT_EQ(deliver_with(0, stack0_top, 0x67), fault(Vector::TS, 1));
    EXPECT_EQ(deliver_with(read_only0, stack0_top, 0x67), fault(Vector::TS, read_only0 + 1));
    EXPECT_EQ(deliver_with(data3, stack0_top, 0x67), fault(Vector::TS, (data3 & 0xfffc) + 1));
    EXPECT_EQ(deliver_with(absent_data0, stack0_top, 0x67), fault(Vector::SS, absent_data0 + 1));
    EXPECT_EQ(deliver_with(expand_down0, 0x1014, 0x67), fine);
    EXPECT_EQ(deliver_with(expand_down0, 0x1010, 0x67), fault(Vector::SS, expand_down0 + 1))
        << "the frame does not fit";
}

// --- Virtual-8086 mode

TEST(DeliverVirtual8086, ToTheMonitor)
{
    SystemMachine machine;
    machine.set_virtual_8086(0);
    machine.set_gate(vector, gate_descriptor(code0, handler, 0x8e));
    machine.cpu.seg[Gs] = virtual_8086_segment(0x1111);
    machine.cpu.seg[Fs] = virtual_8086_segment(0x2222);
    machine.cpu.seg[Ds] = virtual_8086_segment(0x3333);
    machine.cpu.seg[Es] = virtual_8086_segment(0x4444);
    ASSERT_TRUE(deliver(machine.cpu, interrupt()));
    EXPECT_EQ(machine.cpu.cpl, 0U);
    EXPECT_FALSE(machine.cpu.virtual_8086());
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack0_top - 36);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 4), 0x1111U);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 8), 0x2222U);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 12), 0x3333U);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 16), 0x4444U);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 20), 0x1000U);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 24), 0x8000U);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 28), Rflags::VM.mask | 2U);
    for (const SegmentIndex index : {Es, Ds, Fs, Gs}) {
        EXPECT_EQ(machine.cpu.seg[index].unusable, 1U);
    }
    interrupt_return(machine.cpu, 4, 0);
    EXPECT_TRUE(machine.cpu.virtual_8086());
    EXPECT_EQ(machine.cpu.seg[Gs].base, 0x1'1110U);
    EXPECT_EQ(machine.cpu.rip, 0x100U);
}

TEST(DeliverVirtual8086, HandlerMustBeAtLevel0)
{
    SystemMachine machine;
    machine.set_virtual_8086(3);
    machine.set_gate(vector, gate_descriptor(code1 & 0xfffc, handler, 0xee));
    EXPECT_EQ(once(machine, software()), fault(Vector::GP, code1 & 0xfffc));
    machine.set_gate(vector, gate_descriptor(conforming0, handler, 0xee));
    EXPECT_EQ(once(machine, software()), fault(Vector::GP, conforming0));
}

TEST(DeliverVirtual8086, SoftwareInterruptsNeedIoplThree)
{
    SystemMachine machine;
    machine.set_virtual_8086(0);
    machine.set_gate(vector, gate_descriptor(code0, handler, 0xee));
    EXPECT_EQ(once(machine, software()), fault(Vector::GP));
    EXPECT_EQ(once(machine, software(vector, EventKind::SoftwareException)), fine)
        << "INT3 and INTO do not";
    machine.set_virtual_8086(3);
    EXPECT_EQ(once(machine, software()), fine);
}

/// With CR4.VME the bitmap below the I/O map decides.
struct Redirection {
    SystemMachine machine;

    explicit Redirection(unsigned iopl, bool to_monitor)
    {
        machine.set_virtual_8086(iopl);
        machine.cpu.cr4 = Cr4::VME.mask;
        machine.memory.put<std::uint16_t>(tss_base + 0x66, 0x88);
        machine.memory.put<std::uint8_t>(tss_base + 0x68 + vector / 8,
                                         to_monitor ? 1U << (vector % 8) : 0U);
        machine.set_gate(vector, gate_descriptor(code0, handler, 0xee));
        machine.memory.put<std::uint32_t>(vector * 4, 0x2000'1234);
    }
};

TEST(DeliverVirtual8086, RedirectionOnTheVirtualInterruptFlag)
{
    Redirection test{0, false};
    Cpu& cpu = test.machine.cpu;
    cpu.set_flags(cpu.flags() | Rflags::VIF.mask | Rflags::TF.mask);
    EXPECT_EQ(once(test.machine, software()), fine);
    EXPECT_TRUE(cpu.virtual_8086());
    EXPECT_EQ(cpu.rip, 0x1234U);
    EXPECT_EQ(cpu.seg[Cs].base, 0x2'0000U);
    EXPECT_EQ(test.machine.at<std::uint16_t>(0x1'7ffe), 0x3302U) << "IF is VIF, IOPL is 3";
    EXPECT_EQ(test.machine.at<std::uint16_t>(0x1'7ffc), 0x1000U);
    EXPECT_EQ(test.machine.at<std::uint16_t>(0x1'7ffa), 0x102U);
    EXPECT_EQ(cpu.flags(), Rflags::VM.mask | 2U);
}

TEST(DeliverVirtual8086, RedirectionWithIoplThreeUsesIf)
{
    Redirection test{3, false};
    Cpu& cpu = test.machine.cpu;
    cpu.set_flags(cpu.flags() | Rflags::IF.mask);
    EXPECT_EQ(once(test.machine, software()), fine);
    EXPECT_EQ(test.machine.at<std::uint16_t>(0x1'7ffe), 0x3202U);
    EXPECT_EQ(cpu.flags(), Rflags::VM.mask | 0x3002U);
}

TEST(DeliverVirtual8086, RedirectionToTheMonitor)
{
    Redirection allowed{3, true};
    EXPECT_EQ(once(allowed.machine, software()), fine);
    EXPECT_FALSE(allowed.machine.cpu.virtual_8086());
    Redirection refused{0, true};
    EXPECT_EQ(once(refused.machine, software()), fault(Vector::GP));
}

TEST(DeliverVirtual8086, BitmapBeyondTheTask)
{
    Redirection test{0, false};
    test.machine.cpu.tr.limit = 0x68 + vector / 8;
    EXPECT_EQ(once(test.machine, software()), fine);
    Redirection beyond_limit{0, false};
    beyond_limit.machine.cpu.tr.limit = 0x68 + vector / 8 - 1;
    EXPECT_EQ(once(beyond_limit.machine, software()), fault(Vector::GP));
    Redirection below_start{0, false};
    below_start.machine.memory.put<std::uint16_t>(tss_base + 0x66, 0x1f);
    EXPECT_EQ(once(below_start.machine, software()), fault(Vector::GP));
}

// --- Long mode

TEST(DeliverLong, FromUserAndBack)
{
    SystemMachine machine;
    machine.set_long(3);
    machine.set_gate64(14, long0, 0xffff'8000'0000'1000, 0x8e);
    machine.cpu.set_flags(0x202);
    ASSERT_TRUE(deliver_fault(machine.cpu, {Vector::PF, true, 6, 0x7fff'1234'5678}));
    EXPECT_EQ(machine.cpu.cr2, 0x7fff'1234'5678U);
    EXPECT_EQ(machine.cpu.rip, 0xffff'8000'0000'1000);
    EXPECT_EQ(machine.cpu.cpl, 0U);
    EXPECT_EQ(machine.cpu.seg[Ss].unusable, 1U);
    EXPECT_EQ(machine.cpu.seg[Ss].selector, 0U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack0_top - 48);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 8), data3);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 16), stack_top);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 24), 0x202U | Rflags::RF.mask);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 32), long3);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 40), code_rip);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 48), 6U);
    EXPECT_EQ(machine.cpu.flags(), 2U);
    machine.cpu.gpr[Rsp] += 8;
    interrupt_return(machine.cpu, 8, 0);
    EXPECT_EQ(machine.cpu.cpl, 3U);
    EXPECT_EQ(machine.cpu.rip, code_rip);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top);
    EXPECT_EQ(machine.cpu.flags(), 0x202U | Rflags::RF.mask);
}

TEST(DeliverLong, SameLevelAlignsTheStack)
{
    SystemMachine machine;
    machine.set_long(0);
    machine.set_gate64(vector, long0, handler, 0x8e);
    machine.cpu.gpr[Rsp] = stack_top - 7;
    ASSERT_TRUE(deliver(machine.cpu, interrupt()));
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top - 16 - 40);
    EXPECT_EQ(machine.at<std::uint64_t>(stack_top - 32), stack_top - 7);
    EXPECT_EQ(machine.cpu.seg[Ss].selector, data0) << "SS stays";
}

TEST(DeliverLong, InterruptStackTable)
{
    for (const unsigned level : {0U, 3U}) {
        SystemMachine machine;
        machine.set_long(level);
        machine.set_gate64(vector, long0, handler, 0x8e, 1);
        ASSERT_TRUE(deliver(machine.cpu, interrupt()));
        EXPECT_EQ(machine.cpu.gpr[Rsp], (ist1_top & ~15U) - 40);
        EXPECT_EQ(machine.at<std::uint64_t>((ist1_top & ~15U) - 16), stack_top);
    }
}

TEST(DeliverLong, FrameAcrossAPageBoundary)
{
    SystemMachine machine;
    machine.set_long(0);
    machine.set_gate64(vector, long0, handler, 0x8e);
    machine.cpu.gpr[Rsp] = 0x2'0010;
    ASSERT_TRUE(deliver(machine.cpu, interrupt()));
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0x2'0010U - 40);
    EXPECT_EQ(machine.at<std::uint64_t>(0x2'0008), data0);
    EXPECT_EQ(machine.at<std::uint64_t>(0x1'ffe8), code_rip);
}

TEST(DeliverLong, Checks)
{
    struct LongCase {
        unsigned level;
        std::uint16_t selector;
        std::uint64_t offset;
        unsigned access;
        unsigned ist;
        Event event;
        Outcome outcome;
    };
    const LongCase cases[] = {
        {0, long0, handler, 0x8e, 0, interrupt(), fine},
        {0, long0, handler, 0x8f, 0, interrupt(), fine},
        {3, long0, handler, 0x8e, 0, software(), fault(Vector::GP, gate_selector_error)},
        {3, long0, handler, 0xee, 0, software(), fine},
        {0, long0, handler, 0x85, 0, interrupt(), fault(Vector::GP, gate_selector_error + 1)},
        {0, long0, handler, 0x86, 0, interrupt(), fault(Vector::GP, gate_selector_error + 1)},
        {0, long0, handler, 0x0e, 0, interrupt(), fault(Vector::NP, gate_selector_error + 1)},
        {0, 0, handler, 0x8e, 0, interrupt(), fault(Vector::GP, 1)},
        {0, code0, handler, 0x8e, 0, interrupt(), fault(Vector::GP, code0 + 1)},
        {0, both_sizes0, handler, 0x8e, 0, interrupt(), fault(Vector::GP, both_sizes0 + 1)},
        {0, data0, handler, 0x8e, 0, interrupt(), fault(Vector::GP, data0 + 1)},
        {0, long3, handler, 0x8e, 0, interrupt(), fault(Vector::GP, (long3 & 0xfffc) + 1)},
        {0, long0, 0x8000'0000'0000, 0x8e, 0, interrupt(), fault(Vector::GP, 1)},
        {3, long3, handler, 0xee, 0, software(), fine},
    };
    for (const LongCase& test : cases) {
        SystemMachine machine;
        machine.set_long(test.level);
        machine.set_gate64(vector, test.selector, test.offset, test.access, test.ist);
        EXPECT_EQ(once(machine, test.event), test.outcome)
            << std::hex << test.selector << " access " << test.access;
    }
}

TEST(DeliverLong, TaskSegment)
{
    SystemMachine machine;
    machine.set_long(3);
    machine.set_gate64(vector, long0, handler, 0x8e);
    machine.cpu.tr.limit = 10;
    EXPECT_EQ(once(machine, interrupt()), fault(Vector::TS, tss64 + 1));
    machine.cpu.tr.limit = 11;
    EXPECT_EQ(once(machine, interrupt()), fine);
    machine.set_long(3);
    machine.memory.put<std::uint64_t>(tss_base + 4, 0x8000'0000'0000);
    EXPECT_EQ(once(machine, interrupt()), fault(Vector::SS, 1));
}

TEST(DeliverLong, FromCompatibilityMode)
{
    SystemMachine machine;
    machine.set_long(3, true);
    machine.set_gate64(vector, long0, handler, 0xee);
    ASSERT_TRUE(deliver(machine.cpu, software()));
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits64);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 32), code3);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 40), code_rip + 2);
}

// --- What is pushed and what is left behind

TEST(Deliver, ResumeFlag)
{
    const auto pushed = [](const Event& event, std::uint64_t flags) {
        SystemMachine machine;
        machine.set_long(0);
        machine.set_gate64(event.vector, long0, handler, 0x8e);
        machine.cpu.set_flags(flags);
        EXPECT_TRUE(deliver(machine.cpu, event));
        EXPECT_EQ(machine.cpu.flags() & Rflags::RF.mask, 0U);
        const std::uint64_t at = machine.cpu.gpr[Rsp] + (event.has_error_code ? 24 : 16);
        return (machine.at<std::uint64_t>(at) & Rflags::RF.mask) != 0;
    };
    EXPECT_TRUE(pushed(exception(Vector::UD), 2));
    EXPECT_TRUE(pushed(exception(Vector::GP, 0), 2));
    EXPECT_FALSE(pushed(exception(Vector::DB), 2));
    EXPECT_FALSE(pushed(exception(Vector::DF, 0), 2));
    EXPECT_FALSE(pushed(interrupt(), 2));
    EXPECT_TRUE(pushed(interrupt(), 2 | Rflags::RF.mask));
    EXPECT_FALSE(pushed(software(), 2 | Rflags::RF.mask));
    Event detect = exception(Vector::DB);
    detect.payload = Dr6::BD.mask;
    EXPECT_TRUE(pushed(detect, 2)) << "general detect is a fault";
}

TEST(Deliver, DebugExceptionSetsDr6AndClearsGeneralDetect)
{
    SystemMachine machine;
    machine.set_long(0);
    machine.set_gate64(1, long0, handler, 0x8e);
    machine.cpu.dr6 = Dr6::reset | 0xf | Dr6::BT.mask;
    machine.cpu.dr7 = Dr7::reset | Dr7::GD.mask;
    ASSERT_TRUE(deliver_fault(machine.cpu, {Vector::DB, false, 0, Dr6::BS.mask | 2}));
    EXPECT_EQ(machine.cpu.dr6, Dr6::reset | Dr6::BS.mask | Dr6::BT.mask | 2U);
    EXPECT_EQ(machine.cpu.dr7, Dr7::reset);
}

TEST(Deliver, NmiBlocksNmisAndShadowsEnd)
{
    SystemMachine machine;
    machine.set_long(0);
    machine.set_gate64(2, long0, handler, 0x8e);
    machine.cpu.sti_shadow = true;
    Event nmi{};
    nmi.kind = EventKind::Nmi;
    nmi.vector = 2;
    ASSERT_TRUE(deliver(machine.cpu, nmi));
    EXPECT_TRUE(machine.cpu.nmi_blocked);
    EXPECT_FALSE(machine.cpu.sti_shadow);
}

// --- Double and triple faults

/// Delivers `first` where its gate and that of every exception in `broken` is absent; the vector
/// whose handler runs, or -1 for shutdown.
int handler_after(const Event& first, std::initializer_list<unsigned> broken)
{
    SystemMachine machine;
    machine.set_long(0);
    for (unsigned number = 0; number < 64; ++number) {
        machine.set_gate64(number, long0, 0x1'0000 + number * 16, 0x8e);
    }
    for (const unsigned number : broken) {
        machine.set_gate64(number, long0, 0, 0x0e);
    }
    if (!deliver(machine.cpu, first)) {
        return -1;
    }
    return static_cast<int>((machine.cpu.rip - 0x1'0000) / 16);
}

TEST(DoubleFault, Table)
{
    // The gate's absence is #NP, a contributory exception.
    EXPECT_EQ(handler_after(interrupt(), {vector}), 11);
    EXPECT_EQ(handler_after(exception(Vector::UD), {6}), 11) << "benign first";
    EXPECT_EQ(handler_after(exception(Vector::DB), {1}), 11);
    for (const Vector first : {Vector::DE, Vector::TS, Vector::NP, Vector::SS, Vector::GP}) {
        EXPECT_EQ(handler_after(exception(first), {static_cast<unsigned>(first)}), 8)
            << "contributory and contributory";
    }
    EXPECT_EQ(handler_after(exception(Vector::PF, 0), {14}), 8);
    EXPECT_EQ(handler_after(interrupt(), {vector, 11}), 8);
    EXPECT_EQ(handler_after(exception(Vector::GP, 0), {13, 8}), -1);
    EXPECT_EQ(handler_after(exception(Vector::DF, 0), {8}), -1);
    EXPECT_EQ(handler_after(interrupt(), {vector, 11, 8}), -1);
}

TEST(DoubleFault, PageFaultOnThePushIsDeliveredAfterABenignEvent)
{
    SystemMachine machine;
    machine.set_long(3);
    machine.set_gate64(vector, long0, handler, 0x8e);
    machine.set_gate64(14, long0, handler + 16, 0x8e, 1);
    machine.set_gate64(8, long0, handler + 32, 0x8e, 1);
    machine.memory.put<std::uint64_t>(tss_base + 4, 0x40'0000);  // Not mapped.
    ASSERT_TRUE(deliver(machine.cpu, interrupt()));
    EXPECT_EQ(machine.cpu.rip, handler + 16);
    EXPECT_EQ(machine.cpu.cr2, 0x3f'fff8U) << "the first that is pushed";
    EXPECT_EQ(machine.at<std::uint64_t>(machine.cpu.gpr[Rsp]), page_fault::write);

    machine.set_long(3);
    machine.memory.put<std::uint64_t>(tss_base + 4, 0x40'0000);
    ASSERT_TRUE(deliver(machine.cpu, exception(Vector::GP, 0)));
    EXPECT_EQ(machine.cpu.rip, handler + 32) << "no gate: #GP and #GP is #DF";
}

TEST(DoubleFault, EndlessBenignFaultsShutDown)
{
    // #AC whose delivery is misaligned at CPL 3 raises no #AC here, but a task gate to a busy task
    // in every slot goes round: #GP, #DF, shutdown.
    SystemMachine machine;
    machine.set_protected(0);
    for (unsigned number = 0; number < 32; ++number) {
        machine.set_gate(number, gate_descriptor(tss, 0, 0x85));
    }
    EXPECT_FALSE(deliver(machine.cpu, exception(Vector::AC, 0)));
}

}  // namespace
}  // namespace vmm::x86::soft::test
