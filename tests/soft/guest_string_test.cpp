// SPDX-License-Identifier: Apache-2.0

#include <thread>

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"

namespace vmm::x86::soft::test {
namespace {

class GuestString : public ::testing::Test {
protected:
    GuestString() { guest.long_mode(); }

    void run(std::initializer_list<std::uint8_t> bytes)
    {
        guest.vm->memory_written(Gpa{Guest::code}, 64);
        guest.load(Guest::code, bytes);
        guest.put<std::uint8_t>(Guest::code + bytes.size(), 0xf4);
        guest.state().rip = Guest::code;
        guest.reg(Rsp) = Guest::stack;
        ASSERT_EQ(guest.run(), Reason::Halt);
    }
    void fill(std::uint64_t from, std::size_t size)
    {
        for (std::size_t i = 0; i < size; ++i) {
            guest.put<std::uint8_t>(from + i, static_cast<std::uint8_t>(i * 31 + i / 256));
        }
    }
    void unmap(std::uint64_t page)
    {
        guest.put<std::uint64_t>(Guest::tables + 0x3000 + page / 4096 * 8, 0);
        guest.vcpu->state_changed();
    }

    Guest guest;
};

constexpr std::uint64_t source = 0x60'0000;
constexpr std::uint64_t target = 0x70'0000;

TEST_F(GuestString, MovesAcrossPagesAtAnyOffset)
{
    fill(source, 40'000);
    for (const std::uint64_t shift : {0U, 1U, 5U, 4095U}) {
        for (const std::uint8_t opcode : {std::uint8_t{0xa4}, std::uint8_t{0xa5}}) {
            const std::uint64_t size = opcode == 0xa4 ? 1 : 8;
            std::memset(guest.ram.at(target), 0, 50'000);
            guest.reg(Rsi) = source + shift;
            guest.reg(Rdi) = target + 3;
            guest.reg(Rcx) = 30'000 / size;
            run({0xf3, 0x48, opcode});
            const std::uint64_t bytes = 30'000 / size * size;
            EXPECT_EQ(std::memcmp(guest.ram.at(source + shift), guest.ram.at(target + 3), bytes),
                      0);
            EXPECT_EQ(guest.get<std::uint8_t>(target + 3 + bytes), 0);
            EXPECT_EQ(guest.reg(Rcx), 0U);
            EXPECT_EQ(guest.reg(Rsi), source + shift + bytes);
            EXPECT_EQ(guest.reg(Rdi), target + 3 + bytes);
        }
    }
}

TEST_F(GuestString, MovesDownAcrossPagesAtAnyOffset)
{
    fill(source, 40'000);
    for (const std::uint64_t shift : {0U, 1U, 5U, 4095U}) {
        for (const std::uint8_t opcode : {std::uint8_t{0xa4}, std::uint8_t{0xa5}}) {
            const std::uint64_t size = opcode == 0xa4 ? 1 : 8;
            const std::uint64_t bytes = 30'000 / size * size;
            std::memset(guest.ram.at(target), 0, 50'000);
            guest.reg(Rsi) = source + shift + bytes - size;
            guest.reg(Rdi) = target + 3 + bytes - size;
            guest.reg(Rcx) = bytes / size;
            guest.state().rflags = 0x402;
            run({0xf3, 0x48, opcode});
            EXPECT_EQ(std::memcmp(guest.ram.at(source + shift), guest.ram.at(target + 3), bytes),
                      0);
            EXPECT_EQ(guest.get<std::uint8_t>(target + 2), 0);
            EXPECT_EQ(guest.get<std::uint8_t>(target + 3 + bytes), 0);
            EXPECT_EQ(guest.reg(Rcx), 0U);
            EXPECT_EQ(guest.reg(Rsi), source + shift - size);
            EXPECT_EQ(guest.reg(Rdi), target + 3 - size);
        }
    }
}

TEST_F(GuestString, FaultOnTheWayDownLeavesTheRegistersOfTheLastElement)
{
    const std::uint64_t page = 0x10'0000;
    unmap(page);
    fill(source, 4096);
    guest.reg(Rsi) = source + 4092;
    guest.reg(Rdi) = page + 0x1000 + 100;
    guest.reg(Rcx) = 1000;
    guest.state().rflags = 0x402;
    run({0xf3, 0xa5});
    EXPECT_EQ(guest.halted_by_vector(), 14);
    EXPECT_EQ(guest.state().cr2, page + 0x1000 - 4);
    EXPECT_EQ(guest.reg(Rcx), 1000U - 26U);
    EXPECT_EQ(guest.reg(Rsi), source + 4092 - 26 * 4);
    EXPECT_EQ(guest.reg(Rdi), page + 0x1000 - 4);
    EXPECT_EQ(guest.stack_word(1), Guest::code);
    EXPECT_EQ(
        std::memcmp(guest.ram.at(source + 4096 - 26 * 4), guest.ram.at(page + 0x1000), 26 * 4), 0);
}

/// Against a loop over elements, in both directions, with every small distance.
TEST_F(GuestString, OverlappingMovesGoByElements)
{
    for (const unsigned size : {1U, 2U, 4U, 8U}) {
        for (int distance = -20; distance <= 20; ++distance) {
            for (const bool backward : {false, true}) {
                constexpr std::uint64_t count = 50;
                fill(source, 2048);
                std::vector<std::byte> expected(2048);
                std::memcpy(expected.data(), guest.ram.at(source), expected.size());
                const std::int64_t from = 900;
                for (std::uint64_t i = 0; i < count; ++i) {
                    const auto step = static_cast<std::int64_t>(i * size) * (backward ? -1 : 1);
                    std::array<std::byte, 8> value{};
                    std::memcpy(value.data(), expected.data() + from + step, size);
                    std::memcpy(expected.data() + from + distance + step, value.data(), size);
                }
                guest.reg(Rsi) = source + 900;
                guest.reg(Rdi) = source + 900 + static_cast<std::uint64_t>(distance);
                guest.reg(Rcx) = count;
                guest.state().rflags = backward ? 0x402 : 2;
                switch (size) {
                case 1: run({0xf3, 0xa4}); break;
                case 2: run({0xf3, 0x66, 0xa5}); break;
                case 4: run({0xf3, 0xa5}); break;
                default: run({0xf3, 0x48, 0xa5}); break;
                }
                ASSERT_EQ(std::memcmp(guest.ram.at(source), expected.data(), expected.size()), 0)
                    << size << ' ' << distance << ' ' << backward;
            }
        }
    }
}

TEST_F(GuestString, StoresFillPages)
{
    guest.reg(Rdi) = target + 5;
    guest.reg(Rcx) = 3000;
    guest.reg(Rax) = 0x1122'3344;
    run({0xf3, 0xab});
    for (std::uint64_t i = 0; i < 3000; ++i) {
        ASSERT_EQ(guest.get<std::uint32_t>(target + 5 + i * 4), 0x1122'3344U);
    }
    EXPECT_EQ(guest.get<std::uint8_t>(target + 4), 0);
    EXPECT_EQ(guest.get<std::uint8_t>(target + 5 + 12'000), 0);
}

TEST_F(GuestString, FaultLeavesTheRegistersOfTheLastElement)
{
    // The destination's second page is missing: 100 bytes fit.
    const std::uint64_t page = 0x10'0000;
    unmap(page + 0x1000);
    fill(source, 4096);
    guest.reg(Rsi) = source;
    guest.reg(Rdi) = page + 0x1000 - 100;
    guest.reg(Rcx) = 1000;
    run({0xf3, 0xa4});
    EXPECT_EQ(guest.halted_by_vector(), 14);
    EXPECT_EQ(guest.state().cr2, page + 0x1000);
    EXPECT_EQ(guest.reg(Rcx), 900U);
    EXPECT_EQ(guest.reg(Rsi), source + 100);
    EXPECT_EQ(guest.reg(Rdi), page + 0x1000);
    EXPECT_EQ(guest.stack_word(1), Guest::code);  // RIP of the instruction
    EXPECT_EQ(std::memcmp(guest.ram.at(source), guest.ram.at(page + 0x1000 - 100), 100), 0);
}

TEST_F(GuestString, ElementAcrossAMissingPageWritesNothing)
{
    const std::uint64_t page = 0x10'0000;
    unmap(page + 0x1000);
    guest.reg(Rdi) = page + 0x1000 - 4;
    guest.reg(Rax) = ~std::uint64_t{0};
    guest.reg(Rcx) = 1;
    run({0xf3, 0x48, 0xab});
    EXPECT_EQ(guest.halted_by_vector(), 14);
    EXPECT_EQ(guest.get<std::uint32_t>(page + 0x1000 - 4), 0U);
    EXPECT_EQ(guest.reg(Rcx), 1U);
}

TEST_F(GuestString, ScanFindsAndSetsFlags)
{
    std::memset(guest.ram.at(target), 'a', 10'000);
    guest.put<std::uint8_t>(target + 7000, 'b');
    guest.reg(Rdi) = target;
    guest.reg(Rcx) = 10'000;
    guest.reg(Rax) = 'b';
    run({0xf2, 0xae});
    EXPECT_EQ(guest.reg(Rdi), target + 7001);
    EXPECT_EQ(guest.reg(Rcx), 10'000U - 7001U);
    EXPECT_TRUE((guest.state().rflags & 0x40U) != 0);

    // None: the last comparison's flags.
    guest.reg(Rdi) = target;
    guest.reg(Rcx) = 100;
    run({0xf2, 0xae});
    EXPECT_EQ(guest.reg(Rcx), 0U);
    EXPECT_TRUE((guest.state().rflags & 0x40U) == 0);

    // A count of 0 changes nothing.
    guest.reg(Rdi) = target;
    guest.state().rflags = 2 | 0x41;
    run({0xf2, 0xae});
    EXPECT_EQ(guest.reg(Rdi), target);
    EXPECT_EQ(guest.state().rflags & 0x8d5U, 0x41U);
}

TEST_F(GuestString, CompareStopsAtTheDifference)
{
    fill(source, 5000);
    fill(target, 5000);
    guest.put<std::uint8_t>(target + 4500, 0);
    guest.put<std::uint8_t>(source + 4500, 1);
    guest.reg(Rsi) = source;
    guest.reg(Rdi) = target;
    guest.reg(Rcx) = 5000;
    run({0xf3, 0xa6});
    EXPECT_EQ(guest.reg(Rcx), 5000U - 4501U);
    EXPECT_TRUE((guest.state().rflags & 0x41U) == 0);  // 1 > 0
}

TEST_F(GuestString, AddressSizeWrapsAndKeepsTheRest)
{
    // addr32 rep stosb: only the low halves are used, and written zero-extended.
    guest.reg(Rdi) = 0xdead'0000'0000'0000U | target;
    guest.reg(Rcx) = 0xdead'0000'0000'0010U;
    guest.reg(Rax) = 0x5a;
    run({0x67, 0xf3, 0xaa});
    EXPECT_EQ(guest.get<std::uint8_t>(target + 15), 0x5a);
    EXPECT_EQ(guest.get<std::uint8_t>(target + 16), 0);
    EXPECT_EQ(guest.reg(Rdi), target + 16);
    EXPECT_EQ(guest.reg(Rcx), 0U);
}

TEST_F(GuestString, RealModeWrapsAtSixtyFourKilobytes)
{
    Guest real;
    real.real_mode();
    real.load(Guest::code, {0xf3, 0xaa, 0xf4});
    real.reg(Rdi) = 0xfff0;
    real.reg(Rcx) = 0x20;
    real.reg(Rax) = 0x77;
    EXPECT_EQ(real.run(), Reason::Halt);
    EXPECT_EQ(real.reg(Rdi), 0x10U);
    EXPECT_EQ(real.get<std::uint8_t>(Guest::data + 0xffff), 0x77);
    EXPECT_EQ(real.get<std::uint8_t>(Guest::data + 0xf), 0x77);
    EXPECT_EQ(real.get<std::uint8_t>(Guest::data + 0x10), 0);
}

TEST_F(GuestString, RealModeWrapsDownwardsToo)
{
    Guest real;
    real.real_mode();
    real.load(Guest::code, {0xf3, 0xa4, 0xf4});
    for (std::uint64_t i = 0; i < 0x10000; ++i) {
        real.put<std::uint8_t>(Guest::data + i, static_cast<std::uint8_t>(i * 7 + i / 256));
    }
    real.reg(Rsi) = 0x8010;
    real.reg(Rdi) = 0x10;
    real.reg(Rcx) = 0x20;
    real.state().rflags = 0x402;
    real.vcpu->state_changed();
    EXPECT_EQ(real.run(), Reason::Halt);
    EXPECT_EQ(real.reg(Rdi), 0xfff0U);
    EXPECT_EQ(real.reg(Rsi), 0x7ff0U);
    for (std::uint64_t i = 0; i < 0x20; ++i) {
        const std::uint64_t from = 0x8010 - i;
        EXPECT_EQ(real.get<std::uint8_t>(Guest::data + ((0x10 - i) & 0xffffU)),
                  static_cast<std::uint8_t>(from * 7 + from / 256));
    }
}

TEST_F(GuestString, SingleStepTrapsBehindEachIteration)
{
    guest.reg(Rdi) = target;
    guest.reg(Rcx) = 5;
    guest.state().rflags = 0x102;
    guest.vcpu->state_changed();
    run({0xf3, 0xaa});
    EXPECT_EQ(guest.halted_by_vector(), 1);
    EXPECT_EQ(guest.reg(Rcx), 4U);
    EXPECT_EQ(guest.stack_word(0), Guest::code);
}

/// A repetition over all of a gigabyte that is not there ends when it is asked to.
TEST_F(GuestString, KickEndsALongRepetition)
{
    guest.load(Guest::code, {0xf3, 0xac, 0xeb, 0xfc});  // l: rep lodsb; jmp l
    guest.state().rip = Guest::code;
    guest.reg(Rsi) = source;
    guest.reg(Rcx) = 0;
    std::thread kicker{[&] { guest.vcpu->request_exit(); }};
    EXPECT_EQ(guest.run(), Reason::Interrupted);
    kicker.join();
    guest.reg(Rsi) = source;
    guest.reg(Rcx) = 1'000'000;
    guest.state().rip = Guest::code;
    std::thread again{[&] { guest.vcpu->request_exit(); }};
    EXPECT_EQ(guest.run(), Reason::Interrupted);
    again.join();
}

}  // namespace
}  // namespace vmm::x86::soft::test
