// SPDX-License-Identifier: Apache-2.0

/// @file
/// A port that prints: what the Bochs emulator and firmware after it call port E9.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "vmm/bus/device.hpp"
#include "vmm/export.hpp"

namespace vmm::device {

inline constexpr std::uint16_t debug_console_port = 0xe9;

/// Bytes written go to the sink, on the vCPU's thread; a read gives 0xe9, by which guests find it.
///
/// Thread safety: as that of the sink.
class VMM_API DebugConsole final : public bus::DeviceBase {
public:
    /// Bytes of ports.
    static constexpr std::uint64_t size = 1;

    explicit DebugConsole(std::function<void(std::span<const std::byte>)> sink);

    void read(std::uint64_t offset, std::span<std::byte> data) noexcept override;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override;

private:
    const std::function<void(std::span<const std::byte>)> sink_;
};

}  // namespace vmm::device
