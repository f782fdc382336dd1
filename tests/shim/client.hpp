// SPDX-License-Identifier: Apache-2.0

/// @file
/// A client of KVM's ABI in the tests' own process: what an ioctl gives, without a preload library.
///
/// With VMM_KVM_ENGINE=kernel in the environment it is a client of this machine's own `/dev/kvm`,
/// which the same is expected of; with the name of an engine it runs on that, else on `soft`.

#pragma once

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "x86/shim/file.hpp"
#include "x86/shim/system_file.hpp"

namespace vmm::shim::test {

inline bool is_engine(std::string_view name)
{
    const char* const engine = std::getenv("VMM_KVM_ENGINE");
    return engine != nullptr && engine == name;
}
inline bool is_kernel()
{
    return is_engine("kernel");
}
/// The kernel's KVM, by itself or below the library.
inline bool is_on_kvm()
{
    return is_kernel() || is_engine("kvm");
}

/// KVM's result, or a negative errno.
inline long call(int fd, unsigned long request, unsigned long argument = 0)
{
    if (is_kernel()) {
        const long result = ::ioctl(fd, request, argument);
        return result < 0 ? -errno : result;
    }
    const auto file = FileTable::instance().find(fd);
    return file != nullptr ? file->ioctl(static_cast<unsigned>(request), argument) : -EBADF;
}
template <typename T>
long call(int fd, unsigned long request, T* argument)
{
    return call(fd, request, reinterpret_cast<unsigned long>(argument));
}

/// mmap() of a descriptor: 0, or a negative errno.
inline long may_map(int fd, std::size_t size, int protection, int flags, off_t offset)
{
    if (!is_kernel()) {
        return FileTable::instance().find(fd)->may_map(size, protection, flags, offset);
    }
    void* const at = ::mmap(nullptr, size, protection, flags, fd, offset);
    return at == MAP_FAILED ? -errno : ::munmap(at, size);
}

/// A descriptor of ours, closed as the hook of close(2) does it.
class Descriptor {
public:
    explicit Descriptor(long fd) : fd_{static_cast<int>(fd)}
    {
        EXPECT_GE(fd, 0) << std::strerror(static_cast<int>(-fd));
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    Descriptor(Descriptor&& other) noexcept : fd_{std::exchange(other.fd_, -1)} {}
    Descriptor& operator=(Descriptor&&) = delete;
    ~Descriptor() { reset(); }

    void reset()
    {
        if (fd_ >= 0) {
            if (!is_kernel()) {
                FileTable::instance().remove(fd_);
            }
            ::close(std::exchange(fd_, -1));
        }
    }
    [[nodiscard]] int get() const noexcept { return fd_; }

private:
    int fd_;
};

inline Descriptor open_kvm()
{
    if (is_kernel()) {
        const int fd = ::open("/dev/kvm", O_RDWR | O_CLOEXEC);
        return Descriptor{fd < 0 ? -errno : fd};
    }
    ::setenv("VMM_KVM_ENGINE", "soft", 0);
    return Descriptor{open_system(true)};
}

/// Pages of the client, for slots.
class Pages {
public:
    explicit Pages(std::size_t size)
        : size_{size},
          at_{static_cast<std::byte*>(
              ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))}
    {
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    Pages(Pages&&) = delete;
    Pages& operator=(Pages&&) = delete;
    ~Pages() { ::munmap(at_, size_); }

    [[nodiscard]] std::byte* data() const noexcept { return at_; }
    void place(std::size_t at, std::initializer_list<unsigned> code) const
    {
        for (const unsigned byte : code) {
            at_[at++] = static_cast<std::byte>(byte);
        }
    }

private:
    std::size_t size_;
    std::byte* at_;
};

inline long set_region(int vm,
                       std::uint32_t slot,
                       std::uint32_t flags,
                       std::uint64_t gpa,
                       std::uint64_t size,
                       const void* host)
{
    const kvm_userspace_memory_region region{slot, flags, gpa, size,
                                             reinterpret_cast<std::uint64_t>(host)};
    return call(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

/// A VM with 64 KiB at 0 and a vCPU about to execute, in real mode, what lies at 0x1000.
class Guest {
public:
    enum class Irqchip { None, Full };
    static constexpr std::uint64_t code_at = 0x1000;
    static constexpr std::size_t memory_size = 0x10000;

    explicit Guest(Irqchip irqchip = Irqchip::None)
        : system_{open_kvm()},
          vm_{call(system_.get(), KVM_CREATE_VM)},
          memory_{memory_size}
    {
        EXPECT_EQ(set_region(vm(), 0, 0, 0, memory_size, memory_.data()), 0);
        if (irqchip == Irqchip::Full) {
            EXPECT_EQ(call(vm(), KVM_CREATE_IRQCHIP), 0);
        }
        vcpu_ = std::make_unique<Descriptor>(call(vm(), KVM_CREATE_VCPU));
        run_ = static_cast<kvm_run*>(
            ::mmap(nullptr, 12288, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu(), 0));
        kvm_sregs sregs{};
        EXPECT_EQ(call(vcpu(), KVM_GET_SREGS, &sregs), 0);
        sregs.cs.selector = 0;
        sregs.cs.base = 0;
        EXPECT_EQ(call(vcpu(), KVM_SET_SREGS, &sregs), 0);
        start_at(code_at);
    }
    Guest(const Guest&) = delete;
    Guest& operator=(const Guest&) = delete;
    Guest(Guest&&) = delete;
    Guest& operator=(Guest&&) = delete;
    ~Guest() { ::munmap(run_, 12288); }

    void start_at(std::uint64_t rip) const
    {
        kvm_regs regs{};
        regs.rip = rip;
        regs.rflags = 2;
        regs.rsp = 0x8000;
        EXPECT_EQ(call(vcpu(), KVM_SET_REGS, &regs), 0);
    }
    void code(std::initializer_list<unsigned> bytes) const { memory_.place(code_at, bytes); }
    [[nodiscard]] long enter() const { return call(vcpu(), KVM_RUN); }
    [[nodiscard]] kvm_regs regs() const
    {
        kvm_regs regs{};
        EXPECT_EQ(call(vcpu(), KVM_GET_REGS, &regs), 0);
        return regs;
    }
    [[nodiscard]] kvm_run& run() const noexcept { return *run_; }
    [[nodiscard]] std::byte* port_data() const noexcept
    {
        return reinterpret_cast<std::byte*>(run_) + 4096;
    }
    [[nodiscard]] int system() const noexcept { return system_.get(); }
    [[nodiscard]] int vm() const noexcept { return vm_.get(); }
    [[nodiscard]] int vcpu() const noexcept { return vcpu_->get(); }
    [[nodiscard]] Descriptor& vm_descriptor() noexcept { return vm_; }
    [[nodiscard]] const Pages& memory() const noexcept { return memory_; }

private:
    Descriptor system_;
    Descriptor vm_;
    Pages memory_;
    std::unique_ptr<Descriptor> vcpu_;
    kvm_run* run_{};
};

}  // namespace vmm::shim::test
