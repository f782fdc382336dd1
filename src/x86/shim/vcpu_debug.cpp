// SPDX-License-Identifier: Apache-2.0

/// @file
/// vCPU ioctls: debugging the guest from outside.

#include <algorithm>
#include <cerrno>

#include <linux/kvm.h>

#include "x86/shim/vcpu_file.hpp"

namespace vmm::shim {
namespace {

/// KVM_GUESTDBG_INJECT_DB and _BP: the guest gets the exception that its debugger has no use for.
long inject(Vcpu& vcpu, std::uint8_t vector)
{
    x86::VcpuEvents events = vcpu.events();
    if (events.exception.pending != 0 || events.exception.injected != 0) {
        return -EBUSY;
    }
    events.exception = {};
    events.exception.injected = 1;
    events.exception.nr = vector;
    return result_of(vcpu.set_events(events));
}

long set_guest_debug(VcpuFile& file, const kvm_guest_debug& wanted)
{
    constexpr std::uint8_t db = 1;
    constexpr std::uint8_t bp = 3;
    if ((wanted.control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) != 0) {
        const bool is_db = (wanted.control & KVM_GUESTDBG_INJECT_DB) != 0;
        if (const long result = inject(file.vcpu(), is_db ? db : bp); result < 0) {
            return result;
        }
    }
    x86::GuestDebug debug;
    if ((wanted.control & KVM_GUESTDBG_ENABLE) != 0) {
        debug.single_step = (wanted.control & KVM_GUESTDBG_SINGLESTEP) != 0;
        debug.software_breakpoints = (wanted.control & KVM_GUESTDBG_USE_SW_BP) != 0;
        debug.hardware_breakpoints = (wanted.control & KVM_GUESTDBG_USE_HW_BP) != 0;
        debug.block_interrupts = (wanted.control & KVM_GUESTDBG_BLOCKIRQ) != 0;
    }
    if (debug.hardware_breakpoints) {
        std::copy_n(std::begin(wanted.arch.debugreg), debug.db.size(), debug.db.begin());
        debug.dr7 = wanted.arch.debugreg[7];
    }
    return result_of(file.vcpu().set_guest_debug(debug));
}

constexpr Row<VcpuFile> rows[] = {
    {KVM_SET_GUEST_DEBUG, "KVM_SET_GUEST_DEBUG", reads<set_guest_debug>},
};

}  // namespace

std::span<const Row<VcpuFile>> vcpu_debug_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
