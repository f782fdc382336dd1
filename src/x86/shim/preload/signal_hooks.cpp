// SPDX-License-Identifier: Apache-2.0

/// @file
/// Hooks: installing signal handlers.

#include <pthread.h>
#include <signal.h>

#include "x86/shim/preload/hooks.hpp"
#include "x86/shim/preload/next.hpp"
#include "x86/shim/signals.hpp"

namespace vmm::shim::preload {
namespace {

constinit Next<int(int, const struct sigaction*, struct sigaction*)> next_sigaction{"sigaction"};

constinit Next<int(pthread_t)> next_pthread_cancel{"pthread_cancel"};

/// Before the client can install anything: this library's constructors run before the client's.
[[gnu::constructor]] void tell_real_sigaction()
{
    set_real_sigaction(next_sigaction.get());
}

sighandler_t install(int signal, sighandler_t handler, unsigned flags) noexcept
{
    if (handler == SIG_ERR) {
        errno = EINVAL;
        return SIG_ERR;
    }
    using Action = struct sigaction;
    Action action{};
    Action old{};
    action.sa_handler = handler;
    action.sa_flags = static_cast<int>(flags);
    ::sigemptyset(&action.sa_mask);
    if ((flags & SA_NODEFER) == 0) {
        ::sigaddset(&action.sa_mask, signal);
    }
    return change_action(signal, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

}  // namespace
}  // namespace vmm::shim::preload

using namespace vmm::shim::preload;

// NOLINTBEGIN(cert-dcl50-cpp, bugprone-reserved-identifier): the C library's names.
extern "C" {

VMM_HOOK int sigaction(int signal, const struct sigaction* action, struct sigaction* old) noexcept
{
    return vmm::shim::change_action(signal, action, old);
}

VMM_HOOK int pthread_cancel(pthread_t thread)
{
    const int result = next_pthread_cancel.get()(thread);
    vmm::shim::end_run(thread);
    return result;
}

VMM_HOOK sighandler_t signal(int number, sighandler_t handler) noexcept
{
    return install(number, handler, SA_RESTART);
}

VMM_HOOK sighandler_t bsd_signal(int number, sighandler_t handler) noexcept
{
    return install(number, handler, SA_RESTART);
}

VMM_HOOK sighandler_t ssignal(int number, sighandler_t handler) noexcept
{
    return install(number, handler, SA_RESTART);
}

VMM_HOOK sighandler_t __sysv_signal(int number, sighandler_t handler) noexcept
{
    return install(number, handler, SA_RESETHAND | SA_NODEFER);
}

VMM_HOOK sighandler_t sysv_signal(int number, sighandler_t handler) noexcept
{
    return install(number, handler, SA_RESETHAND | SA_NODEFER);
}

}  // extern "C"
// NOLINTEND(cert-dcl50-cpp, bugprone-reserved-identifier)
