// SPDX-License-Identifier: Apache-2.0

/// @file
/// Differences in which KVM, or the machine under it, is at fault: each with its reason.

#pragma once

#include <string>

#include "oracle/system/generator.hpp"

namespace vmm::oracle {

/// Why the difference of this (reduced) guest does not count; empty if it does.
[[nodiscard]] std::string explanation(const Guest& guest, const std::string& report);

}  // namespace vmm::oracle
