// SPDX-License-Identifier: Apache-2.0

/// @file
/// The VFIO device of the device API: which groups a VM uses.

#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "vmm/unique_fd.hpp"
#include "vmm/vm_device.hpp"

namespace vmm::core {

/// Whether a descriptor is that of a VFIO group, `/dev/vfio/NUMBER`.
[[nodiscard]] bool is_vfio_group(int fd);

class VfioDevice final : public VmDevice {
public:
    /// @param is_group  Tests have no VFIO, and other files instead.
    explicit VfioDevice(bool (*is_group)(int fd) = is_vfio_group) noexcept : is_group_{is_group} {}

    [[nodiscard]] Result<std::size_t> attribute_size(DeviceAttribute attribute) const override;
    Result<void> set_attribute(DeviceAttribute attribute,
                               std::span<const std::byte> value) override;

private:
    using Groups = std::vector<UniqueFd>;

    [[nodiscard]] Result<void> add(int fd);
    [[nodiscard]] Result<void> remove(int fd);
    /// The one that leads to the same open file.
    [[nodiscard]] Groups::iterator find(int fd);

    bool (*const is_group_)(int fd);
    std::mutex mutex_;
    Groups groups_;  // Descriptors of our own, so that the groups stay open.
};

}  // namespace vmm::core
