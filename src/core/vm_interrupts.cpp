// SPDX-License-Identifier: Apache-2.0

/// @file
/// `Vm`: interrupts, irqfds, and the state of the interrupt controllers and of the PIT.

#include <optional>
#include <string>

#include "core/vm_core.hpp"
#include "vmm/vm.hpp"

namespace vmm {

using x86::irqchip::ChipId;
using x86::irqchip::IoApicState;
using x86::irqchip::PicState;
using x86::irqchip::PitState;

namespace {

using x86::irqchip::Controllers;
using x86::irqchip::GsiRoute;

Error no_irqchip(std::errc code, const char* operation)
{
    return {code, std::string{operation} + ": this VM has no irqchip; call create_irqchip before "
                                           "the first vCPU"};
}

/// The irqchip, which must have a PIC and an I/O APIC.
Result<Controllers*> full_irqchip(const core::VmCore& vm, const char* operation)
{
    if (!vm.has_full_irqchip()) {
        return no_irqchip(std::errc::no_such_device_or_address, operation);
    }
    return vm.controllers();
}

/// Any irqchip.
Result<Controllers*> some_irqchip(const core::VmCore& vm, std::errc code, const char* operation)
{
    if (vm.controllers() == nullptr) {
        return no_irqchip(code, operation);
    }
    return vm.controllers();
}

Error no_pit(const char* operation)
{
    return {std::errc::no_such_device_or_address,
            std::string{operation} + ": this VM has no PIT; call create_pit first"};
}

Result<Controllers*> irqchip_with_pit(const core::VmCore& vm, const char* operation)
{
    if (vm.controllers() == nullptr || !vm.controllers()->has_pit()) {
        return no_pit(operation);
    }
    return vm.controllers();
}

Result<void> check_pic(ChipId chip, const char* operation)
{
    if (chip != ChipId::PicMaster && chip != ChipId::PicSlave) {
        return Error{std::errc::invalid_argument,
                     std::string{operation} +
                         ": chips 0 and 1 are PICs; the I/O APIC is io_apic()'s"};
    }
    return success;
}

}  // namespace

Result<int> Vm::set_irq_line(std::uint32_t gsi, bool level)
{
    VMM_TRY(Controllers* const chips,
            some_irqchip(*core_, std::errc::no_such_device_or_address, "set_irq_line"));
    return chips->set_line(gsi, level);
}

Result<int> Vm::signal_msi(Gpa address, std::uint32_t data)
{
    VMM_TRY(Controllers* const chips,
            some_irqchip(*core_, std::errc::invalid_argument, "signal_msi"));
    return chips->signal_msi(address, data);
}

Result<void> Vm::set_gsi_routing(std::span<const GsiRoute> routes)
{
    VMM_TRY(Controllers* const chips,
            some_irqchip(*core_, std::errc::invalid_argument, "set_gsi_routing"));
    return chips->set_routing(routes);
}

Result<void> Vm::assign_irqfd(int eventfd, std::uint32_t gsi)
{
    VMM_TRY(Controllers* const chips,
            some_irqchip(*core_, std::errc::invalid_argument, "assign_irqfd"));
    return chips->assign_irqfd(eventfd, gsi, std::nullopt);
}

Result<void> Vm::assign_irqfd(int eventfd, std::uint32_t gsi, int resamplefd)
{
    VMM_TRY(Controllers* const chips,
            some_irqchip(*core_, std::errc::invalid_argument, "assign_irqfd"));
    return chips->assign_irqfd(eventfd, gsi, resamplefd);
}

Result<void> Vm::deassign_irqfd(int eventfd, std::uint32_t gsi)
{
    VMM_TRY(Controllers* const chips,
            some_irqchip(*core_, std::errc::invalid_argument, "deassign_irqfd"));
    return chips->deassign_irqfd(eventfd, gsi);
}

Result<PicState> Vm::pic(ChipId chip) const
{
    VMM_TRY(const Controllers* const chips, full_irqchip(*core_, "pic"));
    VMM_TRY_VOID(check_pic(chip, "pic"));
    return chips->pic(chip);
}

Result<void> Vm::set_pic(ChipId chip, const PicState& state)
{
    VMM_TRY(Controllers* const chips, full_irqchip(*core_, "set_pic"));
    VMM_TRY_VOID(check_pic(chip, "set_pic"));
    return chips->set_pic(chip, state);
}

Result<IoApicState> Vm::io_apic() const
{
    VMM_TRY(const Controllers* const chips, full_irqchip(*core_, "io_apic"));
    return chips->io_apic();
}

Result<void> Vm::set_io_apic(const IoApicState& state)
{
    VMM_TRY(Controllers* const chips, full_irqchip(*core_, "set_io_apic"));
    return chips->set_io_apic(state);
}

Result<PitState> Vm::pit() const
{
    VMM_TRY(const Controllers* const chips, irqchip_with_pit(*core_, "pit"));
    return chips->pit();
}

Result<void> Vm::set_pit(const PitState& state)
{
    VMM_TRY(Controllers* const chips, irqchip_with_pit(*core_, "set_pit"));
    return chips->set_pit(state);
}

Result<void> Vm::set_pit_reinject(bool enabled)
{
    VMM_TRY(Controllers* const chips, irqchip_with_pit(*core_, "set_pit_reinject"));
    return chips->set_pit_reinject(enabled);
}

}  // namespace vmm
