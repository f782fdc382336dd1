// SPDX-License-Identifier: Apache-2.0

/// @file
/// One decoded instruction in the terms of the manuals' opcode maps, whatever decoder made it.
/// SDM Vol. 2A "Instruction Format", Vol. 2D "Opcode Map".

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace vmm::x86::soft {

enum class CodeSize : std::uint8_t { Bits16, Bits32, Bits64 };

/// The opcode map an opcode byte belongs to.
enum class OpcodeMap : std::uint8_t { Primary, Map0F, Map0F38, Map0F3A };

/// What CPUID must offer before the instruction exists.  `None` exists in no CPU we model: #UD.
enum class Isa : std::uint8_t {
    Base,
    X87,
    Cmov,
    Cx8,
    Cx16,
    Mmx,
    Sse,
    Sse2,
    Sse3,
    Ssse3,
    Sse41,
    Sse42,
    Popcnt,
    Lzcnt,
    Bmi1,
    Bmi2,
    Adx,
    Movbe,
    Aes,
    Pclmul,
    Sha,
    Avx,
    Avx2,
    Fma,
    F16c,
    Gfni,
    Vaes,
    Vpclmul,
    Fxsr,
    Xsave,
    Xsaveopt,
    Xsavec,
    Xsaves,
    Rdtscp,
    Rdpid,
    Rdrand,
    Rdseed,
    Fsgsbase,
    Invpcid,
    Smap,
    Syscall,
    Sysenter,
    LahfLm,
    Clflush,
    Clflushopt,
    Clwb,
    Monitor,
    Cldemote,
    Prefetchw,
    None,
};

/// A legal instruction.  `decode()` answers #UD and #GP (length over 15) for all else.
struct Insn {
    static constexpr std::uint8_t no_register = 0xff;
    static constexpr std::uint8_t rip = 17;  ///< `base` of a RIP-relative operand.

    std::array<std::uint8_t, 15> bytes{};
    std::uint8_t length{};

    OpcodeMap map{};
    std::uint8_t opcode{};
    bool has_modrm{};
    std::uint8_t modrm{};
    std::uint8_t mod{};    ///< 3: `rm` is a register.
    std::uint8_t reg{};    ///< ModRM.reg with REX.R / VEX.R: 0…15.
    std::uint8_t rm{};     ///< ModRM.rm with REX.B, or opcode[2:0] with REX.B for +r forms.
    std::uint8_t group{};  ///< ModRM.reg alone, 0…7: the opcode extension.

    bool lock{};
    bool rep{};                    ///< F3.
    bool repne{};                  ///< F2.
    bool operand_size_override{};  ///< 66.
    bool has_rex{};
    bool rex_w{};
    bool vex{};
    std::uint8_t vex_l{};  ///< 0: 128 bits or scalar, 1: 256 bits.
    std::uint8_t vvvv{};   ///< Decoded (not inverted): 0…15.
    std::uint8_t pp{};     ///< Mandatory prefix as VEX encodes it: 0 none, 1 66, 2 F3, 3 F2.

    std::uint8_t operand_size{};  ///< 2, 4 or 8: what 66, REX.W and the mode make of it. Byte
                                  ///< forms: see opcode.
    std::uint8_t address_size{};  ///< 2, 4 or 8.

    // The memory operand, if there is one (mod != 3 with ModRM, moffs, string instructions).
    std::uint8_t segment{};          ///< `SegmentIndex`, override and default applied.
    std::uint8_t base{no_register};  ///< 0…15, `rip`, or none.
    std::uint8_t index{no_register};
    std::uint8_t scale{};  ///< Shift: 0…3.
    bool has_memory{};     ///< An explicit memory operand (LEA, NOP, prefetches too).
    std::uint16_t
        memory_size{};   ///< Bytes accessed; 0 where nothing is accessed or it varies (LEA, XSAVE).
    bool memory_read{};  ///< What the memory operand is to the instruction.
    bool memory_write{};
    bool requires_alignment{};    ///< A misaligned memory operand is #GP (legacy SSE, VMOVAPS …).
    std::int64_t displacement{};  ///< Also the 64-bit address of moffs forms.

    std::uint64_t
        immediate{};  ///< Sign-extended as the instruction does; far pointers: the offset.
    std::uint16_t immediate2{};  ///< Far pointers: the selector.  ENTER: the level.

    Isa isa{Isa::None};
};

enum class DecodeStatus : std::uint8_t {
    Ok,
    Invalid,    ///< #UD.
    TooLong,    ///< More than 15 bytes: #GP(0).
    Truncated,  ///< The bytes given end inside the instruction: fetch more.
};

/// Decodes the instruction at the start of `bytes`.
[[nodiscard]] DecodeStatus decode(std::span<const std::byte> bytes,
                                  CodeSize size,
                                  Insn& insn) noexcept;

}  // namespace vmm::x86::soft
