// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string_view>

namespace vmm_linux {

/// Notices a Linux panic on the console.
///
/// Linux prints one line when a panic begins and, where it is not told to reboot (`panic=`), a
/// last one before it loops for ever.  Not thread-safe.
class PanicWatch {
public:
    void look_at(std::span<const std::byte> bytes) noexcept
    {
        for (const std::byte b : bytes) {
            const char c = std::to_integer<char>(b);
            if (begins_.found(c)) {
                begun_ = true;
            }
            if (ends_.found(c)) {
                over_ = true;
            }
        }
    }
    [[nodiscard]] bool has_begun() const noexcept { return begun_; }
    [[nodiscard]] bool is_over() const noexcept { return over_; }

private:
    /// Finds one text in a stream.  Its first character recurs nowhere in it, so a mismatch
    /// restarts at the beginning.
    class Matcher {
    public:
        explicit constexpr Matcher(std::string_view text) noexcept : text_{text} {}

        bool found(char c) noexcept
        {
            matched_ = c == text_[matched_] ? matched_ + 1 : (c == text_[0] ? 1U : 0U);
            if (matched_ < text_.size()) {
                return false;
            }
            matched_ = 0;
            return true;
        }

    private:
        std::string_view text_;
        std::size_t matched_{};
    };

    Matcher begins_{"Kernel panic - not syncing"};
    Matcher ends_{"[ end Kernel panic"};
    bool begun_{};
    bool over_{};
};

}  // namespace vmm_linux
