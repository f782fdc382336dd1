// SPDX-License-Identifier: Apache-2.0

/// @file
/// The tiny guest that an engine must run before it is trusted.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vmm::core {

/// A program for `probe_guest_entry` in real mode.  It writes 'R' from real mode, 'P' from
/// protected mode and 'L' from long mode to port 0x80, runs 40,000 instructions, writes 'E' and
/// halts.
inline constexpr std::uint16_t probe_guest_entry = 0x1000;
inline constexpr std::array<std::uint8_t, 142> probe_guest_code{
    0xb0, 0x52,                                      // mov $'R', %al
    0xe6, 0x80,                                      // out %al, $0x80
    0x66, 0x0f, 0x01, 0x16, 0x88, 0x10,              // lgdtl 0x1088
    0x0f, 0x20, 0xc0,                                // mov %cr0, %eax
    0x0c, 0x01,                                      // or $PE, %al
    0x0f, 0x22, 0xc0,                                // mov %eax, %cr0
    0x66, 0xea, 0x1a, 0x10, 0x00, 0x00, 0x08, 0x00,  // ljmpl $8, $0x101a
    0x66, 0xb8, 0x10, 0x00,                          // mov $0x10, %ax
    0x8e, 0xd8,                                      // mov %ax, %ds
    0x8e, 0xd0,                                      // mov %ax, %ss
    0xb0, 0x50,                                      // mov $'P', %al
    0xe6, 0x80,                                      // out %al, $0x80
    0xb8, 0x00, 0x20, 0x00, 0x00,                    // mov $0x2000, %eax
    0x0f, 0x22, 0xd8,                                // mov %eax, %cr3
    0x0f, 0x20, 0xe0,                                // mov %cr4, %eax
    0x0c, 0x20,                                      // or $PAE, %al
    0x0f, 0x22, 0xe0,                                // mov %eax, %cr4
    0xb9, 0x80, 0x00, 0x00, 0xc0,                    // mov $IA32_EFER, %ecx
    0x0f, 0x32,                                      // rdmsr
    0x80, 0xcc, 0x01,                                // or $LME, %ah
    0x0f, 0x30,                                      // wrmsr
    0x0f, 0x20, 0xc0,                                // mov %cr0, %eax
    0x0d, 0x00, 0x00, 0x00, 0x80,                    // or $PG, %eax
    0x0f, 0x22, 0xc0,                                // mov %eax, %cr0
    0xea, 0x54, 0x10, 0x00, 0x00, 0x18, 0x00,        // ljmpl $0x18, $0x1054
    0xb0, 0x4c,                                      // mov $'L', %al
    0xe6, 0x80,                                      // out %al, $0x80
    0xb9, 0x20, 0x4e, 0x00, 0x00,                    // mov $20000, %ecx
    0xff, 0xc9,                                      // dec %ecx
    0x75, 0xfc,                                      // jnz .-2
    0xb0, 0x45,                                      // mov $'E', %al
    0xe6, 0x80,                                      // out %al, $0x80
    0xf4,                                            // hlt
    0x66, 0x90,                                      // The GDT, at 0x1068:
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,  // null
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xcf, 0x00,  // 0x08: 32-bit code
    0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00,  // 0x10: data
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00,  // 0x18: 64-bit code
    0x1f, 0x00, 0x68, 0x10, 0x00, 0x00,              // GDTR, at 0x1088
};

/// Where its page tables are expected: a PML4, a PDPT whose first entry maps 1 GiB … as 2 MiB
/// pages through the page directory behind it.
inline constexpr std::uint64_t probe_guest_pml4 = 0x2000;
inline constexpr std::uint64_t probe_guest_pdpt = 0x3000;
inline constexpr std::uint64_t probe_guest_pd = 0x4000;
inline constexpr std::size_t probe_guest_memory = 0x1'0000;

/// Lays code and page tables into `memory`, `probe_guest_memory` zero bytes at guest-physical 0.
inline void place_probe_guest(std::byte* memory) noexcept
{
    for (std::size_t i = 0; i < probe_guest_code.size(); ++i) {
        memory[probe_guest_entry + i] = std::byte{probe_guest_code[i]};
    }
    constexpr unsigned present_writable = 3;
    constexpr unsigned present_writable_large = 0x83;
    memory[probe_guest_pml4] = std::byte{present_writable};
    memory[probe_guest_pml4 + 1] = std::byte{probe_guest_pdpt >> 8U};
    memory[probe_guest_pdpt] = std::byte{present_writable};
    memory[probe_guest_pdpt + 1] = std::byte{probe_guest_pd >> 8U};
    memory[probe_guest_pd] = std::byte{present_writable_large};
}

inline constexpr unsigned probe_guest_instructions = 40'000;

}  // namespace vmm::core
