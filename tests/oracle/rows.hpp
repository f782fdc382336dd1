// SPDX-License-Identifier: Apache-2.0

/// @file
/// The rows of the opcode maps: what the oracle counts by and draws from.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "oracle/encoding.hpp"

namespace vmm::oracle {

struct Row {
    enum class Form : std::uint8_t { Any, Memory, Register };

    Encoding::Kind kind{};
    bool is_32{};
    std::uint8_t map{};
    std::uint8_t opcode{};
    std::uint8_t pp{};     ///< Not of one-byte opcodes: their prefixes are free.
    std::uint8_t vex_l{};  ///< Of VEX only.
    bool is_group{};
    std::uint8_t group{};
    Form form{};
    /// Drawn from the decoder: some encoding of the row is an instruction of the engine.
    bool is_known{};

    /// As `--row` takes it: `64:0f:ae:f3:/1:mem`, `64:vex:0f38:92:66:L1`.
    [[nodiscard]] std::string name() const;
};

/// All rows, 64-bit code's first.
[[nodiscard]] std::vector<Row> all_rows();

}  // namespace vmm::oracle
