// SPDX-License-Identifier: Apache-2.0

/// @file
/// `Vm`: irqfds, and the state of the interrupt controllers and of the PIT.

#include <string>

#include "core/vm_core.hpp"
#include "vmm/vm.hpp"

namespace vmm {

using x86::irqchip::ChipId;
using x86::irqchip::IoApicState;
using x86::irqchip::PicState;
using x86::irqchip::PitState;

namespace {

Error no_irqchip(std::errc code, const char* operation)
{
    return {code, std::string{operation} + ": this VM has no irqchip; call create_irqchip before "
                                           "the first vCPU"};
}

Error no_pit(const char* operation)
{
    return {std::errc::no_such_device_or_address,
            std::string{operation} + ": this VM has no PIT; call create_pit first"};
}

Error no_pic(const char* operation)
{
    return {std::errc::invalid_argument,
            std::string{operation} + ": chips 0 and 1 are PICs; the I/O APIC is io_apic()'s"};
}

}  // namespace

Result<void> Vm::assign_irqfd(int eventfd, std::uint32_t gsi)
{
    core::Irqfds* irqfds = core_->irqfds();
    return irqfds != nullptr ? irqfds->assign(eventfd, gsi)
                             : no_irqchip(std::errc::invalid_argument, "assign_irqfd");
}

Result<void> Vm::assign_irqfd(int eventfd, std::uint32_t gsi, int resamplefd)
{
    core::Irqfds* irqfds = core_->irqfds();
    return irqfds != nullptr ? irqfds->assign_resample(eventfd, gsi, resamplefd)
                             : no_irqchip(std::errc::invalid_argument, "assign_irqfd");
}

Result<void> Vm::deassign_irqfd(int eventfd, std::uint32_t gsi)
{
    core::Irqfds* irqfds = core_->irqfds();
    return irqfds != nullptr ? irqfds->deassign(eventfd, gsi)
                             : no_irqchip(std::errc::invalid_argument, "deassign_irqfd");
}

Result<PicState> Vm::pic(ChipId chip) const
{
    if (!core_->has_full_irqchip()) {
        return no_irqchip(std::errc::no_such_device_or_address, "pic");
    }
    if (chip != ChipId::PicMaster && chip != ChipId::PicSlave) {
        return no_pic("pic");
    }
    return core_->irqchip()->pic_state(chip);
}

Result<void> Vm::set_pic(ChipId chip, const PicState& state)
{
    if (!core_->has_full_irqchip()) {
        return no_irqchip(std::errc::no_such_device_or_address, "set_pic");
    }
    if (chip != ChipId::PicMaster && chip != ChipId::PicSlave) {
        return no_pic("set_pic");
    }
    core_->irqchip()->set_pic_state(chip, state);
    return success;
}

Result<IoApicState> Vm::io_apic() const
{
    if (!core_->has_full_irqchip()) {
        return no_irqchip(std::errc::no_such_device_or_address, "io_apic");
    }
    return core_->irqchip()->io_apic_state();
}

Result<void> Vm::set_io_apic(const IoApicState& state)
{
    if (!core_->has_full_irqchip()) {
        return no_irqchip(std::errc::no_such_device_or_address, "set_io_apic");
    }
    core_->irqchip()->set_io_apic_state(state);
    return success;
}

Result<PitState> Vm::pit() const
{
    if (core_->pit() == nullptr) {
        return no_pit("pit");
    }
    return core_->pit()->state();
}

Result<void> Vm::set_pit(const PitState& state)
{
    if (core_->pit() == nullptr) {
        return no_pit("set_pit");
    }
    core_->pit()->set_state(state);
    return success;
}

Result<void> Vm::set_pit_reinject(bool enabled)
{
    if (core_->pit() == nullptr) {
        return no_pit("set_pit_reinject");
    }
    core_->pit()->set_reinject(enabled);
    return success;
}

}  // namespace vmm
