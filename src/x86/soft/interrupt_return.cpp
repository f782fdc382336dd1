// SPDX-License-Identifier: Apache-2.0

/// @file
/// IRET, IRETD and IRETQ.  SDM Vol. 2A "IRET/IRETD/IRETQ—Interrupt Return".

#include "x86/soft/descriptor.hpp"
#include "x86/soft/system.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::uint64_t low_flags = mask_of(Rflags::CF,
                                            Rflags::PF,
                                            Rflags::AF,
                                            Rflags::ZF,
                                            Rflags::SF,
                                            Rflags::TF,
                                            Rflags::DF,
                                            Rflags::OF,
                                            Rflags::NT);

/// RFLAGS with the bits of `mask` from `popped`; a 16-bit IRET changes none above bit 15.
std::uint64_t merged_flags(const Cpu& cpu,
                           std::uint64_t popped,
                           std::uint64_t mask,
                           unsigned operand_size)
{
    if (operand_size == 2U) {
        mask &= 0xffffU;
    }
    return (cpu.flags() & ~mask) | (popped & mask);
}

/// What IRET in protected mode may change at the privilege it is executed at.
std::uint64_t protected_flags_mask(const Cpu& cpu) noexcept
{
    std::uint64_t mask = low_flags | mask_of(Rflags::RF, Rflags::AC, Rflags::ID);
    if (cpu.cpl <= Rflags{cpu.rflags}.get(Rflags::IOPL)) {
        mask |= Rflags::IF.mask;
    }
    if (cpu.cpl == 0U) {
        mask |= mask_of(Rflags::IOPL, Rflags::VIF, Rflags::VIP);
    }
    return mask;
}

struct ReturnFrame {
    std::uint64_t rip{};
    std::uint16_t selector{};
    std::uint64_t flags{};
};

ReturnFrame pop_return_frame(FrameReader& stack, unsigned operand_size)
{
    ReturnFrame frame{};
    frame.rip = stack.pop(operand_size);
    frame.selector = stack.pop_selector(operand_size);
    frame.flags = stack.pop(operand_size);
    return frame;
}

void return_in_real_mode(Cpu& cpu, unsigned operand_size)
{
    FrameReader stack{cpu};
    const ReturnFrame frame = pop_return_frame(stack, operand_size);
    const Segment code = real_mode_code(cpu.seg[Cs], frame.selector);
    check_target(cpu, code, frame.rip);
    constexpr std::uint64_t kept = mask_of(Rflags::VM, Rflags::VIF, Rflags::VIP);
    cpu.set_flags(merged_flags(cpu, frame.flags, Rflags::defined & ~kept, operand_size));
    cpu.gpr[Rsp] = stack.pointer();
    cpu.seg[Cs] = code;
    cpu.rip = frame.rip;
    privilege_changed(cpu);
}

/// SDM Vol. 3B "Virtual-8086 Mode": IRET with IOPL 3, or with CR4.VME the 16-bit form on the
/// virtual interrupt flag.
void return_in_virtual_8086(Cpu& cpu, unsigned operand_size)
{
    const bool privileged = Rflags{cpu.rflags}.get(Rflags::IOPL) == 3U;
    if (!privileged && (operand_size != 2U || !Cr4{cpu.cr4}.get(Cr4::VME))) {
        raise(Vector::GP, 0);
    }
    FrameReader stack{cpu};
    const ReturnFrame frame = pop_return_frame(stack, operand_size);
    const Segment code = virtual_8086_segment(frame.selector);
    check_target(cpu, code, frame.rip);
    const Rflags popped{frame.flags};
    if (privileged) {
        constexpr std::uint64_t kept = mask_of(Rflags::VM, Rflags::IOPL, Rflags::VIF, Rflags::VIP);
        cpu.set_flags(merged_flags(cpu, frame.flags, Rflags::defined & ~kept, operand_size));
    } else {
        if (popped.get(Rflags::TF) ||
            (popped.get(Rflags::IF) && Rflags{cpu.rflags}.get(Rflags::VIP))) {
            raise(Vector::GP, 0);
        }
        const std::uint64_t flags = merged_flags(cpu, frame.flags, low_flags, operand_size);
        cpu.set_flags((flags & ~Rflags::VIF.mask) |
                      (popped.get(Rflags::IF) ? Rflags::VIF.mask : 0U));
    }
    cpu.gpr[Rsp] = stack.pointer();
    cpu.seg[Cs] = code;
    cpu.rip = frame.rip;
    privilege_changed(cpu);
}

/// To the task that the current one's back link names.
void return_to_task(Cpu& cpu, std::uint64_t next_rip)
{
    if (cpu.long_mode()) {
        raise(Vector::GP, 0);
    }
    if (cpu.tr.unusable != 0U || cpu.tr.limit < 1U) {
        raise(Vector::TS, selector_error(cpu.tr.selector));
    }
    const auto link = load_system<std::uint16_t>(cpu, table_address(cpu, cpu.tr.base));
    switch_task(cpu, link, TaskSwitch::Iret, next_rip, nullptr);
}

void return_to_virtual_8086(Cpu& cpu, FrameReader& stack, const ReturnFrame& frame)
{
    const std::uint64_t pointer = stack.pop(4);
    std::array<std::uint16_t, 5> selectors{};
    for (std::uint16_t& selector : selectors) {
        selector = stack.pop_selector(4);
    }
    if (frame.rip > 0xffffU) {
        raise(Vector::GP, 0);
    }
    constexpr std::array<SegmentIndex, 5> order{Ss, Es, Ds, Fs, Gs};
    for (std::size_t i = 0; i < order.size(); ++i) {
        cpu.seg[order[i]] = virtual_8086_segment(selectors[i]);
    }
    cpu.seg[Cs] = virtual_8086_segment(frame.selector);
    cpu.gpr[Rsp] = pointer;
    cpu.rip = frame.rip;
    cpu.set_flags(frame.flags & Rflags::defined);
    privilege_changed(cpu);
}

void return_in_protected_mode(Cpu& cpu, unsigned operand_size)
{
    FrameReader stack{cpu};
    const ReturnFrame frame = pop_return_frame(stack, operand_size);
    if (operand_size == 4U && !cpu.long_mode() && cpu.cpl == 0U &&
        Rflags{frame.flags}.get(Rflags::VM)) {
        return_to_virtual_8086(cpu, stack, frame);
        return;
    }
    Descriptor descriptor = read_return_code(cpu, frame.selector);
    const unsigned level = rpl(frame.selector);
    const Segment checked = make_segment(descriptor, frame.selector);
    const std::uint64_t flags =
        merged_flags(cpu, frame.flags, protected_flags_mask(cpu), operand_size);
    const bool is_outer = level != cpu.cpl;
    // 64-bit mode pops SS:RSP always.
    if (!is_outer && !cpu.code_64()) {
        check_target(cpu, checked, frame.rip);
        cpu.seg[Cs] = load_code_segment(cpu, descriptor, frame.selector, level);
        cpu.gpr[Rsp] = stack.pointer();
    } else {
        const std::uint64_t pointer = stack.pop(operand_size);
        const auto stack_selector = stack.pop_selector(operand_size);
        const Segment new_stack = load_return_stack(cpu, stack_selector, checked);
        check_target(cpu, checked, frame.rip);
        const Segment code = load_code_segment(cpu, descriptor, frame.selector, level);
        cpu.gpr[Rsp] = merged_stack_pointer(cpu.gpr[Rsp], pointer, is_code64(cpu, code), new_stack);
        cpu.seg[Cs] = code;
        cpu.seg[Ss] = new_stack;
        if (is_outer) {
            drop_inner_segments(cpu, level);
        }
    }
    cpu.rip = frame.rip;
    cpu.set_flags(flags);
    privilege_changed(cpu);
}

}  // namespace

void interrupt_return(Cpu& cpu, unsigned operand_size, std::uint64_t next_rip)
{
    // SDM Vol. 3A "Handling Multiple NMIs": unblocked even where IRET faults.
    cpu.nmi_blocked = false;
    if (!cpu.protected_mode()) {
        return_in_real_mode(cpu, operand_size);
    } else if (cpu.virtual_8086()) {
        return_in_virtual_8086(cpu, operand_size);
    } else if (Rflags{cpu.rflags}.get(Rflags::NT)) {
        return_to_task(cpu, next_rip);
    } else {
        return_in_protected_mode(cpu, operand_size);
    }
}

}  // namespace vmm::x86::soft
