// SPDX-License-Identifier: Apache-2.0

/// @file
/// Whether hot guest code becomes host code.

#pragma once

#include <cstdint>

namespace vmm::x86::soft {

enum class TranslationMode : std::uint8_t {
    Off,
    On,
    Stress,  ///< Translates what is executed once, has little memory, flushes TLBs at random.
};

/// Off, unless the environment has VMM_SOFT=translator or VMM_SOFT=stress.
[[nodiscard]] TranslationMode default_translation_mode() noexcept;

}  // namespace vmm::x86::soft
