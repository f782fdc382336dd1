// SPDX-License-Identifier: Apache-2.0

/// @file
/// CLC STC CMC CLD STD CLI STI LAHF SAHF SALC PUSHF POPF.

#include "x86/soft/fault.hpp"
#include "x86/soft/integer.hpp"
#include "x86/soft/stack.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::uint64_t bit_tf = 1U << 8U;
constexpr std::uint64_t bit_if = 1U << 9U;
constexpr std::uint64_t bit_df = 1U << 10U;
constexpr std::uint64_t bits_iopl = 3U << 12U;
constexpr std::uint64_t bit_nt = 1U << 14U;
constexpr std::uint64_t bit_rf = 1U << 16U;
constexpr std::uint64_t bit_vm = 1U << 17U;
constexpr std::uint64_t bit_ac = 1U << 18U;
constexpr std::uint64_t bit_vif = 1U << 19U;
constexpr std::uint64_t bit_vip = 1U << 20U;
constexpr std::uint64_t bit_id = 1U << 21U;
constexpr std::uint64_t cr4_vme = 1U << 0U;
constexpr std::uint64_t cr4_pvi = 1U << 1U;

unsigned io_privilege(const Cpu& cpu) noexcept
{
    return static_cast<unsigned>(cpu.rflags >> 12U) & 3U;
}

bool is_virtual_8086(const Cpu& cpu) noexcept
{
    return cpu.protected_mode() && cpu.virtual_8086();
}

/// Which flag CLI and STI work on: IF, VIF, or none (#GP).
std::uint64_t interrupt_flag(const Cpu& cpu)
{
    if (!cpu.protected_mode() || cpu.cpl <= io_privilege(cpu)) {
        return bit_if;
    }
    const std::uint64_t extension = is_virtual_8086(cpu) ? cr4_vme : cr4_pvi;
    if (cpu.cpl == 3 && (cpu.cr4 & extension) != 0) {
        return bit_vif;
    }
    raise(Vector::GP, 0);
}

const Op* clear_interrupt(Cpu& cpu, const Op* op)
{
    cpu.rflags &= ~interrupt_flag(cpu);
    return next(cpu, op);
}

const Op* set_interrupt(Cpu& cpu, const Op* op)
{
    const std::uint64_t which = interrupt_flag(cpu);
    if (which == bit_vif && (cpu.rflags & bit_vip) != 0) {
        raise(Vector::GP, 0);
    }
    const bool opens = which == bit_if && (cpu.rflags & bit_if) == 0;
    cpu.rflags |= which;
    if (opens) {
        cpu.sti_shadow = true;
        return leave(cpu, op);
    }
    return next(cpu, op);
}

const Op* clear_carry(Cpu& cpu, const Op* op)
{
    cpu.arithmetic_flags &= static_cast<std::uint16_t>(~flag::cf);
    return next(cpu, op);
}
const Op* set_carry(Cpu& cpu, const Op* op)
{
    cpu.arithmetic_flags |= flag::cf;
    return next(cpu, op);
}
const Op* complement_carry(Cpu& cpu, const Op* op)
{
    cpu.arithmetic_flags ^= flag::cf;
    return next(cpu, op);
}
const Op* clear_direction(Cpu& cpu, const Op* op)
{
    cpu.rflags &= ~bit_df;
    return next(cpu, op);
}
const Op* set_direction(Cpu& cpu, const Op* op)
{
    cpu.rflags |= bit_df;
    return next(cpu, op);
}

const Op* load_ah(Cpu& cpu, const Op* op)
{
    gpr_at<std::uint8_t>(cpu, 1) = static_cast<std::uint8_t>(cpu.arithmetic_flags >> 8U);
    return next(cpu, op);
}
const Op* store_ah(Cpu& cpu, const Op* op)
{
    const unsigned ah = (gpr_at<std::uint8_t>(cpu, 1) & 0xd5U) | 2U;
    cpu.arithmetic_flags =
        static_cast<std::uint16_t>((cpu.arithmetic_flags & flag::of) | (ah << 8U));
    return next(cpu, op);
}
/// SALC: AL = CF ? FFh : 0.
const Op* spread_carry(Cpu& cpu, const Op* op)
{
    gpr_at<std::uint8_t>(cpu, 0) = (cpu.arithmetic_flags & flag::cf) != 0 ? 0xff : 0;
    return next(cpu, op);
}

[[gnu::noinline]] void push_flags(Cpu& cpu, const Op& op)
{
    std::uint64_t value = cpu.flags() & ~(bit_rf | bit_vm);
    if (is_virtual_8086(cpu) && io_privilege(cpu) < 3) {
        if (op.operand_size != 2 || (cpu.cr4 & cr4_vme) == 0) {
            raise(Vector::GP, 0);
        }
        value = (value & ~bit_if) | bits_iopl | ((cpu.rflags & bit_vif) != 0 ? bit_if : 0U);
    }
    push(cpu, op.operand_size, value);
}

/// Which bits POPF may change.  SDM Vol. 2B table "Effect of POPF/POPFD/POPFQ on the EFLAGS
/// Register".
std::uint64_t poppable(const Cpu& cpu, unsigned size)
{
    std::uint64_t mask = Cpu::arithmetic_mask | bit_tf | bit_df | bit_nt;
    if (size != 2) {
        mask |= bit_ac | bit_id;
    }
    if (!cpu.protected_mode() || cpu.cpl == 0) {
        return mask | bit_if | bits_iopl;
    }
    return cpu.cpl <= io_privilege(cpu) ? mask | bit_if : mask;
}

/// POPF in virtual-8086 mode with IOPL < 3: IF is VIF.
void pop_flags_vme(Cpu& cpu, std::uint64_t value)
{
    const bool enables = (value & bit_if) != 0;
    if ((enables && (cpu.rflags & bit_vip) != 0) || (value & bit_tf) != 0) {
        raise(Vector::GP, 0);
    }
    drop(cpu, 2);
    constexpr std::uint64_t mask = Cpu::arithmetic_mask | bit_df | bit_nt;
    const std::uint64_t kept = cpu.flags() & ~(mask | bit_vif | bit_rf);
    cpu.set_flags(kept | (value & mask) | (enables ? bit_vif : 0U));
}

/// True where the run loop must see the new flags.
[[gnu::noinline]] bool pop_flags_any(Cpu& cpu, const Op& op)
{
    const unsigned size = op.operand_size;
    const std::uint64_t value = peek(cpu, size, 0);
    const std::uint64_t before = cpu.rflags;
    if (is_virtual_8086(cpu) && io_privilege(cpu) < 3) {
        if (size != 2 || (cpu.cr4 & cr4_vme) == 0) {
            raise(Vector::GP, 0);
        }
        pop_flags_vme(cpu, value);
    } else {
        const std::uint64_t mask = poppable(cpu, size);
        drop(cpu, size);
        std::uint64_t kept = cpu.flags() & ~(mask | bit_rf);
        if (size != 2 && !is_virtual_8086(cpu) && cpu.cpl == 0) {
            kept &= ~(bit_vif | bit_vip);
        }
        cpu.set_flags(kept | (value & mask));
    }
    const std::uint64_t changes = before ^ cpu.rflags;
    if ((changes & (bit_ac | bit_tf)) != 0) {
        cpu.mode_changed();
    }
    const bool opens = (changes & cpu.rflags & bit_if) != 0;
    return opens || ((changes | cpu.rflags) & bit_tf) != 0 || (changes & bit_ac) != 0;
}

const Op* pop_flags(Cpu& cpu, const Op* op)
{
    if (pop_flags_any(cpu, *op)) {
        return leave(cpu, op);
    }
    return next(cpu, op);
}

}  // namespace

Handler select_flag(const Insn& insn, const SelectContext& /*context*/, Op& /*op*/)
{
    if (insn.map != OpcodeMap::Primary || insn.vex) {
        return nullptr;
    }
    switch (insn.opcode) {
    case 0x9c: return plain<push_flags>;
    case 0x9d: return pop_flags;
    case 0x9e: return store_ah;
    case 0x9f: return load_ah;
    case 0xd6: return spread_carry;
    case 0xf5: return complement_carry;
    case 0xf8: return clear_carry;
    case 0xf9: return set_carry;
    case 0xfa: return clear_interrupt;
    case 0xfb: return set_interrupt;
    case 0xfc: return clear_direction;
    case 0xfd: return set_direction;
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
