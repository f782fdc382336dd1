// SPDX-License-Identifier: Apache-2.0

#include "oracle/encoding.hpp"

namespace vmm::oracle {

namespace {

/// Reads a VEX prefix whose first byte is at `at`.
void read_vex(std::span<const std::uint8_t> bytes, std::size_t at, Encoding& encoding) noexcept
{
    const bool three = bytes[at] == 0xc4;
    const std::size_t opcode = at + (three ? 3U : 2U);
    if (opcode >= bytes.size()) {
        return;
    }
    const std::uint8_t last = bytes[opcode - 1];
    encoding.kind = Encoding::Kind::Vex;
    encoding.map = three ? bytes[at + 1] & 0x1fU : 1;
    encoding.w = three && (last & 0x80U) != 0;
    encoding.vex_l = (last >> 2U) & 1U;
    encoding.pp = last & 3U;
    encoding.opcode = bytes[opcode];
    encoding.modrm_offset = static_cast<std::uint8_t>(opcode + 1);
    encoding.is_complete = true;
}

/// Reads legacy prefixes and REX; returns the offset of what follows.
std::size_t read_prefixes(std::span<const std::uint8_t> bytes, Encoding& encoding) noexcept
{
    std::size_t at = 0;
    for (; at < bytes.size(); ++at) {
        const std::uint8_t byte = bytes[at];
        if (!encoding.is_32 && (byte & 0xf0U) == 0x40U) {
            encoding.rex = byte;
            continue;
        }
        switch (byte) {
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
        case 0x64:
        case 0x65: break;
        case 0x66: encoding.operand_size = true; break;
        case 0x67: encoding.address_size = true; break;
        case 0xf0: encoding.lock = true; break;
        case 0xf2:
            encoding.repne = true;
            encoding.rep = false;
            break;
        case 0xf3:
            encoding.rep = true;
            encoding.repne = false;
            break;
        default: return at;
        }
        encoding.rex = 0;  // Counts only right before the opcode.
    }
    return at;
}

}  // namespace

Encoding parse(std::span<const std::uint8_t> bytes, bool is_32) noexcept
{
    Encoding encoding;
    encoding.is_32 = is_32;
    std::size_t at = read_prefixes(bytes, encoding);
    if (at >= bytes.size()) {
        return encoding;
    }
    const bool is_escape = !is_32 || (at + 1 < bytes.size() && bytes[at + 1] >= 0xc0);
    if ((bytes[at] == 0xc4 || bytes[at] == 0xc5) && is_escape) {
        read_vex(bytes, at, encoding);
    } else {
        if (bytes[at] == 0x62 && is_escape) {
            encoding.kind = Encoding::Kind::Evex;
        }
        if (bytes[at] == 0x0f && at + 1 < bytes.size()) {
            encoding.map = 1;
            ++at;
            if ((bytes[at] == 0x38 || bytes[at] == 0x3a) && at + 1 < bytes.size()) {
                encoding.map = bytes[at] == 0x38 ? 2 : 3;
                ++at;
            }
        }
        encoding.opcode = bytes[at];
        encoding.w = (encoding.rex & 8U) != 0;
        encoding.pp = encoding.rep ? 2 : (encoding.repne ? 3 : (encoding.operand_size ? 1 : 0));
        encoding.modrm_offset = static_cast<std::uint8_t>(at + 1);
        encoding.is_complete = true;
    }
    if (encoding.modrm_offset < bytes.size()) {
        encoding.modrm = bytes[encoding.modrm_offset];
    }
    return encoding;
}

bool has_modrm(const Encoding& encoding) noexcept
{
    const unsigned opcode = encoding.opcode;
    if (encoding.kind == Encoding::Kind::Vex) {
        return !(encoding.map == 1 && opcode == 0x77);
    }
    if (encoding.map >= 2) {
        return true;
    }
    if (encoding.map == 1) {
        const bool none = (opcode >= 0x04 && opcode <= 0x0c) || opcode == 0x0e ||
                          (opcode >= 0x30 && opcode <= 0x37) || opcode == 0x77 ||
                          (opcode >= 0x80 && opcode <= 0x8f) ||
                          (opcode >= 0xa0 && opcode <= 0xa2) ||
                          (opcode >= 0xa8 && opcode <= 0xaa) || (opcode >= 0xc8 && opcode <= 0xcf);
        return !none;
    }
    if (opcode < 0x40) {
        return (opcode & 7U) < 4;
    }
    return opcode == 0x62 || opcode == 0x63 || opcode == 0x69 || opcode == 0x6b ||
           (opcode >= 0x80 && opcode <= 0x8f) || opcode == 0xc0 || opcode == 0xc1 ||
           (opcode >= 0xc4 && opcode <= 0xc7) || (opcode >= 0xd0 && opcode <= 0xd3) ||
           (opcode >= 0xd8 && opcode <= 0xdf) || opcode == 0xf6 || opcode == 0xf7 ||
           opcode == 0xfe || opcode == 0xff;
}

}  // namespace vmm::oracle
