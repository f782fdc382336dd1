// SPDX-License-Identifier: Apache-2.0

/// @file
/// Random encodings of all native instructions but x87, executed by the engine and, as the same
/// bytes, by the host CPU.

#include <iomanip>
#include <map>
#include <sstream>

#include <gtest/gtest.h>

#include "soft/native_fixture.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::uint64_t data_gpa = 0x4000;

std::string text_of(const Bytes& code)
{
    std::ostringstream text;
    for (const unsigned each : code) {
        text << std::hex << std::setw(2) << std::setfill('0') << each << ' ';
    }
    return text.str();
}

std::uint8_t byte_of(std::uint64_t value)
{
    return static_cast<std::uint8_t>(value);
}

/// A random encoding.  Memory operands are [rbx], [rbx + disp32], or [rbx + vector] for gathers.
Bytes random_encoding(Random& random, CodeSize size)
{
    constexpr std::array<std::uint8_t, 4> prefixes{0, 0x66, 0xf3, 0xf2};
    const bool is_64 = size == CodeSize::Bits64;
    Bytes code;
    const bool vex = random() % 2 == 0;
    const unsigned map = 1 + static_cast<unsigned>(random() % 3);
    auto opcode = byte_of(random());
    if (map == 1 && (opcode == 0x38 || opcode == 0x3a)) {
        opcode = 0x58;  // The escapes to the other maps.
    }
    bool gather = false;
    if (vex) {
        const unsigned extension = is_64 ? static_cast<unsigned>(random() & 1U) : 1U;
        code = {0xc4, byte_of((extension << 7U) | 0x60U | map),
                byte_of((random() & 0xfcU) | (is_64 ? 0U : 0x40U) |
                        (random() % 2 == 0 ? 1U : random() & 3U))};
        gather = map == 2 && opcode >= 0x90 && opcode <= 0x93;
        if (random() % 2 == 0) {
            code[2] |= 0x78U;  // vvvv unused.
        }
    } else {
        if (const std::uint8_t prefix = prefixes[random() % 4]; prefix != 0) {
            code.push_back(prefix);
        }
        if (is_64 && random() % 2 == 0) {
            code.push_back(byte_of(0x40U | (random() & 0xcU)));  // W, R.
        }
        code.push_back(0x0f);
        if (map == 2) {
            code.push_back(0x38);
        } else if (map == 3) {
            code.push_back(0x3a);
        }
    }
    code.push_back(opcode);
    const auto reg = static_cast<unsigned>(random() & 0x38U);
    if (gather) {
        code.push_back(byte_of(reg | 4U));
        code.push_back(byte_of((random() & 0xf8U) | 3U));
    } else if (random() % 2 == 0) {
        code.push_back(byte_of(0xc0U | reg | (random() & 7U)));
    } else if (random() % 2 == 0) {
        code.push_back(byte_of(reg | 3U));
    } else {
        code.push_back(byte_of(0x80U | reg | 3U));
        code.insert(code.end(), {0x40, 0, 0, 0});
    }
    code.push_back(byte_of(random()));
    return code;
}

/// Registers that carry addresses, and the stack pointer.
bool is_reserved(unsigned number)
{
    return number == Rsp || number == Rbx || number == Rdi;
}

/// Whether both sides can execute it: no reserved register, no state of the system.
bool is_comparable(const Insn& insn)
{
    if (insn.map == OpcodeMap::Primary ||
        (insn.map == OpcodeMap::Map0F && (insn.opcode == 0xae || insn.opcode == 0xc7))) {
        return false;
    }
    return !is_reserved(insn.reg) && !(insn.mod == 3 && is_reserved(insn.rm)) &&
           !is_reserved(insn.vvvv);
}

class Differential {
public:
    explicit Differential(std::uint64_t seed) : random_{seed} {}

    /// One instruction on random operands.
    void compare(const Bytes& code, CodeSize size)
    {
        Cpu& cpu = machine.cpu;
        const Insn& insn = machine.insn;
        randomise(cpu, random_);
        if (insn.isa == Isa::Mmx || random_() % 8 == 0) {
            randomise_x87(cpu, random_);
        }
        const std::uint64_t address = place(insn);
        fill_with_operands({machine.at(data_gpa - 128), 4096 + 256}, random_);
        host_ram = *machine.memory.ram;
        limit_indices(insn);
        cpu.gpr[Rbx] = address;
        cpu.gpr[Rdi] = address;
        HostContext expected = context_of(cpu);
        const auto host = reinterpret_cast<std::uint64_t>(host_ram.data());
        expected.gpr[Rbx] = address + host;
        expected.gpr[Rdi] = address + host;

        ASSERT_TRUE(machine.prepare(code, size));
        const Outcome outcome = machine.execute();
        fpu_release(cpu);
        const std::uint64_t operand = address + static_cast<std::uint64_t>(insn.displacement);
        if (insn.requires_alignment && operand % insn.memory_size != 0) {
            ASSERT_TRUE(outcome.fault) << text_of(code);
            EXPECT_EQ(outcome.fault->vector, Vector::GP) << text_of(code);
            EXPECT_EQ(outcome.fault->error_code, 0U);
            return;
        }
        ASSERT_FALSE(outcome.fault)
            << text_of(code) << " raised " << static_cast<unsigned>(outcome.fault->vector);
        run_on_host(code, expected);
        expected.gpr[Rbx] = address;
        expected.gpr[Rdi] = address;
        const std::string text = difference(cpu, expected);
        EXPECT_EQ(text, "") << text_of(code);
        EXPECT_EQ(std::memcmp(machine.memory.ram->data(), host_ram.data(), host_ram.size()), 0)
            << text_of(code) << "memory differs";
    }

    NativeMachine machine;

private:
    std::uint64_t place(const Insn& insn)
    {
        const std::uint64_t displacement = static_cast<std::uint64_t>(insn.displacement);
        switch (random_() % 4) {
        case 0: return data_gpa + random_() % 64;                          // Any alignment.
        case 1: return data_gpa + 0x1000 - displacement - random_() % 33;  // The end of a page.
        default: return data_gpa + (random_() % 8) * 64;
        }
    }

    /// Gathers must stay within memory.
    void limit_indices(const Insn& insn)
    {
        if (!insn.vex || insn.map != OpcodeMap::Map0F38 || insn.opcode < 0x90 ||
            insn.opcode > 0x93) {
            return;
        }
        const bool wide = (insn.opcode & 1U) != 0;
        for (auto& vector : machine.cpu.fpu.ymm) {
            for (std::size_t at = 0; at < 32; at += wide ? 8 : 4) {
                const auto value =
                    static_cast<std::uint64_t>(static_cast<std::int64_t>(random_() % 64) - 32);
                // The mask wants signs at random: only small positive or negative numbers do.
                std::memcpy(vector.data() + at, &value, wide ? 8 : 4);
            }
        }
    }

    NativeMemory::Ram host_ram;
    Random random_;
};

bool host_has_avx()
{
    return __builtin_cpu_supports("avx2") != 0;
}

TEST(NativeDifferential, RandomEncodings)
{
    if (!host_has_avx()) {
        GTEST_SKIP() << "the oracle needs AVX2";
    }
    Random random{1};
    Differential differential{2};
    std::map<std::pair<OpcodeMap, unsigned>, unsigned> seen;
    unsigned executed = 0;
    for (unsigned i = 0; i < 400'000; ++i) {
        Bytes code = random_encoding(random, CodeSize::Bits64);
        if (!differential.machine.prepare(code)) {
            continue;
        }
        const Insn& insn = differential.machine.insn;
        if (!is_comparable(insn) || differential.machine.insn.length > code.size()) {
            continue;
        }
        code.resize(insn.length);
        ++seen[{insn.map, insn.opcode}];
        ++executed;
        differential.compare(code, CodeSize::Bits64);
        if (testing::Test::HasFailure()) {
            return;
        }
    }
    EXPECT_GT(executed, 30'000U);
    EXPECT_GT(seen.size(), 270U);
}

TEST(NativeDifferential, RandomEncodingsIn32BitCode)
{
    if (!host_has_avx()) {
        GTEST_SKIP() << "the oracle needs AVX2";
    }
    // VEX.W must tell FMA's and AVX2's forms apart there as well.
    Random random{3};
    Differential differential{4};
    differential.machine.set_32_bit();
    unsigned executed = 0;
    for (unsigned i = 0; i < 200'000; ++i) {
        Bytes code = random_encoding(random, CodeSize::Bits32);
        if (code[0] != 0xc4 || !differential.machine.prepare(code, CodeSize::Bits32)) {
            continue;
        }
        const Insn& insn = differential.machine.insn;
        const bool general =
            insn.isa == Isa::Bmi1 || insn.isa == Isa::Bmi2 ||
            (insn.map == OpcodeMap::Map0F &&
             (insn.opcode == 0x2a || insn.opcode == 0x2c || insn.opcode == 0x2d ||
              insn.opcode == 0x6e || insn.opcode == 0x7e)) ||
            (insn.map == OpcodeMap::Map0F3A && (insn.opcode == 0x16 || insn.opcode == 0x22 ||
                                                (insn.opcode >= 0x60 && insn.opcode <= 0x63)));
        const bool changes_upper = insn.map == OpcodeMap::Map0F && insn.opcode == 0x77;
        // Elsewhere W selects 64-bit registers for the oracle, which runs in 64-bit code.
        if (!is_comparable(insn) || general || changes_upper || insn.vvvv >= 8) {
            continue;
        }
        code.resize(insn.length);
        if (insn.map == OpcodeMap::Map0F3A && insn.opcode >= 0x4a && insn.opcode <= 0x4c) {
            code.back() &= 0x7fU;
        }
        ++executed;
        differential.compare(code, CodeSize::Bits32);
        if (testing::Test::HasFailure()) {
            return;
        }
    }
    EXPECT_GT(executed, 5'000U);
}

TEST(NativeDifferential, EveryByteImmediateOfStringComparisons)
{
    if (!host_has_avx()) {
        GTEST_SKIP() << "the oracle needs AVX2";
    }
    Differential differential{5};
    for (unsigned immediate = 0; immediate < 256; ++immediate) {
        for (const unsigned opcode : {0x60U, 0x61U, 0x62U, 0x63U}) {
            for (const bool wide : {false, true}) {
                Bytes code{0x66,
                           byte_of(wide ? 0x48U : 0x40U),
                           0x0f,
                           0x3a,
                           byte_of(opcode),
                           0xca,
                           byte_of(immediate)};
                ASSERT_TRUE(differential.machine.prepare(code));
                differential.compare(code, CodeSize::Bits64);
            }
        }
    }
}

TEST(NativeDifferential, HighByteRegistersOfCrc32)
{
    Differential differential{6};
    for (const unsigned rm : {5U, 6U}) {  // CH, DH
        const Bytes code{0xf2, 0x0f, 0x38, 0xf0, byte_of(0xc0U | rm)};
        for (unsigned i = 0; i < 50; ++i) {
            ASSERT_TRUE(differential.machine.prepare(code));
            differential.compare(code, CodeSize::Bits64);
        }
    }
}

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
        EXPECT_FALSE(machine.prepare(code)) << text_of(code);
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
