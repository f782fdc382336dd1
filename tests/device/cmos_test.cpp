// SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include "device/fakes.hpp"
#include "vmm/device/cmos.hpp"

namespace vmm::device {
namespace {

using test::in8;
using test::out8;

constexpr std::int64_t second = 1'000'000'000;
constexpr std::uint64_t second_u = 1'000'000'000;
constexpr std::uint64_t millisecond = 1'000'000;
// 2024-02-29 13:45:59 UTC, a Thursday.
constexpr std::int64_t leap_day = 1709214359 * second;

class CmosTest : public ::testing::Test {
protected:
    [[nodiscard]] Cmos::Config config()
    {
        Cmos::Config config;
        config.irq = wire_.line();
        // The host's clock shows `leap_day` when the timers' shows what it starts with.
        config.wall_clock_ns = [this] {
            return leap_day + static_cast<std::int64_t>(timers_.now_ns() - start_) + jump_;
        };
        config.ram_below_4g = std::uint64_t{3} << 30;
        config.ram_above_4g = std::uint64_t{5} << 30;
        config.cpu_count = 4;
        return config;
    }

    [[nodiscard]] unsigned get(unsigned index)
    {
        out8(cmos_, 0, index);
        return in8(cmos_, 1);
    }
    void set(unsigned index, unsigned value)
    {
        out8(cmos_, 0, index);
        out8(cmos_, 1, value);
    }
    [[nodiscard]] std::vector<unsigned> time()
    {
        std::vector<unsigned> fields;
        for (const unsigned index : {0x32U, 9U, 8U, 7U, 6U, 4U, 2U, 0U}) {
            fields.push_back(get(index));
        }
        return fields;
    }
    using Fields = std::vector<unsigned>;

    test::FakeTimers timers_;
    std::uint64_t start_{timers_.now_ns()};
    std::int64_t jump_{0};
    test::Wire wire_;
    Cmos cmos_{timers_, config()};
};

TEST_F(CmosTest, ShowsTheHostsTimeInBcdAnd24Hours)
{
    EXPECT_EQ(get(0x0b), 0x02U);
    EXPECT_EQ(time(), (Fields{0x20, 0x24, 0x02, 0x29, 0x05, 0x13, 0x45, 0x59}));
    timers_.advance(second_u);
    EXPECT_EQ(time(), (Fields{0x20, 0x24, 0x02, 0x29, 0x05, 0x13, 0x46, 0x00}));
    timers_.advance(11 * 3600 * second_u);
    EXPECT_EQ(time(), (Fields{0x20, 0x24, 0x03, 0x01, 0x06, 0x00, 0x46, 0x00}));
}

TEST_F(CmosTest, ShowsBinaryAnd12Hours)
{
    set(0x0b, 0x06);
    EXPECT_EQ(time(), (Fields{0x20, 24, 2, 29, 5, 13, 45, 59}));
    set(0x0b, 0x04);
    EXPECT_EQ(get(4), 0x81U);  // 1 p.m.
    set(0x0b, 0x00);
    timers_.advance(11 * 3600 * second_u);
    EXPECT_EQ(get(4), 0x12U);  // 12:45 a.m.
    timers_.advance(12 * 3600 * second_u);
    EXPECT_EQ(get(4), 0x92U);  // 12:45 p.m.
}

TEST_F(CmosTest, FollowsTheHostsClockWhereItJumps)
{
    jump_ = 60 * second;
    EXPECT_EQ(get(2), 0x46U);
    jump_ = -60 * second;
    EXPECT_EQ(get(2), 0x44U);
}

TEST_F(CmosTest, IsSetAsLinuxSetsIt)
{
    set(0x0b, 0x82);         // SET
    set(0x0a, 0x26 | 0x70);  // Dividers reset.
    const Fields wanted{0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x58};
    std::size_t next = 0;
    for (const unsigned index : {0x32U, 9U, 8U, 7U, 6U, 4U, 2U, 0U}) {
        set(index, wanted[next++]);
    }
    timers_.advance(5 * second_u);
    EXPECT_EQ(time(), wanted);  // Stopped.
    set(0x0b, 0x02);
    set(0x0a, 0x26);

    // "The first update cycle is one-half second later."
    timers_.advance(499 * millisecond);
    EXPECT_EQ(get(0), 0x58U);
    timers_.advance(2 * millisecond);
    EXPECT_EQ(get(0), 0x59U);
    timers_.advance(second_u);
    EXPECT_EQ(time(), (Fields{0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x00}));
}

TEST_F(CmosTest, TwelveHourTimesAreUnderstood)
{
    set(0x0b, 0x80);
    set(4, 0x92);
    set(0x0b, 0x00);
    set(0x0b, 0x02);
    EXPECT_EQ(get(4), 0x12U);
    set(0x0b, 0x80);
    set(4, 0x12);
    set(0x0b, 0x00);
    set(0x0b, 0x02);
    EXPECT_EQ(get(4), 0x00U);
}

TEST_F(CmosTest, ACounterOfTheRunningClockCanBeSet)
{
    set(2, 0x10);
    EXPECT_EQ(time(), (Fields{0x20, 0x24, 0x02, 0x29, 0x05, 0x13, 0x10, 0x59}));
    timers_.advance(second_u);
    EXPECT_EQ(get(2), 0x11U);
}

TEST_F(CmosTest, NonsenseTimesAreSomeTime)
{
    set(0x0b, 0x82);
    for (unsigned index = 0; index <= 9; ++index) {
        set(index, 0xff);
    }
    set(0x32, 0xff);
    set(0x0b, 0x02);
    timers_.advance(10 * second_u);

    EXPECT_LE(get(8), 0x12U);
    EXPECT_LE(get(7), 0x31U);
}

TEST_F(CmosTest, TheEndsOfTheCalendarAreReachedFromEachOther)
{
    for (const unsigned century : {0x99U, 0x00U, 0x99U}) {
        set(0x32, century);
        EXPECT_EQ(get(0x32), century == 0 ? 0x19U : 0x21U);
        timers_.advance(second_u);
    }
}

TEST_F(CmosTest, AnUpdateIsAnnouncedBeforeTheSecondChanges)
{
    EXPECT_EQ(get(0x0a), 0x26U);
    timers_.advance(997 * millisecond);
    EXPECT_EQ(get(0x0a), 0x26U);
    timers_.advance(2 * millisecond);
    EXPECT_EQ(get(0x0a), 0xa6U);
    EXPECT_EQ(get(0), 0x59U);
    timers_.advance(1 * millisecond);
    EXPECT_EQ(get(0x0a), 0x26U);
    EXPECT_EQ(get(0), 0x00U);
    timers_.advance(999 * millisecond);
    set(0x0b, 0x82);  // SET stops updates.
    EXPECT_EQ(get(0x0a), 0x26U);
}

TEST_F(CmosTest, FlagsAreNotedWithoutInterruptsAndReadingClearsThem)
{
    EXPECT_EQ(get(0x0c), 0x00U);
    timers_.advance(second_u);
    EXPECT_EQ(get(0x0c), 0x50U);  // Periodic and update-ended.
    EXPECT_EQ(get(0x0c), 0x00U);
    EXPECT_FALSE(wire_.high);
    EXPECT_FALSE(timers_.is_armed());
}

TEST_F(CmosTest, TheUpdateEndedInterruptComesEachSecond)
{
    set(0x0b, 0x12);
    timers_.advance(999 * millisecond);
    EXPECT_FALSE(wire_.high);
    timers_.advance(1 * millisecond);
    EXPECT_TRUE(wire_.high);
    EXPECT_FALSE(timers_.is_armed());  // Nothing more to tell until C is read.
    EXPECT_EQ(get(0x0c) & 0xb0U, 0x90U);
    EXPECT_FALSE(wire_.high);
    timers_.advance(second_u);
    EXPECT_EQ(wire_.rises, 2U);
}

TEST_F(CmosTest, ThePeriodicInterruptHasTheRateOfRegisterA)
{
    const auto count_in_a_second = [this](unsigned rate) {
        set(0x0a, 0x20 | rate);
        static_cast<void>(get(0x0c));
        unsigned count = 0;
        for (unsigned i = 0; i < 10'000; ++i) {
            timers_.advance(second_u / 10'000);
            if (wire_.high) {
                ++count;
                static_cast<void>(get(0x0c));
            }
        }
        return count;
    };
    set(0x0b, 0x42);

    EXPECT_EQ(count_in_a_second(0), 0U);
    EXPECT_EQ(count_in_a_second(1), 256U);
    EXPECT_EQ(count_in_a_second(2), 128U);
    EXPECT_EQ(count_in_a_second(3), 8192U);
    EXPECT_EQ(count_in_a_second(6), 1024U);
    EXPECT_EQ(count_in_a_second(15), 2U);
}

TEST_F(CmosTest, TheAlarmComesAtItsTime)
{
    set(1, 0x05);
    set(3, 0x46);
    set(5, 0x13);
    set(0x0b, 0x22);
    timers_.advance(5 * second_u);
    EXPECT_FALSE(wire_.high);
    timers_.advance(second_u);
    EXPECT_TRUE(wire_.high);
    EXPECT_EQ(get(0x0c) & 0xa0U, 0xa0U);
    timers_.advance(24 * 3600 * second_u - 1);
    EXPECT_FALSE(wire_.high);
    timers_.advance(1);
    EXPECT_TRUE(wire_.high);
}

TEST_F(CmosTest, AnAlarmThatDoesNotCareComesEachMinute)
{
    set(1, 0x30);
    set(3, 0xff);
    set(5, 0xc0);
    set(0x0b, 0x22);
    for (unsigned minute = 0; minute < 3; ++minute) {
        timers_.advance(60 * second_u);
        EXPECT_TRUE(wire_.high);
        static_cast<void>(get(0x0c));
    }
    EXPECT_EQ(wire_.rises, 3U);
}

TEST_F(CmosTest, StatusRegistersAreReadOnly)
{
    set(0x0c, 0xff);
    set(0x0d, 0x00);
    set(0x0a, 0xa6);
    EXPECT_EQ(get(0x0c), 0x00U);
    EXPECT_EQ(get(0x0d), 0x80U);
    EXPECT_EQ(get(0x0a), 0x26U);
}

TEST_F(CmosTest, TellsMemorySizes)
{
    const auto word = [this](unsigned index) { return get(index) | get(index + 1) << 8; };
    EXPECT_EQ(word(0x15), 640U);
    EXPECT_EQ(word(0x17), 0xffffU);
    EXPECT_EQ(word(0x30), 0xffffU);
    EXPECT_EQ(word(0x34), 3U * 16384 - 256);
    EXPECT_EQ(word(0x5b) | get(0x5d) << 16, 5U * 16384);
    EXPECT_EQ(get(0x5f), 3U);
}

TEST_F(CmosTest, TellsTheSizesOfASmallMachine)
{
    Cmos::Config small = config();
    small.ram_below_4g = 8U << 20;
    small.ram_above_4g = 0;
    Cmos cmos{timers_, std::move(small)};
    const auto word = [&cmos](unsigned index) {
        out8(cmos, 0, index);
        const unsigned low = in8(cmos, 1);
        out8(cmos, 0, index + 1);
        return low | in8(cmos, 1) << 8;
    };
    EXPECT_EQ(word(0x17), 7U * 1024);
    EXPECT_EQ(word(0x34), 0U);
    EXPECT_EQ(word(0x5b), 0U);
}

TEST_F(CmosTest, TheIndexPortMasksNmisAndCannotBeRead)
{
    out8(cmos_, 0, 0x8f);
    EXPECT_TRUE(cmos_.is_nmi_masked());
    out8(cmos_, 1, 0x42);
    EXPECT_EQ(in8(cmos_, 0), 0xffU);
    out8(cmos_, 0, 0x0f);
    EXPECT_FALSE(cmos_.is_nmi_masked());
    EXPECT_EQ(in8(cmos_, 1), 0x42U);
}

TEST_F(CmosTest, MemoryIsKept)
{
    for (unsigned index = 0x40; index < 0x5b; ++index) {
        set(index, index ^ 0xff);
    }
    for (unsigned index = 0x40; index < 0x5b; ++index) {
        EXPECT_EQ(get(index), index ^ 0xff);
    }
}

}  // namespace
}  // namespace vmm::device
