// SPDX-License-Identifier: Apache-2.0

/// @file
/// What a client that makes its system calls itself wants done at signals.
///
/// The kernel has `vmm_raw_on_signal` in the place of each handler, with the client's flags, mask
/// and restorer, so that the frame is where and what the client expects.  A signal that meets the
/// client goes on to its handler with nothing changed.  The library runs with all signals blocked
/// but for faults, so that others are delivered when it is left, as a kernel does it; during
/// KVM_RUN, signals.cpp puts them aside.

#pragma once

#include <cstdint>

#include "x86/shim/raw/client_thread.hpp"
#include "x86/shim/user_memory.hpp"

namespace vmm::shim::raw {

inline constexpr int signal_end = 65;

/// The kernel's struct sigaction.
struct KernelAction {
    std::uint64_t handler;
    std::uint64_t flags;
    std::uint64_t restorer;
    KernelSet mask;
};

// Not atomics of the C++ library: vmm_raw_deliver() calls no function that others compile.
struct WantedAction {
    std::uint64_t handler;
    std::uint64_t flags;
};
extern WantedAction wanted_actions[signal_end];

/// Takes over what the process has been started with, and the signals that the library needs.
void start_actions() noexcept;

/// rt_sigaction(2).
[[nodiscard]] long change_kernel_action(int signal, UserAddress action, UserAddress old) noexcept;

/// rt_sigprocmask(2), on what the client returns to.
[[nodiscard]] long change_kernel_mask(ClientThread& thread,
                                      ucontext_t& context,
                                      int how,
                                      UserAddress set,
                                      UserAddress old) noexcept;

}  // namespace vmm::shim::raw
