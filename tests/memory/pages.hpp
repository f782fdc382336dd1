// SPDX-License-Identifier: Apache-2.0

/// @file
/// Page-aligned memory for tests of what maps it.

#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>

namespace vmm::test {

template <std::size_t Count>
class Pages {
public:
    Pages() { std::fill_n(memory_.get(), size(), std::byte{}); }

    [[nodiscard]] std::byte* page(std::size_t index = 0) noexcept
    {
        return memory_.get() + index * 4096;
    }
    [[nodiscard]] static constexpr std::size_t size() noexcept { return Count * 4096; }
    [[nodiscard]] std::span<std::byte> bytes() noexcept { return {memory_.get(), size()}; }

private:
    struct Free {
        void operator()(void* memory) const noexcept { std::free(memory); }
    };
    std::unique_ptr<std::byte[], Free> memory_{
        static_cast<std::byte*>(std::aligned_alloc(4096, size()))};
};

}  // namespace vmm::test
