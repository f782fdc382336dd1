// SPDX-License-Identifier: Apache-2.0

/// Control registers, MSRs, I/O permission, breakpoints.

#include "soft/system_fixture.hpp"
#include "x86/msr.hpp"

namespace vmm::x86::soft::test {
namespace {

const Outcome gp = fault(Vector::GP);

// --- CR0

TEST(Cr0Write, Values)
{
    struct Case {
        std::uint64_t value;
        Outcome outcome;
    };
    const Case cases[] = {
        {Cr0::PE.mask, fine},
        {Cr0::PG.mask, gp},
        {mask_of(Cr0::PE, Cr0::NW), gp},
        {mask_of(Cr0::PE, Cr0::NW, Cr0::CD), fine},
        {Cr0::PE.mask | (std::uint64_t{1} << 32U), gp},
        {Cr0::PE.mask | 0x1000'0000U, fine},
        {mask_of(Cr0::PE, Cr0::PG), fine},
        {0, fine},
    };
    for (const Case& test : cases) {
        SystemMachine machine;
        machine.set_protected(0);
        EXPECT_EQ(outcome_of(machine.cpu, [&] { write_cr0(machine.cpu, test.value); }),
                  test.outcome)
            << std::hex << test.value;
        if (test.outcome == fine) {
            EXPECT_EQ(machine.cpu.cr0, (test.value & Cr0::defined) | Cr0::ET.mask);
        }
    }
}

TEST(Cr0Write, IntoLongModeAndOut)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    cpu.cr3 = tables_base;
    cpu.efer = Efer::LME.mask;
    constexpr std::uint64_t paging = mask_of(Cr0::PE, Cr0::PG);
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr0(cpu, paging); }), gp) << "without PAE";
    cpu.cr4 = Cr4::PAE.mask;
    cpu.seg[Cs].l = 1;
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr0(cpu, paging); }), gp) << "with CS.L";
    cpu.seg[Cs].l = 0;
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr0(cpu, paging); }), fine);
    EXPECT_EQ(cpu.efer, mask_of(Efer::LME, Efer::LMA));
    EXPECT_EQ(cpu.code_size, CodeSize::Bits32);
    far_jump(cpu, long0, 0x1'0000, 4, 0);
    EXPECT_EQ(cpu.code_size, CodeSize::Bits64);
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr0(cpu, Cr0::PE.mask); }), gp) << "in 64-bit mode";
    far_jump(cpu, code0, 0x1'0000, 4, 0);
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr0(cpu, Cr0::PE.mask); }), fine);
    EXPECT_EQ(cpu.efer, Efer::LME.mask);
}

TEST(Cr0Write, PagingOffNeedsPcidsOff)
{
    SystemMachine machine;
    machine.set_long(0, true);
    machine.cpu.cr4 |= Cr4::PCIDE.mask;
    EXPECT_EQ(outcome_of(machine.cpu, [&] { write_cr0(machine.cpu, Cr0::PE.mask); }), gp);
}

TEST(Cr0Write, LoadsThePageDirectoryPointers)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.cpu.cr4 = Cr4::PAE.mask;
    machine.cpu.cr3 = 0x6000;
    machine.memory.put<std::uint64_t>(0x6000, (tables_base + 0x2000) | 1U);
    EXPECT_EQ(outcome_of(machine.cpu, [&] { write_cr0(machine.cpu, mask_of(Cr0::PE, Cr0::PG)); }),
              fine);
    machine.set_protected(0);
    machine.cpu.cr4 = Cr4::PAE.mask;
    machine.memory.put<std::uint64_t>(0x6000, (tables_base + 0x2000) | 3U);  // Reserved bit.
    EXPECT_EQ(outcome_of(machine.cpu, [&] { write_cr0(machine.cpu, mask_of(Cr0::PE, Cr0::PG)); }),
              gp);
}

// --- CR3

TEST(Cr3Write, ReservedBitsInLongMode)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    constexpr std::uint64_t no_flush = std::uint64_t{1} << 63U;
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr3(cpu, tables_base | 0x18); }), fine);
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr3(cpu, std::uint64_t{1} << 40U); }), gp);
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr3(cpu, tables_base | no_flush); }), gp);
    cpu.cr4 |= Cr4::PCIDE.mask;
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr3(cpu, tables_base | 5U | no_flush); }), fine);
    EXPECT_EQ(cpu.cr3, tables_base | 5U) << "bit 63 is not kept";
}

TEST(Cr3Write, DropsTranslations)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_long(0);
    machine.memory.put<std::uint8_t>(0x1'0000, 0x11);
    EXPECT_EQ(load<std::uint8_t>(cpu, Ds, 0x1'0000), 0x11);
    // Another address space, whose first 2 MiB are not present.
    machine.memory.put<std::uint64_t>(0x7000, 0);
    write_cr3(cpu, 0x7000);
    EXPECT_EQ(outcome_of(cpu, [&] { static_cast<void>(load<std::uint8_t>(cpu, Ds, 0x1'0000)); }),
              fault(Vector::PF));
}

TEST(Cr3Write, PaeEntriesAreChecked)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    machine.memory.put<std::uint64_t>(0x6000, (tables_base + 0x2000) | 1U);
    machine.memory.put<std::uint64_t>(0x6020, (tables_base + 0x2000) | 1U);
    machine.memory.put<std::uint64_t>(0x6028, 7U);
    cpu.cr4 = Cr4::PAE.mask;
    cpu.cr3 = 0x6000;
    write_cr0(cpu, mask_of(Cr0::PE, Cr0::PG));
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr3(cpu, 0x6020); }), gp);
    EXPECT_EQ(cpu.cr3, 0x6000U);
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr3(cpu, 0x6000); }), fine);
}

// --- CR4

TEST(Cr4Write, BitsFollowCpuid)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr4(cpu, 0x7ff); }), fine);
    for (const unsigned bit : {11U, 16U, 18U, 20U, 21U}) {
        EXPECT_EQ(outcome_of(cpu, [&] { write_cr4(cpu, std::uint64_t{1} << bit); }), fine) << bit;
    }
    for (const unsigned bit : {12U, 13U, 14U, 15U, 19U, 22U, 23U, 24U, 25U, 31U, 32U, 63U}) {
        EXPECT_EQ(outcome_of(cpu, [&] { write_cr4(cpu, std::uint64_t{1} << bit); }), gp) << bit;
    }
    cpu.cpuid = paging_cpuid(36, false, true);
    for (const unsigned bit : {11U, 16U, 18U, 20U, 21U}) {
        EXPECT_EQ(outcome_of(cpu, [&] { write_cr4(cpu, std::uint64_t{1} << bit); }), gp) << bit;
    }
}

TEST(Cr4Write, LongModeAndPcids)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    constexpr std::uint64_t pcids = mask_of(Cr4::PAE, Cr4::PCIDE);
    machine.set_long(0);
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr4(cpu, 0); }), gp) << "PAE stays";
    cpu.cr3 = tables_base | 1;
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr4(cpu, pcids); }), gp);
    cpu.cr3 = tables_base;
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr4(cpu, pcids); }), fine);
    cpu.cr3 = tables_base | 1;
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr4(cpu, pcids | Cr4::PGE.mask); }), fine)
        << "only a change of PCIDE looks at CR3";
    machine.set_protected(0);
    EXPECT_EQ(outcome_of(cpu, [&] { write_cr4(cpu, pcids); }), gp);
}

// --- MSRs

Outcome write(SystemMachine& machine, std::uint32_t index, std::uint64_t value)
{
    bool to_user = false;
    return outcome_of(machine.cpu, [&] { write_msr(machine.cpu, index, value, to_user); });
}

TEST(Msr, Efer)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    EXPECT_EQ(write(machine, msr::efer, mask_of(Efer::SCE, Efer::LME, Efer::NXE)), fine);
    EXPECT_EQ(cpu.efer, mask_of(Efer::SCE, Efer::LME, Efer::NXE));
    EXPECT_EQ(write(machine, msr::efer, 2), gp);
    EXPECT_EQ(write(machine, msr::efer, std::uint64_t{1} << 12U), gp) << "SVME";
    EXPECT_EQ(write(machine, msr::efer, Efer::LMA.mask), fine);
    EXPECT_EQ(cpu.efer, 0U) << "LMA is the processor's";
    machine.set_long(0);
    const std::uint64_t now = cpu.efer;
    EXPECT_EQ(write(machine, msr::efer, now & ~Efer::LME.mask), gp) << "with paging on";
    EXPECT_EQ(write(machine, msr::efer, now & ~Efer::SCE.mask), fine);
    EXPECT_EQ(cpu.efer, now & ~Efer::SCE.mask);
    cpu.cpuid = paging_cpuid(36, false, true);
    EXPECT_EQ(write(machine, msr::efer, Efer::NXE.mask), gp);
}

TEST(Msr, StateMsrs)
{
    SystemMachine machine;
    machine.set_long(0);
    for (const std::uint32_t index : {msr::lstar, msr::cstar, msr::fs_base, msr::gs_base,
                                      msr::kernel_gs_base, msr::sysenter_esp, msr::sysenter_eip}) {
        EXPECT_EQ(write(machine, index, 0x7fff'ffff'ffff), fine) << index;
        EXPECT_EQ(write(machine, index, 0xffff'8000'0000'0000), fine) << index;
        EXPECT_EQ(write(machine, index, 0x8000'0000'0000), gp) << index;
        std::uint64_t value = 0;
        bool to_user = true;
        read_msr(machine.cpu, index, value, to_user);
        EXPECT_EQ(value, 0xffff'8000'0000'0000);
        EXPECT_FALSE(to_user);
    }
    EXPECT_EQ(machine.cpu.seg[Gs].base, 0xffff'8000'0000'0000);
    EXPECT_EQ(write(machine, msr::tsc_aux, 0x1'0000'0000), gp);
    machine.cpu.cpuid = paging_cpuid(36, false, true);
    EXPECT_EQ(write(machine, msr::lstar, 0), gp) << "no long mode in CPUID";
}

TEST(Msr, OthersGoToTheCore)
{
    SystemMachine machine;
    machine.set_long(0);
    machine.host.msrs[0x277] = 7;
    machine.host.user_msrs.insert(0x1234);
    std::uint64_t value = 0;
    bool to_user = false;
    read_msr(machine.cpu, 0x277, value, to_user);
    EXPECT_EQ(value, 7U);
    EXPECT_EQ(write(machine, 0x277, 8), fine);
    EXPECT_EQ(machine.host.msrs[0x277], 8U);
    EXPECT_EQ(write(machine, 0x9999, 8), gp);
    read_msr(machine.cpu, 0x1234, value, to_user);
    EXPECT_TRUE(to_user);
}

// --- I/O permission

TEST(IoPermission, BitmapOfTheTask)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(3);
    machine.memory.put<std::uint16_t>(tss_base + 0x66, 0x68);
    machine.memory.put<std::uint8_t>(tss_base + 0x68 + 1, 0xf0);  // Ports 12 to 15.
    const auto check = [&](std::uint16_t port, unsigned size) {
        return outcome_of(cpu, [&] { check_io_permission(cpu, port, size); });
    };
    EXPECT_EQ(check(8, 4), fine);
    EXPECT_EQ(check(9, 4), gp);
    EXPECT_EQ(check(11, 1), fine);
    EXPECT_EQ(check(11, 2), gp);
    EXPECT_EQ(check(15, 1), gp);
    EXPECT_EQ(check(15, 2), gp);
    EXPECT_EQ(check(16, 2), fine);
    cpu.tr.limit = 0x68 + 3;
    EXPECT_EQ(check(16, 1), fine);
    EXPECT_EQ(check(24, 1), gp) << "two bytes are read";
    EXPECT_EQ(check(0xffff, 1), gp);
    cpu.tr.limit = 0x66;
    EXPECT_EQ(check(8, 1), gp);
    cpu.tr.limit = 0x1ff;
    cpu.tr.type = system_type::tss16_busy;
    EXPECT_EQ(check(8, 1), gp);
    cpu.set_flags(0x3002);
    EXPECT_EQ(check(12, 1), fine) << "IOPL 3";
    machine.set_protected(0);
    EXPECT_EQ(check(12, 1), fine);
    machine.set_virtual_8086(3);
    EXPECT_EQ(check(12, 1), gp) << "IOPL does not matter there";
    EXPECT_EQ(check(8, 1), fine);
    machine.set_real();
    EXPECT_EQ(check(12, 1), fine);
}

// --- Breakpoints

TEST(Breakpoints, Instruction)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    cpu.dr[1] = 0x1'0000;
    cpu.dr[3] = 0x1'0000;
    cpu.dr7 = Dr7::reset | (1U << 2U) | (1U << 7U);
    EXPECT_EQ(instruction_breakpoint(cpu, 0x1'0000), 0xaU);
    EXPECT_EQ(instruction_breakpoint(cpu, 0x1'0001), 0U);
    EXPECT_TRUE(must_single_step(cpu));
    cpu.rflags |= Rflags::RF.mask;
    EXPECT_EQ(instruction_breakpoint(cpu, 0x1'0000), 0U);
    cpu.rflags &= ~Rflags::RF.mask;
    cpu.mov_ss_shadow = true;
    EXPECT_EQ(instruction_breakpoint(cpu, 0x1'0000), 0U);
    cpu.mov_ss_shadow = false;
    cpu.dr7 = Dr7::reset | (1U << 2U) | (1U << 20U);  // Breakpoint 1 watches writes.
    EXPECT_EQ(instruction_breakpoint(cpu, 0x1'0000), 0U);
    cpu.dr7 = Dr7::reset;
    EXPECT_FALSE(must_single_step(cpu));
    cpu.rflags |= Rflags::TF.mask;
    EXPECT_TRUE(must_single_step(cpu));
}

TEST(Breakpoints, Data)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    const auto hit = [&](std::uint64_t linear, std::size_t size, bool write) {
        cpu.pending_debug = 0;
        note_data_access(cpu, linear, size, write);
        return cpu.pending_debug;
    };
    cpu.dr[0] = 0x2003;  // Four bytes from 0x2000: the low bits are ignored.
    cpu.dr7 = Dr7::reset | 1U | (0xdU << 16U);
    EXPECT_EQ(hit(0x2000, 1, true), 1U);
    EXPECT_EQ(hit(0x2003, 1, true), 1U);
    EXPECT_EQ(hit(0x2004, 1, true), 0U);
    EXPECT_EQ(hit(0x1fff, 1, true), 0U);
    EXPECT_EQ(hit(0x1ffe, 4, true), 1U);
    EXPECT_EQ(hit(0x2000, 4, false), 0U) << "writes only";
    cpu.dr7 = Dr7::reset | 1U | (0xfU << 16U);
    EXPECT_EQ(hit(0x2000, 4, false), 1U);
    cpu.dr7 = Dr7::reset | 1U | (0xbU << 16U);  // Eight bytes.
    EXPECT_EQ(hit(0x2007, 1, false), 1U);
    cpu.dr7 = Dr7::reset | (0xfU << 16U);
    EXPECT_EQ(hit(0x2000, 4, true), 0U) << "not enabled";
}

TEST(Breakpoints, PortsNeedCr4De)
{
    SystemMachine machine;
    Cpu& cpu = machine.cpu;
    machine.set_protected(0);
    cpu.dr[2] = 0x3f8;
    cpu.dr7 = Dr7::reset | (1U << 4U) | (2U << 24U);
    note_port_access(cpu, 0x3f8, 1);
    EXPECT_EQ(cpu.pending_debug, 0U);
    cpu.cr4 = Cr4::DE.mask;
    note_port_access(cpu, 0x3f9, 1);
    EXPECT_EQ(cpu.pending_debug, 0U);
    note_port_access(cpu, 0x3f7, 2);
    EXPECT_EQ(cpu.pending_debug, 4U);
}

}  // namespace
}  // namespace vmm::x86::soft::test
