// SPDX-License-Identifier: Apache-2.0

#include <atomic>
#include <latch>
#include <memory>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "effort.hpp"
#include "vmm/memory/epoch.hpp"

namespace vmm::memory {
namespace {

static_assert(Publishable<int> && Publishable<std::unique_ptr<int>> && !Publishable<const int> &&
              !Publishable<int&>);

TEST(PublishedTest, AReaderKeepsWhatItEntered)
{
    Published<int> published{1};
    std::atomic<bool> returned{false};
    std::jthread writer;
    {
        const auto guard = published.read();
        writer = std::jthread{[&] {
            published.publish(2);
            returned = true;
        }};
        while (*published.read() != 2) {
            std::this_thread::yield();
        }
        EXPECT_EQ(*guard, 1);
        EXPECT_FALSE(returned) << "a reader of the old generation is left";
    }
    writer.join();
    EXPECT_TRUE(returned);
}

TEST(PublishedTest, GuardsNest)
{
    Published<int> published{1};
    {
        const auto outer = published.read();
        const auto inner = published.read();
        EXPECT_EQ(*outer + *inner, 2);
    }
    published.publish(3);
    EXPECT_EQ(*published.read(7), 3);
}

TEST(PublishedTest, UpdatesOfManyWritersAreAllKept)
{
    Published<std::uint64_t> published{0};
    constexpr std::uint64_t each = 500;
    {
        std::vector<std::jthread> writers;
        for (int i = 0; i < 4; ++i) {
            writers.emplace_back([&] {
                for (std::uint64_t n = 0; n < each; ++n) {
                    published.update([](std::uint64_t old) { return old + 1; });
                }
            });
        }
    }
    EXPECT_EQ(*published.read(), 4 * each);
}

/// Says what became of it to whoever looks too late.
struct Canary {
    std::uint64_t value{};
    std::uint64_t twice{};
    explicit Canary(std::uint64_t number = 0) : value{number}, twice{2 * number} {}
    Canary(const Canary&) = default;
    Canary& operator=(const Canary&) = default;
    ~Canary() { twice = value + 1; }
};

TEST(PublishedTest, NothingStaleAndNothingDeadIsSeen)
{
    Published<std::unique_ptr<Canary>> published{std::make_unique<Canary>()};
    std::atomic<std::uint64_t> finished{0};  // The newest whose publication has returned.
    std::atomic<std::uint64_t> reads{0};
    std::atomic<bool> done{false};
    std::latch start{9};
    std::vector<std::jthread> readers;
    for (int i = 0; i < 8; ++i) {
        readers.emplace_back([&] {
            start.arrive_and_wait();
            for (unsigned n = 0; !done.load(std::memory_order_relaxed); ++n) {
                const std::uint64_t at_least = finished.load(std::memory_order_acquire);
                {
                    const auto guard = published.read();
                    EXPECT_GE((*guard)->value, at_least);
                    EXPECT_EQ((*guard)->twice, 2 * (*guard)->value);
                }
                if (n % 16 == 15) {
                    reads.fetch_add(16, std::memory_order_relaxed);
                    std::this_thread::yield();
                }
            }
        });
    }
    start.arrive_and_wait();
    const std::uint64_t publications = test::effort("VMM_PUBLICATIONS", 1000);
    const std::uint64_t lookups = test::effort("VMM_LOOKUPS", 100'000);
    for (std::uint64_t n = 1; n <= publications || reads.load() < lookups; ++n) {
        published.publish(std::make_unique<Canary>(n));
        finished.store(n, std::memory_order_release);
    }
    done = true;
}

}  // namespace
}  // namespace vmm::memory
