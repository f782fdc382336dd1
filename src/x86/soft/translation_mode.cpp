// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/translation_mode.hpp"

#include <cstdlib>

#include <fmt/format.h>

namespace vmm::x86::soft {

std::string_view name(TranslationMode mode) noexcept
{
    switch (mode) {
    case TranslationMode::Off: return "interpreter";
    case TranslationMode::On: return "translator";
    case TranslationMode::Stress: return "stress";
    }
    return "unknown";
}

std::optional<TranslationMode> translation_mode_from_name(std::string_view wanted) noexcept
{
    for (const TranslationMode mode :
         {TranslationMode::Off, TranslationMode::On, TranslationMode::Stress}) {
        if (wanted == name(mode)) {
            return mode;
        }
    }
    return std::nullopt;
}

Result<TranslationMode> translation_mode(TranslationMode otherwise)
{
    const char* const asked = std::getenv("VMM_SOFT");
    if (asked == nullptr) {
        return otherwise;
    }
    if (const auto mode = translation_mode_from_name(asked)) {
        return *mode;
    }
    return Error{
        std::errc::invalid_argument,
        fmt::format("VMM_SOFT is \"{}\" in the environment, and the software engine has no "
                    "such mode: set it to translator, interpreter or stress, or not at all",
                    asked)};
}

}  // namespace vmm::x86::soft
