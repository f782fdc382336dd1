// SPDX-License-Identifier: Apache-2.0

#include "x86/boot/linux_common.hpp"

#include <algorithm>
#include <array>

#include <fmt/format.h>

namespace vmm::boot {

std::string size_text(std::uint64_t bytes)
{
    constexpr std::uint64_t kib = 1024;
    constexpr std::uint64_t mib = 1024 * kib;
    const auto rounded_up = [bytes](std::uint64_t unit) {
        return bytes / unit + (bytes % unit != 0 ? 1 : 0);
    };
    if (bytes < kib) {
        return fmt::format("{} bytes", bytes);
    }
    if (bytes < mib) {
        return fmt::format("{} KiB", rounded_up(kib));
    }
    return fmt::format("{} MiB", rounded_up(mib));
}

Result<std::uint64_t> low_memory_end(std::uint64_t memory_bytes)
{
    VMM_TRY(const auto ranges, ram_ranges(memory_bytes));
    const auto end = ranges.front().size;
    if (end <= layout::high_memory.value()) {
        return Error{
            std::errc::not_enough_memory,
            fmt::format("kernel: the machine has {} of memory and a kernel is loaded above "
                        "1 MiB; give it more, 128 MiB suit a small Linux",
                        size_text(memory_bytes))};
    }
    return end;
}

Result<void> write_command_line(ImageWriter& memory, const std::string& text, std::uint64_t most)
{
    most = std::min(most, layout::command_line_bytes - 1);
    if (text.size() > most) {
        return Error{std::errc::argument_list_too_long,
                     fmt::format("command line: {} characters, and this kernel takes at most {}; "
                                 "shorten it",
                                 text.size(), most)};
    }
    if (text.find('\0') != std::string::npos) {
        return Error{std::errc::invalid_argument,
                     "command line: it contains a NUL character, which would end it; remove it"};
    }
    ByteTable line;
    line.append_text(text);
    line.append<std::uint8_t>(0);
    return memory.write(layout::command_line, line.bytes());
}

Result<Gpa> write_initrd(ImageWriter& memory,
                         const LinuxBoot& boot,
                         std::uint64_t kernel_end,
                         std::uint64_t last_allowed)
{
    if (boot.initrd.empty()) {
        return Gpa{0};
    }
    constexpr std::uint64_t page = 4096;
    VMM_TRY(auto end, low_memory_end(boot.memory_bytes));
    if (last_allowed < end) {
        end = last_allowed + 1;
    }
    const std::uint64_t size = boot.initrd.size();
    const auto first = size <= end ? (end - size) / page * page : 0;
    if (first < kernel_end) {
        return Error{
            std::errc::not_enough_memory,
            fmt::format("initrd: {} do not fit between the kernel, which needs the memory up to "
                        "{}, and {}, the highest this kernel takes of the machine's {}; give the "
                        "machine at least {} or take a smaller initrd",
                        size_text(size), size_text(kernel_end), size_text(end),
                        size_text(boot.memory_bytes), size_text(kernel_end + size + page))};
    }
    VMM_TRY_VOID(memory.write(Gpa{first}, boot.initrd));
    return Gpa{first};
}

Result<void> write_bios_data(ImageWriter& memory)
{
    ByteTable data{0x100};
    data.put<std::uint16_t>(0x0e,
                            static_cast<std::uint16_t>(layout::extended_bios_data.value() >> 4U));
    data.put<std::uint16_t>(0x13,
                            static_cast<std::uint16_t>(layout::extended_bios_data.value() / 1024));
    VMM_TRY_VOID(memory.write(layout::bios_data, data.bytes()));
    // Its first byte is its size in KiB.
    constexpr std::array<std::byte, 2> extended{std::byte{1}, std::byte{0}};
    return memory.write(layout::extended_bios_data, extended);
}

Result<void> write_zero_page(ImageWriter& memory, ByteTable page, const LinuxBoot& boot, Gpa initrd)
{
    // The screen information stays zero: no lines and no columns mean that there is no display.
    page.put<std::uint8_t>(zero_page::type_of_loader, loader_undefined);
    page.put<std::uint32_t>(zero_page::cmd_line_ptr,
                            static_cast<std::uint32_t>(layout::command_line.value()));
    // write_initrd() placed it below the hole.
    page.put<std::uint32_t>(zero_page::ramdisk_image, static_cast<std::uint32_t>(initrd.value()));
    page.put<std::uint32_t>(zero_page::ramdisk_size,
                            static_cast<std::uint32_t>(boot.initrd.size()));
    page.put<std::uint64_t>(zero_page::setup_data, 0);
    page.put<std::uint64_t>(zero_page::acpi_rsdp_addr, boot.rsdp.value_or(Gpa{0}).value());

    VMM_TRY(const auto map, e820_map(boot.memory_bytes));
    page.put<std::uint8_t>(zero_page::e820_entries, static_cast<std::uint8_t>(map.size()));
    std::size_t offset = zero_page::e820_table;
    for (const auto& entry : map) {
        page.put<std::uint64_t>(offset, entry.first.value());
        page.put<std::uint64_t>(offset + 8, entry.size);
        page.put<std::uint32_t>(offset + 16, static_cast<std::uint32_t>(entry.type));
        offset += 20;
    }
    return memory.write(layout::zero_page, page.bytes());
}

}  // namespace vmm::boot
