// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "vmm/boot/linux.hpp"
#include "x86/boot/linux_common.hpp"

namespace vmm::boot {
namespace {

constexpr std::uint64_t sector = 512;
constexpr std::uint16_t oldest_version = 0x0206;
constexpr std::uint16_t version_with_init_size = 0x020a;
constexpr std::uint16_t version_with_xloadflags = 0x020c;
constexpr std::uint8_t loaded_high = 1U << 0U;
constexpr std::uint8_t can_use_heap = 1U << 7U;
constexpr std::uint16_t xlf_kernel_64 = 1U << 0U;
constexpr std::uint64_t entry64_offset = 0x200;

struct Header {
    std::uint16_t version{};
    std::uint8_t loadflags{};
    std::uint16_t xloadflags{};
    std::uint64_t setup_bytes{};    ///< The real-mode part, boot sector included.
    std::uint64_t payload_bytes{};  ///< The protected-mode part.
    std::uint64_t initrd_addr_max{};
    std::uint64_t cmdline_size{};
    std::uint64_t load{};       ///< Where the payload goes.
    std::uint64_t init_size{};  ///< What it claims from there on, before it reads the memory map.
};

Error not_a_kernel(std::string_view found)
{
    return Error{
        std::errc::executable_format_error,
        fmt::format("kernel: {}; a Linux bzImage (vmlinuz) or an ELF vmlinux would work", found)};
}

Error truncated(std::uint64_t found, std::uint64_t expected)
{
    return Error{std::errc::executable_format_error,
                 fmt::format("kernel: the bzImage is truncated: it has {} bytes and its header "
                             "speaks of {}; copy or download it again",
                             found, expected)};
}

/// The field at `offset`, which `parse_header()` has checked to be inside the file.
template <typename T>
T field(std::span<const std::byte> kernel, std::size_t offset)
{
    return read_le<T>(kernel, offset).value_or(0);
}

Result<Header> parse_header(std::span<const std::byte> kernel)
{
    namespace at = zero_page;
    if (kernel.size() < at::version + 2) {
        return not_a_kernel(
            fmt::format("the file has {} bytes, less than a kernel's header", kernel.size()));
    }
    if (field<std::uint16_t>(kernel, at::boot_flag) != boot_flag_magic ||
        field<std::uint32_t>(kernel, at::header_magic) != header_magic_value) {
        return not_a_kernel("the file has no Linux setup header (\"HdrS\" at 0x202)");
    }
    Header header;
    header.version = field<std::uint16_t>(kernel, at::version);
    if (header.version < oldest_version) {
        return Error{std::errc::executable_format_error,
                     fmt::format("kernel: boot protocol {}.{:02}; at least 2.06 (Linux 2.6.22) is "
                                 "needed, take a newer kernel",
                                 header.version >> 8U, header.version & 0xffU)};
    }
    if (kernel.size() < at::header_limit) {
        return truncated(kernel.size(), at::header_limit);
    }
    header.loadflags = field<std::uint8_t>(kernel, at::loadflags);
    if ((header.loadflags & loaded_high) == 0) {
        return Error{std::errc::executable_format_error,
                     "kernel: a zImage, which is loaded below 1 MiB; build a bzImage"};
    }
    const auto sectors = field<std::uint8_t>(kernel, at::setup_sects);
    header.setup_bytes = ((sectors == 0 ? 4U : sectors) + 1U) * sector;
    header.payload_bytes = std::uint64_t{field<std::uint32_t>(kernel, at::syssize)} * 16;
    const auto expected = header.setup_bytes + header.payload_bytes;
    if (kernel.size() < expected) {
        return truncated(kernel.size(), expected);
    }
    if (header.payload_bytes == 0) {
        return not_a_kernel("the bzImage's header speaks of 0 bytes of code (syssize)");
    }
    header.initrd_addr_max = field<std::uint32_t>(kernel, at::initrd_addr_max);
    header.cmdline_size = field<std::uint32_t>(kernel, at::cmdline_size);
    header.load = layout::high_memory.value();
    header.init_size = header.payload_bytes;
    if (header.version >= version_with_init_size) {
        // A kernel that is loaded lower would move itself up to here: there is no use in trying.
        header.load = field<std::uint64_t>(kernel, at::pref_address);
        header.init_size =
            std::max<std::uint64_t>(header.init_size, field<std::uint32_t>(kernel, at::init_size));
    }
    if (header.version >= version_with_xloadflags) {
        header.xloadflags = field<std::uint16_t>(kernel, at::xloadflags);
    }
    return header;
}

/// Where the kernel ends, if the machine has room for it.
Result<std::uint64_t> check_room(const Header& header, std::uint64_t memory_bytes)
{
    VMM_TRY(const auto end, low_memory_end(memory_bytes));
    if (header.load < layout::high_memory.value() || header.load >= ram_hole_begin.value()) {
        return not_a_kernel(fmt::format("the bzImage asks to be loaded at {:#x}, outside of 1 MiB "
                                        "to 3 GiB (pref_address)",
                                        header.load));
    }
    // Neither sum can wrap: the load address is below 3 GiB and the size has 36 bits at most.
    const auto kernel_end = header.load + header.init_size;
    if (kernel_end > end) {
        return Error{std::errc::not_enough_memory,
                     fmt::format("kernel: it needs the memory up to {} and the machine has {}; "
                                 "{}",
                                 size_text(kernel_end), size_text(memory_bytes),
                                 kernel_end > ram_hole_begin.value()
                                     ? "no kernel can use more than 3 GiB here, take a smaller one"
                                     : "give it more memory")};
    }
    return kernel_end;
}

Result<EntryMode> choose_entry(const Header& header, KernelEntry wanted)
{
    const bool has64 = (header.xloadflags & xlf_kernel_64) != 0;
    switch (wanted) {
    case KernelEntry::Automatic: return has64 ? EntryMode::Long64 : EntryMode::Protected32Flat;
    case KernelEntry::Protected32: return EntryMode::Protected32Flat;
    case KernelEntry::Long64:
        if (!has64) {
            return Error{std::errc::invalid_argument,
                         "kernel: this bzImage has no 64-bit entry (XLF_KERNEL_64); take the "
                         "32-bit one"};
        }
        return EntryMode::Long64;
    case KernelEntry::Pvh:
    case KernelEntry::Elf: break;
    }
    return Error{std::errc::invalid_argument,
                 "kernel: a bzImage has no ELF and no PVH entry; take the 64-bit or 32-bit one, or "
                 "an uncompressed vmlinux"};
}

}  // namespace

Result<LoadedKernel> load_bzimage(ImageWriter& memory, const LinuxBoot& boot)
{
    namespace at = zero_page;
    VMM_TRY(const auto header, parse_header(boot.kernel));
    VMM_TRY(const auto mode, choose_entry(header, boot.entry));
    VMM_TRY(const auto kernel_end, check_room(header, boot.memory_bytes));

    LoadedKernel loaded;
    loaded.kernel = Gpa{header.load};
    loaded.kernel_end = kernel_end;
    VMM_TRY_VOID(write_command_line(memory, boot.command_line, header.cmdline_size));
    VMM_TRY(loaded.initrd, write_initrd(memory, boot, kernel_end, header.initrd_addr_max));
    VMM_TRY_VOID(write_bios_data(memory));
    VMM_TRY_VOID(memory.write(loaded.kernel,
                              boot.kernel.subspan(static_cast<std::size_t>(header.setup_bytes),
                                                  static_cast<std::size_t>(header.payload_bytes))));

    // The header, up to where its own jump instruction says that it ends; all else zero.
    const std::size_t header_end = std::min<std::size_t>(
        at::header_magic + field<std::uint8_t>(boot.kernel, at::jump_length), at::header_limit);
    ByteTable page{at::bytes};
    for (std::size_t i = at::setup_sects; i < header_end; ++i) {
        page.put<std::uint8_t>(i, std::to_integer<std::uint8_t>(boot.kernel[i]));
    }
    page.put<std::uint8_t>(at::loadflags,
                           static_cast<std::uint8_t>(header.loadflags & ~can_use_heap));
    page.put<std::uint16_t>(at::heap_end_ptr, 0);
    page.put<std::uint16_t>(at::vid_mode, 0xffff);  // "normal"
    page.put<std::uint32_t>(at::code32_start, static_cast<std::uint32_t>(header.load));
    VMM_TRY_VOID(write_zero_page(memory, std::move(page), boot, loaded.initrd));

    if (mode == EntryMode::Long64) {
        VMM_TRY(loaded.entry, enter_long64(memory, Gpa{header.load + entry64_offset}));
    } else {
        VMM_TRY(loaded.entry, enter_protected32(memory, loaded.kernel));
    }
    loaded.entry.regs.rsi = layout::zero_page.value();
    return loaded;
}

Result<LoadedKernel> load_linux(ImageWriter& memory, const LinuxBoot& boot)
{
    constexpr std::uint32_t elf_magic = 0x464c'457f;
    if (read_le<std::uint32_t>(boot.kernel, 0) == elf_magic) {
        return load_elf(memory, boot);
    }
    return load_bzimage(memory, boot);
}

}  // namespace vmm::boot
