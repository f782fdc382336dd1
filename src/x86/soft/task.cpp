// SPDX-License-Identifier: Apache-2.0

/// @file
/// Hardware task switches.  SDM Vol. 3A "Task Switching".
///
/// Everything that can be refused in the old task is checked first; then the state is the new
/// task's, and what fails is the new task's fault (`TaskFault`).

#include <array>
#include <cstring>

#include "x86/soft/descriptor.hpp"
#include "x86/soft/page_walk.hpp"
#include "x86/soft/system.hpp"

namespace vmm::x86::soft {

namespace {

/// Where the fields of a TSS are.  SDM Vol. 3A "Task-State Segment (TSS)", "16-Bit TSS".
struct TssLayout {
    std::uint32_t field{};  ///< Bytes a register has.
    std::uint32_t limit{};  ///< The least limit of the segment.
    std::uint32_t cr3{};    ///< 0: has none.
    std::uint32_t ip{};
    std::uint32_t flags{};
    std::uint32_t registers{};  ///< AX CX DX BX SP BP SI DI.
    std::uint32_t segments{};   ///< ES CS SS DS (FS GS).
    std::uint32_t segment_count{};
    std::uint32_t ldt{};
    std::uint32_t trap{};  ///< 0: has none.
};
constexpr TssLayout layout32{4, 0x67, 0x1c, 0x20, 0x24, 0x28, 0x48, 6, 0x60, 0x64};
constexpr TssLayout layout16{2, 0x2b, 0, 0x0e, 0x10, 0x12, 0x22, 4, 0x2a, 0};
constexpr std::uint32_t tss_size = 0x68;

const TssLayout& layout_of(unsigned type) noexcept
{
    return type == system_type::tss_available || type == system_type::tss_busy ? layout32
                                                                               : layout16;
}

/// A TSS as it was read.
struct TssImage {
    std::array<std::byte, tss_size> bytes{};

    [[nodiscard]] std::uint32_t get(std::uint32_t offset, std::uint32_t size) const noexcept
    {
        std::uint32_t value = 0;
        std::memcpy(&value, bytes.data() + offset, size);
        return value;
    }
    void set(std::uint32_t offset, std::uint32_t size, std::uint64_t value) noexcept
    {
        std::memcpy(bytes.data() + offset, &value, size);
    }
};

struct NewTask {
    std::uint16_t selector{};
    Descriptor descriptor{};
    const TssLayout* layout{};
    TssImage image{};
    std::uint32_t ext{};
};

/// The descriptor of the task to switch to, checked.
Descriptor read_task(Cpu& cpu, std::uint16_t selector, TaskSwitch reason, std::uint32_t ext)
{
    const Vector wrong = reason == TaskSwitch::Iret ? Vector::TS : Vector::GP;
    if (is_null(selector) || is_local(selector)) {
        raise(wrong, selector_error(selector, ext));
    }
    const Descriptor task = read_descriptor(cpu, selector, wrong, ext);
    const unsigned type = task.type();
    const bool is_expected =
        reason == TaskSwitch::Iret
            ? type == system_type::tss16_busy || type == system_type::tss_busy
            : type == system_type::tss16_available || type == system_type::tss_available;
    if (task.is_segment() || !is_expected) {
        raise(wrong, selector_error(selector, ext));
    }
    if (!task.present()) {
        raise(Vector::NP, selector_error(selector, ext));
    }
    if (task.limit() < layout_of(type).limit) {
        raise(Vector::TS, selector_error(selector, ext));
    }
    return task;
}

/// The old task's registers, written to its TSS: the part from IP to the last segment.
void save_task(Cpu& cpu, TaskSwitch reason, std::uint64_t next_rip)
{
    const TssLayout& layout = layout_of(cpu.tr.type);
    TssImage image{};
    std::uint64_t flags = cpu.flags();
    if (reason == TaskSwitch::Iret) {
        flags &= ~Rflags::NT.mask;
    }
    image.set(layout.ip, layout.field, next_rip);
    image.set(layout.flags, layout.field, flags);
    for (std::uint32_t i = 0; i < 8; ++i) {
        image.set(layout.registers + i * layout.field, layout.field, cpu.gpr[i]);
    }
    for (std::uint32_t i = 0; i < layout.segment_count; ++i) {
        image.set(layout.segments + i * layout.field, layout.field, cpu.seg[i].selector);
    }
    const std::uint32_t end = layout.segments + layout.segment_count * layout.field;
    write_system(cpu, table_address(cpu, cpu.tr.base + layout.ip), image.bytes.data() + layout.ip,
                 end - layout.ip);
}

/// Everything that may fault before the switch is decided on.
NewTask prepare(Cpu& cpu,
                std::uint16_t selector,
                TaskSwitch reason,
                std::uint64_t next_rip,
                std::uint32_t ext)
{
    NewTask task{};
    task.selector = selector;
    task.ext = ext;
    task.descriptor = read_task(cpu, selector, reason, ext);
    if (cpu.tr.unusable != 0U) {
        raise(Vector::TS, selector_error(cpu.tr.selector, ext));
    }
    task.layout = &layout_of(task.descriptor.type());
    const std::uint64_t base = task.descriptor.base();
    read_system(cpu, table_address(cpu, base), task.image.bytes.data(), task.layout->limit + 1U);
    const bool nests = reason == TaskSwitch::Call || reason == TaskSwitch::Gate;
    if (nests) {
        probe_stack(cpu, table_address(cpu, base), 2, 0);
    }
    // Nothing is lost if the busy bits fault: the old task's image is what it would be anyway.
    save_task(cpu, reason, next_rip);
    if (!nests && !is_null(cpu.tr.selector)) {
        if (const std::optional<Descriptor> old = find_descriptor(cpu, cpu.tr.selector)) {
            set_busy(cpu, *old, false);
        }
    }
    if (nests) {
        const std::uint16_t link = cpu.tr.selector;
        write_system(cpu, table_address(cpu, base), &link, sizeof(link));
    }
    if (reason != TaskSwitch::Iret) {
        set_busy(cpu, task.descriptor, true);
    }
    return task;
}

/// CR3 of the new task; the rest of its state is in place already.
void load_task_cr3(Cpu& cpu, const NewTask& task)
{
    if (task.layout->cr3 == 0U || !Cr0{cpu.cr0}.get(Cr0::PG)) {
        return;
    }
    const std::uint64_t cr3 = task.image.get(task.layout->cr3, 4);
    if (Cr4{cpu.cr4}.get(Cr4::PAE) && !load_pdptes(cpu, cr3)) {
        raise(Vector::GP, 0);
    }
    cpu.cr3 = cr3;
    switch_address_space(cpu, false);
}

void load_registers(Cpu& cpu, const NewTask& task, TaskSwitch reason)
{
    const TssLayout& layout = *task.layout;
    cpu.rip = task.image.get(layout.ip, layout.field);
    std::uint64_t flags = task.image.get(layout.flags, layout.field);
    if (reason == TaskSwitch::Call || reason == TaskSwitch::Gate) {
        flags |= Rflags::NT.mask;
    }
    cpu.set_flags(flags & Rflags::defined);
    for (std::uint32_t i = 0; i < 8; ++i) {
        const std::uint32_t value =
            task.image.get(layout.registers + i * layout.field, layout.field);
        cpu.gpr[i] = value;
    }
    // All selectors are loaded before any descriptor: a fault shows them, with nothing behind.
    const bool is_virtual = cpu.virtual_8086();
    std::array<std::uint16_t, 6> selectors{};
    for (std::uint32_t i = 0; i < layout.segment_count; ++i) {
        selectors[i] = static_cast<std::uint16_t>(
            task.image.get(layout.segments + i * layout.field, layout.field));
    }
    const unsigned level = is_virtual ? 3U : rpl(selectors[Cs]);
    for (std::size_t i = 0; i < selectors.size(); ++i) {
        cpu.seg[i] =
            is_virtual ? virtual_8086_segment(selectors[i]) : null_segment(selectors[i], level);
    }
    cpu.ldt = null_segment(static_cast<std::uint16_t>(task.image.get(layout.ldt, layout.field)));
}

void load_task_ldt(Cpu& cpu, std::uint32_t ext)
{
    const std::uint16_t selector = cpu.ldt.selector;
    if (is_null(selector)) {
        if (is_local(selector)) {
            raise(Vector::TS, selector_error(selector, ext));
        }
        return;
    }
    if (is_local(selector)) {
        raise(Vector::TS, selector_error(selector, ext));
    }
    const Descriptor descriptor = read_descriptor(cpu, selector, Vector::TS, ext);
    if (descriptor.is_segment() || descriptor.type() != system_type::ldt || !descriptor.present()) {
        raise(Vector::TS, selector_error(selector, ext));
    }
    cpu.ldt = make_segment(descriptor, selector);
}

void load_task_code(Cpu& cpu, std::uint32_t ext)
{
    const std::uint16_t selector = cpu.seg[Cs].selector;
    if (is_null(selector)) {
        raise(Vector::TS, selector_error(selector, ext));
    }
    Descriptor code = read_descriptor(cpu, selector, Vector::TS, ext);
    const unsigned level = rpl(selector);
    const bool allowed =
        code.is_code() && (code.is_conforming() ? code.dpl() <= level : code.dpl() == level);
    if (!allowed) {
        raise(Vector::TS, selector_error(selector, ext));
    }
    if (!code.present()) {
        raise(Vector::NP, selector_error(selector, ext));
    }
    cpu.seg[Cs] = load_code_segment(cpu, code, selector, level);
}

void load_task_data(Cpu& cpu, SegmentIndex index, std::uint32_t ext)
{
    const std::uint16_t selector = cpu.seg[index].selector;
    if (is_null(selector)) {
        return;
    }
    Descriptor data = read_descriptor(cpu, selector, Vector::TS, ext);
    const unsigned level = rpl(cpu.seg[Cs].selector);
    const bool is_privileged =
        !data.is_conforming() && (rpl(selector) > data.dpl() || level > data.dpl());
    if (!data.is_readable() || is_privileged) {
        raise(Vector::TS, selector_error(selector, ext));
    }
    if (!data.present()) {
        raise(Vector::NP, selector_error(selector, ext));
    }
    if ((data.type() & segment_type::accessed) == 0U) {
        set_type_bits(cpu, data, segment_type::accessed);
    }
    cpu.seg[index] = make_segment(data, selector);
}

void load_task_segments(Cpu& cpu, std::uint32_t ext)
{
    load_task_ldt(cpu, ext);
    if (cpu.virtual_8086()) {
        return;
    }
    const unsigned level = rpl(cpu.seg[Cs].selector);
    load_task_code(cpu, ext);
    cpu.mode_changed();
    const std::uint16_t stack = cpu.seg[Ss].selector;
    if (is_null(stack)) {
        raise(Vector::TS, selector_error(stack, ext));
    }
    cpu.seg[Ss] = load_stack_segment(cpu, stack, level, Vector::TS, ext);
    for (const SegmentIndex index : {Ds, Es, Fs, Gs}) {
        load_task_data(cpu, index, ext);
    }
}

/// In the new task's name: its segments, its error code, its debug trap.
void complete(Cpu& cpu, const NewTask& task, const Event* event)
{
    load_task_cr3(cpu, task);
    load_task_segments(cpu, task.ext);
    cpu.mode_changed();
    check_target(cpu, cpu.seg[Cs], cpu.rip);
    if (event != nullptr && event->has_error_code) {
        FrameWriter frame{cpu, cpu.seg[Ss], cpu.gpr[Rsp], cpu.cpl, false, task.ext};
        frame.push(event->error_code);
        frame.write(task.layout->field);
        cpu.gpr[Rsp] = frame.pointer();
    }
    if (task.layout->trap != 0U && (task.image.get(task.layout->trap, 2) & 1U) != 0U) {
        cpu.pending_debug |= Dr6::BT.mask;
    }
}

bool is_external(const Event* event) noexcept
{
    return event != nullptr && event->kind != EventKind::SoftwareInterrupt &&
           event->kind != EventKind::SoftwareException;
}

}  // namespace

void switch_task(Cpu& cpu,
                 std::uint16_t tss_selector,
                 TaskSwitch reason,
                 std::uint64_t next_rip,
                 const Event* event)
{
    const std::uint32_t ext = is_external(event) ? 1 : 0;
    const NewTask task = prepare(cpu, tss_selector, reason, next_rip, ext);
    // From here on the new task runs.
    constexpr std::uint64_t local_enables = 0x155;  // L0-L3 and LE.
    cpu.tr = make_segment(task.descriptor, tss_selector);
    cpu.tr.type |= 2U;  // Busy.
    cpu.cr0 |= Cr0::TS.mask;
    cpu.dr7 &= ~local_enables;
    cpu.sti_shadow = false;
    cpu.mov_ss_shadow = false;
    if (event != nullptr && event->kind == EventKind::Nmi) {
        cpu.nmi_blocked = true;
    }
    load_registers(cpu, task, reason);
    cpu.mode_changed();
    try {
        complete(cpu, task, event);
    } catch (const Fault& fault) {
        cpu.mode_changed();
        throw TaskFault{fault};
    } catch (const LeaveForMmio&) {
        // Tables in MMIO: nothing is left that the instruction could be started again from.
        cpu.mmio.finish();
        cpu.mode_changed();
        throw TaskFault{{Vector::TS, true, selector_error(tss_selector, ext), 0}};
    }
}

}  // namespace vmm::x86::soft
