// SPDX-License-Identifier: Apache-2.0

#include <cstring>

#include "x86/cpu_state.hpp"

namespace vmm::x86 {

namespace {

constexpr std::uint32_t real_mode_limit = 0xffff;

Segment data_segment() noexcept
{
    Segment segment{};
    segment.limit = real_mode_limit;
    segment.type = 3;  // Read, write, accessed.
    segment.present = 1;
    segment.s = 1;
    return segment;
}

Segment system_segment(std::uint8_t type) noexcept
{
    Segment segment{};
    segment.limit = real_mode_limit;
    segment.type = type;
    segment.present = 1;
    return segment;
}

/// The first code segment: the last 64 KiB below 4 GiB.
Segment code_segment() noexcept
{
    Segment segment = data_segment();
    segment.selector = 0xf000;
    segment.base = 0xffff'0000;
    segment.type = 0xb;  // Execute, read, accessed.
    return segment;
}

/// What FNINIT leaves, as KVM has it after RESET.
void reset_fpu(FpuRegisters& fpu) noexcept
{
    fpu = FpuRegisters{};
    constexpr std::uint16_t control_word = 0x37f;
    std::memcpy(fpu.x87.data(), &control_word, sizeof(control_word));
}

/// What INIT leaves alone.
void reset_kept_by_init(CpuState& state) noexcept
{
    state.xcr0 = 1;
    state.xss = 0;
    state.star = 0;
    state.lstar = 0;
    state.cstar = 0;
    state.fmask = 0;
    state.kernel_gs_base = 0;
    state.sysenter_cs = 0;
    state.sysenter_esp = 0;
    state.sysenter_eip = 0;
    state.tsc_aux = 0;
    reset_fpu(state.fpu);
}

}  // namespace

void reset_state(CpuState& state, bool init)
{
    state.gpr = {};
    const CpuidEntry* const signature = state.cpuid.find(1, 0);
    constexpr std::uint64_t family_6 = 0x600;  // KVM's, while there is no CPUID.
    state.gpr[Rdx] = signature != nullptr ? signature->eax : family_6;
    state.rip = 0xfff0;
    state.rflags = Rflags::one.mask;

    state.seg.fill(data_segment());
    state.seg[Cs] = code_segment();
    state.ldt = system_segment(2);
    state.tr = system_segment(0xb);
    state.gdt = DescriptorTable{0, real_mode_limit, {}};
    state.idt = DescriptorTable{0, real_mode_limit, {}};

    constexpr std::uint64_t caching = mask_of(Cr0::NW, Cr0::CD);
    state.cr0 = Cr0::ET.mask | (init ? state.cr0 & caching : caching);
    state.cr2 = 0;
    state.cr3 = 0;
    state.cr4 = 0;
    state.cr8 = 0;
    state.efer = 0;
    state.dr = {};
    state.dr6 = Dr6::reset;
    state.dr7 = Dr7::reset;

    state.sti_shadow = false;
    state.mov_ss_shadow = false;
    state.smm = false;
    state.nmi_blocked = false;
    state.pending_debug = 0;
    state.inject.reset();
    state.irq_window_requested = false;
    state.nmi_window_requested = false;
    state.smi_window_requested = false;

    if (!init) {
        reset_kept_by_init(state);
    }
}

}  // namespace vmm::x86
