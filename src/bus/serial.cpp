// SPDX-License-Identifier: Apache-2.0

// "PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs", section 8, "Registers".

#include "vmm/device/serial.hpp"

#include <utility>

#include "bus/bytes.hpp"

namespace vmm::device {

namespace {

// Register offsets, with the divisor latch access bit 0.
constexpr std::uint64_t receiver = 0;
constexpr std::uint64_t interrupt_enable = 1;
constexpr std::uint64_t interrupt_identification = 2;
constexpr std::uint64_t line_control = 3;
constexpr std::uint64_t modem_control = 4;
constexpr std::uint64_t line_status = 5;
constexpr std::uint64_t modem_status = 6;
constexpr std::uint64_t scratch = 7;

constexpr std::uint8_t ier_received = 0x01;
constexpr std::uint8_t ier_transmitter_empty = 0x02;
constexpr std::uint8_t ier_line_status = 0x04;
constexpr std::uint8_t ier_modem_status = 0x08;
constexpr std::uint8_t ier_defined = 0x0f;

// In the order of their priority.
constexpr std::uint8_t iir_line_status = 0x06;
constexpr std::uint8_t iir_received = 0x04;
constexpr std::uint8_t iir_timeout = 0x0c;
constexpr std::uint8_t iir_transmitter_empty = 0x02;
constexpr std::uint8_t iir_modem_status = 0x00;
constexpr std::uint8_t iir_none = 0x01;
constexpr std::uint8_t iir_fifos_enabled = 0xc0;

constexpr std::uint8_t fcr_enable = 0x01;
constexpr std::uint8_t fcr_reset_receiver = 0x02;
constexpr std::uint8_t fcr_kept = 0xc9;

constexpr std::uint8_t lcr_divisor_latch = 0x80;

constexpr std::uint8_t mcr_rts = 0x02;
constexpr std::uint8_t mcr_out2 = 0x08;
constexpr std::uint8_t mcr_loop = 0x10;
constexpr std::uint8_t mcr_defined = 0x1f;

constexpr std::uint8_t lsr_data_ready = 0x01;
constexpr std::uint8_t lsr_overrun = 0x02;
constexpr std::uint8_t lsr_break = 0x10;
constexpr std::uint8_t lsr_transmitter_idle = 0x60;  // THRE and TEMT
constexpr std::uint8_t lsr_error_in_fifo = 0x80;

constexpr std::uint8_t msr_cts = 0x10;
constexpr std::uint8_t msr_dsr = 0x20;
constexpr std::uint8_t msr_ri = 0x40;
constexpr std::uint8_t msr_dcd = 0x80;

// A driver's set-up reads the line status a few times after the FIFO reset, and then the receiver
// whatever that said; a guest that polls for input reads it for ever.
constexpr unsigned polls_after_reset = 16;

}  // namespace

Serial::Serial(Config config) : config_{std::move(config)}, pin_{config_.irq}
{
    if (config_.timers != nullptr) {
        timer_ = config_.timers->create_timer([this] { on_interval(); });
    }
}

void Serial::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    for (std::byte& byte : data) {
        Action action;
        {
            const std::lock_guard lock{mutex_};
            byte = std::byte{read_locked(offset++)};
            update_locked(action);
        }
        perform(action);
    }
}

void Serial::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    for (const std::byte byte : data) {
        Action action;
        {
            const std::lock_guard lock{mutex_};
            write_locked(offset++, detail::to_u8(byte), action);
            update_locked(action);
        }
        perform(action);
    }
}

std::size_t Serial::receive(std::span<const std::byte> bytes)
{
    Action action;
    std::size_t taken = 0;
    {
        const std::lock_guard lock{mutex_};
        while (taken < bytes.size() && wire_.size() < input_capacity) {
            wire_.push_back({detail::to_u8(bytes[taken++]), false, true});
        }
        refused_ = taken < bytes.size();
        fill_from_wire_locked();
        update_locked(action);
    }
    perform(action);
    return taken;
}

void Serial::receive_break()
{
    Action action;
    {
        const std::lock_guard lock{mutex_};
        // Not refused when full: it is one, and the capacity is a courtesy, not a limit.  Two
        // that have not been seen are one.
        if (wire_.empty() || !wire_.back().is_break) {
            wire_.push_back({0, true, true});
        }
        fill_from_wire_locked();
        update_locked(action);
    }
    perform(action);
}

std::uint8_t Serial::read_locked(std::uint64_t offset)
{
    const bool divisor_latch = (line_control_ & lcr_divisor_latch) != 0;
    switch (offset) {
    case receiver: return divisor_latch ? detail::byte_of(divisor_, 0) : read_receiver_locked();
    case interrupt_enable: return divisor_latch ? detail::byte_of(divisor_, 1) : interrupt_enable_;
    case interrupt_identification: {
        const std::uint8_t identification = identify_interrupt_locked();
        // "Reading the IIR Register (if source of interrupt)" resets this one.
        if (identification == iir_transmitter_empty) {
            transmitter_interrupt_ = false;
        }
        const bool fifos = (fifo_control_ & fcr_enable) != 0;
        return static_cast<std::uint8_t>(identification | (fifos ? iir_fifos_enabled : 0));
    }
    case line_control: return line_control_;
    case modem_control: return modem_control_;
    case line_status: return read_line_status_locked();
    case modem_status:
        return static_cast<std::uint8_t>(modem_status_locked() | std::exchange(modem_deltas_, 0));
    case scratch: return scratch_;
    default: return detail::open_bus;
    }
}

void Serial::write_locked(std::uint64_t offset, std::uint8_t value, Action& action)
{
    const bool divisor_latch = (line_control_ & lcr_divisor_latch) != 0;
    switch (offset) {
    case receiver:
        if (divisor_latch) {
            divisor_ = static_cast<std::uint16_t>((divisor_ & 0xff00) | value);
        } else {
            write_transmitter_locked(value, action);
        }
        break;
    case interrupt_enable:
        if (divisor_latch) {
            divisor_ = static_cast<std::uint16_t>((divisor_ & 0x00ff) | (value << 8));
        } else {
            write_interrupt_enable_locked(value);
        }
        break;
    case interrupt_identification: write_fifo_control_locked(value); break;
    case line_control: line_control_ = value; break;
    case modem_control: write_modem_control_locked(value); break;
    case scratch: scratch_ = value; break;
    default: break;  // The status registers are read-only.
    }
}

std::uint8_t Serial::read_receiver_locked()
{
    if (fifo_count_ == 0) {
        return 0;
    }
    const std::uint8_t byte = fifo_[fifo_first_].byte;
    fifo_first_ = (fifo_first_ + 1) % fifo_.size();
    --fifo_count_;
    latch_head_locked();
    fill_from_wire_locked();
    return byte;
}

std::uint8_t Serial::read_line_status_locked()
{
    if (polls_to_wait_ > 0) {
        --polls_to_wait_;
    }
    std::uint8_t status = lsr_transmitter_idle;
    status |= fifo_count_ > 0 ? lsr_data_ready : std::uint8_t{0};
    status |= std::exchange(line_errors_, std::uint8_t{0});
    if ((fifo_control_ & fcr_enable) != 0) {
        bool error = (status & lsr_break) != 0;
        for (std::size_t i = 0; i < fifo_count_; ++i) {
            error = error || fifo_[(fifo_first_ + i) % fifo_.size()].is_break;
        }
        status |= error ? lsr_error_in_fifo : std::uint8_t{0};
    }
    // After the status was taken: the byte arrives between this poll and the next.
    fill_from_wire_locked();
    return status;
}

/// "Interrupt Identification Register", table "Interrupt Control Functions".
std::uint8_t Serial::identify_interrupt_locked() const
{
    constexpr std::array<std::size_t, 4> trigger_levels{1, 4, 8, 14};
    if ((interrupt_enable_ & ier_line_status) != 0 && line_errors_ != 0) {
        return iir_line_status;
    }
    if ((interrupt_enable_ & ier_received) != 0 && fifo_count_ > 0) {
        const bool fifos = (fifo_control_ & fcr_enable) != 0;
        const std::size_t trigger =
            fifos ? trigger_levels[static_cast<std::size_t>(fifo_control_ >> 6)] : 1;
        // Fewer than the trigger level mean that the wire is empty, so that four character times
        // without a byte may as well have passed.
        return fifo_count_ >= trigger ? iir_received : iir_timeout;
    }
    if ((interrupt_enable_ & ier_transmitter_empty) != 0 && transmitter_interrupt_) {
        return iir_transmitter_empty;
    }
    if ((interrupt_enable_ & ier_modem_status) != 0 && modem_deltas_ != 0) {
        return iir_modem_status;
    }
    return iir_none;
}

/// A terminal that is always there, or in loopback the four modem control outputs.
std::uint8_t Serial::modem_status_locked() const
{
    if ((modem_control_ & mcr_loop) == 0) {
        return msr_cts | msr_dsr | msr_dcd;
    }
    std::uint8_t status = 0;
    status |= (modem_control_ & 0x01) != 0 ? msr_dsr : std::uint8_t{0};  // DTR
    status |= (modem_control_ & mcr_rts) != 0 ? msr_cts : std::uint8_t{0};
    status |= (modem_control_ & 0x04) != 0 ? msr_ri : std::uint8_t{0};  // OUT1
    status |= (modem_control_ & mcr_out2) != 0 ? msr_dcd : std::uint8_t{0};
    return status;
}

void Serial::write_transmitter_locked(std::uint8_t value, Action& action)
{
    if ((modem_control_ & mcr_loop) != 0) {
        push_fifo_locked({value, false, false});
    } else {
        action.transmit = true;
        action.byte = value;
    }
    transmitter_interrupt_ = true;
}

void Serial::write_interrupt_enable_locked(std::uint8_t value)
{
    const std::uint8_t before = std::exchange(interrupt_enable_, value & ier_defined);
    const auto newly = static_cast<std::uint8_t>(interrupt_enable_ & ~before);
    // Enabling it with the register empty raises it at once; drivers test for that.
    if ((newly & ier_transmitter_empty) != 0) {
        transmitter_interrupt_ = true;
    }
    if ((interrupt_enable_ & ier_received) == 0) {
        held_by_rts_ = false;
    }
    fill_from_wire_locked();
}

void Serial::write_fifo_control_locked(std::uint8_t value)
{
    // "Writing a 1 to FCR0 … changing from FIFO mode to 16450 mode and vice versa … data is
    // automatically cleared from the FIFOs."
    const bool switched = ((value ^ fifo_control_) & fcr_enable) != 0;
    // "Bit 0 must be a 1 when other FCR bits are written to or they will not be programmed."
    const bool reset = (value & fcr_enable) != 0 && (value & fcr_reset_receiver) != 0;
    fifo_control_ = (value & fcr_enable) != 0 ? value & fcr_kept : std::uint8_t{0};
    if (switched || reset) {
        reset_receiver_locked();
    }
}

void Serial::write_modem_control_locked(std::uint8_t value)
{
    const std::uint8_t status_before = modem_status_locked();
    const std::uint8_t before = std::exchange(modem_control_, value & mcr_defined);
    const auto changed = static_cast<std::uint8_t>(status_before ^ modem_status_locked());
    modem_deltas_ |= (changed & msr_cts) != 0 ? std::uint8_t{0x01} : std::uint8_t{0};
    modem_deltas_ |= (changed & msr_dsr) != 0 ? std::uint8_t{0x02} : std::uint8_t{0};
    modem_deltas_ |= (changed & status_before & msr_ri) != 0 ? std::uint8_t{0x04} : std::uint8_t{0};
    modem_deltas_ |= (changed & msr_dcd) != 0 ? std::uint8_t{0x08} : std::uint8_t{0};
    // A driver that lowers RTS while it receives asks the other side to stop for a while.  One
    // that never raised it does without flow control.
    if ((value & mcr_rts) != 0) {
        held_by_rts_ = false;
    } else if ((before & mcr_rts) != 0 && (interrupt_enable_ & ier_received) != 0) {
        held_by_rts_ = true;
    }
    fill_from_wire_locked();
}

void Serial::reset_receiver_locked()
{
    // What loopback brought is gone; what came by the wire goes back to it.
    while (fifo_count_ > 0) {
        --fifo_count_;
        const Received& last = fifo_[(fifo_first_ + fifo_count_) % fifo_.size()];
        if (last.from_wire) {
            wire_.push_front(last);
        }
    }
    line_errors_ = 0;
    held_by_rts_ = false;
    polls_to_wait_ = polls_after_reset;
}

void Serial::push_fifo_locked(Received received)
{
    const std::size_t capacity = (fifo_control_ & fcr_enable) != 0 ? fifo_.size() : 1;
    if (fifo_count_ >= capacity) {
        line_errors_ |= lsr_overrun;
        if (capacity == 1) {
            // Without FIFOs the newer byte replaces the older; with them it is lost.
            fifo_[fifo_first_] = received;
        }
        return;
    }
    fifo_[(fifo_first_ + fifo_count_) % fifo_.size()] = received;
    ++fifo_count_;
    if (fifo_count_ == 1) {
        latch_head_locked();
    }
}

/// "This error is revealed to the CPU when its associated character is at the top of the FIFO."
void Serial::latch_head_locked()
{
    if (fifo_count_ > 0 && std::exchange(fifo_[fifo_first_].is_break, false)) {
        line_errors_ |= lsr_break;
    }
}

bool Serial::is_listening_locked() const
{
    if ((modem_control_ & mcr_loop) != 0 || held_by_rts_) {
        return false;
    }
    return (interrupt_enable_ & ier_received) != 0 || polls_to_wait_ == 0;
}

void Serial::fill_from_wire_locked()
{
    const bool paced = timer_ && (interrupt_enable_ & ier_received) != 0;
    if (!is_listening_locked() || (paced && resting_)) {
        return;
    }
    const std::size_t capacity = (fifo_control_ & fcr_enable) != 0 ? fifo_.size() : 1;
    const std::size_t before = fifo_count_;
    while (fifo_count_ < capacity && !wire_.empty()) {
        push_fifo_locked(wire_.front());
        wire_.pop_front();
    }
    // With nothing moved there is nothing to wait for: the guest's next read comes here.
    if (paced && !wire_.empty() && fifo_count_ > before) {
        resting_ = true;
        timer_->arm(config_.timers->now_ns() + input_interval_ns);
    }
}

void Serial::on_interval()
{
    Action action;
    {
        const std::lock_guard lock{mutex_};
        resting_ = false;
        fill_from_wire_locked();
        update_locked(action);
    }
    perform(action);
}

void Serial::update_locked(Action& action)
{
    // In loopback "the modem control output pins are forced to their inactive state".
    const bool out2 = (modem_control_ & (mcr_out2 | mcr_loop)) == mcr_out2;
    const bool connected = out2 || !config_.out2_gates_irq;
    pin_.set(connected && identify_interrupt_locked() != iir_none);
    if (refused_ && wire_.size() <= input_capacity / 2) {
        refused_ = false;
        action.room = true;
    }
}

void Serial::perform(const Action& action) noexcept
{
    if (action.transmit && config_.output) {
        const std::byte byte{action.byte};
        config_.output({&byte, 1});
    }
    pin_.deliver();
    if (action.room && config_.on_input_room) {
        config_.on_input_room();
    }
}

}  // namespace vmm::device
