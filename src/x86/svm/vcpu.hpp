// SPDX-License-Identifier: Apache-2.0

/// @file
/// One virtual CPU on AMD SVM.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "vmm/unique_fd.hpp"
#include "x86/engine.hpp"
#include "x86/soft/emulator.hpp"
#include "x86/svm/guest_switch.hpp"
#include "x86/svm/helper.hpp"
#include "x86/svm/vm.hpp"
#include "x86/svm/vmcb.hpp"

namespace vmm::x86::svm {

/// The canonical state is the emulator's; what the guest last ran on is in the area.  `current_`
/// and `changed_` say which groups of the one must be brought to the other.
class SvmVcpu final : public EngineVcpu {
public:
    [[nodiscard]] static Result<std::unique_ptr<EngineVcpu>> create(std::shared_ptr<SvmVm> vm,
                                                                    VcpuHost& host,
                                                                    std::uint32_t id);
    SvmVcpu(std::shared_ptr<SvmVm> vm, VcpuHost& host, UniqueFd fd, VcpuArea area);
    SvmVcpu(const SvmVcpu&) = delete;
    SvmVcpu& operator=(const SvmVcpu&) = delete;
    SvmVcpu(SvmVcpu&&) = delete;
    SvmVcpu& operator=(SvmVcpu&&) = delete;
    ~SvmVcpu() override;

    using EngineVcpu::state;
    using EngineVcpu::state_changed;
    CpuState& state(StateGroup current) noexcept override;
    void state_changed(StateGroup changed) noexcept override;
    Result<void> set_cpuid(Cpuid cpuid) override;
    Result<void> set_guest_debug(const GuestDebug& debug) override;
    bool has_msr(std::uint32_t index) const noexcept override;
    bool read_msr(std::uint32_t index, std::uint64_t& value) noexcept override;
    bool write_msr(std::uint32_t index, std::uint64_t value) noexcept override;
    const EngineExit& enter() noexcept override;
    bool complete_pending() noexcept override;
    void request_exit() noexcept override;
    bool translate(std::uint64_t linear, std::uint64_t& gpa) noexcept override;
    std::vector<std::pair<std::string_view, std::uint64_t>> counters() const override;

private:
    // State, in state.cpp.
    void load_registers() noexcept;
    void load_event() noexcept;
    void load_segments() noexcept;
    void load_debug() noexcept;
    void load_msrs() noexcept;
    void store() noexcept;
    void store_registers() noexcept;
    void store_event() noexcept;
    void store_segments() noexcept;
    void store_debug() noexcept;
    void store_msrs() noexcept;
    void store_controls() noexcept;
    [[nodiscard]] std::uint32_t choose_options() noexcept;

    /// Null: the guest goes on.
    const EngineExit* run_hardware() noexcept;
    const EngineExit* handle_exit() noexcept;
    const EngineExit* handle_port() noexcept;
    void complete_port_read() noexcept;
    void move_past_instruction(std::uint64_t next) noexcept;
    const EngineExit* emulate() noexcept;
    const EngineExit* reflect(Vector vector) noexcept;
    [[nodiscard]] bool take_request() noexcept;
    [[nodiscard]] bool must_emulate() const noexcept;
    [[nodiscard]] const EngineExit* open_window() noexcept;
    const EngineExit& leave(EngineExit::Reason reason) noexcept;
    const EngineExit* fail_entry(std::uint64_t reason) noexcept;

    std::shared_ptr<SvmVm> vm_;
    VcpuHost& host_;
    UniqueFd fd_;
    VcpuArea area_;
    std::unique_ptr<soft::Emulator> emulator_;
    CpuState& state_;  ///< The emulator's.
    FpuImage fpu_;
    EngineExit exit_;
    GuestDebug debugger_{};
    StateGroup current_{StateGroup::All};  ///< `state_` has these as the area has them, or newer.
    StateGroup changed_{StateGroup::All};  ///< The area must be told these.
    std::optional<Event> held_event_;      ///< The event that the area holds for injection.
    std::uint64_t hidden_cr0_{};           ///< Bits of CR0 that the hardware is not shown.
    std::array<std::uint32_t, Intercepts::word_count> intercepts_{};
    std::uint64_t msr_filters_seen_{};
    std::uint32_t options_{};
    /// An IN that left, with the RIP that it left at and the one behind it.
    struct PortRead {
        std::uint64_t rip{};
        std::uint64_t next{};
        std::size_t size{};
    };
    std::optional<PortRead> port_read_;
    std::array<std::byte, 4> port_data_{};
    bool exit_left_{};  ///< `complete_pending()` has met an exit for the next `enter()`.
    const EngineExit* left_{};
    std::uint64_t emulated_{};
};

}  // namespace vmm::x86::svm
