// SPDX-License-Identifier: Apache-2.0

/// The handlers that `select_system` chooses.

#include "soft/system_fixture.hpp"
#include "x86/msr.hpp"
#include "x86/soft/system_handlers.hpp"

namespace vmm::x86::soft::test {
namespace {

const Outcome gp = fault(Vector::GP);
const Outcome ud = fault(Vector::UD);

const Op* stop(Cpu& /*cpu*/, const Op* /*op*/)
{
    return nullptr;
}

/// Selects and executes one instruction at `code_rip`, as a block of its own would.
struct Instruction {
    Insn insn{};
    std::uint64_t address{};  ///< Of its memory operand, absolute.

    Instruction(OpcodeMap map, std::uint8_t opcode)
    {
        insn.map = map;
        insn.opcode = opcode;
        insn.mod = 3;
        insn.length = 2;
        insn.operand_size = 4;
        insn.segment = Ds;
    }
    Instruction& modrm(std::uint8_t value)
    {
        insn.has_modrm = true;
        insn.modrm = value;
        insn.mod = value >> 6U;
        insn.group = (value >> 3U) & 7U;
        insn.reg = insn.group;
        insn.rm = value & 7U;
        return *this;
    }
    Instruction& memory(std::uint64_t at)
    {
        insn.mod = 0;
        insn.has_memory = true;
        address = at;
        return *this;
    }
    Instruction& size(std::uint8_t bytes)
    {
        insn.operand_size = bytes;
        insn.rex_w = bytes == 8;
        return *this;
    }

    Outcome run(SystemMachine& machine)
    {
        Cpu& cpu = machine.cpu;
        SelectContext context{};
        context.code_size = cpu.code_size;
        context.protected_mode = cpu.protected_mode() && !cpu.virtual_8086();
        context.virtual_8086 = cpu.virtual_8086();
        std::array<Op, 2> ops{};
        Op& op = ops[0];
        op.length = insn.length;
        op.reg = static_cast<std::uint8_t>(insn.reg * 8U);
        op.rm = static_cast<std::uint8_t>(insn.rm * 8U);
        op.base = zero_slot;
        op.index = zero_slot;
        op.displacement = static_cast<std::int32_t>(address);
        op.segment = insn.segment;
        op.operand_size = insn.operand_size;
        op.address_size = cpu.code_64() ? 8 : 4;
        op.address_kind = cpu.code_64() ? AddressKind::Flat64 : AddressKind::Segmented;
        op.handler = select_system(insn, context, op);
        ops[1].handler = stop;
        if (op.handler == nullptr) {
            ADD_FAILURE() << "no handler";
            return fine;
        }
        cpu.gpr[17] = cpu.rip;
        cpu.current = &op;
        return outcome_of(cpu, [&] { ended_block = op.handler(cpu, &op) == nullptr; });
    }

    bool ended_block{};
};

Instruction primary(std::uint8_t opcode)
{
    return {OpcodeMap::Primary, opcode};
}
Instruction two_byte(std::uint8_t opcode)
{
    return {OpcodeMap::Map0F, opcode};
}

// --- Segment registers

TEST(SystemInstruction, MovSegment)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.cpu.gpr[Rax] = data3;
    EXPECT_EQ(primary(0x8e).modrm(0xd8).run(machine), fine);
    EXPECT_EQ(machine.cpu.seg[Ds].selector, data3);
    machine.cpu.gpr[Rbx] = ~std::uint64_t{0};
    EXPECT_EQ(primary(0x8c).modrm(0xdb).run(machine), fine);
    EXPECT_EQ(machine.cpu.gpr[Rbx], data3);
    machine.cpu.gpr[Rbx] = ~std::uint64_t{0};
    EXPECT_EQ(primary(0x8c).modrm(0xdb).size(2).run(machine), fine);
    EXPECT_EQ(machine.cpu.gpr[Rbx], 0xffff'ffff'ffff'0000U | data3);
    EXPECT_EQ(primary(0x8c).modrm(0x18).memory(0x6000).run(machine), fine);
    EXPECT_EQ(machine.at<std::uint32_t>(0x6000), data3);
    EXPECT_EQ(primary(0x8e).modrm(0xc8).run(machine), ud) << "CS";
    EXPECT_EQ(primary(0x8e).modrm(0xf0).run(machine), ud);
}

TEST(SystemInstruction, StackSegmentLoadsShadow)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.cpu.gpr[Rax] = data0;
    EXPECT_EQ(primary(0x8e).modrm(0xd0).run(machine), fine);
    EXPECT_TRUE(machine.cpu.mov_ss_shadow);
    EXPECT_EQ(machine.cpu.rip, code_rip + 2);
    machine.cpu.mov_ss_shadow = false;
    machine.memory.put<std::uint32_t>(stack_top, data0);
    EXPECT_EQ(primary(0x17).run(machine), fine);
    EXPECT_TRUE(machine.cpu.mov_ss_shadow);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top + 4);
    machine.cpu.mov_ss_shadow = false;
    machine.memory.put<std::uint32_t>(0x6000, 0x1'1111);
    machine.memory.put<std::uint16_t>(0x6004, data0);
    EXPECT_EQ(two_byte(0xb2).modrm(0x20).memory(0x6000).run(machine), fine);
    EXPECT_FALSE(machine.cpu.mov_ss_shadow) << "LSS needs none";
    EXPECT_EQ(machine.cpu.gpr[Rsp], 0x1'1111U);
}

TEST(SystemInstruction, PushAndPopSegment)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.memory.put<std::uint32_t>(stack_top - 4, 0xdead'beef);
    EXPECT_EQ(primary(0x1e).run(machine), fine);
    EXPECT_EQ(machine.at<std::uint32_t>(stack_top - 4), 0xdead'0000U | data0)
        << "the upper half of the slot is not written";
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top - 4);
    machine.memory.put<std::uint32_t>(stack_top - 4, data3);
    EXPECT_EQ(primary(0x07).run(machine), fine);
    EXPECT_EQ(machine.cpu.seg[Es].selector, data3);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top);
    machine.memory.put<std::uint32_t>(stack_top, beyond);
    EXPECT_EQ(primary(0x07).run(machine), fault(Vector::GP, beyond));
    machine.set_long(0);
    EXPECT_EQ(two_byte(0xa0).run(machine), fine);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top - 8);
    EXPECT_EQ(machine.at<std::uint64_t>(stack_top - 8), data0);
    EXPECT_EQ(primary(0x1e).run(machine), ud);
}

// --- Descriptor tables and checks

TEST(SystemInstruction, DescriptorTables)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.memory.put<std::uint16_t>(0x6000, 0x1234);
    machine.memory.put<std::uint32_t>(0x6002, 0xdead'2000);
    EXPECT_EQ(two_byte(0x01).modrm(0x18).memory(0x6000).run(machine), fine);
    EXPECT_EQ(machine.cpu.idt.base, 0xdead'2000U);
    EXPECT_EQ(machine.cpu.idt.limit, 0x1234U);
    EXPECT_EQ(two_byte(0x01).modrm(0x18).memory(0x6000).size(2).run(machine), fine);
    EXPECT_EQ(machine.cpu.idt.base, 0xad'2000U);
    EXPECT_EQ(two_byte(0x01).modrm(0x08).memory(0x6010).run(machine), fine);
    EXPECT_EQ(machine.at<std::uint32_t>(0x6012), 0xad'2000U);
    machine.set_protected(3);
    EXPECT_EQ(two_byte(0x01).modrm(0x10).memory(0x6000).run(machine), gp);
    EXPECT_EQ(two_byte(0x01).modrm(0x00).memory(0x6000).run(machine), fine);
    machine.cpu.cr4 = Cr4::UMIP.mask;
    EXPECT_EQ(two_byte(0x01).modrm(0x00).memory(0x6000).run(machine), gp);
    EXPECT_EQ(two_byte(0x00).modrm(0xc0).run(machine), gp);
    EXPECT_EQ(two_byte(0x01).modrm(0xe0).run(machine), gp);
    machine.set_long(0);
    machine.memory.put<std::uint64_t>(0x6002, 0x8000'0000'0000);
    EXPECT_EQ(two_byte(0x01).modrm(0x18).memory(0x6000).run(machine), gp);
    machine.memory.put<std::uint64_t>(0x6002, 0xffff'8000'0000'0000);
    EXPECT_EQ(two_byte(0x01).modrm(0x18).memory(0x6000).run(machine), fine);
    EXPECT_EQ(machine.cpu.idt.base, 0xffff'8000'0000'0000);
}

TEST(SystemInstruction, LdtAndTaskRegister)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    const auto load = [&](std::uint8_t modrm, std::uint16_t selector) {
        cpu.gpr[Rax] = selector;
        return two_byte(0x00).modrm(modrm).run(machine);
    };
    machine.set_protected(0);
    EXPECT_EQ(load(0xd0, ldt), fine);
    EXPECT_EQ(load(0xd0, 0), fine);
    EXPECT_EQ(cpu.ldt.unusable, 1U);
    EXPECT_EQ(load(0xd0, tss2), fault(Vector::GP, tss2));
    EXPECT_EQ(load(0xd0, ldt | 4), fault(Vector::GP, ldt | 4));
    EXPECT_EQ(load(0xd0, beyond), fault(Vector::GP, beyond));
    EXPECT_EQ(load(0xd8, tss2), fine);
    EXPECT_EQ(cpu.tr.base, tss2_base);
    EXPECT_EQ((machine.get_descriptor(tss2) >> 40U) & 0xffU, 0x8bU);
    EXPECT_EQ(load(0xd8, tss2), fault(Vector::GP, tss2)) << "busy";
    EXPECT_EQ(load(0xd8, 0), gp);
    EXPECT_EQ(load(0xd8, tss16), fine);
    machine.set_descriptor(tss2, descriptor(tss2_base, 0x67, 0x09, 0));
    EXPECT_EQ(load(0xd8, tss2), fault(Vector::NP, tss2));
    machine.fill_tables();
    machine.set_long(0);
    EXPECT_EQ(load(0xd8, tss16), fault(Vector::GP, tss16));
    machine.set_descriptor(tss64 + 8, 0xffff'8000);
    EXPECT_EQ(load(0xd8, tss64), fine);
    EXPECT_EQ(cpu.tr.base, 0xffff'8000'0000'0000 + tss_base);
    machine.fill_tables();
    machine.set_descriptor(tss64 + 8, 0x8000);
    EXPECT_EQ(load(0xd8, tss64), fault(Vector::GP, tss64)) << "base not canonical";
    machine.set_protected(3);
    EXPECT_EQ(load(0xd0, ldt), gp);
    machine.set_real();
    EXPECT_EQ(load(0xd0, ldt), ud);
    machine.set_virtual_8086(3);
    EXPECT_EQ(two_byte(0x00).modrm(0xc8).run(machine), ud) << "STR";
}

TEST(SystemInstruction, LarLslVerrVerw)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    const auto run = [&](std::uint8_t opcode, std::uint8_t modrm, std::uint16_t selector) {
        cpu.gpr[Rax] = selector;
        cpu.gpr[Rbx] = 0x1111;
        EXPECT_EQ(two_byte(opcode).modrm(modrm).run(machine), fine);
        return Rflags{cpu.flags()}.get(Rflags::ZF);
    };
    const auto lar = [&](std::uint16_t selector) { return run(0x02, 0xd8, selector); };
    const auto lsl = [&](std::uint16_t selector) { return run(0x03, 0xd8, selector); };
    const auto verr = [&](std::uint16_t selector) { return run(0x00, 0xe0, selector); };
    const auto verw = [&](std::uint16_t selector) { return run(0x00, 0xe8, selector); };
    machine.set_protected(0);
    EXPECT_TRUE(lar(code0));
    EXPECT_EQ(cpu.gpr[Rbx], 0xcf'9b00U);
    EXPECT_TRUE(lar(absent_data0)) << "absent is no obstacle";
    EXPECT_FALSE(lar(0));
    EXPECT_EQ(cpu.gpr[Rbx], 0x1111U);
    EXPECT_FALSE(lar(beyond));
    EXPECT_FALSE(lar(data0 | 3)) << "RPL 3, DPL 0";
    EXPECT_TRUE(lar(conforming0 | 3));
    EXPECT_TRUE(lsl(data0));
    EXPECT_EQ(cpu.gpr[Rbx], 0xffff'ffffU);
    EXPECT_TRUE(lsl(tss2));
    EXPECT_EQ(cpu.gpr[Rbx], 0x67U);
    machine.set_descriptor(gate, gate_descriptor(code0, 0, 0x8c));
    EXPECT_TRUE(lar(gate));
    EXPECT_FALSE(lsl(gate)) << "a gate has no limit";
    machine.set_descriptor(gate, gate_descriptor(code0, 0, 0x8e));
    EXPECT_FALSE(lar(gate)) << "an interrupt gate is not for GDTs";
    EXPECT_TRUE(verr(code0));
    EXPECT_FALSE(verr(execute_only0));
    EXPECT_FALSE(verr(tss2));
    EXPECT_TRUE(verw(data0));
    EXPECT_FALSE(verw(read_only0));
    EXPECT_FALSE(verw(code0));
    machine.set_protected(3);
    EXPECT_FALSE(verr(data0));
    EXPECT_TRUE(verr(conforming0));
    machine.set_long(0);
    EXPECT_FALSE(lar(tss16));
    EXPECT_TRUE(lar(tss2));
}

TEST(SystemInstruction, Arpl)
{
    SystemMachine machine;
    machine.set_protected(3);
    machine.cpu.gpr[Rax] = 0xffff'1231;
    machine.cpu.gpr[Rbx] = 3;
    EXPECT_EQ(primary(0x63).modrm(0xd8).run(machine), fine);
    EXPECT_EQ(machine.cpu.gpr[Rax], 0xffff'1233U);
    EXPECT_TRUE(Rflags{machine.cpu.flags()}.get(Rflags::ZF));
    EXPECT_EQ(primary(0x63).modrm(0xd8).run(machine), fine);
    EXPECT_FALSE(Rflags{machine.cpu.flags()}.get(Rflags::ZF));
    machine.set_real();
    EXPECT_EQ(primary(0x63).modrm(0xd8).run(machine), ud);
}

// --- Control and debug registers

TEST(SystemInstruction, MovControlRegister)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    EXPECT_EQ(two_byte(0x20).modrm(0xc0).run(machine), fine);
    EXPECT_EQ(cpu.gpr[Rax], cpu.cr0);
    cpu.gpr[Rax] = 0x1234'5678;
    EXPECT_EQ(two_byte(0x22).modrm(0xd0).run(machine), fine);
    EXPECT_EQ(cpu.cr2, 0x1234'5678U);
    EXPECT_EQ(two_byte(0x22).modrm(0xc8).run(machine), ud) << "CR1";
    EXPECT_EQ(two_byte(0x20).modrm(0xe8).run(machine), ud) << "CR5";
    machine.set_long(0);
    Instruction cr8 = two_byte(0x22).modrm(0xc0);
    cr8.insn.reg = 8;
    cpu.gpr[Rax] = 0x10;
    EXPECT_EQ(cr8.run(machine), gp);
    cpu.gpr[Rax] = 0xf;
    EXPECT_EQ(cr8.run(machine), fine);
    EXPECT_EQ(machine.host.cr8, 0xfU);
    machine.set_long(3);
    EXPECT_EQ(two_byte(0x20).modrm(0xc0).run(machine), gp);
    EXPECT_EQ(two_byte(0x22).modrm(0xc0).run(machine), gp);
    EXPECT_EQ(two_byte(0x06).run(machine), gp) << "CLTS";
}

TEST(SystemInstruction, LeavingProtectedModeGoesOnBehindTheInstruction)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.cpu.gpr[Rax] = Cr0::ET.mask;
    EXPECT_EQ(two_byte(0x22).modrm(0xc0).run(machine), fine);
    EXPECT_FALSE(machine.cpu.protected_mode());
    EXPECT_EQ(machine.cpu.rip, code_rip + 2);
}

TEST(SystemInstruction, MachineStatusWord)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    cpu.gpr[Rax] = 0xfffe;
    EXPECT_EQ(two_byte(0x01).modrm(0xf0).run(machine), fine);
    EXPECT_EQ(cpu.cr0, mask_of(Cr0::PE, Cr0::MP, Cr0::EM, Cr0::TS, Cr0::ET)) << "PE stays";
    cpu.gpr[Rax] = 0;
    EXPECT_EQ(two_byte(0x01).modrm(0xf0).run(machine), fine);
    EXPECT_EQ(cpu.cr0, mask_of(Cr0::PE, Cr0::ET));
    EXPECT_EQ(two_byte(0x01).modrm(0xe3).run(machine), fine);
    EXPECT_EQ(cpu.gpr[Rbx], cpu.cr0);
    machine.set_real();
    cpu.gpr[Rax] = 1;
    EXPECT_EQ(two_byte(0x01).modrm(0xf0).run(machine), fine);
    EXPECT_TRUE(cpu.protected_mode());
}

TEST(SystemInstruction, DebugRegisters)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    const auto write = [&](unsigned number, std::uint64_t value) {
        cpu.gpr[Rax] = value;
        return two_byte(0x23).modrm(static_cast<std::uint8_t>(0xc0U | (number << 3U))).run(machine);
    };
    EXPECT_EQ(write(0, 0xffff'8000'0000'0000), fine);
    EXPECT_EQ(cpu.dr[0], 0xffff'8000'0000'0000);
    EXPECT_EQ(write(6, 0xffff'ffff), fine);
    EXPECT_EQ(cpu.dr6, 0xffff'efff);
    EXPECT_EQ(write(4, 0), fine) << "an alias of DR6";
    EXPECT_EQ(cpu.dr6, Dr6::reset);
    EXPECT_EQ(write(7, 0xffff'dfff), fine);
    EXPECT_EQ(cpu.dr7, 0xffff'07ff);
    EXPECT_EQ(write(7, 0x1'0000'0000), gp);
    EXPECT_EQ(write(6, 0x1'0000'0000), gp);
    cpu.cr4 |= Cr4::DE.mask;
    EXPECT_EQ(write(5, 0), ud);
    EXPECT_EQ(write(7, Dr7::GD.mask), fine);
    EXPECT_EQ(write(0, 0), fault(Vector::DB));
    EXPECT_EQ(two_byte(0x21).modrm(0xc0).run(machine), fault(Vector::DB));
    cpu.dr7 = Dr7::reset;
    machine.set_long(3);
    EXPECT_EQ(write(0, 0), gp);
}

// --- MSRs with an answer from the caller

TEST(SystemInstruction, MsrExits)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    machine.host.user_msrs.insert(0x1234);
    cpu.gpr[Rcx] = 0xffff'ffff'0000'1234;
    cpu.gpr[Rax] = 0xdead'beef'1111'1111;
    cpu.gpr[Rdx] = 0x2222'2222;
    EXPECT_EQ(two_byte(0x30).run(machine), fine);
    EXPECT_TRUE(cpu.exit_pending);
    EXPECT_EQ(cpu.exit.reason, EngineExit::Reason::MsrWrite);
    EXPECT_EQ(cpu.exit.msr, 0x1234U);
    EXPECT_EQ(cpu.exit.msr_value, 0x2222'2222'1111'1111U);
    EXPECT_EQ(cpu.rip, code_rip);
    complete_msr(cpu);
    EXPECT_EQ(cpu.rip, code_rip + 2);
    EXPECT_EQ(cpu.gpr[Rax], 0xdead'beef'1111'1111U);

    cpu.rip = code_rip;
    cpu.exit_pending = false;
    EXPECT_EQ(two_byte(0x32).run(machine), fine);
    EXPECT_EQ(cpu.exit.reason, EngineExit::Reason::MsrRead);
    ASSERT_NE(cpu.exit.msr_answer, nullptr);
    cpu.exit.msr_answer->value = 0x7777'7777'8888'8888;
    complete_msr(cpu);
    EXPECT_EQ(cpu.gpr[Rax], 0x8888'8888U);
    EXPECT_EQ(cpu.gpr[Rdx], 0x7777'7777U);
    EXPECT_EQ(cpu.rip, code_rip + 2);

    cpu.gpr[Rcx] = 0x9999;
    EXPECT_EQ(two_byte(0x32).run(machine), gp);
    machine.set_long(3);
    EXPECT_EQ(two_byte(0x32).run(machine), gp);
    EXPECT_EQ(two_byte(0x30).run(machine), gp);
}

// --- The rest

TEST(SystemInstruction, Halt)
{
    SystemMachine machine;
    machine.set_long(0);
    EXPECT_EQ(primary(0xf4).run(machine), fine);
    EXPECT_TRUE(machine.cpu.exit_pending);
    EXPECT_EQ(machine.cpu.exit.reason, EngineExit::Reason::Halt);
    EXPECT_EQ(machine.cpu.rip, code_rip + 2);
    machine.set_long(3);
    EXPECT_EQ(primary(0xf4).run(machine), gp);
}

TEST(SystemInstruction, SoftwareInterruptReturnsBehindItself)
{
    SystemMachine machine;
    machine.set_long(3);
    machine.set_gate64(0x80, long0, 0x1'2340, 0xee);
    machine.set_gate64(3, long0, 0x1'2350, 0xee);
    Instruction int80 = primary(0xcd);
    int80.insn.immediate = 0xffff'ffff'ffff'ff80;  // Whether sign-extended or not.
    EXPECT_EQ(int80.run(machine), fine);
    EXPECT_EQ(machine.cpu.rip, 0x1'2340U);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 40), code_rip + 2);
    EXPECT_TRUE(machine.cpu.no_step_trap);
    machine.set_long(3);
    Instruction int3 = primary(0xcc);
    int3.insn.length = 1;
    EXPECT_EQ(int3.run(machine), fine);
    EXPECT_EQ(machine.at<std::uint64_t>(stack0_top - 40), code_rip + 1);
    machine.set_long(3);
    machine.set_gate64(0x80, long0, 0x1'2340, 0x8e);
    EXPECT_EQ(int80.run(machine), fault(Vector::GP, 0x80 * 8 + 2));
}

TEST(SystemInstruction, Into)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.set_gate(4, gate_descriptor(code0, 0x1'2340, 0x8e));
    EXPECT_EQ(primary(0xce).run(machine), fine);
    EXPECT_EQ(machine.cpu.rip, code_rip) << "goes on in the block";
    machine.cpu.set_flags(2 | Rflags::OF.mask);
    EXPECT_EQ(primary(0xce).run(machine), fine);
    EXPECT_EQ(machine.cpu.rip, 0x1'2340U);
    machine.set_long(0);
    EXPECT_EQ(primary(0xce).run(machine), ud);
}

TEST(SystemInstruction, FarPointersAndReturns)
{
    SystemMachine machine;
    machine.set_protected(0);
    Instruction jump = primary(0xea);
    jump.insn.immediate = 0x1'2340;
    jump.insn.immediate2 = code0;
    EXPECT_EQ(jump.run(machine), fine);
    EXPECT_EQ(machine.cpu.rip, 0x1'2340U);
    machine.memory.put<std::uint32_t>(0x6000, 0x1'3000);
    machine.memory.put<std::uint16_t>(0x6004, code0);
    EXPECT_EQ(primary(0xff).modrm(0x18).memory(0x6000).run(machine), fine);
    EXPECT_EQ(machine.cpu.rip, 0x1'3000U);
    Instruction back = primary(0xca);
    back.insn.immediate = 8;
    EXPECT_EQ(back.run(machine), fine);
    EXPECT_EQ(machine.cpu.rip, 0x1'2342U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top + 8);
    machine.set_long(0);
    EXPECT_EQ(jump.run(machine), ud);
    // A far return pops 32 bits by default.
    machine.memory.put<std::uint32_t>(stack_top, 0x1'4000);
    machine.memory.put<std::uint32_t>(stack_top + 4, long0);
    EXPECT_EQ(primary(0xcb).run(machine), fine);
    EXPECT_EQ(machine.cpu.rip, 0x1'4000U);
    EXPECT_EQ(machine.cpu.gpr[Rsp], stack_top + 8);
}

TEST(SystemInstruction, FaultOfANewTaskIsDeliveredInIt)
{
    SystemMachine machine;
    machine.set_protected(0);
    // A task whose registers are all 0: CS is null, and nothing can be delivered.
    machine.memory.put<std::uint32_t>(tss2_base + 0x20, 0x1'4000);
    Instruction jump = primary(0xea);
    jump.insn.immediate2 = tss2;
    EXPECT_EQ(jump.run(machine), fine);
    EXPECT_TRUE(machine.cpu.exit_pending);
    EXPECT_EQ(machine.cpu.exit.reason, EngineExit::Reason::Shutdown);
}

TEST(SystemInstruction, TimeStampCounter)
{
    SystemMachine machine;
    machine.set_long(3);
    machine.cpu.tsc_aux = 5;
    EXPECT_EQ(two_byte(0x01).modrm(0xf9).run(machine), fine);
    EXPECT_EQ(machine.cpu.gpr[Rax], 0x9abc'def0U);
    EXPECT_EQ(machine.cpu.gpr[Rdx], 0x1234'5678U);
    EXPECT_EQ(machine.cpu.gpr[Rcx], 5U);
    machine.cpu.cr4 |= Cr4::TSD.mask;
    EXPECT_EQ(two_byte(0x31).run(machine), gp);
    machine.set_long(0);
    machine.cpu.cr4 |= Cr4::TSD.mask;
    EXPECT_EQ(two_byte(0x31).run(machine), fine);
}

TEST(SystemInstruction, CpuidFollowsTheState)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(3);
    const auto run = [&](std::uint32_t leaf, std::uint32_t index) {
        cpu.gpr[Rax] = leaf;
        cpu.gpr[Rcx] = index;
        EXPECT_EQ(two_byte(0xa2).run(machine), fine);
    };
    run(1, 0);
    EXPECT_EQ(cpu.gpr[Rcx] & (1U << 27U), 0U);
    cpu.cr4 |= Cr4::OSXSAVE.mask;
    run(1, 0);
    EXPECT_NE(cpu.gpr[Rcx] & (1U << 27U), 0U);
    cpu.xcr0 = 1;
    run(0xd, 0);
    EXPECT_EQ(cpu.gpr[Rbx], 576U);
    cpu.xcr0 = 7;
    run(0xd, 0);
    EXPECT_EQ(cpu.gpr[Rbx], 832U);
    EXPECT_EQ(cpu.gpr[Rcx], 832U);
}

TEST(SystemInstruction, ExtendedControlRegister)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    const auto set = [&](std::uint64_t value, std::uint32_t index = 0) {
        cpu.gpr[Rcx] = index;
        cpu.gpr[Rax] = value;
        cpu.gpr[Rdx] = value >> 32U;
        return two_byte(0x01).modrm(0xd1).run(machine);
    };
    EXPECT_EQ(set(7), ud);
    cpu.cr4 |= Cr4::OSXSAVE.mask;
    EXPECT_EQ(set(7), fine);
    EXPECT_EQ(cpu.xcr0, 7U);
    for (const std::uint64_t bad :
         {std::uint64_t{0}, std::uint64_t{2}, std::uint64_t{5}, std::uint64_t{9},
          std::uint64_t{0xe7}, std::uint64_t{1} << 32U | 3U}) {
        EXPECT_EQ(set(bad), gp) << bad;
    }
    EXPECT_EQ(set(7, 1), gp);
    cpu.gpr[Rcx] = 0;
    EXPECT_EQ(two_byte(0x01).modrm(0xd0).run(machine), fine);
    EXPECT_EQ(cpu.gpr[Rax], 7U);
    cpu.gpr[Rcx] = 2;
    EXPECT_EQ(two_byte(0x01).modrm(0xd0).run(machine), gp);
}

TEST(SystemInstruction, SupervisorAccessPrevention)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    write_cr4(cpu, cpu.cr4 | Cr4::SMAP.mask);
    const auto read = [&] {
        return outcome_of(cpu, [&] { static_cast<void>(load<std::uint8_t>(cpu, Ds, 0x1'0000)); });
    };
    // The tables' own page is the user's here: look through a TLB filled before.
    EXPECT_EQ(read(), fault(Vector::PF, page_fault::present));
    EXPECT_EQ(two_byte(0x01).modrm(0xcb).run(machine), fine);
    EXPECT_EQ(read(), fine);
    EXPECT_EQ(two_byte(0x01).modrm(0xca).run(machine), fine);
    EXPECT_EQ(read(), fault(Vector::PF, page_fault::present));
    Tlb* const now = cpu.tlb;
    cpu.mode_changed();
    EXPECT_EQ(cpu.tlb, now) << "CLAC's short way leads to the same";
    machine.set_long(3);
    EXPECT_EQ(two_byte(0x01).modrm(0xcb).run(machine), ud);
}

TEST(SystemInstruction, Bases)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    cpu.kernel_gs_base = 0x1111;
    cpu.seg[Gs].base = 0x2222;
    EXPECT_EQ(two_byte(0x01).modrm(0xf8).run(machine), fine);
    EXPECT_EQ(cpu.seg[Gs].base, 0x1111U);
    EXPECT_EQ(cpu.kernel_gs_base, 0x2222U);
    Instruction write = two_byte(0xae).modrm(0xd0).size(8);
    write.insn.rep = true;
    cpu.gpr[Rax] = 0x7fff'0000'0000;
    EXPECT_EQ(write.run(machine), ud);
    cpu.cr4 |= Cr4::FSGSBASE.mask;
    EXPECT_EQ(write.run(machine), fine);
    EXPECT_EQ(cpu.seg[Fs].base, 0x7fff'0000'0000U);
    cpu.gpr[Rax] = 0x8000'0000'0000;
    EXPECT_EQ(write.run(machine), gp);
    Instruction read = two_byte(0xae).modrm(0xc3).size(4);
    read.insn.rep = true;
    cpu.seg[Fs].base = 0x7fff'1234'5678;
    EXPECT_EQ(read.run(machine), fine);
    EXPECT_EQ(cpu.gpr[Rbx], 0x1234'5678U);
    machine.set_long(3);
    EXPECT_EQ(two_byte(0x01).modrm(0xf8).run(machine), gp);
    machine.set_long(3, true);
    EXPECT_EQ(two_byte(0x01).modrm(0xf8).run(machine), ud);
}

TEST(SystemInstruction, Invpcid)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    const auto run = [&](std::uint64_t type, std::uint64_t pcid, std::uint64_t linear) {
        machine.memory.put<std::uint64_t>(0x6000, pcid);
        machine.memory.put<std::uint64_t>(0x6008, linear);
        cpu.gpr[Rax] = type;
        Instruction insn{OpcodeMap::Map0F38, 0x82};
        insn.insn.operand_size_override = true;
        return insn.modrm(0x00).memory(0x6000).run(machine);
    };
    for (std::uint64_t type = 0; type < 4; ++type) {
        EXPECT_EQ(run(type, 0, 0x1'0000), fine);
    }
    EXPECT_EQ(run(4, 0, 0), gp);
    EXPECT_EQ(run(0, 1, 0), gp) << "PCIDs are off";
    EXPECT_EQ(run(2, 1, 0), fine);
    EXPECT_EQ(run(0, 0x1000, 0), gp);
    EXPECT_EQ(run(0, 0, 0x8000'0000'0000), gp);
    cpu.cr4 |= Cr4::PCIDE.mask;
    EXPECT_EQ(run(0, 1, 0), fine);
    machine.set_long(3);
    EXPECT_EQ(run(0, 0, 0), gp);
}

TEST(SystemInstruction, Invlpg)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    EXPECT_EQ(load<std::uint8_t>(cpu, Ds, 0x1'0000), machine.at<std::uint8_t>(0x1'0000));
    machine.memory.put<std::uint64_t>(tables_base + 0x2000, 0);
    EXPECT_EQ(outcome_of(cpu, [&] { static_cast<void>(load<std::uint8_t>(cpu, Ds, 0x1'0000)); }),
              fine)
        << "remembered";
    EXPECT_EQ(two_byte(0x01).modrm(0x38).memory(0x1'0123).run(machine), fine);
    EXPECT_EQ(outcome_of(cpu, [&] { static_cast<void>(load<std::uint8_t>(cpu, Ds, 0x1'0000)); }),
              fault(Vector::PF));
    machine.set_long(3);
    EXPECT_EQ(two_byte(0x01).modrm(0x38).memory(0x1'0123).run(machine), gp);
}

TEST(SystemInstruction, OthersInShort)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    const std::uint8_t hypercall = cpu.cpuid.is_intel() ? 0xc1 : 0xd9;
    EXPECT_EQ(two_byte(0x01).modrm(hypercall).run(machine), fine);
    EXPECT_EQ(machine.host.hypercalls, 1U);
    EXPECT_EQ(cpu.gpr[Rax], 42U);
    EXPECT_EQ(two_byte(0x09).run(machine), fine);
    EXPECT_EQ(two_byte(0x08).run(machine), fine);
    EXPECT_EQ(two_byte(0xaa).run(machine), ud) << "RSM";
    EXPECT_EQ(two_byte(0x33).run(machine), gp) << "RDPMC";
    EXPECT_EQ(two_byte(0xae).modrm(0x38).memory(0x6000).run(machine), fine) << "CLFLUSH";
    EXPECT_EQ(two_byte(0xae).modrm(0x38).memory(0x7000'0000).run(machine), fault(Vector::PF));
    EXPECT_EQ(two_byte(0xc7).modrm(0xf3).run(machine), fine) << "RDRAND";
    EXPECT_EQ(two_byte(0x01).modrm(0xc3).run(machine), ud) << "VMRESUME";
    cpu.gpr[Rax] = 0x6000;
    cpu.gpr[Rcx] = 0;
    EXPECT_EQ(two_byte(0x01).modrm(0xc8).run(machine), fine) << "MONITOR";
    cpu.gpr[Rcx] = 1;
    EXPECT_EQ(two_byte(0x01).modrm(0xc8).run(machine), gp);
    EXPECT_EQ(two_byte(0x01).modrm(0xc9).run(machine), fine) << "MWAIT";
    machine.set_long(3);
    EXPECT_EQ(two_byte(0x01).modrm(0xc8).run(machine), ud);
    EXPECT_EQ(two_byte(0x09).run(machine), gp);
}

// --- From bytes

TEST(SystemInstruction, EveryEncodingIsSelected)
{
    using Bytes = std::vector<std::uint8_t>;
    const auto selected = [](const Bytes& code, CodeSize size) {
        Insn insn{};
        if (decode(std::as_bytes(std::span{code}), size, insn) != DecodeStatus::Ok) {
            ADD_FAILURE() << "not decoded";
            return false;
        }
        EXPECT_EQ(insn.length, code.size());
        SelectContext context{};
        context.code_size = size;
        context.protected_mode = true;
        Op op{};
        const Handler handler = select_system(insn, context, op);
        return handler != nullptr && handler != undefined_instruction;
    };
    const std::vector<Bytes> everywhere{
        {0x8c, 0xd8},
        {0x8e, 0xd8},
        {0x8e, 0x18},
        {0x0f, 0xa0},
        {0x0f, 0xa9},
        {0x0f, 0xb2, 0x00},
        {0x0f, 0xb4, 0x00},
        {0x0f, 0xb5, 0x00},
        {0x0f, 0x00, 0xc0},
        {0x0f, 0x00, 0xc8},
        {0x0f, 0x00, 0xd0},
        {0x0f, 0x00, 0xd8},
        {0x0f, 0x00, 0xe0},
        {0x0f, 0x00, 0xe8},
        {0x0f, 0x01, 0x00},
        {0x0f, 0x01, 0x08},
        {0x0f, 0x01, 0x10},
        {0x0f, 0x01, 0x18},
        {0x0f, 0x01, 0xe0},
        {0x0f, 0x01, 0xf0},
        {0x0f, 0x01, 0x38},
        {0x0f, 0x01, 0xc1},
        {0x0f, 0x01, 0xc8},
        {0x0f, 0x01, 0xc9},
        {0x0f, 0x01, 0xca},
        {0x0f, 0x01, 0xcb},
        {0x0f, 0x01, 0xd0},
        {0x0f, 0x01, 0xd1},
        {0x0f, 0x01, 0xd9},
        {0x0f, 0x01, 0xf9},
        {0x0f, 0x02, 0xc3},
        {0x0f, 0x03, 0xc3},
        {0x0f, 0x05},
        {0x0f, 0x06},
        {0x0f, 0x07},
        {0x0f, 0x08},
        {0x0f, 0x09},
        {0x0f, 0x20, 0xc0},
        {0x0f, 0x21, 0xf8},
        {0x0f, 0x22, 0xd8},
        {0x0f, 0x23, 0xf0},
        {0x0f, 0x30},
        {0x0f, 0x31},
        {0x0f, 0x32},
        {0x0f, 0x33},
        {0x0f, 0x34},
        {0x0f, 0x35},
        {0x0f, 0xa2},
        {0x0f, 0xae, 0x38},
        {0x66, 0x0f, 0xae, 0x38},
        {0x66, 0x0f, 0xae, 0x30},
        {0x0f, 0xc7, 0xf0},
        {0x0f, 0xc7, 0xf8},
        {0xf3, 0x0f, 0xc7, 0xf8},
        {0x66, 0x0f, 0x38, 0x82, 0x00},
        {0xff, 0x18},
        {0xff, 0x28},
        {0xca, 0x08, 0x00},
        {0xcb},
        {0xcc},
        {0xcd, 0x80},
        {0xcf},
        {0xf1},
        {0xf4},
    };
    for (const CodeSize size : {CodeSize::Bits32, CodeSize::Bits64}) {
        for (const Bytes& code : everywhere) {
            EXPECT_TRUE(selected(code, size)) << testing::PrintToString(code);
        }
    }
    const std::vector<Bytes> legacy{
        {0x06},
        {0x07},
        {0x0e},
        {0x16},
        {0x17},
        {0x1e},
        {0x1f},
        {0xc4, 0x00},
        {0xc5, 0x00},
        {0x63, 0xd8},
        {0xce},
        {0x9a, 0, 0, 0, 0, 8, 0},
        {0xea, 0, 0, 0, 0, 8, 0},
    };
    for (const Bytes& code : legacy) {
        EXPECT_TRUE(selected(code, CodeSize::Bits32)) << testing::PrintToString(code);
    }
    const std::vector<Bytes> only_64{
        {0x0f, 0x01, 0xf8},       {0xf3, 0x0f, 0xae, 0xc0},       {0xf3, 0x0f, 0xae, 0xc8},
        {0xf3, 0x0f, 0xae, 0xd0}, {0xf3, 0x48, 0x0f, 0xae, 0xd8}, {0x48, 0xcf},
        {0x48, 0x0f, 0x07},       {0x44, 0x0f, 0x20, 0xc0},       {0x48, 0xcb},
    };
    for (const Bytes& code : only_64) {
        EXPECT_TRUE(selected(code, CodeSize::Bits64)) << testing::PrintToString(code);
    }
}

TEST(SystemInstruction, FarPointerFromBytes)
{
    constexpr std::array<std::uint8_t, 7> code{0xea, 0x78, 0x56, 0x34, 0xf2, 0x10, 0x20};
    Insn insn{};
    ASSERT_EQ(decode(std::as_bytes(std::span{code}), CodeSize::Bits32, insn), DecodeStatus::Ok);
    EXPECT_EQ(insn.immediate & 0xffff'ffffU, 0xf234'5678U);
    EXPECT_EQ(insn.immediate2, 0x2010U);
}

}  // namespace
}  // namespace vmm::x86::soft::test
