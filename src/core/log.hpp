// SPDX-License-Identifier: Apache-2.0

/// @file
/// The library's logger.  Messages are lower case, no final stop, operation first.  A user
/// replaces it by registering an spdlog logger named "vmm".

#pragma once

#include <memory>

#include <spdlog/spdlog.h>

namespace vmm::core {

/// The logger named "vmm"; warnings and worse go to standard error unless the user chose
/// otherwise (`SPDLOG_LEVEL=vmm=debug`).
[[nodiscard]] spdlog::logger& log();

}  // namespace vmm::core
