// SPDX-License-Identifier: Apache-2.0

/// @file
/// Far JMP, CALL and RET.  SDM Vol. 2 "JMP", "CALL", "RET": the order of the checks is theirs.

#include <array>

#include "x86/soft/descriptor.hpp"
#include "x86/soft/system.hpp"

namespace vmm::x86::soft {

namespace {

enum class TransferKind : std::uint8_t { Jump, Call };

std::uint64_t cut(std::uint64_t offset, unsigned operand_size) noexcept
{
    if (operand_size == 8U) {
        return offset;
    }
    return operand_size == 4U ? offset & 0xffff'ffffU : offset & 0xffffU;
}

bool in_real_or_virtual_mode(const Cpu& cpu) noexcept
{
    return !cpu.protected_mode() || cpu.virtual_8086();
}

Segment real_code(const Cpu& cpu, std::uint16_t selector) noexcept
{
    return cpu.protected_mode() ? virtual_8086_segment(selector)
                                : real_mode_code(cpu.seg[Cs], selector);
}

void enter_code(Cpu& cpu, const Segment& code, std::uint64_t rip) noexcept
{
    cpu.seg[Cs] = code;
    cpu.rip = rip;
    privilege_changed(cpu);
}

FrameWriter current_stack(Cpu& cpu) noexcept
{
    return {cpu, cpu.seg[Ss], cpu.gpr[Rsp], cpu.cpl, cpu.code_64(), 0};
}

/// A code segment reached without a gate.
void check_direct_target(const Cpu& cpu, const Descriptor& code, std::uint16_t selector)
{
    if (!code.is_code() || (cpu.long_mode() && code.long_code() && code.big())) {
        raise(Vector::GP, selector_error(selector));
    }
    const bool allowed = code.is_conforming() ? code.dpl() <= cpu.cpl
                                              : rpl(selector) <= cpu.cpl && code.dpl() == cpu.cpl;
    if (!allowed) {
        raise(Vector::GP, selector_error(selector));
    }
    if (!code.present()) {
        raise(Vector::NP, selector_error(selector));
    }
}

/// A gate or a TSS may be used by CPL and RPL.
void check_gate_privilege(const Cpu& cpu, const Descriptor& gate, std::uint16_t selector)
{
    if (gate.dpl() < cpu.cpl || rpl(selector) > gate.dpl()) {
        raise(Vector::GP, selector_error(selector));
    }
}

void check_gate_present(const Descriptor& gate, std::uint16_t selector)
{
    if (!gate.present()) {
        raise(Vector::NP, selector_error(selector));
    }
}

/// The code segment that a call gate names.
Descriptor gate_target(Cpu& cpu, std::uint16_t selector, TransferKind kind)
{
    if (is_null(selector)) {
        raise(Vector::GP, 0);
    }
    Descriptor code = read_descriptor(cpu, selector, Vector::GP);
    bool allowed = code.is_code() && code.dpl() <= cpu.cpl;
    if (kind == TransferKind::Jump && !code.is_conforming()) {
        allowed = allowed && code.dpl() == cpu.cpl;
    }
    if (cpu.long_mode()) {
        allowed = allowed && code.long_code() && !code.big();
    }
    if (!allowed) {
        raise(Vector::GP, selector_error(selector));
    }
    if (!code.present()) {
        raise(Vector::NP, selector_error(selector));
    }
    return code;
}

/// CALL through a gate to an inner level, in 16- and 32-bit protected mode.
void call_inner(Cpu& cpu,
                const Descriptor& gate,
                const Segment& code,
                unsigned level,
                std::uint64_t return_rip)
{
    const StackPointer inner = task_stack(cpu, level, 0);
    if (is_null(inner.selector)) {
        raise(Vector::TS, 0);
    }
    const Segment stack = load_stack_segment(cpu, inner.selector, level, Vector::TS);
    const unsigned size = gate.type() == system_type::call_gate ? 4 : 2;

    FrameWriter frame{cpu, stack, inner.pointer, level, false, selector_error(inner.selector)};
    frame.push(cpu.seg[Ss].selector);
    frame.push(cpu.gpr[Rsp]);
    std::array<std::uint64_t, 31> parameters;  // NOLINT: the first `count` are set below.
    const unsigned count = gate.gate_parameters();
    FrameReader outer{cpu};
    for (unsigned i = 0; i < count; ++i) {
        parameters[i] = outer.pop(size);
    }
    for (unsigned i = count; i != 0U; --i) {
        frame.push(parameters[i - 1U]);
    }
    frame.push(cpu.seg[Cs].selector);
    frame.push(return_rip);
    const std::uint64_t target = gate.gate_offset();
    check_target(cpu, code, target);
    frame.write(size);
    cpu.seg[Ss] = stack;
    cpu.gpr[Rsp] = frame.pointer();
    enter_code(cpu, code, target);
}

void call_inner64(Cpu& cpu,
                  const Descriptor& gate,
                  const Segment& code,
                  unsigned level,
                  std::uint64_t return_rip)
{
    const Segment stack = null_segment(static_cast<std::uint16_t>(level), level);
    FrameWriter frame{cpu, stack, task_stack64(cpu, level, 0, 0), level, true, 0};
    frame.push(cpu.seg[Ss].selector);
    frame.push(cpu.gpr[Rsp]);
    frame.push(cpu.seg[Cs].selector);
    frame.push(return_rip);
    const std::uint64_t target = gate.gate_offset();
    check_target(cpu, code, target);
    frame.write(8);
    cpu.seg[Ss] = stack;
    cpu.gpr[Rsp] = frame.pointer();
    enter_code(cpu, code, target);
}

void through_call_gate(Cpu& cpu,
                       Descriptor& gate,
                       std::uint16_t selector,
                       TransferKind kind,
                       std::uint64_t return_rip)
{
    check_gate_privilege(cpu, gate, selector);
    if (cpu.long_mode()) {
        read_upper_half(cpu, gate, selector, Vector::GP);
    }
    check_gate_present(gate, selector);
    const std::uint16_t code_selector = gate.gate_selector();
    Descriptor target = gate_target(cpu, code_selector, kind);
    const bool is_inner = !target.is_conforming() && target.dpl() < cpu.cpl;
    const unsigned level = is_inner ? target.dpl() : cpu.cpl;
    const Segment code = load_code_segment(cpu, target, code_selector, level);
    if (kind == TransferKind::Jump) {
        check_target(cpu, code, gate.gate_offset());
        enter_code(cpu, code, gate.gate_offset());
        return;
    }
    if (is_inner) {
        (cpu.long_mode() ? call_inner64 : call_inner)(cpu, gate, code, level, return_rip);
        return;
    }
    check_target(cpu, code, gate.gate_offset());
    FrameWriter frame{cpu, cpu.seg[Ss], cpu.gpr[Rsp], cpu.cpl, cpu.long_mode(), 0};
    frame.push(cpu.seg[Cs].selector);
    frame.push(return_rip);
    unsigned size = gate.type() == system_type::call_gate ? 4 : 2;
    if (cpu.long_mode()) {
        size = 8;
    }
    frame.write(size);
    cpu.gpr[Rsp] = frame.pointer();
    enter_code(cpu, code, gate.gate_offset());
}

/// The selector of a JMP or CALL names no code segment: a gate, a TSS, or nothing.
void through_system_descriptor(Cpu& cpu,
                               Descriptor& descriptor,
                               std::uint16_t selector,
                               TransferKind kind,
                               std::uint64_t return_rip)
{
    const TaskSwitch reason = kind == TransferKind::Jump ? TaskSwitch::Jump : TaskSwitch::Call;
    const unsigned type = descriptor.type();
    if (type == system_type::call_gate || (type == system_type::call_gate16 && !cpu.long_mode())) {
        through_call_gate(cpu, descriptor, selector, kind, return_rip);
    } else if (type == system_type::task_gate && !cpu.long_mode()) {
        check_gate_privilege(cpu, descriptor, selector);
        check_gate_present(descriptor, selector);
        switch_task(cpu, descriptor.gate_selector(), reason, return_rip, nullptr);
    } else if ((type == system_type::tss16_available || type == system_type::tss_available) &&
               !cpu.long_mode()) {
        check_gate_privilege(cpu, descriptor, selector);
        switch_task(cpu, selector, reason, return_rip, nullptr);
    } else {
        raise(Vector::GP, selector_error(selector));
    }
}

}  // namespace

void far_jump(Cpu& cpu,
              std::uint16_t selector,
              std::uint64_t offset,
              unsigned operand_size,
              std::uint64_t return_rip)
{
    offset = cut(offset, operand_size);
    if (in_real_or_virtual_mode(cpu)) {
        const Segment code = real_code(cpu, selector);
        check_target(cpu, code, offset);
        enter_code(cpu, code, offset);
        return;
    }
    if (is_null(selector)) {
        raise(Vector::GP, 0);
    }
    Descriptor descriptor = read_descriptor(cpu, selector, Vector::GP);
    if (!descriptor.is_segment()) {
        through_system_descriptor(cpu, descriptor, selector, TransferKind::Jump, return_rip);
        return;
    }
    check_direct_target(cpu, descriptor, selector);
    check_target(cpu, make_segment(descriptor, selector), offset);
    enter_code(cpu, load_code_segment(cpu, descriptor, selector, cpu.cpl), offset);
}

void far_call(Cpu& cpu,
              std::uint16_t selector,
              std::uint64_t offset,
              unsigned operand_size,
              std::uint64_t return_rip)
{
    offset = cut(offset, operand_size);
    Segment code{};
    if (in_real_or_virtual_mode(cpu)) {
        code = real_code(cpu, selector);
        check_target(cpu, code, offset);
    } else {
        if (is_null(selector)) {
            raise(Vector::GP, 0);
        }
        Descriptor descriptor = read_descriptor(cpu, selector, Vector::GP);
        if (!descriptor.is_segment()) {
            through_system_descriptor(cpu, descriptor, selector, TransferKind::Call, return_rip);
            return;
        }
        check_direct_target(cpu, descriptor, selector);
        check_target(cpu, make_segment(descriptor, selector), offset);
        code = load_code_segment(cpu, descriptor, selector, cpu.cpl);
    }
    FrameWriter frame = current_stack(cpu);
    frame.push(cpu.seg[Cs].selector);
    frame.push(return_rip);
    frame.write(operand_size);
    cpu.gpr[Rsp] = frame.pointer();
    enter_code(cpu, code, offset);
}

void far_return(Cpu& cpu, unsigned operand_size, std::uint16_t pop_bytes)
{
    FrameReader frame{cpu};
    const std::uint64_t rip = frame.pop(operand_size);
    const auto selector = frame.pop_selector(operand_size);
    frame.skip(pop_bytes);
    if (in_real_or_virtual_mode(cpu)) {
        const Segment code = real_code(cpu, selector);
        check_target(cpu, code, rip);
        cpu.gpr[Rsp] = frame.pointer();
        enter_code(cpu, code, rip);
        return;
    }
    Descriptor descriptor = read_return_code(cpu, selector);
    const unsigned level = rpl(selector);
    const Segment checked = make_segment(descriptor, selector);
    if (level == cpu.cpl) {
        check_target(cpu, checked, rip);
        const Segment code = load_code_segment(cpu, descriptor, selector, level);
        cpu.gpr[Rsp] = frame.pointer();
        enter_code(cpu, code, rip);
        return;
    }
    const std::uint64_t pointer = frame.pop(operand_size);
    const auto stack_selector = frame.pop_selector(operand_size);
    const Segment stack = load_return_stack(cpu, stack_selector, checked);
    check_target(cpu, checked, rip);
    const Segment code = load_code_segment(cpu, descriptor, selector, level);
    cpu.gpr[Rsp] =
        merged_stack_pointer(cpu.gpr[Rsp], pointer + pop_bytes, is_code64(cpu, code), stack);
    cpu.seg[Ss] = stack;
    drop_inner_segments(cpu, level);
    enter_code(cpu, code, rip);
}

Descriptor read_return_code(Cpu& cpu, std::uint16_t selector)
{
    if (is_null(selector)) {
        raise(Vector::GP, 0);
    }
    const Descriptor code = read_descriptor(cpu, selector, Vector::GP);
    const unsigned level = rpl(selector);
    const bool is_ambiguous = cpu.long_mode() && code.long_code() && code.big();
    const bool allowed = code.is_code() && level >= cpu.cpl && !is_ambiguous &&
                         (code.is_conforming() ? code.dpl() <= level : code.dpl() == level);
    if (!allowed) {
        raise(Vector::GP, selector_error(selector));
    }
    if (!code.present()) {
        raise(Vector::NP, selector_error(selector));
    }
    return code;
}

Segment load_return_stack(Cpu& cpu, std::uint16_t selector, const Segment& code)
{
    const unsigned level = rpl(code.selector);
    if (!is_null(selector)) {
        return load_stack_segment(cpu, selector, level, Vector::GP);
    }
    // 64-bit code of the system may run without a stack segment.
    if (!is_code64(cpu, code) || level == 3U || rpl(selector) != level) {
        raise(Vector::GP, 0);
    }
    return null_segment(selector, level);
}

}  // namespace vmm::x86::soft
