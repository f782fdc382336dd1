// SPDX-License-Identifier: Apache-2.0

/// @file
/// The 8254 programmable interval timer of a PC, with the speaker port.  Intel 8254 datasheet.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/timer.hpp"
#include "vmm/x86/irqchip_state.hpp"

namespace vmm::x86::irqchip {

/// Three counters at 1.193182 MHz.  Counts are computed from the clock when they are looked at;
/// only channel 0's output, which drives the interrupt line, uses a timer.
///
/// As a device, offset 0 is port 0x40, and the speaker port lies at its distance from it.
///
/// Thread safety: every member from any thread.  The line is driven on the timers' thread, without
/// any lock held.
class Pit final : public bus::DeviceBase {
public:
    /// Drives the line; the answer is `Irqchip::set_line`'s.
    using Line = std::function<int(bool level)>;

    static constexpr std::uint64_t frequency_hz = 1'193'182;
    static constexpr std::uint64_t speaker_offset = 0x61 - 0x40;
    /// Ticks that wait for a guest which does not take them.  When there are more, the guest has
    /// lost one's end, and the next is sent without it.
    static constexpr std::uint32_t max_backlog = 1000;

    Pit(TimerService& timers, Line line);
    Pit(const Pit&) = delete;
    Pit& operator=(const Pit&) = delete;
    Pit(Pit&&) = delete;
    Pit& operator=(Pit&&) = delete;
    ~Pit() override;

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    /// KVM_REINJECT_CONTROL: whether ticks that come before the guest has acknowledged the last
    /// one wait for that (or else merge with it).  Off at first.
    void set_reinject(bool enabled) noexcept;
    /// The guest has ended channel 0's interrupt.
    void acknowledged() noexcept;

    [[nodiscard]] PitState state() const noexcept;
    /// Counting restarts.
    void set_state(const PitState& state) noexcept;

    /// When this returns, the line is not and will not be driven.  Not from the timers' thread.
    void disconnect() noexcept;

private:
    struct Channel {
        std::uint32_t reload{0x1'0000};
        std::uint32_t count{0x1'0000};  // That of the running count; modes 1 and 5 take the reload
                                        // value only when triggered.
        std::uint64_t start_ns{};
        std::uint64_t ticks_before{};  // Counted before `start_ns`, if the gate has been shut.
        bool loaded{};                 // A count was written since the control word.
        bool running{};
        bool gate{true};
        bool bcd{};
        std::uint8_t mode{unprogrammed};
        std::uint8_t rw_mode{3};
        std::uint8_t read_state{3};
        std::uint8_t write_state{3};
        std::uint8_t write_latch{};
        std::uint8_t count_latched{};
        std::uint16_t latched_count{};
        bool status_latched{};
        std::uint8_t status{};
    };

    static constexpr std::uint8_t unprogrammed = 0xff;

    [[nodiscard]] static std::uint64_t ticks(const Channel& channel, std::uint64_t now) noexcept;
    [[nodiscard]] static bool output(const Channel& channel, std::uint64_t now) noexcept;
    [[nodiscard]] static std::uint16_t value(const Channel& channel, std::uint64_t now) noexcept;
    static void start(Channel& channel, std::uint64_t now) noexcept;
    static void latch_count(Channel& channel, std::uint64_t now) noexcept;
    static void latch_status(Channel& channel, std::uint64_t now) noexcept;

    void write_control_locked(std::uint8_t value, std::uint64_t now) noexcept;
    void write_count_locked(std::size_t index, std::uint8_t value, std::uint64_t now) noexcept;
    void load_locked(std::size_t index, std::uint16_t value, std::uint64_t now) noexcept;
    void set_gate_locked(Channel& channel, bool gate, std::uint64_t now) noexcept;
    [[nodiscard]] std::uint8_t read_count_locked(Channel& channel, std::uint64_t now) noexcept;
    [[nodiscard]] std::uint8_t read_speaker_locked(std::uint64_t now) const noexcept;

    void schedule_locked() noexcept;
    [[nodiscard]] bool is_periodic_locked() const noexcept;
    [[nodiscard]] std::uint64_t period_ticks_locked() const noexcept;
    [[nodiscard]] std::uint64_t expiry_ns_locked(std::uint64_t tick) const noexcept;
    void on_timer() noexcept;
    void on_reinject() noexcept;
    void pulse() noexcept;

    TimerService& timers_;
    const Line line_;
    mutable std::mutex mutex_;
    std::array<Channel, 3> channels_;
    bool speaker_data_{};

    // Channel 0's interrupt.
    bool timer_active_{};
    std::uint64_t next_tick_{};  // Its number since the count was loaded, from 1.
    bool reinject_{};
    bool acknowledged_{true};
    std::uint32_t pending_{};  // Ticks that the guest has not acknowledged.

    // Last: destroying them waits for their calls.
    std::unique_ptr<Timer> reinject_timer_;
    std::unique_ptr<Timer> timer_;
};

}  // namespace vmm::x86::irqchip
