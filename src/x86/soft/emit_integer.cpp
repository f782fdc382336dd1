// SPDX-License-Identifier: Apache-2.0

/// @file
/// Integer instructions with operands of their own: RAX, RDX, the stack, large immediates.

#include "x86/soft/emitter.hpp"

namespace vmm::x86::soft {

namespace {

bool is_high_byte(const Insn& insn, unsigned number) noexcept
{
    return !insn.has_rex && number >= 4 && number < 8;
}

}  // namespace

bool BlockEmitter::emit_integer(const Insn& insn)
{
    if (insn.vex || insn.lock) {
        return insn.map == OpcodeMap::Map0F && !insn.vex && emit_compare_exchange(insn);
    }
    const unsigned opcode = insn.opcode;
    if (insn.map == OpcodeMap::Map0F) {
        if (opcode == 0xb0 || opcode == 0xb1) {
            return emit_compare_exchange(insn);
        }
        if (opcode >= 0xc8 && opcode <= 0xcf) {
            return emit_byte_swap(insn);
        }
        return opcode == 0x0d || opcode == 0x18 || opcode == 0x1f;  // Prefetches, NOP.
    }
    if (insn.map != OpcodeMap::Primary) {
        return false;
    }
    if (opcode < 0x40 && (opcode & 7U) >= 4 && (opcode & 7U) <= 5) {
        return emit_accumulator(insn);
    }
    if (opcode >= 0x50 && opcode <= 0x57) {
        return emit_push(insn);
    }
    if (opcode >= 0x58 && opcode <= 0x5f) {
        return emit_pop(insn);
    }
    if (opcode >= 0xb0 && opcode <= 0xbf) {
        return emit_move_immediate(insn);
    }
    switch (opcode) {
    case 0x68:
    case 0x6a: return emit_push(insn);
    case 0x8d: return emit_lea(insn);
    case 0x90:
        if (insn.rep) {  // With REX.B too.
            clobber();
            sub(state32(layout_.pauses_left), 1);
            exit_if(Condition::Sign);
            pause();
            return true;
        }
        if (insn.rm == 0) {
            return true;  // NOP
        }
        [[fallthrough]];
    case 0x91:
    case 0x92:
    case 0x93:
    case 0x94:
    case 0x95:
    case 0x96:
    case 0x97: return emit_accumulator(insn);  // XCHG
    case 0x98:
    case 0x99: return emit_convert(insn);
    case 0xa4:
    case 0xa5:
    case 0xaa:
    case 0xab:
    case 0xac:
    case 0xad: return emit_string(insn);
    case 0xa8:
    case 0xa9: return emit_accumulator(insn);
    case 0xc9: return emit_leave(insn);
    case 0xf5:
    case 0xf8:
    case 0xf9:
        unpark();
        db(static_cast<int>(opcode));  // CMC, CLC, STC
        flags_written();
        return true;
    case 0xf6:
    case 0xf7: return insn.group < 6 ? emit_multiply(insn) : emit_divide(insn);
    case 0xff: return insn.group == 6 && emit_push(insn);
    default: return false;
    }
}

/// RAX without ModRM, with an immediate or (XCHG) a register: as the form with ModRM.
bool BlockEmitter::emit_accumulator(const Insn& insn)
{
    Insn general = insn;
    const bool is_byte = (insn.opcode & 1U) == 0;
    general.mod = 3;
    general.rm = Rax;
    if ((insn.opcode & 0xf8U) == 0x90) {
        general.opcode = 0x87;
        general.reg = Rax;
        general.rm = insn.rm;
    } else if (insn.opcode >= 0xa8) {
        general.opcode = is_byte ? 0xf6 : 0xf7;
        general.group = 0;
    } else {
        general.opcode = is_byte ? 0x80 : 0x81;
        general.group = insn.opcode >> 3U;
    }
    general.has_rex = true;  // AL in any case.
    Form form;
    return find_form(general, form) && emit_form(general, form);
}

bool BlockEmitter::emit_push(const Insn& insn)
{
    if (insn.operand_size != word_size() || insn.lock) {
        return false;
    }
    if (insn.opcode == 0xff && insn.has_memory) {
        if (!can_address(insn)) {
            return false;
        }
        mov(sized(r11), word_at(address_of(host_address(insn, word_size(), false, 0))));
        mov(state(layout_.spare), r11);
    }
    const Xbyak::RegExp to =
        address_of(word_near(Rsp, -static_cast<std::int32_t>(word_size()), true));
    if (insn.opcode == 0x68 || insn.opcode == 0x6a) {
        mov(word_at(to), is_wide_ ? insn.immediate : insn.immediate & 0xffff'ffffU);
    } else if (insn.opcode == 0xff && insn.has_memory) {
        mov(r11, state(layout_.spare));
        mov(word_at(to), sized(r11));
    } else {
        mov(word_at(to), sized(load(insn.rm, r11)));
    }
    add_to_word(guest_rsp, guest_rsp, -std::int64_t{word_size()});
    return true;
}

bool BlockEmitter::emit_pop(const Insn& insn)
{
    if (insn.operand_size != word_size()) {
        return false;
    }
    const Xbyak::RegExp from = address_of(word_near(Rsp, 0, false));
    const std::uint8_t host = host_register[insn.rm];
    if (insn.rm == Rsp) {
        mov(sized(guest_rsp), word_at(from));
        return true;
    }
    const Xbyak::Reg64 to = host == spilled ? r11 : Xbyak::Reg64(host);
    mov(sized(to), word_at(from));
    store(insn.rm, to);
    add_to_word(guest_rsp, guest_rsp, word_size());
    return true;
}

bool BlockEmitter::emit_leave(const Insn& insn)
{
    if (insn.operand_size != word_size()) {
        return false;
    }
    const Xbyak::RegExp from = address_of(word_near(Rbp, 0, false));
    add_to_word(guest_rsp, guest_rbp, word_size());
    mov(sized(guest_rbp), word_at(from));
    return true;
}

bool BlockEmitter::emit_lea(const Insn& insn)
{
    if (!insn.has_memory || !can_address(insn)) {
        return false;
    }
    const std::uint8_t host = host_register[insn.reg];
    if (insn.operand_size == 8 && host != spilled) {
        // The destination may be a source, which is read last.
        effective_address(insn, r10);
        mov(Xbyak::Reg64(host), r10);
        return true;
    }
    effective_address(insn, r10);
    if (insn.operand_size == 2) {
        if (host == spilled) {
            mov(word[r15 + std::size_t{insn.reg} * 8], r10w);
        } else {
            mov(Xbyak::Reg16(host), r10w);
        }
        return true;
    }
    if (insn.operand_size == 4) {
        mov(r10d, r10d);
    }
    store(insn.reg, r10);
    return true;
}

bool BlockEmitter::emit_move_immediate(const Insn& insn)
{
    const std::uint8_t host = host_register[insn.rm];
    if (insn.opcode >= 0xb8 && insn.operand_size >= 4) {
        const Xbyak::Reg64 to = host == spilled ? r11 : Xbyak::Reg64(host);
        mov(to, insn.operand_size == 4 ? insn.immediate & 0xffff'ffffU : insn.immediate);
        store(insn.rm, to);
        return true;
    }
    if (insn.opcode >= 0xb8) {
        if (host == spilled) {
            mov(word[r15 + std::size_t{insn.rm} * 8], static_cast<std::uint16_t>(insn.immediate));
        } else {
            mov(Xbyak::Reg16(host), static_cast<std::uint16_t>(insn.immediate));
        }
        return true;
    }
    if (is_high_byte(insn, insn.rm)) {
        return false;
    }
    if (host == spilled) {
        mov(byte[r15 + std::size_t{insn.rm} * 8], static_cast<std::uint8_t>(insn.immediate));
    } else {
        mov(Xbyak::Reg8(host, host >= 4 && host < 8), static_cast<std::uint8_t>(insn.immediate));
    }
    return true;
}

/// CBW CWDE CDQE, CWD CDQ CQO.
bool BlockEmitter::emit_convert(const Insn& insn)
{
    if (insn.opcode == 0x98) {
        switch (insn.operand_size) {
        case 2: movsx(guest_rax.cvt16(), guest_rax.cvt8()); break;
        case 4: movsx(guest_rax.cvt32(), guest_rax.cvt16()); break;
        default: movsxd(guest_rax, guest_rax.cvt32()); break;
        }
        return true;
    }
    if (flags_.parked) {
        mov(r11, rax);
    }
    mov(rax, guest_rax);
    switch (insn.operand_size) {
    case 2: cwd(); break;
    case 4: cdq(); break;
    default: cqo(); break;
    }
    if (flags_.parked) {
        mov(rax, r11);
    }
    return true;
}

/// MUL and IMUL of RAX.
bool BlockEmitter::emit_multiply(const Insn& insn)
{
    const auto size = (insn.opcode & 1U) != 0 ? insn.operand_size : std::uint8_t{1};
    if (size == 1 || insn.group < 4) {
        return false;
    }
    Form form;
    form.rm = Use::Read;
    form.rm_width = size;
    form.flags_read = true;
    form.flags_written = true;
    Operand rm;
    if (insn.has_memory) {
        if (!can_address(insn)) {
            return false;
        }
        rm = host_address(insn, size, false, 0);
    } else if (host_register[insn.rm] == spilled) {
        rm = {true, 15, insn.rm * 8};
    } else {
        rm = {false, host_register[insn.rm], 0};
    }
    unpark();
    mov(rax, guest_rax);
    encode(insn, form, insn.group, rm, 0);
    mov(guest_rax, rax);
    flags_written();
    return true;
}

/// Flags stay as they are.  What might overflow is left to the interpreter.
bool BlockEmitter::emit_divide(const Insn& insn)
{
    const unsigned size = (insn.opcode & 1U) != 0 ? insn.operand_size : 1U;
    if (size < 4) {
        return false;
    }
    const auto cut = [size](const Xbyak::Reg64& reg) -> Xbyak::Reg {
        return size == 4 ? Xbyak::Reg{reg.cvt32()} : Xbyak::Reg{reg};
    };
    if (insn.has_memory) {
        if (!can_address(insn)) {
            return false;
        }
        const Xbyak::RegExp from = address_of(host_address(insn, size, false, 0));
        clobber();
        if (size == 4) {
            mov(r10d, dword[from]);
        } else {
            mov(r10, ptr[from]);
        }
    } else {
        clobber();
        mov(r10, load(insn.rm, r10));
    }
    const auto compare = [&](const Xbyak::Reg64& left, const Xbyak::Reg64& right) {
        if (size == 4) {
            cmp(left.cvt32(), right.cvt32());
        } else {
            cmp(left, right);
        }
    };
    if (insn.group == 6) {
        compare(guest_rdx, r10);
        exit_if(Condition::AboveOrEqual);
    } else {
        // A dividend of one word, and neither 0 nor -1 as divisor.
        mov(r11, guest_rax);
        sar(cut(r11), static_cast<int>(size * 8U - 1U));
        compare(r11, guest_rdx);
        exit_if(Condition::NotEqual);
        lea(r11, ptr[r10 + 1]);
        cmp(cut(r11), 1);
        exit_if(Condition::BelowOrEqual);
    }
    mov(r11, rax);
    mov(rax, guest_rax);
    if (insn.group == 6) {
        div(cut(r10));
    } else {
        idiv(cut(r10));
    }
    mov(guest_rax, rax);
    mov(rax, r11);
    return true;
}

/// CMPXCHG.
bool BlockEmitter::emit_compare_exchange(const Insn& insn)
{
    if (insn.opcode != 0xb0 && insn.opcode != 0xb1) {
        return false;
    }
    const auto size = (insn.opcode & 1U) != 0 ? insn.operand_size : std::uint8_t{1};
    if (!insn.has_memory || !can_address(insn) || (size == 1 && is_high_byte(insn, insn.reg))) {
        return false;
    }
    Form form;
    form.reg_width = size;
    form.rm_width = size;
    const Operand memory =
        host_address(insn, size, true, insn.lock ? static_cast<std::uint8_t>(size - 1U) : 0);
    const Xbyak::Reg64 source = load(insn.reg, r11);
    mov(rax, guest_rax);
    encode(insn, form, static_cast<unsigned>(source.getIdx()), memory, 0);
    mov(guest_rax, rax);
    flags_written();
    return true;
}

bool BlockEmitter::emit_byte_swap(const Insn& insn)
{
    if (insn.operand_size < 4) {
        return false;
    }
    const Xbyak::Reg64 value = load(insn.rm, r11);
    if (insn.operand_size == 4) {
        bswap(value.cvt32());
    } else {
        bswap(value);
    }
    store(insn.rm, value);
    return true;
}

}  // namespace vmm::x86::soft
