// SPDX-License-Identifier: Apache-2.0

/// @file
/// How long a thread has waited for a CPU although it could have run.

#pragma once

#include <cstdint>
#include <thread>

#include "vmm/unique_fd.hpp"

namespace vmm::core {

/// Of whichever thread asks: what it has waited since it asked first, added over threads.
///
/// Thread safety: one thread at a time.
class RunDelay {
public:
    /// In nanoseconds; stands still where the kernel does not tell.
    [[nodiscard]] std::uint64_t ns() noexcept;

private:
    UniqueFd file_;  // Of `thread_`.
    std::thread::id thread_;
    std::uint64_t before_{};  // What the file said last.
    std::uint64_t total_{};
};

}  // namespace vmm::core
