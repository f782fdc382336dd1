// SPDX-License-Identifier: Apache-2.0

/// @file
/// One virtual CPU of the kernel's KVM.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include <sys/types.h>

#include "vmm/memory/dirty_ring.hpp"
#include "vmm/unique_fd.hpp"
#include "x86/engine.hpp"
#include "x86/kvm/apic.hpp"
#include "x86/kvm/kick.hpp"
#include "x86/kvm/statistics.hpp"
#include "x86/kvm/system.hpp"
#include "x86/kvm/vm.hpp"

namespace vmm::x86::kvm {

/// The page (and more) that KVM shares with user space.
class RunArea {
public:
    [[nodiscard]] static Result<RunArea> map(const UniqueFd& vcpu, int size);
    /// The vCPU's dirty ring, which lies elsewhere behind its descriptor.
    [[nodiscard]] static Result<RunArea> map_ring(const UniqueFd& vcpu, std::uint32_t entries);
    RunArea(RunArea&& other) noexcept;
    RunArea& operator=(RunArea&&) = delete;
    RunArea(const RunArea&) = delete;
    RunArea& operator=(const RunArea&) = delete;
    ~RunArea();

    [[nodiscard]] kvm_run* operator->() const noexcept { return run_; }
    /// What lies `offset` bytes into the area.
    [[nodiscard]] std::byte* at(std::uint64_t offset) const noexcept;
    /// Of `map_ring()`.
    [[nodiscard]] std::span<memory::DirtyGfn> ring() const noexcept;

private:
    RunArea(void* run, std::size_t size) noexcept : run_{static_cast<kvm_run*>(run)}, size_{size} {}
    [[nodiscard]] static Result<RunArea> map(const UniqueFd& vcpu,
                                             std::size_t size,
                                             off_t offset,
                                             const char* what);

    kvm_run* run_;
    std::size_t size_;
};

class KvmVcpu final : public EngineVcpu {
public:
    [[nodiscard]] static Result<std::unique_ptr<EngineVcpu>> create(std::shared_ptr<KvmVm> vm,
                                                                    VcpuHost& host,
                                                                    std::uint32_t id);
    KvmVcpu(std::shared_ptr<KvmVm> vm,
            VcpuHost& host,
            UniqueFd fd,
            RunArea run,
            std::optional<RunArea> ring) noexcept;

    using EngineVcpu::state_changed;
    void state_changed(StateGroup changed) noexcept override;
    Result<void> set_cpuid(Cpuid cpuid) override;
    Result<void> set_guest_debug(const GuestDebug& debug) override;
    bool has_msr(std::uint32_t index) const noexcept override;
    bool read_msr(std::uint32_t index, std::uint64_t& value) noexcept override;
    bool write_msr(std::uint32_t index, std::uint64_t value) noexcept override;
    const EngineExit& enter() noexcept override;
    bool complete_pending() noexcept override;
    void request_exit() noexcept override { kick_.request(); }
    EngineApic* apic() noexcept override { return apic_ ? &*apic_ : nullptr; }
    bool translate(std::uint64_t linear, std::uint64_t& gpa) noexcept override;
    std::vector<std::pair<std::string_view, std::uint64_t>> counters() const override
    {
        return statistics_.read();
    }

private:
    friend class KvmApic;

    CpuState& fetch_state(StateGroup current) noexcept override;

    /// What is to be done after KVM_RUN has returned.
    enum class Next : std::uint8_t { Run, Leave };

    // State, in state.cpp.  Stores return false where KVM refuses.
    void load_registers() noexcept;
    void load_events(const kvm_vcpu_events& events) noexcept;
    void load_segments() noexcept;
    void load_fpu() noexcept;
    void load_debug() noexcept;
    void load_msrs() noexcept;
    [[nodiscard]] bool store() noexcept;
    /// Gives KVM at once what waits in the run area: a vCPU that waits for a SIPI does not take it
    /// from there.
    [[nodiscard]] bool store_run_area() noexcept;
    /// KVM has changed registers outside of KVM_RUN.
    void reload() noexcept;
    void store_registers() noexcept;
    void store_events() noexcept;
    void apply_payload() noexcept;
    [[nodiscard]] bool events_changed() const noexcept;
    [[nodiscard]] bool store_segments() noexcept;
    [[nodiscard]] bool store_fpu() noexcept;
    [[nodiscard]] bool store_debug() noexcept;
    [[nodiscard]] bool store_msrs() noexcept;
    void store_tsc_offset() noexcept;

    Next run_once(bool immediate) noexcept;
    void take_dirty_pages() noexcept;
    Next handle_exit() noexcept;
    Next handle_port() noexcept;
    Next handle_mmio() noexcept;
    Next handle_msr() noexcept;
    Next handle_hypercall() noexcept;
    Next handle_internal_error() noexcept;
    Next handle_debug() noexcept;
    Next handle_eoi() noexcept;
    Next handle_tpr_access() noexcept;
    [[nodiscard]] bool store_guest_debug() noexcept;
    Next leave(EngineExit::Reason reason) noexcept;
    Next fail_entry(std::uint64_t reason) noexcept;
    [[nodiscard]] MsrResult access_msr(std::uint32_t index,
                                       bool write,
                                       std::uint64_t& value) noexcept;
    void take_msr_answer() noexcept;

    std::shared_ptr<KvmVm> vm_;
    VcpuHost& host_;
    UniqueFd fd_;
    RunArea run_;
    std::optional<RunArea> ring_;
    memory::DirtyRingReader dirty_pages_;
    HostStatistics statistics_;
    Kick kick_;
    std::optional<KvmApic> apic_;  ///< Where the VM has KVM's own.
    CpuState state_;
    EngineExit exit_;
    MsrAnswer msr_answer_;                    ///< Of the caller, to an MSR exit.
    StateGroup changed_{StateGroup::None};    ///< KVM must be told these.
    std::optional<Event> kvms_event_;         ///< The event that KVM itself holds for injection.
    bool kvm_has_nmi_{};                      ///< KVM was given the NMI that the core has waiting.
    std::optional<bool> nmi_pending_wanted_;  ///< With `apic_`: what the next store sets.
    bool completes_{};                        ///< The next KVM_RUN completes an access first.
    bool exit_left_{};  ///< `complete_pending()` has met an exit for the next `enter()`.
    GuestDebug debugger_{};
    std::optional<std::uint64_t> tsc_offset_;  ///< What KVM adds to the host's TSC.
};

}  // namespace vmm::x86::kvm
