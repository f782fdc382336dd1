// SPDX-License-Identifier: Apache-2.0

// ACPI Specification, "ACPI Hardware Specification": "PM1 Event Grouping", "PM1 Control Grouping",
// "Power Management Timer", "General-Purpose Event Register Blocks".

#include "vmm/device/acpi_pm.hpp"

#include <utility>

#include "bus/bytes.hpp"

namespace vmm::device {

namespace {

// Offsets of bytes.
constexpr std::uint64_t pm1_status = 0x00;
constexpr std::uint64_t pm1_enable = 0x02;
constexpr std::uint64_t pm1_control = 0x04;
constexpr std::uint64_t pm_timer = 0x08;
constexpr std::uint64_t gpe_status = 0x20;
constexpr std::uint64_t gpe_enable = 0x22;

constexpr std::uint16_t event_timer = 1U << 0;
constexpr std::uint16_t event_power_button = 1U << 8;
constexpr std::uint16_t status_wake = 1U << 15;
constexpr std::uint16_t enable_defined = 0x0721;  // TMR, GBL, PWRBTN, SLPBTN, RTC

constexpr std::uint16_t control_sci_enable = 1U << 0;
constexpr std::uint8_t control_low_writable = 0x02;   // BM_RLD
constexpr std::uint8_t control_high_writable = 0x1c;  // SLP_TYP
constexpr std::uint8_t control_high_sleep = 0x20;     // SLP_EN

constexpr std::uint64_t ns_per_second = 1'000'000'000;

void set_byte(std::uint16_t& target, std::uint64_t index, std::uint8_t value) noexcept
{
    const unsigned shift = index == 0 ? 0 : 8;
    const auto kept = static_cast<unsigned>(target) & ~(0xffU << shift);
    target = static_cast<std::uint16_t>(kept | static_cast<unsigned>(value) << shift);
}

/// Write 1 to clear.
void clear_bits(std::uint16_t& target, std::uint64_t index, std::uint8_t value) noexcept
{
    const unsigned shift = index == 0 ? 0 : 8;
    target = static_cast<std::uint16_t>(target & ~(static_cast<unsigned>(value) << shift));
}

}  // namespace

AcpiPm::AcpiPm(TimerService& timers, Config config)
    : config_{std::move(config)},
      timers_{timers},
      pin_{config_.sci},
      start_ns_{timers.now_ns()},
      pm1_control_{config_.starts_in_acpi_mode ? control_sci_enable : std::uint16_t{0}},
      next_carry_tick_{timer_half_locked()},
      timer_{timers.create_timer([this] { update_and_deliver(); })}
{
}

void AcpiPm::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    const std::lock_guard lock{mutex_};
    collect_timer_locked();
    // Once for all four bytes, which must belong together.
    const auto timer = static_cast<std::uint32_t>(ticks_locked());
    for (std::byte& byte : data) {
        byte = std::byte{read_byte_locked(offset++, timer)};
    }
}

void AcpiPm::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    bool power_off = false;
    {
        const std::lock_guard lock{mutex_};
        collect_timer_locked();
        for (const std::byte byte : data) {
            write_byte_locked(offset++, detail::to_u8(byte), power_off);
        }
        update_locked();
    }
    pin_.deliver();
    if (power_off && config_.on_power_off) {
        config_.on_power_off();
    }
}

void AcpiPm::press_power_button()
{
    {
        const std::lock_guard lock{mutex_};
        pm1_status_ |= event_power_button;
        update_locked();
    }
    pin_.deliver();
}

void AcpiPm::raise_gpe(std::uint32_t event)
{
    if (event >= 16) {
        return;
    }
    {
        const std::lock_guard lock{mutex_};
        gpe_status_ = static_cast<std::uint16_t>(gpe_status_ | 1U << event);
        update_locked();
    }
    pin_.deliver();
}

std::uint8_t AcpiPm::read_byte_locked(std::uint64_t offset, std::uint32_t timer) const
{
    switch (offset) {
    case pm1_status:
    case pm1_status + 1: return detail::byte_of(pm1_status_, offset & 1);
    case pm1_enable:
    case pm1_enable + 1: return detail::byte_of(pm1_enable_, offset & 1);
    case pm1_control:
    case pm1_control + 1: return detail::byte_of(pm1_control_, offset & 1);
    case pm_timer:
    case pm_timer + 1:
    case pm_timer + 2: return detail::byte_of(timer, offset & 3);
    case pm_timer + 3:
        return config_.timer_width == TimerWidth::Bits32 ? detail::byte_of(timer, 3)
                                                         : std::uint8_t{0};
    case gpe_status:
    case gpe_status + 1: return detail::byte_of(gpe_status_, offset & 1);
    case gpe_enable:
    case gpe_enable + 1: return detail::byte_of(gpe_enable_, offset & 1);
    case smi_command_offset: return smi_command_;
    case smi_command_offset + 1: return smi_data_;
    default: return 0;
    }
}

void AcpiPm::write_byte_locked(std::uint64_t offset, std::uint8_t value, bool& power_off)
{
    switch (offset) {
    case pm1_status:
    case pm1_status + 1: clear_bits(pm1_status_, offset & 1, value); break;
    case pm1_enable:
    case pm1_enable + 1:
        set_byte(pm1_enable_, offset & 1, value);
        pm1_enable_ &= enable_defined;
        break;
    case pm1_control: {
        // SCI_EN is the firmware's to change, through the SMI command port.
        const auto kept = static_cast<std::uint8_t>(pm1_control_ & control_sci_enable);
        set_byte(pm1_control_, 0, static_cast<std::uint8_t>((value & control_low_writable) | kept));
        break;
    }
    case pm1_control + 1: write_control_high_locked(value, power_off); break;
    case gpe_status:
    case gpe_status + 1: clear_bits(gpe_status_, offset & 1, value); break;
    case gpe_enable:
    case gpe_enable + 1: set_byte(gpe_enable_, offset & 1, value); break;
    case smi_command_offset:
        smi_command_ = value;
        if (value == acpi_enable_value) {
            pm1_control_ |= control_sci_enable;
        } else if (value == acpi_disable_value) {
            pm1_control_ &= static_cast<std::uint16_t>(~control_sci_enable);
        }
        break;
    case smi_command_offset + 1: smi_data_ = value; break;
    default: break;
    }
}

void AcpiPm::write_control_high_locked(std::uint8_t value, bool& power_off)
{
    set_byte(pm1_control_, 1, value & control_high_writable);
    if ((value & control_high_sleep) == 0) {
        return;
    }
    const auto type = static_cast<std::uint8_t>((value & control_high_writable) >> 2);
    if (type == acpi_s5_sleep_type) {
        power_off = true;
    } else {
        // A state we do not offer: the machine wakes at once.
        pm1_status_ |= status_wake;
    }
}

std::uint64_t AcpiPm::ticks_locked() const
{
    // In two parts, so that no product overflows within 500 years.
    const std::uint64_t elapsed = timers_.now_ns() - start_ns_;
    return elapsed / ns_per_second * acpi_pm_timer_hz +
           elapsed % ns_per_second * acpi_pm_timer_hz / ns_per_second;
}

/// Ticks from one change of the most significant bit to the next.
std::uint64_t AcpiPm::timer_half_locked() const noexcept
{
    return std::uint64_t{1} << (config_.timer_width == TimerWidth::Bits32 ? 31 : 23);
}

/// "TMR_STS: … set any time the most significant bit of the … counter changes."
void AcpiPm::collect_timer_locked()
{
    const std::uint64_t ticks = ticks_locked();
    if (ticks >= next_carry_tick_) {
        pm1_status_ |= event_timer;
        const std::uint64_t half = timer_half_locked();
        next_carry_tick_ = (ticks / half + 1) * half;
    }
}

/// Sets the pin, and the timer where its carry could move the pin.
void AcpiPm::update_locked()
{
    const bool pending = (pm1_status_ & pm1_enable_) != 0 || (gpe_status_ & gpe_enable_) != 0;
    pin_.set(pending && (pm1_control_ & control_sci_enable) != 0);
    if ((pm1_enable_ & event_timer) == 0 || (pm1_status_ & event_timer) != 0) {
        timer_->cancel();
        return;
    }
    const std::uint64_t ticks = ticks_locked();
    const std::uint64_t left = next_carry_tick_ > ticks ? next_carry_tick_ - ticks : 0;
    // Rounded up, so that the carry has happened when the timer expires.
    const std::uint64_t wait_ns =
        (left * ns_per_second + acpi_pm_timer_hz - 1) / acpi_pm_timer_hz + 1;
    timer_->arm(timers_.now_ns() + wait_ns);
}

void AcpiPm::update_and_deliver()
{
    {
        const std::lock_guard lock{mutex_};
        collect_timer_locked();
        update_locked();
    }
    pin_.deliver();
}

}  // namespace vmm::device
