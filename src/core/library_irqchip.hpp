// SPDX-License-Identifier: Apache-2.0

/// @file
/// The library's own interrupt controllers, behind the interface that an engine's have too.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "core/irqfds.hpp"
#include "vmm/event_loop.hpp"
#include "x86/irqchip/controllers.hpp"
#include "x86/irqchip/irqchip.hpp"
#include "x86/irqchip/pit.hpp"

namespace vmm::core {

class LibraryIrqchip final : public x86::irqchip::Controllers {
public:
    /// @param loop  Must outlive this.
    /// @param io_apic_pins  Split: of the caller's I/O APIC; ends of what they send leave.
    LibraryIrqchip(EventLoop& loop, x86::irqchip::IrqchipMode mode, std::uint32_t io_apic_pins);

    /// With the local APICs.
    [[nodiscard]] x86::irqchip::Irqchip& chip() noexcept { return chip_; }

    [[nodiscard]] x86::irqchip::IrqchipMode mode() const noexcept override { return chip_.mode(); }
    Result<int> set_line(std::uint32_t gsi, bool level) override;
    Result<int> signal_msi(Gpa address, std::uint32_t data) override;
    Result<void> set_routing(std::span<const x86::irqchip::GsiRoute> routes) override;
    Result<void> assign_irqfd(int eventfd,
                              std::uint32_t gsi,
                              std::optional<int> resamplefd) override;
    Result<void> deassign_irqfd(int eventfd, std::uint32_t gsi) override;

    [[nodiscard]] std::shared_ptr<bus::DeviceBase> pic_device() const noexcept override
    {
        return chip_.pic_device();
    }
    [[nodiscard]] Result<x86::irqchip::PicState> pic(x86::irqchip::ChipId chip) const override;
    Result<void> set_pic(x86::irqchip::ChipId chip, const x86::irqchip::PicState& state) override;
    [[nodiscard]] Result<x86::irqchip::IoApicState> io_apic() const override;
    Result<void> set_io_apic(const x86::irqchip::IoApicState& state) override;

    Result<std::shared_ptr<bus::DeviceBase>> create_pit() override;
    [[nodiscard]] bool has_pit() const noexcept override { return pit_ != nullptr; }
    [[nodiscard]] Result<x86::irqchip::PitState> pit() const override;
    Result<void> set_pit(const x86::irqchip::PitState& state) override;
    Result<void> set_pit_reinject(bool enabled) override;

private:
    x86::irqchip::Irqchip chip_;
    std::shared_ptr<x86::irqchip::Pit> pit_;
    Irqfds irqfds_;  // Last: it uses the chip.
};

}  // namespace vmm::core
