// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest memory for the loaders' tests: sparse, bounded as a real machine's RAM is.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "vmm/boot/guest_image.hpp"

namespace vmm::boot {

class FakeMemory final : public ImageWriter {
public:
    explicit FakeMemory(std::uint64_t memory_bytes) : ranges_{ram_ranges(memory_bytes).value()} {}

    [[nodiscard]] Result<void> write(Gpa target, std::span<const std::byte> bytes) override
    {
        if (!bytes.empty() && !is_ram(target, bytes.size())) {
            ++refused;
            return Error{std::errc::bad_address, "write: not RAM"};
        }
        for (std::size_t done = 0; done < bytes.size();) {
            const auto at = target.value() + done;
            auto& page = page_of(at);
            const auto chunk =
                std::min<std::size_t>(bytes.size() - done, page_bytes - at % page_bytes);
            std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(done), chunk,
                        page.begin() + static_cast<std::ptrdiff_t>(at % page_bytes));
            done += chunk;
        }
        return success;
    }

    /// Untouched pages are zero; only touched ones need to be cleared.
    [[nodiscard]] Result<void> zero(Gpa target, std::uint64_t size) override
    {
        if (size != 0 && !is_ram(target, size)) {
            ++refused;
            return Error{std::errc::bad_address, "zero: not RAM"};
        }
        const auto end = target.value() + size;
        for (auto page = pages_.lower_bound(target.value() / page_bytes);
             page != pages_.end() && page->first * page_bytes < end; ++page) {
            const auto begin = std::max(target.value(), page->first * page_bytes);
            const auto stop = std::min(end, (page->first + 1) * page_bytes);
            std::fill_n(page->second.begin() +
                            static_cast<std::ptrdiff_t>(begin - page->first * page_bytes),
                        stop - begin, std::byte{0});
        }
        return success;
    }

    [[nodiscard]] std::vector<std::byte> read(std::uint64_t from, std::size_t count)
    {
        std::vector<std::byte> bytes(count);
        for (std::size_t i = 0; i < count; ++i) {
            bytes[i] = page_of(from + i)[(from + i) % page_bytes];
        }
        return bytes;
    }

    template <typename T>
    [[nodiscard]] T get(std::uint64_t from)
    {
        const auto bytes = read(from, sizeof(T));
        std::uint64_t value = 0;
        for (std::size_t i = sizeof(T); i-- > 0;) {
            value = (value << 8U) | std::to_integer<std::uint64_t>(bytes[i]);
        }
        return static_cast<T>(value);
    }

    /// How often a loader reached for what is not RAM: it is to check before.
    int refused{0};

private:
    static constexpr std::uint64_t page_bytes = 4096;

    [[nodiscard]] bool is_ram(Gpa target, std::uint64_t size) const
    {
        return std::any_of(ranges_.begin(), ranges_.end(), [&](const RamRange& range) {
            return target >= range.first && target.value() - range.first.value() <= range.size &&
                   range.size - (target.value() - range.first.value()) >= size;
        });
    }
    std::vector<std::byte>& page_of(std::uint64_t address)
    {
        auto& page = pages_[address / page_bytes];
        page.resize(page_bytes);
        return page;
    }

    std::vector<RamRange> ranges_;
    std::map<std::uint64_t, std::vector<std::byte>> pages_;
};

}  // namespace vmm::boot
