// SPDX-License-Identifier: Apache-2.0

// The device API: types, devices, attributes; the VFIO device.

#include <cstring>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/vfio_device.hpp"
#include "small_vm.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm {
namespace {

using test::SmallVm;

constexpr std::uint32_t own_type = 0x1234;

std::span<const std::byte> bytes_of(const int& fd)
{
    return std::as_bytes(std::span{&fd, 1});
}

class VmDevices : public test::EveryEngine {
protected:
    ~VmDevices() override { unregister_device_type(own_type); }
};

TEST_P(VmDevices, OfAnUnknownTypeAreRefused)
{
    SmallVm small{engine()};
    EXPECT_EQ(small.kvm().check_extension(Capability::DeviceCtrl), 1);
    EXPECT_EQ(device_type_name(device_type_vfio), "kvm-vfio");
    EXPECT_EQ(device_type_name(own_type), std::nullopt);
    EXPECT_EQ(small.vm().create_device(own_type).error().errno_value(), ENODEV);
}

TEST_P(VmDevices, OneVfioDeviceIsAllAVmHas)
{
    SmallVm small{engine()};
    auto first = small.vm().create_device(device_type_vfio).value();
    EXPECT_EQ(small.vm().create_device(device_type_vfio).error().errno_value(), EBUSY);
    SmallVm other{engine()};
    EXPECT_TRUE(other.vm().create_device(device_type_vfio));
    first.reset();
    EXPECT_TRUE(small.vm().create_device(device_type_vfio));
}

/// One number that can be set and read.
class Register final : public VmDevice {
public:
    explicit Register(Vm vm) : vm_{std::move(vm)} {}

    [[nodiscard]] Result<std::size_t> attribute_size(DeviceAttribute attribute) const override
    {
        if (attribute != DeviceAttribute{7, 8}) {
            return Error{std::errc::no_such_device_or_address, "Register: no such attribute"};
        }
        return sizeof value_;
    }
    Result<void> set_attribute(DeviceAttribute attribute, std::span<const std::byte> value) override
    {
        VMM_TRY(const std::size_t size, attribute_size(attribute));
        std::memcpy(&value_, value.data(), size);
        return success;
    }
    [[nodiscard]] Result<void> attribute(DeviceAttribute attribute,
                                         std::span<std::byte> value) const override
    {
        VMM_TRY(const std::size_t size, attribute_size(attribute));
        std::memcpy(value.data(), &value_, size);
        return success;
    }
    /// It reaches its VM.
    [[nodiscard]] bool stores(Gpa at) const { return vm_.memory().write(at, value_); }

private:
    Vm vm_;
    std::uint32_t value_{};
};

TEST_P(VmDevices, AUserAddsATypeOfItsOwn)
{
    ASSERT_TRUE(register_device_type(own_type, {"register", false, [](Vm vm) {
                                                    return Result<std::shared_ptr<VmDevice>>{
                                                        std::make_shared<Register>(std::move(vm))};
                                                }}));
    EXPECT_EQ(device_type_name(own_type), "register");
    SmallVm small{engine()};
    auto device = small.vm().create_device(own_type).value();
    EXPECT_TRUE(small.vm().create_device(own_type)) << "any number of this type";
    const std::uint32_t written = 0x5566'7788;
    std::uint32_t read = 0;
    constexpr DeviceAttribute number{7, 8};
    ASSERT_TRUE(device->set_attribute(number, std::as_bytes(std::span{&written, 1})));
    ASSERT_TRUE(device->attribute(number, std::as_writable_bytes(std::span{&read, 1})));
    EXPECT_EQ(read, written);
    EXPECT_TRUE(dynamic_cast<Register&>(*device).stores(Gpa{0x2000}));
    EXPECT_EQ(small.byte_at(0x2000), 0x88U);
    unregister_device_type(own_type);
    EXPECT_EQ(small.vm().create_device(own_type).error().errno_value(), ENODEV);
    EXPECT_TRUE(device->attribute_size(number)) << "those that were made stay";
}

INSTANTIATE_TEST_SUITE_P(Engines, VmDevices, test::engines, test::engine_name);

TEST(DeviceTypes, HaveANumberEachAndAWayToBeMade)
{
    const auto none = [](Vm) {
        return Result<std::shared_ptr<VmDevice>>{Error{std::errc::io_error, "none"}};
    };
    EXPECT_EQ(register_device_type(device_type_vfio, {"mine", false, none}).error().errno_value(),
              EEXIST);
    EXPECT_EQ(register_device_type(own_type, {"mine", false, {}}).error().errno_value(), EINVAL);
    EXPECT_EQ(device_type_name(own_type), std::nullopt);
    ASSERT_TRUE(register_device_type(own_type, {"mine", true, none}));
    SmallVm small;
    EXPECT_EQ(small.vm().create_device(own_type).error().errno_value(), EIO);
    EXPECT_EQ(small.vm().create_device(own_type).error().errno_value(), EIO)
        << "one that was not made is not in the way";
    unregister_device_type(own_type);
}

TEST(VfioDevice, HasTwoAttributesToSetAndNoneToGet)
{
    SmallVm small;
    auto device = small.vm().create_device(device_type_vfio).value();
    int fd = -1;
    EXPECT_EQ(device->attribute_size(vfio_group_add).value(), sizeof fd);
    EXPECT_EQ(device->attribute_size(vfio_group_del).value(), sizeof fd);
    for (const DeviceAttribute other : {DeviceAttribute{0, 1}, {1, 0}, {1, 3}, {2, 1}}) {
        EXPECT_EQ(device->attribute_size(other).error().errno_value(), ENXIO);
        EXPECT_EQ(device->set_attribute(other, bytes_of(fd)).error().errno_value(), ENXIO);
    }
    EXPECT_EQ(device->set_attribute(vfio_group_add, {}).error().errno_value(), EINVAL);
    EXPECT_EQ(device->attribute(vfio_group_add, std::as_writable_bytes(std::span{&fd, 1}))
                  .error()
                  .errno_value(),
              EPERM);
}

TEST(VfioDevice, TakesNothingThatIsNoGroup)
{
    SmallVm small;
    auto device = small.vm().create_device(device_type_vfio).value();
    const UniqueFd event{::eventfd(0, EFD_CLOEXEC)};
    const UniqueFd character{::open("/dev/null", O_RDWR | O_CLOEXEC)};
    for (const int fd : {event.get(), character.get()}) {
        EXPECT_EQ(device->set_attribute(vfio_group_add, bytes_of(fd)).error().errno_value(),
                  EINVAL);
        EXPECT_EQ(device->set_attribute(vfio_group_del, bytes_of(fd)).error().errno_value(),
                  ENOENT);
    }
    constexpr int closed = 1'000'000;
    for (const int fd : {-1, closed}) {
        EXPECT_EQ(device->set_attribute(vfio_group_add, bytes_of(fd)).error().errno_value(), EBADF);
        EXPECT_EQ(device->set_attribute(vfio_group_del, bytes_of(fd)).error().errno_value(), EBADF);
    }
}

/// Some open file that stands for a group.
UniqueFd group_file()
{
    return UniqueFd{::open("/dev/null", O_RDWR | O_CLOEXEC)};
}

TEST(VfioDevice, KeepsBookOfOpenFilesAndNotOfDescriptors)
{
    core::VfioDevice device{[](int) { return true; }};
    const UniqueFd group = group_file();
    const UniqueFd again{::fcntl(group.get(), F_DUPFD_CLOEXEC, 0)};
    const UniqueFd other = group_file();
    const int fd = group.get();
    EXPECT_TRUE(device.set_attribute(vfio_group_add, bytes_of(fd)));
    EXPECT_EQ(device.set_attribute(vfio_group_add, bytes_of(fd)).error().errno_value(), EEXIST);
    const int second = again.get();
    EXPECT_EQ(device.set_attribute(vfio_group_add, bytes_of(second)).error().errno_value(), EEXIST)
        << "dup(2) gives no other group";
    const int third = other.get();
    EXPECT_EQ(device.set_attribute(vfio_group_del, bytes_of(third)).error().errno_value(), ENOENT);
    EXPECT_TRUE(device.set_attribute(vfio_group_add, bytes_of(third)));
    EXPECT_TRUE(device.set_attribute(vfio_group_del, bytes_of(second)));
    EXPECT_EQ(device.set_attribute(vfio_group_del, bytes_of(fd)).error().errno_value(), ENOENT);
    EXPECT_TRUE(device.set_attribute(vfio_group_add, bytes_of(fd)));
}

TEST(VfioDevice, HoldsItsGroupsOpenUntilItEnds)
{
    int ends[2] = {-1, -1};
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    const UniqueFd reader{ends[0]};
    UniqueFd writer{ends[1]};
    char byte = 0;
    {
        core::VfioDevice device{[](int) { return true; }};
        const int fd = writer.get();
        ASSERT_TRUE(device.set_attribute(vfio_group_add, bytes_of(fd)));
        writer = UniqueFd{};
        EXPECT_EQ(::read(reader.get(), &byte, 1), -1) << "somebody may still write";
    }
    EXPECT_EQ(::read(reader.get(), &byte, 1), 0) << "nobody is left";
}

}  // namespace
}  // namespace vmm
