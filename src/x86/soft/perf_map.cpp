// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/perf_map.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>

#include <fcntl.h>
#include <unistd.h>

namespace vmm::x86::soft {

namespace {

/// Opened for each line: a child process has a file of its own, and lines of threads do not mix.
void append(const char* line, std::size_t size) noexcept
{
    std::array<char, 64> path{};
    std::snprintf(path.data(), path.size(), "/tmp/perf-%d.map", ::getpid());
    constexpr ::mode_t owner_only = 0600;
    const int file =
        ::open(path.data(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, owner_only);
    if (file < 0) {
        return;
    }
    static_cast<void>(!::write(file, line, size));
    ::close(file);
}

}  // namespace

void note_for_perf(const void* code, std::size_t size, std::uint64_t rip) noexcept
{
    static const bool is_wanted = std::getenv("VMM_PERF_MAP") != nullptr;
    if (!is_wanted) {
        return;
    }
    std::array<char, 96> line{};
    const int length =
        std::snprintf(line.data(), line.size(), "%llx %zx guest_%llx\n",
                      static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(code)), size,
                      static_cast<unsigned long long>(rip));
    if (length > 0) {
        append(line.data(), static_cast<std::size_t>(length));
    }
}

}  // namespace vmm::x86::soft
