// SPDX-License-Identifier: Apache-2.0

/// @file
/// The memory slots as an engine sees them.

#pragma once

#include "vmm/memory/memslots.hpp"
#include "x86/engine.hpp"

namespace vmm::core {

/// Address space 0 of a slot table.  Thread safety: all members from any thread.
class GuestPhysical final : public x86::PhysicalMemory, public x86::MemorySlots {
public:
    [[nodiscard]] std::vector<Region> regions() override;
    void mark_slot_dirty(std::uint32_t slot, std::uint64_t page) noexcept override;
    [[nodiscard]] Page page(std::uint64_t gfn) noexcept override;
    void mark_dirty(std::uint64_t gfn) noexcept override;

    /// Whether some slot has a dirty log.
    [[nodiscard]] bool logs_dirty() const noexcept;

    [[nodiscard]] memory::MemslotTable<>& slots() noexcept { return slots_; }

private:
    memory::MemslotTable<> slots_;
};

}  // namespace vmm::core
