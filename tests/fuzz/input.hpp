// SPDX-License-Identifier: Apache-2.0

/// @file
/// A fuzzer's bytes, read as numbers and choices.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace vmm::fuzz {

/// Reads from the front.  Where the bytes end, zeros follow: a short input is a valid one.
class Input {
public:
    explicit Input(std::span<const std::uint8_t> bytes) noexcept : bytes_{bytes} {}

    [[nodiscard]] bool is_empty() const noexcept { return bytes_.empty(); }

    /// The bytes of a trivial type.
    template <typename T>
    [[nodiscard]] T take() noexcept
    {
        static_assert(std::is_integral_v<T>);
        T value{};
        const std::size_t size = std::min(sizeof(T), bytes_.size());
        if (size != 0) {  // An empty span may have a null pointer, which memcpy must not be given.
            std::memcpy(&value, bytes_.data(), size);
        }
        bytes_ = bytes_.subspan(size);
        return value;
    }
    [[nodiscard]] std::uint8_t u8() noexcept { return take<std::uint8_t>(); }
    [[nodiscard]] std::uint16_t u16() noexcept { return take<std::uint16_t>(); }
    [[nodiscard]] std::uint32_t u32() noexcept { return take<std::uint32_t>(); }
    [[nodiscard]] std::uint64_t u64() noexcept { return take<std::uint64_t>(); }
    [[nodiscard]] bool flag() noexcept { return (u8() & 1U) != 0; }

    /// Below `count`, which is 1 to 256.
    [[nodiscard]] std::size_t below(std::size_t count) noexcept { return u8() % count; }

    template <typename T, std::size_t count>
    [[nodiscard]] T pick(const std::array<T, count>& values) noexcept
    {
        static_assert(count <= 256);
        return values[below(count)];
    }

    /// A number as guests like them: small, near a limit, one bit, a whole word.  `near`: where
    /// something is.
    [[nodiscard]] std::uint64_t number(std::uint64_t near = 0) noexcept
    {
        const std::uint8_t form = u8();
        switch (form & 7U) {
        case 0: return form >> 3U;
        case 1: return u8();
        case 2: return u16();
        case 3: return near + u16();
        case 4: return std::uint64_t{0} - u8();
        case 5: return std::uint64_t{1} << (u8() & 63U);
        case 6: return u32();
        default: return u64();
        }
    }

    /// `size` bytes, zeros where there are too few.
    void fill(void* to, std::size_t size) noexcept
    {
        std::memset(to, 0, size);
        const std::size_t there = std::min(size, bytes_.size());
        if (there != 0) {
            std::memcpy(to, bytes_.data(), there);
        }
        bytes_ = bytes_.subspan(there);
    }

    /// A structure that may hold anything.
    template <typename T>
    void fill(T& to) noexcept
    {
        static_assert(std::is_trivially_copyable_v<T>);
        fill(&to, sizeof(T));
    }

    /// At most `size` of the bytes left.
    [[nodiscard]] std::span<const std::uint8_t> bytes(std::size_t size) noexcept
    {
        const auto taken = bytes_.first(std::min(size, bytes_.size()));
        bytes_ = bytes_.subspan(taken.size());
        return taken;
    }
    [[nodiscard]] std::span<const std::uint8_t> rest() noexcept { return bytes(bytes_.size()); }

private:
    std::span<const std::uint8_t> bytes_;
};

/// Writes what `Input` reads, for seeds.
class Seed {
public:
    template <typename T>
    Seed& put(T value)
    {
        static_assert(std::is_trivially_copyable_v<T>);
        const auto at = bytes_.size();
        bytes_.resize(at + sizeof(T));
        std::memcpy(bytes_.data() + at, &value, sizeof(T));
        return *this;
    }
    Seed& u8(unsigned value) { return put(static_cast<std::uint8_t>(value)); }
    Seed& u16(unsigned value) { return put(static_cast<std::uint16_t>(value)); }
    Seed& u32(std::uint32_t value) { return put(value); }
    Seed& u64(std::uint64_t value) { return put(value); }
    /// As `Input::number()` reads it.
    Seed& number(std::uint64_t value) { return u8(7).u64(value); }
    Seed& bytes(std::span<const std::byte> values)
    {
        for (const std::byte value : values) {
            put(value);
        }
        return *this;
    }
    Seed& bytes(const std::vector<std::uint8_t>& values)
    {
        for (const std::uint8_t value : values) {
            u8(value);
        }
        return *this;
    }

    [[nodiscard]] const std::vector<std::uint8_t>& data() const noexcept { return bytes_; }

private:
    std::vector<std::uint8_t> bytes_;
};

}  // namespace vmm::fuzz
