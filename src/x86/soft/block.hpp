// SPDX-License-Identifier: Apache-2.0

/// @file
/// Decoded blocks, by where their bytes lie in guest-physical memory.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "x86/soft/cpu.hpp"
#include "x86/soft/fetch_tlb.hpp"
#include "x86/soft/op.hpp"
#include "x86/soft/page_filter.hpp"
#include "x86/soft/zeroed_array.hpp"

namespace vmm::x86::soft {

class SoftVm;
struct CodePage;
struct DecodedPage;

/// Instructions that lie one after the other in one page (or one that reaches into the next), with
/// the operations behind it in memory.  The last operation goes on behind the last instruction.
struct Block {
    static constexpr std::size_t max_ops = 64;
    static constexpr std::uint64_t no_page = ~std::uint64_t{0};

    std::uint64_t gpa{};
    std::uint64_t key{};
    std::uint64_t second_gpa{no_page};  ///< Of the bytes in the second page.
    std::uint64_t links{};  ///< Which operations are branches within the page, by index.
    Block* next_in_bucket{};
    DecodedPage* page{};          ///< That of its first byte.
    std::vector<Op*> incoming{};  ///< Branches of other blocks that lead here.
    std::uint16_t size{};         ///< Bytes of its instructions.
    std::uint16_t extent{};       ///< Bytes it was decoded from: illegal ones at its end too.
    std::uint16_t op_count{};
    bool dead{};
    std::uint32_t heat{};       ///< How often it has been entered, while not translated.
    std::uint8_t* body{};       ///< Its translation, in writable memory (translator.hpp).
    std::size_t translation{};  ///< Its place among the translated ones.

    [[nodiscard]] Op* ops() noexcept
    {
        // SAFETY: BlockCache allocates the operations behind the block.
        return reinterpret_cast<Op*>(this + 1);
    }
    /// The block whose first operation this is.
    [[nodiscard]] static Block& of(const Op& first) noexcept
    {
        // SAFETY: as above, the other way.
        return *(reinterpret_cast<Block*>(const_cast<Op*>(&first)) - 1);
    }
};
static_assert(sizeof(Block) % alignof(Op) == 0);

/// A page that code has been decoded from.
struct DecodedPage {
    std::uint64_t gfn{};
    std::uint64_t current{};  ///< 64-byte pieces of `bytes` that blocks may be decoded from.
    std::uint64_t known{};    ///< Pieces of `bytes` that have ever been read.
    bool check{};             ///< Compare `bytes` with memory before the next use.
    unsigned idle_writes{};   ///< Writes since the last block in it was dropped.
    std::vector<Block*> blocks{};
    std::array<std::byte, 4096> bytes{};
};

/// The decoded code of one vCPU.
///
/// Each page with code is registered with `SoftVm` before its bytes are read, so that writes to it
/// are reported.  A copy of the bytes is kept to find those writes that nobody reported.
class BlockCache {
public:
    BlockCache();
    ~BlockCache();
    BlockCache(const BlockCache&) = delete;
    BlockCache& operator=(const BlockCache&) = delete;
    BlockCache(BlockCache&&) = delete;
    BlockCache& operator=(BlockCache&&) = delete;

    /// Bytes of guest-physical memory changed: blocks that were decoded from them are dropped.
    /// The one being executed ends behind the current instruction.
    void invalidate(std::uint64_t gpa, std::uint64_t size) noexcept;
    /// The mapping of linear addresses to pages changed: forget where linear addresses led; or only
    /// that of pages that are not global; or of the page that holds `linear`.
    void mapping_changed() noexcept;
    void local_mapping_changed() noexcept;
    void mapping_changed(std::uint64_t linear) noexcept;
    /// Linear addresses are those of another address space (`FetchTlb::Space`): of what is known of
    /// it, that counts which `is_kept`.
    void address_space_changed(FetchTlb::Space space) noexcept;
    /// Nothing is known of an address space other than the current one.
    void forget_address_space(std::size_t index) noexcept;
    /// A TLB miss on code page `gfn` was filled: compare its blocks with memory before their next
    /// use (writes of the VMM that nobody reported).
    void revalidate(std::uint64_t gfn) noexcept;
    /// Drops everything.
    void clear() noexcept;
    /// The first operation to execute at `cpu.rip` after an instruction that may have changed the
    /// mode, flags or privilege, if it is known and the run loop has nothing to do before; or null.
    [[nodiscard]] const Op* find_known(Cpu& cpu) noexcept;
    /// Makes host code of `block`, which is about to be executed at `cpu.block_rip()`.
    void translate(Cpu& cpu, Block& block);

    // --- For the run loop, outside of blocks.

    /// The block to execute at `cpu.rip`; `single`: of one instruction.  Null where no memory slot
    /// backs the code.  Throws the faults of the fetch.
    [[nodiscard]] Block* find(Cpu& cpu, bool single);
    /// Frees what has been dropped, and everything where it has grown too large.
    void collect(Cpu& cpu) noexcept;

private:
    static constexpr std::size_t first_bucket_count = std::size_t{1} << 10U;
    static constexpr std::size_t max_bytes = std::size_t{256} << 20U;
    static constexpr std::size_t max_dead_bytes = std::size_t{1} << 20U;
    static constexpr unsigned max_idle_writes = 16;

    enum Table : std::uint8_t { Supervisor, User, Legacy, Empty };

    /// What there is beside a jump table.
    struct TableState {
        std::uint64_t generation{};  ///< Not 0; no other state has had it.
        bool is_used{};              ///< There may be entries.
        bool has_local{};            ///< There may be some for pages that are not global.
        PageFilter pages{};          ///< Those that entries are for.
    };

    /// What CS adds to RIP, and how far RIP may go.
    struct CodeSegment {
        std::uint64_t base{};
        std::uint32_t limit{};
        friend bool operator==(const CodeSegment&, const CodeSegment&) = default;
    };

    using Page = DecodedPage;
    struct Mode;
    class Builder;

    void attach(Cpu& cpu) noexcept;
    [[nodiscard]] JumpEntry* table(Table which) noexcept
    {
        return tables_.data() + which * Chain::table_size;
    }
    [[nodiscard]] static Table table_of(const Mode& mode) noexcept;
    [[nodiscard]] static std::uint64_t code_linear(const Cpu& cpu, const Mode& mode) noexcept;
    void select_table(Cpu& cpu, const Mode& mode) noexcept;
    /// Below 128; the same for as long as the legacy table is not renewed.
    [[nodiscard]] std::size_t number_of(const CodeSegment& segment) noexcept;
    [[nodiscard]] TableState& state(Table which) noexcept
    {
        return which == User ? user_states_[space_] : states_[which];
    }
    /// What all entries of one state lead to is forgotten.
    void renew(TableState& state) noexcept;
    template <typename IsMeant>
    void renew_if(const IsMeant& is_meant) noexcept;
    void adopt_generation() noexcept;
    void note_entry(Cpu& cpu,
                    Table which,
                    const Block& block,
                    std::uint64_t linear,
                    const CodePage& page) noexcept;
    [[nodiscard]] Page* find_page(std::uint64_t gfn) noexcept;
    /// The record of the page; new ones are registered, after which host pointers are stale.
    [[nodiscard]] Page& add_page(Cpu& cpu, std::uint64_t gfn, bool& is_new);
    void compare(Page& page, const std::byte* host) noexcept;
    /// Makes `bytes` [from, to) of the page current.
    void read_bytes(Page& page, const std::byte* host, std::size_t from, std::size_t to) noexcept;
    [[nodiscard]] Block* search(std::uint64_t key) noexcept;
    [[nodiscard]] std::size_t bucket_of(std::uint64_t key) const noexcept;
    void insert(Block& block);
    [[nodiscard]] Block* find_in_mode(Cpu& cpu, const Mode& mode, bool single, CodePage& fetched);
    [[nodiscard]] bool second_page_matches(Cpu& cpu, std::uint64_t next_linear, const Block& block);
    [[nodiscard]] Block* build(Cpu& cpu,
                               const Mode& mode,
                               Page& page,
                               const std::byte* host,
                               std::uint64_t gpa,
                               std::uint64_t next_linear,
                               bool single);
    void link(Cpu& cpu, Block& target) noexcept;
    void kill(Block& block) noexcept;
    void kill_overlapping(Page& page, std::uint64_t gpa, std::uint64_t size) noexcept;
    void invalidate_in(Page& page, std::uint64_t gpa, std::uint64_t size) noexcept;
    void forget(Page& page) noexcept;
    void drop_tables() noexcept;
    [[nodiscard]] static std::size_t bytes_of(const Block& block) noexcept;
    static void destroy(Block* block) noexcept;

    Cpu* cpu_{};
    SoftVm* vm_{};
    std::vector<Block*> buckets_;  ///< A power of two of them.
    std::size_t block_count_{};
    std::unordered_map<std::uint64_t, std::unique_ptr<Page>> pages_;
    Page* last_page_{};
    std::vector<Block*> dead_;
    bool no_memory_{};  ///< `build()` met an instruction that reaches into no memory.
    std::size_t live_bytes_{};
    std::size_t dead_bytes_{};

    ZeroedArray<JumpEntry> tables_;       ///< One behind the other, by `Table`.
    std::array<TableState, 3> states_{};  ///< Of all tables but `User`.
    std::array<TableState, FetchTlb::space_count> user_states_{};
    std::size_t space_{};  ///< The current one of `user_states_`.
    std::uint64_t last_generation_{1};
    std::array<CodeSegment, 128> segments_{};  ///< Those of the legacy table, by their numbers.
    std::size_t segment_count_{};
    std::size_t last_segment_{};
};

}  // namespace vmm::x86::soft
