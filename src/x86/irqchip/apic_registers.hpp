// SPDX-License-Identifier: Apache-2.0

/// @file
/// A vCPU's local APIC as a VMM sees it, whoever has it: the library (`LocalApic`) or an engine
/// (`EngineApic`).

#pragma once

#include <cstdint>

#include "vmm/result.hpp"
#include "vmm/x86/irqchip_state.hpp"

namespace vmm::x86::irqchip {

/// Who writes IA32_APIC_BASE: the host may make transitions that a guest may not.
enum class ApicBaseWriter : std::uint8_t { Guest, Host };

class ApicRegisters {
public:
    ApicRegisters() = default;
    ApicRegisters(const ApicRegisters&) = delete;
    ApicRegisters& operator=(const ApicRegisters&) = delete;
    ApicRegisters(ApicRegisters&&) = delete;
    ApicRegisters& operator=(ApicRegisters&&) = delete;
    virtual ~ApicRegisters() = default;

    /// IA32_APIC_BASE.
    [[nodiscard]] virtual std::uint64_t apic_base() const noexcept = 0;
    /// False: reserved bits, or an illegal transition.
    [[nodiscard]] virtual bool set_apic_base(std::uint64_t value,
                                             ApicBaseWriter writer) noexcept = 0;

    /// TPR bits 7:4.
    [[nodiscard]] virtual std::uint8_t cr8() const noexcept = 0;
    virtual void set_cr8(std::uint8_t value) noexcept = 0;

    /// The register page, as KVM_GET_LAPIC and KVM_SET_LAPIC.
    [[nodiscard]] virtual LapicState state() const noexcept = 0;
    /// Set IA32_APIC_BASE first: it decides the mode that the page is for.
    ///
    /// @return EINVAL if in x2APIC mode the page holds another APIC's id.
    [[nodiscard]] virtual Result<void> set_state(const LapicState& state) = 0;
};

}  // namespace vmm::x86::irqchip
