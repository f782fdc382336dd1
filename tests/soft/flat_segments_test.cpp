// SPDX-License-Identifier: Apache-2.0

/// @file
/// 32-bit code whose segments change between those that have all of 4 GiB and others: what was
/// decoded and translated for the ones does not run with the others.

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"
#include "x86/soft/cpu.hpp"
#include "x86/soft/translator.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint16_t flat = 0x10;
constexpr std::uint16_t moved = 0x20;        ///< Data, from 4 KiB on.
constexpr std::uint16_t limited = 0x28;      ///< Data, the first 64 KiB.
constexpr std::uint16_t small_stack = 0x30;  ///< Data, all of 4 GiB, with a 16-bit stack pointer.

class FlatSegments : public testing::TestWithParam<TranslationMode> {
protected:
    FlatSegments()
    {
        guest.protected_mode();
        guest.put<std::uint64_t>(Guest::gdt + moved, 0x00cf'9300'1000'ffff);
        guest.put<std::uint64_t>(Guest::gdt + limited, 0x0040'9300'0000'ffff);
        guest.put<std::uint64_t>(Guest::gdt + small_stack, 0x008f'9300'0000'ffff);
        guest.put<std::uint32_t>(Guest::data, 3);
        guest.put<std::uint32_t>(Guest::data + 0x1000, 50);
    }

    void load(std::initializer_list<std::uint8_t> bytes)
    {
        guest.load(Guest::code, bytes);
        guest.vm->memory_written(Gpa{Guest::code}, 64);
    }
    Reason run(std::uint32_t count)
    {
        guest.state().rip = Guest::code;
        guest.reg(Rbx) = 0;
        guest.reg(Rcx) = count;
        return guest.run();
    }
    [[nodiscard]] std::size_t translated()
    {
        const auto& cpu = static_cast<Cpu&>(guest.state());
        return cpu.translator == nullptr ? 0 : cpu.translator->size();
    }

    Guest guest{std::size_t{2} << 20U, GetParam()};
};

// 1: mov 0x20000, %eax; add %eax, %ebx; dec %ecx; jnz 1b; hlt
constexpr auto sum = {std::uint8_t{0xa1}, std::uint8_t{0},    std::uint8_t{0},
                      std::uint8_t{2},    std::uint8_t{0},    std::uint8_t{1},
                      std::uint8_t{0xc3}, std::uint8_t{0x49}, std::uint8_t{0x75},
                      std::uint8_t{0xf6}, std::uint8_t{0xf4}};

TEST_P(FlatSegments, HotCodeIsTranslated)
{
    load(sum);
    ASSERT_EQ(run(1000), Reason::Halt);
    EXPECT_EQ(guest.reg(Rbx), 3000U);
    EXPECT_EQ(translated() != 0, GetParam() != TranslationMode::Off);
}

TEST_P(FlatSegments, TheCallerMayChangeThem)
{
    load(sum);
    ASSERT_EQ(run(1000), Reason::Halt);
    guest.state().seg[Ds].base = 0x1000;
    guest.vcpu->state_changed();
    ASSERT_EQ(run(1000), Reason::Halt);
    EXPECT_EQ(guest.reg(Rbx), 50'000U);
    guest.state().seg[Ds].base = 0;
    guest.state().seg[Ds].limit = 0x2'0002;
    guest.vcpu->state_changed();
    ASSERT_EQ(run(1000), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 13) << "the last byte is beyond the limit";
    guest.state().seg[Ds].limit = 0xffff'ffff;
    guest.state().seg[Es].type = 1;  // Read-only: not looked at here.
    guest.vcpu->state_changed();
    ASSERT_EQ(run(1000), Reason::Halt);
    EXPECT_EQ(guest.reg(Rbx), 3000U);
}

TEST_P(FlatSegments, TheGuestMayChangeThemInTheMiddleOfALoop)
{
    const std::array<std::vector<std::uint8_t>, 3> loops{{
        // 1: mov 0x20000, %eax; add %eax, %ebx; mov %edx, %ds; xchg %edx, %esi; dec %ecx; jnz 1b
        {0xa1, 0, 0, 2, 0, 0x01, 0xc3, 0x8e, 0xda, 0x87, 0xf2, 0x49, 0x75, 0xf2, 0xf4},
        // 1: push %edx; pop %ds; mov 0x20000, %eax; add %eax, %ebx; xchg %edx, %esi; ...
        {0x52, 0x1f, 0xa1, 0, 0, 2, 0, 0x01, 0xc3, 0x87, 0xf2, 0x49, 0x75, 0xf2, 0xf4},
        // 1: push %edx; push $0x20000; lds %ss:(%esp), %edi; add (%edi), %ebx; add $8, %esp; ...
        {0x52, 0x68, 0,    0,    2,    0,    0x36, 0xc5, 0x3c, 0x24, 0x03,
         0x1f, 0x83, 0xc4, 0x08, 0x87, 0xf2, 0x49, 0x75, 0xec, 0xf4},
    }};
    for (const std::vector<std::uint8_t>& loop : loops) {
        guest.load(Guest::code, loop);
        guest.vm->memory_written(Gpa{Guest::code}, 64);
        guest.reg(Rdx) = flat;
        guest.reg(Rsi) = flat;
        ASSERT_EQ(run(1000), Reason::Halt);
        EXPECT_EQ(guest.reg(Rbx), 3000U);
        guest.reg(Rdx) = moved;
        ASSERT_EQ(run(1000), Reason::Halt);
        EXPECT_EQ(guest.reg(Rbx), 500U * 3 + 500U * 50);
    }
}

TEST_P(FlatSegments, AStringsDestinationIsAlwaysEs)
{
    // 1: mov %edx, %es; movsb; dec %ecx; jnz 1b; hlt
    load({0x8e, 0xc2, 0xa4, 0x49, 0x75, 0xfa, 0xf4});
    for (unsigned i = 0; i < 1000; ++i) {
        guest.put<std::uint8_t>(Guest::data + i, static_cast<std::uint8_t>(i));
    }
    for (const std::uint16_t selector : {flat, moved}) {
        const std::uint64_t target = 0x10'0000;
        guest.reg(Rsi) = Guest::data;
        guest.reg(Rdi) = target;
        guest.reg(Rdx) = selector;
        ASSERT_EQ(run(1000), Reason::Halt);
        EXPECT_EQ(std::memcmp(guest.ram.at(target + (selector == moved ? 0x1000 : 0)),
                              guest.ram.at(Guest::data), 1000),
                  0);
        EXPECT_EQ(guest.reg(Rdi), target + 1000);
    }
    guest.reg(Rsi) = 0x1'0000 - 500;
    guest.reg(Rdi) = 0x1'0000 - 500;
    guest.reg(Rdx) = limited;
    ASSERT_EQ(run(1000), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 13);
    EXPECT_EQ(guest.reg(Rdi), 0x1'0000U);
}

TEST_P(FlatSegments, AccessesBeyondTheEndFault)
{
    // 1: mov (%edi), %eax; inc %edi; jmp 1b
    load({0x8b, 0x07, 0x47, 0xeb, 0xfb});
    guest.reg(Rdi) = 0xffff'fffb;
    ASSERT_EQ(run(1), Reason::MmioRead);
    guest.host.on_mmio_read = [](std::uint64_t, std::span<std::byte> data) {
        std::ranges::fill(data, std::byte{0x11});
        return true;
    };
    guest.reg(Rdi) = 0xffff'fffb;
    ASSERT_EQ(run(1), Reason::Halt);
    EXPECT_EQ(guest.halted_by_vector(), 13);
    EXPECT_EQ(guest.reg(Rdi), 0xffff'fffdU);
}

TEST_P(FlatSegments, ASixteenBitStackPointerWraps)
{
    // 1: push %eax; pop %edx; dec %ecx; jnz 1b; hlt
    load({0x50, 0x5a, 0x49, 0x75, 0xfb, 0xf4});
    ASSERT_EQ(run(1000), Reason::Halt);
    EXPECT_EQ(guest.reg(Rsp), Guest::stack);
    // mov %dx, %ss; 1: push %eax; pop %edx; dec %ecx; jnz 1b; hlt
    load({0x8e, 0xd2, 0x50, 0x5a, 0x49, 0x75, 0xfb, 0xf4});
    guest.reg(Rdx) = small_stack;
    guest.reg(Rax) = 0x1234'5678;
    guest.reg(Rsp) = 0x5'0002;
    ASSERT_EQ(run(1), Reason::Halt);
    EXPECT_EQ(guest.reg(Rsp), 0x5'0002U);
    EXPECT_EQ(guest.get<std::uint32_t>(0xfffe), 0x1234'5678U);
}

INSTANTIATE_TEST_SUITE_P(Modes,
                         FlatSegments,
                         testing::Values(TranslationMode::Off,
                                         TranslationMode::On,
                                         TranslationMode::Stress));

}  // namespace
}  // namespace vmm::x86::soft::test
