// SPDX-License-Identifier: Apache-2.0

#include "x86/lockstep/compare.hpp"

#include <array>
#include <cstring>

#include <Zydis/Zydis.h>
#include <fmt/format.h>

namespace vmm::x86::lockstep {
namespace {

constexpr std::array gpr_names{"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                               "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
constexpr std::array segment_names{"es", "cs", "ss", "ds", "fs", "gs"};

/// A field of both, and its name.
class Differences {
public:
    template <typename T>
    void field(const std::string& name, T leader, T follower)
    {
        if (leader != follower) {
            text_ +=
                fmt::format("  {:12} {:#x} | {:#x}\n", name, static_cast<std::uint64_t>(leader),
                            static_cast<std::uint64_t>(follower));
        }
    }

    void segment(const std::string& name, const Segment& a, const Segment& b, const CpuState& state)
    {
        field(name + ".selector", a.selector, b.selector);
        const bool a_unusable = a.unusable != 0 || a.present == 0;
        const bool b_unusable = b.unusable != 0 || b.present == 0;
        field(name + ".unusable", a_unusable, b_unusable);
        if (a_unusable || b_unusable) {
            // In 64-bit mode the bases of FS and GS count all the same.
            if (Efer{state.efer}.get(Efer::LMA) && (name == "fs" || name == "gs")) {
                field(name + ".base", a.base, b.base);
            }
            return;
        }
        field(name + ".base", a.base, b.base);
        field(name + ".limit", a.limit, b.limit);
        if (Cr0{state.cr0}.get(Cr0::PE)) {
            field(name + ".type", a.type, b.type);
        }
        field(name + ".dpl", a.dpl, b.dpl);
        field(name + ".s", a.s, b.s);
        field(name + ".db", a.db, b.db);
        field(name + ".l", a.l, b.l);
    }

    void event(const std::optional<Event>& a, const std::optional<Event>& b)
    {
        const auto number = [](const std::optional<Event>& e) {
            return e ? std::uint64_t{e->vector} | std::uint64_t{e->error_code} << 8U : ~0ULL;
        };
        field("event", number(a), number(b));
    }

    [[nodiscard]] std::string take() { return std::move(text_); }

private:
    std::string text_;
};

template <typename T>
T word(std::span<const std::byte> from, std::size_t at) noexcept
{
    T value;
    std::memcpy(&value, from.data() + at, sizeof value);
    return value;
}

void compare_fpu(Differences& out, const CpuState& a, const CpuState& b)
{
    out.field("mxcsr", a.fpu.mxcsr, b.fpu.mxcsr);
    constexpr std::size_t control = 5;  // FCW, FSW, FTW.
    for (std::size_t i = 0; i < control; ++i) {
        out.field(fmt::format("x87[{}]", i), std::to_integer<unsigned>(a.fpu.x87[i]),
                  std::to_integer<unsigned>(b.fpu.x87[i]));
    }
    for (std::size_t i = 0; i < 8; ++i) {
        const std::size_t at = 32 + 16 * i;  // Of ten bytes: the significand, then the rest.
        out.field(fmt::format("st{}", i), word<std::uint64_t>(a.fpu.x87, at),
                  word<std::uint64_t>(b.fpu.x87, at));
        out.field(fmt::format("st{}.exponent", i), word<std::uint16_t>(a.fpu.x87, at + 8),
                  word<std::uint16_t>(b.fpu.x87, at + 8));
    }
    for (std::size_t i = 0; i < 16; ++i) {
        for (std::size_t at = 0; at < a.fpu.ymm[i].size(); at += 8) {
            out.field(fmt::format("ymm{}[{}]", i, at), word<std::uint64_t>(a.fpu.ymm[i], at),
                      word<std::uint64_t>(b.fpu.ymm[i], at));
        }
    }
}

}  // namespace

std::string differences(const CpuState& a, const CpuState& b)
{
    Differences out;
    for (std::size_t i = 0; i < gpr_names.size(); ++i) {
        out.field(gpr_names[i], a.gpr[i], b.gpr[i]);
    }
    out.field("rip", a.rip, b.rip);
    out.field("rflags", a.rflags, b.rflags);
    for (std::size_t i = 0; i < segment_names.size(); ++i) {
        out.segment(segment_names[i], a.seg[i], b.seg[i], a);
    }
    out.segment("ldt", a.ldt, b.ldt, a);
    out.segment("tr", a.tr, b.tr, a);
    out.field("gdt.base", a.gdt.base, b.gdt.base);
    out.field("gdt.limit", a.gdt.limit, b.gdt.limit);
    out.field("idt.base", a.idt.base, b.idt.base);
    out.field("idt.limit", a.idt.limit, b.idt.limit);
    out.field("cr0", a.cr0, b.cr0);
    out.field("cr2", a.cr2, b.cr2);
    out.field("cr3", a.cr3, b.cr3);
    out.field("cr4", a.cr4, b.cr4);
    out.field("efer", a.efer, b.efer);
    out.field("xcr0", a.xcr0, b.xcr0);
    for (std::size_t i = 0; i < a.dr.size(); ++i) {
        out.field(fmt::format("dr{}", i), a.dr[i], b.dr[i]);
    }
    out.field("dr6", a.dr6, b.dr6);
    out.field("dr7", a.dr7, b.dr7);
    out.field("star", a.star, b.star);
    out.field("lstar", a.lstar, b.lstar);
    out.field("cstar", a.cstar, b.cstar);
    out.field("fmask", a.fmask, b.fmask);
    out.field("kernel_gs", a.kernel_gs_base, b.kernel_gs_base);
    out.field("sysenter_cs", a.sysenter_cs, b.sysenter_cs);
    out.field("sysenter_esp", a.sysenter_esp, b.sysenter_esp);
    out.field("sysenter_eip", a.sysenter_eip, b.sysenter_eip);
    out.field("tsc_aux", a.tsc_aux, b.tsc_aux);
    out.field("shadow", a.sti_shadow || a.mov_ss_shadow, b.sti_shadow || b.mov_ss_shadow);
    out.field("nmi_blocked", a.nmi_blocked, b.nmi_blocked);
    out.event(a.inject, b.inject);
    compare_fpu(out, a, b);
    return out.take();
}

std::string describe(const CpuState& s)
{
    std::string out;
    for (std::size_t i = 0; i < gpr_names.size(); ++i) {
        out += fmt::format("  {:3} {:016x}{}", gpr_names[i], s.gpr[i], i % 4 == 3 ? "\n" : "");
    }
    out += fmt::format("  rip {:016x}  rflags {:08x}\n", s.rip, s.rflags);
    const auto segment = [&](const char* name, const Segment& x) {
        out += fmt::format(
            "  {:3} {:04x} base {:x} limit {:x} type {:x} dpl {} p {} s {} db {} l {}{}\n", name,
            x.selector, x.base, x.limit, x.type, x.dpl, x.present, x.s, x.db, x.l,
            x.unusable != 0 ? " unusable" : "");
    };
    for (std::size_t i = 0; i < segment_names.size(); ++i) {
        segment(segment_names[i], s.seg[i]);
    }
    segment("ldt", s.ldt);
    segment("tr", s.tr);
    out += fmt::format("  cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} efer {:x} dr6 {:x} dr7 {:x}\n", s.cr0,
                       s.cr2, s.cr3, s.cr4, s.efer, s.dr6, s.dr7);
    return out;
}

std::string disassemble(const CpuState& state,
                        std::uint64_t rip,
                        std::span<const std::uint8_t> code,
                        unsigned most)
{
    ZydisMachineMode mode = ZYDIS_MACHINE_MODE_LEGACY_16;
    if (Efer{state.efer}.get(Efer::LMA) && state.seg[Cs].l != 0) {
        mode = ZYDIS_MACHINE_MODE_LONG_64;
    } else if (state.seg[Cs].db != 0) {
        mode = ZYDIS_MACHINE_MODE_LEGACY_32;
    }
    std::string out;
    for (unsigned i = 0; i < most && !code.empty(); ++i) {
        ZydisDisassembledInstruction instruction;
        const bool known =
            ZYAN_SUCCESS(ZydisDisassembleIntel(mode, rip, code.data(), code.size(), &instruction));
        const std::size_t length = known ? instruction.info.length : 1;
        out += fmt::format("  {:x}: {:02x}  {}\n", rip, fmt::join(code.first(length), " "),
                           known ? instruction.text : "(no instruction)");
        if (!known) {
            break;
        }
        code = code.subspan(length);
        rip += length;
    }
    return out;
}

}  // namespace vmm::x86::lockstep
