// SPDX-License-Identifier: Apache-2.0

#include <cerrno>
#include <limits>

#include <gtest/gtest.h>

#include "memory/pages.hpp"
#include "vmm/memory/memslots.hpp"

namespace vmm::memory {
namespace {

using test::Pages;

class MemslotTableTest : public testing::Test {
protected:
    /// Pages [gfn, gfn + pages) of slot `id`, backed from page `backing` of the memory.
    MemoryRegion region(std::uint32_t id,
                        std::uint64_t gfn,
                        std::uint64_t pages,
                        std::size_t backing = 0)
    {
        return {.slot = id,
                .guest_phys_addr = Gpa{gfn << page_bits},
                .size_bytes = pages << page_bits,
                .host = memory_.page(backing)};
    }

    static int error_of(const Result<void>& result)
    {
        return result ? 0 : result.error().errno_value();
    }

    Pages<256> memory_;
    MemslotTable<> table_;
};

TEST_F(MemslotTableTest, AnEmptyTableHasNoPage)
{
    const auto table = table_.read();
    EXPECT_EQ(table.find(0), nullptr);
    EXPECT_EQ(table.find(std::numeric_limits<std::uint64_t>::max()), nullptr);
    EXPECT_EQ(table.generation(), 0U);
    EXPECT_TRUE(table.entries().empty());
}

TEST_F(MemslotTableTest, ASlotHasItsPagesAndNoOther)
{
    table_.set(region(3, 0x10, 4, 8)).value();

    const auto table = table_.read();
    EXPECT_EQ(table.find(0xf), nullptr);
    EXPECT_EQ(table.find(0x14), nullptr);
    const Memslot* first = table.find(0x10);
    ASSERT_NE(first, nullptr);
    EXPECT_EQ(first, table.find(0x13));
    EXPECT_EQ(first->id, 3U);
    EXPECT_EQ(first->host_page(0x12), memory_.page(10));
    EXPECT_FALSE(first->is_read_only());
    EXPECT_FALSE(first->logs_dirty());
}

TEST_F(MemslotTableTest, AddressSpacesAreApart)
{
    MemoryRegion smm = region(0, 0, 1, 1);
    smm.address_space = 1;
    table_.set(region(0, 0, 1)).value();
    table_.set(smm).value();

    const auto table = table_.read();
    EXPECT_EQ(table.find(0)->host, memory_.page(0));
    EXPECT_EQ(table.find(0, 1)->host, memory_.page(1));
}

TEST_F(MemslotTableTest, WhatKvmRefusesWithEinval)
{
    MemoryRegion bad = region(0, 0x10, 4);
    bad.flags = 4;
    EXPECT_EQ(error_of(table_.set(bad)), EINVAL);
    bad = region(0, 0x10, 4);
    bad.size_bytes += 0x800;
    EXPECT_EQ(error_of(table_.set(bad)), EINVAL);
    bad = region(0, 0x10, 4);
    bad.guest_phys_addr = Gpa{0x10001};
    EXPECT_EQ(error_of(table_.set(bad)), EINVAL);
    bad = region(0, 0x10, 4);
    bad.host += 1;
    EXPECT_EQ(error_of(table_.set(bad)), EINVAL);
    bad = region(0, 0x10, 4);
    bad.host = nullptr;
    EXPECT_EQ(error_of(table_.set(bad)), EINVAL);
    bad = region(0, 0x10, 4);
    bad.address_space = 2;
    EXPECT_EQ(error_of(table_.set(bad)), EINVAL);
    EXPECT_EQ(error_of(table_.set(region(32764, 0x10, 4))), EINVAL);
    EXPECT_EQ(error_of(table_.set(region(0x10000, 0x10, 4))), EINVAL);
    EXPECT_EQ(error_of(table_.set(region(0, 0xf'ffff'ffff'fffe, 4))), EINVAL);  // wraps
    EXPECT_EQ(error_of(table_.set(region(0, 0xf'ffff'ffff'fffe, 2))), EINVAL);  // to exactly 0
    EXPECT_EQ(error_of(table_.set(region(0, (1ULL << 40U) - 1, 2))), EINVAL);   // beyond 52 bits
    EXPECT_EQ(error_of(table_.set(region(0, 0, 1ULL << 31U))), EINVAL);
    EXPECT_EQ(error_of(table_.set(region(0, 0x10, 0))), EINVAL);  // deletes nothing
    EXPECT_EQ(table_.read().generation(), 0U);

    EXPECT_EQ(error_of(table_.set(region(32763, (1ULL << 40U) - 1, 1))), 0);
    EXPECT_EQ(error_of(table_.set(region(32762, 0, (1ULL << 31U) - 1))), 0);
}

TEST_F(MemslotTableTest, AnOverlapIsEexistAtEachEdge)
{
    table_.set(region(0, 0x10, 4)).value();

    EXPECT_EQ(error_of(table_.set(region(1, 0xf, 2))), EEXIST);
    EXPECT_EQ(error_of(table_.set(region(1, 0x13, 1))), EEXIST);
    EXPECT_EQ(error_of(table_.set(region(1, 0x11, 1))), EEXIST);
    EXPECT_EQ(error_of(table_.set(region(1, 0, 0x100))), EEXIST);
    EXPECT_EQ(error_of(table_.set(region(1, 0xf, 1))), 0);
    EXPECT_EQ(error_of(table_.set(region(2, 0x14, 1))), 0);
}

TEST_F(MemslotTableTest, AnErrorSaysWhatIsInTheWay)
{
    table_.set(region(7, 0x10, 4)).value();
    const std::string message = table_.set(region(1, 0x13, 2)).error().message();
    EXPECT_NE(message.find("slot 1 "), std::string::npos) << message;
    EXPECT_NE(message.find("overlaps slot 7"), std::string::npos) << message;
    EXPECT_NE(message.find("0x10000 to 0x13fff"), std::string::npos) << message;
}

TEST_F(MemslotTableTest, AnExistingSlotMovesAndChangesLoggingOnly)
{
    table_.set(region(0, 0x10, 4)).value();
    table_.set(region(1, 0x20, 4, 4)).value();

    EXPECT_EQ(error_of(table_.set(region(0, 0x10, 5))), EINVAL);
    EXPECT_EQ(error_of(table_.set(region(0, 0x10, 4, 1))), EINVAL);
    MemoryRegion read_only = region(0, 0x10, 4);
    read_only.flags = MemoryFlags::read_only;
    EXPECT_EQ(error_of(table_.set(read_only)), EINVAL);
    EXPECT_EQ(error_of(table_.set(region(0, 0x1e, 4))), EEXIST);
    EXPECT_EQ(table_.read().generation(), 2U);

    EXPECT_EQ(error_of(table_.set(region(0, 0x12, 4))), 0);  // onto its own pages
    EXPECT_EQ(table_.read().find(0x10), nullptr);
    EXPECT_EQ(table_.read().find(0x15)->id, 0U);
    EXPECT_EQ(table_.read().generation(), 3U);
}

TEST_F(MemslotTableTest, TheSameAgainIsFineAndPublishesNothing)
{
    table_.set(region(0, 0x10, 4)).value();
    table_.set(region(0, 0x10, 4)).value();
    EXPECT_EQ(table_.read().generation(), 1U);
}

TEST_F(MemslotTableTest, ADeletedSlotIsGoneAndItsIdFree)
{
    table_.set(region(0, 0x10, 4)).value();
    table_.set({.slot = 0}).value();
    EXPECT_EQ(table_.read().find(0x10), nullptr);
    EXPECT_EQ(error_of(table_.set({.slot = 0})), EINVAL);
    EXPECT_EQ(error_of(table_.set(region(0, 0x10, 2, 9))), 0);
}

TEST_F(MemslotTableTest, AReaderKeepsItsGeneration)
{
    table_.set(region(0, 0x10, 4)).value();
    MemslotTable<>::Hint hint;
    EXPECT_NE(table_.read().find(0x10, hint), nullptr);
    table_.set({.slot = 0}).value();
    EXPECT_EQ(table_.read().find(0x10, hint), nullptr) << "a stale hint is harmless";
}

TEST_F(MemslotTableTest, TheDirtyLogIsTakenOnce)
{
    MemoryRegion logged = region(0, 0x10, 130);
    logged.flags = MemoryFlags::log_dirty;
    table_.set(logged).value();
    const auto mark = [&](std::uint64_t gfn) { table_.read().find(gfn)->mark_dirty(gfn); };
    mark(0x10);
    mark(0x10 + 64);
    mark(0x10 + 129);

    using Log = std::vector<std::uint64_t>;
    EXPECT_EQ(*table_.peek_dirty_log(0), (Log{1, 1, 2}));
    EXPECT_EQ(*table_.dirty_log(0), (Log{1, 1, 2}));
    EXPECT_EQ(*table_.dirty_log(0), (Log{0, 0, 0}));
}

TEST_F(MemslotTableTest, TheDirtyLogErrorsAreKvms)
{
    table_.set(region(0, 0x10, 4)).value();
    EXPECT_EQ(table_.dirty_log(0).error().errno_value(), ENOENT);
    EXPECT_EQ(table_.dirty_log(1).error().errno_value(), ENOENT);
    EXPECT_EQ(table_.dirty_log(0, 1).error().errno_value(), ENOENT);
    EXPECT_EQ(table_.dirty_log(32764).error().errno_value(), EINVAL);
    EXPECT_EQ(table_.dirty_log(0, 2).error().errno_value(), EINVAL);
}

TEST_F(MemslotTableTest, ClearTakesWholeWordsOrTheEndOfTheSlot)
{
    MemoryRegion logged = region(0, 0, 130);
    logged.flags = MemoryFlags::log_dirty;
    table_.set(logged).value();
    for (std::uint64_t page = 0; page < 130; ++page) {
        table_.read().find(page)->mark_dirty(page);
    }
    const std::vector<std::uint64_t> all(3, ~0ULL);
    const auto clear = [&](std::uint64_t first, std::uint64_t count) {
        return error_of(table_.clear_dirty_log(0, first, count, all));
    };

    EXPECT_EQ(clear(1, 64), EINVAL);
    EXPECT_EQ(clear(0, 63), EINVAL);
    EXPECT_EQ(clear(64, 67), EINVAL);
    EXPECT_EQ(clear(192, 0), EINVAL);
    EXPECT_EQ(clear(0, 131), EINVAL);
    EXPECT_EQ(clear(64, std::numeric_limits<std::uint64_t>::max()), EINVAL);
    EXPECT_EQ(error_of(table_.clear_dirty_log(0, 0, 130, std::span{all}.first(2))), EFAULT);
    EXPECT_EQ(error_of(table_.clear_dirty_log(1, 0, 64, all)), ENOENT);
    EXPECT_EQ(error_of(table_.clear_dirty_log(1, 1, 64, all)), EINVAL);
    EXPECT_EQ(error_of(table_.clear_dirty_log(40000, 0, 64, all)), EINVAL);
    EXPECT_EQ(table_.peek_dirty_log(0)->at(1), ~0ULL);

    EXPECT_EQ(clear(64, 66), 0);
    EXPECT_EQ(*table_.peek_dirty_log(0), (std::vector<std::uint64_t>{~0ULL, 0, 0}));
    const std::array<std::uint64_t, 1> some{0xff};
    EXPECT_EQ(error_of(table_.clear_dirty_log(0, 0, 64, some)), 0);
    EXPECT_EQ(table_.peek_dirty_log(0)->at(0), ~0xffULL);
}

TEST_F(MemslotTableTest, DirtyBitsSurviveAMoveAndNotLoggingTurnedOff)
{
    MemoryRegion logged = region(0, 0x10, 4);
    logged.flags = MemoryFlags::log_dirty;
    table_.set(logged).value();
    table_.read().find(0x12)->mark_dirty(0x12);

    logged.guest_phys_addr = Gpa{0x20000};
    table_.set(logged).value();
    EXPECT_EQ(table_.peek_dirty_log(0)->at(0), 4U);

    logged.flags = 0;
    table_.set(logged).value();
    EXPECT_EQ(table_.dirty_log(0).error().errno_value(), ENOENT);
    logged.flags = MemoryFlags::log_dirty;
    table_.set(logged).value();
    EXPECT_EQ(table_.dirty_log(0)->at(0), 0U);
}

TEST_F(MemslotTableTest, APayloadStaysWithItsSlot)
{
    MemslotTable<std::shared_ptr<int>, 1> table;
    table.set(region(0, 0x10, 4), std::make_shared<int>(7)).value();
    table.set(region(0, 0x20, 4)).value();
    EXPECT_EQ(*table.read().find(0x20)->payload, 7);
    table.set(region(0, 0x20, 4), std::make_shared<int>(8)).value();
    EXPECT_EQ(*table.read().find(0x20)->payload, 8);
    table.set(region(1, 0x40, 4)).value();
    EXPECT_EQ(table.read().find(0x40)->payload, nullptr);
}

}  // namespace
}  // namespace vmm::memory
