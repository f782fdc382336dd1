// SPDX-License-Identifier: Apache-2.0

/// @file
/// Handlers of vector and bit-manipulation instructions that run as thunks.

#include <algorithm>
#include <array>
#include <cstring>

#include "x86/soft/dispatch.hpp"
#include "x86/soft/native_operand.hpp"
#include "x86/soft/native_run.hpp"
#include "x86/soft/vector_table.hpp"
#include "x86/soft/x87.hpp"

namespace vmm::x86::soft {

void raise_unit_off(const Cpu& cpu, Unit unit)
{
    using namespace native_detail;
    const bool undefined_first = unit == Unit::Avx
                                     ? (cpu.cr4 & cr4_osxsave) == 0 || (cpu.xcr0 & 6U) != 6U
                                     : (cpu.cr0 & cr0_em) != 0 || (cpu.cr4 & cr4_osfxsr) == 0;
    raise(undefined_first ? Vector::UD : Vector::NM);
}

namespace native_detail {

namespace {

constexpr std::size_t max_operand = 64;

// Bits of MXCSR.
constexpr std::uint32_t underflow = 1U << 4U;
constexpr std::uint32_t underflow_mask = 1U << 11U;
constexpr std::uint32_t flush_to_zero = 1U << 15U;

/// Bytes of the register at `offset`, which tells the kind.
std::size_t register_size(std::uint16_t offset) noexcept
{
    if (offset < fpu_offset()) {
        return 8;
    }
    return offset < vector_offset(0) ? 16 : 32;
}

struct Saved {
    std::array<std::byte, 32> bytes{};
    std::byte* where{};
    std::size_t size{};

    Saved(Cpu& cpu, std::uint16_t offset) noexcept
        : where{register_at(cpu, offset)},
          size{register_size(offset)}
    {
        std::memcpy(bytes.data(), where, size);
    }
    void restore() const noexcept { std::memcpy(where, bytes.data(), size); }
};

// What Op::vvvv says of VCVTPS2PH, which has no such register: the marks, and above the two bits of
// its own rounding mode.
constexpr std::uint8_t to_half = 0x80;
constexpr std::uint8_t to_half_long = 0x08;      ///< Of eight values, not of four.
constexpr std::uint8_t to_half_by_mxcsr = 0x04;  ///< Rounds as MXCSR says.

/// Whether a single-precision value is tiny as a half-precision one: rounded to 11 bits, as if
/// exponents had no end, less than 2^-14 and not 0.
bool is_tiny_as_half(std::uint32_t value, unsigned rounding, bool denormals_are_zeros) noexcept
{
    constexpr std::uint32_t least_normal_single = 0x0080'0000;
    constexpr std::uint32_t half_of_least_normal_half = 0x3800'0000;
    constexpr std::uint32_t least_normal_half = 0x3880'0000;
    constexpr std::uint32_t kept = 0x007f'e000;
    constexpr std::uint32_t lost = 0x1fff;
    const std::uint32_t magnitude = value & 0x7fff'ffffU;
    const bool is_negative = magnitude != value;
    if (magnitude == 0 || (denormals_are_zeros && magnitude < least_normal_single) ||
        magnitude >= least_normal_half) {
        return false;
    }
    if (magnitude < half_of_least_normal_half || (magnitude & kept) != kept) {
        return true;
    }
    // Rounded up it is 2^-14.  A tie goes up: what is kept is odd.
    switch (rounding) {
    case 0: return (magnitude & lost) <= lost / 2;
    case 1: return !is_negative || (magnitude & lost) == 0;
    case 2: return is_negative || (magnitude & lost) == 0;
    default: return true;
    }
}

bool is_any_tiny_as_half(const Op& op, const std::byte* source, std::uint32_t mxcsr) noexcept
{
    constexpr std::uint32_t denormals_are_zeros = 1U << 6U;
    const unsigned rounding =
        (op.vvvv & to_half_by_mxcsr) != 0 ? (mxcsr >> 13U) & 3U : op.vvvv & 3U;
    const std::size_t count = (op.vvvv & to_half_long) != 0 ? 8 : 4;
    for (std::size_t i = 0; i < count; ++i) {
        std::uint32_t value = 0;
        std::memcpy(&value, source + i * sizeof value, sizeof value);
        if (is_tiny_as_half(value, rounding, (mxcsr & denormals_are_zeros) != 0)) {
            return true;
        }
    }
    return false;
}

}  // namespace

/// With an exception unmasked the result may have to be thrown away.  Runs with everything masked
/// and looks at what happened.
std::uint64_t run_unmasked(Cpu& cpu, const Op* op, std::byte* rm, bool is_memory)
{
    release_mxcsr(cpu);
    const Operands operands = Operands::of(*op);
    const Saved reg{cpu, operands.reg};
    const Saved other{cpu, is_memory ? operands.reg : operands.rm};
    const std::uint32_t guest = cpu.fpu.mxcsr & mxcsr_valid;
    const std::uint32_t host = host_mxcsr();
    const auto run_with = [&](std::uint32_t control) {
        set_host_mxcsr(control);
        return thunk_of(*op)(reg.where, rm, register_at(cpu, operands.vvvv), cpu.gpr.data(),
                             reinterpret_cast<std::uintptr_t>(register_at(cpu, operands.extra)));
    };
    std::uint32_t control = (guest & ~mxcsr_flags) | mxcsr_masks;
    std::uint32_t tiny = 0;
    if ((op->vvvv & to_half) != 0) {
        // Nothing is flushed to zero here.
        const bool is_underflow =
            (guest & underflow_mask) == 0 && is_any_tiny_as_half(*op, reg.where, guest);
        tiny = is_underflow ? underflow : 0U;
    } else if ((guest & underflow_mask) == 0) {
        // Masked, a tiny result that is exact is no underflow; unmasked it is, and so it is if it
        // would be flushed to zero, which it is if masked only.
        run_with(control | flush_to_zero);
        tiny = host_mxcsr() & underflow;
        other.restore();
        reg.restore();
        control &= ~flush_to_zero;
    }
    const std::uint64_t result = run_with(control);
    const std::uint32_t flags = (host_mxcsr() & mxcsr_flags) | tiny;
    set_host_mxcsr(host);

    const std::uint32_t unmasked = flags & ~(guest >> 7U);
    if (unmasked != 0) {
        other.restore();
        reg.restore();
        // Conditions noticed before computing (invalid, denormal, divide) pre-empt the others.
        constexpr std::uint32_t before = 7;
        cpu.fpu.mxcsr = guest | ((unmasked & before) != 0 ? flags & before : flags);
        raise((cpu.cr4 & cr4_osxmmexcpt) != 0 ? Vector::XM : Vector::UD);
    }
    cpu.fpu.mxcsr = guest | flags;
    return result;
}

std::uint64_t run_slow(Cpu& cpu, const Op* op, std::byte* rm, bool fp, bool is_memory)
{
    if (fp && (cpu.fpu.mxcsr & mxcsr_masks) != mxcsr_masks) {
        return run_unmasked(cpu, op, rm, is_memory);
    }
    const Operands operands = Operands::of(*op);
    return fp ? run<true>(cpu, op, operands, rm, 0) : run<false>(cpu, op, operands, rm, 0);
}

/// The operand is not in the TLB, crosses a page, is MMIO, or exceptions are unmasked.
std::uint64_t execute_slow(Cpu& cpu, const Op* op, std::uint64_t linear, bool store, bool fp)
{
    const auto segment = static_cast<SegmentIndex>(op->segment);
    const std::size_t size = std::min<std::size_t>(op->memory_size, max_operand);
    alignas(64) std::array<std::byte, max_operand> buffer;
    if (!store) {
        std::byte* const pointer = direct(cpu, segment, linear, size, Access::Read);
        if (pointer != nullptr) {
            return run_slow(cpu, op, pointer, fp, true);
        }
        read_slow(cpu, segment, linear, buffer.data(), size);
        return run_slow(cpu, op, buffer.data(), fp, true);
    }
    // A store that an exception stops must not be seen: it goes through the buffer.
    probe_write(cpu, segment, linear, size);
    const std::uint64_t result = run_slow(cpu, op, buffer.data(), fp, true);
    std::byte* const pointer = direct(cpu, segment, linear, size, Access::Write);
    if (pointer == nullptr) {
        write_slow(cpu, segment, linear, buffer.data(), size);
    } else {
        std::memcpy(pointer, buffer.data(), size);
    }
    return result;
}

std::uint64_t execute_with_flags(Cpu& cpu, const Op* op, std::uint64_t linear)
{
    const auto segment = static_cast<SegmentIndex>(op->segment);
    const std::size_t size = std::min<std::size_t>(op->memory_size, max_operand);
    alignas(64) std::array<std::byte, max_operand> buffer;
    read_slow(cpu, segment, linear, buffer.data(), size);
    return run<false>(cpu, op, Operands::of(*op), buffer.data(), cpu.arithmetic_flags);
}

}  // namespace native_detail

namespace {

using native_detail::MemoryUse;

// Bits of Op::extra in MMX instructions.
constexpr std::uint8_t mmx_writes_reg = 1;
constexpr std::uint8_t mmx_writes_rm = 2;
constexpr std::uint8_t mmx_load = 4;
constexpr std::uint8_t mmx_store = 8;
constexpr std::uint8_t mmx_fp = 16;
constexpr std::uint8_t mmx_xmm = 32;
constexpr std::uint8_t mmx_aligned = 64;
constexpr std::uint8_t mmx_none = 128;  // Leaves the x87 state alone.

void mark_mmx_written(Cpu& cpu, std::uint16_t offset) noexcept
{
    std::memset(register_at(cpu, offset) + 8, 0xff, 2);
}

/// An instruction with an MMX operand: the x87 state becomes MMX state.  SDM Vol. 3A "Effect of
/// the MMX, x87 FPU, FXSAVE, and FXRSTOR Instructions on the x87 FPU Tag Word".
[[gnu::noinline]] void execute_mmx(Cpu& cpu, const Op* op)
{
    using namespace native_detail;
    const std::uint8_t how = op->extra;
    if ((cpu.cr0 & cr0_em) != 0 || ((how & mmx_xmm) != 0 && (cpu.cr4 & cr4_osfxsr) == 0)) {
        raise(Vector::UD);
    }
    if ((cpu.cr0 & cr0_ts) != 0) {
        raise(Vector::NM);
    }
    fpu_release(cpu);
    if ((how & mmx_none) == 0 && x87_pending(cpu)) {
        raise(Vector::MF);
    }
    const auto segment = static_cast<SegmentIndex>(op->segment);
    const std::size_t size = std::min<std::size_t>(op->memory_size, 16);
    const Operands operands = Operands::of(*op);
    const bool is_memory = (how & (mmx_load | mmx_store)) != 0;
    std::uint64_t linear = 0;
    alignas(16) std::array<std::byte, 16> buffer{};
    if (is_memory) {
        const Access access = (how & mmx_store) != 0 ? Access::Write : Access::Read;
        linear = linear_address(cpu, *op, size, access);
        if ((how & mmx_aligned) != 0 && (linear & 15U) != 0) {
            raise(Vector::GP, 0);
        }
        if (access == Access::Read) {
            read_slow(cpu, segment, linear, buffer.data(), size);
        } else {
            probe_write(cpu, segment, linear, size);
        }
    }
    const FpuRegisters before = cpu.fpu;
    if ((how & mmx_none) == 0) {
        mmx_enter(cpu.fpu);
    }
    std::byte* const rm = is_memory ? buffer.data() : register_at(cpu, operands.rm);
    try {
        run_slow(cpu, op, rm, (how & mmx_fp) != 0, is_memory);
        if ((how & mmx_store) != 0) {
            write_slow(cpu, segment, linear, buffer.data(), size);
        }
    } catch (const Fault&) {
        fpu_release(cpu);
        const std::uint32_t mxcsr = cpu.fpu.mxcsr;
        cpu.fpu = before;
        cpu.fpu.mxcsr = mxcsr;
        throw;
    } catch (const LeaveForMmio&) {
        fpu_release(cpu);
        cpu.fpu = before;
        throw;
    }
    if ((how & mmx_writes_reg) != 0) {
        mark_mmx_written(cpu, operands.reg);
    }
    if ((how & mmx_writes_rm) != 0) {
        mark_mmx_written(cpu, operands.rm);
    }
}

const Op* emms(Cpu& cpu, const Op* op)
{
    using namespace native_detail;
    if ((cpu.cr0 & cr0_em) != 0) {
        raise(Vector::UD);
    }
    if ((cpu.cr0 & cr0_ts) != 0) {
        raise(Vector::NM);
    }
    fpu_release(cpu);
    if (x87_pending(cpu)) {
        raise(Vector::MF);
    }
    mmx_enter(cpu.fpu);
    x87_image::set<std::uint8_t>(cpu.fpu, x87_image::ftw, 0);
    return next(cpu, op);
}

/// VZEROUPPER (extra 16) and VZEROALL (extra 0).
const Op* vzero(Cpu& cpu, const Op* op)
{
    check_unit<Unit::Avx>(cpu);
    const std::size_t count = cpu.code_64() ? 16 : 8;
    for (std::size_t number = 0; number < count; ++number) {
        std::memset(cpu.fpu.ymm[number].data() + op->extra, 0, 32U - op->extra);
    }
    return next(cpu, op);
}

struct FormParts {
    Slot reg;
    Slot rm;
    bool writes_reg;
    bool writes_rm;
};

FormParts parts_of(VectorForm form) noexcept
{
    switch (form) {
    case VectorForm::VW: return {Slot::Vector, Slot::Vector, true, false};
    case VectorForm::WV: return {Slot::Vector, Slot::Vector, false, true};
    case VectorForm::VE: return {Slot::Vector, Slot::General, true, false};
    case VectorForm::EV: return {Slot::Vector, Slot::General, false, true};
    case VectorForm::GW: return {Slot::General, Slot::Vector, true, false};
    case VectorForm::PQ: return {Slot::Mmx, Slot::Mmx, true, false};
    case VectorForm::QP: return {Slot::Mmx, Slot::Mmx, false, true};
    case VectorForm::PE: return {Slot::Mmx, Slot::General, true, false};
    case VectorForm::EP: return {Slot::Mmx, Slot::General, false, true};
    case VectorForm::GQ: return {Slot::General, Slot::Mmx, true, false};
    case VectorForm::VQ: return {Slot::Vector, Slot::Mmx, true, false};
    case VectorForm::PW: return {Slot::Mmx, Slot::Vector, true, false};
    case VectorForm::ShV: return {Slot::None, Slot::Vector, false, true};
    case VectorForm::ShP: return {Slot::None, Slot::Mmx, false, true};
    }
    return {};
}

std::uint16_t offset_of(Slot slot, unsigned number) noexcept
{
    switch (slot) {
    case Slot::Vector: return vector_offset(number);
    case Slot::Mmx: return mmx_offset(number);
    case Slot::None:
    case Slot::General:
    case Slot::GeneralByte:
    case Slot::Memory: break;
    }
    return general_offset(number);
}

ThunkSpec spec_of(const Insn& insn,
                  const VectorLine& line,
                  const FormParts& parts,
                  bool is_64,
                  Operands& operands)
{
    const auto has = [&line](std::uint16_t flag) { return (line.flags & flag) != 0; };
    const bool has_general = parts.reg == Slot::General || parts.rm == Slot::General;
    const bool is_register = insn.mod == 3;
    ThunkSpec spec;
    spec.vex = insn.vex;
    spec.pp = insn.pp;
    spec.map = insn.map;
    spec.opcode = insn.opcode;
    if (has_general || has(vector_flag::wide)) {
        spec.wide = insn.rex_w && is_64;  // Without effect in 16- and 32-bit code.
    } else {
        spec.wide = insn.vex && vex_wide(insn);
    }
    spec.long_vector = insn.vex && insn.vex_l != 0;
    spec.modrm = parts.reg == Slot::None ? insn.group : std::uint8_t{0};
    spec.has_immediate = has(vector_flag::imm);
    spec.implicit_xmm0 = has(vector_flag::xmm0);
    spec.is4 = has(vector_flag::is4);
    const auto immediate = static_cast<std::uint8_t>(insn.immediate);
    spec.immediate = spec.is4 ? 0 : immediate;
    spec.flags_out = has(vector_flag::flags);
    if (has(vector_flag::string)) {
        spec.kind = (insn.opcode & 1U) != 0 ? ThunkKind::StringIndex : ThunkKind::StringMask;
    }

    spec.reg = parts.reg;
    spec.rm = is_register ? parts.rm : Slot::Memory;
    spec.store_reg = parts.writes_reg && !spec.flags_out;
    spec.store_rm = parts.writes_rm && is_register;
    spec.load_reg = !insn.vex || !spec.store_reg || has(vector_flag::merges);
    if (insn.vex && (has(vector_flag::vvvv) || (has(vector_flag::vvvv_reg) && is_register))) {
        spec.vvvv = Slot::Vector;
        spec.load_vvvv = true;
    }
    if (line.form == VectorForm::ShV && insn.vex) {
        spec.store_rm = false;
        spec.load_vvvv = false;
        spec.store_vvvv = true;
    }
    operands.reg = offset_of(parts.reg, insn.reg);
    operands.rm = offset_of(parts.rm, insn.rm);
    operands.vvvv = vector_offset(insn.vvvv);
    operands.extra = vector_offset((immediate >> 4U) & (is_64 ? 15U : 7U));
    return spec;
}

Handler select_mmx(const Insn& insn, const VectorLine& line, const FormParts& parts, Op& op)
{
    const bool is_register = insn.mod == 3;
    unsigned how = 0;
    if (parts.writes_reg && parts.reg == Slot::Mmx) {
        how |= mmx_writes_reg;
    }
    if (parts.writes_rm && is_register && parts.rm == Slot::Mmx) {
        how |= mmx_writes_rm;
    }
    if (!is_register) {
        how |= parts.writes_rm ? mmx_store : mmx_load;
        if (op.memory_size == 0 || op.memory_size > 16) {
            return nullptr;
        }
    }
    if ((line.flags & vector_flag::fp) != 0) {
        how |= mmx_fp;
    }
    if (parts.reg == Slot::Vector || parts.rm == Slot::Vector) {
        how |= mmx_xmm;
    }
    if (alignment_of(insn, line) != 0) {
        how |= mmx_aligned;
    }
    // CVTPI2PD from memory, by the manuals; CVTPI2PS on AMD's processors.
    if (insn.map == OpcodeMap::Map0F && insn.opcode == 0x2a && !is_register) {
        how |= mmx_none;
    }
    op.extra = static_cast<std::uint8_t>(how);
    return &body_then_next<&execute_mmx>;
}

template <Unit unit, MemoryUse memory>
Handler pick(bool fp, bool flags)
{
    using native_detail::execute;
    using native_detail::FlagUse;
    if (flags) {
        return fp ? &execute<unit, memory, true, FlagUse::Out>
                  : &execute<unit, memory, false, FlagUse::Out>;
    }
    return fp ? &execute<unit, memory, true, FlagUse::None>
              : &execute<unit, memory, false, FlagUse::None>;
}

template <Unit unit>
Handler pick(MemoryUse memory, bool fp, bool flags)
{
    switch (memory) {
    case MemoryUse::None: return pick<unit, MemoryUse::None>(fp, flags);
    case MemoryUse::Load: return pick<unit, MemoryUse::Load>(fp, flags);
    case MemoryUse::Store: return pick<unit, MemoryUse::Store>(fp, flags);
    }
    return nullptr;
}

/// VCVTPH2PS and VCVTPS2PH with AC set: their operand may lie anywhere.
[[gnu::noinline]] void convert_half_unchecked(Cpu& cpu, const Op* op, bool store)
{
    using namespace native_detail;
    check_unit<Unit::Avx>(cpu);
    const WithoutAlignmentCheck unchecked{cpu};
    const std::uint64_t linear =
        linear_address(cpu, *op, op->memory_size, store ? Access::Write : Access::Read);
    static_cast<void>(execute_slow(cpu, op, linear, store, true));
}

template <MemoryUse memory>
const Op* convert_half(Cpu& cpu, const Op* op)
{
    using namespace native_detail;
    if (!cpu.alignment_check) [[likely]] {
        return execute<Unit::Avx, memory, true, FlagUse::None>(cpu, op);
    }
    convert_half_unchecked(cpu, op, memory == MemoryUse::Store);
    return next(cpu, op);
}

bool is_half_conversion(const Insn& insn) noexcept
{
    return insn.vex && ((insn.map == OpcodeMap::Map0F38 && insn.opcode == 0x13) ||
                        (insn.map == OpcodeMap::Map0F3A && insn.opcode == 0x1d));
}

}  // namespace

Handler select_vector(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.map == OpcodeMap::Map0F && insn.opcode == 0x77 && insn.pp == 0) {
        if (!insn.vex) {
            return insn.isa == Isa::Mmx ? &emms : nullptr;
        }
        op.extra = insn.vex_l != 0 ? 0 : 16;
        return insn.isa == Isa::Avx ? &vzero : nullptr;
    }
    const VectorLine* const line = find_vector_line(insn);
    if (line == nullptr) {
        return nullptr;
    }
    const FormParts parts = parts_of(line->form);
    op.memory_size = static_cast<std::uint8_t>(std::min<unsigned>(insn.memory_size, 0xff));
    Operands operands;
    const bool is_64 = context.code_size == CodeSize::Bits64;
    const ThunkSpec spec = spec_of(insn, *line, parts, is_64, operands);
    op.immediate = operands.packed();
    if (parts.reg == Slot::Mmx || parts.rm == Slot::Mmx) {
        const Handler handler = select_mmx(insn, *line, parts, op);
        return handler == nullptr ? nullptr : with_thunk(op, spec, handler);
    }
    MemoryUse memory = MemoryUse::None;
    if (insn.mod != 3) {
        if (op.memory_size == 0 || op.memory_size > 32) {
            return nullptr;
        }
        memory = parts.writes_rm ? MemoryUse::Store : MemoryUse::Load;
    }
    op.extra = alignment_of(insn, *line);
    const bool fp = (line->flags & vector_flag::fp) != 0;
    if (is_half_conversion(insn) && insn.map == OpcodeMap::Map0F3A) {
        using namespace native_detail;
        const unsigned rounding = static_cast<unsigned>(insn.immediate) & (to_half_by_mxcsr | 3U);
        op.vvvv = static_cast<std::uint8_t>(to_half | rounding |
                                            (insn.vex_l != 0 ? to_half_long : std::uint8_t{0}));
    }
    if (is_half_conversion(insn) && memory != MemoryUse::None) {
        return with_thunk(op, spec,
                          memory == MemoryUse::Load ? &convert_half<MemoryUse::Load>
                                                    : &convert_half<MemoryUse::Store>);
    }
    const Handler handler = insn.vex ? pick<Unit::Avx>(memory, fp, spec.flags_out)
                                     : pick<Unit::Sse>(memory, fp, spec.flags_out);
    return with_thunk(op, spec, handler);
}

}  // namespace vmm::x86::soft
