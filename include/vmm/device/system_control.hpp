// SPDX-License-Identifier: Apache-2.0

/// @file
/// System control port A (port 0x92) of the PS/2 and every PC since: fast reset and fast A20.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/export.hpp"

namespace vmm::device {

inline constexpr std::uint16_t system_control_port = 0x92;

/// Bit 0 going from 0 to 1 resets the processors, bit 1 opens the gate of address line 20; the
/// other bits are kept.  PS/2 Technical Reference, "System Control Port A".
///
/// Thread safety: all members may be called from any thread.
class VMM_API SystemControl final : public bus::DeviceBase {
public:
    /// Bytes of ports.
    static constexpr std::uint64_t size = 1;

    struct Config {
        /// On the vCPU's thread.
        std::function<void()> on_reset{};
        /// Called when the gate opens (true) or closes.
        std::function<void(bool)> on_a20{};
    };

    explicit SystemControl(Config config);

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

private:
    const Config config_;
    std::atomic<std::uint8_t> value_;
};

}  // namespace vmm::device
