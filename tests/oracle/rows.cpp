// SPDX-License-Identifier: Apache-2.0

#include "oracle/rows.hpp"

#include <array>

#include <fmt/format.h>

namespace vmm::oracle {

namespace {

constexpr std::array<const char*, 4> prefix_names{"np", "66", "f3", "f2"};
constexpr std::array<const char*, 4> map_names{"1", "0f", "0f38", "0f3a"};

bool is_one_of(unsigned opcode, std::initializer_list<unsigned> list)
{
    for (const unsigned each : list) {
        if (each == opcode) {
            return true;
        }
    }
    return false;
}

/// Opcodes that ModRM.reg extends, SDM Vol. 2D "Opcode Extensions for One-Byte and Two-Byte
/// Opcodes", and the x87 escapes.
bool has_groups(const Row& row)
{
    const unsigned opcode = row.opcode;
    if (row.kind == Encoding::Kind::Vex) {
        return (row.map == 1 && is_one_of(opcode, {0x71, 0x72, 0x73, 0xae})) ||
               (row.map == 2 && opcode == 0xf3);
    }
    if (row.map == 0) {
        return is_one_of(opcode, {0x80, 0x81, 0x82, 0x83, 0x8f, 0xc0, 0xc1, 0xc6, 0xc7, 0xd0, 0xd1,
                                  0xd2, 0xd3, 0xf6, 0xf7, 0xfe, 0xff}) ||
               (opcode >= 0xd8 && opcode <= 0xdf);
    }
    return row.map == 1 && is_one_of(opcode, {0x00, 0x01, 0x0d, 0x18, 0x1f, 0x71, 0x72, 0x73, 0xae,
                                              0xba, 0xb9, 0xc7});
}

/// Prefixes and escapes, which are no opcodes.
bool is_prefix(unsigned opcode, bool is_32)
{
    if (is_one_of(opcode,
                  {0x0f, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3})) {
        return true;
    }
    return !is_32 && ((opcode >= 0x40 && opcode <= 0x4f) || opcode == 0xc4 || opcode == 0xc5);
}

void add(std::vector<Row>& rows, Row row)
{
    const bool is_memory_only =
        row.is_32 && row.map == 0 && is_one_of(row.opcode, {0x62, 0xc4, 0xc5});
    if (is_memory_only) {
        row.form = Row::Form::Memory;
    }
    if (!has_groups(row)) {
        rows.push_back(row);
        return;
    }
    row.is_group = true;
    for (unsigned group = 0; group < 8; ++group) {
        row.group = static_cast<std::uint8_t>(group);
        for (const Row::Form form : {Row::Form::Memory, Row::Form::Register}) {
            row.form = form;
            rows.push_back(row);
        }
    }
}

void add_legacy(std::vector<Row>& rows, bool is_32)
{
    for (unsigned map = 0; map < 4; ++map) {
        for (unsigned opcode = 0; opcode < 256; ++opcode) {
            const bool is_escape = map == 1 && (opcode == 0x38 || opcode == 0x3a);
            if (is_escape || (map == 0 && is_prefix(opcode, is_32))) {
                continue;
            }
            for (unsigned pp = 0; pp < (map == 0 ? 1U : 4U); ++pp) {
                Row row;
                row.is_32 = is_32;
                row.map = static_cast<std::uint8_t>(map);
                row.opcode = static_cast<std::uint8_t>(opcode);
                row.pp = static_cast<std::uint8_t>(pp);
                add(rows, row);
            }
        }
    }
}

void add_vex(std::vector<Row>& rows, bool is_32)
{
    for (unsigned map = 1; map < 4; ++map) {
        for (unsigned opcode = 0; opcode < 256; ++opcode) {
            for (unsigned pp = 0; pp < 4; ++pp) {
                for (unsigned vex_l = 0; vex_l < 2; ++vex_l) {
                    Row row;
                    row.kind = Encoding::Kind::Vex;
                    row.is_32 = is_32;
                    row.map = static_cast<std::uint8_t>(map);
                    row.opcode = static_cast<std::uint8_t>(opcode);
                    row.pp = static_cast<std::uint8_t>(pp);
                    row.vex_l = static_cast<std::uint8_t>(vex_l);
                    add(rows, row);
                }
            }
        }
    }
}

}  // namespace

std::string Row::name() const
{
    const bool is_vex = kind == Encoding::Kind::Vex;
    std::string text = fmt::format("{}:{}{}:{:02x}", is_32 ? "32" : "64", is_vex ? "vex:" : "",
                                   map_names.at(map), opcode);
    if (map != 0) {
        text += fmt::format(":{}", prefix_names.at(pp));
    }
    if (is_vex) {
        text += fmt::format(":L{}", vex_l);
    }
    if (is_group) {
        text += fmt::format(":/{}", group);
    }
    if (form != Form::Any) {
        text += form == Form::Memory ? ":mem" : ":reg";
    }
    return text;
}

std::vector<Row> all_rows()
{
    std::vector<Row> rows;
    for (const bool is_32 : {false, true}) {
        add_legacy(rows, is_32);
        add_vex(rows, is_32);
    }
    return rows;
}

}  // namespace vmm::oracle
