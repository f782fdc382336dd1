// SPDX-License-Identifier: Apache-2.0

/// @file
/// The keyboard controller of a PC with nothing plugged in: an Intel 8042 with the IBM PC AT's
/// program.
///
///     I8042 controller{std::move(config)};
///     PortView command{controller, I8042::command_offset};
///     // register `controller` at port 0x60, `command` at port 0x64, one byte each

#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/device/irq_line.hpp"
#include "vmm/export.hpp"

namespace vmm::device {

inline constexpr std::uint16_t i8042_data_port = 0x60;
inline constexpr std::uint16_t i8042_command_port = 0x64;
inline constexpr std::uint32_t i8042_keyboard_irq = 1;
inline constexpr std::uint32_t i8042_auxiliary_irq = 12;

/// A controller that passes its tests, has no auxiliary interface, and whose keyboard is not
/// there: a byte sent to it comes back at once as 0xfe with the time-out bit of the status, so
/// that drivers give up quickly.  Its output port resets the machine and gates address line 20.
///
/// Thread safety: all members may be called from any thread.
class VMM_API I8042 final : public bus::DeviceBase {
public:
    /// Where, as an offset into this device, the register at port 0x64 is.
    static constexpr std::uint64_t command_offset = 4;

    struct Config {
        IrqLine keyboard_irq{};
        IrqLine auxiliary_irq{};
        /// The guest pulses the processors' reset line; on the vCPU's thread.
        std::function<void()> on_reset{};
        /// The guest opens (true) or closes the gate of address line 20.
        std::function<void(bool)> on_a20{};
    };

    explicit I8042(Config config);

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

private:
    enum class Source : std::uint8_t { Controller, Keyboard, NoKeyboard, Auxiliary };
    struct Output {
        std::uint8_t byte{};
        Source source{};
    };
    struct Action {
        bool reset{false};
        bool a20_changed{false};
        bool a20{false};
    };

    [[nodiscard]] std::uint8_t read_data_locked();
    [[nodiscard]] std::uint8_t status_locked() const;
    void write_data_locked(std::uint8_t value, Action& action);
    void write_command_locked(std::uint8_t value, Action& action);
    void answer_locked(std::uint8_t byte, Source source = Source::Controller);
    void set_output_port_locked(std::uint8_t value, Action& action);
    void update_pins_locked();
    void perform(const Action& action) noexcept;

    const Config config_;
    IrqPin keyboard_pin_;
    IrqPin auxiliary_pin_;
    std::mutex mutex_;
    std::deque<Output> output_;
    std::uint8_t output_port_;
    std::uint8_t mode_;
    std::uint8_t pending_command_{0};
    bool last_was_command_{false};
};

}  // namespace vmm::device
