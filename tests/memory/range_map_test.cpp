// SPDX-License-Identifier: Apache-2.0

#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "effort.hpp"
#include "vmm/memory/range_map.hpp"

namespace vmm::memory {
namespace {

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

using Map = RangeMap<std::size_t>;

TEST(RangeMapTest, ARangeMayBeEverything)
{
    const Map map = Map{}.with({0, top, 1});
    EXPECT_NE(map.find(0), nullptr);
    EXPECT_NE(map.find(top), nullptr);
    EXPECT_NE(map.overlapping(5, 5), nullptr);
}

TEST(RangeMapTest, RangesAtBothEnds)
{
    Map map = Map{}.with({top, top, 2}).with({0, 0, 1});
    for (std::uint64_t i = 0; i < 20; ++i) {  // with an index, too
        EXPECT_EQ(map.find(0)->value, 1U);
        EXPECT_EQ(map.find(top)->value, 2U);
        EXPECT_EQ(map.find(1), nullptr);
        EXPECT_EQ(map.find(top - 1), nullptr);
        map = map.with({(i + 1) << 32U, (i + 1) << 32U, 3});
    }
}

TEST(RangeMapTest, WithoutTakesOneAway)
{
    const Map map = Map{}.with({10, 19, 1}).with({20, 29, 2});
    EXPECT_EQ(map.without(10).find(15), nullptr);
    EXPECT_EQ(map.without(10).find(25)->value, 2U);
    EXPECT_EQ(map.without(11).size(), 2U);
    EXPECT_TRUE(map.without(10).without(20).empty());
}

/// Ranges whose sizes and gaps have up to `bits` bits, ending before the top.
std::vector<Map::Entry> random_ranges(std::mt19937_64& random, std::size_t count, unsigned bits)
{
    const auto up_to = [&] {
        const auto wanted = static_cast<unsigned>(random() % (bits + 1));
        return wanted == 0 ? 0 : random() >> (64U - wanted);
    };
    std::vector<Map::Entry> entries;
    std::uint64_t next = up_to();
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t first = next + up_to();
        const std::uint64_t last = first + up_to();
        if (first < next || last < first || last == top) {
            break;
        }
        entries.push_back({first, last, i});
        next = last + 1;
    }
    return entries;
}

TEST(RangeMapTest, AgreesWithALinearSearchAtEveryEdge)
{
    std::mt19937_64 random{20};
    for (std::uint64_t round = 0; round < test::property_ops() / 50; ++round) {
        const auto entries =
            random_ranges(random, random() % 70, static_cast<unsigned>(random() % 63U));
        const Map map{entries};
        Map::Hint hint;
        const auto check = [&](std::uint64_t key) {
            const auto expected =
                std::find_if(entries.begin(), entries.end(), [&](const Map::Entry& entry) {
                    return entry.first <= key && key <= entry.last;
                });
            for (const Map::Entry* found : {map.find(key), map.find(key, hint)}) {
                ASSERT_EQ(found != nullptr, expected != entries.end()) << key;
                if (found != nullptr) {
                    ASSERT_EQ(found->value, expected->value) << key;
                }
            }
        };
        check(0);
        check(top);
        for (const Map::Entry& entry : entries) {
            check(entry.first);
            check(entry.first - 1);
            check(entry.last);
            check(entry.last + 1);
            check(entry.first + (entry.last - entry.first) / 2);
        }
        for (int i = 0; i < 20; ++i) {
            check(random() >> (random() % 64U));
        }
    }
}

}  // namespace
}  // namespace vmm::memory
