// SPDX-License-Identifier: Apache-2.0

#include "x86/hardware/helper.hpp"

#include <array>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <fmt/format.h>

namespace vmm::x86::hardware {
namespace {

constexpr const char* device_path = "/dev/" VMM_DEVICE;

constexpr const char* install_fix = "build and load the helper module: examples/helper.sh";

}  // namespace

int helper_ioctl(int fd, unsigned long request, void* argument) noexcept
{
    const int result = ::ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

const char* describe_reason(std::uint32_t reason) noexcept
{
    static constexpr std::array sentences{
        "no reason given",
        "helper and library speak different versions",
        "a reserved flag or field is set",
        "the VM belongs to another process",
        "the vCPU's id is too high, or in use",
        "the slot's number is too high",
        "the slot is in use",
        "there is no such slot",
        "addresses and sizes must be multiples of 4096",
        "the guest-physical range wraps or lies beyond the CPU's physical addresses",
        "the range is not user memory",
        "the guest-physical range overlaps another slot's",
        "an intercept is asked for that does not exist",
        "the interrupt controls have reserved bits set",
        "the event to inject is none",
        "EFER has a bit set that a guest may not have",
        "CR0 has a bit in 63:32, PG without PE, or NW without CD",
        "CR3 lies beyond the CPU's physical addresses",
        "CR4 has a bit set that a guest may not have, or that this CPU lacks",
        "long mode needs CR4.PAE, and CS.L excludes CS.D",
        "DR6 or DR7 has a bit in 63:32",
        "XCR0 enables what the host's does not",
        "an option is asked for that does not exist",
        "controls are asked for that are not the caller's, or that this CPU has not",
        "the guest is given a bit of CR0 or CR4 that it may not own",
        "an MSR's value is none that WRMSR would take",
        "there are too many leaves of CPUID",
        "the slot's log has no such words",
    };
    static_assert(sentences.size() == VMM_REASON_PAGES + 1);
    return reason < sentences.size() ? sentences.at(reason) : "a reason of a later version";
}

Error helper_error(const char* call, int error, std::uint32_t reason)
{
    if (reason == VMM_REASON_NONE) {
        return Error{static_cast<std::errc>(error),
                     fmt::format("{}: {}", call, std::strerror(error))};
    }
    return Error{static_cast<std::errc>(error),
                 fmt::format("{}: {} ({})", call, describe_reason(reason), std::strerror(error))};
}

Result<Device> open_helper()
{
    Device device{UniqueFd{::open(device_path, O_RDWR | O_CLOEXEC)}, {}};
    if (!device.fd) {
        return Error::from_errno("open /dev/vmm");
    }
    if (const int result = helper_ioctl(device.fd.get(), VMM_GET_INFO, &device.info); result < 0) {
        return Error{std::errc::no_such_device,
                     fmt::format("{} is no helper module's: VMM_GET_INFO: {}", device_path,
                                 std::strerror(-result))};
    }
    if (device.info.version != VMM_ABI_VERSION) {
        return Error{std::errc::no_such_device,
                     fmt::format("the helper module has ABI version {}, this library {}",
                                 device.info.version, VMM_ABI_VERSION)};
    }
    return device;
}

Result<VcpuArea> VcpuArea::map(const UniqueFd& vcpu)
{
    void* const at =
        ::mmap(nullptr, sizeof(vmm_vcpu_area), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), 0);
    if (at == MAP_FAILED) {
        return Error::from_errno("mmap of the vCPU's area");
    }
    return VcpuArea{static_cast<vmm_vcpu_area*>(at)};
}

void VcpuArea::Unmap::operator()(vmm_vcpu_area* area) const noexcept
{
    static_cast<void>(::munmap(area, sizeof(vmm_vcpu_area)));
}

Result<void> check_helper(std::uint32_t vendor, std::string& fix)
{
    const auto device = open_helper();
    if (!device) {
        const int error = device.error().errno_value();
        fix = error == EACCES || error == EPERM
                  ? "give this user access to /dev/vmm: examples/helper.sh --group GROUP"
                  : install_fix;
        return device.error();
    }
    if (device->info.vendor != vendor) {
        return Error{std::errc::no_such_device,
                     fmt::format("the helper module drives {} here",
                                 device->info.vendor == VMM_VENDOR_SVM ? "SVM" : "VMX")};
    }
    return success;
}

}  // namespace vmm::x86::hardware
