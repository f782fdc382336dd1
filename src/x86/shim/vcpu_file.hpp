// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual CPU as a file.

#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include <signal.h>

#include "vmm/vcpu.hpp"
#include "x86/shim/descriptors.hpp"
#include "x86/shim/dispatch.hpp"
#include "x86/shim/file.hpp"
#include "x86/shim/vm_file.hpp"

namespace vmm::shim {

class RunScope;

/// What a client has said that it knows of (KVM_ENABLE_CAP).
struct KnownEvents {
    /// KVM_CAP_EXCEPTION_PAYLOAD: exceptions that are pending are told from those that are being
    /// injected, and what they bring is shown.
    bool payloads{};
    bool triple_faults{};  ///< KVM_CAP_X86_TRIPLE_FAULT_EVENT.
};

/// Its ioctls wait for one another, as KVM's do: one on a vCPU that another thread runs waits for
/// that run to end.
class VcpuFile final : public File, public std::enable_shared_from_this<VcpuFile> {
public:
    VcpuFile(std::shared_ptr<VmFile> vm,
             Vcpu vcpu,
             RunArea area,
             std::optional<SharedPages> dirty_ring,
             bool has_ring) noexcept
        : vm_{std::move(vm)},
          dirty_ring_{std::move(dirty_ring)},
          vcpu_{std::move(vcpu)},
          kicker_{vcpu_.kicker()},
          area_{std::move(area)},
          has_ring_{has_ring}
    {
    }

    [[nodiscard]] long ioctl(unsigned request, unsigned long argument) noexcept override;
    [[nodiscard]] std::string link_name() const override
    {
        return "anon_inode:kvm-vcpu:" + std::to_string(vcpu_.id());
    }

    [[nodiscard]] long may_map(std::size_t size,
                               int protection,
                               int flags,
                               off_t offset) noexcept override;
    void mapped(void* at,
                std::size_t size,
                int protection,
                int flags,
                off_t offset) noexcept override;

    [[nodiscard]] VmFile& vm() noexcept { return *vm_; }
    [[nodiscard]] Vcpu& vcpu() noexcept { return vcpu_; }
    [[nodiscard]] KnownEvents known_events() const noexcept
    {
        return {vm_->shows_payloads, vm_->shows_triple_faults};
    }
    [[nodiscard]] bool has_run() const noexcept { return has_run_; }
    void set_run_mask(const std::optional<sigset_t>& mask) noexcept { run_mask_ = mask; }

private:
    [[nodiscard]] long run() noexcept;
    [[nodiscard]] long run_locked(RunScope& scope);
    [[nodiscard]] bool load_synced(kvm_run& area);
    void take_answer(kvm_run& area) noexcept;
    [[nodiscard]] long show(kvm_run& area, const Exit& exit);
    void show_state(kvm_run& area);

    std::shared_ptr<VmFile> vm_;
    std::optional<SharedPages> dirty_ring_;  // Before the vCPU, which writes to it.
    Vcpu vcpu_;
    const Vcpu::Kicker kicker_;
    RunArea area_;
    const bool has_ring_;          // The VM's coalesced ring is in this one's memory.
    std::mutex mutex_;             // All below, and `vcpu_`.
    std::optional<Exit> pending_;  // An access that the client answers in the area.
    std::optional<sigset_t> run_mask_;
    bool has_run_{};
};

/// Events as KVM has them, for KVM_GET_VCPU_EVENTS and the run area.
///
[[nodiscard]] kvm_vcpu_events events_of(Vcpu& vcpu, KnownEvents known);
[[nodiscard]] long set_events(Vcpu& vcpu, const kvm_vcpu_events& events, KnownEvents known);
/// Special registers with the interrupt bitmap.
[[nodiscard]] kvm_sregs sregs_of(Vcpu& vcpu);
[[nodiscard]] long set_sregs(Vcpu& vcpu, const kvm_sregs& sregs);

// --- Groups of ioctls.

[[nodiscard]] std::span<const Row<VcpuFile>> vcpu_register_rows() noexcept;
[[nodiscard]] std::span<const Row<VcpuFile>> vcpu_fpu_rows() noexcept;
[[nodiscard]] std::span<const Row<VcpuFile>> vcpu_cpuid_rows() noexcept;
[[nodiscard]] std::span<const Row<VcpuFile>> vcpu_event_rows() noexcept;
[[nodiscard]] std::span<const Row<VcpuFile>> vcpu_apic_rows() noexcept;
[[nodiscard]] std::span<const Row<VcpuFile>> vcpu_misc_rows() noexcept;
[[nodiscard]] std::span<const Row<VcpuFile>> vcpu_debug_rows() noexcept;

}  // namespace vmm::shim
