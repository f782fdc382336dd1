// SPDX-License-Identifier: Apache-2.0

#include "core/kvm_probe.hpp"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iterator>
#include <memory>
#include <system_error>

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/probe_guest.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm::core {
namespace {

/// A mapping that ends with its scope.
class Mapping {
public:
    Mapping(std::size_t size, int protection, int flags, int fd) noexcept
        : address_{::mmap(nullptr, size, protection, flags, fd, 0)},
          size_{size}
    {
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    Mapping(Mapping&&) = delete;
    Mapping& operator=(Mapping&&) = delete;
    ~Mapping()
    {
        if (address_ != MAP_FAILED) {
            static_cast<void>(::munmap(address_, size_));
        }
    }
    [[nodiscard]] void* get() const noexcept { return address_ == MAP_FAILED ? nullptr : address_; }

private:
    void* address_;
    std::size_t size_;
};

std::string failed(const char* call)
{
    return fmt::format("{} on /dev/kvm failed: {}", call,
                       std::error_code{errno, std::system_category()}.message());
}

/// Gives the vCPU all features the host has: without, its EFER has no LME.
bool set_cpuid(int kvm, int vcpu) noexcept
{
    // Not kvm_cpuid2: its flexible array makes it larger in C++ than in C, and the ioctls' numbers
    // with it.
    struct Cpuid {
        std::uint32_t count;
        std::uint32_t padding;
        kvm_cpuid_entry2 entries[256];
    };
    constexpr auto get_supported = _IOWR(KVMIO, 0x05, std::uint64_t);
    constexpr auto set = _IOW(KVMIO, 0x90, std::uint64_t);
    const auto cpuid = std::make_unique<Cpuid>();
    cpuid->count = static_cast<std::uint32_t>(std::size(cpuid->entries));
    return ::ioctl(kvm, get_supported, cpuid.get()) == 0 && ::ioctl(vcpu, set, cpuid.get()) == 0;
}

/// Sets the vCPU to the probe guest's entry; false with errno on failure.
bool set_entry(int vcpu) noexcept
{
    kvm_sregs sregs{};
    if (::ioctl(vcpu, KVM_GET_SREGS, &sregs) != 0) {
        return false;
    }
    sregs.cs.selector = 0;
    sregs.cs.base = 0;
    kvm_regs regs{};
    regs.rip = probe_guest_entry;
    regs.rflags = 2;
    return ::ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0 && ::ioctl(vcpu, KVM_SET_REGS, &regs) == 0;
}

/// Runs to the halt; returns what stood in the way, or how fast it went.
std::string run(int vcpu, const kvm_run& area)
{
    using Clock = std::chrono::steady_clock;
    std::string said;
    auto loop_begin = Clock::now();
    for (int exits = 0; exits < 8; ++exits) {
        if (::ioctl(vcpu, KVM_RUN, 0) != 0) {
            return failed("KVM_RUN");
        }
        if (area.exit_reason == KVM_EXIT_IO) {
            // SAFETY: KVM places the data inside the run area, at data_offset.
            const char* data = reinterpret_cast<const char*>(&area) + area.io.data_offset;
            said.push_back(*data);
            if (*data == 'L') {
                loop_begin = Clock::now();
            }
            if (*data == 'E') {
                const double us =
                    std::chrono::duration<double, std::micro>(Clock::now() - loop_begin).count();
                return fmt::format("/dev/kvm ran the probe guest at {:.1f} million instructions "
                                   "a second",
                                   probe_guest_instructions / us);
            }
            continue;
        }
        return fmt::format("/dev/kvm left the probe guest with exit reason {} after \"{}\"",
                           area.exit_reason, said);
    }
    return "/dev/kvm did not run the probe guest to its end";
}

}  // namespace

std::string describe_host_kvm()
{
    const UniqueFd kvm{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    if (!kvm) {
        return fmt::format("/dev/kvm does not open: {}",
                           std::error_code{errno, std::system_category()}.message());
    }
    const UniqueFd vm{::ioctl(kvm.get(), KVM_CREATE_VM, 0UL)};
    if (!vm) {
        return failed("KVM_CREATE_VM");
    }
    const Mapping memory{probe_guest_memory, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                         -1};
    if (memory.get() == nullptr) {
        return failed("mmap");
    }
    place_probe_guest(static_cast<std::byte*>(memory.get()));
    kvm_userspace_memory_region region{};
    region.memory_size = probe_guest_memory;
    // SAFETY: an address as KVM wants it, an integer.
    region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory.get());
    if (::ioctl(vm.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
        return failed("KVM_SET_USER_MEMORY_REGION");
    }
    const UniqueFd vcpu{::ioctl(vm.get(), KVM_CREATE_VCPU, 0UL)};
    const int run_size = ::ioctl(kvm.get(), KVM_GET_VCPU_MMAP_SIZE, 0UL);
    if (!vcpu || run_size <= 0) {
        return failed("KVM_CREATE_VCPU");
    }
    const Mapping area{static_cast<std::size_t>(run_size), PROT_READ | PROT_WRITE, MAP_SHARED,
                       vcpu.get()};
    if (area.get() == nullptr || !set_cpuid(kvm.get(), vcpu.get()) || !set_entry(vcpu.get())) {
        return failed("setting the vCPU up");
    }
    return run(vcpu.get(), *static_cast<const kvm_run*>(area.get()));
}

}  // namespace vmm::core
