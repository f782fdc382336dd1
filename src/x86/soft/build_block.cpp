// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/build_block.hpp"

#include <limits>

#include "x86/soft/block.hpp"
#include "x86/soft/dispatch.hpp"
#include "x86/soft/fault.hpp"
#include "x86/soft/integer.hpp"

namespace vmm::x86::soft {

bool is_offered(const Cpu& cpu, const Insn& insn) noexcept
{
    const Cpuid& cpuid = cpu.cpuid;
    // Extensions that exist in both encodings need AVX for the VEX one; BMI does not.
    const bool vector = insn.isa != Isa::Bmi1 && insn.isa != Isa::Bmi2;
    if (insn.vex && vector && !cpuid.has(feature::avx)) {
        return false;
    }
    // PREFETCH of a register: a NOP by Intel's manual, none by AMD's.
    if (insn.map == OpcodeMap::Map0F && insn.opcode == 0x0d && !insn.has_memory &&
        !cpuid.is_intel()) {
        return false;
    }
    switch (insn.isa) {
    case Isa::Base:
    case Isa::X87:  // Without an FPU, CR0.EM decides.
        return true;
    case Isa::Cmov: return cpuid.has(feature::cmov);
    case Isa::Cx8: return cpuid.has(feature::cx8);
    case Isa::Cx16: return cpuid.has(feature::cx16);
    case Isa::Mmx: return cpuid.has(feature::mmx);
    case Isa::Sse: return cpuid.has(feature::sse);
    case Isa::Sse2: return cpuid.has(feature::sse2);
    case Isa::Sse3: return cpuid.has(feature::sse3);
    case Isa::Ssse3: return cpuid.has(feature::ssse3);
    case Isa::Sse41: return cpuid.has(feature::sse4_1);
    case Isa::Sse42: return cpuid.has(feature::sse4_2);
    case Isa::Popcnt: return cpuid.has(feature::popcnt);
    case Isa::Lzcnt: return cpuid.has(feature::lzcnt);
    case Isa::Bmi1: return cpuid.has(feature::bmi1);
    case Isa::Bmi2: return cpuid.has(feature::bmi2);
    case Isa::Adx: return cpuid.has(feature::adx);
    case Isa::Movbe: return cpuid.has(feature::movbe);
    case Isa::Aes: return cpuid.has(feature::aes);
    case Isa::Pclmul: return cpuid.has(feature::pclmulqdq);
    case Isa::Sha: return cpuid.has(feature::sha);
    case Isa::Avx: return cpuid.has(feature::avx);
    case Isa::Avx2: return cpuid.has(feature::avx2);
    case Isa::Fma: return cpuid.has(feature::fma);
    case Isa::F16c: return cpuid.has(feature::f16c);
    case Isa::Gfni: return cpuid.has(feature::gfni);
    case Isa::Vaes: return cpuid.has(feature::vaes);
    case Isa::Vpclmul: return cpuid.has(feature::vpclmulqdq);
    case Isa::Fxsr: return cpuid.has(feature::fxsr);
    case Isa::Xsave: return cpuid.has(feature::xsave);
    case Isa::Xsaveopt: return cpuid.has(feature::xsaveopt);
    case Isa::Xsavec: return cpuid.has(feature::xsavec);
    case Isa::Xsaves: return cpuid.has(feature::xsaves);
    case Isa::Rdtscp: return cpuid.has(feature::rdtscp);
    case Isa::Rdpid: return cpuid.has(feature::rdpid);
    case Isa::Rdrand: return cpuid.has(feature::rdrand);
    case Isa::Rdseed: return cpuid.has(feature::rdseed);
    case Isa::Fsgsbase: return cpuid.has(feature::fsgsbase);
    case Isa::Invpcid: return cpuid.has(feature::invpcid);
    case Isa::Smap: return cpuid.has(feature::smap);
    case Isa::Syscall: return cpuid.has(feature::syscall);
    case Isa::Sysenter: return cpuid.has(feature::sep);
    case Isa::LahfLm: return cpuid.has(feature::lahf_lm);
    case Isa::Clflush: return cpuid.has(feature::clflush);
    case Isa::Clflushopt: return cpuid.has(feature::clflushopt);
    case Isa::Clwb: return cpuid.has(feature::clwb);
    case Isa::Monitor:  // What is not offered is KVM's quirk: the handlers ask.
    case Isa::Cldemote:
    case Isa::Prefetchw: return true;
    case Isa::None: break;
    }
    return false;
}

void fall_back(const Cpu& cpu, Insn& insn) noexcept
{
    const bool counts = insn.map == OpcodeMap::Map0F && !insn.vex && insn.rep &&
                        (insn.opcode == 0xbc || insn.opcode == 0xbd);
    if (counts && !is_offered(cpu, insn)) {
        insn.isa = Isa::Base;
        insn.rep = false;
        insn.pp = 0;
    }
}

namespace {

void set_memory_operand(const Insn& insn, const SelectContext& context, Op& op) noexcept
{
    op.segment = insn.segment;
    if (context.code_size != CodeSize::Bits64) {
        const bool is_data = insn.segment == Ds || insn.segment == Es || insn.segment == Ss;
        op.address_kind = context.flat && is_data ? AddressKind::Flat32 : AddressKind::Segmented;
    } else if (insn.segment == Fs || insn.segment == Gs) {
        op.address_kind = AddressKind::Based64;
    }
    op.base = zero_slot;
    op.index = zero_slot;
    if (insn.base < 16) {
        op.base = static_cast<std::uint8_t>(insn.base * 8U);
    }
    if (insn.index < 16) {
        op.index = static_cast<std::uint8_t>(insn.index * 8U);
    }
    op.scale = insn.scale;
    std::int64_t displacement = insn.displacement;
    if (insn.base == Insn::rip) {
        op.base = block_rip_slot;
        displacement += op.next_offset();
        if (displacement > std::numeric_limits<std::int32_t>::max()) {
            // The sum has 33 bits: what is lost comes from a register that holds 2 to the 32.
            op.index = carry_slot;
        }
    }
    op.displacement = static_cast<std::int32_t>(static_cast<std::uint32_t>(displacement));
    op.memory_size =
        insn.memory_size <= 255 ? static_cast<std::uint8_t>(insn.memory_size) : std::uint8_t{0};
}

}  // namespace

void make_op(const Cpu& cpu, Insn& insn, const SelectContext& context, Op& op)
{
    fall_back(cpu, insn);
    op.immediate = insn.immediate;
    op.length = insn.length;
    op.reg = static_cast<std::uint8_t>(insn.reg * 8U);
    op.rm = static_cast<std::uint8_t>(insn.rm * 8U);
    op.operand_size = insn.operand_size;
    op.address_size = insn.address_size;
    op.vvvv = insn.vvvv;
    op.rep = insn.rep;
    op.repne = insn.repne;
    op.lock = insn.lock;
    set_memory_operand(insn, context, op);
    if (!is_offered(cpu, insn)) {
        op.handler = raise_ud;
        return;
    }
    op.handler = select_integer(insn, context, op);
    if (op.handler == nullptr) {
        op.handler = select_system(insn, context, op);
    }
    if (op.handler == nullptr) {
        op.handler = select_native(insn, context, op);
    }
    if (op.handler == nullptr) {
        op.handler = leave_unknown;
    }
}

bool is_direct_branch(const Insn& insn) noexcept
{
    if (insn.map == OpcodeMap::Map0F) {
        return insn.opcode >= 0x80 && insn.opcode <= 0x8f && !insn.vex;
    }
    return insn.map == OpcodeMap::Primary &&
           ((insn.opcode >= 0x70 && insn.opcode <= 0x7f) ||
            (insn.opcode >= 0xe0 && insn.opcode <= 0xe3) || insn.opcode == 0xe8 ||
            insn.opcode == 0xe9 || insn.opcode == 0xeb);
}

bool ends_block(const Insn& insn) noexcept
{
    const unsigned opcode = insn.opcode;
    if (insn.vex) {
        return false;
    }
    if (insn.map == OpcodeMap::Primary) {
        switch (opcode) {
        case 0x07:  // POP ES, SS, DS
        case 0x17:
        case 0x1f:
        case 0x8e:  // MOV to a segment register
        case 0x9a:  // far CALL
        case 0x9d:  // POPF
        case 0xc2:  // RET
        case 0xc3:
        case 0xc4:  // LES, LDS
        case 0xc5:
        case 0xca:  // far RET
        case 0xcb:
        case 0xcc:  // INT3, INT n, INTO, IRET
        case 0xcd:
        case 0xce:
        case 0xcf:
        case 0xe8:  // CALL, JMP
        case 0xe9:
        case 0xea:
        case 0xeb:
        case 0xf1:  // INT1
        case 0xf4:  // HLT
        case 0xfb:  // STI
            return true;
        case 0xff: return insn.group >= 2 && insn.group <= 5;
        default:
            // INS, OUTS, IN, OUT.
            return (opcode >= 0x6c && opcode <= 0x6f) || (opcode >= 0xe4 && opcode <= 0xe7) ||
                   (opcode >= 0xec && opcode <= 0xef);
        }
    }
    if (insn.map != OpcodeMap::Map0F) {
        return insn.map == OpcodeMap::Map0F38 && insn.opcode == 0x82;  // INVPCID
    }
    switch (opcode) {
    case 0x00:
    case 0x05:  // SYSCALL … SYSRET
    case 0x06:
    case 0x07:
    case 0x08:
    case 0x09:
    case 0x0b:  // UD2
    case 0x22:  // MOV to a control or debug register
    case 0x23:
    case 0x30:  // WRMSR, RDMSR
    case 0x32:
    case 0x34:  // SYSENTER, SYSEXIT
    case 0x35:
    case 0xa1:  // POP FS, GS
    case 0xa9:
    case 0xb2:  // LSS, LFS, LGS
    case 0xb4:
    case 0xb5: return true;
    case 0x01:
        // All but SGDT, SIDT, SMSW, RDTSCP, XGETBV and SWAPGS.
        return !(insn.mod != 3 && (insn.group <= 1 || insn.group == 4)) && insn.modrm != 0xf8 &&
               insn.modrm != 0xf9 && insn.modrm != 0xd0;
    default: return false;
    }
}

const Op* stale_op(Cpu& cpu, const Op* op)
{
    return leave_to(cpu, cpu.ip_mask(cpu.block_rip() + op->offset));
}

const Op* go_on_64(Cpu& cpu, const Op* op)
{
    return branch(cpu, op, cpu.block_rip() + op->immediate);
}

const Op* go_on(Cpu& cpu, const Op* op)
{
    return branch(cpu, op, (cpu.block_rip() + op->immediate) & 0xffff'ffffU);
}

const Op* go_on_in_new_mode(Cpu& cpu)
{
    if (const Op* const first = cpu.blocks->find_known(cpu)) {
        return enter_block(cpu, first, cpu.rip);
    }
    return nullptr;
}

const Op* raise_ud(Cpu& /*cpu*/, const Op* /*op*/)
{
    raise(Vector::UD);
}

const Op* raise_gp(Cpu& /*cpu*/, const Op* /*op*/)
{
    raise(Vector::GP, 0);
}

const Op* leave_unknown(Cpu& cpu, const Op* op)
{
    cpu.exit = EngineExit{};
    cpu.exit.reason = EngineExit::Reason::InternalError;
    cpu.exit_pending = true;
    return stale_op(cpu, op);
}

[[gnu::noinline]] const Op* branch_unlinked(Cpu& cpu, const Op* op, std::uint64_t rip)
{
    if (op->aux != nullptr) {
        return leave_to(cpu, rip);  // The run loop is wanted.
    }
    if (op->extra == linkable) {
        cpu.chain.unlinked = op;
        return leave_to(cpu, rip);
    }
    check_branch_target(cpu, rip);
    return follow(cpu, rip);
}

}  // namespace vmm::x86::soft
