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

/// A memfd, close-on-exec.  Errors: EMFILE, ENFILE, ENOMEM.
[[nodiscard]] Result<UniqueFd> make_memfd(const std::string& name, std::size_t size);

/// Gives the descriptor to the client, as one that leads to `file`.
///
/// @return the descriptor, or -EMFILE if it is beyond the table's reach.
[[nodiscard]] long install(UniqueFd fd, std::shared_ptr<File> file);

/// What client and library share of a vCPU.
class RunArea {
public:
    /// Maps the memfd, which the client maps too.
    [[nodiscard]] static Result<RunArea> map(const UniqueFd& memfd);
    RunArea(RunArea&& other) noexcept : base_{std::exchange(other.base_, nullptr)} {}
    RunArea& operator=(RunArea&&) = delete;
    RunArea(const RunArea&) = delete;
    RunArea& operator=(const RunArea&) = delete;
    ~RunArea();

    /// The client may change it at any time: read once, check the copy, use the copy.
    [[nodiscard]] kvm_run& run() const noexcept;
    [[nodiscard]] std::byte* port_data() const noexcept { return base_ + shim_page_size; }
    [[nodiscard]] bus::CoalescedPage& coalesced() const noexcept;

private:
    explicit RunArea(std::byte* base) noexcept : base_{base} {}

    std::byte* base_;
};

}  // namespace vmm::shim
