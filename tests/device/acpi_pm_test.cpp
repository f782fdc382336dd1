// SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include "device/fakes.hpp"
#include "vmm/device/acpi_pm.hpp"
#include "vmm/device/port_view.hpp"

namespace vmm::device {
namespace {

using test::in;
using test::in8;
using test::out;
using test::out8;

constexpr std::uint64_t status = acpi_pm1a_event_port - acpi_pm_base;
constexpr std::uint64_t enable = status + 2;
constexpr std::uint64_t control = acpi_pm1a_control_port - acpi_pm_base;
constexpr std::uint64_t timer = acpi_pm_timer_port - acpi_pm_base;
constexpr std::uint64_t gpe_status = acpi_gpe0_port - acpi_pm_base;
constexpr std::uint64_t gpe_enable = gpe_status + 2;

constexpr std::uint64_t second = 1'000'000'000;

class AcpiPmTest : public ::testing::Test {
protected:
    [[nodiscard]] AcpiPm::Config config()
    {
        AcpiPm::Config config;
        config.sci = wire_.line();
        config.on_power_off = [this] { ++power_offs_; };
        return config;
    }

    test::FakeTimers timers_;
    test::Wire wire_;
    unsigned power_offs_{0};
    AcpiPm pm_{timers_, config()};
};

TEST_F(AcpiPmTest, TheTimerRunsAt3579545Hz)
{
    const std::uint64_t start = in(pm_, timer, 4);
    timers_.advance(second);
    EXPECT_EQ(in(pm_, timer, 4) - start, acpi_pm_timer_hz);
    timers_.advance(second / 1000);
    EXPECT_EQ(in(pm_, timer, 4) - start, acpi_pm_timer_hz + 3579);
}

TEST_F(AcpiPmTest, TheTimerHas32BitsOr24)
{
    AcpiPm::Config narrow = config();
    narrow.timer_width = AcpiPm::TimerWidth::Bits24;
    AcpiPm small{timers_, std::move(narrow)};
    timers_.advance(1300 * second);

    const std::uint64_t ticks = 1300 * acpi_pm_timer_hz;
    EXPECT_EQ(in(pm_, timer, 4), ticks & 0xffff'ffff);
    EXPECT_EQ(in(small, timer, 4), ticks & 0xff'ffff);
}

TEST_F(AcpiPmTest, TheTimerStatusFollowsItsTopBit)
{
    timers_.advance(599 * second);  // 2^31 ticks take 599.93 s.
    EXPECT_EQ(in(pm_, status, 2), 0U);
    timers_.advance(second);
    EXPECT_EQ(in(pm_, status, 2), 1U);
    out(pm_, status, 1, 2);
    EXPECT_EQ(in(pm_, status, 2), 0U);
    timers_.advance(600 * second);
    EXPECT_EQ(in(pm_, status, 2), 1U);
    EXPECT_FALSE(wire_.high);
}

TEST_F(AcpiPmTest, TheTimerCarryInterrupts)
{
    out(pm_, enable, 1, 2);
    timers_.advance(599 * second);
    EXPECT_FALSE(wire_.high);
    timers_.advance(second);
    EXPECT_TRUE(wire_.high);
    out(pm_, status, 1, 2);
    EXPECT_FALSE(wire_.high);
    timers_.advance(600 * second);
    EXPECT_TRUE(wire_.high);
    EXPECT_EQ(timers_.expiries, 2U);
}

TEST_F(AcpiPmTest, ThePowerButtonRaisesTheSciWhileEnabled)
{
    pm_.press_power_button();
    EXPECT_FALSE(wire_.high);
    EXPECT_EQ(in(pm_, status, 2), 0x100U);
    out(pm_, enable, 0x100, 2);
    EXPECT_TRUE(wire_.high);
    out(pm_, status, 0x100, 2);
    EXPECT_FALSE(wire_.high);
    EXPECT_EQ(in(pm_, status, 2), 0U);
}

TEST_F(AcpiPmTest, EventsRaiseNoSciInLegacyMode)
{
    AcpiPm::Config legacy = config();
    legacy.starts_in_acpi_mode = false;
    AcpiPm pm{timers_, std::move(legacy)};
    PortView smi{pm, AcpiPm::smi_command_offset};
    EXPECT_EQ(in(pm, control, 2), 0U);
    out(pm, enable, 0x100, 2);
    pm.press_power_button();
    EXPECT_FALSE(wire_.high);

    out8(smi, 0, acpi_enable_value);
    EXPECT_EQ(in(pm, control, 2), 1U);
    EXPECT_TRUE(wire_.high);
    out8(smi, 0, acpi_disable_value);
    EXPECT_EQ(in(pm, control, 2), 0U);
    EXPECT_FALSE(wire_.high);
}

TEST_F(AcpiPmTest, GeneralPurposeEventsWork)
{
    pm_.raise_gpe(9);
    pm_.raise_gpe(16);
    pm_.raise_gpe(0xffff'ffff);
    EXPECT_EQ(in(pm_, gpe_status, 2), 0x200U);
    EXPECT_FALSE(wire_.high);
    out(pm_, gpe_enable, 0x200, 2);
    EXPECT_TRUE(wire_.high);
    out8(pm_, gpe_status + 1, 0x02);
    EXPECT_FALSE(wire_.high);
}

TEST_F(AcpiPmTest, SoftOffPowersOff)
{
    out(pm_, control, 5U << 10, 2);
    EXPECT_EQ(power_offs_, 0U);
    EXPECT_EQ(in(pm_, control, 2), 5U << 10 | 1U);
    out(pm_, control, 5U << 10 | 1U << 13, 2);
    EXPECT_EQ(power_offs_, 1U);
    EXPECT_EQ(in(pm_, control, 2), 5U << 10 | 1U);  // SLP_EN reads as zero.
    out8(pm_, control + 1, 0x34);
    EXPECT_EQ(power_offs_, 2U);
}

TEST_F(AcpiPmTest, OtherSleepStatesWakeAtOnce)
{
    out(pm_, control, 3U << 10 | 1U << 13, 2);
    EXPECT_EQ(power_offs_, 0U);
    EXPECT_EQ(in(pm_, status, 2), 0x8000U);
}

TEST_F(AcpiPmTest, ReservedBitsAndHolesReadAsZero)
{
    out(pm_, enable, 0xffff, 2);
    EXPECT_EQ(in(pm_, enable, 2), 0x0721U);
    out(pm_, control, 0xdfff, 2);
    EXPECT_EQ(in(pm_, control, 2), 0x1c03U);
    out(pm_, 0x10, 0xffff'ffff, 4);
    EXPECT_EQ(in(pm_, 0x10, 4), 0U);
}

}  // namespace
}  // namespace vmm::device
