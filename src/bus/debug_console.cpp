// SPDX-License-Identifier: Apache-2.0

#include "vmm/device/debug_console.hpp"

#include <utility>

#include "bus/bytes.hpp"

namespace vmm::device {

DebugConsole::DebugConsole(std::function<void(std::span<const std::byte>)> sink)
    : sink_{std::move(sink)}
{
}

void DebugConsole::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    detail::fill_open_bus(data);
    if (offset == 0 && !data.empty()) {
        data[0] = std::byte{0xe9};
    }
}

void DebugConsole::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    if (offset == 0 && !data.empty() && sink_) {
        sink_(data.first(1));
    }
}

}  // namespace vmm::device
