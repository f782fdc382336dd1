// SPDX-License-Identifier: Apache-2.0

/// @file
/// Little-endian tables in memory: written field by field, and read with every offset checked.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "vmm/assert.hpp"

namespace vmm::boot {

/// The `T` at `offset` of `bytes`, or nothing if it does not lie wholly inside.
template <typename T>
[[nodiscard]] std::optional<T> read_le(std::span<const std::byte> bytes, std::uint64_t offset)
{
    static_assert(std::is_unsigned_v<T>);
    if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) {
        return std::nullopt;
    }
    std::uint64_t value = 0;
    for (std::size_t i = sizeof(T); i-- > 0;) {
        value = (value << 8U) | std::to_integer<std::uint64_t>(bytes[offset + i]);
    }
    return static_cast<T>(value);
}

/// A growing little-endian table.
class ByteTable {
public:
    ByteTable() = default;
    /// A table of `size` zeros, to be filled by `put()`.
    explicit ByteTable(std::size_t size) : bytes_(size) {}

    [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }
    [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
    [[nodiscard]] std::vector<std::byte> take() && noexcept { return std::move(bytes_); }

    template <typename T>
    void append(T value)
    {
        bytes_.resize(bytes_.size() + sizeof(T));
        put<T>(bytes_.size() - sizeof(T), value);
    }
    void append_text(std::string_view text)
    {
        for (const char c : text) {
            bytes_.push_back(static_cast<std::byte>(c));
        }
    }
    void append_bytes(std::span<const std::byte> bytes)
    {
        bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    }
    void pad_to(std::size_t size)
    {
        VMM_ASSERT(size >= bytes_.size());
        bytes_.resize(size);
    }

    /// Overwrites the field at `offset`.  @pre it lies inside
    template <typename T>
    void put(std::size_t offset, T value)
    {
        static_assert(std::is_unsigned_v<T>);
        VMM_ASSERT(offset <= bytes_.size() && bytes_.size() - offset >= sizeof(T));
        auto rest = static_cast<std::uint64_t>(value);
        for (std::size_t i = 0; i < sizeof(T); ++i) {
            bytes_[offset + i] = static_cast<std::byte>(rest & 0xffU);
            rest >>= 8U;
        }
    }

    /// Makes the bytes from `first` up to `first + count` sum to zero by the one at `checksum`.
    void put_checksum(std::size_t checksum, std::size_t first, std::size_t count)
    {
        VMM_ASSERT(first <= bytes_.size() && bytes_.size() - first >= count);
        put<std::uint8_t>(checksum, 0);
        unsigned sum = 0;
        for (std::size_t i = 0; i < count; ++i) {
            sum += std::to_integer<unsigned>(bytes_[first + i]);
        }
        put<std::uint8_t>(checksum, static_cast<std::uint8_t>((0x100U - (sum & 0xffU)) & 0xffU));
    }

private:
    std::vector<std::byte> bytes_;
};

}  // namespace vmm::boot
