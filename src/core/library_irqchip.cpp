// SPDX-License-Identifier: Apache-2.0

#include "core/library_irqchip.hpp"

namespace vmm::core {

using x86::irqchip::ChipId;
using x86::irqchip::GsiRoute;
using x86::irqchip::IoApicState;
using x86::irqchip::IrqchipMode;
using x86::irqchip::PicState;
using x86::irqchip::PitState;

LibraryIrqchip::LibraryIrqchip(EventLoop& loop, IrqchipMode mode, std::uint32_t io_apic_pins)
    : chip_{loop, mode},
      irqfds_{loop, chip_}
{
    if (mode == IrqchipMode::Split) {
        chip_.set_eoi_hook([this, io_apic_pins](std::uint32_t id, std::uint8_t vector) {
            if (chip_.has_level_message(io_apic_pins, vector)) {
                chip_.lapic(id)->leave_for_eoi(vector);
            }
        });
    }
}

Result<int> LibraryIrqchip::set_line(std::uint32_t gsi, bool level)
{
    return chip_.set_line(gsi, x86::irqchip::irq_source_user, level);
}

Result<int> LibraryIrqchip::signal_msi(Gpa address, std::uint32_t data)
{
    return chip_.signal_msi(address, data);
}

Result<void> LibraryIrqchip::set_routing(std::span<const GsiRoute> routes)
{
    return chip_.set_routing(routes);
}

Result<void> LibraryIrqchip::assign_irqfd(int eventfd,
                                          std::uint32_t gsi,
                                          std::optional<int> resamplefd)
{
    return resamplefd ? irqfds_.assign_resample(eventfd, gsi, *resamplefd)
                      : irqfds_.assign(eventfd, gsi);
}

Result<void> LibraryIrqchip::deassign_irqfd(int eventfd, std::uint32_t gsi)
{
    return irqfds_.deassign(eventfd, gsi);
}

Result<PicState> LibraryIrqchip::pic(ChipId chip) const
{
    return chip_.pic_state(chip);
}

Result<void> LibraryIrqchip::set_pic(ChipId chip, const PicState& state)
{
    chip_.set_pic_state(chip, state);
    return success;
}

Result<IoApicState> LibraryIrqchip::io_apic() const
{
    return chip_.io_apic_state();
}

Result<void> LibraryIrqchip::set_io_apic(const IoApicState& state)
{
    chip_.set_io_apic_state(state);
    return success;
}

Result<std::shared_ptr<bus::DeviceBase>> LibraryIrqchip::create_pit()
{
    pit_ = chip_.create_pit();
    return std::shared_ptr<bus::DeviceBase>{pit_};
}

Result<PitState> LibraryIrqchip::pit() const
{
    return pit_->state();
}

Result<void> LibraryIrqchip::set_pit(const PitState& state)
{
    pit_->set_state(state);
    return success;
}

Result<void> LibraryIrqchip::set_pit_reinject(bool enabled)
{
    pit_->set_reinject(enabled);
    return success;
}

}  // namespace vmm::core
