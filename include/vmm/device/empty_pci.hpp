// SPDX-License-Identifier: Apache-2.0

/// @file
/// The ports of PCI configuration mechanism #1 on a machine without a PCI bus, and the reset
/// control register that chip sets keep between them.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/export.hpp"

namespace vmm::device {

inline constexpr std::uint16_t pci_config_port = 0xcf8;

/// Every configuration read gives all ones, "no device"; writes do nothing.
///
/// CONFIG_ADDRESS (offset 0, 4 bytes at once) reads as all ones too, so that a kernel that looks
/// for mechanism #1 by writing and reading it back finds none.  Offset 1 as a byte is the reset
/// control register (port 0xcf9, the FADT's RESET_REG): bit 2 going from 0 to 1 resets, bits 1
/// and 3 are kept.
///
/// Thread safety: all members may be called from any thread.
class VMM_API EmptyPci final : public bus::DeviceBase {
public:
    /// Bytes of ports.
    static constexpr std::uint64_t size = 8;

    /// `on_reset` is called on the vCPU's thread.
    explicit EmptyPci(std::function<void()> on_reset);

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

private:
    const std::function<void()> on_reset_;
    std::mutex mutex_;
    std::uint8_t reset_control_{0};
};

}  // namespace vmm::device
