// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "x86/soft/page_filter.hpp"
#include "x86/soft/zeroed_array.hpp"

namespace vmm::x86::soft {

/// Translations of pages that code was fetched from, of the address spaces that were used last:
/// those of a PCID are there again when the guest comes back to it and says that they are valid.
///
/// Filling an entry is expensive: the decoded code of the page is compared with memory
/// (`BlockCache::revalidate`).
class FetchTlb {
public:
    static constexpr std::size_t entry_count = 4096;
    /// Linux uses six PCIDs per CPU, twice as many where the kernel has page tables of its own.
    static constexpr std::size_t space_count = 16;

    struct Entry {
        std::uint64_t tag{};  ///< Linear address of the page, bit 0 set for CPL 3.
        std::uint64_t gpa{};
        const std::byte* host{};
        std::uint64_t epoch{};  ///< That of its address space, or the one of global pages.
        std::uint8_t page_shift{};
    };

    FetchTlb() noexcept;

    /// The only entry that may be for the page of `linear`.
    [[nodiscard]] Entry& entry(std::uint64_t linear) noexcept
    {
        return entries_.data()[index_of(linear)];
    }
    [[nodiscard]] bool is_for(const Entry& entry, std::uint64_t tag) const noexcept
    {
        return entry.tag == tag && (entry.epoch == epoch_ || entry.epoch == global_epoch_);
    }
    [[nodiscard]] bool is_global(const Entry& entry) const noexcept
    {
        return entry.epoch == global_epoch_;
    }
    void fill(Entry& entry, const Entry& with, bool global) noexcept;

    void flush_all() noexcept;
    /// Of all address spaces.
    void flush_non_global() noexcept;
    /// The page with `linear` of the current address space, and all global ones with it.
    void flush_page(std::uint64_t linear) noexcept;

    /// The place of an address space, below `space_count`; whether what was known of it counts.
    struct Space {
        std::size_t index{};
        bool is_kept{};
    };
    /// From now on addresses are those of `pcid`, whose translations count if `keep`.
    [[nodiscard]] Space switch_to(std::uint16_t pcid, bool keep) noexcept;
    /// Drops the translations of an address space other than the current one: its place, if it had
    /// one.
    [[nodiscard]] std::optional<std::size_t> forget(std::uint16_t pcid) noexcept;

private:
    static constexpr std::uint32_t no_pcid = ~std::uint32_t{0};

    struct Known {
        std::uint32_t pcid{no_pcid};
        std::uint64_t epoch{};
    };

    [[nodiscard]] static std::size_t index_of(std::uint64_t linear) noexcept
    {
        return ((linear >> 12U) ^ (linear >> 24U)) % entry_count;
    }

    ZeroedArray<Entry> entries_{entry_count};
    std::array<Known, space_count> spaces_{};
    std::size_t current_{};
    std::size_t next_victim_{1};
    std::uint64_t last_epoch_{2};  ///< 0 is that of no entry.
    std::uint64_t epoch_{1};
    std::uint64_t global_epoch_{2};
    PageFilter large_;  ///< Pages larger than 4 KiB that entries are parts of.
};

}  // namespace vmm::x86::soft
