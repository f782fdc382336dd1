// SPDX-License-Identifier: Apache-2.0

/// @file
/// Whether it is the library that calls libc, or the client.

#pragma once

namespace vmm::shim {

/// While it lives, this thread is in the library: what it opens is the host's own, `/dev/kvm` too.
class LibraryScope {
public:
    LibraryScope() noexcept;
    LibraryScope(const LibraryScope&) = delete;
    LibraryScope& operator=(const LibraryScope&) = delete;
    LibraryScope(LibraryScope&&) = delete;
    LibraryScope& operator=(LibraryScope&&) = delete;
    ~LibraryScope();

    [[nodiscard]] static bool is_inside() noexcept;
};

/// While it lives, a handler of the client runs in the middle of the library.
class ClientScope {
public:
    ClientScope() noexcept;
    ClientScope(const ClientScope&) = delete;
    ClientScope& operator=(const ClientScope&) = delete;
    ClientScope(ClientScope&&) = delete;
    ClientScope& operator=(ClientScope&&) = delete;
    ~ClientScope();

private:
    unsigned before_;
};

}  // namespace vmm::shim
