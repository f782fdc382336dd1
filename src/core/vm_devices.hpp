// SPDX-License-Identifier: Apache-2.0

/// @file
/// The devices of a VM (device API): made by type, and counted where there may be one.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "vmm/vm_device.hpp"

namespace vmm::core {

/// Thread safety: every member from any thread.
class VmDevices {
public:
    /// As `Vm::create_device()`; `vm` goes to the device.
    [[nodiscard]] Result<std::shared_ptr<VmDevice>> create(std::uint32_t number, Vm vm);

private:
    std::mutex mutex_;
    std::map<std::uint32_t, std::weak_ptr<VmDevice>> single_;  // Of types with one a VM.
};

}  // namespace vmm::core
