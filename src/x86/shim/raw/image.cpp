// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/raw/image.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/unique_fd.hpp"

namespace vmm::shim::raw {
namespace {

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t user_end = 0x0000'7fff'ffff'f000;

std::uint64_t down(std::uint64_t address) noexcept
{
    return address & ~(page - 1);
}
std::uint64_t up(std::uint64_t address) noexcept
{
    return down(address + page - 1);
}

// SAFETY of what follows: the addresses are those of mappings made here.
void* pointer(std::uint64_t address) noexcept
{
    return reinterpret_cast<void*>(address);
}

class Loader {
public:
    explicit Loader(const std::string& path) noexcept : path_{path} {}

    [[nodiscard]] Result<Image> load();

private:
    [[nodiscard]] Error bad(const char* what) const
    {
        return Error{std::errc::executable_format_error, path_ + ": " + what};
    }
    [[nodiscard]] Error failed(const char* what) const
    {
        return Error::from_errno(what + (' ' + path_));
    }
    [[nodiscard]] bool read(std::uint64_t at, void* to, std::size_t size) const noexcept
    {
        return ::pread(file_.get(), to, size, static_cast<off_t>(at)) == static_cast<ssize_t>(size);
    }

    [[nodiscard]] Result<void> read_headers();
    [[nodiscard]] Result<void> read_notes(const Elf64_Phdr& segment) const;
    /// Takes the addresses from the first segment to the last.
    [[nodiscard]] Result<void> reserve();
    [[nodiscard]] Result<void> map(const Elf64_Phdr& segment) const;

    const std::string& path_;
    UniqueFd file_;
    Elf64_Ehdr header_{};
    std::vector<Elf64_Phdr> segments_;
    Image image_;
};

Result<void> Loader::read_headers()
{
    if (!read(0, &header_, sizeof header_) || std::memcmp(header_.e_ident, ELFMAG, SELFMAG) != 0 ||
        header_.e_ident[EI_CLASS] != ELFCLASS64 || header_.e_machine != EM_X86_64 ||
        (header_.e_type != ET_EXEC && header_.e_type != ET_DYN)) {
        return bad("is no ELF program for x86-64");
    }
    if (header_.e_phentsize != sizeof(Elf64_Phdr) || header_.e_phnum == 0) {
        return bad("has no program headers");
    }
    segments_.resize(header_.e_phnum);
    if (!read(header_.e_phoff, segments_.data(), segments_.size() * sizeof(Elf64_Phdr))) {
        return bad("ends within its program headers");
    }
    for (const Elf64_Phdr& each : segments_) {
        if (each.p_type == PT_LOAD &&
            (each.p_vaddr > user_end || each.p_memsz > user_end - each.p_vaddr ||
             each.p_filesz > each.p_memsz || (each.p_vaddr - each.p_offset) % page != 0)) {
            return bad("has a segment that cannot be mapped");
        }
        if (each.p_type == PT_NOTE) {
            VMM_TRY_VOID(read_notes(each));
        }
        if (each.p_type == PT_GNU_STACK) {
            image_.has_executable_stack = (each.p_flags & PF_X) != 0;
        }
        constexpr std::size_t longest_path = 4096;
        if (each.p_type == PT_INTERP && each.p_filesz > 1 && each.p_filesz <= longest_path) {
            image_.interpreter.resize(each.p_filesz - 1);
            if (!read(each.p_offset, image_.interpreter.data(), image_.interpreter.size())) {
                return bad("ends within its interpreter's name");
            }
        }
    }
    return success;
}

Result<void> Loader::read_notes(const Elf64_Phdr& segment) const
{
    struct {
        Elf64_Nhdr header;
        char name[4];
    } first{};
    if (segment.p_filesz >= sizeof first && read(segment.p_offset, &first, sizeof first) &&
        first.header.n_namesz == sizeof first.name && std::memcmp(first.name, "Go\0", 4) == 0) {
        return bad("is a Go program, whose stacks have no room for a signal: it cannot be reached");
    }
    return success;
}

Result<void> Loader::reserve()
{
    std::uint64_t first = user_end;
    std::uint64_t last = 0;
    std::uint64_t alignment = page;
    for (const Elf64_Phdr& each : segments_) {
        if (each.p_type == PT_LOAD) {
            first = std::min(first, down(each.p_vaddr));
            last = std::max(last, up(each.p_vaddr + each.p_memsz));
            alignment = std::max(alignment, each.p_align);
        }
    }
    constexpr std::uint64_t most_alignment = std::uint64_t{1} << 30U;
    if (first >= last || alignment > most_alignment || (alignment & (alignment - 1)) != 0) {
        return bad("has no segment that can be loaded");
    }
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (header_.e_type == ET_EXEC) {
        void* const at =
            ::mmap(pointer(first), last - first, PROT_NONE, flags | MAP_FIXED_NOREPLACE, -1, 0);
        return at == MAP_FAILED ? Result<void>{failed("place")} : Result<void>{success};
    }
    const std::uint64_t size = last - first + alignment;
    void* const area = ::mmap(nullptr, size, PROT_NONE, flags, -1, 0);
    if (area == MAP_FAILED) {
        return failed("place");
    }
    const auto start = reinterpret_cast<std::uint64_t>(area);
    const std::uint64_t at = (start + alignment - 1) & ~(alignment - 1);
    image_.base = at - (first & ~(alignment - 1));
    return success;
}

Result<void> Loader::map(const Elf64_Phdr& segment) const
{
    const int protection = ((segment.p_flags & PF_R) != 0 ? PROT_READ : 0) |
                           ((segment.p_flags & PF_W) != 0 ? PROT_WRITE : 0) |
                           ((segment.p_flags & PF_X) != 0 ? PROT_EXEC : 0);
    const std::uint64_t at = image_.base + segment.p_vaddr;
    const std::uint64_t file_end = at + segment.p_filesz;
    const std::uint64_t end = up(at + segment.p_memsz);
    const std::uint64_t in_page = at - down(at);
    std::uint64_t filled = down(at);
    if (segment.p_filesz != 0) {
        if (::mmap(pointer(down(at)), segment.p_filesz + in_page, protection,
                   MAP_PRIVATE | MAP_FIXED, file_.get(),
                   static_cast<off_t>(segment.p_offset - in_page)) == MAP_FAILED) {
            return failed("map");
        }
        filled = up(file_end);
        if (segment.p_memsz > segment.p_filesz && filled > file_end) {
            // The rest of the file's last page is memory of zeros.
            const std::uint64_t last_page = down(file_end);
            if (::mprotect(pointer(last_page), page, PROT_READ | PROT_WRITE) != 0) {
                return failed("map");
            }
            std::memset(pointer(file_end), 0, filled - file_end);
            ::mprotect(pointer(last_page), page, protection);
        }
    }
    if (end > filled && ::mmap(pointer(filled), end - filled, protection,
                               MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) {
        return failed("map");
    }
    return success;
}

Result<Image> Loader::load()
{
    file_ = UniqueFd{::open(path_.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!file_) {
        return failed("open");
    }
    VMM_TRY_VOID(read_headers());
    VMM_TRY_VOID(reserve());
    for (const Elf64_Phdr& each : segments_) {
        if (each.p_type != PT_LOAD) {
            continue;
        }
        VMM_TRY_VOID(map(each));
        if (header_.e_phoff >= each.p_offset && header_.e_phoff - each.p_offset < each.p_filesz) {
            image_.program_headers = image_.base + each.p_vaddr + (header_.e_phoff - each.p_offset);
        }
    }
    image_.program_header_count = segments_.size();
    image_.entry = image_.base + header_.e_entry;
    return std::move(image_);
}

}  // namespace

Result<Image> load_image(const std::string& path)
{
    return Loader{path}.load();
}

}  // namespace vmm::shim::raw
