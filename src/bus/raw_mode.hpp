// SPDX-License-Identifier: Apache-2.0

/// @file
/// A terminal in raw mode that gets its mode back on every way out of the process.

#pragma once

#include "vmm/result.hpp"

namespace vmm::device::detail {

/// Puts the terminal `fd` into raw mode and installs the signal handlers.  One at a time in a
/// process.
///
/// Errors: EBUSY; those of tcgetattr(3).
[[nodiscard]] Result<void> enter_raw_mode(int fd);

/// Undoes `enter_raw_mode()`.  Does nothing where that was not done.
void leave_raw_mode() noexcept;

}  // namespace vmm::device::detail
