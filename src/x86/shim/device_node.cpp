// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/device_node.hpp"

#include <charconv>

#include <unistd.h>

namespace vmm::shim {
namespace {

/// Whether `text` begins so; if it does, what it begins with is taken away.
bool take(std::string_view& text, std::string_view start) noexcept
{
    if (text.substr(0, start.size()) != start) {
        return false;
    }
    text.remove_prefix(start.size());
    return true;
}

}  // namespace

void describe_kvm_node(struct statx& to) noexcept
{
    to = {};
    to.stx_mask = STATX_TYPE | STATX_MODE | STATX_NLINK;
    to.stx_mode = kvm_node_mode;
    to.stx_nlink = 1;
    to.stx_rdev_major = kvm_node_major;
    to.stx_rdev_minor = kvm_node_minor;
}

std::optional<std::string_view> below_proc_self(std::string_view path) noexcept
{
    if (!take(path, "/proc/")) {
        return std::nullopt;
    }
    if (!take(path, "self")) {
        pid_t process = 0;
        const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), process);
        if (error != std::errc{} || process != ::getpid()) {
            return std::nullopt;
        }
        path.remove_prefix(static_cast<std::size_t>(end - path.data()));
    }
    return take(path, "/") ? std::optional{path} : std::nullopt;
}

std::optional<int> descriptor_of(std::string_view path) noexcept
{
    auto rest = below_proc_self(path);
    if (!rest || !take(*rest, "fd/")) {
        return std::nullopt;
    }
    int fd = -1;
    const char* const last = rest->data() + rest->size();
    const auto [end, error] = std::from_chars(rest->data(), last, fd);
    return error == std::errc{} && end == last ? std::optional{fd} : std::nullopt;
}

}  // namespace vmm::shim
