// SPDX-License-Identifier: Apache-2.0

/// @file
/// A vCPU with descriptor tables, task segments and page tables, for tests of the system part of
/// the software engine.

#pragma once

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "soft/mmu_fixture.hpp"
#include "x86/soft/descriptor.hpp"
#include "x86/soft/dispatch.hpp"
#include "x86/soft/system.hpp"

namespace vmm::x86::soft::test {

/// MSRs, CR8, time and hypercalls of a core that has no devices.
class SystemHost final : public VcpuHost {
public:
    bool mmio_read(Gpa, std::span<std::byte>) noexcept override { return true; }
    bool mmio_write(Gpa, std::span<const std::byte>) noexcept override { return true; }
    bool port_read(Port, std::span<std::byte>) noexcept override { return false; }
    bool port_write(Port, std::span<const std::byte>) noexcept override { return false; }
    MsrResult read_msr(std::uint32_t index, std::uint64_t& value) noexcept override
    {
        if (user_msrs.count(index) != 0) {
            return MsrResult::ToUser;
        }
        const auto found = msrs.find(index);
        if (found == msrs.end()) {
            return MsrResult::Fault;
        }
        value = found->second;
        return MsrResult::Done;
    }
    MsrResult write_msr(std::uint32_t index, std::uint64_t value) noexcept override
    {
        if (user_msrs.count(index) != 0) {
            return MsrResult::ToUser;
        }
        const auto found = msrs.find(index);
        if (found == msrs.end()) {
            return MsrResult::Fault;
        }
        found->second = value;
        return MsrResult::Done;
    }
    void write_cr8(std::uint64_t value) noexcept override { cr8 = value; }
    std::uint64_t read_cr8() noexcept override { return cr8; }
    std::uint64_t guest_tsc() noexcept override { return tsc; }
    void hypercall(CpuState& state) noexcept override
    {
        ++hypercalls;
        state.gpr[Rax] = 42;
    }

    std::map<std::uint32_t, std::uint64_t> msrs;
    std::set<std::uint32_t> user_msrs;
    std::uint64_t cr8{};
    std::uint64_t tsc{0x1234'5678'9abc'def0};
    unsigned hypercalls{};
};

/// A CPUID with everything that the system instructions ask for.
inline Cpuid full_cpuid(bool intel)
{
    std::vector<CpuidEntry> entries;
    const auto add = [&](std::uint32_t leaf, std::uint32_t index) -> CpuidEntry& {
        CpuidEntry entry{};
        entry.function = leaf;
        entry.index = index;
        entry.flags = leaf == 7 || leaf == 0xd ? CpuidEntry::significant_index : 0;
        entries.push_back(entry);
        return entries.back();
    };
    CpuidEntry& basic = add(0, 0);
    basic.eax = 0xd;
    if (intel) {
        basic.ebx = 0x756e'6547;
        basic.edx = 0x4965'6e69;
        basic.ecx = 0x6c65'746e;
    } else {
        basic.ebx = 0x6874'7541;
        basic.edx = 0x6974'6e65;
        basic.ecx = 0x444d'4163;
    }
    CpuidEntry& one = add(1, 0);
    one.ecx = 0xffff'ffff & ~(1U << 27U);
    one.edx = 0xffff'ffff;
    CpuidEntry& seven = add(7, 0);
    seven.ebx = 0xffff'ffff;
    seven.ecx = (1U << 2U) | (1U << 22U);
    CpuidEntry& xsave = add(0xd, 0);
    xsave.eax = 7;
    xsave.ebx = 832;
    xsave.ecx = 832;
    add(0xd, 1).eax = 7;
    CpuidEntry& ymm = add(0xd, 2);
    ymm.eax = 256;
    ymm.ebx = 576;
    add(0x8000'0000, 0).eax = 0x8000'0008;
    CpuidEntry& extended = add(0x8000'0001, 0);
    extended.ecx = 0xffff'ffff;
    extended.edx = 0xffff'ffff;
    add(0x8000'0008, 0).eax = 0x3028;
    return Cpuid{entries};
}

// --- Where things lie in guest-physical memory.
inline constexpr std::uint64_t gdt_base = 0x1000;
inline constexpr std::uint64_t idt_base = 0x2000;
inline constexpr std::uint64_t ldt_base = 0x4000;
inline constexpr std::uint64_t tss_base = 0x5000;   ///< TSS of every mode.
inline constexpr std::uint64_t tss2_base = 0x5200;  ///< Another 32-bit one.
inline constexpr std::uint64_t tss16_base = 0x5400;
inline constexpr std::uint64_t tables_base = 0x8000;
inline constexpr std::uint64_t stack_top = 0x2'0000;   ///< The current one.
inline constexpr std::uint64_t stack0_top = 0x3'0000;  ///< Of level 0 in the TSS.
inline constexpr std::uint64_t stack1_top = 0x3'8000;  ///< Of level 1.
inline constexpr std::uint64_t ist1_top = 0x4'0008;    ///< Not aligned.
inline constexpr std::uint64_t code_rip = 0x1'0000;

// --- Selectors.
inline constexpr std::uint16_t code0 = 0x08;
inline constexpr std::uint16_t data0 = 0x10;
inline constexpr std::uint16_t code3 = 0x18 | 3;
inline constexpr std::uint16_t data3 = 0x20 | 3;
inline constexpr std::uint16_t long0 = 0x28;
inline constexpr std::uint16_t long3 = 0x30 | 3;
inline constexpr std::uint16_t code1 = 0x38 | 1;
inline constexpr std::uint16_t data1 = 0x40 | 1;
inline constexpr std::uint16_t conforming0 = 0x48;
inline constexpr std::uint16_t read_only0 = 0x50;
inline constexpr std::uint16_t execute_only0 = 0x58;
inline constexpr std::uint16_t code16_0 = 0x60;
inline constexpr std::uint16_t data16_0 = 0x68;
inline constexpr std::uint16_t absent_data0 = 0x70;
inline constexpr std::uint16_t absent_code0 = 0x78;
inline constexpr std::uint16_t tss = 0x80;
inline constexpr std::uint16_t tss2 = 0x88;
inline constexpr std::uint16_t tss16 = 0x90;
inline constexpr std::uint16_t ldt = 0x98;
inline constexpr std::uint16_t gate = 0xa0;    ///< For the test to fill.
inline constexpr std::uint16_t tss64 = 0xb0;   ///< 16 bytes.
inline constexpr std::uint16_t gate64 = 0xc0;  ///< 16 bytes, for the test to fill.
inline constexpr std::uint16_t expand_down0 = 0xd0;
inline constexpr std::uint16_t both_sizes0 = 0xd8;  ///< L and D.
inline constexpr std::uint16_t data16_3 = 0xe0 | 3;
inline constexpr std::uint16_t small_code0 = 0xe8;  ///< Limit 0xfff.
inline constexpr std::uint16_t spare = 0xf0;        ///< For the test to fill.
inline constexpr std::uint16_t beyond = 0x200;      ///< Behind the GDT's end.
inline constexpr std::uint16_t gdt_limit = 0x1ff;

enum : unsigned { flag_l = 2, flag_db = 4, flag_g = 8 };

/// A descriptor; `flags` are G, D/B and L.
inline std::uint64_t descriptor(std::uint64_t base,
                                std::uint32_t limit,
                                unsigned access,
                                unsigned flags)
{
    return (limit & 0xffffU) | ((base & 0xff'ffffU) << 16U) | (std::uint64_t{access} << 40U) |
           ((std::uint64_t{limit} & 0xf'0000U) << 32U) | (std::uint64_t{flags} << 52U) |
           ((base & 0xff00'0000U) << 32U);
}

/// A gate of 8 bytes; `access` is P, DPL and type.
inline std::uint64_t gate_descriptor(std::uint16_t selector,
                                     std::uint64_t offset,
                                     unsigned access,
                                     unsigned count = 0)
{
    return (offset & 0xffffU) | (std::uint64_t{selector} << 16U) | (std::uint64_t{count} << 32U) |
           (std::uint64_t{access} << 40U) | ((offset & 0xffff'0000U) << 32U);
}

/// The registers that a refused instruction leaves alone.
struct Snapshot {
    explicit Snapshot(const Cpu& cpu)
        : gpr(cpu.gpr),
          rip(cpu.rip),
          flags(cpu.flags()),
          seg(cpu.seg),
          ldt(cpu.ldt),
          tr(cpu.tr),
          control{cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer, cpu.dr6, cpu.dr7, cpu.xcr0},
          cpl(cpu.cpl),
          code_size(cpu.code_size)
    {
    }
    friend bool operator==(const Snapshot&, const Snapshot&) = default;

    decltype(Cpu::gpr) gpr;
    std::uint64_t rip;
    std::uint64_t flags;
    decltype(Cpu::seg) seg;
    Segment ldt;
    Segment tr;
    std::array<std::uint64_t, 8> control;
    std::uint8_t cpl;
    CodeSize code_size;
};

struct SystemMachine {
    explicit SystemMachine(bool intel = true)
        : memory(512),
          vm(memory, translation_mode().value()),
          owner(std::make_unique<Cpu>(vm, host)),
          cpu(*owner)
    {
        cpu.cpuid = full_cpuid(intel);
        fill_tables();
        vm.enter_guest(cpu);
        cpu.gdt = {gdt_base, gdt_limit, {}};
    }

    void set_descriptor(std::uint16_t selector, std::uint64_t value)
    {
        memory.put<std::uint64_t>(gdt_base + (selector & 0xfff8U), value);
    }
    [[nodiscard]] std::uint64_t get_descriptor(std::uint16_t selector) const
    {
        return memory.get<std::uint64_t>(gdt_base + (selector & 0xfff8U));
    }
    void set_gate(unsigned vector, std::uint64_t value)
    {
        memory.put<std::uint64_t>(idt_base + vector * 8U, value);
    }
    void set_gate64(unsigned vector,
                    std::uint16_t selector,
                    std::uint64_t offset,
                    unsigned access,
                    unsigned ist = 0)
    {
        memory.put<std::uint64_t>(idt_base + vector * 16U,
                                  gate_descriptor(selector, offset, access, ist));
        memory.put<std::uint64_t>(idt_base + vector * 16U + 8U, offset >> 32U);
    }

    void fill_tables()
    {
        const unsigned flat = flag_g | flag_db;
        set_descriptor(code0, descriptor(0, 0xf'ffff, 0x9b, flat));
        set_descriptor(data0, descriptor(0, 0xf'ffff, 0x93, flat));
        set_descriptor(code3, descriptor(0, 0xf'ffff, 0xfb, flat));
        set_descriptor(data3, descriptor(0, 0xf'ffff, 0xf3, flat));
        set_descriptor(long0, descriptor(0, 0xf'ffff, 0x9b, flag_g | flag_l));
        set_descriptor(long3, descriptor(0, 0xf'ffff, 0xfb, flag_g | flag_l));
        set_descriptor(code1, descriptor(0, 0xf'ffff, 0xbb, flat));
        set_descriptor(data1, descriptor(0, 0xf'ffff, 0xb3, flat));
        set_descriptor(conforming0, descriptor(0, 0xf'ffff, 0x9f, flat));
        set_descriptor(read_only0, descriptor(0, 0xf'ffff, 0x91, flat));
        set_descriptor(execute_only0, descriptor(0, 0xf'ffff, 0x99, flat));
        set_descriptor(code16_0, descriptor(0x1'0000, 0xffff, 0x9b, 0));
        set_descriptor(data16_0, descriptor(0x1'0000, 0xffff, 0x93, 0));
        set_descriptor(absent_data0, descriptor(0, 0xf'ffff, 0x13, flat));
        set_descriptor(absent_code0, descriptor(0, 0xf'ffff, 0x1b, flat));
        set_descriptor(tss, descriptor(tss_base, 0x1ff, 0x89, 0));
        set_descriptor(tss2, descriptor(tss2_base, 0x67, 0x89, 0));
        set_descriptor(tss16, descriptor(tss16_base, 0x2b, 0x81, 0));
        set_descriptor(ldt, descriptor(ldt_base, 0xff, 0x82, 0));
        set_descriptor(tss64, descriptor(tss_base, 0x1ff, 0x89, 0));
        set_descriptor(expand_down0, descriptor(0x1'0000, 0x0fff, 0x97, flag_db));
        set_descriptor(both_sizes0, descriptor(0, 0xf'ffff, 0x9b, flag_g | flag_db | flag_l));
        set_descriptor(data16_3, descriptor(0x1'0000, 0xffff, 0xf3, 0));
        set_descriptor(small_code0, descriptor(0, 0xfff, 0x9b, flag_db));
        // One linear address for each: the first 2 MiB, user, in 32-bit and in 4-level paging.
        memory.put<std::uint64_t>(tables_base, (tables_base + 0x1000) | 7U);
        memory.put<std::uint64_t>(tables_base + 0x1000, (tables_base + 0x2000) | 7U);
        memory.put<std::uint64_t>(tables_base + 0x2000, 0x87);
        memory.put<std::uint64_t>(tables_base + 0x3000, 0x87);
    }

    Segment segment(std::uint16_t selector)
    {
        Descriptor value{};
        value.low = get_descriptor(selector);
        return make_segment(value, selector);
    }

    void set_common(unsigned level)
    {
        cpu.idt = {idt_base, 0x7ff, {}};
        cpu.gpr[Rsp] = stack_top;
        cpu.rip = code_rip;
        cpu.set_flags(2);
        const std::uint16_t data = level == 0 ? data0 : data3;
        for (const SegmentIndex index : {Es, Ss, Ds, Fs, Gs}) {
            cpu.seg[index] = segment(data);
        }
        if (level == 1) {
            for (const SegmentIndex index : {Es, Ss, Ds, Fs, Gs}) {
                cpu.seg[index] = segment(data1);
            }
        }
        cpu.ldt = segment(ldt);
    }

    void set_protected(unsigned level)
    {
        cpu.cr0 = mask_of(Cr0::PE, Cr0::ET);
        cpu.cr4 = 0;
        cpu.efer = 0;
        set_common(level);
        constexpr std::array<std::uint16_t, 4> codes{code0, code1, code1, code3};
        cpu.seg[Cs] = segment(codes[level]);
        set_descriptor(tss, descriptor(tss_base, 0x1ff, 0x8b, 0));
        cpu.tr = segment(tss);
        memory.put<std::uint32_t>(tss_base + 4, stack0_top);
        memory.put<std::uint16_t>(tss_base + 8, data0);
        memory.put<std::uint32_t>(tss_base + 12, stack1_top);
        memory.put<std::uint16_t>(tss_base + 16, data1);
        cpu.state_changed();
    }

    void set_long(unsigned level, bool compatible = false)
    {
        cpu.cr0 = mask_of(Cr0::PE, Cr0::ET, Cr0::PG, Cr0::WP);
        cpu.cr4 = Cr4::PAE.mask;
        cpu.efer = mask_of(Efer::LME, Efer::LMA, Efer::SCE, Efer::NXE);
        cpu.cr3 = tables_base;
        set_common(level);
        cpu.idt.limit = 0xfff;
        if (compatible) {
            cpu.seg[Cs] = segment(level == 0 ? code0 : code3);
        } else {
            cpu.seg[Cs] = segment(level == 0 ? long0 : long3);
        }
        cpu.tr = segment(tss64);
        cpu.tr.type = system_type::tss_busy;
        memory.put<std::uint64_t>(tss_base + 4, stack0_top);
        memory.put<std::uint64_t>(tss_base + 0x24, ist1_top);
        cpu.state_changed();
    }

    void set_real()
    {
        cpu.cr0 = Cr0::ET.mask;
        cpu.cr4 = 0;
        cpu.efer = 0;
        for (Segment& each : cpu.seg) {
            each = virtual_8086_segment(0);
            each.dpl = 0;
        }
        cpu.seg[Cs] = real_mode_code(cpu.seg[Cs], 0x1000);
        cpu.idt = {0, 0x3ff, {}};
        cpu.gpr[Rsp] = 0x8000;
        cpu.rip = 0x100;
        cpu.set_flags(2);
        cpu.state_changed();
    }

    void set_virtual_8086(unsigned iopl)
    {
        set_protected(3);
        for (Segment& each : cpu.seg) {
            each = virtual_8086_segment(0x1000);
        }
        cpu.gpr[Rsp] = 0x8000;
        cpu.rip = 0x100;
        cpu.set_flags(Rflags::VM.mask | 2U | (std::uint64_t{iopl} << 12U));
        cpu.state_changed();
    }

    template <typename T>
    [[nodiscard]] T at(std::uint64_t address) const
    {
        return memory.get<T>(address);
    }

    FakeMemory memory;
    SystemHost host;
    SoftVm vm;
    std::unique_ptr<Cpu> owner;
    Cpu& cpu;
};

/// What is expected of an instruction: no fault, or this one.
struct Outcome {
    std::optional<Vector> vector{};
    std::uint32_t error{};

    friend bool operator==(const Outcome&, const Outcome&) = default;
};
inline void PrintTo(const Outcome& outcome, std::ostream* stream)
{
    if (outcome.vector) {
        *stream << "#" << unsigned{static_cast<std::uint8_t>(*outcome.vector)} << "("
                << outcome.error << ")";
    } else {
        *stream << "no fault";
    }
}

inline constexpr Outcome fine{};
inline Outcome fault(Vector vector, std::uint32_t error = 0)
{
    return {vector, error};
}

/// Runs `action`; a fault must leave all registers as they were.
template <typename Action>
Outcome outcome_of(Cpu& cpu, const Action& action)
{
    const Snapshot before{cpu};
    try {
        action();
    } catch (const Fault& raised) {
        EXPECT_EQ(Snapshot{cpu}, before) << "a fault has changed registers";
        return {raised.vector, raised.error_code};
    }
    return fine;
}

}  // namespace vmm::x86::soft::test
