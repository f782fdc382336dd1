// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "x86/soft/fetch_tlb.hpp"
#include "x86/soft/page_filter.hpp"
#include "x86/soft/zeroed_array.hpp"

namespace vmm::x86::soft {

struct Op;

/// Where code at a linear address was found last, for jumps whose target is not in the block.
struct alignas(32) JumpEntry {
    std::uint64_t rip{};
    const Op* first{};   ///< Of the block.
    const void* code{};  ///< Its translation, or what goes on without one (translator.hpp).
    /// What `Chain::generation` was: the entry counts for as long as it is that.  Never 0 if so.
    std::uint64_t generation{};
};

/// How one block finds the next without the run loop (block.cpp).
struct Chain {
    static constexpr std::size_t table_size = 32768;

    JumpEntry* table{};          ///< `table_size` entries: those of the current mode.
    std::uint64_t generation{};  ///< Changes when all entries become stale, and with the mode.
    const Op* unlinked{};        ///< A branch that could go to its target directly next time.
    std::uintptr_t floor{};      ///< Host stack pointer below which blocks return to the run loop.
};

/// The jump tables of a vCPU: one for each mode, and what makes their entries stale.
///
/// No entry is looked at to forget it: a table's entries hold for a generation, which is in
/// `Chain` while the table is selected.
class JumpTables {
public:
    enum class Table : std::uint8_t { Supervisor, User, Legacy };

    /// What CS adds to RIP, and how far RIP may go.
    struct CodeSegment {
        std::uint64_t base{};
        std::uint32_t limit{};
        friend bool operator==(const CodeSegment&, const CodeSegment&) = default;
    };

    /// Code that an entry leads to is in a page, or in two.
    struct Page {
        std::uint64_t linear{};
        unsigned shift{};
        bool is_global{};
    };

    /// @param chain  outlives this.  No table is selected: a jump finds nothing.
    explicit JumpTables(Chain& chain);

    void select_none() noexcept;
    void select(Table which) noexcept;
    /// The table for 16- and 32-bit code, where RIP leads elsewhere, or nowhere, in another segment
    /// and in another mode.  @param mode  below 512.
    void select_legacy(std::uint64_t mode, const CodeSegment& segment) noexcept;
    [[nodiscard]] bool has_selected() noexcept { return chain_.table != none(); }

    /// An entry of the table is going to be for code in `page`.
    void note(Table which, const Page& page) noexcept;

    // --- The mapping of linear addresses to pages changed: of all, of those that are not global,
    // of the page that holds `linear`.
    void mapping_changed() noexcept;
    void local_mapping_changed() noexcept;
    void mapping_changed(std::uint64_t linear) noexcept;
    /// Linear addresses are those of another address space: of what is known of it, that counts
    /// which `is_kept`.
    void address_space_changed(FetchTlb::Space space) noexcept;
    /// Nothing is known of an address space other than the current one.
    void forget_address_space(std::size_t index) noexcept;

    /// No entry is left, stale ones neither; none is selected.
    void clear() noexcept;

private:
    static constexpr std::size_t table_count = 3;

    /// What there is beside a table, or a part of one.
    struct State {
        std::uint64_t generation{};  ///< Not 0; no other state has had it.
        bool is_used{};              ///< There may be entries.
        bool has_local{};            ///< There may be some for pages that are not global.
        PageFilter pages{};          ///< Those that entries are for.
    };

    [[nodiscard]] JumpEntry* entries(Table which) noexcept
    {
        return entries_.data() + static_cast<std::size_t>(which) * Chain::table_size;
    }
    [[nodiscard]] JumpEntry* none() noexcept
    {
        return entries_.data() + table_count * Chain::table_size;
    }
    [[nodiscard]] State& state(Table which) noexcept
    {
        return which == Table::User ? user_states_[space_]
                                    : states_[static_cast<std::size_t>(which)];
    }
    /// What all entries of one state lead to is forgotten.
    void renew(State& state) noexcept;
    template <typename IsMeant>
    void renew_if(const IsMeant& is_meant) noexcept;
    void adopt_generation() noexcept;
    /// Below 128; the same for as long as the legacy table is not renewed.
    [[nodiscard]] std::size_t number_of(const CodeSegment& segment) noexcept;

    Chain& chain_;
    ZeroedArray<JumpEntry>
        entries_;  ///< By `Table`, one table behind the other; an empty one last.
    std::array<State, table_count> states_{};  ///< Of all tables but `User`.
    std::array<State, FetchTlb::space_count> user_states_{};
    std::size_t space_{};  ///< The current one of `user_states_`.
    std::uint64_t last_generation_{1};
    std::array<CodeSegment, 128> segments_{};  ///< Those of the legacy table, by their numbers.
    std::size_t segment_count_{};
    std::size_t last_segment_{};
};

}  // namespace vmm::x86::soft
