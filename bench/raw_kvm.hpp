// SPDX-License-Identifier: Apache-2.0

/// @file
/// A guest on /dev/kvm by bare ioctls: what the library is compared with.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "vmm/unique_fd.hpp"

namespace bench {

class RawKvm {
public:
    [[nodiscard]] static bool opens()
    {
        return static_cast<bool>(vmm::UniqueFd{::open("/dev/kvm", O_RDWR | O_CLOEXEC)});
    }

    /// Real mode, segment bases 0 but FS, whose base lies beyond the slot; nothing on failure.
    [[nodiscard]] static std::optional<RawKvm> create(std::byte* memory,
                                                      std::size_t size,
                                                      std::uint16_t rip)
    {
        RawKvm guest;
        guest.kvm_.reset(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
        guest.vm_.reset(::ioctl(guest.kvm_.get(), KVM_CREATE_VM, 0UL));
        kvm_userspace_memory_region region{};
        region.memory_size = size;
        // SAFETY: KVM takes the address as an integer.
        region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory);
        if (!guest.vm_ || ::ioctl(guest.vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
            return std::nullopt;
        }
        guest.vcpu_.reset(::ioctl(guest.vm_.get(), KVM_CREATE_VCPU, 0UL));
        const int run_size = ::ioctl(guest.kvm_.get(), KVM_GET_VCPU_MMAP_SIZE, 0UL);
        if (!guest.vcpu_ || run_size <= 0) {
            return std::nullopt;
        }
        kvm_sregs sregs{};
        kvm_regs regs{};
        if (::ioctl(guest.vcpu_.get(), KVM_GET_SREGS, &sregs) != 0) {
            return std::nullopt;
        }
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        sregs.fs.base = 0x1000'0000;
        regs.rip = rip;
        regs.rsp = 0x8000;
        regs.rflags = 2;
        if (::ioctl(guest.vcpu_.get(), KVM_SET_SREGS, &sregs) != 0 ||
            ::ioctl(guest.vcpu_.get(), KVM_SET_REGS, &regs) != 0 || guest.run() != 0) {
            return std::nullopt;
        }
        return guest;
    }

    int run() const { return ::ioctl(vcpu_.get(), KVM_RUN, 0UL); }

private:
    RawKvm() = default;

    vmm::UniqueFd kvm_;
    vmm::UniqueFd vm_;
    vmm::UniqueFd vcpu_;
};

}  // namespace bench
