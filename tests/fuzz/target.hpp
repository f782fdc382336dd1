// SPDX-License-Identifier: Apache-2.0

/// @file
/// What a fuzz target is: a function of bytes that must come back, and seeds to start from.
///
/// Preset `fuzz` makes libFuzzer's program of them (libfuzzer.cpp); every other build replays the
/// seeds, the inputs of `regressions/` and some noise as tests (replay_test.cpp).

#pragma once

#include <cstdio>
#include <cstdlib>
#include <span>
#include <string_view>
#include <vector>

#include "fuzz/input.hpp"

/// A property that no input may break.
#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::fprintf(stderr, "%s:%d: FUZZ_CHECK(%s)\n", __FILE__, __LINE__, #condition);       \
            std::abort();                                                                          \
        }                                                                                          \
    } while (false)

namespace vmm::fuzz {

using Seeds = std::vector<std::vector<std::uint8_t>>;

void decode(Input& input);
Seeds decode_seeds();
void page_walk(Input& input);
Seeds page_walk_seeds();
void device(Input& input);
Seeds device_seeds();
void irqchip(Input& input);
Seeds irqchip_seeds();
void bus(Input& input);
Seeds bus_seeds();
void memslots(Input& input);
Seeds memslots_seeds();
void image(Input& input);
Seeds image_seeds();
void boot_tables(Input& input);
Seeds boot_tables_seeds();
void state(Input& input);
Seeds state_seeds();
void guest(Input& input);
Seeds guest_seeds();

struct Target {
    std::string_view name;
    void (*run)(Input&);
    Seeds (*seeds)();
};

inline constexpr Target targets[] = {
    {"decode", decode, decode_seeds}, {"page_walk", page_walk, page_walk_seeds},
    {"device", device, device_seeds}, {"irqchip", irqchip, irqchip_seeds},
    {"bus", bus, bus_seeds},          {"memslots", memslots, memslots_seeds},
    {"image", image, image_seeds},    {"boot_tables", boot_tables, boot_tables_seeds},
    {"state", state, state_seeds},    {"guest", guest, guest_seeds},
};

}  // namespace vmm::fuzz
