// SPDX-License-Identifier: Apache-2.0

// State set by the API in any order, to anything, and a few instructions under it.

#include "fuzz/machine.hpp"

namespace vmm::fuzz {

void state(Input& input)
{
    Machine machine{input.flag() ? Machine::Irqchip::Present : Machine::Irqchip::Absent};
    machine.enter(static_cast<Mode>(input.below(6)));
    // mov %eax, (%si or similar); push %ax; int $0x20; out %al, $0x10; in $0x10, %al; a vector
    // instruction; rdtsc; hlt, in whatever mode it turns out to be.
    constexpr std::array<unsigned char, 22> code{0x89, 0x04, 0x50, 0xcd, 0x20, 0xe6, 0x10, 0xe4,
                                                 0x10, 0x0f, 0x58, 0xc1, 0xd9, 0xe8, 0x0f, 0x31,
                                                 0xcf, 0xf3, 0xa4, 0x90, 0xf4, 0xf4};
    for (std::size_t i = 0; i < code.size(); ++i) {
        machine.memory()[Machine::code_at + i] = std::byte{code[i]};
    }
    for (unsigned rounds = 0; rounds < 4; ++rounds) {
        for (std::size_t count = 1 + input.below(4); count != 0; --count) {
            machine.change_state(input);
        }
        machine.run(input, 4);
        if (input.is_empty()) {
            return;
        }
    }
}

Seeds state_seeds()
{
    Seeds seeds;
    for (unsigned mode = 0; mode < 6; ++mode) {
        for (unsigned change = 0; change < 9; ++change) {
            Seed seed;
            seed.u8(mode & 1U).u8(mode).u8(0).u8(change);
            for (unsigned i = 0; i < 96; ++i) {
                seed.u8((i * 37U + change * 11U + mode) & 0xffU);
            }
            seeds.push_back(seed.data());
        }
    }
    return seeds;
}

}  // namespace vmm::fuzz
