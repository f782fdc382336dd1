// SPDX-License-Identifier: Apache-2.0

/// @file
/// Signals as a client of KVM knows them: one that comes during KVM_RUN ends it with EINTR, and its
/// handler runs when KVM_RUN is over.
///
/// The handlers that a client installs are kept here, and the kernel is given one of ours in their
/// place.  It ends the run of the vCPU that its thread is in and puts the signal aside until then;
/// otherwise it calls the client's at once.  Faults of the client stay its own.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include "vmm/vcpu.hpp"
#include "x86/shim/host_ranges.hpp"

namespace vmm::shim {

/// Takes SIGSEGV and SIGBUS, which copies from and to the client need (user_memory.hpp).  Once;
/// what the client has installed for them is kept.
void own_signals() noexcept;

/// What our handler does that needs no handler of the client's: a fault of a copy or of the guest
/// is fixed up, and what comes during KVM_RUN is put aside.  Async-signal-safe.
///
/// @return false: it is the client's, now.
[[nodiscard]] bool take_signal(int signal, const siginfo_t& info, ucontext_t& context) noexcept;

/// Tells what the client has blocked in this thread, where the thread's own mask is another:
/// KVM_RUN goes by it.  Null: the mask is the client's.
void set_client_mask(const sigset_t* mask) noexcept;

/// Ends the run of the vCPU that the thread is in, if it is in one.
void end_run(pthread_t thread) noexcept;

/// sigaction(2) for the client: 0, or -1 and errno.
int change_action(int signal, const struct sigaction* action, struct sigaction* old) noexcept;

/// Tells the library how to reach the C library's own sigaction().
using SigactionFunction = int (*)(int, const struct sigaction*, struct sigaction*);
void set_real_sigaction(SigactionFunction function) noexcept;

/// A thread in KVM_RUN.
class RunScope {
public:
    /// @param kicker  Of the vCPU; lives longer, as `ranges` does.
    /// @param mask  KVM_SET_SIGNAL_MASK: what is blocked meanwhile.
    /// @param ranges  The client's memory that the guest may reach.
    RunScope(const Vcpu::Kicker& kicker,
             const HostRanges& ranges,
             const std::optional<sigset_t>& mask) noexcept;
    RunScope(const RunScope&) = delete;
    RunScope& operator=(const RunScope&) = delete;
    RunScope(RunScope&&) = delete;
    RunScope& operator=(RunScope&&) = delete;
    /// What came meanwhile is sent again, and is with its handler when this returns.
    ~RunScope();

    /// Called by our handler.  Async-signal-safe.
    void put_aside(int signal, const siginfo_t& info) noexcept;
    /// Called by our handler: the guest has reached a page that the client has not mapped.  An
    /// empty page stands in for it until `take_faults()`, and the run is ended.  False: it is no
    /// such page.  Async-signal-safe.
    [[nodiscard]] bool stand_in(std::uintptr_t address) noexcept;
    /// Whether there were such pages; they are gone again.
    [[nodiscard]] bool take_faults() noexcept;

    /// Any thread.
    void end() const noexcept { kicker_.kick(); }

private:
    static constexpr std::size_t max_faults = 64;

    static constexpr std::size_t max_waiting = 32;
    struct Waiting {
        int signal;
        siginfo_t info;
    };

    const Vcpu::Kicker& kicker_;
    const HostRanges& ranges_;
    bool masked_{};
    sigset_t before_{};
    std::atomic<std::size_t> waiting_count_{0};
    std::array<Waiting, max_waiting> waiting_;  // As many as that are set: to clear all takes long.
    std::atomic<std::size_t> fault_count_{0};
    std::array<std::uintptr_t, max_faults> faults_;
};

}  // namespace vmm::shim
