// SPDX-License-Identifier: Apache-2.0

#include "x86/smm.hpp"

#include <cstring>

#include "vmm/x86/control_registers.hpp"

namespace vmm::x86 {
namespace {

// Where things are, from SMBASE + 0xfe00 on.
namespace saved {
constexpr std::size_t segments = 0x000;  // ES, CS, SS, DS, FS, GS: 16 bytes each.
constexpr std::size_t gdt = 0x060;
constexpr std::size_t ldt = 0x070;
constexpr std::size_t idt = 0x080;
constexpr std::size_t tr = 0x090;
constexpr std::size_t efer = 0x0d0;
constexpr std::size_t revision = 0x0fc;
constexpr std::size_t smbase = 0x100;
constexpr std::size_t cr4 = 0x148;
constexpr std::size_t cr3 = 0x150;
constexpr std::size_t cr0 = 0x158;
constexpr std::size_t dr7 = 0x160;
constexpr std::size_t dr6 = 0x168;
constexpr std::size_t rflags = 0x170;
constexpr std::size_t rip = 0x178;
constexpr std::size_t rax = 0x1f8;  // The other registers below it, by number.
}  // namespace saved

/// The map is AMD64's, and SMBASE can be changed.
constexpr std::uint32_t revision_id = 0x0002'0064;

template <typename T>
void put(SmmSaveArea& area, std::size_t at, T value) noexcept
{
    std::memcpy(area.data() + at, &value, sizeof value);
}

template <typename T>
T get(const SmmSaveArea& area, std::size_t at) noexcept
{
    T value{};
    std::memcpy(&value, area.data() + at, sizeof value);
    return value;
}

// Attributes as a descriptor's bits 55:40 have them.
constexpr unsigned s_bit = 4;
constexpr unsigned dpl_shift = 5;
constexpr unsigned present_bit = 7;
constexpr unsigned avl_bit = 12;
constexpr unsigned l_bit = 13;
constexpr unsigned db_bit = 14;
constexpr unsigned g_bit = 15;

void put_segment(SmmSaveArea& area, std::size_t at, const Segment& segment) noexcept
{
    const unsigned attributes =
        unsigned{segment.type} | unsigned{segment.s} << s_bit | unsigned{segment.dpl} << dpl_shift |
        (segment.unusable != 0 ? 0U : unsigned{segment.present}) << present_bit |
        unsigned{segment.avl} << avl_bit | unsigned{segment.l} << l_bit |
        unsigned{segment.db} << db_bit | unsigned{segment.g} << g_bit;
    put(area, at, segment.selector);
    put(area, at + 2, static_cast<std::uint16_t>(attributes));
    put(area, at + 4, segment.limit);
    put(area, at + 8, segment.base);
}

Segment get_segment(const SmmSaveArea& area, std::size_t at) noexcept
{
    const unsigned attributes = get<std::uint16_t>(area, at + 2);
    const auto bits = [attributes](unsigned low, unsigned mask) {
        return static_cast<std::uint8_t>((attributes >> low) & mask);
    };
    Segment segment;
    segment.selector = get<std::uint16_t>(area, at);
    segment.limit = get<std::uint32_t>(area, at + 4);
    segment.base = get<std::uint64_t>(area, at + 8);
    segment.type = bits(0, 15);
    segment.s = bits(s_bit, 1);
    segment.dpl = bits(dpl_shift, 3);
    segment.present = bits(present_bit, 1);
    segment.avl = bits(avl_bit, 1);
    segment.l = bits(l_bit, 1);
    segment.db = bits(db_bit, 1);
    segment.g = bits(g_bit, 1);
    segment.unusable = segment.present != 0 ? 0 : 1;
    return segment;
}

void put_table(SmmSaveArea& area, std::size_t at, const DescriptorTable& table) noexcept
{
    put(area, at + 4, std::uint32_t{table.limit});
    put(area, at + 8, table.base);
}

DescriptorTable get_table(const SmmSaveArea& area, std::size_t at) noexcept
{
    return {get<std::uint64_t>(area, at + 8),
            static_cast<std::uint16_t>(get<std::uint32_t>(area, at + 4)),
            {}};
}

/// Flat, as KVM has them, and of type 3 in CS too.
Segment smm_segment(std::uint16_t selector, std::uint64_t base) noexcept
{
    Segment segment;
    segment.selector = selector;
    segment.base = base;
    segment.limit = 0xffff'ffff;
    segment.type = 3;
    segment.s = 1;
    segment.present = 1;
    segment.g = 1;
    return segment;
}

}  // namespace

SmmSaveArea save_for_smm(const CpuState& state, std::uint32_t smbase) noexcept
{
    SmmSaveArea area{};
    for (std::size_t number = 0; number < 16; ++number) {
        put(area, saved::rax - number * 8, state.gpr[number]);
    }
    put(area, saved::rip, state.rip);
    put(area, saved::rflags, static_cast<std::uint32_t>(state.rflags));
    put(area, saved::dr6, state.dr6);
    put(area, saved::dr7, state.dr7);
    put(area, saved::cr0, state.cr0);
    put(area, saved::cr3, state.cr3);
    put(area, saved::cr4, state.cr4);
    put(area, saved::smbase, smbase);
    put(area, saved::revision, revision_id);
    put(area, saved::efer, state.efer);
    put_segment(area, saved::tr, state.tr);
    put_segment(area, saved::ldt, state.ldt);
    put_table(area, saved::idt, state.idt);
    put_table(area, saved::gdt, state.gdt);
    for (std::size_t number = 0; number < state.seg.size(); ++number) {
        put_segment(area, saved::segments + number * 16, state.seg[number]);
    }
    return area;
}

void enter_smm(CpuState& state, std::uint32_t smbase) noexcept
{
    constexpr std::uint64_t handler = 0x8000;
    state.smm = true;
    state.rflags = Rflags::one.mask;
    state.rip = handler;
    state.cr0 &= ~mask_of(Cr0::PE, Cr0::EM, Cr0::TS, Cr0::PG);
    state.cr4 = 0;
    state.efer = 0;
    state.dr7 = Dr7::reset;
    state.idt = {};
    state.seg.fill(smm_segment(0, 0));
    state.seg[Cs] = smm_segment(static_cast<std::uint16_t>(smbase >> 4U), smbase);
    state.sti_shadow = false;
    state.mov_ss_shadow = false;
}

bool load_after_smm(CpuState& state, const SmmSaveArea& area, std::uint32_t& smbase) noexcept
{
    const auto dr6 = get<std::uint64_t>(area, saved::dr6);
    const auto dr7 = get<std::uint64_t>(area, saved::dr7);
    if (((dr6 | dr7) >> 32U) != 0) {
        return false;
    }
    state.smm = false;
    for (std::size_t number = 0; number < 16; ++number) {
        state.gpr[number] = get<std::uint64_t>(area, saved::rax - number * 8);
    }
    state.rip = get<std::uint64_t>(area, saved::rip);
    state.rflags = (get<std::uint32_t>(area, saved::rflags) & Rflags::defined) | Rflags::one.mask;
    constexpr std::uint64_t dr6_bits = 0xe00f;      // BT, BS, BD and B3 to B0.
    constexpr std::uint64_t dr7_reserved = 0xd000;  // Always 0.
    state.dr6 = (dr6 & dr6_bits) | Dr6::reset;
    state.dr7 = (dr7 & ~dr7_reserved) | Dr7::reset;
    state.cr0 = get<std::uint64_t>(area, saved::cr0) | Cr0::ET.mask;
    state.cr3 = get<std::uint64_t>(area, saved::cr3);
    state.cr4 = get<std::uint64_t>(area, saved::cr4);
    smbase = get<std::uint32_t>(area, saved::smbase);
    // LMA follows from the others.
    const std::uint64_t efer = get<std::uint64_t>(area, saved::efer) & ~Efer::LMA.mask;
    const bool is_long = (state.cr0 & Cr0::PG.mask) != 0 && (efer & Efer::LME.mask) != 0;
    state.efer = efer | (is_long ? Efer::LMA.mask : 0U);
    state.tr = get_segment(area, saved::tr);
    state.ldt = get_segment(area, saved::ldt);
    state.idt = get_table(area, saved::idt);
    state.gdt = get_table(area, saved::gdt);
    for (std::size_t number = 0; number < state.seg.size(); ++number) {
        state.seg[number] = get_segment(area, saved::segments + number * 16);
    }
    return true;
}

}  // namespace vmm::x86
