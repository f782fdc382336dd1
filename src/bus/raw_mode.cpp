// SPDX-License-Identifier: Apache-2.0

#include "bus/raw_mode.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <mutex>

#include <termios.h>
#include <unistd.h>

namespace vmm::device::detail {

namespace {

enum class Kind { Fatal, Fault, Stop, Continue };

struct Handled {
    int number{};
    Kind kind{};
};

constexpr std::array<Handled, 11> handled_signals{{
    {SIGHUP, Kind::Fatal},
    {SIGINT, Kind::Fatal},
    {SIGQUIT, Kind::Fatal},
    {SIGTERM, Kind::Fatal},
    {SIGABRT, Kind::Fatal},
    {SIGSEGV, Kind::Fault},
    {SIGBUS, Kind::Fault},
    {SIGILL, Kind::Fault},
    {SIGFPE, Kind::Fault},
    {SIGTSTP, Kind::Stop},
    {SIGCONT, Kind::Continue},
}};

/// What signal handlers need.  Written while `active` is false, read by them while it is true.
struct State {
    std::atomic<bool> active{false};
    int fd{-1};
    termios saved{};
    termios raw{};
    std::array<struct sigaction, handled_signals.size()> before{};
    std::array<bool, handled_signals.size()> installed{};
};

// A signal handler has no other way to it.
State state;               // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)
std::mutex control_mutex;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

/// Async-signal-safe.  In the background the terminal's mode is the foreground's business.
void apply(const termios& mode) noexcept
{
    const pid_t foreground = ::tcgetpgrp(state.fd);
    if (foreground < 0 || foreground == ::getpgrp()) {
        while (::tcsetattr(state.fd, TCSANOW, &mode) != 0 && errno == EINTR) {
        }
    }
}

/// Async-signal-safe.
void restore_if_active() noexcept
{
    // Acquire: pairs with the release in enter_raw_mode().
    if (state.active.load(std::memory_order_acquire)) {
        apply(state.saved);
    }
}

void raise_with_disposition(int number, const struct sigaction& disposition) noexcept
{
    ::sigaction(number, &disposition, nullptr);
    ::raise(number);
}

void stop_process(std::size_t index) noexcept
{
    restore_if_active();
    struct sigaction ours {};
    ::sigaction(SIGTSTP, &state.before[index], &ours);
    ::raise(SIGTSTP);
    sigset_t stop;
    sigset_t blocked;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTSTP);
    // Here the process stops, and on continuing handles SIGCONT before it goes on.
    ::pthread_sigmask(SIG_UNBLOCK, &stop, &blocked);
    ::pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
    ::sigaction(SIGTSTP, &ours, nullptr);
}

void on_signal(int number, siginfo_t* info, void*)
{
    const int saved_errno = errno;
    std::size_t index = 0;
    while (index + 1 < handled_signals.size() && handled_signals[index].number != number) {
        ++index;
    }
    switch (handled_signals[index].kind) {
    case Kind::Fatal:
        restore_if_active();
        // Blocked until this handler returns, and then as if we had never been.
        raise_with_disposition(number, state.before[index]);
        break;
    case Kind::Fault:
        restore_if_active();
        if (info->si_code <= 0) {
            raise_with_disposition(number, state.before[index]);  // Sent by a process.
        } else {
            // The instruction faults again, with its own address for the core dump.
            ::sigaction(number, &state.before[index], nullptr);
        }
        break;
    case Kind::Stop: stop_process(index); break;
    case Kind::Continue:
        if (state.active.load(std::memory_order_acquire)) {
            apply(state.raw);
        }
        break;
    }
    errno = saved_errno;
}

void install_handlers() noexcept
{
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    sigemptyset(&action.sa_mask);
    // An alternate stack, if the thread has one, for a stack that overflowed.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    for (std::size_t i = 0; i < handled_signals.size(); ++i) {
        const Handled& signal = handled_signals[i];
        state.installed[i] = false;
        if (::sigaction(signal.number, nullptr, &state.before[i]) != 0) {
            continue;
        }
        const bool ignored = state.before[i].sa_handler == SIG_IGN;
        const bool own_handler = state.before[i].sa_handler != SIG_DFL;
        const bool leave = signal.kind == Kind::Fatal ? ignored : own_handler;
        if (!leave) {
            state.installed[i] = ::sigaction(signal.number, &action, nullptr) == 0;
        }
    }
}

void remove_handlers() noexcept
{
    for (std::size_t i = 0; i < handled_signals.size(); ++i) {
        struct sigaction current {};
        // One installed over ours since then stays.
        if (state.installed[i] && ::sigaction(handled_signals[i].number, nullptr, &current) == 0 &&
            (current.sa_flags & SA_SIGINFO) != 0 && current.sa_sigaction == on_signal) {
            ::sigaction(handled_signals[i].number, &state.before[i], nullptr);
        }
        state.installed[i] = false;
    }
}

}  // namespace

Result<void> enter_raw_mode(int fd)
{
    const std::lock_guard lock{control_mutex};
    if (state.active.load(std::memory_order_relaxed)) {
        return Error{std::errc::device_or_resource_busy,
                     "put terminal into raw mode: another console of this process has one in raw "
                     "mode; destroy it first"};
    }
    termios mode{};
    if (::tcgetattr(fd, &mode) != 0) {
        return Error::from_errno("put terminal into raw mode: tcgetattr");
    }
    static const bool registered = std::atexit(leave_raw_mode) == 0;
    if (!registered) {
        return Error{std::errc::not_enough_memory, "put terminal into raw mode: atexit failed"};
    }
    state.fd = fd;
    state.saved = mode;
    state.raw = mode;
    ::cfmakeraw(&state.raw);
    // Messages of this process end in a line feed alone; the guest's carriage return more is
    // harmless.
    state.raw.c_oflag = mode.c_oflag;
    install_handlers();
    // Release: the handlers see what is above.
    state.active.store(true, std::memory_order_release);
    apply(state.raw);
    return success;
}

void leave_raw_mode() noexcept
{
    const std::lock_guard lock{control_mutex};
    if (!state.active.load(std::memory_order_relaxed)) {
        return;
    }
    apply(state.saved);
    state.active.store(false, std::memory_order_release);
    remove_handlers();
}

}  // namespace vmm::device::detail
