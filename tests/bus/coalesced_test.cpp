// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <cerrno>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmm/bus/coalesced.hpp"

namespace vmm::bus {
namespace {

constexpr std::array<std::byte, 9> bytes{std::byte{1}, std::byte{2}, std::byte{3},
                                         std::byte{4}, std::byte{5}, std::byte{6},
                                         std::byte{7}, std::byte{8}, std::byte{9}};

TEST(CoalescedRingTest, EntriesHaveKvmsLayout)
{
    CoalescedPage page;
    CoalescedRing ring{page};
    EXPECT_TRUE(ring.push(0x1234'5678'9abc, std::span{bytes}.first(4), false));
    EXPECT_TRUE(ring.push(0x80, std::span{bytes}.first(1), true));
    EXPECT_EQ(page.first, 0U);
    EXPECT_EQ(page.last, 2U);
    EXPECT_EQ(page.entries[0].phys_addr, 0x1234'5678'9abcU);
    EXPECT_EQ(page.entries[0].len, 4U);
    EXPECT_EQ(page.entries[0].pio, 0U);
    EXPECT_EQ(page.entries[0].data[3], std::byte{4});
    EXPECT_EQ(page.entries[1].pio, 1U);
}

TEST(CoalescedRingTest, OneEntryStaysFree)
{
    CoalescedPage page;
    CoalescedRing ring{page};
    for (std::uint64_t start = 0; start < 400; start += 37) {
        page.first = page.last = static_cast<std::uint32_t>(start % 170);
        for (std::uint64_t i = 0; i < 169; ++i) {
            ASSERT_TRUE(ring.push(i, std::span{bytes}.first(1), false));
        }
        ASSERT_FALSE(ring.push(999, std::span{bytes}.first(1), false));
        std::uint64_t next = 0;
        EXPECT_EQ(ring.drain([&](const CoalescedEntry& entry) {
            EXPECT_EQ(entry.phys_addr, next);
            ++next;
        }),
                  169U);
        EXPECT_FALSE(ring.pop());
    }
}

TEST(CoalescedRingTest, ABrokenPageIsNoMemoryError)
{
    CoalescedPage page;
    CoalescedRing ring{page};
    page.last = 170;
    EXPECT_FALSE(ring.push(1, std::span{bytes}.first(1), false));
    page.last = 0;
    page.first = ~0U;
    EXPECT_TRUE(ring.push(1, std::span{bytes}.first(1), false));
    EXPECT_FALSE(ring.pop());
    page.first = 3;
    page.last = ~0U;
    EXPECT_LE(ring.drain([](const CoalescedEntry&) {}), 170U);
}

TEST(CoalescedRingTest, MoreThanEightBytesAreRefused)
{
    CoalescedPage page;
    CoalescedRing ring{page};
    EXPECT_TRUE(ring.push(1, std::span{bytes}.first(8), false));
    EXPECT_FALSE(ring.push(1, bytes, false));
}

TEST(CoalescedRingTest, ProducersAndAConsumerLoseAndReorderNothing)
{
    constexpr std::uint64_t each = 20'000;
    constexpr std::uint64_t producers = 3;
    CoalescedPage page;
    CoalescedRing ring{page};
    std::vector<std::jthread> threads;
    for (std::uint64_t producer = 0; producer < producers; ++producer) {
        threads.emplace_back([&, producer] {
            for (std::uint64_t i = 0; i < each; ++i) {
                while (!ring.push((producer << 32U) | i, std::span{bytes}.first(4), false)) {
                    std::this_thread::yield();
                }
            }
        });
    }
    CoalescedRing consumer{page};
    std::array<std::uint64_t, producers> next{};
    std::uint64_t taken = 0;
    while (taken < each * producers) {
        const std::size_t now = consumer.drain([&](const CoalescedEntry& entry) {
            EXPECT_EQ(entry.phys_addr & 0xffff'ffffU, next.at(entry.phys_addr >> 32U)++);
        });
        taken += now;
        if (now == 0) {
            std::this_thread::yield();
        }
    }
    EXPECT_FALSE(consumer.pop());
}

class CoalescedZonesTest : public testing::Test {
protected:
    static GpaRange range(std::uint64_t first, std::uint64_t size)
    {
        return *GpaRange::make(Gpa{first}, size);
    }
    CoalescedZones<Gpa> zones_{CoalescedKind::Mmio};
};

TEST_F(CoalescedZonesTest, AWriteMustFitInOneZone)
{
    zones_.add(range(0x1000, 0x10)).value();
    zones_.add(range(0x1010, 0x10)).value();
    EXPECT_TRUE(zones_.covers(Gpa{0x1000}, 8));
    EXPECT_TRUE(zones_.covers(Gpa{0x100c}, 4));
    EXPECT_FALSE(zones_.covers(Gpa{0x100e}, 4)) << "two zones are not one";
    EXPECT_FALSE(zones_.covers(Gpa{0xfff}, 2));
    EXPECT_FALSE(zones_.covers(Gpa{0x1020}, 1));
    EXPECT_FALSE(zones_.covers(Gpa{0x1000}, 0));
}

TEST_F(CoalescedZonesTest, ZonesMayOverlap)
{
    zones_.add(range(0x1000, 0x100)).value();
    zones_.add(range(0x1010, 0x10)).value();
    zones_.add(range(0x1010, 0x8)).value();
    zones_.add(range(0x10f8, 0x10)).value();
    EXPECT_TRUE(zones_.covers(Gpa{0x1018}, 0x20));
    EXPECT_TRUE(zones_.covers(Gpa{0x10fc}, 8));
    EXPECT_FALSE(zones_.covers(Gpa{0x10f0}, 0x14));
}

TEST_F(CoalescedZonesTest, RemovalTakesEveryZoneAroundAndNoneIsFine)
{
    zones_.add(range(0x1000, 0x100)).value();
    zones_.add(range(0x1010, 0x10)).value();
    zones_.remove(range(0x2000, 1)).value();
    zones_.remove(range(0xfff, 2)).value();
    EXPECT_TRUE(zones_.covers(Gpa{0x1010}, 8));
    zones_.remove(range(0x1010, 0x10)).value();
    EXPECT_FALSE(zones_.covers(Gpa{0x1000}, 1));
    EXPECT_FALSE(zones_.covers(Gpa{0x1010}, 1));
}

TEST_F(CoalescedZonesTest, TheTopOfTheAddressSpace)
{
    zones_.add(range(~0ULL - 7, 8)).value();
    EXPECT_TRUE(zones_.covers(Gpa{~0ULL - 7}, 8));
    EXPECT_TRUE(zones_.covers(Gpa{~0ULL}, 1));
    EXPECT_FALSE(zones_.covers(Gpa{~0ULL}, 2));
}

TEST_F(CoalescedZonesTest, AThousandZonesAreAll)
{
    for (std::uint64_t i = 0; i < 1000; ++i) {
        zones_.add(range(i * 16, 8)).value();
    }
    EXPECT_EQ(zones_.add(range(0x9'0000, 8)).error().errno_value(), ENOSPC);
}

TEST_F(CoalescedZonesTest, WritesGoToTheRingUntilItIsFull)
{
    CoalescedPage page;
    CoalescedRing ring{page};
    CoalescedZones<Port> ports{CoalescedKind::Pio};
    ports.add(*PortRange::make(Port{0x3c0}, 0x20)).value();
    CoalescedZones<Port>::Hint hint;
    EXPECT_FALSE(ports.write(Port{0x3df}, std::span{bytes}.first(2), ring, hint));
    for (int i = 0; i < 169; ++i) {
        EXPECT_TRUE(ports.write(Port{0x3c4}, std::span{bytes}.first(2), ring, hint));
    }
    EXPECT_FALSE(ports.write(Port{0x3c4}, std::span{bytes}.first(2), ring));
    EXPECT_EQ(ring.pop()->pio, 1U);
    EXPECT_TRUE(ports.write(Port{0x3c4}, std::span{bytes}.first(2), ring));
}

}  // namespace
}  // namespace vmm::bus
