// SPDX-License-Identifier: Apache-2.0

// Devices and doorbells come and go while many threads access them: see memslots_threads_test.cpp.

#include <array>
#include <atomic>
#include <latch>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "effort.hpp"
#include "vmm/bus/io_bus.hpp"
#include "vmm/bus/ioeventfd.hpp"

namespace vmm::bus {
namespace {

constexpr std::uint64_t alive = 0x600d;

/// Answers with when it was made, in the low 7 bytes of a word; spoilt when it dies.
class Stamp {
public:
    explicit Stamp(std::uint64_t time) noexcept : time_{time} {}
    Stamp(Stamp&& other) noexcept : time_{other.time_} {}
    Stamp(const Stamp&) = delete;
    Stamp& operator=(const Stamp&) = delete;
    Stamp& operator=(Stamp&&) = delete;
    ~Stamp() { canary_ = 0; }

    void read(std::uint64_t /*offset*/, std::span<std::byte> data) noexcept
    {
        EXPECT_EQ(canary_, alive);
        for (std::size_t i = 0; i < data.size(); ++i) {
            data[i] = static_cast<std::byte>(time_ >> (8 * i));
        }
    }
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept {}

private:
    std::uint64_t time_;
    std::uint64_t canary_{alive};
};

TEST(IoBusThreads, EightReadersAndTwoWriters)
{
    const std::uint64_t lookups = test::effort("VMM_LOOKUPS", 100'000);
    const std::uint64_t publications = test::effort("VMM_PUBLICATIONS", 1000);
    constexpr std::size_t writers = 2;
    constexpr std::size_t readers = 8;
    IoBus<Port, Stamp> bus;
    const auto range = [](std::size_t writer) {
        return *PortRange::make(Port{static_cast<std::uint16_t>(0x100 * writer)}, 8);
    };

    // The newest change of each writer that has returned; even: a device is there.
    std::array<std::atomic<std::uint64_t>, writers> finished{};
    for (std::size_t writer = 0; writer < writers; ++writer) {
        bus.add(range(writer), Stamp{0}).value();
    }
    std::atomic<std::size_t> writing{writers};
    std::atomic<std::uint64_t> looked_up{0};
    std::latch start{writers + readers};
    std::vector<std::jthread> threads;
    for (std::size_t writer = 0; writer < writers; ++writer) {
        threads.emplace_back([&, writer] {
            start.arrive_and_wait();
            for (std::uint64_t now = 1; now <= publications / writers || looked_up.load() < lookups;
                 ++now) {
                if (now % 2 == 1) {
                    bus.remove(range(writer)).value();
                } else {
                    bus.add(range(writer), Stamp{now}).value();
                }
                finished[writer].store(now, std::memory_order_release);
            }
            writing.fetch_sub(1);
        });
    }
    for (std::size_t reader = 0; reader < readers; ++reader) {
        threads.emplace_back([&, reader] {
            start.arrive_and_wait();
            IoBus<Port, Stamp>::Hint hint;
            for (std::uint64_t n = 0; writing.load() != 0; ++n) {
                const std::size_t writer = (n + reader) % writers;
                const std::uint64_t before = finished[writer].load(std::memory_order_acquire);
                std::array<std::byte, 8> data{};
                if (bus.read(range(writer).first(), data, hint)) {
                    std::uint64_t time = 0;
                    for (std::size_t i = 0; i < data.size(); ++i) {
                        time |= std::to_integer<std::uint64_t>(data[i]) << (8 * i);
                    }
                    ASSERT_GE(time, before) << "a device that was removed";
                }
                if (n % 32 == 31) {
                    looked_up.fetch_add(32, std::memory_order_relaxed);
                    std::this_thread::yield();
                }
            }
        });
    }
}

/// Rings where it was told to, until it is told to no more.
struct Bell {
    std::atomic<bool>* may_ring;
    void signal() const noexcept { EXPECT_TRUE(may_ring->load()); }
    bool is_same(const Bell& other) const noexcept { return may_ring == other.may_ring; }
};

TEST(IoEventThreads, NothingIsSignalledAfterItsRemovalReturned)
{
    const std::uint64_t rounds = test::effort("VMM_PUBLICATIONS", 1000) / 2;
    IoEventTable<Gpa, Bell> events;
    std::atomic<bool> may_ring{false};
    std::atomic<std::uint64_t> reads{0};
    std::atomic<bool> done{false};
    std::latch start{5};
    std::vector<std::jthread> readers;
    for (int i = 0; i < 4; ++i) {
        readers.emplace_back([&] {
            start.arrive_and_wait();
            const std::array<std::byte, 2> data{};
            for (unsigned n = 0; !done.load(std::memory_order_relaxed); ++n) {
                events.write(Gpa{0x1000}, data);
                if (n % 32 == 31) {
                    reads.fetch_add(32, std::memory_order_relaxed);
                    std::this_thread::yield();
                }
            }
        });
    }
    start.arrive_and_wait();
    const IoEvent<Gpa> event{.address = Gpa{0x1000}, .length = 2};
    for (std::uint64_t n = 0; n < rounds || reads.load() < 10'000; ++n) {
        may_ring = true;
        events.add(event, Bell{&may_ring}).value();
        events.remove(event, Bell{&may_ring}).value();
        may_ring = false;
    }
    done = true;
}

}  // namespace
}  // namespace vmm::bus
