// SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include "x86/cpu_state.hpp"

namespace vmm::x86 {
namespace {

CpuState used_state()
{
    CpuState state;
    state.gpr.fill(~std::uint64_t{0});
    state.rip = 0x1234;
    state.rflags = ~std::uint64_t{0};
    state.cr0 = ~std::uint64_t{0};
    state.cr2 = state.cr3 = state.cr4 = state.cr8 = 7;
    state.efer = 0xd01;
    state.xcr0 = 7;
    state.star = state.lstar = state.kernel_gs_base = state.tsc_aux = 9;
    state.dr.fill(5);
    state.dr6 = state.dr7 = 1;
    state.fpu.mxcsr = 0x1fa0;
    state.fpu.ymm[3][0] = std::byte{1};
    state.nmi_blocked = state.sti_shadow = true;
    state.pending_debug = 1;
    state.inject = Event{};
    state.tsc_offset = 77;
    return state;
}

TEST(Reset, GivesKvmsInitialState)
{
    CpuState state = used_state();
    reset_state(state, false);
    EXPECT_EQ(state.rip, 0xfff0U);
    EXPECT_EQ(state.rflags, 2U);
    EXPECT_EQ(state.gpr[Rdx], 0x600U) << "no CPUID yet";
    EXPECT_EQ(state.gpr[Rax], 0U);
    EXPECT_EQ(state.cr0, 0x6000'0010U);
    EXPECT_EQ(state.cr3 | state.cr4 | state.efer | state.cr2 | state.cr8, 0U);
    EXPECT_EQ(state.seg[Cs].base, 0xffff'0000U);
    EXPECT_EQ(state.seg[Cs].selector, 0xf000U);
    EXPECT_EQ(state.seg[Cs].type, 0xbU);
    for (const SegmentIndex index : {Es, Ss, Ds, Fs, Gs}) {
        EXPECT_EQ(state.seg[index].limit, 0xffffU);
        EXPECT_EQ(state.seg[index].type, 3U);
        EXPECT_EQ(state.seg[index].base, 0U);
        EXPECT_EQ(state.seg[index].present, 1U);
    }
    EXPECT_EQ(state.ldt.type, 2U);
    EXPECT_EQ(state.tr.type, 0xbU);
    EXPECT_EQ(state.gdt.limit, 0xffffU);
    EXPECT_EQ(state.idt.limit, 0xffffU);
    EXPECT_EQ(state.dr6, 0xffff'0ff0U);
    EXPECT_EQ(state.dr7, 0x400U);
    EXPECT_EQ(state.xcr0, 1U);
    EXPECT_EQ(state.lstar | state.kernel_gs_base | state.tsc_aux, 0U);
    EXPECT_EQ(state.fpu.mxcsr, 0x1f80U);
    EXPECT_EQ(state.fpu.x87[0], std::byte{0x7f});
    EXPECT_EQ(state.fpu.x87[1], std::byte{0x03});
    EXPECT_EQ(state.fpu.ymm[3][0], std::byte{0});
    EXPECT_FALSE(state.nmi_blocked || state.sti_shadow || state.inject.has_value());
    EXPECT_EQ(state.pending_debug, 0U);
    EXPECT_EQ(state.tsc_offset, 77U) << "the core's";
}

TEST(Reset, DxHoldsTheSignature)
{
    CpuState state;
    CpuidEntry entry{};
    entry.function = 1;
    entry.eax = 0x000806f8;
    state.cpuid = Cpuid{std::span{&entry, 1}};
    reset_state(state, true);
    EXPECT_EQ(state.gpr[Rdx], 0x806f8U);
}

TEST(Reset, InitKeepsWhatTheManualSays)
{
    CpuState state = used_state();
    reset_state(state, true);
    EXPECT_EQ(state.rip, 0xfff0U);
    EXPECT_EQ(state.cr0, 0x6000'0010U) << "CD and NW were set";
    EXPECT_EQ(state.efer, 0U);
    EXPECT_EQ(state.xcr0, 7U);
    EXPECT_EQ(state.lstar, 9U);
    EXPECT_EQ(state.fpu.mxcsr, 0x1fa0U);
    EXPECT_EQ(state.fpu.ymm[3][0], std::byte{1});
    EXPECT_EQ(state.dr7, 0x400U);

    state = used_state();
    state.cr0 = 0x8000'0011;
    reset_state(state, true);
    EXPECT_EQ(state.cr0, 0x10U);
}

}  // namespace
}  // namespace vmm::x86
