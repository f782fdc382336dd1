// SPDX-License-Identifier: Apache-2.0

/// @file
/// Kernels made of thin air: valid headers around recognisable bytes.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "x86/boot/bytes.hpp"
#include "x86/boot/linux_common.hpp"

namespace vmm::boot {

inline constexpr std::uint64_t mib = 1024 * 1024;
inline constexpr std::size_t image_setup_bytes = 2 * 512;
inline constexpr std::size_t image_payload_bytes = 8192;

/// A bzImage of protocol 2.15 with both entries: one setup sector, 8 KiB of payload, loaded at
/// 16 MiB, of which it claims 4 MiB.
inline ByteTable make_bzimage()
{
    namespace at = zero_page;
    ByteTable image{image_setup_bytes + image_payload_bytes};
    image.put<std::uint8_t>(at::setup_sects, 1);
    image.put<std::uint32_t>(at::syssize, image_payload_bytes / 16);
    image.put<std::uint16_t>(at::boot_flag, boot_flag_magic);
    image.put<std::uint8_t>(0x200, 0xeb);
    image.put<std::uint8_t>(at::jump_length, 0x6a);
    image.put<std::uint32_t>(at::header_magic, header_magic_value);
    image.put<std::uint16_t>(at::version, 0x020f);
    image.put<std::uint8_t>(at::loadflags, 0x81);
    image.put<std::uint32_t>(at::initrd_addr_max, 0x7fff'ffff);
    image.put<std::uint32_t>(at::kernel_alignment, 0x20'0000);
    image.put<std::uint8_t>(at::relocatable_kernel, 1);
    image.put<std::uint16_t>(at::xloadflags, 1);
    image.put<std::uint32_t>(at::cmdline_size, 2047);
    image.put<std::uint64_t>(at::pref_address, 16 * mib);
    image.put<std::uint32_t>(at::init_size, 4 * mib);
    for (std::size_t i = 0; i < image_payload_bytes; ++i) {
        image.put<std::uint8_t>(image_setup_bytes + i, static_cast<std::uint8_t>(i * 7 + 1));
    }
    return image;
}

/// Where the parts of `make_elf64()` and `make_elf32()` lie in the file.
inline constexpr std::size_t elf_note_at = 0x200;
inline constexpr std::size_t elf_code_at = 0x300;
inline constexpr std::size_t elf_code_bytes = 0x100;
inline constexpr std::uint64_t elf_load = 16 * mib;
inline constexpr std::uint64_t elf_bss_bytes = 0x2000;

inline void put_note(ByteTable& image, std::uint64_t entry)
{
    // Some other note first.
    image.put<std::uint32_t>(elf_note_at, 5);
    image.put<std::uint32_t>(elf_note_at + 4, 2);
    image.put<std::uint32_t>(elf_note_at + 8, 1);
    image.put<std::uint32_t>(elf_note_at + 12, 0x75'6e47U << 8U);
    const auto at = elf_note_at + 12 + 8 + 4;
    image.put<std::uint32_t>(at, 4);
    image.put<std::uint32_t>(at + 4, 8);
    image.put<std::uint32_t>(at + 8, 18);
    image.put<std::uint32_t>(at + 12, 0x006e'6558);
    image.put<std::uint64_t>(at + 16, entry);
}

enum class PvhNote : std::uint8_t { Absent, Present };

/// One load segment at 16 MiB with BSS, and with `note` a PVH entry 0x40 into it.
inline ByteTable make_elf64(PvhNote note)
{
    ByteTable image{elf_code_at + elf_code_bytes};
    image.put<std::uint32_t>(0, 0x464c'457f);
    image.put<std::uint8_t>(4, 2);
    image.put<std::uint8_t>(5, 1);
    image.put<std::uint8_t>(6, 1);
    image.put<std::uint16_t>(16, 2);
    image.put<std::uint16_t>(18, 62);
    image.put<std::uint32_t>(20, 1);
    image.put<std::uint64_t>(24, elf_load + 0x10);
    image.put<std::uint64_t>(32, 64);
    image.put<std::uint16_t>(52, 64);
    image.put<std::uint16_t>(54, 56);
    image.put<std::uint16_t>(56, 2);
    image.put<std::uint32_t>(64, 1);
    image.put<std::uint64_t>(64 + 8, elf_code_at);
    image.put<std::uint64_t>(64 + 16, 0xffff'ffff'8100'0000);
    image.put<std::uint64_t>(64 + 24, elf_load);
    image.put<std::uint64_t>(64 + 32, elf_code_bytes);
    image.put<std::uint64_t>(64 + 40, elf_bss_bytes);
    image.put<std::uint32_t>(120, note == PvhNote::Present ? 4 : 0);
    image.put<std::uint64_t>(120 + 8, elf_note_at);
    image.put<std::uint64_t>(120 + 32, 0x40);
    image.put<std::uint64_t>(120 + 40, 0x40);
    put_note(image, elf_load + 0x40);
    for (std::size_t i = 0; i < elf_code_bytes; ++i) {
        image.put<std::uint8_t>(elf_code_at + i, static_cast<std::uint8_t>(i ^ 0x5aU));
    }
    return image;
}

/// The same with 32-bit headers and no note.
inline ByteTable make_elf32()
{
    auto image = make_elf64(PvhNote::Absent);
    for (std::size_t i = 0; i < elf_note_at; ++i) {
        image.put<std::uint8_t>(i, 0);
    }
    image.put<std::uint32_t>(0, 0x464c'457f);
    image.put<std::uint8_t>(4, 1);
    image.put<std::uint8_t>(5, 1);
    image.put<std::uint8_t>(6, 1);
    image.put<std::uint16_t>(16, 2);
    image.put<std::uint16_t>(18, 3);
    image.put<std::uint32_t>(24, static_cast<std::uint32_t>(elf_load + 0x10));
    image.put<std::uint32_t>(28, 52);
    image.put<std::uint16_t>(42, 32);
    image.put<std::uint16_t>(44, 1);
    image.put<std::uint32_t>(52, 1);
    image.put<std::uint32_t>(52 + 4, elf_code_at);
    image.put<std::uint32_t>(52 + 12, static_cast<std::uint32_t>(elf_load));
    image.put<std::uint32_t>(52 + 16, elf_code_bytes);
    image.put<std::uint32_t>(52 + 20, static_cast<std::uint32_t>(elf_bss_bytes));
    return image;
}

}  // namespace vmm::boot
