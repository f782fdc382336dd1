// SPDX-License-Identifier: Apache-2.0

/// @file
/// A device of the device API as a file.

#pragma once

#include <memory>
#include <string>
#include <utility>

#include <linux/kvm.h>

#include "vmm/vm_device.hpp"
#include "x86/shim/file.hpp"
#include "x86/shim/vm_file.hpp"

namespace vmm::shim {

/// The VM lives as long, as with KVM.
class VmDeviceFile final : public File {
public:
    VmDeviceFile(std::shared_ptr<VmFile> vm,
                 std::shared_ptr<VmDevice> device,
                 std::string name) noexcept
        : vm_{std::move(vm)},
          device_{std::move(device)},
          name_{std::move(name)}
    {
    }

    [[nodiscard]] long ioctl(unsigned request, unsigned long argument) noexcept override;
    [[nodiscard]] std::string link_name() const override { return "anon_inode:" + name_; }
    [[nodiscard]] long may_map(std::size_t size,
                               int protection,
                               int flags,
                               off_t offset) noexcept override;

    [[nodiscard]] VmDevice& device() noexcept { return *device_; }

private:
    std::shared_ptr<VmFile> vm_;
    std::shared_ptr<VmDevice> device_;
    std::string name_;
};

/// KVM_CREATE_DEVICE.
[[nodiscard]] long create_device(VmFile& vm, kvm_create_device& wanted);

}  // namespace vmm::shim
