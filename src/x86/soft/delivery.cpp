// SPDX-License-Identifier: Apache-2.0

/// @file
/// Interrupts and exceptions on their way through the IDT.
///
/// SDM Vol. 2A "INT n/INTO/INT3/INT1—Call to Interrupt Procedure" has the checks in their order,
/// Vol. 3A "Interrupt and Exception Handling" the error codes and the double fault.

#include "x86/exception_payload.hpp"
#include "x86/soft/descriptor.hpp"
#include "x86/soft/system.hpp"

namespace vmm::x86::soft {

namespace {

bool is_software(EventKind kind) noexcept
{
    return kind == EventKind::SoftwareInterrupt || kind == EventKind::SoftwareException;
}

/// The EXT bit of error codes that arise while `event` is delivered.
std::uint32_t ext_of(const Event& event) noexcept
{
    return is_software(event.kind) ? 0 : 1;
}

/// SDM Vol. 3A "Error Code": index of a gate, with the IDT bit.
std::uint32_t gate_error(const Event& event) noexcept
{
    return std::uint32_t{event.vector} * 8U + 2U + ext_of(event);
}

std::uint64_t return_rip(const Cpu& cpu, const Event& event) noexcept
{
    const bool is_after =
        is_software(event.kind) || event.kind == EventKind::PrivilegedSoftwareException;
    return is_after ? cpu.ip_mask(cpu.rip + event.instruction_length) : cpu.rip;
}

/// Flags as the handler's caller gets them back.  An instruction that ends in an interrupt is
/// complete: RF, which held for it, is spent.
std::uint64_t pushed_flags(const Cpu& cpu, const Event& event) noexcept
{
    return is_software(event.kind) || event.kind == EventKind::PrivilegedSoftwareException
               ? cpu.flags() & ~Rflags::RF.mask
               : cpu.flags();
}

/// What every delivery does last.
void enter_handler(Cpu& cpu,
                   const Event& event,
                   const Segment& code,
                   std::uint64_t rip,
                   std::uint64_t flags) noexcept
{
    cpu.seg[Cs] = code;
    cpu.rip = rip;
    cpu.set_flags(flags);
    cpu.sti_shadow = false;
    cpu.mov_ss_shadow = false;
    if (event.kind == EventKind::Nmi) {
        cpu.nmi_blocked = true;
    }
    privilege_changed(cpu);
}

// --- Through the interrupt vector table, in real mode and (CR4.VME) in virtual-8086 mode

void push_real_frame(Cpu& cpu, std::uint64_t flags, std::uint64_t rip, std::uint64_t& pointer)
{
    FrameWriter frame{cpu, cpu.seg[Ss], cpu.gpr[Rsp], cpu.cpl, false, 0};
    frame.push(flags);
    frame.push(cpu.seg[Cs].selector);
    frame.push(rip);
    frame.write(2);
    pointer = frame.pointer();
}

void deliver_real(Cpu& cpu, const Event& event)
{
    const std::uint32_t offset = std::uint32_t{event.vector} * 4U;
    if (offset + 3U > cpu.idt.limit) {
        raise(Vector::GP, gate_error(event));
    }
    const auto entry = load_system<std::uint32_t>(cpu, table_address(cpu, cpu.idt.base + offset));
    const Segment code = real_mode_code(cpu.seg[Cs], static_cast<std::uint16_t>(entry >> 16U));
    const std::uint64_t rip = entry & 0xffffU;
    check_target(cpu, code, rip);
    std::uint64_t pointer = 0;
    push_real_frame(cpu, pushed_flags(cpu, event), return_rip(cpu, event), pointer);
    cpu.gpr[Rsp] = pointer;
    constexpr std::uint64_t cleared = mask_of(Rflags::TF, Rflags::IF, Rflags::AC, Rflags::RF);
    enter_handler(cpu, event, code, rip, cpu.flags() & ~cleared);
}

/// INT n in virtual-8086 mode with CR4.VME: whether the task's bitmap sends it to the 8086
/// program's own handler.  SDM Vol. 3B "Software Interrupt Handling Methods in Virtual-8086 Mode".
bool is_redirected(Cpu& cpu, std::uint8_t vector)
{
    constexpr std::uint32_t io_map_base_offset = 0x66;
    constexpr std::uint32_t bitmap_size = 32;
    const Segment& task = cpu.tr;
    const bool is_32 =
        task.type == system_type::tss_busy || task.type == system_type::tss_available;
    if (task.unusable != 0U || !is_32 || task.limit < io_map_base_offset + 1U) {
        raise(Vector::GP, 0);
    }
    const std::uint32_t base =
        load_system<std::uint16_t>(cpu, table_address(cpu, task.base + io_map_base_offset));
    const std::uint32_t offset = base - bitmap_size + vector / 8U;
    if (base < bitmap_size || offset > task.limit) {
        raise(Vector::GP, 0);
    }
    const auto byte = load_system<std::uint8_t>(cpu, table_address(cpu, task.base + offset));
    return ((byte >> (vector % 8U)) & 1U) == 0U;
}

void deliver_virtual_8086(Cpu& cpu, const Event& event)
{
    const auto entry = load_system<std::uint32_t>(cpu, std::uint64_t{event.vector} * 4U);
    const Segment code = virtual_8086_segment(static_cast<std::uint16_t>(entry >> 16U));
    const Rflags now{cpu.flags()};
    const bool privileged = now.get(Rflags::IOPL) == 3U;
    std::uint64_t pushed = pushed_flags(cpu, event);
    std::uint64_t flags = now.raw() & ~mask_of(Rflags::TF, Rflags::RF);
    if (privileged) {
        flags &= ~Rflags::IF.mask;
    } else {
        // The program sees the virtual interrupt flag in IF's place, and IOPL 3.
        pushed = (pushed & ~Rflags::IF.mask) | Rflags::IOPL.mask |
                 (now.get(Rflags::VIF) ? Rflags::IF.mask : 0U);
        flags &= ~Rflags::VIF.mask;
    }
    std::uint64_t pointer = 0;
    push_real_frame(cpu, pushed, return_rip(cpu, event), pointer);
    cpu.gpr[Rsp] = pointer;
    enter_handler(cpu, event, code, entry & 0xffffU, flags);
}

// --- Through a gate

/// The flags inside a handler.
std::uint64_t handler_flags(const Cpu& cpu, unsigned gate_type) noexcept
{
    std::uint64_t cleared = mask_of(Rflags::TF, Rflags::NT, Rflags::RF, Rflags::VM);
    if (gate_type == system_type::interrupt_gate || gate_type == system_type::interrupt_gate16) {
        cleared |= Rflags::IF.mask;
    }
    return cpu.flags() & ~cleared;
}

Descriptor handler_code(Cpu& cpu, std::uint16_t selector, std::uint32_t ext)
{
    if (is_null(selector)) {
        raise(Vector::GP, ext);
    }
    const Descriptor code = read_descriptor(cpu, selector, Vector::GP, ext);
    const bool is_wrong_size = cpu.long_mode() && (!code.long_code() || code.big());
    if (!code.is_code() || code.dpl() > cpu.cpl || is_wrong_size) {
        raise(Vector::GP, selector_error(selector, ext));
    }
    if (!code.present()) {
        raise(Vector::NP, selector_error(selector, ext));
    }
    return code;
}

void check_gate(const Cpu& cpu, const Event& event, const Descriptor& gate)
{
    if (is_software(event.kind) && gate.dpl() < cpu.cpl) {
        raise(Vector::GP, gate_error(event));
    }
    if (!gate.present()) {
        raise(Vector::NP, gate_error(event));
    }
}

void deliver_long(Cpu& cpu, const Event& event)
{
    const std::uint32_t offset = std::uint32_t{event.vector} * 16U;
    const std::uint32_t ext = ext_of(event);
    if (offset + 15U > cpu.idt.limit) {
        raise(Vector::GP, gate_error(event));
    }
    Descriptor gate{};
    gate.low = load_system<std::uint64_t>(cpu, cpu.idt.base + offset);
    gate.high = load_system<std::uint64_t>(cpu, cpu.idt.base + offset + 8U);
    const unsigned type = gate.type();
    if (gate.is_segment() ||
        (type != system_type::interrupt_gate && type != system_type::trap_gate)) {
        raise(Vector::GP, gate_error(event));
    }
    check_gate(cpu, event, gate);
    const std::uint16_t selector = gate.gate_selector();
    Descriptor descriptor = handler_code(cpu, selector, ext);
    const bool is_inner = !descriptor.is_conforming() && descriptor.dpl() < cpu.cpl;
    const unsigned level = is_inner ? descriptor.dpl() : cpu.cpl;
    const unsigned ist = gate.gate_ist();
    const std::uint64_t top =
        is_inner || ist != 0U ? task_stack64(cpu, level, ist, ext) : cpu.gpr[Rsp];
    const std::uint64_t target = gate.gate_offset();
    if (!is_canonical48(target)) {
        raise(Vector::GP, ext);
    }
    const Segment code = load_code_segment(cpu, descriptor, selector, level);
    FrameWriter frame{cpu, cpu.seg[Ss], top & ~std::uint64_t{15}, level, true, ext};
    frame.push(cpu.seg[Ss].selector);
    frame.push(cpu.gpr[Rsp]);
    frame.push(pushed_flags(cpu, event));
    frame.push(cpu.seg[Cs].selector);
    frame.push(return_rip(cpu, event));
    if (event.has_error_code) {
        frame.push(event.error_code);
    }
    frame.write(8);
    cpu.gpr[Rsp] = frame.pointer();
    if (is_inner) {
        cpu.seg[Ss] = null_segment(static_cast<std::uint16_t>(level), level);
    }
    enter_handler(cpu, event, code, target, handler_flags(cpu, type));
}

struct LegacyGate {
    Descriptor gate{};
    unsigned size{};  ///< Of what is pushed.
    std::uint32_t ext{};
};

void push_return(FrameWriter& frame, const Cpu& cpu, const Event& event)
{
    frame.push(pushed_flags(cpu, event));
    frame.push(cpu.seg[Cs].selector);
    frame.push(return_rip(cpu, event));
    if (event.has_error_code) {
        frame.push(event.error_code);
    }
}

/// To a handler at an inner level, from there or from virtual-8086 mode.
void deliver_inner(Cpu& cpu,
                   const Event& event,
                   const LegacyGate& gate,
                   const Segment& code,
                   unsigned level)
{
    const StackPointer inner = task_stack(cpu, level, gate.ext);
    if (is_null(inner.selector)) {
        raise(Vector::TS, gate.ext);
    }
    const Segment stack = load_stack_segment(cpu, inner.selector, level, Vector::TS, gate.ext);
    FrameWriter frame{cpu,   stack, inner.pointer,
                      level, false, selector_error(inner.selector, gate.ext)};
    const bool from_virtual_8086 = cpu.virtual_8086();
    if (from_virtual_8086) {
        for (const SegmentIndex index : {Gs, Fs, Ds, Es}) {
            frame.push(cpu.seg[index].selector);
        }
    }
    frame.push(cpu.seg[Ss].selector);
    frame.push(cpu.gpr[Rsp]);
    push_return(frame, cpu, event);
    const std::uint64_t target = gate.gate.gate_offset();
    check_target(cpu, code, target, gate.ext);
    frame.write(gate.size);
    if (from_virtual_8086) {
        for (const SegmentIndex index : {Gs, Fs, Ds, Es}) {
            cpu.seg[index] = null_segment(0);
        }
    }
    cpu.seg[Ss] = stack;
    cpu.gpr[Rsp] = frame.pointer();
    enter_handler(cpu, event, code, target, handler_flags(cpu, gate.gate.type()));
}

void deliver_same(Cpu& cpu, const Event& event, const LegacyGate& gate, const Segment& code)
{
    FrameWriter frame{cpu, cpu.seg[Ss], cpu.gpr[Rsp], cpu.cpl, false, gate.ext};
    push_return(frame, cpu, event);
    const std::uint64_t target = gate.gate.gate_offset();
    check_target(cpu, code, target, gate.ext);
    frame.write(gate.size);
    cpu.gpr[Rsp] = frame.pointer();
    enter_handler(cpu, event, code, target, handler_flags(cpu, gate.gate.type()));
}

void deliver_protected(Cpu& cpu, const Event& event)
{
    const std::uint32_t offset = std::uint32_t{event.vector} * 8U;
    if (offset + 7U > cpu.idt.limit) {
        raise(Vector::GP, gate_error(event));
    }
    LegacyGate gate{};
    gate.ext = ext_of(event);
    gate.gate.low = load_system<std::uint64_t>(cpu, table_address(cpu, cpu.idt.base + offset));
    if (gate.gate.is_segment()) {
        raise(Vector::GP, gate_error(event));
    }
    switch (gate.gate.type()) {
    case system_type::task_gate:
        check_gate(cpu, event, gate.gate);
        switch_task(cpu, gate.gate.gate_selector(), TaskSwitch::Gate, return_rip(cpu, event),
                    &event);
        return;
    case system_type::interrupt_gate16:
    case system_type::trap_gate16: gate.size = 2; break;
    case system_type::interrupt_gate:
    case system_type::trap_gate: gate.size = 4; break;
    default: raise(Vector::GP, gate_error(event));
    }
    check_gate(cpu, event, gate.gate);
    const std::uint16_t selector = gate.gate.gate_selector();
    Descriptor descriptor = handler_code(cpu, selector, gate.ext);
    const bool is_inner = !descriptor.is_conforming() && descriptor.dpl() < cpu.cpl;
    if (cpu.virtual_8086() && (!is_inner || descriptor.dpl() != 0U)) {
        raise(Vector::GP, selector_error(selector, gate.ext));
    }
    const unsigned level = is_inner ? descriptor.dpl() : cpu.cpl;
    const Segment code = load_code_segment(cpu, descriptor, selector, level);
    if (is_inner) {
        deliver_inner(cpu, event, gate, code, level);
    } else {
        deliver_same(cpu, event, gate, code);
    }
}

// --- Exceptions on the way to a handler

enum class FaultClass : std::uint8_t { Benign, Contributory, PageFault, DoubleFault };

FaultClass class_of(std::uint8_t vector) noexcept
{
    switch (vector) {
    case static_cast<std::uint8_t>(Vector::DE):
    case static_cast<std::uint8_t>(Vector::TS):
    case static_cast<std::uint8_t>(Vector::NP):
    case static_cast<std::uint8_t>(Vector::SS):
    case static_cast<std::uint8_t>(Vector::GP): return FaultClass::Contributory;
    case static_cast<std::uint8_t>(Vector::PF): return FaultClass::PageFault;
    case static_cast<std::uint8_t>(Vector::DF): return FaultClass::DoubleFault;
    default: return FaultClass::Benign;
    }
}

bool names_selector(Vector vector) noexcept
{
    return vector == Vector::TS || vector == Vector::NP || vector == Vector::SS ||
           vector == Vector::GP;
}

Event event_of(const Fault& fault) noexcept
{
    Event event{};
    event.kind = EventKind::HardwareException;
    event.vector = static_cast<std::uint8_t>(fault.vector);
    event.has_error_code = fault.has_error_code;
    event.error_code = fault.error_code;
    event.payload = fault.payload;
    return event;
}

/// SDM Vol. 3A "Conditions for Generating a Double Fault": makes `event` what is to be delivered
/// after `fault` came up on its way.  False: shutdown.
bool combine(Event& event, const Fault& fault) noexcept
{
    const bool is_exception = event.kind == EventKind::HardwareException;
    const FaultClass first = is_exception ? class_of(event.vector) : FaultClass::Benign;
    const FaultClass second = class_of(static_cast<std::uint8_t>(fault.vector));
    const bool severe = second != FaultClass::Benign;
    if (first == FaultClass::DoubleFault && severe) {
        return false;
    }
    if ((first == FaultClass::Contributory && second == FaultClass::Contributory) ||
        (first == FaultClass::PageFault && severe)) {
        event = event_of({Vector::DF, true, 0, 0});
        return true;
    }
    const std::uint32_t ext = names_selector(fault.vector) ? ext_of(event) : 0;
    event = event_of(fault);
    event.error_code |= ext;
    return true;
}

/// What an exception leaves in registers before its handler is looked for.
void note_exception(Cpu& cpu, const Event& event) noexcept
{
    if (event.kind != EventKind::HardwareException) {
        return;
    }
    apply_payload(cpu, event);
    switch (event.vector) {
    case static_cast<std::uint8_t>(Vector::DB):
        if ((event.payload & Dr6::BD.mask) != 0U) {
            cpu.rflags |= Rflags::RF.mask;  // A fault, unlike the others.
        }
        return;
    case static_cast<std::uint8_t>(Vector::NMI):
    case static_cast<std::uint8_t>(Vector::BP):
    case static_cast<std::uint8_t>(Vector::OF):
    case static_cast<std::uint8_t>(Vector::DF):
    case static_cast<std::uint8_t>(Vector::MC): return;
    default: break;
    }
    // SDM Vol. 3B "Instruction-Breakpoint Exception Condition": faults push RF set, so that a
    // breakpoint on the instruction does not hit again when it is restarted.
    cpu.rflags |= Rflags::RF.mask;
}

}  // namespace

void deliver_once(Cpu& cpu, const Event& event)
{
    if (cpu.long_mode()) [[likely]] {
        deliver_long(cpu, event);
        return;
    }
    if (!cpu.protected_mode()) {
        deliver_real(cpu, event);
        return;
    }
    if (cpu.virtual_8086() && event.kind == EventKind::SoftwareInterrupt) {
        if (Cr4{cpu.cr4}.get(Cr4::VME) && is_redirected(cpu, event.vector)) {
            deliver_virtual_8086(cpu, event);
            return;
        }
        if (Rflags{cpu.rflags}.get(Rflags::IOPL) != 3U) {
            raise(Vector::GP, 0);
        }
    }
    deliver_protected(cpu, event);
}

bool deliver(Cpu& cpu, const Event& event)
{
    // Benign faults that raise one another (an #AC while #AC is delivered) would never end; a
    // processor hangs there, or shuts down.
    constexpr unsigned max_rounds = 16;
    Event pending = event;
    for (unsigned round = 0; round < max_rounds; ++round) {
        note_exception(cpu, pending);
        Fault fault{};
        try {
            deliver_once(cpu, pending);
            return true;
        } catch (const Fault& raised) {
            fault = raised;
        } catch (const TaskFault& raised) {
            fault = raised.fault;
        }
        if (!combine(pending, fault)) {
            return false;
        }
    }
    return false;
}

bool deliver_fault(Cpu& cpu, const Fault& fault)
{
    return deliver(cpu, event_of(fault));
}

}  // namespace vmm::x86::soft
