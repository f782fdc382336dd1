// SPDX-License-Identifier: Apache-2.0

/// @file
/// The pair of 8259A interrupt controllers of a PC.  Intel 8259A datasheet; 82371SB datasheet for
/// the edge/level control registers.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/x86/irqchip_state.hpp"

namespace vmm::x86::irqchip {

/// Who is wired to the PIC.  Called without any lock held.
class PicListener {
public:
    PicListener() = default;
    PicListener(const PicListener&) = delete;
    PicListener& operator=(const PicListener&) = delete;
    PicListener(PicListener&&) = delete;
    PicListener& operator=(PicListener&&) = delete;
    virtual ~PicListener() = default;

    /// INTR went up.
    virtual void pic_output_rose() noexcept = 0;
    /// The interrupts of these pins, a bit each, have ended.
    virtual void pic_acknowledged(std::uint16_t pins) noexcept = 0;
};

/// Master and slave.  As a device, offset 0 is port 0x20, and the other ports lie at their
/// distance from it.
///
/// Thread safety: every member from any thread.  Its lock is a leaf.
class Pic final : public bus::DeviceBase {
public:
    static constexpr std::uint32_t pin_count = 16;
    static constexpr std::uint64_t slave_offset = 0xa0 - 0x20;
    static constexpr std::uint64_t elcr_offset = 0x4d0 - 0x20;

    explicit Pic(PicListener& listener) noexcept;

    /// Drives a pin (0 to 15), which is high as long as one of the sources (0 to 63) drives it.
    ///
    /// @return -1 masked, 0 coalesced, 1 pending now; 1 for a falling line.
    int set_line(std::uint32_t pin, unsigned source, bool level) noexcept;

    /// The INTR output.
    [[nodiscard]] bool output() const noexcept { return output_.load(std::memory_order_acquire); }
    /// INTA: the vector to deliver; that of IRQ 7 if the request has gone away.
    std::uint8_t acknowledge() noexcept;

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    [[nodiscard]] PicState state(bool slave) const noexcept;
    void set_state(bool slave, const PicState& state) noexcept;
    void reset() noexcept;

    /// The listener is going away: no call of it will come after this one has returned, provided
    /// that no vCPU runs.
    void disconnect() noexcept;

private:
    struct Chip {
        PicState s;
        std::array<std::uint64_t, 8> sources{};
    };
    struct Effects {
        std::uint16_t acknowledged{};
        bool rose{};
    };

    int set_input_locked(Chip& chip, unsigned pin, bool level) noexcept;
    [[nodiscard]] int request_locked(const Chip& chip) const noexcept;
    void update_locked(Effects& effects) noexcept;
    void in_service_locked(Chip& chip, unsigned pin, Effects& effects) noexcept;
    void end_locked(Chip& chip, unsigned pin, Effects& effects) noexcept;
    void write_command_locked(Chip& chip, std::uint8_t value, Effects& effects) noexcept;
    void write_icw1_locked(Chip& chip, std::uint8_t value, Effects& effects) noexcept;
    void write_ocw2_locked(Chip& chip, std::uint8_t value, Effects& effects) noexcept;
    void write_data_locked(Chip& chip, std::uint8_t value) noexcept;
    [[nodiscard]] std::uint8_t read_locked(Chip& chip, bool data_port, Effects& effects) noexcept;
    [[nodiscard]] bool is_slave(const Chip& chip) const noexcept { return &chip == &chips_[1]; }
    void perform(const Effects& effects) noexcept;

    std::atomic<PicListener*> listener_;
    mutable std::mutex mutex_;
    std::array<Chip, 2> chips_;
    std::atomic<bool> output_{};  // Written under the lock.
};

}  // namespace vmm::x86::irqchip
