// SPDX-License-Identifier: Apache-2.0

#include "elf_kind.hpp"

#include <cstring>

#include <elf.h>
#include <fcntl.h>
#include <unistd.h>

#include "vmm/unique_fd.hpp"

namespace {

template <typename T>
bool read_at(const vmm::UniqueFd& file, std::uint64_t offset, T& to)
{
    return ::pread(file.get(), &to, sizeof to, static_cast<off_t>(offset)) ==
           static_cast<ssize_t>(sizeof to);
}

}  // namespace

ElfKind elf_kind(const std::filesystem::path& program)
{
    const vmm::UniqueFd file{::open(program.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!file) {
        return ElfKind::Unreadable;
    }
    Elf64_Ehdr header{};
    if (!read_at(file, 0, header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
        return ElfKind::NotElf;
    }
    if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64) {
        return ElfKind::Foreign;
    }
    for (unsigned i = 0; i < header.e_phnum; ++i) {
        Elf64_Phdr segment{};
        if (!read_at(file, header.e_phoff + std::uint64_t{i} * header.e_phentsize, segment)) {
            break;
        }
        if (segment.p_type == PT_INTERP) {
            return ElfKind::Dynamic;
        }
    }
    return ElfKind::Static;
}
