// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include "memory/pages.hpp"
#include "vmm/memory/guest_memory.hpp"

namespace vmm::memory {
namespace {

/// RAM at 0x1000 to 0x2fff, ROM from 0x3000 to 0x3fff, nothing else; both log writes.
class GuestMemoryTest : public testing::Test {
protected:
    GuestMemoryTest()
    {
        table_
            .set({.slot = 0,
                  .flags = MemoryFlags::log_dirty,
                  .guest_phys_addr = Gpa{0x1000},
                  .size_bytes = 0x2000,
                  .host = ram_.page()})
            .value();
        table_
            .set({.slot = 1,
                  .flags = MemoryFlags::log_dirty | MemoryFlags::read_only,
                  .guest_phys_addr = Gpa{0x3000},
                  .size_bytes = 0x1000,
                  .host = rom_.page()})
            .value();
    }

    test::Pages<2> ram_;
    test::Pages<1> rom_;
    MemslotTable<> table_;
    GuestMemory<> memory_{table_};
};

TEST_F(GuestMemoryTest, AnAccessThatStraddlesSlotsReachesBoth)
{
    EXPECT_TRUE(memory_.write(Gpa{0x2ffe}, std::uint32_t{0x4433'2211}));
    EXPECT_EQ(ram_.page(1)[0xffe], std::byte{0x11});
    EXPECT_EQ(ram_.page(1)[0xfff], std::byte{0x22});
    EXPECT_EQ(rom_.page()[0], std::byte{0x33});
    EXPECT_EQ(rom_.page()[1], std::byte{0x44});
    EXPECT_EQ(memory_.read<std::uint32_t>(Gpa{0x2ffe}), 0x4433'2211U);
    EXPECT_EQ(table_.dirty_log(0)->at(0), 0b10U);
    EXPECT_EQ(table_.dirty_log(1)->at(0), 0b1U);
}

TEST_F(GuestMemoryTest, TheGuestDoesNotWriteRomNotEvenInPart)
{
    EXPECT_FALSE(memory_.guest_write(Gpa{0x2ffe}, std::uint32_t{~0U}));
    EXPECT_FALSE(memory_.guest_write(Gpa{0x3000}, std::uint8_t{1}));
    EXPECT_EQ(ram_.page(1)[0xffe], std::byte{0});
    EXPECT_EQ(table_.dirty_log(0)->at(0), 0U);
    EXPECT_TRUE(memory_.guest_write(Gpa{0x2ffc}, std::uint32_t{~0U}));
    EXPECT_EQ(table_.dirty_log(0)->at(0), 0b10U);
}

TEST_F(GuestMemoryTest, AnExchangedByteIsTheGuestsToWrite)
{
    ram_.page(1)[5] = std::byte{7};
    EXPECT_EQ(memory_.exchange(Gpa{0x2005}, 9), std::optional<std::uint8_t>{7});
    EXPECT_EQ(ram_.page(1)[5], std::byte{9});
    EXPECT_EQ(table_.dirty_log(0)->at(0), 0b10U);
    EXPECT_EQ(memory_.exchange(Gpa{0x3000}, 1), std::nullopt) << "ROM";
    EXPECT_EQ(rom_.page()[0], std::byte{0});
    EXPECT_EQ(memory_.exchange(Gpa{0x4000}, 1), std::nullopt) << "no slot";
    EXPECT_EQ(table_.dirty_log(1)->at(0), 0U);
}

TEST_F(GuestMemoryTest, WhatIsPartlyNowhereIsRefusedWhole)
{
    EXPECT_FALSE(memory_.write(Gpa{0x3ffe}, std::uint32_t{~0U}));
    EXPECT_FALSE(memory_.write(Gpa{0xffe}, std::uint32_t{~0U}));
    EXPECT_FALSE(memory_.read<std::uint32_t>(Gpa{0x3ffe}));
    EXPECT_EQ(rom_.page()[0xffe], std::byte{0});
    EXPECT_EQ(ram_.page()[0], std::byte{0});
    EXPECT_EQ(table_.dirty_log(1)->at(0), 0U);
}

TEST_F(GuestMemoryTest, AnAccessThatWrapsIsRefused)
{
    EXPECT_FALSE(memory_.read<std::uint64_t>(Gpa{std::numeric_limits<std::uint64_t>::max() - 3}));
    EXPECT_FALSE(memory_.write(Gpa{std::numeric_limits<std::uint64_t>::max()}, std::uint8_t{1}));
}

TEST_F(GuestMemoryTest, AnEmptyCopySucceedsAnywhere)
{
    EXPECT_TRUE(memory_.copy_out(Gpa{0x9999'0000}, {}));
    EXPECT_TRUE(memory_.copy_in(Gpa{0x9999'0000}, {}));
}

TEST_F(GuestMemoryTest, EachAlignmentAndLengthIsCopiedRight)
{
    std::array<std::byte, 40> from{};
    for (std::size_t i = 0; i < from.size(); ++i) {
        from[i] = static_cast<std::byte>(i + 1);
    }
    for (std::uint64_t at = 0x1ff0; at < 0x2000; ++at) {
        for (std::size_t size = 0; size <= from.size(); ++size) {
            std::fill(ram_.bytes().begin(), ram_.bytes().end(), std::byte{0xee});
            ASSERT_TRUE(memory_.copy_in(Gpa{at}, std::span{from}.first(size)));
            std::array<std::byte, 40> back{};
            ASSERT_TRUE(memory_.copy_out(Gpa{at}, std::span{back}.first(size)));
            ASSERT_TRUE(std::equal(from.begin(), from.begin() + size, back.begin()));
            ASSERT_EQ(ram_.bytes()[at - 0x1000 - 1], std::byte{0xee});
            ASSERT_EQ(ram_.bytes()[at - 0x1000 + size], std::byte{0xee});
        }
    }
}

TEST_F(GuestMemoryTest, EveryPageOfALongWriteIsDirty)
{
    const std::vector<std::byte> zeros(0x1802);
    EXPECT_TRUE(memory_.copy_in(Gpa{0x17ff}, zeros));
    EXPECT_EQ(table_.dirty_log(0)->at(0), 0b11U);
    EXPECT_EQ(table_.dirty_log(1)->at(0), 0b1U);
}

TEST_F(GuestMemoryTest, AHostRangeLiesInOneSlot)
{
    const auto range = [](std::uint64_t first, std::uint64_t size) {
        return *GpaRange::make(Gpa{first}, size);
    };
    const auto host = memory_.host_range(range(0x1800, 0x1800));
    ASSERT_TRUE(host);
    EXPECT_EQ(host->data(), ram_.page() + 0x800);
    EXPECT_EQ(host->size(), 0x1800U);
    EXPECT_FALSE(memory_.host_range(range(0x1800, 0x1801)));
    EXPECT_FALSE(memory_.host_range(range(0xfff, 2)));

    memory_.mark_dirty(range(0x2fff, 2));
    EXPECT_EQ(table_.dirty_log(0)->at(0), 0b10U);
    EXPECT_EQ(table_.dirty_log(1)->at(0), 0b1U);
    memory_.mark_dirty(range(0, std::numeric_limits<std::uint64_t>::max()));
    EXPECT_EQ(table_.dirty_log(0)->at(0), 0b11U);
}

TEST_F(GuestMemoryTest, EachAddressSpaceIsItsOwnMemory)
{
    test::Pages<1> smram;
    table_
        .set({.slot = 0,
              .address_space = 1,
              .guest_phys_addr = Gpa{0x1000},
              .size_bytes = 0x1000,
              .host = smram.page()})
        .value();
    const GuestMemory smm{table_, 1};
    EXPECT_TRUE(smm.write(Gpa{0x1000}, std::uint8_t{5}));
    EXPECT_EQ(smram.page()[0], std::byte{5});
    EXPECT_EQ(memory_.read<std::uint8_t>(Gpa{0x1000}), 0U);
}

}  // namespace
}  // namespace vmm::memory
