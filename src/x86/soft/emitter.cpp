// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/emitter.hpp"

#include <cstring>

#include "x86/soft/build_block.hpp"
#include "x86/soft/native.hpp"
#include "x86/soft/x87.hpp"

namespace vmm::x86::soft {

namespace {

/// VEX instructions that would be others in 64-bit code: W, and the upper half of the registers in
/// an immediate, mean nothing in 32-bit code.
bool ignores_vex_bits(const Insn& insn) noexcept
{
    const bool has_register_immediate =
        insn.map == OpcodeMap::Map0F3A && insn.opcode >= 0x4a && insn.opcode <= 0x4c;
    return insn.vex && (vex_wide(insn) || has_register_immediate);
}

}  // namespace

Xbyak::Address BlockEmitter::slot(unsigned guest_register)
{
    return ptr[r15 + std::size_t{guest_register} * 8U];
}

void BlockEmitter::add_to_word(const Xbyak::Reg64& to,
                               const Xbyak::Reg64& from,
                               std::int64_t distance)
{
    lea(sized(to), ptr[from + static_cast<std::size_t>(distance)]);
}

void BlockEmitter::bind(Place& place)
{
    place.at = static_cast<std::uint32_t>(getSize());
    for (std::uint32_t next = place.last_jump; next != Place::none;) {
        std::uint32_t before = 0;
        std::memcpy(&before, getCode() + next, sizeof before);
        rewrite(next, place.at - (next + 4), 4);
        next = before;
    }
}

void BlockEmitter::distance_to(Place& place)
{
    const auto here = static_cast<std::uint32_t>(getSize());
    if (place.at != Place::none) {
        dd(place.at - (here + 4));
    } else {
        dd(place.last_jump);
        place.last_jump = here;
    }
}

void BlockEmitter::jump(Place& place)
{
    db(0xe9);
    distance_to(place);
}

void BlockEmitter::call_place(Place& place)
{
    db(0xe8);
    distance_to(place);
}

void BlockEmitter::jump_if(Condition condition, Place& place)
{
    db(0x0f);
    db(0x80 | static_cast<int>(condition));
    distance_to(place);
}

Place& BlockEmitter::exit_place()
{
    steps_[step_].has_exit = true;
    return steps_[step_].exit;
}

void BlockEmitter::exit_if(Condition condition)
{
    jump_if(condition, exit_place());
}

Xbyak::Reg64 BlockEmitter::load(unsigned guest_register, const Xbyak::Reg64& scratch)
{
    const std::uint8_t host = host_register[guest_register];
    if (host != spilled) {
        return Xbyak::Reg64(host);
    }
    mov(scratch, slot(guest_register));
    return scratch;
}

void BlockEmitter::store(unsigned guest_register, const Xbyak::Reg64& from)
{
    const std::uint8_t host = host_register[guest_register];
    if (host == spilled) {
        mov(slot(guest_register), from);
    } else if (from.getIdx() != host) {
        mov(Xbyak::Reg64(host), from);
    }
}

void BlockEmitter::park()
{
    if (!flags_.parked) {
        lahf();
        seto(al);
        flags_.parked = true;
    }
}

void BlockEmitter::clobber()
{
    park();
    flags_.native = false;
}

void BlockEmitter::unpark()
{
    if (!flags_.native) {
        cmp(al, 0x81);  // Sets OF if al is 1.
        sahf();
        flags_.native = true;
    }
}

/// Leaves the instruction to the interpreter.
void BlockEmitter::interpret()
{
    clobber();
    jump(exit_place());
    flags_ = {false, true};  // As C++ comes back.
    vectors_ = 0;
    x87_ = false;
    steps_[step_].is_interpreted = true;
}

void BlockEmitter::emit(std::size_t at,
                        const Block& block,
                        std::span<const std::byte> bytes,
                        const Cpu& cpu,
                        CodeSize code_size)
{
    setSize(at);
    block_ = &block;
    bytes_ = bytes;
    page_offset_ = static_cast<std::int32_t>(block.gpa & 0xfffU);
    steps_.assign(block.op_count, Step{});
    edges_.clear();
    stubs_.clear();
    unknown_.clear();
    returns_.clear();
    full_.reset();
    noted_ = {};
    vector_loads_.clear();
    start_ = Place{};
    windows_.fill({});
    vectors_ = 0;
    x87_ = false;
    ended_ = false;
    // A dropped block is left through what lies here (`Translator::drop`).
    mov(r10d, static_cast<std::uint32_t>(page_offset_));
    constexpr int jump_size = 5;
    lea(r11, ptr[rip + jump_size]);
    jmp(context_.shared.moved, T_NEAR);
    body_ = getSize();
    bind(start_);
    is_wide_ = code_size == CodeSize::Bits64;
    flags_ = {false, true};
    decode_steps(bytes, cpu, code_size);
    emit_steps(cpu);
    emit_cold();
    emit_entries();
}

void BlockEmitter::decode_steps(std::span<const std::byte> bytes,
                                const Cpu& cpu,
                                CodeSize code_size)
{
    for (std::size_t i = 0; i < steps_.size(); ++i) {
        const Op& op = block_->ops()[i];
        Step& step = steps_[i];
        step.is_offered =
            op.interpret != raise_ud && op.interpret != leave_unknown && op.length != 0 &&
            cpu.blocks->decoder().decode(bytes.subspan(op.offset), code_size, step.insn) ==
                DecodeStatus::Ok;
        if (step.is_offered) {
            fall_back(cpu, step.insn);
            step.has_form =
                find_form(step.insn, step.form) || find_vector_form(step.insn, step.form);
            step.effects = effects_of(step.insn, step.has_form ? &step.form : nullptr);
        }
    }
}

void BlockEmitter::emit_steps(const Cpu& cpu)
{
    for (step_ = 0; step_ < steps_.size() && !ended_; ++step_) {
        const Op& op = block_->ops()[step_];
        op_ = &op;
        Step& step = steps_[step_];
        step.flags = flags_;
        step.vectors = vectors_;
        step.x87 = x87_;
        step.windows = windows_;
        step.is_emitted = true;
        bind(step.body);
        // The last one is another where bytes follow that are no instruction.
        if (op.interpret == go_on_64 || op.interpret == go_on) {
            fall_out(op);
            continue;
        }
        if (!step.is_offered || !emit_step(step, op, cpu)) {
            interpret();
            ended_ =
                ended_ || step_ + 1 == steps_.size() || (step.is_offered && ends_block(step.insn));
        }
        move_windows();
    }
}

bool BlockEmitter::emit_step(const Step& step, const Op& op, const Cpu& cpu)
{
    const Insn& insn = step.insn;
    if (!is_wide_ && ignores_vex_bits(insn)) {
        return false;
    }
    if (!is_wide_ && insn.map == OpcodeMap::Primary) {
        if (insn.opcode == 0x63) {
            return false;  // ARPL
        }
        if ((insn.opcode & 0xf0U) == 0x40 || (insn.opcode & 0xfcU) == 0xa0) {
            return emit_legacy(insn);
        }
    }
    if (is_direct_branch(insn) || (ends_block(insn) && insn.map == OpcodeMap::Primary)) {
        return emit_branch(insn, op);
    }
    if (ends_block(insn)) {
        return false;
    }
    if (step.has_form) {
        return emit_form(insn, step.form);
    }
    // 32-bit code sees other pointers in the x87 state, and VZEROALL clears half of the registers.
    return (is_wide_ &&
            (emit_vector_zero(insn) || emit_x87(insn, op, x87_pointer_rules(cpu.cpuid)))) ||
           emit_integer(insn);
}

/// What has no encoding of its own in 64-bit code, or not that one: INC and DEC of a register, MOV
/// of the accumulator from and to a fixed address.
bool BlockEmitter::emit_legacy(const Insn& insn)
{
    Insn general = insn;
    if (insn.opcode < 0xa0) {
        general.opcode = insn.operand_size == 1 ? 0xfe : 0xff;
        general.group = (insn.opcode >> 3U) & 1U;
        general.mod = 3;
        general.rm = insn.opcode & 7U;
        general.has_memory = false;
    } else {
        general.opcode = (insn.opcode < 0xa2 ? 0x8aU : 0x88U) | (insn.opcode & 1U);
        general.reg = Rax;
        general.mod = 0;
        general.has_memory = true;
        general.base = Insn::no_register;
        general.index = Insn::no_register;
        general.displacement = insn.displacement & 0xffff'ffff;
        general.immediate = 0;
    }
    general.has_rex = true;  // AL in any case.
    Form form;
    return find_form(general, form) && emit_form(general, form);
}

/// What is rarely executed.
void BlockEmitter::emit_cold()
{
    for (Edge& out : edges_) {
        bind(out.place);
        flags_ = out.flags;
        step_ = out.step;
        if (out.is_far) {
            far_jump(out.target);
        } else {
            edge(out.target);
        }
    }
    for (Unknown& unknown : unknown_) {
        bind(unknown.place);
        step_ = unknown.step;
        load_target(unknown.target);
        call(reinterpret_cast<const void*>(context_.shared.fill_site));
        exit_if(Condition::NotEqual);
        jump(unknown.back);
    }
    for (Return& from : returns_) {
        bind(from.place);
        flags_ = {false, true};
        step_ = from.step;
        return_unpredicted(from);
    }
    if (full_) {
        bind(*full_);
        mov(rsp, state(layout_.notes));
        jump(noted_);
    }
    for (VectorLoad& load : vector_loads_) {
        step_ = load.step;
        bind(load.place);
        mov(r10d, load.level);
        call(reinterpret_cast<const void*>(context_.shared.load_vectors));
        jump_if(Condition::Equal, load.back);
        jump(exit_place());
    }
    for (Stub& stub : stubs_) {
        bind(stub.place);
        mov(r10d, static_cast<std::uint32_t>(stub.target));
        mov(r11, reinterpret_cast<std::uintptr_t>(stub.site));
        jmp(context_.shared.edge, T_NEAR);
    }
}

void BlockEmitter::emit_entries()
{
    for (std::size_t i = 0; i < steps_.size(); ++i) {
        Step& step = steps_[i];
        const bool is_reached = i == 0 || (step.is_emitted && steps_[i - 1].has_exit);
        if (step.is_interpreted || !is_reached) {
            continue;
        }
        Place adapt;
        align(4);
        step.entry = getSize();
        db(0x4c);  // LEA R11, [RIP + …]
        db(0x8d);
        db(0x1d);
        distance_to(adapt);
        jmp(context_.shared.enter, T_NEAR);
        bind(adapt);
        if (step.vectors != 0) {
            mov(r10d, step.vectors);
            call(reinterpret_cast<const void*>(context_.shared.load_vectors));
            step.has_exit = true;
            jump_if(Condition::NotEqual, step.exit);
        }
        flags_ = {false, true};
        if (step.x87) {
            step_ = i;
            check_x87();
        }
        for (std::size_t j = 0; j < step.windows.size(); ++j) {
            if (step.windows[j].base != Window::none) {
                step_ = i;
                windows_[j] = step.windows[j];
                open_window(j);
            }
        }
        if (step.flags.native) {
            unpark();
        }
        jump(step.body);
    }
    for (std::size_t i = 0; i < steps_.size(); ++i) {
        if (steps_[i].has_exit) {
            bind(steps_[i].exit);
            mov(r11, reinterpret_cast<std::uintptr_t>(&block_->ops()[i]));
            mov(r10d, static_cast<std::uint32_t>(page_offset_));
            jmp(context_.shared.exit, T_NEAR);
        }
    }
}

}  // namespace vmm::x86::soft
