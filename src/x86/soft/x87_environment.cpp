// SPDX-License-Identifier: Apache-2.0

/// @file
/// FSTENV, FLDENV, FSAVE and FRSTOR in their four formats, on the image at rest.
/// SDM Vol. 1 "Saving the x87 FPU's State with FSTENV/FNSTENV and FSAVE/FNSAVE".

#include <array>
#include <cstring>

#include "x86/soft/dispatch.hpp"
#include "x86/soft/native_operand.hpp"
#include "x86/soft/x87.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::size_t registers_size = 80;  // Eight times ten bytes.
constexpr std::size_t max_area = 28 + registers_size;
using Area = std::array<std::byte, max_area>;

// Op::extra.
constexpr std::uint8_t is_32 = 1;
constexpr std::uint8_t is_protected = 2;
constexpr std::uint8_t with_registers = 4;

constexpr std::size_t environment_size(std::uint8_t how) noexcept
{
    return (how & is_32) != 0 ? 28 : 14;
}
constexpr std::size_t area_size(std::uint8_t how) noexcept
{
    return environment_size(how) + ((how & with_registers) != 0 ? registers_size : 0);
}

struct Pointer {
    std::uint32_t offset{};
    std::uint16_t selector{};

    [[nodiscard]] std::uint32_t linear() const noexcept
    {
        return (std::uint32_t{selector} << 4U) + offset;
    }
};

Pointer pointer_of(const FpuRegisters& fpu, std::size_t at) noexcept
{
    const auto raw = x87_image::get<std::uint64_t>(fpu, at);
    return {static_cast<std::uint32_t>(raw), static_cast<std::uint16_t>(raw >> 32U)};
}

template <typename T>
void put(Area& area, std::size_t at, T value) noexcept
{
    std::memcpy(area.data() + at, &value, sizeof(T));
}
template <typename T>
T take(const Area& area, std::size_t at) noexcept
{
    T value;
    std::memcpy(&value, area.data() + at, sizeof(T));
    return value;
}

void write_environment(const Cpu& cpu, std::uint8_t how, Area& area) noexcept
{
    const FpuRegisters& fpu = cpu.fpu;
    const auto fcw = x87_image::get<std::uint16_t>(fpu, x87_image::fcw);
    const auto fsw = x87_image::get<std::uint16_t>(fpu, x87_image::fsw);
    const std::uint32_t fop = x87_image::get<std::uint16_t>(fpu, x87_image::fop) & 0x7ffU;
    Pointer ip = pointer_of(fpu, x87_image::fip);
    Pointer dp = pointer_of(fpu, x87_image::fdp);
    if (cpu.code_64()) {
        ip.selector = 0;
        dp.selector = 0;
    }
    const std::array<std::uint16_t, 3> words{fcw, fsw, x87_full_tags(fpu)};
    constexpr std::uint32_t ones = 0xffff'0000U;  // Reserved halves, as CPUs write them.
    if ((how & is_32) != 0) {
        for (std::size_t i = 0; i < words.size(); ++i) {
            put(area, 4 * i, words[i] | ones);
        }
        if ((how & is_protected) != 0) {
            put(area, 12, ip.offset);
            put(area, 16, ip.selector | (fop << 16U));
            put(area, 20, dp.offset);
            put(area, 24, dp.selector | ones);
        } else {
            put(area, 12, (ip.linear() & 0xffffU) | ones);
            put(area, 16, ((ip.linear() >> 16U) << 12U) | fop);
            put(area, 20, (dp.linear() & 0xffffU) | ones);
            put(area, 24, (dp.linear() >> 16U) << 12U);
        }
        return;
    }
    for (std::size_t i = 0; i < words.size(); ++i) {
        put(area, 2 * i, words[i]);
    }
    const bool real = (how & is_protected) == 0;
    const std::uint32_t ip_offset = real ? ip.linear() : ip.offset;
    const std::uint32_t dp_offset = real ? dp.linear() : dp.offset;
    put(area, 6, static_cast<std::uint16_t>(ip_offset));
    put(area, 8,
        real ? static_cast<std::uint16_t>(((ip_offset >> 16U) << 12U) | fop) : ip.selector);
    put(area, 10, static_cast<std::uint16_t>(dp_offset));
    put(area, 12, real ? static_cast<std::uint16_t>((dp_offset >> 16U) << 12U) : dp.selector);
}

/// The selector of a pointer, where it goes in the image; none, where the processor keeps none.
std::uint64_t selector_part(const Cpu& cpu, std::uint32_t selector) noexcept
{
    const bool kept = (x87_pointer_rules(cpu.cpuid) & x87_rule::selectors) != 0;
    return kept ? std::uint64_t{selector & 0xffffU} << 32U : 0;
}

void read_environment(Cpu& cpu, std::uint8_t how, const Area& area) noexcept
{
    FpuRegisters& fpu = cpu.fpu;
    const std::size_t step = (how & is_32) != 0 ? 4 : 2;
    // Bit 6 of FCW reads as one, the bits above RC as zero.
    const auto fcw = static_cast<std::uint16_t>((take<std::uint16_t>(area, 0) & 0x1f3fU) | 0x40U);
    unsigned fsw = take<std::uint16_t>(area, step) & 0x7f7fU;
    if ((fsw & ~unsigned{fcw} & x87_exceptions) != 0) {
        fsw |= 0x8080U;  // ES and B follow from flags and masks.
    }
    const unsigned tags = take<std::uint16_t>(area, 2 * step);
    unsigned present = 0;
    for (unsigned number = 0; number < 8; ++number) {
        if ((tags >> (2U * number) & 3U) != 3U) {
            present |= 1U << number;
        }
    }
    std::uint64_t ip = 0;
    std::uint64_t dp = 0;
    unsigned fop = 0;  // The 16-bit protected-mode format has none.
    if ((how & is_32) != 0) {
        const auto high = take<std::uint32_t>(area, 16);
        const auto data_high = take<std::uint32_t>(area, 24);
        if ((how & is_protected) != 0) {
            ip = take<std::uint32_t>(area, 12) | selector_part(cpu, high);
            dp = take<std::uint32_t>(area, 20) | selector_part(cpu, data_high);
            fop = high >> 16U;
        } else {
            ip = take<std::uint16_t>(area, 12) | ((high >> 12U & 0xffffU) << 16U);
            dp = take<std::uint16_t>(area, 20) | ((data_high >> 12U & 0xffffU) << 16U);
            fop = high;
        }
    } else {
        const std::uint32_t high = take<std::uint16_t>(area, 8);
        const std::uint32_t data_high = take<std::uint16_t>(area, 12);
        if ((how & is_protected) != 0) {
            ip = take<std::uint16_t>(area, 6) | selector_part(cpu, high);
            dp = take<std::uint16_t>(area, 10) | selector_part(cpu, data_high);
        } else {
            ip = take<std::uint16_t>(area, 6) | ((high >> 12U) << 16U);
            dp = take<std::uint16_t>(area, 10) | ((data_high >> 12U) << 16U);
            fop = high;
        }
    }
    x87_set_top(fpu, (fsw >> 11U) & 7U);
    x87_image::set(fpu, x87_image::fcw, fcw);
    x87_image::set(fpu, x87_image::fsw, static_cast<std::uint16_t>(fsw));
    x87_image::set(fpu, x87_image::ftw, static_cast<std::uint8_t>(present));
    x87_image::set(fpu, x87_image::fop, static_cast<std::uint16_t>(fop & 0x7ffU));
    x87_image::set(fpu, x87_image::fip, ip);
    x87_image::set(fpu, x87_image::fdp, dp);
}

void check_nm(const Cpu& cpu)
{
    using namespace native_detail;
    if ((cpu.cr0 & (cr0_em | cr0_ts)) != 0) {
        raise(Vector::NM);
    }
}

/// FNSTENV, FNSAVE.  Not waiting: pending exceptions are saved, not raised.
[[gnu::noinline]] void store_environment(Cpu& cpu, const Op* op)
{
    check_nm(cpu);
    const std::uint8_t how = op->extra;
    const std::size_t size = area_size(how);
    const std::uint64_t linear = linear_address(cpu, *op, size, Access::Write);
    fpu_release(cpu);
    Area area{};
    write_environment(cpu, how, area);
    if ((how & with_registers) != 0) {
        for (std::size_t number = 0; number < 8; ++number) {
            std::memcpy(area.data() + environment_size(how) + 10 * number,
                        cpu.fpu.x87.data() + x87_image::st + 16 * number, 10);
        }
    }
    const auto segment = static_cast<SegmentIndex>(op->segment);
    probe_write(cpu, segment, linear, size);
    write_slow(cpu, segment, linear, area.data(), size);
    if ((how & with_registers) != 0) {
        x87_initialise(cpu.fpu);
    } else {
        const auto fcw = x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fcw);
        x87_image::set(cpu.fpu, x87_image::fcw, static_cast<std::uint16_t>(fcw | 0x3fU));
        const auto fsw = x87_image::get<std::uint16_t>(cpu.fpu, x87_image::fsw);
        x87_image::set(cpu.fpu, x87_image::fsw, static_cast<std::uint16_t>(fsw & 0x7f7fU));
    }
}

/// FLDENV, FRSTOR.
[[gnu::noinline]] void load_environment(Cpu& cpu, const Op* op)
{
    check_nm(cpu);
    if (x87_pending(cpu)) {
        raise(Vector::MF);
    }
    const std::uint8_t how = op->extra;
    const std::size_t size = area_size(how);
    const std::uint64_t linear = linear_address(cpu, *op, size, Access::Read);
    Area area{};
    read_slow(cpu, static_cast<SegmentIndex>(op->segment), linear, area.data(), size);
    fpu_release(cpu);
    read_environment(cpu, how, area);
    if ((how & with_registers) != 0) {
        for (std::size_t number = 0; number < 8; ++number) {
            std::byte* const st = cpu.fpu.x87.data() + x87_image::st + 16 * number;
            std::memcpy(st, area.data() + environment_size(how) + 10 * number, 10);
            std::memset(st + 10, 0, 6);
        }
    }
}

}  // namespace

Handler select_x87_environment(const Insn& insn, const SelectContext& context, Op& op)
{
    unsigned how = insn.operand_size == 2 ? 0U : is_32;
    if (context.protected_mode || context.code_size == CodeSize::Bits64) {
        how |= is_protected;
    }
    if (insn.opcode == 0xdd) {
        how |= with_registers;
    }
    op.extra = static_cast<std::uint8_t>(how);
    return insn.group == 4 ? &body_then_next<&load_environment>
                           : &body_then_next<&store_environment>;
}

}  // namespace vmm::x86::soft
