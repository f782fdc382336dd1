// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM's statistics of a VM or a vCPU as a file (KVM_GET_STATS_FD).

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "vmm/statistics.hpp"
#include "x86/shim/file.hpp"

namespace vmm::shim {

/// What a file of statistics shows: numbers by KVM's names.  Those that KVM does not know are left
/// out.
struct StatisticsSource {
    std::string id;  ///< As "kvm-PID/vcpu-0".
    bool of_vcpu{};
    /// The numbers now; any thread.
    std::function<VcpuStatistics()> look;
};

/// Gives the client a descriptor of them, read-only, close-on-exec.
///
/// @return the descriptor, or a negative errno.
[[nodiscard]] long give_statistics(StatisticsSource source, std::string link_name);

}  // namespace vmm::shim
