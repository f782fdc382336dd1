// SPDX-License-Identifier: Apache-2.0

/// @file
/// vCPU ioctls: signal mask, clocks, capabilities.

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include <linux/kvm.h>
#include <unistd.h>

#include "x86/shim/lists.hpp"
#include "x86/shim/statistics_file.hpp"
#include "x86/shim/vcpu_file.hpp"

namespace vmm::shim {
namespace {

/// The kernel's set of signals; glibc's begins with it.
constexpr std::uint32_t kernel_set_size = 8;

long set_signal_mask(VcpuFile& file, unsigned long argument)
{
    if (argument == 0) {
        file.set_run_mask(std::nullopt);
        return 0;
    }
    const UserAddress user{argument};
    SignalMaskHead head;
    if (!copy_in(&head, user, sizeof head)) {
        return -EFAULT;
    }
    if (head.len != kernel_set_size) {
        return -EINVAL;
    }
    sigset_t mask;
    ::sigemptyset(&mask);
    if (!copy_in(&mask, user + sizeof head, kernel_set_size)) {
        return -EFAULT;
    }
    file.set_run_mask(mask);
    return 0;
}

long get_tsc_khz(VcpuFile& file, unsigned long /*argument*/)
{
    return static_cast<long>(file.vcpu().tsc_khz());
}

long set_tsc_khz(VcpuFile& file, unsigned long wanted)
{
    return result_of(file.vcpu().set_tsc_khz(static_cast<std::uint32_t>(wanted)));
}

long has_device_attr(VcpuFile& /*file*/, const kvm_device_attr& wanted)
{
    return wanted.group == KVM_VCPU_TSC_CTRL && wanted.attr == KVM_VCPU_TSC_OFFSET ? 0 : -ENXIO;
}

long get_device_attr(VcpuFile& file, const kvm_device_attr& wanted)
{
    const long known = has_device_attr(file, wanted);
    if (known != 0) {
        return known;
    }
    return copy_out(UserAddress{wanted.addr}, file.vcpu().tsc_offset()) ? 0 : -EFAULT;
}

long set_device_attr(VcpuFile& file, const kvm_device_attr& wanted)
{
    const long known = has_device_attr(file, wanted);
    if (known != 0) {
        return known;
    }
    std::uint64_t offset = 0;
    if (!copy_in(offset, UserAddress{wanted.addr})) {
        return -EFAULT;
    }
    file.vcpu().set_tsc_offset(offset);
    return 0;
}

long kvmclock_ctrl(VcpuFile& file, unsigned long /*argument*/)
{
    return result_of(file.vcpu().notify_guest_stopped());
}

/// The numbers live as long as the descriptor, as KVM's do.
long get_stats_fd(VcpuFile& file, unsigned long /*argument*/)
{
    const std::string number = std::to_string(file.vcpu().id());
    StatisticsSource source;
    source.id = "kvm-" + std::to_string(::getpid()) + "/vcpu-" + number;
    source.of_vcpu = true;
    source.look = [vcpu = file.shared_from_this()] { return vcpu->vcpu().statistics(); };
    return give_statistics(std::move(source), "anon_inode:kvm-vcpu-stats:" + number);
}

/// The others that can be enabled on a vCPU are Hyper-V's.
long enable_capability(VcpuFile& file, const kvm_enable_cap& wanted)
{
    if (wanted.flags != 0 || wanted.cap != KVM_CAP_ENFORCE_PV_FEATURE_CPUID) {
        return -EINVAL;
    }
    file.vcpu().enforce_pv_features(wanted.args[0] != 0);
    return 0;
}

constexpr Row<VcpuFile> rows[] = {
    {request::set_signal_mask, "KVM_SET_SIGNAL_MASK", set_signal_mask},
    {KVM_GET_TSC_KHZ, "KVM_GET_TSC_KHZ", get_tsc_khz},
    {KVM_SET_TSC_KHZ, "KVM_SET_TSC_KHZ", set_tsc_khz},
    {KVM_HAS_DEVICE_ATTR, "KVM_HAS_DEVICE_ATTR", reads<has_device_attr>},
    {KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR", reads<get_device_attr>},
    {KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR", reads<set_device_attr>},
    {KVM_KVMCLOCK_CTRL, "KVM_KVMCLOCK_CTRL", kvmclock_ctrl},
    {KVM_ENABLE_CAP, "KVM_ENABLE_CAP", reads<enable_capability>},
    {KVM_GET_STATS_FD, "KVM_GET_STATS_FD", get_stats_fd},
};

}  // namespace

std::span<const Row<VcpuFile>> vcpu_misc_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
