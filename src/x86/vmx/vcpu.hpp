// SPDX-License-Identifier: Apache-2.0

/// @file
/// One virtual CPU on Intel VMX.

#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "x86/hardware/fields.hpp"
#include "x86/hardware/vcpu.hpp"
#include "x86/vmx/vmcs.hpp"

namespace vmm::x86::vmx {

/// Segments and control registers are stored by the helper when they are asked for (`VMM_FETCH`);
/// debug registers and MSRs but KERNEL_GS_BASE change by the emulator alone.
class VmxVcpu final : public hardware::HardwareVcpu {
public:
    [[nodiscard]] static Result<std::unique_ptr<EngineVcpu>>
    create(std::shared_ptr<hardware::HelperVm> vm, VcpuHost& host, std::uint32_t id);
    VmxVcpu(hardware::VcpuParts parts, VcpuHost& host);

    std::vector<std::pair<std::string_view, std::uint64_t>> counters() const override;

private:
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
    void store_pdptes() noexcept;

    const EngineExit* handle_exit() noexcept override;
    const EngineExit* handle_exception() noexcept;
    bool cannot_enter() const noexcept override;

    std::uint64_t
        invalid_states_{};  ///< Entries that hardware refused, and the emulator carried out.
};

}  // namespace vmm::x86::vmx
