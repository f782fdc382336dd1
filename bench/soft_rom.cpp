// SPDX-License-Identifier: Apache-2.0

#include "soft_rom.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>

/// From the reset vector to 64-bit mode.  The ROM is copied to `ram`, and the first GiB mapped one
/// to one by pages of 2 MiB.
asm(R"(
    .pushsection rom_code, "a"
    .code16
rom_start:
    cli
    lgdtl %cs:(0xf000 + rom_gdt_pointer - rom_start)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $(0xfffff000 + (rom_protected - rom_start))
    .code32
rom_protected:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $0xffff0000, %esi
    movl $0x10000, %edi
    movl $0x4000, %ecx
    rep movsl
    lgdtl (0x1f000 + (rom_gdt_pointer_in_ram - rom_start))
    ljmpl $8, $(0x1f000 + (rom_copied - rom_start))
rom_copied:
    xorl %eax, %eax
    movl $0x1000, %edi
    movl $0xc00, %ecx
    rep stosl
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    movl $0x83, %eax
    movl $0x3000, %edi
    movl $512, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl $0x40620, %eax
    movl %eax, %cr4
    xorl %ecx, %ecx
    xorl %edx, %edx
    movl $7, %eax
    xsetbv
    movl $0x1000, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000033, %eax
    movl %eax, %cr0
    movl $0x3fff8, %esp
    ljmpl $24, $(0x1f000 + (rom_long - rom_start))
    .code64
rom_long:
    movl $0x1e008, %edi
    jmp *-8(%rdi)
    .balign 8
rom_gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00af9a000000ffff
rom_gdt_pointer:
    .word 31
    .long 0xfffff000 + (rom_gdt - rom_start)
rom_gdt_pointer_in_ram:
    .word 31
    .long 0x1f000 + (rom_gdt - rom_start)
    .popsection
)");

extern "C" {
extern const std::uint8_t __start_rom_code[];
extern const std::uint8_t __stop_rom_code[];
}

namespace {

constexpr std::size_t rom_size = 0x1'0000;
constexpr std::uint64_t ram = 0x1'0000;
constexpr std::size_t table_at = 0xe000;  // Where to begin, then the workloads.
constexpr std::size_t start_at = 0xf000;
constexpr std::size_t reset_at = 0xfff0;

}  // namespace

std::vector<std::uint8_t> make_rom(std::span<const RomWorkload> workloads)
{
    const auto code_size = static_cast<std::size_t>(__stop_guest_code - __start_guest_code);
    const auto main_at = static_cast<std::uint64_t>(
        reinterpret_cast<const std::uint8_t*>(&guest_main) - __start_guest_code);
    const std::size_t table_size = sizeof main_at + (workloads.size() + 1) * sizeof(RomWorkload);
    if (code_size > table_at || table_at + table_size > start_at) {
        throw std::runtime_error("the guest's code does not fit into a ROM of 64 KiB");
    }
    std::vector<std::uint8_t> rom(rom_size);
    const auto put = [&rom](std::size_t at, const void* data, std::size_t size) {
        std::memcpy(rom.data() + at, data, size);
    };
    put(0, __start_guest_code, code_size);
    const std::uint64_t entry = ram + main_at;
    put(table_at, &entry, sizeof entry);
    std::size_t at = table_at + sizeof entry;
    for (RomWorkload each : workloads) {
        each.function += ram;
        put(at, &each, sizeof each);
        at += sizeof each;
    }
    put(start_at, __start_rom_code, static_cast<std::size_t>(__stop_rom_code - __start_rom_code));
    // jmp start_at
    constexpr auto distance = static_cast<std::uint16_t>(start_at - (reset_at + 3));
    const std::uint8_t jump[]{0xe9, static_cast<std::uint8_t>(distance & 0xffU),
                              static_cast<std::uint8_t>(distance >> 8U)};
    put(reset_at, jump, sizeof jump);
    return rom;
}
