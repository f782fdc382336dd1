// SPDX-License-Identifier: Apache-2.0

/// @file
/// MOVS, STOS and LODS of one element, as compilers that optimize for size like them: upwards, in
/// segments that begin at 0.  Repeated ones are the interpreter's, which goes by pages.

#include "x86/soft/emitter.hpp"
#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

namespace {

Xbyak::Reg part(const Xbyak::Reg64& reg, std::size_t size)
{
    switch (size) {
    case 1: return reg.cvt8();
    case 2: return reg.cvt16();
    case 4: return reg.cvt32();
    default: return reg;
    }
}

}  // namespace

bool BlockEmitter::emit_string(const Insn& insn)
{
    constexpr int direction_flag = 10;
    const std::size_t size = width(insn);
    if (insn.rep || insn.repne || !can_address(insn) || insn.address_size != word_size() ||
        insn.segment == Fs || insn.segment == Gs) {
        return false;
    }
    const bool loads = insn.opcode != 0xaa && insn.opcode != 0xab;
    const bool stores = insn.opcode < 0xac;
    clobber();
    bt(state32(layout_.rflags), direction_flag);
    exit_if(Condition::Below);
    if (loads) {
        mov(sized(r10), sized(guest_rsi));
        look_up(size, false);
        mov(part(r11, size), ptr[r10]);
    }
    if (!stores) {
        mov(part(guest_rax, size), part(r11, size));
    } else {
        if (loads) {
            mov(state(layout_.spare), r11);
        }
        mov(sized(r10), sized(guest_rdi));
        look_up(size, true);
        if (loads) {
            mov(r11, state(layout_.spare));
        }
        mov(ptr[r10], part(loads ? r11 : guest_rax, size));
        add_to_word(guest_rdi, guest_rdi, static_cast<std::int64_t>(size));
    }
    if (loads) {
        add_to_word(guest_rsi, guest_rsi, static_cast<std::int64_t>(size));
    }
    return true;
}

}  // namespace vmm::x86::soft
