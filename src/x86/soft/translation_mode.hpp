// SPDX-License-Identifier: Apache-2.0

/// @file
/// Whether hot guest code becomes host code.

#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "vmm/result.hpp"

namespace vmm::x86::soft {

enum class TranslationMode : std::uint8_t {
    Off,
    On,
    Stress,  ///< Translates what is executed once, has little memory, flushes TLBs at random.
};

/// "interpreter", "translator", "stress".
[[nodiscard]] std::string_view name(TranslationMode mode) noexcept;
[[nodiscard]] std::optional<TranslationMode> translation_mode_from_name(
    std::string_view name) noexcept;

/// What VMM_SOFT in the environment says, or `otherwise` where it is not set.  EINVAL for what is
/// no name of a mode.
[[nodiscard]] Result<TranslationMode> translation_mode(
    TranslationMode otherwise = TranslationMode::On);

}  // namespace vmm::x86::soft
