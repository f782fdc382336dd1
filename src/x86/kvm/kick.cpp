// SPDX-License-Identifier: Apache-2.0

#include "x86/kvm/kick.hpp"

#include <cstring>

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "x86/kvm/system.hpp"

namespace vmm::x86::kvm {
namespace {

/// The kernel's set of signals is 8 bytes; glibc's begins with it.
constexpr std::size_t kernel_set_size = 8;

bool same(const sigset_t& a, const sigset_t& b) noexcept
{
    return std::memcmp(&a, &b, kernel_set_size) == 0;
}

}  // namespace

void Kick::request() noexcept
{
    requested_.store(true, std::memory_order_seq_cst);
    State expected = State::In;
    if (state_.compare_exchange_strong(expected, State::Sending)) {
        ::syscall(SYS_tgkill, ::getpid(), thread_.load(std::memory_order_relaxed), signal_);
        state_.store(State::Sent, std::memory_order_release);
    }
}

void Kick::open(const UniqueFd& vcpu, sigset_t& before) noexcept
{
    sigset_t kick;
    ::sigemptyset(&kick);
    ::sigaddset(&kick, signal_);
    ::pthread_sigmask(SIG_BLOCK, &kick, &before);
    if (!mask_is_set_ || !same(mask_, before)) {
        sigset_t in_run = before;
        ::sigdelset(&in_run, signal_);
        SignalMask wanted{};
        wanted.size = kernel_set_size;
        std::memcpy(wanted.set, &in_run, kernel_set_size);
        mask_is_set_ = ::ioctl(vcpu.get(), set_signal_mask, &wanted) == 0;
        mask_ = before;
    }
    thread_.store(static_cast<pid_t>(::syscall(SYS_gettid)), std::memory_order_relaxed);
    state_.store(State::In, std::memory_order_seq_cst);
}

void Kick::close(const sigset_t& before) noexcept
{
    State seen = State::In;
    if (!state_.compare_exchange_strong(seen, State::Out)) {
        while (state_.load(std::memory_order_acquire) != State::Sent) {
            ::sched_yield();
        }
        sigset_t kick;
        ::sigemptyset(&kick);
        ::sigaddset(&kick, signal_);
        const timespec at_once{};
        while (::sigtimedwait(&kick, nullptr, &at_once) < 0 && errno == EINTR) {
        }
        state_.store(State::Out, std::memory_order_relaxed);
    }
    if (::sigismember(&before, signal_) == 0) {
        ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
}

Kick::Window::Window(Kick& kick, const UniqueFd& vcpu) noexcept : kick_{kick}
{
    kick_.open(vcpu, before_);
}

Kick::Window::~Window()
{
    kick_.close(before_);
}

}  // namespace vmm::x86::kvm
