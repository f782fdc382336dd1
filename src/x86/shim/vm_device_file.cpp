// SPDX-License-Identifier: Apache-2.0

/// @file
/// Ioctls of the device API: attributes.

#include "x86/shim/vm_device_file.hpp"

#include <cerrno>
#include <cstddef>
#include <vector>

#include "x86/shim/descriptors.hpp"
#include "x86/shim/library_scope.hpp"

namespace vmm::shim {
namespace {

DeviceAttribute attribute_of(const kvm_device_attr& wanted) noexcept
{
    return {wanted.group, wanted.attr};
}

/// What the client's pointer leads to; empty where there is no such attribute, as the device says
/// itself then.
std::vector<std::byte> value_for(VmDevice& device, DeviceAttribute attribute)
{
    const Result<std::size_t> size = device.attribute_size(attribute);
    return std::vector<std::byte>(size ? *size : 0U);
}

long set_device_attr(VmDeviceFile& file, const kvm_device_attr& wanted)
{
    const DeviceAttribute attribute = attribute_of(wanted);
    std::vector<std::byte> value = value_for(file.device(), attribute);
    if (!value.empty() && !copy_in(value.data(), UserAddress{wanted.addr}, value.size())) {
        return -EFAULT;
    }
    return result_of(file.device().set_attribute(attribute, value));
}

long get_device_attr(VmDeviceFile& file, const kvm_device_attr& wanted)
{
    const DeviceAttribute attribute = attribute_of(wanted);
    std::vector<std::byte> value = value_for(file.device(), attribute);
    const long result = result_of(file.device().attribute(attribute, value));
    if (result < 0) {
        return result;
    }
    return copy_out(UserAddress{wanted.addr}, value.data(), value.size()) ? 0 : -EFAULT;
}

long has_device_attr(VmDeviceFile& file, const kvm_device_attr& wanted)
{
    const Result<std::size_t> size = file.device().attribute_size(attribute_of(wanted));
    return size ? 0 : refused(size.error());
}

constexpr Row<VmDeviceFile> rows[] = {
    {KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR", reads<set_device_attr>},
    {KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR", reads<get_device_attr>},
    {KVM_HAS_DEVICE_ATTR, "KVM_HAS_DEVICE_ATTR", reads<has_device_attr>},
};

}  // namespace

long VmDeviceFile::ioctl(unsigned request, unsigned long argument) noexcept
{
    static const auto& table = *new Table<VmDeviceFile>{"a device", ENOTTY, {rows}};
    if (!is_of_this_process()) {
        return -EIO;
    }
    const LibraryScope inside;
    return table.call(*this, request, argument);
}

long VmDeviceFile::may_map(std::size_t /*size*/,
                           int /*protection*/,
                           int /*flags*/,
                           off_t /*offset*/) noexcept
{
    return -ENODEV;
}

long create_device(VmFile& file, kvm_create_device& wanted)
{
    const auto name = device_type_name(wanted.type);
    if (!name) {
        return -ENODEV;
    }
    if ((wanted.flags & KVM_CREATE_DEVICE_TEST) != 0) {
        return 0;
    }
    auto device = file.vm().create_device(wanted.type);
    if (!device) {
        return refused(device.error());
    }
    auto fd = make_memfd(*name, 0);
    if (!fd) {
        return refused(fd.error());
    }
    const long installed =
        install(*std::move(fd),
                std::make_shared<VmDeviceFile>(file.shared_from_this(), *std::move(device), *name));
    if (installed < 0) {
        return installed;
    }
    wanted.fd = static_cast<__u32>(installed);
    return 0;
}

}  // namespace vmm::shim
