// SPDX-License-Identifier: Apache-2.0

/// @file
/// Instructions on descriptors and descriptor tables: SGDT to STR, LAR, LSL, VERR, VERW, ARPL.

#include <algorithm>

#include "x86/soft/descriptor.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/system_handlers.hpp"

namespace vmm::x86::soft {

namespace {

/// CR4.UMIP: #GP(0) for SGDT, SIDT, SLDT, STR and SMSW in user mode.
void check_umip(const Cpu& cpu)
{
    if (cpu.cpl != 0U && Cr4{cpu.cr4}.get(Cr4::UMIP)) {
        raise(Vector::GP, 0);
    }
}

enum class Source : std::uint8_t { Ldtr, Tr, Msw };

/// SLDT, STR, SMSW.
template <Source From, bool Memory>
const Op* store_word(Cpu& cpu, const Op* op)
{
    check_umip(cpu);
    std::uint64_t value = cpu.cr0;
    if constexpr (From != Source::Msw) {
        value = From == Source::Ldtr ? cpu.ldt.selector : cpu.tr.selector;
    }
    if constexpr (Memory) {
        store_operand<std::uint16_t>(cpu, *op, static_cast<std::uint16_t>(value));
    } else {
        write_register(cpu, op->rm, value, op->operand_size);
    }
    return next(cpu, op);
}

template <bool Memory>
const Op* lmsw(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    const std::uint64_t value = load_rm16<Memory>(cpu, *op);
    const std::uint64_t rip = cpu.next_rip(*op);
    // PE can be set by it, not cleared.
    constexpr std::uint64_t replaced = mask_of(Cr0::MP, Cr0::EM, Cr0::TS);
    write_cr0(cpu, (cpu.cr0 & ~replaced) | (value & (replaced | Cr0::PE.mask)));
    return leave_to(cpu, rip);
}

/// SGDT and SIDT.
template <bool Idt>
void do_store_table(Cpu& cpu, const Op& op)
{
    check_umip(cpu);
    const DescriptorTable& table = Idt ? cpu.idt : cpu.gdt;
    const auto segment = static_cast<SegmentIndex>(op.segment);
    const bool is_64 = cpu.code_64();
    const std::size_t size = is_64 ? 10 : 6;
    const std::uint64_t linear = linear_address(cpu, op, size, Access::Write);
    probe_write(cpu, segment, linear, size);
    store<std::uint16_t>(cpu, segment, linear, table.limit);
    if (is_64) {
        store<std::uint64_t>(cpu, segment, linear + 2U, table.base);
    } else {
        store<std::uint32_t>(cpu, segment, linear + 2U, static_cast<std::uint32_t>(table.base));
    }
}

template <bool Idt>
const Op* store_table(Cpu& cpu, const Op* op)
{
    do_store_table<Idt>(cpu, *op);
    return next(cpu, op);
}

/// LGDT and LIDT.
template <bool Idt>
const Op* load_table(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    const auto segment = static_cast<SegmentIndex>(op->segment);
    const bool is_64 = cpu.code_64();
    const std::uint64_t linear = linear_address(cpu, *op, is_64 ? 10 : 6, Access::Read);
    const auto limit = load<std::uint16_t>(cpu, segment, linear);
    std::uint64_t base = 0;
    if (is_64) {
        base = load<std::uint64_t>(cpu, segment, linear + 2U);
        if (!is_canonical48(base)) {
            raise(Vector::GP, 0);
        }
    } else {
        base = load<std::uint32_t>(cpu, segment, linear + 2U);
        // A 16-bit operand has 24 bits of address.
        base &= op->operand_size == 2U ? 0xff'ffffU : 0xffff'ffffU;
    }
    DescriptorTable& table = Idt ? cpu.idt : cpu.gdt;
    table.base = base;
    table.limit = limit;
    return leave(cpu, op);
}

template <bool Memory>
const Op* lldt(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    const std::uint16_t selector = load_rm16<Memory>(cpu, *op);
    if (is_null(selector)) {
        cpu.ldt = null_segment(selector);
        return leave(cpu, op);
    }
    if (is_local(selector)) {
        raise(Vector::GP, selector_error(selector));
    }
    Descriptor descriptor = read_descriptor(cpu, selector, Vector::GP);
    if (descriptor.is_segment() || descriptor.type() != system_type::ldt) {
        raise(Vector::GP, selector_error(selector));
    }
    if (cpu.long_mode()) {
        read_upper_half(cpu, descriptor, selector, Vector::GP);
    }
    if (!descriptor.present()) {
        raise(Vector::NP, selector_error(selector));
    }
    if (!is_canonical48(descriptor.base())) {
        raise(Vector::GP, selector_error(selector));
    }
    cpu.ldt = make_segment(descriptor, selector);
    return leave(cpu, op);
}

template <bool Memory>
const Op* ltr(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    const std::uint16_t selector = load_rm16<Memory>(cpu, *op);
    if (is_null(selector)) {
        raise(Vector::GP, 0);
    }
    if (is_local(selector)) {
        raise(Vector::GP, selector_error(selector));
    }
    Descriptor descriptor = read_descriptor(cpu, selector, Vector::GP);
    const unsigned type = descriptor.type();
    const bool is_task = type == system_type::tss_available ||
                         (type == system_type::tss16_available && !cpu.long_mode());
    if (descriptor.is_segment() || !is_task) {
        raise(Vector::GP, selector_error(selector));
    }
    if (cpu.long_mode()) {
        read_upper_half(cpu, descriptor, selector, Vector::GP);
    }
    if (!descriptor.present()) {
        raise(Vector::NP, selector_error(selector));
    }
    if (!is_canonical48(descriptor.base())) {
        raise(Vector::GP, selector_error(selector));
    }
    set_busy(cpu, descriptor, true);
    cpu.tr = make_segment(descriptor, selector);
    cpu.tr.type |= 2U;  // Busy.
    return leave(cpu, op);
}

void set_zero_flag(Cpu& cpu, bool value) noexcept
{
    cpu.set_arithmetic_flags((cpu.flags() & ~Rflags::ZF.mask) | (value ? Rflags::ZF.mask : 0U));
}

/// The descriptor that LAR, LSL, VERR and VERW look at: one that CPL and RPL may see.
std::optional<Descriptor> visible_descriptor(Cpu& cpu, std::uint16_t selector)
{
    if (is_null(selector)) {
        return std::nullopt;
    }
    std::optional<Descriptor> descriptor = find_descriptor(cpu, selector);
    if (descriptor && !descriptor->is_conforming() &&
        descriptor->dpl() < std::max(rpl(selector), unsigned{cpu.cpl})) {
        return std::nullopt;
    }
    return descriptor;
}

/// Types of system descriptors that LAR and LSL answer for, by number.
constexpr std::uint32_t lar_types = 0x1a3e;       // 1 2 3 4 5 9 11 12.
constexpr std::uint32_t lar_types_long = 0x1a04;  // 2 9 11 12.
constexpr std::uint32_t lsl_types = 0x0a0e;       // 1 2 3 9 11.
constexpr std::uint32_t lsl_types_long = 0x0a04;  // 2 9 11.

template <bool Limit, bool Memory>
void do_load_attribute(Cpu& cpu, const Op& op)
{
    const std::optional<Descriptor> descriptor =
        visible_descriptor(cpu, load_rm16<Memory>(cpu, op));
    bool valid = descriptor.has_value();
    if (valid && !descriptor->is_segment()) {
        std::uint32_t types = cpu.long_mode() ? lar_types_long : lar_types;
        if constexpr (Limit) {
            types = cpu.long_mode() ? lsl_types_long : lsl_types;
        }
        valid = ((types >> descriptor->type()) & 1U) != 0U;
    }
    if (valid) {
        // The four bits of the limit among them are undefined, and there on all processors.
        constexpr std::uint64_t rights = 0x00ff'ff00;
        write_register(cpu, op.reg, Limit ? descriptor->limit() : (descriptor->low >> 32U) & rights,
                       op.operand_size);
    }
    set_zero_flag(cpu, valid);
}

template <bool Limit, bool Memory>
const Op* load_attribute(Cpu& cpu, const Op* op)
{
    do_load_attribute<Limit, Memory>(cpu, *op);
    return next(cpu, op);
}

template <bool Write, bool Memory>
void do_verify(Cpu& cpu, const Op& op)
{
    const std::optional<Descriptor> descriptor =
        visible_descriptor(cpu, load_rm16<Memory>(cpu, op));
    set_zero_flag(cpu, descriptor &&
                           (Write ? descriptor->is_writable_data() : descriptor->is_readable()));
}

template <bool Write, bool Memory>
const Op* verify(Cpu& cpu, const Op* op)
{
    do_verify<Write, Memory>(cpu, *op);
    return next(cpu, op);
}

template <bool Memory>
const Op* arpl(Cpu& cpu, const Op* op)
{
    const unsigned wanted = rpl(gpr_at<std::uint16_t>(cpu, op->reg));
    if constexpr (Memory) {
        const auto segment = static_cast<SegmentIndex>(op->segment);
        // Written only if it changes.
        const auto selector =
            load<std::uint16_t>(cpu, segment, linear_address(cpu, *op, 2, Access::Read));
        const bool raises = rpl(selector) < wanted;
        if (raises) {
            store<std::uint16_t>(cpu, segment, linear_address(cpu, *op, 2, Access::Write),
                                 with_rpl(selector, wanted));
        }
        set_zero_flag(cpu, raises);
    } else {
        auto& selector = gpr_at<std::uint16_t>(cpu, op->rm);
        const bool raises = rpl(selector) < wanted;
        if (raises) {
            selector = with_rpl(selector, wanted);
        }
        set_zero_flag(cpu, raises);
    }
    return next(cpu, op);
}

/// 0F 00.
Handler select_group6(const Insn& insn, const SelectContext& context)
{
    const bool memory = insn.mod != 3U;
    if (!context.protected_mode) {
        return undefined_instruction;
    }
    switch (insn.group) {
    case 0: return memory ? store_word<Source::Ldtr, true> : store_word<Source::Ldtr, false>;
    case 1: return memory ? store_word<Source::Tr, true> : store_word<Source::Tr, false>;
    case 2: return memory ? lldt<true> : lldt<false>;
    case 3: return memory ? ltr<true> : ltr<false>;
    case 4: return memory ? verify<false, true> : verify<false, false>;
    case 5: return memory ? verify<true, true> : verify<true, false>;
    default: return undefined_instruction;
    }
}

/// 0F 01, but for the forms that have an opcode in ModRM (processor_handlers.cpp).
Handler select_group7(const Insn& insn)
{
    const bool memory = insn.mod != 3U;
    switch (insn.group) {
    case 0: return memory ? store_table<false> : nullptr;
    case 1: return memory ? store_table<true> : nullptr;
    case 2: return memory ? load_table<false> : nullptr;
    case 3: return memory ? load_table<true> : nullptr;
    case 4: return memory ? store_word<Source::Msw, true> : store_word<Source::Msw, false>;
    case 6: return memory ? lmsw<true> : lmsw<false>;
    default: return nullptr;
    }
}

}  // namespace

Handler select_descriptor_instruction(const Insn& insn, const SelectContext& context, Op& /*op*/)
{
    const bool memory = insn.mod != 3U;
    if (insn.map == OpcodeMap::Primary) {
        if (insn.opcode != 0x63 || context.code_size == CodeSize::Bits64) {
            return nullptr;
        }
        if (!context.protected_mode) {
            return undefined_instruction;
        }
        return memory ? arpl<true> : arpl<false>;
    }
    if (insn.map != OpcodeMap::Map0F) {
        return nullptr;
    }
    switch (insn.opcode) {
    case 0x00: return select_group6(insn, context);
    case 0x01: return select_group7(insn);
    case 0x02:
        if (!context.protected_mode) {
            return undefined_instruction;
        }
        return memory ? load_attribute<false, true> : load_attribute<false, false>;
    case 0x03:
        if (!context.protected_mode) {
            return undefined_instruction;
        }
        return memory ? load_attribute<true, true> : load_attribute<true, false>;
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
