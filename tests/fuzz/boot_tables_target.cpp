// SPDX-License-Identifier: Apache-2.0

// ACPI and MP tables for any machine: refused, or such as a guest's parser finds its way through.

#include <cstring>
#include <string_view>

#include "fuzz/target.hpp"
#include "vmm/boot/acpi.hpp"
#include "vmm/boot/mp_table.hpp"

namespace vmm::fuzz {
namespace {

template <typename T>
T get(std::span<const std::byte> bytes, std::uint64_t at)
{
    FUZZ_CHECK(at <= bytes.size() && bytes.size() - at >= sizeof(T));
    T value{};
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

void check_sum(std::span<const std::byte> bytes, std::uint64_t at, std::uint64_t size)
{
    FUZZ_CHECK(at <= bytes.size() && bytes.size() - at >= size);
    std::uint8_t sum = 0;
    for (const std::byte byte : bytes.subspan(at, size)) {
        sum = static_cast<std::uint8_t>(sum + std::to_integer<unsigned>(byte));
    }
    FUZZ_CHECK(sum == 0);
}

bool is_at(std::span<const std::byte> bytes, std::uint64_t at, std::string_view text)
{
    FUZZ_CHECK(at <= bytes.size() && bytes.size() - at >= text.size());
    return std::memcmp(bytes.data() + at, text.data(), text.size()) == 0;
}

/// As a guest: from the root pointer to every table, and through the MADT's entries.
void parse(const boot::AcpiTables& tables, const boot::AcpiPlatform& platform)
{
    const std::span<const std::byte> bytes = tables.bytes;
    const auto offset = [&](std::uint64_t gpa) { return gpa - tables.first.value(); };
    const std::uint64_t rsdp = offset(tables.rsdp.value());
    FUZZ_CHECK(is_at(bytes, rsdp, "RSD PTR "));
    check_sum(bytes, rsdp, 20);
    check_sum(bytes, rsdp, 36);
    const std::uint64_t xsdt = offset(get<std::uint64_t>(bytes, rsdp + 24));
    const auto xsdt_size = get<std::uint32_t>(bytes, xsdt + 4);
    check_sum(bytes, xsdt, xsdt_size);
    for (std::uint64_t at = 36; at + 8 <= xsdt_size; at += 8) {
        const std::uint64_t table = offset(get<std::uint64_t>(bytes, xsdt + at));
        check_sum(bytes, table, get<std::uint32_t>(bytes, table + 4));
    }
    const std::uint64_t dsdt = offset(tables.dsdt.value());
    FUZZ_CHECK(is_at(bytes, dsdt, "DSDT"));
    check_sum(bytes, dsdt, get<std::uint32_t>(bytes, dsdt + 4));
    const std::uint64_t madt = offset(tables.madt.value());
    FUZZ_CHECK(is_at(bytes, madt, "APIC"));
    const std::uint64_t end = madt + get<std::uint32_t>(bytes, madt + 4);
    std::uint32_t cpus = 0;
    for (std::uint64_t at = madt + 44; at < end;) {
        const auto type = get<std::uint8_t>(bytes, at);
        const auto size = get<std::uint8_t>(bytes, at + 1);
        FUZZ_CHECK(size >= 2 && at + size <= end);
        cpus += type == 0 || type == 9 ? 1U : 0U;
        at += size;
    }
    FUZZ_CHECK(cpus == platform.cpus);
}

void acpi(Input& input)
{
    boot::AcpiPlatform platform;
    platform.cpus = static_cast<std::uint32_t>(input.flag() ? input.u16() % 300U : input.number());
    platform.pm1a_event = Port{input.u16()};
    platform.pm1a_control = Port{input.u16()};
    platform.pm_timer = Port{input.u16()};
    platform.s5_sleep_type = input.u8();
    platform.sci_irq = input.u8();
    platform.reset = Port{input.u16()};
    platform.local_apic = Gpa{input.number(0xfee0'0000)};
    platform.io_apic = Gpa{input.number(0xfec0'0000)};
    platform.io_apic_id = input.u8();
    platform.serial_lines.clear();
    for (std::size_t count = input.u8(); count != 0; --count) {
        platform.serial_lines.push_back({Port{input.u16()}, input.u8()});
    }
    platform.rtc = input.flag();
    const Gpa first = input.flag() ? boot::layout::acpi_tables : Gpa{input.number(0xe'0000)};
    if (const auto tables = boot::build_acpi(platform, first)) {
        FUZZ_CHECK(tables->first == first);
        parse(*tables, platform);
    }
}

void mp_table(Input& input)
{
    boot::MpPlatform platform;
    platform.cpus = static_cast<std::uint32_t>(input.number());
    platform.io_apic_id = input.u8();
    platform.sci_irq = input.u8();
    platform.local_apic = Gpa{input.number(0xfee0'0000)};
    platform.io_apic = Gpa{input.number(0xfec0'0000)};
    const Gpa first = input.flag() ? boot::layout::mp_table : Gpa{input.number(0xf'0000)};
    const auto table = boot::build_mp_table(platform, first);
    if (!table) {
        return;
    }
    const std::span<const std::byte> bytes = *table;
    FUZZ_CHECK(is_at(bytes, 0, "_MP_"));
    check_sum(bytes, 0, 16);
    const std::uint64_t at = get<std::uint32_t>(bytes, 4) - first.value();
    FUZZ_CHECK(is_at(bytes, at, "PCMP"));
    const auto size = get<std::uint16_t>(bytes, at + 4);
    check_sum(bytes, at, size);
    std::uint64_t entry = at + 44;
    for (unsigned left = get<std::uint16_t>(bytes, at + 34); left != 0; --left) {
        entry += get<std::uint8_t>(bytes, entry) == 0 ? 20U : 8U;
    }
    FUZZ_CHECK(entry == at + size);
}

}  // namespace

void boot_tables(Input& input)
{
    if (input.flag()) {
        mp_table(input);
    } else {
        acpi(input);
    }
}

Seeds boot_tables_seeds()
{
    Seeds seeds;
    for (const unsigned cpus : {1U, 4U, 255U, 288U}) {
        Seed acpi;
        acpi.u8(0).u8(1).u16(cpus).u16(0x600).u16(0x604).u16(0x608).u8(5).u8(9).u16(0xcf9);
        acpi.number(0xfee0'0000).number(0xfec0'0000).u8(0).u8(2).u16(0x3f8).u8(4).u16(0x2f8).u8(3);
        seeds.push_back(acpi.u8(1).u8(1).data());
        Seed mp;
        mp.u8(1).number(cpus).u8(0xff).u8(9).number(0xfee0'0000).number(0xfec0'0000).u8(1);
        seeds.push_back(mp.data());
    }
    return seeds;
}

}  // namespace vmm::fuzz
