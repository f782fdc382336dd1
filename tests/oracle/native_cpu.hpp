// SPDX-License-Identifier: Apache-2.0

/// @file
/// The host CPU as a runner of cases, in a child process that cannot do harm: its own address
/// space, no system calls but those of its loop, each case bounded in time.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include <sys/types.h>

#include "oracle/case.hpp"

namespace vmm::oracle {

/// Cases and their outcomes, shared with the child.
struct Batch {
    static constexpr std::size_t capacity = 256;

    Arena image{};  ///< What memory holds before each case, but for its patches.
    std::array<Case, capacity> cases{};
    std::array<Outcome, capacity> outcomes{};

    // The hand-over.  The child runs cases [first, count) when `posted` has changed.
    std::uint32_t first{};
    std::uint32_t count{};
    std::atomic<std::uint32_t> posted{};
    std::atomic<std::uint32_t> done{};     ///< Follows `posted`.
    std::atomic<std::uint32_t> current{};  ///< The case being run.
};

class NativeCpu {
public:
    /// Throws std::system_error or std::runtime_error where the host does not let it.
    NativeCpu();
    ~NativeCpu();
    NativeCpu(const NativeCpu&) = delete;
    NativeCpu& operator=(const NativeCpu&) = delete;
    NativeCpu(NativeCpu&&) = delete;
    NativeCpu& operator=(NativeCpu&&) = delete;

    [[nodiscard]] Batch& batch() noexcept { return *batch_; }
    /// Has the child run the first `count` cases; `wait()` returns when their outcomes are there.
    void start(std::uint32_t count);
    void wait();

private:
    void spawn();
    void post(std::uint32_t first);
    void bury();
    [[nodiscard]] bool has_died();

    Batch* batch_{};
    ::pid_t child_{-1};
};

/// What the child does.  Never returns.
[[noreturn]] void serve_cases(Batch& batch);

}  // namespace vmm::oracle
