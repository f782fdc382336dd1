// SPDX-License-Identifier: Apache-2.0

/// @file
/// What a client sees at `/dev/kvm`, and at the names of its descriptors, before it opens any.

#pragma once

#include <optional>
#include <string_view>

#include <sys/stat.h>
#include <sys/sysmacros.h>

namespace vmm::shim {

inline constexpr std::string_view kvm_node = "/dev/kvm";
inline constexpr unsigned kvm_node_major = 10;
inline constexpr unsigned kvm_node_minor = 232;
/// Ours may be read and written by everybody, and executed by nobody.
inline constexpr unsigned kvm_node_mode =
    S_IFCHR | S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP | S_IROTH | S_IWOTH;

/// @tparam Stat  struct stat or struct stat64
template <typename Stat>
void describe_kvm_node(Stat& to) noexcept
{
    to = {};
    to.st_mode = kvm_node_mode;
    to.st_nlink = 1;
    to.st_rdev = ::makedev(kvm_node_major, kvm_node_minor);
}
void describe_kvm_node(struct statx& to) noexcept;

/// What follows "/proc/self/", or the same below the process's number.
[[nodiscard]] std::optional<std::string_view> below_proc_self(std::string_view path) noexcept;
/// N of "/proc/self/fd/N".
[[nodiscard]] std::optional<int> descriptor_of(std::string_view path) noexcept;

}  // namespace vmm::shim
