// SPDX-License-Identifier: Apache-2.0

/// @file
/// The dirty ring: pages that were written, told one by one instead of by a bitmap of all (KVM
/// api.rst "KVM_CAP_DIRTY_LOG_RING").
///
///     std::vector<vmm::memory::DirtyGfn> entries(1024);     // shared: KVM's layout
///     vmm::memory::DirtyRing ring{entries};                 // who logs
///     vmm::memory::DirtyRingReader reader{entries};         // who collects
///
///     assert(ring.push(0, 7));                              // page 7 of slot 0 was written
///     const auto taken = reader.take();
///     assert(taken && taken->slot == 0 && taken->page == 7);
///     assert(!reader.take());
///     // The place is free again once the other side has seen that the entry was taken.
///     assert(ring.reset([](std::uint32_t slot, std::uint64_t page) {
///         assert(slot == 0 && page == 7);                   // log its next write again
///     }) == 1);
///
/// Includes of this library: assert.hpp.  Links nothing.

#pragma once

#include <atomic>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <type_traits>

#include "vmm/assert.hpp"

namespace vmm::memory {

/// One entry as both sides see it: KVM's `struct kvm_dirty_gfn`.
struct DirtyGfn {
    static constexpr std::uint32_t dirty = 1;  ///< Filled by who logs.
    static constexpr std::uint32_t reset = 2;  ///< Taken by who collects.

    std::uint32_t flags{};
    std::uint32_t slot{};    ///< The address space in the upper half, the slot's id in the lower.
    std::uint64_t offset{};  ///< The page in the slot.
};

static_assert(sizeof(DirtyGfn) == 16 && std::is_standard_layout_v<DirtyGfn>);

/// The side that logs.
///
/// Thread safety: all members from any thread.  Nothing that the other side does to the entries is
/// a memory error here.
class DirtyRing {
public:
    /// Entries that stay free for what is written between noticing that the ring is full and
    /// stopping the guest, as in KVM.
    static constexpr std::size_t reserved = 64;
    static constexpr std::size_t min_entries = 256;
    static constexpr std::size_t max_entries = 65536;

    /// @pre As many entries as a power of two, `min_entries` to `max_entries`; they outlive this.
    explicit DirtyRing(std::span<DirtyGfn> entries) noexcept : entries_{entries}
    {
        VMM_ASSERT(std::has_single_bit(entries.size()) && entries.size() >= min_entries &&
                   entries.size() <= max_entries);
    }

    /// Logs a page.  False, and nothing is logged, where all entries wait to be collected.
    bool push(std::uint32_t slot, std::uint64_t page) noexcept
    {
        const std::lock_guard lock{mutex_};
        if (used() == entries_.size()) {
            return false;
        }
        DirtyGfn& entry = at(next_);
        entry.slot = slot;
        entry.offset = page;
        // Release pairs with take(): who sees the flag sees the entry.
        std::atomic_ref{entry.flags}.store(DirtyGfn::dirty, std::memory_order_release);
        ++next_;
        set_full();
        return true;
    }

    /// Whether only the reserved entries are left: the guest should stop.
    [[nodiscard]] bool is_full() const noexcept { return full_.load(std::memory_order_relaxed); }

    /// Frees the entries that were taken, in order, and calls `visit` with the slot and the page
    /// of each, as they stand there: the other side may have written anything.  @return how many.
    template <std::invocable<std::uint32_t, std::uint64_t> F>
    std::size_t reset(F visit)
    {
        const std::lock_guard lock{mutex_};
        std::size_t freed = 0;
        while (used() != 0) {
            DirtyGfn& entry = at(first_);
            const std::atomic_ref flags{entry.flags};
            if ((flags.load(std::memory_order_acquire) & DirtyGfn::reset) == 0) {
                break;
            }
            const std::uint32_t slot = std::atomic_ref{entry.slot}.load(std::memory_order_relaxed);
            const std::uint64_t page =
                std::atomic_ref{entry.offset}.load(std::memory_order_relaxed);
            flags.store(0, std::memory_order_release);
            ++first_;
            visit(slot, page);
            ++freed;
        }
        set_full();
        return freed;
    }

private:
    [[nodiscard]] std::size_t used() const noexcept { return next_ - first_; }
    [[nodiscard]] DirtyGfn& at(std::uint32_t index) const noexcept
    {
        return entries_[index & (entries_.size() - 1)];
    }
    void set_full() noexcept
    {
        full_.store(used() >= entries_.size() - reserved, std::memory_order_relaxed);
    }

    std::span<DirtyGfn> entries_;
    std::mutex mutex_;
    std::uint32_t next_{};   // Runs on; the ring's size divides its range.
    std::uint32_t first_{};  // The oldest that is not free.
    std::atomic<bool> full_{};
};

/// A page that was written.
struct DirtyPage {
    std::uint16_t address_space{};
    std::uint32_t slot{};
    std::uint64_t page{};  ///< In the slot.
};

/// The side that collects.
///
/// Thread safety: one thread at a time.
class DirtyRingReader {
public:
    /// All entries of a ring that this reads from its beginning; they outlive this.
    explicit DirtyRingReader(std::span<DirtyGfn> entries) noexcept : entries_{entries} {}

    /// The page logged next, or nothing.  Read its contents only after the ring was reset, so that
    /// a write which comes later is logged again.
    [[nodiscard]] std::optional<DirtyPage> take() noexcept
    {
        if (entries_.empty()) {
            return std::nullopt;
        }
        DirtyGfn& entry = entries_[next_ % entries_.size()];
        const std::atomic_ref flags{entry.flags};
        // Acquire pairs with push(); one that was taken and not yet reset has `reset` too.
        if (flags.load(std::memory_order_acquire) != DirtyGfn::dirty) {
            return std::nullopt;
        }
        const DirtyPage page{static_cast<std::uint16_t>(entry.slot >> 16U), entry.slot & 0xffffU,
                             entry.offset};
        flags.store(DirtyGfn::dirty | DirtyGfn::reset, std::memory_order_release);
        ++next_;
        return page;
    }

private:
    std::span<DirtyGfn> entries_;
    std::size_t next_{};
};

}  // namespace vmm::memory
