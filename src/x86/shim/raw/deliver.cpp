// SPDX-License-Identifier: Apache-2.0

/// @file
/// A signal on its way to the client's handler.
///
/// This runs on the client's stack and with its FS base, so it is compiled without what would use
/// them (see CMakeLists.txt), and calls nothing but vmm_raw_syscall().

#include <asm/prctl.h>
#include <cpuid.h>
#include <sys/syscall.h>

#include "x86/shim/raw/actions.hpp"
#include "x86/shim/raw/client_thread.hpp"
#include "x86/shim/raw/stub.hpp"

#ifndef ARCH_SET_CPUID
#define ARCH_SET_CPUID 0x1012
#endif

namespace vmm::shim::raw {
namespace {

constexpr std::uint64_t cpuid_faults = 0;
constexpr std::uint64_t cpuid_works = 1;

bool shows_virtualization = false;

struct CpuidResult {
    unsigned eax;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;
};

constexpr unsigned amd_features_leaf = 0x8000'0001;
constexpr unsigned vmx = 1U << 5U;  // Of leaf 1, ECX.
constexpr unsigned svm = 1U << 2U;  // Of leaf 80000001, ECX.

CpuidResult cpuid(unsigned leaf, unsigned subleaf) noexcept
{
    CpuidResult result{};
    __cpuid_count(leaf, subleaf, result.eax, result.ebx, result.ecx, result.edx);
    return result;
}

bool is_intel() noexcept
{
    return cpuid(0, 0).ebx == signature_INTEL_ebx;
}

constexpr std::uint64_t nothing_to_do = 0;
constexpr std::uint64_t in_library = 1;

void act_by_default(const ClientThread& thread, int signal, const siginfo_t& info) noexcept
{
    const KernelAction plain{0, 0, 0, 0};
    vmm_raw_syscall(SYS_rt_sigaction, static_cast<std::uint64_t>(signal),
                    reinterpret_cast<std::uint64_t>(&plain), 0, sizeof(KernelSet), 0, 0);
    if (info.si_code <= 0) {
        // A fault comes again by itself, when the instruction is executed again.
        const auto pid = static_cast<std::uint64_t>(vmm_raw_syscall(SYS_getpid, 0, 0, 0, 0, 0, 0));
        vmm_raw_syscall(SYS_rt_tgsigqueueinfo, pid, static_cast<std::uint64_t>(thread.tid),
                        static_cast<std::uint64_t>(signal), reinterpret_cast<std::uint64_t>(&info),
                        0, 0);
    }
}

}  // namespace
}  // namespace vmm::shim::raw

void vmm::shim::raw::show_virtualization() noexcept
{
    const bool has_it =
        is_intel() ? (cpuid(1, 0).ecx & vmx) != 0 : (cpuid(amd_features_leaf, 0).ecx & svm) != 0;
    shows_virtualization =
        !has_it && vmm_raw_syscall(SYS_arch_prctl, ARCH_SET_CPUID, cpuid_faults, 0, 0, 0, 0) == 0;
}

bool vmm_raw_answer_cpuid(ucontext_t* context, bool is_clients) noexcept
{
    using namespace vmm::shim::raw;
    greg_t* const registers = &context->uc_mcontext.gregs[0];
    constexpr greg_t user_end = 0x0000'7fff'ffff'f000;
    if (registers[REG_RIP] < 0 || registers[REG_RIP] >= user_end) {
        return false;
    }
    // SAFETY: an instruction has just been executed there.
    const auto* const code = reinterpret_cast<const unsigned char*>(registers[REG_RIP]);
    if (!shows_virtualization || code[0] != 0x0f || code[1] != 0xa2) {
        return false;
    }
    const auto leaf = static_cast<unsigned>(registers[REG_RAX]);
    vmm_raw_syscall(SYS_arch_prctl, ARCH_SET_CPUID, cpuid_works, 0, 0, 0, 0);
    CpuidResult result = cpuid(leaf, static_cast<unsigned>(registers[REG_RCX]));
    if (is_clients && leaf == (is_intel() ? 1U : amd_features_leaf)) {
        result.ecx |= is_intel() ? vmx : svm;
    }
    vmm_raw_syscall(SYS_arch_prctl, ARCH_SET_CPUID, cpuid_faults, 0, 0, 0, 0);
    registers[REG_RAX] = result.eax;
    registers[REG_RBX] = result.ebx;
    registers[REG_RCX] = result.ecx;
    registers[REG_RDX] = result.edx;
    registers[REG_RIP] += 2;
    return true;
}

std::uint64_t vmm_raw_deliver(vmm::shim::raw::ClientThread* thread,
                              int signal,
                              const siginfo_t* info,
                              ucontext_t* context) noexcept
{
    using namespace vmm::shim::raw;
    if (thread == nullptr || thread->in_client == 0) {
        return in_library;
    }
    const bool may_be_librarys =
        (std::uint64_t{1} << static_cast<unsigned>(signal - 1) & never_blocked) != 0;
    // Threads of the library have the GS base of the one that made them.
    if (may_be_librarys && vmm_raw_syscall(SYS_gettid, 0, 0, 0, 0, 0, 0) != thread->tid) {
        return in_library;
    }
    if (signal == SIGSEGV && info->si_code == SI_KERNEL && vmm_raw_answer_cpuid(context, true)) {
        return nothing_to_do;
    }
    WantedAction& wanted = wanted_actions[signal];
    const std::uint64_t handler = __atomic_load_n(&wanted.handler, __ATOMIC_ACQUIRE);
    constexpr std::uint64_t ignored = 1;
    if (handler == ignored && info->si_code <= 0) {
        return nothing_to_do;
    }
    if (handler <= ignored) {
        act_by_default(*thread, signal, *info);
        return nothing_to_do;
    }
    // It may be on the alternate stack: stub.hpp.
    thread->stub_entry = address_of(vmm_raw_stub_avoid);
    if ((__atomic_load_n(&wanted.flags, __ATOMIC_RELAXED) & SA_RESETHAND) != 0) {
        __atomic_store_n(&wanted.handler, std::uint64_t{0}, __ATOMIC_RELEASE);
        if (!may_be_librarys) {
            const KernelAction plain{0, 0, 0, 0};
            vmm_raw_syscall(SYS_rt_sigaction, static_cast<std::uint64_t>(signal),
                            reinterpret_cast<std::uint64_t>(&plain), 0, sizeof(KernelSet), 0, 0);
        }
    }
    return handler;
}
