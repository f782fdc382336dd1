// SPDX-License-Identifier: Apache-2.0

/// @file
/// The ACPI tables that describe the machine to its guest: RSDP, XSDT, FADT, FACS, DSDT, MADT
/// (ACPI Specification 6.4, "ACPI Software Programming Model").
///
/// The fixed hardware is a PM1a event and control block and a PM timer at I/O ports; there is no
/// SMI command, so that ACPI mode is always on.  There is no PCI.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/boot/guest_image.hpp"
#include "vmm/export.hpp"
#include "vmm/result.hpp"

namespace vmm::boot {

/// A 16550 serial line as the guest is to find it.
struct SerialLine {
    Port base{0x3f8};
    std::uint8_t irq{4};  ///< ISA interrupt, 0 … 15.
};

/// What the tables say of the machine.  The defaults are the ports of this library's devices.
struct AcpiPlatform {
    std::uint32_t cpus{1};          ///< 1 … 288; APIC ids are 0 … cpus - 1.
    Port pm1a_event{0x600};         ///< Status and enable, 2 bytes each.
    Port pm1a_control{0x604};       ///< 2 bytes.
    Port pm_timer{0x608};           ///< 4 bytes, 3.579545 MHz, 32 bits wide.
    std::uint8_t s5_sleep_type{5};  ///< SLP_TYP that powers the machine off.
    std::uint8_t sci_irq{9};        ///< Level-triggered, active high.
    Port reset{0xcf9};              ///< Where `reset_value` resets the machine.
    std::uint8_t reset_value{6};
    Gpa local_apic{0xfee0'0000};
    Gpa io_apic{0xfec0'0000};
    std::uint8_t io_apic_id{0};
    std::vector<SerialLine> serial_lines = std::vector<SerialLine>(1);  ///< COM1.
    bool rtc{true};  ///< PNP0B00 at ports 0x70-0x71, IRQ 8.
};

/// The largest number of CPUs that `build_acpi()` describes.
inline constexpr std::uint32_t acpi_max_cpus = 288;

/// Tables ready to be written to `first`.
struct AcpiTables {
    Gpa first{};
    std::vector<std::byte> bytes{};
    Gpa rsdp{};
    Gpa xsdt{};
    Gpa fadt{};
    Gpa facs{};
    Gpa dsdt{};
    Gpa madt{};
};

/// Builds the tables for `first`, a multiple of 64 in the first 4 GiB.
///
/// EINVAL: `cpus` out of range, an IRQ above 15, `first` misplaced.
[[nodiscard]] VMM_API Result<AcpiTables> build_acpi(const AcpiPlatform& platform,
                                                    Gpa first = layout::acpi_tables);

/// Builds the tables and writes them to `layout::acpi_tables`; gives back the RSDP's address.
[[nodiscard]] VMM_API Result<Gpa> write_acpi(ImageWriter& memory, const AcpiPlatform& platform);

}  // namespace vmm::boot
