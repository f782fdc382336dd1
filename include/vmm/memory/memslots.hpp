// SPDX-License-Identifier: Apache-2.0

/// @file
/// Memory slots: which guest-physical pages are memory, whose, and which of them were written.
///
/// The rules and the errors are those of KVM (api.rst "KVM_SET_USER_MEMORY_REGION",
/// "KVM_GET_DIRTY_LOG", "KVM_CLEAR_DIRTY_LOG").  Slots may change while any number of threads look
/// pages up: those never wait and never see half a change.
///
///     alignas(4096) static std::array<std::byte, 0x10000> ram;
///     vmm::memory::MemslotTable<> slots;
///     slots.set({.slot = 0,
///                .flags = vmm::memory::MemoryFlags::log_dirty,
///                .guest_phys_addr = vmm::Gpa{0x100000},
///                .size_bytes = ram.size(),
///                .host = ram.data()})
///         .value();
///     {
///         const auto table = slots.read();            // any thread, never waits
///         const vmm::memory::Memslot* slot = table.find(0x101);  // by guest frame number
///         slot->host_page(0x101)[0] = std::byte{1};   // page 1 of ram
///         slot->mark_dirty(0x101);
///     }
///     assert(slots.dirty_log(0).value().at(0) == 0b10);  // and cleared
///     slots.set({.slot = 0}).value();                 // size 0 deletes; ram is unused on return
///     assert(slots.read().find(0x101) == nullptr);
///
/// Includes of this library: address.hpp, assert.hpp, result.hpp, memory/describe.hpp,
/// memory/epoch.hpp, memory/range_map.hpp.  Links nothing.

#pragma once

#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/assert.hpp"
#include "vmm/memory/describe.hpp"
#include "vmm/memory/epoch.hpp"
#include "vmm/memory/range_map.hpp"
#include "vmm/result.hpp"

namespace vmm::memory {

inline constexpr unsigned page_bits = 12;
inline constexpr std::uint64_t page_size = std::uint64_t{1} << page_bits;

/// Slot ids are below this in each address space, as in KVM on x86.
inline constexpr std::uint32_t max_slots = 32764;
/// Pages in one slot, as in KVM.
inline constexpr std::uint64_t max_slot_pages = (std::uint64_t{1} << 31U) - 1;
/// x86's widest guest-physical address.
inline constexpr unsigned max_physical_bits = 52;

/// Flags of a slot, by KVM's numbers.
struct MemoryFlags {
    static constexpr std::uint32_t log_dirty = 1;  ///< Keep a bitmap of pages written.
    static constexpr std::uint32_t read_only = 2;  ///< The guest's writes are MMIO.
    static constexpr std::uint32_t all = log_dirty | read_only;
};

/// What to make of a slot: KVM's `struct kvm_userspace_memory_region`.
struct MemoryRegion {
    std::uint32_t slot{};           ///< The slot's id in its address space.
    std::uint16_t address_space{};  ///< 0, or 1 for system management mode.
    std::uint32_t flags{};          ///< `MemoryFlags`.
    Gpa guest_phys_addr{};
    std::uint64_t size_bytes{};  ///< 0 deletes the slot.
    std::byte* host{};           ///< The caller's; must outlive the slot.
};

/// A slot's payload must survive being copied from one state of the slot to the next.
// clang-format off
template <typename P>
concept SlotPayload = std::default_initializable<P> && std::copy_constructible<P> &&
                      std::is_nothrow_destructible_v<P>;
// clang-format on

/// For slots that carry nothing of the user's.
struct NoPayload {};

/// Is told of each page whose bit turns from clear to set, e.g. to put it into a ring.
///
/// Thread safety: called from whichever thread sets the bit.
class DirtySink {
public:
    virtual ~DirtySink() = default;
    virtual void page_dirtied(std::uint16_t address_space,
                              std::uint32_t slot,
                              std::uint64_t page) noexcept = 0;
};

/// Whom a bitmap tells, and of which slot.
struct DirtyTeller {
    DirtySink* sink{};  ///< Null: nobody.
    std::uint16_t address_space{};
    std::uint32_t slot{};
};

/// The pages of a slot that were written: one bit a page.
///
/// Thread safety: all members from any thread.
class DirtyBitmap {
public:
    static constexpr std::uint64_t bits = 64;

    /// All clean.  Null if there is no memory for it.
    [[nodiscard]] static std::shared_ptr<DirtyBitmap> make(std::uint64_t pages,
                                                           DirtyTeller teller = {}) noexcept
    {
        const std::size_t words = (pages + bits - 1) / bits;
        std::unique_ptr<Word[]> storage{new (std::nothrow) Word[words]{}};
        if (storage == nullptr) {
            return nullptr;
        }
        try {
            return std::make_shared<DirtyBitmap>(std::move(storage), words, teller);
        } catch (const std::bad_alloc&) {
            return nullptr;
        }
    }

    using Word = std::atomic<std::uint64_t>;
    /// For `make()`.
    DirtyBitmap(std::unique_ptr<Word[]> words, std::size_t count, DirtyTeller teller) noexcept
        : words_{std::move(words)},
          count_{count},
          teller_{teller}
    {
    }

    /// Not only if it is clear: the load that finds it set could overtake the write to the page,
    /// and a collector between them would take the bit and the page as it was before.
    void set(std::uint64_t page) noexcept
    {
        const std::uint64_t bit = std::uint64_t{1} << (page % bits);
        // Pairs with take(): who takes the bit sees the write to the page before this.
        const std::uint64_t before = words_[page / bits].fetch_or(bit, std::memory_order_release);
        if (teller_.sink != nullptr && (before & bit) == 0) {
            teller_.sink->page_dirtied(teller_.address_space, teller_.slot, page);
        }
    }

    /// The first `pages` at once, and tells nobody.
    void set_all(std::uint64_t pages) noexcept
    {
        for (std::uint64_t page = 0; page < pages; page += bits) {
            const std::uint64_t rest = pages - page;
            words_[page / bits].fetch_or(rest < bits ? (std::uint64_t{1} << rest) - 1U
                                                     : ~std::uint64_t{0},
                                         std::memory_order_release);
        }
    }

    [[nodiscard]] bool test(std::uint64_t page) const noexcept
    {
        const std::uint64_t word = words_[page / bits].load(std::memory_order_acquire);
        return ((word >> (page % bits)) & 1U) != 0;
    }

    [[nodiscard]] std::size_t words() const noexcept { return count_; }
    [[nodiscard]] std::uint64_t word(std::size_t index) const noexcept
    {
        return words_[index].load(std::memory_order_acquire);
    }
    /// A word, and clears it.
    [[nodiscard]] std::uint64_t take(std::size_t index) noexcept
    {
        return words_[index].exchange(0, std::memory_order_acq_rel);
    }
    void clear(std::size_t index, std::uint64_t mask) noexcept
    {
        words_[index].fetch_and(~mask, std::memory_order_acq_rel);
    }

private:
    std::unique_ptr<Word[]> words_;
    std::size_t count_;
    DirtyTeller teller_;
};

/// One slot, as a look-up finds it.  It never changes, except for its bitmap: a change of the slot
/// makes another.
template <SlotPayload Payload>
struct BasicMemslot {
    std::uint32_t id{};
    std::uint16_t address_space{};
    std::uint32_t flags{};
    std::uint64_t base_gfn{};
    std::uint64_t page_count{};
    std::byte* host{};  ///< The page `base_gfn`.
    std::shared_ptr<DirtyBitmap> dirty{};
    [[no_unique_address]] Payload payload{};

    [[nodiscard]] bool is_read_only() const noexcept
    {
        return (flags & MemoryFlags::read_only) != 0;
    }
    [[nodiscard]] bool logs_dirty() const noexcept { return dirty != nullptr; }
    [[nodiscard]] bool contains(std::uint64_t gfn) const noexcept
    {
        return gfn - base_gfn < page_count;
    }

    /// @pre `contains(gfn)`
    [[nodiscard]] std::byte* host_page(std::uint64_t gfn) const noexcept
    {
        return host + ((gfn - base_gfn) << page_bits);
    }

    /// Notes a write to a page, if the slot logs writes.  Call it after the write, and whoever
    /// collects the log sees what was written.  Any thread.
    void mark_dirty(std::uint64_t gfn) const noexcept
    {
        if (dirty != nullptr && contains(gfn)) {
            dirty->set(gfn - base_gfn);
        }
    }
};

using Memslot = BasicMemslot<NoPayload>;

/// The memory slots of a virtual machine.
///
/// Thread safety: all members from any thread.  `read()` never waits; changes take turns, and
/// return when no reader can see the table from before.  A thread that holds a `Reader` must not
/// change the same table: it would wait for itself.
///
/// @tparam Payload        Something of the user's in each slot, e.g. an engine's shadow of it.
/// @tparam AddressSpaces  KVM on x86 has two: the second is what a CPU in SMM sees.
template <SlotPayload Payload = NoPayload, std::size_t AddressSpaces = 2>
class MemslotTable {
    static_assert(AddressSpaces >= 1 && AddressSpaces <= std::numeric_limits<std::uint16_t>::max());

public:
    using Slot = BasicMemslot<Payload>;
    using Map = RangeMap<const Slot*>;
    /// A caller's last-hit cache; usable across generations and tables.
    using Hint = typename Map::Hint;

private:
    struct Generation {
        std::array<Map, AddressSpaces> maps;
        std::uint64_t number{};
    };

public:
    /// The table as it is now, for as long as this lives.
    class [[nodiscard]] Reader {
    public:
        /// The slot that the page `gfn` lies in, or null.  @pre `address_space < AddressSpaces`
        [[nodiscard]] const Slot* find(std::uint64_t gfn,
                                       std::size_t address_space = 0) const noexcept
        {
            const auto* entry = map(address_space).find(gfn);
            return entry != nullptr ? entry->value : nullptr;
        }
        /// The same, faster if it is the slot that `hint`'s owner found last.
        [[nodiscard]] const Slot* find(std::uint64_t gfn,
                                       Hint& hint,
                                       std::size_t address_space = 0) const noexcept
        {
            const auto* entry = map(address_space).find(gfn, hint);
            return entry != nullptr ? entry->value : nullptr;
        }

        /// All slots of an address space by address; `value` is the slot, the keys are frames.
        [[nodiscard]] std::span<const typename Map::Entry> entries(
            std::size_t address_space = 0) const noexcept
        {
            return map(address_space).entries();
        }

        /// How many changes were published before this table.
        [[nodiscard]] std::uint64_t generation() const noexcept { return guard_->number; }

    private:
        friend MemslotTable;
        explicit Reader(const Published<Generation>& from) noexcept : guard_{from.read()} {}
        Reader(const Published<Generation>& from, std::size_t reader) noexcept
            : guard_{from.read(reader)}
        {
        }

        [[nodiscard]] const Map& map(std::size_t address_space) const noexcept
        {
            VMM_ASSERT(address_space < AddressSpaces);
            return guard_->maps[address_space];
        }

        typename Published<Generation>::Guard guard_;
    };

    MemslotTable() = default;

    Reader read() const noexcept { return Reader{published_}; }
    /// For a reader that has a number of its own, such as a vCPU: see `Published::read`.
    Reader read(std::size_t reader) const noexcept { return Reader{published_, reader}; }

    /// From now on `sink` is told of each page that turns dirty, in slots that begin to log after
    /// this.  It must outlive the table.
    void set_dirty_sink(DirtySink& sink)
    {
        const std::lock_guard lock{changes_};
        sink_ = &sink;
    }

    /// KVM_DIRTY_LOG_INITIALLY_SET: whether slots that begin to log after this are all dirty then,
    /// where no sink is told.
    void set_initially_dirty(bool dirty)
    {
        const std::lock_guard lock{changes_};
        initially_dirty_ = dirty;
    }

    /// Creates, moves, re-flags or (size 0) deletes a slot.  The payload of a new slot is
    /// `Payload{}`; a changed slot keeps its own.  A slot that moves keeps its dirty bits.
    ///
    /// @return EINVAL for ids, alignment, flags or a change that KVM does not permit, EEXIST for
    /// an overlap with another slot, ENOMEM.  On error nothing has changed.
    Result<void> set(const MemoryRegion& region) { return set_with(region, nullptr); }

    /// The same, and gives the slot this payload.
    Result<void> set(const MemoryRegion& region, Payload payload)
    {
        return set_with(region, &payload);
    }

    /// KVM_GET_DIRTY_LOG: the pages written since the last call, bit `n % 64` of word `n / 64` for
    /// page `n` of the slot, and clears them.  No write is lost between the two.
    ///
    /// @return EINVAL for a bad id, ENOENT if there is no such slot or it does not log, ENOMEM.
    [[nodiscard]] Result<std::vector<std::uint64_t>> dirty_log(std::uint32_t slot,
                                                               std::uint16_t address_space = 0)
    {
        return collect("dirty_log", slot, address_space,
                       [](DirtyBitmap& from, std::size_t word) { return from.take(word); });
    }

    /// KVM_GET_DIRTY_LOG under KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: the same and clears nothing.
    [[nodiscard]] Result<std::vector<std::uint64_t>> peek_dirty_log(
        std::uint32_t slot,
        std::uint16_t address_space = 0) const
    {
        return collect("peek_dirty_log", slot, address_space,
                       [](const DirtyBitmap& from, std::size_t word) { return from.word(word); });
    }

    /// KVM_CLEAR_DIRTY_LOG: cleans those of the pages [first_page, first_page + num_pages) that
    /// are set in `bitmap`, whose bit 0 is `first_page`.
    ///
    /// @return EINVAL for a bad id, for a `first_page` that is no multiple of 64, for a `num_pages`
    /// that is none and does not end the slot, or for pages outside the slot; ENOENT if there is no
    /// such slot or it does not log; EFAULT if `bitmap` is shorter than `num_pages`.
    Result<void> clear_dirty_log(std::uint32_t slot,
                                 std::uint64_t first_page,
                                 std::uint64_t num_pages,
                                 std::span<const std::uint64_t> bitmap,
                                 std::uint16_t address_space = 0)
    {
        const std::lock_guard lock{changes_};
        VMM_TRY_VOID(check_id("clear_dirty_log", slot, address_space));
        if (first_page % DirtyBitmap::bits != 0) {
            return Error{std::errc::invalid_argument, "clear_dirty_log: first page " +
                                                          std::to_string(first_page) +
                                                          " is no multiple of 64"};
        }
        VMM_TRY(const auto found, logging_slot("clear_dirty_log", slot, address_space));
        const std::uint64_t pages = found->page_count;
        if (first_page > pages || num_pages > pages - first_page) {
            return Error{std::errc::invalid_argument,
                         "clear_dirty_log: pages from " + std::to_string(first_page) + ", " +
                             std::to_string(num_pages) + " of them, in slot " +
                             std::to_string(slot) + ", which has " + std::to_string(pages)};
        }
        if (num_pages < pages - first_page && num_pages % DirtyBitmap::bits != 0) {
            return Error{std::errc::invalid_argument,
                         "clear_dirty_log: " + std::to_string(num_pages) +
                             " pages are no multiple of 64 and do not end the slot"};
        }
        const std::uint64_t words = (num_pages + DirtyBitmap::bits - 1) / DirtyBitmap::bits;
        if (bitmap.size() < words) {
            return Error{std::errc::bad_address, "clear_dirty_log: the bitmap has " +
                                                     std::to_string(bitmap.size()) + " words; " +
                                                     std::to_string(num_pages) + " pages need " +
                                                     std::to_string(words)};
        }
        for (std::size_t word = 0; word < words; ++word) {
            found->dirty->clear(first_page / DirtyBitmap::bits + word, bitmap[word]);
        }
        return success;
    }

private:
    enum class Change : std::uint8_t { None, Create, Move, Flags };

    static Error refusal(const MemoryRegion& region, const std::string& why)
    {
        return {std::errc::invalid_argument, name(region) + why};
    }

    static std::string name(const MemoryRegion& region)
    {
        return "set memory slot " + std::to_string(region.slot) + " of address space " +
               std::to_string(region.address_space) + ": ";
    }

    static Result<void> check_id(const char* operation, std::uint32_t slot, std::uint16_t space)
    {
        if (space < AddressSpaces && slot < max_slots) {
            return success;
        }
        return Error{std::errc::invalid_argument,
                     std::string{operation} + ": slot " + std::to_string(slot) +
                         " of address space " + std::to_string(space) + "; slot ids are below " +
                         std::to_string(max_slots) + ", address spaces below " +
                         std::to_string(AddressSpaces)};
    }

    /// What can be said of a region without looking at the table.
    static Result<void> check(const MemoryRegion& region)
    {
        if ((region.flags & ~MemoryFlags::all) != 0) {
            return refusal(region, "flags " + hex(region.flags) +
                                       "; permitted are log_dirty (1) and read_only (2)");
        }
        if (region.size_bytes % page_size != 0 || !region.guest_phys_addr.is_aligned(page_size)) {
            return refusal(region, "guest-physical address " + hex(region.guest_phys_addr.value()) +
                                       ", size " + hex(region.size_bytes) +
                                       "; both must be multiples of the page size, 4096");
        }
        // SAFETY: the number only, for its alignment and its end.
        const auto host = reinterpret_cast<std::uintptr_t>(region.host);
        if (host % page_size != 0) {
            return refusal(region, "host address " + hex(host) +
                                       "; it must be a multiple of the page size, 4096");
        }
        if (region.size_bytes > std::numeric_limits<std::uintptr_t>::max() - host) {
            return refusal(region, "host address " + hex(host) + " and size " +
                                       hex(region.size_bytes) + " leave the address space");
        }
        VMM_TRY_VOID(check_id("set memory slot", region.slot, region.address_space));
        if (!region.guest_phys_addr.checked_add(region.size_bytes)) {
            return refusal(region, "guest-physical address " + hex(region.guest_phys_addr.value()) +
                                       " and size " + hex(region.size_bytes) + " wrap around");
        }
        if (region.size_bytes >> page_bits > max_slot_pages) {
            return refusal(region, "size " + hex(region.size_bytes) + " is " +
                                       std::to_string(region.size_bytes >> page_bits) +
                                       " pages; a slot has at most " +
                                       std::to_string(max_slot_pages));
        }
        return success;
    }

    /// What `region` would change about `old`, the slot of that id, if there is one.
    [[nodiscard]] Result<Change> classify(const MemoryRegion& region, const Slot* old) const
    {
        if (old == nullptr) {
            if (region.host == nullptr) {
                return refusal(region, "no host memory; `host` must be what backs the pages");
            }
            return Change::Create;
        }
        if (region.host != old->host) {
            return refusal(region, "the slot exists with other host memory; delete it (size 0) "
                                   "and create it anew");
        }
        if (region.size_bytes >> page_bits != old->page_count) {
            return refusal(region, "the slot exists with size " +
                                       hex(old->page_count << page_bits) + ", asked was " +
                                       hex(region.size_bytes) +
                                       "; delete it (size 0) and create it anew");
        }
        if (((region.flags ^ old->flags) & MemoryFlags::read_only) != 0) {
            return refusal(region, "read_only cannot change in a slot that exists; delete it "
                                   "(size 0) and create it anew");
        }
        if (region.guest_phys_addr.value() >> page_bits != old->base_gfn) {
            return Change::Move;
        }
        return region.flags != old->flags ? Change::Flags : Change::None;
    }

    /// `region` would create a slot or move `old`: is its place in reach and free of others?
    [[nodiscard]] Result<void> check_place(const MemoryRegion& region, const Slot* old) const
    {
        const std::uint64_t first = region.guest_phys_addr.value() >> page_bits;
        const std::uint64_t last = first + (region.size_bytes >> page_bits) - 1;
        if (last >> (max_physical_bits - page_bits) != 0) {
            return refusal(region, "it would end at " + hex((last << page_bits) | (page_size - 1)) +
                                       "; guest-physical addresses have at most 52 bits");
        }
        const auto view = published_.read();
        const Map& map = view->maps[region.address_space];
        const auto* other = map.overlapping(first, last);
        if (other != nullptr && other->value == old) {
            // That is the last of those that overlap; any others begin below it.
            other = old->base_gfn > first ? map.overlapping(first, old->base_gfn - 1) : nullptr;
        }
        if (other != nullptr) {
            return Error{std::errc::file_exists,
                         name(region) + hex(first << page_bits) + " to " +
                             hex((last << page_bits) | (page_size - 1)) + " overlaps slot " +
                             std::to_string(other->value->id) + ", which has " +
                             hex(other->first << page_bits) + " to " +
                             hex((other->last << page_bits) | (page_size - 1)) +
                             "; move or delete that one first"};
        }
        return success;
    }

    Result<void> set_with(const MemoryRegion& region, const Payload* payload)
    {
        VMM_TRY_VOID(check(region));
        try {
            const std::lock_guard lock{changes_};
            return set_locked(region, payload);
        } catch (const std::bad_alloc&) {
            return Error{std::errc::not_enough_memory, name(region) + "no memory for the table"};
        }
    }

    Result<void> set_locked(const MemoryRegion& region, const Payload* payload)
    {
        auto& slots = slots_[region.address_space];
        const auto found = slots.find(region.slot);
        const Slot* old = found != slots.end() ? found->second.get() : nullptr;
        if (region.size_bytes == 0) {
            if (old == nullptr) {
                return refusal(region, "size 0 deletes, and there is no such slot");
            }
            publish(region.address_space,
                    [&](const Map& map) { return map.without(old->base_gfn); });
            slots.erase(found);
            return success;
        }
        VMM_TRY(Change change, classify(region, old));
        if (change == Change::None && payload == nullptr) {
            return success;
        }
        if (change == Change::Create || change == Change::Move) {
            VMM_TRY_VOID(check_place(region, old));
        }
        auto next =
            std::make_unique<Slot>(Slot{.id = region.slot,
                                        .address_space = region.address_space,
                                        .flags = region.flags,
                                        .base_gfn = region.guest_phys_addr.value() >> page_bits,
                                        .page_count = region.size_bytes >> page_bits,
                                        .host = region.host,
                                        .payload = payload != nullptr ? *payload
                                                   : old != nullptr   ? old->payload
                                                                      : Payload{}});
        if ((region.flags & MemoryFlags::log_dirty) != 0) {
            next->dirty = old != nullptr && old->dirty != nullptr
                              ? old->dirty
                              : DirtyBitmap::make(next->page_count,
                                                  {sink_, region.address_space, region.slot});
            if (next->dirty == nullptr) {
                return Error{std::errc::not_enough_memory,
                             name(region) + "no memory for a dirty bitmap of " +
                                 std::to_string(next->page_count) + " pages"};
            }
            const bool begins = old == nullptr || old->dirty == nullptr;
            if (begins && initially_dirty_ && sink_ == nullptr) {
                next->dirty->set_all(next->page_count);
            }
        }
        // All that may throw comes before the publication, which is the change.
        auto& place = found != slots.end() ? found->second : slots[region.slot];
        try {
            const typename Map::Entry entry{next->base_gfn, next->base_gfn + next->page_count - 1,
                                            next.get()};
            publish(region.address_space, [&](const Map& map) {
                return old != nullptr ? map.without(old->base_gfn).with(entry) : map.with(entry);
            });
        } catch (const std::bad_alloc&) {
            if (place == nullptr) {
                slots.erase(region.slot);
            }
            throw;
        }
        place = std::move(next);  // The old one dies here: no reader has it any more.
        return success;
    }

    template <typename F>
    void publish(std::size_t address_space, F change)
    {
        published_.update([&](const Generation& old) {
            Generation next;
            for (std::size_t space = 0; space < AddressSpaces; ++space) {
                next.maps[space] =
                    space == address_space ? change(old.maps[space]) : old.maps[space];
            }
            next.number = old.number + 1;
            return next;
        });
    }

    [[nodiscard]] Result<const Slot*> logging_slot(const char* operation,
                                                   std::uint32_t slot,
                                                   std::uint16_t space) const
    {
        VMM_TRY_VOID(check_id(operation, slot, space));
        const auto found = slots_[space].find(slot);
        if (found == slots_[space].end()) {
            return Error{std::errc::no_such_file_or_directory,
                         std::string{operation} + ": there is no slot " + std::to_string(slot) +
                             " in address space " + std::to_string(space)};
        }
        if (!found->second->logs_dirty()) {
            return Error{std::errc::no_such_file_or_directory,
                         std::string{operation} + ": slot " + std::to_string(slot) +
                             " does not log writes; set it with MemoryFlags::log_dirty"};
        }
        return static_cast<const Slot*>(found->second.get());
    }

    template <typename F>
    [[nodiscard]] Result<std::vector<std::uint64_t>> collect(const char* operation,
                                                             std::uint32_t slot,
                                                             std::uint16_t space,
                                                             F word_of) const
    {
        const std::lock_guard lock{changes_};
        VMM_TRY(const Slot* found, logging_slot(operation, slot, space));
        std::vector<std::uint64_t> log;
        try {
            log.resize(found->dirty->words());
        } catch (const std::bad_alloc&) {
            return Error{std::errc::not_enough_memory, std::string{operation} +
                                                           ": no memory for the log of slot " +
                                                           std::to_string(slot)};
        }
        for (std::size_t word = 0; word < log.size(); ++word) {
            log[word] = word_of(*found->dirty, word);
        }
        return log;
    }

    Published<Generation> published_;
    mutable std::mutex changes_;  // All below, and the order of publications.
    DirtySink* sink_{};
    bool initially_dirty_{};
    std::array<std::map<std::uint32_t, std::unique_ptr<const Slot>>, AddressSpaces> slots_;
};

}  // namespace vmm::memory
