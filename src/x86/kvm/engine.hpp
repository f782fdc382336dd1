// SPDX-License-Identifier: Apache-2.0

/// @file
/// The kernel's KVM as an engine.
///
/// KVM runs guest code and nothing else: the interrupt controllers, devices, clocks and most MSRs
/// are the library's own.  So no in-kernel irqchip is created; interrupts go in as events, TPR
/// through the run area's CR8, and MSRs that are not plain CPU state leave as MSR exits.
///
/// Unless the core asks for KVM's own interrupt controllers (`EngineVm::create_irqchip`): then the
/// local APICs, HLT, INIT and SIPI, and the MSRs that belong to them, are KVM's.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "vmm/result.hpp"
#include "x86/engine.hpp"

namespace vmm::x86::kvm {

/// What the host's KVM says of itself.
struct Limits {
    int memory_slots{};
    int vcpus{};
    int vcpu_ids{};
    std::uint64_t quirks{};              ///< That may be turned off.
    std::uint32_t hypercall_exits{};     ///< By number, those that it can leave for.
    std::uint32_t dirty_ring_entries{};  ///< At most; 0: KVM has no dirty rings.
    bool irqchip{};                      ///< It has interrupt controllers, split ones and a PIT.
};

/// Opens `/dev/kvm` and looks whether it has what this engine needs.  ENODEV, or open()'s errno,
/// with the reason.
[[nodiscard]] Result<Limits> query_limits();

/// Of the library's offer (`x86::supported_cpuid`), what KVM lets a guest use.  Empty if
/// `/dev/kvm` does not say.
///
/// @param kernel_apics  The local APICs are KVM's, and the paravirtual features that lean on them.
[[nodiscard]] std::vector<CpuidEntry> supported_cpuid(std::uint32_t tsc_khz, bool kernel_apics);

/// What KVM emulates.  Empty if `/dev/kvm` does not say.
[[nodiscard]] std::vector<CpuidEntry> emulated_cpuid();

/// An engine for a VM with these slots, which outlive it.
///
/// `kick_signal` is what makes KVM_RUN return.  It is blocked in a thread while that runs a vCPU
/// and never delivered, so it needs no handler; 0 takes SIGRTMAX.
[[nodiscard]] Result<std::unique_ptr<EngineVm>> create_kvm_vm(MemorySlots& memory, int kick_signal);

}  // namespace vmm::x86::kvm
