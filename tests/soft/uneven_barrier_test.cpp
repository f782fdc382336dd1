// SPDX-License-Identifier: Apache-2.0

#include <atomic>
#include <cstdint>
#include <thread>

#include <gtest/gtest.h>

#include "x86/soft/uneven_barrier.hpp"

namespace vmm::x86::soft::test {
namespace {

struct alignas(128) Place {
    std::atomic<std::uint32_t> value{};
};

TEST(UnevenBarrier, OneOfTwoThreadsSeesTheOther)
{
    constexpr std::uint32_t rounds = 5'000;
    Place usual;
    Place rare;
    Place begun;
    Place seen_by_usual;
    std::thread other{[&] {
        for (std::uint32_t round = 1; round <= rounds; ++round) {
            while (begun.value.load(std::memory_order_acquire) != round) {
            }
            usual.value.store(round, std::memory_order_release);
            UnevenBarrier::light();
            const std::uint32_t seen = rare.value.load(std::memory_order_acquire);
            seen_by_usual.value.store(2 * round + (seen == round ? 1U : 0U),
                                      std::memory_order_release);
        }
    }};
    std::uint32_t missed = 0;
    for (std::uint32_t round = 1; round <= rounds; ++round) {
        begun.value.store(round, std::memory_order_release);
        // So that both come at the same time more often.
        for (std::uint32_t i = 0; i < round % 512; ++i) {
            std::atomic_signal_fence(std::memory_order_seq_cst);
        }
        rare.value.store(round, std::memory_order_release);
        UnevenBarrier::heavy();
        const bool sees_usual = usual.value.load(std::memory_order_acquire) == round;
        std::uint32_t answer = 0;
        while ((answer = seen_by_usual.value.load(std::memory_order_acquire)) / 2 != round) {
        }
        missed += !sees_usual && answer % 2 == 0 ? 1U : 0U;
    }
    other.join();
    EXPECT_EQ(missed, 0U);
}

}  // namespace
}  // namespace vmm::x86::soft::test
