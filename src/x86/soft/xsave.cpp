// SPDX-License-Identifier: Apache-2.0

/// @file
/// FXSAVE, XSAVE and their kin, and the FPU state at the API.
/// SDM Vol. 1 "Managing State Using the XSAVE Feature Set".

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include <fmt/format.h>

#include "x86/soft/dispatch.hpp"
#include "x86/soft/native_operand.hpp"
#include "x86/soft/x87.hpp"

namespace vmm::x86::soft {

namespace {

using namespace native_detail;

constexpr std::uint64_t x87_component = 1;
constexpr std::uint64_t sse_component = 2;
constexpr std::uint64_t avx_component = 4;
constexpr std::uint64_t known_components = 7;
constexpr std::uint64_t compacted = std::uint64_t{1} << 63U;
constexpr std::uint32_t initial_mxcsr = 0x1f80;

constexpr std::size_t legacy_size = 512;
constexpr std::size_t header_size = 64;
constexpr std::size_t avx_offset = legacy_size + header_size;  // In both formats.
constexpr std::size_t avx_size = 256;

using Legacy = std::array<std::byte, legacy_size>;
using Avx = std::array<std::byte, avx_size>;
using Header = std::array<std::uint64_t, header_size / sizeof(std::uint64_t)>;

void put32(Legacy& area, std::size_t at, std::uint32_t value) noexcept
{
    std::memcpy(area.data() + at, &value, sizeof(value));
}
std::uint32_t get32(const Legacy& area, std::size_t at) noexcept
{
    std::uint32_t value = 0;
    std::memcpy(&value, area.data() + at, sizeof(value));
    return value;
}

constexpr std::size_t x87_control_size = x87_image::mxcsr;  // FCW … FDP.
constexpr std::size_t st_size = 128;

void put_x87(const FpuRegisters& fpu, Legacy& area) noexcept
{
    std::memcpy(area.data(), fpu.x87.data(), x87_control_size);
    std::memcpy(area.data() + x87_image::st, fpu.x87.data() + x87_image::st, st_size);
}

/// What the guest itself sees of it.
void show_x87(const Cpu& cpu, Legacy& area) noexcept
{
    put_x87(cpu.fpu, area);
    constexpr unsigned error_summary = 0x80;
    if ((x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fsw) & error_summary) == 0 &&
        x87_hides_pointers(cpu.cpuid)) {
        std::memset(area.data() + x87_image::fop, 0, x87_control_size - x87_image::fop);
    }
}

void take_x87(FpuRegisters& fpu, const Legacy& area) noexcept
{
    std::memcpy(fpu.x87.data(), area.data(), x87_control_size);
    std::memcpy(fpu.x87.data() + x87_image::st, area.data() + x87_image::st, st_size);
    const auto fcw = x87_image::get<std::uint16_t>(fpu, x87_image::fcw);
    x87_image::set(fpu, x87_image::fcw, static_cast<std::uint16_t>((fcw & 0x1f3fU) | 0x40U));
    // ES and B follow from flags and masks.
    unsigned fsw = x87_image::get<std::uint16_t>(fpu, x87_image::fsw) & 0x7f7fU;
    if ((fsw & ~unsigned{fcw} & x87_exceptions) != 0) {
        fsw |= 0x8080U;
    }
    x87_image::set(fpu, x87_image::fsw, static_cast<std::uint16_t>(fsw));
    fpu.x87[5] = std::byte{0};
    const auto fop = x87_image::get<std::uint16_t>(fpu, x87_image::fop);
    x87_image::set(fpu, x87_image::fop, static_cast<std::uint16_t>(fop & 0x7ffU));
    for (std::size_t number = 0; number < 8; ++number) {
        std::memset(fpu.x87.data() + x87_image::st + 16 * number + 10, 0, 6);
    }
}

bool keeps_selectors(const Cpu& cpu) noexcept
{
    return (x87_pointer_rules(cpu.cpuid) & x87_rule::selectors) != 0;
}

/// Without REX.W the pointers are 32 bits with a selector above, if the processor has any.
void narrow_pointers(Legacy& area, bool keep_selectors) noexcept
{
    for (const std::size_t at : {x87_image::fip + 4, x87_image::fdp + 4}) {
        put32(area, at, keep_selectors ? get32(area, at) & 0xffffU : 0U);
    }
}

void put_mxcsr(const FpuRegisters& fpu, Legacy& area) noexcept
{
    put32(area, x87_image::mxcsr, fpu.mxcsr & mxcsr_valid);
    put32(area, x87_image::mxcsr_mask, mxcsr_valid);
}

void put_xmm(const FpuRegisters& fpu, Legacy& area, std::size_t count) noexcept
{
    for (std::size_t number = 0; number < count; ++number) {
        std::memcpy(area.data() + x87_image::xmm + 16 * number, fpu.ymm[number].data(), 16);
    }
}

void take_xmm(FpuRegisters& fpu, const Legacy& area, std::size_t count) noexcept
{
    for (std::size_t number = 0; number < count; ++number) {
        std::memcpy(fpu.ymm[number].data(), area.data() + x87_image::xmm + 16 * number, 16);
    }
}

void put_avx(const FpuRegisters& fpu, Avx& area, std::size_t count) noexcept
{
    for (std::size_t number = 0; number < count; ++number) {
        std::memcpy(area.data() + 16 * number, fpu.ymm[number].data() + 16, 16);
    }
}

void take_avx(FpuRegisters& fpu, const Avx& area, std::size_t count) noexcept
{
    for (std::size_t number = 0; number < count; ++number) {
        std::memcpy(fpu.ymm[number].data() + 16, area.data() + 16 * number, 16);
    }
}

void initialise_x87(FpuRegisters& fpu) noexcept
{
    x87_initialise(fpu);
    std::memset(fpu.x87.data() + x87_image::st, 0, st_size);
}

bool is_zero(const std::byte* data, std::size_t size) noexcept
{
    return std::all_of(data, data + size, [](std::byte each) { return each == std::byte{0}; });
}

/// XINUSE: the components that are not in their initial configuration.
std::uint64_t components_in_use(const FpuRegisters& fpu) noexcept
{
    std::uint64_t used = 0;
    FpuRegisters initial;
    initialise_x87(initial);
    if (std::memcmp(fpu.x87.data(), initial.x87.data(), x87_control_size) != 0 ||
        !is_zero(fpu.x87.data() + x87_image::st, st_size)) {
        used |= x87_component;
    }
    for (const auto& each : fpu.ymm) {
        if (!is_zero(each.data(), 16)) {
            used |= sse_component;
        }
        if (!is_zero(each.data() + 16, 16)) {
            used |= avx_component;
        }
    }
    return used;
}

std::uint64_t requested(const Cpu& cpu, std::uint64_t enabled) noexcept
{
    const std::uint64_t mask = (cpu.gpr[Rax] & 0xffff'ffffU) | (cpu.gpr[Rdx] << 32U);
    return mask & enabled & known_components;
}

std::size_t register_count(const Cpu& cpu) noexcept
{
    return cpu.code_64() ? 16 : 8;
}

void check_xsave(const Cpu& cpu)
{
    if ((cpu.cr4 & cr4_osxsave) == 0) {
        raise(Vector::UD);
    }
    if ((cpu.cr0 & cr0_ts) != 0) {
        raise(Vector::NM);
    }
}

void check_fxsave(const Cpu& cpu)
{
    // The vendors' manuals differ on CR0.EM.
    if ((cpu.cr0 & cr0_em) != 0) {
        raise(cpu.cpuid.is_intel() ? Vector::UD : Vector::NM);
    }
    if ((cpu.cr0 & cr0_ts) != 0) {
        raise(Vector::NM);
    }
}

std::uint64_t aligned_address(Cpu& cpu,
                              const Op& op,
                              std::size_t size,
                              Access access,
                              std::uint64_t alignment)
{
    const std::uint64_t linear = linear_address(cpu, op, size, access);
    if ((linear & (alignment - 1U)) != 0) {
        raise(Vector::GP, 0);
    }
    return linear;
}

/// An area in guest memory.  Where 64-bit code has addresses of 32 bits, those of its parts wrap.
class GuestArea {
public:
    GuestArea(Cpu& cpu, const Op& op, std::uint64_t linear)
        : cpu_{cpu},
          segment_{static_cast<SegmentIndex>(op.segment)},
          linear_{linear}
    {
        if (cpu.code_64() && op.address_size == 4) {
            wraps_at_ = (std::uint64_t{1} << 32U) - effective_address(cpu, op);
        }
    }

    void probe(std::size_t size) const { probe_write(cpu_, segment_, linear_, size); }
    void write(std::size_t at, const void* data, std::size_t size) const
    {
        write_slow(cpu_, segment_, address(at), data, size);
    }
    void read(std::size_t at, void* data, std::size_t size) const
    {
        read_slow(cpu_, segment_, address(at), data, size);
    }

private:
    [[nodiscard]] std::uint64_t address(std::size_t at) const noexcept
    {
        return linear_ + at - (at >= wraps_at_ ? std::uint64_t{1} << 32U : 0U);
    }

    Cpu& cpu_;
    SegmentIndex segment_;
    std::uint64_t linear_;
    std::uint64_t wraps_at_{~std::uint64_t{0}};
};

// --- FXSAVE, FXRSTOR.  Op::extra, here and below: REX.W, which makes FIP and FDP 64 bits wide.

[[gnu::noinline]] void fxsave(Cpu& cpu, const Op* op)
{
    check_fxsave(cpu);
    const std::uint64_t linear = aligned_address(cpu, *op, legacy_size, Access::Write, 16);
    fpu_release(cpu);
    Legacy area{};
    show_x87(cpu, area);
    if (op->extra == 0) {
        narrow_pointers(area, keeps_selectors(cpu) && !cpu.code_64());
    }
    const GuestArea to{cpu, *op, linear};
    if ((cpu.cr4 & cr4_osfxsr) == 0) {
        to.probe(legacy_size);
        to.write(0, area.data(), x87_image::mxcsr);
        to.write(x87_image::st, area.data() + x87_image::st, st_size);
        return;
    }
    put_mxcsr(cpu.fpu, area);
    const std::size_t count = register_count(cpu);
    put_xmm(cpu.fpu, area, count);
    to.probe(legacy_size);
    to.write(0, area.data(), x87_image::xmm + 16 * count);
}

[[gnu::noinline]] void fxrstor(Cpu& cpu, const Op* op)
{
    check_fxsave(cpu);
    const std::uint64_t linear = aligned_address(cpu, *op, legacy_size, Access::Read, 16);
    Legacy area{};
    GuestArea{cpu, *op, linear}.read(0, area.data(), legacy_size);
    fpu_release(cpu);
    const std::uint32_t mxcsr = get32(area, x87_image::mxcsr);
    if ((cpu.cr4 & cr4_osfxsr) != 0) {
        if ((mxcsr & ~mxcsr_valid) != 0) {
            raise(Vector::GP, 0);
        }
        cpu.fpu.mxcsr = mxcsr;
        take_xmm(cpu.fpu, area, register_count(cpu));
    }
    if (op->extra == 0) {
        narrow_pointers(area, keeps_selectors(cpu));
    }
    take_x87(cpu.fpu, area);
}

// --- XSAVE and kin.

void write_components(const Cpu& cpu,
                      const Op& op,
                      const GuestArea& to,
                      std::uint64_t components,
                      bool mxcsr)
{
    const std::size_t count = register_count(cpu);
    Legacy area{};
    if ((components & x87_component) != 0) {
        show_x87(cpu, area);
        if (op.extra == 0) {
            narrow_pointers(area, keeps_selectors(cpu) && !cpu.code_64());
        }
        to.write(0, area.data(), x87_control_size);
        to.write(x87_image::st, area.data() + x87_image::st, st_size);
    }
    if (mxcsr) {
        put_mxcsr(cpu.fpu, area);
        to.write(x87_image::mxcsr, area.data() + x87_image::mxcsr, 8);
    }
    if ((components & sse_component) != 0) {
        put_xmm(cpu.fpu, area, count);
        to.write(x87_image::xmm, area.data() + x87_image::xmm, 16 * count);
    }
    if ((components & avx_component) != 0) {
        Avx avx{};
        put_avx(cpu.fpu, avx, count);
        to.write(avx_offset, avx.data(), 16 * count);
    }
}

std::size_t area_size(std::uint64_t components) noexcept
{
    return (components & avx_component) != 0 ? avx_offset + avx_size : avx_offset;
}

/// Components as XSTATE_BV counts them: MXCSR makes SSE state in use as well.
std::uint64_t in_use(const FpuRegisters& fpu) noexcept
{
    const bool mxcsr = (fpu.mxcsr & mxcsr_valid) != initial_mxcsr;
    return components_in_use(fpu) | (mxcsr ? sse_component : 0U);
}

template <bool optimised>
[[gnu::noinline]] void xsave_standard(Cpu& cpu, const Op* op)
{
    check_xsave(cpu);
    const std::uint64_t mask = requested(cpu, cpu.xcr0);
    const std::uint64_t linear = aligned_address(cpu, *op, area_size(mask), Access::Write, 64);
    fpu_release(cpu);
    const std::uint64_t used = in_use(cpu.fpu);
    const GuestArea to{cpu, *op, linear};
    to.probe(area_size(mask));
    std::uint64_t saved = 0;
    to.read(legacy_size, &saved, sizeof(saved));
    const bool mxcsr = (mask & (sse_component | avx_component)) != 0;
    write_components(cpu, *op, to, optimised ? mask & used : mask, mxcsr);
    saved = (saved & ~mask) | (mask & used);
    to.write(legacy_size, &saved, sizeof(saved));
}

template <bool supervisor>
[[gnu::noinline]] void xsave_compacted(Cpu& cpu, const Op* op)
{
    check_xsave(cpu);
    if (supervisor && cpu.cpl != 0) {
        raise(Vector::GP, 0);
    }
    const std::uint64_t mask = requested(cpu, supervisor ? cpu.xcr0 | cpu.xss : cpu.xcr0);
    const std::uint64_t linear = aligned_address(cpu, *op, area_size(mask), Access::Write, 64);
    fpu_release(cpu);
    const std::uint64_t used = mask & in_use(cpu.fpu);
    const GuestArea to{cpu, *op, linear};
    to.probe(area_size(mask));
    write_components(cpu, *op, to, used, (used & sse_component) != 0);
    const std::array<std::uint64_t, 2> header{used, mask | compacted};
    to.write(legacy_size, header.data(), sizeof(header));
}

/// What XRSTOR has read, before anything is committed.
struct Restore {
    std::uint64_t mask{};
    std::uint64_t present{};  ///< Of `mask`: from memory; the others become initial.
    bool load_mxcsr{};
    bool reset_mxcsr{};
    Legacy legacy{};
    Avx avx{};
};

void commit(Cpu& cpu, const Restore& from)
{
    FpuRegisters& fpu = cpu.fpu;
    const std::size_t count = register_count(cpu);
    if (from.load_mxcsr) {
        const std::uint32_t mxcsr = get32(from.legacy, x87_image::mxcsr);
        if ((mxcsr & ~mxcsr_valid) != 0) {
            raise(Vector::GP, 0);
        }
        fpu.mxcsr = mxcsr;
    } else if (from.reset_mxcsr) {
        fpu.mxcsr = initial_mxcsr;
    }
    const std::uint64_t initial = from.mask & ~from.present;
    if ((from.present & x87_component) != 0) {
        take_x87(fpu, from.legacy);
    } else if ((initial & x87_component) != 0) {
        initialise_x87(fpu);
    }
    if ((from.mask & sse_component) != 0) {
        take_xmm(fpu, (initial & sse_component) != 0 ? Legacy{} : from.legacy, count);
    }
    if ((from.mask & avx_component) != 0) {
        take_avx(fpu, (initial & avx_component) != 0 ? Avx{} : from.avx, count);
    }
}

template <bool supervisor>
[[gnu::noinline]] void xrstor(Cpu& cpu, const Op* op)
{
    check_xsave(cpu);
    if (supervisor && cpu.cpl != 0) {
        raise(Vector::GP, 0);
    }
    const std::uint64_t enabled = supervisor ? cpu.xcr0 | cpu.xss : cpu.xcr0;
    Restore from;
    from.mask = requested(cpu, enabled);
    const std::uint64_t linear = aligned_address(cpu, *op, area_size(from.mask), Access::Read, 64);
    const GuestArea area{cpu, *op, linear};
    Header header{};
    area.read(legacy_size, header.data(), sizeof(header));
    const std::uint64_t xstate_bv = header[0];
    const std::uint64_t xcomp_bv = header[1];
    const bool is_compacted = (xcomp_bv & compacted) != 0;
    bool valid = true;
    if (is_compacted) {
        const std::uint64_t layout = xcomp_bv & ~compacted;
        valid = (supervisor || cpu.cpuid.has(feature::xsavec)) && (layout & ~enabled) == 0 &&
                (xstate_bv & ~layout) == 0 &&
                std::all_of(header.begin() + 2, header.end(), [](auto each) { return each == 0; });
    } else {
        // Bytes 8 … 23 of the header must be zero.
        valid = !supervisor && (xstate_bv & ~enabled) == 0 && xcomp_bv == 0 && header[2] == 0;
    }
    if (!valid) {
        raise(Vector::GP, 0);
    }
    from.present = from.mask & xstate_bv;
    if (is_compacted) {
        from.load_mxcsr = (from.present & sse_component) != 0;
        from.reset_mxcsr = !from.load_mxcsr && (from.mask & sse_component) != 0;
    } else {
        from.load_mxcsr = (from.mask & (sse_component | avx_component)) != 0;
    }
    if ((from.present & (x87_component | sse_component)) != 0 || from.load_mxcsr) {
        area.read(0, from.legacy.data(), x87_image::end);
    }
    if ((from.present & avx_component) != 0) {
        area.read(avx_offset, from.avx.data(), avx_size);
    }
    if (op->extra == 0) {
        narrow_pointers(from.legacy, keeps_selectors(cpu));
    }
    fpu_release(cpu);
    commit(cpu, from);
}

// --- LDMXCSR, STMXCSR, fences.

template <Unit unit>
const Op* ldmxcsr(Cpu& cpu, const Op* op)
{
    check_unit<unit>(cpu);
    const std::uint64_t linear = linear_address(cpu, *op, 4, Access::Read);
    const auto value = load<std::uint32_t>(cpu, static_cast<SegmentIndex>(op->segment), linear);
    if ((value & ~mxcsr_valid) != 0) {
        raise(Vector::GP, 0);
    }
    release_mxcsr(cpu);
    cpu.fpu.mxcsr = value;
    return next(cpu, op);
}

template <Unit unit>
const Op* stmxcsr(Cpu& cpu, const Op* op)
{
    check_unit<unit>(cpu);
    const std::uint64_t linear = linear_address(cpu, *op, 4, Access::Write);
    release_mxcsr(cpu);
    store<std::uint32_t>(cpu, static_cast<SegmentIndex>(op->segment), linear,
                         cpu.fpu.mxcsr & mxcsr_valid);
    return next(cpu, op);
}

const Op* full_fence(Cpu& cpu, const Op* op)
{
    asm volatile("mfence" : : : "memory");
    return next(cpu, op);
}

const Op* load_fence(Cpu& cpu, const Op* op)
{
    asm volatile("lfence" : : : "memory");
    return next(cpu, op);
}

const Op* store_fence(Cpu& cpu, const Op* op)
{
    asm volatile("sfence" : : : "memory");
    return next(cpu, op);
}

Handler select_memory_form(const Insn& insn)
{
    switch (insn.group) {
    case 0: return &body_then_next<&fxsave>;
    case 1: return &body_then_next<&fxrstor>;
    case 2: return insn.vex ? &ldmxcsr<Unit::Avx> : &ldmxcsr<Unit::Sse>;
    case 3: return insn.vex ? &stmxcsr<Unit::Avx> : &stmxcsr<Unit::Sse>;
    case 4: return &body_then_next<&xsave_standard<false>>;
    case 5: return &body_then_next<&xrstor<false>>;
    case 6: return &body_then_next<&xsave_standard<true>>;
    default: return nullptr;
    }
}

bool is_state_isa(Isa isa) noexcept
{
    constexpr std::array known{Isa::Fxsr,   Isa::Xsave, Isa::Xsaveopt, Isa::Xsavec,
                               Isa::Xsaves, Isa::Sse,   Isa::Sse2,     Isa::Avx};
    return std::find(known.begin(), known.end(), isa) != known.end();
}

}  // namespace

Handler select_state(const Insn& insn, const SelectContext& context, Op& op)
{
    if (insn.map != OpcodeMap::Map0F || insn.pp != 0 || !is_state_isa(insn.isa)) {
        return nullptr;
    }
    op.extra = insn.rex_w && context.code_size == CodeSize::Bits64 ? 1 : 0;
    if (insn.opcode == 0xc7 && insn.mod != 3) {
        switch (insn.group) {
        case 3: return &body_then_next<&xrstor<true>>;
        case 4: return &body_then_next<&xsave_compacted<false>>;
        case 5: return &body_then_next<&xsave_compacted<true>>;
        default: return nullptr;
        }
    }
    if (insn.opcode != 0xae) {
        return nullptr;
    }
    if (insn.mod != 3) {
        return insn.vex && insn.group != 2 && insn.group != 3 ? nullptr : select_memory_form(insn);
    }
    switch (insn.group) {
    case 5: return &load_fence;
    case 6: return &full_fence;
    case 7: return &store_fence;
    default: return nullptr;
    }
}

// --- The API.

void to_fpu(const CpuState& state, Fpu& fpu) noexcept
{
    const FpuRegisters& from = state.fpu;
    fpu = Fpu{};
    fpu.fcw = x87_image::get<std::uint16_t>(from, x87_image::fcw);
    fpu.fsw = x87_image::get<std::uint16_t>(from, x87_image::fsw);
    fpu.ftwx = x87_image::get<std::uint8_t>(from, x87_image::ftw);
    fpu.last_opcode = x87_image::get<std::uint16_t>(from, x87_image::fop);
    fpu.last_ip = x87_image::get<std::uint64_t>(from, x87_image::fip);
    fpu.last_dp = x87_image::get<std::uint64_t>(from, x87_image::fdp);
    for (std::size_t number = 0; number < fpu.fpr.size(); ++number) {
        std::memcpy(fpu.fpr[number].data(), from.x87.data() + x87_image::st + 16 * number, 16);
    }
    for (std::size_t number = 0; number < fpu.xmm.size(); ++number) {
        std::memcpy(fpu.xmm[number].data(), from.ymm[number].data(), 16);
    }
    fpu.mxcsr = from.mxcsr;
}

void from_fpu(CpuState& state, const Fpu& fpu) noexcept
{
    FpuRegisters& to = state.fpu;
    Legacy area{};
    FpuRegisters image;
    x87_image::set(image, x87_image::fcw, fpu.fcw);
    x87_image::set(image, x87_image::fsw, fpu.fsw);
    x87_image::set(image, x87_image::ftw, fpu.ftwx);
    x87_image::set(image, x87_image::fop, fpu.last_opcode);
    x87_image::set(image, x87_image::fip, fpu.last_ip);
    x87_image::set(image, x87_image::fdp, fpu.last_dp);
    for (std::size_t number = 0; number < fpu.fpr.size(); ++number) {
        std::memcpy(image.x87.data() + x87_image::st + 16 * number, fpu.fpr[number].data(), 16);
    }
    put_x87(image, area);
    take_x87(to, area);
    for (std::size_t number = 0; number < fpu.xmm.size(); ++number) {
        std::memcpy(to.ymm[number].data(), fpu.xmm[number].data(), 16);
    }
    to.mxcsr = fpu.mxcsr & mxcsr_valid;
}

void to_xsave(const CpuState& state, Xsave& xsave) noexcept
{
    xsave = Xsave{};
    Legacy legacy{};
    put_x87(state.fpu, legacy);
    put_mxcsr(state.fpu, legacy);
    put_xmm(state.fpu, legacy, 16);
    std::memcpy(xsave.region.data(), legacy.data(), legacy.size());
    const std::uint64_t offered = state.cpuid.supported_xcr0() & known_components;
    std::uint64_t saved = in_use(state.fpu) & (offered | x87_component | sse_component);
    std::memcpy(xsave.region.data() + legacy_size, &saved, sizeof(saved));
    if ((saved & avx_component) != 0) {
        Avx avx{};
        put_avx(state.fpu, avx, 16);
        std::memcpy(xsave.region.data() + avx_offset, avx.data(), avx.size());
    }
}

Result<void> from_xsave(CpuState& state, const Xsave& xsave)
{
    Header header{};
    std::memcpy(header.data(), xsave.region.data() + legacy_size, sizeof(header));
    Legacy legacy{};
    std::memcpy(legacy.data(), xsave.region.data(), legacy.size());
    const std::uint64_t offered =
        (state.cpuid.supported_xcr0() & known_components) | x87_component | sse_component;
    const auto refuse = [](std::string why) {
        return Error{std::errc::invalid_argument, "set XSAVE area: " + std::move(why)};
    };
    if ((header[0] & ~offered) != 0) {
        return refuse(
            fmt::format("XSTATE_BV is {:#x}, this guest's CPUID offers {:#x}", header[0], offered));
    }
    if (!std::all_of(header.begin() + 1, header.end(), [](auto each) { return each == 0; })) {
        return refuse(fmt::format("XCOMP_BV is {:#x}; it and the rest of the header must be 0: "
                                  "only the standard format is taken",
                                  header[1]));
    }
    const std::uint32_t mxcsr = get32(legacy, x87_image::mxcsr);
    const bool uses_mxcsr = (header[0] & (sse_component | avx_component)) != 0;
    if (uses_mxcsr && (mxcsr & ~mxcsr_valid) != 0) {
        return refuse(
            fmt::format("MXCSR is {:#x}, bits above {:#x} are reserved", mxcsr, mxcsr_valid));
    }
    FpuRegisters& to = state.fpu;
    to.mxcsr = uses_mxcsr ? mxcsr : initial_mxcsr;
    if ((header[0] & x87_component) != 0) {
        take_x87(to, legacy);
    } else {
        initialise_x87(to);
    }
    take_xmm(to, (header[0] & sse_component) != 0 ? legacy : Legacy{}, 16);
    Avx avx{};
    if ((header[0] & avx_component) != 0) {
        std::memcpy(avx.data(), xsave.region.data() + avx_offset, avx.size());
    }
    take_avx(to, avx, 16);
    return success;
}

}  // namespace vmm::x86::soft
