// SPDX-License-Identifier: Apache-2.0

/// Hardware task switches.

#include "soft/system_fixture.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint64_t return_rip = 0x1'0007;
constexpr std::uint64_t task_rip = 0x1'4000;
constexpr std::uint32_t task_stack_top = 0x3'4000;

struct Task {
    std::uint16_t code{code0};
    std::uint16_t data{data0};
    std::uint32_t rip{task_rip};
    std::uint32_t flags{0x202};
    std::uint16_t ldt_selector{ldt};
    std::uint16_t trap{};
};

void write_task32(SystemMachine& machine, const Task& task, std::uint64_t base = tss2_base)
{
    const auto put = [&](std::uint64_t offset, std::uint32_t value) {
        machine.memory.put<std::uint32_t>(base + offset, value);
    };
    put(0x00, 0x7777);
    put(0x1c, tables_base + 0x3000);
    put(0x20, task.rip);
    put(0x24, task.flags);
    for (std::uint32_t i = 0; i < 8; ++i) {
        put(0x28 + 4 * i, i == Rsp ? task_stack_top : 0xa000'0000 + i);
    }
    for (std::uint32_t i = 0; i < 6; ++i) {
        put(0x48 + 4 * i, i == Cs ? task.code : task.data);
    }
    put(0x60, task.ldt_selector);
    machine.memory.put<std::uint16_t>(base + 0x64, task.trap);
}

void write_task16(SystemMachine& machine)
{
    const auto put = [&](std::uint64_t offset, std::uint16_t value) {
        machine.memory.put<std::uint16_t>(tss16_base + offset, value);
    };
    put(0x0e, 0x4000);
    put(0x10, 0x0202);
    for (std::uint32_t i = 0; i < 8; ++i) {
        put(0x12 + 2 * i, static_cast<std::uint16_t>(0xb000 + i));
    }
    put(0x22, data0);
    put(0x24, code0);
    put(0x26, data0);
    put(0x28, data0);
    put(0x2a, ldt);
}

unsigned access_of(const SystemMachine& machine, std::uint16_t selector)
{
    return (machine.get_descriptor(selector) >> 40U) & 0xffU;
}

/// As `outcome_of`, for switches that may fail in the new task.
Outcome switch_outcome(SystemMachine& machine, std::uint16_t selector, TaskSwitch reason)
{
    try {
        return outcome_of(machine.cpu,
                          [&] { switch_task(machine.cpu, selector, reason, return_rip, nullptr); });
    } catch (const TaskFault& late) {
        return {late.fault.vector, late.fault.error_code};
    }
}

TEST(TaskSwitching, JumpToA32BitTask)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    write_task32(machine, {});
    cpu.gpr[Rax] = 0x1234'5678;
    cpu.gpr[Rdi] = 0x8765'4321;
    cpu.set_flags(0x246);
    cpu.dr7 = Dr7::reset | 0x3ff;
    far_jump(cpu, tss2, 0, 4, return_rip);
    EXPECT_EQ(cpu.rip, task_rip);
    EXPECT_EQ(cpu.flags(), 0x202U);
    EXPECT_EQ(cpu.gpr[Rax], 0xa000'0000U);
    EXPECT_EQ(cpu.gpr[Rdi], 0xa000'0007U);
    EXPECT_EQ(cpu.gpr[Rsp], task_stack_top);
    EXPECT_EQ(cpu.tr.selector, tss2);
    EXPECT_EQ(cpu.tr.base, tss2_base);
    EXPECT_EQ(cpu.tr.type, system_type::tss_busy);
    EXPECT_EQ(cpu.ldt.base, ldt_base);
    EXPECT_TRUE(Cr0{cpu.cr0}.get(Cr0::TS));
    EXPECT_EQ(cpu.dr7, (Dr7::reset | 0x3ffU) & ~std::uint64_t{0x155});
    EXPECT_EQ(access_of(machine, tss), 0x89U) << "the old one is free";
    EXPECT_EQ(access_of(machine, tss2), 0x8bU) << "the new one is busy";
    EXPECT_EQ(machine.at<std::uint16_t>(tss2_base), 0x7777U) << "JMP sets no back link";
    // The old task's registers.
    EXPECT_EQ(machine.at<std::uint32_t>(tss_base + 0x20), return_rip);
    EXPECT_EQ(machine.at<std::uint32_t>(tss_base + 0x24), 0x246U);
    EXPECT_EQ(machine.at<std::uint32_t>(tss_base + 0x28), 0x1234'5678U);
    EXPECT_EQ(machine.at<std::uint32_t>(tss_base + 0x44), 0x8765'4321U);
    EXPECT_EQ(machine.at<std::uint32_t>(tss_base + 0x38), stack_top);
    EXPECT_EQ(machine.at<std::uint16_t>(tss_base + 0x4c), code0);
    EXPECT_EQ(machine.at<std::uint16_t>(tss_base + 0x50), data0);
}

TEST(TaskSwitching, CallAndIret)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    write_task32(machine, {});
    cpu.gpr[Rbx] = 0x55;
    far_call(cpu, tss2, 0, 4, return_rip);
    EXPECT_EQ(cpu.flags(), 0x202U | Rflags::NT.mask);
    EXPECT_EQ(machine.at<std::uint16_t>(tss2_base), tss) << "back link";
    EXPECT_EQ(access_of(machine, tss), 0x8bU) << "stays busy";
    EXPECT_EQ(access_of(machine, tss2), 0x8bU);
    interrupt_return(cpu, 4, task_rip + 1);
    EXPECT_EQ(cpu.rip, return_rip);
    EXPECT_EQ(cpu.gpr[Rbx], 0x55U);
    EXPECT_EQ(cpu.tr.selector, tss);
    EXPECT_EQ(access_of(machine, tss), 0x8bU);
    EXPECT_EQ(access_of(machine, tss2), 0x89U);
    EXPECT_EQ(machine.at<std::uint32_t>(tss2_base + 0x20), task_rip + 1);
    EXPECT_EQ(machine.at<std::uint32_t>(tss2_base + 0x24), 0x202U) << "NT is cleared in the image";
}

TEST(TaskSwitching, To16BitTaskAndBack)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    write_task16(machine);
    far_call(cpu, tss16, 0, 4, return_rip);
    EXPECT_EQ(cpu.rip, 0x4000U);
    EXPECT_EQ(cpu.gpr[Rax], 0xb000U);
    EXPECT_EQ(cpu.gpr[Rdi], 0xb007U);
    EXPECT_EQ(cpu.flags(), 0x202U | Rflags::NT.mask);
    EXPECT_EQ(cpu.seg[Fs].unusable, 1U);
    EXPECT_EQ(access_of(machine, tss16), 0x83U);
    EXPECT_EQ(machine.at<std::uint16_t>(tss16_base), tss);
    interrupt_return(cpu, 4, 0x4001);
    EXPECT_EQ(cpu.rip, return_rip);
    EXPECT_EQ(machine.at<std::uint16_t>(tss16_base + 0x0e), 0x4001U);
    EXPECT_EQ(machine.at<std::uint16_t>(tss16_base + 0x2a), ldt) << "static";
}

TEST(TaskSwitching, ToLevelThreeAndVirtual8086Mode)
{
    SystemMachine machine;
    machine.set_protected(0);
    Task user{};
    user.code = code3;
    user.data = data3;
    write_task32(machine, user);
    far_jump(machine.cpu, tss2, 0, 4, return_rip);
    EXPECT_EQ(machine.cpu.cpl, 3U);
    machine.fill_tables();
    machine.set_protected(0);
    Task dos{};
    dos.code = 0x1000;
    dos.data = 0x2000;
    dos.rip = 0x100;
    dos.flags = static_cast<std::uint32_t>(Rflags::VM.mask) | 0x202;
    write_task32(machine, dos);
    far_jump(machine.cpu, tss2, 0, 4, return_rip);
    EXPECT_TRUE(machine.cpu.virtual_8086());
    EXPECT_EQ(machine.cpu.cpl, 3U);
    EXPECT_EQ(machine.cpu.seg[Cs].base, 0x1'0000U);
    EXPECT_EQ(machine.cpu.seg[Gs].base, 0x2'0000U);
}

TEST(TaskSwitching, LoadsCr3WithPagingOnly)
{
    SystemMachine machine;
    machine.set_protected(0);
    write_task32(machine, {});
    machine.cpu.cr3 = 0x1'2000;
    far_jump(machine.cpu, tss2, 0, 4, return_rip);
    EXPECT_EQ(machine.cpu.cr3, 0x1'2000U);

    SystemMachine paged;
    paged.set_protected(0);
    write_task32(paged, {});
    paged.memory.put<std::uint64_t>(0x6000, 0x87);  // A second directory that maps the same.
    paged.cpu.cr0 |= Cr0::PG.mask;
    paged.cpu.cr4 = Cr4::PSE.mask;
    paged.cpu.cr3 = 0x6000;
    paged.cpu.state_changed();
    far_jump(paged.cpu, tss2, 0, 4, return_rip);
    EXPECT_EQ(paged.cpu.cr3, tables_base + 0x3000);
    EXPECT_EQ(paged.cpu.rip, task_rip);
}

TEST(TaskSwitching, RefusedInTheOldTask)
{
    SystemMachine machine;
    machine.set_protected(0);
    write_task32(machine, {});
    EXPECT_EQ(switch_outcome(machine, tss, TaskSwitch::Jump), fault(Vector::GP, tss)) << "busy";
    EXPECT_EQ(switch_outcome(machine, tss2, TaskSwitch::Iret), fault(Vector::TS, tss2))
        << "not busy";
    EXPECT_EQ(switch_outcome(machine, 0, TaskSwitch::Jump), fault(Vector::GP));
    EXPECT_EQ(switch_outcome(machine, tss2 | 4, TaskSwitch::Jump), fault(Vector::GP, tss2 | 4));
    EXPECT_EQ(switch_outcome(machine, tss2 | 4, TaskSwitch::Iret), fault(Vector::TS, tss2 | 4));
    EXPECT_EQ(switch_outcome(machine, beyond, TaskSwitch::Call), fault(Vector::GP, beyond));
    EXPECT_EQ(switch_outcome(machine, data0, TaskSwitch::Call), fault(Vector::GP, data0));
    machine.set_descriptor(tss2, descriptor(tss2_base, 0x67, 0x09, 0));
    EXPECT_EQ(switch_outcome(machine, tss2, TaskSwitch::Jump), fault(Vector::NP, tss2));
    machine.set_descriptor(tss2, descriptor(tss2_base, 0x66, 0x89, 0));
    EXPECT_EQ(switch_outcome(machine, tss2, TaskSwitch::Jump), fault(Vector::TS, tss2));
    machine.set_descriptor(tss16, descriptor(tss16_base, 0x2a, 0x81, 0));
    EXPECT_EQ(switch_outcome(machine, tss16, TaskSwitch::Jump), fault(Vector::TS, tss16));
}

TEST(TaskSwitching, PrivilegeOfTheDescriptor)
{
    SystemMachine machine;
    machine.set_protected(3);
    write_task32(machine, {});
    EXPECT_EQ(outcome_of(machine.cpu, [&] { far_jump(machine.cpu, tss2 | 3, 0, 4, 0); }),
              fault(Vector::GP, tss2));
    machine.set_descriptor(gate, gate_descriptor(tss2, 0, 0xe5));
    EXPECT_EQ(outcome_of(machine.cpu, [&] { far_jump(machine.cpu, gate | 3, 0, 4, 0); }), fine)
        << "a task gate lends its own";
    EXPECT_EQ(machine.cpu.cpl, 0U);
    EXPECT_EQ(machine.cpu.rip, task_rip);
}

struct LateCase {
    Task task;
    Outcome outcome;
};

TEST(TaskSwitching, FaultsOfTheNewTask)
{
    const auto with = [](auto change, Outcome outcome) {
        LateCase result{{}, outcome};
        change(result.task);
        return result;
    };
    const LateCase cases[] = {
        with([](Task&) {}, fine),
        with([](Task& task) { task.code = 0; }, fault(Vector::TS)),
        with([](Task& task) { task.code = data0; }, fault(Vector::TS, data0)),
        with([](Task& task) { task.code = code3 & 0xfffc; }, fault(Vector::TS, code3 & 0xfffc)),
        with([](Task& task) { task.code = absent_code0; }, fault(Vector::NP, absent_code0)),
        with([](Task& task) { task.code = small_code0; }, fault(Vector::GP)),
        with([](Task& task) { task.data = 0; }, fault(Vector::TS)),
        with([](Task& task) { task.data = code0; }, fault(Vector::TS, code0)),
        with([](Task& task) { task.data = absent_data0; }, fault(Vector::SS, absent_data0)),
        with([](Task& task) { task.data = beyond; }, fault(Vector::TS, beyond)),
        with([](Task& task) { task.ldt_selector = 0; }, fine),
        with([](Task& task) { task.ldt_selector = data0; }, fault(Vector::TS, data0)),
        with([](Task& task) { task.ldt_selector = ldt | 4; }, fault(Vector::TS, ldt | 4)),
    };
    for (const LateCase& test : cases) {
        SystemMachine machine;
        machine.set_protected(0);
        write_task32(machine, test.task);
        EXPECT_EQ(switch_outcome(machine, tss2, TaskSwitch::Jump), test.outcome)
            << std::hex << test.task.code << " " << test.task.data;
        EXPECT_EQ(machine.cpu.tr.selector, tss2) << "the switch itself is done";
        EXPECT_EQ(machine.cpu.rip, task_rip);
    }
}

TEST(TaskSwitching, TrapBitOfTheNewTask)
{
    SystemMachine machine;
    machine.set_protected(0);
    Task task{};
    task.trap = 1;
    write_task32(machine, task);
    far_jump(machine.cpu, tss2, 0, 4, return_rip);
    EXPECT_EQ(machine.cpu.pending_debug, Dr6::BT.mask);
}

TEST(TaskSwitching, ExceptionThroughATaskGatePushesItsErrorCode)
{
    SystemMachine machine;
    machine.set_protected(3);
    write_task32(machine, {});
    machine.set_gate(13, gate_descriptor(tss2, 0, 0x85));
    ASSERT_TRUE(deliver_fault(machine.cpu, {Vector::GP, true, 0x1234, 0}));
    EXPECT_EQ(machine.cpu.cpl, 0U);
    EXPECT_EQ(machine.cpu.rip, task_rip);
    EXPECT_EQ(machine.cpu.gpr[Rsp], task_stack_top - 4);
    EXPECT_EQ(machine.at<std::uint32_t>(task_stack_top - 4), 0x1234U);
    EXPECT_EQ(machine.at<std::uint32_t>(tss_base + 0x20), code_rip);
    EXPECT_EQ(machine.at<std::uint32_t>(tss_base + 0x24), 2U | Rflags::RF.mask);
    EXPECT_EQ(machine.cpu.flags(), 0x202U | Rflags::NT.mask);
}

TEST(TaskSwitching, FaultInTheNewTaskIsDeliveredThere)
{
    SystemMachine machine;
    machine.set_protected(0);
    Task task{};
    task.data = beyond;
    write_task32(machine, task);
    machine.set_gate(8, gate_descriptor(code0, 0x1'5000, 0x8e));
    machine.set_gate(0x30, gate_descriptor(tss2, 0, 0x85));
    machine.set_gate(10, gate_descriptor(code0, 0x1'6000, 0x8e));
    Event event{};
    event.kind = EventKind::ExternalInterrupt;
    event.vector = 0x30;
    // SS of the new task is not there, so that #TS cannot push either, nor can #DF: shutdown.
    EXPECT_FALSE(deliver(machine.cpu, event));
    EXPECT_EQ(machine.cpu.tr.selector, tss2);
}

}  // namespace
}  // namespace vmm::x86::soft::test
