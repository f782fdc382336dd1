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
#include "x86/soft/decoder.hpp"
#include "x86/soft/op.hpp"

namespace vmm::x86::soft {

class SoftVm;
struct CodePage;
struct DecodedPage;

/// Instructions that lie one after the other in one page (or one that reaches into the next), with
/// the operations behind it in memory.  The last operation goes on behind the last instruction.
struct Block {
    static constexpr std::size_t max_ops = 64;
    static constexpr std::uint64_t no_page = ~std::uint64_t{0};

    // What a look-up reads comes first.
    std::uint64_t key{};
    std::uint64_t second_gpa{no_page};  ///< Of the bytes in the second page.
    Block* next_in_bucket{};
    std::uint8_t* body{};    ///< Its translation, in writable memory (translator.hpp).
    std::uint16_t size{};    ///< Bytes of its instructions.
    std::uint16_t extent{};  ///< Bytes it was decoded from: illegal ones at its end too.
    std::uint16_t op_count{};
    bool dead{};
    std::uint32_t heat{};  ///< How often it has been entered, while not translated.
    std::uint64_t gpa{};
    std::uint64_t links{};        ///< Which operations are branches within the page, by index.
    DecodedPage* page{};          ///< That of its first byte.
    std::vector<Op*> incoming{};  ///< Branches of other blocks that lead here.
    std::size_t translation{};    ///< Its place among the translated ones.

    [[nodiscard]] Op* ops() noexcept
    {
        // SAFETY: BlockCache allocates the operations behind the block.
        return reinterpret_cast<Op*>(this + 1);
    }
    [[nodiscard]] const Op* ops() const noexcept { return reinterpret_cast<const Op*>(this + 1); }
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
    /// A TLB miss on code page `gfn`, which is at `host`, was filled: drops the blocks that are no
    /// longer what memory has (writes of the VMM that nobody reported).
    void revalidate(std::uint64_t gfn, const std::byte* host) noexcept;
    /// Drops everything.
    void clear() noexcept;
    /// The first operation to execute at `cpu.rip` after an instruction that may have changed the
    /// mode, flags or privilege, if it is known and the run loop has nothing to do before; or null.
    [[nodiscard]] const Op* find_known(Cpu& cpu) noexcept;
    /// Makes host code of `block`, which is about to be executed at `cpu.block_rip()`.
    void translate(Cpu& cpu, Block& block);
    [[nodiscard]] Decoder& decoder() noexcept { return decoder_; }

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

    using Page = DecodedPage;
    struct Mode;
    class Builder;

    void attach(Cpu& cpu) noexcept;
    [[nodiscard]] static JumpTables::Table table_of(const Mode& mode) noexcept;
    [[nodiscard]] static std::uint64_t code_linear(const Cpu& cpu, const Mode& mode) noexcept;
    [[nodiscard]] static std::uint64_t next_page(std::uint64_t linear, const Mode& mode) noexcept;
    static void select_table(Cpu& cpu, const Mode& mode) noexcept;
    static void note_entry(Cpu& cpu,
                           const Mode& mode,
                           const Block& block,
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
    /// @param guess  the block that it may be, or null.
    [[nodiscard]] Block* find_in_mode(Cpu& cpu,
                                      const Mode& mode,
                                      bool single,
                                      CodePage& fetched,
                                      Block* guess);
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
    [[nodiscard]] static std::size_t bytes_of(const Block& block) noexcept;
    static void destroy(Block* block) noexcept;

    Cpu* cpu_{};
    SoftVm* vm_{};
    Decoder decoder_;
    std::vector<Block*> buckets_;  ///< A power of two of them.
    std::size_t block_count_{};
    std::unordered_map<std::uint64_t, std::unique_ptr<Page>> pages_;
    Page* last_page_{};
    std::vector<Block*> dead_;
    bool no_memory_{};  ///< `build()` met an instruction that reaches into no memory.
    std::size_t live_bytes_{};
    std::size_t dead_bytes_{};
};

}  // namespace vmm::x86::soft
