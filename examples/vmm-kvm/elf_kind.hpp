// SPDX-License-Identifier: Apache-2.0

/// @file
/// Whether a program can be reached by a preload library.

#pragma once

#include <cstdint>
#include <filesystem>

enum class ElfKind : std::uint8_t {
    Dynamic,
    Static,
    Foreign,  ///< For another processor.
    NotElf,   ///< A script, say.
    Unreadable,
};

/// errno says why if it is unreadable.
[[nodiscard]] ElfKind elf_kind(const std::filesystem::path& program);
