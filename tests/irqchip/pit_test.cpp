// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include <gtest/gtest.h>

#include "irqchip/fixture.hpp"
#include "x86/irqchip/pit.hpp"

namespace vmm::test {
namespace {

/// Nanoseconds after which `ticks` ticks have happened.
constexpr std::uint64_t ns(std::uint64_t ticks)
{
    return (ticks * 1'000'000'000U + Pit::frequency_hz - 1U) / Pit::frequency_hz;
}

class PitTest : public ::testing::Test {
protected:
    static constexpr std::uint64_t control = 3;

    void out(std::uint64_t offset, unsigned value)
    {
        const std::byte byte{static_cast<std::uint8_t>(value)};
        pit.write(offset, {&byte, 1});
    }
    unsigned in(std::uint64_t offset)
    {
        std::byte byte{0xee};
        pit.read(offset, {&byte, 1});
        return std::to_integer<unsigned>(byte);
    }
    unsigned in16(std::uint64_t offset)
    {
        const unsigned low = in(offset);
        return low | (in(offset) << 8U);
    }
    /// Low byte, then high byte, binary unless `bcd`.
    void program(unsigned channel, unsigned mode, unsigned count, bool bcd = false)
    {
        out(control, (channel << 6U) | 0x30U | (mode << 1U) | (bcd ? 1U : 0U));
        out(channel, count & 0xffU);
        out(channel, count >> 8U);
    }
    void gate2(bool open) { out(Pit::speaker_offset, open ? 1 : 0); }
    bool out2() { return (in(Pit::speaker_offset)&0x20U) != 0U; }
    unsigned status(unsigned channel)
    {
        out(control, 0xe0U | (2U << channel));
        return in(channel);
    }

    FakeTimers timers;
    int rises{};
    int answer{1};
    Pit pit{timers, [this](bool level) {
                rises += level ? 1 : 0;
                return answer;
            }};
};

// --- Access.

TEST_F(PitTest, CountsAreReadInEveryAccessMode)
{
    program(0, 2, 0x1234);
    EXPECT_EQ(in16(0), 0x1234U);
    out(control, 0x14);  // Low byte only.
    out(0, 0x80);
    EXPECT_EQ(in(0), 0x80U);
    EXPECT_EQ(in(0), 0x80U);
    out(control, 0x24);  // High byte only.
    out(0, 0x12);
    EXPECT_EQ(in(0), 0x12U);
    timers.advance(ns(1));
    EXPECT_EQ(in(0), 0x11U) << "0x11ff";
}

TEST_F(PitTest, ALatchedCountStandsStillUntilItIsRead)
{
    program(2, 2, 1000);
    gate2(true);
    timers.advance(ns(10));
    out(control, 0x80);
    timers.advance(ns(10));
    out(control, 0x80);  // Ignored: the first latch holds.
    EXPECT_EQ(in16(2), 990U);
    EXPECT_EQ(in16(2), 980U);
}

TEST_F(PitTest, TheReadBackCommandLatchesStatusAndCounts)
{
    program(0, 2, 0x4321);
    out(control, 0xc2);  // Status and count of channel 0.
    EXPECT_EQ(in(0), 0xb4U) << "output high, both bytes, mode 2";
    EXPECT_EQ(in16(0), 0x4321U);

    out(control, 0x70);  // Channel 1, mode 0: no count yet.
    out(control, 0xe4);
    EXPECT_EQ(in(1), 0x70U) << "output low, null count";
    out(1, 5);
    out(1, 0);
    EXPECT_EQ(status(1), 0x30U);
    timers.advance(ns(5));
    EXPECT_EQ(status(1), 0xb0U);

    program(2, 3, 100);
    timers.advance(ns(1));
    out(control, 0xd6);  // Counts of 0 and 1... and of 1 only once latched.
    timers.advance(ns(100));
    EXPECT_EQ(in16(0), 0x4321U - 6U);
}

TEST_F(PitTest, AZeroCountIs65536OrInBcd10000)
{
    program(0, 2, 0);
    EXPECT_EQ(in16(0), 0U);
    timers.advance(ns(1));
    EXPECT_EQ(in16(0), 0xffffU);
    program(0, 2, 0, true);
    timers.advance(ns(1));
    EXPECT_EQ(in16(0), 0x9999U);
    program(0, 2, 0x1000, true);
    timers.advance(ns(1));
    EXPECT_EQ(in16(0), 0x0999U);
    program(0, 2, 0xffff, true);  // Not BCD digits; anything but a crash.
    in16(0);
}

// --- Modes, on channel 2, whose gate can be moved.

TEST_F(PitTest, Mode0GoesHighAtTheEndAndTheGateHoldsIt)
{
    gate2(true);
    program(2, 0, 100);
    EXPECT_FALSE(out2());
    timers.advance(ns(40));
    gate2(false);
    timers.advance(ns(1000));
    EXPECT_EQ(in16(2), 60U);
    EXPECT_FALSE(out2());
    gate2(true);
    timers.advance(ns(60) - 1);
    EXPECT_FALSE(out2());
    timers.advance(2);
    EXPECT_TRUE(out2());
    timers.advance(ns(5));
    EXPECT_GE(in16(2), 0xfff0U) << "counts on below zero";
    EXPECT_TRUE(out2());
}

TEST_F(PitTest, Mode1IsAPulseFromEachRisingGate)
{
    gate2(false);
    program(2, 1, 100);
    EXPECT_TRUE(out2());
    timers.advance(ns(500));
    EXPECT_TRUE(out2()) << "not triggered";
    gate2(true);
    EXPECT_FALSE(out2());
    timers.advance(ns(90));
    gate2(false);
    EXPECT_FALSE(out2()) << "the gate's level does not matter";
    gate2(true);
    timers.advance(ns(90));
    EXPECT_FALSE(out2()) << "retriggered";
    timers.advance(ns(10) + 1);
    EXPECT_TRUE(out2());
}

TEST_F(PitTest, Mode2IsLowForTheLastTickOfEachPeriod)
{
    gate2(true);
    program(2, 2, 10);
    EXPECT_TRUE(out2());
    timers.advance(ns(9));
    EXPECT_FALSE(out2());
    EXPECT_EQ(in16(2), 1U);
    timers.advance(ns(1));
    EXPECT_TRUE(out2());
    EXPECT_EQ(in16(2), 10U);
    gate2(false);
    EXPECT_TRUE(out2());
    gate2(true);
    EXPECT_EQ(in16(2), 10U) << "the rising gate reloads";
}

TEST_F(PitTest, Mode3IsASquareWave)
{
    gate2(true);
    program(2, 3, 11);
    EXPECT_TRUE(out2());
    timers.advance(ns(5));
    EXPECT_TRUE(out2()) << "the odd tick belongs to the high half";
    timers.advance(ns(1));
    EXPECT_FALSE(out2());
    timers.advance(ns(5));
    EXPECT_TRUE(out2());
    program(2, 7, 100);  // 7 is 3.
    timers.advance(ns(10));
    EXPECT_EQ(in16(2), 80U) << "counts by two";
}

TEST_F(PitTest, Modes4And5StrobeLowForOneTick)
{
    gate2(true);
    program(2, 4, 20);
    EXPECT_TRUE(out2());
    timers.advance(ns(20));
    EXPECT_FALSE(out2());
    timers.advance(ns(1));
    EXPECT_TRUE(out2());

    gate2(false);
    program(2, 5, 20);
    timers.advance(ns(20));
    EXPECT_TRUE(out2()) << "waits for the gate";
    gate2(true);
    timers.advance(ns(20));
    EXPECT_FALSE(out2());
    timers.advance(ns(1));
    EXPECT_TRUE(out2());
}

TEST_F(PitTest, PortB)
{
    EXPECT_EQ(in(Pit::speaker_offset)&0x2fU, 0x20U) << "gate shut, speaker off";
    out(Pit::speaker_offset, 0xff);
    EXPECT_EQ(in(Pit::speaker_offset)&0x0fU, 3U);
    const unsigned before = in(Pit::speaker_offset)&0x10U;
    timers.advance(1U << 14U);
    EXPECT_NE(in(Pit::speaker_offset)&0x10U, before) << "the refresh bit toggles";
}

// --- The interrupt.

TEST_F(PitTest, Mode2And3TickWithoutDrift)
{
    for (const unsigned mode : {2U, 3U}) {
        rises = 0;
        program(0, mode, 1193);
        timers.advance(ns(1193) - 1);
        EXPECT_EQ(rises, 0);
        timers.advance(1);
        EXPECT_EQ(rises, 1);
        timers.advance(ns(1193 * 1000ULL) - ns(1193));
        EXPECT_EQ(rises, 1000);
    }
}

TEST_F(PitTest, Mode0And4FireOnceAndModes1And5Never)
{
    for (const unsigned mode : {0U, 1U, 4U, 5U}) {
        rises = 0;
        program(0, mode, 1000);
        timers.advance(ns(999));
        EXPECT_EQ(rises, 0) << mode;
        timers.advance(ns(200'000));
        EXPECT_EQ(rises, mode == 0U || mode == 4U ? 1 : 0) << mode;
    }
}

TEST_F(PitTest, AControlWordStopsTheTicks)
{
    program(0, 2, 1193);
    timers.advance(ns(1193));
    out(control, 0x34);
    EXPECT_EQ(timers.armed(), 0U);
}

TEST_F(PitTest, AnAbsurdRateIsBounded)
{
    program(0, 2, 1);
    timers.advance(1'000'000'000);
    EXPECT_GT(rises, 4'900);
    EXPECT_LE(rises, 5'000);
}

TEST_F(PitTest, WithoutReinjectionLateTicksAreOne)
{
    program(0, 2, 1193);
    timers.jump(ns(1193 * 100));
    EXPECT_EQ(rises, 1);
    timers.advance(ns(1193));
    EXPECT_EQ(rises, 2);
}

TEST_F(PitTest, WithReinjectionTicksWaitForTheGuest)
{
    pit.set_reinject(true);
    program(0, 2, 1193);
    timers.advance(ns(1193 * 5));
    EXPECT_EQ(rises, 1) << "not acknowledged";
    for (int i = 2; i <= 5; ++i) {
        pit.acknowledged();
        timers.advance(0);
        EXPECT_EQ(rises, i);
    }
    pit.acknowledged();
    timers.advance(0);
    EXPECT_EQ(rises, 5) << "all were given";
}

TEST_F(PitTest, TheBacklogIsBoundedAndALostAcknowledgementDoesNotStopTime)
{
    pit.set_reinject(true);
    program(0, 2, 1193);
    timers.jump(ns(1193ULL * 1'000'000));
    EXPECT_EQ(rises, 1);
    timers.advance(ns(1193) + 1);
    EXPECT_EQ(rises, 2) << "sent although the last one was never acknowledged";
    int given = 0;
    for (int i = 0; i < 5'000; ++i) {
        const int before = rises;
        pit.acknowledged();
        timers.advance(0);
        given += rises - before;
    }
    EXPECT_LT(given, static_cast<int>(Pit::max_backlog));
}

TEST_F(PitTest, MaskedTicksAreNotOwed)
{
    pit.set_reinject(true);
    answer = -1;
    program(0, 2, 1193);
    timers.advance(ns(1193 * 5));
    EXPECT_EQ(rises, 5);
    answer = 1;
    timers.advance(ns(1193));
    EXPECT_EQ(rises, 6);
    pit.acknowledged();
    timers.advance(0);
    EXPECT_EQ(rises, 6);
}

TEST_F(PitTest, StateRestartsTheCounters)
{
    program(0, 2, 1193);
    program(2, 3, 500);
    out(Pit::speaker_offset, 3);
    const PitState state = pit.state();
    EXPECT_EQ(state.channels[0].count, 1193U);
    EXPECT_EQ(state.channels[0].mode, 2U);
    EXPECT_EQ(state.flags, pit_speaker_data_on);

    Pit other{timers, [this](bool level) {
                  rises += level ? 100 : 0;
                  return 1;
              }};
    timers.advance(ns(100));
    other.set_state(state);
    timers.advance(ns(1193) - 1);
    EXPECT_EQ(rises, 1);
    timers.advance(1);
    EXPECT_EQ(rises, 101);
    PitState after = other.state();
    for (std::size_t i = 0; i < 3; ++i) {
        after.channels[i].count_load_time = state.channels[i].count_load_time;
    }
    EXPECT_EQ(after, state);
}

TEST_F(PitTest, GarbageStateIsMadeHarmless)
{
    PitState state;
    for (auto& c : state.channels) {
        c = {0xffff'ffff, 0xffff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, -1};
    }
    pit.set_state(state);
    for (unsigned i = 0; i < 3; ++i) {
        in16(i);
        status(i);
    }
    state = {};
    pit.set_state(state);
    timers.advance(1'000'000);
    in16(0);
}

TEST_F(PitTest, AfterDisconnectingTheLineIsStill)
{
    program(0, 2, 1193);
    pit.disconnect();
    timers.advance(ns(11'930));
    EXPECT_EQ(rises, 0);
    program(0, 2, 1193);
    pit.acknowledged();
    timers.advance(ns(11'930));
    EXPECT_EQ(rises, 0);
}

TEST_F(IrqchipFixture, ThePitTicksThroughBothChipsAndHearsTheEoi)
{
    enable_all();
    redirect(0, 0x30);
    const auto pit = chip.create_pit();
    for (const unsigned byte : {0x34U, 0xa9U, 0x04U}) {  // Mode 2, 1193.
        const std::byte b{static_cast<std::uint8_t>(byte)};
        pit->write(byte == 0x34U ? 3 : 0, {&b, 1});
    }
    out(0x21, 0xff);
    int ticks = 0;
    for (int ms = 0; ms < 100; ++ms) {
        timers.advance(1'000'000);
        while (apic[0]->has_interrupt()) {
            ASSERT_EQ(apic[0]->acknowledge(), 0x30);
            eoi(0);
            ++ticks;
            timers.advance(0);
        }
    }
    EXPECT_EQ(ticks, 100);
    // The guest sleeps for 10 ms, and gets its ticks afterwards.
    timers.advance(10'000'000);
    ticks = 0;
    while (apic[0]->has_interrupt()) {
        ASSERT_EQ(apic[0]->acknowledge(), 0x30);
        eoi(0);
        ++ticks;
        timers.advance(0);
    }
    EXPECT_EQ(ticks, 10);
}

TEST(IrqchipLifetime, APitThatABusHoldsOutlivesTheChip)
{
    FakeTimers timers;
    auto chip = std::make_unique<Irqchip>(timers);
    const auto pit = chip->create_pit();
    const auto pic = chip->pic_device();
    for (const unsigned byte : {0x34U, 0xa9U, 0x04U}) {
        const std::byte b{static_cast<std::uint8_t>(byte)};
        pit->write(byte == 0x34U ? 3 : 0, {&b, 1});
    }
    chip.reset();
    timers.advance(10'000'000);
    const std::byte icw1{0x11};
    pic->write(0, {&icw1, 1});
}

}  // namespace
}  // namespace vmm::test
