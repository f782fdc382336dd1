// SPDX-License-Identifier: Apache-2.0

#include "soft/system_fixture.hpp"

namespace vmm::x86::soft::test {
namespace {

struct LoadCase {
    unsigned level;
    SegmentIndex segment;
    std::uint16_t selector;
    Outcome outcome;
};

class LoadSegment : public testing::TestWithParam<LoadCase> {};

TEST_P(LoadSegment, FollowsTheManual)
{
    const LoadCase& test = GetParam();
    SystemMachine machine;
    machine.set_protected(test.level);
    EXPECT_EQ(
        outcome_of(machine.cpu, [&] { load_segment(machine.cpu, test.segment, test.selector); }),
        test.outcome)
        << "selector " << std::hex << test.selector << " at CPL " << test.level;
    if (test.outcome == fine) {
        EXPECT_EQ(machine.cpu.seg[test.segment].selector, test.selector);
    }
}

INSTANTIATE_TEST_SUITE_P(
    Data,
    LoadSegment,
    testing::Values(LoadCase{0, Ds, data0, fine},
                    LoadCase{0, Ds, data3, fine},
                    LoadCase{0, Es, read_only0, fine},
                    LoadCase{0, Fs, code0, fine},
                    LoadCase{0, Gs, conforming0, fine},
                    LoadCase{0, Ds, execute_only0, fault(Vector::GP, execute_only0)},
                    LoadCase{0, Ds, tss, fault(Vector::GP, tss)},
                    LoadCase{0, Ds, absent_data0, fault(Vector::NP, absent_data0)},
                    LoadCase{0, Ds, beyond, fault(Vector::GP, beyond)},
                    LoadCase{0, Ds, data0 | 3, fault(Vector::GP, data0)},
                    LoadCase{3, Ds, data0, fault(Vector::GP, data0)},
                    LoadCase{3, Ds, data3, fine},
                    LoadCase{3, Ds, data3 & 0xfffc, fine},
                    LoadCase{3, Ds, conforming0 | 3, fine},
                    LoadCase{3, Ds, code0 | 3, fault(Vector::GP, code0)},
                    LoadCase{3, Gs, code3, fine},
                    LoadCase{0, Ds, 0, fine},
                    LoadCase{3, Ds, 3, fine},
                    LoadCase{0, Ds, 0x104, fault(Vector::GP, 0x104)}));

INSTANTIATE_TEST_SUITE_P(
    Stack,
    LoadSegment,
    testing::Values(LoadCase{0, Ss, data0, fine},
                    LoadCase{0, Ss, expand_down0, fine},
                    LoadCase{0, Ss, 0, fault(Vector::GP)},
                    LoadCase{0, Ss, data3, fault(Vector::GP, data3 & 0xfffc)},
                    LoadCase{0, Ss, data0 | 3, fault(Vector::GP, data0)},
                    LoadCase{0, Ss, read_only0, fault(Vector::GP, read_only0)},
                    LoadCase{0, Ss, code0, fault(Vector::GP, code0)},
                    LoadCase{0, Ss, absent_data0, fault(Vector::SS, absent_data0)},
                    LoadCase{0, Ss, beyond, fault(Vector::GP, beyond)},
                    LoadCase{3, Ss, data3, fine},
                    LoadCase{3, Ss, data3 & 0xfffc, fault(Vector::GP, data3 & 0xfffc)},
                    LoadCase{1, Ss, data1, fine},
                    LoadCase{1, Ss, data0 | 1, fault(Vector::GP, data0)}));

TEST(Segmentation, LoadTakesTheDescriptorApart)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.set_descriptor(spare, descriptor(0x1234'5678, 0x0'1234, 0x92, flag_g | flag_db | 1));
    load_segment(machine.cpu, Ds, spare);
    const Segment& loaded = machine.cpu.seg[Ds];
    EXPECT_EQ(loaded.base, 0x1234'5678U);
    EXPECT_EQ(loaded.limit, 0x0123'4fffU);
    EXPECT_EQ(loaded.type, 3U) << "accessed has been set";
    EXPECT_EQ(loaded.dpl, 0U);
    EXPECT_EQ(loaded.s, 1U);
    EXPECT_EQ(loaded.present, 1U);
    EXPECT_EQ(loaded.db, 1U);
    EXPECT_EQ(loaded.g, 1U);
    EXPECT_EQ(loaded.l, 0U);
    EXPECT_EQ(loaded.avl, 1U);
    EXPECT_EQ(loaded.unusable, 0U);
    EXPECT_EQ((machine.get_descriptor(spare) >> 40U) & 0xffU, 0x93U) << "accessed in memory";
}

TEST(Segmentation, AccessedBitIsSetFromUserModeInAReadOnlyPageOfTheSystem)
{
    SystemMachine machine;
    machine.set_long(3);
    // Supervisor only, so that the user's own rights would not do.
    machine.memory.put<std::uint64_t>(tables_base + 0x2000, 0x83);
    machine.cpu.state_changed();
    machine.set_descriptor(spare, descriptor(0, 0xf'ffff, 0xf2, flag_g | flag_db));
    load_segment(machine.cpu, Ds, spare | 3);
    EXPECT_EQ((machine.get_descriptor(spare) >> 40U) & 0xffU, 0xf3U);
    EXPECT_EQ(machine.cpu.cpl, 3U);
}

TEST(Segmentation, AccessedBitFaultsWhereTheTableCannotBeWritten)
{
    SystemMachine machine;
    machine.set_long(0);
    machine.memory.put<std::uint64_t>(tables_base + 0x2000, 0x85);
    machine.cpu.state_changed();
    machine.set_descriptor(spare, descriptor(0, 0xf'ffff, 0x92, flag_g | flag_db));
    EXPECT_EQ(outcome_of(machine.cpu, [&] { load_segment(machine.cpu, Ds, spare); }),
              fault(Vector::PF, page_fault::present | page_fault::write));
}

TEST(Segmentation, LocalTable)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.memory.put<std::uint64_t>(ldt_base + 8, descriptor(0x7000, 0xff, 0x93, 0));
    load_segment(machine.cpu, Es, 8 | 4);
    EXPECT_EQ(machine.cpu.seg[Es].base, 0x7000U);
    machine.cpu.ldt.unusable = 1;
    EXPECT_EQ(outcome_of(machine.cpu, [&] { load_segment(machine.cpu, Es, 8 | 4); }),
              fault(Vector::GP, 8 | 4));
}

TEST(Segmentation, LastBytesOfTheTable)
{
    SystemMachine machine;
    machine.set_protected(0);
    machine.cpu.gdt.limit = data0 + 7;
    EXPECT_EQ(outcome_of(machine.cpu, [&] { load_segment(machine.cpu, Es, data0); }), fine);
    machine.cpu.gdt.limit = data0 + 6;
    EXPECT_EQ(outcome_of(machine.cpu, [&] { load_segment(machine.cpu, Es, data0); }),
              fault(Vector::GP, data0));
}

TEST(Segmentation, NullStackSegmentInLongMode)
{
    SystemMachine machine;
    machine.set_long(0);
    EXPECT_EQ(outcome_of(machine.cpu, [&] { load_segment(machine.cpu, Ss, 0); }), fine);
    EXPECT_EQ(machine.cpu.seg[Ss].unusable, 1U);
    EXPECT_EQ(outcome_of(machine.cpu, [&] { load_segment(machine.cpu, Ss, 3); }),
              fault(Vector::GP));
    machine.set_long(3);
    EXPECT_EQ(outcome_of(machine.cpu, [&] { load_segment(machine.cpu, Ss, 3); }),
              fault(Vector::GP));
    machine.set_long(0, true);
    EXPECT_EQ(outcome_of(machine.cpu, [&] { load_segment(machine.cpu, Ss, 0); }),
              fault(Vector::GP));
}

TEST(Segmentation, NullSelectorClearsTheBaseOnIntelOnly)
{
    for (const bool intel : {true, false}) {
        SystemMachine machine{intel};
        machine.set_long(3);
        machine.cpu.seg[Fs].base = 0x7fff'0000'1000;
        load_segment(machine.cpu, Fs, 0);
        EXPECT_EQ(machine.cpu.seg[Fs].base, intel ? 0U : 0x7fff'0000'1000U);
        EXPECT_EQ(machine.cpu.seg[Fs].unusable, 1U);
    }
}

TEST(Segmentation, RealAndVirtual8086Mode)
{
    SystemMachine machine;
    machine.set_real();
    machine.cpu.seg[Ds].limit = 0xffff'ffff;  // "Unreal" mode: a load keeps it.
    load_segment(machine.cpu, Ds, 0xf00d);
    EXPECT_EQ(machine.cpu.seg[Ds].base, 0xf'00d0U);
    EXPECT_EQ(machine.cpu.seg[Ds].limit, 0xffff'ffffU);
    machine.set_virtual_8086(0);
    machine.cpu.seg[Ds].limit = 0xffff'ffff;
    load_segment(machine.cpu, Ds, 0xf00d);
    EXPECT_EQ(machine.cpu.seg[Ds].base, 0xf'00d0U);
    EXPECT_EQ(machine.cpu.seg[Ds].limit, 0xffffU);
    EXPECT_EQ(machine.cpu.seg[Ds].dpl, 3U);
}

struct AddressCase {
    std::uint16_t selector;
    SegmentIndex segment;
    std::uint64_t offset;
    std::size_t size;
    Access access;
    Outcome outcome;
    std::uint64_t linear;
};

TEST(SegmentedAddress, LimitsAndTypes)
{
    const Outcome gp = fault(Vector::GP);
    const Outcome ss = fault(Vector::SS);
    const AddressCase cases[] = {
        {data0, Ds, 0xffff'fffc, 4, Access::Read, fine, 0xffff'fffc},
        {data0, Ds, 0xffff'fffd, 4, Access::Read, gp, 0},
        {data16_0, Ds, 0xffff, 1, Access::Write, fine, 0x1'ffff},
        {data16_0, Ds, 0xffff, 2, Access::Write, gp, 0},
        {data16_0, Ss, 0xfffe, 2, Access::Write, fine, 0x1'fffe},
        {data16_0, Ss, 0xffff, 2, Access::Read, ss, 0},
        {data16_0, Ds, 0x1'0000, 1, Access::Read, gp, 0},
        {expand_down0, Ss, 0x0fff, 1, Access::Read, ss, 0},
        {expand_down0, Ss, 0x1000, 1, Access::Read, fine, 0x1'1000},
        {expand_down0, Ds, 0x0fff, 2, Access::Read, gp, 0},
        {expand_down0, Ds, 0xffff'ffff, 1, Access::Read, fine, 0xffff},
        {expand_down0, Ds, 0xffff'ffff, 2, Access::Read, gp, 0},
        {read_only0, Ds, 0, 4, Access::Read, fine, 0},
        {read_only0, Ds, 0, 4, Access::Write, gp, 0},
        {read_only0, Ds, 0, 4, Access::ReadWrite, gp, 0},
        {code0, Cs, 0, 4, Access::Read, fine, 0},
        {code0, Cs, 0, 4, Access::Write, gp, 0},
        {execute_only0, Cs, 0, 4, Access::Read, gp, 0},
        {execute_only0, Cs, 0, 4, Access::Execute, fine, 0},
        {code0, Ds, 0, 4, Access::Write, gp, 0},
    };
    for (const AddressCase& test : cases) {
        SystemMachine machine;
        machine.set_protected(0);
        machine.cpu.seg[test.segment] = machine.segment(test.selector);
        std::uint64_t linear = 0;
        EXPECT_EQ(outcome_of(machine.cpu,
                             [&] {
                                 linear = segmented_address(machine.cpu, test.segment, test.offset,
                                                            test.size, test.access);
                             }),
                  test.outcome)
            << std::hex << test.selector << ":" << test.offset;
        EXPECT_EQ(linear, test.linear);
    }
}

TEST(SegmentedAddress, NullSegmentsFault)
{
    SystemMachine machine;
    machine.set_protected(0);
    load_segment(machine.cpu, Ds, 0);
    EXPECT_EQ(
        outcome_of(
            machine.cpu,
            [&] { static_cast<void>(segmented_address(machine.cpu, Ds, 0, 1, Access::Read)); }),
        fault(Vector::GP));
}

TEST(SegmentedAddress, RealModeChecksTheLimitOnly)
{
    SystemMachine machine;
    machine.set_real();
    machine.cpu.seg[Ds].type = 1;  // Read-only, left behind by protected mode.
    EXPECT_EQ(segmented_address(machine.cpu, Ds, 0xfffe, 2, Access::Write), 0xfffeU);
    EXPECT_EQ(outcome_of(machine.cpu,
                         [&] {
                             static_cast<void>(
                                 segmented_address(machine.cpu, Ds, 0xffff, 2, Access::Read));
                         }),
              fault(Vector::GP));
}

}  // namespace
}  // namespace vmm::x86::soft::test
