// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/block.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include <emmintrin.h>

#include "x86/soft/build_block.hpp"
#include "x86/soft/dispatch.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/native.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/translator.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::size_t piece_size = 64;
constexpr std::size_t max_length = 15;
/// A block that has come past a conditional branch ends earlier: what follows may not be executed.
constexpr std::size_t max_ops_past_branch = 32;

std::uint64_t piece_bit(std::size_t offset) noexcept
{
    return std::uint64_t{1} << (offset / piece_size % 64);
}

std::uint64_t pieces(std::size_t from, std::size_t to) noexcept
{
    std::uint64_t result = 0;
    for (std::size_t at = from / piece_size; at <= (to - 1) / piece_size; ++at) {
        result |= std::uint64_t{1} << (at % 64);
    }
    return result;
}

VMM_GUEST_RACY void copy_piece(std::byte* to, const std::byte* from) noexcept
{
    for (std::size_t i = 0; i < piece_size; i += sizeof(std::uint64_t)) {
        store_host(to + i, load_host<std::uint64_t>(from + i));
    }
}

VMM_GUEST_RACY bool is_same_piece(const std::byte* known, const std::byte* host) noexcept
{
    __m128i same = _mm_set1_epi8(-1);
    for (std::size_t i = 0; i < piece_size; i += sizeof same) {
        // SAFETY: unaligned loads within the piece; guest memory may change meanwhile.
        same = _mm_and_si128(
            same, _mm_cmpeq_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(known + i)),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(host + i))));
    }
    return _mm_movemask_epi8(same) == 0xffff;
}

}  // namespace

/// What a block's key says besides the address.
struct BlockCache::Mode {
    SelectContext context{};
    bool limited{};  ///< CS ends before 4 GiB: near targets and fetches are checked.
    bool user{};

    explicit Mode(const Cpu& cpu) noexcept
    {
        context.code_size = cpu.code_size;
        context.virtual_8086 = cpu.protected_mode() && cpu.virtual_8086();
        context.protected_mode = cpu.protected_mode() && !context.virtual_8086;
        context.flat = is_flat(cpu);
        limited = cpu.code_size != CodeSize::Bits64 && cpu.seg[Cs].limit != 0xffff'ffffU;
        user = cpu.cpl == 3;
    }

    [[nodiscard]] std::uint64_t bits(bool single) const noexcept
    {
        return static_cast<std::uint64_t>(context.code_size) | (context.protected_mode ? 4U : 0U) |
               (context.virtual_8086 ? 8U : 0U) | (limited ? 16U : 0U) | (single ? 32U : 0U) |
               (context.flat ? 64U : 0U);
    }
    [[nodiscard]] std::uint64_t key(std::uint64_t gpa, bool single) const noexcept
    {
        return (gpa << 8U) | bits(single);
    }
};

BlockCache::BlockCache() : buckets_(first_bucket_count) {}

BlockCache::~BlockCache()
{
    clear();
    for (Block* const block : dead_) {
        destroy(block);
    }
}

void BlockCache::attach(Cpu& cpu) noexcept
{
    cpu_ = &cpu;
    vm_ = &cpu.vm;
}

void BlockCache::translate(Cpu& cpu, Block& block)
{
    const Page* const page = find_page(block.gpa / page_size);
    if (page == nullptr) {
        block.ops()->handler = block.ops()->interpret;
        return;
    }
    const auto code_size = static_cast<CodeSize>(block.key & 3U);  // As `Mode::bits` has it.
    cpu.translator->translate(block, std::span{page->bytes}.subspan(block.gpa & page_mask),
                              code_size);
    JumpEntry& entry = jump_entry(cpu, cpu.block_rip());
    if (entry.first == block.ops()) {
        entry.code = cpu.translator->code_of(block);
    }
}

/// Notes what the table's entry for `block`, which has just been fetched from `page`, hangs on.
void BlockCache::note_entry(Cpu& cpu,
                            const Mode& mode,
                            const Block& block,
                            const CodePage& page) noexcept
{
    const std::uint64_t linear = code_linear(cpu, mode);
    const JumpTables::Table which = table_of(mode);
    cpu.jumps.note(which, {linear, page.page_shift, page.global});
    if (block.second_gpa != Block::no_page) {
        const std::uint64_t second_linear = next_page(linear, mode);
        const FetchTlb::Entry& second = cpu.fetch_tlb.entry(second_linear);
        cpu.jumps.note(which, {second_linear, second.page_shift, cpu.fetch_tlb.is_global(second)});
    }
}

JumpTables::Table BlockCache::table_of(const Mode& mode) noexcept
{
    if (mode.context.code_size != CodeSize::Bits64) {
        return JumpTables::Table::Legacy;
    }
    return mode.user ? JumpTables::Table::User : JumpTables::Table::Supervisor;
}

void BlockCache::select_table(Cpu& cpu, const Mode& mode) noexcept
{
    const JumpTables::Table which = table_of(mode);
    if (which == JumpTables::Table::Legacy) {
        cpu.jumps.select_legacy(mode.bits(false) | (mode.user ? 0x100U : 0U),
                                {cpu.seg[Cs].base, cpu.seg[Cs].limit});
    } else {
        cpu.jumps.select(which);
    }
}

const Op* BlockCache::find_known(Cpu& cpu) noexcept
{
    // No table: the block is executed alone.
    if (!cpu.jumps.has_selected() || cpu.code_size != CodeSize::Bits64 || must_single_step(cpu) ||
        (cpu.rflags & Rflags::RF.mask) != 0 || cpu.inject || cpu.pending_debug != 0 ||
        cpu.sti_shadow || cpu.mov_ss_shadow || cpu.irq_window_requested ||
        cpu.nmi_window_requested || cpu.exit_pending) {
        return nullptr;
    }
    select_table(cpu, Mode{cpu});
    const JumpEntry& entry = jump_entry(cpu, cpu.rip);
    return is_known_target(cpu, entry, cpu.rip) && may_continue(cpu) ? entry.first : nullptr;
}

BlockCache::Page* BlockCache::find_page(std::uint64_t gfn) noexcept
{
    if (last_page_ != nullptr && last_page_->gfn == gfn) {
        return last_page_;
    }
    const auto found = pages_.find(gfn);
    if (found == pages_.end()) {
        return nullptr;
    }
    last_page_ = found->second.get();
    return last_page_;
}

BlockCache::Page& BlockCache::add_page(Cpu& cpu, std::uint64_t gfn, bool& is_new)
{
    if (Page* const known = find_page(gfn)) {
        is_new = false;
        return *known;
    }
    fpu_release(cpu);  // Rehashing computes with floating point.
    auto page = std::make_unique<Page>();
    page->gfn = gfn;
    Page& added = *page;
    pages_.emplace(gfn, std::move(page));
    live_bytes_ += sizeof(Page);
    cpu.vm.mark_code_page(cpu, gfn, false);
    is_new = true;
    return added;
}

void BlockCache::compare(Page& page, const std::byte* host) noexcept
{
    for (std::size_t at = 0; at < page_size; at += piece_size) {
        if ((page.current & piece_bit(at)) != 0 &&
            !is_same_piece(page.bytes.data() + at, host + at)) {
            page.current &= ~piece_bit(at);
            kill_overlapping(page, page.gfn * page_size + at, piece_size);
        }
    }
}

void BlockCache::read_bytes(Page& page,
                            const std::byte* host,
                            std::size_t from,
                            std::size_t to) noexcept
{
    if ((pieces(from, to) & ~page.current) == 0) {
        return;
    }
    for (std::size_t at = from & ~(piece_size - 1); at < to; at += piece_size) {
        if ((page.current & piece_bit(at)) != 0) {
            continue;
        }
        vm_->mark_code_bytes(page.gfn * page_size + at, piece_size);
        std::byte* const known = page.bytes.data() + at;
        if ((page.known & piece_bit(at)) != 0 && !is_same_piece(known, host + at)) {
            // Blocks that were not written to may have been decoded from bytes that nobody
            // reported.
            kill_overlapping(page, page.gfn * page_size + at, piece_size);
        }
        copy_piece(known, host + at);
        page.current |= piece_bit(at);
        page.known |= piece_bit(at);
    }
}

std::size_t BlockCache::bucket_of(std::uint64_t key) const noexcept
{
    return ((key >> 8U) ^ (key >> 20U) ^ (key << 9U)) & (buckets_.size() - 1);
}

void BlockCache::insert(Block& block)
{
    if (++block_count_ > buckets_.size()) {
        std::vector<Block*> old(buckets_.size() * 4);
        old.swap(buckets_);
        for (Block* each : old) {
            while (each != nullptr) {
                Block* const rest = each->next_in_bucket;
                Block*& bucket = buckets_[bucket_of(each->key)];
                each->next_in_bucket = bucket;
                bucket = each;
                each = rest;
            }
        }
    }
    Block*& bucket = buckets_[bucket_of(block.key)];
    block.next_in_bucket = bucket;
    bucket = &block;
}

Block* BlockCache::search(std::uint64_t key) noexcept
{
    for (Block* block = buckets_[bucket_of(key)]; block != nullptr; block = block->next_in_bucket) {
        if (block->key == key) {
            return block;
        }
    }
    return nullptr;
}

Block* BlockCache::find(Cpu& cpu, bool single)
{
    if (cpu_ != &cpu) {
        attach(cpu);
    }
    const Mode mode{cpu};
    Block* guess = nullptr;
    if (!single) {
        select_table(cpu, mode);
        const JumpEntry& entry = jump_entry(cpu, cpu.rip);
        if (is_known_target(cpu, entry, cpu.rip) && entry.first->handler != stale_op) {
            Block& known = Block::of(*entry.first);
            if (cpu.chain.unlinked != nullptr) {
                link(cpu, known);
            }
            return &known;
        }
        // Blocks outlive the entries that lead to them, stale ones too (`collect`).
        if (entry.rip == cpu.rip && entry.first != nullptr) {
            guess = &Block::of(*entry.first);
        }
    }
    const std::uint64_t limit = cpu.seg[Cs].limit;
    if (mode.limited && cpu.rip > limit) {
        raise(Vector::GP, 0);
    }
    CodePage page{};
    Block* block = find_in_mode(cpu, mode, single, page, guess);
    if (block == nullptr) {
        return nullptr;
    }
    if (mode.limited && !single && block->size != 0 && cpu.rip + block->size - 1 > limit) {
        single = true;
        block = find_in_mode(cpu, mode, true, page, nullptr);
    }
    if (block != nullptr && mode.limited && single && block->size != 0 &&
        cpu.rip + block->size - 1 > limit) {
        raise(Vector::GP, 0);
    }
    if (single || block == nullptr) {
        cpu.jumps.select_none();
        return block;
    }
    select_table(cpu, mode);
    note_entry(cpu, mode, *block, page);
    const void* const code = cpu.translator == nullptr ? nullptr : cpu.translator->code_of(*block);
    jump_entry(cpu, cpu.rip) = JumpEntry{cpu.rip, block->ops(), code, cpu.chain.generation};
    if (cpu.chain.unlinked != nullptr) {
        link(cpu, *block);
    }
    return block;
}

std::uint64_t BlockCache::code_linear(const Cpu& cpu, const Mode& mode) noexcept
{
    return mode.context.code_size == CodeSize::Bits64 ? cpu.rip
                                                      : (cpu.seg[Cs].base + cpu.rip) & 0xffff'ffffU;
}

/// Where the page behind that of `linear` begins.
std::uint64_t BlockCache::next_page(std::uint64_t linear, const Mode& mode) noexcept
{
    const std::uint64_t next = (linear & ~page_mask) + page_size;
    return mode.context.code_size == CodeSize::Bits64 ? next : next & 0xffff'ffffU;
}

Block* BlockCache::find_in_mode(Cpu& cpu,
                                const Mode& mode,
                                bool single,
                                CodePage& fetched,
                                Block* guess)
{
    const std::uint64_t linear = code_linear(cpu, mode);
    const std::uint64_t next_linear = next_page(linear, mode);
    for (;;) {
        fetched = fetch_page(cpu, linear);
        if (fetched.host == nullptr) {
            return nullptr;
        }
        const std::byte* const host = fetched.host - (fetched.gpa & page_mask);
        const std::uint64_t key = mode.key(fetched.gpa, single);
        const bool is_guessed = guess != nullptr && guess->key == key && !guess->dead;
        Block* const known = is_guessed ? guess : search(key);
        if (known == nullptr) {
            bool is_new = false;
            Page& page = add_page(cpu, fetched.gpa / page_size, is_new);
            if (is_new) {
                continue;
            }
            Block* const built = build(cpu, mode, page, host, fetched.gpa, next_linear, single);
            if (built == nullptr && !no_memory_) {
                continue;  // The second page has been registered: host pointers are stale.
            }
            return built;
        }
        if (known->second_gpa == Block::no_page || second_page_matches(cpu, next_linear, *known)) {
            if (!known->dead) {
                return known;
            }
        } else {
            kill(*known);
        }
    }
}

bool BlockCache::second_page_matches(Cpu& cpu, std::uint64_t next_linear, const Block& block)
{
    const CodePage fetched = fetch_page(cpu, next_linear);
    if (fetched.host == nullptr || fetched.gpa != block.second_gpa) {
        return false;
    }
    return find_page(fetched.gpa / page_size) != nullptr;
}

/// Decodes one block into a buffer.
class BlockCache::Builder {
public:
    Builder(BlockCache& cache, Cpu& cpu, const Mode& mode, Page& page, const std::byte* host)
        : cache_(cache),
          cpu_(cpu),
          mode_(mode),
          page_(page),
          host_(host)
    {
    }

    enum class Outcome : std::uint8_t { Done, Crossing };

    /// Decodes from offset `start` of the page.
    [[nodiscard]] Outcome decode_page(std::size_t start, bool single)
    {
        start_ = start;
        bool past_branch = false;
        const std::size_t most = single ? 1 : Block::max_ops - 1;
        while (count_ < most && start_ + size_ < page_size &&
               !(past_branch && count_ >= max_ops_past_branch)) {
            const std::size_t at = start_ + size_;
            const std::size_t available = std::min(max_length, page_size - at);
            cache_.read_bytes(page_, host_, at, at + available);
            Insn insn;
            const DecodeStatus status = cache_.decoder_.decode({page_.bytes.data() + at, available},
                                                               mode_.context.code_size, insn);
            if (status == DecodeStatus::Truncated) {
                if (count_ == 0) {
                    return Outcome::Crossing;
                }
                break;
            }
            if (!add(status, insn, single)) {
                return Outcome::Done;
            }
            past_branch = past_branch || is_direct_branch(insn);
        }
        finish(single || mode_.limited ? 0 : linkable);
        return Outcome::Done;
    }

    /// The one instruction whose bytes these are, partly from the second page.
    void decode_crossing(std::span<const std::byte> bytes, bool single)
    {
        Insn insn;
        const DecodeStatus status = cache_.decoder_.decode(bytes, mode_.context.code_size, insn);
        start_ = page_size;  // No branch of it is linked.
        if (add(status, insn, single)) {
            finish(0);
        }
    }

    [[nodiscard]] Block* block(std::uint64_t gpa, std::uint64_t key) const
    {
        const std::size_t bytes = sizeof(Block) + count_ * sizeof(Op);
        void* const memory = ::operator new(bytes);
        Block* const made = new (memory) Block{};
        made->gpa = gpa;
        made->key = key;
        made->links = links_;
        made->size = static_cast<std::uint16_t>(size_);
        made->extent = static_cast<std::uint16_t>(size_ + illegal_);
        made->op_count = static_cast<std::uint16_t>(count_);
        std::uninitialized_copy_n(ops_.begin(), count_, made->ops());
        return made;
    }

private:
    /// False: the block ends here.
    bool add(DecodeStatus status, Insn& insn, bool single)
    {
        Op& op = ops_[count_];
        op = Op{};
        op.offset = static_cast<std::uint16_t>(size_);
        if (status != DecodeStatus::Ok) {
            op.handler = status == DecodeStatus::Invalid ? raise_ud : raise_gp;
            op.interpret = op.handler;
            illegal_ = max_length;
            ++count_;
            return false;
        }
        make_op(cpu_, insn, mode_.context, op);
        op.interpret = op.handler;
        if (is_direct_branch(insn)) {
            set_link(op, single || mode_.limited);
        }
        size_ += insn.length;
        ++count_;
        if (ends_block(insn)) {
            finish(single || mode_.limited ? 0 : linkable);
            return false;
        }
        return true;
    }

    void set_link(Op& op, bool never)
    {
        if (op.extra != linkable) {
            return;
        }
        const std::uint64_t target = start_ + op.immediate;
        if (never || start_ >= page_size || target >= page_size) {
            op.extra = 0;
            return;
        }
        op.vvvv = static_cast<std::uint8_t>(count_);
        links_ |= std::uint64_t{1} << count_;
    }

    void finish(std::uint8_t extra)
    {
        Op& op = ops_[count_];
        op = Op{};
        op.offset = static_cast<std::uint16_t>(size_);
        op.immediate = size_;
        op.handler = mode_.context.code_size == CodeSize::Bits64 ? go_on_64 : go_on;
        op.interpret = op.handler;
        if (extra == linkable && start_ + size_ < page_size) {
            op.extra = linkable;
            op.vvvv = static_cast<std::uint8_t>(count_);
            links_ |= std::uint64_t{1} << count_;
        }
        ++count_;
    }

    BlockCache& cache_;
    Cpu& cpu_;
    const Mode& mode_;
    Page& page_;
    const std::byte* host_;
    std::size_t start_{};
    std::size_t size_{};
    std::size_t illegal_{};  ///< Bytes behind `size_` that made no instruction.
    std::size_t count_{};
    std::uint64_t links_{};
    std::array<Op, Block::max_ops> ops_;
};

Block* BlockCache::build(Cpu& cpu,
                         const Mode& mode,
                         Page& page,
                         const std::byte* host,
                         std::uint64_t gpa,
                         std::uint64_t next_linear,
                         bool single)
{
    no_memory_ = false;
    Builder builder{*this, cpu, mode, page, host};
    Page* second = nullptr;
    std::uint64_t second_gpa = Block::no_page;
    if (builder.decode_page(gpa & page_mask, single) == Builder::Outcome::Crossing) {
        const std::size_t here = page_size - (gpa & page_mask);
        const CodePage fetched = fetch_page(cpu, next_linear);
        if (fetched.host == nullptr) {
            no_memory_ = true;
            return nullptr;
        }
        bool is_new = false;
        second = &add_page(cpu, fetched.gpa / page_size, is_new);
        if (is_new) {
            return nullptr;
        }
        read_bytes(*second, fetched.host, 0, max_length);
        second_gpa = fetched.gpa;
        std::array<std::byte, max_length> bytes{};
        const std::size_t first_part = std::min(here, max_length);
        std::memcpy(bytes.data(), page.bytes.data() + (gpa & page_mask), first_part);
        std::memcpy(bytes.data() + first_part, second->bytes.data(), max_length - first_part);
        builder.decode_crossing(bytes, single);
    }
    Block* const block = builder.block(gpa, mode.key(gpa, single));
    insert(*block);
    ++cpu.counters.blocks;
    block->page = &page;
    page.blocks.push_back(block);
    page.idle_writes = 0;
    if (second != nullptr) {
        // Also where the bytes raise an exception: other bytes there might not.
        block->second_gpa = second_gpa;
        if (second != &page) {
            second->blocks.push_back(block);
        }
        second->idle_writes = 0;
    }
    live_bytes_ += bytes_of(*block);
    if (cpu.translator != nullptr && !single && second == nullptr && block->size != 0 &&
        (mode.context.code_size == CodeSize::Bits64 || mode.context.flat)) {
        Translator::prepare(*block);
    }
    return block;
}

void BlockCache::link(Cpu& cpu, Block& target) noexcept
{
    Op* const op = const_cast<Op*>(cpu.chain.unlinked);  // It lies in a block of ours.
    cpu.chain.unlinked = nullptr;
    if (op->handler == stale_op || op->aux != nullptr || op->extra != linkable) {
        return;
    }
    // SAFETY: `vvvv` of a linkable operation is its index behind the block's header.
    Block* const source = reinterpret_cast<Block*>(op - op->vvvv) - 1;
    constexpr std::uint64_t mode_bits = 0xff;
    const bool same_page = (source->gpa ^ target.gpa) / page_size == 0;
    const bool crossing = target.second_gpa != Block::no_page;
    if (source->dead || target.dead || !same_page || crossing ||
        target.gpa != source->gpa + op->immediate ||  // An interrupt came between.
        ((source->key ^ target.key) & mode_bits) != 0) {
        if (crossing) {
            op->extra = 0;  // Its mapping must be looked at: through the jump table.
        }
        return;
    }
    op->aux = target.ops();
    target.incoming.push_back(op);
}

std::size_t BlockCache::bytes_of(const Block& block) noexcept
{
    return sizeof(Block) + block.op_count * sizeof(Op) + 32;
}

void BlockCache::destroy(Block* block) noexcept
{
    block->~Block();
    ::operator delete(block);
}

void BlockCache::kill(Block& block) noexcept
{
    if (block.dead) {
        return;
    }
    block.dead = true;
    if (cpu_ != nullptr && cpu_->translator != nullptr) {
        cpu_->translator->drop(block);
    }
    for (Op* const op : block.incoming) {
        op->aux = nullptr;
    }
    block.incoming.clear();
    for (std::size_t i = 0; i < block.op_count; ++i) {
        Op& op = block.ops()[i];
        op.handler = stale_op;
        op.interpret = stale_op;
        if (((block.links >> i) & 1U) == 0 || op.aux == nullptr) {
            continue;
        }
        // SAFETY: a link leads to the first operation behind a block's header.
        Block* const target =
            reinterpret_cast<Block*>(const_cast<Op*>(static_cast<const Op*>(op.aux))) - 1;
        std::vector<Op*>& incoming = target->incoming;
        incoming.erase(std::remove(incoming.begin(), incoming.end(), &op), incoming.end());
        op.aux = nullptr;
    }
    for (Block** place = &buckets_[bucket_of(block.key)]; *place != nullptr;
         place = &(*place)->next_in_bucket) {
        if (*place == &block) {
            *place = block.next_in_bucket;
            --block_count_;
            break;
        }
    }
    for (const std::uint64_t gpa : {block.gpa, block.second_gpa}) {
        const auto page = pages_.find(gpa / page_size);
        if (page != pages_.end()) {
            std::vector<Block*>& blocks = page->second->blocks;
            blocks.erase(std::remove(blocks.begin(), blocks.end(), &block), blocks.end());
        }
    }
    live_bytes_ -= bytes_of(block);
    dead_bytes_ += bytes_of(block);
    dead_.push_back(&block);
}

void BlockCache::kill_overlapping(Page& page, std::uint64_t gpa, std::uint64_t size) noexcept
{
    const std::uint64_t first = gpa;
    const std::uint64_t last = gpa + (size - 1);
    // kill() takes the block out of the list: from the back.
    for (std::size_t i = page.blocks.size(); i-- > 0;) {
        if (i >= page.blocks.size()) {
            continue;
        }
        Block& block = *page.blocks[i];
        const std::uint64_t start = block.gpa;
        std::uint64_t end = start + block.extent - 1;
        if (block.second_gpa != Block::no_page) {
            end = start | page_mask;
            const std::uint64_t second_end = block.second_gpa + max_length - 1;
            if (first <= second_end && last >= block.second_gpa) {
                kill(block);
                continue;
            }
        }
        if (first <= end && last >= start) {
            kill(block);
        }
    }
}

void BlockCache::invalidate_in(Page& page, std::uint64_t gpa, std::uint64_t size) noexcept
{
    const std::size_t from = gpa & page_mask;
    page.current &= ~pieces(from, from + size);
    const std::size_t before = page.blocks.size();
    kill_overlapping(page, gpa, size);
    if (before != page.blocks.size()) {
        page.idle_writes = 0;
    } else if (page.blocks.empty() && ++page.idle_writes > max_idle_writes) {
        forget(page);  // Data by now.
    }
}

void BlockCache::forget(Page& page) noexcept
{
    const std::uint64_t gfn = page.gfn;
    if (last_page_ == &page) {
        last_page_ = nullptr;
    }
    live_bytes_ -= sizeof(Page);
    pages_.erase(gfn);
    vm_->unmark_code_page(gfn);
}

void BlockCache::invalidate(std::uint64_t gpa, std::uint64_t size) noexcept
{
    if (size == 0 || pages_.empty()) {
        return;
    }
    const std::uint64_t last = size - 1 > ~gpa ? ~std::uint64_t{0} : gpa + (size - 1);
    const auto part_in = [&](std::uint64_t gfn) {
        const std::uint64_t start = std::max(gpa, gfn * page_size);
        const std::uint64_t end = std::min(last, gfn * page_size + page_mask);
        return std::pair{start, end - start + 1};
    };
    const std::uint64_t first_gfn = gpa / page_size;
    const std::uint64_t last_gfn = last / page_size;
    if (last_gfn - first_gfn < pages_.size()) {
        for (std::uint64_t gfn = first_gfn; gfn <= last_gfn; ++gfn) {
            if (Page* const page = find_page(gfn)) {
                const auto [start, length] = part_in(gfn);
                invalidate_in(*page, start, length);
            }
        }
        return;
    }
    std::vector<std::uint64_t> hit;
    for (const auto& [gfn, page] : pages_) {
        if (gfn >= first_gfn && gfn <= last_gfn) {
            hit.push_back(gfn);
        }
    }
    for (const std::uint64_t gfn : hit) {
        if (Page* const page = find_page(gfn)) {
            const auto [start, length] = part_in(gfn);
            invalidate_in(*page, start, length);
        }
    }
}

void BlockCache::revalidate(std::uint64_t gfn, const std::byte* host) noexcept
{
    if (Page* const page = find_page(gfn)) {
        compare(*page, host);
    }
}

void BlockCache::clear() noexcept
{
    for (const auto& [gfn, page] : pages_) {
        while (!page->blocks.empty()) {
            kill(*page->blocks.back());
        }
    }
    last_page_ = nullptr;
    for (const auto& [gfn, page] : pages_) {
        vm_->unmark_code_page(gfn);
    }
    pages_.clear();
    live_bytes_ = 0;
}

void BlockCache::collect(Cpu& cpu) noexcept
{
    if (live_bytes_ > max_bytes) {
        clear();
    }
    if (dead_bytes_ <= max_dead_bytes) {
        return;
    }
    cpu.jumps.clear();
    cpu.mmio.owner = nullptr;
    for (Block* const block : dead_) {
        destroy(block);
    }
    dead_.clear();
    dead_bytes_ = 0;
}

}  // namespace vmm::x86::soft
