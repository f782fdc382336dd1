// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <random>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "x86/cpu_state.hpp"
#include "x86/soft/decoder.hpp"
#include "x86/soft/insn.hpp"

namespace vmm::x86::soft {
namespace {

using Bytes = std::vector<std::uint8_t>;
constexpr std::uint8_t none = Insn::no_register;

DecodeStatus run(const Bytes& bytes, CodeSize size, Insn& insn)
{
    return decode(std::as_bytes(std::span{bytes}), size, insn);
}

Insn good(const Bytes& bytes, CodeSize size)
{
    Insn insn;
    EXPECT_EQ(run(bytes, size, insn), DecodeStatus::Ok);
    EXPECT_EQ(insn.length, bytes.size());
    return insn;
}

TEST(Decode, OperandAndAddressSizesByMode)
{
    struct Case {
        Bytes bytes;
        CodeSize size;
        unsigned operand;
        unsigned address;
    };
    const std::vector<Case> cases{
        {{0x01, 0x00}, CodeSize::Bits16, 2, 2},
        {{0x66, 0x01, 0x00}, CodeSize::Bits16, 4, 2},
        {{0x67, 0x01, 0x00}, CodeSize::Bits16, 2, 4},
        {{0x01, 0x00}, CodeSize::Bits32, 4, 4},
        {{0x66, 0x67, 0x01, 0x00}, CodeSize::Bits32, 2, 2},
        {{0x01, 0x00}, CodeSize::Bits64, 4, 8},
        {{0x48, 0x01, 0x00}, CodeSize::Bits64, 8, 8},
        {{0x66, 0x48, 0x01, 0x00}, CodeSize::Bits64, 8, 8},
        {{0x67, 0x01, 0x00}, CodeSize::Bits64, 4, 4},
        {{0x50}, CodeSize::Bits64, 8, 8},                                // push
        {{0x66, 0x50}, CodeSize::Bits64, 2, 8},                          // push
        {{0xc3}, CodeSize::Bits64, 8, 8},                                // ret
        {{0x66, 0xe9, 0x00, 0x00, 0x00, 0x00}, CodeSize::Bits64, 8, 8},  // 66 is ignored
        {{0x66, 0xe9, 0x00, 0x00}, CodeSize::Bits32, 2, 4},
        {{0xff, 0xd0}, CodeSize::Bits64, 8, 8},
        {{0xff, 0x18}, CodeSize::Bits64, 4, 8},  // far call
    };
    for (const Case& each : cases) {
        const Insn insn = good(each.bytes, each.size);
        EXPECT_EQ(insn.operand_size, each.operand);
        EXPECT_EQ(insn.address_size, each.address);
    }
}

TEST(Decode, EffectiveAddresses)
{
    struct Case {
        Bytes bytes;
        CodeSize size;
        unsigned base;
        unsigned index;
        unsigned scale;
        std::int64_t displacement;
        unsigned segment;
    };
    const std::vector<Case> cases{
        {{0x8b, 0x00}, CodeSize::Bits16, Rbx, Rsi, 0, 0, Ds},
        {{0x8b, 0x42, 0x80}, CodeSize::Bits16, Rbp, Rsi, 0, -128, Ss},
        {{0x8b, 0x06, 0x34, 0x12}, CodeSize::Bits16, none, none, 0, 0x1234, Ds},
        {{0x8b, 0x46, 0x10}, CodeSize::Bits16, Rbp, none, 0, 0x10, Ss},
        {{0x26, 0x8b, 0x46, 0x10}, CodeSize::Bits16, Rbp, none, 0, 0x10, Es},
        {{0x8b, 0x05, 1, 0, 0, 0x80}, CodeSize::Bits32, none, none, 0, -0x7fff'ffff, Ds},
        {{0x8b, 0x04, 0x24}, CodeSize::Bits32, Rsp, none, 0, 0, Ss},
        {{0x8b, 0x44, 0x8d, 0x04}, CodeSize::Bits32, Rbp, Rcx, 2, 4, Ss},
        {{0x8b, 0x04, 0x8d, 4, 0, 0, 0}, CodeSize::Bits32, none, Rcx, 2, 4, Ds},
        {{0x8b, 0x05, 4, 0, 0, 0}, CodeSize::Bits64, Insn::rip, none, 0, 4, Ds},
        {{0x43, 0x8b, 0x04, 0xa5, 8, 0, 0, 0}, CodeSize::Bits64, none, R12, 2, 8, Ds},
        {{0x41, 0x8b, 0x04, 0x24}, CodeSize::Bits64, R12, none, 0, 0, Ds},
        {{0x64, 0x8b, 0x04, 0x24}, CodeSize::Bits64, Rsp, none, 0, 0, Fs},
        {{0x2e, 0x8b, 0x00}, CodeSize::Bits64, Rax, none, 0, 0, Ds},  // CS is ignored
        {{0x65, 0x2e, 0x8b, 0x00}, CodeSize::Bits64, Rax, none, 0, 0, Gs},
        {{0x48, 0xa1, 8, 7, 6, 5, 4, 3, 2, 1},
         CodeSize::Bits64,
         none,
         none,
         0,
         0x0102'0304'0506'0708,
         Ds},
        {{0x67, 0xa1, 0xf0, 0xff, 0xff, 0xff}, CodeSize::Bits64, none, none, 0, 0xffff'fff0, Ds},
    };
    for (const Case& each : cases) {
        const Insn insn = good(each.bytes, each.size);
        EXPECT_TRUE(insn.has_memory);
        EXPECT_EQ(insn.base, each.base) << unsigned{each.bytes[1]};
        EXPECT_EQ(insn.index, each.index) << unsigned{each.bytes[1]};
        EXPECT_EQ(insn.scale, each.scale);
        EXPECT_EQ(insn.displacement, each.displacement);
        EXPECT_EQ(insn.segment, each.segment);
    }
}

TEST(Decode, ImmediatesAreExtendedAsTheInstructionDoes)
{
    EXPECT_EQ(good({0x48, 0x81, 0xc0, 0xff, 0xff, 0xff, 0xff}, CodeSize::Bits64).immediate,
              ~std::uint64_t{0});
    EXPECT_EQ(good({0x83, 0xc0, 0x80}, CodeSize::Bits32).immediate,
              static_cast<std::uint64_t>(-128));
    EXPECT_EQ(good({0x6a, 0xfe}, CodeSize::Bits64).immediate, static_cast<std::uint64_t>(-2));
    EXPECT_EQ(good({0x48, 0xb8, 8, 7, 6, 5, 4, 3, 2, 0x81}, CodeSize::Bits64).immediate,
              0x8102'0304'0506'0708U);
    EXPECT_EQ(good({0xe8, 0xfb, 0xff, 0xff, 0xff}, CodeSize::Bits64).immediate,
              static_cast<std::uint64_t>(-5));
    EXPECT_EQ(good({0x74, 0xfe}, CodeSize::Bits16).immediate, static_cast<std::uint64_t>(-2));
    EXPECT_EQ(good({0xc2, 0xfe, 0xff}, CodeSize::Bits64).immediate & 0xffffU, 0xfffeU);
    const Insn far = good({0xea, 0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a}, CodeSize::Bits32);
    EXPECT_EQ(far.immediate, 0x1234'5678U);
    EXPECT_EQ(far.immediate2, 0x9abc);
    const Insn enter = good({0xc8, 0x34, 0x12, 0x05}, CodeSize::Bits64);
    EXPECT_EQ(enter.immediate & 0xffffU, 0x1234U);
    EXPECT_EQ(enter.immediate2, 5);
}

TEST(Decode, RegistersWithTheirExtensions)
{
    const Insn insn = good({0x4d, 0x89, 0xf8}, CodeSize::Bits64);  // mov r8, r15
    EXPECT_EQ(insn.reg, 15);
    EXPECT_EQ(insn.rm, 8);
    EXPECT_EQ(insn.group, 7);
    EXPECT_EQ(good({0x41, 0x5f}, CodeSize::Bits64).rm, 15);
    // A REX prefix that is not right before the opcode does not count.
    const Insn stale = good({0x48, 0x66, 0x01, 0xc0}, CodeSize::Bits64);
    EXPECT_FALSE(stale.rex_w);
    EXPECT_EQ(stale.operand_size, 2);
}

/// SDM Vol. 2B "MOV — Move to/from Control Registers": the two bits are ignored.
TEST(Decode, ControlRegistersMoveFromAndToRegistersWhateverModSays)
{
    for (const std::uint8_t opcode : Bytes{0x20, 0x21, 0x22, 0x23}) {
        for (const std::uint8_t modrm : Bytes{0x04, 0x44, 0x84, 0xc4}) {
            const Insn insn = good({0x41, 0x0f, opcode, modrm}, CodeSize::Bits64);
            EXPECT_EQ(insn.rm, 12);
            EXPECT_FALSE(insn.has_memory);
        }
    }
}

TEST(Decode, VexFields)
{
    // vpaddd ymm9, ymm10, [r11]
    const Insn insn = good({0xc4, 0x41, 0x2d, 0xfe, 0x0b}, CodeSize::Bits64);
    EXPECT_TRUE(insn.vex);
    EXPECT_EQ(insn.map, OpcodeMap::Map0F);
    EXPECT_EQ(insn.vex_l, 1);
    EXPECT_EQ(insn.pp, 1);
    EXPECT_EQ(insn.vvvv, 10);
    EXPECT_EQ(insn.reg, 9);
    EXPECT_EQ(insn.base, R11);
    EXPECT_EQ(insn.memory_size, 32);
    EXPECT_EQ(insn.isa, Isa::Avx2);
    EXPECT_FALSE(insn.requires_alignment);
    // vmovaps [rax], ymm0
    const Insn aligned = good({0xc5, 0xfc, 0x29, 0x00}, CodeSize::Bits64);
    EXPECT_TRUE(aligned.requires_alignment);
    EXPECT_TRUE(aligned.memory_write);
    EXPECT_FALSE(aligned.memory_read);
}

TEST(Decode, AlignmentOfLegacySse)
{
    EXPECT_TRUE(good({0x0f, 0x58, 0x00}, CodeSize::Bits64).requires_alignment);         // addps
    EXPECT_TRUE(good({0x66, 0x0f, 0x6f, 0x00}, CodeSize::Bits64).requires_alignment);   // movdqa
    EXPECT_FALSE(good({0xf3, 0x0f, 0x6f, 0x00}, CodeSize::Bits64).requires_alignment);  // movdqu
    EXPECT_FALSE(good({0x0f, 0x10, 0x00}, CodeSize::Bits64).requires_alignment);        // movups
    EXPECT_FALSE(good({0xf3, 0x0f, 0x58, 0x00}, CodeSize::Bits64).requires_alignment);  // addss
    EXPECT_FALSE(good({0x66, 0x0f, 0x3a, 0x63, 0x00, 0x00}, CodeSize::Bits64).requires_alignment);
    EXPECT_TRUE(good({0x66, 0x0f, 0x38, 0x00, 0x00}, CodeSize::Bits64).requires_alignment);
    EXPECT_FALSE(good({0x0f, 0xae, 0x00}, CodeSize::Bits64).requires_alignment);  // fxsave
}

TEST(Decode, MemoryUse)
{
    const Insn add = good({0x01, 0x00}, CodeSize::Bits32);
    EXPECT_TRUE(add.memory_read && add.memory_write);
    EXPECT_EQ(add.memory_size, 4);
    const Insn lea = good({0x8d, 0x00}, CodeSize::Bits32);
    EXPECT_TRUE(lea.has_memory);
    EXPECT_EQ(lea.memory_size, 0);
    const Insn push = good({0xff, 0x30}, CodeSize::Bits64);
    EXPECT_EQ(push.memory_size, 8);
    EXPECT_TRUE(push.memory_read);
    EXPECT_FALSE(push.memory_write);
    EXPECT_EQ(good({0xd9, 0x28}, CodeSize::Bits64).memory_size, 2);  // fldcw
    EXPECT_EQ(good({0xdb, 0x28}, CodeSize::Bits64).memory_size, 10);
}

TEST(Decode, ExtensionsWeDoNotModelExistForNobody)
{
    Insn insn;
    const std::vector<Bytes> cases{
        {0x0f, 0x0f, 0xc1, 0x9e},              // 3DNow!
        {0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0},  // EVEX
        {0x8f, 0xe8, 0x78, 0xa2, 0xc0, 0x10},  // XOP
        {0x0f, 0x01, 0xd5},                    // XEND
        {0xc7, 0xf8, 0, 0, 0, 0},              // XBEGIN
        {0x0f, 0x01, 0xd8},                    // VMRUN
        {0x0f, 0x01, 0xc2},                    // VMLAUNCH
    };
    for (const Bytes& bytes : cases) {
        const DecodeStatus status = run(bytes, CodeSize::Bits64, insn);
        EXPECT_TRUE(status == DecodeStatus::Invalid || insn.isa == Isa::None) << unsigned{bytes[1]};
    }
}

TEST(Decode, HintsAreNops)
{
    for (const Bytes& bytes : {Bytes{0xf3, 0x0f, 0x1e, 0xfa},                     // endbr64
                               Bytes{0x0f, 0x1f, 0x00}, Bytes{0x0f, 0x18, 0x08},  // prefetcht0
                               Bytes{0x0f, 0x0d, 0x08},                           // prefetchw
                               Bytes{0xf3, 0x0f, 0x1e, 0xc8},                     // rdsspd
                               Bytes{0x66, 0x0f, 0x1b, 0xc1},                     // bndmov
                               Bytes{0x0f, 0x1c, 0x00}}) {                        // cldemote
        const Insn insn = good(bytes, CodeSize::Bits64);
        EXPECT_EQ(insn.isa, Isa::Base);
        EXPECT_EQ(insn.memory_size, 0);
    }
}

TEST(Decode, Legality)
{
    Insn insn;
    EXPECT_EQ(run({0xf0, 0x01, 0xc0}, CodeSize::Bits64, insn), DecodeStatus::Invalid);
    EXPECT_EQ(run({0xf0, 0x01, 0x00}, CodeSize::Bits64, insn), DecodeStatus::Ok);
    EXPECT_TRUE(insn.lock);
    EXPECT_EQ(run({0xf0, 0x39, 0x00}, CodeSize::Bits64, insn), DecodeStatus::Invalid);  // cmp
    EXPECT_EQ(run({0x82, 0xc0, 0x01}, CodeSize::Bits32, insn), DecodeStatus::Ok);
    EXPECT_EQ(run({0x82, 0xc0, 0x01}, CodeSize::Bits64, insn), DecodeStatus::Invalid);
    EXPECT_EQ(run({0x06}, CodeSize::Bits64, insn), DecodeStatus::Invalid);
    EXPECT_EQ(run({0x8e, 0xc8}, CodeSize::Bits64, insn), DecodeStatus::Invalid);  // mov cs
    EXPECT_EQ(run(Bytes{0x48, 0xb8, 1}, CodeSize::Bits64, insn), DecodeStatus::Truncated);
    EXPECT_EQ(run(Bytes{}, CodeSize::Bits64, insn), DecodeStatus::Truncated);
    Bytes fifteen(14, 0x66);
    fifteen.push_back(0x90);
    EXPECT_EQ(run(fifteen, CodeSize::Bits64, insn), DecodeStatus::Ok);
    Bytes sixteen(15, 0x66);
    sixteen.push_back(0x90);
    EXPECT_EQ(run(sixteen, CodeSize::Bits64, insn), DecodeStatus::TooLong);
    EXPECT_EQ(run(Bytes(15, 0x66), CodeSize::Bits64, insn), DecodeStatus::TooLong);
    EXPECT_EQ(run(Bytes(14, 0x66), CodeSize::Bits64, insn), DecodeStatus::Truncated);
}

TEST(Decode, PrefixesAsTheyAre)
{
    const Insn movs = good({0xf3, 0xa4}, CodeSize::Bits64);
    EXPECT_TRUE(movs.rep);
    EXPECT_FALSE(movs.repne);
    EXPECT_EQ(good({0x65, 0xf2, 0xae}, CodeSize::Bits64).segment, Gs);
    const Insn last = good({0xf3, 0xf2, 0x0f, 0x58, 0xc1}, CodeSize::Bits64);  // addsd
    EXPECT_EQ(last.pp, 3);
    EXPECT_EQ(last.isa, Isa::Sse2);
    EXPECT_EQ(good({0x66, 0x0f, 0x58, 0xc1}, CodeSize::Bits64).pp, 1);
}

/// The host's CPU says so: nothing is fetched behind it, and it is never too long.
TEST(Decode, ThreeDNowIsUndefinedAsSoonAsItsOpcodeIsSeen)
{
    Insn insn;
    for (const CodeSize size : {CodeSize::Bits32, CodeSize::Bits64}) {
        EXPECT_EQ(run({0x0f, 0x0f}, size, insn), DecodeStatus::Invalid);
        EXPECT_EQ(run({0x66, 0x0f, 0x0f, 0xb5}, size, insn), DecodeStatus::Invalid);
        EXPECT_EQ(run({0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x66, 0xf3, 0x0f, 0x0f,
                       0x46, 0x90},
                      size, insn),
                  DecodeStatus::Invalid);
    }
}

bool operator==(const Insn& a, const Insn& b)
{
    const auto parts = [](const Insn& insn) {
        return std::tuple{
            std::tie(insn.bytes, insn.length, insn.map, insn.opcode, insn.has_modrm, insn.modrm,
                     insn.mod, insn.reg, insn.rm, insn.group, insn.lock, insn.rep, insn.repne),
            std::tie(insn.operand_size_override, insn.has_rex, insn.rex_w, insn.vex, insn.vex_l,
                     insn.vvvv, insn.pp, insn.operand_size, insn.address_size, insn.segment),
            std::tie(insn.base, insn.index, insn.scale, insn.has_memory, insn.memory_size,
                     insn.memory_read, insn.memory_write, insn.requires_alignment,
                     insn.displacement, insn.immediate, insn.immediate2, insn.isa)};
    };
    return parts(a) == parts(b);
}

/// Most are legal: prefixes now and then, and opcodes of all maps.
Bytes draw(std::mt19937_64& random)
{
    constexpr std::array<std::uint8_t, 11> prefixes{0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e,
                                                    0x64, 0x40, 0x48, 0x41, 0x4f};
    Bytes bytes;
    while (random() % 3 == 0) {
        bytes.push_back(prefixes[random() % prefixes.size()]);
    }
    switch (random() % 8) {
    case 0: bytes.push_back(0x0f); break;
    case 1: bytes.insert(bytes.end(), {0x0f, 0x38}); break;
    case 2: bytes.insert(bytes.end(), {0x0f, 0x3a}); break;
    case 3: bytes.push_back(0xc5); break;
    case 4:
        bytes.insert(bytes.end(), {0xc4, static_cast<std::uint8_t>(0xe1 + random() % 3)});
        break;
    default: break;
    }
    while (bytes.size() < 18) {
        bytes.push_back(static_cast<std::uint8_t>(random()));
    }
    bytes.resize(random() % 4 == 0 ? random() % 19 : 18);
    return bytes;
}

TEST(Decode, WhatIsRememberedIsWhatItWouldBeAnew)
{
    Decoder decoder;
    std::mt19937_64 random{1};
    std::size_t legal = 0;
    for (int i = 0; i < 100'000; ++i) {
        Bytes bytes = draw(random);
        const auto size = CodeSize{static_cast<std::uint8_t>(random() % 3)};
        // The same again with another tail is what a memory answers.
        for (int again = 0; again < 3; ++again) {
            Insn known;
            Insn anew;
            const DecodeStatus status =
                decoder.decode(std::as_bytes(std::span{bytes}), size, known);
            ASSERT_EQ(status, run(bytes, size, anew)) << ::testing::PrintToString(bytes);
            if (status == DecodeStatus::Ok) {
                ASSERT_TRUE(known == anew) << ::testing::PrintToString(bytes);
                legal += again == 2 ? 1U : 0U;
            }
            for (std::size_t at = 4; at < bytes.size(); ++at) {
                bytes[at] = static_cast<std::uint8_t>(random());
            }
        }
    }
    EXPECT_GT(legal, 25'000U);
}

}  // namespace
}  // namespace vmm::x86::soft
