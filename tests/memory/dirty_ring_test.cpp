// SPDX-License-Identifier: Apache-2.0

#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmm/memory/dirty_ring.hpp"
#include "vmm/memory/memslots.hpp"

namespace vmm::memory {
namespace {

constexpr auto nothing = [](std::uint32_t, std::uint64_t) {};

TEST(DirtyRing, AnEntryIsTakenOnceAndItsPlaceFreedAfterwards)
{
    std::vector<DirtyGfn> entries(DirtyRing::min_entries);
    DirtyRing ring{entries};
    DirtyRingReader reader{entries};
    EXPECT_FALSE(reader.take());
    ASSERT_TRUE(ring.push(0x1'0003, 42));
    EXPECT_EQ(ring.reset(nothing), 0U) << "nobody has taken it";
    const auto page = reader.take();
    ASSERT_TRUE(page);
    EXPECT_EQ(page->address_space, 1U);
    EXPECT_EQ(page->slot, 3U);
    EXPECT_EQ(page->page, 42U);
    EXPECT_FALSE(reader.take());
    EXPECT_EQ(entries[0].flags & DirtyGfn::reset, DirtyGfn::reset);
    EXPECT_EQ(ring.reset(nothing), 1U);
    EXPECT_EQ(entries[0].flags, 0U);
    EXPECT_EQ(ring.reset(nothing), 0U);
}

TEST(DirtyRing, IsFullWithTheReservedEntriesLeftAndRefusesWithNone)
{
    std::vector<DirtyGfn> entries(DirtyRing::min_entries);
    DirtyRing ring{entries};
    for (std::size_t n = 0; n < entries.size(); ++n) {
        EXPECT_EQ(ring.is_full(), n >= entries.size() - DirtyRing::reserved) << n;
        ASSERT_TRUE(ring.push(0, n)) << n;
    }
    EXPECT_FALSE(ring.push(0, 1));
    DirtyRingReader reader{entries};
    for (std::size_t n = 0; n < DirtyRing::reserved; ++n) {
        EXPECT_EQ(reader.take()->page, n);
    }
    EXPECT_FALSE(ring.push(0, 1)) << "taken, not freed";
    EXPECT_EQ(ring.reset(nothing), DirtyRing::reserved);
    EXPECT_TRUE(ring.is_full());
    EXPECT_TRUE(reader.take());
    EXPECT_EQ(ring.reset(nothing), 1U);
    EXPECT_FALSE(ring.is_full());
    EXPECT_TRUE(ring.push(0, 1));
}

TEST(DirtyRing, EntriesOutOfOrderWaitForTheOlder)
{
    std::vector<DirtyGfn> entries(DirtyRing::min_entries);
    DirtyRing ring{entries};
    ASSERT_TRUE(ring.push(0, 1));
    ASSERT_TRUE(ring.push(0, 2));
    entries[1].flags = DirtyGfn::reset;
    EXPECT_EQ(ring.reset(nothing), 0U);
    entries[0].flags = DirtyGfn::reset;
    EXPECT_EQ(ring.reset(nothing), 2U);
}

TEST(DirtyRing, FlagsThatTheOtherSideInventsFreeNothingThatIsNotUsed)
{
    std::vector<DirtyGfn> entries(DirtyRing::min_entries);
    DirtyRing ring{entries};
    for (DirtyGfn& entry : entries) {
        entry = {~0U, ~0U, ~std::uint64_t{0}};
    }
    EXPECT_EQ(ring.reset(nothing), 0U);
    EXPECT_TRUE(ring.push(0, 1));
}

TEST(DirtyRing, LosesNoPageBetweenThreads)
{
    constexpr std::uint64_t pages = 20'000;
    std::vector<DirtyGfn> entries(DirtyRing::min_entries);
    DirtyRing ring{entries};
    std::thread writer{[&] {
        for (std::uint64_t page = 0; page < pages;) {
            if (ring.push(0, page)) {
                ++page;
            } else {
                std::this_thread::yield();
            }
        }
    }};
    DirtyRingReader reader{entries};
    for (std::uint64_t page = 0; page < pages;) {
        if (const auto taken = reader.take()) {
            ASSERT_EQ(taken->page, page++);
        } else {
            ring.reset(nothing);
            std::this_thread::yield();
        }
    }
    writer.join();
}

/// Notes what it is told.
class Told final : public DirtySink {
public:
    void page_dirtied(std::uint16_t address_space,
                      std::uint32_t slot,
                      std::uint64_t page) noexcept override
    {
        pages.push_back({address_space, slot, page});
    }
    std::vector<DirtyPage> pages;
};

TEST(DirtySink, IsToldOfAPageWhenItTurnsDirty)
{
    alignas(4096) static std::array<std::byte, 0x4000> ram;
    Told told;
    MemslotTable<> slots;
    slots.set_dirty_sink(told);
    slots
        .set({.slot = 5,
              .address_space = 1,
              .flags = MemoryFlags::log_dirty,
              .guest_phys_addr = Gpa{0x10000},
              .size_bytes = ram.size(),
              .host = ram.data()})
        .value();
    slots.read().find(0x12, 1)->mark_dirty(0x12);
    slots.read().find(0x12, 1)->mark_dirty(0x12);
    ASSERT_EQ(told.pages.size(), 1U);
    EXPECT_EQ(told.pages[0].address_space, 1U);
    EXPECT_EQ(told.pages[0].slot, 5U);
    EXPECT_EQ(told.pages[0].page, 2U);
    EXPECT_EQ(slots.dirty_log(5, 1).value().at(0), 0b100U);
    slots.read().find(0x12, 1)->mark_dirty(0x12);
    EXPECT_EQ(told.pages.size(), 2U);
}

}  // namespace
}  // namespace vmm::memory
