// SPDX-License-Identifier: Apache-2.0

/// @file
/// x87 instructions on the host's FPU, while the guest's state is in it and all exceptions are
/// masked.  The interpreter brings it there; what is not so is left to it.

#include "x86/soft/emitter.hpp"
#include "x86/soft/native_operand.hpp"
#include "x86/soft/x87.hpp"

namespace vmm::x86::soft {

/// Exits unless x87 instructions may run as they are.  Uses r11.
void BlockEmitter::check_x87()
{
    using namespace native_detail;
    clobber();
    cmp(byte[r15 + layout_.x87_live], 0);
    exit_if(Condition::Equal);
    test(state32(layout_.cr0), static_cast<std::uint32_t>(cr0_em | cr0_ts));
    exit_if(Condition::NotEqual);
    movzx(r11d, word[r15 + layout_.x87 + x87_image::fcw]);
    not_(r11d);
    test(r11d, x87_exceptions);
    exit_if(Condition::NotEqual);
}

bool BlockEmitter::emit_x87(const Insn& insn, const Op& op, unsigned rules)
{
    X87Form form;
    if (insn.map != OpcodeMap::Primary || insn.vex || !find_x87_form(insn, form) ||
        (insn.has_memory && !can_address(insn))) {
        return false;
    }
    if (!x87_) {
        check_x87();
        x87_ = true;
    }
    if (insn.has_memory) {
        const Operand memory = host_address(insn, form.memory_size, form.writes, 0);
        encode(insn, Form{}, insn.group, memory, 0);
    } else {
        if (form.flags_read) {
            unpark();
        }
        db(insn.opcode);
        db(insn.modrm);
        if (form.flags_written) {
            flags_written();
        }
    }
    // FIP, FOP and FDP as note_instruction() in x87.cpp has them.
    mov(r11, state(layout_.code_page));
    lea(r11, ptr[r11 + static_cast<std::size_t>(page_offset_ + op.offset)]);
    mov(state(layout_.x87 + x87_image::fip), r11);
    if ((rules & x87_rule::fop_on_error) == 0) {
        mov(word[r15 + layout_.x87 + x87_image::fop], static_cast<std::uint16_t>(op.immediate));
    }
    if (insn.has_memory && (rules & x87_rule::fdp_on_error) == 0) {
        effective_address(insn, r10);
        mov(state(layout_.x87 + x87_image::fdp), r10);
    }
    return true;
}

}  // namespace vmm::x86::soft
