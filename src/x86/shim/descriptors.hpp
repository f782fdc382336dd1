// SPDX-License-Identifier: Apache-2.0

/// @file
/// Descriptors to give to the client, and the memory behind those of vCPUs.

#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include <linux/kvm.h>

#include "vmm/bus/coalesced.hpp"
#include "vmm/result.hpp"
#include "vmm/unique_fd.hpp"
#include "x86/shim/file.hpp"

namespace vmm::shim {

/// Pages of a vCPU's descriptor: struct kvm_run, the data of port accesses, the coalesced ring.
inline constexpr std::size_t run_area_pages = 3;
inline constexpr std::size_t shim_page_size = 4096;
inline constexpr std::size_t run_area_size = run_area_pages * shim_page_size;
/// Where the dirty ring lies in a vCPU's descriptor, if it has one.
inline constexpr std::size_t dirty_ring_offset = KVM_DIRTY_LOG_PAGE_OFFSET * shim_page_size;

/// A memfd, close-on-exec.  Errors: EMFILE, ENFILE, ENOMEM.
[[nodiscard]] Result<UniqueFd> make_memfd(const std::string& name, std::size_t size);

/// Gives the descriptor to the client, as one that leads to `file`.
///
/// @return the descriptor, or -EMFILE if it is beyond the table's reach.
[[nodiscard]] long install(UniqueFd fd, std::shared_ptr<File> file);

/// Pages of a descriptor that client and library share.
class SharedPages {
public:
    /// Maps `size` bytes of the memfd, which the client maps too.
    [[nodiscard]] static Result<SharedPages> map(const UniqueFd& memfd,
                                                 std::size_t offset,
                                                 std::size_t size);
    SharedPages(SharedPages&& other) noexcept
        : base_{std::exchange(other.base_, nullptr)},
          size_{other.size_}
    {
    }
    SharedPages& operator=(SharedPages&&) = delete;
    SharedPages(const SharedPages&) = delete;
    SharedPages& operator=(const SharedPages&) = delete;
    ~SharedPages();

    [[nodiscard]] std::byte* data() const noexcept { return base_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
    SharedPages(std::byte* base, std::size_t size) noexcept : base_{base}, size_{size} {}

    std::byte* base_;
    std::size_t size_;
};

/// What client and library share of a vCPU.
class RunArea {
public:
    /// Maps the memfd, which the client maps too.
    [[nodiscard]] static Result<RunArea> map(const UniqueFd& memfd);
    /// The client may change it at any time: read once, check the copy, use the copy.
    [[nodiscard]] kvm_run& run() const noexcept;
    [[nodiscard]] std::byte* port_data() const noexcept { return pages_.data() + shim_page_size; }
    [[nodiscard]] bus::CoalescedPage& coalesced() const noexcept;

private:
    explicit RunArea(SharedPages pages) noexcept : pages_{std::move(pages)} {}

    SharedPages pages_;
};

}  // namespace vmm::shim
