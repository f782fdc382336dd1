// SPDX-License-Identifier: Apache-2.0

/// @file
/// Translated code of one vCPU: when blocks become host code, and when that goes again.
///
/// A translation belongs to a block of the block cache and dies with it.  Blocks count how often
/// they are entered; hot ones are translated (emitter.hpp).  When code memory is full everything is
/// dropped and starts anew.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "x86/soft/block.hpp"
#include "x86/soft/code_memory.hpp"
#include "x86/soft/cpu.hpp"
#include "x86/soft/emitter.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

class Translator {
public:
    /// Null where `mode` is Off.  Memory is taken when the first block is hot; where none can be
    /// had the interpreter does it all.
    [[nodiscard]] static std::unique_ptr<Translator> create(Cpu& cpu, TranslationMode mode);

    Translator(const Translator&) = delete;
    Translator& operator=(const Translator&) = delete;
    Translator(Translator&&) = delete;
    Translator& operator=(Translator&&) = delete;
    ~Translator();

    /// The first handler of a block that may become hot: @pre `block` is fit (64-bit or flat 32-bit
    /// code, in one page, decoded without limits).
    static void prepare(Block& block) noexcept;
    /// Where translated code goes for `block`.
    [[nodiscard]] const void* code_of(const Block& block) const noexcept;
    /// How many blocks are translated.
    [[nodiscard]] std::size_t size() const noexcept { return translated_.size(); }

    /// @param bytes  of its instructions, and what follows in their page.
    void translate(Block& block, std::span<const std::byte> bytes, CodeSize code_size);
    /// The block dies.
    void drop(Block& block) noexcept;
    /// After fork() the memory is the parent's: starts anew.  To be called before guest code runs.
    void check_owner() noexcept
    {
        if (owned_ != nullptr && *owned_ == 0) [[unlikely]] {
            abandon();
        }
    }

private:
    Translator(Cpu& cpu, bool stress);

    static const Op* warm_up(Cpu& cpu, const Op* op);
    static const Op* take_edge(Cpu& cpu, const JumpSite* site);
    [[nodiscard]] bool start();
    void emit_shared();
    /// What jump tables have for a block without translation.
    [[nodiscard]] const void* untranslated() const noexcept;
    void commit(Block& block);
    void forget(Block& block) noexcept;
    void clear() noexcept;
    void abandon() noexcept;
    void disturb();
    [[nodiscard]] const void* executable(const std::uint8_t* writable) const noexcept
    {
        return memory_.executable() + (writable - memory_.writable());
    }

    Cpu& cpu_;
    bool stress_;
    unsigned threshold_;
    CodeMemory memory_;
    volatile std::uint8_t* owned_{};  ///< A page that fork() clears.
    bool failed_{};                   ///< No memory.
    std::size_t shared_size_{};
    std::size_t used_{};
    EmitterContext context_;
    std::optional<BlockEmitter> emitter_;
    std::vector<Block*> translated_;
    std::minstd_rand random_{};  ///< Stress.
};

}  // namespace vmm::x86::soft
