// SPDX-License-Identifier: Apache-2.0

#include <cstdint>
#include <initializer_list>
#include <vector>

#include <gtest/gtest.h>

#include "x86/shim/raw/instruction_end.hpp"

namespace vmm::shim::raw {
namespace {

using Code = std::vector<std::uint8_t>;

constexpr std::size_t mov_size = 5;

/// `mov %rdi, %rax; mov %rax, %rdi`, as often as it takes, and what is to be behind it.
Code behind_moves(std::size_t times, std::initializer_list<std::uint8_t> last)
{
    Code code;
    for (std::size_t i = 0; i < times; ++i) {
        code.insert(code.end(), {0x48, 0x89, 0xf8, 0x48, 0x89, 0xc7});
    }
    code.insert(code.end(), last);
    return code;
}

TEST(InstructionEnd, AMovBehindOtherInstructionsIsOne)
{
    EXPECT_TRUE(ends_with_instruction(behind_moves(8, {0xb8, 0x10, 0, 0, 0}), mov_size));
}

TEST(InstructionEnd, GlibcsAndMuslsIoctlHaveOne)
{
    // From `sub $0x58, %rsp` to `mov $0x10, %eax`; musl's has two movslq more.
    const Code tail{0x48, 0x89, 0x54, 0x24, 0x30, 0x64, 0x48, 0x8b, 0x04, 0x25, 0x28,
                    0x00, 0x00, 0x00, 0x48, 0x89, 0x44, 0x24, 0x18, 0x31, 0xc0, 0x48,
                    0x8d, 0x44, 0x24, 0x60, 0xc7, 0x04, 0x24, 0x10, 0x00, 0x00, 0x00,
                    0x48, 0x89, 0x44, 0x24, 0x08, 0x48, 0x8d, 0x44, 0x24, 0x20, 0x48,
                    0x89, 0x44, 0x24, 0x10, 0xb8, 0x10, 0x00, 0x00, 0x00};
    for (const Code& head : {Code{0x48, 0x83, 0xec, 0x58},
                             Code{0x48, 0x83, 0xec, 0x58, 0x48, 0x63, 0xff, 0x48, 0x63, 0xf6}}) {
        Code code = behind_moves(2, {0xc3, 0x66, 0x90});
        code.insert(code.end(), head.begin(), head.end());
        code.insert(code.end(), tail.begin(), tail.end());
        EXPECT_TRUE(ends_with_instruction(code, mov_size));
    }
}

TEST(InstructionEnd, TheEndOfALongerInstructionIsNone)
{
    // mov $0x10, %r8d; movl $0x10, -0x48(%rbp); movl $0x10, (%rax, %rdi, 4); movabs
    for (const auto& last : {std::initializer_list<std::uint8_t>{0x41, 0xb8, 0x10, 0, 0, 0},
                             {0xc7, 0x45, 0xb8, 0x10, 0, 0, 0},
                             {0xc7, 0x04, 0xb8, 0x10, 0, 0, 0},
                             {0x48, 0xb9, 0, 0, 0, 0xb8, 0x10, 0, 0, 0},
                             {0x41, 0x8b, 0xb8, 0x10, 0, 0, 0}}) {
        EXPECT_FALSE(ends_with_instruction(behind_moves(8, last), mov_size));
    }
}

TEST(InstructionEnd, TooLittleBeforeItProvesNothing)
{
    EXPECT_FALSE(ends_with_instruction({}, mov_size));
    EXPECT_FALSE(ends_with_instruction(behind_moves(0, {0x10, 0, 0, 0}), mov_size));
    EXPECT_FALSE(ends_with_instruction(behind_moves(0, {0xb8, 0x10, 0, 0, 0}), mov_size));
    EXPECT_FALSE(ends_with_instruction(behind_moves(4, {0xb8, 0x10, 0, 0, 0}), mov_size));
    EXPECT_TRUE(ends_with_instruction(behind_moves(5, {0xb8, 0x10, 0, 0, 0}), mov_size));
}

TEST(InstructionEnd, BytesThatAreNoInstructionLeadNowhereElse)
{
    Code code(64, 0x06);  // PUSH ES, which long mode does not have.
    code.insert(code.end(), {0xb8, 0x10, 0, 0, 0});
    EXPECT_TRUE(ends_with_instruction(code, mov_size));
    // But zeros are: add %al, (%rax), and at last add %bh, 0x10(%rax).
    code.assign(64, 0);
    code.insert(code.end(), {0xb8, 0x10, 0, 0, 0});
    EXPECT_FALSE(ends_with_instruction(code, mov_size));
}

}  // namespace
}  // namespace vmm::shim::raw
