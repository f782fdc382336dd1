// SPDX-License-Identifier: Apache-2.0

#include <map>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "boot/fake_memory.hpp"
#include "vmm/boot/mp_table.hpp"
#include "x86/boot/bytes.hpp"

namespace vmm::boot {
namespace {

template <typename T>
T get(std::span<const std::byte> bytes, std::size_t offset)
{
    const auto value = read_le<T>(bytes, offset);
    EXPECT_TRUE(value) << "offset " << offset;
    return value.value_or(0);
}

unsigned sum_of(std::span<const std::byte> bytes)
{
    unsigned sum = 0;
    for (const auto byte : bytes) {
        sum += std::to_integer<unsigned>(byte);
    }
    return sum & 0xffU;
}

class MpTableForCpus : public ::testing::TestWithParam<std::uint32_t> {};
INSTANTIATE_TEST_SUITE_P(Counts, MpTableForCpus, ::testing::Values(1, 2, 8, 254, 255));

TEST_P(MpTableForCpus, ListsCpusAndInterrupts)
{
    MpPlatform platform;
    platform.cpus = GetParam();
    const auto bytes = build_mp_table(platform).value();
    const std::span<const std::byte> all{bytes};
    const auto table = all.subspan(16);

    EXPECT_EQ(get<std::uint32_t>(all, 0), 0x5f50'4d5fU);  // "_MP_"
    EXPECT_EQ(get<std::uint32_t>(all, 4), 0xf'0010U);
    EXPECT_EQ(sum_of(all.first(16)), 0U);
    EXPECT_EQ(get<std::uint32_t>(table, 0), 0x504d'4350U);  // "PCMP"
    EXPECT_EQ(get<std::uint16_t>(table, 4), table.size());
    EXPECT_EQ(sum_of(table), 0U);
    EXPECT_EQ(get<std::uint32_t>(table, 36), 0xfee0'0000U);

    std::map<unsigned, unsigned> count;
    std::set<unsigned> pins;
    std::size_t at = 44;
    while (at < table.size()) {
        const auto type = get<std::uint8_t>(table, at);
        ASSERT_LE(type, 4U);
        if (type == 0) {
            EXPECT_EQ(get<std::uint8_t>(table, at + 1), count[0]);
            EXPECT_EQ(get<std::uint8_t>(table, at + 3), count[0] == 0 ? 3U : 1U);
        } else if (type == 3) {
            const auto irq = get<std::uint8_t>(table, at + 5);
            const auto pin = get<std::uint8_t>(table, at + 7);
            EXPECT_TRUE(pins.insert(pin).second);
            EXPECT_EQ(pin, irq == 0 ? 2U : irq);
            EXPECT_EQ(get<std::uint16_t>(table, at + 2), irq == 9 ? 0xdU : 0U);
        }
        ++count[type];
        at += type == 0 ? 20U : 8U;
    }
    EXPECT_EQ(at, table.size());
    EXPECT_EQ(count[0], GetParam());
    EXPECT_EQ(count[1], 1U);
    EXPECT_EQ(count[2], 1U);
    EXPECT_EQ(count[3], 15U);
    EXPECT_EQ(count[4], 2U);
    EXPECT_EQ(get<std::uint16_t>(table, 34), GetParam() + 19U);
}

TEST(MpTable, IsWrittenWhereAGuestLooksForIt)
{
    FakeMemory memory{1024 * 1024};

    ASSERT_TRUE(write_mp_table(memory, MpPlatform{}));

    EXPECT_EQ(memory.get<std::uint32_t>(0xf'0000), 0x5f50'4d5fU);
}

TEST(MpTable, RefusesWhatItCannotDescribe)
{
    for (const std::uint32_t cpus : {0U, 256U}) {
        MpPlatform platform;
        platform.cpus = cpus;
        EXPECT_EQ(build_mp_table(platform).error().errno_value(), EINVAL);
    }
    MpPlatform platform;
    platform.sci_irq = 16;
    EXPECT_FALSE(build_mp_table(platform));
    EXPECT_FALSE(build_mp_table(MpPlatform{}, Gpa{0xf'0008}));
    EXPECT_FALSE(build_mp_table(MpPlatform{}, Gpa{~std::uint64_t{0} - 15}));
}

}  // namespace
}  // namespace vmm::boot
