// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/raw/actions.hpp"

#include <array>
#include <cerrno>
#include <mutex>

#include <sys/syscall.h>
#include <unistd.h>

#include "x86/shim/raw/stub.hpp"
#include "x86/shim/signals.hpp"

namespace vmm::shim::raw {

WantedAction wanted_actions[signal_end];

namespace {

constexpr std::uint64_t default_action = 0;  // SIG_DFL.
constexpr std::uint64_t ignore_action = 1;   // SIG_IGN.
constexpr std::uint64_t has_restorer = 0x0400'0000;

std::mutex changes;
/// All that the client has said.
std::array<KernelAction, signal_end> said{};

bool is_ours(int signal) noexcept
{
    return (set_of(signal) & never_blocked) != 0;
}

long tell_kernel(int signal, const KernelAction& action) noexcept
{
    return vmm_raw_syscall(SYS_rt_sigaction, static_cast<std::uint64_t>(signal),
                           reinterpret_cast<std::uint64_t>(&action), 0, sizeof(KernelSet));
}

KernelAction ours_for(int signal, const KernelAction& action) noexcept
{
    const bool has_handler = action.handler > ignore_action;
    KernelAction ours = action;
    ours.mask &= ~never_blocked;
    if (!has_handler && !is_ours(signal)) {
        return ours;
    }
    ours.handler = address_of(vmm_raw_on_signal);
    // vmm_raw_deliver() does it, since a fault of the library may come first.
    ours.flags &= ~std::uint64_t{SA_RESETHAND};
    ours.flags |= SA_SIGINFO;  // Else the kernel leaves out what vmm_raw_deliver() looks at.
    if (!has_handler || (ours.flags & has_restorer) == 0) {
        ours.flags |= has_restorer;
        ours.restorer = address_of(vmm_raw_restorer);
    }
    if (is_ours(signal)) {
        ours.flags |= SA_NODEFER;
    }
    return ours;
}

void want(int signal, const KernelAction& action) noexcept
{
    WantedAction& wanted = wanted_actions[signal];
    __atomic_store_n(&wanted.flags, action.flags, __ATOMIC_RELAXED);
    __atomic_store_n(&wanted.handler, action.handler, __ATOMIC_RELEASE);
}

/// In the place of the C library's sigaction() for signals.cpp: handlers are ours already.
int no_sigaction(int /*signal*/, const struct sigaction* /*action*/, struct sigaction* old)
{
    if (old != nullptr) {
        *old = {};
    }
    return 0;
}

}  // namespace

void start_actions() noexcept
{
    set_real_sigaction(&no_sigaction);
    for (int signal = 1; signal < signal_end; ++signal) {
        KernelAction& action = said[static_cast<std::size_t>(signal)];
        static_cast<void>(vmm_raw_syscall(SYS_rt_sigaction, static_cast<std::uint64_t>(signal), 0,
                                          reinterpret_cast<std::uint64_t>(&action),
                                          sizeof(KernelSet)));
        if (action.handler != ignore_action) {
            action = {};  // A handler would be of our C library.
        }
        want(signal, action);
    }
    for (const int signal : {SIGSEGV, SIGBUS}) {
        static_cast<void>(
            tell_kernel(signal, ours_for(signal, said[static_cast<std::size_t>(signal)])));
    }
    static_cast<void>(tell_kernel(SIGSYS, {.handler = address_of(vmm_raw_on_sigsys),
                                           .flags = has_restorer | SA_SIGINFO | SA_NODEFER,
                                           .restorer = address_of(vmm_raw_restorer),
                                           .mask = ~faults}));
}

long change_kernel_action(int signal, UserAddress action, UserAddress old) noexcept
{
    if (signal <= 0 || signal >= signal_end) {
        return -EINVAL;
    }
    KernelAction wanted{};
    const bool changes_it = action.value() != 0;
    if (changes_it) {
        if (!copy_in(wanted, action)) {
            return -EFAULT;
        }
        if (signal == SIGKILL || signal == SIGSTOP) {
            return -EINVAL;
        }
    }
    KernelAction before{};
    {
        const std::lock_guard lock{changes};
        KernelAction& now = said[static_cast<std::size_t>(signal)];
        before = now;
        if (__atomic_load_n(&wanted_actions[signal].handler, __ATOMIC_ACQUIRE) == default_action) {
            before.handler = default_action;  // SA_RESETHAND has been there.
        }
        if (changes_it) {
            // Before the kernel has it, so that no signal meets a handler without a record.
            want(signal, wanted);
            if (signal != SIGSYS) {
                const long result = tell_kernel(signal, ours_for(signal, wanted));
                if (result != 0) {
                    want(signal, before);
                    return result;
                }
            }
            now = wanted;
        }
    }
    return old.value() == 0 || copy_out(old, before) ? 0 : -EFAULT;
}

long change_kernel_mask(ClientThread& thread,
                        ucontext_t& context,
                        int how,
                        UserAddress set,
                        UserAddress old) noexcept
{
    KernelSet& mask = mask_of(context);
    const KernelSet before = mask | thread.hidden_mask;
    if (set.value() != 0) {
        KernelSet wanted{};
        if (!copy_in(wanted, set)) {
            return -EFAULT;
        }
        switch (how) {
        case SIG_BLOCK: wanted |= before; break;
        case SIG_UNBLOCK: wanted = before & ~wanted; break;
        case SIG_SETMASK: break;
        default: return -EINVAL;
        }
        mask = wanted & ~never_blocked & ~set_of(SIGKILL) & ~set_of(SIGSTOP);
        thread.hidden_mask = wanted & never_blocked;
    }
    return old.value() == 0 || copy_out(old, before) ? 0 : -EFAULT;
}

}  // namespace vmm::shim::raw

void vmm_raw_in_library(int signal, const siginfo_t* info, ucontext_t* context) noexcept
{
    using namespace vmm::shim;
    const int saved_errno = errno;
    const bool is_cpuid =
        signal == SIGSEGV && info->si_code == SI_KERNEL && vmm_raw_answer_cpuid(context, false);
    if (is_cpuid || take_signal(signal, *info, *context)) {
        errno = saved_errno;
        return;
    }
    if (info->si_code > 0 && (raw::set_of(signal) & raw::faults) != 0) {
        // It comes again when the instruction is executed again, and ends the process.
        const raw::KernelAction plain{};
        vmm_raw_syscall(SYS_rt_sigaction, static_cast<std::uint64_t>(signal),
                        reinterpret_cast<std::uint64_t>(&plain), 0, sizeof(raw::KernelSet));
    } else {
        // It waits until the client is there.
        if (raw::ClientThread& thread = raw::this_thread(); thread.by_stub != 0) {
            raw::defer_signals(thread, signal, *context);
        } else {
            raw::mask_of(*context) |= raw::set_of(signal);
        }
        const auto pid = static_cast<std::uint64_t>(::getpid());
        const auto tid = static_cast<std::uint64_t>(::syscall(SYS_gettid));
        vmm_raw_syscall(SYS_rt_tgsigqueueinfo, pid, tid, static_cast<std::uint64_t>(signal),
                        reinterpret_cast<std::uint64_t>(info));
    }
    errno = saved_errno;
}
