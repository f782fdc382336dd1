// SPDX-License-Identifier: Apache-2.0

// The decoder and what is made of its result, a block of operations: any bytes, any code size.

#include <array>
#include <cstring>

#include "fuzz/target.hpp"
#include "soft/mmu_fixture.hpp"
#include "x86/soft/block.hpp"
#include "x86/soft/insn.hpp"

namespace vmm::fuzz {
namespace {

using x86::soft::CodeSize;
using x86::soft::decode;
using x86::soft::DecodeStatus;
using x86::soft::Insn;

constexpr std::array sizes{CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64};
constexpr std::size_t longest = 15;

void check_fields(const Insn& insn, CodeSize size)
{
    FUZZ_CHECK(insn.length >= 1 && insn.length <= longest);
    FUZZ_CHECK(insn.operand_size == 2 || insn.operand_size == 4 || insn.operand_size == 8);
    FUZZ_CHECK(insn.address_size == 2 || insn.address_size == 4 || insn.address_size == 8);
    FUZZ_CHECK(size == CodeSize::Bits64 || (insn.operand_size != 8 && insn.address_size != 8));
    FUZZ_CHECK(size == CodeSize::Bits64 || (insn.reg < 8 && !insn.has_rex && !insn.rex_w) ||
               insn.vex);
    FUZZ_CHECK(insn.reg < 16 && insn.rm < 16 && insn.group < 8 && insn.mod < 4 && insn.scale < 4);
    FUZZ_CHECK(insn.vvvv < 16 && insn.pp < 4 && insn.vex_l < 2);
    FUZZ_CHECK(insn.base < 16 || insn.base == Insn::rip || insn.base == Insn::no_register);
    FUZZ_CHECK(insn.index < 16 || insn.index == Insn::no_register);
    FUZZ_CHECK(!insn.has_memory || insn.segment < 6);
}

void check_one(std::span<const std::byte> bytes, CodeSize size)
{
    Insn insn;
    const DecodeStatus status = decode(bytes, size, insn);
    FUZZ_CHECK(status != DecodeStatus::Truncated || bytes.size() < longest);
    if (status != DecodeStatus::Ok) {
        return;
    }
    check_fields(insn, size);
    FUZZ_CHECK(insn.length <= bytes.size());
    FUZZ_CHECK(std::memcmp(insn.bytes.data(), bytes.data(), insn.length) == 0);
    // What follows does not matter, what is missing does.
    Insn alone;
    FUZZ_CHECK(decode(bytes.first(insn.length), size, alone) == DecodeStatus::Ok);
    FUZZ_CHECK(alone.length == insn.length && alone.opcode == insn.opcode && alone.map == insn.map);
    FUZZ_CHECK(alone.immediate == insn.immediate && alone.displacement == insn.displacement);
    for (std::size_t cut = 0; cut < insn.length; ++cut) {
        Insn part;
        FUZZ_CHECK(decode(bytes.first(cut), size, part) == DecodeStatus::Truncated);
    }
}

/// Every handler selection that a whole page of these bytes needs.
void build_block(std::span<const std::byte> bytes, CodeSize size, bool single)
{
    namespace soft = x86::soft;
    soft::test::Machine machine{2};
    std::copy(bytes.begin(), bytes.end(), machine.memory.bytes.begin());
    soft::Cpu& cpu = machine.cpu;
    cpu.cpuid = x86::Cpuid{x86::supported_cpuid(1'000'000)};
    cpu.cr0 = 1;
    cpu.seg[x86::Cs].limit = 0xffff'ffff;
    cpu.seg[x86::Cs].db = size == CodeSize::Bits32 ? 1 : 0;
    if (size == CodeSize::Bits64) {
        cpu.cr0 |= std::uint64_t{1} << 31U;
        cpu.cr4 = std::uint64_t{1} << 5U;
        cpu.efer = 0x500;
        cpu.cr3 = 0x1000;
        cpu.seg[x86::Cs].l = 1;
        // One page is all four levels: it maps itself everywhere, and so the code must move there.
        machine.memory.put<std::uint64_t>(0x1000, 0x1007);
        cpu.rip = 0x1008;
        std::copy_n(bytes.begin(), std::min<std::size_t>(bytes.size(), 0xff0),
                    machine.memory.bytes.begin() + 0x1008);
    }
    cpu.state_changed();
    try {
        // None where the tables, which the code overwrites, lead out of memory.
        static_cast<void>(cpu.blocks->find(cpu, single));
    } catch (const soft::Fault&) {
        // The first instruction does not exist, or lies across the end of memory.
    }
}

}  // namespace

void decode(Input& input)
{
    const CodeSize size = input.pick(sizes);
    const std::uint8_t how = input.u8();
    const auto rest = input.rest();
    const auto bytes = std::as_bytes(rest.first(std::min<std::size_t>(rest.size(), 0x1000)));
    for (std::size_t at = 0; at < bytes.size() && at < 32; ++at) {
        check_one(bytes.subspan(at), size);
    }
    if ((how & 6U) == 0) {  // Costs a hundred times what decoding does.
        build_block(bytes, size, (how & 1U) != 0);
    }
}

Seeds decode_seeds()
{
    // Of each kind of encoding one or more, one after the other.
    const std::vector<std::vector<std::uint8_t>> kinds{
        {0x90, 0x66, 0x01, 0x00, 0x67, 0x8b, 0x44, 0x8d, 0x04, 0xf0, 0x0f, 0xb1, 0x0e, 0xc3},
        {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0x48, 0x8b, 0x05, 0, 0, 0, 0, 0x4d, 0x0f, 0xaf, 0xc1},
        {0xf3, 0xa4, 0xf2, 0xae, 0xf3, 0xab, 0x6c, 0x6f, 0xe4, 0x60, 0xef},
        {0x0f, 0x01, 0xd0, 0x0f, 0x01, 0x10, 0x0f, 0x22, 0xc0, 0x0f, 0x30, 0x0f, 0xa2},
        {0x0f, 0x58, 0xc1, 0xf2, 0x0f, 0x10, 0x00, 0x66, 0x0f, 0x38, 0x00, 0xc1},
        {0xc5, 0xf8, 0x58, 0xc1, 0xc4, 0xe2, 0x7d, 0x18, 0x00, 0xc4, 0xe3, 0x7d, 0x39, 0xc1, 1},
        {0xc4, 0xe2, 0x78, 0xf2, 0xc1, 0xc4, 0xe2, 0xfb, 0xf5, 0x00, 0xf3, 0x0f, 0xb8, 0xc1},
        {0xd9, 0xe8, 0xde, 0xc1, 0xdd, 0x00, 0x9b, 0xd9, 0x30, 0xdb, 0xe3, 0xdf, 0xe0},
        {0x9a, 0, 0, 0, 0, 8, 0, 0xea, 0, 0, 8, 0, 0xca, 4, 0, 0xcf, 0xcd, 0x80, 0xf1, 0xce},
        {0xc8, 0x10, 0, 2, 0xc9, 0x62, 0x00, 0x63, 0x00, 0xc4, 0x00, 0xd4, 0x0a, 0x27},
        {0x0f, 0xae, 0x00, 0x0f, 0xae, 0x20, 0x0f, 0xc7, 0x08, 0x48, 0x0f, 0xc7, 0x0e, 0x0f, 0x0b},
        {0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90},
        {0x75, 0xfe, 0xe8, 0, 0, 0, 0, 0xff, 0x10, 0xff, 0x18, 0xe2, 0xf0, 0xe3, 1},
        {0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1, 0x8f, 0xe8, 0x78, 0xc0, 0xc1, 1, 0x0f, 0x0f, 0xc1,
         0x9e},
    };
    Seeds seeds;
    for (const auto& bytes : kinds) {
        for (unsigned size = 0; size < sizes.size(); ++size) {
            seeds.push_back(Seed{}.u8(size).u8(0).bytes(bytes).data());
        }
    }
    return seeds;
}

}  // namespace vmm::fuzz
