// SPDX-License-Identifier: Apache-2.0

/// @file
/// The real-time clock and CMOS memory of a PC: a Motorola MC146818A with 128 bytes.
///
///     Cmos::Config config;
///     config.ram_below_4g = …;
///     Cmos cmos{loop, std::move(config)};              // register at ports 0x70 and 0x71

#pragma once

#include <array>
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

inline constexpr std::uint16_t cmos_port = 0x70;
inline constexpr std::uint32_t cmos_irq = 8;
/// Where the century is: the FADT's CENTURY field.
inline constexpr std::uint8_t cmos_century_index = 0x32;

/// An MC146818A that runs on the host's clock, in UTC.  A guest that sets the time sets its own
/// distance from the host's.
///
/// Offset 0 selects a byte (bits 0 to 6; bit 7 masks NMIs) and reads as 0xff, offset 1 is that
/// byte.  Time is kept in BCD or binary, 12 or 24 hours, as register B says; daylight saving is
/// not known.  The square wave output goes nowhere.  Years before 1970 and after 2199 become those.
///
/// Thread safety: all members may be called from any thread.
class VMM_API Cmos final : public bus::DeviceBase {
public:
    /// Bytes of ports.
    static constexpr std::uint64_t size = 2;

    struct Config {
        IrqLine irq{};
        /// Nanoseconds since 1970-01-01 00:00:00 UTC; by default the host's CLOCK_REALTIME.  It
        /// should advance as the timer service's clock does; where it jumps, so does the guest.
        std::function<std::int64_t()> wall_clock_ns{};
        /// Bytes of RAM, for the size bytes that firmware reads.
        std::uint64_t ram_below_4g{};
        std::uint64_t ram_above_4g{};
        /// For firmware that asks byte 0x5f; at least 1.
        std::uint32_t cpu_count{1};
    };

    /// `timers` must outlive this.
    Cmos(TimerService& timers, Config config);

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    /// Whether the guest keeps NMIs from its processors, by bit 7 of port 0x70.
    [[nodiscard]] bool is_nmi_masked() const noexcept;

private:
    [[nodiscard]] std::uint8_t read_byte_locked();
    void write_byte_locked(std::uint8_t value);
    void write_mode_locked(std::uint8_t index, std::uint8_t value);
    void fill_memory_sizes();

    [[nodiscard]] std::int64_t now_locked() const;
    [[nodiscard]] bool is_running_locked() const noexcept;
    [[nodiscard]] bool is_updating_locked(std::int64_t now) const noexcept;
    void latch_time_locked(std::int64_t now);
    [[nodiscard]] std::int64_t latched_seconds_locked() const;
    [[nodiscard]] std::uint8_t encode_locked(std::uint32_t value) const noexcept;
    [[nodiscard]] std::uint32_t decode_locked(std::uint8_t value) const noexcept;
    [[nodiscard]] std::uint8_t encode_hour_locked(std::uint32_t hour) const noexcept;
    [[nodiscard]] std::uint32_t decode_hour_locked(std::uint8_t value) const noexcept;
    [[nodiscard]] std::int64_t period_ns_locked() const noexcept;
    [[nodiscard]] bool alarm_between_locked(std::int64_t after, std::int64_t until) const noexcept;
    void collect_events_locked();
    void update_locked();
    void on_timer();

    const Config config_;
    TimerService& timers_;
    IrqPin pin_;
    mutable std::mutex mutex_;

    std::array<std::uint8_t, 128> memory_{};
    std::uint8_t index_{0};
    bool nmi_masked_{false};
    // The guest's clock minus the host's; while the clock is stopped, memory_ has the time.
    std::int64_t offset_ns_{0};
    std::int64_t stopped_fraction_ns_{0};
    // Up to when update, alarm and periodic events have been noted in register C.
    std::int64_t collected_until_ns_{0};

    std::unique_ptr<Timer> timer_;  // Last: gone before what its callback uses.
};

}  // namespace vmm::device
