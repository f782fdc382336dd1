// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest memory from translated code: effective addresses and the TLB.

#include <limits>

#include "x86/soft/emitter.hpp"

namespace vmm::x86::soft {

namespace {

bool fits_32(std::int64_t value) noexcept
{
    return value >= std::numeric_limits<std::int32_t>::min() &&
           value <= std::numeric_limits<std::int32_t>::max();
}

}  // namespace

bool BlockEmitter::can_address(const Insn& insn) const noexcept
{
    if (!is_wide_ && (op_->address_kind == AddressKind::Segmented || insn.address_size != 4)) {
        return false;
    }
    if (insn.base == Insn::rip) {
        return insn.address_size == 8 &&
               fits_32(insn.displacement + page_offset_ + op_->next_offset());
    }
    const bool is_absolute = insn.base == Insn::no_register && insn.index == Insn::no_register;
    return is_absolute || fits_32(insn.displacement);
}

/// Without the segment's base.  Uses `to` and r11; leaves flags alone.
void BlockEmitter::effective_address(const Insn& insn, const Xbyak::Reg64& to)
{
    const bool is_narrow = insn.address_size == 4;
    if (insn.base == Insn::rip) {
        mov(to, state(layout_.code_page));
        lea(to, ptr[to + static_cast<std::size_t>(insn.displacement + page_offset_ +
                                                  op_->next_offset())]);
        return;
    }
    const auto displacement = static_cast<std::size_t>(insn.displacement);
    if (insn.index == Insn::no_register) {
        if (insn.base == Insn::no_register) {
            mov(to, is_narrow ? static_cast<std::uint64_t>(insn.displacement) & 0xffff'ffffU
                              : static_cast<std::uint64_t>(insn.displacement));
            return;
        }
        const Xbyak::Reg64 base = load(insn.base, to);
        if (is_narrow) {
            lea(to.cvt32(), ptr[base + displacement]);
        } else if (displacement != 0) {
            lea(to, ptr[base + displacement]);
        } else if (base.getIdx() != to.getIdx()) {
            mov(to, base);
        }
        return;
    }
    const Xbyak::Reg64 index = load(insn.index, r11);
    const int scale = 1 << insn.scale;
    if (insn.base == Insn::no_register) {
        if (is_narrow) {
            lea(to.cvt32(), ptr[index * scale + displacement]);
        } else {
            lea(to, ptr[index * scale + displacement]);
        }
        return;
    }
    const Xbyak::Reg64 base = load(insn.base, to);
    if (is_narrow) {
        lea(to.cvt32(), ptr[base + index * scale + displacement]);
    } else {
        lea(to, ptr[base + index * scale + displacement]);
    }
}

BlockEmitter::Operand BlockEmitter::host_address(const Insn& insn,
                                                 std::size_t size,
                                                 bool write,
                                                 std::uint8_t alignment)
{
    if (is_wide_ && alignment == 0 && is_fixed_distance(insn)) {
        return access_near({insn.base, static_cast<std::int32_t>(insn.displacement),
                            static_cast<std::uint8_t>(size), write});
    }
    clobber();
    effective_address(insn, r10);
    if (insn.segment == Fs || insn.segment == Gs) {
        add(r10, state(layout_.segment_base[insn.segment]));
    }
    if (alignment != 0) {
        test(r10b, alignment);
        exit_if(Condition::NotEqual);
    }
    return look_up(size, write);
}

BlockEmitter::Operand BlockEmitter::look_up(std::size_t size, bool write)
{
    // The difference to the tag is the offset in the page.
    find_entry(size, write);
    add(r10, ptr[r11 + offsetof(TlbEntry, host)]);
    return {true, 10};
}

Xbyak::RegExp BlockEmitter::address_of(const Operand& memory)
{
    Xbyak::RegExp address{Xbyak::Reg64(memory.number)};
    if (memory.index != Operand::none) {
        address = address + Xbyak::Reg64(memory.index);
    }
    return address + static_cast<std::size_t>(std::int64_t{memory.displacement});
}

/// As `TlbEntry` says: the page of the address must be the entry's, and the access end in it.  The
/// difference of address and tag is the offset in the page if so, and larger if not.
void BlockEmitter::find_entry(std::size_t size, bool write)
{
    static_assert(sizeof(TlbEntry) == 32 && Tlb::entry_count == 4096 &&
                  offsetof(Tlb, entries) == 0);
    constexpr int index_shift = 12 - 5;
    constexpr std::uint32_t index_mask = (Tlb::entry_count - 1) * sizeof(TlbEntry);
    clobber();
    if (context_.bmi2) {
        rorx(r11, r10, index_shift);
    } else {
        mov(r11, r10);
        shr(r11, index_shift);
    }
    and_(r11d, index_mask);
    add(r11, state(layout_.tlb));
    xor_(r10, ptr[r11 + (write ? offsetof(TlbEntry, write_tag) : offsetof(TlbEntry, read_tag))]);
    cmp(r10, static_cast<std::uint32_t>(4096 - size));
    exit_if(Condition::Above);
}

BlockEmitter::Operand BlockEmitter::word_near(unsigned guest_register,
                                              std::int32_t distance,
                                              bool write)
{
    if (is_wide_) {
        return access_near({static_cast<std::uint8_t>(guest_register), distance, 8, write});
    }
    const Xbyak::Reg64 base = load(guest_register, r10);
    add_to_word(r10, base, distance);
    return look_up(word_size(), write);
}

void BlockEmitter::ensure_vectors(std::uint8_t level)
{
    if (vectors_ >= level) {
        return;
    }
    clobber();
    cmp(state32(layout_.vectors), level);
    VectorLoad& load = vector_loads_.emplace_back();
    load.level = level;
    load.step = step_;
    // It may exit: the next step can be entered.
    steps_[step_].has_exit = true;
    jump_if(Condition::Below, load.place);
    bind(load.back);
    vectors_ = level;
}

}  // namespace vmm::x86::soft
