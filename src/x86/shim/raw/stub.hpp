// SPDX-License-Identifier: Apache-2.0

/// @file
/// Calls of ioctl(2) that reach the library without a signal.
///
/// SIGSYS and the way back from it cost more than most ioctls.  So where the client has made one on
/// a file of ours by `mov $16, %eax; syscall`, its text is changed: a jump to a *stub* is in the
/// place of the MOV.  The stub loads what SYSCALL would (RCX) and jumps to `vmm_raw_stub_enter`.
/// SYSCALL itself stays where it is, for whoever comes to it by another way, and for what is not
/// served here.
///
/// The library is entered with the client's mask.  A signal that comes meanwhile blocks all others
/// and waits until the client goes on, which sets its mask again: so a handler of the client never
/// runs in the middle of the library, as with SIGSYS.  A signal on the way between the two shows
/// the client's SYSCALL, before or after it.

#pragma once

#include <cstdint>

#include "x86/shim/raw/client_thread.hpp"

namespace vmm::shim::raw {

/// Whether this CPU can, and the user has not said VMM_KVM_PATCH=0.  Once, before there is a
/// client.
void start_stubs() noexcept;

/// Prepares a thread that is to come.  @return false: there is no memory.
[[nodiscard]] bool make_stub_state(ClientThread& thread) noexcept;

/// The client has made an ioctl(2) on a file of ours, and this follows its SYSCALL: from now on it
/// may come by a stub.
void consider_stub(std::uint64_t next) noexcept;

/// What the kernel says of the client's alternate stack and where its stack pointer is.  On the
/// alternate stack it goes by SIGSYS: the kernel would not know that it is there while the library
/// is entered, and put a frame over what is on it.
void choose_way(ClientThread& thread, const stack_t& alternate, std::uint64_t stack) noexcept;
/// It may be there, until the next SIGSYS tells.
void avoid_stubs(ClientThread& thread) noexcept;

/// A signal has come to the library, which a stub has entered: `signal` waits, and all others,
/// until the client goes on.
void defer_signals(ClientThread& thread, int signal, ucontext_t& context) noexcept;

}  // namespace vmm::shim::raw

extern "C" {

struct StubResult {
    long value;
    std::uint64_t is_served;  ///< Else the kernel does the call.
};

/// Called in the library for an ioctl(2).
StubResult vmm_raw_serve_stub(vmm::shim::raw::ClientThread* thread,
                              std::uint64_t fd,
                              std::uint64_t request,
                              std::uint64_t argument) noexcept;

// Code.  From `avoid` to `inside` and from `leaving` to `end` registers are both the client's and
// the library's: vmm_raw_on_signal knows what to make of them.
extern const char vmm_raw_stub_avoid[];  ///< For a client that is to go by SIGSYS.
extern const char vmm_raw_stub_enter[];
extern const char vmm_raw_stub_inside[];
extern const char vmm_raw_stub_leave[];  ///< May be executed again from here on, until `leaving`.
extern const char vmm_raw_stub_leaving[];
}
