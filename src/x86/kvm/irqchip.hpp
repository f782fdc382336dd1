// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM's own interrupt controllers of a VM.

#pragma once

#include <atomic>
#include <memory>

#include "x86/irqchip/controllers.hpp"
#include "x86/kvm/vm.hpp"

namespace vmm::x86::kvm {

class KvmIrqchip final : public irqchip::Controllers {
public:
    /// @pre the VM has them (`KvmVm::create_irqchip`)
    KvmIrqchip(std::shared_ptr<KvmVm> vm, irqchip::IrqchipMode mode) noexcept
        : vm_{std::move(vm)},
          mode_{mode}
    {
    }

    [[nodiscard]] irqchip::IrqchipMode mode() const noexcept override { return mode_; }
    Result<int> set_line(std::uint32_t gsi, bool level) override;
    Result<int> signal_msi(Gpa address, std::uint32_t data) override;
    Result<void> set_routing(std::span<const irqchip::GsiRoute> routes) override;
    Result<void> assign_irqfd(int eventfd,
                              std::uint32_t gsi,
                              std::optional<int> resamplefd) override;
    Result<void> deassign_irqfd(int eventfd, std::uint32_t gsi) override;

    [[nodiscard]] std::shared_ptr<bus::DeviceBase> pic_device() const noexcept override
    {
        return nullptr;
    }
    [[nodiscard]] Result<irqchip::PicState> pic(irqchip::ChipId chip) const override;
    Result<void> set_pic(irqchip::ChipId chip, const irqchip::PicState& state) override;
    [[nodiscard]] Result<irqchip::IoApicState> io_apic() const override;
    Result<void> set_io_apic(const irqchip::IoApicState& state) override;

    Result<std::shared_ptr<bus::DeviceBase>> create_pit() override;
    [[nodiscard]] bool has_pit() const noexcept override { return has_pit_.load(); }
    [[nodiscard]] Result<irqchip::PitState> pit() const override;
    Result<void> set_pit(const irqchip::PitState& state) override;
    Result<void> set_pit_reinject(bool enabled) override;

private:
    const std::shared_ptr<KvmVm> vm_;
    const irqchip::IrqchipMode mode_;
    std::atomic<bool> has_pit_{};
};

}  // namespace vmm::x86::kvm
