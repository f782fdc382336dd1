// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual machine of the helper's, and its memory slots as the library has them.

#pragma once

#include <map>
#include <memory>
#include <mutex>

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
};

}  // namespace vmm::x86::svm
