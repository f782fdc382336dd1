// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include <gtest/gtest.h>

#include "irqchip/fixture.hpp"
#include "x86/irqchip/io_apic.hpp"

namespace vmm::test {
namespace {

constexpr std::uint32_t masked = 0x1'0000;
constexpr std::uint32_t level = 0x8000;
constexpr std::uint32_t logical = 0x800;
constexpr std::uint32_t remote_irr = 0x4000;

class IoApicTest : public IrqchipFixture {
protected:
    IoApicTest() { enable_all(); }

    int line(std::uint32_t gsi, bool high, unsigned source = irq_source_user)
    {
        return chip.set_line(gsi, source, high);
    }
};

TEST_F(IoApicTest, ItHas24MaskedPinsAndVersion11)
{
    EXPECT_EQ(ioapic_read(1), 0x0017'0011U);
    for (std::uint32_t pin = 0; pin < 24; ++pin) {
        EXPECT_EQ(ioapic_read(0x10 + 2 * pin), masked);
        EXPECT_EQ(ioapic_read(0x11 + 2 * pin), 0U);
    }
    ioapic_write(0, 0xff00'0000);
    EXPECT_EQ(ioapic_read(0), 0x0f00'0000U);
    EXPECT_EQ(ioapic_read(2), 0x0f00'0000U);
    EXPECT_EQ(ioapic_read(0x40), ~0U) << "one past the last pin";
    ioapic_write(0x40, 0);
}

TEST_F(IoApicTest, TheReadOnlyBitsOfAnEntryCannotBeWritten)
{
    ioapic_write(0x10 + 2 * 17, masked | 0xffff);
    EXPECT_EQ(ioapic_read(0x10 + 2 * 17), masked | 0xafffU);
}

TEST_F(IoApicTest, AnEdgeIsDeliveredOnceUntilTheLineFalls)
{
    redirect(20, 0x41, 2);
    EXPECT_EQ(line(20, true), 1);
    EXPECT_EQ(line(20, true), irq_coalesced);
    EXPECT_EQ(take(0x41), (std::vector<std::uint32_t>{2}));
    EXPECT_EQ(line(20, false), 1);
    EXPECT_EQ(line(20, true), 1);
    EXPECT_EQ(take(0x41), (std::vector<std::uint32_t>{2}));
}

TEST_F(IoApicTest, AMaskedPinSaysSoAndAnEdgeThereIsLost)
{
    EXPECT_EQ(line(20, true), irq_masked);
    redirect(20, 0x41);
    EXPECT_FALSE(apic[0]->has_interrupt());
    line(20, false);
    EXPECT_EQ(line(20, true), 1);
}

TEST_F(IoApicTest, ALevelIsDeliveredAgainAtEachEoiWhileItIsHigh)
{
    redirect(20, level | 0x41, 1);
    EXPECT_EQ(line(20, true), 1);
    EXPECT_EQ(ioapic_read(0x10 + 2 * 20) & remote_irr, remote_irr);
    EXPECT_EQ(line(20, true), irq_coalesced);
    for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(apic[1]->acknowledge(), 0x41);
        EXPECT_FALSE(apic[1]->has_interrupt());
        eoi(1);
        EXPECT_TRUE(apic[1]->has_interrupt());
    }
    EXPECT_EQ(apic[1]->acknowledge(), 0x41);
    line(20, false);
    EXPECT_EQ(ioapic_read(0x10 + 2 * 20) & remote_irr, remote_irr) << "until the EOI";
    eoi(1);
    EXPECT_FALSE(apic[1]->has_interrupt());
    EXPECT_EQ(ioapic_read(0x10 + 2 * 20) & remote_irr, 0U);
}

TEST_F(IoApicTest, ALevelThatWasMaskedGoesOutWhenUnmasked)
{
    redirect(20, masked | level | 0x41);
    EXPECT_EQ(line(20, true), irq_masked);
    EXPECT_FALSE(apic[0]->has_interrupt());
    redirect(20, level | 0x41);
    EXPECT_TRUE(apic[0]->has_interrupt());
}

TEST_F(IoApicTest, SourcesShareALevel)
{
    redirect(20, level | 0x41);
    EXPECT_EQ(line(20, true, 5), 1);
    line(20, true, 63);
    line(20, false, 5);
    EXPECT_EQ(apic[0]->acknowledge(), 0x41);
    eoi(0);
    EXPECT_TRUE(apic[0]->has_interrupt()) << "source 63 holds the line";
    EXPECT_EQ(apic[0]->acknowledge(), 0x41);
    line(20, false, 63);
    eoi(0);
    EXPECT_FALSE(apic[0]->has_interrupt());
}

TEST_F(IoApicTest, MakingAPinEdgeTriggeredClearsItsRemoteIrr)
{
    redirect(20, level | 0x41);
    line(20, true);
    line(20, false);
    redirect(20, masked | 0x41);
    EXPECT_EQ(ioapic_read(0x10 + 2 * 20), masked | 0x41U);
}

TEST_F(IoApicTest, DeliveryModesAndDestinations)
{
    redirect(16, 0x400, 3);
    line(16, true);
    EXPECT_EQ(vcpu[3].nmis, 1);
    redirect(17, 0x200, 2);
    line(17, true);
    EXPECT_EQ(vcpu[2].smis, 1);
    redirect(18, 0x500, 1);
    line(18, true);
    EXPECT_EQ(vcpu[1].inits, 1);
    redirect(19, 0x700, 1);
    EXPECT_EQ(line(19, true), 0) << "ExtINT has no effect here";
    redirect(20, 0x42, 0xff);
    EXPECT_EQ(line(20, true), 4);
    EXPECT_EQ(take(0x42).size(), 4U);
    for (std::uint32_t id = 0; id < vcpu_count; ++id) {
        lapic_write(id, LapicRegister::Ldr, 1U << (24U + id));
    }
    redirect(21, logical | 0x43, 0x6);
    EXPECT_EQ(line(21, true), 2);
    EXPECT_EQ(take(0x43), (std::vector<std::uint32_t>{1, 2}));
    redirect(22, 0x100 | logical | 0x44, 0xf);
    EXPECT_EQ(line(22, true), 1);
    EXPECT_EQ(take(0x44).size(), 1U);
    redirect(23, 0x45, 77);
    EXPECT_LT(line(23, true), 0) << "nobody there";
}

TEST_F(IoApicTest, ALevelThatNobodyAcceptedIsNotStuck)
{
    lapic_write(1, LapicRegister::Svr, 0xff);
    redirect(20, level | 0x41, 1);
    EXPECT_EQ(line(20, true), 0);
    EXPECT_EQ(ioapic_read(0x10 + 2 * 20) & remote_irr, 0U);
    lapic_write(1, LapicRegister::Svr, 0x1ff);
    EXPECT_EQ(line(20, true), 1);
}

TEST_F(IoApicTest, ExactlyTheEndedGsiIsNotified)
{
    int ends = 0;
    int others = 0;
    const auto number = chip.add_ack_notifier(20, [&] { ++ends; });
    chip.add_ack_notifier(21, [&] { ++others; });
    redirect(20, level | 0x41);
    redirect(21, 0x42);
    line(20, true);
    EXPECT_EQ(apic[0]->acknowledge(), 0x41);
    line(20, false);
    EXPECT_EQ(ends, 0);
    eoi(0);
    EXPECT_EQ(ends, 1);
    EXPECT_EQ(others, 0);

    chip.remove_ack_notifier(number);
    line(21, true);
    EXPECT_EQ(take(0x42).size(), 1U);
    EXPECT_EQ(ends, 1);
    EXPECT_EQ(others, 1) << "edges end too";
}

TEST_F(IoApicTest, ANotifierMayDriveTheLineAgain)
{
    redirect(20, level | 0x41);
    int left = 3;
    chip.add_ack_notifier(20, [&] {
        line(20, false);
        if (--left > 0) {
            line(20, true);
        }
    });
    line(20, true);
    int taken = 0;
    while (apic[0]->has_interrupt() && taken < 100) {
        EXPECT_EQ(apic[0]->acknowledge(), 0x41);
        eoi(0);
        ++taken;
    }
    EXPECT_GE(taken, 3);
    EXPECT_LE(left, 0);
}

TEST_F(IoApicTest, StateSurvivesATripAndPendingInterruptsAreDelivered)
{
    redirect(20, masked | level | 0x41, 1);
    redirect(21, 0x42, 2);
    line(20, true);
    line(21, true);
    EXPECT_EQ(take(0x42), (std::vector<std::uint32_t>{2}));
    IoApicState state = chip.io_apic_state();
    EXPECT_EQ(state.irr, 1U << 20U) << "the edge has gone out and is not in it";
    EXPECT_EQ(state.redirection_table[20], (1ULL << 56U) | masked | level | 0x41U);

    chip.reset();
    state.redirection_table[20] &= ~std::uint64_t{masked};
    chip.set_io_apic_state(state);

    EXPECT_EQ(apic[1]->acknowledge(), 0x41);
    EXPECT_FALSE(apic[2]->has_interrupt());
}

TEST_F(IoApicTest, OddOffsetsAndSizesAreHarmless)
{
    std::uint64_t quad = ~0ULL;
    ASSERT_TRUE(chip.mmio_write(0, Gpa{IoApic::default_base}, bytes_of(quad)));
    ASSERT_TRUE(chip.mmio_read(0, Gpa{IoApic::default_base}, bytes_of(quad)));
    EXPECT_EQ(quad, 0xffU);
    std::uint8_t byte = 1;
    ASSERT_TRUE(chip.mmio_write(0, Gpa{IoApic::default_base}, bytes_of(byte)));
    ASSERT_TRUE(chip.mmio_read(0, Gpa{IoApic::default_base + 0x10}, bytes_of(byte)));
    EXPECT_EQ(byte, 0x11U);
    std::uint32_t word = 5;
    ASSERT_TRUE(chip.mmio_read(0, Gpa{IoApic::default_base + 0x40}, bytes_of(word)));
    EXPECT_EQ(word, 0U) << "no EOI register in this version";
    EXPECT_FALSE(chip.mmio_read(0, Gpa{IoApic::default_base + 0x100}, bytes_of(word)));
}

}  // namespace
}  // namespace vmm::test
