// SPDX-License-Identifier: Apache-2.0

// The page walk against a model written from the manual's tables alone: random page tables, random
// modes, every access kind.  SDM Vol. 3A "Paging".

#include <random>

#include <gtest/gtest.h>

#include "mmu_fixture.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::size_t ram_pages = 16;
constexpr std::size_t table_pages = 8;

enum class Kind { Read, Write, Fetch };

struct Rules {
    enum class Mode { None, Legacy, Pae, Four } mode{};
    bool pse{}, pge{}, nxe{}, wp{}, smep{}, smap{}, ac{}, user{}, page_1g{}, intel{};
    unsigned width{};
    std::uint64_t cr3{};
};

struct Answer {
    bool fault{};
    std::uint32_t error{};
    std::uint64_t gpa{};
};

/// The model works on its own copy of memory and describes each level by a row.
class Model {
public:
    Model(std::vector<std::byte>& ram,
          const Rules& rules,
          const std::array<std::uint64_t, 4>& pdptes)
        : ram_(ram),
          rules_(rules),
          pdptes_(pdptes)
    {
    }

    Answer access(std::uint64_t linear, Kind kind)
    {
        if (rules_.mode == Rules::Mode::None) {
            return {false, 0, linear};
        }
        const bool write = kind == Kind::Write;
        const bool fetch = kind == Kind::Fetch;
        const bool nx_counts = rules_.nxe && rules_.mode != Rules::Mode::Legacy;
        const std::uint32_t base = (write ? 2U : 0U) | (rules_.user ? 4U : 0U) |
                                   (fetch && (nx_counts || rules_.smep) ? 16U : 0U);
        std::vector<std::uint64_t> path;
        bool all_write = true;
        bool all_user = true;
        bool any_nx = false;
        std::uint64_t gpa = 0;

        const bool wide = rules_.mode != Rules::Mode::Legacy;
        const unsigned per_level = wide ? 9 : 10;
        int level = rules_.mode == Rules::Mode::Four ? 4 : 2;
        std::uint64_t table = rules_.cr3 & ~std::uint64_t{0xfff};
        if (rules_.mode == Rules::Mode::Pae) {
            const std::uint64_t pdpte = pdptes_[linear >> 30U];
            if ((pdpte & 1U) == 0) {
                return {true, base, 0};
            }
            table = pdpte & ((std::uint64_t{1} << rules_.width) - 0x1000U);
        }
        for (;; --level) {
            const unsigned low = 12U + per_level * static_cast<unsigned>(level - 1);
            const std::uint64_t number = (linear >> low) % (std::uint64_t{1} << per_level);
            const std::uint64_t where = table + number * (wide ? 8U : 4U);
            if (where + 8 > ram_.size()) {
                return {true, base, 0};
            }
            std::uint64_t entry = 0;
            std::memcpy(&entry, ram_.data() + where, wide ? 8 : 4);
            if (!(entry & 1U)) {
                return {true, base, 0};
            }
            path.push_back(where);
            const bool large_bit = (entry >> 7U) & 1U;
            bool last = level == 1;
            bool bad = false;
            if (wide) {
                for (unsigned number_of_bit = rules_.width; number_of_bit < 52; ++number_of_bit) {
                    bad = bad || ((entry >> number_of_bit) & 1U);
                }
                if (rules_.mode == Rules::Mode::Pae) {
                    bad = bad || ((entry >> 52U) & 0x7ffU);
                }
                bad = bad || (!rules_.nxe && (entry >> 63U));
                if (level == 4) {
                    bad = bad || large_bit || (!rules_.intel && ((entry >> 8U) & 1U));
                }
                if (level == 3 && large_bit) {
                    last = true;
                    bad = bad || !rules_.page_1g || ((entry >> 13U) & 0x1ffffU);
                }
                if (level == 2 && large_bit) {
                    last = true;
                    bad = bad || ((entry >> 13U) & 0xffU);
                }
            } else if (level == 2 && large_bit && rules_.pse) {
                last = true;
                const unsigned extra = std::min(rules_.width, 40U) - 32U;  // Bits 13 … 13+extra-1.
                for (unsigned number_of_bit = 13 + extra; number_of_bit <= 21; ++number_of_bit) {
                    bad = bad || ((entry >> number_of_bit) & 1U);
                }
            }
            if (bad) {
                return {true, base | 1U | 8U, 0};
            }
            all_write = all_write && (entry & 2U);
            all_user = all_user && (entry & 4U);
            any_nx = any_nx || (nx_counts && (entry >> 63U));
            const std::uint64_t address =
                entry & ((std::uint64_t{1} << (wide ? rules_.width : 32U)) - 0x1000U);
            if (last) {
                const std::uint64_t inside = (std::uint64_t{1} << low) - 1;
                gpa = (address & ~inside) + (linear & inside);
                if (!wide && level == 2) {
                    gpa += ((entry >> 13U) & 0xffU) << 32U;
                }
                break;
            }
            table = address;
        }
        bool allowed = true;
        if (rules_.user) {
            allowed = all_user && (!write || all_write);
        } else {
            if (write && rules_.wp && !all_write) {
                allowed = false;
            }
            if (fetch && rules_.smep && all_user) {
                allowed = false;
            }
            if (!fetch && rules_.smap && all_user && !rules_.ac) {
                allowed = false;
            }
        }
        if (fetch && any_nx) {
            allowed = false;
        }
        if (!allowed) {
            return {true, base | 1U, 0};
        }
        for (std::size_t index = 0; index < path.size(); ++index) {
            auto low_byte = std::to_integer<unsigned>(ram_[path[index]]);
            low_byte |= 0x20U | (write && index + 1 == path.size() ? 0x40U : 0U);
            ram_[path[index]] = static_cast<std::byte>(low_byte);
        }
        return {false, 0, gpa};
    }

private:
    std::vector<std::byte>& ram_;
    const Rules& rules_;
    const std::array<std::uint64_t, 4>& pdptes_;
};

class RandomWalks : public testing::TestWithParam<Rules::Mode> {
protected:
    bool chance(unsigned percent) { return random_() % 100 < percent; }

    std::uint64_t random_entry(bool wide)
    {
        std::uint64_t entry = chance(95) ? 1U : 0U;
        entry |= random_() & 0x166U;  // R/W, U/S, A, D, G.
        if (chance(85)) {
            entry |= 6U;
        }
        if (!chance(20)) {
            entry &= ~std::uint64_t{0x100};  // Reserved for AMD in high levels.
        }
        entry |= chance(30) ? 0x80U : 0U;
        std::uint64_t frame = chance(75) ? random_() % table_pages : random_() % ram_pages;
        if ((entry & 0x80U) != 0 && chance(85)) {
            frame = chance(80) ? 0 : (random_() % 4) << 9U;  // Aligned for 2 MiB.
        }
        entry |= frame << 12U;
        if (wide) {
            if (chance(3)) {
                entry |= std::uint64_t{1} << (34U + random_() % 18U);
            }
            if (chance(5)) {
                entry |= (random_() & 0x7ffU) << 52U;
            }
            if (chance(15)) {
                entry |= std::uint64_t{1} << 63U;
            }
        } else if (chance(5)) {
            entry |= random_() & 0xffff'f000U;
        }
        return entry;
    }

    void fill_tables(Machine& machine, bool wide)
    {
        for (std::byte& each : machine.memory.bytes) {
            each = static_cast<std::byte>(random_());
        }
        const std::uint64_t size = wide ? 8 : 4;
        for (std::uint64_t at = 0; at < table_pages * page_size; at += size) {
            const std::uint64_t entry = random_entry(wide);
            std::memcpy(machine.memory.bytes.data() + at, &entry, size);
        }
    }

    Rules random_rules()
    {
        Rules rules{};
        rules.mode = GetParam();
        rules.pse = chance(80);
        rules.pge = chance(50);
        rules.nxe = chance(70);
        rules.wp = chance(50);
        rules.smep = chance(50);
        rules.smap = chance(50);
        rules.ac = chance(50);
        rules.user = chance(50);
        rules.page_1g = chance(70);
        rules.intel = chance(50);
        rules.width = std::array{36U, 40U, 46U, 52U}[random_() % 4];
        rules.cr3 = (random_() % table_pages) * page_size;
        return rules;
    }

    static void apply(Cpu& cpu, const Rules& rules)
    {
        const bool paging = rules.mode != Rules::Mode::None;
        cpu.cpuid = paging_cpuid(rules.width, rules.page_1g, rules.intel);
        cpu.cr0 = Cr0::PE.mask | (paging ? Cr0::PG.mask : 0) | (rules.wp ? Cr0::WP.mask : 0);
        cpu.cr4 = (rules.pse ? Cr4::PSE.mask : 0) | (rules.pge ? Cr4::PGE.mask : 0) |
                  (rules.smep ? Cr4::SMEP.mask : 0) | (rules.smap ? Cr4::SMAP.mask : 0);
        if (rules.mode == Rules::Mode::Pae || rules.mode == Rules::Mode::Four) {
            cpu.cr4 |= Cr4::PAE.mask;
        }
        cpu.efer = rules.nxe ? Efer::NXE.mask : 0;
        cpu.seg[Cs].l = 0;
        if (rules.mode == Rules::Mode::Four) {
            cpu.efer |= mask_of(Efer::LME, Efer::LMA);
            cpu.seg[Cs].l = 1;
        }
        cpu.rflags = 2U | (rules.ac ? Rflags::AC.mask : 0);
        cpu.seg[Ss].dpl = rules.user ? 3 : 0;
        cpu.cr3 = rules.cr3;
        cpu.state_changed();
    }

    std::uint64_t random_linear()
    {
        if (GetParam() != Rules::Mode::Four) {
            return random_() & 0xffff'ffffU;
        }
        std::uint64_t linear = random_() & 0x7fff'ffff'ffffU;
        return chance(50) ? linear : linear | 0xffff'8000'0000'0000U;
    }

    /// Does it on the machine: the byte, or the fault.
    struct Outcome {
        std::optional<Fault> fault;
        std::uint8_t byte{};
        std::uint64_t gpa{};  // Fetches.
    };
    static Outcome perform(Cpu& cpu, std::uint64_t linear, Kind kind)
    {
        Outcome outcome{};
        outcome.fault = fault_of([&] {
            switch (kind) {
            case Kind::Read: outcome.byte = load<std::uint8_t>(cpu, Ds, linear); break;
            case Kind::Write: store<std::uint8_t>(cpu, Ds, linear, 0x5a); break;
            case Kind::Fetch: outcome.gpa = fetch_page(cpu, linear).gpa; break;
            }
        });
        return outcome;
    }

    std::mt19937_64 random_{20240607};
};

TEST_P(RandomWalks, AgreeWithTheModel)
{
    Machine machine{ram_pages};
    Cpu& cpu = machine.cpu;
    const bool wide = GetParam() != Rules::Mode::Legacy;
    unsigned faults = 0;
    unsigned successes = 0;
    for (unsigned round = 0; round < 40; ++round) {
        fill_tables(machine, wide);
        for (unsigned trial = 0; trial < 100; ++trial) {
            const Rules rules = random_rules();
            apply(cpu, rules);
            for (std::uint64_t& pdpte : cpu.pdptes) {
                pdpte = (random_() % table_pages) * page_size | (chance(90) ? 1U : 0U);
            }
            std::vector<std::byte> expected = machine.memory.bytes;
            Model model{expected, rules, cpu.pdptes};
            const std::uint64_t linear = random_linear();
            const Kind kind = std::array{Kind::Read, Kind::Write, Kind::Fetch}[random_() % 3];
            machine.host.accesses.clear();

            const Answer answer = model.access(linear, kind);
            const Outcome outcome = perform(cpu, linear, kind);

            ASSERT_EQ(outcome.fault.has_value(), answer.fault)
                << std::hex << linear << " " << answer.error;
            if (answer.fault) {
                ++faults;
                EXPECT_EQ(outcome.fault->vector, Vector::PF);
                ASSERT_EQ(outcome.fault->error_code, answer.error) << std::hex << linear;
                EXPECT_EQ(outcome.fault->payload, linear);
            } else {
                ++successes;
                const bool is_ram = answer.gpa < expected.size();
                if (kind == Kind::Fetch) {
                    EXPECT_EQ(outcome.gpa, answer.gpa);
                } else if (!is_ram) {
                    ASSERT_EQ(machine.host.accesses.size(), 1U);
                    EXPECT_EQ(machine.host.accesses[0].gpa, answer.gpa);
                    EXPECT_EQ(machine.host.accesses[0].write, kind == Kind::Write);
                } else if (kind == Kind::Write) {
                    expected[answer.gpa] = std::byte{0x5a};
                } else {
                    EXPECT_EQ(outcome.byte, std::to_integer<unsigned>(expected[answer.gpa]));
                }
            }
            ASSERT_TRUE(machine.memory.bytes == expected) << "A/D bits, or a stray write";
            // Again, now through the TLB where there was a translation.
            if (!answer.fault && kind == Kind::Read && answer.gpa < expected.size()) {
                EXPECT_EQ(perform(cpu, linear, kind).byte, outcome.byte);
            }
        }
    }
    EXPECT_GT(successes, 200U);
    if (GetParam() != Rules::Mode::None) {
        EXPECT_GT(faults, 200U);
    }
}

INSTANTIATE_TEST_SUITE_P(
    Modes,
    RandomWalks,
    testing::Values(Rules::Mode::None, Rules::Mode::Legacy, Rules::Mode::Pae, Rules::Mode::Four));

TEST(Pdptes, ReservedBitsAreRefusedAndNothingChanges)
{
    Machine machine{16};
    machine.memory.put<std::uint64_t>(0x2000, 0x3001);
    machine.memory.put<std::uint64_t>(0x2018, 0x4001);
    ASSERT_TRUE(load_pdptes(machine.cpu, 0x2000));
    EXPECT_EQ(machine.cpu.pdptes[0], 0x3001U);
    EXPECT_EQ(machine.cpu.pdptes[3], 0x4001U);
    for (const unsigned reserved : {1U, 2U, 5U, 8U, 40U, 52U, 63U}) {
        machine.memory.put<std::uint64_t>(0x2008, std::uint64_t{1} << reserved | 1U);
        EXPECT_FALSE(load_pdptes(machine.cpu, 0x2000)) << reserved;
        // Without P the other bits are ignored.
        machine.memory.put<std::uint64_t>(0x2008, std::uint64_t{1} << reserved);
        EXPECT_TRUE(load_pdptes(machine.cpu, 0x2000)) << reserved;
    }
}

TEST(Pdptes, AreNotReadAgainUntilLoaded)
{
    Machine machine{16};
    Cpu& cpu = machine.cpu;
    machine.memory.put<std::uint64_t>(0x2000, 0x3001);
    machine.memory.put<std::uint64_t>(0x3000, 0x83);  // 2 MiB at 0.
    cpu.cr0 = mask_of(Cr0::PE, Cr0::PG);
    cpu.cr4 = Cr4::PAE.mask;
    cpu.cr3 = 0x2000;
    cpu.state_changed();
    machine.memory.put<std::uint64_t>(0x2000, 0);
    EXPECT_FALSE(fault_of([&] { static_cast<void>(load<std::uint8_t>(cpu, Ds, 0)); }));
    flush_tlb_all(cpu);
    EXPECT_FALSE(fault_of([&] { static_cast<void>(load<std::uint8_t>(cpu, Ds, 0x1000)); }));
    ASSERT_TRUE(load_pdptes(cpu, cpu.cr3));
    flush_tlb_all(cpu);
    EXPECT_TRUE(fault_of([&] { static_cast<void>(load<std::uint8_t>(cpu, Ds, 0)); }));
}

TEST(Walk, TablesOutsideMemoryAreNotPresent)
{
    Machine machine{16};
    set_long_mode(machine.cpu, 0x7000'0000);
    const auto fault =
        fault_of([&] { static_cast<void>(load<std::uint8_t>(machine.cpu, Ds, 0x1000)); });
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->vector, Vector::PF);
    EXPECT_EQ(fault->error_code, 0U);
}

TEST(Walk, TablesInReadOnlyMemoryKeepTheirBits)
{
    Machine machine{16};
    LongModeTables tables{machine.memory, 0x1000};
    const std::uint64_t slot = tables.map(0x5000, 0x9003);
    set_long_mode(machine.cpu, tables.root);
    machine.memory.set_writable(slot / page_size, false);
    store<std::uint32_t>(machine.cpu, Ds, 0x5000, 0x1234);
    EXPECT_EQ(machine.memory.get<std::uint32_t>(0x9000), 0x1234U);
    EXPECT_EQ(machine.memory.get<std::uint64_t>(slot), 0x9003U);
}

TEST(Walk, AccessedBitsMarkTheTablesDirty)
{
    Machine machine{16};
    LongModeTables tables{machine.memory, 0x1000};
    const std::uint64_t slot = tables.map(0x5000, 0x9003);
    machine.memory.set_log_dirty(slot / page_size, true);
    set_long_mode(machine.cpu, tables.root);
    static_cast<void>(load<std::uint8_t>(machine.cpu, Ds, 0x5000));
    EXPECT_TRUE(machine.memory.take_dirty(slot / page_size));
    EXPECT_FALSE(machine.memory.take_dirty(9));
}

TEST(Walk, QuietTranslationHasNoSideEffects)
{
    Machine machine{16};
    LongModeTables tables{machine.memory, 0x1000};
    const std::uint64_t slot = tables.map(0x5000, 0x9001);
    set_long_mode(machine.cpu, tables.root);
    std::uint64_t gpa = 0;
    ASSERT_TRUE(translate_quietly(machine.cpu, 0x5123, gpa));
    EXPECT_EQ(gpa, 0x9123U);
    EXPECT_EQ(machine.memory.get<std::uint64_t>(slot), 0x9001U);
    EXPECT_FALSE(translate_quietly(machine.cpu, 0x6000, gpa));
    EXPECT_FALSE(translate_quietly(machine.cpu, 0x8000'0000'0000, gpa));
}

}  // namespace
}  // namespace vmm::x86::soft::test
