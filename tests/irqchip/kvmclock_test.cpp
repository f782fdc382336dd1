// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "x86/kvmclock.hpp"

namespace vmm::test {
namespace {

using namespace x86;  // NOLINT(google-build-using-namespace)

__extension__ using U128 = unsigned __int128;

TEST(TscScale, IsExactToTheLastBitsForAnyFrequency)
{
    for (const std::uint32_t khz :
         {1U, 999U, 1'000U, 500'000U, 999'999U, 1'000'000U, 1'000'001U, 1'999'999U, 2'000'000U,
          2'000'001U, 2'399'998U, 3'700'123U, 6'000'000U, 4'294'967'295U}) {
        const TscScale scale = tsc_scale(khz);
        EXPECT_GE(scale.mul, 1U << 31U) << khz << ": full precision";
        const std::uint64_t hour = std::uint64_t{khz} * 1000U * 3600U;
        const std::uint64_t expected = 3'600'000'000'000;
        const std::uint64_t got = scale_tsc(hour, scale);
        const std::uint64_t error = got > expected ? got - expected : expected - got;
        EXPECT_LE(error, expected >> 31U) << khz;
    }
}

TEST(TscScale, KnownValues)
{
    EXPECT_EQ(tsc_scale(1'000'000), (TscScale{0x8000'0000, 1}));
    EXPECT_EQ(tsc_scale(2'000'000), (TscScale{0x8000'0000, 0}));
    EXPECT_EQ(tsc_scale(4'000'000), (TscScale{0x8000'0000, -1}));
    EXPECT_EQ(tsc_scale(3'000'000), (TscScale{0xaaaa'aaab, -1}));
    EXPECT_EQ(tsc_scale(0), TscScale{});
    EXPECT_EQ(scale_tsc(12345, tsc_scale(0)), 0U);
}

class KvmClockTest : public ::testing::Test {
protected:
    KvmClock::WriteMemory writer()
    {
        return [this](Gpa gpa, std::span<const std::byte> bytes) {
            if (gpa.value() + bytes.size() > memory.size()) {
                return false;
            }
            std::memcpy(memory.data() + gpa.value(), bytes.data(), bytes.size());
            std::uint32_t version = 0;
            std::memcpy(&version, memory.data() + gpa.value(), sizeof version);
            versions.push_back(version);
            return true;
        };
    }
    template <typename T>
    T at(std::size_t offset)
    {
        T value;
        std::memcpy(&value, memory.data() + offset, sizeof value);
        return value;
    }

    std::array<std::byte, 256> memory{};
    std::vector<std::uint32_t> versions;
    KvmClock clock;
};

TEST_F(KvmClockTest, ThePageIsWrittenWithAnOddVersionAroundIt)
{
    clock.set_system_time(0x41);
    EXPECT_TRUE(clock.update(writer(), 1000, 2000, 3'000'000, true));
    EXPECT_EQ(versions, (std::vector<std::uint32_t>{1, 1, 2}));
    const auto info = at<PvclockTimeInfo>(0x40);
    EXPECT_EQ(info.version, 2U);
    EXPECT_EQ(info.tsc_timestamp, 1000U);
    EXPECT_EQ(info.system_time, 2000U);
    EXPECT_EQ(info.flags, pvclock_tsc_stable);
    EXPECT_EQ(info.tsc_to_system_mul, 0xaaaa'aaabU);
    EXPECT_EQ(info.tsc_shift, -1);
    EXPECT_TRUE(clock.update(writer(), 1, 2, 3'000'000, false));
    EXPECT_EQ(at<PvclockTimeInfo>(0x40).version, 4U);
    EXPECT_EQ(at<PvclockTimeInfo>(0x40).flags, 0U);
}

TEST_F(KvmClockTest, NothingIsWrittenWhileDisabledOrWhereNoMemoryIs)
{
    clock.set_system_time(0x40);
    EXPECT_FALSE(clock.update(writer(), 1, 2, 3'000'000, true));
    EXPECT_TRUE(versions.empty());
    clock.set_system_time(0xffff'ffff'ffff'ffff);
    EXPECT_EQ(clock.system_time(), 0xffff'ffff'ffff'ffffU);
    EXPECT_FALSE(
        clock.update([](Gpa, std::span<const std::byte>) { return false; }, 1, 2, 3, true));
}

TEST_F(KvmClockTest, AStoppedGuestIsToldOnce)
{
    clock.set_system_time(1);
    clock.set_guest_stopped();
    clock.update(writer(), 1, 2, 3'000'000, true);
    EXPECT_EQ(at<PvclockTimeInfo>(0).flags, pvclock_tsc_stable | pvclock_guest_stopped);
    clock.update(writer(), 1, 2, 3'000'000, true);
    EXPECT_EQ(at<PvclockTimeInfo>(0).flags, pvclock_tsc_stable);
}

TEST_F(KvmClockTest, TheWallClockIsWrittenOnRequest)
{
    EXPECT_TRUE(clock.set_wall_clock(writer(), 0x80, 1'700'000'000'123'456'789));
    const auto wall = at<PvclockWallClock>(0x80);
    EXPECT_EQ(wall.sec, 1'700'000'000U);
    EXPECT_EQ(wall.nsec, 123'456'789U);
    EXPECT_EQ(wall.version % 2U, 0U);
    EXPECT_EQ(clock.wall_clock(), 0x80U);
    EXPECT_FALSE(clock.set_wall_clock(writer(), 0, 1));
    clock.reset();
    EXPECT_EQ(clock.wall_clock(), 0U);
}

}  // namespace
}  // namespace vmm::test
