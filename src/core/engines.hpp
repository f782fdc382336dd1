// SPDX-License-Identifier: Apache-2.0

/// @file
/// The engines that there are: the one place that knows them all.

#pragma once

#include <memory>
#include <vector>

#include "core/guest_physical.hpp"
#include "vmm/kvm.hpp"
#include "x86/engine.hpp"

namespace vmm::core {

/// An engine for a VM with this memory, which outlives it.  @pre `options.engine` is not `Auto`.
[[nodiscard]] Result<std::unique_ptr<x86::EngineVm>> create_engine_vm(const KvmOptions& options,
                                                                      GuestPhysical& memory);

/// EINVAL where VMM_SOFT in the environment names no mode of the software engine.
[[nodiscard]] Result<void> check_soft_mode();

/// Whether the engine tells of each write at once, so that it can be put into a ring.
[[nodiscard]] bool has_dirty_rings(const KvmOptions& options) noexcept;
/// Whether it has system-management mode.
[[nodiscard]] bool has_smm(const KvmOptions& options) noexcept;

/// Whether a guest's TSC may run at another rate than the host's.
[[nodiscard]] bool has_tsc_scaling(const KvmOptions& options) noexcept;

/// Whether the library answers the guest's hypercalls, and can have one leave.
[[nodiscard]] bool has_hypercall_exits(const KvmOptions& options) noexcept;

/// KVM's quirks that may be turned off.
[[nodiscard]] std::uint64_t possible_quirks(const KvmOptions& options) noexcept;

/// All that a guest may be offered.
[[nodiscard]] std::vector<x86::CpuidEntry> supported_cpuid(const KvmOptions& options);
/// Of what a guest may be offered, what needs no CPU that has it.
[[nodiscard]] std::vector<x86::CpuidEntry> emulated_cpuid(const KvmOptions& options);

}  // namespace vmm::core
