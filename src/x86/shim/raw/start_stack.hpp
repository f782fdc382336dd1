// SPDX-License-Identifier: Apache-2.0

/// @file
/// The stack that a program begins with: arguments, environment, auxiliary vector.

#pragma once

#include <cstdint>
#include <span>

#include "vmm/result.hpp"
#include "x86/shim/raw/image.hpp"

namespace vmm::shim::raw {

struct StartStack {
    const char* path;
    std::span<char* const> arguments;
    char* const* environment;
    const Image& program;
    std::uint64_t interpreter_base;  ///< 0: there is none.
};

/// @return the stack pointer at the entry.
[[nodiscard]] Result<std::uint64_t> make_stack(const StartStack& what);

}  // namespace vmm::shim::raw
