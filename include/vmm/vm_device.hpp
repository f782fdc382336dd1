// SPDX-License-Identifier: Apache-2.0

/// @file
/// The device API: what a VMM and its VM agree on beside memory, interrupts and vCPUs, as
/// attributes by number (KVM_CREATE_DEVICE).  A guest sees nothing of it; what a guest talks to is
/// a `bus::DeviceBase`.
///
///     std::shared_ptr<vmm::VmDevice> vfio = vm.create_device(vmm::device_type_vfio).value();
///     vfio->set_attribute(vmm::vfio_group_add, std::as_bytes(std::span{&group_fd, 1})).value();
///
/// A type of one's own is a class over `VmDevice`, registered by `register_device_type()`.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "vmm/export.hpp"
#include "vmm/result.hpp"
#include "vmm/vm.hpp"

namespace vmm {

/// Which attribute of a device, as struct kvm_device_attr has it.
struct DeviceAttribute {
    std::uint32_t group{};
    std::uint64_t number{};

    friend bool operator==(const DeviceAttribute&, const DeviceAttribute&) noexcept = default;
};

/// A device of the device API.  Lives as long as the caller keeps it.
///
/// Thread safety: every member from any thread.
class VMM_API VmDevice {
public:
    VmDevice() = default;
    VmDevice(const VmDevice&) = delete;
    VmDevice& operator=(const VmDevice&) = delete;
    VmDevice(VmDevice&&) = delete;
    VmDevice& operator=(VmDevice&&) = delete;
    virtual ~VmDevice();

    /// KVM_HAS_DEVICE_ATTR: how many bytes the value of an attribute has.
    ///
    /// @return ENXIO if there is no such attribute.
    [[nodiscard]] virtual Result<std::size_t> attribute_size(DeviceAttribute attribute) const = 0;
    /// KVM_SET_DEVICE_ATTR.
    ///
    /// @return ENXIO if there is no such attribute, EINVAL for a value of another size; EPERM, if a
    /// class does not say otherwise: this kind of device has nothing to set.
    virtual Result<void> set_attribute(DeviceAttribute attribute, std::span<const std::byte> value);
    /// KVM_GET_DEVICE_ATTR, likewise.
    [[nodiscard]] virtual Result<void> attribute(DeviceAttribute attribute,
                                                 std::span<std::byte> value) const;
};

/// A kind of device that `Vm::create_device()` can make.
struct VmDeviceType {
    std::string name{};  ///< What a descriptor of one is called: "kvm-vfio".
    bool one_per_vm{};   ///< A second one, while there is a first, is refused with EBUSY.
    /// Makes one.  It may keep the VM, which lives as long then, and must not make devices itself.
    std::function<Result<std::shared_ptr<VmDevice>>(Vm vm)> create{};
};

/// Adds a kind of device to those of this process.  KVM's own numbers are below 0x1000; `vfio` is
/// there from the start.
///
/// @return EEXIST for a number in use, EINVAL without `create`.
VMM_API Result<void> register_device_type(std::uint32_t number, VmDeviceType type);
/// Takes it away again; devices that were made stay.
VMM_API void unregister_device_type(std::uint32_t number);
/// KVM_CREATE_DEVICE_TEST: the name of a kind of device, or nothing if there is none of that
/// number.
[[nodiscard]] VMM_API std::optional<std::string> device_type_name(std::uint32_t number);

/// KVM_DEV_TYPE_VFIO: which VFIO groups of the host a VM uses, one device a VM.  It holds a group
/// open from `vfio_group_add` to `vfio_group_del` or its own end, and nothing more: the caller maps
/// guest memory for DMA, which is coherent here as far as the host's is.  The host's KVM is not
/// told on engine `kvm`, so a mediated device that asks for its KVM finds none.
inline constexpr std::uint32_t device_type_vfio = 4;
/// KVM_DEV_VFIO_GROUP_ADD: the value is the descriptor of a group, an `int`.
///
/// EBADF for a closed one, EINVAL for one of another kind, EEXIST if the device has it already.
inline constexpr DeviceAttribute vfio_group_add{1, 1};
/// KVM_DEV_VFIO_GROUP_DEL.  EBADF for a closed descriptor, ENOENT if the device does not have it.
inline constexpr DeviceAttribute vfio_group_del{1, 2};

}  // namespace vmm
