// SPDX-License-Identifier: Apache-2.0

/// @file
/// Making KVM_RUN return from another thread, without a signal handler.
///
/// KVM_RUN returns when a signal is pending that its own mask (KVM_SET_SIGNAL_MASK) does not block.
/// The thread's mask blocks the kick's signal all the while, so the signal is never delivered: it
/// stays pending, and the thread takes it back (sigtimedwait) before it goes on.

#pragma once

#include <atomic>
#include <csignal>

#include <sys/types.h>

#include "vmm/unique_fd.hpp"

namespace vmm::x86::kvm {

class Kick {
public:
    explicit Kick(int signal) noexcept : signal_{signal} {}

    /// Any thread, async-signal-safe.  Sticky until `take()`.
    void request() noexcept;
    [[nodiscard]] bool is_requested() const noexcept
    {
        return requested_.load(std::memory_order_seq_cst);
    }
    [[nodiscard]] bool take() noexcept { return requested_.exchange(false); }

    /// While one lives, a request makes the KVM_RUN of this thread return.
    class Window {
    public:
        /// `vcpu` is told which signals end KVM_RUN if that changed since the last window.
        Window(Kick& kick, const UniqueFd& vcpu) noexcept;
        Window(const Window&) = delete;
        Window& operator=(const Window&) = delete;
        Window(Window&&) = delete;
        Window& operator=(Window&&) = delete;
        ~Window();

    private:
        Kick& kick_;
        sigset_t before_{};
    };

private:
    enum class State : int {
        Out,      ///< No KVM_RUN: the request is noticed without a signal.
        In,       ///< A request sends the signal to `thread_`.
        Sending,  ///< One is being sent; `thread_` must live until it is.
        Sent,     ///< It is pending in `thread_`.
    };
    static_assert(std::atomic<State>::is_always_lock_free && std::atomic<bool>::is_always_lock_free,
                  "request() is called from signal handlers");

    void open(const UniqueFd& vcpu, sigset_t& before) noexcept;
    void close(const sigset_t& before) noexcept;

    const int signal_;
    std::atomic<bool> requested_{};
    std::atomic<State> state_{State::Out};
    std::atomic<pid_t> thread_{};
    bool mask_is_set_{};
    sigset_t mask_{};  ///< The thread's own that KVM's was derived from.
};

}  // namespace vmm::x86::kvm
