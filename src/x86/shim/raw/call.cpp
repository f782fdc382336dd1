// SPDX-License-Identifier: Apache-2.0

/// @file
/// Which system calls of the client are ours; all others are passed on.

#include "x86/shim/raw/call.hpp"

#include <cerrno>

#include <linux/audit.h>
#include <sys/syscall.h>

#include "x86/shim/raw/stub.hpp"

namespace vmm::shim::raw {
namespace {

constexpr std::array<int, argument_count> argument_registers{REG_RDI, REG_RSI, REG_RDX,
                                                             REG_R10, REG_R8,  REG_R9};

Outcome dispatch(Call& call) noexcept
{
    switch (call.number()) {
    case SYS_open: return do_open(call);
    case SYS_openat: return do_openat(call);
    case SYS_openat2: return do_openat2(call);
    case SYS_close: return do_close(call);
    case SYS_close_range: return do_close_range(call);
    case SYS_ioctl: return do_ioctl(call);
    case SYS_mmap: return do_mmap(call);
    case SYS_dup: return do_dup(call);
    case SYS_dup2:
    case SYS_dup3: return do_dup2(call);
    case SYS_fcntl: return do_fcntl(call);

    case SYS_stat:
    case SYS_lstat: return do_stat(call, 0, 1);
    case SYS_newfstatat: return do_stat(call, 1, 2);
    case SYS_statx: return do_statx(call);
    case SYS_access: return do_access(call, 0, 1);
    case SYS_faccessat:
    case SYS_faccessat2: return do_access(call, 1, 2);
    case SYS_readlink: return do_readlink(call, 0);
    case SYS_readlinkat: return do_readlink(call, 1);
    case SYS_execve: return do_exec(call, 0, 1);
    case SYS_execveat: return do_exec(call, 1, 2);

    case SYS_clone: return do_clone(call);
    case SYS_fork:
    case SYS_vfork: return do_fork(call);
    case SYS_exit: return do_exit(call);
    case SYS_set_tid_address: return do_set_tid_address(call);
    case SYS_arch_prctl: return do_arch_prctl(call);
    case SYS_prctl: return do_prctl(call);
    case SYS_seccomp: return do_seccomp(call);
    // C libraries go by clone(2) then, and without restartable sequences.
    case SYS_clone3:
    case SYS_rseq: return -ENOSYS;

    case SYS_brk: return do_brk(call);
    case SYS_munmap: return do_munmap(call);

    case SYS_rt_sigaction: return do_rt_sigaction(call);
    case SYS_rt_sigprocmask: return do_rt_sigprocmask(call);
    case SYS_rt_sigreturn: return do_rt_sigreturn(call);
    case SYS_sigaltstack: return do_sigaltstack(call);
    case SYS_rt_sigsuspend: return do_wait_with_mask(call, 0, 1);
    case SYS_ppoll: return do_wait_with_mask(call, 3, 4);
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2: return do_wait_with_mask(call, 4, 5);
    case SYS_pselect6: return do_pselect6(call);
    default: return pass_on;
    }
}

}  // namespace

Call::Call(ClientThread& thread, ucontext_t& context, long number) noexcept
    : thread_{thread},
      context_{context},
      resume_{&context},
      number_{number}
{
    for (std::size_t i = 0; i < argument_count; ++i) {
        arguments_[i] =
            static_cast<std::uint64_t>(context.uc_mcontext.gregs[argument_registers[i]]);
    }
}

long Call::perform() const noexcept
{
    return vmm_raw_syscall(number_, arguments_[0], arguments_[1], arguments_[2], arguments_[3],
                           arguments_[4], arguments_[5]);
}

ucontext_t* Call::finish(const Outcome& outcome) noexcept
{
    greg_t* const registers = &context_.uc_mcontext.gregs[0];
    if (resume_ != &context_) {
        return resume_;
    }
    if (outcome) {
        registers[REG_RAX] = *outcome;
        return resume_;
    }
    thread_.client_next = static_cast<std::uint64_t>(registers[REG_RIP]);
    for (std::size_t i = 0; i < argument_count; ++i) {
        greg_t& place = registers[argument_registers[i]];
        thread_.arguments[i] = static_cast<std::uint64_t>(place);
        place = static_cast<greg_t>(arguments_[i]);
    }
    registers[REG_RAX] = number_;
    registers[REG_RIP] = static_cast<greg_t>(address_of(vmm_raw_pass));
    return resume_;
}

}  // namespace vmm::shim::raw

ucontext_t* vmm_raw_serve(vmm::shim::raw::ClientThread* thread,
                          const siginfo_t* info,
                          ucontext_t* context) noexcept
{
    using namespace vmm::shim::raw;
    if (info->si_arch != AUDIT_ARCH_X86_64) {
        // INT 80h: the numbers are others.
        context->uc_mcontext.gregs[REG_RAX] = -ENOSYS;
        return context;
    }
    choose_way(*thread, context->uc_stack,
               static_cast<std::uint64_t>(context->uc_mcontext.gregs[REG_RSP]));
    Call call{*thread, *context, info->si_syscall};
    return call.finish(dispatch(call));
}
