// SPDX-License-Identifier: Apache-2.0

/// Far JMP, CALL, RET and IRET; SYSCALL and its kin.

#include "soft/system_fixture.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint64_t target = 0x1'2345;
constexpr std::uint64_t return_rip = 0x1'0007;
constexpr std::uint64_t not_canonical = 0x8000'0000'0000;

struct DirectCase {
    unsigned level;
    std::uint16_t selector;
    Outcome outcome;
};

class DirectTransfer : public testing::TestWithParam<DirectCase> {};

TEST_P(DirectTransfer, JumpAndCallCheckAlike)
{
    const DirectCase& test = GetParam();
    for (const bool call : {false, true}) {
        SystemMachine machine;
        machine.set_protected(test.level);
        EXPECT_EQ(outcome_of(machine.cpu,
                             [&] {
                                 (call ? far_call : far_jump)(machine.cpu, test.selector, target, 4,
                                                              return_rip);
                             }),
                  test.outcome)
            << std::hex << test.selector << " at CPL " << test.level;
        if (test.outcome == fine) {
            EXPECT_EQ(machine.cpu.rip, target);
            EXPECT_EQ(machine.cpu.seg[Cs].selector, with_rpl(test.selector, test.level));
            EXPECT_EQ(machine.cpu.cpl, test.level);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Transfers,
                         DirectTransfer,
                         testing::Values(DirectCase{0, code0, fine},
                                         DirectCase{0, 0, fault(Vector::GP)},
                                         DirectCase{0, 3, fault(Vector::GP)},
                                         DirectCase{0, beyond, fault(Vector::GP, beyond)},
                                         DirectCase{0, data0, fault(Vector::GP, data0)},
                                         DirectCase{0, code0 | 1, fault(Vector::GP, code0)},
                                         DirectCase{0, code3, fault(Vector::GP, code3 & 0xfffc)},
                                         DirectCase{0, absent_code0,
                                                    fault(Vector::NP, absent_code0)},
                                         DirectCase{0, small_code0, fault(Vector::GP)},
                                         DirectCase{0, execute_only0, fine},
                                         DirectCase{0, both_sizes0, fine},
                                         DirectCase{3, code3, fine},
                                         DirectCase{3, code3 & 0xfffc, fine},
                                         DirectCase{3, code0 | 3, fault(Vector::GP, code0)},
                                         DirectCase{3, conforming0 | 3, fine},
                                         DirectCase{3, conforming0, fine},
                                         DirectCase{0, ldt, fault(Vector::GP, ldt)},
                                         DirectCase{0, gate, fault(Vector::GP, gate)}));

TEST(FarTransfer, CallPushesByOperandSize)
{
    SystemMachine machine;
    machine.set_protected(0);
    far_call(machine.cpu, code0, target, 4, return_rip);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top - 8);
    EXPECT_EQ(machine.at<std::uint32_t>(stack_top - 4), code0);
    EXPECT_EQ(machine.at<std::uint32_t>(stack_top - 8), return_rip);
    machine.set_protected(0);
    far_call(machine.cpu, code0, target, 2, return_rip);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top - 4);
    EXPECT_EQ(machine.at<std::uint16_t>(stack_top - 2), code0);
    EXPECT_EQ(machine.at<std::uint16_t>(stack_top - 4), return_rip & 0xffffU);
    EXPECT_EQ(machine.cpu.rip, target & 0xffffU);
    machine.set_long(0);
    far_call(machine.cpu, long0, target, 8, return_rip);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top - 16);
    EXPECT_EQ(machine.at<std::uint64_t>(stack_top - 8), long0);
    EXPECT_EQ(machine.at<std::uint64_t>(stack_top - 16), return_rip);
}

TEST(FarTransfer, SixteenBitStackWrapsAndKeepsTheUpperHalf)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.cpu.seg[Ss] = machine.segment(data16_0);
    machine.cpu.gpr[Rsp] = 0xabcd'0002;
    far_call(machine.cpu, code0, target, 2, return_rip);
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0xabcd'fffeU);
    EXPECT_EQ(machine.at<std::uint16_t>(0x1'0000), code0);
    EXPECT_EQ(machine.at<std::uint16_t>(0x1'fffe), return_rip & 0xffffU);
}

TEST(FarTransfer, CallWithoutRoomFaults)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.cpu.seg[Ss].limit = 0xfff;
    EXPECT_EQ(outcome_of(machine.cpu, [&] { far_call(machine.cpu, code0, target, 4, return_rip); }),
              fault(Vector::SS));
}

TEST(FarTransfer, LongModeSelectsTheMode)
{
    SystemMachine machine;
    machine.set_long(0);
    far_jump(machine.cpu, code0, target, 4, return_rip);
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits32);
    far_jump(machine.cpu, long0, target, 4, return_rip);
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits64);
    EXPECT_EQ(outcome_of(machine.cpu, [&] { far_jump(machine.cpu, both_sizes0, target, 4, 0); }),
              fault(Vector::GP, both_sizes0));
    EXPECT_EQ(outcome_of(machine.cpu, [&] { far_jump(machine.cpu, long0, not_canonical, 8, 0); }),
              fault(Vector::GP));
    EXPECT_EQ(outcome_of(machine.cpu, [&] { far_jump(machine.cpu, tss2, target, 4, 0); }),
              fault(Vector::GP, tss2));
}

TEST(FarTransfer, RealModeAndVirtual8086Mode)
{
    SystemMachine machine;
    machine.set_real();
    far_call(machine.cpu, 0x2000, 0x1234, 2, 0x105);
    EXPECT_EQ(machine.cpu.seg[Cs].base, 0x2'0000U);
    EXPECT_EQ(machine.cpu.rip, 0x1234U);
    EXPECT_EQ(machine.at<std::uint16_t>(0x7ffe), 0x1000U);
    EXPECT_EQ(machine.at<std::uint16_t>(0x7ffc), 0x105U);
    far_return(machine.cpu, 2, 4);
    EXPECT_EQ(machine.cpu.seg[Cs].base, 0x1'0000U);
    EXPECT_EQ(machine.cpu.rip, 0x105U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0x8004U);
    EXPECT_EQ(outcome_of(machine.cpu, [&] { far_jump(machine.cpu, 0x2000, 0x1'0000, 4, 0); }),
              fault(Vector::GP));
    machine.set_virtual_8086(0);
    far_jump(machine.cpu, 0x2000, 0xffff, 4, 0);
    EXPECT_EQ(machine.cpu.seg[Cs].base, 0x2'0000U);
    EXPECT_EQ(machine.cpu.seg[Cs].dpl, 3U);
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits16);
}

// --- Call gates

struct GateCase {
    unsigned level;
    std::uint16_t selector;
    std::uint64_t gate;
    Outcome call;
    Outcome jump;
};

TEST(CallGate, Checks)
{
    const Outcome gate_gp = fault(Vector::GP, gate);
    const GateCase cases[] = {
        {0, gate, gate_descriptor(code0, target, 0x8c), fine, fine},
        {3, gate | 3, gate_descriptor(code0, target, 0xec), fine, fault(Vector::GP, code0)},
        {3, gate | 3, gate_descriptor(code0, target, 0x8c), gate_gp, gate_gp},
        {0, gate | 3, gate_descriptor(code0, target, 0x8c), gate_gp, gate_gp},
        {0, gate, gate_descriptor(code0, target, 0x0c), fault(Vector::NP, gate),
         fault(Vector::NP, gate)},
        {0, gate, gate_descriptor(0, target, 0x8c), fault(Vector::GP), fault(Vector::GP)},
        {0, gate, gate_descriptor(data0, target, 0x8c), fault(Vector::GP, data0),
         fault(Vector::GP, data0)},
        {0, gate, gate_descriptor(code3, target, 0x8c), fault(Vector::GP, code3 & 0xfffc),
         fault(Vector::GP, code3 & 0xfffc)},
        {0, gate, gate_descriptor(absent_code0, target, 0x8c), fault(Vector::NP, absent_code0),
         fault(Vector::NP, absent_code0)},
        {0, gate, gate_descriptor(small_code0, target, 0x8c), fault(Vector::GP), fault(Vector::GP)},
        {3, gate | 3, gate_descriptor(conforming0, target, 0xec), fine, fine},
        {0, gate, gate_descriptor(beyond, target, 0x8c), fault(Vector::GP, beyond),
         fault(Vector::GP, beyond)},
        {0, gate, gate_descriptor(code0, target, 0x8e), gate_gp, gate_gp},
    };
    for (const GateCase& test : cases) {
        for (const bool call : {false, true}) {
            SystemMachine machine;
            machine.set_protected(test.level);
            machine.set_descriptor(gate, test.gate);
            EXPECT_EQ(outcome_of(machine.cpu,
                                 [&] {
                                     (call ? far_call : far_jump)(machine.cpu, test.selector, 0, 4,
                                                                  return_rip);
                                 }),
                      call ? test.call : test.jump)
                << std::hex << test.gate << (call ? " call" : " jump");
        }
    }
}

TEST(CallGate, InnerLevelSwitchesStacksAndCopiesParameters)
{
    SystemMachine machine;
    machine.set_protected(3);
    machine.set_descriptor(gate, gate_descriptor(code0, target, 0xec, 2));
    machine.memory.put<std::uint32_t>(stack_top, 0x1111'1111);
    machine.memory.put<std::uint32_t>(stack_top + 4, 0x2222'2222);
    far_call(machine.cpu, gate | 3, 0, 4, return_rip);
    EXPECT_EQ(machine.cpu.cpl, 0U);
    EXPECT_EQ(machine.cpu.seg[Cs].selector, code0);
    EXPECT_EQ(machine.cpu.seg[Ss].selector, data0);
    EXPECT_EQ(machine.cpu.rip, target);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack0_top - 24);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 4), data3);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 8), stack_top);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 12), 0x2222'2222U);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 16), 0x1111'1111U);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 20), code3);
    EXPECT_EQ(machine.at<std::uint32_t>(stack0_top - 24), return_rip);

    // And back, releasing the parameters on both stacks; what the user may not use is dropped.
    load_segment(machine.cpu, Ds, data0);
    far_return(machine.cpu, 4, 8);
    EXPECT_EQ(machine.cpu.cpl, 3U);
    EXPECT_EQ(machine.cpu.rip, return_rip);
    EXPECT_EQ(machine.cpu.seg[Cs].selector, code3);
    EXPECT_EQ(machine.cpu.seg[Ss].selector, data3);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top + 8);
    EXPECT_EQ(machine.cpu.seg[Ds].unusable, 1U);
    EXPECT_EQ(machine.cpu.seg[Ds].selector, 0U);
    EXPECT_EQ(machine.cpu.seg[Es].selector, data3);
}

TEST(CallGate, StackOfTheInnerLevelIsChecked)
{
    const auto call_with = [](std::uint16_t stack, std::uint32_t tss_limit) {
        SystemMachine machine;
        machine.set_protected(3);
        machine.set_descriptor(gate, gate_descriptor(code0, target, 0xec));
        machine.memory.put<std::uint16_t>(tss_base + 8, stack);
        machine.cpu.tr.limit = tss_limit;
        return outcome_of(machine.cpu, [&] { far_call(machine.cpu, gate | 3, 0, 4, return_rip); });
    };
    EXPECT_EQ(call_with(data0, 9), fine);
    EXPECT_EQ(call_with(data0, 8), fault(Vector::TS, tss));
    EXPECT_EQ(call_with(0, 0x67), fault(Vector::TS));
    EXPECT_EQ(call_with(beyond, 0x67), fault(Vector::TS, beyond));
    EXPECT_EQ(call_with(data0 | 1, 0x67), fault(Vector::TS, data0));
    EXPECT_EQ(call_with(data3, 0x67), fault(Vector::TS, data3 & 0xfffc));
    EXPECT_EQ(call_with(read_only0, 0x67), fault(Vector::TS, read_only0));
    EXPECT_EQ(call_with(absent_data0, 0x67), fault(Vector::SS, absent_data0));
}

TEST(CallGate, SixteenBitGate)
{
    SystemMachine machine;
    machine.set_protected(3);
    machine.set_descriptor(gate, gate_descriptor(code0, 0xdead'2345, 0xe4));
    far_call(machine.cpu, gate | 3, 0, 4, return_rip);
    EXPECT_EQ(machine.cpu.rip, 0x2345U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack0_top - 8);
    EXPECT_EQ(machine.at<std::uint16_t>(stack0_top - 8), return_rip & 0xffffU);
}

TEST(CallGate, LongMode)
{
    SystemMachine machine;
    machine.set_long(3);
    machine.set_descriptor(gate64, gate_descriptor(long0, target, 0xec));
    machine.set_descriptor(gate64 + 8, 0xffff'8000);
    far_call(machine.cpu, gate64 | 3, 0, 4, return_rip);
    EXPECT_EQ(machine.cpu.rip, 0xffff'8000'0001'2345);
    EXPECT_EQ(machine.cpu.cpl, 0U);
    EXPECT_EQ(machine.cpu.seg[Ss].selector, 0U);
    EXPECT_EQ(machine.cpu.seg[Ss].unusable, 1U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack0_top - 32);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 8), data3);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 16), stack_top);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 24), long3);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 32), return_rip);
    far_return(machine.cpu, 8, 0);
    EXPECT_EQ(machine.cpu.cpl, 3U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top);

    const auto call_with = [](std::uint64_t low, std::uint64_t high) {
        SystemMachine other;
        other.set_long(0);
        other.set_descriptor(gate64, low);
        other.set_descriptor(gate64 + 8, high);
        return outcome_of(other.cpu, [&] { far_call(other.cpu, gate64, 0, 4, return_rip); });
    };
    EXPECT_EQ(call_with(gate_descriptor(long0, target, 0x8c), 0), fine);
    EXPECT_EQ(call_with(gate_descriptor(long0, target, 0x84), 0), fault(Vector::GP, gate64));
    EXPECT_EQ(call_with(gate_descriptor(code0, target, 0x8c), 0), fault(Vector::GP, code0));
    EXPECT_EQ(call_with(gate_descriptor(long0, target, 0x8c), 0x8000), fault(Vector::GP));
    EXPECT_EQ(call_with(gate_descriptor(long0, target, 0x8c), std::uint64_t{1} << 40U),
              fault(Vector::GP, gate64));
}

// --- RET

struct ReturnCase {
    unsigned level;
    std::uint16_t selector;
    std::uint16_t stack;
    Outcome outcome;
};

void push32(SystemMachine& machine, std::initializer_list<std::uint64_t> values)
{
    std::uint64_t at = machine.cpu.gpr[Rsp];
    for (const std::uint64_t value : values) {
        machine.memory.put<std::uint32_t>(at, static_cast<std::uint32_t>(value));
        at += 4;
    }
}

void push64(SystemMachine& machine, std::initializer_list<std::uint64_t> values)
{
    std::uint64_t at = machine.cpu.gpr[Rsp];
    for (const std::uint64_t value : values) {
        machine.memory.put<std::uint64_t>(at, value);
        at += 8;
    }
}

constexpr ReturnCase return_cases[] = {
    {0, code0, 0, {}},
    {0, 0, 0, {Vector::GP, 0}},
    {0, beyond, 0, {Vector::GP, beyond}},
    {0, data0, 0, {Vector::GP, data0}},
    {0, absent_code0, 0, {Vector::NP, absent_code0}},
    {0, small_code0, 0, {Vector::GP, 0}},
    {0, code3 & 0xfffc, 0, {Vector::GP, code3 & 0xfffc}},
    {0, code0 | 3, data3, {Vector::GP, code0}},
    {0, conforming0 | 3, data3, {}},
    {3, code0, 0, {Vector::GP, code0}},
    {3, code3, 0, {}},
    {0, code3, data3, {}},
    {0, code3, 0, {Vector::GP, 0}},
    {0, code3, 3, {Vector::GP, 0}},
    {0, code3, beyond | 3, {Vector::GP, beyond}},
    {0, code3, data3 & 0xfffc, {Vector::GP, data3 & 0xfffc}},
    {0, code3, data0 | 3, {Vector::GP, data0}},
    {0, code3, code3, {Vector::GP, code3 & 0xfffc}},
    {0, code1, data1, {}},
};

TEST(FarReturn, Checks)
{
    for (const ReturnCase& test : return_cases) {
        SystemMachine machine;
        machine.set_protected(test.level);
        push32(machine, {target, test.selector, stack_top - 0x100, test.stack});
        EXPECT_EQ(outcome_of(machine.cpu, [&] { far_return(machine.cpu, 4, 0); }), test.outcome)
            << std::hex << test.selector << " " << test.stack;
        if (test.outcome == fine) {
            EXPECT_EQ(machine.cpu.rip, target);
            EXPECT_EQ(machine.cpu.cpl, rpl(test.selector));
        }
    }
}

TEST(FarReturn, SixteenBitOuterStackKeepsTheUpperHalf)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.cpu.gpr[Rsp] = 0x2'1000;
    push32(machine, {target, code3, 0x1111'4321, data16_3});
    far_return(machine.cpu, 4, 0);
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0x2'4321U) << "the system's upper half shows, as on silicon";
}

// --- IRET

TEST(Iret, ChecksAreThoseOfReturn)
{
    for (const ReturnCase& test : return_cases) {
        SystemMachine machine;
        machine.set_protected(test.level);
        push32(machine, {target, test.selector, 2, stack_top - 0x100, test.stack});
        EXPECT_EQ(outcome_of(machine.cpu, [&] { interrupt_return(machine.cpu, 4, 0); }),
                  test.outcome)
            << std::hex << test.selector << " " << test.stack;
        if (test.outcome == fine) {
            EXPECT_EQ(machine.cpu.rip, target);
            EXPECT_EQ(machine.cpu.cpl, rpl(test.selector));
        }
    }
}

TEST(Iret, FlagsFollowThePrivilege)
{
    constexpr std::uint64_t all = Rflags::defined & ~mask_of(Rflags::VM, Rflags::NT);
    const auto flags_after = [](unsigned level, unsigned iopl, unsigned size) {
        SystemMachine machine;
        machine.set_protected(level);
        machine.cpu.set_flags(2U | (std::uint64_t{iopl} << 12U));
        if (size == 4) {
            push32(machine, {target, level == 0 ? code0 : code3, all});
        } else {
            machine.memory.put<std::uint16_t>(stack_top, 0x2345);
            machine.memory.put<std::uint16_t>(stack_top + 2, level == 0 ? code0 : code3);
            machine.memory.put<std::uint16_t>(stack_top + 4, static_cast<std::uint16_t>(all));
        }
        interrupt_return(machine.cpu, size, 0);
        return machine.cpu.flags();
    };
    EXPECT_EQ(flags_after(0, 0, 4), all | 2U);
    constexpr std::uint64_t privileged =
        mask_of(Rflags::IF, Rflags::IOPL, Rflags::VIF, Rflags::VIP);
    EXPECT_EQ(flags_after(3, 0, 4), (all & ~privileged) | 2U);
    EXPECT_EQ(flags_after(3, 3, 4), (all & ~mask_of(Rflags::VIF, Rflags::VIP)) | 2U);
    EXPECT_EQ(flags_after(0, 0, 2), (all & 0xffffU) | 2U);
}

TEST(Iret, UnblocksNmisEvenWhereItFaults)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.cpu.nmi_blocked = true;
    push32(machine, {target, 0, 2});
    EXPECT_EQ(outcome_of(machine.cpu, [&] { interrupt_return(machine.cpu, 4, 0); }),
              fault(Vector::GP));
    EXPECT_FALSE(machine.cpu.nmi_blocked);
}

TEST(Iret, ToVirtual8086Mode)
{
    SystemMachine machine;
    machine.set_protected(0);
    push32(machine, {0x1234, 0x2000, Rflags::VM.mask | 0x3202, 0xfffc, 0x3000, 0x4000, 0x5000,
                     0x6000, 0x7000});
    interrupt_return(machine.cpu, 4, 0);
    EXPECT_TRUE(machine.cpu.virtual_8086());
    EXPECT_EQ(machine.cpu.cpl, 3U);
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits16);
    EXPECT_EQ(machine.cpu.rip, 0x1234U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0xfffcU);
    EXPECT_EQ(machine.cpu.seg[Cs].base, 0x2'0000U);
    EXPECT_EQ(machine.cpu.seg[Ss].base, 0x3'0000U);
    EXPECT_EQ(machine.cpu.seg[Es].base, 0x4'0000U);
    EXPECT_EQ(machine.cpu.seg[Ds].base, 0x5'0000U);
    EXPECT_EQ(machine.cpu.seg[Fs].base, 0x6'0000U);
    EXPECT_EQ(machine.cpu.seg[Gs].base, 0x7'0000U);
    EXPECT_EQ(machine.cpu.flags(), Rflags::VM.mask | 0x3202U);

    machine.set_protected(0);
    push32(machine, {0x1'0000, 0x2000, Rflags::VM.mask | 2, 0, 0, 0, 0, 0, 0});
    EXPECT_EQ(outcome_of(machine.cpu, [&] { interrupt_return(machine.cpu, 4, 0); }),
              fault(Vector::GP));
}

TEST(Iret, InVirtual8086Mode)
{
    const auto run = [](unsigned iopl, unsigned size, bool vme, std::uint64_t now,
                        std::uint16_t popped, std::uint64_t& flags) {
        SystemMachine machine;
        machine.set_virtual_8086(iopl);
        machine.cpu.cr4 = vme ? Cr4::VME.mask : 0;
        machine.cpu.set_flags(machine.cpu.flags() | now);
        const std::uint64_t at = 0x1'0000 + 0x8000;
        if (size == 2) {
            machine.memory.put<std::uint16_t>(at, 0x4321);
            machine.memory.put<std::uint16_t>(at + 2, 0x1100);
            machine.memory.put<std::uint16_t>(at + 4, popped);
        } else {
            machine.memory.put<std::uint32_t>(at, 0x4321);
            machine.memory.put<std::uint32_t>(at + 4, 0x1100);
            machine.memory.put<std::uint32_t>(at + 8, popped);
        }
        const Outcome outcome =
            outcome_of(machine.cpu, [&] { interrupt_return(machine.cpu, size, 0); });
        flags = machine.cpu.flags();
        return outcome;
    };
    constexpr std::uint64_t vm = Rflags::VM.mask;
    std::uint64_t flags = 0;
    EXPECT_EQ(run(3, 2, false, 0, 0x0202, flags), fine);
    EXPECT_EQ(flags, vm | 0x3202U) << "IOPL is not changed";
    EXPECT_EQ(run(3, 4, false, 0, 0x0202, flags), fine);
    EXPECT_EQ(run(0, 2, false, 0, 0x0202, flags), fault(Vector::GP));
    EXPECT_EQ(run(0, 4, true, 0, 0x0202, flags), fault(Vector::GP));
    EXPECT_EQ(run(0, 2, true, 0, 0x0202, flags), fine);
    EXPECT_EQ(flags, vm | Rflags::VIF.mask | 2U) << "IF goes to VIF";
    EXPECT_EQ(run(0, 2, true, Rflags::VIF.mask, 0x0002, flags), fine);
    EXPECT_EQ(flags, vm | 2U);
    EXPECT_EQ(run(0, 2, true, Rflags::VIP.mask, 0x0202, flags), fault(Vector::GP));
    EXPECT_EQ(run(0, 2, true, Rflags::VIP.mask, 0x0002, flags), fine);
    EXPECT_EQ(run(0, 2, true, 0, 0x0102, flags), fault(Vector::GP)) << "TF";
}

TEST(Iret, RealMode)
{
    SystemMachine machine;
    machine.set_real();
    machine.memory.put<std::uint16_t>(0x8000, 0x4321);
    machine.memory.put<std::uint16_t>(0x8002, 0x1100);
    machine.memory.put<std::uint16_t>(0x8004, 0xffff);
    interrupt_return(machine.cpu, 2, 0);
    EXPECT_EQ(machine.cpu.rip, 0x4321U);
    EXPECT_EQ(machine.cpu.seg[Cs].base, 0x1'1000U);
    EXPECT_EQ(machine.cpu.flags(), 0x7fd7U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0x8006U);
}

TEST(Iret, LongModePopsTheStackAlways)
{
    SystemMachine machine;
    machine.set_long(0);
    push64(machine, {0xffff'8000'0000'1000, long0, 0x202, 0xffff'9000'0000'0000, 0});
    interrupt_return(machine.cpu, 8, 0);
    EXPECT_EQ(machine.cpu.rip, 0xffff'8000'0000'1000);
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0xffff'9000'0000'0000);
    EXPECT_EQ(machine.cpu.seg[Ss].unusable, 1U);
    EXPECT_EQ(machine.cpu.cpl, 0U);
    EXPECT_EQ(machine.cpu.flags(), 0x202U);
}

TEST(Iret, LongModeToUser)
{
    SystemMachine machine;
    machine.set_long(0);
    // A user's FS with a base of its own must survive; a system segment must not.
    machine.cpu.seg[Fs] = null_segment(0);
    machine.cpu.seg[Fs].base = 0x7000'1234'5678;
    push64(machine, {target, long3, 0x202, 0x7fff'0000'0000, data3});
    interrupt_return(machine.cpu, 8, 0);
    EXPECT_EQ(machine.cpu.cpl, 3U);
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits64);
    EXPECT_EQ(machine.cpu.seg[Fs].base, 0x7000'1234'5678U);
    EXPECT_EQ(machine.cpu.seg[Ds].unusable, 1U);
    EXPECT_EQ(machine.cpu.seg[Ss].selector, data3);

    machine.set_long(0);
    push64(machine, {target, code3, 0x202, 0xdead'0000'1234'5678, data3});
    interrupt_return(machine.cpu, 8, 0);
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits32);
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0x1234'5678U);
}

TEST(Iret, LongModeFaults)
{
    const auto run = [](std::initializer_list<std::uint64_t> frame, std::uint64_t flags) {
        SystemMachine machine;
        machine.set_long(0);
        machine.cpu.set_flags(flags);
        push64(machine, frame);
        return outcome_of(machine.cpu, [&] { interrupt_return(machine.cpu, 8, 0); });
    };
    EXPECT_EQ(run({target, long0, 2, stack_top, data0}, 2), fine);
    EXPECT_EQ(run({target, long0, 2, stack_top, data0}, 2 | Rflags::NT.mask), fault(Vector::GP));
    EXPECT_EQ(run({not_canonical, long0, 2, stack_top, data0}, 2), fault(Vector::GP));
    EXPECT_EQ(run({target, long3, 2, stack_top, 3}, 2), fault(Vector::GP));
    EXPECT_EQ(run({target, long3, 2, stack_top, 0}, 2), fault(Vector::GP));
    EXPECT_EQ(run({target, code0, 2, stack_top, 0}, 2), fault(Vector::GP));
    EXPECT_EQ(run({target, both_sizes0, 2, stack_top, data0}, 2), fault(Vector::GP, both_sizes0));
    EXPECT_EQ(run({target, long3, 2, not_canonical, data3}, 2), fine) << "RSP is not looked at";
}

// --- SYSCALL, SYSRET, SYSENTER, SYSEXIT

TEST(Syscall, RoundTrip)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(3);
    cpu.star = (std::uint64_t{0x23} << 48U) | (std::uint64_t{long0} << 32U);
    cpu.lstar = 0xffff'8000'0000'1000;
    cpu.fmask = Rflags::IF.mask | Rflags::TF.mask;
    cpu.set_flags(0x202 | Rflags::TF.mask | Rflags::RF.mask | 0x8d5);
    syscall(cpu, return_rip);
    EXPECT_EQ(cpu.rip, cpu.lstar);
    EXPECT_EQ(cpu.gpr[Rcx], return_rip);
    EXPECT_EQ(cpu.gpr[R11], 0x202U | Rflags::TF.mask | 0x8d5U);
    EXPECT_EQ(cpu.flags(), 2U | 0x8d5U);
    EXPECT_EQ(cpu.cpl, 0U);
    EXPECT_EQ(cpu.seg[Cs].selector, long0);
    EXPECT_EQ(cpu.seg[Ss].selector, long0 + 8);
    EXPECT_EQ(cpu.code_size, CodeSize::Bits64);
    sysret(cpu, 8);
    EXPECT_EQ(cpu.rip, return_rip);
    EXPECT_EQ(cpu.cpl, 3U);
    EXPECT_EQ(cpu.seg[Cs].selector, 0x33U);
    EXPECT_EQ(cpu.seg[Ss].selector, 0x2bU);
    EXPECT_EQ(cpu.flags(), 0x302U | 0x8d5U);
    EXPECT_EQ(cpu.code_size, CodeSize::Bits64);
}

TEST(Syscall, SysretToCompatibilityMode)
{
    SystemMachine machine;
    machine.set_long(0);
    machine.cpu.star = std::uint64_t{0x23} << 48U;
    machine.cpu.gpr[Rcx] = 0xffff'0000'1234'5678;
    machine.cpu.gpr[R11] = 0x202;
    sysret(machine.cpu, 4);
    EXPECT_EQ(machine.cpu.rip, 0x1234'5678U);
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits32);
    EXPECT_EQ(machine.cpu.seg[Cs].selector, 0x23U);
}

TEST(Syscall, Faults)
{
    for (const bool intel : {true, false}) {
        SystemMachine machine{intel};
        Cpu& cpu = machine.cpu;
        machine.set_long(0);
        cpu.gpr[Rcx] = not_canonical;
        EXPECT_EQ(outcome_of(cpu, [&] { sysret(cpu, 8); }), intel ? fault(Vector::GP) : fine)
            << "only Intel looks at RCX";
        machine.set_long(3);
        EXPECT_EQ(outcome_of(cpu, [&] { sysret(cpu, 8); }), fault(Vector::GP));
        machine.set_long(3, true);
        EXPECT_EQ(outcome_of(cpu, [&] { syscall(cpu, 0); }), intel ? fault(Vector::UD) : fine);
        machine.set_protected(3);
        cpu.efer = Efer::SCE.mask;
        EXPECT_EQ(outcome_of(cpu, [&] { syscall(cpu, 0); }), intel ? fault(Vector::UD) : fine);
        machine.set_long(3);
        cpu.efer &= ~Efer::SCE.mask;
        EXPECT_EQ(outcome_of(cpu, [&] { syscall(cpu, 0); }), fault(Vector::UD));
        EXPECT_EQ(outcome_of(cpu, [&] { sysret(cpu, 8); }), fault(Vector::UD));
        machine.set_real();
        cpu.efer = Efer::SCE.mask;
        EXPECT_EQ(outcome_of(cpu, [&] { syscall(cpu, 0); }), fault(Vector::UD));
    }
}

TEST(Sysenter, RoundTripInProtectedMode)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(3);
    cpu.set_flags(0x202);
    cpu.sysenter_cs = 0x48;
    cpu.sysenter_esp = 0xffff'ffff'0003'0000;
    cpu.sysenter_eip = target;
    sysenter(cpu);
    EXPECT_EQ(cpu.cpl, 0U);
    EXPECT_EQ(cpu.rip, target);
    EXPECT_EQ(cpu.gpr[Rsp], 0x3'0000U);
    EXPECT_EQ(cpu.seg[Cs].selector, 0x48U);
    EXPECT_EQ(cpu.seg[Ss].selector, 0x50U);
    EXPECT_EQ(cpu.flags(), 2U);
    cpu.gpr[Rcx] = stack_top;
    cpu.gpr[Rdx] = return_rip;
    sysexit(cpu, 4);
    EXPECT_EQ(cpu.cpl, 3U);
    EXPECT_EQ(cpu.rip, return_rip);
    EXPECT_EQ(cpu.gpr[Rsp], stack_top);
    EXPECT_EQ(cpu.seg[Cs].selector, 0x5bU);
    EXPECT_EQ(cpu.seg[Ss].selector, 0x63U);
    EXPECT_EQ(outcome_of(cpu, [&] { sysexit(cpu, 4); }), fault(Vector::GP));
    cpu.sysenter_cs = 3;
    EXPECT_EQ(outcome_of(cpu, [&] { sysenter(cpu); }), fault(Vector::GP));
    machine.set_real();
    EXPECT_EQ(outcome_of(cpu, [&] { sysenter(cpu); }), fault(Vector::GP));
}

TEST(Sysenter, LongModeIsIntelsOnly)
{
    SystemMachine machine;
    machine.set_long(3);
    machine.cpu.sysenter_cs = 0x48;
    machine.cpu.sysenter_eip = 0xffff'8000'0000'1000;
    sysenter(machine.cpu);
    EXPECT_EQ(machine.cpu.rip, 0xffff'8000'0000'1000);
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits64);
    machine.cpu.gpr[Rdx] = not_canonical;
    EXPECT_EQ(outcome_of(machine.cpu, [&] { sysexit(machine.cpu, 8); }), fault(Vector::GP));
    machine.cpu.gpr[Rdx] = target;
    sysexit(machine.cpu, 8);
    EXPECT_EQ(machine.cpu.seg[Cs].selector, 0x48U + 32U + 3U);
    EXPECT_EQ(machine.cpu.code_size, CodeSize::Bits64);

    SystemMachine amd{false};
    amd.set_long(3);
    amd.cpu.sysenter_cs = 0x48;
    EXPECT_EQ(outcome_of(amd.cpu, [&] { sysenter(amd.cpu); }), fault(Vector::UD));
    EXPECT_EQ(outcome_of(amd.cpu, [&] { sysexit(amd.cpu, 8); }), fault(Vector::GP));
    amd.set_long(0);
    EXPECT_EQ(outcome_of(amd.cpu, [&] { sysexit(amd.cpu, 8); }), fault(Vector::UD));
}

}  // namespace
}  // namespace vmm::x86::soft::test
