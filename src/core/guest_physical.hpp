// SPDX-License-Identifier: Apache-2.0

/// @file
/// The memory slots as an engine sees them.

#pragma once

#include "vmm/memory/memslots.hpp"
#include "x86/engine.hpp"

namespace vmm::core {

/// A slot table: address space 0, and by `in_smm()` the other.  Thread safety: all members from any
/// thread.
class GuestPhysical final : public x86::PhysicalMemory, public x86::MemorySlots {
public:
    [[nodiscard]] std::vector<Region> regions() override;
    void mark_slot_dirty(std::uint32_t slot, std::uint64_t page) noexcept override;
    [[nodiscard]] Page page(std::uint64_t gfn) noexcept override;
    void mark_dirty(std::uint64_t gfn) noexcept override;
    [[nodiscard]] PhysicalMemory& in_smm() noexcept override { return smm_; }

    /// Whether some slot has a dirty log.
    [[nodiscard]] bool logs_dirty() const noexcept;

    [[nodiscard]] memory::MemslotTable<>& slots() noexcept { return slots_; }

private:
    /// Address space 1.
    class Smm final : public x86::PhysicalMemory {
    public:
        explicit Smm(const memory::MemslotTable<>& slots) noexcept : slots_{slots} {}

        [[nodiscard]] Page page(std::uint64_t gfn) noexcept override;
        void mark_dirty(std::uint64_t gfn) noexcept override;

    private:
        const memory::MemslotTable<>& slots_;
    };

    memory::MemslotTable<> slots_;
    Smm smm_{slots_};
};

}  // namespace vmm::core
