// SPDX-License-Identifier: Apache-2.0

/// @file
/// Hooks: opening `/dev/kvm`.

#include <cstdarg>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>

#include "x86/shim/library_scope.hpp"
#include "x86/shim/preload/hooks.hpp"
#include "x86/shim/preload/next.hpp"
#include "x86/shim/system_file.hpp"

namespace vmm::shim::preload {

bool is_kvm(const char* path) noexcept
{
    return path != nullptr && std::strcmp(path, "/dev/kvm") == 0 && !LibraryScope::is_inside();
}

int to_libc(long result) noexcept
{
    if (result < 0) {
        errno = static_cast<int>(-result);
        return -1;
    }
    return static_cast<int>(result);
}

namespace {

using OpenFunction = int(const char*, int, ...);
using OpenatFunction = int(int, const char*, int, ...);
using CheckedOpen = int(const char*, int);
using CheckedOpenat = int(int, const char*, int);

constinit Next<OpenFunction> next_open{"open"};
constinit Next<OpenFunction> next_open64{"open64"};
constinit Next<OpenatFunction> next_openat{"openat"};
constinit Next<OpenatFunction> next_openat64{"openat64"};
constinit Next<CheckedOpen> next_open_2{"__open_2"};
constinit Next<CheckedOpen> next_open64_2{"__open64_2"};
constinit Next<CheckedOpenat> next_openat_2{"__openat_2"};
constinit Next<CheckedOpenat> next_openat64_2{"__openat64_2"};

int open_kvm(int flags) noexcept
{
    return to_libc(open_system((flags & O_CLOEXEC) != 0));
}

/// The mode that follows the flags, if they say that there is one.
mode_t mode_of(int flags, va_list arguments) noexcept
{
    const bool has_mode = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
    return has_mode ? va_arg(arguments, mode_t) : 0;
}

}  // namespace
}  // namespace vmm::shim::preload

using namespace vmm::shim::preload;

// NOLINTBEGIN(cert-dcl50-cpp, bugprone-reserved-identifier): the C library's names.
extern "C" {

VMM_HOOK int open(const char* path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return is_kvm(path) ? open_kvm(flags) : next_open.get()(path, flags, mode);
}

VMM_HOOK int open64(const char* path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return is_kvm(path) ? open_kvm(flags) : next_open64.get()(path, flags, mode);
}

VMM_HOOK int openat(int directory, const char* path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return is_kvm(path) ? open_kvm(flags) : next_openat.get()(directory, path, flags, mode);
}

VMM_HOOK int openat64(int directory, const char* path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    const mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return is_kvm(path) ? open_kvm(flags) : next_openat64.get()(directory, path, flags, mode);
}

VMM_HOOK int __open_2(const char* path, int flags)
{
    return is_kvm(path) ? open_kvm(flags) : next_open_2.get()(path, flags);
}

VMM_HOOK int __open64_2(const char* path, int flags)
{
    return is_kvm(path) ? open_kvm(flags) : next_open64_2.get()(path, flags);
}

VMM_HOOK int __openat_2(int directory, const char* path, int flags)
{
    return is_kvm(path) ? open_kvm(flags) : next_openat_2.get()(directory, path, flags);
}

VMM_HOOK int __openat64_2(int directory, const char* path, int flags)
{
    return is_kvm(path) ? open_kvm(flags) : next_openat64_2.get()(directory, path, flags);
}

}  // extern "C"
// NOLINTEND(cert-dcl50-cpp, bugprone-reserved-identifier)
