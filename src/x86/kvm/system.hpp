// SPDX-License-Identifier: Apache-2.0

/// @file
/// `/dev/kvm`, and its ioctls in C++.

#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "vmm/result.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm::x86::kvm {

/// The header's structs that end in a flexible array are larger in C++ than in C, and the ioctls'
/// numbers with them.  These are as the kernel has them.
struct CpuidList {
    static constexpr std::uint32_t most = 256;
    std::uint32_t count;
    std::uint32_t padding;
    kvm_cpuid_entry2 entries[most];
};
struct MsrList {
    static constexpr std::uint32_t most = 16;
    std::uint32_t count;
    std::uint32_t padding;
    kvm_msr_entry entries[most];
};
struct SignalMask {
    std::uint32_t size;
    std::uint8_t set[8];
};
inline constexpr auto get_supported_cpuid = _IOWR(KVMIO, 0x05, std::uint64_t);
inline constexpr auto get_emulated_cpuid = _IOWR(KVMIO, 0x09, std::uint64_t);
inline constexpr auto get_msrs = _IOWR(KVMIO, 0x88, std::uint64_t);
inline constexpr auto set_msrs = _IOW(KVMIO, 0x89, std::uint64_t);
inline constexpr auto set_signal_mask = _IOW(KVMIO, 0x8b, std::uint32_t);
inline constexpr auto set_cpuid2 = _IOW(KVMIO, 0x90, std::uint64_t);

/// ioctl(); a failure as an error that names it.
template <typename T>
Result<int> control(const UniqueFd& fd, unsigned long request, const char* name, T argument)
{
    const int result = ::ioctl(fd.get(), request, argument);
    if (result < 0) {
        return Error::from_errno(name);
    }
    return result;
}

/// KVM_CAP_ENFORCE_PV_FEATURE_CPUID of a vCPU.  False: KVM has it not (before Linux 5.10), and
/// answers hypercalls that the guest's CPUID does not offer.
inline bool enforce_pv_features(const UniqueFd& vcpu, bool enforced) noexcept
{
    kvm_enable_cap wanted{};
    wanted.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID;
    wanted.args[0] = enforced ? 1 : 0;
    return ::ioctl(vcpu.get(), KVM_ENABLE_CAP, &wanted) == 0;
}

/// Opens `/dev/kvm`; errors say what is missing of what the engine needs.
[[nodiscard]] Result<UniqueFd> open_kvm();

}  // namespace vmm::x86::kvm
