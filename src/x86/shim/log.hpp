// SPDX-License-Identifier: Apache-2.0

/// @file
/// Lines for the person who runs a client, on standard error.

#pragma once

#include <cstdint>
#include <string>

namespace vmm::shim {

enum class LogLevel : std::uint8_t { Error, Warning, Debug };

/// One line "vmm-kvm: …".  VMM_KVM_LOG in the environment (error, warning, debug) says from which
/// level on; warning unless set.
void log(LogLevel level, const std::string& line) noexcept;

[[nodiscard]] std::string hex(unsigned long value);

}  // namespace vmm::shim
