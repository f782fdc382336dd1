// SPDX-License-Identifier: Apache-2.0

/// @file
/// Where a guest's memory lies, and how the loaders of this folder write to it.
///
/// A PC's RAM is cut in two: below 3 GiB, and from 4 GiB up, with devices in the hole between.
/// `ram_ranges()` says which memory slots a machine of a given size needs, `e820_map()` what the
/// guest is told of them.  The loaders never see host memory: they write through `ImageWriter`.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/export.hpp"
#include "vmm/result.hpp"

namespace vmm::boot {

/// Where RAM is interrupted for devices, and where it goes on.
inline constexpr Gpa ram_hole_begin{0xc000'0000};
inline constexpr Gpa ram_hole_end{0x1'0000'0000};
/// The largest machine: 64 TiB, a 46-bit physical address.
inline constexpr std::uint64_t max_memory_bytes = std::uint64_t{1} << 46U;

/// Below 1 MiB, where the loaders and the table builders put what they write.  Nothing overlaps.
namespace layout {
inline constexpr Gpa bios_data{0x400};
inline constexpr Gpa gdt{0x1000};
inline constexpr Gpa tss{0x1080};
inline constexpr Gpa pvh_start_info{0x2000};  ///< With the module list and memory map behind it.
inline constexpr Gpa zero_page{0x7000};       ///< Linux's boot_params.
inline constexpr Gpa stack_top{0x9000};
inline constexpr Gpa page_tables{0x9000};  ///< PML4, page-directory-pointer table, 4 directories.
inline constexpr Gpa command_line{0x2'0000};
inline constexpr std::uint64_t command_line_bytes = 0x1'0000;
inline constexpr Gpa extended_bios_data{0x9'fc00};
inline constexpr Gpa acpi_tables{0xe'0000};  ///< RSDP first, so that a guest that scans finds it.
inline constexpr std::uint64_t acpi_tables_bytes = 0x1'0000;
inline constexpr Gpa mp_table{0xf'0000};
inline constexpr std::uint64_t mp_table_bytes = 0x1'0000;
inline constexpr Gpa high_memory{0x10'0000};
}  // namespace layout

/// The guest's memory, as a loader sees it.  Not thread-safe: the guest does not run yet.
class VMM_API ImageWriter {
public:
    ImageWriter() = default;
    ImageWriter(const ImageWriter&) = delete;
    ImageWriter& operator=(const ImageWriter&) = delete;
    virtual ~ImageWriter();

    /// Copies `bytes` to guest-physical `target`; refuses (EFAULT) what is not all RAM.
    [[nodiscard]] virtual Result<void> write(Gpa target, std::span<const std::byte> bytes) = 0;

    /// Clears `size` bytes from `target`.  By default it writes zeros; a writer to fresh memory
    /// may do nothing after its check.
    [[nodiscard]] virtual Result<void> zero(Gpa target, std::uint64_t size);
};

/// A run of RAM, one memory slot.
struct RamRange {
    Gpa first{};
    std::uint64_t size{};  ///< Bytes; a multiple of 4096, never 0.

    friend bool operator==(const RamRange&, const RamRange&) = default;
};

/// Where `memory_bytes` of RAM lie: one range, or two above 3 GiB, in ascending order.
///
/// EINVAL for 0, for a size that is no multiple of 4096, and above `max_memory_bytes`.
[[nodiscard]] VMM_API Result<std::vector<RamRange>> ram_ranges(std::uint64_t memory_bytes);

/// Types of the address ranges that a BIOS reports (ACPI "Address Range Types").
enum class E820Type : std::uint32_t {
    Ram = 1,
    Reserved = 2,
    AcpiReclaimable = 3,
    AcpiNvs = 4,
};

/// A line of the guest's memory map.
struct E820Entry {
    Gpa first{};
    std::uint64_t size{};
    E820Type type{E820Type::Ram};

    friend bool operator==(const E820Entry&, const E820Entry&) = default;
};

/// The memory map of a machine with `memory_bytes` of RAM: ascending, disjoint, and as large in
/// sum as the RAM.
///
/// From 0x9fc00 to 1 MiB, where a PC has the extended BIOS data, the display and the BIOS, the
/// RAM is reported as reserved: the ACPI and MP tables are there.  Errors as `ram_ranges()`.
[[nodiscard]] VMM_API Result<std::vector<E820Entry>> e820_map(std::uint64_t memory_bytes);

}  // namespace vmm::boot
