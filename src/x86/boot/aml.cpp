// SPDX-License-Identifier: Apache-2.0

#include "x86/boot/aml.hpp"

#include <array>

#include "vmm/assert.hpp"

namespace vmm::boot::aml {
namespace {

constexpr std::uint8_t op_zero = 0x00;
constexpr std::uint8_t op_one = 0x01;
constexpr std::uint8_t op_name = 0x08;
constexpr std::uint8_t op_byte = 0x0a;
constexpr std::uint8_t op_word = 0x0b;
constexpr std::uint8_t op_dword = 0x0c;
constexpr std::uint8_t op_string = 0x0d;
constexpr std::uint8_t op_qword = 0x0e;
constexpr std::uint8_t op_scope = 0x10;
constexpr std::uint8_t op_buffer = 0x11;
constexpr std::uint8_t op_package = 0x12;
constexpr std::uint8_t op_extended = 0x5b;
constexpr std::uint8_t op_device = 0x82;

void put(Term& term, std::uint64_t value, unsigned count)
{
    for (unsigned i = 0; i < count; ++i) {
        term.bytes.push_back(static_cast<std::byte>((value >> (8U * i)) & 0xffU));
    }
}

Term operation(std::uint8_t code)
{
    return Term{{std::byte{code}}};
}

Term name_string(std::string_view name)
{
    VMM_ASSERT(name.size() == 4 || (name.size() == 5 && name.front() == '\\'));
    Term term;
    for (const char c : name) {
        term.bytes.push_back(static_cast<std::byte>(c));
    }
    return term;
}

/// PkgLength counts itself: the length bytes and all of `body`.
Term with_length(const Term& body)
{
    Term term;
    const auto size = body.bytes.size();
    if (size + 1 < 0x40) {
        put(term, size + 1, 1);
    } else {
        // The first byte: how many follow, and the low four bits.
        std::size_t follow = 1;
        while (size + 1 + follow >= (std::size_t{1} << (4 + 8 * follow))) {
            ++follow;
        }
        VMM_ASSERT(follow <= 3);
        const auto total = size + 1 + follow;
        put(term, (follow << 6U) | (total & 0xfU), 1);
        put(term, total >> 4U, static_cast<unsigned>(follow));
    }
    return term += body;
}

unsigned hex_digit(char c)
{
    VMM_ASSERT((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'));
    return static_cast<unsigned>(c <= '9' ? c - '0' : c - 'A' + 10);
}

}  // namespace

Term integer(std::uint64_t value)
{
    if (value <= 1) {
        return operation(value == 0 ? op_zero : op_one);
    }
    Term term;
    if (value <= 0xff) {
        term = operation(op_byte);
        put(term, value, 1);
    } else if (value <= 0xffff) {
        term = operation(op_word);
        put(term, value, 2);
    } else if (value <= 0xffff'ffff) {
        term = operation(op_dword);
        put(term, value, 4);
    } else {
        term = operation(op_qword);
        put(term, value, 8);
    }
    return term;
}

Term text(std::string_view value)
{
    auto term = operation(op_string);
    for (const char c : value) {
        term.bytes.push_back(static_cast<std::byte>(c));
    }
    put(term, 0, 1);
    return term;
}

Term eisa_id(std::string_view id)
{
    VMM_ASSERT(id.size() == 7);
    unsigned vendor = 0;
    for (const char c : id.substr(0, 3)) {
        VMM_ASSERT(c >= 'A' && c <= 'Z');
        vendor = (vendor << 5U) | static_cast<unsigned>(c - 'A' + 1);
    }
    const std::array<unsigned, 4> bytes{vendor >> 8U, vendor & 0xffU,
                                        (hex_digit(id[3]) << 4U) | hex_digit(id[4]),
                                        (hex_digit(id[5]) << 4U) | hex_digit(id[6])};
    auto term = operation(op_dword);
    for (const auto byte : bytes) {
        put(term, byte, 1);
    }
    return term;
}

Term name(std::string_view name, const Term& value)
{
    auto term = operation(op_name);
    term += name_string(name);
    return term += value;
}

Term package(const std::vector<Term>& elements)
{
    VMM_ASSERT(elements.size() <= 0xff);
    Term body;
    put(body, elements.size(), 1);
    for (const auto& element : elements) {
        body += element;
    }
    auto term = operation(op_package);
    return term += with_length(body);
}

Term buffer(const Term& contents)
{
    auto body = integer(contents.bytes.size());
    body += contents;
    auto term = operation(op_buffer);
    return term += with_length(body);
}

Term device(std::string_view name, const Term& body)
{
    auto inner = name_string(name);
    inner += body;
    auto term = operation(op_extended);
    term += operation(op_device);
    return term += with_length(inner);
}

Term scope(std::string_view name, const Term& body)
{
    auto inner = name_string(name);
    inner += body;
    auto term = operation(op_scope);
    return term += with_length(inner);
}

Term io_ports(std::uint16_t base, std::uint8_t count)
{
    Term term;
    put(term, 0x47, 1);  // I/O port descriptor, 7 bytes.
    put(term, 1, 1);     // Decodes 16 bits.
    put(term, base, 2);
    put(term, base, 2);
    put(term, 1, 1);  // Alignment.
    put(term, count, 1);
    return term;
}

Term isa_irq(std::uint8_t irq)
{
    Term term;
    put(term, 0x22, 1);  // IRQ descriptor, 2 bytes: edge, active high, exclusive.
    put(term, irq <= 15 ? 1U << irq : 0U, 2);
    return term;
}

Term resources(const Term& descriptors)
{
    auto all = descriptors;
    put(all, 0x79, 1);  // End tag; checksum 0: not used.
    put(all, 0, 1);
    return buffer(all);
}

}  // namespace vmm::boot::aml
