// SPDX-License-Identifier: Apache-2.0

/// @file
/// What the loaders of the kernel's forms share: where an initrd may lie, and the zero page.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "vmm/boot/linux.hpp"
#include "x86/boot/bytes.hpp"

namespace vmm::boot {

/// Fields of boot_params ("The Linux/x86 Boot Protocol", "Zero Page" and "Details of Header
/// Fields"); offsets from the zero page, which are also those from the start of a bzImage.
namespace zero_page {
inline constexpr std::size_t acpi_rsdp_addr = 0x070;
inline constexpr std::size_t e820_entries = 0x1e8;
inline constexpr std::size_t setup_sects = 0x1f1;
inline constexpr std::size_t syssize = 0x1f4;
inline constexpr std::size_t vid_mode = 0x1fa;
inline constexpr std::size_t boot_flag = 0x1fe;
inline constexpr std::size_t jump_length = 0x201;
inline constexpr std::size_t header_magic = 0x202;
inline constexpr std::size_t version = 0x206;
inline constexpr std::size_t type_of_loader = 0x210;
inline constexpr std::size_t loadflags = 0x211;
inline constexpr std::size_t code32_start = 0x214;
inline constexpr std::size_t ramdisk_image = 0x218;
inline constexpr std::size_t ramdisk_size = 0x21c;
inline constexpr std::size_t heap_end_ptr = 0x224;
inline constexpr std::size_t cmd_line_ptr = 0x228;
inline constexpr std::size_t initrd_addr_max = 0x22c;
inline constexpr std::size_t kernel_alignment = 0x230;
inline constexpr std::size_t relocatable_kernel = 0x234;
inline constexpr std::size_t xloadflags = 0x236;
inline constexpr std::size_t cmdline_size = 0x238;
inline constexpr std::size_t setup_data = 0x250;
inline constexpr std::size_t pref_address = 0x258;
inline constexpr std::size_t init_size = 0x260;
inline constexpr std::size_t header_limit = 0x290;  ///< The setup header ends before here.
inline constexpr std::size_t e820_table = 0x2d0;
inline constexpr std::size_t bytes = 4096;
}  // namespace zero_page

inline constexpr std::uint16_t boot_flag_magic = 0xaa55;
inline constexpr std::uint32_t header_magic_value = 0x5372'6448;  // "HdrS"
inline constexpr std::uint8_t loader_undefined = 0xff;

/// `bytes` as a person reads it, rounded up: "512 KiB", "23 MiB".
[[nodiscard]] std::string size_text(std::uint64_t bytes);

/// The end of the RAM below the hole; what a kernel is entered from must lie under it.
[[nodiscard]] Result<std::uint64_t> low_memory_end(std::uint64_t memory_bytes);

/// Checks the command line and writes it, with its NUL, to `layout::command_line`.
[[nodiscard]] Result<void> write_command_line(ImageWriter& memory,
                                              const std::string& text,
                                              std::uint64_t most);

/// Writes the initrd as high as `last_allowed` and RAM permit, and not below `kernel_end`.
/// Gives back its address, 0 for none.
[[nodiscard]] Result<Gpa> write_initrd(ImageWriter& memory,
                                       const LinuxBoot& boot,
                                       std::uint64_t kernel_end,
                                       std::uint64_t last_allowed);

/// What the BIOS leaves at 0x400 that kernels look at: size of low memory, extended BIOS data.
[[nodiscard]] Result<void> write_bios_data(ImageWriter& memory);

/// Fills the machine's part of the zero page (memory map, RSDP, initrd, command line) into
/// `page`, which already holds the kernel's setup header, and writes it.
[[nodiscard]] Result<void> write_zero_page(ImageWriter& memory,
                                           ByteTable page,
                                           const LinuxBoot& boot,
                                           Gpa initrd);

}  // namespace vmm::boot
