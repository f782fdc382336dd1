// SPDX-License-Identifier: Apache-2.0

#include "vmm/boot/entry_state.hpp"

#include "x86/boot/bytes.hpp"

namespace vmm::boot {
namespace {

using x86::Segment;

// SDM Vol. 3A "Control Registers" and Vol. 4 "Architectural MSRs" (IA32_EFER, IA32_APIC_BASE).
constexpr std::uint64_t cr0_pe = 1;
constexpr std::uint64_t cr0_et = 1U << 4U;
constexpr std::uint64_t cr0_ne = 1U << 5U;
constexpr std::uint64_t cr0_pg = 1U << 31U;
constexpr std::uint64_t cr0_reset = 0x6000'0010;
constexpr std::uint64_t cr4_pae = 1U << 5U;
constexpr std::uint64_t efer_lme = 1U << 8U;
constexpr std::uint64_t efer_lma = 1U << 10U;
constexpr std::uint64_t apic_base_reset = 0xfee0'0900;  // Enabled, bootstrap processor.
constexpr std::uint64_t rflags_fixed = 2;

constexpr std::uint8_t type_data = 3;   // Read/write, accessed.
constexpr std::uint8_t type_code = 11;  // Execute/read, accessed.
constexpr std::uint8_t type_ldt = 2;
constexpr std::uint8_t type_busy_tss = 11;
constexpr std::uint8_t type_busy_tss16 = 3;

Segment real_segment(std::uint16_t selector, std::uint8_t type)
{
    Segment segment;
    segment.base = std::uint64_t{selector} << 4U;
    segment.limit = 0xffff;
    segment.selector = selector;
    segment.type = type;
    segment.present = 1;
    segment.s = 1;
    return segment;
}

Segment flat_segment(std::uint16_t selector, std::uint8_t type)
{
    Segment segment;
    segment.limit = 0xffff'ffff;
    segment.selector = selector;
    segment.type = type;
    segment.present = 1;
    segment.db = 1;
    segment.s = 1;
    segment.g = 1;
    return segment;
}

Segment system_segment(std::uint8_t type, std::uint32_t limit)
{
    Segment segment;
    segment.limit = limit;
    segment.type = type;
    segment.present = 1;
    return segment;
}

EntryState real_state()
{
    EntryState state;
    state.mode = EntryMode::Real;
    state.regs.rflags = rflags_fixed;
    state.sregs.cr0 = cr0_reset;
    state.sregs.apic_base = apic_base_reset;
    state.sregs.gdt.limit = 0xffff;
    state.sregs.idt.limit = 0xffff;
    state.sregs.ldt = system_segment(type_ldt, 0xffff);
    state.sregs.tr = system_segment(type_busy_tss16, 0xffff);
    return state;
}

void set_data_segments(EntryState& state, const Segment& segment)
{
    state.sregs.ds = segment;
    state.sregs.es = segment;
    state.sregs.fs = segment;
    state.sregs.gs = segment;
    state.sregs.ss = segment;
}

std::uint64_t descriptor(const Segment& segment)
{
    const std::uint64_t limit = segment.g != 0 ? segment.limit >> 12U : segment.limit;
    std::uint64_t value = limit & 0xffffU;
    value |= (segment.base & 0xff'ffffU) << 16U;
    value |= std::uint64_t{segment.type} << 40U;
    value |= std::uint64_t{segment.s} << 44U;
    value |= std::uint64_t{segment.dpl} << 45U;
    value |= std::uint64_t{segment.present} << 47U;
    value |= ((limit >> 16U) & 0xfU) << 48U;
    value |= std::uint64_t{segment.l} << 53U;
    value |= std::uint64_t{segment.db} << 54U;
    value |= std::uint64_t{segment.g} << 55U;
    value |= ((segment.base >> 24U) & 0xffU) << 56U;
    return value;
}

/// The flat state of both protected modes, with its descriptor table in the guest's memory.
Result<EntryState> flat_state(ImageWriter& memory, const Segment& code)
{
    EntryState state;
    state.regs.rflags = rflags_fixed;
    state.regs.rsp = layout::stack_top.value();
    state.sregs.apic_base = apic_base_reset;
    state.sregs.cs = code;
    const auto data = flat_segment(entry_data_selector, type_data);
    set_data_segments(state, data);
    auto task = system_segment(type_busy_tss, 0x67);
    task.selector = entry_task_selector;
    task.base = layout::tss.value();
    state.sregs.tr = task;
    state.sregs.ldt = system_segment(type_ldt, 0);
    state.sregs.ldt.unusable = 1;
    state.sregs.ldt.present = 0;

    ByteTable gdt;
    gdt.append<std::uint64_t>(0);
    gdt.append<std::uint64_t>(0);
    gdt.append(descriptor(code));
    gdt.append(descriptor(data));
    gdt.append(descriptor(task));
    gdt.append<std::uint64_t>(task.base >> 32U);  // In 64-bit mode the descriptor has 16 bytes.
    state.sregs.gdt.base = layout::gdt.value();
    state.sregs.gdt.limit = static_cast<std::uint16_t>(gdt.size() - 1);
    static_assert(layout::tss.value() - layout::gdt.value() >= 48);
    VMM_TRY_VOID(memory.write(layout::gdt, gdt.bytes()));
    VMM_TRY_VOID(memory.zero(layout::tss, 0x68));
    return state;
}

/// The first 4 GiB mapped to themselves, writable, by 2 MiB pages.
Result<void> write_page_tables(ImageWriter& memory)
{
    constexpr std::uint64_t present_writable = 3;
    constexpr std::uint64_t large = 1U << 7U;
    constexpr std::size_t page = 4096;
    constexpr std::size_t directories = 4;
    const auto base = layout::page_tables.value();
    ByteTable tables{(2 + directories) * page};
    tables.put<std::uint64_t>(0, (base + page) | present_writable);
    for (std::size_t i = 0; i < directories; ++i) {
        tables.put<std::uint64_t>(page + i * 8, (base + (2 + i) * page) | present_writable);
    }
    for (std::size_t i = 0; i < directories * 512; ++i) {
        tables.put<std::uint64_t>(2 * page + i * 8,
                                  (std::uint64_t{i} << 21U) | large | present_writable);
    }
    return memory.write(layout::page_tables, tables.bytes());
}

}  // namespace

EntryState enter_real(std::uint16_t code_segment, std::uint16_t ip)
{
    auto state = real_state();
    state.regs.rip = ip;
    state.sregs.cs = real_segment(code_segment, type_code);
    set_data_segments(state, real_segment(code_segment, type_data));
    return state;
}

EntryState enter_reset()
{
    auto state = real_state();
    state.regs.rip = 0xfff0;
    state.sregs.cs = real_segment(0xf000, type_code);
    state.sregs.cs.base = 0xffff'0000;
    set_data_segments(state, real_segment(0, type_data));
    return state;
}

Result<EntryState> enter_protected32(ImageWriter& memory, Gpa entry)
{
    VMM_TRY(auto state, flat_state(memory, flat_segment(entry_code_selector, type_code)));
    state.mode = EntryMode::Protected32Flat;
    state.regs.rip = entry.value();
    state.sregs.cr0 = cr0_pe | cr0_et;
    return state;
}

Result<EntryState> enter_long64(ImageWriter& memory, Gpa entry)
{
    auto code = flat_segment(entry_code_selector, type_code);
    code.db = 0;
    code.l = 1;
    VMM_TRY(auto state, flat_state(memory, code));
    VMM_TRY_VOID(write_page_tables(memory));
    state.mode = EntryMode::Long64;
    state.regs.rip = entry.value();
    state.sregs.cr0 = cr0_pg | cr0_ne | cr0_et | cr0_pe;
    state.sregs.cr3 = layout::page_tables.value();
    state.sregs.cr4 = cr4_pae;
    state.sregs.efer = efer_lme | efer_lma;
    return state;
}

}  // namespace vmm::boot
