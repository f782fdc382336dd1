// SPDX-License-Identifier: Apache-2.0

/// @file
/// The client's memory, as a kernel looks at it: whatever address an ioctl is given, a copy either
/// succeeds or says EFAULT.
///
/// A copy that meets a page which is not there is ended by `fix_up_fault()`, which the owner of
/// SIGSEGV and SIGBUS (signals.cpp) calls first.

#pragma once

#include <cstddef>
#include <type_traits>

#include <ucontext.h>

namespace vmm::shim {

/// An address that the client gave: unchecked, and never dereferenced but by the functions below.
class UserAddress {
public:
    constexpr explicit UserAddress(unsigned long value) noexcept : value_{value} {}
    [[nodiscard]] constexpr unsigned long value() const noexcept { return value_; }
    friend constexpr UserAddress operator+(UserAddress address, std::size_t bytes) noexcept
    {
        return UserAddress{address.value_ + bytes};
    }

private:
    unsigned long value_;
};

/// False: EFAULT, and `to` is undefined.
[[nodiscard]] bool copy_in(void* to, UserAddress from, std::size_t size) noexcept;
/// False: EFAULT, and some of it may have been written.
[[nodiscard]] bool copy_out(UserAddress to, const void* from, std::size_t size) noexcept;

template <typename T>
[[nodiscard]] bool copy_in(T& to, UserAddress from) noexcept
{
    static_assert(std::is_trivially_copyable_v<T>);
    return copy_in(&to, from, sizeof to);
}
template <typename T>
[[nodiscard]] bool copy_out(UserAddress to, const T& from) noexcept
{
    static_assert(std::is_trivially_copyable_v<T>);
    return copy_out(to, &from, sizeof from);
}

/// In a handler of SIGSEGV or SIGBUS: whether the fault was that of a copy, which then ends.
/// Async-signal-safe.
[[nodiscard]] bool fix_up_fault(ucontext_t& context) noexcept;

}  // namespace vmm::shim
