// SPDX-License-Identifier: Apache-2.0

/// @file
/// A program in memory, as the kernel's exec would have put it there.

#pragma once

#include <cstdint>
#include <string>

#include "vmm/result.hpp"

namespace vmm::shim::raw {

struct Image {
    std::uint64_t base{};  ///< What is added to the file's addresses.
    std::uint64_t entry{};
    std::uint64_t program_headers{};
    std::uint64_t program_header_count{};
    std::string interpreter;  ///< The dynamic linker, which is to be loaded too; empty: none.
    bool has_executable_stack{};
};

/// Maps an ELF file for x86-64.  Errors: ENOEXEC and what open(2) and mmap(2) say.
[[nodiscard]] Result<Image> load_image(const std::string& path);

}  // namespace vmm::shim::raw
