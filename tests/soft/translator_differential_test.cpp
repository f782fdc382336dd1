// SPDX-License-Identifier: Apache-2.0

/// @file
/// Random code on the interpreter and on the translator: registers, flags and memory must be the
/// same at the end, whatever the end is.

#include <cstdlib>
#include <random>

#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "soft/guest_harness.hpp"
#include "x86/soft/cpu.hpp"
#include "x86/soft/translator.hpp"

namespace vmm::x86::soft::test {
namespace {

unsigned programs()
{
    const char* const asked = std::getenv("VMM_RANDOM_PROGRAMS");
    return asked == nullptr ? 1'500U : static_cast<unsigned>(std::strtoul(asked, nullptr, 10));
}

/// A program that ends with HLT after some rounds of a loop.
class Program {
public:
    explicit Program(std::mt19937_64& random) : random_(random) {}

    [[nodiscard]] const std::vector<std::uint8_t>& bytes() const { return bytes_; }

    void make()
    {
        bytes_.clear();
        // Round counter in memory: dec dword [Guest::data + 0x8000]; jz end
        add({0xff, 0x0c, 0x25});
        add_value(static_cast<std::uint32_t>(Guest::data + 0x8000), 4);
        add({0x0f, 0x84});
        const std::size_t patch = bytes_.size();
        add_value(0, 4);
        const unsigned count = 1 + pick(40);
        for (unsigned i = 0; i < count; ++i) {
            instruction();
        }
        add({0xe9});
        add_value(static_cast<std::uint32_t>(-static_cast<std::int64_t>(bytes_.size() + 4)), 4);
        const auto distance = static_cast<std::uint32_t>(bytes_.size() - (patch + 4));
        for (unsigned i = 0; i < 4; ++i) {
            bytes_[patch + i] = static_cast<std::uint8_t>(distance >> (8U * i));
        }
        add({0xf4});
    }

private:
    unsigned pick(unsigned below) { return static_cast<unsigned>(random_() % below); }
    void add(std::initializer_list<unsigned> bytes)
    {
        for (const unsigned byte : bytes) {
            bytes_.push_back(static_cast<std::uint8_t>(byte));
        }
    }
    void add_value(std::uint64_t value, unsigned size)
    {
        for (unsigned i = 0; i < size; ++i) {
            bytes_.push_back(static_cast<std::uint8_t>(value >> (8U * i)));
        }
    }

    /// ModRM with REX in front of `opcode`, the operand in memory or a register.
    void with_operand(std::initializer_list<unsigned> prefixes,
                      std::initializer_list<unsigned> opcode,
                      unsigned reg,
                      bool wide,
                      bool memory)
    {
        add(prefixes);
        unsigned rex = (wide ? 8U : 0U) | (reg >= 8 ? 4U : 0U);
        if (!memory) {
            const unsigned rm = pick(16);
            rex |= rm >= 8 ? 1U : 0U;
            if (rex != 0 || pick(4) == 0) {
                add({0x40U | rex});
            }
            add(opcode);
            add({0xc0U | ((reg & 7U) << 3U) | (rm & 7U)});
            return;
        }
        if (pick(6) == 0) {
            rip_relative(rex, opcode, reg);
            return;
        }
        // R13 holds the middle of the data, RBP an index.
        const bool indexed = pick(2) == 0;
        rex |= 1U;
        add({0x40U | rex});
        add(opcode);
        const bool large = pick(3) == 0;
        const unsigned mod = large ? 2U : 1U;
        add({(mod << 6U) | ((reg & 7U) << 3U) | (indexed ? 4U : 5U)});
        if (indexed) {
            add({(pick(4) << 6U) | (5U << 3U) | 5U});
        }
        if (large) {
            // Often near the end of a page, or where nothing is mapped.
            const std::uint32_t where = pick(8) == 0 ? 0x4000'0000U : 0xff0U + pick(32);
            add_value(where, 4);
        } else {
            add({pick(256)});
        }
    }
    void rip_relative(unsigned rex, std::initializer_list<unsigned> opcode, unsigned reg)
    {
        if (rex != 0) {
            add({0x40U | rex});
        }
        add(opcode);
        add({((reg & 7U) << 3U) | 5U});
        const std::uint64_t next = Guest::code + bytes_.size() + 4;
        add_value(Guest::data + 0x800 + pick(64) - next, 4);
    }

    void instruction()
    {
        const unsigned reg = pick(16);
        const bool wide = pick(2) == 0;
        const bool memory = pick(2) == 0;
        // What points to memory keeps its value: RSP, RBP, R13 are no destinations.
        const unsigned to = writable();
        switch (pick(27)) {
        case 0:
        case 1:
        case 2: with_operand({}, {(pick(8) << 3U) | 2U | pick(2)}, to, wide, memory); break;
        case 3: with_operand({}, {0x38U | pick(2)}, reg, wide, memory); break;
        case 4: with_operand({}, {(pick(8) << 3U) | pick(2)}, reg, wide, true); break;
        case 5: with_operand({}, {0x8aU | pick(2)}, to, wide, true); break;
        case 6: with_operand({}, {0x88U | pick(2)}, reg, wide, true); break;
        case 7: with_operand({0x66}, {(pick(8) << 3U) | 2U | pick(2)}, to, false, memory); break;
        case 8: with_operand({}, {0x0f, 0x40U | pick(16)}, to, wide, memory); break;
        case 9: with_operand({}, {0x0f, 0x90U | pick(16)}, 0, false, true); break;
        case 10:
            with_operand({}, {0x0f, (pick(2) << 3U) | 0xb6U | pick(2)}, to, wide, memory);
            break;
        case 11: with_operand({}, {0x0f, 0xaf}, to, wide, memory); break;
        case 12: with_operand({}, {0x8d}, to, wide, true); break;
        case 13:  // Shift of memory by an immediate, or by CL.
            if (pick(2) == 0) {
                with_operand({}, {0xc0U | pick(2)}, shift(), wide, true);
                add({pick(70)});
            } else {
                with_operand({}, {0xd2U | pick(2)}, shift(), wide, true);
            }
            break;
        case 14: {  // Jcc over one instruction.
            add({0x70U | pick(16), 0});
            const std::size_t from = bytes_.size();
            instruction();
            bytes_[from - 1] = static_cast<std::uint8_t>(bytes_.size() - from);
            break;
        }
        case 15:
            add({0x50U | (to & 7U)});
            add({0x58U | (low_writable())});
            break;
        case 16:
            add({0xe8});
            add_value(1, 4);
            add({0x90});
            add({0x48, 0x8d, 0x64, 0x24, 0x08});
            break;
        case 17:  // call over a ret: call +1; jmp +1; ret
            add({0xe8});
            add_value(2, 4);
            add({0xeb, 0x01, 0xc3});
            break;
        case 18: {  // SSE2 on memory or registers.
            static constexpr std::array<unsigned, 12> opcodes{0x54, 0x57, 0x58, 0x59, 0x5c, 0x5e,
                                                              0x6f, 0xef, 0xd4, 0xfe, 0x14, 0x62};
            with_operand({0x66}, {0x0f, opcodes[pick(opcodes.size())]}, reg, false, memory);
            break;
        }
        case 19: with_operand({0xf2}, {0x0f, 0x58U + pick(2)}, reg, false, memory); break;
        case 20: with_operand({0x66}, {0x0f, pick(2) == 0 ? 0x6eU : 0x7eU}, reg, wide, true); break;
        case 21:  // MUL, DIV, NEG, NOT; and flags that are defined again.
            with_operand({}, {0xf6U | pick(2)}, 2 + pick(6), wide, true);
            add({0x85, 0xc0});
            break;
        case 22: {
            static constexpr std::array<unsigned, 8> opcodes{0x98, 0x99, 0xf5, 0xf8,
                                                             0xf9, 0x90, 0x9f, 0x9e};
            if (wide) {
                add({0x48});
            }
            add({opcodes[pick(opcodes.size())]});
            break;
        }
        case 23: move_pointer(); break;
        case 24:  // Accesses to a frame, across a page's end now and then.
            add({0x48, 0x81, 0xec});
            add_value(pick(0x40) * 8U, 4);
            for (unsigned i = 0; i < 3; ++i) {
                add({0x48, 0x89U | (pick(2) << 1U), 0x44U | (to & 3U) << 3U, 0x24, pick(8) * 8U});
            }
            add({0x48, 0x8b, 0x44U, 0x24, pick(8) * 8U});
            restore_stack();
            break;
        case 25:  // push; push; a byte of the register; pop; pop
            add({0x50U | (to & 7U), 0x55, 0x80, 0x44, 0x24, pick(16), pick(256)});
            add({0x5d, 0x58U | low_writable(), 0xbd});
            add_value(pick(64), 4);
            break;
        default:
            with_operand({}, {0x80U | pick(2)}, pick(8), wide, true);
            // The immediate of 81 is wider.
            immediate_of_last();
            break;
        }
    }
    /// R13 moves by a constant, or is another for one instruction.
    void move_pointer()
    {
        switch (pick(4)) {
        case 0:  // add r13, 8; an access; lea r13, [r13 - 8]
            add({0x49, 0x83, 0xc5, 0x08});
            with_operand({}, {0x03}, writable(), true, true);
            add({0x4d, 0x8d, 0x6d, 0xf8});
            break;
        case 1:  // sub r13, -0xc00; an access; sub r13, 0xc00
            add({0x49, 0x81, 0xed, 0x00, 0xf4, 0xff, 0xff});
            with_operand({}, {0x89}, pick(16), true, true);
            add({0x49, 0x81, 0xed, 0x00, 0x0c, 0x00, 0x00});
            break;
        case 2:  // mov [r13], r13d; mov r13d, [r13]
            add({0x45, 0x89, 0x6d, 0x00, 0x45, 0x8b, 0x6d, 0x00});
            break;
        default:  // xor r13, 0x1000, which is another page; accesses; xor r13, 0x1000
            add({0x49, 0x81, 0xf5, 0x00, 0x10, 0x00, 0x00});
            with_operand({}, {0x03}, writable(), true, true);
            with_operand({}, {0x89}, pick(16), true, true);
            add({0x49, 0x81, 0xf5, 0x00, 0x10, 0x00, 0x00});
            break;
        }
    }
    /// lea rsp, [absolute]
    void restore_stack()
    {
        add({0x48, 0x8d, 0x24, 0x25});
        add_value(Guest::stack, 4);
    }
    void immediate_of_last()
    {
        // 80 /n ib or 81 /n id: found again by looking for it would be worse than four bytes that
        // are harmless either way: the first is the immediate, the others are NOPs.
        add({pick(256), 0x90, 0x90, 0x90});
    }
    unsigned shift()
    {
        static constexpr std::array<unsigned, 7> groups{0, 1, 2, 3, 4, 5, 7};
        return groups[pick(groups.size())];
    }
    unsigned writable()
    {
        static constexpr std::array<unsigned, 13> registers{0, 1,  2,  3,  6,  7, 8,
                                                            9, 10, 11, 12, 14, 15};
        return registers[pick(registers.size())];
    }
    unsigned low_writable()
    {
        static constexpr std::array<unsigned, 6> registers{0, 1, 2, 3, 6, 7};
        return registers[pick(registers.size())];
    }

    std::mt19937_64& random_;
    std::vector<std::uint8_t> bytes_;
};

constexpr std::uint64_t data_size = 0x5000;  ///< With all that is mapped elsewhere.

/// Of the page table for the first 2 MiB.
constexpr std::uint64_t page_entry(std::uint64_t linear)
{
    return Guest::tables + 0x3000 + (linear >> 12U) * 8;
}

void set_up(Guest& guest, const Program& program, std::uint64_t seed)
{
    std::mt19937_64 random{seed};
    CpuState& state = guest.state();
    reset_state(state, false);
    for (std::uint64_t at = 0; at < data_size; at += 8) {
        guest.put<std::uint64_t>(Guest::data + at, random() % 4 == 0 ? random() % 8 : random());
    }
    for (std::uint64_t at = Guest::stack; at < Guest::stack + 0x40; at += 8) {
        guest.put<std::uint64_t>(at, 0);
    }
    guest.put<std::uint32_t>(Guest::data + 0x8000, 6);
    guest.load(Guest::code, program.bytes());
    guest.long_mode();
    // No two pages that follow each other do so in memory.
    guest.put<std::uint64_t>(page_entry(Guest::data), (Guest::data + 0x3000) | 7U);
    guest.put<std::uint64_t>(page_entry(Guest::stack - 0x1000), (Guest::data + 0x4000) | 7U);
    guest.vcpu->state_changed();
    for (unsigned number = 0; number < 16; ++number) {
        if (number != Rsp) {
            state.gpr[number] = random() % 2 == 0 ? random() : random() % 16;
        }
    }
    state.gpr[R13] = Guest::data + 0x400;
    state.gpr[Rbp] = random() % 64;
    state.rflags = 2 | (random() & 0x8d5U);
    for (auto& ymm : state.fpu.ymm) {
        for (std::byte& byte : ymm) {
            byte = static_cast<std::byte>(random());
        }
    }
    state.fpu.mxcsr = 0x1f80;
    guest.vcpu->state_changed();
}

void expect_same(Guest& left, Guest& right, unsigned program)
{
    ASSERT_EQ(left.exit.reason, right.exit.reason) << program;
    ASSERT_EQ(left.state().rip, right.state().rip) << program;
    for (unsigned number = 0; number < 16; ++number) {
        ASSERT_EQ(left.state().gpr[number], right.state().gpr[number]) << program << " " << number;
    }
    ASSERT_EQ(left.state().rflags, right.state().rflags) << program;
    ASSERT_EQ(left.state().fpu.ymm, right.state().fpu.ymm) << program;
    ASSERT_EQ(left.state().fpu.mxcsr, right.state().fpu.mxcsr) << program;
    ASSERT_EQ(std::memcmp(left.ram.at(Guest::data), right.ram.at(Guest::data), data_size), 0)
        << program;
    ASSERT_EQ(std::memcmp(left.ram.at(Guest::stack), right.ram.at(Guest::stack), 0x40), 0)
        << program;
}

class TranslatorDifferential : public testing::TestWithParam<TranslationMode> {};

TEST_P(TranslatorDifferential, RandomPrograms)
{
    std::mt19937_64 random{GetParam() == TranslationMode::On ? 7U : 11U};
    Guest reference{std::size_t{2} << 20U, TranslationMode::Off};
    Guest translated{std::size_t{2} << 20U, GetParam()};
    Program program{random};
    const unsigned count = programs();
    for (unsigned number = 0; number < count; ++number) {
        program.make();
        const std::uint64_t seed = random();
        for (Guest* const guest : {&reference, &translated}) {
            set_up(*guest, program, seed);
            if (GetParam() == TranslationMode::On) {
                guest->put<std::uint32_t>(Guest::data + 0x8000, 60);
            }
            guest->run();
        }
        expect_same(reference, translated, number);
        if (HasFatalFailure()) {
            for (const std::uint8_t byte : program.bytes()) {
                std::printf("%02x ", byte);
            }
            std::printf("\n");
            return;
        }
    }
}

/// mov ecx, edi; loop: add rax, rcx; dec ecx; jnz loop; hlt
void load_sum(Guest& guest, std::uint64_t at)
{
    guest.load(at, {0x31, 0xc0, 0x89, 0xf9, 0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9, 0xf4});
}

std::uint64_t run_sum(Guest& guest, std::uint64_t at, std::uint64_t count)
{
    guest.state().rip = at;
    guest.reg(Rdi) = count;
    return guest.run() == Reason::Halt ? guest.reg(Rax) : 0;
}

std::size_t translated_blocks(Guest& guest)
{
    const auto& cpu = static_cast<Cpu&>(guest.state());
    return cpu.translator == nullptr ? 0 : cpu.translator->size();
}

TEST(Translator, TranslatesWhatIsHot)
{
    for (const TranslationMode mode :
         {TranslationMode::Off, TranslationMode::On, TranslationMode::Stress}) {
        Guest guest{std::size_t{2} << 20U, mode};
        guest.long_mode();
        load_sum(guest, Guest::code);
        EXPECT_EQ(run_sum(guest, Guest::code, 1000), 500'500U);
        EXPECT_EQ(translated_blocks(guest) != 0, mode != TranslationMode::Off);
    }
}

/// A block that ends with bytes that are no instruction, everything before them in the TLB.
TEST(Translator, WhatIsNoInstructionEndsABlock)
{
    for (const TranslationMode mode :
         {TranslationMode::Off, TranslationMode::On, TranslationMode::Stress}) {
        Guest guest{std::size_t{2} << 20U, mode};
        guest.long_mode();
        guest.load(Guest::code, {0xff, 0x06, 0x06});  // incl (%rsi); none in 64-bit code
        constexpr std::uint32_t runs = 200;
        for (std::uint32_t run = 0; run < runs; ++run) {
            guest.state().rip = Guest::code;
            guest.reg(Rsi) = Guest::data;
            guest.reg(Rsp) = Guest::stack;
            ASSERT_EQ(guest.run(), Reason::Halt);
            ASSERT_EQ(guest.halted_by_vector(), 6);
            ASSERT_EQ(guest.get<std::uint32_t>(Guest::data), run + 1);
        }
    }
}

TEST(Translator, APauseThatYieldsKeepsTheFlags)
{
    Guest guest{std::size_t{2} << 20U, TranslationMode::On};
    guest.long_mode();
    // mov $1000, %ecx; 1: stc; pause; jnc 2f; dec %ecx; jnz 1b; 2: hlt
    guest.load(Guest::code,
               {0xb9, 0xe8, 0x03, 0, 0, 0xf9, 0xf3, 0x90, 0x73, 4, 0xff, 0xc9, 0x75, 0xf7, 0xf4});
    EXPECT_EQ(guest.run(), Reason::Halt);
    EXPECT_EQ(guest.reg(Rcx), 0U);
}

TEST(Translator, TranslationsGoWithTheirBlocks)
{
    Guest guest{std::size_t{2} << 20U, TranslationMode::On};
    guest.long_mode();
    load_sum(guest, Guest::code);
    EXPECT_EQ(run_sum(guest, Guest::code, 1000), 500'500U);
    ASSERT_NE(translated_blocks(guest), 0U);
    guest.load(Guest::code + 4, {0x48, 0x29, 0xc8});  // sub rax, rcx
    guest.vm->memory_written(Gpa{Guest::code}, 16);
    EXPECT_EQ(run_sum(guest, Guest::code, 1000), std::uint64_t{0} - 500'500U);
}

/// A child process must not write to the code of its parent.
TEST(Translator, AChildProcessHasItsOwn)
{
    Guest guest{std::size_t{2} << 20U, TranslationMode::On};
    guest.long_mode();
    load_sum(guest, Guest::code);
    EXPECT_EQ(run_sum(guest, Guest::code, 1000), 500'500U);
    const ::pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        // Other code, over and over, where the parent's would be overwritten.
        bool right = true;
        for (std::uint64_t i = 0; i < 50; ++i) {
            const std::uint64_t at = Guest::code + 0x100 * i;
            load_sum(guest, at);
            guest.load(at + 4, {0x48, 0x29, 0xc8});
            guest.vm->memory_written(Gpa{at}, 16);
            right = right && run_sum(guest, at, 1000) == std::uint64_t{0} - 500'500U;
        }
        ::_exit(right ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(run_sum(guest, Guest::code, 1000), 500'500U);
}

INSTANTIATE_TEST_SUITE_P(Modes,
                         TranslatorDifferential,
                         testing::Values(TranslationMode::On, TranslationMode::Stress));

}  // namespace
}  // namespace vmm::x86::soft::test
