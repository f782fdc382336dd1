// SPDX-License-Identifier: Apache-2.0

#include "oracle/generator.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "x86/cpu_state.hpp"

namespace vmm::oracle {

using namespace x86;
using soft::CodeSize;
using soft::Insn;

namespace {

constexpr std::size_t longest = 15;
constexpr std::uint64_t data_end = data_base + data_bytes;

constexpr std::array<std::uint64_t, 24> interesting{
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1'0000,
    0x7fff'ffff,
    0x8000'0000,
    0xffff'ffff,
    0x1'0000'0000,
    0x7fff'ffff'ffff'ffff,
    0x8000'0000'0000'0000,
    0xffff'ffff'ffff'ffff,
    0xffff'ffff'ffff'ff80,
    0xffff'ffff'8000'0000,
    0x0000'7fff'ffff'fff8,
    0x9999'0808'1234'5678,
};

constexpr std::array<std::uint32_t, 14> floats{
    0,           0x8000'0000, 0x3f80'0000, 0xbf80'0000, 0x7f80'0000, 0xff80'0000, 0x7fc0'0000,
    0x7f80'0001, 0x0000'0001, 0x007f'ffff, 0x0080'0000, 0x7f7f'ffff, 0x4b80'0001, 0xcf00'0000};

constexpr std::array<std::uint64_t, 14> doubles{
    0,
    0x8000'0000'0000'0000,
    0x3ff0'0000'0000'0000,
    0xbff8'0000'0000'0000,
    0x7ff0'0000'0000'0000,
    0xfff0'0000'0000'0000,
    0x7ff8'0000'0000'0000,
    0x7ff0'0000'0000'0001,
    0x0000'0000'0000'0001,
    0x0010'0000'0000'0000,
    0x7fef'ffff'ffff'ffff,
    0xc1e0'0000'0000'0000,
    0x43e0'0000'0000'0000,
    0x3810'0000'0000'0001,
};

constexpr std::array<std::uint64_t, 16> selectors{0,    1,    3,    0x2b, 0x2b, 0x2a, 0x23, 0x33,
                                                  0x30, 0x28, 0x10, 0x18, 0x08, 0x43, 0x4b, 0x2f};

bool is_legacy(const Encoding& encoding, unsigned map) noexcept
{
    return encoding.kind == Encoding::Kind::Legacy && encoding.map == map;
}

void append(std::vector<std::uint8_t>& bytes, std::uint64_t value, std::size_t size)
{
    for (std::size_t i = 0; i < size; ++i) {
        bytes.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
    }
}

void overwrite(std::vector<std::uint8_t>& bytes, std::size_t at, std::uint64_t value, unsigned size)
{
    for (std::size_t i = 0; i < size && at + i < bytes.size(); ++i) {
        bytes[at + i] = static_cast<std::uint8_t>(value >> (8 * i));
    }
}

bool decode_code(Code& code, bool is_32)
{
    const std::span<const std::uint8_t> bytes{code.bytes};
    const std::span<const std::byte> raw =
        std::as_bytes(bytes.first(std::min(bytes.size(), longest)));
    return soft::decode(raw, is_32 ? CodeSize::Bits32 : CodeSize::Bits64, code.insn) ==
           soft::DecodeStatus::Ok;
}

}  // namespace

void patch_data(Case& result,
                std::size_t number,
                std::uint64_t linear,
                std::span<const std::uint8_t> bytes)
{
    Patch& patch = result.patches[number];
    patch.size = 0;
    if (linear < data_base || linear >= data_end) {
        return;
    }
    const std::uint64_t room = data_end - linear;
    patch.offset = code_bytes + static_cast<std::uint32_t>(linear - data_base);
    patch.size = static_cast<std::uint32_t>(
        std::min<std::uint64_t>({room, bytes.size(), patch.bytes.size()}));
    std::copy_n(bytes.begin(), patch.size, patch.bytes.begin());
}

// --- Values

void Generator::fill_with_numbers(std::uint8_t* bytes, std::size_t size)
{
    const std::uint32_t kind = random_.below(6);
    for (std::size_t at = 0; at < size; at += 8) {
        std::uint64_t number = random_();
        switch (kind) {
        case 0:
        case 1: break;
        case 2:
            number = random_.one_of(floats) | (std::uint64_t{random_.one_of(floats)} << 32U);
            break;
        case 3: number = random_.one_of(doubles); break;
        case 4: number &= 0x0f1f'000f'ff01'0003; break;
        default:
            // Ordinary numbers, so that sums are inexact and neither swallows the other.
            number = (number & 0x800f'ffff'807f'ffff) | 0x3fe0'0000'3f00'0000 |
                     ((number >> 11U) & 0x0030'0000'0100'0000);
            break;
        }
        std::memcpy(bytes + at, &number, std::min<std::size_t>(8, size - at));
    }
}

void Generator::make_image(Arena& image)
{
    std::fill_n(image.begin(), code_bytes, std::uint8_t{0xcc});
    for (std::uint32_t at = code_bytes; at < arena_bytes; at += 64) {
        if (random_.percent(30)) {
            std::fill_n(image.begin() + at, 64,
                        random_.percent(50) ? std::uint8_t{0} : random_.byte());
        } else {
            fill_with_numbers(image.data() + at, 64);
        }
    }
}

std::uint64_t Generator::data_pointer()
{
    if (random_.percent(90)) {
        return data_base + (random_.below(data_writable_bytes - 256) & ~7U);
    }
    const std::uint64_t near = random_.below(64);
    switch (random_.below(4)) {
    case 0: return data_base + near - 32;
    case 1: return data_base + data_writable_bytes + near - 32;
    case 2: return data_end + near - 48;
    default: return data_base + 0x1000 + near - 32;
    }
}

std::uint64_t Generator::value()
{
    const std::uint64_t number = random_();
    switch (random_.below(12)) {
    case 0:
    case 1:
    case 2: return number;
    case 3: return number & 0x3fU;
    case 4: return number & 0xffff'ffffU;
    case 5: return static_cast<std::uint64_t>(static_cast<std::int16_t>(number));
    case 6:
    case 7: return random_.one_of(interesting);
    case 8:
        return std::rotl(std::uint64_t{1}, static_cast<int>(number & 63U)) + random_.below(3) - 1;
    case 9: return code_base + 0x100 + (number & 0xfffU);
    default: return data_pointer();
    }
}

std::uint64_t Generator::selector()
{
    if (random_.percent(80)) {
        return random_.one_of(selectors);
    }
    // Not the segment whose limit is the number of the host's CPU.
    const std::uint64_t any = random_.below(0x1'0000);
    return (any | 7U) == 0x7f ? user_data : any;
}

/// Where a branch may well go: the end, or the INT3s round the code.
std::uint64_t Generator::code_target()
{
    if (random_.percent(60)) {
        return exit_64;
    }
    return random_.percent(70) ? code_base + random_.below(code_bytes) : value();
}

std::uint64_t Generator::far_target(std::uint64_t code_selector, bool is_32)
{
    if (is_32 && (code_selector | 3U) != user_code_32) {
        return code_base + random_.below(0x100);
    }
    return (code_selector | 3U) == user_code_32 ? exit_32 : code_target();
}

/// Arithmetic flags at random; DF, AC, NT, RF, ID and TF now and then.  IF is what user code has.
std::uint64_t Generator::any_flags()
{
    std::uint64_t flags = (random_() & 0x8d5U) | 0x202U;
    if (random_.percent(20)) {
        flags |= 0x400U;
    }
    if (random_.percent(6)) {
        constexpr std::array<std::uint64_t, 5> rare{0x4'0000, 0x4000, 0x1'0000, 0x20'0000, 0x100};
        flags |= random_.one_of(rare);
    }
    return flags;
}

/// A linear address for an operand of `size` bytes: in one line, across lines and pages, and at
/// the edges of what is mapped and writable.
std::uint64_t Generator::place_operand(std::uint32_t size)
{
    const std::uint32_t within = 1 + random_.below(std::max(size, 2U) - 1);
    const std::uint32_t choice = random_.percent(50) ? random_.below(100) : 0;
    if (choice < 60) {
        return data_base + random_.below((data_writable_bytes - 1024) / 64) * 64;
    }
    if (choice < 75) {
        return data_base + random_.below(data_writable_bytes - 1024);
    }
    if (choice < 82) {
        return data_base + (1 + random_.below(100)) * 64 - within;
    }
    if (choice < 89) {
        return data_base + 0x1000 - within;
    }
    if (choice < 92) {
        return data_base + data_writable_bytes - within;
    }
    if (choice < 96) {
        return data_base + data_writable_bytes + random_.below(0x1000 - 64);
    }
    return choice < 98 ? data_end - within : data_base - within;
}

void Generator::randomise_x87(State& state)
{
    static constexpr std::array<std::uint16_t, 8> exponents{0,      1,      0x3fff, 0x7fff,
                                                            0x7ffe, 0x4005, 0x401e, 0x403e};
    auto put = [&](std::size_t at, auto number) {
        std::memcpy(state.x87.data() + at, &number, sizeof number);
    };
    state.x87.fill(0);
    std::uint16_t control = 0x37f;
    std::uint16_t status = 0;
    std::uint8_t tags = 0xff;
    if (random_.percent(60)) {
        control = static_cast<std::uint16_t>((random_() & 0xf00U) | 0x7fU);
        if (random_.percent(20)) {
            control = static_cast<std::uint16_t>(control & (0xffc0U | random_()));
        }
        status = static_cast<std::uint16_t>(random_() & 0x7f7fU);
        if (random_.percent(70)) {
            status = static_cast<std::uint16_t>(status & ~unsigned{control & 0U} & 0x7f40U);
        }
        if ((status & ~control & 0x3fU) != 0) {
            status |= 0x8080U;  // An unmasked exception waits.
        }
        if (random_.percent(30)) {
            tags = random_.byte();
        }
    } else if (random_.percent(30)) {
        tags = 0;
    }
    put(0, control);
    put(2, status);
    put(4, tags);
    for (std::size_t at = 32; at < state.x87.size(); at += 16) {
        std::uint64_t significand = random_();
        if (random_.percent(75)) {
            significand |= std::uint64_t{1} << 63U;
        }
        if (random_.percent(25)) {
            significand &= 0xff00'0000'0000'0000U;
        }
        auto exponent = static_cast<std::uint16_t>(random_());
        if (random_.percent(50)) {
            exponent = static_cast<std::uint16_t>(random_.one_of(exponents) | (exponent & 0x8000U));
        } else if (random_.percent(70)) {
            exponent = static_cast<std::uint16_t>((0x3ff0U + exponent % 64) | (exponent & 0x8000U));
        }
        put(at, significand);
        put(at + 8, exponent);
    }
}

void Generator::randomise_fpu(State& state)
{
    for (auto& each : state.ymm) {
        fill_with_numbers(each.data(), each.size());
    }
    state.mxcsr = 0x1f80;
    if (random_.percent(40)) {
        state.mxcsr = static_cast<std::uint32_t>((random_() & 0xe07fU) | 0x1f80U);
        if (random_.percent(25)) {
            state.mxcsr &= static_cast<std::uint32_t>(random_() | ~0x1fbfULL);
        }
    }
    randomise_x87(state);
}

void Generator::randomise_state(State& state)
{
    for (std::uint64_t& each : state.gpr) {
        each = value();
    }
    state.gpr[Rsp] = data_pointer();
    if (random_.percent(80)) {
        state.gpr[Rsp] = data_base + 0x400 + 8 * random_.below(0x300);
    }
    for (const unsigned pointer : {Rsi, Rdi, Rbp, Rbx}) {
        if (random_.percent(50)) {
            state.gpr[pointer] = data_pointer() + random_.below(8);
        }
    }
    if (random_.percent(60)) {
        state.gpr[Rcx] = random_.below(80);
    }
    if (random_.percent(30)) {
        state.gpr[Rdx] = random_.percent(50) ? 0 : random_.below(16);
    }
    state.rflags = any_flags();
    state.selector = {user_data, 0, 0, user_data, 0, 0};
    state.fs_base = 0;
    state.gs_base = 0;
    randomise_fpu(state);
}

// --- Bytes

void Generator::add_prefixes(const Row& row, Code& code)
{
    std::vector<std::uint8_t>& prefixes = code.bytes;
    prefixes.reserve(32);
    const bool is_string = row.map == 0 && ((row.opcode >= 0xa4 && row.opcode <= 0xaf) ||
                                            (row.opcode >= 0x6c && row.opcode <= 0x6f));
    if (row.map == 0 ? random_.percent(25) : row.pp == 1) {
        prefixes.push_back(0x66);
    }
    const bool repeats = random_.percent(is_string ? 60 : 5);
    if (row.map == 0 && repeats) {
        prefixes.push_back(random_.percent(50) ? 0xf3 : 0xf2);
    } else if (row.map != 0 && row.pp >= 2) {
        prefixes.push_back(row.pp == 2 ? 0xf3 : 0xf2);
        if (random_.percent(8)) {
            prefixes.push_back(0x66);
        }
    }
    const bool may_lock = row.map == 0 || (row.map == 1 && row.opcode >= 0xa0);
    if (random_.percent(may_lock ? 6 : 1)) {
        prefixes.push_back(0xf0);
    }
    if (random_.percent(10)) {
        prefixes.push_back(0x67);
    }
    if (random_.percent(15)) {
        constexpr std::array<std::uint8_t, 8> segments{0x26, 0x2e, 0x36, 0x3e,
                                                       0x64, 0x65, 0x64, 0x65};
        prefixes.push_back(random_.one_of(segments));
    }
    for (std::size_t i = prefixes.size(); i > 1; --i) {
        std::swap(prefixes[i - 1], prefixes[random_.below(static_cast<std::uint32_t>(i))]);
    }
    if (!row.is_32 && random_.percent(2)) {
        prefixes.insert(prefixes.begin(), 0x48);  // Without effect, if another prefix follows.
    }
    if (random_.percent(1)) {
        prefixes.insert(prefixes.begin(), random_.below(14), 0x3e);  // Over-long.
    }
}

void Generator::add_vex(const Row& row, Code& code)
{
    if (random_.percent(12)) {
        constexpr std::array<std::uint8_t, 4> allowed{0x67, 0x64, 0x65, 0x2e};
        code.bytes.push_back(random_.one_of(allowed));
    }
    if (random_.percent(2)) {
        constexpr std::array<std::uint8_t, 5> refused{0x66, 0xf2, 0xf3, 0xf0, 0x48};
        code.bytes.push_back(random_.one_of(refused));
    }
    const unsigned fixed = row.is_32 ? 0xc0U : 0U;
    const unsigned vvvv = random_.percent(50) ? 0x78U : (random_.byte() & 0x78U);
    const unsigned low = (unsigned{row.vex_l} << 2U) | row.pp;
    if (row.map == 1 && random_.percent(30)) {
        code.bytes.push_back(0xc5);
        code.bytes.push_back(
            static_cast<std::uint8_t>((random_.byte() & 0x80U) | fixed | vvvv | low));
    } else {
        code.bytes.push_back(0xc4);
        const unsigned extension = random_.percent(40) ? 0xe0U : (random_.byte() & 0xe0U);
        code.bytes.push_back(static_cast<std::uint8_t>(extension | fixed | row.map));
        code.bytes.push_back(static_cast<std::uint8_t>((random_.byte() & 0x80U) | vvvv | low));
    }
}

void Generator::add_displacement(Code& code, std::size_t size)
{
    std::uint64_t displacement = random_();
    if (size > 1 && random_.percent(80)) {
        displacement = random_.below(0x400) - std::uint64_t{0x200};
    }
    append(code.bytes, displacement, size);
}

void Generator::add_modrm(const Row& row, Code& code)
{
    const bool is_register =
        row.form == Row::Form::Register || (row.form == Row::Form::Any && random_.percent(45));
    const unsigned reg = row.is_group ? row.group : random_.below(8);
    const unsigned rm = random_.below(8);
    const unsigned mod = is_register ? 3 : random_.below(3);
    code.bytes.push_back(static_cast<std::uint8_t>((mod << 6U) | (reg << 3U) | rm));
    if (is_register) {
        return;
    }
    const Encoding so_far = parse(code.bytes, row.is_32);
    if (row.is_32 && so_far.address_size) {
        const bool has_16 = mod == 2 || (mod == 0 && rm == 6);
        add_displacement(code, has_16 ? 2 : (mod == 1 ? 1 : 0));
        return;
    }
    bool absolute = mod == 0 && rm == 5;
    if (rm == 4) {
        const std::uint8_t sib = random_.byte();
        code.bytes.push_back(sib);
        absolute = mod == 0 && (sib & 7U) == 5;
    }
    if (absolute) {
        append(code.bytes, place_operand(8), 4);
    } else if (mod != 0) {
        add_displacement(code, mod == 1 ? 1 : 4);
    }
}

Code Generator::encode(const Row& row)
{
    Code code;
    if (row.kind == Encoding::Kind::Vex) {
        add_vex(row, code);
    } else {
        add_prefixes(row, code);
        if (!row.is_32 && random_.percent(50)) {
            code.bytes.push_back(static_cast<std::uint8_t>(0x40U | (random_.byte() & 0xfU)));
        }
        constexpr std::array<std::uint8_t, 4> escapes{0, 0, 0x38, 0x3a};
        if (row.map >= 1) {
            code.bytes.push_back(0x0f);
        }
        if (row.map >= 2) {
            code.bytes.push_back(escapes[row.map]);
        }
    }
    code.bytes.push_back(row.opcode);
    const Encoding so_far = parse(code.bytes, row.is_32);
    if (has_modrm(so_far) || row.form != Row::Form::Any) {
        add_modrm(row, code);
    }
    const std::size_t fixed = code.bytes.size();
    append(code.bytes, random_(), 8);
    append(code.bytes, random_(), 2);
    code.is_known = decode_code(code, row.is_32);
    code.bytes.resize(code.is_known ? code.insn.length
                                    : std::min(fixed + random_.below(6), longest + 3));
    code.encoding = parse(code.bytes, row.is_32);
    return code;
}

// --- Cases

/// Chooses where the code lies, and appends the jump that ends it.
void Generator::place_code(Case& result, std::vector<std::uint8_t>& bytes)
{
    const auto size = static_cast<std::uint32_t>(bytes.size());
    const std::uint32_t choice = random_.below(100);
    if (choice < 4) {
        // Up to the last byte that is mapped, or past it.
        const std::uint32_t cut = choice < 2 ? 0 : random_.below(size);
        bytes.resize(size - cut);
        result.code_offset = code_bytes - (size - cut);
        return;
    }
    result.code_offset = 0x100 + random_.below(0xa0) * 16;
    if (choice < 12) {
        result.code_offset = 0x1000 - random_.below(size + 5);
    }
    const std::uint64_t end = linear_of(result.code_offset) + size + 5;
    bytes.push_back(0xe9);
    append(bytes, (result.is_32 ? exit_32 : exit_64) - end, 4);
}

/// A near branch: its displacement; what RET, JMP and CALL find in memory or in a register.
void Generator::aim_branch(Case& result, Code& code)
{
    const Encoding& encoding = code.encoding;
    const bool conditional = is_legacy(encoding, 1) && (encoding.opcode & 0xf0U) == 0x80;
    const bool direct =
        is_legacy(encoding, 0) && (encoding.opcode == 0xe8 || encoding.opcode == 0xe9);
    const bool by_byte =
        is_legacy(encoding, 0) && ((encoding.opcode & 0xf0U) == 0x70 ||
                                   (encoding.opcode & 0xfcU) == 0xe0 || encoding.opcode == 0xeb);
    if (by_byte && code.bytes.back() > 0 && code.bytes.back() < 8) {
        code.bytes.back() = 8;  // Not into the middle of the jump that follows.
    }
    if ((conditional || direct) && code.insn.length >= 5 && random_.percent(80)) {
        const std::uint64_t end = linear_of(result.code_offset) + code.insn.length;
        const unsigned size = result.is_32 && code.insn.operand_size == 2 ? 2 : 4;
        const std::uint64_t target = result.is_32 ? exit_32 : exit_64;
        const std::uint64_t displacement =
            random_.percent(60) ? target - end : 8 + std::uint64_t{random_.below(0x100)};
        overwrite(code.bytes, code.insn.length - size, displacement, size);
    }
}

void Generator::aim_vector_index(Case& result, const Code& code)
{
    const Encoding& encoding = code.encoding;
    const bool gathers = encoding.kind == Encoding::Kind::Vex && encoding.map == 2 &&
                         encoding.opcode >= 0x90 && encoding.opcode <= 0x93;
    if (!gathers || random_.percent(10) || code.insn.index >= 16) {
        return;
    }
    const std::size_t width = (encoding.opcode & 1U) != 0 ? 8 : 4;
    auto& index = result.in.ymm[code.insn.index];
    for (std::size_t at = 0; at < index.size(); at += width) {
        const auto number = static_cast<std::uint64_t>(random_.below(64)) - 32;
        std::memcpy(index.data() + at, &number, width);
    }
}

/// Chooses where the memory operand lies and sets the registers so that it does.
void Generator::aim(Case& result, Code& code)
{
    const Insn& insn = code.insn;
    State& in = result.in;
    const std::uint32_t size = insn.memory_size == 0 ? 64U : insn.memory_size;
    std::uint64_t target = place_operand(size);
    const bool locks = code.encoding.lock ||
                       (is_legacy(code.encoding, 0) && (code.encoding.opcode & 0xfeU) == 0x86);
    if (locks && random_.percent(98)) {
        target &= ~std::uint64_t{15};  // Split locks stop the whole machine.
    }
    std::uint64_t segment = 0;
    if (insn.segment == Fs || insn.segment == Gs) {
        segment = insn.segment == Fs ? in.fs_base : in.gs_base;
    }
    const auto displacement = static_cast<std::uint64_t>(insn.displacement);
    if (insn.base == Insn::rip) {
        const std::uint64_t end = linear_of(result.code_offset) + insn.length;
        overwrite(code.bytes, code.encoding.modrm_offset + 1U, target - end - segment, 4);
    } else if (insn.base < 16) {
        std::uint64_t index = 0;
        if (insn.index < 16 && insn.index != insn.base && insn.index != Rsp) {
            if (random_.percent(70)) {
                in.gpr[insn.index] = random_.below(0x100) - std::uint64_t{0x80};
            }
            index = in.gpr[insn.index] << insn.scale;
        }
        std::uint64_t base = target - displacement - index - segment;
        if (insn.address_size == 4 && random_.percent(50)) {
            base = (base & 0xffff'ffffU) | (random_() << 32U);
        }
        in.gpr[insn.base] = base;
    } else if (insn.index < 16 && insn.index != Rsp) {
        in.gpr[insn.index] = (target - displacement - segment) >> insn.scale;
    }
    aim_vector_index(result, code);
    std::array<std::uint8_t, 64> content{};
    fill_with_numbers(content.data(), content.size());
    patch_data(result, 0, target, content);
    prepare(result, code, target);
}

/// The header of an XSAVE area, in which nothing is legal for the host that is not for the engine.
std::array<std::uint8_t, 64> Generator::save_header()
{
    std::array<std::uint8_t, 64> header{};
    const auto components = static_cast<std::uint8_t>(random_.below(8));
    header[0] = components;
    switch (random_.below(16)) {
    case 0: header[0] = static_cast<std::uint8_t>(components | 8U); break;  // MPX
    case 1: header[8 + random_.below(7)] = 1; break;
    case 2: header[16 + random_.below(8)] = random_.byte(); break;
    case 3:
    case 4:
        header[8] = static_cast<std::uint8_t>(random_.below(8) | components);
        header[15] = 0x80;  // Compacted.
        break;
    case 5:
        header[8] = static_cast<std::uint8_t>(random_.below(16));
        header[15] = 0x80;
        break;
    default: break;
    }
    return header;
}

/// What FXRSTOR, XRSTOR, LDMXCSR and FLDENV accept, most of the time.
void Generator::prepare_save_area(Case& result, const Code& code, std::uint64_t operand)
{
    const unsigned group = code.encoding.group();
    std::array<std::uint8_t, 64> content{};
    fill_with_numbers(content.data(), content.size());
    const auto mxcsr = static_cast<std::uint32_t>(random_() & 0xffffU);
    if (random_.percent(80)) {
        std::memcpy(content.data() + (group == 2 ? 0 : 24), &mxcsr, 4);
    }
    if (group == 1 || group >= 4) {
        operand &= ~std::uint64_t{63};
    }
    if (group >= 4) {
        // Of the host's XCR0 the engine has these.
        result.in.gpr[Rax] = random_.below(8);
        result.in.gpr[Rdx] = 0;
    }
    if (group >= 3) {
        patch_data(result, 1, operand + 512, save_header());
    }
    patch_data(result, 0, operand, content);
}

/// Operands that are selectors, far pointers or return frames.
void Generator::prepare_system(Case& result, const Code& code, std::uint64_t operand)
{
    const Encoding& encoding = code.encoding;
    const unsigned opcode = encoding.opcode;
    State& in = result.in;
    const std::size_t word = result.is_32 ? 4 : 8;
    const bool names_selector =
        (encoding.map == 0 && opcode == 0x8e) ||
        (encoding.map == 1 && (opcode == 0x00 || opcode == 0x02 || opcode == 0x03));
    std::vector<std::uint8_t> bytes;
    if (names_selector) {
        if (encoding.has_register_form()) {
            in.gpr[code.insn.rm & 15U] = selector() | (value() << 16U);
        }
        append(bytes, selector(), 8);
        patch_data(result, 0, operand, bytes);
        return;
    }
    const bool far_operand =
        (encoding.map == 0 && (opcode == 0xc4 || opcode == 0xc5)) ||
        (encoding.map == 0 && opcode == 0xff && (encoding.group() == 3 || encoding.group() == 5)) ||
        (encoding.map == 1 && (opcode == 0xb2 || opcode == 0xb4 || opcode == 0xb5));
    if (far_operand) {
        const std::uint64_t target_selector = selector();
        append(bytes, far_target(target_selector, result.is_32), code.insn.operand_size);
        append(bytes, target_selector, 2);
        patch_data(result, 0, operand, bytes);
        return;
    }
    const std::uint64_t code_selector =
        random_.percent(70) ? (result.is_32 ? user_code_32 : user_code_64) : selector();
    const bool is_near = encoding.map == 0 && (opcode == 0xc2 || opcode == 0xc3);
    const std::uint64_t target = is_near ? (result.is_32 ? exit_32 : code_target())
                                         : far_target(code_selector, result.is_32);
    const bool returns_far = encoding.map == 0 && (opcode == 0xca || opcode == 0xcb);
    const bool pops_segment =
        (encoding.map == 0 && (opcode == 0x07 || opcode == 0x17 || opcode == 0x1f)) ||
        (encoding.map == 1 && (opcode == 0xa1 || opcode == 0xa9));
    const std::size_t width = code.insn.operand_size == 0 ? word : code.insn.operand_size;
    if (is_near || returns_far) {
        append(bytes, target, width);
        append(bytes, code_selector, width);
    } else if (pops_segment) {
        append(bytes, selector(), width);
    } else if (encoding.map == 0 && (opcode == 0x9d || opcode == 0xcf)) {
        if (opcode == 0xcf) {
            append(bytes, target, width);
            append(bytes, code_selector, width);
        }
        append(bytes, any_flags() | (random_.percent(10) ? random_() : 0), width);
        append(bytes, in.gpr[Rsp] + 0x40, width);
        append(bytes, random_.percent(80) ? user_data : selector(), width);
    } else {
        return;
    }
    patch_data(result, 1, in.gpr[Rsp], bytes);
}

/// What some instructions need so as not always to fault.
void Generator::prepare(Case& result, const Code& code, std::uint64_t operand)
{
    const Encoding& encoding = code.encoding;
    const unsigned opcode = encoding.opcode;
    if (encoding.kind == Encoding::Kind::Evex || encoding.map > 1) {
        return;
    }
    const bool saves =
        opcode == 0xae || (opcode == 0xc7 && encoding.group() >= 3 && encoding.group() <= 5);
    if (encoding.map == 1 && saves && !encoding.has_register_form()) {
        prepare_save_area(result, code, operand);
        return;
    }
    if (encoding.kind != Encoding::Kind::Legacy) {
        return;
    }
    const bool bit_test =
        encoding.map == 1 && (opcode == 0xa3 || opcode == 0xab || opcode == 0xb3 || opcode == 0xbb);
    if (bit_test && code.insn.reg != code.insn.base && random_.percent(80)) {
        result.in.gpr[code.insn.reg & 15U] = random_.below(0x400) - std::uint64_t{0x200};
    }
    const bool through_operand =
        encoding.map == 0 && opcode == 0xff && (encoding.group() == 2 || encoding.group() == 4);
    if (through_operand) {
        const std::uint64_t target = result.is_32 ? exit_32 : code_target();
        if (encoding.has_register_form()) {
            result.in.gpr[code.insn.rm & 15U] = target;
        } else {
            std::vector<std::uint8_t> bytes;
            append(bytes, target, 8);
            patch_data(result, 0, operand, bytes);
        }
        return;
    }
    const bool divides =
        encoding.map == 0 && (opcode == 0xf6 || opcode == 0xf7) && encoding.group() >= 6;
    if (divides && random_.percent(60)) {
        result.in.gpr[Rdx] = random_.percent(50) ? 0 : ~std::uint64_t{0};
    }
    const bool compares = encoding.map == 1 && (opcode == 0xb0 || opcode == 0xb1 || opcode == 0xc7);
    if (compares && random_.percent(50)) {
        const Patch& patch = result.patches[0];
        std::memcpy(&result.in.gpr[Rax], patch.bytes.data(), 8);
        std::memcpy(&result.in.gpr[Rdx], patch.bytes.data() + 8, 8);
        if (!encoding.w && opcode == 0xc7) {
            result.in.gpr[Rdx] = result.in.gpr[Rax] >> 32U;
        }
    }
    prepare_system(result, code, operand);
}

void Generator::make_case(const Code& original, Case& result)
{
    Code code = original;
    result.is_32 = code.encoding.is_32;
    result.is_sequence = false;
    result.patches[0].size = 0;
    result.patches[1].size = 0;
    randomise_state(result.in);
    if (random_.percent(15)) {
        constexpr std::array<std::uint64_t, 4> bases{0x1000, 0x1000'0000, 0xffff'ffff'ffff'f000,
                                                     0x7fff'1234'5678};
        result.in.fs_base = random_.one_of(bases);
        result.in.gs_base = random_.one_of(bases);
    }
    const std::size_t size = code.bytes.size();
    std::vector<std::uint8_t> bytes = code.bytes;
    place_code(result, bytes);
    if (code.is_known) {
        aim_branch(result, code);
        aim(result, code);
    }
    // What aiming changed in the instruction itself.
    std::copy_n(code.bytes.begin(), std::min(size, bytes.size()), bytes.begin());
    result.code_size = static_cast<std::uint32_t>(std::min(bytes.size(), max_code));
    std::copy_n(bytes.begin(), result.code_size, result.code.begin());
}

}  // namespace vmm::oracle
