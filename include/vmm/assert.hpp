// SPDX-License-Identifier: Apache-2.0

/// @file
/// Contract checks for programmer errors.
///
/// A failed check means this process holds wrong state, so it stops at once.  A check is
/// never used for anything a guest or the host environment can cause.  Header-only, so that
/// the components in `vmm/memory` and `vmm/bus` need no library.

#pragma once

#include <cstdio>
#include <cstdlib>

namespace vmm::detail {

[[noreturn]] inline void assertion_failed(const char* expression,
                                          const char* file,
                                          int line) noexcept
{
    // stdio and not the logger: the logger may be what is broken.
    static_cast<void>(
        std::fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, expression));
    std::abort();
}

}  // namespace vmm::detail

// A macro because the message needs the spelling and place of the expression, and Clang 14
// has no std::source_location.
#define VMM_ASSERT(expression)                                                                     \
    ((expression) ? static_cast<void>(0)                                                           \
                  : ::vmm::detail::assertion_failed(#expression, __FILE__, __LINE__))
