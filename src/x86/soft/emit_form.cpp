// SPDX-License-Identifier: Apache-2.0

/// @file
/// Instructions that are executed as themselves, with other registers and a host address.

#include "x86/soft/emitter.hpp"
#include "x86/soft/native.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::uint8_t scratch_10 = 10;
constexpr std::uint8_t scratch_11 = 11;

struct Registers {
    std::uint8_t reg{};
    std::uint8_t rm{};
    std::uint8_t vvvv{};
};

bool is_high_byte(const Insn& insn, unsigned number, unsigned width) noexcept
{
    return width == 1 && !insn.has_rex && number >= 4 && number < 8;
}

std::uint8_t width_of(const Insn& insn) noexcept
{
    return (insn.opcode & 1U) != 0 ? insn.operand_size : std::uint8_t{1};
}

std::uint8_t immediate_z(const Insn& insn) noexcept
{
    return insn.operand_size == 2 ? 2 : 4;
}

void both(Form& form, std::uint8_t width) noexcept
{
    form.reg_width = width;
    form.rm_width = width;
}

/// ADD OR ADC SBB AND SUB XOR CMP, by number.
void arithmetic_flags(Form& form, unsigned kind) noexcept
{
    form.flags_read = kind == 2 || kind == 3;
    form.flags_written = true;
}

bool find_group(const Insn& insn, Form& form) noexcept
{
    const std::uint8_t width = width_of(insn);
    form.rm_width = width;
    form.rm = Use::ReadWrite;
    switch (insn.opcode) {
    case 0x80:
    case 0x81:
    case 0x83:
        arithmetic_flags(form, insn.group);
        form.rm = insn.group == 7 ? Use::Read : Use::ReadWrite;
        form.immediate_size = insn.opcode == 0x81 ? immediate_z(insn) : std::uint8_t{1};
        return true;
    case 0xc0:
    case 0xc1: form.immediate_size = 1; [[fallthrough]];
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
        form.flags_read = true;  // A count of 0 changes none.
        form.flags_written = true;
        return true;
    case 0xc6:
    case 0xc7:
        form.rm = Use::Write;
        form.immediate_size = insn.opcode == 0xc7 ? immediate_z(insn) : std::uint8_t{1};
        return insn.group == 0;
    case 0xf6:
    case 0xf7:
        if (insn.group <= 1) {
            form.rm = Use::Read;
            form.immediate_size = insn.opcode == 0xf7 ? immediate_z(insn) : std::uint8_t{1};
        }
        form.flags_written = insn.group != 2;
        return insn.group <= 3;
    case 0xfe:
    case 0xff:
        form.flags_read = true;
        form.flags_written = true;
        return insn.group <= 1;
    default: return false;
    }
}

bool find_primary(const Insn& insn, Form& form) noexcept
{
    const unsigned opcode = insn.opcode;
    both(form, width_of(insn));
    if (opcode < 0x40 && (opcode & 7U) < 4) {
        const unsigned kind = opcode >> 3U;
        arithmetic_flags(form, kind);
        const Use changed = kind == 7 ? Use::Read : Use::ReadWrite;
        form.reg = (opcode & 2U) != 0 ? changed : Use::Read;
        form.rm = (opcode & 2U) != 0 ? Use::Read : changed;
        return true;
    }
    switch (opcode) {
    case 0x63:
        form.reg = Use::Write;
        form.rm = Use::Read;
        form.reg_width = insn.operand_size;
        form.rm_width = insn.operand_size == 2 ? 2 : 4;
        return true;
    case 0x69:
    case 0x6b:
        both(form, insn.operand_size);
        form.reg = Use::Write;
        form.rm = Use::Read;
        form.immediate_size = opcode == 0x69 ? immediate_z(insn) : std::uint8_t{1};
        form.flags_read = true;  // Of those that are undefined a CPU may keep some.
        form.flags_written = true;
        return true;
    case 0x84:
    case 0x85:
        form.reg = Use::Read;
        form.rm = Use::Read;
        form.flags_written = true;
        return true;
    case 0x86:
    case 0x87:
        form.reg = Use::ReadWrite;
        form.rm = Use::ReadWrite;
        form.needs_register = true;
        return true;
    case 0x88:
    case 0x89:
        form.reg = Use::Read;
        form.rm = Use::Write;
        return true;
    case 0x8a:
    case 0x8b:
        form.reg = Use::Write;
        form.rm = Use::Read;
        return true;
    default: return find_group(insn, form);
    }
}

bool find_bit_test(const Insn& insn, Form& form) noexcept
{
    both(form, insn.operand_size);
    form.flags_read = true;  // All but CF are kept, or undefined.
    form.flags_written = true;
    if (insn.opcode == 0xba) {
        form.immediate_size = 1;
        form.rm = insn.group == 4 ? Use::Read : Use::ReadWrite;
        return insn.group >= 4;
    }
    form.reg = Use::Read;
    form.rm = insn.opcode == 0xa3 ? Use::Read : Use::ReadWrite;
    form.needs_register = true;
    return !insn.has_memory;  // In memory the bit may be anywhere.
}

bool find_0f(const Insn& insn, Form& form) noexcept
{
    const unsigned opcode = insn.opcode;
    both(form, insn.operand_size);
    form.rm = Use::Read;
    if (opcode >= 0x40 && opcode <= 0x4f) {
        form.reg = Use::ReadWrite;
        form.flags_read = true;
        return true;
    }
    if (opcode >= 0x90 && opcode <= 0x9f) {
        form.rm = Use::Write;
        form.rm_width = 1;
        form.flags_read = true;
        return true;
    }
    switch (opcode) {
    case 0xa3:
    case 0xab:
    case 0xb3:
    case 0xba:
    case 0xbb: return find_bit_test(insn, form);
    case 0xa4:
    case 0xac: form.immediate_size = 1; [[fallthrough]];
    case 0xa5:
    case 0xad:
        form.reg = Use::Read;
        form.rm = Use::ReadWrite;
        form.flags_read = true;
        form.flags_written = true;
        return true;
    case 0xaf:
        form.reg = Use::ReadWrite;
        form.flags_read = true;  // As above.
        form.flags_written = true;
        return true;
    case 0xb6:
    case 0xb7:
    case 0xbe:
    case 0xbf:
        form.reg = Use::Write;
        form.rm_width = (opcode & 1U) != 0 ? 2 : 1;
        return true;
    case 0xb8:
        form.reg = Use::Write;
        form.flags_written = true;
        return insn.isa == Isa::Popcnt;
    case 0xbc:
    case 0xbd:
        form.reg = Use::ReadWrite;  // BSF, BSR of 0 leave it.
        form.flags_read = true;
        form.flags_written = true;
        return true;
    case 0xc0:
    case 0xc1:
        both(form, width_of(insn));
        form.reg = Use::ReadWrite;
        form.rm = Use::ReadWrite;
        form.flags_written = true;
        return true;
    case 0xc3:
        form.reg = Use::Read;
        form.rm = Use::Write;
        return insn.has_memory && insn.isa == Isa::Sse2 && insn.pp == 0;
    default: return false;
    }
}

bool find_0f38(const Insn& insn, Form& form) noexcept
{
    both(form, insn.operand_size);
    form.reg = Use::ReadWrite;
    form.rm = Use::Read;
    if (insn.opcode == 0xf6 && insn.isa == Isa::Adx) {
        form.flags_read = true;
        form.flags_written = true;
        return true;
    }
    if (insn.opcode != 0xf0 && insn.opcode != 0xf1) {
        return false;
    }
    if (insn.isa == Isa::Movbe) {
        form.reg = insn.opcode == 0xf0 ? Use::Write : Use::Read;
        form.rm = insn.opcode == 0xf0 ? Use::Read : Use::Write;
        return insn.has_memory;
    }
    if (insn.opcode == 0xf0) {
        form.rm_width = 1;
    }
    form.reg_width = insn.rex_w ? 8 : 4;
    return insn.isa == Isa::Sse42;
}

bool find_bmi(const Insn& insn, Form& form) noexcept
{
    if (insn.isa != Isa::Bmi1 && insn.isa != Isa::Bmi2) {
        return false;
    }
    both(form, vex_wide(insn) ? 8 : 4);
    form.reg = Use::Write;
    form.rm = Use::Read;
    form.vvvv = Use::Read;
    if (insn.map == OpcodeMap::Map0F3A) {
        form.vvvv = Use::None;
        form.immediate_size = 1;
        return insn.opcode == 0xf0;
    }
    const bool changes_flags = insn.opcode == 0xf2 || insn.opcode == 0xf3 ||
                               ((insn.opcode == 0xf5 || insn.opcode == 0xf7) && insn.pp == 0);
    form.flags_read = changes_flags;
    form.flags_written = changes_flags;
    switch (insn.opcode) {
    case 0xf2:
    case 0xf5:
    case 0xf7: return insn.map == OpcodeMap::Map0F38;
    case 0xf3:
        form.reg = Use::None;
        form.vvvv = Use::Write;
        return insn.map == OpcodeMap::Map0F38;
    case 0xf6:  // MULX: RDX is where it should be.
        form.vvvv = Use::Write;
        return insn.map == OpcodeMap::Map0F38 && insn.reg != insn.vvvv;
    default: return false;
    }
}

}  // namespace

bool find_form(const Insn& insn, Form& form) noexcept
{
    form = Form{};
    if (insn.vex) {
        return find_bmi(insn, form);
    }
    switch (insn.map) {
    case OpcodeMap::Primary: return find_primary(insn, form);
    case OpcodeMap::Map0F: return find_0f(insn, form);
    case OpcodeMap::Map0F38: return find_0f38(insn, form);
    case OpcodeMap::Map0F3A: break;
    }
    return false;
}

/// Prefixes, opcode, ModRM and immediate.
void BlockEmitter::encode(const Insn& insn,
                          const Form& form,
                          unsigned reg,
                          Operand rm,
                          unsigned vvvv)
{
    const unsigned r = (reg >> 3U) & 1U;
    const unsigned b = (unsigned{rm.number} >> 3U) & 1U;
    const bool has_index = rm.memory && rm.index != Operand::none;
    const unsigned x = has_index ? (unsigned{rm.index} >> 3U) & 1U : 0U;
    const auto map = static_cast<unsigned>(insn.map);
    if (insn.vex) {
        db(0xc4);
        db(static_cast<int>(((r ^ 1U) << 7U) | ((x ^ 1U) << 6U) | ((b ^ 1U) << 5U) | map));
        db(static_cast<int>((vex_wide(insn) ? 0x80U : 0U) | ((~vvvv & 15U) << 3U) |
                            (insn.vex_l != 0 ? 4U : 0U) | insn.pp));
    } else {
        if (insn.lock) {
            db(0xf0);
        }
        if (insn.operand_size_override) {
            db(0x66);
        }
        if (insn.map != OpcodeMap::Primary && (insn.rep || insn.repne)) {
            db(insn.rep ? 0xf3 : 0xf2);
        }
        const bool bytes = form.reg_width == 1 || form.rm_width == 1;
        const unsigned rex = (insn.rex_w ? 8U : 0U) | (r << 2U) | (x << 1U) | b;
        if (rex != 0 || bytes) {
            db(static_cast<int>(0x40U | rex));
        }
        if (insn.map != OpcodeMap::Primary) {
            db(0x0f);
        }
        if (insn.map == OpcodeMap::Map0F38) {
            db(0x38);
        } else if (insn.map == OpcodeMap::Map0F3A) {
            db(0x3a);
        }
    }
    db(insn.opcode);
    const unsigned low = ((reg & 7U) << 3U) | (has_index ? 4U : rm.number & 7U);
    if (!rm.memory) {
        db(static_cast<int>(0xc0U | low));
    } else {
        const bool is_short = rm.displacement >= -128 && rm.displacement < 128;
        const unsigned mod = rm.displacement == 0 ? 0U : is_short ? 0x40U : 0x80U;
        db(static_cast<int>(mod | low));
        if (has_index) {
            db(static_cast<int>(((rm.index & 7U) << 3U) | (rm.number & 7U)));
        }
        if (mod == 0x40U) {
            db(rm.displacement & 0xff);
        } else if (mod != 0) {
            dd(static_cast<std::uint32_t>(rm.displacement));
        }
    }
    for (unsigned i = 0; i < form.immediate_size; ++i) {
        db(static_cast<int>((insn.immediate >> (8U * i)) & 0xffU));
    }
}

bool BlockEmitter::emit_form(const Insn& insn, const Form& form)
{
    const bool has_reg = form.reg != Use::None;
    const bool reg_general = has_reg && form.reg_width != 0;
    const bool rm_general = form.rm != Use::None && form.rm_width != 0 && !insn.has_memory;
    const bool vvvv_general = form.vvvv != Use::None && form.reg_width != 0 && form.vectors == 0;
    if ((reg_general && is_high_byte(insn, insn.reg, form.reg_width)) ||
        (rm_general && is_high_byte(insn, insn.rm, form.rm_width)) || (insn.rep && insn.repne) ||
        (insn.has_memory && !can_address(insn))) {
        return false;
    }
    const auto is_spilled = [](bool general, unsigned number) {
        return general && host_register[number & 15U] == spilled;
    };
    // A spilled register is an operand in memory where that does the same.
    const bool rm_in_slot = is_spilled(rm_general, insn.rm) && !form.needs_register &&
                            !(writes(form.rm) && form.rm_width == 4);
    const bool reg_scratch = is_spilled(reg_general, insn.reg);
    const bool rm_scratch = is_spilled(rm_general, insn.rm) && !rm_in_slot;
    const bool vvvv_scratch = is_spilled(vvvv_general, insn.vvvv);
    if (reg_scratch && rm_general && insn.rm == insn.reg && writes(form.reg) && writes(form.rm)) {
        return false;  // XCHG, XADD of a register with itself.
    }
    const unsigned wanted =
        (reg_scratch ? 1U : 0U) + (rm_scratch ? 1U : 0U) + (vvvv_scratch ? 1U : 0U);
    if (wanted > (insn.has_memory ? 1U : 2U)) {
        return false;
    }

    if (form.vectors != 0) {
        ensure_vectors(form.vectors);
    }
    const bool is_locked = insn.lock || (form.needs_register && insn.has_memory);
    Operand rm;
    if (insn.has_memory) {
        const auto alignment =
            is_locked ? static_cast<std::uint8_t>(form.rm_width - 1U) : form.alignment;
        rm = host_address(insn, form.vectors != 0 ? insn.memory_size : form.rm_width,
                          writes(form.rm), alignment);
    }
    if (form.flags_read) {
        unpark();
    }
    std::array<std::uint8_t, 2> scratch{scratch_11, scratch_10};
    std::size_t used = 0;
    const auto take = [&](unsigned number, Use use, unsigned width) {
        const std::uint8_t host = scratch[used++];
        if (reads(use) || width < 4) {
            mov(Xbyak::Reg64(host), slot(number));
        }
        return host;
    };
    unsigned reg = has_reg ? insn.reg : insn.group;
    if (reg_general) {
        reg = reg_scratch ? take(insn.reg, form.reg, form.reg_width) : host_register[insn.reg];
    }
    unsigned vvvv = insn.vvvv;
    if (vvvv_general) {
        vvvv = vvvv_scratch ? take(insn.vvvv, form.vvvv, form.reg_width) : host_register[insn.vvvv];
    }
    if (rm_in_slot) {
        rm = {true, 15, insn.rm * 8};
    } else if (rm_scratch) {
        rm = {false, take(insn.rm, form.rm, form.rm_width), 0};
    } else if (!insn.has_memory) {
        rm = {false, rm_general ? host_register[insn.rm] : insn.rm, 0};
    }
    encode(insn, form, reg, rm, vvvv);
    if (reg_scratch && writes(form.reg)) {
        mov(slot(insn.reg), Xbyak::Reg64(static_cast<int>(reg)));
    }
    if (vvvv_scratch && writes(form.vvvv)) {
        mov(slot(insn.vvvv), Xbyak::Reg64(static_cast<int>(vvvv)));
    }
    if (rm_scratch && writes(form.rm)) {
        mov(slot(insn.rm), Xbyak::Reg64(rm.number));
    }
    if (form.flags_written) {
        flags_written();
    }
    return true;
}

}  // namespace vmm::x86::soft
