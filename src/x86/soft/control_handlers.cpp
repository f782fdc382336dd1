// SPDX-License-Identifier: Apache-2.0

/// @file
/// Instructions on control, debug and model-specific registers, and on TLBs.

#include "x86/soft/descriptor.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/system_handlers.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

// `Op::extra`: the number of the control or debug register; `Op::operand_size`: 4 or 8.

std::uint64_t register_value(Cpu& cpu, const Op& op) noexcept
{
    const auto value = gpr_at<std::uint64_t>(cpu, op.rm);
    return op.operand_size == 8U ? value : value & 0xffff'ffffU;
}

[[gnu::noinline]] std::uint64_t read_cr8(Cpu& cpu)
{
    const OutOfGuest out{cpu.vm, cpu};
    return cpu.host.read_cr8();
}

[[gnu::noinline]] void write_cr8(Cpu& cpu, std::uint64_t value)
{
    if ((value & ~std::uint64_t{0xf}) != 0U) {
        raise(Vector::GP, 0);
    }
    const OutOfGuest out{cpu.vm, cpu};
    cpu.host.write_cr8(value);
}

const Op* mov_from_cr(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    std::uint64_t value = 0;
    switch (op->extra) {
    case 0: value = cpu.cr0; break;
    case 2: value = cpu.cr2; break;
    case 3: value = cpu.cr3; break;
    case 4: value = cpu.cr4; break;
    default: value = read_cr8(cpu); break;
    }
    write_register(cpu, op->rm, value, op->operand_size);
    return next(cpu, op);
}

const Op* mov_to_cr(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    const std::uint64_t value = register_value(cpu, *op);
    const std::uint64_t rip = cpu.next_rip(*op);
    switch (op->extra) {
    case 0: write_cr0(cpu, value); break;
    case 2: cpu.cr2 = value; break;
    case 3: write_cr3(cpu, value); break;
    case 4: write_cr4(cpu, value); break;
    default: write_cr8(cpu, value); break;
    }
    return leave_to(cpu, rip);
}

/// Checks that MOV from and to a debug register share; the register that DR4 and DR5 stand for.
unsigned debug_register(const Cpu& cpu, const Op& op)
{
    unsigned number = op.extra;
    if (number == 4U || number == 5U) {
        if (Cr4{cpu.cr4}.get(Cr4::DE)) {
            raise(Vector::UD);
        }
        number += 2U;
    }
    require_supervisor(cpu);
    if (Dr7{cpu.breakpoint_control()}.get(Dr7::GD)) {
        throw Fault{Vector::DB, false, 0, Dr6::BD.mask};
    }
    return number;
}

const Op* mov_from_dr(Cpu& cpu, const Op* op)
{
    const unsigned number = debug_register(cpu, *op);
    std::uint64_t value = 0;
    if (number < 4U) {
        value = cpu.dr[number];
    } else {
        value = number == 6U ? cpu.dr6 : cpu.dr7;
    }
    write_register(cpu, op->rm, value, op->operand_size);
    return next(cpu, op);
}

const Op* mov_to_dr(Cpu& cpu, const Op* op)
{
    constexpr std::uint64_t dr6_writable = mask_of(Dr6::B, Dr6::BD, Dr6::BS, Dr6::BT);
    constexpr std::uint64_t dr7_writable = 0xffff'23ff;  // Without RTM (11) and 12, 14, 15.
    const unsigned number = debug_register(cpu, *op);
    const std::uint64_t value = register_value(cpu, *op);
    if (number < 4U) {
        cpu.dr[number] = value;
    } else {
        if ((value >> 32U) != 0U) {
            raise(Vector::GP, 0);
        }
        if (number == 6U) {
            cpu.dr6 = (value & dr6_writable) | Dr6::reset;
        } else {
            cpu.dr7 = (value & dr7_writable) | Dr7::reset;
        }
    }
    cpu.mode_changed();
    return leave(cpu, op);
}

const Op* clts(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    cpu.cr0 &= ~Cr0::TS.mask;
    return leave(cpu, op);
}

/// Leaves for the caller's answer with RIP at the instruction; `complete_msr()` goes on from there.
const Op* leave_for_msr(Cpu& cpu,
                        const Op& op,
                        EngineExit::Reason reason,
                        std::uint32_t index,
                        std::uint64_t value)
{
    cpu.exit = EngineExit{};
    cpu.exit.reason = reason;
    cpu.exit.msr = index;
    cpu.exit.msr_value = value;
    cpu.msr_answer = {};
    cpu.exit.msr_answer = &cpu.msr_answer;
    cpu.exit.instruction_size = op.length;
    cpu.exit_pending = true;
    cpu.rip = cpu.instruction_rip();
    return nullptr;
}

const Op* rdmsr(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    const auto index = static_cast<std::uint32_t>(cpu.gpr[Rcx]);
    std::uint64_t value = 0;
    bool to_user = false;
    read_msr(cpu, index, value, to_user);
    if (to_user) {
        return leave_for_msr(cpu, *op, EngineExit::Reason::MsrRead, index, 0);
    }
    cpu.gpr[Rax] = value & 0xffff'ffffU;
    cpu.gpr[Rdx] = value >> 32U;
    return leave(cpu, op);
}

const Op* wrmsr(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    const auto index = static_cast<std::uint32_t>(cpu.gpr[Rcx]);
    const std::uint64_t value = (cpu.gpr[Rdx] << 32U) | (cpu.gpr[Rax] & 0xffff'ffffU);
    const std::uint64_t rip = cpu.next_rip(*op);
    bool to_user = false;
    write_msr(cpu, index, value, to_user);
    if (to_user) {
        return leave_for_msr(cpu, *op, EngineExit::Reason::MsrWrite, index, value);
    }
    return leave_to(cpu, rip);
}

const Op* invlpg(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    // An address, not an access: no limit, and one that is not canonical names no page.
    std::uint64_t linear = effective_address(cpu, *op);
    if (op->address_kind != AddressKind::Flat64) {
        linear += cpu.seg[op->segment].base;
    }
    if (!cpu.code_64()) {
        linear &= 0xffff'ffffU;
    }
    if (is_canonical48(linear)) {
        flush_tlb_page(cpu, linear);
    }
    return leave(cpu, op);
}

/// SDM Vol. 2A "INVPCID".
[[gnu::noinline]] void do_invpcid(Cpu& cpu, const Op& op)
{
    require_supervisor(cpu);
    const std::uint64_t type =
        cpu.code_64() ? gpr_at<std::uint64_t>(cpu, op.reg) : gpr_at<std::uint32_t>(cpu, op.reg);
    const auto segment = static_cast<SegmentIndex>(op.segment);
    const std::uint64_t address = linear_address(cpu, op, 16, Access::Read);
    const auto first = load<std::uint64_t>(cpu, segment, address);
    const auto linear = load<std::uint64_t>(cpu, segment, address + 8U);
    const bool has_pcids = Cr4{cpu.cr4}.get(Cr4::PCIDE);
    const std::uint64_t pcid = first & 0xfffU;
    if (type > 3U || (first >> 12U) != 0U || (type < 2U && pcid != 0U && !has_pcids) ||
        (type == 0U && !is_canonical48(linear))) {
        raise(Vector::GP, 0);
    }
    switch (type) {
    case 0:
        if (pcid == (has_pcids ? cpu.cr3 & 0xfffU : 0U)) {
            flush_tlb_page(cpu, linear);
        } else {
            forget_address_space(cpu, static_cast<std::uint16_t>(pcid));  // More than is asked for.
        }
        break;
    case 1: forget_address_space(cpu, static_cast<std::uint16_t>(pcid)); break;
    case 2: flush_tlb_all(cpu); break;
    default: flush_tlb_non_global(cpu); break;
    }
}

const Op* invpcid(Cpu& cpu, const Op* op)
{
    do_invpcid(cpu, *op);
    return leave(cpu, op);
}

/// STAC and CLAC.  The privilege stays, so that of all that depends on AC only the TLB changes.
template <bool Set>
const Op* change_ac(Cpu& cpu, const Op* op)
{
    if (cpu.cpl != 0U) {
        raise(Vector::UD);
    }
    cpu.rflags = Set ? cpu.rflags | Rflags::AC.mask : cpu.rflags & ~Rflags::AC.mask;
    const bool lifted = Set && Cr4{cpu.cr4}.get(Cr4::SMAP);
    cpu.tlb = &cpu.tlbs[static_cast<std::size_t>(lifted ? TlbContext::SupervisorUserAllowed
                                                        : TlbContext::Supervisor)];
    return next(cpu, op);
}

const Op* xgetbv(Cpu& cpu, const Op* op)
{
    if (!Cr4{cpu.cr4}.get(Cr4::OSXSAVE)) {
        raise(Vector::UD);
    }
    const auto index = static_cast<std::uint32_t>(cpu.gpr[Rcx]);
    // Sub-register 1 is XINUSE, whose bits may be set for components in their initial state.
    if (index != 0U && (index != 1U || !cpu.cpuid.has(feature::xgetbv1))) {
        raise(Vector::GP, 0);
    }
    cpu.gpr[Rax] = cpu.xcr0 & 0xffff'ffffU;
    cpu.gpr[Rdx] = cpu.xcr0 >> 32U;
    return next(cpu, op);
}

/// SDM Vol. 2D "XSETBV", Vol. 1 "Enabling the XSAVE Feature Set".
bool is_valid_xcr0(const Cpuid& cpuid, std::uint64_t value) noexcept
{
    constexpr std::uint64_t x87 = 1U << 0U;
    constexpr std::uint64_t sse = 1U << 1U;
    constexpr std::uint64_t avx = 1U << 2U;
    constexpr std::uint64_t mpx = 3U << 3U;
    constexpr std::uint64_t avx512 = 7U << 5U;
    if ((value & ~cpuid.supported_xcr0()) != 0U || (value & x87) == 0U) {
        return false;
    }
    if ((value & avx) != 0U && (value & sse) == 0U) {
        return false;
    }
    if ((value & mpx) != 0U && (value & mpx) != mpx) {
        return false;
    }
    return (value & avx512) == 0U || ((value & avx512) == avx512 && (value & avx) != 0U);
}

const Op* xsetbv(Cpu& cpu, const Op* op)
{
    if (!Cr4{cpu.cr4}.get(Cr4::OSXSAVE)) {
        raise(Vector::UD);
    }
    require_supervisor(cpu);
    const std::uint64_t value = (cpu.gpr[Rdx] << 32U) | (cpu.gpr[Rax] & 0xffff'ffffU);
    if (static_cast<std::uint32_t>(cpu.gpr[Rcx]) != 0U || !is_valid_xcr0(cpu.cpuid, value)) {
        raise(Vector::GP, 0);
    }
    cpu.xcr0 = value;
    return leave(cpu, op);
}

// --- FS and GS bases

const Op* swapgs(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    std::swap(cpu.seg[Gs].base, cpu.kernel_gs_base);
    return next(cpu, op);
}

void check_fsgsbase(const Cpu& cpu)
{
    if (!Cr4{cpu.cr4}.get(Cr4::FSGSBASE)) {
        raise(Vector::UD);
    }
}

template <SegmentIndex Index>
const Op* read_base(Cpu& cpu, const Op* op)
{
    check_fsgsbase(cpu);
    write_register(cpu, op->rm, cpu.seg[Index].base, op->operand_size);
    return next(cpu, op);
}

template <SegmentIndex Index>
const Op* write_base(Cpu& cpu, const Op* op)
{
    check_fsgsbase(cpu);
    const std::uint64_t value = register_value(cpu, *op);
    if (!is_canonical48(value)) {
        raise(Vector::GP, 0);
    }
    cpu.seg[Index].base = value;
    return next(cpu, op);
}

// --- Selection

/// MOV to and from control and debug registers: always registers, of the mode's full size.
Handler select_move_control(const Insn& insn, const SelectContext& context, Op& op)
{
    const bool is_debug = (insn.opcode & 1U) != 0U;
    const bool writes = (insn.opcode & 2U) != 0U;
    op.extra = insn.reg;
    op.operand_size = context.code_size == CodeSize::Bits64 ? 8 : 4;
    if (is_debug) {
        if (insn.reg > 7U) {
            return undefined_instruction;
        }
        return writes ? mov_to_dr : mov_from_dr;
    }
    if (insn.reg > 8U || insn.reg == 1U || (insn.reg >= 5U && insn.reg < 8U)) {
        return undefined_instruction;
    }
    return writes ? mov_to_cr : mov_from_cr;
}

Handler select_group15(const Insn& insn, const SelectContext& context, Op& op)
{
    if (!insn.rep || insn.mod != 3U || insn.group > 3U) {
        return nullptr;
    }
    if (context.code_size != CodeSize::Bits64) {
        return undefined_instruction;
    }
    op.operand_size = insn.rex_w ? 8 : 4;
    switch (insn.group) {
    case 0: return read_base<Fs>;
    case 1: return read_base<Gs>;
    case 2: return write_base<Fs>;
    default: return write_base<Gs>;
    }
}

Handler select_group7(const Insn& insn, const SelectContext& context)
{
    if (insn.mod != 3U) {
        return insn.group == 7U ? invlpg : nullptr;
    }
    switch (insn.modrm) {
    case 0xca: return change_ac<false>;
    case 0xcb: return change_ac<true>;
    case 0xd0: return xgetbv;
    case 0xd1: return xsetbv;
    case 0xf8: return context.code_size == CodeSize::Bits64 ? swapgs : undefined_instruction;
    default: return nullptr;
    }
}

}  // namespace

Handler select_control_instruction(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.map == OpcodeMap::Map0F38) {
        const bool is_invpcid = insn.opcode == 0x82 && insn.operand_size_override && insn.mod != 3U;
        return is_invpcid ? invpcid : nullptr;
    }
    if (insn.map != OpcodeMap::Map0F) {
        return nullptr;
    }
    switch (insn.opcode) {
    case 0x01: return select_group7(insn, context);
    case 0x06: return clts;
    case 0x20:
    case 0x21:
    case 0x22:
    case 0x23: return select_move_control(insn, context, op);
    case 0x30: return wrmsr;
    case 0x32: return rdmsr;
    case 0xae: return select_group15(insn, context, op);
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
