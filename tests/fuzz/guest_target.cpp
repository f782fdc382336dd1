// SPDX-License-Identifier: Apache-2.0

// Whole guests: code and tables of any bytes in every mode, whose exits are answered with
// anything and between whose exits the state changes.

#include <algorithm>

#include "fuzz/machine.hpp"

namespace vmm::fuzz {
namespace {

constexpr std::size_t most_code = 512;

/// A few bytes of tables, stacks or anywhere.
void patch_memory(Input& input, std::byte* memory)
{
    using Layout = Machine::Layout;
    constexpr std::array<std::uint64_t, 8> places{0,
                                                  Layout::gdt,
                                                  Layout::idt,
                                                  Layout::tss,
                                                  Layout::handlers,
                                                  Layout::tables,
                                                  0x8000,
                                                  Layout::tables + 0x3000};
    for (std::size_t count = input.below(6); count != 0; --count) {
        const std::uint64_t at = input.pick(places) + input.u8();
        const auto bytes = std::as_bytes(input.bytes(input.below(17)));
        std::copy(bytes.begin(), bytes.end(), memory + at);
    }
}

}  // namespace

void guest(Input& input)
{
    const std::uint8_t kind = input.u8();
    Machine machine{(kind & 8U) != 0 ? Machine::Irqchip::Present : Machine::Irqchip::Absent};
    machine.enter(static_cast<Mode>((kind & 7U) % 6U));
    patch_memory(input, machine.memory());
    const auto code = std::as_bytes(input.bytes(input.u16() % most_code));
    std::copy(code.begin(), code.end(), machine.memory() + Machine::code_at);
    machine.memory()[Machine::code_at + code.size()] = std::byte{0xf4};
    if ((kind & 0x10U) != 0) {
        x86::Regs regs = machine.vcpu().regs();
        input.fill(&regs, 16 * sizeof(std::uint64_t));
        regs.rflags = input.u32();
        machine.vcpu().set_regs(regs);
    }
    machine.run(input, 24);
}

Seeds guest_seeds()
{
    const std::vector<std::vector<std::uint8_t>> programs{
        {0xe4, 0x10, 0xe6, 0x11, 0x66, 0xed, 0xef, 0xf3, 0x6c, 0xf3, 0x6e, 0xf4},
        {0xa0, 0, 0, 0xe, 0, 0, 0, 0, 0, 0xa2, 0, 0, 0xe, 0, 0, 0, 0, 0},
        {0xcd, 0x20, 0xcc, 0xf1, 0xfb, 0x90, 0xfa, 0x9c, 0x9d, 0x0f, 0x0b},
        {0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0, 0x0f, 0x22, 0xd8},
        {0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0x30, 0x0f, 0xa2, 0x0f, 0x31},
        {0x0f, 0x05, 0x0f, 0x34, 0x48, 0x0f, 0x07, 0x0f, 0x01, 0xf8},
        {0x9a, 0, 0x60, 0, 0, 0x40, 0, 0xea, 0, 0x60, 0, 0, 0x50, 0, 0xcb},
        {0x8e, 0xd8, 0x8e, 0xd0, 0x90, 0x0f, 0x00, 0xd8, 0x0f, 0x00, 0xd0, 0x0f, 0x01, 0x16, 0,
         0x20},
        {0xf3, 0xa4, 0xf3, 0xaa, 0xf3, 0xa6, 0xf2, 0xae, 0xfd, 0xf3, 0xa5},
        {0xd9, 0xe8, 0xdd, 0xd8, 0x0f, 0xae, 0x06, 0, 0x90, 0x0f, 0xae, 0x0e, 0, 0x90, 0xc5, 0xf8,
         0x77},
        {0xc6, 0x05, 0, 0, 0, 0, 0x90, 0xeb, 0xf7, 0xf0, 0x0f, 0xc7, 0x0e},
        {0xeb, 0xfe},
    };
    Seeds seeds;
    for (const auto& program : programs) {
        for (unsigned kind = 0; kind < 6; ++kind) {
            Seed seed;
            seed.u8(kind | (seeds.size() % 2U == 0 ? 0U : 8U)).u8(0);
            seed.u16(static_cast<unsigned>(program.size())).bytes(program);
            for (unsigned i = 0; i < 24; ++i) {
                seed.u8(0x5a + i);
            }
            seeds.push_back(seed.data());
        }
    }
    return seeds;
}

}  // namespace vmm::fuzz
