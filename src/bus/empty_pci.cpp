// SPDX-License-Identifier: Apache-2.0

// PCI Local Bus Specification, "Configuration Mechanism #1": anything but a full double word at
// 0xcf8 is an access to some other I/O device there.

#include "vmm/device/empty_pci.hpp"

#include <utility>

#include "bus/bytes.hpp"

namespace vmm::device {

namespace {

constexpr std::uint64_t reset_offset = 1;
constexpr std::uint8_t reset_processors = 0x04;
constexpr std::uint8_t reset_kept = 0x0e;

}  // namespace

EmptyPci::EmptyPci(std::function<void()> on_reset) : on_reset_{std::move(on_reset)} {}

void EmptyPci::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    detail::fill_open_bus(data);
    if (offset == reset_offset && data.size() == 1) {
        const std::lock_guard lock{mutex_};
        data[0] = std::byte{reset_control_};
    }
}

void EmptyPci::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    if (offset != reset_offset || data.size() != 1) {
        return;
    }
    bool reset = false;
    {
        const std::lock_guard lock{mutex_};
        const std::uint8_t value = detail::to_u8(data[0]) & reset_kept;
        reset = (value & ~reset_control_ & reset_processors) != 0;
        // The bit falls with the reset it caused, so that the next one works too.
        reset_control_ = value & static_cast<std::uint8_t>(~reset_processors);
    }
    if (reset && on_reset_) {
        on_reset_();
    }
}

}  // namespace vmm::device
