// SPDX-License-Identifier: Apache-2.0

/// @file
/// Port 0x80, where firmware shows how far its power-on self-test came and where kernels write to
/// pass a microsecond.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/export.hpp"

namespace vmm::device {

inline constexpr std::uint16_t post_port = 0x80;

/// A byte that keeps what was written to it.
///
/// Thread safety: all members may be called from any thread.
class VMM_API PostPort final : public bus::DeviceBase {
public:
    /// Bytes of ports.
    static constexpr std::uint64_t size = 1;

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

    /// The code written last, at first 0.
    [[nodiscard]] std::uint8_t code() const noexcept
    {
        return code_.load(std::memory_order_relaxed);
    }

private:
    std::atomic<std::uint8_t> code_{0};  // Alone: orders nothing.
};

}  // namespace vmm::device
