// SPDX-License-Identifier: Apache-2.0

/// @file
/// A port by which a test guest ends its machine and says how it went.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/export.hpp"

namespace vmm::device {

inline constexpr std::uint16_t debug_exit_port = 0xf4;

/// A write of 1, 2 or 4 bytes gives its value, little-endian, to the callback, on the vCPU's
/// thread.  Reads give all zeros, so that a guest can tell the device from an empty port.
///
/// Thread safety: as that of the callback.
class VMM_API DebugExit final : public bus::DeviceBase {
public:
    /// Bytes of ports.
    static constexpr std::uint64_t size = 4;

    explicit DebugExit(std::function<void(std::uint32_t value)> on_exit);

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

private:
    const std::function<void(std::uint32_t)> on_exit_;
};

}  // namespace vmm::device
