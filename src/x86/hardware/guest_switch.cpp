// SPDX-License-Identifier: Apache-2.0

#include "x86/hardware/guest_switch.hpp"

#include <cstring>

#include <cpuid.h>
#include <sys/syscall.h>

#include "x86/helper/helper_abi.h"

namespace vmm::x86::hardware {
namespace {

// SDM Vol. 1 "XSAVE Area".
constexpr std::size_t mxcsr_at = 24;
constexpr std::size_t xmm_at = 160;
constexpr std::size_t header_at = 512;
constexpr std::size_t ymm_high_at = 576;
constexpr std::uint64_t x87_component = 1;
constexpr std::uint64_t sse_component = 2;
constexpr std::uint64_t avx_component = 4;
constexpr std::uint32_t mxcsr_defined = 0xffff;

/// The components of the three that the host's XCR0 enables; 0 without XSAVE.
std::uint64_t host_components() noexcept
{
    constexpr unsigned osxsave = 1U << 27U;
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & osxsave) == 0) {
        return 0;
    }
    asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax & (x87_component | sse_component | avx_component);
}

const std::uint64_t components = host_components();

}  // namespace

void FpuImage::store(const FpuRegisters& registers) noexcept
{
    std::memcpy(bytes.data(), registers.x87.data(), xmm_at);
    const std::uint32_t mxcsr = registers.mxcsr & mxcsr_defined;
    std::memcpy(bytes.data() + mxcsr_at, &mxcsr, sizeof mxcsr);
    std::memset(bytes.data() + mxcsr_at + sizeof mxcsr, 0, 4);
    std::memset(bytes.data() + header_at, 0, ymm_high_at - header_at);
    std::memcpy(bytes.data() + header_at, &components, sizeof components);
    for (std::size_t i = 0; i < registers.ymm.size(); ++i) {
        std::memcpy(bytes.data() + xmm_at + 16 * i, registers.ymm[i].data(), 16);
        std::memcpy(bytes.data() + ymm_high_at + 16 * i, registers.ymm[i].data() + 16, 16);
    }
}

void FpuImage::load(FpuRegisters& registers) const noexcept
{
    // What is in its initial state is not in the image: the header tells.  FXSAVE knows no header.
    std::uint64_t present = x87_component | sse_component;
    if (components != 0) {
        std::memcpy(&present, bytes.data() + header_at, sizeof present);
    }
    if ((present & x87_component) != 0) {
        std::memcpy(registers.x87.data(), bytes.data(), mxcsr_at);
        std::memcpy(registers.x87.data() + 32, bytes.data() + 32, xmm_at - 32);
    } else {
        constexpr std::uint16_t initial_control = 0x37f;
        registers.x87 = {};
        std::memcpy(registers.x87.data(), &initial_control, sizeof initial_control);
    }
    std::memcpy(&registers.mxcsr, bytes.data() + mxcsr_at, sizeof registers.mxcsr);
    for (std::size_t i = 0; i < registers.ymm.size(); ++i) {
        registers.ymm[i] = {};
        if ((present & sse_component) != 0) {
            std::memcpy(registers.ymm[i].data(), bytes.data() + xmm_at + 16 * i, 16);
        }
        if ((present & avx_component) != 0) {
            std::memcpy(registers.ymm[i].data() + 16, bytes.data() + ymm_high_at + 16 * i, 16);
        }
    }
}

int run_guest(int vcpu, FpuImage& fpu) noexcept
{
    // The ABI has functions keep the control words; all else of the FPU is the caller's to lose.
    std::uint32_t host_mxcsr = 0;
    std::uint16_t host_control = 0;
    asm volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(host_mxcsr), "=m"(host_control));
    long result = SYS_ioctl;
    // The image is in RBX and its mask, which the system call would take away, in R12.
#define VMM_GUEST_CLOBBERS                                                                         \
    "rcx", "r11", "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)",      \
        "st(7)", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",   \
        "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
    if (components != 0) {
        // The system call keeps RDX, which is 0.
        register std::uint64_t mask asm("r12") = components;
        asm volatile("mov %%r12d, %%eax\n\t"
                     "xor %%edx, %%edx\n\t"
                     "xrstor64 (%%rbx)\n\t"
                     "mov %[ioctl], %%eax\n\t"
                     "syscall\n\t"
                     "mov %%rax, %%r14\n\t"
                     "mov %%r12d, %%eax\n\t"
                     "xsave64 (%%rbx)\n\t"
                     "mov %%r14, %%rax\n\t"
                     "fninit\n\t"
                     "test $4, %%r12b\n\t"
                     "jz 1f\n\t"
                     "vzeroupper\n\t"
                     "1:"
                     : "+a"(result)
                     : "D"(static_cast<long>(vcpu)), "S"(static_cast<long>(VMM_RUN)), "b"(&fpu),
                       "r"(mask), [ioctl] "i"(SYS_ioctl)
                     : VMM_GUEST_CLOBBERS, "rdx", "r14");
    } else {
        asm volatile("fxrstor64 (%%rbx)\n\t"
                     "xor %%edx, %%edx\n\t"
                     "syscall\n\t"
                     "fxsave64 (%%rbx)\n\t"
                     "fninit"
                     : "+a"(result)
                     : "D"(static_cast<long>(vcpu)), "S"(static_cast<long>(VMM_RUN)), "b"(&fpu)
                     : VMM_GUEST_CLOBBERS, "rdx");
    }
#undef VMM_GUEST_CLOBBERS
    asm volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(host_mxcsr), "m"(host_control));
    return static_cast<int>(result);
}

}  // namespace vmm::x86::hardware
