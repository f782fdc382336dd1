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
#include "x86/soft/emulator.hpp"
#include "x86/svm/helper.hpp"

namespace vmm::x86::svm {

class SvmVm {
public:
    SvmVm(UniqueFd fd, std::unique_ptr<soft::EmulatorVm> emulator, MemorySlots& memory) noexcept
        : fd_{std::move(fd)},
          emulator_{std::move(emulator)},
          memory_{memory}
    {
    }

    [[nodiscard]] const UniqueFd& fd() const noexcept { return fd_; }
    [[nodiscard]] soft::EmulatorVm& emulator() const noexcept { return *emulator_; }

    /// Makes the helper's slots those of the library.  Any thread.
    Result<void> memory_changed();
    /// Moves the writes that the helper has logged in a slot to the library's log.  Any thread.
    Result<void> collect_dirty_log(std::uint32_t slot);

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

    UniqueFd fd_;
    std::unique_ptr<soft::EmulatorVm> emulator_;
    MemorySlots& memory_;
    std::mutex mutex_;                       // What follows, and the order of changes.
    std::map<std::uint32_t, Region> slots_;  ///< What the helper has been told.
    std::vector<EngineVcpu*> vcpus_;
    std::atomic<std::uint64_t> msr_filters_{};  ///< How many there have been.
};

}  // namespace vmm::x86::svm
