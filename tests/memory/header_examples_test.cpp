// SPDX-License-Identifier: Apache-2.0

// The example that each header opens with, compiled and run: its claims are the assertions.

#include <array>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "vmm/memory/describe.hpp"
#include "vmm/memory/dirty_ring.hpp"
#include "vmm/memory/epoch.hpp"
#include "vmm/memory/guest_memory.hpp"
#include "vmm/memory/memslots.hpp"
#include "vmm/memory/range_map.hpp"

#undef assert
#define assert(claim) EXPECT_TRUE(claim)

namespace {

TEST(HeaderExample, Describe){
#include "describe_example.inc"
}

TEST(HeaderExample, DirtyRing){
#include "dirty_ring_example.inc"
}

TEST(HeaderExample, Epoch){
#include "epoch_example.inc"
}

TEST(HeaderExample, RangeMap){
#include "range_map_example.inc"
}

TEST(HeaderExample, Memslots)
{
#include "memslots_example.inc"
    EXPECT_EQ(ram[0x1000], std::byte{1});
}

TEST(HeaderExample, GuestMemory)
{
#include "guest_memory_example.inc"
    EXPECT_EQ(ram[0xfff], std::byte{0x56});
}

}  // namespace
