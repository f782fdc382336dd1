// SPDX-License-Identifier: Apache-2.0

/// @file
/// SYSCALL, SYSRET, SYSENTER and SYSEXIT.  SDM Vol. 2B and APM Vol. 3 under these names.
///
/// The vendors differ: Intel has SYSCALL and SYSRET in 64-bit mode only, AMD has SYSENTER and
/// SYSEXIT outside long mode only and does not look at RCX in SYSRET.

#include "x86/soft/descriptor.hpp"
#include "x86/soft/system.hpp"

namespace vmm::x86::soft {

namespace {

enum class CodeKind : std::uint8_t { Legacy, Long };

/// What these instructions put into CS and SS without reading a descriptor: flat, accessed.
Segment flat_code(std::uint64_t selector, unsigned level, CodeKind kind) noexcept
{
    Segment code{};
    code.limit = 0xffff'ffff;
    code.selector = static_cast<std::uint16_t>((selector & 0xfffcU) | level);
    code.type = 11;
    code.present = 1;
    code.dpl = static_cast<std::uint8_t>(level);
    code.db = kind == CodeKind::Legacy ? 1 : 0;
    code.s = 1;
    code.l = kind == CodeKind::Long ? 1 : 0;
    code.g = 1;
    return code;
}

Segment flat_stack(std::uint64_t selector, unsigned level) noexcept
{
    Segment stack = flat_code(selector, level, CodeKind::Legacy);
    stack.type = 3;
    return stack;
}

bool syscall_enabled(const Cpu& cpu) noexcept
{
    if (!Efer{cpu.efer}.get(Efer::SCE) || !cpu.protected_mode() || cpu.virtual_8086()) {
        return false;
    }
    return cpu.code_64() || !cpu.cpuid.is_intel();
}

}  // namespace

void syscall(Cpu& cpu, std::uint64_t next_rip)
{
    if (!syscall_enabled(cpu)) {
        raise(Vector::UD);
    }
    const std::uint64_t selector = (cpu.star >> 32U) & 0xffffU;
    const std::uint64_t flags = cpu.flags() & ~Rflags::RF.mask;
    if (cpu.long_mode()) {
        cpu.gpr[Rcx] = next_rip;
        cpu.gpr[R11] = flags;
        cpu.rip = cpu.code_64() ? cpu.lstar : cpu.cstar;
        cpu.set_flags(flags & ~cpu.fmask);
        cpu.seg[Cs] = flat_code(selector, 0, CodeKind::Long);
    } else {
        cpu.gpr[Rcx] = next_rip & 0xffff'ffffU;
        cpu.rip = cpu.star & 0xffff'ffffU;
        cpu.set_flags(flags & ~mask_of(Rflags::VM, Rflags::IF));
        cpu.seg[Cs] = flat_code(selector, 0, CodeKind::Legacy);
    }
    cpu.seg[Ss] = flat_stack(selector + 8U, 0);
    privilege_changed(cpu);
}

void sysret(Cpu& cpu, unsigned operand_size)
{
    if (!syscall_enabled(cpu)) {
        raise(Vector::UD);
    }
    if (cpu.cpl != 0U) {
        raise(Vector::GP, 0);
    }
    const std::uint64_t selector = (cpu.star >> 48U) & 0xffffU;
    const bool to_64 = operand_size == 8U;
    // Intel's fault is the system's, on the user's stack pointer; AMD's is the user's first fetch.
    if (to_64 && cpu.cpuid.is_intel() && !is_canonical48(cpu.gpr[Rcx])) {
        raise(Vector::GP, 0);
    }
    cpu.rip = to_64 ? cpu.gpr[Rcx] : cpu.gpr[Rcx] & 0xffff'ffffU;
    if (cpu.long_mode()) {
        constexpr std::uint64_t restored = Rflags::defined & ~mask_of(Rflags::RF, Rflags::VM);
        cpu.set_flags(cpu.gpr[R11] & restored);
    } else {
        cpu.set_flags(cpu.flags() | Rflags::IF.mask);
    }
    cpu.seg[Cs] =
        flat_code(to_64 ? selector + 16U : selector, 3, to_64 ? CodeKind::Long : CodeKind::Legacy);
    cpu.seg[Ss] = flat_stack(selector + 8U, 3);
    privilege_changed(cpu);
}

void sysenter(Cpu& cpu)
{
    if (cpu.long_mode() && !cpu.cpuid.is_intel()) {
        raise(Vector::UD);
    }
    if (!cpu.protected_mode() || (cpu.sysenter_cs & 0xfffcU) == 0U) {
        raise(Vector::GP, 0);
    }
    const bool is_long = cpu.long_mode();
    cpu.set_flags(cpu.flags() & ~mask_of(Rflags::VM, Rflags::IF, Rflags::RF));
    cpu.seg[Cs] = flat_code(cpu.sysenter_cs, 0, is_long ? CodeKind::Long : CodeKind::Legacy);
    cpu.seg[Ss] = flat_stack((cpu.sysenter_cs & 0xfffcU) + 8U, 0);
    cpu.gpr[Rsp] = is_long ? cpu.sysenter_esp : cpu.sysenter_esp & 0xffff'ffffU;
    cpu.rip = is_long ? cpu.sysenter_eip : cpu.sysenter_eip & 0xffff'ffffU;
    privilege_changed(cpu);
}

void sysexit(Cpu& cpu, unsigned operand_size)
{
    if (cpu.protected_mode() && cpu.cpl != 0U) {
        raise(Vector::GP, 0);
    }
    if (cpu.long_mode() && !cpu.cpuid.is_intel()) {
        raise(Vector::UD);
    }
    if (!cpu.protected_mode() || (cpu.sysenter_cs & 0xfffcU) == 0U) {
        raise(Vector::GP, 0);
    }
    const bool to_64 = operand_size == 8U;
    if (to_64 && (!is_canonical48(cpu.gpr[Rcx]) || !is_canonical48(cpu.gpr[Rdx]))) {
        raise(Vector::GP, 0);
    }
    const std::uint64_t mask = to_64 ? ~std::uint64_t{0} : 0xffff'ffffU;
    const std::uint64_t selector = (cpu.sysenter_cs & 0xfffcU) + (to_64 ? 32U : 16U);
    cpu.gpr[Rsp] = cpu.gpr[Rcx] & mask;
    cpu.rip = cpu.gpr[Rdx] & mask;
    cpu.seg[Cs] = flat_code(selector, 3, to_64 ? CodeKind::Long : CodeKind::Legacy);
    cpu.seg[Ss] = flat_stack(selector + 8U, 3);
    privilege_changed(cpu);
}

}  // namespace vmm::x86::soft
