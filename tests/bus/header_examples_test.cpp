// SPDX-License-Identifier: Apache-2.0

// The example that each header opens with, compiled and run: its claims are the assertions.

#include <algorithm>
#include <array>
#include <memory>
#include <span>

#include <gtest/gtest.h>

#include "vmm/bus/coalesced.hpp"
#include "vmm/bus/io_bus.hpp"
#include "vmm/bus/ioeventfd.hpp"

#undef assert
#define assert(claim) EXPECT_TRUE(claim)

// The examples are written for readers: an offset is not cast to the iterator's difference type.
#pragma GCC diagnostic ignored "-Wsign-conversion"

namespace {

TEST(HeaderExample, IoBus)
{
#include "io_bus_example.inc"
    EXPECT_EQ(bus.size(), 0U);
}

TEST(HeaderExample, IoEventFd)
{
#include "ioeventfd_example.inc"
    EXPECT_EQ(rings, 1);
}

TEST(HeaderExample, Coalesced)
{
#include "coalesced_example.inc"
    EXPECT_FALSE(ring.pop());
}

}  // namespace
