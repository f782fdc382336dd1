// SPDX-License-Identifier: Apache-2.0

/// @file
/// What stands behind a descriptor of `/dev/kvm`, of a VM or of a vCPU.

#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include <sys/types.h>

#include "vmm/unique_fd.hpp"

namespace vmm::shim {

/// An open file as KVM makes them.  Several descriptors may lead to one: dup(2).
///
/// Thread safety: `ioctl()` from any thread.
class File {
public:
    File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    File(File&&) = delete;
    File& operator=(File&&) = delete;
    virtual ~File() = default;

    /// KVM's result, or a negative errno.
    [[nodiscard]] virtual long ioctl(unsigned request, unsigned long argument) noexcept = 0;

    /// Where `/proc/self/fd/N` leads with KVM.
    [[nodiscard]] virtual std::string link_name() const = 0;

    /// Whether the client may map it so: 0, or a negative errno.
    [[nodiscard]] virtual long may_map(std::size_t size,
                                       int protection,
                                       int flags,
                                       off_t offset) noexcept;
    /// The client has mapped it, as mmap(2) was told.
    virtual void mapped(void* at,
                        std::size_t size,
                        int protection,
                        int flags,
                        off_t offset) noexcept;

    /// The client is about to read it.
    virtual void about_to_read() noexcept;

    /// Made by this process, and not by its parent before fork(): KVM says EIO otherwise.
    [[nodiscard]] bool is_of_this_process() const noexcept;

private:
    unsigned process_;
};

/// The descriptors that lead to files of ours.
///
/// Thread safety: every member from any thread.
class FileTable {
public:
    /// The one of this process; never destroyed, so that threads may run while the process ends.
    [[nodiscard]] static FileTable& instance();

    /// As many as Linux lets a process have (fs.nr_open).
    static constexpr std::size_t max_descriptors = std::size_t{1} << 20U;
    /// `max_descriptors` of them: whether find() may find something.
    [[nodiscard]] const std::atomic<bool>* hints() const noexcept;
    /// Null for a descriptor of another kind, at the price of a load.
    [[nodiscard]] std::shared_ptr<File> find(int fd) const noexcept;
    /// `fd` leads to `file` now.  @return false: it is beyond what the table holds.
    bool add(int fd, std::shared_ptr<File> file) noexcept;
    /// `fd` was closed, or is about to be.
    void remove(int fd) noexcept;
    /// `to` is now another descriptor for what `from` leads to, or none of ours.
    void duplicate(int from, int to) noexcept;
    /// All from `first` to `last` were closed.
    void remove_range(unsigned first, unsigned last) noexcept;

private:
    FileTable();
};

}  // namespace vmm::shim
