// SPDX-License-Identifier: Apache-2.0

/// @file
/// Lines for the person who runs a client, on standard error.

#pragma once

#include <cstdint>
#include <string>

namespace vmm::shim {

enum class LogLevel : std::uint8_t { Error, Warning, Debug, Trace };

/// VMM_KVM_LOG in the environment (error, warning, debug, trace) says up to which level lines are
/// wanted; warning unless set.
[[nodiscard]] bool is_wanted(LogLevel level) noexcept;

/// One line "vmm-kvm: …", if it is wanted.
void log(LogLevel level, const std::string& line) noexcept;

[[nodiscard]] std::string hex(unsigned long value);

}  // namespace vmm::shim
