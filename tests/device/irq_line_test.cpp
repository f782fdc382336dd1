// SPDX-License-Identifier: Apache-2.0

#include <atomic>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmm/device/irq_line.hpp"

namespace vmm::device {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class IrqPinTest : public ::testing::Test {
protected:
    std::vector<bool> seen_;
    IrqPin pin_{[this](bool level) { seen_.push_back(level); }};
};

TEST_F(IrqPinTest, SaysNothingUntilDelivered)
{
    pin_.set(true);
    EXPECT_THAT(seen_, IsEmpty());

    pin_.deliver();
    EXPECT_THAT(seen_, ElementsAre(true));
}

TEST_F(IrqPinTest, SaysALevelOnce)
{
    pin_.set(true);
    pin_.deliver();
    pin_.set(true);
    pin_.deliver();

    EXPECT_THAT(seen_, ElementsAre(true));
}

TEST_F(IrqPinTest, AFallAndRiseBetweenDeliveriesIsAnEdge)
{
    pin_.set(true);
    pin_.deliver();
    pin_.set_edge();
    pin_.deliver();

    EXPECT_THAT(seen_, ElementsAre(true, false, true));
}

TEST_F(IrqPinTest, AFallAfterAnUnseenEdgeIsAFall)
{
    pin_.set(true);
    pin_.deliver();
    pin_.set_edge();
    pin_.set(false);
    pin_.deliver();

    EXPECT_THAT(seen_, ElementsAre(true, false));
}

TEST_F(IrqPinTest, AnInterruptTakenBackUnseenIsNone)
{
    pin_.set(true);
    pin_.set(false);
    pin_.deliver();

    EXPECT_THAT(seen_, IsEmpty());
}

TEST(IrqPin, NotConnectedIsFine)
{
    IrqPin pin{IrqLine{}};
    pin.set(true);
    pin.deliver();
}

TEST(IrqPin, ALineMayCallBackIntoItsDevice)
{
    IrqPin* self = nullptr;
    std::vector<bool> seen;
    IrqPin pin{[&](bool level) {
        seen.push_back(level);
        if (level) {
            self->set(false);
            self->deliver();
        }
    }};
    self = &pin;
    pin.set(true);
    pin.deliver();

    EXPECT_THAT(seen, ElementsAre(true, false));
}

TEST(IrqPin, WhateverThreadsDoTheLineEndsAtTheLevelSetLast)
{
    std::atomic<bool> level{false};
    std::atomic<int> inside{0};
    std::atomic<bool> overlapped{false};
    IrqPin pin{[&](bool now) {
        overlapped = overlapped || inside.fetch_add(1) != 0;
        level = now;
        inside.fetch_sub(1);
    }};
    const auto toggle = [&pin] {
        for (int i = 0; i < 5000; ++i) {
            pin.set(i % 2 == 0);
            pin.deliver();
        }
    };
    {
        std::jthread other{toggle};
        toggle();
    }
    pin.set(true);
    pin.deliver();

    EXPECT_TRUE(level);
    EXPECT_FALSE(overlapped);
}

}  // namespace
}  // namespace vmm::device
