// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual machine of the kernel's KVM, and its memory slots as the library has them.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "vmm/unique_fd.hpp"
#include "x86/engine.hpp"
#include "x86/kvm/system.hpp"

namespace vmm::x86::kvm {

class KvmVm {
public:
    [[nodiscard]] static Result<std::shared_ptr<KvmVm>> create(MemorySlots& memory,
                                                               int kick_signal);

    KvmVm(UniqueFd fd, int run_size, MemorySlots& memory, int kick_signal) noexcept
        : fd_{std::move(fd)},
          run_size_{run_size},
          memory_{memory},
          kick_signal_{kick_signal}
    {
    }

    [[nodiscard]] const UniqueFd& fd() const noexcept { return fd_; }
    /// Whether the MSR is KVM's to answer, not the core's.
    [[nodiscard]] bool keeps_msr(std::uint32_t index) const noexcept;
    /// Of these, those that come with KVM's own local APICs.
    [[nodiscard]] bool keeps_apic_msr(std::uint32_t index) const noexcept;

    /// Interrupt controllers and, for each vCPU from now on, a local APIC of KVM's own.
    Result<void> create_irqchip(irqchip::IrqchipMode mode, std::uint32_t io_apic_pins);
    [[nodiscard]] bool has_apics() const noexcept { return has_apics_; }
    Result<void> set_boot_cpu_id(std::uint32_t id);
    void set_halt_poll_ns(std::uint32_t longest) noexcept;

    [[nodiscard]] int run_size() const noexcept { return run_size_; }
    [[nodiscard]] int kick_signal() const noexcept { return kick_signal_; }

    /// Makes KVM's slots those of the library.  Any thread.
    Result<void> memory_changed();
    /// Which of the MSRs that KVM keeps the guest may access.  Any thread.
    Result<void> set_msr_filter(const MsrFilter& filter);
    Result<void> disable_quirks(std::uint64_t quirks);
    Result<void> set_hypercall_exits(std::uint64_t calls);
    /// Moves the writes that KVM has logged in a slot to the library's log.  Any thread.
    Result<void> collect_dirty_log(std::uint32_t slot);

    /// KVM logs into a ring of each vCPU from now on, of so many entries, or the next number that
    /// it takes.  Before the first vCPU.
    Result<void> enable_dirty_rings(std::uint32_t entries);
    /// Entries of a vCPU's; 0 without rings.
    [[nodiscard]] std::uint32_t dirty_ring_entries() const noexcept { return dirty_ring_entries_; }
    /// Has the pages that were taken from rings logged again, and frees their entries.  Any thread.
    void reset_dirty_rings() noexcept;
    [[nodiscard]] MemorySlots& memory() const noexcept { return memory_; }

private:
    using Region = MemorySlots::Region;

    Result<void> set(const Region& region) noexcept;
    Result<void> remove(std::uint32_t slot) noexcept;
    Result<void> collect_locked(const Region& region);

    UniqueFd fd_;
    int run_size_;
    MemorySlots& memory_;
    int kick_signal_;
    std::uint32_t dirty_ring_entries_{};
    bool has_apics_{};                       // Set before the first vCPU.
    std::mutex mutex_;                       // What follows, and the order of KVM's changes.
    std::map<std::uint32_t, Region> slots_;  ///< What KVM has been told.
    MsrFilter guests_msrs_;                  ///< What the core has told.
};

}  // namespace vmm::x86::kvm
