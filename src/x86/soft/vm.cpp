// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/vm.hpp"

#include <algorithm>
#include <utility>

#include "x86/soft/block.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/native.hpp"
#include "x86/soft/uneven_barrier.hpp"

namespace vmm::x86::soft {

namespace {

constexpr unsigned page_shift = 12;
constexpr unsigned piece_shift = 6;

// Requests that another thread may be waiting for.
constexpr std::uint32_t awaited = request::flush_tlb | request::guard_code | request::stop;

/// The pieces that bytes [first, last] of a page touch.
std::uint64_t piece_mask(std::uint64_t first, std::uint64_t last) noexcept
{
    const auto low = static_cast<unsigned>(first >> piece_shift) & 63U;
    const auto high = static_cast<unsigned>(last >> piece_shift) & 63U;
    return (~std::uint64_t{0} << low) & (~std::uint64_t{0} >> (63U - high));
}

}  // namespace

// --- CodePages

CodePages::CodePages()
    : root_(std::make_unique<std::array<std::atomic<Middle*>, std::size_t{1} << root_bits>>())
{
}

CodePages::~CodePages()
{
    for (std::atomic<Middle*>& slot : *root_) {
        const std::unique_ptr<Middle> middle{slot.load(std::memory_order_relaxed)};
        if (middle != nullptr) {
            for (std::atomic<Leaf*>& leaf : middle->leaves) {
                delete leaf.load(std::memory_order_relaxed);
            }
        }
    }
}

CodePages::Entry* CodePages::find(std::uint64_t gfn) const noexcept
{
    if (gfn >> (entry_bits + middle_bits + root_bits) != 0) {
        return nullptr;
    }
    const Middle* const middle =
        (*root_)[gfn >> (entry_bits + middle_bits)].load(std::memory_order_seq_cst);
    if (middle == nullptr) {
        return nullptr;
    }
    Leaf* const leaf = middle->leaves[(gfn >> entry_bits) & ((1U << middle_bits) - 1U)].load(
        std::memory_order_seq_cst);
    return leaf == nullptr ? nullptr : &leaf->entries[gfn & ((1U << entry_bits) - 1U)];
}

CodePages::Entry* CodePages::find_or_add(std::uint64_t gfn)
{
    if (gfn >> (entry_bits + middle_bits + root_bits) != 0) {
        return nullptr;
    }
    std::atomic<Middle*>& root_slot = (*root_)[gfn >> (entry_bits + middle_bits)];
    if (root_slot.load(std::memory_order_relaxed) == nullptr) {
        root_slot.store(std::make_unique<Middle>().release(), std::memory_order_seq_cst);
    }
    std::atomic<Leaf*>& leaf_slot = root_slot.load(std::memory_order_relaxed)
                                        ->leaves[(gfn >> entry_bits) & ((1U << middle_bits) - 1U)];
    if (leaf_slot.load(std::memory_order_relaxed) == nullptr) {
        leaf_slot.store(std::make_unique<Leaf>().release(), std::memory_order_seq_cst);
    }
    return find(gfn);
}

// --- vCPUs

SoftVm::SoftVm(PhysicalMemory& memory, TranslationMode translation)
    : memory_(memory),
      translation_(translation)
{
}

SoftVm::~SoftVm() = default;

void SoftVm::add(Cpu& cpu)
{
    const Lock lock{mutex_};
    auto added = std::make_unique<Member>();
    added->cpu = &cpu;
    if (exclusive_owner_ != nullptr) {
        cpu.requests.fetch_or(request::stop, std::memory_order_seq_cst);
    }
    members_.push_back(std::move(added));
}

void SoftVm::remove(Cpu& cpu) noexcept
{
    const Lock lock{mutex_};
    members_.erase(std::remove_if(members_.begin(), members_.end(),
                                  [&](const auto& each) { return each->cpu == &cpu; }),
                   members_.end());
    changed_.notify_all();
}

SoftVm::Member* SoftVm::member(const Cpu& cpu) noexcept
{
    const auto found = std::find_if(members_.begin(), members_.end(),
                                    [&](const auto& each) { return each->cpu == &cpu; });
    return found == members_.end() ? nullptr : found->get();
}

// --- The protocol
//
// A vCPU stores in_guest, then loads its requests; a requester stores requests, then loads
// in_guest, with the two halves of an uneven barrier between: one of them sees the other.  So it is
// with in_guest and waiters_ when a vCPU leaves.  Requests that are waited for are taken under
// mutex_, and waiters look under mutex_: what is seen as taken has been carried out.

void SoftVm::enter_guest(Cpu& self) noexcept
{
    for (;;) {
        self.in_guest.store(true, std::memory_order_release);
        UnevenBarrier::light();
        if ((self.requests.load(std::memory_order_seq_cst) & ~request::exit) == 0) {
            return;
        }
        take(self, ~request::exit);
    }
}

void SoftVm::leave_guest(Cpu& self) noexcept
{
    fpu_release(self);  // What runs outside of the guest may use the host's FPU.
    self.in_guest.store(false, std::memory_order_release);
    UnevenBarrier::light();
    if (waiters_.load(std::memory_order_seq_cst) != 0) {
        const Lock lock{mutex_};
        changed_.notify_all();
    }
}

void SoftVm::resume(Cpu& self) noexcept
{
    for (;;) {
        self.in_guest.store(true, std::memory_order_release);
        UnevenBarrier::light();
        if ((self.requests.load(std::memory_order_seq_cst) & awaited) == 0) {
            return;
        }
        take(self, awaited);
    }
}

void SoftVm::take_requests(Cpu& self) noexcept
{
    take(self, ~request::exit);
}

void SoftVm::park(Lock& lock, Cpu& self) noexcept
{
    while (exclusive_owner_ != nullptr && exclusive_owner_ != &self) {
        self.in_guest.store(false, std::memory_order_seq_cst);
        changed_.notify_all();
        changed_.wait(lock);
    }
    self.in_guest.store(true, std::memory_order_seq_cst);
}

void SoftVm::take(Cpu& self, std::uint32_t mask) noexcept
{
    std::uint32_t taken = 0;
    {
        Lock lock{mutex_};
        // Parking is being out of the guest: more requests may have come meanwhile.
        while (const std::uint32_t bits =
                   self.requests.fetch_and(~mask, std::memory_order_seq_cst) & mask) {
            taken |= bits;
            if ((bits & request::stop) != 0) {
                park(lock, self);
            }
        }
        if ((taken & request::flush_tlb) != 0) {
            flush_tlb_all(self);
        }
        Member* const own = member(self);
        if ((taken & request::guard_code) != 0 && own != nullptr) {
            if (own->guarded.size() > max_guarded) {
                drop_write_translations(self);
            } else {
                for (const std::uint64_t gfn : own->guarded) {
                    drop_write_translations(self, memory(self).page(gfn).host);
                }
            }
            own->guarded.clear();
        }
        if (waiters_.load(std::memory_order_seq_cst) != 0) {
            changed_.notify_all();
        }
    }
    if ((taken & request::invalidate_code) != 0) {
        take_stale_code(self);
    }
}

void SoftVm::take_stale_code(Cpu& self) noexcept
{
    std::vector<Range> stale;
    {
        const Lock lock{mutex_};
        if (Member* const own = member(self)) {
            stale.swap(own->stale);
        }
    }
    for (const Range& range : stale) {
        if (range.size == everything) {
            self.blocks->clear();
            return;
        }
        self.blocks->invalidate(range.gpa, range.size);
    }
}

bool SoftVm::others_out(std::uint32_t bits, const Cpu* self) const noexcept
{
    return std::all_of(members_.begin(), members_.end(), [&](const auto& each) {
        const Cpu& cpu = *each->cpu;
        return &cpu == self || !cpu.in_guest.load(std::memory_order_seq_cst) ||
               (bits != 0 && (cpu.requests.load(std::memory_order_seq_cst) & bits) == 0);
    });
}

bool SoftVm::has_others_in_guest(const Cpu& self) noexcept
{
    const Lock lock{mutex_, std::try_to_lock};
    return !lock || !others_out(0, &self);
}

void SoftVm::synchronise(std::uint32_t bits, Cpu* self) noexcept
{
    const bool was_in_guest = self != nullptr && self->in_guest.load(std::memory_order_relaxed);
    {
        Lock lock{mutex_};
        bool asked = false;
        for (const auto& each : members_) {
            if (each->cpu != self) {
                each->cpu->requests.fetch_or(bits, std::memory_order_seq_cst);
                asked = true;
            }
        }
        if (!asked) {
            return;
        }
        UnevenBarrier::heavy();
        if (others_out(bits, self)) {
            return;
        }
        if (was_in_guest) {
            self->in_guest.store(false, std::memory_order_seq_cst);
            changed_.notify_all();
        }
        waiters_.fetch_add(1, std::memory_order_seq_cst);
        UnevenBarrier::heavy();
        changed_.wait(lock, [&] { return others_out(bits, self); });
        waiters_.fetch_sub(1, std::memory_order_seq_cst);
    }
    if (was_in_guest) {
        resume(*self);
    }
}

SoftVm::Exclusion::Exclusion(SoftVm& vm_to_stop, Cpu& self) noexcept : vm(vm_to_stop)
{
    {
        Lock lock{vm.mutex_};
        self.in_guest.store(false, std::memory_order_seq_cst);
        vm.changed_.notify_all();
        vm.changed_.wait(lock, [&] { return vm.exclusive_owner_ == nullptr; });
        vm.exclusive_owner_ = &self;
        for (const auto& each : vm.members_) {
            if (each->cpu != &self) {
                each->cpu->requests.fetch_or(request::stop, std::memory_order_seq_cst);
            }
        }
        vm.waiters_.fetch_add(1, std::memory_order_seq_cst);
        UnevenBarrier::heavy();
        vm.changed_.wait(lock, [&] { return vm.others_out(0, &self); });
        vm.waiters_.fetch_sub(1, std::memory_order_seq_cst);
    }
    vm.resume(self);
}

SoftVm::Exclusion::~Exclusion()
{
    const Lock lock{vm.mutex_};
    vm.exclusive_owner_ = nullptr;
    vm.changed_.notify_all();
}

OutOfGuest::OutOfGuest(SoftVm& vm, Cpu& self) noexcept
    : vm_(vm),
      self_(self),
      was_in_guest_(self.in_guest.load(std::memory_order_relaxed))
{
    if (was_in_guest_) {
        vm_.leave_guest(self_);
    }
}

OutOfGuest::~OutOfGuest()
{
    if (was_in_guest_) {
        vm_.resume(self_);
    }
}

// --- Code pages
//
// A writer stores bytes, passes barrier_, then looks whether they are code; a decoder marks, passes
// barrier_, then reads the bytes: either the decoder reads the new bytes or the writer sees the
// mark.

void SoftVm::mark_code_page(Cpu& self, std::uint64_t gfn, bool whole)
{
    CodePages::Entry* entry = nullptr;
    {
        const std::lock_guard lock{code_mutex_};
        entry = code_pages_.find_or_add(gfn);
        if (entry == nullptr) {
            return;
        }
        entry->holders.fetch_add(1, std::memory_order_seq_cst);
        if (whole) {
            entry->pieces.store(~std::uint64_t{0}, std::memory_order_seq_cst);
        }
    }
    // Whoever comes second while the first still waits must wait too.
    if (!entry->guarded.load(std::memory_order_seq_cst)) {
        guard(self, gfn);
        entry->guarded.store(true, std::memory_order_seq_cst);
    }
    barrier_.fetch_add(1, std::memory_order_seq_cst);
}

void SoftVm::guard(Cpu& self, std::uint64_t gfn) noexcept
{
    drop_write_translations(self, memory(self).page(gfn).host);
    {
        const Lock lock{mutex_};
        for (const auto& each : members_) {
            if (each->cpu != &self && each->guarded.size() <= max_guarded) {
                each->guarded.push_back(gfn);
            }
        }
    }
    synchronise(request::guard_code, &self);
}

void SoftVm::unmark_code_page(std::uint64_t gfn) noexcept
{
    const std::lock_guard lock{code_mutex_};
    CodePages::Entry* const entry = code_pages_.find(gfn);
    if (entry == nullptr || entry->holders.load(std::memory_order_relaxed) == 0) {
        return;
    }
    if (entry->holders.load(std::memory_order_relaxed) == 1) {
        entry->pieces.store(0, std::memory_order_seq_cst);
        entry->guarded.store(false, std::memory_order_seq_cst);
    }
    entry->holders.fetch_sub(1, std::memory_order_seq_cst);
}

void SoftVm::mark_code_bytes(std::uint64_t gpa, std::size_t size) noexcept
{
    CodePages::Entry* const entry = code_pages_.find(gpa >> page_shift);
    if (entry == nullptr || size == 0) {
        return;
    }
    const std::uint64_t first = gpa % page_size;
    const std::uint64_t last = std::min(first + size, page_size) - 1;
    const std::uint64_t mask = piece_mask(first, last);
    if ((entry->pieces.load(std::memory_order_relaxed) & mask) != mask) {
        entry->pieces.fetch_or(mask, std::memory_order_seq_cst);
    }
    barrier_.fetch_add(1, std::memory_order_seq_cst);
}

bool SoftVm::holds_code(std::uint64_t gpa, std::uint64_t size) noexcept
{
    barrier_.fetch_add(1, std::memory_order_seq_cst);
    const std::uint64_t last = size - 1 > ~gpa ? ~std::uint64_t{0} : gpa + (size - 1);
    constexpr std::uint64_t frames_in_leaf = std::uint64_t{1} << CodePages::entry_bits;
    std::uint64_t gfn = gpa >> page_shift;
    const std::uint64_t last_gfn =
        std::min(last >> page_shift, (std::uint64_t{1} << (52U - page_shift)) - 1);
    while (gfn <= last_gfn) {
        const CodePages::Entry* const entry = code_pages_.find(gfn);
        if (entry == nullptr) {
            gfn = (gfn / frames_in_leaf + 1) * frames_in_leaf;
            continue;
        }
        if (entry->holders.load(std::memory_order_seq_cst) != 0) {
            const std::uint64_t from = gfn == gpa >> page_shift ? gpa % page_size : 0;
            const std::uint64_t to = gfn == last >> page_shift ? last % page_size : page_size - 1;
            if ((entry->pieces.load(std::memory_order_seq_cst) & piece_mask(from, to)) != 0) {
                return true;
            }
        }
        ++gfn;
    }
    return false;
}

void SoftVm::post_stale(Range range, const Cpu* except) noexcept
{
    const Lock lock{mutex_};
    for (const auto& each : members_) {
        if (each->cpu == except) {
            continue;
        }
        if (range.size == everything || each->stale.size() >= max_stale) {
            each->stale.assign(1, Range{0, everything});
        } else if (each->stale.empty() || each->stale.front().size != everything) {
            each->stale.push_back(range);
        }
        each->cpu->requests.fetch_or(request::invalidate_code, std::memory_order_seq_cst);
    }
}

void SoftVm::code_written(Cpu& self, std::uint64_t gpa, std::size_t size) noexcept
{
    if (size != 0 && holds_code(gpa, size)) {
        self.blocks->invalidate(gpa, size);
        post_stale({gpa, size}, &self);
    }
}

void SoftVm::memory_written(std::uint64_t gpa, std::uint64_t size) noexcept
{
    if (size != 0 && holds_code(gpa, size)) {
        post_stale({gpa, size}, nullptr);
    }
}

void SoftVm::memory_changed() noexcept
{
    // Decoded code stays: it is compared with what memory holds now when a page is next fetched
    // from.  Each vCPU goes to its run loop for that, from wherever it is in a block.
    {
        const Lock lock{mutex_};
        for (const auto& each : members_) {
            each->cpu->requests.fetch_or(request::invalidate_code, std::memory_order_seq_cst);
        }
    }
    synchronise(request::flush_tlb, nullptr);
}

void SoftVm::dirty_log_cleared() noexcept
{
    {
        const Lock lock{mutex_};
        for (const auto& each : members_) {
            each->guarded.assign(max_guarded + 1, 0);
        }
    }
    synchronise(request::guard_code, nullptr);
}

}  // namespace vmm::x86::soft
