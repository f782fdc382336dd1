// SPDX-License-Identifier: Apache-2.0

/// @file
/// Random bytes on random states: whatever comes out, the process goes on and the host's own FPU
/// state is left as it was.  Only what is on the list is executed natively.

#include <gtest/gtest.h>

#include "soft/native_fixture.hpp"
#include "vmm/x86/control_registers.hpp"

namespace vmm::x86::soft::test {
namespace {

std::uint8_t byte_of(std::uint64_t value)
{
    return static_cast<std::uint8_t>(value);
}

/// Bytes that have a chance of being a native instruction.
Bytes random_bytes(Random& random)
{
    constexpr std::array<std::uint8_t, 8> prefixes{0x66, 0xf2, 0xf3, 0x67, 0x64, 0x48, 0x41, 0x4f};
    Bytes code;
    const std::uint64_t kind = random() % 5;
    if (kind == 0) {
        code = {byte_of(0xd8U + random() % 8)};
    } else if (kind == 1) {
        code = {0xc5, byte_of(random()), byte_of(random())};
    } else if (kind == 2) {
        code = {0xc4, byte_of((random() & 0xe0U) | (1 + random() % 3)), byte_of(random()),
                byte_of(random())};
    } else if (kind == 3) {
        code = {0x0f, byte_of(random() % 2 == 0 ? 0xaeU : 0xc7U)};
    } else {
        while (random() % 2 == 0) {
            code.push_back(prefixes[random() % prefixes.size()]);
        }
        code.push_back(0x0f);
        if (const std::uint64_t map = random() % 3; map != 0) {
            code.push_back(map == 1 ? 0x38 : 0x3a);
        }
        code.push_back(byte_of(random()));
    }
    for (unsigned i = 0; i < 8; ++i) {
        code.push_back(byte_of(random()));
    }
    return code;
}

/// RAM, a device, memory that leaves for the caller, and what is not canonical.
std::uint64_t random_address(Random& random)
{
    switch (random() % 6) {
    case 0: return random();
    case 1: return mmio_base + random() % 8192;
    case 2: return NativeMemory::size - random() % 600;
    case 3: return (random() % 15 + 1) * 4096 - random() % 64;
    default: return random() % NativeMemory::size & ~std::uint64_t{63};
    }
}

void randomise_all(Cpu& cpu, Random& random)
{
    randomise(cpu, random);
    randomise_x87(cpu, random);
    for (std::size_t number = 0; number < 16; ++number) {
        cpu.gpr[number] = random_address(random);
    }
    if (random() % 2 == 0) {
        cpu.fpu.mxcsr = static_cast<std::uint32_t>(random());
        for (std::size_t at = 0; at < 24; ++at) {
            cpu.fpu.x87[at] = static_cast<std::byte>(random());
        }
    }
    cpu.cr0 = mask_of(Cr0::PE, Cr0::NE, Cr0::ET);
    cpu.cr4 = mask_of(Cr4::OSFXSR, Cr4::OSXMMEXCPT, Cr4::OSXSAVE);
    cpu.xcr0 = 7;
    if (random() % 16 == 0) {
        cpu.cr0 ^= random() & 0xeU;
        cpu.cr4 ^= random() & 0x4'0600U;
        cpu.xcr0 = random() % 8 | 1U;
    }
    cpu.seg[Fs].base = random_address(random);
}

class Robustness : public testing::TestWithParam<CodeSize> {};

TEST_P(Robustness, RandomCodeOnRandomState)
{
    const CodeSize size = GetParam();
    NativeMachine machine;
    Cpu& cpu = machine.cpu;
    if (size == CodeSize::Bits32) {
        machine.set_32_bit();
    }
    Random random{31 + static_cast<unsigned>(size)};
    const std::uint32_t host = host_mxcsr();
    unsigned executed = 0;
    unsigned faults = 0;
    unsigned left = 0;
    for (unsigned i = 0; i < 150'000; ++i) {
        if (!machine.prepare(random_bytes(random), size)) {
            continue;
        }
        if (random() % 4 != 0) {
            fpu_release(cpu);
            randomise_all(cpu, random);
        }
        const Outcome outcome = machine.execute();
        ++executed;
        faults += outcome.fault ? 1U : 0U;
        left += outcome.left_for_mmio ? 1U : 0U;
        cpu.mmio.done.clear();
        cpu.mmio.waiting = false;
    }
    fpu_release(cpu);
    EXPECT_EQ(host_mxcsr(), host);
    volatile long double one = 1.0L;
    EXPECT_EQ(one + one, 2.0L);
    EXPECT_GT(executed, 40'000U);
    EXPECT_GT(faults, 1'000U);
    EXPECT_GT(left, 100U);
}

INSTANTIATE_TEST_SUITE_P(Modes,
                         Robustness,
                         testing::Values(CodeSize::Bits64, CodeSize::Bits32),
                         [](const auto& each) {
                             return each.param == CodeSize::Bits64 ? "Code64" : "Code32";
                         });

TEST(NativeSelect, RefusesWhatIsNotOnTheList)
{
    NativeMachine machine;
    for (const Bytes& code :
         std::vector<Bytes>{{0xc5, 0xf8, 0x92, 0xc8},              // KMOVW k1, eax
                            {0xc5, 0xf4, 0x41, 0xc2},              // KANDW
                            {0xc4, 0xe2, 0x71, 0x50, 0xc2},        // VPDPBUSD (AVX-VNNI)
                            {0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2},  // VADDPS zmm
                            {0x0f, 0x0f, 0xc1, 0x9e},              // PFADD (3DNow!)
                            {0xf2, 0x0f, 0x2b, 0x03},              // MOVNTSD (SSE4a)
                            {0x8f, 0xe8, 0x78, 0xc0, 0xc1, 0x01},  // VPROTB (XOP)
                            {0x0f, 0x20, 0xc0},                    // MOV eax, CR0
                            {0x0f, 0x01, 0xd0},                    // XGETBV
                            {0x90},                                // NOP
                            {0x01, 0xc8}}) {                       // ADD
        EXPECT_FALSE(machine.prepare(code)) << testing::PrintToString(code);
    }
}

TEST(NativeSelect, VexIsUndefinedOutsideProtectedMode)
{
    NativeMachine machine;
    Insn insn;
    const Bytes code{0xc5, 0xf4, 0x58, 0xc2};
    ASSERT_EQ(decode(std::as_bytes(std::span{code}), CodeSize::Bits16, insn), DecodeStatus::Ok);
    Op op;
    EXPECT_EQ(select_native(insn, {CodeSize::Bits16, false, false}, op), &undefined);
    EXPECT_EQ(select_native(insn, {CodeSize::Bits16, false, true}, op), &undefined);
    EXPECT_NE(select_native(insn, {CodeSize::Bits16, true, false}, op), &undefined);
}

}  // namespace
}  // namespace vmm::x86::soft::test
