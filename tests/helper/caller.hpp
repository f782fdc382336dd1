// SPDX-License-Identifier: Apache-2.0

/// @file
/// The helper's calls as its ABI has them, without the library: a VM with 4 MiB, a vCPU in real
/// mode.

#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <gtest/gtest.h>

#include "vmm/unique_fd.hpp"
#include "x86/helper/helper_abi.h"

namespace vmm::test {

/// ioctl(): the result, or an errno negated.
inline int call(const UniqueFd& fd, unsigned long request, void* argument = nullptr)
{
    const int result = ::ioctl(fd.get(), request, argument);
    return result < 0 ? -errno : result;
}

class Caller {
public:
    static constexpr std::size_t memory_size = 0x40'0000;
    static constexpr std::uint64_t code_at = 0x1000;

    /// What ended the guest, by neither vendor's number.
    enum class Ended { Hlt, PageFault, Other };

    Caller()
        : device{::open("/dev/" VMM_DEVICE, O_RDWR | O_CLOEXEC)},
          memory{static_cast<std::byte*>(::mmap(nullptr,
                                                memory_size,
                                                PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS,
                                                -1,
                                                0))}
    {
        static_cast<void>(call(device, VMM_GET_INFO, &info));
        vmm_create create{VMM_ABI_VERSION, 0};
        vm = UniqueFd{call(device, VMM_CREATE_VM, &create)};
        create.argument = 0;
        vcpu = UniqueFd{call(vm, VMM_CREATE_VCPU, &create)};
        area = static_cast<vmm_vcpu_area*>(::mmap(
            nullptr, sizeof(vmm_vcpu_area), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), 0));
        reset();
    }
    Caller(const Caller&) = delete;
    Caller& operator=(const Caller&) = delete;
    Caller(Caller&&) = delete;
    Caller& operator=(Caller&&) = delete;
    ~Caller()
    {
        ::munmap(area, sizeof(vmm_vcpu_area));
        ::munmap(memory, memory_size);
    }

    /// Slot 0, all of the memory at guest-physical 0.
    int add_memory(std::uint32_t flags = 0)
    {
        vmm_region region = whole();
        region.flags = flags;
        return call(vm, VMM_SET_REGION, &region);
    }

    [[nodiscard]] vmm_region whole() const
    {
        vmm_region region{};
        region.size = memory_size;
        region.host_address = reinterpret_cast<std::uintptr_t>(memory);
        return region;
    }

    void place(std::uint64_t at, std::initializer_list<unsigned> bytes)
    {
        for (const unsigned byte : bytes) {
            memory[at++] = static_cast<std::byte>(byte);
        }
    }

    /// Real mode at `code_at`, HLT intercepted.
    void reset()
    {
        if (is_vmx()) {
            reset_vmx();
        } else {
            reset_svm();
        }
        area->rip = code_at;
        area->rflags = 2;
        area->xcr0 = 1;
        area->tsc_aux = 0;
        area->dirty = VMM_DIRTY_ALL;
        area->immediate_exit = 0;
    }

    [[nodiscard]] bool is_vmx() const { return info.vendor == VMM_VENDOR_VMX; }

    [[nodiscard]] Ended ended() const
    {
        if (area->exit_kind != VMM_EXIT_HARDWARE) {
            return Ended::Other;
        }
        const std::uint64_t code = is_vmx() ? area->vmx.exit_reason : area->svm.exit_code;
        if (code == (is_vmx() ? 12U : 0x78U)) {
            return Ended::Hlt;
        }
        return code == (is_vmx() ? 48U : 0x400U) ? Ended::PageFault : Ended::Other;
    }
    /// Where memory was missing.
    [[nodiscard]] std::uint64_t fault_address() const
    {
        return is_vmx() ? area->vmx.guest_physical : area->svm.exit_info_2;
    }
    [[nodiscard]] vmm_segment& ds() const { return is_vmx() ? area->vmx.ds : area->svm.ds; }

    /// VMM_RUN until something else than a signal ends it.
    int run()
    {
        int result = 0;
        do {
            result = call(vcpu, VMM_RUN);
        } while (result == -EINTR);
        return result;
    }

    UniqueFd device;
    vmm_info info{};
    std::byte* memory;
    UniqueFd vm;
    UniqueFd vcpu;
    vmm_vcpu_area* area{};

private:
    template <typename Vendor>
    static void reset_segments(Vendor& vendor)
    {
        const vmm_segment data{0, 0x93, 0xffff, 0};
        vendor.es = vendor.ss = vendor.ds = vendor.fs = vendor.gs = data;
        vendor.cs = {0, 0x9b, 0xffff, 0};
        vendor.tr = {0, 0x8b, 0xffff, 0};
        vendor.ldtr = {0, 0x82, 0xffff, 0};
        vendor.gdtr = vendor.idtr = {0, 0, 0xffff, 0};
        vendor.efer = vendor.cr2 = vendor.cr3 = vendor.cr4 = 0;
        vendor.cr0 = 0x10;
        vendor.dr7 = 0x400;
        vendor.options = vendor.event_inj = 0;
        vendor.lstar = vendor.sfmask = vendor.kernel_gs_base = 0;
    }
    void reset_svm()
    {
        vmm_svm& svm = area->svm;
        reset_segments(svm);
        svm.dr6 = 0xffff'0ff0;
        for (std::uint32_t& word : svm.intercepts) {
            word = 0;
        }
        svm.intercepts[3] = 1U << 24U;
        for (std::uint32_t& word : svm.small_exits) {
            word = 0;
        }
        svm.int_ctl = svm.int_vector = svm.int_state = 0;
    }
    void reset_vmx()
    {
        vmm_vmx& vmx = area->vmx;
        reset_segments(vmx);
        vmx.primary = 1U << 7U;
        vmx.secondary = vmx.exceptions = vmx.interruptibility = 0;
        vmx.cr0_mask = vmx.cr4_mask = ~std::uint64_t{0};
        vmx.cr0_shadow = 0x10;
        vmx.cr4_shadow = vmx.small_exits = 0;
        vmx.sysenter_cs = vmx.sysenter_esp = vmx.sysenter_eip = 0;
    }
};

/// Tests of the helper; they skip where it is not.
class HelperTest : public testing::Test {
protected:
    void SetUp() override
    {
        if (!UniqueFd{::open("/dev/" VMM_DEVICE, O_RDWR | O_CLOEXEC)}) {
            GTEST_SKIP() << "no helper module here: " << std::strerror(errno);
        }
    }
};

}  // namespace vmm::test
