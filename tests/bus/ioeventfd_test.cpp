// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <cerrno>

#include <gtest/gtest.h>

#include "vmm/bus/ioeventfd.hpp"

namespace vmm::bus {
namespace {

/// Counts; two are the same if they count in one place.
class Bell {
public:
    explicit Bell(int& rings) noexcept : rings_{&rings} {}
    void signal() const noexcept { ++*rings_; }
    bool is_same(const Bell& other) const noexcept { return rings_ == other.rings_; }

private:
    int* rings_;
};

static_assert(EventSignal<Bell> && !EventSignal<int>);

int error_of(const Result<void>& result)
{
    return result ? 0 : result.error().errno_value();
}

class IoEventTableTest : public testing::Test {
protected:
    bool write(std::uint64_t address, std::uint64_t value, std::size_t size)
    {
        std::array<std::byte, 16> data{};
        for (std::size_t i = 0; i < 8; ++i) {
            data[i] = static_cast<std::byte>(value >> (8 * i));
        }
        return events_.write(Gpa{address}, std::span{data}.first(size));
    }
    int add(std::uint64_t address,
            std::uint32_t length,
            std::optional<std::uint64_t> match,
            int& rings)
    {
        return error_of(events_.add({Gpa{address}, length, match}, Bell{rings}));
    }

    int a_{};
    int b_{};
    IoEventTable<Gpa, Bell> events_;
};

TEST_F(IoEventTableTest, AWriteMatchesByAddressLengthAndValue)
{
    ASSERT_EQ(add(0x1000, 2, 7, a_), 0);
    ASSERT_EQ(add(0x1000, 2, 8, b_), 0);
    EXPECT_TRUE(write(0x1000, 7, 2));
    EXPECT_TRUE(write(0x1000, 8, 2));
    EXPECT_TRUE(write(0x1000, 0xff'0008, 2)) << "only what is written is compared";
    EXPECT_FALSE(write(0x1000, 9, 2));
    EXPECT_FALSE(write(0x1000, 7, 1));
    EXPECT_FALSE(write(0x1000, 7, 4));
    EXPECT_FALSE(write(0x1001, 7, 2));
    EXPECT_FALSE(write(0xfff, 7, 2));
    EXPECT_EQ(a_, 1);
    EXPECT_EQ(b_, 2);
}

TEST_F(IoEventTableTest, AWildcardTakesEveryValueOfItsLength)
{
    ASSERT_EQ(add(0x1000, 4, std::nullopt, a_), 0);
    EXPECT_TRUE(write(0x1000, 0, 4));
    EXPECT_TRUE(write(0x1000, ~0ULL, 4));
    EXPECT_FALSE(write(0x1000, 0, 8));
    EXPECT_FALSE(write(0x1000, 0, 0));
    EXPECT_EQ(a_, 2);
}

TEST_F(IoEventTableTest, LengthZeroTakesEveryLength)
{
    ASSERT_EQ(add(0x1000, 0, std::nullopt, a_), 0);
    for (const std::size_t size : {0U, 1U, 2U, 4U, 8U, 16U}) {
        EXPECT_TRUE(write(0x1000, 0x55, size));
    }
    EXPECT_FALSE(write(0x1001, 0x55, 1));
    EXPECT_EQ(a_, 6);
}

TEST_F(IoEventTableTest, AValueWiderThanTheWriteNeverMatches)
{
    ASSERT_EQ(add(0x1000, 1, 0x100, a_), 0);
    EXPECT_FALSE(write(0x1000, 0x100, 1));
}

TEST_F(IoEventTableTest, WhatKvmRefusesWithEinval)
{
    for (const std::uint32_t length : {3U, 5U, 6U, 7U, 9U, 16U, ~0U}) {
        EXPECT_EQ(add(0x1000, length, std::nullopt, a_), EINVAL) << length;
    }
    EXPECT_EQ(add(0x1000, 0, 1, a_), EINVAL);
    EXPECT_EQ(add(~0ULL - 3, 4, std::nullopt, a_), EINVAL);
    EXPECT_EQ(add(~0ULL - 4, 4, std::nullopt, a_), 0);
}

TEST_F(IoEventTableTest, TwoEventsThatOneWriteWouldMatchAreEexist)
{
    ASSERT_EQ(add(0x1000, 2, 7, a_), 0);
    EXPECT_EQ(add(0x1000, 2, 7, b_), EEXIST);
    EXPECT_EQ(add(0x1000, 2, 7, a_), EEXIST);
    EXPECT_EQ(add(0x1000, 2, std::nullopt, b_), EEXIST);
    EXPECT_EQ(add(0x1000, 0, std::nullopt, b_), EEXIST);
    EXPECT_EQ(add(0x1000, 4, std::nullopt, b_), 0);
    EXPECT_EQ(add(0x1000, 4, 5, b_), EEXIST);
    EXPECT_EQ(add(0x1001, 0, std::nullopt, b_), 0);
    EXPECT_EQ(add(0x1001, 1, 3, b_), EEXIST);
    EXPECT_EQ(events_.size(), 3U);
}

TEST_F(IoEventTableTest, RemovalNeedsTheSameEventAndSignal)
{
    ASSERT_EQ(add(0x1000, 2, 7, a_), 0);
    ASSERT_EQ(add(0x1000, 2, 8, b_), 0);
    const auto remove = [&](std::uint32_t length, std::optional<std::uint64_t> match, int& rings) {
        return error_of(events_.remove({Gpa{0x1000}, length, match}, Bell{rings}));
    };
    EXPECT_EQ(remove(2, 7, b_), ENOENT);
    EXPECT_EQ(remove(2, 9, a_), ENOENT);
    EXPECT_EQ(remove(2, std::nullopt, a_), ENOENT);
    EXPECT_EQ(remove(4, 7, a_), ENOENT);
    EXPECT_EQ(remove(2, 7, a_), 0);
    EXPECT_EQ(remove(2, 7, a_), ENOENT);
    EXPECT_FALSE(write(0x1000, 7, 2));
    EXPECT_TRUE(write(0x1000, 8, 2));
}

}  // namespace
}  // namespace vmm::bus
