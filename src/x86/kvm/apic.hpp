// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM's own local APIC of a vCPU.

#pragma once

#include <cstdint>

#include "x86/engine.hpp"

namespace vmm::x86::kvm {

class KvmVcpu;

class KvmApic final : public EngineApic {
public:
    explicit KvmApic(KvmVcpu& vcpu) noexcept : vcpu_{vcpu} {}

    [[nodiscard]] std::uint64_t apic_base() const noexcept override;
    bool set_apic_base(std::uint64_t value, irqchip::ApicBaseWriter writer) noexcept override;
    [[nodiscard]] std::uint8_t cr8() const noexcept override;
    void set_cr8(std::uint8_t value) noexcept override;
    [[nodiscard]] irqchip::LapicState state() const noexcept override;
    Result<void> set_state(const irqchip::LapicState& state) override;

    [[nodiscard]] MpState mp_state() noexcept override;
    Result<void> set_mp_state(MpState state) override;
    void inject_nmi() noexcept override;
    [[nodiscard]] bool is_nmi_pending() noexcept override;
    void set_nmi_pending(bool pending) noexcept override;
    Result<void> interrupt(std::uint8_t vector) override;
    [[nodiscard]] bool takes_interrupts() const noexcept override;
    void report_tpr_accesses(bool wanted) noexcept override;
    Result<void> set_vapic_address(Gpa word) override;
    void enforce_pv_features(bool enforced) noexcept override;

private:
    KvmVcpu& vcpu_;
};

}  // namespace vmm::x86::kvm
