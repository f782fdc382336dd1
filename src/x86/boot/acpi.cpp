// SPDX-License-Identifier: Apache-2.0

#include "vmm/boot/acpi.hpp"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "x86/boot/aml.hpp"
#include "x86/boot/bytes.hpp"

namespace vmm::boot {
namespace {

// ACPI Specification 6.4, "System Description Table Header" and the tables' own sections.
constexpr std::size_t checksum_offset = 9;
constexpr std::size_t length_offset = 4;
constexpr std::size_t fadt_bytes = 268;  // Revision 5.
constexpr std::size_t facs_bytes = 64;
constexpr std::size_t rsdp_bytes = 36;
constexpr std::uint8_t space_io = 1;

ByteTable begin_table(std::string_view signature, std::uint8_t revision)
{
    ByteTable table;
    table.append_text(signature);
    table.append<std::uint32_t>(0);  // Length: see end_table().
    table.append<std::uint8_t>(revision);
    table.append<std::uint8_t>(0);  // Checksum.
    table.append_text("VMM   ");
    table.append_text("VMMTABLE");
    table.append<std::uint32_t>(1);
    table.append_text("VMM ");
    table.append<std::uint32_t>(1);
    return table;
}

void end_table(ByteTable& table)
{
    table.put<std::uint32_t>(length_offset, static_cast<std::uint32_t>(table.size()));
    table.put_checksum(checksum_offset, 0, table.size());
}

/// A generic address: a register of `bytes` at an I/O port.
void put_register(ByteTable& table, std::size_t offset, Port port, std::uint8_t bytes)
{
    // Access sizes: 1 byte, 2 word, 3 double word.
    const std::uint8_t access = bytes == 1 ? 1 : bytes == 2 ? 2 : 3;
    table.put<std::uint8_t>(offset, space_io);
    table.put<std::uint8_t>(offset + 1, static_cast<std::uint8_t>(bytes * 8));
    table.put<std::uint8_t>(offset + 2, 0);
    table.put<std::uint8_t>(offset + 3, access);
    table.put<std::uint64_t>(offset + 4, port.value());
}

ByteTable build_fadt(const AcpiPlatform& platform, const AcpiTables& at)
{
    auto fadt = begin_table("FACP", 5);
    fadt.pad_to(fadt_bytes);
    fadt.put<std::uint32_t>(36, static_cast<std::uint32_t>(at.facs.value()));
    fadt.put<std::uint32_t>(40, static_cast<std::uint32_t>(at.dsdt.value()));
    fadt.put<std::uint16_t>(46, platform.sci_irq);
    // No SMI command port and no ACPI_ENABLE value: the machine is always in ACPI mode.
    fadt.put<std::uint32_t>(56, platform.pm1a_event.value());
    fadt.put<std::uint32_t>(64, platform.pm1a_control.value());
    fadt.put<std::uint32_t>(76, platform.pm_timer.value());
    fadt.put<std::uint8_t>(88, 4);       // PM1_EVT_LEN
    fadt.put<std::uint8_t>(89, 2);       // PM1_CNT_LEN
    fadt.put<std::uint8_t>(91, 4);       // PM_TMR_LEN
    fadt.put<std::uint16_t>(96, 0xfff);  // P_LVL2_LAT: no C2,
    fadt.put<std::uint16_t>(98, 0xfff);  // P_LVL3_LAT: no C3.
    fadt.put<std::uint8_t>(108, 0x32);   // CENTURY, in CMOS.

    // No 8042 is announced: the port resets the machine, but there is no keyboard to look for.
    constexpr std::uint16_t legacy_devices = 1U << 0U;
    constexpr std::uint16_t no_vga = 1U << 2U;
    constexpr std::uint16_t no_rtc = 1U << 5U;
    fadt.put<std::uint16_t>(
        109, static_cast<std::uint16_t>(legacy_devices | no_vga | (platform.rtc ? 0U : no_rtc)));
    constexpr std::uint32_t wbinvd = 1U << 0U;
    constexpr std::uint32_t c1_works = 1U << 2U;
    constexpr std::uint32_t no_sleep_button = 1U << 5U;
    constexpr std::uint32_t no_rtc_wake = 1U << 6U;
    constexpr std::uint32_t timer_has_32_bits = 1U << 8U;
    constexpr std::uint32_t reset_register = 1U << 10U;
    fadt.put<std::uint32_t>(112, wbinvd | c1_works | no_sleep_button | no_rtc_wake |
                                     timer_has_32_bits | reset_register);
    put_register(fadt, 116, platform.reset, 1);
    fadt.put<std::uint8_t>(128, platform.reset_value);
    fadt.put<std::uint8_t>(131, 1);  // Minor revision: 5.1.
    // X_FIRMWARE_CTRL stays 0: at most one of it and FIRMWARE_CTRL may be given.
    fadt.put<std::uint64_t>(140, at.dsdt.value());
    put_register(fadt, 148, platform.pm1a_event, 4);
    put_register(fadt, 172, platform.pm1a_control, 2);
    put_register(fadt, 208, platform.pm_timer, 4);
    end_table(fadt);
    return fadt;
}

ByteTable build_facs()
{
    ByteTable facs;
    facs.append_text("FACS");
    facs.append<std::uint32_t>(facs_bytes);
    facs.pad_to(facs_bytes);
    facs.put<std::uint8_t>(32, 2);  // Version.
    return facs;
}

aml::Term serial_device(const SerialLine& line, unsigned index)
{
    auto ports = aml::io_ports(line.base.value(), 8);
    ports += aml::isa_irq(line.irq);
    auto body = aml::name("_HID", aml::eisa_id("PNP0501"));
    body += aml::name("_UID", aml::integer(index + 1));
    body += aml::name("_STA", aml::integer(0xf));
    body += aml::name("_CRS", aml::resources(ports));
    return aml::device(fmt::format("COM{:X}", index + 1), body);
}

aml::Term motherboard_device(const AcpiPlatform& platform)
{
    auto ports = aml::io_ports(platform.pm1a_event.value(), 4);
    ports += aml::io_ports(platform.pm1a_control.value(), 2);
    ports += aml::io_ports(platform.pm_timer.value(), 4);
    auto body = aml::name("_HID", aml::eisa_id("PNP0C02"));
    body += aml::name("_CRS", aml::resources(ports));
    return aml::device("MBRD", body);
}

aml::Term rtc_device()
{
    auto resources = aml::io_ports(0x70, 2);
    resources += aml::isa_irq(8);
    auto body = aml::name("_HID", aml::eisa_id("PNP0B00"));
    body += aml::name("_CRS", aml::resources(resources));
    return aml::device("RTC_", body);
}

ByteTable build_dsdt(const AcpiPlatform& platform)
{
    aml::Term devices;
    for (unsigned i = 0; i < platform.cpus; ++i) {
        auto body = aml::name("_HID", aml::text("ACPI0007"));
        body += aml::name("_UID", aml::integer(i));
        devices += aml::device(fmt::format("C{:03X}", i), body);
    }
    devices += motherboard_device(platform);
    for (unsigned i = 0; i < platform.serial_lines.size(); ++i) {
        devices += serial_device(platform.serial_lines[i], i);
    }
    if (platform.rtc) {
        devices += rtc_device();
    }
    // SLP_TYP for PM1a and PM1b, and two reserved values.
    const auto off =
        aml::package({aml::integer(platform.s5_sleep_type), aml::integer(platform.s5_sleep_type),
                      aml::integer(0), aml::integer(0)});
    auto dsdt = begin_table("DSDT", 2);
    dsdt.append_bytes(aml::name("\\_S5_", off).bytes);
    dsdt.append_bytes(aml::scope("\\_SB_", devices).bytes);
    end_table(dsdt);
    return dsdt;
}

ByteTable build_madt(const AcpiPlatform& platform)
{
    constexpr std::uint32_t pcat_compatible = 1;
    constexpr std::uint32_t enabled = 1;
    constexpr std::uint16_t level_active_high = 0xd;
    // Ids from 255 on do not fit a local APIC's entry.
    constexpr std::uint32_t first_x2apic = 255;
    auto madt = begin_table("APIC", 4);
    madt.append<std::uint32_t>(static_cast<std::uint32_t>(platform.local_apic.value()));
    madt.append<std::uint32_t>(pcat_compatible);
    for (std::uint32_t id = 0; id < platform.cpus; ++id) {
        if (id < first_x2apic) {
            madt.append<std::uint8_t>(0);  // Processor local APIC.
            madt.append<std::uint8_t>(8);
            madt.append(static_cast<std::uint8_t>(id));
            madt.append(static_cast<std::uint8_t>(id));
            madt.append(enabled);
        } else {
            madt.append<std::uint8_t>(9);  // Processor local x2APIC.
            madt.append<std::uint8_t>(16);
            madt.append<std::uint16_t>(0);
            madt.append(id);
            madt.append(enabled);
            madt.append(id);
        }
    }
    madt.append<std::uint8_t>(1);  // I/O APIC.
    madt.append<std::uint8_t>(12);
    madt.append(platform.io_apic_id);
    madt.append<std::uint8_t>(0);
    madt.append<std::uint32_t>(static_cast<std::uint32_t>(platform.io_apic.value()));
    madt.append<std::uint32_t>(0);  // Its first global system interrupt.

    const auto override_irq = [&madt](std::uint8_t irq, std::uint32_t gsi, std::uint16_t flags) {
        madt.append<std::uint8_t>(2);  // Interrupt source override.
        madt.append<std::uint8_t>(10);
        madt.append<std::uint8_t>(0);  // ISA.
        madt.append(irq);
        madt.append(gsi);
        madt.append(flags);
    };
    override_irq(0, 2, 0);
    override_irq(platform.sci_irq, platform.sci_irq, level_active_high);

    madt.append<std::uint8_t>(4);  // Local APIC NMI: LINT1 of all processors.
    madt.append<std::uint8_t>(6);
    madt.append<std::uint8_t>(0xff);
    madt.append<std::uint16_t>(0);
    madt.append<std::uint8_t>(1);
    if (platform.cpus > first_x2apic) {
        madt.append<std::uint8_t>(0xa);  // Local x2APIC NMI: the same for the others.
        madt.append<std::uint8_t>(12);
        madt.append<std::uint16_t>(0);
        madt.append<std::uint32_t>(0xffff'ffff);
        madt.append<std::uint8_t>(1);
        madt.append<std::uint8_t>(0);
        madt.append<std::uint16_t>(0);
    }
    end_table(madt);
    return madt;
}

ByteTable build_xsdt(const AcpiTables& at)
{
    auto xsdt = begin_table("XSDT", 1);
    xsdt.append<std::uint64_t>(at.fadt.value());
    xsdt.append<std::uint64_t>(at.madt.value());
    end_table(xsdt);
    return xsdt;
}

ByteTable build_rsdp(const AcpiTables& at)
{
    ByteTable rsdp;
    rsdp.append_text("RSD PTR ");
    rsdp.append<std::uint8_t>(0);
    rsdp.append_text("VMM   ");
    rsdp.append<std::uint8_t>(2);
    rsdp.append<std::uint32_t>(0);  // No RSDT.
    rsdp.append<std::uint32_t>(rsdp_bytes);
    rsdp.append<std::uint64_t>(at.xsdt.value());
    rsdp.append<std::uint8_t>(0);
    rsdp.pad_to(rsdp_bytes);
    rsdp.put_checksum(8, 0, 20);
    rsdp.put_checksum(32, 0, rsdp_bytes);
    return rsdp;
}

Result<void> check(const AcpiPlatform& platform, Gpa first)
{
    if (platform.cpus == 0 || platform.cpus > acpi_max_cpus) {
        return Error{std::errc::invalid_argument,
                     fmt::format("ACPI tables: {} CPUs; 1 to {} can be described", platform.cpus,
                                 acpi_max_cpus)};
    }
    if (platform.sci_irq > 15 || platform.serial_lines.size() > 15 ||
        std::any_of(platform.serial_lines.begin(), platform.serial_lines.end(),
                    [](const SerialLine& line) { return line.irq > 15; })) {
        return Error{std::errc::invalid_argument,
                     "ACPI tables: ISA interrupts are 0 to 15, and at most 15 serial lines can be "
                     "described"};
    }
    if (!first.is_aligned(64) || first.value() >= 0xffe0'0000) {
        return Error{std::errc::invalid_argument,
                     fmt::format("ACPI tables: gpa {:#x}; a multiple of 64 in the first 4 GiB is "
                                 "needed",
                                 first.value())};
    }
    return success;
}

}  // namespace

Result<AcpiTables> build_acpi(const AcpiPlatform& platform, Gpa first)
{
    VMM_TRY_VOID(check(platform, first));
    AcpiTables tables;
    tables.first = first;
    ByteTable all;
    // Each table begins on 64 bytes, which the FACS needs and the others do not mind.
    const auto place = [&all, first] {
        all.pad_to((all.size() + 63) / 64 * 64);
        return first + all.size();
    };
    tables.rsdp = place();
    all.pad_to(rsdp_bytes);
    tables.facs = place();
    all.append_bytes(build_facs().bytes());
    tables.dsdt = place();
    all.append_bytes(build_dsdt(platform).bytes());
    tables.fadt = place();
    all.append_bytes(build_fadt(platform, tables).bytes());
    tables.madt = place();
    all.append_bytes(build_madt(platform).bytes());
    tables.xsdt = place();
    all.append_bytes(build_xsdt(tables).bytes());

    tables.bytes = std::move(all).take();
    const auto rsdp = build_rsdp(tables);
    std::copy(rsdp.bytes().begin(), rsdp.bytes().end(), tables.bytes.begin());
    return tables;
}

Result<Gpa> write_acpi(ImageWriter& memory, const AcpiPlatform& platform)
{
    VMM_TRY(const auto tables, build_acpi(platform));
    // 288 CPUs and 15 serial lines take less than a third of it.
    VMM_ASSERT(tables.bytes.size() <= layout::acpi_tables_bytes);
    VMM_TRY_VOID(memory.write(tables.first, tables.bytes));
    return tables.rsdp;
}

}  // namespace vmm::boot
