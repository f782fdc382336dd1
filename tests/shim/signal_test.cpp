// SPDX-License-Identifier: Apache-2.0

/// @file
/// Signals around KVM_RUN.

#include <atomic>
#include <cerrno>
#include <thread>

#include <pthread.h>
#include <signal.h>

#include "client.hpp"
#include "x86/shim/lists.hpp"
#include "x86/shim/signals.hpp"

namespace vmm::shim::test {
namespace {

std::atomic<int> handled{0};
std::atomic<long> seen_by_handler{0};
std::atomic<int> vcpu_of_handler{-1};

void count(int /*signal*/)
{
    ++handled;
}

/// Uses the vCPU, which would wait for ever if it were still running.
void look_at_vcpu(int /*signal*/)
{
    ++handled;
    kvm_regs regs{};
    seen_by_handler = call(vcpu_of_handler, KVM_GET_REGS, &regs);
}

void install(int number, void (*handler)(int))
{
    struct sigaction action {};
    action.sa_handler = handler;
    ASSERT_EQ(change_action(number, &action, nullptr), 0);
}

/// Kicks a thread until it has noticed.
template <typename Done>
void kick_until(pthread_t thread, int number, Done done)
{
    while (!done()) {
        ::pthread_kill(thread, number);
        std::this_thread::yield();
    }
}

/// KVM_RUN on a thread that SIGUSR1 is sent to until the call and the handler are over.
long enter_until_signalled(const Guest& guest)
{
    std::atomic<bool> over{false};
    long result = 0;
    std::thread runner{[&] {
        result = guest.enter();
        over = true;
        while (handled == 0) {
            std::this_thread::yield();
        }
    }};
    kick_until(runner.native_handle(), SIGUSR1, [&] { return over.load(); });
    runner.join();
    return result;
}

TEST(Signals, OneEndsALoopOfTheGuest)
{
    const Guest guest;
    guest.code({0xeb, 0xfe});  // jmp .
    handled = 0;
    vcpu_of_handler = guest.vcpu();
    install(SIGUSR1, look_at_vcpu);
    const long result = enter_until_signalled(guest);
    EXPECT_EQ(result, -EINTR);
    EXPECT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_INTR));
    EXPECT_EQ(seen_by_handler, 0) << "the handler runs when KVM_RUN is over";
}

TEST(Signals, OneEndsAHalt)
{
    const Guest guest(Guest::Irqchip::Full);
    guest.code({0xf4});
    handled = 0;
    install(SIGUSR1, count);
    const long result = enter_until_signalled(guest);
    EXPECT_EQ(result, -EINTR);
}

TEST(Signals, TheMaskOfARunLetsOneThroughThatStaysPending)
{
    const Guest guest;
    guest.code({0xeb, 0xfe});
    handled = 0;
    install(SIGUSR2, count);
    sigset_t blocked;
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, SIGUSR2);
    ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &blocked, nullptr), 0);
    std::array<std::uint32_t, 3> mask{8, 0, 0};
    ASSERT_EQ(call(guest.vcpu(), request::set_signal_mask, mask.data()), 0);
    ASSERT_EQ(::pthread_kill(::pthread_self(), SIGUSR2), 0);
    EXPECT_EQ(guest.enter(), -EINTR);
    EXPECT_EQ(handled, 0) << "it is blocked outside of KVM_RUN";
    const timespec at_once{};
    EXPECT_EQ(::sigtimedwait(&blocked, nullptr, &at_once), SIGUSR2);
    ::pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
}

TEST(Signals, OneWithoutAHandlerEndsTheRunThatItIsUnblockedInAndStaysPending)
{
    const Guest guest;
    guest.code({0xeb, 0xfe});
    struct sigaction plain {};
    plain.sa_handler = SIG_DFL;
    ASSERT_EQ(change_action(SIGUSR2, &plain, nullptr), 0);
    sigset_t blocked;
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, SIGUSR2);
    ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &blocked, nullptr), 0);
    std::array<std::uint32_t, 3> mask{8, 0, 0};
    ASSERT_EQ(call(guest.vcpu(), request::set_signal_mask, mask.data()), 0);
    ASSERT_EQ(::pthread_kill(::pthread_self(), SIGUSR2), 0);
    EXPECT_EQ(guest.enter(), -EINTR);
    const timespec at_once{};
    EXPECT_EQ(::sigtimedwait(&blocked, nullptr, &at_once), SIGUSR2);
    struct sigaction now {};
    ASSERT_EQ(change_action(SIGUSR2, nullptr, &now), 0);
    EXPECT_EQ(now.sa_handler, SIG_DFL) << "as the client sees it";
    ::pthread_sigmask(SIG_UNBLOCK, &blocked, nullptr);
}

TEST(Signals, TheClientSeesItsOwnActions)
{
    install(SIGUSR1, count);
    struct sigaction now {};
    ASSERT_EQ(change_action(SIGUSR1, nullptr, &now), 0);
    EXPECT_EQ(now.sa_handler, &count);
    struct sigaction plain {};
    plain.sa_handler = SIG_DFL;
    struct sigaction old {};
    ASSERT_EQ(change_action(SIGUSR1, &plain, &old), 0);
    EXPECT_EQ(old.sa_handler, &count);
    EXPECT_EQ(change_action(0, &plain, nullptr), -1);
    EXPECT_EQ(errno, EINVAL);
}

TEST(SignalsDeathTest, AFaultOfTheClientIsItsOwn)
{
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(
        {
            const Descriptor kvm = open_kvm();
            struct sigaction action {};
            action.sa_handler = [](int) { ::_exit(42); };
            change_action(SIGSEGV, &action, nullptr);
            void* const closed =
                ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            *static_cast<volatile int*>(closed) = 1;
        },
        testing::ExitedWithCode(42), "");
}

}  // namespace
}  // namespace vmm::shim::test
