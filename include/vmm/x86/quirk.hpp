// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM's quirks: where it deviates from the manuals unless the VMM turns that off
/// (`Vm::disable_quirks`, KVM_CAP_DISABLE_QUIRKS2).

#pragma once

#include <cstdint>

namespace vmm::x86::quirk {

/// CPUID.1:ECX[3] (MONITOR) is what `Vcpu::set_cpuid` said, whatever the guest has in bit 18 of
/// IA32_MISC_ENABLE.  Off: it follows that bit.
inline constexpr std::uint64_t misc_enable_no_mwait = 1U << 4U;

/// VMCALL on a guest's AMD CPU and VMMCALL on Intel's is rewritten in the guest's memory to the
/// CPU's own instruction, with the rights of a data access at the guest's CPL.  Off: #UD.
inline constexpr std::uint64_t fix_hypercall_insn = 1U << 5U;

/// MONITOR and MWAIT wait for nothing and do not fault where CPUID does not offer them.  Off: #UD.
inline constexpr std::uint64_t mwait_never_ud_faults = 1U << 6U;

}  // namespace vmm::x86::quirk
