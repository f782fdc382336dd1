// SPDX-License-Identifier: Apache-2.0

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "x86/irqchip/pic.hpp"

namespace vmm::test {
namespace {

using namespace x86::irqchip;  // NOLINT(google-build-using-namespace)

class PicTest : public ::testing::Test, public PicListener {
protected:
    static constexpr std::uint16_t master = 0x20;
    static constexpr std::uint16_t slave = 0xa0;

    PicTest() { init(); }

    void pic_output_rose() noexcept override { ++rises; }
    void pic_acknowledged(std::uint16_t pins) noexcept override
    {
        ended = static_cast<std::uint16_t>(ended | pins);
    }

    void out(std::uint16_t port, unsigned value)
    {
        const std::byte byte{static_cast<std::uint8_t>(value)};
        pic.write(port - 0x20U, {&byte, 1});
    }
    unsigned in(std::uint16_t port)
    {
        std::byte byte{0xee};
        pic.read(port - 0x20U, {&byte, 1});
        return std::to_integer<unsigned>(byte);
    }
    void init(unsigned icw4 = 1)
    {
        for (const std::uint16_t chip : {master, slave}) {
            out(chip, 0x11);
            out(static_cast<std::uint16_t>(chip + 1), chip == master ? 0x20 : 0x28);
            out(static_cast<std::uint16_t>(chip + 1), chip == master ? 4 : 2);
            out(static_cast<std::uint16_t>(chip + 1), icw4);
        }
    }
    int raise(std::uint32_t pin) { return pic.set_line(pin, 0, true); }
    void pulse(std::uint32_t pin)
    {
        pic.set_line(pin, 0, true);
        pic.set_line(pin, 0, false);
    }
    unsigned isr(std::uint16_t chip)
    {
        out(chip, 0x0b);
        return in(chip);
    }
    unsigned irr(std::uint16_t chip)
    {
        out(chip, 0x0a);
        return in(chip);
    }

    int rises{};
    std::uint16_t ended{};
    Pic pic{*this};
};

TEST_F(PicTest, AnInterruptIsRequestedServedAndEnded)
{
    EXPECT_EQ(raise(3), 1);
    EXPECT_TRUE(pic.output());
    EXPECT_EQ(rises, 1);
    EXPECT_EQ(irr(master), 8U);
    EXPECT_EQ(pic.acknowledge(), 0x23);
    EXPECT_FALSE(pic.output());
    EXPECT_EQ(irr(master), 0U);
    EXPECT_EQ(isr(master), 8U);
    EXPECT_EQ(ended, 0U);
    out(master, 0x20);
    EXPECT_EQ(isr(master), 0U);
    EXPECT_EQ(ended, 8U);
}

TEST_F(PicTest, LineStatusTellsMaskedCoalescedAndPending)
{
    EXPECT_EQ(raise(3), 1);
    pic.set_line(3, 0, false);
    EXPECT_EQ(raise(3), 0) << "the edge before waits still";
    out(0x21, 0x10);
    EXPECT_EQ(raise(4), -1);
    EXPECT_EQ(pic.set_line(16, 0, true), -1) << "no such pin";
    out(0x21, 0);
    EXPECT_TRUE(pic.output());
    EXPECT_EQ(in(0x21), 0U);
}

TEST_F(PicTest, HigherPrioritiesNestAndLowerOnesWait)
{
    pulse(4);
    EXPECT_EQ(pic.acknowledge(), 0x24);
    pulse(6);
    EXPECT_FALSE(pic.output());
    pulse(1);
    EXPECT_TRUE(pic.output());
    EXPECT_EQ(pic.acknowledge(), 0x21);
    EXPECT_EQ(isr(master), 0x12U);
    out(master, 0x20);
    EXPECT_EQ(isr(master), 0x10U) << "the non-specific EOI ends the highest";
    EXPECT_FALSE(pic.output());
    out(master, 0x64);  // Specific EOI of 4.
    EXPECT_EQ(isr(master), 0U);
    EXPECT_EQ(pic.acknowledge(), 0x26);
}

TEST_F(PicTest, TheSlaveComesThroughTheCascade)
{
    pulse(12);
    EXPECT_TRUE(pic.output());
    EXPECT_EQ(pic.acknowledge(), 0x2c);
    EXPECT_EQ(isr(master), 4U);
    EXPECT_EQ(isr(slave), 0x10U);
    pulse(3);
    EXPECT_FALSE(pic.output()) << "below the cascade";
    pulse(8);
    EXPECT_FALSE(pic.output()) << "the slave's higher pin waits for the master's EOI";
    out(slave, 0x20);
    EXPECT_EQ(ended, 1U << 12U);
    EXPECT_FALSE(pic.output());
    out(master, 0x20);
    EXPECT_EQ(pic.acknowledge(), 0x28);
    out(slave, 0x20);
    out(master, 0x20);
    EXPECT_EQ(pic.acknowledge(), 0x23);
}

TEST_F(PicTest, SpecialFullyNestedModeLetsTheSlaveNest)
{
    init(0x11);
    pulse(12);
    EXPECT_EQ(pic.acknowledge(), 0x2c);
    pulse(8);
    EXPECT_EQ(pic.acknowledge(), 0x28);
    EXPECT_EQ(isr(slave), 0x11U);
}

TEST_F(PicTest, ARequestThatGoesAwayIsSpuriousIrq7)
{
    out(0x4d0, 0x20);
    pic.set_line(5, 0, true);
    pic.set_line(5, 0, false);
    EXPECT_FALSE(pic.output());
    EXPECT_EQ(pic.acknowledge(), 0x27);
    EXPECT_EQ(isr(master), 0U) << "nothing is in service";
}

TEST_F(PicTest, ASlavesRequestThatGoesAwayIsSpuriousIrq15)
{
    out(0x4d1, 0x08);
    pic.set_line(11, 0, true);
    pic.set_line(11, 0, false);
    EXPECT_EQ(pic.acknowledge(), 0x2f);
    EXPECT_EQ(isr(slave), 0U);
    EXPECT_EQ(isr(master), 4U) << "the master knows no better";
}

TEST_F(PicTest, LevelTriggeredPinsFollowTheLine)
{
    out(0x4d0, 0xff);
    out(0x4d1, 0xff);
    EXPECT_EQ(in(0x4d0), 0xf8U) << "timer, keyboard and cascade are always edges";
    EXPECT_EQ(in(0x4d1), 0xdeU);
    pic.set_line(10, 1, true);
    pic.set_line(10, 2, true);
    EXPECT_EQ(pic.acknowledge(), 0x2a);
    pic.set_line(10, 1, false);
    out(slave, 0x20);
    out(master, 0x20);
    EXPECT_EQ(pic.acknowledge(), 0x2a) << "source 2 holds it";
    pic.set_line(10, 2, false);
    out(slave, 0x20);
    out(master, 0x20);
    EXPECT_EQ(irr(slave), 0U);
}

TEST_F(PicTest, RotationMovesTheLowestPriority)
{
    out(master, 0xc3);  // Set priority: 3 is lowest, so 4 is highest.
    pulse(1);
    pulse(4);
    EXPECT_EQ(pic.acknowledge(), 0x24);
    out(master, 0xa0);  // Rotate on non-specific EOI: 4 becomes lowest.
    pulse(4);
    EXPECT_EQ(pic.acknowledge(), 0x21);
    out(master, 0xe1);  // Rotate on specific EOI: 1 becomes lowest.
    EXPECT_EQ(isr(master), 0U);
    pulse(1);
    EXPECT_EQ(pic.acknowledge(), 0x24);
    out(master, 0x20);
    EXPECT_EQ(pic.acknowledge(), 0x21);
}

TEST_F(PicTest, AutomaticEoiLeavesNothingInService)
{
    init(3);
    pulse(5);
    pulse(6);
    EXPECT_EQ(pic.acknowledge(), 0x25);
    EXPECT_EQ(ended, 0x20U);
    EXPECT_EQ(pic.acknowledge(), 0x26);
    EXPECT_EQ(isr(master), 0U);

    out(master, 0x80);  // Rotate in automatic EOI mode.
    pulse(0);
    EXPECT_EQ(pic.acknowledge(), 0x20);
    pulse(0);
    pulse(7);
    EXPECT_EQ(pic.acknowledge(), 0x27) << "0 has become the lowest";
}

TEST_F(PicTest, SpecialMaskModeLetsLowerPrioritiesIn)
{
    pulse(2 + 1);
    EXPECT_EQ(pic.acknowledge(), 0x23);
    pulse(5);
    EXPECT_FALSE(pic.output());
    out(0x21, 0x08);
    EXPECT_FALSE(pic.output());
    out(master, 0x68);
    EXPECT_TRUE(pic.output());
    EXPECT_EQ(pic.acknowledge(), 0x25);
    out(master, 0x48);
    EXPECT_EQ(isr(master), 0x28U);
}

TEST_F(PicTest, PollingAcknowledges)
{
    out(master, 0x0c);
    EXPECT_EQ(in(master), 0U);
    pulse(6);
    out(master, 0x0c);
    EXPECT_EQ(in(master), 0x86U);
    EXPECT_EQ(isr(master), 0x40U);
}

TEST_F(PicTest, Icw1StartsOverAndEndsWhatWasLost)
{
    pulse(1);
    pulse(4);
    EXPECT_EQ(pic.acknowledge(), 0x21);
    out(0x21, 0xff);
    out(master, 0x11);
    EXPECT_EQ(ended, 0x12U);
    EXPECT_FALSE(pic.output());
    out(0x21, 0x47);
    out(0x21, 4);
    out(0x21, 1);
    EXPECT_EQ(in(0x21), 0U) << "unmasked";
    pulse(0);
    EXPECT_EQ(pic.acknowledge(), 0x40) << "the vector's low bits are the pin";
}

TEST_F(PicTest, WithoutIcw4TheThirdWriteIsAMask)
{
    out(master, 0x10);
    out(0x21, 0x20);
    out(0x21, 4);
    out(0x21, 0x5a);
    EXPECT_EQ(in(0x21), 0x5aU);
}

TEST_F(PicTest, StateSurvivesATrip)
{
    out(0x4d1, 0x08);
    pulse(3);
    EXPECT_EQ(pic.acknowledge(), 0x23);
    pulse(1);
    pulse(9);
    const PicState m = pic.state(false);
    const PicState s = pic.state(true);
    EXPECT_EQ(m.isr, 8U);
    EXPECT_EQ(m.irr, 6U);
    pic.reset();
    rises = 0;
    pic.set_state(true, s);
    pic.set_state(false, m);
    EXPECT_EQ(pic.state(false), m);
    EXPECT_EQ(pic.state(true), s);
    EXPECT_EQ(pic.acknowledge(), 0x21);
}

TEST_F(PicTest, WideAccessesAreNotAnswered)
{
    std::array<std::byte, 4> wide{std::byte{0xff}, std::byte{0xff}, std::byte{0xff},
                                  std::byte{0xff}};
    pic.write(1, wide);
    EXPECT_EQ(in(0x21), 0U);
    pic.read(1, wide);
    EXPECT_EQ(wide[0], std::byte{0});
}

}  // namespace
}  // namespace vmm::test
