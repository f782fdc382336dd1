// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "vmm/boot/linux.hpp"
#include "x86/boot/linux_common.hpp"

namespace vmm::boot {
namespace {

// System V ABI, "Object Files": the identification, the two classes' headers.
constexpr std::uint32_t elf_magic = 0x464c'457f;
constexpr std::uint8_t class32 = 1;
constexpr std::uint8_t class64 = 2;
constexpr std::uint8_t little_endian = 1;
constexpr std::uint16_t type_executable = 2;
constexpr std::uint16_t type_shared = 3;
constexpr std::uint16_t machine_386 = 3;
constexpr std::uint16_t machine_x86_64 = 62;
constexpr std::uint32_t segment_load = 1;
constexpr std::uint32_t segment_note = 4;

// "x86/HVM direct boot ABI".
constexpr std::uint32_t note_phys32_entry = 18;
constexpr std::uint32_t start_info_magic = 0x336e'c578;

constexpr std::uint64_t elf_cmdline_most = 2047;  // Linux's COMMAND_LINE_SIZE, less the NUL.
constexpr std::uint64_t elf_initrd_last = 0x7fff'ffff;

struct LoadSegment {
    std::uint32_t type{};
    std::uint64_t offset{};
    std::uint64_t paddr{};
    std::uint64_t file_bytes{};
    std::uint64_t memory_bytes{};
};

struct Image {
    bool is_64{};
    std::uint64_t entry{};
    std::vector<LoadSegment> loads{};
    std::optional<std::uint64_t> pvh_entry{};
    std::uint64_t first{};  ///< Lowest address of the loads.
    std::uint64_t end{};    ///< One past their highest.
};

Error broken(std::string_view what)
{
    return Error{std::errc::executable_format_error,
                 fmt::format("kernel: broken ELF image: {}; copy or build it again", what)};
}

Error wrong_kind(std::string_view found)
{
    return Error{
        std::errc::executable_format_error,
        fmt::format("kernel: {}; a Linux bzImage (vmlinuz) or an ELF vmlinux for x86 would "
                    "work",
                    found)};
}

/// The fields of the ELF header that matter, or why the image cannot be loaded.
struct FileHeader {
    bool is_64{};
    std::uint64_t entry{};
    std::uint64_t table{};
    std::uint16_t entry_bytes{};
    std::uint16_t count{};
};

Result<FileHeader> parse_file_header(std::span<const std::byte> file)
{
    if (read_le<std::uint32_t>(file, 0) != elf_magic) {
        return wrong_kind("not an ELF image");
    }
    const auto elf_class = read_le<std::uint8_t>(file, 4).value_or(0);
    if (elf_class != class32 && elf_class != class64) {
        return broken(fmt::format("class {}, neither 32 nor 64 bits", elf_class));
    }
    FileHeader header;
    header.is_64 = elf_class == class64;
    if (file.size() < (header.is_64 ? 64U : 52U)) {
        return broken(fmt::format("truncated after {} bytes", file.size()));
    }
    if (read_le<std::uint8_t>(file, 5) != little_endian) {
        return wrong_kind("a big-endian ELF image");
    }
    const auto type = read_le<std::uint16_t>(file, 16).value_or(0);
    if (type != type_executable && type != type_shared) {
        return wrong_kind(fmt::format("an ELF image of type {} and no executable", type));
    }
    const auto machine = read_le<std::uint16_t>(file, 18).value_or(0);
    if (machine != (header.is_64 ? machine_x86_64 : machine_386)) {
        return wrong_kind(fmt::format("an ELF image for machine {}", machine));
    }
    if (header.is_64) {
        header.entry = read_le<std::uint64_t>(file, 24).value_or(0);
        header.table = read_le<std::uint64_t>(file, 32).value_or(0);
        header.entry_bytes = read_le<std::uint16_t>(file, 54).value_or(0);
        header.count = read_le<std::uint16_t>(file, 56).value_or(0);
    } else {
        header.entry = read_le<std::uint32_t>(file, 24).value_or(0);
        header.table = read_le<std::uint32_t>(file, 28).value_or(0);
        header.entry_bytes = read_le<std::uint16_t>(file, 42).value_or(0);
        header.count = read_le<std::uint16_t>(file, 44).value_or(0);
    }
    const std::uint16_t expected = header.is_64 ? 56 : 32;
    if (header.entry_bytes != expected) {
        return broken(
            fmt::format("program headers of {} bytes instead of {}", header.entry_bytes, expected));
    }
    const auto table_bytes = std::uint64_t{header.count} * expected;
    if (header.table > file.size() || file.size() - header.table < table_bytes) {
        return broken(fmt::format("{} program headers at {:#x} in a file of {} bytes", header.count,
                                  header.table, file.size()));
    }
    return header;
}

LoadSegment parse_segment(std::span<const std::byte> file, const FileHeader& header, unsigned index)
{
    const auto at = header.table + std::uint64_t{index} * header.entry_bytes;
    LoadSegment segment;
    segment.type = read_le<std::uint32_t>(file, at).value_or(0);
    if (header.is_64) {
        segment.offset = read_le<std::uint64_t>(file, at + 8).value_or(0);
        segment.paddr = read_le<std::uint64_t>(file, at + 24).value_or(0);
        segment.file_bytes = read_le<std::uint64_t>(file, at + 32).value_or(0);
        segment.memory_bytes = read_le<std::uint64_t>(file, at + 40).value_or(0);
    } else {
        segment.offset = read_le<std::uint32_t>(file, at + 4).value_or(0);
        segment.paddr = read_le<std::uint32_t>(file, at + 12).value_or(0);
        segment.file_bytes = read_le<std::uint32_t>(file, at + 16).value_or(0);
        segment.memory_bytes = read_le<std::uint32_t>(file, at + 20).value_or(0);
    }
    return segment;
}

Result<std::span<const std::byte>> contents(std::span<const std::byte> file,
                                            const LoadSegment& segment,
                                            unsigned index)
{
    if (segment.offset > file.size() || file.size() - segment.offset < segment.file_bytes) {
        return broken(fmt::format("segment {} has {} bytes at {:#x} and the file ends at {:#x}",
                                  index, segment.file_bytes, segment.offset, file.size()));
    }
    return file.subspan(static_cast<std::size_t>(segment.offset),
                        static_cast<std::size_t>(segment.file_bytes));
}

/// The 32-bit entry that a Xen note gives, if there is one.  A note that does not parse ends the
/// search: other notes are none of ours.
std::optional<std::uint64_t> find_pvh_entry(std::span<const std::byte> notes)
{
    const auto padded = [](std::uint64_t size) { return (size + 3) / 4 * 4; };
    std::uint64_t at = 0;
    while (true) {
        const auto name_bytes = read_le<std::uint32_t>(notes, at);
        const auto content_bytes = read_le<std::uint32_t>(notes, at + 4);
        const auto type = read_le<std::uint32_t>(notes, at + 8);
        if (!name_bytes || !content_bytes || !type) {
            return std::nullopt;
        }
        constexpr std::uint32_t xen_name = 0x006e'6558;  // "Xen"
        const auto name_at = at + 12;
        const auto content_at = name_at + padded(*name_bytes);
        if (*type == note_phys32_entry && *name_bytes == 4 &&
            read_le<std::uint32_t>(notes, name_at) == xen_name) {
            if (*content_bytes == 4) {
                return read_le<std::uint32_t>(notes, content_at);
            }
            return *content_bytes == 8 ? read_le<std::uint64_t>(notes, content_at) : std::nullopt;
        }
        at = content_at + padded(*content_bytes);
    }
}

/// Whether `segment` may be loaded into a machine whose low RAM ends at `low_end`.
Result<void> check_load(const LoadSegment& segment, unsigned index, std::uint64_t low_end)
{
    if (segment.file_bytes > segment.memory_bytes) {
        return broken(fmt::format("segment {} has {} bytes in the file and {} in memory", index,
                                  segment.file_bytes, segment.memory_bytes));
    }
    if (segment.paddr < layout::high_memory.value()) {
        return wrong_kind(fmt::format("segment {} of the ELF image belongs at gpa {:#x}, below "
                                      "1 MiB, where the boot data lies",
                                      index, segment.paddr));
    }
    if (segment.paddr > low_end || low_end - segment.paddr < segment.memory_bytes) {
        return Error{std::errc::not_enough_memory,
                     fmt::format("kernel: segment {} takes {:#x} bytes at gpa {:#x} and the "
                                 "machine's low memory ends at {:#x}; give it more memory (up to "
                                 "3 GiB count here) or take a smaller kernel",
                                 index, segment.memory_bytes, segment.paddr, low_end)};
    }
    return success;
}

/// Sorts the loads and refuses overlaps; sets the image's extent.
Result<void> arrange(Image& image)
{
    if (image.loads.empty()) {
        return broken("no segment to load");
    }
    std::sort(image.loads.begin(), image.loads.end(),
              [](const LoadSegment& a, const LoadSegment& b) { return a.paddr < b.paddr; });
    for (std::size_t i = 1; i < image.loads.size(); ++i) {
        const auto& before = image.loads[i - 1];
        if (before.paddr + before.memory_bytes > image.loads[i].paddr) {
            return broken(fmt::format("two segments overlap at gpa {:#x}", image.loads[i].paddr));
        }
    }
    image.first = image.loads.front().paddr;
    image.end = image.loads.back().paddr + image.loads.back().memory_bytes;
    return success;
}

bool is_loaded(const Image& image, std::uint64_t address)
{
    return std::any_of(image.loads.begin(), image.loads.end(), [address](const LoadSegment& load) {
        return load.paddr <= address && address - load.paddr < load.memory_bytes;
    });
}

Result<Image> parse_image(std::span<const std::byte> file, std::uint64_t low_end)
{
    VMM_TRY(const auto header, parse_file_header(file));
    Image image;
    image.is_64 = header.is_64;
    image.entry = header.entry;
    for (unsigned i = 0; i < header.count; ++i) {
        const auto segment = parse_segment(file, header, i);
        if (segment.type == segment_load && segment.memory_bytes != 0) {
            VMM_TRY([[maybe_unused]] const auto bytes, contents(file, segment, i));
            VMM_TRY_VOID(check_load(segment, i, low_end));
            image.loads.push_back(segment);
        } else if (segment.type == segment_note && !image.pvh_entry) {
            VMM_TRY(const auto notes, contents(file, segment, i));
            image.pvh_entry = find_pvh_entry(notes);
        }
    }
    VMM_TRY_VOID(arrange(image));
    return image;
}

Result<void> write_segments(ImageWriter& memory,
                            std::span<const std::byte> file,
                            const Image& image)
{
    for (const auto& load : image.loads) {
        VMM_TRY_VOID(
            memory.write(Gpa{load.paddr}, file.subspan(static_cast<std::size_t>(load.offset),
                                                       static_cast<std::size_t>(load.file_bytes))));
        if (load.memory_bytes > load.file_bytes) {
            VMM_TRY_VOID(memory.zero(Gpa{load.paddr + load.file_bytes},
                                     load.memory_bytes - load.file_bytes));
        }
    }
    return success;
}

/// hvm_start_info version 1, its one module and its memory map, one behind the other.
Result<void> write_start_info(ImageWriter& memory, const LinuxBoot& boot, Gpa initrd)
{
    VMM_TRY(const auto map, e820_map(boot.memory_bytes));
    constexpr std::uint64_t info_bytes = 56;
    constexpr std::uint64_t module_bytes = 32;
    const auto modules = layout::pvh_start_info.value() + 64;
    const auto memory_map = modules + module_bytes;
    const bool has_initrd = !boot.initrd.empty();

    ByteTable info;
    info.append<std::uint32_t>(start_info_magic);
    info.append<std::uint32_t>(1);  // Version.
    info.append<std::uint32_t>(0);  // Flags.
    info.append<std::uint32_t>(has_initrd ? 1 : 0);
    info.append<std::uint64_t>(has_initrd ? modules : 0);
    info.append<std::uint64_t>(layout::command_line.value());
    info.append<std::uint64_t>(boot.rsdp.value_or(Gpa{0}).value());
    info.append<std::uint64_t>(memory_map);
    info.append<std::uint32_t>(static_cast<std::uint32_t>(map.size()));
    info.append<std::uint32_t>(0);
    static_assert(info_bytes <= 64);
    info.pad_to(64);
    info.append<std::uint64_t>(initrd.value());
    info.append<std::uint64_t>(boot.initrd.size());
    info.append<std::uint64_t>(0);  // No command line of its own.
    info.append<std::uint64_t>(0);
    for (const auto& entry : map) {
        info.append<std::uint64_t>(entry.first.value());
        info.append<std::uint64_t>(entry.size);
        info.append<std::uint32_t>(static_cast<std::uint32_t>(entry.type));
        info.append<std::uint32_t>(0);
    }
    return memory.write(layout::pvh_start_info, info.bytes());
}

Result<void> write_elf_zero_page(ImageWriter& memory, const LinuxBoot& boot, Gpa initrd)
{
    namespace at = zero_page;
    // There is no setup header to copy: what a boot loader would have found in it.
    ByteTable page{at::bytes};
    page.put<std::uint16_t>(at::boot_flag, boot_flag_magic);
    page.put<std::uint32_t>(at::header_magic, header_magic_value);
    page.put<std::uint16_t>(at::version, 0x020f);
    page.put<std::uint8_t>(at::loadflags, 1);
    page.put<std::uint16_t>(at::vid_mode, 0xffff);
    page.put<std::uint32_t>(at::kernel_alignment, 0x100'0000);
    page.put<std::uint32_t>(at::initrd_addr_max, elf_initrd_last);
    page.put<std::uint32_t>(at::cmdline_size, elf_cmdline_most);
    return write_zero_page(memory, std::move(page), boot, initrd);
}

/// The address at which `image` is to be entered, and how.
struct Entry {
    bool pvh{};
    EntryMode mode{EntryMode::Protected32Flat};
    std::uint64_t address{};
};

Result<Entry> choose_entry(const Image& image, KernelEntry wanted)
{
    Entry entry;
    switch (wanted) {
    case KernelEntry::Automatic: entry.pvh = image.pvh_entry.has_value(); break;
    case KernelEntry::Elf: break;
    case KernelEntry::Pvh:
        if (!image.pvh_entry) {
            return Error{std::errc::invalid_argument,
                         "kernel: this ELF image has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY); build "
                         "it with CONFIG_PVH=y or take its ELF entry"};
        }
        entry.pvh = true;
        break;
    case KernelEntry::Protected32:
    case KernelEntry::Long64:
        return Error{std::errc::invalid_argument,
                     "kernel: an ELF image has no bzImage entry; take its ELF or PVH entry"};
    }
    entry.address = entry.pvh ? image.pvh_entry.value_or(0) : image.entry;
    if (!entry.pvh && image.is_64) {
        entry.mode = EntryMode::Long64;
    }
    if (!is_loaded(image, entry.address)) {
        return broken(fmt::format("its entry point {:#x} lies in no segment", entry.address));
    }
    return entry;
}

}  // namespace

Result<LoadedKernel> load_elf(ImageWriter& memory, const LinuxBoot& boot)
{
    VMM_TRY(const auto low_end, low_memory_end(boot.memory_bytes));
    VMM_TRY(const auto image, parse_image(boot.kernel, low_end));
    VMM_TRY(const auto entry, choose_entry(image, boot.entry));

    LoadedKernel loaded;
    loaded.kernel = Gpa{image.first};
    loaded.kernel_end = image.end;
    VMM_TRY_VOID(write_command_line(memory, boot.command_line, elf_cmdline_most));
    VMM_TRY(loaded.initrd, write_initrd(memory, boot, image.end, elf_initrd_last));
    VMM_TRY_VOID(write_bios_data(memory));
    VMM_TRY_VOID(write_segments(memory, boot.kernel, image));

    if (entry.mode == EntryMode::Long64) {
        VMM_TRY(loaded.entry, enter_long64(memory, Gpa{entry.address}));
    } else {
        VMM_TRY(loaded.entry, enter_protected32(memory, Gpa{entry.address}));
    }
    if (entry.pvh) {
        VMM_TRY_VOID(write_start_info(memory, boot, loaded.initrd));
        loaded.entry.regs.rbx = layout::pvh_start_info.value();
    } else {
        VMM_TRY_VOID(write_elf_zero_page(memory, boot, loaded.initrd));
        loaded.entry.regs.rsi = layout::zero_page.value();
    }
    return loaded;
}

}  // namespace vmm::boot
