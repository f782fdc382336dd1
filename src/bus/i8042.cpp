// SPDX-License-Identifier: Apache-2.0

// IBM PC AT Technical Reference, "Keyboard Controller", and PS/2 Technical Reference, "Keyboard and
// Auxiliary Device Controller".

#include "vmm/device/i8042.hpp"

#include <utility>

#include "bus/bytes.hpp"

namespace vmm::device {

namespace {

constexpr std::uint8_t status_output_full = 0x01;
constexpr std::uint8_t status_system = 0x04;
constexpr std::uint8_t status_command = 0x08;
constexpr std::uint8_t status_unlocked = 0x10;
constexpr std::uint8_t status_auxiliary = 0x20;
constexpr std::uint8_t status_time_out = 0x40;

constexpr std::uint8_t mode_keyboard_interrupt = 0x01;
constexpr std::uint8_t mode_auxiliary_interrupt = 0x02;
constexpr std::uint8_t mode_system = 0x04;
constexpr std::uint8_t mode_keyboard_disabled = 0x10;
constexpr std::uint8_t mode_auxiliary_disabled = 0x20;
constexpr std::uint8_t mode_translate = 0x40;

constexpr std::uint8_t port_not_reset = 0x01;
constexpr std::uint8_t port_a20 = 0x02;

constexpr std::uint8_t keyboard_resend = 0xfe;

// The real one holds a byte or two; the guest decides how many answers it leaves unread.
constexpr std::size_t output_capacity = 16;

// Commands to the controller.
constexpr std::uint8_t read_mode = 0x20;
constexpr std::uint8_t write_mode = 0x60;
constexpr std::uint8_t disable_auxiliary = 0xa7;
constexpr std::uint8_t enable_auxiliary = 0xa8;
constexpr std::uint8_t test_auxiliary = 0xa9;
constexpr std::uint8_t self_test = 0xaa;
constexpr std::uint8_t test_keyboard = 0xab;
constexpr std::uint8_t disable_keyboard = 0xad;
constexpr std::uint8_t enable_keyboard = 0xae;
constexpr std::uint8_t read_input_port = 0xc0;
constexpr std::uint8_t read_output_port = 0xd0;
constexpr std::uint8_t write_output_port = 0xd1;
constexpr std::uint8_t write_keyboard_output = 0xd2;
constexpr std::uint8_t write_auxiliary_output = 0xd3;
constexpr std::uint8_t write_auxiliary = 0xd4;
constexpr std::uint8_t disable_a20 = 0xdd;
constexpr std::uint8_t enable_a20 = 0xdf;
constexpr std::uint8_t pulse_output_port = 0xf0;

}  // namespace

I8042::I8042(Config config)
    : config_{std::move(config)},
      keyboard_pin_{config_.keyboard_irq},
      auxiliary_pin_{config_.auxiliary_irq},
      output_port_{port_not_reset | port_a20},
      mode_{mode_system | mode_translate | mode_auxiliary_disabled}
{
}

void I8042::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    detail::fill_open_bus(data);
    if (data.empty()) {
        return;
    }
    {
        const std::lock_guard lock{mutex_};
        if (offset == 0) {
            data[0] = std::byte{read_data_locked()};
        } else if (offset == command_offset) {
            data[0] = std::byte{status_locked()};
        }
    }
    keyboard_pin_.deliver();
    auxiliary_pin_.deliver();
}

void I8042::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    if (data.empty() || (offset != 0 && offset != command_offset)) {
        return;
    }
    Action action;
    {
        const std::lock_guard lock{mutex_};
        const std::uint8_t value = detail::to_u8(data[0]);
        last_was_command_ = offset == command_offset;
        if (last_was_command_) {
            write_command_locked(value, action);
        } else {
            write_data_locked(value, action);
        }
    }
    perform(action);
}

std::uint8_t I8042::read_data_locked()
{
    if (output_.empty()) {
        return 0;
    }
    const std::uint8_t byte = output_.front().byte;
    output_.pop_front();
    // Each byte is an edge of its own.
    keyboard_pin_.set(false);
    auxiliary_pin_.set(false);
    update_pins_locked();
    return byte;
}

std::uint8_t I8042::status_locked() const
{
    std::uint8_t status = status_unlocked | (mode_ & mode_system ? status_system : 0);
    status |= last_was_command_ ? status_command : std::uint8_t{0};
    if (!output_.empty()) {
        status |= status_output_full;
        status |= output_.front().source == Source::Auxiliary ? status_auxiliary : std::uint8_t{0};
        status |= output_.front().source == Source::NoKeyboard ? status_time_out : std::uint8_t{0};
    }
    return status;
}

void I8042::write_command_locked(std::uint8_t value, Action& action)
{
    pending_command_ = 0;
    switch (value) {
    case read_mode: answer_locked(mode_); break;
    case disable_auxiliary: mode_ |= mode_auxiliary_disabled; break;
    case enable_auxiliary: mode_ &= static_cast<std::uint8_t>(~mode_auxiliary_disabled); break;
    case test_auxiliary: answer_locked(0x01); break;  // "Clock line stuck low": nothing there.
    case self_test:
        output_.clear();
        mode_ |= mode_system;
        answer_locked(0x55);
        break;
    case test_keyboard: answer_locked(0x00); break;  // "No error"
    case disable_keyboard: mode_ |= mode_keyboard_disabled; break;
    case enable_keyboard: mode_ &= static_cast<std::uint8_t>(~mode_keyboard_disabled); break;
    case read_input_port: answer_locked(0x80); break;  // Keyboard not inhibited.
    case read_output_port: answer_locked(output_port_); break;
    case disable_a20:
        set_output_port_locked(output_port_ & static_cast<std::uint8_t>(~port_a20), action);
        break;
    case enable_a20: set_output_port_locked(output_port_ | port_a20, action); break;
    case write_mode:
    case write_output_port:
    case write_keyboard_output:
    case write_auxiliary_output:
    case write_auxiliary: pending_command_ = value; break;
    default:
        // Bits 0 to 3 say which lines not to pulse; line 0 is the processors' reset.
        if ((value & 0xf0) == pulse_output_port) {
            action.reset = (value & port_not_reset) == 0;
        }
        break;
    }
    update_pins_locked();
}

void I8042::write_data_locked(std::uint8_t value, Action& action)
{
    switch (std::exchange(pending_command_, std::uint8_t{0})) {
    case write_mode: mode_ = value; break;
    case write_output_port: set_output_port_locked(value, action); break;
    case write_keyboard_output: answer_locked(value, Source::Keyboard); break;
    // Comes back, but not as the auxiliary device's: how an AT controller without one does it.
    case write_auxiliary_output: answer_locked(value); break;
    case write_auxiliary: answer_locked(keyboard_resend, Source::NoKeyboard); break;
    default:
        mode_ &= static_cast<std::uint8_t>(~mode_keyboard_disabled);  // Sending enables it.
        answer_locked(keyboard_resend, Source::NoKeyboard);
        break;
    }
    update_pins_locked();
}

void I8042::answer_locked(std::uint8_t byte, Source source)
{
    if (output_.size() < output_capacity) {
        output_.push_back({byte, source});
    }
}

void I8042::set_output_port_locked(std::uint8_t value, Action& action)
{
    const bool a20 = (value & port_a20) != 0;
    action.a20_changed = a20 != ((output_port_ & port_a20) != 0);
    action.a20 = a20;
    // Kept high: a line held low would keep the machine in reset, and we only ever pulse it.
    action.reset = (value & port_not_reset) == 0;
    output_port_ = value | port_not_reset;
}

void I8042::update_pins_locked()
{
    const bool full = !output_.empty();
    const bool auxiliary = full && output_.front().source == Source::Auxiliary;
    keyboard_pin_.set(full && !auxiliary && (mode_ & mode_keyboard_interrupt) != 0);
    auxiliary_pin_.set(auxiliary && (mode_ & mode_auxiliary_interrupt) != 0);
}

void I8042::perform(const Action& action) noexcept
{
    keyboard_pin_.deliver();
    auxiliary_pin_.deliver();
    if (action.a20_changed && config_.on_a20) {
        config_.on_a20(action.a20);
    }
    if (action.reset && config_.on_reset) {
        config_.on_reset();
    }
}

}  // namespace vmm::device
