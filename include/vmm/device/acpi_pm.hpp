// SPDX-License-Identifier: Apache-2.0

/// @file
/// ACPI's fixed hardware: power management events and control, the power management timer and
/// general-purpose events.  ACPI Specification, "ACPI Hardware Specification".
///
/// The constants are what the FADT must say.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/device/irq_line.hpp"
#include "vmm/export.hpp"
#include "vmm/timer.hpp"

namespace vmm::device {

/// First port of the block, and its size in bytes.
inline constexpr std::uint16_t acpi_pm_base = 0x600;
inline constexpr std::uint16_t acpi_pm_size = 0x40;

/// PM1a_EVT_BLK: status, then enable, two bytes each.
inline constexpr std::uint16_t acpi_pm1a_event_port = acpi_pm_base + 0x00;
inline constexpr std::uint8_t acpi_pm1a_event_size = 4;
/// PM1a_CNT_BLK.
inline constexpr std::uint16_t acpi_pm1a_control_port = acpi_pm_base + 0x04;
inline constexpr std::uint8_t acpi_pm1a_control_size = 2;
/// PM_TMR_BLK.
inline constexpr std::uint16_t acpi_pm_timer_port = acpi_pm_base + 0x08;
inline constexpr std::uint8_t acpi_pm_timer_size = 4;
/// GPE0_BLK: two bytes of status, two of enable, for 16 events.
inline constexpr std::uint16_t acpi_gpe0_port = acpi_pm_base + 0x20;
inline constexpr std::uint8_t acpi_gpe0_size = 4;

/// SMI_CMD, ACPI_ENABLE and ACPI_DISABLE.
inline constexpr std::uint16_t acpi_smi_command_port = 0xb2;
inline constexpr std::uint8_t acpi_enable_value = 0xa1;
inline constexpr std::uint8_t acpi_disable_value = 0xa0;

/// RESET_REG (one byte in I/O space) and RESET_VALUE; `EmptyPci` answers it.
inline constexpr std::uint16_t acpi_reset_port = 0xcf9;
inline constexpr std::uint8_t acpi_reset_value = 0x06;

/// SCI_INT: level-triggered, active high at the pin.
inline constexpr std::uint32_t acpi_sci_irq = 9;

/// The DSDT's \_S5 package: SLP_TYPa for soft off.
inline constexpr std::uint8_t acpi_s5_sleep_type = 5;

inline constexpr std::uint64_t acpi_pm_timer_hz = 3'579'545;

/// The block at `acpi_pm_base`, and the SMI command port.
///
///     AcpiPm pm{loop, std::move(config)};
///     PortView smi{pm, AcpiPm::smi_command_offset};
///     // register `pm` at acpi_pm_base (acpi_pm_size bytes), `smi` at acpi_smi_command_port (2)
///
/// Registers have byte granularity; reserved bits and holes read 0 and ignore writes.
///
/// Thread safety: all members may be called from any thread.
class VMM_API AcpiPm final : public bus::DeviceBase {
public:
    /// Where, as an offset into this device, the SMI command port and its data port are.
    static constexpr std::uint64_t smi_command_offset = acpi_pm_size;

    enum class TimerWidth : std::uint8_t { Bits24, Bits32 };

    struct Config {
        IrqLine sci{};
        /// The guest enters S5, soft off; on the vCPU's thread.
        std::function<void()> on_power_off{};
        /// The FADT's TMR_VAL_EXT flag says the same.
        TimerWidth timer_width{TimerWidth::Bits32};
        /// SCI_EN from the start, as after a firmware that leaves ACPI mode on.
        bool starts_in_acpi_mode{true};
    };

    /// `timers` must outlive this.
    AcpiPm(TimerService& timers, Config config);

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    /// Presses and lets go of the power button: the guest is asked to shut down.
    void press_power_button();

    /// Sets the status bit of general-purpose event `event`, 0 to 15; others do nothing.
    void raise_gpe(std::uint32_t event);

private:
    [[nodiscard]] std::uint64_t ticks_locked() const;
    [[nodiscard]] std::uint64_t timer_half_locked() const noexcept;
    [[nodiscard]] std::uint8_t read_byte_locked(std::uint64_t offset, std::uint32_t timer) const;
    void write_byte_locked(std::uint64_t offset, std::uint8_t value, bool& power_off);
    void write_control_high_locked(std::uint8_t value, bool& power_off);
    void collect_timer_locked();
    void update_locked();
    void update_and_deliver();

    const Config config_;
    TimerService& timers_;
    IrqPin pin_;
    std::mutex mutex_;
    const std::uint64_t start_ns_;
    std::uint16_t pm1_status_{0};
    std::uint16_t pm1_enable_{0};
    std::uint16_t pm1_control_;
    std::uint16_t gpe_status_{0};
    std::uint16_t gpe_enable_{0};
    std::uint8_t smi_command_{0};
    std::uint8_t smi_data_{0};
    // The tick at which the timer's most significant bit changes next, unless noted already.
    std::uint64_t next_carry_tick_;

    std::unique_ptr<Timer> timer_;  // Last: gone before what its callback uses.
};

}  // namespace vmm::device
