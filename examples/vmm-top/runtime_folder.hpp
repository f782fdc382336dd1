// SPDX-License-Identifier: Apache-2.0

// Where machines that run are found: sockets in $XDG_RUNTIME_DIR/vmm, or /tmp/vmm-UID without that
// variable.  Nobody but their user gets there.

#pragma once

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm/result.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm_top {

inline std::string runtime_folder()
{
    const char* const user_folder = std::getenv("XDG_RUNTIME_DIR");
    return user_folder != nullptr && *user_folder != '\0'
               ? std::string{user_folder} + "/vmm"
               : "/tmp/vmm-" + std::to_string(::getuid());
}

/// Whether the folder is its user's alone, so that nobody else can have put a socket there.
inline bool is_private(const std::string& folder)
{
    struct stat seen {};
    return ::lstat(folder.c_str(), &seen) == 0 && S_ISDIR(seen.st_mode) &&
           seen.st_uid == ::getuid() && (seen.st_mode & (S_IRWXG | S_IRWXO)) == 0;
}

/// EINVAL where the path is too long for one.
inline vmm::Result<sockaddr_un> socket_address(const std::string& path)
{
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) {
        return vmm::Error{std::errc::invalid_argument, path + ": too long for a socket's name"};
    }
    std::memcpy(address.sun_path, path.data(), path.size());
    return address;
}

inline vmm::UniqueFd make_socket()
{
    return vmm::UniqueFd{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
}

inline const sockaddr* generic(const sockaddr_un& address)
{
    // SAFETY: what the sockets' API asks for.
    return reinterpret_cast<const sockaddr*>(&address);
}

}  // namespace vmm_top
