// SPDX-License-Identifier: Apache-2.0

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "irqchip/fixture.hpp"
#include "x86/irqchip/local_apic.hpp"

namespace vmm::test {
namespace {

using Reg = LapicRegister;
using Ids = std::vector<std::uint32_t>;

class LocalApicTest : public IrqchipFixture {
protected:
    LocalApicTest() { enable_all(); }

    static Gpa msi_to(std::uint32_t destination)
    {
        return Gpa{0xfee0'0000U | (destination << 12U)};
    }
    void send(std::uint32_t from, std::uint32_t low, std::uint32_t destination = 0)
    {
        lapic_write(from, Reg::IcrHigh, destination << 24U);
        lapic_write(from, Reg::IcrLow, low);
    }
    bool wrmsr(std::uint32_t id, std::uint32_t index, std::uint64_t value)
    {
        return apic.at(id)->write_msr(index, value);
    }
    std::optional<std::uint64_t> rdmsr(std::uint32_t id, std::uint32_t index)
    {
        std::uint64_t value = 0;
        return apic.at(id)->read_msr(index, value) ? std::optional{value} : std::nullopt;
    }
};

// --- Reset.  SDM Vol. 3A "Local APIC State After Power-Up or Reset".

TEST_F(IrqchipFixture, AfterResetTheApicIsSoftwareDisabledAndMasked)
{
    EXPECT_EQ(lapic_read(2, Reg::Id), 2U << 24U);
    EXPECT_EQ(lapic_read(2, Reg::Version), 0x0005'0014U);
    EXPECT_EQ(lapic_read(2, Reg::Svr), 0xffU);
    EXPECT_EQ(lapic_read(2, Reg::Dfr), ~0U);
    EXPECT_EQ(lapic_read(2, Reg::Ldr), 0U);
    EXPECT_EQ(lapic_read(2, Reg::Tpr), 0U);
    for (const Reg lvt : {Reg::LvtTimer, Reg::LvtThermal, Reg::LvtPerformance, Reg::LvtLint0,
                          Reg::LvtLint1, Reg::LvtError}) {
        EXPECT_EQ(lapic_read(2, lvt), 0x1'0000U);
    }
    EXPECT_EQ(apic[2]->apic_base(), 0xfee0'0800U);
    EXPECT_EQ(apic[0]->apic_base(), 0xfee0'0900U);
    EXPECT_EQ(lapic_read(0, Reg::LvtLint0), 0x700U);
}

TEST_F(LocalApicTest, InitKeepsTheIdAndTheBaseOnly)
{
    lapic_write(1, Reg::Id, 0x2a00'0000);
    lapic_write(1, Reg::Tpr, 0x40);
    lapic_write(1, Reg::Ldr, 0x0200'0000);

    apic[1]->init();

    EXPECT_EQ(lapic_read(1, Reg::Id), 0x2a00'0000U);
    EXPECT_EQ(lapic_read(1, Reg::Tpr), 0U);
    EXPECT_EQ(lapic_read(1, Reg::Ldr), 0U);
    EXPECT_EQ(lapic_read(1, Reg::Svr), 0xffU);
}

// --- Registers.

TEST_F(LocalApicTest, AccessesOfOtherWidthsFollowKvm)
{
    const std::uint64_t tpr = LocalApic::default_base + 0x80;
    std::uint16_t half = 0x55;
    ASSERT_TRUE(chip.mmio_write(0, Gpa{tpr}, bytes_of(half)));
    EXPECT_EQ(lapic_read(0, Reg::Tpr), 0U) << "writes must have 32 bits";
    std::uint32_t word = 0x55;
    ASSERT_TRUE(chip.mmio_write(0, Gpa{tpr + 4}, bytes_of(word)));
    EXPECT_EQ(lapic_read(0, Reg::Tpr), 0U) << "and stand on a 16-byte boundary";

    std::uint8_t byte = 0xee;
    ASSERT_TRUE(chip.mmio_read(0, Gpa{LocalApic::default_base + 0x32}, bytes_of(byte)));
    EXPECT_EQ(byte, 0x05U) << "a byte of the version register";
    std::uint64_t quad = ~0ULL;
    ASSERT_TRUE(chip.mmio_read(0, Gpa{LocalApic::default_base + 0x30}, bytes_of(quad)));
    EXPECT_EQ(quad, 0U);
    std::uint32_t across = ~0U;
    ASSERT_TRUE(chip.mmio_read(0, Gpa{LocalApic::default_base + 0x32}, bytes_of(across)));
    EXPECT_EQ(across, 0U);
}

TEST_F(LocalApicTest, ThePageEndsAfter4KiB)
{
    std::uint32_t value = 0;
    EXPECT_TRUE(chip.mmio_read(0, Gpa{0xfee0'0ffc}, bytes_of(value)));
    EXPECT_FALSE(chip.mmio_read(0, Gpa{0xfee0'1000}, bytes_of(value)));
    EXPECT_FALSE(chip.mmio_read(0, Gpa{0xfedf'fffc}, bytes_of(value)));
}

TEST_F(LocalApicTest, ReadOnlyRegistersKeepTheirValue)
{
    for (const Reg r : {Reg::Version, Reg::Ppr, Reg::Isr, Reg::Irr, Reg::Tmr, Reg::CurrentCount}) {
        const std::uint32_t before = lapic_read(1, r);
        lapic_write(1, r, 0xffff'ffff);
        EXPECT_EQ(lapic_read(1, r), before);
    }
}

TEST_F(LocalApicTest, DisablingBySoftwareMasksTheLvt)
{
    lapic_write(1, Reg::LvtLint1, 0x400);
    lapic_write(1, Reg::Svr, 0xff);
    EXPECT_EQ(lapic_read(1, Reg::LvtLint1), 0x1'0400U);

    lapic_write(1, Reg::LvtLint1, 0x400);
    EXPECT_EQ(lapic_read(1, Reg::LvtLint1), 0x1'0400U) << "the mask cannot be cleared meanwhile";
    EXPECT_EQ(chip.signal_msi(msi_to(1), 0x40), 0);
}

TEST_F(LocalApicTest, AnIllegalRegisterShowsInTheErrorStatus)
{
    lapic_write(1, Reg::LvtError, 0x33);
    lapic_write(1, static_cast<Reg>(0x040), 1);
    EXPECT_EQ(lapic_read(1, Reg::Esr), 0U) << "before ESR is written";

    lapic_write(1, Reg::Esr, 0);

    EXPECT_EQ(lapic_read(1, Reg::Esr), 0x80U);
    EXPECT_EQ(take(0x33), Ids{1});
    lapic_write(1, Reg::Esr, 0);
    EXPECT_EQ(lapic_read(1, Reg::Esr), 0U);
}

TEST_F(LocalApicTest, VectorsBelow16AreErrorsOfSenderAndReceiver)
{
    send(0, 0x0f, 1);
    lapic_write(0, Reg::Esr, 0);
    EXPECT_EQ(lapic_read(0, Reg::Esr), 0x20U);

    EXPECT_EQ(chip.signal_msi(msi_to(1), 0x0f), 0);
    lapic_write(1, Reg::Esr, 0);
    EXPECT_EQ(lapic_read(1, Reg::Esr), 0x40U);
    EXPECT_FALSE(apic[1]->has_interrupt());

    EXPECT_EQ(chip.signal_msi(msi_to(1), 0x10), 1) << "16 is the first legal one";
}

// --- Priority and nesting.

TEST_F(LocalApicTest, TheHighestVectorComesFirstAndNests)
{
    chip.signal_msi(msi_to(0), 0x31);
    chip.signal_msi(msi_to(0), 0x55);
    EXPECT_EQ(apic[0]->acknowledge(), 0x55);
    EXPECT_EQ(lapic_read(0, Reg::Ppr), 0x50U);
    EXPECT_FALSE(apic[0]->has_interrupt()) << "0x31 is of lower priority";

    chip.signal_msi(msi_to(0), 0x5f);
    EXPECT_FALSE(apic[0]->has_interrupt()) << "the same class does not nest";
    chip.signal_msi(msi_to(0), 0x60);
    EXPECT_EQ(apic[0]->acknowledge(), 0x60);

    eoi(0);
    EXPECT_FALSE(apic[0]->has_interrupt()) << "0x55 is in service still";
    eoi(0);
    EXPECT_EQ(apic[0]->acknowledge(), 0x5f);
    eoi(0);
    EXPECT_EQ(apic[0]->acknowledge(), 0x31);
    eoi(0);
    EXPECT_EQ(apic[0]->acknowledge(), std::nullopt);
    EXPECT_EQ(lapic_read(0, Reg::Ppr), 0U);
}

TEST_F(LocalApicTest, TheTaskPriorityHoldsBackItsClassAndThoseBelow)
{
    apic[0]->set_cr8(5);
    EXPECT_EQ(lapic_read(0, Reg::Tpr), 0x50U);
    chip.signal_msi(msi_to(0), 0x5f);
    EXPECT_FALSE(apic[0]->has_interrupt());
    EXPECT_EQ(vcpu[0].kicks, 0);

    apic[0]->set_cr8(4);

    EXPECT_TRUE(apic[0]->has_interrupt());
    EXPECT_EQ(vcpu[0].kicks, 1) << "the running engine must look";
    EXPECT_EQ(apic[0]->cr8(), 4);
    lapic_write(0, Reg::Tpr, 0xff);
    EXPECT_EQ(apic[0]->cr8(), 15);
    EXPECT_FALSE(apic[0]->has_interrupt());
}

TEST_F(LocalApicTest, AnInterruptWhilePendingMerges)
{
    chip.signal_msi(msi_to(0), 0x40);
    chip.signal_msi(msi_to(0), 0x40);
    EXPECT_EQ(vcpu[0].kicks, 1);
    EXPECT_EQ(apic[0]->acknowledge(), 0x40);
    chip.signal_msi(msi_to(0), 0x40);
    EXPECT_EQ(lapic_read(0, static_cast<Reg>(0x220)), 1U) << "requested again while in service";
    EXPECT_EQ(lapic_read(0, static_cast<Reg>(0x120)), 1U);
    eoi(0);
    EXPECT_EQ(apic[0]->acknowledge(), 0x40);
    eoi(0);
    EXPECT_FALSE(apic[0]->has_interrupt());
}

TEST_F(LocalApicTest, TheBoundariesOfTheVectorSpaceWork)
{
    for (const unsigned vector : {0x10U, 0x1fU, 0x20U, 0x3fU, 0x40U, 0x7fU, 0x80U, 0xffU}) {
        ASSERT_EQ(chip.signal_msi(msi_to(3), vector), 1);
        ASSERT_EQ(take(static_cast<std::uint8_t>(vector)), Ids{3});
    }
}

TEST_F(LocalApicTest, AnEoiWithNothingInServiceIsHarmless)
{
    eoi(0);
    chip.signal_msi(msi_to(0), 0x40);
    eoi(0);
    EXPECT_EQ(apic[0]->acknowledge(), 0x40);
}

// --- Interprocessor interrupts.

TEST_F(LocalApicTest, ShorthandsReachWhomTheyName)
{
    send(1, 0x4'0041);  // Self.
    EXPECT_EQ(take(0x41), Ids{1});
    send(1, 0x8'0042);  // All.
    EXPECT_EQ(take(0x42), (Ids{0, 1, 2, 3}));
    send(1, 0xc'0043);  // All but self.
    EXPECT_EQ(take(0x43), (Ids{0, 2, 3}));
}

TEST_F(LocalApicTest, PhysicalDestinations)
{
    send(0, 0x41, 2);
    EXPECT_EQ(take(0x41), Ids{2});
    send(0, 0x42, 0xff);
    EXPECT_EQ(take(0x42), (Ids{0, 1, 2, 3}));
    send(0, 0x43, 9);
    EXPECT_EQ(take(0x43), Ids{});
    send(2, 0x44, 2);
    EXPECT_EQ(take(0x44), Ids{2});
}

TEST_F(LocalApicTest, AChangedIdIsFoundUnderItsNewNumberOnly)
{
    lapic_write(2, Reg::Id, 0x0900'0000);
    send(0, 0x41, 9);
    EXPECT_EQ(take(0x41), Ids{2});
    send(0, 0x42, 2);
    EXPECT_EQ(take(0x42), Ids{});
}

TEST_F(LocalApicTest, FlatLogicalDestinationsAreABitEach)
{
    for (std::uint32_t id = 0; id < vcpu_count; ++id) {
        lapic_write(id, Reg::Ldr, 1U << (24U + id));
    }
    send(0, 0x841, 0x0a);
    EXPECT_EQ(take(0x41), (Ids{1, 3}));
    send(0, 0x842, 0xff);
    EXPECT_EQ(take(0x42), (Ids{0, 1, 2, 3}));
    send(0, 0x843, 0x10);
    EXPECT_EQ(take(0x43), Ids{});
}

TEST_F(LocalApicTest, ClusterLogicalDestinationsAreAClusterAndABitEach)
{
    for (std::uint32_t id = 0; id < vcpu_count; ++id) {
        lapic_write(id, Reg::Dfr, 0x0fff'ffff);
        lapic_write(id, Reg::Ldr, ((id / 2U) << 28U) | (1U << (24U + id % 2U)));
    }
    send(0, 0x841, 0x13);
    EXPECT_EQ(take(0x41), (Ids{2, 3}));
    send(0, 0x842, 0x01);
    EXPECT_EQ(take(0x42), Ids{0});
    send(0, 0x843, 0x24);
    EXPECT_EQ(take(0x43), Ids{});
}

TEST_F(LocalApicTest, LowestPriorityReachesExactlyOneEnabledApic)
{
    lapic_write(1, Reg::Svr, 0xff);
    std::array<int, vcpu_count> count{};
    for (unsigned vector = 0x40; vector < 0x60U; ++vector) {
        send(0, 0x100U | vector, 0xff);
        const Ids who = take(static_cast<std::uint8_t>(vector));
        ASSERT_EQ(who.size(), 1U);
        ++count.at(who[0]);
    }
    EXPECT_EQ(count[1], 0);
    EXPECT_GT(count[0], 0);
    EXPECT_GT(count[2], 0);
    EXPECT_GT(count[3], 0);
}

TEST_F(LocalApicTest, NmiSmiInitAndSipiGoToTheVcpu)
{
    send(0, 0x4400, 1);
    EXPECT_EQ(vcpu[1].nmis, 1);
    send(0, 0x4200, 1);
    EXPECT_EQ(vcpu[1].smis, 1);
    send(0, 0xc4500);
    EXPECT_EQ(vcpu[0].inits, 0);
    EXPECT_EQ(vcpu[1].inits, 1);
    EXPECT_EQ(vcpu[3].inits, 1);
    send(0, 0x8500, 1);
    EXPECT_EQ(vcpu[1].inits, 1) << "level de-assert does nothing";
    send(0, 0xc500, 1);
    EXPECT_EQ(vcpu[1].inits, 2) << "level assert does";
    send(0, 0x4699, 2);
    EXPECT_EQ(vcpu[2].sipi, 0x99);
    EXPECT_FALSE(vcpu[1].sipi.has_value());
}

TEST_F(LocalApicTest, ASoftwareDisabledApicStillTakesNmiInitAndSipi)
{
    lapic_write(1, Reg::Svr, 0xff);
    send(0, 0x4400, 1);
    send(0, 0x4500, 1);
    send(0, 0x4610, 1);
    EXPECT_EQ(vcpu[1].nmis, 1);
    EXPECT_EQ(vcpu[1].inits, 1);
    EXPECT_EQ(vcpu[1].sipi, 0x10);
}

TEST_F(LocalApicTest, LocalSourcesGoThroughTheirLvtEntry)
{
    lapic_write(1, Reg::LvtLint1, 0x400);
    apic[1]->local_interrupt(Reg::LvtLint1);
    EXPECT_EQ(vcpu[1].nmis, 1);

    lapic_write(1, Reg::LvtPerformance, 0x400);
    apic[1]->local_interrupt(Reg::LvtPerformance);
    apic[1]->local_interrupt(Reg::LvtPerformance);
    EXPECT_EQ(vcpu[1].nmis, 2) << "delivery masks the entry";

    lapic_write(1, Reg::LvtThermal, 0x45);
    apic[1]->local_interrupt(Reg::LvtThermal);
    EXPECT_EQ(take(0x45), Ids{1});
}

// --- x2APIC.

TEST_F(LocalApicTest, ModeTransitionsAreThoseOfTheManual)
{
    LocalApic& a = *apic[1];
    constexpr std::uint64_t base = 0xfee0'0000;
    EXPECT_FALSE(a.set_apic_base(base | 0x400)) << "invalid: EXTD without EN";
    EXPECT_FALSE(a.set_apic_base(base | 0xa00)) << "reserved bit 9";
    EXPECT_FALSE(a.set_apic_base((1ULL << 52U) | base | 0x800)) << "beyond physical addresses";
    EXPECT_TRUE(a.set_apic_base(base | 0xc00));
    EXPECT_FALSE(a.set_apic_base(base | 0x800)) << "x2APIC to xAPIC";
    EXPECT_TRUE(a.set_apic_base(base));
    EXPECT_FALSE(a.set_apic_base(base | 0xc00)) << "disabled to x2APIC";
    EXPECT_TRUE(a.set_apic_base(base | 0x800));
    EXPECT_EQ(a.apic_base(), base | 0x800);
    EXPECT_TRUE(a.set_apic_base(0x1234'5800)) << "another address is only reported";
    EXPECT_EQ(a.apic_base(), 0x1234'5800U);

    EXPECT_TRUE(a.set_apic_base(base | 0xc00, ApicBaseWriter::Host));
    EXPECT_TRUE(a.set_apic_base(base | 0x800, ApicBaseWriter::Host));
    a.set_features({false, true, 36});
    EXPECT_FALSE(a.set_apic_base(base | 0xc00)) << "CPUID has no x2APIC";
    EXPECT_FALSE(a.set_apic_base((1ULL << 36U) | base | 0x800));
}

TEST_F(LocalApicTest, DisablingAndEnablingResetsTheRegisters)
{
    chip.signal_msi(msi_to(1), 0x40);
    ASSERT_TRUE(apic[1]->set_apic_base(0xfee0'0000));
    EXPECT_FALSE(apic[1]->has_interrupt());
    EXPECT_TRUE(apic[1]->accepts_pic_interrupt());
    EXPECT_EQ(chip.signal_msi(msi_to(1), 0x41), 0);
    EXPECT_EQ(lapic_read(1, Reg::Id), ~0U) << "nothing answers at the page";

    ASSERT_TRUE(apic[1]->set_apic_base(0xfee0'0800));
    EXPECT_EQ(lapic_read(1, Reg::Svr), 0xffU);
    EXPECT_FALSE(apic[1]->has_interrupt());
}

TEST_F(LocalApicTest, X2apicRegistersAreMsrs)
{
    EXPECT_FALSE(rdmsr(3, 0x802).has_value()) << "#GP in xAPIC mode";
    to_x2apic(3);
    EXPECT_EQ(rdmsr(3, 0x802), 3U);
    EXPECT_EQ(rdmsr(3, 0x803), 0x0005'0014U);
    EXPECT_EQ(rdmsr(3, 0x80d), 1U << 3U);
    EXPECT_EQ(lapic_read(3, Reg::Id), ~0U) << "the page is gone";

    EXPECT_FALSE(rdmsr(3, 0x80b).has_value()) << "EOI is write-only";
    EXPECT_FALSE(rdmsr(3, 0x83f).has_value());
    EXPECT_FALSE(rdmsr(3, 0x80e).has_value()) << "no DFR";
    EXPECT_FALSE(rdmsr(3, 0x831).has_value()) << "no ICR2";
    EXPECT_FALSE(rdmsr(3, 0x840).has_value());
    EXPECT_FALSE(wrmsr(3, 0x802, 1)) << "read-only";
    EXPECT_FALSE(wrmsr(3, 0x80d, 1));
    EXPECT_FALSE(wrmsr(3, 0x80b, 1)) << "EOI takes only 0";
    EXPECT_FALSE(wrmsr(3, 0x828, 1)) << "and so does ESR";
    EXPECT_FALSE(wrmsr(3, 0x808, 1ULL << 32U));
    EXPECT_FALSE(wrmsr(3, 0x830, 1ULL << 20U)) << "reserved bit of ICR";
    EXPECT_FALSE(wrmsr(3, 0x83f, 0x100));
    EXPECT_TRUE(wrmsr(3, 0x808, 0x20));
    EXPECT_EQ(apic[3]->cr8(), 2);
}

TEST_F(LocalApicTest, X2apicIpis)
{
    for (std::uint32_t id = 0; id < vcpu_count; ++id) {
        to_x2apic(id);
    }
    const auto taken = [this](std::uint8_t vector) {
        Ids who;
        for (std::uint32_t id = 0; id < vcpu_count; ++id) {
            if (apic.at(id)->has_interrupt()) {
                EXPECT_EQ(apic.at(id)->acknowledge(), vector);
                EXPECT_TRUE(wrmsr(id, 0x80b, 0));
                who.push_back(id);
            }
        }
        return who;
    };
    EXPECT_TRUE(wrmsr(0, 0x830, (2ULL << 32U) | 0x41));
    EXPECT_EQ(taken(0x41), Ids{2});
    EXPECT_EQ(rdmsr(0, 0x830), (2ULL << 32U) | 0x41);
    EXPECT_TRUE(wrmsr(0, 0x830, (0xffff'ffffULL << 32U) | 0x42));
    EXPECT_EQ(taken(0x42), (Ids{0, 1, 2, 3}));
    EXPECT_TRUE(wrmsr(0, 0x830, (0x0000'000aULL << 32U) | 0x843));
    EXPECT_EQ(taken(0x43), (Ids{1, 3})) << "logical, cluster 0";
    EXPECT_TRUE(wrmsr(0, 0x830, (0x0001'000aULL << 32U) | 0x844));
    EXPECT_EQ(taken(0x44), Ids{});
    EXPECT_TRUE(wrmsr(0, 0x830, (0xffULL << 32U) | 0x45));
    EXPECT_EQ(taken(0x45), Ids{}) << "0xff is an id like others for IPIs";
    EXPECT_TRUE(wrmsr(1, 0x83f, 0x46));
    EXPECT_EQ(taken(0x46), Ids{1});
    EXPECT_EQ(rdmsr(1, 0x830), 0U) << "a self-IPI leaves ICR alone";
    EXPECT_EQ(chip.signal_msi(msi_to(0xff), 0x47), 4) << "a device's broadcast";
    EXPECT_EQ(taken(0x47), (Ids{0, 1, 2, 3}));
}

TEST_F(LocalApicTest, IdsBeyond255WorkInX2apicMode)
{
    FakeVcpu far;
    const auto big = chip.create_lapic(1000, far, {});
    ASSERT_NE(big, nullptr);
    ASSERT_TRUE(big->set_apic_base(0xfee0'0c00));
    ASSERT_TRUE(big->write_msr(0x80f, 0x1ff));
    EXPECT_EQ(chip.signal_msi(Gpa{0x0000'0300'fee0'0000U | (0xe8U << 12U)}, 0x41), 1);
    EXPECT_EQ(big->acknowledge(), 0x41);
    std::uint64_t ldr = 0;
    ASSERT_TRUE(big->read_msr(0x80d, ldr));
    EXPECT_EQ(ldr, ((1000U >> 4U) << 16U) | (1U << (1000U & 15U)));
    EXPECT_EQ(chip.create_lapic(4096, far, {}), nullptr);
    EXPECT_EQ(chip.create_lapic(1000, far, {}), nullptr) << "in use";
}

// --- The PIC through LINT0.

TEST_F(IrqchipFixture, OnlyTheBootstrapProcessorTakesPicInterruptsAfterReset)
{
    EXPECT_TRUE(apic[0]->accepts_pic_interrupt());
    EXPECT_FALSE(apic[1]->accepts_pic_interrupt());
    for (const std::uint8_t icw :
         {std::uint8_t{0x11}, std::uint8_t{0x20}, std::uint8_t{0x04}, std::uint8_t{0x01}}) {
        out(icw == 0x11 ? 0x20 : 0x21, icw);
    }
    EXPECT_GT(chip.set_line(1, irq_source_user, true), 0);
    EXPECT_EQ(vcpu[0].kicks, 1);
    EXPECT_EQ(vcpu[1].kicks, 0);
    EXPECT_TRUE(apic[0]->has_interrupt());
    EXPECT_FALSE(apic[1]->has_interrupt());
    EXPECT_EQ(apic[0]->acknowledge(), 0x21);
    EXPECT_FALSE(apic[0]->has_interrupt());
}

TEST_F(LocalApicTest, OpeningLint0WithAPicInterruptWaitingKicks)
{
    out(0x20, 0x11);
    out(0x21, 0x20);
    out(0x21, 0x04);
    out(0x21, 0x01);
    chip.set_line(3, irq_source_user, true);
    EXPECT_FALSE(apic[2]->has_interrupt());

    lapic_write(2, Reg::LvtLint0, 0x700);

    EXPECT_EQ(vcpu[2].kicks, 1);
    EXPECT_EQ(apic[2]->acknowledge(), 0x23);
}

TEST_F(LocalApicTest, AfterAPicInterruptAWaitingApicInterruptIsAnnouncedAgain)
{
    lapic_write(0, Reg::LvtLint0, 0x700);
    out(0x20, 0x11);
    out(0x21, 0x20);
    out(0x21, 0x04);
    out(0x21, 0x01);
    chip.set_line(3, irq_source_user, true);
    chip.signal_msi(msi_to(0), 0x61);
    const int before = vcpu[0].kicks;
    EXPECT_EQ(apic[0]->acknowledge(), 0x23);
    EXPECT_EQ(vcpu[0].kicks, before + 1);
    EXPECT_EQ(apic[0]->acknowledge(), 0x61);
}

// --- State, vCPUs that come and go.

TEST_F(LocalApicTest, StateSurvivesATrip)
{
    lapic_write(1, Reg::Tpr, 0x20);
    lapic_write(1, Reg::LvtTimer, 0x2'0044);
    lapic_write(1, Reg::DivideConfiguration, 0xb);
    lapic_write(1, Reg::InitialCount, 1'000'000);
    chip.signal_msi(msi_to(1), 0x51);
    chip.signal_msi(Gpa{0xfee0'1000}, 0x8052);
    ASSERT_EQ(apic[1]->acknowledge(), 0x52);
    timers.advance(400'000);

    const LapicState state = apic[1]->state();
    EXPECT_EQ(state.get(Reg::CurrentCount), 600'000U);
    apic[1]->reset();
    ASSERT_TRUE(apic[1]->set_state(state));

    EXPECT_EQ(apic[1]->state(), state);
    EXPECT_FALSE(apic[1]->has_interrupt());
    eoi(1);
    EXPECT_EQ(apic[1]->acknowledge(), 0x51);
    eoi(1);
    timers.advance(600'000);
    EXPECT_EQ(apic[1]->acknowledge(), 0x44) << "the timer goes on from its count";
}

TEST_F(LocalApicTest, ThePicStillReachesTheCpuWhenItsResetStateIsRestored)
{
    apic[0]->reset();
    ASSERT_TRUE(apic[0]->accepts_pic_interrupt());
    const LapicState state = apic[0]->state();
    ASSERT_EQ(state.get(Reg::Svr) & 0x100U, 0U) << "disabled by software";
    ASSERT_TRUE(apic[0]->set_state(state));
    EXPECT_TRUE(apic[0]->accepts_pic_interrupt());
    EXPECT_EQ(lapic_read(0, Reg::LvtLint0), 0x700U);
}

TEST_F(LocalApicTest, SetStateRefusesAnotherApicsIdInX2apicMode)
{
    to_x2apic(1);
    LapicState state = apic[1]->state();
    EXPECT_TRUE(apic[1]->set_state(state));
    state.set(Reg::Id, 2);
    const Result<void> result = apic[1]->set_state(state);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().errno_value(), EINVAL);
}

TEST_F(LocalApicTest, ARemovedVcpuIsNotCalledAnyMoreAndItsIdCanBeUsedAgain)
{
    chip.remove_lapic(1);
    EXPECT_EQ(chip.signal_msi(msi_to(1), 0x40), 0);
    EXPECT_EQ(vcpu[1].kicks, 0);
    apic[1]->kick();
    EXPECT_EQ(vcpu[1].kicks, 0);

    FakeVcpu again;
    const auto lapic = chip.create_lapic(1, again, {});
    ASSERT_NE(lapic, nullptr);
    EXPECT_FALSE(lapic->has_interrupt());
    lapic_write(1, Reg::Svr, 0x1ff);
    EXPECT_EQ(chip.signal_msi(msi_to(1), 0x40), 1);
    EXPECT_EQ(again.kicks, 1);
}

TEST_F(LocalApicTest, TheRegisterPageIsWhereApicBaseSays)
{
    constexpr Gpa elsewhere{0xfed4'0000};
    std::uint32_t value = 0;
    EXPECT_FALSE(chip.is_mmio(1, elsewhere));
    EXPECT_FALSE(chip.mmio_read(1, elsewhere, bytes_of(value)));
    ASSERT_TRUE(apic[1]->set_apic_base(elsewhere.value() | 0x800));
    EXPECT_TRUE(chip.is_mmio(1, elsewhere));
    EXPECT_TRUE(chip.mmio_read(1, Gpa{elsewhere.value() + 0x20}, bytes_of(value)));
    EXPECT_EQ(value, 1U << 24U) << "the id";
    EXPECT_FALSE(chip.is_mmio(1, Gpa{LocalApic::default_base}));
    EXPECT_FALSE(chip.mmio_read(1, Gpa{LocalApic::default_base}, bytes_of(value)));
    EXPECT_FALSE(chip.is_mmio(0, elsewhere)) << "each CPU has its own";
    EXPECT_TRUE(chip.is_mmio(0, Gpa{LocalApic::default_base}));
}

// KVM "Linux KVM Hypercall": KVM_HC_SEND_IPI.
TEST_F(LocalApicTest, IpisByHypercallGoToTheBitmap)
{
    enable_all();
    EXPECT_EQ(chip.send_ipis({0b1011, 0}, 64, 0, 0x55), 3);
    EXPECT_EQ(apic[0]->acknowledge(), 0x55);
    EXPECT_EQ(apic[1]->acknowledge(), 0x55);
    EXPECT_EQ(apic[2]->acknowledge(), std::nullopt);
    EXPECT_EQ(apic[3]->acknowledge(), 0x55);
    EXPECT_EQ(chip.send_ipis({1, 1}, 32, 2, 0x66), 1) << "2, and 34, which there is not";
    EXPECT_EQ(apic[2]->acknowledge(), 0x66);
    EXPECT_EQ(chip.send_ipis({2, 0}, 64, 0, 0x400), 1);
    EXPECT_EQ(vcpu[1].nmis, 1);
    EXPECT_EQ(chip.send_ipis({1, 0}, 64, 0xffff'ffff, 0x55), 0);
    EXPECT_EQ(chip.send_ipis({1, 0}, 64, 0, 0x4'0055), -22) << "a shorthand";
    EXPECT_EQ(chip.send_ipis({1, 0}, 64, 0, 0x855), -22) << "a logical destination";
}

// --- Split irqchip.

class SplitIrqchip : public IrqchipFixture {
protected:
    SplitIrqchip() : IrqchipFixture{IrqchipMode::Split} { enable_all(); }
};

TEST_F(SplitIrqchip, TheEndOfALevelTriggeredVectorIsReported)
{
    std::vector<std::pair<std::uint32_t, unsigned>> ended;
    chip.set_eoi_hook(
        [&](std::uint32_t id, std::uint8_t vector) { ended.emplace_back(id, vector); });
    chip.signal_msi(Gpa{0xfee0'2000}, 0x40);
    EXPECT_EQ(apic[2]->acknowledge(), 0x40);
    eoi(2);
    EXPECT_TRUE(ended.empty()) << "edge-triggered";

    chip.signal_msi(Gpa{0xfee0'2000}, 0xc041);
    EXPECT_EQ(apic[2]->acknowledge(), 0x41);
    eoi(2);
    EXPECT_EQ(ended, (std::vector<std::pair<std::uint32_t, unsigned>>{{2, 0x41}}));

    EXPECT_EQ(lapic_read(2, Reg::Version), 0x0105'0014U);
    lapic_write(2, Reg::Svr, 0x11ff);
    chip.signal_msi(Gpa{0xfee0'2000}, 0xc041);
    EXPECT_EQ(apic[2]->acknowledge(), 0x41);
    eoi(2);
    EXPECT_EQ(ended.size(), 1U) << "the guest has suppressed the broadcast";
}

TEST_F(SplitIrqchip, ThereIsNoPicAndNoIoApic)
{
    std::uint8_t byte = 0;
    std::uint32_t word = 0;
    EXPECT_FALSE(chip.port_read(Port{0x20}, bytes_of(byte)));
    EXPECT_FALSE(chip.mmio_read(0, Gpa{IoApic::default_base}, bytes_of(word)));
    EXPECT_EQ(chip.set_line(4, irq_source_user, true), irq_masked);
    EXPECT_EQ(chip.pic_device(), nullptr);
    EXPECT_FALSE(chip.set_routing(std::vector{pin_route(4, ChipId::IoApic, 4)}));
    EXPECT_TRUE(chip.set_routing(std::vector{msi_route(4, Gpa{0xfee0'1000}, 0x66)}));
    EXPECT_EQ(chip.set_line(4, irq_source_user, true), 1);
    EXPECT_EQ(apic[1]->acknowledge(), 0x66);
}

}  // namespace
}  // namespace vmm::test
