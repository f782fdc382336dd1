// SPDX-License-Identifier: Apache-2.0

/// @file
/// A system call of the client.

#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <ucontext.h>

#include "x86/shim/raw/client_thread.hpp"
#include "x86/shim/user_memory.hpp"

namespace vmm::shim::raw {

/// What the client gets: a result or a negative errno.  None: the kernel does the call.
using Outcome = std::optional<long>;
inline constexpr std::nullopt_t pass_on = std::nullopt;

class Call {
public:
    Call(ClientThread& thread, ucontext_t& context, long number) noexcept;

    [[nodiscard]] ClientThread& thread() const noexcept { return thread_; }
    /// Where the client goes on if nothing else is said.
    [[nodiscard]] ucontext_t& context() const noexcept { return context_; }
    [[nodiscard]] long number() const noexcept { return number_; }
    [[nodiscard]] std::uint64_t stack() const noexcept
    {
        return static_cast<std::uint64_t>(context_.uc_mcontext.gregs[REG_RSP]);
    }

    [[nodiscard]] std::uint64_t argument(std::size_t index) const noexcept
    {
        return arguments_[index];
    }
    /// As the kernel takes an int: the upper half does not count.
    [[nodiscard]] int number_argument(std::size_t index) const noexcept
    {
        return static_cast<int>(static_cast<std::uint32_t>(arguments_[index]));
    }
    [[nodiscard]] UserAddress address(std::size_t index) const noexcept
    {
        return UserAddress{arguments_[index]};
    }

    /// Has the kernel see another argument; the client's register keeps what it has.
    void replace(std::size_t index, std::uint64_t value) noexcept { arguments_[index] = value; }
    /// Does it here and now.  Not for what may wait: signals are blocked.
    [[nodiscard]] long perform() const noexcept;

    /// The client goes on elsewhere.
    void resume_at(ucontext_t& context) noexcept { resume_ = &context; }
    void end_thread() noexcept { resume_ = nullptr; }

    /// @return as vmm_raw_serve()
    [[nodiscard]] ucontext_t* finish(const Outcome& outcome) noexcept;

private:
    ClientThread& thread_;
    ucontext_t& context_;
    ucontext_t* resume_;
    long number_;
    std::array<std::uint64_t, argument_count> arguments_{};
};

// --- Groups of system calls; each function is named as its call.

[[nodiscard]] Outcome do_open(Call& call) noexcept;     ///< open(2)
[[nodiscard]] Outcome do_openat(Call& call) noexcept;   ///< openat(2)
[[nodiscard]] Outcome do_openat2(Call& call) noexcept;  ///< openat2(2)
[[nodiscard]] Outcome do_close(Call& call) noexcept;
[[nodiscard]] Outcome do_close_range(Call& call) noexcept;
[[nodiscard]] Outcome do_ioctl(Call& call) noexcept;
[[nodiscard]] Outcome do_mmap(Call& call) noexcept;
[[nodiscard]] Outcome do_dup(Call& call) noexcept;
[[nodiscard]] Outcome do_dup2(Call& call) noexcept;  ///< and dup3(2)
[[nodiscard]] Outcome do_fcntl(Call& call) noexcept;

/// stat(2) and its like: at which arguments path and result are.
[[nodiscard]] Outcome do_stat(Call& call, std::size_t path, std::size_t to) noexcept;
[[nodiscard]] Outcome do_statx(Call& call) noexcept;
[[nodiscard]] Outcome do_access(Call& call, std::size_t path, std::size_t mode) noexcept;
[[nodiscard]] Outcome do_readlink(Call& call, std::size_t path) noexcept;
/// execve(2) and execveat(2): a client that starts itself anew by /proc/self/exe is served again.
[[nodiscard]] Outcome do_exec(Call& call, std::size_t path, std::size_t arguments) noexcept;

[[nodiscard]] Outcome do_clone(Call& call) noexcept;
[[nodiscard]] Outcome do_fork(Call& call) noexcept;  ///< and vfork(2), as POSIX permits.
[[nodiscard]] Outcome do_exit(Call& call) noexcept;
[[nodiscard]] Outcome do_set_tid_address(Call& call) noexcept;
[[nodiscard]] Outcome do_arch_prctl(Call& call) noexcept;
[[nodiscard]] Outcome do_prctl(Call& call) noexcept;
[[nodiscard]] Outcome do_seccomp(Call& call) noexcept;

[[nodiscard]] Outcome do_brk(Call& call) noexcept;
[[nodiscard]] Outcome do_munmap(Call& call) noexcept;

[[nodiscard]] Outcome do_rt_sigaction(Call& call) noexcept;
[[nodiscard]] Outcome do_rt_sigprocmask(Call& call) noexcept;
[[nodiscard]] Outcome do_rt_sigreturn(Call& call) noexcept;
[[nodiscard]] Outcome do_sigaltstack(Call& call) noexcept;
/// A call that waits with another mask, which is at an argument.
[[nodiscard]] Outcome do_wait_with_mask(Call& call, std::size_t mask, std::size_t size) noexcept;
[[nodiscard]] Outcome do_pselect6(Call& call) noexcept;

/// Whether the client has no other thread than this one.
[[nodiscard]] bool is_only_thread() noexcept;

/// The client's file in the place of ours, if /proc/self/exe is what it names.
void replace_own_path(Call& call, std::size_t path) noexcept;
/// What /proc/self/exe leads to for the client; said once, at the start.
void set_program_path(std::string path) noexcept;

}  // namespace vmm::shim::raw
