// SPDX-License-Identifier: Apache-2.0

/// @file
/// The interrupt controllers of a VM as the core sees them, whoever has them: the library
/// (`core::LibraryIrqchip`) or an engine (`EngineVm::create_irqchip`).

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "vmm/address.hpp"
#include "vmm/bus/device.hpp"
#include "vmm/result.hpp"
#include "vmm/x86/irqchip_state.hpp"
#include "x86/irqchip/routing.hpp"

namespace vmm::x86::irqchip {

/// PIC pair, I/O APIC, PIT, routing and irqfds; the local APICs are the vCPUs' (`ApicRegisters`).
/// Members are as `Vm` documents them.
///
/// Thread safety: every member from any thread; what creates or sets state, one at a time.
class Controllers {
public:
    Controllers() = default;
    Controllers(const Controllers&) = delete;
    Controllers& operator=(const Controllers&) = delete;
    Controllers(Controllers&&) = delete;
    Controllers& operator=(Controllers&&) = delete;
    virtual ~Controllers() = default;

    [[nodiscard]] virtual IrqchipMode mode() const noexcept = 0;

    [[nodiscard]] virtual Result<int> set_line(std::uint32_t gsi, bool level) = 0;
    [[nodiscard]] virtual Result<int> signal_msi(Gpa address, std::uint32_t data) = 0;
    [[nodiscard]] virtual Result<void> set_routing(std::span<const GsiRoute> routes) = 0;
    [[nodiscard]] virtual Result<void> assign_irqfd(int eventfd,
                                                    std::uint32_t gsi,
                                                    std::optional<int> resamplefd) = 0;
    [[nodiscard]] virtual Result<void> deassign_irqfd(int eventfd, std::uint32_t gsi) = 0;

    // --- Of a full irqchip.

    /// The PIC pair as a device whose offset 0 is port 0x20; null where the guest's accesses do not
    /// come as far as the core's bus.
    [[nodiscard]] virtual std::shared_ptr<bus::DeviceBase> pic_device() const noexcept = 0;
    /// @pre `chip` is a PIC
    [[nodiscard]] virtual Result<PicState> pic(ChipId chip) const = 0;
    [[nodiscard]] virtual Result<void> set_pic(ChipId chip, const PicState& state) = 0;
    [[nodiscard]] virtual Result<IoApicState> io_apic() const = 0;
    [[nodiscard]] virtual Result<void> set_io_apic(const IoApicState& state) = 0;

    /// The PIT, with the speaker's port, as a device whose offset 0 is port 0x40; null as of
    /// `pic_device()`.  Once.
    [[nodiscard]] virtual Result<std::shared_ptr<bus::DeviceBase>> create_pit() = 0;
    [[nodiscard]] virtual bool has_pit() const noexcept = 0;
    /// @pre `has_pit()`
    [[nodiscard]] virtual Result<PitState> pit() const = 0;
    [[nodiscard]] virtual Result<void> set_pit(const PitState& state) = 0;
    [[nodiscard]] virtual Result<void> set_pit_reinject(bool enabled) = 0;
};

}  // namespace vmm::x86::irqchip
