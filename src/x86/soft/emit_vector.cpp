// SPDX-License-Identifier: Apache-2.0

/// @file
/// Vector instructions: which of the allow list translated code executes itself.

#include "x86/soft/emitter.hpp"
#include "x86/soft/native.hpp"
#include "x86/soft/vector_table.hpp"

namespace vmm::x86::soft {

namespace {

/// Operands by the manual's letters; false for MMX registers.
bool set_operands(VectorForm kind, std::uint8_t general, Form& form) noexcept
{
    form.reg = Use::Read;
    form.rm = Use::Read;
    switch (kind) {
    case VectorForm::VW: form.reg = Use::ReadWrite; return true;
    case VectorForm::WV: form.rm = Use::ReadWrite; return true;
    case VectorForm::VE:
        form.reg = Use::ReadWrite;
        form.rm_width = general;
        return true;
    case VectorForm::EV:
        form.rm = Use::Write;
        form.rm_width = general;
        return true;
    case VectorForm::GW:
        form.reg = Use::Write;
        form.reg_width = general;
        return true;
    case VectorForm::ShV:
        form.reg = Use::None;
        form.rm = Use::ReadWrite;
        return true;
    case VectorForm::PQ:
    case VectorForm::QP:
    case VectorForm::PE:
    case VectorForm::EP:
    case VectorForm::GQ:
    case VectorForm::VQ:
    case VectorForm::PW:
    case VectorForm::ShP: break;
    }
    return false;
}

}  // namespace

bool find_vector_form(const Insn& insn, Form& form) noexcept
{
    form = Form{};
    const VectorLine* const line = find_vector_line(insn);
    if (line == nullptr || (line->flags & vector_flag::string) != 0) {
        return false;
    }
    if (insn.has_memory && (insn.memory_size == 0 || insn.memory_size > 32)) {
        return false;
    }
    const bool is_wide = insn.vex ? vex_wide(insn) : insn.rex_w;
    if (!set_operands(line->form, is_wide ? 8 : 4, form)) {
        return false;
    }
    // PEXTRB and PEXTRW clear the rest of a register, and leave the rest of memory.
    form.needs_register = line->form == VectorForm::EV && !insn.has_memory;
    form.vectors = insn.vex ? 2 : 1;
    form.alignment = alignment_of(insn, *line);
    if ((line->flags & (vector_flag::imm | vector_flag::is4)) != 0) {
        form.immediate_size = 1;
    }
    if ((line->flags & vector_flag::flags) != 0) {
        form.reg = Use::Read;
        form.flags_written = true;
    }
    return true;
}

/// VZEROUPPER and VZEROALL.
bool BlockEmitter::emit_vector_zero(const Insn& insn)
{
    if (!insn.vex || insn.map != OpcodeMap::Map0F || insn.opcode != 0x77 || insn.pp != 0 ||
        insn.isa != Isa::Avx) {
        return false;
    }
    ensure_vectors(2);
    if (insn.vex_l != 0) {
        vzeroall();
    } else {
        vzeroupper();
    }
    return true;
}

}  // namespace vmm::x86::soft
