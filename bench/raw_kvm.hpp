// SPDX-License-Identifier: Apache-2.0

/// @file
/// A guest on /dev/kvm by bare ioctls: what the library is compared with.

#pragma once

#include <array>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
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

    /// A VM of one slot and one vCPU, in real mode with segment bases 0 but for FS, whose base lies
    /// beyond the slot; nothing on failure.
    [[nodiscard]] static std::optional<RawKvm> create(std::byte* memory,
                                                      std::size_t size,
                                                      std::uint16_t rip,
                                                      bool irqchip = false)
    {
        RawKvm guest;
        guest.kvm_.reset(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
        guest.vm_.reset(::ioctl(guest.kvm_.get(), KVM_CREATE_VM, 0UL));
        if (!guest.vm_ || !guest.set_slot(0, 0, memory, size) ||
            (irqchip && ::ioctl(guest.vm_.get(), KVM_CREATE_IRQCHIP, 0UL) != 0) ||
            !guest.add_vcpu(rip)) {
            return std::nullopt;
        }
        return guest;
    }

    /// KVM_SET_USER_MEMORY_REGION; `size` 0 deletes.
    [[nodiscard]] bool set_slot(std::uint32_t slot,
                                std::uint64_t gpa,
                                std::byte* memory,
                                std::size_t size) const
    {
        kvm_userspace_memory_region region{};
        region.slot = slot;
        region.guest_phys_addr = gpa;
        region.memory_size = size;
        // SAFETY: KVM takes the address as an integer.
        region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory);
        return ::ioctl(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) == 0;
    }

    /// Another vCPU, in the same state.
    [[nodiscard]] bool add_vcpu(std::uint16_t rip)
    {
        VcpuFd vcpu{vmm::UniqueFd{::ioctl(vm_.get(), KVM_CREATE_VCPU, vcpus_.size())}, nullptr};
        const int run_size = ::ioctl(kvm_.get(), KVM_GET_VCPU_MMAP_SIZE, 0UL);
        if (!vcpu.fd || run_size <= 0) {
            return false;
        }
        void* const area = ::mmap(nullptr, static_cast<std::size_t>(run_size),
                                  PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd.get(), 0);
        kvm_sregs sregs{};
        kvm_regs regs{};
        if (area == MAP_FAILED || ::ioctl(vcpu.fd.get(), KVM_GET_SREGS, &sregs) != 0) {
            return false;
        }
        // The mapping lasts as long as the program, as do few of them.
        vcpu.area = static_cast<kvm_run*>(area);
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        sregs.fs.base = 0x1000'0000;
        regs.rip = rip;
        regs.rsp = 0x8000;
        regs.rflags = 2;
        if (::ioctl(vcpu.fd.get(), KVM_SET_SREGS, &sregs) != 0 ||
            ::ioctl(vcpu.fd.get(), KVM_SET_REGS, &regs) != 0) {
            return false;
        }
        vcpus_.push_back(std::move(vcpu));
        return true;
    }

    /// What this KVM supports, for the first vCPU.
    [[nodiscard]] bool set_cpuid() const
    {
        // The header's kvm_cpuid2 has another size in C++ than in C.
        struct Table {
            std::uint32_t count{256};
            std::uint32_t padding{};
            std::array<kvm_cpuid_entry2, 256> entries{};
        };
        constexpr std::size_t header = 8;
        const auto table = std::make_unique<Table>();
        return ::ioctl(kvm_.get(), _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, header),
                       table.get()) == 0 &&
               ::ioctl(vcpus_.front().fd.get(), _IOC(_IOC_WRITE, KVMIO, 0x90, header),
                       table.get()) == 0;
    }

    /// KVM_RUN of a vCPU: 0, or -1 with EINTR after a kick.
    int run(std::size_t vcpu = 0) const
    {
        const int result = ::ioctl(vcpus_[vcpu].fd.get(), KVM_RUN, 0UL);
        vcpus_[vcpu].area->immediate_exit = 0;
        return result;
    }

    /// Ends a `run()` of `thread` as KVM's clients do: by `immediate_exit`, for a run that is about
    /// to begin, and by a signal (SIGUSR1, which has a handler that does nothing).
    void kick(pthread_t thread, std::size_t vcpu = 0) const
    {
        vcpus_[vcpu].area->immediate_exit = 1;
        ::pthread_kill(thread, SIGUSR1);
    }

    void set_irq_line(std::uint32_t gsi, bool level) const
    {
        kvm_irq_level line{};
        line.irq = gsi;
        line.level = level ? 1U : 0U;
        static_cast<void>(::ioctl(vm_.get(), KVM_IRQ_LINE, &line));
    }

    [[nodiscard]] std::size_t vcpu_count() const { return vcpus_.size(); }

private:
    RawKvm() = default;

    struct VcpuFd {
        vmm::UniqueFd fd;
        kvm_run* area;
    };

    vmm::UniqueFd kvm_;
    vmm::UniqueFd vm_;
    std::vector<VcpuFd> vcpus_;
};

}  // namespace bench
