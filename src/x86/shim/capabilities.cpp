// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM_CHECK_EXTENSION: what the library answers for, and what its descriptors add.

#include <linux/kvm.h>

#include "vmm/x86/state.hpp"
#include "x86/shim/descriptors.hpp"
#include "x86/shim/system_file.hpp"

namespace vmm::shim {
namespace {

/// Capabilities of the ABI itself: they are about descriptors, mapped pages and ioctls.
struct AbiCapability {
    unsigned long number;
    int value;
};

constexpr AbiCapability abi_capabilities[] = {
    {KVM_CAP_MMU_SHADOW_CACHE_CONTROL, 1},
    {KVM_CAP_SET_TSS_ADDR, 1},
    {KVM_CAP_COALESCED_MMIO, KVM_COALESCED_MMIO_PAGE_OFFSET},
    {KVM_CAP_SET_IDENTITY_MAP_ADDR, 1},
    {KVM_CAP_PIT, 1},
    {KVM_CAP_ENABLE_CAP, 1},
    {KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_PAUSE},
    {KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1},
    {KVM_CAP_SYNC_REGS, KVM_SYNC_X86_VALID_FIELDS},
    {KVM_CAP_ENABLE_CAP_VM, 1},
    {KVM_CAP_CHECK_EXTENSION_VM, 1},
    {KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK},
    {KVM_CAP_XSAVE2, sizeof(x86::Xsave)},  // KVM's struct has another size in C++.
    {KVM_CAP_SREGS2, 1},
    {KVM_CAP_BINARY_STATS_FD, 1},
    {KVM_CAP_SYS_ATTRIBUTES, 1},
};

}  // namespace

long check_extension(const Kvm& kvm, unsigned long capability) noexcept
{
    for (const AbiCapability& each : abi_capabilities) {
        if (each.number == capability) {
            return each.value;
        }
    }
    if (capability > 0xffff'ffffUL) {
        return 0;
    }
    return kvm.check_extension(static_cast<Capability>(capability));
}

}  // namespace vmm::shim
