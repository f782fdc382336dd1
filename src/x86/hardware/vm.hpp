// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual machine of the helper's, and its memory slots as the library has them.

#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "x86/engine.hpp"
#include "x86/hardware/helper.hpp"
#include "x86/soft/emulator.hpp"

namespace vmm::x86::hardware {

class HelperVm {
public:
    HelperVm(UniqueFd fd,
             std::uint32_t features,
             std::unique_ptr<soft::EmulatorVm> emulator,
             PhysicalMemory& pages,
             MemorySlots& memory) noexcept
        : fd_{std::move(fd)},
          features_{features},
          emulator_{std::move(emulator)},
          pages_{pages},
          memory_{memory}
    {
    }

    [[nodiscard]] const UniqueFd& fd() const noexcept { return fd_; }
    /// `VMM_FEATURE_*`.
    [[nodiscard]] std::uint32_t features() const noexcept { return features_; }
    [[nodiscard]] PhysicalMemory& pages() const noexcept { return pages_; }
    [[nodiscard]] soft::EmulatorVm& emulator() const noexcept { return *emulator_; }

    /// Makes the helper's slots those of the library.  Any thread.
    Result<void> memory_changed();
    /// Moves the writes that the helper has logged in a slot to the library's log.  Any thread.
    Result<void> collect_dirty_log(std::uint32_t slot);

    // --- Dirty rings: the helper tells of each write that it logs, and need not be asked.
    /// Before the first slot that logs.
    void tell_each_write() noexcept { tells_writes_ = true; }
    /// A vCPU is about to write a page; on its thread.
    void page_written(std::uint32_t slot, std::uint64_t page) noexcept;
    /// Has the pages told of since the last call told of again.  Any thread.
    void protect_written_pages() noexcept;

    // --- The MSR filter is the core's; what the CPU answers itself is looked at anew when it
    // changes.
    void add(EngineVcpu& vcpu);
    void remove(EngineVcpu& vcpu) noexcept;
    void msr_filter_changed() noexcept;
    [[nodiscard]] std::uint64_t msr_filters() const noexcept { return msr_filters_.load(); }

private:
    using Region = MemorySlots::Region;

    Result<void> add(const Region& region);
    Result<void> remove(std::uint32_t slot);
    Result<void> collect_locked(const Region& region);
    /// Words of a slot's log.
    struct Words {
        std::uint64_t first{};
        std::uint64_t end{};
    };
    [[nodiscard]] Result<std::vector<std::uint64_t>> take_log(std::uint32_t slot, Words words);

    UniqueFd fd_;
    std::uint32_t features_{};
    std::unique_ptr<soft::EmulatorVm> emulator_;
    PhysicalMemory& pages_;
    MemorySlots& memory_;
    std::mutex mutex_;                       // What follows, and the order of changes.
    std::map<std::uint32_t, Region> slots_;  ///< What the helper has been told.
    std::vector<EngineVcpu*> vcpus_;
    std::atomic<std::uint64_t> msr_filters_{};  ///< How many there have been.
    bool tells_writes_{};
    std::mutex written_mutex_;
    std::map<std::uint32_t, Words> written_;  ///< By slot: where there are pages to protect.
};

/// Makes one vCPU of a VM, on one vendor's hardware.
using CreateVcpu = Result<std::unique_ptr<EngineVcpu>> (*)(std::shared_ptr<HelperVm> vm,
                                                           VcpuHost& host,
                                                           std::uint32_t id);

/// An engine for a VM with this memory, which outlives it.
[[nodiscard]] Result<std::unique_ptr<EngineVm>> create_hardware_vm(PhysicalMemory& pages,
                                                                   MemorySlots& slots,
                                                                   CreateVcpu create_vcpu);

/// Of the library's offer (`x86::supported_cpuid`), what this host's CPU executes.
[[nodiscard]] std::vector<CpuidEntry> supported_cpuid(std::uint32_t tsc_khz);

/// Takes a feature out of an offer.
void withdraw(std::vector<CpuidEntry>& offer, CpuidFeature unwanted);

}  // namespace vmm::x86::hardware
