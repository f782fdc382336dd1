// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM's structures and the library's: the same contents under the same names.

#pragma once

#include <span>
#include <vector>

#include <linux/kvm.h>

#include "vmm/x86/state.hpp"

namespace vmm::shim {

[[nodiscard]] kvm_regs to_kvm(const x86::Regs& regs) noexcept;
[[nodiscard]] x86::Regs from_kvm(const kvm_regs& regs) noexcept;

/// Without the interrupt bitmap, which is part of the events.
[[nodiscard]] kvm_sregs to_kvm(const x86::Sregs& sregs) noexcept;
[[nodiscard]] x86::Sregs from_kvm(const kvm_sregs& sregs) noexcept;

[[nodiscard]] kvm_fpu to_kvm(const x86::Fpu& fpu) noexcept;
[[nodiscard]] x86::Fpu from_kvm(const kvm_fpu& fpu) noexcept;

[[nodiscard]] std::vector<kvm_cpuid_entry2> to_kvm(std::span<const x86::CpuidEntry> entries);
[[nodiscard]] std::vector<x86::CpuidEntry> from_kvm(std::span<const kvm_cpuid_entry2> entries);

}  // namespace vmm::shim
