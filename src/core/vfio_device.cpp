// SPDX-License-Identifier: Apache-2.0

#include "core/vfio_device.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fmt/format.h>

namespace vmm::core {
namespace {

/// Whether two descriptors lead to one open file, and not only to one file.
bool is_same_open_file(int a, int b) noexcept
{
    const pid_t self = ::getpid();
    const long order = ::syscall(SYS_kcmp, self, self, KCMP_FILE, a, b);
    if (order >= 0) {
        return order == 0;
    }
    // A kernel without kcmp(2).  A group can be opened once at a time, so that one device is one
    // open file.
    struct stat of_a {};
    struct stat of_b {};
    return ::fstat(a, &of_a) == 0 && ::fstat(b, &of_b) == 0 && of_a.st_dev == of_b.st_dev &&
           of_a.st_ino == of_b.st_ino;
}

Error refuse(std::errc code, int fd, const char* what, const char* why)
{
    return {code, fmt::format("{}({}): {}", what, fd, why)};
}

constexpr const char* adding = "KVM_DEV_VFIO_GROUP_ADD";
constexpr const char* removing = "KVM_DEV_VFIO_GROUP_DEL";

}  // namespace

bool is_vfio_group(int fd)
{
    struct stat status {};
    if (::fstat(fd, &status) != 0 || !S_ISCHR(status.st_mode)) {
        return false;
    }
    // VFIO's major number is the kernel's choice; its class is not.
    const std::string link =
        fmt::format("/sys/dev/char/{}:{}/subsystem", major(status.st_rdev), minor(status.st_rdev));
    std::array<char, 256> target{};
    const ssize_t size = ::readlink(link.c_str(), target.data(), target.size());
    if (size <= 0) {
        return false;
    }
    const std::string_view name{target.data(), static_cast<std::size_t>(size)};
    return name.substr(name.rfind('/') + 1) == "vfio";
}

Result<std::size_t> VfioDevice::attribute_size(DeviceAttribute attribute) const
{
    if (attribute != vfio_group_add && attribute != vfio_group_del) {
        return Error{std::errc::no_such_device_or_address,
                     fmt::format("VFIO device: attribute {} of group {}: on x86 there are "
                                 "KVM_DEV_VFIO_GROUP_ADD and KVM_DEV_VFIO_GROUP_DEL",
                                 attribute.number, attribute.group)};
    }
    return sizeof(int);
}

Result<void> VfioDevice::set_attribute(DeviceAttribute attribute, std::span<const std::byte> value)
{
    VMM_TRY(const std::size_t size, attribute_size(attribute));
    if (value.size() != size) {
        return Error{std::errc::invalid_argument,
                     fmt::format("VFIO device: a value of {} bytes; a descriptor is an int, of {}",
                                 value.size(), size)};
    }
    int fd = -1;
    std::memcpy(&fd, value.data(), sizeof fd);
    return attribute == vfio_group_add ? add(fd) : remove(fd);
}

VfioDevice::Groups::iterator VfioDevice::find(int fd)
{
    return std::find_if(groups_.begin(), groups_.end(),
                        [fd](const UniqueFd& each) { return is_same_open_file(each.get(), fd); });
}

Result<void> VfioDevice::add(int fd)
{
    UniqueFd own{::fcntl(fd, F_DUPFD_CLOEXEC, 0)};
    if (!own) {
        return Error::from_errno(fmt::format("{}({})", adding, fd));
    }
    if (!is_group_(own.get())) {
        return refuse(std::errc::invalid_argument, fd, adding,
                      "no VFIO group; open one of /dev/vfio, by its number");
    }
    const std::lock_guard lock{mutex_};
    if (find(own.get()) != groups_.end()) {
        return refuse(std::errc::file_exists, fd, adding, "the device has this group already");
    }
    groups_.push_back(std::move(own));
    return success;
}

Result<void> VfioDevice::remove(int fd)
{
    if (::fcntl(fd, F_GETFD) < 0) {
        return Error::from_errno(fmt::format("{}({})", removing, fd));
    }
    const std::lock_guard lock{mutex_};
    const auto found = find(fd);
    if (found == groups_.end()) {
        return refuse(std::errc::no_such_file_or_directory, fd, removing,
                      "the device does not have this group");
    }
    groups_.erase(found);
    return success;
}

}  // namespace vmm::core
