// SPDX-License-Identifier: Apache-2.0

#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "device/fakes.hpp"
#include "vmm/device/i8042.hpp"
#include "vmm/device/port_view.hpp"

namespace vmm::device {
namespace {

using test::in8;
using test::out8;

class I8042Test : public ::testing::Test {
protected:
    [[nodiscard]] I8042::Config config()
    {
        I8042::Config config;
        config.keyboard_irq = keyboard_.line();
        config.auxiliary_irq = auxiliary_.line();
        config.on_reset = [this] { ++resets_; };
        config.on_a20 = [this](bool open) { a20_.push_back(open); };
        return config;
    }
    void command(unsigned value) { out8(command_, 0, value); }
    void data(unsigned value) { out8(controller_, 0, value); }
    [[nodiscard]] unsigned status() { return in8(command_, 0); }
    [[nodiscard]] unsigned answer()
    {
        EXPECT_EQ(status() & 1U, 1U) << "no answer";
        return in8(controller_, 0);
    }

    test::Wire keyboard_;
    test::Wire auxiliary_;
    unsigned resets_{0};
    std::vector<bool> a20_;
    I8042 controller_{config()};
    PortView command_{controller_, I8042::command_offset};
};

TEST_F(I8042Test, StartsEmptyAndNeverBusy)
{
    EXPECT_EQ(status() & 0x03U, 0U);
    EXPECT_EQ(in8(controller_, 0), 0U);
}

TEST_F(I8042Test, PassesItsTests)
{
    command(0xaa);
    EXPECT_EQ(answer(), 0x55U);
    command(0xab);
    EXPECT_EQ(answer(), 0x00U);
    EXPECT_EQ(status() & 0x01U, 0U);
}

TEST_F(I8042Test, KeepsItsModeByte)
{
    command(0x60);
    data(0x74);
    command(0x20);
    EXPECT_EQ(answer(), 0x74U);
    command(0xae);
    command(0xa8);
    command(0x20);
    EXPECT_EQ(answer(), 0x44U);
    command(0xad);
    command(0xa7);
    command(0x20);
    EXPECT_EQ(answer(), 0x74U);
}

TEST_F(I8042Test, HasNoAuxiliaryInterface)
{
    command(0xd3);
    data(0x5a);
    EXPECT_EQ(status() & 0x21U, 0x01U);  // An answer, but not from the auxiliary device.
    EXPECT_EQ(answer(), 0x5aU);
    command(0xa9);
    EXPECT_EQ(answer(), 0x01U);
}

TEST_F(I8042Test, TheKeyboardTimesOutAtOnce)
{
    command(0x60);
    data(0x45);
    data(0xf2);

    EXPECT_TRUE(keyboard_.high);
    EXPECT_EQ(status() & 0x41U, 0x41U);
    EXPECT_EQ(answer(), 0xfeU);
    EXPECT_FALSE(keyboard_.high);
    EXPECT_EQ(status() & 0x41U, 0x00U);
    EXPECT_EQ(auxiliary_.changes, 0U);
}

TEST_F(I8042Test, EachByteIsAnEdge)
{
    command(0x60);
    data(0x45);
    command(0xd2);
    data(0x1c);
    command(0xd2);
    data(0x9c);

    EXPECT_EQ(answer(), 0x1cU);
    EXPECT_EQ(keyboard_.rises, 2U);
    EXPECT_EQ(answer(), 0x9cU);
    EXPECT_FALSE(keyboard_.high);
}

TEST_F(I8042Test, WithoutTheModeBitThereIsNoInterrupt)
{
    command(0x60);
    data(0x44);
    data(0xed);
    EXPECT_EQ(keyboard_.changes, 0U);
}

TEST_F(I8042Test, PulsingLineZeroResets)
{
    command(0xff);
    command(0xf1);
    EXPECT_EQ(resets_, 0U);
    command(0xfe);
    EXPECT_EQ(resets_, 1U);
    command(0xf0);
    EXPECT_EQ(resets_, 2U);
}

TEST_F(I8042Test, TheOutputPortGatesA20AndResets)
{
    command(0xd0);
    EXPECT_EQ(answer(), 0x03U);
    command(0xd1);
    data(0xdd);
    EXPECT_THAT(a20_, ::testing::ElementsAre(false));
    command(0xdf);
    EXPECT_THAT(a20_, ::testing::ElementsAre(false, true));
    command(0xdf);
    EXPECT_THAT(a20_, ::testing::ElementsAre(false, true));
    EXPECT_EQ(resets_, 0U);
    command(0xd1);
    data(0xfe);
    EXPECT_EQ(resets_, 1U);
}

TEST_F(I8042Test, UnreadAnswersDoNotPileUp)
{
    for (unsigned i = 0; i < 100'000; ++i) {
        data(0xff);
    }
    unsigned count = 0;
    while ((status() & 1) != 0) {
        static_cast<void>(in8(controller_, 0));
        ++count;
    }
    EXPECT_LE(count, 16U);  // What Linux's flush takes for a sane controller.
}

TEST_F(I8042Test, StatusTellsCommandFromData)
{
    command(0xa8);
    EXPECT_EQ(status() & 0x08U, 0x08U);
    data(0x00);
    EXPECT_EQ(status() & 0x08U, 0x00U);
}

}  // namespace
}  // namespace vmm::device
