// SPDX-License-Identifier: Apache-2.0

/// @file
/// Bit-manipulation and other integer instructions that the host executes: POPCNT, LZCNT, TZCNT,
/// BMI1, BMI2, ADX, MOVBE, CRC32; and MOVNTI.

#include <cstdint>

#include "x86/soft/native_operand.hpp"
#include "x86/soft/native_run.hpp"

namespace vmm::x86::soft {

namespace {

using native_detail::execute;
using native_detail::FlagUse;
using native_detail::MemoryUse;

/// What an instruction is, once it has been recognised.
struct BitsForm {
    Isa isa;
    bool vex;
    OpcodeMap map;
    std::uint8_t opcode;
    std::uint8_t pp;
    bool uses_vvvv;    ///< As a source.
    bool writes_vvvv;  ///< BLSR and kin: the destination; MULX: the second one.
    FlagUse flags;
};

// One line each.  Flags that the manuals leave undefined are as the host makes them, many from the
// flags before.  MOVBE and CRC32, whose operands are special, are in select_special().
constexpr BitsForm bits_forms[] = {
    {Isa::Popcnt, false, OpcodeMap::Map0F, 0xb8, 2, false, false, FlagUse::Out},
    {Isa::Bmi1, false, OpcodeMap::Map0F, 0xbc, 2, false, false, FlagUse::InOut},
    {Isa::Lzcnt, false, OpcodeMap::Map0F, 0xbd, 2, false, false, FlagUse::InOut},
    {Isa::Adx, false, OpcodeMap::Map0F38, 0xf6, 1, false, false, FlagUse::InOut},
    {Isa::Adx, false, OpcodeMap::Map0F38, 0xf6, 2, false, false, FlagUse::InOut},
    {Isa::Bmi1, true, OpcodeMap::Map0F38, 0xf2, 0, true, false, FlagUse::InOut},  // ANDN
    {Isa::Bmi1, true, OpcodeMap::Map0F38, 0xf3, 0, false, true, FlagUse::InOut},  // BLSR …
    {Isa::Bmi1, true, OpcodeMap::Map0F38, 0xf7, 0, true, false, FlagUse::InOut},  // BEXTR
    {Isa::Bmi2, true, OpcodeMap::Map0F38, 0xf5, 0, true, false, FlagUse::InOut},  // BZHI
    {Isa::Bmi2, true, OpcodeMap::Map0F38, 0xf5, 2, true, false, FlagUse::None},   // PEXT
    {Isa::Bmi2, true, OpcodeMap::Map0F38, 0xf5, 3, true, false, FlagUse::None},   // PDEP
    {Isa::Bmi2, true, OpcodeMap::Map0F38, 0xf6, 3, false, true, FlagUse::None},   // MULX
    {Isa::Bmi2, true, OpcodeMap::Map0F38, 0xf7, 1, true, false, FlagUse::None},   // SHLX
    {Isa::Bmi2, true, OpcodeMap::Map0F38, 0xf7, 2, true, false, FlagUse::None},   // SARX
    {Isa::Bmi2, true, OpcodeMap::Map0F38, 0xf7, 3, true, false, FlagUse::None},   // SHRX
    {Isa::Bmi2, true, OpcodeMap::Map0F3A, 0xf0, 3, false, false, FlagUse::None},  // RORX
};

const BitsForm* find_form(const Insn& insn) noexcept
{
    for (const BitsForm& form : bits_forms) {
        if (form.isa == insn.isa && form.vex == insn.vex && form.map == insn.map &&
            form.opcode == insn.opcode && form.pp == insn.pp) {
            return &form;
        }
    }
    return nullptr;
}

template <FlagUse flags>
Handler pick(bool is_register)
{
    return is_register ? &execute<Unit::General, MemoryUse::None, false, flags>
                       : &execute<Unit::General, MemoryUse::Load, false, flags>;
}

Handler pick(FlagUse flags, bool is_register)
{
    switch (flags) {
    case FlagUse::None: return pick<FlagUse::None>(is_register);
    case FlagUse::Out: return pick<FlagUse::Out>(is_register);
    case FlagUse::InOut: return pick<FlagUse::InOut>(is_register);
    }
    return nullptr;
}

bool is_wide(const Insn& insn, const SelectContext& context) noexcept
{
    return insn.rex_w && context.code_size == CodeSize::Bits64;
}

void set_operands(const Insn& insn, Op& op) noexcept
{
    const Operands operands{general_offset(insn.reg), general_offset(insn.rm),
                            general_offset(insn.vvvv), 0};
    op.immediate = operands.packed();
    op.extra = 0;
}

Handler select_form(const Insn& insn, const BitsForm& form, const SelectContext& context, Op& op)
{
    const bool is_register = insn.mod == 3;
    const bool is_group = form.map == OpcodeMap::Map0F38 && form.opcode == 0xf3;
    ThunkSpec spec;
    spec.vex = form.vex;
    spec.wide = is_wide(insn, context);
    spec.operand16 = !form.vex && form.map == OpcodeMap::Map0F && insn.operand_size == 2;
    spec.pp = form.pp;
    spec.map = form.map;
    spec.opcode = form.opcode;
    spec.has_immediate = form.map == OpcodeMap::Map0F3A;
    spec.immediate = spec.has_immediate ? static_cast<std::uint8_t>(insn.immediate) : 0;
    if (is_group) {
        if (insn.group < 1 || insn.group > 3) {
            return nullptr;
        }
        spec.modrm = insn.group;
        spec.reg = Slot::None;
    } else {
        spec.reg = Slot::General;
        spec.load_reg = !form.vex;
        spec.store_reg = true;
    }
    spec.rm = is_register ? Slot::General : Slot::Memory;
    if (form.uses_vvvv || form.writes_vvvv) {
        spec.vvvv = Slot::General;
        spec.load_vvvv = form.uses_vvvv;
        spec.store_vvvv = form.writes_vvvv;
    }
    if (form.writes_vvvv && !is_group) {
        spec.kind = ThunkKind::Mulx;
    }
    spec.flags_in = form.flags == FlagUse::InOut;
    spec.flags_out = form.flags != FlagUse::None;
    // The host accesses this many bytes, whatever else was decoded.
    op.memory_size = spec.wide ? 8 : (spec.operand16 ? 2 : 4);
    set_operands(insn, op);
    return with_thunk(op, spec, pick(form.flags, is_register));
}

Handler select_movbe(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.mod == 3) {
        return nullptr;
    }
    const bool store = insn.opcode == 0xf1;
    ThunkSpec spec;
    spec.wide = is_wide(insn, context);
    spec.operand16 = insn.operand_size == 2;
    spec.map = OpcodeMap::Map0F38;
    spec.opcode = insn.opcode;
    spec.reg = Slot::General;
    spec.load_reg = true;
    spec.store_reg = !store;
    spec.rm = Slot::Memory;
    op.memory_size = spec.wide ? 8 : (spec.operand16 ? 2 : 4);
    set_operands(insn, op);
    return with_thunk(op, spec,
                      store ? &execute<Unit::General, MemoryUse::Store, false, FlagUse::None>
                            : &execute<Unit::General, MemoryUse::Load, false, FlagUse::None>);
}

Handler select_crc32(const Insn& insn, const SelectContext& context, Op& op)
{
    const bool is_register = insn.mod == 3;
    const bool is_byte = insn.opcode == 0xf0;
    ThunkSpec spec;
    spec.wide = is_wide(insn, context);
    spec.operand16 = !is_byte && insn.operand_size == 2;
    spec.pp = 3;
    spec.map = OpcodeMap::Map0F38;
    spec.opcode = insn.opcode;
    spec.reg = Slot::General;
    spec.load_reg = true;
    spec.store_reg = true;
    spec.rm = !is_register ? Slot::Memory : (is_byte ? Slot::GeneralByte : Slot::General);
    Operands operands{general_offset(insn.reg), general_offset(insn.rm), 0, 0};
    if (is_byte && is_register && !insn.has_rex && insn.rm >= 4 && insn.rm < 8) {
        operands.rm = static_cast<std::uint16_t>(general_offset(insn.rm - 4U) + 1U);  // AH … BH
    }
    op.memory_size = is_byte ? 1 : (spec.wide ? 8 : (spec.operand16 ? 2 : 4));
    op.immediate = operands.packed();
    op.extra = 0;
    return with_thunk(op, spec, pick(FlagUse::None, is_register));
}

template <typename T>
const Op* movnti(Cpu& cpu, const Op* op)
{
    const std::uint64_t linear = linear_address(cpu, *op, sizeof(T), Access::Write);
    store<T>(cpu, static_cast<SegmentIndex>(op->segment), linear,
             gpr_at<T>(cpu, static_cast<std::uint8_t>(op->immediate)));
    return next(cpu, op);
}

}  // namespace

Handler select_bits(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.map == OpcodeMap::Map0F && insn.opcode == 0xc3 && insn.isa == Isa::Sse2 &&
        insn.mod != 3 && !insn.vex) {
        op.immediate = general_offset(insn.reg);
        return is_wide(insn, context) ? &movnti<std::uint64_t> : &movnti<std::uint32_t>;
    }
    if (!insn.vex && insn.map == OpcodeMap::Map0F38 &&
        (insn.opcode == 0xf0 || insn.opcode == 0xf1)) {
        if (insn.isa == Isa::Movbe) {
            return select_movbe(insn, context, op);
        }
        return insn.isa == Isa::Sse42 ? select_crc32(insn, context, op) : nullptr;
    }
    const BitsForm* const form = find_form(insn);
    return form == nullptr ? nullptr : select_form(insn, *form, context, op);
}

}  // namespace vmm::x86::soft
