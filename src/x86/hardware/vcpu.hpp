// SPDX-License-Identifier: Apache-2.0

/// @file
/// One virtual CPU on either vendor's hardware: the run loop around the helper.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "vmm/unique_fd.hpp"
#include "x86/engine.hpp"
#include "x86/hardware/guest_switch.hpp"
#include "x86/hardware/helper.hpp"
#include "x86/hardware/vm.hpp"
#include "x86/soft/emulator.hpp"

namespace vmm::x86::hardware {

/// Where the area has the event to inject.
struct EventWords {
    __u32& event;
    __u32& error;
    __u64& cr2;
};

/// What an exit of IN or OUT says.
struct PortAccess {
    std::uint64_t next_rip{};
    std::uint16_t port{};
    std::uint8_t size{};
    bool is_input{};
};

/// What a vCPU is made of, with the helper.
struct VcpuParts {
    std::shared_ptr<HelperVm> vm;
    UniqueFd fd;
    VcpuArea area;

    [[nodiscard]] static Result<VcpuParts> create(std::shared_ptr<HelperVm> vm, std::uint32_t id);
};

/// The canonical state is the emulator's; what the guest last ran on is in the area.  `current_`
/// and `changed_` say which groups of the one must be brought to the other.
class HardwareVcpu : public EngineVcpu {
public:
    /// `words` finds them in the area.
    HardwareVcpu(VcpuParts parts, VcpuHost& host, EventWords (*words)(vmm_vcpu_area& area));
    HardwareVcpu(const HardwareVcpu&) = delete;
    HardwareVcpu& operator=(const HardwareVcpu&) = delete;
    HardwareVcpu(HardwareVcpu&&) = delete;
    HardwareVcpu& operator=(HardwareVcpu&&) = delete;
    ~HardwareVcpu() override;

    using EngineVcpu::state_changed;
    void state_changed(StateGroup changed) noexcept override;
    Result<void> set_cpuid(Cpuid cpuid) override;
    Result<void> set_guest_debug(const GuestDebug& debug) override;
    bool has_msr(std::uint32_t index) const noexcept override;
    bool read_msr(std::uint32_t index, std::uint64_t& value) noexcept override;
    bool write_msr(std::uint32_t index, std::uint64_t value) noexcept override;
    const EngineExit& enter() noexcept override;
    bool complete_pending() noexcept override;
    void request_exit() noexcept override;
    std::uint64_t instruction_rip() noexcept override { return emulator_->instruction_rip(); }
    bool translate(std::uint64_t linear, std::uint64_t& gpa) noexcept override;
    void flush_tlb() noexcept override
    {
        area_->dirty |= VMM_DIRTY_TLB;
        ++flushes_;
    }
    std::vector<std::pair<std::string_view, std::uint64_t>> counters() const override;

protected:
    // --- What the vendors differ in.  From the area to the state, and back.
    virtual void load_shadows() noexcept = 0;
    virtual void load_segments() noexcept = 0;
    virtual void load_debug() noexcept = 0;
    virtual void load_msrs() noexcept = 0;
    virtual void store_shadows() noexcept = 0;
    virtual void store_segments() noexcept = 0;
    virtual void store_debug() noexcept = 0;
    virtual void store_msrs() noexcept = 0;
    /// What is intercepted, and what else goes in with every entry.
    virtual void store_controls() noexcept = 0;
    /// What the exit in the area means.  Null: the guest goes on.
    virtual const EngineExit* handle_exit() noexcept = 0;
    /// Whether the vendor's hardware has no means for the state, beside what neither has.
    [[nodiscard]] virtual bool cannot_enter() const noexcept { return false; }

    // --- What they have in common.
    /// Not of string instructions.
    const EngineExit* handle_port(const PortAccess& access) noexcept;
    /// CPUID, of which `next_rip` is behind it.
    const EngineExit* handle_cpuid(std::uint64_t next_rip) noexcept;
    const EngineExit* emulate() noexcept;
    /// As `emulate()`, of an instruction that has met memory which the helper has not: most are
    /// MOVs, for which little of the state must come and go.
    const EngineExit* emulate_access() noexcept;
    const EngineExit* reflect(Event event) noexcept;
    const EngineExit& leave(EngineExit::Reason reason) noexcept;
    const EngineExit* fail_entry(std::uint64_t reason) noexcept;
    const EngineExit* report_host_error(int error) noexcept;
    /// MSRs that the hardware, or the helper, switches are the guest's own, unless the caller's
    /// filter has one.
    [[nodiscard]] bool may_pass_msrs(std::span<const std::uint32_t> passed) noexcept
    {
        if (msr_filters_seen_ != vm_->msr_filters()) [[unlikely]] {
            ask_msr_filter(passed);
        }
        return passes_msrs_;
    }

    // NOLINTBEGIN(cppcoreguidelines-non-private-member-variables-in-classes): the two halves of one
    // class, of which one is the vendor's.
    std::shared_ptr<HelperVm> vm_;
    VcpuHost& host_;
    UniqueFd fd_;
    VcpuArea area_;
    std::unique_ptr<soft::Emulator> emulator_;
    CpuState& state_;  ///< The emulator's.
    // NOLINTEND(cppcoreguidelines-non-private-member-variables-in-classes)

private:
    CpuState& fetch_state(StateGroup wanted) noexcept override;
    void load_registers() noexcept;
    void load_event() noexcept;
    void store() noexcept;
    void store_registers() noexcept;
    void store_position() noexcept;
    void store_groups() noexcept;
    void store_event() noexcept;
    void store_cpuid() noexcept;
    void ask_msr_filter(std::span<const std::uint32_t> passed) noexcept;

    /// Null: the guest goes on.
    const EngineExit* run_hardware() noexcept;
    void complete_port_read() noexcept;
    void move_past_instruction(std::uint64_t next) noexcept;
    [[nodiscard]] bool take_request() noexcept;
    [[nodiscard]] bool is_plain() const noexcept;
    [[nodiscard]] bool is_watched() const noexcept;
    [[nodiscard]] bool must_emulate() const noexcept;
    [[nodiscard]] const EngineExit* open_window() noexcept;
    [[nodiscard]] const EngineExit* go_on() noexcept;

    EventWords words_;
    FpuImage fpu_;
    EngineExit exit_;
    bool is_debugged_{};
    StateGroup changed_{StateGroup::All};  ///< The area must be told these.
    bool moved_{};                         ///< The same of RIP, RFLAGS and the shadows.
    std::optional<Event> held_event_;      ///< The event that the area holds for injection.
    /// What decides the helper's answers to CPUID, beside the leaves.
    struct CpuidKey {
        std::uint64_t cr4{};
        std::uint64_t xcr0{};
        std::uint64_t xss{};
        std::uint64_t apic_base{};

        friend bool operator==(const CpuidKey&, const CpuidKey&) = default;
    };
    CpuidKey cpuid_key_{};
    std::vector<vmm_cpuid_leaf> cpuid_leaves_;  ///< What the helper has.
    bool cpuid_changed_{};                      ///< The leaves.
    bool may_change_cpuid_{};                   ///< What the answers follow.
    std::uint64_t msr_filters_seen_{};
    bool passes_msrs_{true};
    /// An IN that left, with the RIP that it left at and the one behind it.
    struct PortRead {
        std::uint64_t rip{};
        std::uint64_t next{};
        std::size_t size{};  ///< 0: there is none.
    };
    PortRead port_read_;
    std::array<std::byte, 4> port_data_{};
    bool emulation_waits_{};  ///< The emulator has left an access that is not complete.
    bool exit_left_{};        ///< `complete_pending()` has met an exit for the next `enter()`.
    const EngineExit* left_{};
    std::uint64_t emulated_{};
    std::uint64_t flushes_{};  ///< Of the TLB, that the core asked for.
};

}  // namespace vmm::x86::hardware
