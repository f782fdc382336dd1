// SPDX-License-Identifier: Apache-2.0

#include <cstdint>
#include <optional>

#include <gtest/gtest.h>

#include "irqchip/fixture.hpp"

namespace vmm::test {
namespace {

using Reg = LapicRegister;

class LocalApicTimer : public IrqchipFixture {
protected:
    static constexpr std::uint32_t msr_tsc_deadline = 0x6e0;
    static constexpr std::uint32_t vector = 0xec;
    static constexpr std::uint32_t periodic = 0x2'0000;
    static constexpr std::uint32_t deadline = 0x4'0000;

    LocalApicTimer()
    {
        enable_all();
        lapic_write(0, Reg::DivideConfiguration, 0xb);  // By 1.
    }

    bool fired()
    {
        if (!apic[0]->has_interrupt()) {
            return false;
        }
        EXPECT_EQ(apic[0]->acknowledge(), vector);
        eoi(0);
        return true;
    }
    std::uint64_t tsc() const { return timers.now_ns() * tsc_per_ns; }
};

TEST_F(LocalApicTimer, OneShotFiresOnceAtTheEndOfTheCount)
{
    lapic_write(0, Reg::LvtTimer, vector);
    lapic_write(0, Reg::InitialCount, 1'000);
    timers.advance(999);
    EXPECT_FALSE(fired());
    EXPECT_EQ(lapic_read(0, Reg::CurrentCount), 1U);
    timers.advance(1);
    EXPECT_TRUE(fired());
    EXPECT_EQ(lapic_read(0, Reg::CurrentCount), 0U);
    EXPECT_EQ(lapic_read(0, Reg::InitialCount), 1'000U);
    timers.advance(1'000'000);
    EXPECT_FALSE(fired());
}

/// SDM Vol. 3A "Divide Configuration Register".
TEST_F(LocalApicTimer, EveryDivisorCountsAtItsPace)
{
    struct Case {
        std::uint32_t code;
        std::uint64_t divisor;
    };
    for (const auto [code, divisor] :
         {Case{0, 2}, {1, 4}, {2, 8}, {3, 16}, {8, 32}, {9, 64}, {0xa, 128}, {0xb, 1}}) {
        lapic_write(0, Reg::DivideConfiguration, code);
        lapic_write(0, Reg::LvtTimer, vector);
        lapic_write(0, Reg::InitialCount, 100);
        timers.advance(50 * divisor);
        EXPECT_EQ(lapic_read(0, Reg::CurrentCount), 50U) << code;
        timers.advance(50 * divisor - 1);
        EXPECT_FALSE(fired()) << code;
        timers.advance(1);
        EXPECT_TRUE(fired()) << code;
    }
}

TEST_F(LocalApicTimer, PeriodicDoesNotDriftWhenExpiriesAreLate)
{
    lapic_write(0, Reg::LvtTimer, vector | periodic);
    lapic_write(0, Reg::InitialCount, 1'000'000);
    const std::uint64_t start = timers.now_ns();
    for (std::uint64_t i = 1; i <= 100; ++i) {
        timers.jump(start + i * 1'000'000 + 777 * (i % 3) - timers.now_ns());
        EXPECT_TRUE(fired()) << i;
    }
    timers.advance_to(start + 101'000'000 - 1);
    EXPECT_FALSE(fired());
    timers.advance(1);
    EXPECT_TRUE(fired());
}

TEST_F(LocalApicTimer, MissedPeriodsAreOneInterruptAndThePhaseIsKept)
{
    lapic_write(0, Reg::LvtTimer, vector | periodic);
    lapic_write(0, Reg::InitialCount, 1'000'000);
    timers.jump(5'300'000);
    EXPECT_EQ(timers.expiries(), 1U) << "not a burst";
    EXPECT_TRUE(fired());
    EXPECT_FALSE(fired());
    EXPECT_EQ(lapic_read(0, Reg::CurrentCount), 700'000U);
    timers.advance(700'000);
    EXPECT_TRUE(fired());
}

TEST_F(LocalApicTimer, AShortPeriodIsStretchedTo200Microseconds)
{
    lapic_write(0, Reg::LvtTimer, vector | periodic);
    lapic_write(0, Reg::InitialCount, 1);
    timers.advance(199'999);
    EXPECT_FALSE(fired());
    EXPECT_LE(lapic_read(0, Reg::CurrentCount), 1U);
    timers.advance(1);
    EXPECT_TRUE(fired());
}

TEST_F(LocalApicTimer, AMaskedTimerCountsSilently)
{
    lapic_write(0, Reg::LvtTimer, 0x1'0000 | vector | periodic);
    lapic_write(0, Reg::InitialCount, 1'000'000);
    timers.advance(3'500'000);
    EXPECT_FALSE(fired());
    EXPECT_EQ(lapic_read(0, Reg::CurrentCount), 500'000U);
    lapic_write(0, Reg::LvtTimer, vector | periodic);
    timers.advance(500'000);
    EXPECT_TRUE(fired());
}

TEST_F(LocalApicTimer, WritingTheCountRearmsAndZeroStops)
{
    lapic_write(0, Reg::LvtTimer, vector);
    lapic_write(0, Reg::InitialCount, 1'000);
    timers.advance(900);
    lapic_write(0, Reg::InitialCount, 1'000);
    timers.advance(999);
    EXPECT_FALSE(fired());
    timers.advance(1);
    EXPECT_TRUE(fired());

    lapic_write(0, Reg::InitialCount, 1'000);
    lapic_write(0, Reg::InitialCount, 0);
    EXPECT_EQ(lapic_read(0, Reg::CurrentCount), 0U);
    EXPECT_EQ(timers.armed(), 0U);
    timers.advance(10'000);
    EXPECT_FALSE(fired());
}

TEST_F(LocalApicTimer, ADivisorChangedOnTheWayKeepsTheCount)
{
    lapic_write(0, Reg::LvtTimer, vector);
    lapic_write(0, Reg::InitialCount, 1'000);
    timers.advance(600);
    lapic_write(0, Reg::DivideConfiguration, 0);  // By 2.
    EXPECT_EQ(lapic_read(0, Reg::CurrentCount), 400U);
    timers.advance(799);
    EXPECT_FALSE(fired());
    timers.advance(1);
    EXPECT_TRUE(fired());
}

TEST_F(LocalApicTimer, TscDeadlineFiresWhenTheTscGetsThere)
{
    lapic_write(0, Reg::LvtTimer, vector | deadline);
    const std::uint64_t when = tsc() + 3'000;
    ASSERT_TRUE(apic[0]->write_msr(msr_tsc_deadline, when));
    std::uint64_t value = 0;
    ASSERT_TRUE(apic[0]->read_msr(msr_tsc_deadline, value));
    EXPECT_EQ(value, when);
    timers.advance(999);
    EXPECT_FALSE(fired());
    timers.advance(1);
    EXPECT_TRUE(fired());
    ASSERT_TRUE(apic[0]->read_msr(msr_tsc_deadline, value));
    EXPECT_EQ(value, 0U) << "the MSR reads 0 once the timer has fired";
}

TEST_F(LocalApicTimer, ATscDeadlineInThePastFiresAtOnceAndZeroDisarms)
{
    lapic_write(0, Reg::LvtTimer, vector | deadline);
    ASSERT_TRUE(apic[0]->write_msr(msr_tsc_deadline, 1));
    EXPECT_TRUE(fired());  // Behind the very instruction, whenever timers are looked at.
    std::uint64_t value = 1;
    ASSERT_TRUE(apic[0]->read_msr(msr_tsc_deadline, value));
    EXPECT_EQ(value, 0U);
    timers.advance(10);
    EXPECT_FALSE(fired());

    ASSERT_TRUE(apic[0]->write_msr(msr_tsc_deadline, tsc() + 3'000));
    ASSERT_TRUE(apic[0]->write_msr(msr_tsc_deadline, 0));
    timers.advance(10'000);
    EXPECT_FALSE(fired());
}

TEST_F(LocalApicTimer, OutsideItsModeTheDeadlineMsrIsDeaf)
{
    lapic_write(0, Reg::LvtTimer, vector);
    ASSERT_TRUE(apic[0]->write_msr(msr_tsc_deadline, tsc() + 3'000));
    std::uint64_t value = 1;
    ASSERT_TRUE(apic[0]->read_msr(msr_tsc_deadline, value));
    EXPECT_EQ(value, 0U);
    timers.advance(10'000);
    EXPECT_FALSE(fired());

    apic[0]->set_features({true, false, 52});
    EXPECT_FALSE(apic[0]->write_msr(msr_tsc_deadline, 1)) << "no such MSR: #GP";
    lapic_write(0, Reg::LvtTimer, vector | deadline);
    EXPECT_EQ(lapic_read(0, Reg::LvtTimer), vector) << "the mode bit is reserved then";
}

TEST_F(LocalApicTimer, ChangingToAndFromDeadlineModeDisarms)
{
    lapic_write(0, Reg::LvtTimer, vector);
    lapic_write(0, Reg::InitialCount, 1'000);
    lapic_write(0, Reg::LvtTimer, vector | deadline);
    EXPECT_EQ(timers.armed(), 0U);
    lapic_write(0, Reg::InitialCount, 1'000);
    EXPECT_EQ(timers.armed(), 0U) << "the count is ignored in this mode";
    EXPECT_EQ(lapic_read(0, Reg::InitialCount), 0U);

    ASSERT_TRUE(apic[0]->write_msr(msr_tsc_deadline, tsc() + 3'000));
    lapic_write(0, Reg::LvtTimer, vector | periodic);
    timers.advance(10'000);
    EXPECT_FALSE(fired());
}

TEST_F(LocalApicTimer, ResetInitAndDisablingStopIt)
{
    const auto start = [this] {
        lapic_write(0, Reg::Svr, 0x1ff);
        lapic_write(0, Reg::LvtTimer, vector);
        lapic_write(0, Reg::InitialCount, 1'000);
        ASSERT_EQ(timers.armed(), 1U);
    };
    start();
    apic[0]->init();
    EXPECT_EQ(timers.armed(), 0U);
    start();
    apic[0]->reset();
    EXPECT_EQ(timers.armed(), 0U);
    start();
    ASSERT_TRUE(apic[0]->set_apic_base(0xfee0'0100));
    EXPECT_EQ(timers.armed(), 0U);
}

TEST_F(LocalApicTimer, ARestoredOneShotThatHadExpiredStaysSo)
{
    lapic_write(0, Reg::LvtTimer, vector);
    lapic_write(0, Reg::InitialCount, 1'000);
    timers.advance(1'000);
    EXPECT_TRUE(fired());
    ASSERT_TRUE(apic[0]->set_state(apic[0]->state()));
    timers.advance(10'000);
    EXPECT_FALSE(fired());
}

TEST_F(LocalApicTimer, ADeadlineFollowsTheTscWhenItIsSet)
{
    std::uint64_t offset = 0;
    FakeVcpu other;
    TscClock clock;
    clock.read = [&] { return timers.now_ns() + offset; };
    clock.to_ns_deadline = [&](std::uint64_t t) { return t - offset; };
    const auto a = chip.create_lapic(9, other, clock);
    lapic_write(9, Reg::Svr, 0x1ff);
    lapic_write(9, Reg::LvtTimer, vector | deadline);
    ASSERT_TRUE(a->write_msr(msr_tsc_deadline, clock.read() + 1'000));
    offset = 600;
    a->tsc_changed();
    timers.advance(399);
    EXPECT_FALSE(a->has_interrupt());
    timers.advance(1);
    EXPECT_TRUE(a->has_interrupt());
}

}  // namespace
}  // namespace vmm::test
