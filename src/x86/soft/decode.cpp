// SPDX-License-Identifier: Apache-2.0

/// @file
/// Zydis behind `decode()`.
///
/// Zydis says whether the bytes are an instruction, what it needs, what it does to memory and how
/// large its immediates are; all of that follows from its bytes up to ModRM (`Shape`).  Registers,
/// prefixes, the effective address and the immediates are taken from the bytes here.

#include <algorithm>
#include <array>
#include <cstring>

#include <Zydis/Zydis.h>

#include "x86/cpu_state.hpp"
#include "x86/soft/decoder.hpp"
#include "x86/soft/insn_bytes.hpp"

namespace vmm::x86::soft {

namespace {

struct Decoders {
    std::array<ZydisDecoder, 3> each{};

    Decoders()
    {
        constexpr std::array<ZydisMachineMode, 3> modes{
            ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_MACHINE_MODE_LONG_64};
        constexpr std::array<ZydisStackWidth, 3> stacks{ZYDIS_STACK_WIDTH_16, ZYDIS_STACK_WIDTH_32,
                                                        ZYDIS_STACK_WIDTH_64};
        for (std::size_t i = 0; i < each.size(); ++i) {
            ZydisDecoderInit(&each[i], modes[i], stacks[i]);
            // Not offered: their encodings are the NOPs (or WBINVD) they once were.
            ZydisDecoderEnableMode(&each[i], ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
            ZydisDecoderEnableMode(&each[i], ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
            ZydisDecoderEnableMode(&each[i], ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
            ZydisDecoderEnableMode(&each[i], ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
        }
    }
};

const ZydisDecoder& decoder_for(CodeSize size) noexcept
{
    static const Decoders decoders;
    return decoders.each[static_cast<std::size_t>(size)];
}

/// Hints that every processor ignores: 0F 0D (PREFETCHW), 0F 18 … 0F 1F.
bool is_hint(const Insn& insn) noexcept
{
    return insn.map == OpcodeMap::Map0F && !insn.vex &&
           (insn.opcode == 0x0d || (insn.opcode >= 0x18 && insn.opcode <= 0x1f));
}

Isa base_isa(const Insn& insn, CodeSize size) noexcept
{
    if (insn.map == OpcodeMap::Map0F) {
        if (insn.opcode == 0x05 || insn.opcode == 0x07) {
            return Isa::Syscall;
        }
        if (insn.opcode == 0x34 || insn.opcode == 0x35) {
            return Isa::Sysenter;
        }
        if (insn.opcode == 0xc7 && insn.group == 1) {
            return insn.rex_w ? Isa::Cx16 : Isa::Cx8;
        }
    }
    if (insn.map == OpcodeMap::Primary && (insn.opcode == 0x9e || insn.opcode == 0x9f) &&
        size == CodeSize::Bits64) {
        return Isa::LahfLm;
    }
    return Isa::Base;
}

/// VMCALL and VMMCALL: the hypercalls are the only instructions of their extensions we model.
bool is_hypercall(const Insn& insn) noexcept
{
    return insn.map == OpcodeMap::Map0F && insn.opcode == 0x01 &&
           (insn.modrm == 0xc1 || insn.modrm == 0xd9);
}

Isa isa_of(const ZydisDecodedInstruction& raw, const Insn& insn, CodeSize size) noexcept
{
    if (is_hint(insn)) {
        return Isa::Base;
    }
    // Those Zydis files under other sets in some modes.
    if (const Isa isa = base_isa(insn, size); isa != Isa::Base) {
        return isa;
    }
    if (insn.vex && insn.map == OpcodeMap::Map0F3A && insn.opcode == 0x44 && insn.vex_l == 0) {
        return Isa::Pclmul;
    }
    switch (raw.meta.isa_set) {
    case ZYDIS_ISA_SET_I86:
    case ZYDIS_ISA_SET_I186:
    case ZYDIS_ISA_SET_I286PROTECTED:
    case ZYDIS_ISA_SET_I286REAL:
    case ZYDIS_ISA_SET_I386:
    case ZYDIS_ISA_SET_I486:
    case ZYDIS_ISA_SET_I486REAL:
    case ZYDIS_ISA_SET_PENTIUMREAL:
    case ZYDIS_ISA_SET_PPRO:
    case ZYDIS_ISA_SET_FAT_NOP:
    case ZYDIS_ISA_SET_PAUSE:
    case ZYDIS_ISA_SET_PREFETCH_NOP:
    case ZYDIS_ISA_SET_SSE_PREFETCH:
    case ZYDIS_ISA_SET_RDPMC:
    case ZYDIS_ISA_SET_LONGMODE:
    case ZYDIS_ISA_SET_LAHF:
    case ZYDIS_ISA_SET_CMPXCHG16B: return Isa::Base;
    case ZYDIS_ISA_SET_VTX:
    case ZYDIS_ISA_SET_SVM: return is_hypercall(insn) ? Isa::Base : Isa::None;
    case ZYDIS_ISA_SET_X87: return Isa::X87;
    case ZYDIS_ISA_SET_FCMOV:
    case ZYDIS_ISA_SET_CMOV: return Isa::Cmov;
    case ZYDIS_ISA_SET_PENTIUMMMX: return Isa::Mmx;
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSEMXCSR: return Isa::Sse;
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE2MMX: return Isa::Sse2;
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSE3X87: return Isa::Sse3;
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSSE3MMX: return Isa::Ssse3;
    case ZYDIS_ISA_SET_SSE4: return Isa::Sse41;
    case ZYDIS_ISA_SET_SSE42: return Isa::Sse42;
    case ZYDIS_ISA_SET_POPCNT: return Isa::Popcnt;
    case ZYDIS_ISA_SET_LZCNT: return Isa::Lzcnt;
    case ZYDIS_ISA_SET_BMI1: return Isa::Bmi1;
    case ZYDIS_ISA_SET_BMI2: return Isa::Bmi2;
    case ZYDIS_ISA_SET_ADOX_ADCX: return Isa::Adx;
    case ZYDIS_ISA_SET_MOVBE: return Isa::Movbe;
    case ZYDIS_ISA_SET_AES:
    case ZYDIS_ISA_SET_AVXAES: return Isa::Aes;
    case ZYDIS_ISA_SET_PCLMULQDQ: return Isa::Pclmul;
    case ZYDIS_ISA_SET_SHA: return Isa::Sha;
    case ZYDIS_ISA_SET_AVX: return Isa::Avx;
    case ZYDIS_ISA_SET_AVX2:
    case ZYDIS_ISA_SET_AVX2GATHER: return Isa::Avx2;
    case ZYDIS_ISA_SET_FMA: return Isa::Fma;
    case ZYDIS_ISA_SET_F16C: return Isa::F16c;
    case ZYDIS_ISA_SET_GFNI:
    case ZYDIS_ISA_SET_AVX_GFNI: return Isa::Gfni;
    case ZYDIS_ISA_SET_VAES: return Isa::Vaes;
    case ZYDIS_ISA_SET_VPCLMULQDQ: return Isa::Vpclmul;
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64: return Isa::Fxsr;
    case ZYDIS_ISA_SET_XSAVE: return Isa::Xsave;
    case ZYDIS_ISA_SET_XSAVEOPT: return Isa::Xsaveopt;
    case ZYDIS_ISA_SET_XSAVEC: return Isa::Xsavec;
    case ZYDIS_ISA_SET_XSAVES: return Isa::Xsaves;
    case ZYDIS_ISA_SET_RDTSCP: return Isa::Rdtscp;
    case ZYDIS_ISA_SET_RDPID: return Isa::Rdpid;
    case ZYDIS_ISA_SET_RDRAND: return Isa::Rdrand;
    case ZYDIS_ISA_SET_RDSEED: return Isa::Rdseed;
    case ZYDIS_ISA_SET_RDWRFSGS: return Isa::Fsgsbase;
    case ZYDIS_ISA_SET_INVPCID: return Isa::Invpcid;
    case ZYDIS_ISA_SET_SMAP: return Isa::Smap;
    case ZYDIS_ISA_SET_CLFSH: return Isa::Clflush;
    case ZYDIS_ISA_SET_CLFLUSHOPT: return Isa::Clflushopt;
    case ZYDIS_ISA_SET_CLWB: return Isa::Clwb;
    case ZYDIS_ISA_SET_MONITOR: return Isa::Monitor;
    default: return Isa::None;  // Zydis' enumeration, not ours: the rest we do not model.
    }
}

bool set_map(const ZydisDecodedInstruction& raw, Insn& insn) noexcept
{
    if (raw.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
        raw.encoding != ZYDIS_INSTRUCTION_ENCODING_VEX) {
        return false;
    }
    switch (raw.opcode_map) {
    case ZYDIS_OPCODE_MAP_DEFAULT: insn.map = OpcodeMap::Primary; return true;
    case ZYDIS_OPCODE_MAP_0F: insn.map = OpcodeMap::Map0F; return true;
    case ZYDIS_OPCODE_MAP_0F38: insn.map = OpcodeMap::Map0F38; return true;
    case ZYDIS_OPCODE_MAP_0F3A: insn.map = OpcodeMap::Map0F3A; return true;
    default: return false;
    }
}

/// Bits 3 of the register numbers.
struct Extension {
    unsigned r{};
    unsigned x{};
    unsigned b{};
};

void set_bytes(Insn& insn, std::span<const std::byte> bytes) noexcept
{
    insn.bytes = {};
    std::memcpy(insn.bytes.data(), bytes.data(), insn.length);
}

struct Prefixes {
    int segment{-1};
    bool address_size{};
    std::size_t end{};  ///< Offset of the first byte that is no legacy prefix.
};

Prefixes read_prefixes(Insn& insn, CodeSize size) noexcept
{
    Prefixes prefixes{};
    for (std::size_t i = 0; i < insn.length; ++i) {
        prefixes.end = i;
        switch (insn.bytes[i]) {
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
            if (size != CodeSize::Bits64) {
                prefixes.segment = (insn.bytes[i] >> 3U) & 3;
            }
            continue;
        case 0x64: prefixes.segment = Fs; continue;
        case 0x65: prefixes.segment = Gs; continue;
        case 0x66: insn.operand_size_override = true; continue;
        case 0x67: prefixes.address_size = true; continue;
        case 0xf0: insn.lock = true; continue;
        case 0xf2:
            insn.repne = true;
            insn.rep = false;
            continue;
        case 0xf3:
            insn.rep = true;
            insn.repne = false;
            continue;
        default: break;
        }
        // A REX prefix counts only right before the opcode.
        if (size == CodeSize::Bits64 && (insn.bytes[i] & 0xf0U) == 0x40) {
            continue;
        }
        return prefixes;
    }
    return prefixes;
}

Extension read_vex(Insn& insn, std::size_t at, CodeSize size) noexcept
{
    // Zydis has accepted the instruction: the bytes are there.
    const unsigned first = at + 1 < insn.bytes.size() ? insn.bytes[at + 1] : 0U;
    const bool three = insn.bytes[at] == 0xc4;
    const unsigned last = three && at + 2 < insn.bytes.size() ? insn.bytes[at + 2] : first;
    insn.vex = true;
    insn.rex_w = three && (last & 0x80U) != 0;
    insn.vvvv = static_cast<std::uint8_t>((~last >> 3U) & (size == CodeSize::Bits64 ? 15U : 7U));
    insn.vex_l = static_cast<std::uint8_t>((last >> 2U) & 1U);
    insn.pp = static_cast<std::uint8_t>(last & 3U);
    if (size != CodeSize::Bits64) {
        insn.rex_w = false;
        return {};
    }
    return {(~first >> 7U) & 1U, three ? (~first >> 6U) & 1U : 0U,
            three ? (~first >> 5U) & 1U : 0U};
}

/// Instructions whose operands are 64 bits wide in 64-bit code without REX.W.  Near branches ignore
/// 66, as Intel's processors do.  SDM Vol. 2D "Opcode Map", d64 and f64.
enum class Default64 : std::uint8_t { No, Default, Forced };

Default64 default_64(const Insn& insn) noexcept
{
    const unsigned opcode = insn.opcode;
    if (insn.map == OpcodeMap::Map0F) {
        if (opcode >= 0x80 && opcode <= 0x8f) {
            return Default64::Forced;
        }
        const bool push_pop = opcode == 0xa0 || opcode == 0xa1 || opcode == 0xa8 || opcode == 0xa9;
        return push_pop ? Default64::Default : Default64::No;
    }
    if (insn.map != OpcodeMap::Primary) {
        return Default64::No;
    }
    if ((opcode >= 0x50 && opcode <= 0x5f) || opcode == 0x68 || opcode == 0x6a || opcode == 0x8f ||
        opcode == 0x9c || opcode == 0x9d || opcode == 0xc8 || opcode == 0xc9) {
        return Default64::Default;
    }
    if ((opcode >= 0x70 && opcode <= 0x7f) || opcode == 0xc2 || opcode == 0xc3 ||
        (opcode >= 0xe0 && opcode <= 0xe3) || opcode == 0xe8 || opcode == 0xe9 || opcode == 0xeb) {
        return Default64::Forced;
    }
    if (opcode == 0xff && (insn.group == 2 || insn.group == 4)) {
        return Default64::Forced;
    }
    return opcode == 0xff && insn.group == 6 ? Default64::Default : Default64::No;
}

void set_sizes(Insn& insn, const Prefixes& prefixes, CodeSize size) noexcept
{
    if (size != CodeSize::Bits64) {
        const bool wide = size == CodeSize::Bits32;
        insn.operand_size = wide != insn.operand_size_override ? 4 : 2;
        insn.address_size = wide != prefixes.address_size ? 4 : 2;
        return;
    }
    insn.address_size = prefixes.address_size ? 4 : 8;
    const Default64 kind = default_64(insn);
    if (insn.rex_w || kind == Default64::Forced) {
        insn.operand_size = 8;
    } else if (insn.operand_size_override) {
        insn.operand_size = 2;
    } else {
        insn.operand_size = kind == Default64::Default ? 8 : 4;
    }
}

bool is_vsib(const Insn& insn) noexcept
{
    return insn.vex && insn.map == OpcodeMap::Map0F38 && insn.opcode >= 0x90 && insn.opcode <= 0x93;
}

/// What the instruction does to its explicit memory operand, or a string instruction to the first
/// of its own.
void set_memory(const ZydisDecoder& decoder,
                const ZydisDecoderContext& context,
                const ZydisDecodedInstruction& raw,
                Insn& insn) noexcept
{
    std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
    if (is_hint(insn) || ZYAN_FAILED(ZydisDecoderDecodeOperands(
                             &decoder, &context, &raw, operands.data(), raw.operand_count))) {
        return;
    }
    for (std::size_t i = 0; i < raw.operand_count; ++i) {
        const ZydisDecodedOperand& operand = operands[i];
        if (operand.type != ZYDIS_OPERAND_TYPE_MEMORY) {
            continue;
        }
        const bool explicit_one = operand.visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT;
        if (insn.has_memory && !explicit_one) {
            continue;  // The stack of PUSH [mem] and its kin.
        }
        if (operand.mem.type == ZYDIS_MEMOP_TYPE_AGEN) {
            return;
        }
        insn.memory_size = static_cast<std::uint16_t>(operand.size / 8U);
        insn.memory_read = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
        insn.memory_write = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
        return;
    }
}

/// Whether a misaligned memory operand is #GP.  SDM Vol. 2A "Instruction Exception Specification":
/// type 1 always, types 2 and 4 without VEX, but for the moves that are unaligned by name and the
/// string comparisons.
bool requires_alignment(const Insn& insn) noexcept
{
    if (!insn.has_memory || insn.memory_size < 16 || insn.memory_size > 32) {
        return false;
    }
    const unsigned opcode = insn.opcode;
    const bool packed = insn.pp <= 1;
    if (insn.map == OpcodeMap::Map0F) {
        const bool aligned_move =
            (packed && (opcode == 0x28 || opcode == 0x29 || opcode == 0x2b)) ||
            (insn.pp == 1 && (opcode == 0x6f || opcode == 0x7f || opcode == 0xe7));
        if (aligned_move || insn.vex) {
            return aligned_move;
        }
        const bool unaligned_move = opcode == 0x10 || opcode == 0x11 ||
                                    ((opcode == 0x6f || opcode == 0x7f) && insn.pp == 2) ||
                                    (opcode == 0xf0 && insn.pp == 3);
        return !unaligned_move && opcode != 0xc7 && opcode != 0xae && opcode != 0x01;
    }
    if (insn.map == OpcodeMap::Map0F38) {
        if (opcode == 0x2a && insn.pp == 1) {
            return true;
        }
        return !insn.vex && opcode < 0xf0 && !(opcode >= 0x80 && opcode <= 0x82);
    }
    if (insn.map == OpcodeMap::Map0F3A) {
        return !insn.vex && !(opcode >= 0x60 && opcode <= 0x63);
    }
    return false;
}

bool touches_memory(const Insn& insn, const ZydisDecodedInstruction& raw) noexcept
{
    return insn.has_memory || (raw.meta.category == ZYDIS_CATEGORY_STRINGOP ||
                               raw.meta.category == ZYDIS_CATEGORY_IOSTRINGOP);
}

DecodeStatus failure(ZyanStatus status) noexcept
{
    if (status == ZYDIS_STATUS_NO_MORE_DATA) {
        return DecodeStatus::Truncated;
    }
    return status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? DecodeStatus::TooLong
                                                       : DecodeStatus::Invalid;
}

/// What is no instruction has a length all the same.
DecodeStatus status_of_undefined(std::span<const std::byte> bytes, CodeSize size) noexcept
{
    if (undefined_length(bytes, size) <= bytes.size()) {
        return DecodeStatus::Invalid;
    }
    return bytes.size() < Insn{}.bytes.size() ? DecodeStatus::Truncated : DecodeStatus::TooLong;
}

/// Opcodes of AMD's XOP, 3DNow! and SSE4a, which are longer than the undefined ones they are here.
bool is_foreign(std::span<const std::byte> bytes, CodeSize size) noexcept
{
    Insn insn;
    insn.length = static_cast<std::uint8_t>(std::min(bytes.size(), insn.bytes.size()));
    set_bytes(insn, bytes);
    const std::size_t at = read_prefixes(insn, size).end;
    if (at + 1 >= insn.length) {
        return false;
    }
    const bool xop = insn.bytes[at] == 0x8f && (insn.bytes[at + 1] & 0x38U) != 0;
    const unsigned second = insn.bytes[at + 1];
    return xop || (insn.bytes[at] == 0x0f && ((second & 0xfeU) == 0x78 || second == 0x0f));
}

/// Registers of ModRM and opcode, and whether there is a memory operand.
void set_registers(Shape& shape, const Extension& extension) noexcept
{
    Insn& insn = shape.insn;
    shape.index_extension = static_cast<std::uint8_t>(extension.x << 3U);
    shape.base_extension = static_cast<std::uint8_t>(extension.b << 3U);
    if (insn.has_modrm) {
        insn.reg = static_cast<std::uint8_t>(insn.group | (extension.r << 3U));
        if (insn.mod == 3) {
            insn.rm = static_cast<std::uint8_t>((insn.modrm & 7U) | shape.base_extension);
        } else {
            insn.has_memory = true;
        }
        return;
    }
    insn.rm = static_cast<std::uint8_t>((insn.opcode & 7U) | shape.base_extension);
    if (insn.map == OpcodeMap::Primary && insn.opcode >= 0xa0 && insn.opcode <= 0xa3) {
        insn.has_memory = true;
        shape.offset_size = insn.address_size;
    }
}

/// All that Zydis is asked for.
DecodeStatus recognize(std::span<const std::byte> bytes, CodeSize size, Shape& shape) noexcept
{
    Insn& insn = shape.insn;
    const ZydisDecoder& decoder = decoder_for(size);
    ZydisDecoderContext context;
    ZydisDecodedInstruction raw;
    const ZyanStatus status =
        ZydisDecoderDecodeInstruction(&decoder, &context, bytes.data(), bytes.size(), &raw);
    if (ZYAN_FAILED(status)) {
        const DecodeStatus reason = failure(status);
        if (reason == DecodeStatus::Invalid || is_foreign(bytes, size)) {
            return status_of_undefined(bytes, size);
        }
        // All bytes that may be needed are fetched before their number is found too large.
        return bytes.size() == insn.bytes.size() ? DecodeStatus::TooLong : DecodeStatus::Truncated;
    }
    if (!set_map(raw, insn)) {
        return status_of_undefined(bytes, size);
    }
    insn.length = static_cast<std::uint8_t>(std::min<std::size_t>(raw.length, bytes.size()));
    set_bytes(insn, bytes);
    insn.opcode = raw.opcode;
    const Prefixes prefixes = read_prefixes(insn, size);
    shape.segment = static_cast<std::int8_t>(prefixes.segment);
    if ((raw.attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0) {
        insn.has_modrm = true;
        // MOV to and from control and debug registers takes any for registers.
        const bool is_register =
            insn.map == OpcodeMap::Map0F && insn.opcode >= 0x20 && insn.opcode <= 0x23;
        insn.mod = is_register ? std::uint8_t{3} : raw.raw.modrm.mod;
        insn.group = raw.raw.modrm.reg;
        insn.modrm = static_cast<std::uint8_t>((raw.raw.modrm.mod << 6U) |
                                               (raw.raw.modrm.reg << 3U) | raw.raw.modrm.rm);
    }
    Extension extension{};
    if (raw.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        extension = read_vex(insn, prefixes.end, size);
    } else {
        if ((raw.attributes & ZYDIS_ATTRIB_HAS_REX) != 0) {
            insn.has_rex = true;
            insn.rex_w = raw.raw.rex.W != 0;
            extension = {raw.raw.rex.R, raw.raw.rex.X, raw.raw.rex.B};
        }
        insn.pp = static_cast<std::uint8_t>(
            insn.rep ? 2 : (insn.repne ? 3 : (insn.operand_size_override ? 1 : 0)));
    }
    set_sizes(insn, prefixes, size);
    set_registers(shape, extension);
    const auto& [first, second] = raw.raw.imm;
    shape.immediate_size = first.size / 8U;
    shape.immediate2_size = second.size / 8U;
    shape.is_signed = first.is_signed != ZYAN_FALSE || first.is_relative != ZYAN_FALSE;
    shape.head = insn.has_modrm
                     ? static_cast<std::uint8_t>(raw.raw.modrm.offset + 1U)
                     : static_cast<std::uint8_t>(insn.length - shape.offset_size -
                                                 shape.immediate_size - shape.immediate2_size);
    insn.isa = isa_of(raw, insn, size);
    if (touches_memory(insn, raw)) {
        set_memory(decoder, context, raw, insn);
        insn.requires_alignment = requires_alignment(insn);
    }
    return DecodeStatus::Ok;
}

/// What follows the ModRM byte.
class Tail {
public:
    Tail(std::span<const std::byte> bytes, std::size_t at) : bytes_{bytes}, at_{at} {}

    /// The next `size` bytes, at most 8, sign-extended; 0 where they are not all there.
    std::int64_t take_signed(std::size_t size) noexcept
    {
        const unsigned unused = static_cast<unsigned>(64U - size * 8U);
        return size == 0 ? 0 : static_cast<std::int64_t>(take(size) << unused) >> unused;
    }
    std::uint64_t take(std::size_t size) noexcept
    {
        std::uint64_t value = 0;
        if (at_ + size <= bytes_.size()) {
            std::memcpy(&value, bytes_.data() + at_, size);
        }
        at_ += size;
        return value;
    }
    [[nodiscard]] std::size_t at() const noexcept { return at_; }

private:
    std::span<const std::byte> bytes_;
    std::size_t at_;
};

/// The memory operand of a ModRM byte.  SDM Vol. 2A tables "16-Bit Addressing Forms with the ModR/M
/// Byte" and the two after it.
void read_address(const Shape& shape, CodeSize size, Tail& tail, Insn& insn) noexcept
{
    const unsigned rm = insn.modrm & 7U;
    const bool is_short = insn.address_size == 2;
    std::size_t displacement_size = insn.mod == 1 ? 1 : (insn.mod == 2 ? (is_short ? 2 : 4) : 0);
    if (is_short) {
        constexpr std::array<std::uint8_t, 8> bases{Rbx, Rbx, Rbp, Rbp, Rsi, Rdi, Rbp, Rbx};
        constexpr std::array<std::uint8_t, 8> indices{Rsi,
                                                      Rdi,
                                                      Rsi,
                                                      Rdi,
                                                      Insn::no_register,
                                                      Insn::no_register,
                                                      Insn::no_register,
                                                      Insn::no_register};
        insn.base = bases[rm];
        insn.index = indices[rm];
        if (rm == 6 && insn.mod == 0) {
            insn.base = Insn::no_register;
            displacement_size = 2;
        }
    } else {
        unsigned base = rm;
        if (rm == 4) {
            const auto sib = static_cast<unsigned>(tail.take(1));
            base = sib & 7U;
            insn.index = static_cast<std::uint8_t>(((sib >> 3U) & 7U) | shape.index_extension);
            insn.scale = static_cast<std::uint8_t>(sib >> 6U);
            // Index 4 is none; vector indices have no such hole.
            if (insn.index == 4 && !is_vsib(insn)) {
                insn.index = Insn::no_register;
            }
        }
        insn.base = static_cast<std::uint8_t>(base | shape.base_extension);
        if (base == 5 && insn.mod == 0) {
            insn.base = rm != 4 && size == CodeSize::Bits64 ? Insn::rip : Insn::no_register;
            displacement_size = 4;
        }
    }
    insn.displacement = tail.take_signed(displacement_size);
}

/// False: there are not as many bytes.
bool complete(const Shape& shape,
              std::span<const std::byte> bytes,
              CodeSize size,
              Insn& insn) noexcept
{
    insn = shape.insn;
    Tail tail{bytes, shape.head};
    if (insn.has_modrm && insn.has_memory) {
        read_address(shape, size, tail, insn);
    } else if (shape.offset_size != 0) {
        insn.displacement = static_cast<std::int64_t>(tail.take(shape.offset_size));
    }
    insn.segment = insn.base == Rsp || insn.base == Rbp ? Ss : Ds;
    if (shape.segment >= 0) {
        insn.segment = static_cast<std::uint8_t>(shape.segment);
    }
    insn.immediate = shape.is_signed
                         ? static_cast<std::uint64_t>(tail.take_signed(shape.immediate_size))
                         : tail.take(shape.immediate_size);
    insn.immediate2 = static_cast<std::uint16_t>(tail.take(shape.immediate2_size));
    if (tail.at() > bytes.size()) {
        return false;
    }
    insn.length = static_cast<std::uint8_t>(tail.at());
    set_bytes(insn, bytes);
    return true;
}

std::span<const std::byte> at_most_15(std::span<const std::byte> bytes) noexcept
{
    return bytes.first(std::min(bytes.size(), Insn{}.bytes.size()));
}

/// Of `head` bytes, at most 7, and the code size.  Never 0; no head begins another.
std::uint64_t key_of(std::span<const std::byte> bytes, std::size_t head, CodeSize size) noexcept
{
    std::uint64_t key = 0;
    std::memcpy(&key, bytes.data(), head);
    return key | ((static_cast<std::uint64_t>(size) + 1) << 56U);
}

}  // namespace

DecodeStatus decode(std::span<const std::byte> bytes, CodeSize size, Insn& insn) noexcept
{
    const std::span<const std::byte> available = at_most_15(bytes);
    Shape shape;
    DecodeStatus status = DecodeStatus::Truncated;
    if (!available.empty()) {
        status = recognize(available, size, shape);
    }
    if (status == DecodeStatus::Ok && !complete(shape, available, size, insn)) {
        status = DecodeStatus::Truncated;
    }
    return status;
}

DecodeStatus Decoder::decode(std::span<const std::byte> bytes, CodeSize size, Insn& insn) noexcept
{
    constexpr std::size_t longest_head = 7;
    const std::span<const std::byte> available = at_most_15(bytes);
    const std::size_t head = head_length(available, size);
    if (head > longest_head || head > available.size()) {
        return soft::decode(bytes, size, insn);
    }
    const std::uint64_t key = key_of(available, head, size);
    Entry& entry = entries_.data()[(key * 0x9e37'79b9'7f4a'7c15U) >> (64U - log2_entries)];
    if (entry.key == key && complete(entry.shape, available, size, insn)) {
        return DecodeStatus::Ok;
    }
    Shape shape;
    const DecodeStatus status = recognize(available, size, shape);
    if (status != DecodeStatus::Ok || !complete(shape, available, size, insn)) {
        return status == DecodeStatus::Ok ? DecodeStatus::Truncated : status;
    }
    // Whether VSIB's instructions exist depends on what follows.
    if (shape.head == head && !is_vsib(insn)) {
        entry.key = key;
        entry.shape = shape;
    }
    return status;
}

}  // namespace vmm::x86::soft
