// SPDX-License-Identifier: Apache-2.0

/// @file
/// One virtual CPU on AMD SVM.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "x86/hardware/fields.hpp"
#include "x86/hardware/vcpu.hpp"
#include "x86/svm/vmcb.hpp"

namespace vmm::x86::svm {

class SvmVcpu final : public hardware::HardwareVcpu {
public:
    [[nodiscard]] static Result<std::unique_ptr<EngineVcpu>>
    create(std::shared_ptr<hardware::HelperVm> vm, VcpuHost& host, std::uint32_t id);
    SvmVcpu(hardware::VcpuParts parts, VcpuHost& host);

private:
    /// What decides the intercepts.
    class Choices final : public Register<Choices, unsigned> {
    public:
        using Register::Register;

        static constexpr Field<Choices, 0> irq_window{};
        static constexpr Field<Choices, 1> nmi_blocked{};
        static constexpr Field<Choices, 2> hides_cr0{};
        static constexpr Field<Choices, 3> intercepts_all_msrs{};
    };

    // In state.cpp.
    void load_shadows() noexcept override;
    void load_segments() noexcept override;
    void load_debug() noexcept override;
    void load_msrs() noexcept override;
    void store_shadows() noexcept override;
    void store_segments() noexcept override;
    void store_debug() noexcept override;
    void store_msrs() noexcept override;
    void store_controls() noexcept override;

    void fetch() noexcept;
    void store_intercepts(Choices choices) noexcept;
    const EngineExit* handle_exit() noexcept override;
    [[nodiscard]] bool cannot_enter() const noexcept override;
    const EngineExit* handle_cpuid() noexcept;
    const EngineExit* reflect(Vector vector) noexcept;

    std::uint64_t hidden_cr0_{};       ///< Bits of CR0 that the hardware is not shown.
    std::optional<unsigned> choices_;  ///< Those that the area's controls were made of.
};

}  // namespace vmm::x86::svm
