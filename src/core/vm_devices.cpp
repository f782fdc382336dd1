// SPDX-License-Identifier: Apache-2.0

#include "core/vm_devices.hpp"

#include <optional>
#include <utility>

#include <fmt/format.h>

#include "core/vfio_device.hpp"

namespace vmm {
namespace {

/// Those of the process.
class DeviceTypes {
public:
    static DeviceTypes& instance()
    {
        static DeviceTypes& one = *new DeviceTypes;
        return one;
    }

    bool add(std::uint32_t number, VmDeviceType type)
    {
        const std::lock_guard lock{mutex_};
        return types_.emplace(number, std::make_shared<const VmDeviceType>(std::move(type))).second;
    }
    void remove(std::uint32_t number)
    {
        const std::lock_guard lock{mutex_};
        types_.erase(number);
    }
    /// Null if there is none.
    std::shared_ptr<const VmDeviceType> find(std::uint32_t number)
    {
        const std::lock_guard lock{mutex_};
        const auto found = types_.find(number);
        return found != types_.end() ? found->second : nullptr;
    }

private:
    DeviceTypes()
    {
        add(device_type_vfio,
            {"kvm-vfio", true, [](Vm) -> Result<std::shared_ptr<VmDevice>> {
                 return std::shared_ptr<VmDevice>{std::make_shared<core::VfioDevice>()};
             }});
    }

    std::mutex mutex_;
    std::map<std::uint32_t, std::shared_ptr<const VmDeviceType>> types_;
};

}  // namespace

VmDevice::~VmDevice() = default;

Result<void> VmDevice::set_attribute(DeviceAttribute attribute,
                                     std::span<const std::byte> /*value*/)
{
    return Error{std::errc::operation_not_permitted,
                 fmt::format("KVM_SET_DEVICE_ATTR, {} of group {}: this kind of device has nothing "
                             "to set",
                             attribute.number, attribute.group)};
}

Result<void> VmDevice::attribute(DeviceAttribute attribute, std::span<std::byte> /*value*/) const
{
    return Error{std::errc::operation_not_permitted,
                 fmt::format("KVM_GET_DEVICE_ATTR, {} of group {}: this kind of device has nothing "
                             "to get",
                             attribute.number, attribute.group)};
}

Result<void> register_device_type(std::uint32_t number, VmDeviceType type)
{
    if (!type.create) {
        return Error{std::errc::invalid_argument,
                     fmt::format("register_device_type({}): without `create` there is no way to "
                                 "make one",
                                 number)};
    }
    if (!DeviceTypes::instance().add(number, std::move(type))) {
        return Error{std::errc::file_exists,
                     fmt::format("register_device_type({}): the number is in use; choose another, "
                                 "from 0x1000 on",
                                 number)};
    }
    return success;
}

void unregister_device_type(std::uint32_t number)
{
    DeviceTypes::instance().remove(number);
}

std::optional<std::string> device_type_name(std::uint32_t number)
{
    const auto type = DeviceTypes::instance().find(number);
    return type != nullptr ? std::optional{type->name} : std::nullopt;
}

namespace core {

Result<std::shared_ptr<VmDevice>> VmDevices::create(std::uint32_t number, Vm vm)
{
    const auto type = DeviceTypes::instance().find(number);
    if (type == nullptr) {
        return Error{
            std::errc::no_such_device,
            fmt::format("create_device({}): there is no such type; 4 is VFIO's, others are "
                        "added by register_device_type",
                        number)};
    }
    if (!type->one_per_vm) {
        return type->create(std::move(vm));
    }
    const std::lock_guard lock{mutex_};
    std::weak_ptr<VmDevice>& single = single_[number];
    if (!single.expired()) {
        return Error{std::errc::device_or_resource_busy,
                     fmt::format("create_device({}): this VM has a {} already; one is all it can "
                                 "have",
                                 number, type->name)};
    }
    VMM_TRY(auto device, type->create(std::move(vm)));
    single = device;
    return device;
}

}  // namespace core
}  // namespace vmm
