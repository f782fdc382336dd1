// SPDX-License-Identifier: Apache-2.0

// Slots change while many threads look them up.  Under ThreadSanitizer this is the proof that there
// is no data race; VMM_LOOKUPS=10000000 VMM_PUBLICATIONS=100000 is its full size.

#include <array>
#include <atomic>
#include <latch>
#include <random>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "effort.hpp"
#include "memory/pages.hpp"
#include "vmm/memory/guest_memory.hpp"
#include "vmm/memory/memslots.hpp"

namespace vmm::memory {
namespace {

constexpr std::uint64_t alive = 0x600d;

/// When a slot was published; spoilt when the slot dies.
struct Stamp {
    std::uint64_t time{};
    std::uint64_t canary{alive};
    Stamp() = default;
    explicit Stamp(std::uint64_t now) : time{now} {}
    Stamp(const Stamp&) = default;
    Stamp& operator=(const Stamp&) = default;
    ~Stamp() { canary = 0; }
};

TEST(MemslotThreads, EightReadersAndTwoWriters)
{
    const std::uint64_t lookups = test::effort("VMM_LOOKUPS", 100'000);
    const std::uint64_t publications = test::effort("VMM_PUBLICATIONS", 1000);
    constexpr std::size_t writers = 2;
    constexpr std::size_t readers = 8;
    constexpr std::uint64_t slot_pages = 16;

    test::Pages<slot_pages> memory;
    MemslotTable<Stamp> table;
    const auto region = [&](std::size_t writer) {
        return MemoryRegion{.slot = static_cast<std::uint32_t>(writer),
                            .guest_phys_addr = Gpa{(writer * 0x100) << page_bits},
                            .size_bytes = memory.size(),
                            .host = memory.page()};
    };
    // For each writer the newest stamp whose publication has returned; odd: the slot is deleted.
    std::array<std::atomic<std::uint64_t>, writers> finished{};
    for (std::size_t writer = 0; writer < writers; ++writer) {
        table.set(region(writer), Stamp{0}).value();
    }

    std::atomic<std::size_t> writing{writers};
    std::atomic<std::uint64_t> looked_up{0};
    std::latch start{writers + readers};
    std::vector<std::jthread> threads;
    for (std::size_t writer = 0; writer < writers; ++writer) {
        threads.emplace_back([&, writer] {
            start.arrive_and_wait();
            std::uint64_t now = 0;
            for (std::uint64_t n = 0; n < publications / writers || looked_up.load() < lookups;
                 ++n) {
                MemoryRegion next = region(writer);
                next.size_bytes = now % 2 == 0 && n % 3 == 0 ? 0 : next.size_bytes;
                if (next.size_bytes == 0) {
                    table.set(next).value();
                    now += 1;
                } else {
                    now += 2 - now % 2;
                    table.set(next, Stamp{now}).value();
                }
                finished[writer].store(now, std::memory_order_release);
            }
            writing.fetch_sub(1);
        });
    }
    for (std::size_t reader = 0; reader < readers; ++reader) {
        threads.emplace_back([&, reader] {
            start.arrive_and_wait();
            std::mt19937_64 random{reader};
            MemslotTable<Stamp>::Hint hint;
            std::uint64_t generation = 0;
            for (std::uint64_t n = 0; writing.load() != 0; ++n) {
                const std::size_t writer = random() % writers;
                const std::uint64_t gfn = writer * 0x100 + random() % slot_pages;
                const std::uint64_t before = finished[writer].load(std::memory_order_acquire);
                {
                    const auto view = reader % 2 == 0 ? table.read() : table.read(reader);
                    const auto* slot = view.find(gfn, hint);
                    if (slot != nullptr) {
                        ASSERT_EQ(slot->payload.canary, alive);
                        ASSERT_EQ(slot->id, writer);
                        ASSERT_GE(slot->payload.time, before) << "a stale slot";
                    }
                    ASSERT_GE(view.generation(), generation) << "time runs backwards";
                    generation = view.generation();
                }
                if (n % 32 == 31) {
                    looked_up.fetch_add(32, std::memory_order_relaxed);
                    std::this_thread::yield();
                }
            }
        });
    }
    threads.clear();
    EXPECT_GE(table.read().generation(), publications);
}

TEST(MemslotThreads, NoWriteIsMissingInTheDirtyLog)
{
    constexpr std::uint64_t pages = 8;
    const std::uint64_t rounds = test::effort("VMM_PUBLICATIONS", 1000) * 4;
    test::Pages<pages> memory;
    MemslotTable<> table;
    table.set({.flags = MemoryFlags::log_dirty, .size_bytes = memory.size(), .host = memory.page()})
        .value();
    const GuestMemory guest{table};

    // Each writer counts up in its page's first word.  The collector copies dirty pages only, and
    // in the end has what the pages have.
    std::atomic<int> writing{2};
    std::latch start{3};
    std::vector<std::jthread> threads;
    for (std::uint64_t writer = 0; writer < 2; ++writer) {
        threads.emplace_back([&, writer] {
            start.arrive_and_wait();
            for (std::uint64_t n = 1; n <= rounds; ++n) {
                const std::uint64_t page = writer * (pages / 2) + n % (pages / 2);
                EXPECT_TRUE(guest.guest_write(Gpa{page << page_bits}, n));
            }
            writing.fetch_sub(1);
        });
    }
    std::array<std::uint64_t, pages> copy{};
    bool last_round = false;
    start.arrive_and_wait();
    while (!last_round) {
        last_round = writing.load() == 0;
        const std::uint64_t dirty = table.dirty_log(0).value().at(0);
        for (std::uint64_t page = 0; page < pages; ++page) {
            if (((dirty >> page) & 1U) != 0) {
                copy[page] = *guest.read<std::uint64_t>(Gpa{page << page_bits});
            }
        }
    }
    threads.clear();
    for (std::uint64_t page = 0; page < pages; ++page) {
        EXPECT_EQ(copy[page], *guest.read<std::uint64_t>(Gpa{page << page_bits})) << page;
    }
}

TEST(MemslotThreads, AlignedIntegersAreNeverTorn)
{
    test::Pages<1> memory;
    MemslotTable<> table;
    table.set({.size_bytes = memory.size(), .host = memory.page()}).value();
    const GuestMemory guest{table};
    std::atomic<bool> done{false};
    std::latch start{2};
    std::jthread writer{[&] {
        start.arrive_and_wait();
        for (std::uint64_t n = 0; !done.load(); ++n) {
            EXPECT_TRUE(guest.write(Gpa{0x10}, n % 2 == 0 ? std::uint64_t{0} : ~std::uint64_t{0}));
        }
    }};
    start.arrive_and_wait();
    for (int n = 0; n < 20'000; ++n) {
        const std::uint64_t seen = *guest.read<std::uint64_t>(Gpa{0x10});
        ASSERT_TRUE(seen == 0 || seen == ~std::uint64_t{0}) << seen;
    }
    done = true;
}

}  // namespace
}  // namespace vmm::memory
