// SPDX-License-Identifier: Apache-2.0

/// @file
/// The helper module's device, and its calls in C++.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "vmm/result.hpp"
#include "vmm/unique_fd.hpp"
#include "x86/helper/helper_abi.h"

namespace vmm::x86::hardware {

struct Device {
    UniqueFd fd;
    vmm_info info{};
};

/// Whether the helper is there and drives this vendor's hardware (`VMM_VENDOR_*`); the error says
/// what is missing, and `fix` what would mend it.
[[nodiscard]] Result<void> check_helper(std::uint32_t vendor, std::string& fix);

/// Opens `/dev/vmm`; errors say what is missing.
[[nodiscard]] Result<Device> open_helper();

/// What the helper said beside an errno, as part of a sentence.
[[nodiscard]] const char* describe_reason(std::uint32_t reason) noexcept;

/// ioctl(); a failure as an error that names it, with the reason that the call left in `argument`.
[[nodiscard]] Error helper_error(const char* call, int error, std::uint32_t reason);
template <typename T>
Result<int> call_helper(const UniqueFd& fd, unsigned long request, const char* name, T& argument);

/// The page that a vCPU shares with the helper.
class VcpuArea {
public:
    [[nodiscard]] static Result<VcpuArea> map(const UniqueFd& vcpu);

    [[nodiscard]] vmm_vcpu_area& operator*() const noexcept { return *area_; }
    [[nodiscard]] vmm_vcpu_area* operator->() const noexcept { return area_.get(); }

private:
    struct Unmap {
        void operator()(vmm_vcpu_area* area) const noexcept;
    };
    explicit VcpuArea(vmm_vcpu_area* area) noexcept : area_{area} {}

    std::unique_ptr<vmm_vcpu_area, Unmap> area_;
};

int helper_ioctl(int fd, unsigned long request, void* argument) noexcept;

template <typename T>
Result<int> call_helper(const UniqueFd& fd, unsigned long request, const char* name, T& argument)
{
    const int result = helper_ioctl(fd.get(), request, &argument);
    if (result < 0) {
        return helper_error(name, -result, argument.reason);
    }
    return result;
}

}  // namespace vmm::x86::hardware
