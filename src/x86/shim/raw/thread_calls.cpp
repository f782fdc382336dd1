// SPDX-License-Identifier: Apache-2.0

/// @file
/// System calls about threads and processes.

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <semaphore>
#include <string>

#include <asm/prctl.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "x86/shim/log.hpp"
#include "x86/shim/raw/call.hpp"
#include "x86/shim/raw/stub.hpp"

namespace vmm::shim::raw {

void FreeMemory::operator()(void* memory) const noexcept
{
    std::free(memory);
}

namespace {

/// Of this process.
std::atomic<unsigned> client_threads{1};

/// The registers in a kernel's frame that ucontext_t does not hold (struct _fpx_sw_bytes).
struct ExtendedState {
    std::uint32_t magic;
    std::uint32_t size;  ///< Of all, with the magic number at its end.
};
constexpr std::size_t extended_state_offset = 464;
constexpr std::uint32_t extended_state_magic = 0x4650'5853;
constexpr std::size_t fxsave_size = 512;
constexpr std::size_t fpu_alignment = 64;

/// A new thread begins with the registers of the one that made it.
bool copy_registers(ClientThread& to, const ucontext_t& from) noexcept
{
    // What follows the mask is no part of a kernel's frame.
    std::memcpy(&to.start, &from, offsetof(ucontext_t, uc_sigmask) + sizeof(KernelSet));
    const auto* const fpu = reinterpret_cast<const std::byte*>(from.uc_mcontext.fpregs);
    if (fpu == nullptr) {
        return true;
    }
    ExtendedState extended{};
    std::memcpy(&extended, fpu + extended_state_offset, sizeof extended);
    const std::size_t size = extended.magic == extended_state_magic ? extended.size : fxsave_size;
    const std::size_t whole = (size + fpu_alignment - 1) & ~(fpu_alignment - 1);
    to.start_fpu.reset(static_cast<std::byte*>(std::aligned_alloc(fpu_alignment, whole)));
    if (to.start_fpu == nullptr) {
        return false;
    }
    std::memcpy(to.start_fpu.get(), fpu, size);
    to.start.uc_mcontext.fpregs = reinterpret_cast<fpregset_t>(to.start_fpu.get());
    return true;
}

void store_tid(std::uint64_t at, pid_t tid) noexcept
{
    if (at != 0) {
        static_cast<void>(copy_out(UserAddress{at}, tid));
    }
}

/// What the kernel does for a thread that ends.
void tell_end(const ClientThread& thread) noexcept
{
    if (thread.unmapped_size != 0) {
        vmm_raw_syscall(SYS_munmap, thread.unmapped_at, thread.unmapped_size);
    }
    if (thread.clear_tid != 0) {
        store_tid(thread.clear_tid, 0);
        vmm_raw_syscall(SYS_futex, thread.clear_tid, FUTEX_WAKE, 1);
    }
}

struct Start {
    explicit Start(ClientThread* which) noexcept : thread{which} {}

    ClientThread* const thread;
    pid_t tid{};
    std::binary_semaphore has_started{0};
};

void* run_thread(void* argument) noexcept
{
    std::unique_ptr<std::shared_ptr<Start>> start{static_cast<std::shared_ptr<Start>*>(argument)};
    ClientThread* const thread = (*start)->thread;
    thread->tid = static_cast<pid_t>(::syscall(SYS_gettid));
    if (const int error = take_system_calls(*thread); error != 0) {
        std::abort();  // It has worked in the first thread.
    }
    store_tid(thread->tid_to_parent, thread->tid);
    store_tid(thread->tid_to_child, thread->tid);
    (*start)->tid = thread->tid;
    (*start)->has_started.release();
    start.reset();
    vmm_raw_enter(thread, &thread->start);
    release_system_calls();
    tell_end(*thread);
    delete thread;
    return nullptr;
}

long start_thread(Call& call, pid_t& tid)
{
    const std::uint64_t flags = call.argument(0);
    std::unique_ptr<ClientThread> thread{new (std::nothrow) ClientThread};
    if (thread == nullptr || !copy_registers(*thread, call.context()) ||
        !make_stub_state(*thread)) {
        return -ENOMEM;
    }
    greg_t* const registers = &thread->start.uc_mcontext.gregs[0];
    registers[REG_RAX] = 0;
    if (call.argument(1) != 0) {
        registers[REG_RSP] = static_cast<greg_t>(call.argument(1));
    }
    thread->start.uc_stack = {};
    thread->start.uc_stack.ss_flags = SS_DISABLE;
    thread->hidden_mask = call.thread().hidden_mask;
    thread->client_fs = (flags & CLONE_SETTLS) != 0 ? call.argument(4) : call.thread().client_fs;
    thread->tid_to_parent = (flags & CLONE_PARENT_SETTID) != 0 ? call.argument(2) : 0;
    thread->tid_to_child = (flags & CLONE_CHILD_SETTID) != 0 ? call.argument(3) : 0;
    thread->clear_tid = (flags & CLONE_CHILD_CLEARTID) != 0 ? call.argument(3) : 0;

    pthread_attr_t attributes;
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    constexpr std::size_t stack_size = std::size_t{1} << 20U;
    ::pthread_attr_setstacksize(&attributes, stack_size);
    pthread_t started{};
    const auto start = std::make_shared<Start>(thread.get());
    auto for_thread = std::make_unique<std::shared_ptr<Start>>(start);
    client_threads.fetch_add(1);
    const int error = ::pthread_create(&started, &attributes, &run_thread, for_thread.get());
    ::pthread_attr_destroy(&attributes);
    if (error != 0) {
        client_threads.fetch_sub(1);
        return -error;
    }
    static_cast<void>(for_thread.release());
    static_cast<void>(thread.release());  // The thread's own, and maybe gone.
    start->has_started.acquire();
    tid = start->tid;
    return 0;
}

/// fork(2) by the C library, whose locks and ours must be whole in the child.
long fork_process(Call& call,
                  std::uint64_t flags,
                  std::uint64_t parent_tid,
                  std::uint64_t child_tid) noexcept
{
    const pid_t pid = ::fork();
    if (pid < 0) {
        return -errno;
    }
    if (pid > 0) {
        store_tid((flags & CLONE_PARENT_SETTID) != 0 ? parent_tid : 0, pid);
        return pid;
    }
    ClientThread& thread = call.thread();
    thread.tid = static_cast<pid_t>(::syscall(SYS_gettid));
    thread.is_main = true;
    thread.clear_tid = (flags & CLONE_CHILD_CLEARTID) != 0 ? child_tid : 0;
    client_threads = 1;
    if (take_system_calls(thread) != 0) {
        std::abort();  // It has worked in the parent.
    }
    store_tid((flags & CLONE_CHILD_SETTID) != 0 ? child_tid : 0, thread.tid);
    return 0;
}

void note_refused(const char* what, std::uint64_t value) noexcept
{
    log(LogLevel::Warning, std::string{what} + ' ' + hex(value) + " of the client: refused");
}

}  // namespace

bool is_only_thread() noexcept
{
    return client_threads.load() == 1;
}

Outcome do_clone(Call& call) noexcept
{
    const std::uint64_t flags = call.argument(0);
    constexpr std::uint64_t of_thread =
        CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD;
    constexpr std::uint64_t of_both =
        CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
    constexpr std::uint64_t without_effect = CLONE_SYSVSEM | CLONE_DETACHED | CSIGNAL;
    if ((flags & CLONE_THREAD) != 0) {
        if ((flags & of_thread) != of_thread ||
            (flags & ~(of_thread | of_both | without_effect)) != 0) {
            note_refused("clone flags", flags);
            return -EINVAL;
        }
        pid_t tid = 0;
        try {
            const long result = start_thread(call, tid);
            return result != 0 ? result : tid;
        } catch (const std::bad_alloc&) {
            return -ENOMEM;
        }
    }
    constexpr std::uint64_t of_vfork = CLONE_VM | CLONE_VFORK;
    const bool is_vfork = (flags & of_vfork) == of_vfork;
    const std::uint64_t others = flags & ~(of_both | CSIGNAL | (is_vfork ? of_vfork : CLONE_VFORK));
    if (others != 0 || (flags & CSIGNAL) != SIGCHLD) {
        note_refused("clone flags", flags);
        return -EINVAL;
    }
    const long result = fork_process(call, flags, call.argument(2), call.argument(3));
    if (result == 0) {
        if (call.argument(1) != 0) {
            call.context().uc_mcontext.gregs[REG_RSP] = static_cast<greg_t>(call.argument(1));
        }
        if ((flags & CLONE_SETTLS) != 0) {
            call.thread().client_fs = call.argument(4);
        }
    }
    return result;
}

Outcome do_fork(Call& call) noexcept
{
    return fork_process(call, 0, 0, 0);
}

Outcome do_exit(Call& call) noexcept
{
    // The library has threads of its own, which do not keep a process alive.
    if (client_threads.fetch_sub(1) == 1) {
        vmm_raw_syscall(SYS_exit_group, call.argument(0));
    }
    if (call.thread().is_main) {
        tell_end(call.thread());
        vmm_raw_syscall(SYS_exit, call.argument(0));
    }
    call.end_thread();
    return 0;
}

Outcome do_set_tid_address(Call& call) noexcept
{
    call.thread().clear_tid = call.argument(0);
    return call.thread().tid;
}

Outcome do_arch_prctl(Call& call) noexcept
{
    constexpr std::uint64_t user_end = 0x0000'7fff'ffff'f000;
    switch (call.argument(0)) {
    case ARCH_SET_FS:
        if (call.argument(1) >= user_end) {
            return -EPERM;
        }
        call.thread().client_fs = call.argument(1);
        return 0;
    case ARCH_GET_FS: return copy_out(call.address(1), call.thread().client_fs) ? 0 : -EFAULT;
    case ARCH_SET_GS:
        log(LogLevel::Error, "the client wants GS base for itself, which is the library's here");
        return -EINVAL;
    case ARCH_GET_GS: return copy_out(call.address(1), std::uint64_t{0}) ? 0 : -EFAULT;
    default: return pass_on;
    }
}

namespace {

/// A filter would judge the library's system calls too.
long refuse_filter() noexcept
{
    log(LogLevel::Error,
        "the client wants to filter its system calls (seccomp), and with them those "
        "of the library: refused; start it without, as by --no-seccomp");
    return -EINVAL;
}

}  // namespace

Outcome do_prctl(Call& call) noexcept
{
    switch (call.argument(0)) {
    case PR_SET_SECCOMP: return refuse_filter();
    case PR_SET_SYSCALL_USER_DISPATCH: return -EINVAL;
    default: return pass_on;
    }
}

Outcome do_seccomp(Call& call) noexcept
{
    const std::uint64_t operation = call.argument(0);
    const bool sets = operation == SECCOMP_SET_MODE_STRICT || operation == SECCOMP_SET_MODE_FILTER;
    return sets ? Outcome{refuse_filter()} : pass_on;
}

}  // namespace vmm::shim::raw
