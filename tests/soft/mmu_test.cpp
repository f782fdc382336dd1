// SPDX-License-Identifier: Apache-2.0

// Accesses as instructions make them: TLB coherence, crossings, read-only memory, MMIO, dirty
// logging, alignment, breakpoints.

#include <gtest/gtest.h>

#include "mmu_fixture.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint64_t tables_at = 0x1000;  // Up to 0x10000.
constexpr std::uint64_t data_at = 0x10000;
constexpr std::size_t ram_pages = 64;
constexpr std::uint64_t present = 1;
constexpr std::uint64_t writable = 2;
constexpr std::uint64_t user = 4;
constexpr std::uint64_t global = 0x100;
constexpr std::uint64_t large = 0x80;

class Mmu : public testing::Test {
protected:
    Mmu() { set_long_mode(cpu, tables.root); }

    std::uint32_t read(std::uint64_t linear) { return load<std::uint32_t>(cpu, Ds, linear); }
    void write(std::uint64_t linear, std::uint32_t value) { store(cpu, Ds, linear, value); }
    std::optional<Fault> read_fault(std::uint64_t linear)
    {
        return fault_of([&] { static_cast<void>(read(linear)); });
    }
    std::optional<Fault> write_fault(std::uint64_t linear)
    {
        return fault_of([&] { write(linear, 1); });
    }

    Machine machine{ram_pages};
    Cpu& cpu{machine.cpu};
    FakeMemory& memory{machine.memory};
    LongModeTables tables{memory, tables_at};
};

TEST_F(Mmu, TranslationsStayUntilInvlpg)
{
    const std::uint64_t slot = tables.map(0x40'0000, data_at | present | writable);
    memory.put<std::uint32_t>(data_at, 11);
    memory.put<std::uint32_t>(data_at + page_size, 22);
    EXPECT_EQ(read(0x40'0000), 11U);
    memory.put<std::uint64_t>(slot, (data_at + page_size) | present | writable);
    EXPECT_EQ(read(0x40'0000), 11U);
    flush_tlb_page(cpu, 0x40'0123);
    EXPECT_EQ(read(0x40'0000), 22U);
}

TEST_F(Mmu, InvlpgDropsAllOfALargePage)
{
    const std::uint64_t slot = tables.map(0x20'0000, present | writable | large, 2);
    const std::uint64_t other = tables.map(0x60'0000, present | writable | large, 2);
    memory.put<std::uint32_t>(data_at, 11);
    EXPECT_EQ(read(0x20'0000 + data_at), 11U);
    EXPECT_EQ(read(0x20'1000 + data_at), 0U);
    EXPECT_EQ(read(0x60'0000 + data_at), 11U);
    memory.put<std::uint64_t>(slot, 0);
    memory.put<std::uint64_t>(other, 0);
    flush_tlb_page(cpu, 0x3f'f000);
    EXPECT_TRUE(read_fault(0x20'0000 + data_at));
    EXPECT_TRUE(read_fault(0x20'1000 + data_at));
    EXPECT_FALSE(read_fault(0x60'0000 + data_at));
}

TEST_F(Mmu, Cr3KeepsGlobalPagesOnly)
{
    const std::uint64_t kept = tables.map(0x40'0000, data_at | present | global);
    const std::uint64_t dropped = tables.map(0x40'1000, data_at | present);
    EXPECT_FALSE(read_fault(0x40'0000));
    EXPECT_FALSE(read_fault(0x40'1000));
    EXPECT_NO_THROW(static_cast<void>(fetch_page(cpu, 0x40'0000)));
    EXPECT_NO_THROW(static_cast<void>(fetch_page(cpu, 0x40'1000)));
    memory.put<std::uint64_t>(kept, 0);
    memory.put<std::uint64_t>(dropped, 0);
    flush_tlb_non_global(cpu);
    EXPECT_FALSE(read_fault(0x40'0000));
    EXPECT_TRUE(read_fault(0x40'1000));
    EXPECT_NO_THROW(static_cast<void>(fetch_page(cpu, 0x40'0000)));
    EXPECT_TRUE(fault_of([&] { static_cast<void>(fetch_page(cpu, 0x40'1000)); }));
    flush_tlb_all(cpu);
    EXPECT_TRUE(read_fault(0x40'0000));
}

TEST_F(Mmu, PcidsKeepTheirCode)
{
    cpu.cr4 |= Cr4::PCIDE.mask;
    cpu.cr3 = tables.root | 1U;
    cpu.state_changed();
    const std::uint64_t slot = tables.map(0x40'0000, data_at | present);
    const std::uint64_t kept = tables.map(0x40'1000, data_at | present | global);
    const auto go_to = [&](std::uint16_t pcid, bool keep) {
        cpu.cr3 = tables.root | pcid;
        switch_address_space(cpu, keep);
    };
    const auto fetches = [&](std::uint64_t linear) {
        return !fault_of([&] { static_cast<void>(fetch_page(cpu, linear)); });
    };
    const auto set = [&](bool is_present) {
        memory.put<std::uint64_t>(slot, data_at | (is_present ? present : 0));
    };
    for (const std::uint64_t linear : {0x40'0000U, 0x40'1000U}) {
        EXPECT_TRUE(fetches(linear));
    }
    set(false);
    memory.put<std::uint64_t>(kept, 0);
    go_to(2, true);
    EXPECT_FALSE(fetches(0x40'0000)) << "another PCID's";
    EXPECT_TRUE(fetches(0x40'1000)) << "global";
    go_to(1, true);
    EXPECT_TRUE(fetches(0x40'0000)) << "kept";
    forget_address_space(cpu, 2);
    EXPECT_TRUE(fetches(0x40'0000)) << "another one was to go";
    go_to(2, true);
    forget_address_space(cpu, 1);
    go_to(1, true);
    EXPECT_FALSE(fetches(0x40'0000));
    set(true);
    EXPECT_TRUE(fetches(0x40'0000));
    set(false);
    go_to(2, true);
    go_to(1, false);
    EXPECT_FALSE(fetches(0x40'0000));
    set(true);
    EXPECT_TRUE(fetches(0x40'0000));
    set(false);
    go_to(2, true);
    flush_tlb_page(cpu, 0x40'0000);
    go_to(1, true);
    EXPECT_TRUE(fetches(0x40'0000)) << "INVLPG is for the current PCID";
    go_to(2, true);
    flush_tlb_non_global(cpu);
    go_to(1, true);
    EXPECT_FALSE(fetches(0x40'0000)) << "of all PCIDs";
    EXPECT_TRUE(fetches(0x40'1000));
    flush_tlb_page(cpu, 0x40'1000);
    EXPECT_FALSE(fetches(0x40'1000));
}

TEST_F(Mmu, WithoutPgeNothingIsGlobal)
{
    cpu.cr4 &= ~Cr4::PGE.mask;
    cpu.mode_changed();
    const std::uint64_t slot = tables.map(0x40'0000, data_at | present | global);
    EXPECT_FALSE(read_fault(0x40'0000));
    memory.put<std::uint64_t>(slot, 0);
    flush_tlb_non_global(cpu);
    EXPECT_TRUE(read_fault(0x40'0000));
}

TEST_F(Mmu, ChangesOfPagingBitsFlush)
{
    tables.map(0x40'0000, data_at | present);
    cpu.cr0 &= ~Cr0::WP.mask;
    cpu.mode_changed();
    EXPECT_FALSE(write_fault(0x40'0000));
    cpu.cr0 |= Cr0::WP.mask;
    cpu.mode_changed();
    const auto fault = write_fault(0x40'0000);
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->error_code, page_fault::present | page_fault::write);
}

TEST_F(Mmu, PrivilegeSelectsTheTlb)
{
    tables.map(0x40'0000, data_at | present | writable);
    EXPECT_FALSE(write_fault(0x40'0000));
    set_cpl(cpu, 3);
    const auto fault = read_fault(0x40'0000);
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->error_code, page_fault::present | page_fault::user);
    set_cpl(cpu, 0);
    EXPECT_FALSE(read_fault(0x40'0000));
}

TEST_F(Mmu, SmapFollowsTheAcFlag)
{
    tables.map(0x40'0000, data_at | present | writable | user);
    cpu.cr4 |= Cr4::SMAP.mask;
    cpu.rflags |= Rflags::AC.mask;
    cpu.mode_changed();
    EXPECT_FALSE(write_fault(0x40'0000));
    EXPECT_FALSE(write_fault(0x40'0000));
    std::uint32_t value = 0;
    // Descriptor tables are read implicitly: AC does not help.
    EXPECT_TRUE(fault_of([&] { read_system(cpu, 0x40'0000, &value, 4); }));
    cpu.rflags &= ~Rflags::AC.mask;
    cpu.mode_changed();
    const auto fault = write_fault(0x40'0000);
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->error_code, page_fault::present | page_fault::write);
    // The stack of CPL 3 is a user access.
    EXPECT_FALSE(fault_of([&] { write_stack(cpu, 0x40'0000, &value, 4, 3); }));
    EXPECT_TRUE(fault_of([&] { probe_stack(cpu, 0x40'0000, 4, 0); }));
}

TEST_F(Mmu, FirstWriteSetsTheDirtyBit)
{
    const std::uint64_t slot = tables.map(0x40'0000, data_at | present | writable);
    static_cast<void>(read(0x40'0000));
    EXPECT_EQ(memory.get<std::uint64_t>(slot) & 0x60U, 0x20U);
    write(0x40'0000, 1);
    EXPECT_EQ(memory.get<std::uint64_t>(slot) & 0x60U, 0x60U);
}

TEST_F(Mmu, NonCanonicalAddresses)
{
    for (const std::uint64_t linear :
         {std::uint64_t{0x8000'0000'0000}, std::uint64_t{0x7fff'ffff'fffe},
          std::uint64_t{0xffff'7fff'ffff'ffff}}) {
        const auto general = read_fault(linear);
        ASSERT_TRUE(general);
        EXPECT_EQ(general->vector, Vector::GP);
        EXPECT_EQ(general->error_code, 0U);
        const auto stack =
            fault_of([&] { static_cast<void>(load<std::uint32_t>(cpu, Ss, linear)); });
        ASSERT_TRUE(stack);
        EXPECT_EQ(stack->vector, Vector::SS);
    }
    EXPECT_TRUE(fault_of([&] { static_cast<void>(fetch_page(cpu, 0x8000'0000'0000)); }));
}

TEST_F(Mmu, CrossingAccessesJoinTheirPages)
{
    tables.map(0x40'0000, data_at | present | writable);
    tables.map(0x40'1000, (data_at + 0x5000) | present | writable);
    for (std::uint64_t linear = 0x40'0ff9; linear < 0x40'1000; ++linear) {
        const std::uint64_t value = 0x0102'0304'0506'0708 * linear;
        store<std::uint64_t>(cpu, Ds, linear, value);
        EXPECT_EQ(load<std::uint64_t>(cpu, Ds, linear), value);
        EXPECT_EQ(load_for_write<std::uint64_t>(cpu, Ds, linear), value);
        EXPECT_EQ(memory.get<std::uint8_t>(data_at + (linear & 0xfffU)), value & 0xffU);
        EXPECT_EQ(memory.get<std::uint8_t>(data_at + 0x5000 + ((linear + 7) & 0xfffU)),
                  value >> 56U);
    }
}

TEST_F(Mmu, CrossingWriteTouchesNothingIfOnePageFaults)
{
    tables.map(0x40'0000, data_at | present | writable);
    tables.map(0x40'1000, (data_at + 0x5000) | present);
    const auto fault = write_fault(0x40'0ffe);
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->payload, 0x40'1000U);
    EXPECT_EQ(memory.get<std::uint16_t>(data_at + 0xffe), 0U);
    const auto first = write_fault(0x40'1ffe);
    ASSERT_TRUE(first);
    EXPECT_EQ(first->payload, 0x40'1ffeU);
    EXPECT_TRUE(
        fault_of([&] { static_cast<void>(load_for_write<std::uint32_t>(cpu, Ds, 0x40'0ffe)); }));
    EXPECT_TRUE(fault_of([&] { probe_write(cpu, Ds, 0x40'0ffe, 4); }));
    EXPECT_FALSE(fault_of([&] { probe_write(cpu, Ds, 0x40'0ffc, 4); }));
}

TEST_F(Mmu, DirectPointersArePlainMemoryInOnePage)
{
    tables.map(0x40'0000, data_at | present | writable);
    tables.map(0x40'1000, 0x7000'0000 | present | writable);
    EXPECT_EQ(direct(cpu, Ds, 0x40'0010, 16, Access::Write), memory.bytes.data() + data_at + 0x10);
    EXPECT_EQ(direct(cpu, Ds, 0x40'0ff8, 16, Access::Read), nullptr);
    EXPECT_EQ(direct(cpu, Ds, 0x40'1000, 16, Access::Read), nullptr);
    EXPECT_TRUE(machine.host.accesses.empty());
    std::size_t size = 10'000;
    EXPECT_EQ(direct_run(cpu, Ds, 0x40'0f00, size, Access::Read),
              memory.bytes.data() + data_at + 0xf00);
    EXPECT_EQ(size, 0x100U);
    EXPECT_TRUE(fault_of([&] { static_cast<void>(direct(cpu, Ds, 0x40'1ff8, 16, Access::Read)); }));
}

TEST_F(Mmu, AddressesWrapAt4GiBOutsideLongMode)
{
    cpu.cr0 = Cr0::PE.mask;
    cpu.efer = 0;
    cpu.seg[Cs].l = 0;
    cpu.state_changed();
    std::uint64_t value = 0;
    memory.put<std::uint32_t>(0, 0x55aa'1234);
    read_slow(cpu, Ds, 0xffff'fffc, &value, 8);
    ASSERT_EQ(machine.host.accesses.size(), 1U);
    EXPECT_EQ(machine.host.accesses[0].gpa, 0xffff'fffcU);
    EXPECT_EQ(value, 0x55aa'1234'fffe'fdfcU);
}

TEST_F(Mmu, MmioIsSplitIntoEightBytes)
{
    tables.map(0x40'0000, 0x7000'0000 | present | writable);
    std::array<std::byte, 20> bytes{};
    read_slow(cpu, Ds, 0x40'0003, bytes.data(), bytes.size());
    ASSERT_EQ(machine.host.accesses.size(), 3U);
    EXPECT_EQ(machine.host.accesses[0].gpa, 0x7000'0003U);
    EXPECT_EQ(machine.host.accesses[0].size, 8U);
    EXPECT_EQ(machine.host.accesses[2].gpa, 0x7000'0013U);
    EXPECT_EQ(machine.host.accesses[2].size, 4U);
    for (std::size_t index = 0; index < bytes.size(); ++index) {
        EXPECT_EQ(std::to_integer<unsigned>(bytes[index]), index + 3);
    }
}

TEST_F(Mmu, ReadOnlyMemoryIsReadAndExitsOnWrite)
{
    tables.map(0x40'0000, data_at | present | writable);
    memory.set_writable(data_at / page_size, false);
    machine.vm.leave_guest(cpu);
    machine.vm.memory_changed();
    machine.vm.enter_guest(cpu);
    memory.put<std::uint32_t>(data_at, 0x77);
    EXPECT_EQ(read(0x40'0000), 0x77U);
    write(0x40'0000, 0x88);
    EXPECT_EQ(memory.get<std::uint32_t>(data_at), 0x77U);
    ASSERT_EQ(machine.host.accesses.size(), 1U);
    EXPECT_EQ(machine.host.accesses[0], (MmioAccess{data_at, 4, true, 0x88}));
    EXPECT_EQ(direct(cpu, Ds, 0x40'0000, 4, Access::ReadWrite), nullptr);
    EXPECT_EQ(load_for_write<std::uint32_t>(cpu, Ds, 0x40'0000), 0x77U);
}

/// Executes `instruction` until the caller has answered all that it leaves for.
template <typename Instruction>
std::vector<MmioAccess> run_to_completion(Cpu& cpu, const Instruction& instruction)
{
    std::vector<MmioAccess> exits;
    for (unsigned attempt = 0; attempt < 50; ++attempt) {
        try {
            instruction();
            cpu.mmio.finish();
            return exits;
        } catch (const LeaveForMmio&) {
            const EngineExit& exit = cpu.exit;
            const bool is_write = exit.reason == EngineExit::Reason::MmioWrite;
            std::uint64_t data = 0;
            if (is_write) {
                std::memcpy(&data, exit.data.data(), exit.data.size());
            } else {
                data = 0x1111'1111'1111'1111 * (exits.size() + 1);
                std::memcpy(exit.data.data(), &data, exit.data.size());
            }
            EXPECT_EQ(exit.data.size(), exit.size);
            exits.push_back({exit.gpa, exit.size, is_write, data});
            cpu.mmio.answered();
        }
    }
    ADD_FAILURE() << "the instruction never ends";
    return exits;
}

TEST_F(Mmu, UnansweredMmioIsReplayed)
{
    machine.host.limit = 0x7000'0000;
    tables.map(0x40'0000, 0x7000'0000 | present | writable);
    std::array<std::uint64_t, 2> value{};
    const auto exits =
        run_to_completion(cpu, [&] { read_slow(cpu, Ds, 0x40'0000, value.data(), 16); });
    ASSERT_EQ(exits.size(), 2U);
    EXPECT_EQ(exits[1].gpa, 0x7000'0008U);
    EXPECT_EQ(value[0], 0x1111'1111'1111'1111U);
    EXPECT_EQ(value[1], 0x2222'2222'2222'2222U);
}

TEST_F(Mmu, DevicesOfTheLibraryAreAskedOnce)
{
    machine.host.limit = 0x7000'1000;
    tables.map(0x40'0000, 0x7000'0000 | present | writable);
    tables.map(0x40'1000, 0x7000'1000 | present | writable);
    const auto exits = run_to_completion(cpu, [&] {
        const auto value = load<std::uint32_t>(cpu, Ds, 0x40'0010);
        EXPECT_EQ(value, 0x1312'1110U);
        store(cpu, Ds, 0x40'1000, value);
        store(cpu, Ds, 0x40'0020, value);
    });
    ASSERT_EQ(exits.size(), 1U);
    EXPECT_EQ(exits[0], (MmioAccess{0x7000'1000, 4, true, 0x1312'1110}));
    ASSERT_EQ(machine.host.accesses.size(), 2U) << "one read, one write";
}

TEST_F(Mmu, TheSameInstructionAgainAsksAgain)
{
    tables.map(0x40'0000, 0x7000'0000 | present | writable);
    for (unsigned count = 1; count <= 5; ++count) {
        static_cast<void>(read(0x40'0000));
        EXPECT_EQ(machine.host.accesses.size(), count);
    }
}

TEST_F(Mmu, IterationsOfAStringInstructionAreReplayedFromWhereTheyStand)
{
    machine.host.limit = 0;
    tables.map(0x40'0000, 0x7000'0000 | present | writable);
    unsigned done = 0;
    const auto exits = run_to_completion(cpu, [&] {
        while (done < 4) {
            write(0x40'0000 + 4 * done, done);
            ++done;  // As REP MOVS commits RSI, RDI and RCX.
        }
    });
    ASSERT_EQ(exits.size(), 4U);
    for (unsigned index = 0; index < 4; ++index) {
        EXPECT_EQ(exits[index], (MmioAccess{0x7000'0000 + 4 * index, 4, true, index}));
    }
}

TEST_F(Mmu, WriteAcrossMemoryAndMmioTouchesMemoryLast)
{
    machine.host.limit = 0;
    tables.map(0x40'0000, data_at | present | writable);
    tables.map(0x40'1000, 0x7000'0000 | present | writable);
    unsigned executions = 0;
    const auto exits = run_to_completion(cpu, [&] {
        ++executions;
        EXPECT_EQ(memory.get<std::uint16_t>(data_at + 0xffe), 0U);
        write(0x40'0ffe, 0x4433'2211);
    });
    EXPECT_EQ(executions, 2U);
    ASSERT_EQ(exits.size(), 1U);
    EXPECT_EQ(exits[0], (MmioAccess{0x7000'0000, 2, true, 0x4433}));
    EXPECT_EQ(memory.get<std::uint16_t>(data_at + 0xffe), 0x2211U);
}

TEST_F(Mmu, DirtyLoggingSeesTheFirstWrite)
{
    tables.map(0x40'0000, data_at | present | writable | 0x60);
    const std::uint64_t gfn = data_at / page_size;
    memory.set_log_dirty(gfn, true);
    static_cast<void>(read(0x40'0000));
    EXPECT_FALSE(memory.take_dirty(gfn));
    write(0x40'0000, 1);
    EXPECT_TRUE(memory.take_dirty(gfn));
    write(0x40'0000, 2);
    EXPECT_FALSE(memory.take_dirty(gfn)) << "until the log is cleared, one report is enough";
    machine.vm.leave_guest(cpu);
    machine.vm.dirty_log_cleared();
    machine.vm.enter_guest(cpu);
    static_cast<void>(read(0x40'0000));
    EXPECT_FALSE(memory.take_dirty(gfn));
    write(0x40'0000, 3);
    EXPECT_TRUE(memory.take_dirty(gfn));
}

TEST_F(Mmu, CodePagesReportEveryWrite)
{
    tables.map(0x40'0000, data_at | present | writable);
    const std::uint64_t gfn = data_at / page_size;
    write(0x40'0000, 1);
    EXPECT_NE(direct(cpu, Ds, 0x40'0000, 4, Access::Write), nullptr);
    machine.vm.mark_code_page(cpu, gfn);
    EXPECT_TRUE(machine.vm.is_code_page(gfn));
    EXPECT_EQ(direct(cpu, Ds, 0x40'0000, 4, Access::Write), nullptr);
    EXPECT_NE(direct(cpu, Ds, 0x40'0000, 4, Access::Read), nullptr);
    Cpu other{machine.vm, machine.host};
    for (std::uint32_t value = 2; value < 5; ++value) {
        other.requests.store(0);
        write(0x40'0010, value);
        EXPECT_EQ(other.requests.load(), request::invalidate_code);
        EXPECT_EQ(memory.get<std::uint32_t>(data_at + 0x10), value);
    }
    machine.vm.unmark_code_page(gfn);
    EXPECT_FALSE(machine.vm.is_code_page(gfn));
    EXPECT_NE(direct(cpu, Ds, 0x40'0000, 4, Access::Write), nullptr);
}

TEST_F(Mmu, WritesBesideCodeInvalidateNothing)
{
    tables.map(0x40'0000, data_at | present | writable);
    machine.vm.mark_code_page(cpu, data_at / page_size, false);
    machine.vm.mark_code_bytes(data_at + 0x70, 0x20);  // Pieces 0x40 and 0x80.
    Cpu other{machine.vm, machine.host};
    write(0x40'003c, 1);
    write(0x40'00c0, 1);
    machine.vm.memory_written(data_at + 0xc0, 0xf40);
    machine.vm.memory_written(data_at - 0x100, 0x140);
    EXPECT_EQ(other.requests.load(), 0U);
    write(0x40'003e, 1);
    EXPECT_EQ(other.requests.exchange(0), request::invalidate_code);
    machine.vm.memory_written(data_at - 0x1000, 0x1081);
    EXPECT_EQ(other.requests.exchange(0), request::invalidate_code);
    machine.vm.memory_written(0, ~std::uint64_t{0});
    EXPECT_EQ(other.requests.exchange(0), request::invalidate_code);
}

TEST_F(Mmu, CodePagesAreCounted)
{
    machine.vm.mark_code_page(cpu, 20);
    machine.vm.mark_code_page(cpu, 20);
    machine.vm.unmark_code_page(20);
    EXPECT_TRUE(machine.vm.is_code_page(20));
    machine.vm.unmark_code_page(20);
    EXPECT_FALSE(machine.vm.is_code_page(20));
    machine.vm.unmark_code_page(20);
    EXPECT_FALSE(machine.vm.is_code_page(20));
    machine.vm.mark_code_page(cpu, ~std::uint64_t{0});
    EXPECT_FALSE(machine.vm.is_code_page(~std::uint64_t{0}));
}

TEST_F(Mmu, AlignmentChecksAtCpl3)
{
    tables.map(0x40'0000, data_at | present | writable | user);
    cpu.cr0 |= Cr0::AM.mask;
    set_cpl(cpu, 3);
    EXPECT_FALSE(read_fault(0x40'0002));
    cpu.rflags |= Rflags::AC.mask;
    cpu.mode_changed();
    const auto fault = read_fault(0x40'0002);
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->vector, Vector::AC);
    EXPECT_TRUE(fault->has_error_code);
    EXPECT_EQ(fault->error_code, 0U);
    EXPECT_FALSE(read_fault(0x40'0004));
    EXPECT_TRUE(write_fault(0x40'0001));
    EXPECT_EQ(memory.get<std::uint32_t>(data_at + 1), 0U);
    EXPECT_EQ(read_fault(0x40'1001)->vector, Vector::PF) << "comes first";
    set_cpl(cpu, 0);
    EXPECT_FALSE(read_fault(0x40'0002));
}

TEST_F(Mmu, DataBreakpointsSeeEachAccessToTheirBytes)
{
    tables.map(0x40'0000, data_at | present | writable);
    static_cast<void>(read(0x40'0000));
    write(0x40'0000, 1);
    cpu.dr[0] = 0x40'0100;
    cpu.dr7 = 0x400U | 2U | 0xdU << 16U;  // G0, write, 4 bytes.
    cpu.mode_changed();
    write(0x40'0104, 1);
    static_cast<void>(read(0x40'0100));
    EXPECT_EQ(cpu.pending_debug & 0xfU, 0U);
    for (unsigned count = 0; count < 3; ++count) {
        write(0x40'0100, 1);
        EXPECT_EQ(cpu.pending_debug & 0xfU, 1U);
        cpu.pending_debug = 0;
    }
    store<std::uint64_t>(cpu, Ds, 0x40'00fc, 0);
    EXPECT_EQ(cpu.pending_debug & 0xfU, 1U);
    cpu.pending_debug = 0;
    static_cast<void>(direct(cpu, Ds, 0x40'0100, 4, Access::ReadWrite));
    EXPECT_EQ(cpu.pending_debug & 0xfU, 1U);
    cpu.pending_debug = 0;
    cpu.dr7 = 0x400;
    cpu.mode_changed();
    write(0x40'0100, 1);
    EXPECT_EQ(cpu.pending_debug, 0U);
}

void increment(std::byte* bytes, void* context)
{
    std::uint64_t value = 0;
    std::memcpy(&value, bytes, sizeof(value));
    ++value;
    std::memcpy(bytes, &value, sizeof(value));
    *static_cast<std::uint64_t*>(context) = value;
}

TEST_F(Mmu, LockedAccessesCrossPagesAndReachMmio)
{
    tables.map(0x40'0000, data_at | present | writable);
    tables.map(0x40'1000, (data_at + 0x3000) | present | writable);
    tables.map(0x40'2000, 0x7000'0000 | present | writable);
    std::uint64_t result = 0;
    locked_slow(cpu, Ds, 0x40'0ffc, 8, increment, &result);
    locked_slow(cpu, Ds, 0x40'0ffc, 8, increment, &result);
    EXPECT_EQ(result, 2U);
    EXPECT_EQ(load<std::uint64_t>(cpu, Ds, 0x40'0ffc), 2U);

    machine.host.limit = 0;
    const auto exits =
        run_to_completion(cpu, [&] { locked_slow(cpu, Ds, 0x40'2000, 8, increment, &result); });
    ASSERT_EQ(exits.size(), 2U);
    EXPECT_EQ(exits[1], (MmioAccess{0x7000'0000, 8, true, 0x1111'1111'1111'1112}));
    const auto fault = fault_of([&] { locked_slow(cpu, Ds, 0x40'2ffc, 8, increment, &result); });
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->payload, 0x40'3000U);
}

TEST_F(Mmu, FetchesGiveTheRestOfThePage)
{
    tables.map(0x40'0000, data_at | present);
    tables.map(0x40'1000, 0x7000'0000 | present);
    tables.map(0x40'2000, data_at | present | user | std::uint64_t{1} << 63U);
    const CodePage page = fetch_page(cpu, 0x40'0ff0);
    EXPECT_EQ(page.gpa, data_at + 0xff0);
    EXPECT_EQ(page.size, 16U);
    EXPECT_EQ(page.host, memory.bytes.data() + data_at + 0xff0);
    const CodePage again = fetch_page(cpu, 0x40'0000);
    EXPECT_EQ(again.gpa, data_at);
    EXPECT_EQ(again.size, page_size);
    EXPECT_EQ(fetch_page(cpu, 0x40'1000).host, nullptr);
    const auto fault = fault_of([&] { static_cast<void>(fetch_page(cpu, 0x40'2000)); });
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->error_code, page_fault::present | page_fault::fetch);
    set_cpl(cpu, 3);
    EXPECT_TRUE(fault_of([&] { static_cast<void>(fetch_page(cpu, 0x40'0000)); }));
}

TEST_F(Mmu, ModesAndPrivileges)
{
    EXPECT_EQ(cpu.code_size, CodeSize::Bits64);
    cpu.seg[Cs].l = 0;
    cpu.seg[Cs].db = 1;
    cpu.mode_changed();
    EXPECT_EQ(cpu.code_size, CodeSize::Bits32);
    cpu.seg[Cs].db = 0;
    cpu.mode_changed();
    EXPECT_EQ(cpu.code_size, CodeSize::Bits16);
    cpu.efer = 0;
    cpu.seg[Ss].dpl = 2;
    cpu.mode_changed();
    EXPECT_EQ(cpu.cpl, 2U);
    cpu.rflags |= Rflags::VM.mask;
    cpu.mode_changed();
    EXPECT_EQ(cpu.cpl, 3U);
    cpu.cr0 = 0;
    cpu.mode_changed();
    EXPECT_EQ(cpu.cpl, 0U);
}

TEST_F(Mmu, AMissAsksTheMemorySlotsLittle)
{
    for (std::uint64_t page = 0; page < 16; ++page) {
        tables.map(0x40'0000 + page * page_size, (data_at + page * page_size) | present | writable);
        static_cast<void>(read(0x40'0000 + page * page_size));
    }
    const std::uint64_t before = memory.lookups.load();
    flush_tlb_non_global(cpu);
    for (std::uint64_t page = 0; page < 16; ++page) {
        static_cast<void>(read(0x40'0000 + page * page_size));
    }
    EXPECT_EQ(memory.lookups.load(), before);
}

}  // namespace
}  // namespace vmm::x86::soft::test
