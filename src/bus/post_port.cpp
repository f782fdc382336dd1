// SPDX-License-Identifier: Apache-2.0

#include "vmm/device/post_port.hpp"

#include "bus/bytes.hpp"

namespace vmm::device {

void PostPort::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    detail::fill_open_bus(data);
    if (offset == 0 && !data.empty()) {
        data[0] = std::byte{code()};
    }
}

void PostPort::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    if (offset == 0 && !data.empty()) {
        code_.store(detail::to_u8(data[0]), std::memory_order_relaxed);
    }
}

}  // namespace vmm::device
