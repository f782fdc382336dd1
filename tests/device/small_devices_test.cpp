// SPDX-License-Identifier: Apache-2.0

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "device/fakes.hpp"
#include "vmm/device/acpi_pm.hpp"
#include "vmm/device/debug_console.hpp"
#include "vmm/device/debug_exit.hpp"
#include "vmm/device/empty_pci.hpp"
#include "vmm/device/post_port.hpp"
#include "vmm/device/system_control.hpp"

namespace vmm::device {
namespace {

using test::in;
using test::in8;
using test::out;
using test::out8;
using ::testing::ElementsAre;

TEST(DebugExit, GivesTheValueWritten)
{
    std::vector<std::uint32_t> values;
    DebugExit device{[&](std::uint32_t value) { values.push_back(value); }};
    out(device, 0, 0x12, 1);
    out(device, 0, 0x1234, 2);
    out(device, 0, 0x1234'5678, 4);
    out(device, 0, 0x1'0000'0002, 8);
    out(device, 1, 0x55, 1);

    EXPECT_THAT(values, ElementsAre(0x12, 0x1234, 0x1234'5678, 2));
    EXPECT_EQ(in(device, 0, 4), 0U);
}

TEST(DebugConsole, PrintsAndIsFound)
{
    std::string text;
    DebugConsole device{[&](std::span<const std::byte> bytes) { text += test::text_of(bytes); }};
    out8(device, 0, 'h');
    out8(device, 0, 'i');
    out8(device, 1, '!');

    EXPECT_EQ(text, "hi");
    EXPECT_EQ(in8(device, 0), 0xe9U);
    EXPECT_EQ(in(device, 0, 2), 0xffe9U);
}

TEST(PostPort, KeepsTheCode)
{
    PostPort device;
    EXPECT_EQ(device.code(), 0);
    out8(device, 0, 0x42);
    out8(device, 1, 0x43);
    EXPECT_EQ(device.code(), 0x42);
    EXPECT_EQ(in8(device, 0), 0x42U);
}

TEST(SystemControl, ResetsOnARisingBitAndGatesA20)
{
    unsigned resets = 0;
    std::vector<bool> a20;
    SystemControl::Config config;
    config.on_reset = [&] { ++resets; };
    config.on_a20 = [&](bool open) { a20.push_back(open); };
    SystemControl device{std::move(config)};

    EXPECT_EQ(in8(device, 0), 0x02U);
    out8(device, 0, 0x00);
    out8(device, 0, 0x02);
    out8(device, 0, 0x02);
    EXPECT_THAT(a20, ElementsAre(false, true));
    EXPECT_EQ(resets, 0U);
    out8(device, 0, 0x03);
    out8(device, 0, 0x03);
    EXPECT_EQ(resets, 1U);
}

TEST(EmptyPci, HasNoDevicesAndNoMechanism)
{
    EmptyPci device{nullptr};
    out(device, 0, 0x8000'0000, 4);
    EXPECT_EQ(in(device, 0, 4), 0xffff'ffffU);
    EXPECT_EQ(in(device, 4, 4), 0xffff'ffffU);
    EXPECT_EQ(in(device, 6, 2), 0xffffU);
    EXPECT_EQ(in8(device, 0), 0xffU);
    out8(device, 1, 0x06);
}

TEST(EmptyPci, TheResetRegisterResetsAsAcpiAndAsLinuxDo)
{
    unsigned resets = 0;
    EmptyPci device{[&] { ++resets; }};
    constexpr std::uint64_t reset = acpi_reset_port - pci_config_port;
    out8(device, reset, acpi_reset_value);
    EXPECT_EQ(resets, 1U);

    const unsigned before = in8(device, reset) & ~0x0eU;
    out8(device, reset, before | 0x02);
    EXPECT_EQ(resets, 1U);
    out8(device, reset, before | 0x0e);
    EXPECT_EQ(resets, 2U);
    EXPECT_EQ(in8(device, reset), 0x0aU);
    out(device, 0, 0x0606'0606, 4);
    EXPECT_EQ(resets, 2U);
}

}  // namespace
}  // namespace vmm::device
