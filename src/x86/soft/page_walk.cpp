// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/page_walk.hpp"

#include <algorithm>
#include <array>

#include "x86/soft/fault.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

namespace pte {
constexpr std::uint64_t present = 1U << 0U;
constexpr std::uint64_t writable = 1U << 1U;
constexpr std::uint64_t user = 1U << 2U;
constexpr std::uint64_t accessed = 1U << 5U;
constexpr std::uint64_t dirty = 1U << 6U;
constexpr std::uint64_t large = 1U << 7U;
constexpr std::uint64_t global = 1U << 8U;
constexpr std::uint64_t no_execute = std::uint64_t{1} << 63U;
}  // namespace pte

/// Bits [last, first].
constexpr std::uint64_t bits(unsigned first, unsigned last)
{
    return first > last ? 0 : (~std::uint64_t{0} << first) & (~std::uint64_t{0} >> (63U - last));
}

/// An entry of a paging structure that a walk has gone through.
struct Step {
    std::byte* entry{};
    std::uint64_t gpa{};
    std::uint64_t value{};
    bool writable{};  // Clear in a read-only slot: accessed and dirty bits stay as they are.
    bool log_dirty{};
};

/// One walk: every level is checked for P, then for
/// reserved bits; rights are judged at the end, then accessed and dirty bits are set.
class Walker {
public:
    Walker(Cpu& cpu, const WalkRequest& request) noexcept
        : cpu_(cpu),
          request_(request),
          cr4_(cpu.cr4),
          pae_(cr4_.get(Cr4::PAE)),
          nxe_(pae_ && Efer{cpu.efer}.get(Efer::NXE)),
          physical_bits_(cpu.cpuid.physical_address_bits())
    {
    }

    enum class Outcome : std::uint8_t { Done, Fault, Again };

    Outcome run(std::uint64_t linear, WalkResult& result, bool set_bits) noexcept
    {
        count_ = 0;
        rights_ = pte::writable | pte::user;
        no_execute_ = false;
        error_ = 0;
        const bool found = !pae_ ? walk_32(linear, result) : walk_64(linear, result);
        if (!found || !permitted()) {
            return Outcome::Fault;
        }
        if (!request_.quiet && set_bits && !update_bits()) {
            return Outcome::Again;
        }
        const Step& last = steps_[count_ - 1];
        result.global = cr4_.get(Cr4::PGE) && (last.value & pte::global) != 0;
        result.writable = may_write() && (last.value & pte::dirty) != 0;
        return Outcome::Done;
    }

    [[nodiscard]] std::uint32_t error_code() const noexcept
    {
        const bool tells_fetch = nxe_ || cr4_.get(Cr4::SMEP);
        return error_ | (request_.write ? page_fault::write : 0U) |
               (request_.user ? page_fault::user : 0U) |
               (request_.fetch && tells_fetch ? page_fault::fetch : 0U);
    }

private:
    /// Reads the entry at `gpa`.  False where it is not present; an entry that lies in no memory
    /// is not present (as KVM has it).
    template <typename Entry>
    bool read_entry(std::uint64_t gpa) noexcept
    {
        const PhysicalMemory::Page page = physical_page(cpu_, gpa >> 12U);
        if (page.host == nullptr) {
            return false;
        }
        Step& step = steps_[count_++];
        step.entry = page.host + (gpa & page_mask);
        step.gpa = gpa;
        step.writable = page.writable;
        step.log_dirty = page.log_dirty;
        step.value = load_host<Entry>(step.entry);
        return (step.value & pte::present) != 0;
    }

    bool reserved_fault(std::uint64_t reserved) noexcept
    {
        if ((steps_[count_ - 1].value & reserved) == 0) {
            return false;
        }
        error_ = page_fault::present | page_fault::reserved;
        return true;
    }

    bool walk_32(std::uint64_t linear, WalkResult& result) noexcept
    {
        const std::uint64_t table = cpu_.cr3 & 0xffff'f000U;
        if (!read_entry<std::uint32_t>(table | ((linear >> 22U) & 0x3ffU) << 2U)) {
            return false;
        }
        const std::uint64_t pde = steps_[0].value;
        rights_ &= pde;
        if (cr4_.get(Cr4::PSE) && (pde & pte::large) != 0) {
            // PSE-36 puts address bits 39:32 into bits 20:13; those beyond the width are reserved.
            const unsigned width =
                cpu_.cpuid.has(feature::pse36) ? std::min(physical_bits_, 40U) : 32U;
            if (reserved_fault(bits(13U + (std::max(width, 32U) - 32U), 21))) {
                return false;
            }
            result.page_shift = 22;
            result.gpa =
                (pde & 0xffc0'0000U) | ((pde >> 13U) & 0xffU) << 32U | (linear & 0x3f'ffffU);
            return true;
        }
        if (!read_entry<std::uint32_t>((pde & 0xffff'f000U) | ((linear >> 12U) & 0x3ffU) << 2U)) {
            return false;
        }
        const std::uint64_t entry = steps_[1].value;
        rights_ &= entry;
        result.page_shift = 12;
        result.gpa = (entry & 0xffff'f000U) | (linear & page_mask);
        return true;
    }

    bool walk_64(std::uint64_t linear, WalkResult& result) noexcept
    {
        const bool long_mode = cpu_.long_mode();
        const std::uint64_t address = bits(12, physical_bits_ - 1);
        const std::uint64_t too_high = bits(physical_bits_, long_mode ? 51 : 62);
        const std::uint64_t always_reserved = too_high | (nxe_ ? 0 : pte::no_execute);
        unsigned level = 2;
        std::uint64_t table = 0;
        if (long_mode) {
            level = cr4_.get(Cr4::LA57) ? 5 : 4;
            table = cpu_.cr3 & address;
        } else {
            const std::uint64_t pdpte = cpu_.pdptes[(linear >> 30U) & 3U];
            if ((pdpte & pte::present) == 0) {
                return false;
            }
            table = pdpte & address;
        }
        for (;; --level) {
            const unsigned shift = 12U + 9U * (level - 1U);
            if (!read_entry<std::uint64_t>(table | ((linear >> shift) & 0x1ffU) << 3U)) {
                return false;
            }
            const std::uint64_t entry = steps_[count_ - 1].value;
            const bool leaf = level == 1 || (level <= 3 && (entry & pte::large) != 0);
            if (reserved_fault(always_reserved | reserved_at(level, leaf))) {
                return false;
            }
            rights_ &= entry;
            no_execute_ = no_execute_ || (nxe_ && (entry & pte::no_execute) != 0);
            if (leaf) {
                const std::uint64_t inside = bits(0, shift - 1);
                result.page_shift = static_cast<std::uint8_t>(shift);
                result.gpa = (entry & address & ~inside) | (linear & inside);
                return true;
            }
            table = entry & address;
        }
    }

    /// Reserved bits of a level besides those that all have.
    [[nodiscard]] std::uint64_t reserved_at(unsigned level, bool leaf) const noexcept
    {
        if (level >= 4) {
            // AMD keeps bit 8 of these zero.  APM Vol. 2 "4-Kbyte Page Translation".
            return pte::large | (cpu_.cpuid.is_intel() ? 0 : pte::global);
        }
        if (level == 3 && leaf) {
            return cpu_.cpuid.has(feature::page_1g) ? bits(13, 29) : pte::large;
        }
        return level == 2 && leaf ? bits(13, 20) : 0;
    }

    [[nodiscard]] bool may_write() const noexcept
    {
        return (rights_ & pte::writable) != 0 || (!request_.user && !Cr0{cpu_.cr0}.get(Cr0::WP));
    }

    bool permitted() noexcept
    {
        if (request_.quiet) {
            return true;
        }
        const bool user_page = (rights_ & pte::user) != 0;
        bool allowed = !request_.write || may_write();
        if (request_.user) {
            allowed = allowed && user_page;
        } else if (user_page) {
            const bool refused =
                request_.fetch ? cr4_.get(Cr4::SMEP) : cr4_.get(Cr4::SMAP) && !request_.smap_lifted;
            allowed = allowed && !refused;
        }
        allowed = allowed && !(request_.fetch && no_execute_);
        if (!allowed) {
            error_ = page_fault::present;
        }
        return allowed;
    }

    /// False where somebody changed an entry since it was read: walk again.
    bool update_bits() noexcept
    {
        for (std::size_t index = 0; index < count_; ++index) {
            Step& step = steps_[index];
            std::uint64_t wanted = pte::accessed;
            if (request_.write && index + 1 == count_) {
                wanted |= pte::dirty;
            }
            if ((step.value & wanted) == wanted || !step.writable) {
                continue;
            }
            if (step.log_dirty) {
                cpu_.vm.memory(cpu_).mark_dirty(step.gpa >> 12U);
            }
            if (!exchange(step, step.value | wanted)) {
                return false;
            }
            step.value |= wanted;
            const std::size_t size = pae_ ? sizeof(std::uint64_t) : sizeof(std::uint32_t);
            if (cpu_.vm.is_code_page(step.gpa >> 12U)) {
                cpu_.vm.code_written(cpu_, step.gpa, size);
            }
        }
        return true;
    }

    VMM_GUEST_RACY bool exchange(const Step& step, std::uint64_t value) const noexcept
    {
        // SAFETY: an entry lies in a mapped page of guest memory at a multiple of its size.
        if (pae_) {
            using Word [[gnu::may_alias]] = std::uint64_t;
            void* const at = step.entry;
            std::uint64_t expected = step.value;
            return __atomic_compare_exchange_n(static_cast<Word*>(at), &expected, value, false,
                                               __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        }
        using Word [[gnu::may_alias]] = std::uint32_t;
        void* const at = step.entry;
        auto expected = static_cast<std::uint32_t>(step.value);
        return __atomic_compare_exchange_n(static_cast<Word*>(at), &expected,
                                           static_cast<std::uint32_t>(value), false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }

    Cpu& cpu_;
    const WalkRequest& request_;
    Cr4 cr4_;
    bool pae_;
    bool nxe_;
    unsigned physical_bits_;
    std::uint64_t rights_{};  // R/W and U/S of all levels, ANDed.
    bool no_execute_{};
    std::uint32_t error_{};
    std::size_t count_{};
    std::array<Step, 5> steps_{};
};

}  // namespace

PhysicalMemory::Page physical_page(Cpu& cpu, std::uint64_t gfn) noexcept
{
    PhysicalPageCache::Entry& entry = cpu.page_cache.entries[gfn % PhysicalPageCache::entry_count];
    if (entry.gfn != gfn) {
        entry.page = cpu.vm.memory(cpu).page(gfn);
        entry.gfn = gfn;
    }
    return entry.page;
}

bool is_canonical(const Cpu& cpu, std::uint64_t linear) noexcept
{
    const unsigned width = Cr4{cpu.cr4}.get(Cr4::LA57) ? 57 : 48;
    const std::uint64_t top = linear >> (width - 1U);
    return top == 0 || top == ~std::uint64_t{0} >> (width - 1U);
}

bool walk(Cpu& cpu,
          std::uint64_t linear,
          const WalkRequest& request,
          WalkResult& result,
          std::uint32_t& error_code) noexcept
{
    if (!Cr0{cpu.cr0}.get(Cr0::PG)) {
        result.gpa = linear & 0xffff'ffffU;
        result.page_shift = 12;
        result.global = false;
        result.writable = true;
        return true;
    }
    // Another vCPU may change entries faster than this one can walk; it must not hang for that.
    constexpr unsigned max_attempts = 64;
    Walker walker{cpu, request};
    for (unsigned attempt = 1;; ++attempt) {
        switch (walker.run(linear, result, attempt < max_attempts)) {
        case Walker::Outcome::Done: return true;
        case Walker::Outcome::Fault: error_code = walker.error_code(); return false;
        case Walker::Outcome::Again: break;
        }
    }
}

bool load_pdptes(Cpu& cpu, std::uint64_t cr3) noexcept
{
    const std::uint64_t table = cr3 & 0xffff'ffe0U;
    const PhysicalMemory::Page page = physical_page(cpu, table >> 12U);
    const unsigned width = cpu.cpuid.physical_address_bits();
    const std::uint64_t reserved = bits(1, 2) | bits(5, 8) | bits(width, 63);
    std::array<std::uint64_t, 4> loaded{};
    for (std::size_t index = 0; index < loaded.size(); ++index) {
        // A table in no memory reads as zeroes: no entry is present.
        if (page.host != nullptr) {
            loaded[index] = load_host<std::uint64_t>(page.host + (table & page_mask) + index * 8);
        }
        if ((loaded[index] & pte::present) != 0 && (loaded[index] & reserved) != 0) {
            return false;
        }
    }
    cpu.pdptes = loaded;
    return true;
}

bool translate_quietly(Cpu& cpu, std::uint64_t linear, std::uint64_t& gpa) noexcept
{
    if (!cpu.long_mode()) {
        linear &= 0xffff'ffffU;
    } else if (!is_canonical(cpu, linear)) {
        return false;
    }
    WalkRequest request{};
    request.quiet = true;
    WalkResult result{};
    std::uint32_t error_code = 0;
    if (!walk(cpu, linear, request, result, error_code)) {
        return false;
    }
    gpa = result.gpa;
    return true;
}

}  // namespace vmm::x86::soft
