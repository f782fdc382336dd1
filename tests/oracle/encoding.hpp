// SPDX-License-Identifier: Apache-2.0

/// @file
/// The fields of an instruction's bytes up to ModRM, read without knowing whether it exists: for
/// the tables that say what can be judged, and for counting what has been.

#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace vmm::oracle {

/// SDM Vol. 2A "Instruction Format".
struct Encoding {
    enum class Kind : std::uint8_t { Legacy, Vex, Evex };

    Kind kind{};
    std::uint8_t map{};  ///< 0 one-byte, 1 0F, 2 0F 38, 3 0F 3A; more in VEX and EVEX.
    std::uint8_t opcode{};
    std::uint8_t pp{};  ///< 0 none, 1 66, 2 F3, 3 F2; the last of F2 and F3 wins.
    std::uint8_t rex{};
    std::uint8_t vex_l{};
    bool w{};
    bool lock{};
    bool rep{};
    bool repne{};
    bool operand_size{};  ///< 66.
    bool address_size{};  ///< 67.
    bool is_complete{};   ///< The bytes reach to the opcode.
    bool is_32{};
    std::uint8_t modrm_offset{};  ///< Of what follows the opcode.
    std::uint8_t modrm{};         ///< The byte there, whatever it is.

    [[nodiscard]] unsigned group() const noexcept { return (modrm >> 3U) & 7U; }
    [[nodiscard]] bool has_register_form() const noexcept { return (modrm >> 6U) == 3U; }
};

[[nodiscard]] Encoding parse(std::span<const std::uint8_t> bytes, bool is_32) noexcept;

/// Whether a ModRM byte follows the opcode.  SDM Vol. 2D "Opcode Map".
[[nodiscard]] bool has_modrm(const Encoding& encoding) noexcept;

}  // namespace vmm::oracle
