// SPDX-License-Identifier: Apache-2.0

/// @file
/// `decode()` with a memory.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "x86/soft/insn.hpp"
#include "x86/soft/zeroed_array.hpp"

namespace vmm::x86::soft {

/// What the bytes of an instruction up to its ModRM byte say.
struct Shape {
    Insn insn{};                    ///< But for its address, immediates, bytes and length.
    std::uint8_t head{};            ///< How many bytes that is.
    std::uint8_t base_extension{};  ///< 8: REX.B, for the base.
    std::uint8_t index_extension{};
    std::int8_t segment{-1};     ///< `SegmentIndex` of a prefix.
    std::uint8_t offset_size{};  ///< Bytes of an address without ModRM.
    std::uint8_t immediate_size{};
    std::uint8_t immediate2_size{};
    bool is_signed{};  ///< The first immediate.
};

/// Decodes as `decode()` does.  Code has few different instructions up to ModRM: what they are is
/// remembered, so that only addresses and immediates are read.  Not thread-safe.
class Decoder {
public:
    /// As the function.
    [[nodiscard]] DecodeStatus decode(std::span<const std::byte> bytes,
                                      CodeSize size,
                                      Insn& insn) noexcept;

private:
    static constexpr unsigned log2_entries = 12;

    struct Entry {
        std::uint64_t key{};  ///< The bytes and the code size; 0: none.
        Shape shape{};
    };

    ZeroedArray<Entry> entries_{std::size_t{1} << log2_entries};
};

}  // namespace vmm::x86::soft
