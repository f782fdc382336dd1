// SPDX-License-Identifier: Apache-2.0

/// @file
/// A path that the client names, as far as it may be one that concerns us.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <string_view>

#include "x86/shim/user_memory.hpp"

namespace vmm::shim::raw {

class UserPath {
public:
    explicit UserPath(UserAddress at) noexcept
    {
        // No byte is read of a page that the path does not reach into.
        constexpr std::size_t page = 4096;
        const std::size_t first = std::min(text_.size(), page - at.value() % page);
        if (!copy_in(text_.data(), at, first)) {
            return;
        }
        std::size_t length = ::strnlen(text_.data(), first);
        if (length == first && first < text_.size()) {
            if (!copy_in(text_.data() + first, at + first, text_.size() - first)) {
                return;
            }
            length = ::strnlen(text_.data(), text_.size());
        }
        length_ = length < text_.size() ? length : 0;
    }

    /// Empty for what is longer than all that concerns us, and for what cannot be read.
    [[nodiscard]] std::string_view view() const noexcept { return {text_.data(), length_}; }

private:
    std::array<char, 64> text_;
    std::size_t length_{};
};

}  // namespace vmm::shim::raw
