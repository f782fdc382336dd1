// SPDX-License-Identifier: Apache-2.0

/// @file
/// A thread of a client that makes its system calls itself, and the ways between it and the
/// library.
///
/// Two programs share each thread: the client, which was not linked with us, and the library with a
/// C library of its own.  Each has its FS base (thread-local variables) and its stack.  GS base
/// leads to the `ClientThread` in both.  The kernel sends SIGSYS for a system call of the client
/// (Syscall User Dispatch): `vmm_raw_on_sigsys` goes over to the library and calls
/// `vmm_raw_serve()`, whose result is the state at which the client goes on.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <signal.h>
#include <sys/types.h>
#include <ucontext.h>

namespace vmm::shim::raw {

inline constexpr std::size_t argument_count = 6;

/// The kernel's set of signals.
using KernelSet = std::uint64_t;

[[nodiscard]] constexpr KernelSet set_of(int signal) noexcept
{
    return KernelSet{1} << static_cast<unsigned>(signal - 1);
}

/// Signals that are never blocked, whatever the client says: the library needs them.
inline constexpr KernelSet never_blocked = set_of(SIGSEGV) | set_of(SIGBUS) | set_of(SIGSYS);

/// What instructions raise; not blocked while the library runs.
inline constexpr KernelSet faults =
    set_of(SIGSEGV) | set_of(SIGBUS) | set_of(SIGFPE) | set_of(SIGILL) | set_of(SIGTRAP);

struct FreeMemory {
    void operator()(void* memory) const noexcept;
};

/// Where code in assembly language looks for things.
struct CrossingState {
    CrossingState* self;
    std::uint8_t in_client;  ///< The kernel's selector: whether system calls are dispatched.
    std::uint8_t by_stub;    ///< The library has been entered by a stub: signals are not blocked.
    std::uint64_t library_fs;
    std::uint64_t client_fs;
    std::uint64_t library_stack;
    std::uint64_t client_next;  ///< Where a system call that is passed on returns to.
    /// What it was called with: RDI, RSI, RDX, R10, R8, R9.
    std::array<std::uint64_t, argument_count> arguments;

    // Of a call by a stub (see stub.cpp).
    std::uint64_t client_stack;
    std::uint64_t client_result;  ///< RAX where the client goes on.
    KernelSet client_mask;        ///< The client's, if `is_deferred`.
    /// A signal has come: all are blocked but faults until the client goes on.
    std::uint64_t is_deferred;
    const std::atomic<bool>* descriptors;  ///< Whether a file of ours is behind each.
    std::byte* vectors;                    ///< Where XSAVEC puts the client's.
    std::uint64_t client_resume;           ///< RIP that a signal shows on the way back.
    std::uint64_t client_target;           ///< Where the way back ends.
    std::uint64_t stub_entry;              ///< Where stubs jump to.
};
static_assert(offsetof(CrossingState, self) == 0);
static_assert(offsetof(CrossingState, in_client) == 8);
static_assert(offsetof(CrossingState, library_fs) == 16);
static_assert(offsetof(CrossingState, client_fs) == 24);
static_assert(offsetof(CrossingState, library_stack) == 32);
static_assert(offsetof(CrossingState, client_next) == 40);
static_assert(offsetof(CrossingState, by_stub) == 9);
static_assert(offsetof(CrossingState, arguments) == 48);
static_assert(offsetof(CrossingState, client_stack) == 96);
static_assert(offsetof(CrossingState, client_result) == 104);
static_assert(offsetof(CrossingState, client_mask) == 112);
static_assert(offsetof(CrossingState, is_deferred) == 120);
static_assert(offsetof(CrossingState, descriptors) == 128);
static_assert(offsetof(CrossingState, vectors) == 136);
static_assert(offsetof(CrossingState, client_resume) == 144);
static_assert(offsetof(CrossingState, client_target) == 152);
static_assert(offsetof(CrossingState, stub_entry) == 160);

struct ClientThread : CrossingState {
    ClientThread() noexcept : CrossingState{} { self = this; }

    pid_t tid{};
    bool is_main{};
    std::uint64_t clear_tid{};  ///< set_tid_address(2), CLONE_CHILD_CLEARTID.
    KernelSet hidden_mask{};    ///< Of `never_blocked`: what the client believes to have blocked.

    // Memory of its own that a client has unmapped while its stack is in it.
    std::uint64_t unmapped_at{};
    std::uint64_t unmapped_size{};

    // Arguments of a call that is passed on with others than the client's.
    KernelSet passed_set{};
    std::array<std::uint64_t, 2> passed_set_argument{};
    std::vector<std::uint64_t> passed_strings;

    // Of a call by a stub.
    sigset_t deferred_mask{};  ///< `client_mask` for set_client_mask().
    std::unique_ptr<std::byte, FreeMemory> vector_memory;

    // How it begins.
    ucontext_t start{};
    std::unique_ptr<std::byte, FreeMemory> start_fpu;
    std::uint64_t tid_to_parent{};
    std::uint64_t tid_to_child{};
};

/// The thread's registers where the client was, as the kernel's frames have them.
[[nodiscard]] inline KernelSet& mask_of(ucontext_t& context) noexcept
{
    // SAFETY: glibc's set begins with the kernel's, which is all that a kernel's frame has.
    return *reinterpret_cast<KernelSet*>(&context.uc_sigmask);
}

/// The one that this thread is.
[[nodiscard]] inline ClientThread& this_thread() noexcept
{
    ClientThread* thread = nullptr;
    // NOLINTNEXTLINE(hicpp-no-assembler)
    asm volatile("rdgsbase %0" : "=r"(thread));
    return *thread;
}

/// Has the kernel dispatch this thread's system calls, from when it is in the client.
///
/// @return 0 or an errno: EINVAL where the kernel does not know how (before Linux 5.11).
[[nodiscard]] int take_system_calls(ClientThread& thread) noexcept;
void release_system_calls() noexcept;

/// Has CPUID say that there is VMX or SVM, since some clients look there first.  In this thread and
/// those that it makes; nothing happens where the CPU says so itself, or cannot be made to.
void show_virtualization() noexcept;

}  // namespace vmm::shim::raw

extern "C" {

/// Goes to the client.  Returns when the client's thread has ended.
void vmm_raw_enter(vmm::shim::raw::ClientThread* thread, ucontext_t* at) noexcept;

/// Called in the library for a system call: does it, or has it passed on.
///
/// @return where the client goes on; null: its thread ends.
ucontext_t* vmm_raw_serve(vmm::shim::raw::ClientThread* thread,
                          const siginfo_t* info,
                          ucontext_t* context) noexcept;

/// Called for a signal with neither stack nor FS base changed.  The code of it must not use
/// thread-local variables, the C library's functions included.
///
/// @return the client's handler; 0: there is nothing to do; 1: it is the library's.
std::uint64_t vmm_raw_deliver(vmm::shim::raw::ClientThread* thread,
                              int signal,
                              const siginfo_t* info,
                              ucontext_t* context) noexcept;

/// Called for a signal that meets the library.
void vmm_raw_in_library(int signal, const siginfo_t* info, ucontext_t* context) noexcept;

/// In the handler of a fault: does the CPUID that has raised it, if that is so
/// (`show_virtualization()`). As careful as vmm_raw_deliver().
bool vmm_raw_answer_cpuid(ucontext_t* context, bool is_clients) noexcept;

/// A system call that is the library's in any case; a negative errno.  Async-signal-safe.
long vmm_raw_syscall(long number,
                     std::uint64_t a = 0,
                     std::uint64_t b = 0,
                     std::uint64_t c = 0,
                     std::uint64_t d = 0,
                     std::uint64_t e = 0,
                     std::uint64_t f = 0) noexcept;

// Code: handlers of signals, and what lies where system calls are never dispatched.
extern const char vmm_raw_on_signal[];
extern const char vmm_raw_on_sigsys[];
extern const char vmm_raw_allowed[];
extern const char vmm_raw_restorer[];
extern const char vmm_raw_pass[];
extern const char vmm_raw_passed[];
extern const char vmm_raw_pass_end[];
extern const char vmm_raw_allowed_end[];
}

namespace vmm::shim::raw {

[[nodiscard]] inline std::uint64_t address_of(const char* code) noexcept
{
    return reinterpret_cast<std::uint64_t>(code);
}

}  // namespace vmm::shim::raw
