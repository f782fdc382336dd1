// SPDX-License-Identifier: Apache-2.0

/// @file
/// Memory for code that is made while running: mapped twice, writable and executable, never both.

#pragma once

#include <cstddef>
#include <cstdint>

#include "vmm/result.hpp"

namespace vmm::x86::soft {

/// One memfd mapped twice.  A child process shares it with its parent after fork(): who writes must
/// be who made it.
class CodeMemory {
public:
    /// The error says what to allow.
    [[nodiscard]] static Result<CodeMemory> create(std::size_t size);

    CodeMemory() noexcept = default;
    ~CodeMemory();
    CodeMemory(CodeMemory&& other) noexcept;
    CodeMemory& operator=(CodeMemory&& other) noexcept;
    CodeMemory(const CodeMemory&) = delete;
    CodeMemory& operator=(const CodeMemory&) = delete;

    [[nodiscard]] std::uint8_t* writable() const noexcept { return writable_; }
    [[nodiscard]] const std::uint8_t* executable() const noexcept { return executable_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
    std::uint8_t* writable_{};
    const std::uint8_t* executable_{};
    std::size_t size_{};
};

}  // namespace vmm::x86::soft
