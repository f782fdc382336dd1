// SPDX-License-Identifier: Apache-2.0

#include "vmm/device/system_control.hpp"

#include <utility>

#include "bus/bytes.hpp"

namespace vmm::device {

namespace {

constexpr std::uint8_t fast_reset = 0x01;
constexpr std::uint8_t a20_open = 0x02;

}  // namespace

SystemControl::SystemControl(Config config) : config_{std::move(config)}, value_{a20_open} {}

void SystemControl::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    detail::fill_open_bus(data);
    if (offset == 0 && !data.empty()) {
        data[0] = std::byte{value_.load(std::memory_order_relaxed)};
    }
}

void SystemControl::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    if (offset != 0 || data.empty()) {
        return;
    }
    const std::uint8_t value = detail::to_u8(data[0]);
    // Relaxed: the value orders nothing else.
    const std::uint8_t before = value_.exchange(value, std::memory_order_relaxed);
    const auto changed = static_cast<std::uint8_t>(before ^ value);
    if ((changed & a20_open) != 0 && config_.on_a20) {
        config_.on_a20((value & a20_open) != 0);
    }
    if ((changed & value & fast_reset) != 0 && config_.on_reset) {
        config_.on_reset();
    }
}

}  // namespace vmm::device
