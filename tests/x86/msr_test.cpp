// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include <gtest/gtest.h>

#include "x86/msr.hpp"

namespace vmm::x86 {
namespace {

Cpuid intel()
{
    // "GenuineIntel" in EBX, EDX, ECX.
    const CpuidEntry vendor{0, 0, 0, 7, 0x756e'6547, 0x6c65'746e, 0x4965'6e69};
    return Cpuid{std::span{&vendor, 1}};
}

TEST(MsrBank, PatRefusesReservedTypes)
{
    MsrBank bank;
    const Cpuid cpuid;
    std::uint64_t value = 0;
    ASSERT_TRUE(bank.read(cpuid, msr::pat, value, MsrAccess::Guest));
    EXPECT_EQ(value, 0x0007'0406'0007'0406U);
    EXPECT_TRUE(bank.write(cpuid, msr::pat, 0x0007'0105'0600'0104, MsrAccess::Guest));
    EXPECT_FALSE(bank.write(cpuid, msr::pat, 0x02, MsrAccess::Guest));
    EXPECT_FALSE(bank.write(cpuid, msr::pat, 0x08, MsrAccess::Guest));
    ASSERT_TRUE(bank.read(cpuid, msr::pat, value, MsrAccess::Guest));
    EXPECT_EQ(value, 0x0007'0105'0600'0104U);
}

TEST(MsrBank, EveryMtrrIsAPlaceOfItsOwn)
{
    MsrBank bank;
    const Cpuid cpuid;
    std::vector<std::uint32_t> indices;
    for (const std::uint32_t index : msr_index_list()) {
        if (index >= msr::mtrr_physbase0 && index < msr::mtrr_def_type && index != msr::pat) {
            indices.push_back(index);
        }
    }
    ASSERT_EQ(indices.size(), 16U + 11U);
    for (const std::uint32_t index : indices) {
        ASSERT_TRUE(bank.write(cpuid, index, index, MsrAccess::Guest));
    }
    for (const std::uint32_t index : indices) {
        std::uint64_t value = 0;
        ASSERT_TRUE(bank.read(cpuid, index, value, MsrAccess::Guest));
        EXPECT_EQ(value, index);
    }
}

TEST(MsrBank, AnUnknownMsrDoesNotExist)
{
    MsrBank bank;
    std::uint64_t value = 1;
    EXPECT_FALSE(bank.read(Cpuid{}, 0x1234'5678, value, MsrAccess::Guest));
    EXPECT_FALSE(bank.write(Cpuid{}, 0x1234'5678, 0, MsrAccess::Host));
}

TEST(MsrBank, VendorsHaveTheirOwn)
{
    MsrBank bank;
    std::uint64_t value = 0;
    EXPECT_TRUE(bank.read(Cpuid{}, msr::amd_hwcr, value, MsrAccess::Guest));
    EXPECT_FALSE(bank.read(intel(), msr::amd_hwcr, value, MsrAccess::Guest));
    EXPECT_TRUE(bank.read(intel(), msr::feature_control, value, MsrAccess::Guest));
    EXPECT_FALSE(bank.read(Cpuid{}, msr::feature_control, value, MsrAccess::Guest));
}

TEST(MsrBank, MachineCheckStatusIsClearedByGuestsAndSetByTheHost)
{
    MsrBank bank;
    const Cpuid cpuid;
    constexpr std::uint32_t mc0_status = msr::mc0_ctl + 1;
    EXPECT_FALSE(bank.write(cpuid, mc0_status, 5, MsrAccess::Guest));
    EXPECT_TRUE(bank.write(cpuid, mc0_status, 5, MsrAccess::Host));
    EXPECT_TRUE(bank.write(cpuid, mc0_status, 0, MsrAccess::Guest));
    EXPECT_FALSE(bank.write(cpuid, msr::mc0_ctl, 5, MsrAccess::Guest));
    EXPECT_TRUE(bank.write(cpuid, msr::mc0_ctl, ~std::uint64_t{0}, MsrAccess::Guest));
}

TEST(StateMsr, AddressesMustBeCanonical)
{
    CpuState state;
    EXPECT_EQ(state_msr(state, msr::lstar), &state.lstar);
    EXPECT_EQ(state_msr(state, msr::gs_base), &state.seg[Gs].base);
    EXPECT_EQ(state_msr(state, msr::pat), nullptr);
    EXPECT_TRUE(is_valid_state_msr(state, msr::lstar, 0xffff'8000'0000'0000));
    EXPECT_TRUE(is_valid_state_msr(state, msr::lstar, 0x0000'7fff'ffff'ffff));
    EXPECT_FALSE(is_valid_state_msr(state, msr::lstar, 0x0000'8000'0000'0000));
    EXPECT_FALSE(is_valid_state_msr(state, msr::efer, 2));
}

}  // namespace
}  // namespace vmm::x86
