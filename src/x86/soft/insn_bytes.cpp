// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/insn_bytes.hpp"

#include <array>

namespace vmm::x86::soft {

namespace {

/// A row of 16 opcodes, bit by low digit.  SDM Vol. 2D "Opcode Map".
using OpcodeSet = std::array<std::uint16_t, 16>;

constexpr OpcodeSet modrm_one_byte{0x0f0f, 0x0f0f, 0x0f0f, 0x0f0f, 0,      0,      0x0a0c, 0,
                                   0xffff, 0,      0,      0,      0x00f3, 0xff0f, 0,      0xc0c0};
constexpr OpcodeSet modrm_0f{0x200f, 0xffff, 0xff0f, 0x0000, 0xffff, 0xffff, 0xffff, 0xff7f,
                             0,      0xffff, 0xf8f8, 0xffff, 0x00ff, 0xffff, 0xffff, 0xffff};
constexpr OpcodeSet byte_one_byte{0x1010, 0x1010, 0x1010, 0x1010, 0,      0,      0x0c00, 0xffff,
                                  0x000d, 0,      0x0100, 0x00ff, 0x2043, 0x0030, 0x08ff, 0};
constexpr OpcodeSet byte_0f{0, 0, 0, 0, 0, 0, 0, 0x000f, 0, 0, 0x1010, 0x0400, 0x0074, 0, 0, 0};
constexpr OpcodeSet full_one_byte{0x2020, 0x2020, 0x2020, 0x2020, 0,      0, 0x0300, 0,
                                  0x0002, 0,      0x0200, 0xff00, 0x0080, 0, 0x0300, 0};

bool holds(const OpcodeSet& set, unsigned opcode) noexcept
{
    return ((unsigned{set[opcode >> 4U]} >> (opcode & 15U)) & 1U) != 0;
}

class Reader {
public:
    Reader(std::span<const std::byte> bytes, CodeSize size) : bytes_{bytes}, size_{size} {}

    std::size_t head() noexcept
    {
        opcode();
        return at_ + (has_modrm_ ? 1U : 0U);
    }

    std::size_t length() noexcept
    {
        opcode();
        if (map_ > 3) {
            return at_;
        }
        const bool registers_only = map_ == 1 && opcode_ >= 0x20 && opcode_ <= 0x23;
        const unsigned modrm = !has_modrm_ ? 0 : (registers_only ? take() : address());
        return at_ + immediate(opcode_, (modrm >> 3U) & 7U);
    }

private:
    void opcode() noexcept
    {
        prefixes();
        unsigned opcode = take();
        const bool vex = is_vex(opcode);
        if (vex) {
            operand_override_ = false;  // No such prefix belongs to it.
            map_ = opcode == 0xc4 ? take() & 0x1fU : 1;
            take();
            opcode = take();
        } else if (opcode == 0x0f) {
            map_ = 1;
            opcode = take();
            if (opcode >= 0x38 && opcode <= 0x3f) {
                // Maps that are reserved are read as the two that are not.
                map_ = (opcode & 2U) == 0 ? 2 : 3;
                opcode = take();
            }
        }
        opcode_ = opcode;
        const bool has_row = map_ >= 2 || holds(map_ == 0 ? modrm_one_byte : modrm_0f, opcode);
        has_modrm_ = map_ <= 3 && has_row;
    }

    unsigned take() noexcept
    {
        const std::size_t at = at_++;
        return at < bytes_.size() ? std::to_integer<unsigned>(bytes_[at]) : 0;
    }

    [[nodiscard]] bool is_vex(unsigned first) const noexcept
    {
        if (first != 0xc4 && first != 0xc5) {
            return false;
        }
        return size_ == CodeSize::Bits64 ||
               (at_ < bytes_.size() && std::to_integer<unsigned>(bytes_[at_]) >= 0xc0U);
    }

    void prefixes() noexcept
    {
        for (; at_ < bytes_.size(); ++at_) {
            const unsigned byte = std::to_integer<unsigned>(bytes_[at_]);
            switch (byte) {
            case 0x26:
            case 0x2e:
            case 0x36:
            case 0x3e:
            case 0x64:
            case 0x65:
            case 0xf0:
            case 0xf2:
            case 0xf3: rex_w_ = false; continue;
            case 0x66:
                operand_override_ = true;
                rex_w_ = false;
                continue;
            case 0x67:
                address_override_ = true;
                rex_w_ = false;
                continue;
            default: break;
            }
            if (size_ != CodeSize::Bits64 || (byte & 0xf0U) != 0x40) {
                return;
            }
            rex_w_ = (byte & 8U) != 0;
        }
    }

    /// ModRM, SIB and displacement.
    unsigned address() noexcept
    {
        const unsigned modrm = take();
        const unsigned mod = modrm >> 6U;
        const unsigned rm = modrm & 7U;
        if (mod == 3) {
            return modrm;
        }
        if (size_ != CodeSize::Bits64 && (size_ == CodeSize::Bits16) != address_override_) {
            at_ += mod == 1 ? 1U : (mod == 2 || rm == 6 ? 2U : 0U);
            return modrm;
        }
        const unsigned base = rm == 4 ? take() & 7U : rm;
        at_ += mod == 1 ? 1U : (mod == 2 || base == 5 ? 4U : 0U);
        return modrm;
    }

    [[nodiscard]] std::size_t immediate(unsigned opcode, unsigned group) const noexcept
    {
        if (map_ == 3) {
            return 1;
        }
        if (map_ == 1) {
            return holds(byte_0f, opcode) ? 1U : ((opcode & 0xf0U) == 0x80 ? full() : 0U);
        }
        if (map_ == 2) {
            return 0;
        }
        if (opcode == 0xf6 || opcode == 0xf7) {
            return group > 1 ? 0U : (opcode == 0xf6 ? 1U : full());
        }
        if (opcode == 0x9a || opcode == 0xea) {
            return 2 + full();
        }
        if (opcode == 0xc2 || opcode == 0xc8 || opcode == 0xca) {
            return opcode == 0xc8 ? 3 : 2;
        }
        if (opcode >= 0xa0 && opcode <= 0xa3) {
            return size_ == CodeSize::Bits64
                       ? (address_override_ ? 4 : 8)
                       : ((size_ == CodeSize::Bits16) != address_override_ ? 2 : 4);
        }
        if (holds(byte_one_byte, opcode)) {
            return 1;
        }
        return holds(full_one_byte, opcode) ? full() : 0;
    }

    [[nodiscard]] std::size_t full() const noexcept
    {
        return !rex_w_ && (size_ == CodeSize::Bits16) != operand_override_ ? 2 : 4;
    }

    std::span<const std::byte> bytes_;
    CodeSize size_;
    std::size_t at_{};
    unsigned map_{};
    unsigned opcode_{};
    bool has_modrm_{};
    bool operand_override_{};
    bool address_override_{};
    bool rex_w_{};
};

}  // namespace

std::size_t head_length(std::span<const std::byte> bytes, CodeSize size) noexcept
{
    return Reader{bytes, size}.head();
}

std::size_t undefined_length(std::span<const std::byte> bytes, CodeSize size) noexcept
{
    return Reader{bytes, size}.length();
}

}  // namespace vmm::x86::soft
