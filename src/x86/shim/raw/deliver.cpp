// SPDX-License-Identifier: Apache-2.0

/// @file
/// A signal on its way to the client's handler.
///
/// This runs on the client's stack and with its FS base, so it is compiled without what would use
/// them (see CMakeLists.txt), and calls nothing but vmm_raw_syscall().

#include <sys/syscall.h>

#include "x86/shim/raw/actions.hpp"
#include "x86/shim/raw/client_thread.hpp"

namespace vmm::shim::raw {
namespace {

constexpr std::uint64_t nothing_to_do = 0;
constexpr std::uint64_t in_library = 1;

/// A system call that is passed on is executed by our code: the client sees its own.
void show_own_call(const ClientThread& thread, greg_t* registers) noexcept
{
    const auto rip = static_cast<std::uint64_t>(registers[REG_RIP]);
    const std::uint64_t pass = reinterpret_cast<std::uint64_t>(&vmm_raw_pass[0]);
    const std::uint64_t end = reinterpret_cast<std::uint64_t>(&vmm_raw_pass_end[0]);
    if (rip < pass || rip >= end) {
        return;
    }
    constexpr std::uint64_t size_of_syscall = 2;
    // Not executed yet, or to be executed again: from the start.
    const std::uint64_t back = rip == pass ? size_of_syscall : 0;
    registers[REG_RIP] = static_cast<greg_t>(thread.client_next - back);
    constexpr int places[argument_count] = {REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9};
    const std::uint64_t* const arguments =
        reinterpret_cast<const std::uint64_t*>(&thread.arguments);
    for (std::size_t i = 0; i < argument_count; ++i) {
        registers[places[i]] = static_cast<greg_t>(arguments[i]);
    }
}

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
    show_own_call(*thread, &context->uc_mcontext.gregs[0]);
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
