// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual machine as a file.

#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>

#include "vmm/kvm.hpp"
#include "x86/shim/descriptors.hpp"
#include "x86/shim/dispatch.hpp"
#include "x86/shim/file.hpp"
#include "x86/shim/host_ranges.hpp"

namespace vmm::shim {

/// Lives until the last descriptor of it and of its vCPUs is closed, as KVM's.
class VmFile final : public File, public std::enable_shared_from_this<VmFile> {
public:
    VmFile(std::shared_ptr<const Kvm> kvm, Vm vm) noexcept
        : kvm_{std::move(kvm)},
          vm_{std::move(vm)}
    {
    }

    [[nodiscard]] long ioctl(unsigned request, unsigned long argument) noexcept override;
    [[nodiscard]] std::string link_name() const override { return "anon_inode:kvm-vm"; }

    [[nodiscard]] const Kvm& kvm() const noexcept { return *kvm_; }
    [[nodiscard]] Vm& vm() noexcept { return vm_; }
    [[nodiscard]] HostRanges& host_ranges() noexcept { return host_ranges_; }

    /// What ioctls have set up, for others that depend on it.
    std::atomic<bool> has_irqchip{};
    std::atomic<bool> has_vcpu{};
    std::atomic<bool> x2apic_ids_are_32_bits{};  ///< KVM_X2APIC_API_USE_32BIT_IDS.
    std::atomic<std::uint64_t> vcpu_id_end{};    ///< KVM_CAP_MAX_VCPU_ID; 0: not limited.
    std::atomic<unsigned long> mmu_pages{};      ///< KVM_SET_NR_MMU_PAGES.
    std::atomic<bool> shows_payloads{};          ///< KVM_CAP_EXCEPTION_PAYLOAD.
    std::atomic<bool> shows_triple_faults{};     ///< KVM_CAP_X86_TRIPLE_FAULT_EVENT.
    std::atomic<bool> dirty_log_is_manual{};     ///< KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.

    std::atomic<std::size_t> dirty_ring_size{};  ///< KVM_CAP_DIRTY_LOG_RING, in bytes; 0: none.

    /// The coalesced ring is one of the VM's, in the areas of all its vCPUs: it lives in the first
    /// one's.
    ///
    /// @return whether that is this one.
    bool offer_ring(const UniqueFd& vcpu_memfd);
    /// The memfd whose third page is the ring; none before there is a vCPU.
    [[nodiscard]] const UniqueFd& ring_memfd() const noexcept { return ring_memfd_; }

private:
    std::shared_ptr<const Kvm> kvm_;
    HostRanges host_ranges_;
    std::mutex ring_mutex_;
    UniqueFd ring_memfd_;
    std::optional<RunArea> ring_area_;  // Before the VM, which writes to it.
    Vm vm_;
};

/// KVM_CREATE_VCPU.
[[nodiscard]] long create_vcpu(VmFile& vm, unsigned long id);

/// KVM_CAP_X86_USER_SPACE_MSR.
[[nodiscard]] long set_msr_exits(VmFile& file, __u64 reasons);

// --- Groups of ioctls.

[[nodiscard]] std::span<const Row<VmFile>> vm_rows() noexcept;
[[nodiscard]] std::span<const Row<VmFile>> vm_memory_rows() noexcept;
[[nodiscard]] std::span<const Row<VmFile>> vm_interrupt_rows() noexcept;
[[nodiscard]] std::span<const Row<VmFile>> vm_irqchip_rows() noexcept;
[[nodiscard]] std::span<const Row<VmFile>> vm_io_rows() noexcept;
[[nodiscard]] std::span<const Row<VmFile>> vm_msr_rows() noexcept;

}  // namespace vmm::shim
