// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/vector_table.hpp"

#include <array>
#include <span>

namespace vmm::x86::soft {

namespace {

namespace vector_lines {

using enum VectorForm;
using namespace vector_flag;

constexpr std::uint8_t np = 1;
constexpr std::uint8_t p66 = 2;
constexpr std::uint8_t pf3 = 4;
constexpr std::uint8_t pf2 = 8;
constexpr std::uint8_t packed = np | p66;
constexpr std::uint8_t scalar = pf3 | pf2;
constexpr std::uint8_t all = packed | scalar;

// SDM Vol. 2D "Two-byte Opcode Map".  Legality within a range is the decoder's work.
constexpr std::array map_0f{
    VectorLine{0x10, 0x10, packed, VW, unaligned},
    VectorLine{0x10, 0x10, scalar, VW, vvvv_reg},
    VectorLine{0x11, 0x11, packed, WV, unaligned},
    VectorLine{0x11, 0x11, scalar, WV, vvvv_reg},
    VectorLine{0x12, 0x12, packed, VW, vvvv},
    VectorLine{0x12, 0x12, scalar, VW, 0},
    VectorLine{0x13, 0x13, packed, WV, 0},
    VectorLine{0x14, 0x15, packed, VW, vvvv},
    VectorLine{0x16, 0x16, packed, VW, vvvv},
    VectorLine{0x16, 0x16, pf3, VW, 0},
    VectorLine{0x17, 0x17, packed, WV, 0},
    VectorLine{0x28, 0x28, packed, VW, aligned},
    VectorLine{0x29, 0x29, packed, WV, aligned},
    VectorLine{0x2a, 0x2a, packed, VQ, fp | legacy},
    VectorLine{0x2a, 0x2a, scalar, VE, fp | vvvv},
    VectorLine{0x2b, 0x2b, packed, WV, aligned},
    VectorLine{0x2c, 0x2d, packed, PW, fp | legacy},
    VectorLine{0x2c, 0x2d, scalar, GW, fp},
    VectorLine{0x2e, 0x2f, packed, VW, fp | flags},
    VectorLine{0x50, 0x50, packed, GW, 0},
    VectorLine{0x51, 0x51, packed, VW, fp},
    VectorLine{0x51, 0x51, scalar, VW, fp | vvvv},
    VectorLine{0x52, 0x53, np, VW, 0},
    VectorLine{0x52, 0x53, pf3, VW, vvvv},
    VectorLine{0x54, 0x57, packed, VW, vvvv},
    VectorLine{0x58, 0x59, all, VW, fp | vvvv},
    VectorLine{0x5a, 0x5a, packed, VW, fp},
    VectorLine{0x5a, 0x5a, scalar, VW, fp | vvvv},
    VectorLine{0x5b, 0x5b, packed | pf3, VW, fp},
    VectorLine{0x5c, 0x5f, all, VW, fp | vvvv},
    VectorLine{0x60, 0x6b, np, PQ, legacy},
    VectorLine{0x60, 0x6d, p66, VW, vvvv},
    VectorLine{0x6e, 0x6e, np, PE, legacy},
    VectorLine{0x6e, 0x6e, p66, VE, 0},
    VectorLine{0x6f, 0x6f, np, PQ, legacy},
    VectorLine{0x6f, 0x6f, p66, VW, aligned},
    VectorLine{0x6f, 0x6f, pf3, VW, unaligned},
    VectorLine{0x70, 0x70, np, PQ, legacy | imm},
    VectorLine{0x70, 0x70, p66 | scalar, VW, imm},
    VectorLine{0x71, 0x73, np, ShP, legacy | imm},
    VectorLine{0x71, 0x73, p66, ShV, vvvv | imm},
    VectorLine{0x74, 0x76, np, PQ, legacy},
    VectorLine{0x74, 0x76, p66, VW, vvvv},
    VectorLine{0x7c, 0x7d, p66 | pf2, VW, fp | vvvv},
    VectorLine{0x7e, 0x7e, np, EP, legacy},
    VectorLine{0x7e, 0x7e, p66, EV, 0},
    VectorLine{0x7e, 0x7e, pf3, VW, 0},
    VectorLine{0x7f, 0x7f, np, QP, legacy},
    VectorLine{0x7f, 0x7f, p66, WV, aligned},
    VectorLine{0x7f, 0x7f, pf3, WV, unaligned},
    VectorLine{0xc2, 0xc2, all, VW, fp | vvvv | imm},
    VectorLine{0xc4, 0xc4, np, PE, legacy | imm},
    VectorLine{0xc4, 0xc4, p66, VE, vvvv | imm},
    VectorLine{0xc5, 0xc5, np, GQ, legacy | imm},
    VectorLine{0xc5, 0xc5, p66, GW, imm},
    VectorLine{0xc6, 0xc6, packed, VW, vvvv | imm},
    VectorLine{0xd0, 0xd0, p66 | pf2, VW, fp | vvvv},
    VectorLine{0xd1, 0xd5, np, PQ, legacy},
    VectorLine{0xd1, 0xd5, p66, VW, vvvv},
    VectorLine{0xd6, 0xd6, p66, WV, 0},
    VectorLine{0xd6, 0xd6, pf3, VQ, legacy},
    VectorLine{0xd6, 0xd6, pf2, PW, legacy},
    VectorLine{0xd7, 0xd7, np, GQ, legacy},
    VectorLine{0xd7, 0xd7, p66, GW, 0},
    VectorLine{0xd8, 0xe5, np, PQ, legacy},
    VectorLine{0xd8, 0xe5, p66, VW, vvvv},
    VectorLine{0xe6, 0xe6, p66 | scalar, VW, fp},
    VectorLine{0xe7, 0xe7, np, QP, legacy},
    VectorLine{0xe7, 0xe7, p66, WV, aligned},
    VectorLine{0xe8, 0xef, np, PQ, legacy},
    VectorLine{0xe8, 0xef, p66, VW, vvvv},
    VectorLine{0xf0, 0xf0, pf2, VW, unaligned},
    VectorLine{0xf1, 0xf6, np, PQ, legacy},
    VectorLine{0xf1, 0xf6, p66, VW, vvvv},
    VectorLine{0xf8, 0xfe, np, PQ, legacy},
    VectorLine{0xf8, 0xfe, p66, VW, vvvv},
};

// SDM Vol. 2D "Three-byte Opcode Map: 08H-FFH (First Two Bytes Are 0F 38H)".
constexpr std::array map_0f38{
    VectorLine{0x00, 0x0b, np, PQ, legacy},
    VectorLine{0x00, 0x0b, p66, VW, vvvv},
    VectorLine{0x0c, 0x0d, p66, VW, vvvv | vex},
    VectorLine{0x0e, 0x0f, p66, VW, flags | vex},
    VectorLine{0x10, 0x10, p66, VW, xmm0 | legacy},
    VectorLine{0x13, 0x13, p66, VW, fp | vex},
    VectorLine{0x14, 0x15, p66, VW, xmm0 | legacy},
    VectorLine{0x16, 0x16, p66, VW, vvvv | vex},
    VectorLine{0x17, 0x17, p66, VW, flags},
    VectorLine{0x18, 0x1a, p66, VW, vex},
    VectorLine{0x1c, 0x1e, np, PQ, legacy},
    VectorLine{0x1c, 0x1e, p66, VW, 0},
    VectorLine{0x20, 0x25, p66, VW, 0},
    VectorLine{0x28, 0x29, p66, VW, vvvv},
    VectorLine{0x2a, 0x2a, p66, VW, aligned},
    VectorLine{0x2b, 0x2b, p66, VW, vvvv},
    VectorLine{0x30, 0x35, p66, VW, 0},
    VectorLine{0x36, 0x36, p66, VW, vvvv | vex},
    VectorLine{0x37, 0x40, p66, VW, vvvv},
    VectorLine{0x41, 0x41, p66, VW, 0},
    VectorLine{0x45, 0x47, p66, VW, vvvv | vex},
    VectorLine{0x58, 0x5a, p66, VW, vex},
    VectorLine{0x78, 0x79, p66, VW, vex},
    VectorLine{0x96, 0x9f, p66, VW, fp | vvvv | merges | vex},
    VectorLine{0xa6, 0xaf, p66, VW, fp | vvvv | merges | vex},
    VectorLine{0xb6, 0xbf, p66, VW, fp | vvvv | merges | vex},
    VectorLine{0xc8, 0xca, np, VW, legacy},
    VectorLine{0xcb, 0xcb, np, VW, xmm0 | legacy},
    VectorLine{0xcc, 0xcd, np, VW, legacy},
    VectorLine{0xcf, 0xcf, p66, VW, vvvv},
    VectorLine{0xdb, 0xdb, p66, VW, 0},
    VectorLine{0xdc, 0xdf, p66, VW, vvvv},
};

// SDM Vol. 2D "Three-byte Opcode Map: 00H-F7H (First Two Bytes Are 0F 3AH)".
constexpr std::array map_0f3a{
    VectorLine{0x00, 0x01, p66, VW, imm | vex},
    VectorLine{0x02, 0x02, p66, VW, vvvv | imm | vex},
    VectorLine{0x04, 0x05, p66, VW, imm | vex},
    VectorLine{0x06, 0x06, p66, VW, vvvv | imm | vex},
    VectorLine{0x08, 0x09, p66, VW, fp | imm},
    VectorLine{0x0a, 0x0b, p66, VW, fp | vvvv | imm},
    VectorLine{0x0c, 0x0e, p66, VW, vvvv | imm},
    VectorLine{0x0f, 0x0f, np, PQ, imm | legacy},
    VectorLine{0x0f, 0x0f, p66, VW, vvvv | imm},
    VectorLine{0x14, 0x17, p66, EV, imm},
    VectorLine{0x18, 0x18, p66, VW, vvvv | imm | vex},
    VectorLine{0x19, 0x19, p66, WV, imm | vex},
    VectorLine{0x1d, 0x1d, p66, WV, fp | imm | vex},
    VectorLine{0x20, 0x20, p66, VE, vvvv | imm},
    VectorLine{0x21, 0x21, p66, VW, vvvv | imm},
    VectorLine{0x22, 0x22, p66, VE, vvvv | imm},
    VectorLine{0x38, 0x38, p66, VW, vvvv | imm | vex},
    VectorLine{0x39, 0x39, p66, WV, imm | vex},
    VectorLine{0x40, 0x41, p66, VW, fp | vvvv | imm},
    VectorLine{0x42, 0x42, p66, VW, vvvv | imm},
    VectorLine{0x44, 0x44, p66, VW, vvvv | imm},
    VectorLine{0x46, 0x46, p66, VW, vvvv | imm | vex},
    VectorLine{0x4a, 0x4c, p66, VW, vvvv | imm | is4 | vex},
    VectorLine{0x60, 0x61, p66, VW, imm | flags | string | unaligned | wide},
    VectorLine{0x62, 0x63, p66, VW, imm | flags | string | unaligned},
    VectorLine{0xcc, 0xcc, np, VW, imm | legacy},
    VectorLine{0xce, 0xcf, p66, VW, vvvv | imm},
    VectorLine{0xdf, 0xdf, p66, VW, imm},
};

}  // namespace vector_lines

std::span<const VectorLine> lines_of(OpcodeMap map) noexcept
{
    switch (map) {
    case OpcodeMap::Primary: return {};
    case OpcodeMap::Map0F: return vector_lines::map_0f;
    case OpcodeMap::Map0F38: return vector_lines::map_0f38;
    case OpcodeMap::Map0F3A: return vector_lines::map_0f3a;
    }
    return {};
}

/// The features whose instructions the tables list.  What else lies at these opcodes (AVX-512
/// mask instructions, VNNI …) is not offered to guests and has no place here.
bool is_vector_isa(Isa isa) noexcept
{
    constexpr std::array known{Isa::Mmx,   Isa::Sse,    Isa::Sse2, Isa::Sse3,   Isa::Ssse3,
                               Isa::Sse41, Isa::Sse42,  Isa::Aes,  Isa::Pclmul, Isa::Sha,
                               Isa::Avx,   Isa::Avx2,   Isa::Fma,  Isa::F16c,   Isa::Gfni,
                               Isa::Vaes,  Isa::Vpclmul};
    for (const Isa each : known) {
        if (each == isa) {
            return true;
        }
    }
    return false;
}

}  // namespace

const VectorLine* find_vector_line(const Insn& insn) noexcept
{
    if (!is_vector_isa(insn.isa) || insn.pp > 3) {
        return nullptr;
    }
    const std::uint16_t excluded = insn.vex ? vector_flag::legacy : vector_flag::vex;
    for (const VectorLine& line : lines_of(insn.map)) {
        if (insn.opcode >= line.first && insn.opcode <= line.last &&
            (line.prefixes & (1U << insn.pp)) != 0U && (line.flags & excluded) == 0U) {
            return &line;
        }
    }
    return nullptr;
}

std::uint8_t alignment_of(const Insn& insn, const VectorLine& line) noexcept
{
    if (!insn.has_memory) {
        return 0;
    }
    if ((line.flags & vector_flag::aligned) != 0 && insn.memory_size >= 16) {
        return static_cast<std::uint8_t>(insn.memory_size - 1U);
    }
    const bool free = insn.vex || (line.flags & vector_flag::unaligned) != 0;
    return !free && insn.memory_size == 16 ? 15 : 0;
}

}  // namespace vmm::x86::soft
