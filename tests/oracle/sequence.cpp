// SPDX-License-Identifier: Apache-2.0

/// @file
/// Cases of several instructions: straight lines, small loops, stores into their own code.
///
/// Memory operands have absolute addresses, so that no earlier result leads them astray, and after
/// an instruction that leaves flags undefined a CMP defines them again.

#include <algorithm>
#include <cstring>

#include "oracle/generator.hpp"
#include "oracle/judge.hpp"
#include "x86/cpu_state.hpp"

namespace vmm::oracle {

namespace {

using x86::soft::Insn;

/// Holds the count of a loop; no operand is placed there.
constexpr std::uint64_t counter = data_base + data_writable_bytes - 64;

void append(std::vector<std::uint8_t>& bytes, std::uint64_t value, std::size_t size)
{
    for (std::size_t i = 0; i < size; ++i) {
        bytes.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
    }
}

/// An instruction of ModRM form with an absolute operand: `opcode`, ModRM.reg.
void append_absolute(std::vector<std::uint8_t>& bytes,
                     std::uint8_t opcode,
                     unsigned reg,
                     std::uint64_t address,
                     bool is_32)
{
    bytes.push_back(opcode);
    bytes.push_back(static_cast<std::uint8_t>((reg << 3U) | (is_32 ? 5U : 4U)));
    if (!is_32) {
        bytes.push_back(0x25);
    }
    append(bytes, address, 4);
}

/// What stays in a straight line, and leaves the machine's state comparable.
bool is_fit(const Code& code)
{
    const Encoding& encoding = code.encoding;
    const unsigned opcode = encoding.opcode;
    const bool repeats = encoding.rep || encoding.repne;
    const bool stores_string =
        encoding.map == 0 && (opcode == 0xa4 || opcode == 0xa5 || opcode == 0xaa || opcode == 0xab);
    if (encoding.kind == Encoding::Kind::Evex || encoding.lock || encoding.address_size ||
        (repeats && stores_string)) {
        return false;
    }
    if (encoding.kind == Encoding::Kind::Vex) {
        const bool gathers = encoding.map == 2 && opcode >= 0x90 && opcode <= 0x93;
        return !gathers && !(encoding.map == 1 && (opcode == 0xae || opcode == 0xf7));
    }
    if (encoding.map == 1) {
        const bool privileged =
            opcode < 0x0d || opcode == 0x0e || (opcode >= 0x20 && opcode <= 0x27) ||
            (opcode >= 0x30 && opcode <= 0x3f) || opcode == 0x78 || opcode == 0x79;
        const bool branches = opcode >= 0x80 && opcode <= 0x8f;
        const bool undefined = opcode == 0xa4 || opcode == 0xa5 || opcode == 0xac ||
                               opcode == 0xad || opcode == 0xbc || opcode == 0xbd ||
                               (opcode >= 0xc8 && opcode <= 0xcf);
        const bool segments = opcode == 0xa0 || opcode == 0xa1 || opcode == 0xa8 ||
                              opcode == 0xa9 || opcode == 0xb2 || opcode == 0xb4 || opcode == 0xb5;
        return !privileged && !branches && !undefined && !segments && opcode != 0xae &&
               opcode != 0xc7 && opcode != 0xa2 && opcode != 0xaa && opcode != 0xb9 &&
               opcode != 0xff && opcode != 0xf7;
    }
    if (encoding.map >= 2) {
        return !(encoding.map == 2 && opcode >= 0xf8);
    }
    const bool branches =
        (opcode >= 0x70 && opcode <= 0x7f) || (opcode >= 0xe0 && opcode <= 0xef) ||
        (opcode >= 0xc2 && opcode <= 0xc5) || (opcode >= 0xc8 && opcode <= 0xcf) ||
        (opcode == 0xff && encoding.group() >= 2) || opcode == 0x9a;
    const bool segments = opcode == 0x8c || opcode == 0x8e || (opcode < 0x20 && (opcode & 6U) == 6);
    const bool faults = (opcode >= 0x6c && opcode <= 0x6f) || opcode == 0xf1 || opcode == 0xf4 ||
                        opcode == 0xfa || opcode == 0xfb || opcode == 0x62 || opcode == 0x8f;
    const bool stack = opcode == 0x5c || opcode == 0xc9 || opcode == 0x9d || opcode == 0x61;
    const bool divides = (opcode == 0xf6 || opcode == 0xf7) && encoding.group() >= 6;
    return !branches && !segments && !faults && !stack && !divides && opcode != 0xd4 &&
           !(opcode >= 0xa0 && opcode <= 0xa3);
}

/// Gives the memory operand, if there is one, an absolute address.  False: it cannot have one.
bool make_absolute(Code& code, std::uint64_t address, bool is_32)
{
    const Insn& insn = code.insn;
    if (!insn.has_memory) {
        return true;
    }
    if (!insn.has_modrm || insn.segment >= x86::Fs) {
        return false;
    }
    const std::size_t at = code.encoding.modrm_offset;
    const unsigned mod = insn.mod;
    const unsigned rm = insn.modrm & 7U;
    const bool has_sib = rm == 4;
    const unsigned base = has_sib ? code.bytes[at + 1] & 7U : rm;
    const std::size_t displacement = mod == 1 ? 1 : (mod == 2 || base == 5 ? 4 : 0);
    const std::size_t immediate = at + 1 + (has_sib ? 1U : 0U) + displacement;
    std::vector<std::uint8_t> bytes{code.bytes.begin(), code.bytes.begin() + static_cast<long>(at)};
    bytes.push_back(static_cast<std::uint8_t>((unsigned{insn.group} << 3U) | (is_32 ? 5U : 4U)));
    if (!is_32) {
        bytes.push_back(0x25);
    }
    append(bytes, address, 4);
    bytes.insert(bytes.end(), code.bytes.begin() + static_cast<long>(immediate), code.bytes.end());
    code.bytes = bytes;
    Insn again;
    const auto size = is_32 ? x86::soft::CodeSize::Bits32 : x86::soft::CodeSize::Bits64;
    const bool known =
        decode(std::as_bytes(std::span{code.bytes}), size, again) == x86::soft::DecodeStatus::Ok;
    return known && again.length == code.bytes.size() && again.base == Insn::no_register &&
           again.index == Insn::no_register;
}

/// Whether what comes next may not look at the flags.
bool leaves_flags_undefined(const Code& code, bool is_32)
{
    Case alone;
    alone.is_32 = is_32;
    alone.code_size = static_cast<std::uint32_t>(code.bytes.size());
    std::copy(code.bytes.begin(), code.bytes.end(), alone.code.begin());
    const bool shifts = code.encoding.kind == Encoding::Kind::Legacy && code.encoding.map == 0 &&
                        (code.encoding.opcode == 0xc0 || code.encoding.opcode == 0xc1 ||
                         (code.encoding.opcode >= 0xd0 && code.encoding.opcode <= 0xd3));
    return shifts || judge(alone).undefined_flags != 0;
}

}  // namespace

std::vector<std::uint8_t> Generator::draw_fit(const std::vector<Row>& rows,
                                              std::span<const std::uint32_t> eligible,
                                              bool is_32)
{
    for (unsigned tries = 0; tries < 40; ++tries) {
        const Row& row = rows[eligible[random_.below(static_cast<std::uint32_t>(eligible.size()))]];
        if (row.is_32 != is_32) {
            continue;
        }
        Code code = encode(row);
        const std::uint64_t address = data_base +
                                      random_.below(data_writable_bytes / 64 - 20) * 64 +
                                      (random_.percent(60) ? 0 : random_.below(64));
        if (!code.is_known || !is_fit(code) || !make_absolute(code, address, is_32) ||
            code.bytes.size() > 15) {
            continue;
        }
        Case alone;
        alone.is_32 = is_32;
        alone.code_size = static_cast<std::uint32_t>(code.bytes.size());
        std::copy(code.bytes.begin(), code.bytes.end(), alone.code.begin());
        if (judge(alone).not_judged != nullptr) {
            continue;
        }
        if (leaves_flags_undefined(code, is_32)) {
            code.bytes.push_back(0x39);  // CMP of two registers.
            code.bytes.push_back(static_cast<std::uint8_t>(0xc0U | random_.below(64)));
        }
        return code.bytes;
    }
    return {0x90};
}

/// A store over the immediate operand of a MOV that follows, or comes again.
void Generator::add_self_modification(std::vector<std::uint8_t>& bytes,
                                      std::uint64_t start,
                                      bool is_32)
{
    const unsigned reg = random_.below(8);
    const std::size_t store_size = is_32 ? 6 : 7;
    const std::size_t gap = random_.below(3);
    // The MOV's immediate begins a byte after its opcode.
    const std::uint64_t target = start + bytes.size() + store_size + gap + 1;
    constexpr std::array<std::uint8_t, 4> stores{0x88, 0x89, 0x01, 0x31};  // MOV, MOV, ADD, XOR.
    const std::uint8_t store = random_.one_of(stores);
    append_absolute(bytes, store, reg, target + (store == 0x88 ? random_.below(4) : 0), is_32);
    bytes.insert(bytes.end(), gap, 0x90);
    // Not into RSP.
    bytes.push_back(static_cast<std::uint8_t>(0xb8U | (random_.percent(50) ? 0U : 2U)));
    append(bytes, random_(), 4);
    bytes.push_back(0x39);  // The sum's AF is defined, but bytes of XOR's are not.
    bytes.push_back(0xc0);
}

void Generator::make_sequence(const std::vector<Row>& rows,
                              std::span<const std::uint32_t> eligible,
                              bool is_32,
                              Case& result)
{
    result.is_32 = is_32;
    result.is_sequence = true;
    randomise_state(result.in);
    result.in.rflags &= ~std::uint64_t{0x7'4100};  // Not TF, NT, RF, VM, AC.
    result.in.gpr[x86::Rcx] &= 0x3f;
    result.code_offset = 0x100 + random_.below(0xa0) * 16;
    if (random_.percent(30)) {
        result.code_offset = 0x1000 - random_.below(120);
    }
    const std::uint64_t start = linear_of(result.code_offset);
    std::vector<std::uint8_t> bytes;
    const std::size_t most = max_code - 48;
    const std::uint32_t count = 2 + random_.below(9);
    for (std::uint32_t i = 0; i < count && bytes.size() < most; ++i) {
        if (random_.percent(12)) {
            add_self_modification(bytes, start, is_32);
            continue;
        }
        if (random_.percent(8)) {
            // A conditional branch over what comes next.
            const std::vector<std::uint8_t> skipped = draw_fit(rows, eligible, is_32);
            bytes.push_back(static_cast<std::uint8_t>(0x70U | random_.below(16)));
            bytes.push_back(static_cast<std::uint8_t>(skipped.size()));
            bytes.insert(bytes.end(), skipped.begin(), skipped.end());
            continue;
        }
        const std::vector<std::uint8_t> one = draw_fit(rows, eligible, is_32);
        bytes.insert(bytes.end(), one.begin(), one.end());
    }
    std::array<std::uint8_t, 4> loops{static_cast<std::uint8_t>(1 + random_.below(24)), 0, 0, 0};
    patch_data(result, 0, counter, loops);
    result.patches[1].size = 0;
    if (random_.percent(50)) {
        append_absolute(bytes, 0xff, 1, counter, is_32);  // DEC, JNZ.
        bytes.push_back(0x0f);
        bytes.push_back(0x85);
        append(bytes, std::uint64_t{0} - (bytes.size() + 4), 4);
    }
    bytes.push_back(0xe9);
    append(bytes, (is_32 ? exit_32 : exit_64) - (start + bytes.size() + 4), 4);
    result.code_size = static_cast<std::uint32_t>(std::min(bytes.size(), max_code));
    std::copy_n(bytes.begin(), result.code_size, result.code.begin());
}

}  // namespace vmm::oracle
