// SPDX-License-Identifier: Apache-2.0

/// @file
/// Part of a device, as a device: for one whose ports do not lie together.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmm/bus/device.hpp"

namespace vmm::device {

/// Offset 0 of this is offset `offset` of `target`.
///
///     I8042 controller{…};                              // ports 0x60 and 0x64
///     PortView command{controller, I8042::command_offset};
///
/// Thread safety: that of the target, which must outlive the view.
class PortView final : public bus::DeviceBase {
public:
    PortView(bus::DeviceBase& target, std::uint64_t offset) noexcept
        : target_{target},
          offset_{offset}
    {
    }

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override
    {
        target_.read(offset_ + offset, data);
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override
    {
        target_.write(offset_ + offset, data);
    }

private:
    bus::DeviceBase& target_;
    std::uint64_t offset_;
};

}  // namespace vmm::device
