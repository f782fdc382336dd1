// SPDX-License-Identifier: Apache-2.0

/// @file
/// A serial port: the National Semiconductor PC16550D, as wired in a PC.
///
///     Serial::Config config;
///     config.irq = …;                                  // IRQ 4 for COM1
///     config.output = [&](std::span<const std::byte> bytes) { terminal.write(bytes); };
///     Serial com1{std::move(config)};                  // register at ports 0x3f8 to 0x3ff
///     com1.receive(bytes_typed);

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/device/irq_line.hpp"
#include "vmm/export.hpp"
#include "vmm/timer.hpp"

namespace vmm::device {

inline constexpr std::uint16_t com1_port = 0x3f8;
inline constexpr std::uint16_t com2_port = 0x2f8;
inline constexpr std::uint32_t com1_irq = 4;
inline constexpr std::uint32_t com2_irq = 3;

/// A PC16550D with its eight registers, both FIFOs, its four interrupt sources, loopback and the
/// divisor latch.  The transmitter is never busy: a byte written is in the output when the write
/// returns.  The baud rate is remembered and has no effect.
///
/// Input waits on the wire, in `receive()`'s queue, until the guest shows that it listens: it has
/// enabled the receive interrupt, or polls the line status.  A receiver FIFO that the guest resets
/// gives its bytes back to the wire.  So input typed or piped while a kernel is still booting
/// reaches the program it was meant for, which on real hardware a fast typist would lose.
/// Deviates: "PC16550D, FIFO Control Register" drops those bytes.
///
/// An access of more than one byte is one access to each register it covers, lowest first; past
/// the eighth register reads give 0xff and writes do nothing.
///
/// Thread safety: all members may be called from any thread.
class VMM_API Serial final : public bus::DeviceBase {
public:
    /// Bytes of ports.
    static constexpr std::uint64_t size = 8;
    /// Bytes `receive()` holds for the guest beyond its FIFO.
    static constexpr std::size_t input_capacity = 4096;
    /// See `Config::timers`.
    static constexpr std::uint64_t input_interval_ns = 200'000;

    struct Config {
        IrqLine irq{};
        /// Gets each byte transmitted, on the vCPU's thread, perhaps on several at once.  It may
        /// block: then the vCPU waits.
        std::function<void(std::span<const std::byte>)> output{};
        /// Called when `receive()` would take bytes again after it refused some; any thread.
        std::function<void()> on_input_room{};
        /// With it, a guest that receives by interrupt gets input as a fast line would bring it, at
        /// most a FIFO full each `input_interval_ns`.  Without it there is always more as soon as
        /// the guest has read what there was, and a long input keeps it in its interrupt handler
        /// until its buffers overflow.  Must outlive the port.
        TimerService* timers{};
        /// On a PC, the modem control register's OUT2 connects the interrupt; some hobby kernels
        /// know only emulators where it is always connected, and need `false`.
        bool out2_gates_irq{true};
    };

    explicit Serial(Config config);

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    /// Bytes arrive on the wire.  Takes as many as there is room for, from the first on, and
    /// returns their count; it loses none of those.  After it took fewer than offered,
    /// `Config::on_input_room` says when to offer the rest.
    [[nodiscard]] std::size_t receive(std::span<const std::byte> bytes);

    /// A break condition arrives on the wire, after the bytes before it.
    void receive_break();

private:
    struct Received {
        std::uint8_t byte{};
        bool is_break{};
        bool from_wire{};  // Else from the transmitter, in loopback.
    };
    /// What a register access asks to be done once the lock is open.
    struct Action {
        bool transmit{false};
        std::uint8_t byte{};
        bool room{false};
    };

    [[nodiscard]] std::uint8_t read_locked(std::uint64_t offset);
    void write_locked(std::uint64_t offset, std::uint8_t value, Action& action);
    [[nodiscard]] std::uint8_t read_receiver_locked();
    [[nodiscard]] std::uint8_t read_line_status_locked();
    [[nodiscard]] std::uint8_t identify_interrupt_locked() const;
    [[nodiscard]] std::uint8_t modem_status_locked() const;
    void write_transmitter_locked(std::uint8_t value, Action& action);
    void write_interrupt_enable_locked(std::uint8_t value);
    void write_fifo_control_locked(std::uint8_t value);
    void write_modem_control_locked(std::uint8_t value);
    void reset_receiver_locked();
    void push_fifo_locked(Received received);
    void latch_head_locked();
    void fill_from_wire_locked();
    [[nodiscard]] bool is_listening_locked() const;
    void update_locked(Action& action);
    void perform(const Action& action) noexcept;
    void on_interval();

    const Config config_;
    IrqPin pin_;
    std::mutex mutex_;

    std::deque<Received> wire_;  // Sent by the host, not in the FIFO yet.
    bool refused_{false};        // receive() took less than it was offered.
    std::array<Received, 16> fifo_{};
    std::size_t fifo_first_{0};
    std::size_t fifo_count_{0};

    std::uint8_t interrupt_enable_{0};
    std::uint8_t fifo_control_{0};
    std::uint8_t line_control_{0};
    std::uint8_t modem_control_{0};
    std::uint8_t line_errors_{0};
    std::uint8_t modem_deltas_{0};
    std::uint8_t scratch_{0};
    std::uint16_t divisor_{12};
    bool transmitter_interrupt_{false};
    bool held_by_rts_{false};
    bool resting_{false};  // The line brings nothing until the timer expires.
    // Line-status reads to go before a polling guest is taken to listen after a FIFO reset.
    unsigned polls_to_wait_{0};

    std::unique_ptr<Timer> timer_;  // Last: gone before what its callback uses.
};

}  // namespace vmm::device
