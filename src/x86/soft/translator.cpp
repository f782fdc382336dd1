// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/translator.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include <sys/mman.h>

#include "x86/soft/build_block.hpp"
#include "x86/soft/dispatch.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/native.hpp"
#include "x86/soft/perf_map.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::size_t memory_size = std::size_t{128} << 20U;
constexpr std::size_t stress_memory_size = std::size_t{512} << 10U;
constexpr unsigned hot = 32;
constexpr std::size_t owned_size = 4096;
/// Whether the host checks that RET goes where CALL came from.  SDM Vol. 1 "Shadow Stacks".
bool has_shadow_stack() noexcept
{
    std::uint64_t pointer = 0;
    asm volatile(".byte 0xf3, 0x48, 0x0f, 0x1e, 0xc8" : "+a"(pointer));  // RDSSPQ, or a NOP.
    return pointer != 0;
}

constexpr std::size_t dead_exit_size = 18;  ///< What lies before a block's code (emitter.cpp).

}  // namespace

std::unique_ptr<Translator> Translator::create(Cpu& cpu, TranslationMode mode)
{
    if (mode == TranslationMode::Off) {
        return nullptr;
    }
    return std::unique_ptr<Translator>{new Translator{cpu, mode == TranslationMode::Stress}};
}

Translator::Translator(Cpu& cpu, bool stress)
    : cpu_(cpu),
      stress_(stress),
      threshold_(stress ? 1 : hot),
      context_{CpuLayout{cpu}, {}, {}, {}, false, false, false}
{
    context_.bmi2 = __builtin_cpu_supports("bmi2") != 0;
    context_.avx = __builtin_cpu_supports("avx") != 0;
    context_.predicts_returns = !has_shadow_stack();
}

/// Takes memory, if that has not been done.
bool Translator::start()
{
    if (memory_.size() != 0 || failed_) {
        return !failed_;
    }
    failed_ = true;
    Result<CodeMemory> memory = CodeMemory::create(stress_ ? stress_memory_size : memory_size);
    if (!memory) {
        return false;
    }
    if (owned_ == nullptr) {
        void* const owned =
            ::mmap(nullptr, owned_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (owned == MAP_FAILED) {
            return false;
        }
        owned_ = static_cast<std::uint8_t*>(owned);
    }
    if (::madvise(const_cast<std::uint8_t*>(owned_), owned_size, MADV_WIPEONFORK) != 0) {
        return false;
    }
    *owned_ = 1;
    memory_ = std::move(*memory);
    emit_shared();
    emitter_.emplace(context_, memory_.writable(), memory_.size());
    cpu_.jumps.mapping_changed();  // Jump tables forget its code.
    failed_ = false;
    return true;
}

Translator::~Translator()
{
    if (owned_ == nullptr) {
        return;
    }
    ::munmap(const_cast<std::uint8_t*>(owned_), owned_size);
}

void Translator::emit_shared()
{
    SharedEmitter emitter{context_, memory_.writable(), memory_.size()};
    context_.shared = emitter.emit(reinterpret_cast<const void*>(&take_edge));
    emitter.ready();
    shared_size_ = (emitter.getSize() + 15U) & ~std::size_t{15};
    used_ = shared_size_;
}

void Translator::prepare(Block& block) noexcept
{
    block.heat = 0;
    block.ops()->handler = &warm_up;
}

const void* Translator::code_of(const Block& block) const noexcept
{
    return block.body != nullptr ? executable(block.body) : untranslated();
}

const void* Translator::untranslated() const noexcept
{
    return memory_.size() == 0 ? nullptr : executable(context_.shared.untranslated);
}

const Op* Translator::warm_up(Cpu& cpu, const Op* op)
{
    Block& block = Block::of(*op);
    if (++block.heat < cpu.translator->threshold_) {
        return op->interpret(cpu, op);
    }
    cpu.blocks->translate(cpu, block);
    return op->handler(cpu, op);
}

/// Translated code goes on at `cpu.rip`, by the jump at `site` if it is one within a page.
const Op* Translator::take_edge(Cpu& cpu, const JumpSite* site)
{
    Translator& self = *cpu.translator;
    self.disturb();
    const std::uint64_t rip = cpu.rip;
    JumpEntry& entry = jump_entry(cpu, rip);
    if (!is_known_target(cpu, entry, rip) || !may_continue(cpu) || *self.owned_ == 0) {
        return leave_to(cpu, rip);
    }
    if (entry.first->handler != stale_op) {
        const Block& target = Block::of(*entry.first);
        entry.code = self.code_of(target);
        if (site != nullptr && target.body != nullptr && site->gfn == target.gpa >> 12U) {
            const auto distance = static_cast<std::int32_t>(target.body - (site->jump + 5));
            std::memcpy(site->jump + 1, &distance, sizeof distance);
            ++cpu.counters.chains;
        }
    }
    return enter_block(cpu, entry.first, rip);
}

/// Stress: forgets translations of addresses now and then.
void Translator::disturb()
{
    if (stress_ && random_() % 64 == 0) [[unlikely]] {
        flush_tlb_all(cpu_);
    }
}

void Translator::translate(Block& block, std::span<const std::byte> bytes, CodeSize code_size)
{
    fpu_release(cpu_);
    check_owner();
    disturb();
    if (stress_ && memory_.size() != 0 && random_() % 512 == 0) {
        clear();
    }
    block.ops()->handler = block.ops()->interpret;
    if (!start()) {
        return;
    }
    for (int attempt = 0; attempt < 2; ++attempt) {
        const std::size_t sites = context_.sites.size();
        const std::size_t far_sites = context_.far_sites.size();
        try {
            emitter_->emit(used_, block, bytes, cpu_, code_size);
            commit(block);
            return;
        } catch (const Xbyak::Error& error) {
            context_.sites.resize(sites);
            context_.far_sites.resize(far_sites);
            if (static_cast<int>(error) != Xbyak::ERR_CODE_IS_TOO_BIG) {
                return;  // It stays with the interpreter.
            }
            clear();
        }
    }
}

void Translator::commit(Block& block)
{
    std::uint8_t* const memory = memory_.writable();
    const std::size_t end = emitter_->getSize();
    block.body = memory + emitter_->body();
    ++cpu_.counters.translations;
    note_for_perf(executable(memory + used_), end - used_, cpu_.block_rip());
    used_ = std::min(memory_.size(), (end + 15U) & ~std::size_t{15});
    block.translation = translated_.size();
    translated_.push_back(&block);
    for (std::size_t i = 0; i < block.op_count; ++i) {
        if (const std::size_t entry = emitter_->entry(i)) {
            // SAFETY: the emitter makes it a function with a handler's signature.
            block.ops()[i].handler = reinterpret_cast<Handler>(
                reinterpret_cast<std::uintptr_t>(executable(memory + entry)));
        }
    }
}

/// The block has no translation any more.
void Translator::forget(Block& block) noexcept
{
    translated_[block.translation] = translated_.back();
    translated_[block.translation]->translation = block.translation;
    translated_.pop_back();
    block.body = nullptr;
}

void Translator::drop(Block& block) noexcept
{
    if (block.body == nullptr) {
        return;
    }
    check_owner();
    if (block.body != nullptr) {
        // Whoever jumps there leaves to the run loop.
        block.body[0] = 0xeb;
        block.body[1] = static_cast<std::uint8_t>(-static_cast<int>(dead_exit_size + 2));
        forget(block);
    }
}

void Translator::clear() noexcept
{
    for (Block* const block : translated_) {
        for (std::size_t i = 0; i < block->op_count; ++i) {
            block->ops()[i].handler = block->ops()[i].interpret;
        }
        block->body = nullptr;
        prepare(*block);
    }
    translated_.clear();
    context_.sites.clear();
    context_.far_sites.clear();
    cpu_.jumps.mapping_changed();  // Jump tables forget its code.
    used_ = shared_size_;
    ++cpu_.counters.code_resets;
}

void Translator::abandon() noexcept
{
    clear();
    emitter_.reset();
    memory_ = CodeMemory{};
    *owned_ = 1;
}

}  // namespace vmm::x86::soft
