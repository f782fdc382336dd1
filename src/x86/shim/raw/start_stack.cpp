// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/raw/start_stack.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include <elf.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>

namespace vmm::shim::raw {
namespace {

constexpr std::uint64_t page = 4096;

/// As large as the kernel would let it grow.
std::uint64_t stack_size() noexcept
{
    constexpr std::uint64_t usual = std::uint64_t{8} << 20U;
    constexpr std::uint64_t most = std::uint64_t{1} << 30U;
    rlimit limit{};
    if (::getrlimit(RLIMIT_STACK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return usual;
    }
    return std::clamp<std::uint64_t>(limit.rlim_cur & ~(page - 1), usual, most);
}

/// Puts bytes below what is there already.
class Top {
public:
    explicit Top(std::uint64_t at) noexcept : at_{at} {}

    std::uint64_t push(const void* from, std::size_t size) noexcept
    {
        at_ -= size;
        // SAFETY: inside the stack; the caller's strings are shorter (the kernel saw to that).
        std::memcpy(reinterpret_cast<void*>(at_), from, size);
        return at_;
    }
    std::uint64_t push(const char* text) noexcept { return push(text, std::strlen(text) + 1); }
    void align(std::uint64_t to) noexcept { at_ &= ~(to - 1); }

private:
    std::uint64_t at_;
};

/// What the kernel has told us holds for the client too, but for what is about the program.
std::vector<Elf64_auxv_t> auxiliary_vector(const StartStack& what,
                                           std::uint64_t random,
                                           std::uint64_t path)
{
    std::vector<Elf64_auxv_t> all;
    const auto add = [&all](std::uint64_t type, std::uint64_t value) {
        Elf64_auxv_t entry{};
        entry.a_type = type;
        entry.a_un.a_val = value;
        all.push_back(entry);
    };
    for (const int each : {AT_SYSINFO_EHDR, AT_HWCAP, AT_PAGESZ, AT_CLKTCK, AT_FLAGS, AT_UID,
                           AT_EUID, AT_GID, AT_EGID, AT_SECURE, AT_HWCAP2, AT_PLATFORM}) {
        errno = 0;
        const std::uint64_t value = ::getauxval(static_cast<unsigned long>(each));
        if (errno == 0) {
            add(static_cast<std::uint64_t>(each), value);
        }
    }
    // A frame of ours may come below one of the client's signals.
    if (const std::uint64_t least = ::getauxval(AT_MINSIGSTKSZ); least != 0) {
        add(AT_MINSIGSTKSZ, 2 * least);
    }
    add(AT_PHDR, what.program.program_headers);
    add(AT_PHENT, sizeof(Elf64_Phdr));
    add(AT_PHNUM, what.program.program_header_count);
    add(AT_BASE, what.interpreter_base);
    add(AT_ENTRY, what.program.entry);
    add(AT_RANDOM, random);
    add(AT_EXECFN, path);
    add(AT_NULL, 0);
    return all;
}

}  // namespace

Result<std::uint64_t> make_stack(const StartStack& what)
{
    const std::uint64_t size = stack_size();
    const int protection =
        PROT_READ | PROT_WRITE | (what.program.has_executable_stack ? PROT_EXEC : 0);
    void* const area = ::mmap(nullptr, size, protection,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (area == MAP_FAILED) {
        return Error::from_errno("make the program's stack");
    }
    ::mprotect(area, page, PROT_NONE);

    Top top{reinterpret_cast<std::uint64_t>(area) + size};
    const std::uint64_t path = top.push(what.path);
    constexpr std::size_t random_size = 16;
    std::array<std::byte, random_size> random{};
    if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
        return Error::from_errno("get random numbers");
    }
    top.align(random_size);
    const std::uint64_t random_at = top.push(random.data(), random.size());

    std::vector<std::uint64_t> words{what.arguments.size()};
    for (const char* const each : what.arguments) {
        words.push_back(top.push(each));
    }
    words.push_back(0);
    for (char* const* each = what.environment; *each != nullptr; ++each) {
        words.push_back(top.push(*each));
    }
    words.push_back(0);
    for (const Elf64_auxv_t& each : auxiliary_vector(what, random_at, path)) {
        words.push_back(each.a_type);
        words.push_back(each.a_un.a_val);
    }
    // The end is to be aligned, so its start is chosen.
    constexpr std::uint64_t alignment = 16;
    if (words.size() % 2 != 0) {
        top.align(alignment);
        top.push("\0\0\0\0\0\0\0", sizeof(std::uint64_t));
    } else {
        top.align(alignment);
    }
    return top.push(words.data(), words.size() * sizeof(std::uint64_t));
}

}  // namespace vmm::shim::raw
