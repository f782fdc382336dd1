// SPDX-License-Identifier: Apache-2.0

/// @file
/// A copy of a VM's memory for a second engine.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "x86/engine.hpp"

namespace vmm::x86::lockstep {

/// Thread safety: all members from any thread, except that `copy_all()` and `differences()`
/// want both engines to stand still.
class ShadowMemory final : public PhysicalMemory, public MemorySlots {
public:
    explicit ShadowMemory(MemorySlots& original) noexcept : original_{original} {}

    Page page(std::uint64_t gfn) noexcept override;
    void mark_dirty(std::uint64_t /*gfn*/) noexcept override {}
    std::vector<Region> regions() override;
    void mark_slot_dirty(std::uint32_t /*slot*/, std::uint64_t /*page*/) noexcept override {}

    /// The original's slots changed: new ones are copied.
    void follow_slots();
    /// The original was written behind the engines' backs.
    void copy(std::uint64_t gpa, std::uint64_t size_bytes) noexcept;
    void copy_all() noexcept;

    /// The 32-bit words in which the two memories differ, `most` at most; an accessed bit that one
    /// page walk set and the other did not does not count, since a processor may set it when it
    /// likes.
    struct Word {
        std::uint64_t gpa{};
        std::uint32_t original{};
        std::uint32_t shadow{};
    };
    [[nodiscard]] std::vector<Word> differences(std::size_t most);

private:
    struct Unmap {
        std::size_t size{};
        void operator()(std::byte* memory) const noexcept;
    };
    struct Shadow {
        Region original;  ///< `host` is the original's.
        std::shared_ptr<std::byte> bytes;
    };

    MemorySlots& original_;
    std::mutex mutex_;
    std::vector<Shadow> shadows_;
};

}  // namespace vmm::x86::lockstep
