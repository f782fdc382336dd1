// SPDX-License-Identifier: Apache-2.0

/// @file
/// Near branches.  What changes more than RIP and the stack is left to the interpreter.
///
/// Targets are offsets from the start of the code page.  Within the page a jump is linked to its
/// target once that is translated; beyond it the jump table of the mode is asked, whose tags say
/// that a target is canonical and mapped as it was.  Each way out of a block but those forward in
/// its page looks at `Cpu::requests`.

#include <limits>

#include "x86/soft/build_block.hpp"
#include "x86/soft/dispatch.hpp"
#include "x86/soft/emitter.hpp"

namespace vmm::x86::soft {

namespace {

constexpr unsigned condition_le = 0x0f;

}  // namespace

bool BlockEmitter::emit_branch(const Insn& insn, const Op& op)
{
    const unsigned opcode = insn.opcode;
    const auto immediate = static_cast<std::int64_t>(op.immediate);
    const std::int64_t target = page_offset_ + immediate;
    const bool is_direct = is_direct_branch(insn);
    if (is_direct && !is_wide_ && insn.operand_size != word_size()) {
        return false;  // IP is cut to 16 bits.
    }
    if (is_direct && (target > std::numeric_limits<std::int32_t>::max() ||
                      target < std::numeric_limits<std::int32_t>::min())) {
        return false;
    }
    const bool is_near = is_direct && target >= 0 && target < 4096;
    const auto to = static_cast<std::int32_t>(target);
    if (insn.map == OpcodeMap::Map0F || (opcode & 0xf0U) == 0x70) {
        emit_condition(insn, to, is_near);
        return true;
    }
    switch (opcode) {
    case 0xc2:
    case 0xc3: ended_ = emit_return(insn); return ended_;
    case 0xe8:
        if (is_near) {
            const bool noted = is_noted();
            push_return_address();
            if (noted) {
                note_call();
            }
            edge(to, noted);
            if (noted) {
                come_back();
            }
        } else {
            far_call(to);
        }
        ended_ = true;
        return true;
    case 0xe9:
    case 0xeb:
        if (is_near) {
            edge(to);
        } else {
            far_jump(to);
        }
        ended_ = true;
        return true;
    case 0xff:
        if (insn.group != 2 && insn.group != 4) {
            return false;
        }
        if (!indirect_target(insn)) {
            return false;
        }
        look_up_code();
        if (insn.group == 2) {
            call_found();
        } else {
            jump_found();
        }
        ended_ = true;
        return true;
    default: return false;
    }
}

/// Jcc.
void BlockEmitter::emit_condition(const Insn& insn, std::int32_t target, bool is_near)
{
    unpark();
    const auto condition = static_cast<std::uint8_t>(insn.opcode & condition_le);
    if (is_near && target <= page_offset_ + op_->offset) {
        // Backwards: most likely a loop.
        Place skip;
        jump_if(Condition{static_cast<std::uint8_t>(condition ^ 1U)}, skip);
        const Flags flags = flags_;
        edge(target);
        flags_ = flags;
        bind(skip);
        return;
    }
    Edge& out = edges_.emplace_back();
    out.target = target;
    out.flags = flags_;
    out.step = step_;
    out.is_far = !is_near;
    if (out.is_far) {
        steps_[step_].has_exit = true;
    }
    jump_if(Condition{condition}, out.place);
}

/// Goes on at `target` in the page.  @param is_call  by CALL.
void BlockEmitter::edge(std::int32_t target, bool is_call)
{
    clobber();
    JumpSite& site = context_.sites.emplace_back();
    site.gfn = block_->gpa >> 12U;
    Stub& stub = stubs_.emplace_back();
    stub.target = target;
    stub.site = &site;
    if (target <= page_offset_ + op_->offset) {  // No way forward in a page is long.
        cmp(state32(layout_.requests), 0);
        jump_if(Condition::NotEqual, stub.place);
    }
    site.jump = const_cast<std::uint8_t*>(getCurr());
    Place& place = target == page_offset_ ? start_ : stub.place;
    if (is_call) {
        call_place(place);
    } else {
        jump(place);
    }
}

/// Goes on at `target`, which is in another page.
void BlockEmitter::far_jump(std::int32_t target)
{
    check_site(target);
    enter_page();
    jmp(ptr[r11 + offsetof(FarSite, code)]);
}

void BlockEmitter::far_call(std::int32_t target)
{
    const FarSite& site = check_site(target);
    const bool noted = is_noted();
    push_return_address();
    if (noted) {
        note_call();
    }
    mov(r11, reinterpret_cast<std::uintptr_t>(&site));
    enter_page();
    if (noted) {
        call(ptr[r11 + offsetof(FarSite, code)]);
        come_back();
    } else {
        jmp(ptr[r11 + offsetof(FarSite, code)]);
    }
}

/// r11 = where the code of `target` is, or exit.
const FarSite& BlockEmitter::check_site(std::int32_t target)
{
    clobber();
    check_requests();
    FarSite& site = context_.far_sites.emplace_back();
    Unknown& unknown = unknown_.emplace_back();
    unknown.target = target;
    unknown.site = &site;
    unknown.step = step_;
    bind(unknown.back);
    mov(r11, reinterpret_cast<std::uintptr_t>(&site));
    mov(r10, state(layout_.code_page));
    cmp(r10, ptr[r11 + offsetof(FarSite, page)]);
    jump_if(Condition::NotEqual, unknown.place);
    mov(r10, state(layout_.generation));
    cmp(r10, ptr[r11 + offsetof(FarSite, generation)]);
    jump_if(Condition::NotEqual, unknown.place);
    return site;
}

/// @pre r11 is the site.
void BlockEmitter::enter_page()
{
    mov(r10, ptr[r11 + offsetof(FarSite, target_page)]);
    mov(state(layout_.code_page), r10);
}

void BlockEmitter::load_target(std::int32_t target)
{
    mov(r10, state(layout_.code_page));
    if (target != 0) {
        add_to_word(r10, r10, target);
    }
}

/// Leaves the branch to the interpreter if somebody wants the run loop.
void BlockEmitter::check_requests()
{
    cmp(state32(layout_.requests), 0);
    exit_if(Condition::NotEqual);
}

/// r11 = the jump table's entry of the code at r10, or exit.  @pre flags are parked.
void BlockEmitter::look_up_code()
{
    static_assert(sizeof(JumpEntry) == 32 && (Chain::table_size & (Chain::table_size - 1)) == 0);
    clobber();
    // As jump_entry() in dispatch.hpp.
    mov(r11, r10);
    shr(r11, 12);
    xor_(r11, r10);
    and_(r11d, static_cast<std::uint32_t>(Chain::table_size - 1));
    shl(r11d, 5);
    add(r11, state(layout_.table));
    cmp(r10, ptr[r11 + offsetof(JumpEntry, rip)]);
    exit_if(Condition::NotEqual);
    mov(state(layout_.rip), r10);
    mov(r10, state(layout_.generation));
    cmp(r10, ptr[r11 + offsetof(JumpEntry, generation)]);
    mov(r10, state(layout_.rip));
    exit_if(Condition::NotEqual);
}

/// To the code of entry r11, which is that of r10.
void BlockEmitter::jump_found()
{
    and_(r10, 0xffff'f000U);
    mov(state(layout_.code_page), r10);
    jmp(ptr[r11 + offsetof(JumpEntry, code)]);
}

/// The same after pushing the return address.
void BlockEmitter::call_found()
{
    const std::size_t code = layout_.spare;
    const std::size_t page = layout_.spare + 8;
    mov(r11, ptr[r11 + offsetof(JumpEntry, code)]);
    mov(state(code), r11);
    and_(r10, 0xffff'f000U);
    mov(state(page), r10);
    push_return_address();
    const bool noted = is_noted();
    if (noted) {
        note_call();
    }
    mov(r10, state(page));
    mov(state(layout_.code_page), r10);
    if (noted) {
        call(state(code));
        come_back();
    } else {
        jmp(state(code));
    }
}

/// Whether the call at the current step is likely to return.  Not if it is there for what it leaves
/// on the stack, as in a retpoline or another thunk against speculation: what the CPU is not to get
/// to lies behind it (INT3, UD2, or PAUSE).
bool BlockEmitter::is_noted() const
{
    const auto next = static_cast<std::size_t>(op_->next_offset());
    if (!context_.predicts_returns || next + 1 >= bytes_.size()) {
        return false;  // Or it comes back to another page.
    }
    const auto first = std::to_integer<unsigned>(bytes_[next]);
    const unsigned both = (first << 8U) | std::to_integer<unsigned>(bytes_[next + 1]);
    constexpr unsigned int3 = 0xcc;
    constexpr unsigned ud2 = 0x0f0b;
    constexpr unsigned pause = 0xf390;
    return first != int3 && both != ud2 && both != pause;
}

/// All of a `CallNote` but its code, which the CALL pushes that follows.  @pre r11 is the return
/// address, which has been pushed.
void BlockEmitter::note_call()
{
    clobber();
    cmp(rsp, state(layout_.notes_end));
    jump_if(Condition::BelowOrEqual, full_.emplace());
    bind(noted_);
    push(guest_rsp);
    push(r11);
}

/// The host has returned to where the guest returns to, which is r10.
void BlockEmitter::come_back()
{
    lea(rsp, ptr[rsp + sizeof(CallNote) - offsetof(CallNote, rip)]);
    and_(r10, 0xffff'f000U);
    mov(state(layout_.code_page), r10);
    edge(page_offset_ + op_->next_offset());
}

void BlockEmitter::push_return_address()
{
    const Xbyak::RegExp to =
        address_of(word_near(Rsp, -static_cast<std::int32_t>(word_size()), true));
    mov(r11, state(layout_.code_page));
    add_to_word(r11, r11, page_offset_ + op_->next_offset());
    mov(word_at(to), sized(r11));
    add_to_word(guest_rsp, guest_rsp, -std::int64_t{word_size()});
}

/// r10 = the operand of an indirect branch.
bool BlockEmitter::indirect_target(const Insn& insn)
{
    if (insn.operand_size != word_size() || (insn.has_memory && !can_address(insn))) {
        return false;
    }
    clobber();
    check_requests();
    if (insn.has_memory) {
        mov(sized(r10), word_at(address_of(host_address(insn, word_size(), false, 0))));
    } else {
        mov(sized(r10), sized(load(insn.rm, r10)));
    }
    return true;
}

bool BlockEmitter::emit_return(const Insn& insn)
{
    if (insn.operand_size != word_size()) {
        return false;
    }
    const auto released = insn.opcode == 0xc2 ? (insn.immediate & 0xffffU) : std::uint64_t{0};
    clobber();
    check_requests();
    mov(sized(r10), word_at(address_of(word_near(Rsp, 0, false))));
    if (!context_.predicts_returns) {
        look_up_code();
        release_stack(released);
        jump_found();
        return true;
    }
    Return& unpredicted = returns_.emplace_back();
    unpredicted.step = step_;
    unpredicted.released = released;
    steps_[step_].has_exit = true;
    cmp(r10, ptr[rsp + offsetof(CallNote, rip)]);
    jump_if(Condition::NotEqual, unpredicted.place);
    release_stack(released);
    ret();
    return true;
}

void BlockEmitter::release_stack(std::uint64_t bytes)
{
    add_to_word(guest_rsp, guest_rsp, static_cast<std::int64_t>(word_size() + bytes));
}

/// To r10, which the last note does not have: notes of calls that the guest has returned from
/// otherwise go; those are left that it may still return from.
void BlockEmitter::return_unpredicted(const Return& from)
{
    Place next;
    Place go;
    bind(next);
    cmp(ptr[rsp + offsetof(CallNote, stack_pointer)], guest_rsp);
    jump_if(Condition::AboveOrEqual, go);
    lea(rsp, ptr[rsp + sizeof(CallNote)]);
    jump(next);
    bind(go);
    look_up_code();
    release_stack(from.released);
    jump_found();
}

/// Behind the last instruction of the block.
void BlockEmitter::fall_out(const Op& op)
{
    const auto target = page_offset_ + static_cast<std::int32_t>(op.immediate);
    if (op.extra == linkable && target < 4096) {
        edge(target);
    } else {
        far_jump(target);
    }
    ended_ = true;
}

}  // namespace vmm::x86::soft
