// SPDX-License-Identifier: Apache-2.0

/// @file
/// What sits on a bus.
///
///     class Scratch final : public vmm::bus::DeviceBase {
///     public:
///         void read(std::uint64_t offset, std::span<std::byte> data) noexcept override { … }
///         void write(std::uint64_t offset, std::span<const std::byte> data) noexcept override { … }
///     };

#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vmm::bus {

/// Something that answers reads and writes at an offset into the range it is registered at.
///
/// A device never learns its absolute address, so it can be moved (a PCI BAR) or mapped
/// twice.  It cannot fail: what the guest does wrong has an architected answer, such as
/// reading all ones, and giving that answer is the device's work.
// clang-format off
template <typename D>
concept Device = requires(D& device, std::uint64_t offset,
                          std::span<std::byte> in, std::span<const std::byte> out) {
    { device.read(offset, in) } noexcept -> std::same_as<void>;
    { device.write(offset, out) } noexcept -> std::same_as<void>;
};
// clang-format on

/// A device chosen at run time, for buses that hold devices of many kinds.
///
/// Thread safety: any vCPU's thread may call at any time, several at once; an implementation
/// locks what it must, and never calls out (an interrupt line, a callback) under its lock.
class DeviceBase {
public:
    DeviceBase() = default;
    DeviceBase(const DeviceBase&) = delete;
    DeviceBase& operator=(const DeviceBase&) = delete;
    DeviceBase(DeviceBase&&) = delete;
    DeviceBase& operator=(DeviceBase&&) = delete;
    virtual ~DeviceBase() = default;

    /// The guest reads `data.size()` bytes (1, 2, 4 or 8) at `offset` into the range.
    virtual void read(std::uint64_t offset, std::span<std::byte> data) noexcept = 0;
    /// The guest writes `data` at `offset` into the range.
    virtual void write(std::uint64_t offset, std::span<const std::byte> data) noexcept = 0;
};

static_assert(Device<DeviceBase>);

}  // namespace vmm::bus
