// SPDX-License-Identifier: Apache-2.0

/// @file
/// System-management mode of a vCPU: SMIs, entry, RSM.

#include "core/vcpu_core.hpp"
#include "core/vm_core.hpp"
#include "x86/smm.hpp"

namespace vmm::core {
namespace {

constexpr std::uint16_t smram = 1;  // The address space that a CPU in SMM sees.

}  // namespace

Result<void> VcpuCore::smi()
{
    if (!vm_->has_smm()) {
        return Error{std::errc::inappropriate_io_control_operation,
                     "smi: this engine has no system-management mode (Capability::X86Smm)"};
    }
    deliver_smi();
    return success;
}

void VcpuCore::deliver_smi() noexcept
{
    if (vm_->has_smm()) {
        smi_pending_.store(true);
        wake();
    }
}

void VcpuCore::enter_smm() noexcept
{
    x86::CpuState& cpu = state();
    smi_pending_.store(false);
    ++smi_count_;
    const x86::SmmSaveArea saved = x86::save_for_smm(cpu, smbase_);
    // Where there is no memory, nothing is kept, as on a CPU, and RSM will find that out.
    static_cast<void>(
        vm_->write_for_guest(Gpa{std::uint64_t{smbase_} + x86::smm_save_offset}, saved, smram));
    smm_inside_nmi_ = std::exchange(cpu.nmi_blocked, true);
    x86::enter_smm(cpu, smbase_);
    state_changed();
}

bool VcpuCore::leave_smm() noexcept
{
    x86::CpuState& cpu = state();
    x86::SmmSaveArea saved;
    if (!vm_->read_memory(Gpa{std::uint64_t{smbase_} + x86::smm_save_offset}, saved, smram) ||
        !x86::load_after_smm(cpu, saved, smbase_)) {
        return false;
    }
    cpu.nmi_blocked = std::exchange(smm_inside_nmi_, false);
    const bool is_valid = can_be_in(cpu);
    if (!is_valid) {
        x86::reset_state(cpu, false);
    }
    state_changed();
    return is_valid;
}

bool VcpuCore::access_smm_msr(std::uint32_t index,
                              std::uint64_t& value,
                              bool write,
                              x86::MsrAccess access) noexcept
{
    const bool is_host = access == x86::MsrAccess::Host;
    if (!vm_->has_smm() || (!is_host && (write || index == x86::msr::smbase))) {
        return false;
    }
    if (index == x86::msr::smbase) {
        if (write) {
            smbase_ = static_cast<std::uint32_t>(value);
        } else {
            value = smbase_;
        }
    } else if (write) {
        smi_count_ = value;
    } else {
        value = smi_count_;
    }
    return true;
}

}  // namespace vmm::core
