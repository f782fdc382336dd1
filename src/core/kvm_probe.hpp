// SPDX-License-Identifier: Apache-2.0

/// @file
/// What the host's `/dev/kvm` is good for.

#pragma once

#include <string>

namespace vmm::core {

/// One clause: why `/dev/kvm` does not open, or what came of running the probe guest on it.
[[nodiscard]] std::string describe_host_kvm();

}  // namespace vmm::core
