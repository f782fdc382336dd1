// SPDX-License-Identifier: Apache-2.0

/// @file
/// What the host's KVM counts of a vCPU (KVM_GET_STATS_FD, Linux 5.14).

#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "vmm/unique_fd.hpp"

namespace vmm::x86::kvm {

/// Those that the core does not count: what goes on inside of KVM, which with its own local APICs
/// is more.
class HostStatistics {
public:
    /// Knows nothing where the host's KVM does not tell.
    HostStatistics(const UniqueFd& vcpu, bool has_apics);

    /// Any thread.
    [[nodiscard]] std::vector<std::pair<std::string_view, std::uint64_t>> read() const;

private:
    struct Place {
        std::string_view name;
        std::uint64_t offset;  ///< In the file.
    };

    UniqueFd fd_;
    std::vector<Place> places_;
};

}  // namespace vmm::x86::kvm
