// SPDX-License-Identifier: Apache-2.0

/// @file
/// x87 instructions run on the host's FPU with the guest's state in it, which stays there between
/// them.
///
/// An unmasked exception is only noted by the host (FSW.ES); every waiting instruction of the
/// guest looks for that first and raises #MF, so that the host never does.  With CR0.NE clear the
/// guest gets #MF as well: FERR# and IRQ 13 are not modelled (nor are they by KVM).

#include "x86/soft/x87.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "x86/soft/dispatch.hpp"
#include "x86/soft/native_operand.hpp"

namespace vmm::x86::soft {

namespace {

/// What XRSTOR with mask 1 and XSAVE read and write: the legacy area and the header.
struct alignas(64) HostArea {
    std::array<std::byte, 512> legacy{};
    std::array<std::byte, 64> header{};
};

bool detect_xsave() noexcept
{
    std::uint32_t eax = 1;
    std::uint32_t ebx = 0;
    std::uint32_t ecx = 0;
    std::uint32_t edx = 0;
    asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    constexpr std::uint32_t osxsave = 1U << 27U;
    return (ecx & osxsave) != 0;
}

bool host_has_xsave() noexcept
{
    static const bool has = detect_xsave();
    return has;
}

std::uint16_t host_fsw() noexcept
{
    std::uint16_t value = 0;
    asm volatile("fnstsw %0" : "=a"(value));
    return value;
}

constexpr std::size_t control_bytes = 5;  // FCW, FSW, FTW.
constexpr std::size_t st_bytes = 128;

}  // namespace

bool x87_hides_pointers(const Cpuid& cpuid) noexcept
{
    static const bool hidden = [] {
        alignas(16) std::array<std::byte, 512> before{};
        alignas(16) std::array<std::byte, 512> after{};
        asm volatile("fxsave64 %[before]\n\tfninit\n\tfld1\n\tfxsave64 %[after]\n\t"
                     "fxrstor64 %[before]"
                     : [before] "+m"(before), [after] "=m"(after));
        std::uint64_t instruction = 0;
        std::memcpy(&instruction, after.data() + x87_image::fip, sizeof instruction);
        return instruction == 0;
    }();
    return hidden && !cpuid.is_intel();
}

std::uint8_t x87_pointer_rules(const Cpuid& cpuid) noexcept
{
    constexpr CpuidFeature fdp_on_error{7, 0, CpuidRegister::Ebx, 6};
    constexpr CpuidFeature no_selectors{7, 0, CpuidRegister::Ebx, 13};
    unsigned rules = 0;
    if (!cpuid.has(no_selectors)) {
        rules |= x87_rule::selectors;
    }
    if (cpuid.has(fdp_on_error)) {
        rules |= x87_rule::fdp_on_error;
    }
    if (cpuid.is_intel()) {
        rules |= x87_rule::fop_on_error;
    }
    return static_cast<std::uint8_t>(rules);
}

void fpu_load_live(Cpu& cpu) noexcept
{
    HostArea area;
    std::memcpy(area.legacy.data(), cpu.fpu.x87.data(), control_bytes);
    std::memcpy(area.legacy.data() + x87_image::st, cpu.fpu.x87.data() + x87_image::st, st_bytes);
    if (host_has_xsave()) {
        area.header[0] = std::byte{1};  // XSTATE_BV: x87.
        asm volatile("xrstor64 %0" : : "m"(area), "a"(1U), "d"(0U));
    } else {
        // Takes XMM and MXCSR along.
        const std::uint32_t mxcsr = host_mxcsr();
        std::memcpy(area.legacy.data() + x87_image::mxcsr, &mxcsr, sizeof(mxcsr));
        asm volatile("fxrstor64 %0"
                     :
                     : "m"(area)
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    }
    cpu.x87_live = true;
    cpu.x87_pointer_rules = x87_pointer_rules(cpu.cpuid);
}

void fpu_release_live(Cpu& cpu) noexcept
{
    release_mxcsr(cpu);
    if (!cpu.x87_live) {
        return;
    }
    HostArea area;
    if (host_has_xsave()) {
        asm volatile("xsave64 %0" : "+m"(area) : "a"(1U), "d"(0U));
    } else {
        asm volatile("fxsave64 %0" : "+m"(area));
    }
    asm volatile("fninit");
    std::memcpy(cpu.fpu.x87.data(), area.legacy.data(), control_bytes);
    std::memcpy(cpu.fpu.x87.data() + x87_image::st, area.legacy.data() + x87_image::st, st_bytes);
    cpu.x87_live = false;
}

bool x87_pending(const Cpu& cpu) noexcept
{
    const unsigned fcw = x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fcw);
    if ((fcw & x87_exceptions) == x87_exceptions) {
        return false;
    }
    const unsigned fsw =
        cpu.x87_live ? host_fsw() : x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fsw);
    return (fsw & ~fcw & x87_exceptions) != 0;
}

void x87_set_top(FpuRegisters& fpu, unsigned top) noexcept
{
    const unsigned fsw = x87_image::get<std::uint16_t>(fpu, x87_image::fsw);
    const unsigned distance = ((fsw >> 11U) - top) & 7U;
    if (distance != 0) {
        std::array<std::byte, st_bytes> moved{};
        for (unsigned number = 0; number < 8; ++number) {
            std::memcpy(moved.data() + std::size_t{(number + distance) & 7U} * 16U,
                        fpu.x87.data() + x87_image::st + std::size_t{number} * 16U, 16);
        }
        std::memcpy(fpu.x87.data() + x87_image::st, moved.data(), moved.size());
    }
    x87_image::set(fpu, x87_image::fsw,
                   static_cast<std::uint16_t>((fsw & ~0x3800U) | ((top & 7U) << 11U)));
}

void x87_initialise(FpuRegisters& fpu) noexcept
{
    x87_set_top(fpu, 0);
    std::memset(fpu.x87.data(), 0, x87_image::mxcsr);
    x87_image::set<std::uint16_t>(fpu, x87_image::fcw, x87_initial_fcw);
}

void mmx_enter(FpuRegisters& fpu) noexcept
{
    x87_set_top(fpu, 0);
    x87_image::set<std::uint8_t>(fpu, x87_image::ftw, 0xff);
}

std::uint16_t x87_full_tags(const FpuRegisters& fpu) noexcept
{
    enum : unsigned { Valid, Zero, Special, Empty };
    const unsigned present = x87_image::get<std::uint8_t>(fpu, x87_image::ftw);
    const unsigned top = (x87_image::get<std::uint16_t>(fpu, x87_image::fsw) >> 11U) & 7U;
    unsigned tags = 0;
    for (unsigned physical = 0; physical < 8; ++physical) {
        const std::size_t at = x87_image::st + std::size_t{(physical - top) & 7U} * 16U;
        const auto significand = x87_image::get<std::uint64_t>(fpu, at);
        const unsigned exponent = x87_image::get<std::uint16_t>(fpu, at + 8) & 0x7fffU;
        unsigned tag = Valid;
        if ((present >> physical & 1U) == 0) {
            tag = Empty;
        } else if (exponent == 0 && significand == 0) {
            tag = Zero;
        } else if (exponent == 0 || exponent == 0x7fff || (significand >> 63U) == 0) {
            tag = Special;
        }
        tags |= tag << (2U * physical);
    }
    return static_cast<std::uint16_t>(tags);
}

namespace {

using namespace native_detail;

void check_available(const Cpu& cpu)
{
    if ((cpu.cr0 & (cr0_em | cr0_ts)) != 0) [[unlikely]] {
        raise(Vector::NM);
    }
}

[[gnu::always_inline]] inline void check_pending(const Cpu& cpu)
{
    if (x87_pending(cpu)) [[unlikely]] {
        raise(Vector::MF);
    }
}

[[gnu::always_inline]] inline void make_live(Cpu& cpu) noexcept
{
    if (!cpu.x87_live) [[unlikely]] {
        fpu_load_live(cpu);
    }
}

/// Op::immediate: FOP, and for stores what must not have happened for the store to be made.
std::uint16_t opcode_of(const Op& op) noexcept
{
    return static_cast<std::uint16_t>(op.immediate & 0x7ffU);
}

[[gnu::noinline]] void note_by_rules(Cpu& cpu, const Op* op, bool has_memory) noexcept
{
    const unsigned rules = cpu.x87_pointer_rules;
    const bool selectors = (rules & x87_rule::selectors) != 0 && !cpu.code_64();
    const auto pack = [&](std::uint64_t offset, SegmentIndex segment) {
        return selectors
                   ? (offset & 0xffff'ffffU) | (std::uint64_t{cpu.seg[segment].selector} << 32U)
                   : offset;
    };
    const bool on_error = (rules & (x87_rule::fdp_on_error | x87_rule::fop_on_error)) != 0;
    const bool error = on_error && x87_pending(cpu);
    x87_image::set(cpu.fpu, x87_image::fip, pack(cpu.instruction_rip(), Cs));
    if (error || (rules & x87_rule::fop_on_error) == 0) {
        x87_image::set(cpu.fpu, x87_image::fop, opcode_of(*op));
    }
    if (has_memory && (error || (rules & x87_rule::fdp_on_error) == 0)) {
        x87_image::set(cpu.fpu, x87_image::fdp,
                       pack(effective_address(cpu, *op), static_cast<SegmentIndex>(op->segment)));
    }
}

/// FIP, FDP and FOP after an instruction that is not a control instruction.
template <bool has_memory>
[[gnu::always_inline]] inline void note_instruction(Cpu& cpu, const Op* op) noexcept
{
    if (cpu.x87_pointer_rules != 0) {
        note_by_rules(cpu, op, has_memory);
        return;
    }
    x87_image::set(cpu.fpu, x87_image::fip, cpu.instruction_rip());
    x87_image::set(cpu.fpu, x87_image::fop, opcode_of(*op));
    if constexpr (has_memory) {
        x87_image::set(cpu.fpu, x87_image::fdp, effective_address(cpu, *op));
    }
}

template <bool flags_in, bool flags_out>
const Op* x87_register(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    check_pending(cpu);
    make_live(cpu);
    const std::uint64_t flags =
        thunk_of(*op)(nullptr, nullptr, nullptr, nullptr, flags_in ? cpu.arithmetic_flags : 0U);
    if constexpr (flags_out) {
        cpu.arithmetic_flags = static_cast<std::uint16_t>(flags);
    }
    note_instruction<false>(cpu, op);
    return next(cpu, op);
}

constexpr std::size_t max_operand = 16;
/// Exceptions that, unmasked, keep a store from being made.
constexpr unsigned stops_store = 0x1f;

[[gnu::noinline]] void load_slow(Cpu& cpu, const Op* op, std::uint64_t linear)
{
    alignas(16) std::array<std::byte, max_operand> buffer{};
    // May run code of the library or its user: only then is the state taken to the host.
    read_slow(cpu, static_cast<SegmentIndex>(op->segment), linear, buffer.data(),
              std::min<std::size_t>(op->memory_size, max_operand));
    make_live(cpu);
    thunk_of (*op)(nullptr, buffer.data(), nullptr, nullptr, 0);
}

const Op* x87_load(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    check_pending(cpu);
    const std::uint64_t linear = linear_address(cpu, *op, op->memory_size, Access::Read);
    std::byte* const memory = quick_pointer<false>(cpu, linear, op->memory_size);
    if (memory == nullptr) [[unlikely]] {
        load_slow(cpu, op, linear);
    } else {
        make_live(cpu);
        thunk_of (*op)(nullptr, memory, nullptr, nullptr, 0);
    }
    note_instruction<true>(cpu, op);
    return next(cpu, op);
}

/// A store that may fault, or leave for MMIO, after the stack was popped: the old state comes back.
/// An unmasked exception other than precision means that nothing is stored, wherever to.
[[gnu::noinline]] void store_slow(Cpu& cpu, const Op* op)
{
    const auto segment = static_cast<SegmentIndex>(op->segment);
    const std::size_t size = std::min<std::size_t>(op->memory_size, max_operand);
    fpu_release(cpu);
    const auto before = cpu.fpu.x87;
    alignas(16) std::array<std::byte, max_operand> buffer{};
    make_live(cpu);
    asm volatile("" : : : "memory");
    thunk_of (*op)(nullptr, buffer.data(), nullptr, nullptr, 0);
    const unsigned fcw = x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fcw);
    const bool stored = (host_fsw() & ~fcw & stops_store) == 0;
    fpu_release(cpu);
    if (!stored) {
        return;
    }
    try {
        const std::uint64_t linear = linear_address(cpu, *op, op->memory_size, Access::Write);
        write_slow(cpu, segment, linear, buffer.data(), size);
    } catch (...) {
        cpu.fpu.x87 = before;
        throw;
    }
}

const Op* x87_store(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    check_pending(cpu);
    const unsigned fcw = x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fcw);
    std::byte* memory = nullptr;
    if ((fcw & stops_store) == stops_store) [[likely]] {
        const std::uint64_t linear = linear_address(cpu, *op, op->memory_size, Access::Write);
        memory = quick_pointer<true>(cpu, linear, op->memory_size);
    }
    if (memory == nullptr) [[unlikely]] {
        store_slow(cpu, op);
    } else {
        make_live(cpu);
        thunk_of (*op)(nullptr, memory, nullptr, nullptr, 0);
    }
    note_instruction<true>(cpu, op);
    return next(cpu, op);
}

// --- Control instructions.

void refresh_fcw(Cpu& cpu) noexcept
{
    std::uint16_t value = 0;
    asm volatile("fnstcw %0" : "=m"(value));
    x87_image::set(cpu.fpu, x87_image::fcw, value);
}

[[gnu::noinline]] void fldcw(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    check_pending(cpu);
    const std::uint64_t linear = linear_address(cpu, *op, 2, Access::Read);
    const auto value = load<std::uint16_t>(cpu, static_cast<SegmentIndex>(op->segment), linear);
    make_live(cpu);
    asm volatile("fldcw %0" : : "m"(value));
    refresh_fcw(cpu);  // The host knows which bits are fixed.
}

const Op* fnstcw(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    const std::uint64_t linear = linear_address(cpu, *op, 2, Access::Write);
    store(cpu, static_cast<SegmentIndex>(op->segment), linear,
          x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fcw));
    return next(cpu, op);
}

std::uint16_t current_fsw(const Cpu& cpu) noexcept
{
    return cpu.x87_live ? host_fsw() : x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fsw);
}

const Op* fnstsw_memory(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    const std::uint64_t linear = linear_address(cpu, *op, 2, Access::Write);
    store(cpu, static_cast<SegmentIndex>(op->segment), linear, current_fsw(cpu));
    return next(cpu, op);
}

const Op* fnstsw_ax(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    gpr_at<std::uint16_t>(cpu, 0) = current_fsw(cpu);
    return next(cpu, op);
}

const Op* fnclex(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    if (cpu.x87_live) {
        asm volatile("fnclex");
    } else {
        const auto fsw = x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fsw);
        x87_image::set(cpu.fpu, x87_image::fsw, static_cast<std::uint16_t>(fsw & 0x7f00U));
    }
    return next(cpu, op);
}

const Op* fninit(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    fpu_release(cpu);
    x87_initialise(cpu.fpu);
    return next(cpu, op);
}

const Op* fwait(Cpu& cpu, const Op* op)
{
    constexpr std::uint64_t mp_and_ts = 0xa;
    if ((cpu.cr0 & mp_and_ts) == mp_and_ts) {
        raise(Vector::NM);
    }
    check_pending(cpu);
    return next(cpu, op);
}

/// FNENI, FNDISI, FNSETPM: of the 8087 and 80287, without effect since.
const Op* obsolete(Cpu& cpu, const Op* op)
{
    check_available(cpu);
    return next(cpu, op);
}

// --- Selection.

enum class MemoryKind : std::uint8_t { None, Load, Store, Special };

/// Memory forms by opcode - D8h and ModRM.reg.  SDM Vol. 2D "Escape Opcode Instructions".
MemoryKind memory_kind(unsigned opcode, unsigned group) noexcept
{
    using enum MemoryKind;
    static constexpr std::array<std::array<MemoryKind, 8>, 8> kinds{{
        {Load, Load, Load, Load, Load, Load, Load, Load},
        {Load, None, Store, Store, Special, Special, Special, Special},
        {Load, Load, Load, Load, Load, Load, Load, Load},
        {Load, Store, Store, Store, None, Load, None, Store},
        {Load, Load, Load, Load, Load, Load, Load, Load},
        {Load, Store, Store, Store, Special, None, Special, Special},
        {Load, Load, Load, Load, Load, Load, Load, Load},
        {Load, Store, Store, Store, Load, Load, Store, Store},
    }};
    return kinds[opcode & 7U][group & 7U];
}

/// The bytes that the host will access: not left to the decoder.
unsigned memory_bytes(unsigned opcode, unsigned group) noexcept
{
    static constexpr std::array<std::array<std::uint8_t, 8>, 8> sizes{{
        {4, 4, 4, 4, 4, 4, 4, 4},
        {4, 0, 4, 4, 0, 2, 0, 2},
        {4, 4, 4, 4, 4, 4, 4, 4},
        {4, 4, 4, 4, 0, 10, 0, 10},
        {8, 8, 8, 8, 8, 8, 8, 8},
        {8, 8, 8, 8, 0, 0, 0, 2},
        {2, 2, 2, 2, 2, 2, 2, 2},
        {2, 2, 2, 2, 10, 8, 10, 8},
    }};
    return sizes[opcode & 7U][group & 7U];
}

/// Register forms that run natively: a bit for each ModRM byte C0h … FFh.
bool is_native_register_form(unsigned opcode, unsigned modrm) noexcept
{
    static constexpr std::array<std::uint64_t, 8> forms{
        0xffff'ffff'ffff'ffffU,  // D8: all
        // D9: FLD, FXCH; FNOP; FSTP1; FCHS FABS FTST FXAM; constants; transcendentals.
        0xffff'7f33'ff01'ffffU,
        0x0000'0200'ffff'ffffU,  // DA: FCMOVcc; FUCOMPP
        0x00ff'ff00'ffff'ffffU,  // DB: FCMOVNcc; FUCOMI, FCOMI
        0xffff'ffff'ffff'ffffU,  // DC: all
        0x0000'ffff'ffff'ffffU,  // DD: FFREE FXCH4 FST FSTP FUCOM FUCOMP
        0xffff'ffff'02ff'ffffU,  // DE: arithmetic with pop; FCOMP5; FCOMPP
        0x00ff'ff00'ffff'ffffU,  // DF: FFREEP FXCH7 FSTP8 FSTP9; FUCOMIP, FCOMIP
    };
    return (forms[opcode & 7U] >> (modrm & 0x3fU) & 1U) != 0;
}

/// FCMOVcc, FCMOVNcc.
bool reads_flags(unsigned opcode, unsigned modrm) noexcept
{
    return (opcode == 0xda || opcode == 0xdb) && modrm < 0xe0;
}

/// FCOMI and its kin.
bool writes_flags(unsigned opcode, unsigned modrm) noexcept
{
    return (opcode == 0xdb || opcode == 0xdf) && modrm >= 0xe8;
}

Handler select_control_register_form(unsigned opcode, unsigned modrm) noexcept
{
    if (opcode == 0xdb) {
        switch (modrm) {
        case 0xe0:
        case 0xe1:
        case 0xe4: return &obsolete;
        case 0xe2: return &fnclex;
        case 0xe3: return &fninit;
        default: return nullptr;
        }
    }
    return opcode == 0xdf && modrm == 0xe0 ? &fnstsw_ax : nullptr;
}

Handler select_register_form(const Insn& insn, Op& op)
{
    const unsigned opcode = insn.opcode;
    const unsigned modrm = insn.modrm;
    const Handler control = select_control_register_form(opcode, modrm);
    if (control != nullptr) {
        return control;
    }
    if (!is_native_register_form(opcode, modrm)) {
        return nullptr;
    }
    ThunkSpec spec;
    spec.kind = ThunkKind::X87;
    spec.opcode = insn.opcode;
    spec.modrm = insn.modrm;
    spec.flags_in = reads_flags(opcode, modrm);
    spec.flags_out = writes_flags(opcode, modrm);
    const Handler handler = spec.flags_in    ? &x87_register<true, false>
                            : spec.flags_out ? &x87_register<false, true>
                                             : &x87_register<false, false>;
    return with_thunk(op, spec, handler);
}

Handler select_special(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.opcode == 0xd9 && insn.group == 5) {
        return &body_then_next<&fldcw>;
    }
    if (insn.opcode == 0xd9 && insn.group == 7) {
        return &fnstcw;
    }
    if (insn.opcode == 0xdd && insn.group == 7) {
        return &fnstsw_memory;
    }
    return select_x87_environment(insn, context, op);
}

}  // namespace

bool find_x87_form(const Insn& insn, X87Form& form) noexcept
{
    if (insn.opcode < 0xd8 || insn.opcode > 0xdf) {
        return false;
    }
    form = X87Form{};
    if (insn.mod == 3) {
        form.flags_read = reads_flags(insn.opcode, insn.modrm);
        form.flags_written = writes_flags(insn.opcode, insn.modrm);
        return is_native_register_form(insn.opcode, insn.modrm);
    }
    const MemoryKind kind = memory_kind(insn.opcode, insn.group);
    form.memory_size = static_cast<std::uint8_t>(memory_bytes(insn.opcode, insn.group));
    form.writes = kind == MemoryKind::Store;
    return kind == MemoryKind::Load || kind == MemoryKind::Store;
}

Handler select_x87(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.map != OpcodeMap::Primary || insn.vex) {
        return nullptr;
    }
    if (insn.opcode == 0x9b) {
        return &fwait;
    }
    if (insn.opcode < 0xd8 || insn.opcode > 0xdf) {
        return nullptr;
    }
    op.immediate = ((insn.opcode & 7U) << 8U) | insn.modrm;
    if (insn.mod == 3) {
        return select_register_form(insn, op);
    }
    const MemoryKind kind = memory_kind(insn.opcode, insn.group);
    if (kind == MemoryKind::None) {
        return nullptr;
    }
    if (kind == MemoryKind::Special) {
        return select_special(insn, context, op);
    }
    op.memory_size = static_cast<std::uint8_t>(memory_bytes(insn.opcode, insn.group));
    ThunkSpec spec;
    spec.kind = ThunkKind::X87;
    spec.opcode = insn.opcode;
    spec.modrm = static_cast<std::uint8_t>((unsigned{insn.group} << 3U) | 6U);  // [rsi]
    return with_thunk(op, spec, kind == MemoryKind::Load ? &x87_load : &x87_store);
}

}  // namespace vmm::x86::soft
