// SPDX-License-Identifier: Apache-2.0

#include "vmm/device/debug_exit.hpp"

#include <algorithm>
#include <utility>

#include "bus/bytes.hpp"

namespace vmm::device {

DebugExit::DebugExit(std::function<void(std::uint32_t)> on_exit) : on_exit_{std::move(on_exit)} {}

void DebugExit::read(std::uint64_t, std::span<std::byte> data) noexcept
{
    std::fill(data.begin(), data.end(), std::byte{0});
}

void DebugExit::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    if (offset != 0 || data.empty() || !on_exit_) {
        return;
    }
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < std::min<std::size_t>(data.size(), 4); ++i) {
        value |= std::uint32_t{detail::to_u8(data[i])} << (8 * i);
    }
    on_exit_(value);
}

}  // namespace vmm::device
