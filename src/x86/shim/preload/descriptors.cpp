// SPDX-License-Identifier: Apache-2.0

/// @file
/// Hooks: what is done with descriptors.

#include <cstdarg>
#include <memory>

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "x86/shim/file.hpp"
#include "x86/shim/preload/hooks.hpp"
#include "x86/shim/preload/next.hpp"

namespace vmm::shim::preload {
namespace {

constinit Next<int(int, unsigned long, ...)> next_ioctl{"ioctl"};
constinit Next<int(int)> next_close{"close"};
constinit Next<int(unsigned, unsigned, int)> next_close_range{"close_range"};
constinit Next<void(int)> next_closefrom{"closefrom"};
constinit Next<int(int)> next_dup{"dup"};
constinit Next<int(int, int)> next_dup2{"dup2"};
constinit Next<int(int, int, int)> next_dup3{"dup3"};
constinit Next<int(int, int, ...)> next_fcntl{"fcntl"};
constinit Next<int(int, int, ...)> next_fcntl64{"fcntl64"};
constinit Next<ssize_t(int, void*, std::size_t)> next_read{"read"};
constinit Next<ssize_t(int, const iovec*, int)> next_readv{"readv"};
constinit Next<ssize_t(int, void*, std::size_t, off_t)> next_pread{"pread"};
constinit Next<ssize_t(int, const iovec*, int, off_t)> next_preadv{"preadv"};
constinit Next<ssize_t(int, void*, std::size_t, std::size_t)> next_read_chk{"__read_chk"};
constinit Next<ssize_t(int, void*, std::size_t, off_t, std::size_t)> next_pread_chk{"__pread_chk"};
constinit Next<void*(void*, std::size_t, int, int, int, off_t)> next_mmap{"mmap"};

int duplicated(int from, int to) noexcept
{
    if (to >= 0) {
        FileTable::instance().duplicate(from, to);
    }
    return to;
}

int after_fcntl(int fd, int command, int result) noexcept
{
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? duplicated(fd, result) : result;
}

/// Files of statistics have their numbers written when they are read.
void before_read(int fd) noexcept
{
    const auto file = FileTable::instance().find(fd);
    if (file != nullptr && file->is_of_this_process()) {
        file->about_to_read();
    }
}

void* map(void* at, std::size_t size, int protection, int flags, int fd, off_t offset) noexcept
{
    const auto file =
        (flags & MAP_ANONYMOUS) == 0 ? FileTable::instance().find(fd) : std::shared_ptr<File>{};
    if (file == nullptr) {
        return next_mmap.get()(at, size, protection, flags, fd, offset);
    }
    if (to_libc(file->may_map(size, protection, flags, offset)) != 0) {
        return MAP_FAILED;
    }
    void* const mapped = next_mmap.get()(at, size, protection, flags, fd, offset);
    if (mapped != MAP_FAILED) {
        file->mapped(mapped, size, protection, flags, offset);
    }
    return mapped;
}

}  // namespace
}  // namespace vmm::shim::preload

using namespace vmm::shim::preload;
using vmm::shim::FileTable;

extern "C" {

VMM_HOOK int close(int fd)
{
    FileTable::instance().remove(fd);
    return next_close.get()(fd);
}

VMM_HOOK int close_range(unsigned first, unsigned last, int flags) noexcept
{
    const int result = next_close_range.get()(first, last, flags);
    if (result == 0 && (static_cast<unsigned>(flags) & CLOSE_RANGE_CLOEXEC) == 0) {
        FileTable::instance().remove_range(first, last);
    }
    return result;
}

VMM_HOOK void closefrom(int first) noexcept
{
    next_closefrom.get()(first);
    FileTable::instance().remove_range(static_cast<unsigned>(first), ~0U);
}

VMM_HOOK int dup(int fd) noexcept
{
    return duplicated(fd, next_dup.get()(fd));
}

VMM_HOOK int dup2(int from, int to) noexcept
{
    return duplicated(from, next_dup2.get()(from, to));
}

VMM_HOOK int dup3(int from, int to, int flags) noexcept
{
    return duplicated(from, next_dup3.get()(from, to, flags));
}

VMM_HOOK int fcntl(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void* const argument = va_arg(arguments, void*);
    va_end(arguments);
    return after_fcntl(fd, command, next_fcntl.get()(fd, command, argument));
}

VMM_HOOK int fcntl64(int fd, int command, ...)
{
    va_list arguments;
    va_start(arguments, command);
    void* const argument = va_arg(arguments, void*);
    va_end(arguments);
    return after_fcntl(fd, command, next_fcntl64.get()(fd, command, argument));
}

VMM_HOOK ssize_t read(int fd, void* to, std::size_t size)
{
    before_read(fd);
    return next_read.get()(fd, to, size);
}

VMM_HOOK ssize_t readv(int fd, const iovec* to, int count)
{
    before_read(fd);
    return next_readv.get()(fd, to, count);
}

VMM_HOOK ssize_t pread(int fd, void* to, std::size_t size, off_t offset)
{
    before_read(fd);
    return next_pread.get()(fd, to, size, offset);
}

VMM_HOOK ssize_t pread64(int fd, void* to, std::size_t size, off64_t offset)
{
    before_read(fd);
    return next_pread.get()(fd, to, size, offset);
}

VMM_HOOK ssize_t preadv(int fd, const iovec* to, int count, off_t offset)
{
    before_read(fd);
    return next_preadv.get()(fd, to, count, offset);
}

// What the C library's headers make of the above where they know the size of the target.

VMM_HOOK ssize_t __read_chk(int fd, void* to, std::size_t size, std::size_t room)
{
    before_read(fd);
    return next_read_chk.get()(fd, to, size, room);
}

VMM_HOOK ssize_t __pread_chk(int fd, void* to, std::size_t size, off_t offset, std::size_t room)
{
    before_read(fd);
    return next_pread_chk.get()(fd, to, size, offset, room);
}

VMM_HOOK ssize_t __pread64_chk(int fd, void* to, std::size_t size, off64_t offset, std::size_t room)
{
    before_read(fd);
    return next_pread_chk.get()(fd, to, size, offset, room);
}

VMM_HOOK void* mmap(void* at,
                    std::size_t size,
                    int protection,
                    int flags,
                    int fd,
                    off_t offset) noexcept
{
    return map(at, size, protection, flags, fd, offset);
}

VMM_HOOK void* mmap64(void* at,
                      std::size_t size,
                      int protection,
                      int flags,
                      int fd,
                      off64_t offset) noexcept
{
    return map(at, size, protection, flags, fd, offset);
}

}  // extern "C"

/// Not by its own name: the C library's header says that it does not throw, and a thread that is
/// cancelled while it is in KVM_RUN leaves by unwinding.
extern "C" VMM_HOOK int hook_of_ioctl(int fd, unsigned long request, ...) asm("ioctl");

int hook_of_ioctl(int fd, unsigned long request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    const unsigned long argument = va_arg(arguments, unsigned long);
    va_end(arguments);
    auto file = FileTable::instance().find(fd);
    if (file == nullptr) {
        return next_ioctl.get()(fd, request, argument);
    }
    // The library's frames are not to be unwound; the hook of pthread_cancel() ends a KVM_RUN.
    int state = 0;
    int type = 0;
    ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    const long result = file->ioctl(static_cast<unsigned>(request), argument);
    file.reset();
    // Not by setcancelstate() itself, which would leave another result than PTHREAD_CANCELED.
    ::pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
    ::pthread_setcancelstate(state, nullptr);
    if (type == PTHREAD_CANCEL_ASYNCHRONOUS) {
        ::pthread_testcancel();
        ::pthread_setcanceltype(type, nullptr);
    }
    return to_libc(result);
}
