// SPDX-License-Identifier: Apache-2.0

/// @file
/// Hooks: looking at `/dev/kvm`, and at where descriptors lead.

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "x86/shim/device_node.hpp"
#include "x86/shim/file.hpp"
#include "x86/shim/preload/hooks.hpp"
#include "x86/shim/preload/next.hpp"

namespace vmm::shim::preload {
namespace {

/// A host without `/dev/kvm` is shown as one that has it.
template <typename Stat>
int with_kvm(const char* path, Stat* stat, int result) noexcept
{
    if (result == 0 || !is_kvm(path) || errno != ENOENT) {
        return result;
    }
    describe_kvm_node(*stat);
    return 0;
}

constinit Next<int(const char*, struct stat*)> next_stat{"stat"};
constinit Next<int(const char*, struct stat64*)> next_stat64{"stat64"};
constinit Next<int(const char*, struct stat*)> next_lstat{"lstat"};
constinit Next<int(const char*, struct stat64*)> next_lstat64{"lstat64"};
constinit Next<int(int, const char*, struct stat*, int)> next_fstatat{"fstatat"};
constinit Next<int(int, const char*, struct stat64*, int)> next_fstatat64{"fstatat64"};
constinit Next<int(int, const char*, struct stat*)> next_xstat{"__xstat"};
constinit Next<int(int, const char*, struct stat64*)> next_xstat64{"__xstat64"};
constinit Next<int(int, const char*, int, unsigned, struct statx*)> next_statx{"statx"};
constinit Next<int(const char*, int)> next_access{"access"};
constinit Next<int(int, const char*, int, int)> next_faccessat{"faccessat"};
constinit Next<int(const char*, int)> next_eaccess{"eaccess"};
constinit Next<int(const char*, int)> next_euidaccess{"euidaccess"};
constinit Next<ssize_t(const char*, char*, std::size_t)> next_readlink{"readlink"};
constinit Next<ssize_t(int, const char*, char*, std::size_t)> next_readlinkat{"readlinkat"};

/// As describe_kvm_node() says.
std::optional<int> access_kvm(const char* path, int mode) noexcept
{
    if (!is_kvm(path)) {
        return std::nullopt;
    }
    return to_libc((mode & X_OK) != 0 ? -EACCES : 0);
}

/// Where a descriptor of ours leads with KVM.
std::optional<ssize_t> read_our_link(const char* path, char* to, std::size_t size) noexcept
{
    const auto fd = descriptor_of(path != nullptr ? path : "");
    const auto file = fd ? FileTable::instance().find(*fd) : nullptr;
    if (file == nullptr) {
        return std::nullopt;
    }
    const std::string name = file->link_name();
    const std::size_t length = std::min(size, name.size());
    std::memcpy(to, name.data(), length);
    return static_cast<ssize_t>(length);
}

}  // namespace
}  // namespace vmm::shim::preload

using namespace vmm::shim::preload;

// NOLINTBEGIN(cert-dcl50-cpp, bugprone-reserved-identifier): the C library's names.
extern "C" {

VMM_HOOK int stat(const char* path, struct stat* to) noexcept
{
    return with_kvm(path, to, next_stat.get()(path, to));
}

VMM_HOOK int stat64(const char* path, struct stat64* to) noexcept
{
    return with_kvm(path, to, next_stat64.get()(path, to));
}

VMM_HOOK int lstat(const char* path, struct stat* to) noexcept
{
    return with_kvm(path, to, next_lstat.get()(path, to));
}

VMM_HOOK int lstat64(const char* path, struct stat64* to) noexcept
{
    return with_kvm(path, to, next_lstat64.get()(path, to));
}

VMM_HOOK int fstatat(int directory, const char* path, struct stat* to, int flags) noexcept
{
    return with_kvm(path, to, next_fstatat.get()(directory, path, to, flags));
}

VMM_HOOK int fstatat64(int directory, const char* path, struct stat64* to, int flags) noexcept
{
    return with_kvm(path, to, next_fstatat64.get()(directory, path, to, flags));
}

VMM_HOOK int __xstat(int version, const char* path, struct stat* to) noexcept
{
    return with_kvm(path, to, next_xstat.get()(version, path, to));
}

VMM_HOOK int __xstat64(int version, const char* path, struct stat64* to) noexcept
{
    return with_kvm(path, to, next_xstat64.get()(version, path, to));
}

VMM_HOOK int statx(int directory,
                   const char* path,
                   int flags,
                   unsigned mask,
                   struct statx* to) noexcept
{
    const int result = next_statx.get()(directory, path, flags, mask, to);
    if (result == 0 || !is_kvm(path) || errno != ENOENT) {
        return result;
    }
    vmm::shim::describe_kvm_node(*to);
    return 0;
}

VMM_HOOK int access(const char* path, int mode) noexcept
{
    const auto ours = access_kvm(path, mode);
    return ours ? *ours : next_access.get()(path, mode);
}

VMM_HOOK int faccessat(int directory, const char* path, int mode, int flags) noexcept
{
    const auto ours = access_kvm(path, mode);
    return ours ? *ours : next_faccessat.get()(directory, path, mode, flags);
}

VMM_HOOK int eaccess(const char* path, int mode) noexcept
{
    const auto ours = access_kvm(path, mode);
    return ours ? *ours : next_eaccess.get()(path, mode);
}

VMM_HOOK int euidaccess(const char* path, int mode) noexcept
{
    const auto ours = access_kvm(path, mode);
    return ours ? *ours : next_euidaccess.get()(path, mode);
}

VMM_HOOK ssize_t readlink(const char* path, char* to, std::size_t size) noexcept
{
    const auto ours = read_our_link(path, to, size);
    return ours ? *ours : next_readlink.get()(path, to, size);
}

VMM_HOOK ssize_t readlinkat(int directory, const char* path, char* to, std::size_t size) noexcept
{
    const auto ours = read_our_link(path, to, size);
    return ours ? *ours : next_readlinkat.get()(directory, path, to, size);
}

}  // extern "C"
// NOLINTEND(cert-dcl50-cpp, bugprone-reserved-identifier)
