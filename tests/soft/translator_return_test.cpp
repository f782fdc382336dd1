// SPDX-License-Identifier: Apache-2.0

/// @file
/// Calls and returns that do not match, as the translator must not care: what it notes of a CALL is
/// a guess.

#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"

namespace vmm::x86::soft::test {
namespace {

struct Code {
    const char* name;
    std::vector<std::uint8_t> bytes;  ///< Rounds in EDI; the result in EAX.
    std::uint32_t result;             ///< Of a round.
};

constexpr std::uint32_t rounds = 500;

class TranslatorReturn : public testing::TestWithParam<Code> {};

TEST_P(TranslatorReturn, GoesWhereTheStackSays)
{
    for (const TranslationMode mode :
         {TranslationMode::Off, TranslationMode::On, TranslationMode::Stress}) {
        Guest guest{std::size_t{2} << 20U, mode};
        guest.long_mode();
        guest.load(1, {0xff, 0xc0, 0xc3});  // inc %eax; ret
        guest.load(Guest::code, GetParam().bytes);
        guest.reg(Rdi) = rounds;
        guest.reg(Rsp) = Guest::stack;
        ASSERT_EQ(guest.run(), Reason::Halt);
        EXPECT_EQ(guest.reg(Rax), std::uint64_t{rounds} * GetParam().result);
        EXPECT_EQ(guest.reg(Rdi), 0U);
    }
}

INSTANTIATE_TEST_SUITE_P(
    Codes,
    TranslatorReturn,
    testing::Values(
        // xor %eax, %eax; 1: mov $100, %ecx; call f; dec %edi; jnz 1b; hlt
        // f: dec %ecx; jz 2f; call f; 2: inc %eax; ret
        Code{"Recursion",
             {0x31, 0xc0, 0xb9, 0x64, 0x00, 0x00, 0x00, 0xe8, 0x05, 0x00,
              0x00, 0x00, 0xff, 0xcf, 0x75, 0xf2, 0xf4, 0xff, 0xc9, 0x74,
              0x05, 0xe8, 0xf7, 0xff, 0xff, 0xff, 0xff, 0xc0, 0xc3},
             100},
        // The return thunk of Linux on AMD CPUs, "safe RET".
        // xor %eax, %eax; 1: call g; inc %eax; call g; add $2, %eax; dec %edi; jnz 1b; hlt
        // g: add $16, %eax; jmp thunk; thunk: call safe; ud2; nop; safe: lea 8(%rsp), %rsp; ret
        Code{"ReturnThunk",
             {0x31, 0xc0, 0xe8, 0x0f, 0x00, 0x00, 0x00, 0xff, 0xc0, 0xe8, 0x08, 0x00, 0x00, 0x00,
              0x83, 0xc0, 0x02, 0xff, 0xcf, 0x75, 0xed, 0xf4, 0x83, 0xc0, 0x10, 0xeb, 0x00, 0xe8,
              0x03, 0x00, 0x00, 0x00, 0x0f, 0x0b, 0x90, 0x48, 0x8d, 0x64, 0x24, 0x08, 0xc3},
             35},
        // xor %eax, %eax; lea h, %rdx; 1: call thunk; inc %eax; dec %edi; jnz 1b; hlt
        // thunk: call 2f; 3: pause; jmp 3b; 2: mov %rdx, (%rsp); ret; h: add $16, %eax; ret $0
        Code{"Retpoline",
             {0x31, 0xc0, 0x48, 0x8d, 0x15, 0x1a, 0x00, 0x00, 0x00, 0xe8, 0x07, 0x00, 0x00, 0x00,
              0xff, 0xc0, 0xff, 0xcf, 0x75, 0xf5, 0xf4, 0xe8, 0x04, 0x00, 0x00, 0x00, 0xf3, 0x90,
              0xeb, 0xfc, 0x48, 0x89, 0x14, 0x24, 0xc3, 0x83, 0xc0, 0x10, 0xc2, 0x00, 0x00},
             17},
        // xor %eax, %eax; lea -0x400(%rsp), %rsi; lea other, %rdx; mov %rdx, (%rsi)
        // 1: call switch; inc %eax; dec %edi; jnz 1b; hlt; switch: xchg %rsp, %rsi; ret
        // other: add $16, %eax; call switch; jmp other
        Code{"Coroutines",
             {0x31, 0xc0, 0x48, 0x8d, 0xb4, 0x24, 0x00, 0xfc, 0xff, 0xff, 0x48, 0x8d,
              0x15, 0x13, 0x00, 0x00, 0x00, 0x48, 0x89, 0x16, 0xe8, 0x07, 0x00, 0x00,
              0x00, 0xff, 0xc0, 0xff, 0xcf, 0x75, 0xf5, 0xf4, 0x48, 0x87, 0xe6, 0xc3,
              0x83, 0xc0, 0x10, 0xe8, 0xf4, 0xff, 0xff, 0xff, 0xeb, 0xf6},
             17},
        // To 1, which is what the note has that no call is behind.
        // xor %eax, %eax; 1: call i; dec %edi; jnz 1b; hlt; i: push $1; ret
        Code{"ToOne",
             {0x31, 0xc0, 0xe8, 0x05, 0x00, 0x00, 0x00, 0xff, 0xcf, 0x75, 0xf7, 0xf4, 0x6a, 0x01,
              0xc3},
             1},
        // The same without a call: xor %eax, %eax; 1: lea 2f, %rdx; push %rdx; push $1; ret
        // 2: dec %edi; jnz 1b; hlt
        Code{"ToOneWithoutACall",
             {0x31, 0xc0, 0x48, 0x8d, 0x15, 0x04, 0x00, 0x00, 0x00, 0x52, 0x6a, 0x01, 0xc3, 0xff,
              0xcf, 0x75, 0xf1, 0xf4},
             1},
        // Returns of which none is, 40 of them: xor %eax, %eax; 1: mov $40, %ecx; 2: call 3f
        // 3: add $8, %rsp; dec %ecx; jnz 2b; inc %eax; dec %edi; jnz 1b; hlt
        Code{"CallsWithoutReturn",
             {0x31, 0xc0, 0xb9, 0x28, 0x00, 0x00, 0x00, 0xe8, 0x00, 0x00, 0x00, 0x00, 0x48, 0x83,
              0xc4, 0x08, 0xff, 0xc9, 0x75, 0xf3, 0xff, 0xc0, 0xff, 0xcf, 0x75, 0xe8, 0xf4},
             1}),
    [](const auto& each) { return std::string{each.param.name}; });

}  // namespace
}  // namespace vmm::x86::soft::test
