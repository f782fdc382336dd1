// SPDX-License-Identifier: Apache-2.0

/// @file
/// What the hooks of the preload library have in common.
///
/// Each hook has the name and the type of a function of the C library, which comes after this
/// library in the search order of the dynamic linker.  What is not ours goes on to it.

#pragma once

#include <cerrno>

// The only symbols of this library that others see.
#define VMM_HOOK __attribute__((visibility("default"), used))

namespace vmm::shim::preload {

/// Whether the client means our `/dev/kvm`.
[[nodiscard]] bool is_kvm(const char* path) noexcept;

/// The C library's manner: -1 and errno for a negative errno.
int to_libc(long result) noexcept;

}  // namespace vmm::shim::preload
