// SPDX-License-Identifier: Apache-2.0

/// @file
/// Writes ACPI Machine Language: the few terms that a description of devices needs
/// (ACPI Specification, "ACPI Machine Language (AML) Specification").
///
/// Terms are values: bytes that hold one encoded object, joined by `+=`.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace vmm::boot::aml {

/// Encoded bytes.
struct Term {
    std::vector<std::byte> bytes{};

    Term& operator+=(const Term& more)
    {
        bytes.insert(bytes.end(), more.bytes.begin(), more.bytes.end());
        return *this;
    }
};

/// The shortest encoding of a number.
[[nodiscard]] Term integer(std::uint64_t value);
[[nodiscard]] Term text(std::string_view value);
/// The compressed form of an identifier such as "PNP0501".  @pre three capitals, four hex digits
[[nodiscard]] Term eisa_id(std::string_view id);
/// Name (NAME, value).  @pre `name` is a name segment of four characters, "\\" before it or not
[[nodiscard]] Term name(std::string_view name, const Term& value);
[[nodiscard]] Term package(const std::vector<Term>& elements);
[[nodiscard]] Term buffer(const Term& contents);
[[nodiscard]] Term device(std::string_view name, const Term& body);
[[nodiscard]] Term scope(std::string_view name, const Term& body);

/// Resource descriptors (ACPI Specification, "Resource Data Types for ACPI").
[[nodiscard]] Term io_ports(std::uint16_t base, std::uint8_t count);
[[nodiscard]] Term isa_irq(std::uint8_t irq);
/// A buffer of descriptors with their end tag, the value of _CRS.
[[nodiscard]] Term resources(const Term& descriptors);

}  // namespace vmm::boot::aml
