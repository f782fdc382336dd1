// SPDX-License-Identifier: Apache-2.0

#include <cstring>

#include <gtest/gtest.h>

#include "x86/cpuid.hpp"
#include "x86/tsc.hpp"

namespace vmm::x86 {
namespace {

CpuidEntry entry(std::uint32_t function,
                 std::uint32_t eax,
                 std::uint32_t ebx = 0,
                 std::uint32_t ecx = 0,
                 std::uint32_t edx = 0)
{
    CpuidEntry made{};
    made.function = function;
    made.eax = eax;
    made.ebx = ebx;
    made.ecx = ecx;
    made.edx = edx;
    return made;
}

CpuidEntry indexed(std::uint32_t index, CpuidEntry made)
{
    made.index = index;
    made.flags = CpuidEntry::significant_index;
    return made;
}

Cpuid table(bool intel)
{
    const std::vector<CpuidEntry> entries{
        intel ? entry(0, 0xb, 0x756e'6547, 0x6c65'746e, 0x4965'6e69)
              : entry(0, 0xb, 0x6874'7541, 0x444d'4163, 0x6974'6e65),
        entry(1, 0x1111),
        indexed(0, entry(4, 0x40)),
        indexed(1, entry(4, 0x41)),
        indexed(0, entry(0xb, 1, 2, 0x100, 42)),
        indexed(1, entry(0xb, 4, 4, 0x201, 42)),
        entry(0x4000'0000, 0x4000'0001),
        entry(0x4000'0001, 0x9),
        entry(0x8000'0000, 0x8000'0008),
        entry(0x8000'0008, 0x302e),
    };
    return Cpuid{entries};
}

TEST(CpuidTable, FindsByIndexOnlyWhereItCounts)
{
    const Cpuid cpuid = table(true);
    ASSERT_NE(cpuid.find(1, 77), nullptr);
    EXPECT_EQ(cpuid.find(4, 1)->eax, 0x41U);
    EXPECT_EQ(cpuid.find(4, 2), nullptr);
    EXPECT_EQ(cpuid.find(5, 0), nullptr);
    EXPECT_EQ(cpuid.physical_address_bits(), 46U);
    EXPECT_TRUE(cpuid.is_intel());
    EXPECT_EQ(Cpuid{}.physical_address_bits(), 36U);
    EXPECT_EQ(Cpuid{}.lookup(0, 0).eax, 0U);
    EXPECT_EQ(Cpuid{}.supported_xcr0(), 1U);
}

TEST(CpuidTable, BeyondTheLastLeafVendorsDiffer)
{
    const Cpuid intel = table(true);
    EXPECT_EQ(intel.lookup(0xc, 1).eax, 4U);
    EXPECT_EQ(intel.lookup(0x8000'0009, 0).edx, 42U);
    EXPECT_EQ(intel.lookup(0x4000'0005, 1).eax, 4U);
    EXPECT_EQ(intel.lookup(5, 0).eax, 0U) << "in range: zeroes";
    const Cpuid amd = table(false);
    EXPECT_EQ(amd.lookup(0xc, 1).eax, 0U);
    EXPECT_EQ(amd.lookup(0x8000'0009, 0).edx, 0U);
    EXPECT_FALSE(amd.is_intel());
}

TEST(CpuidTable, TopologyTellsTheIdInEverySubleaf)
{
    const CpuidEntry answer = table(true).lookup(0xb, 0x105);
    EXPECT_EQ(answer.eax, 0U);
    EXPECT_EQ(answer.ecx, 5U);
    EXPECT_EQ(answer.edx, 42U);
}

class Supported : public testing::Test {
protected:
    std::vector<CpuidEntry> entries{supported_cpuid(2'500'000)};
    Cpuid cpuid{entries};
};

TEST_F(Supported, IsSmallAndHasEachLeafOnce)
{
    EXPECT_LT(entries.size(), 80U);
    for (const CpuidEntry& one : entries) {
        unsigned same = 0;
        for (const CpuidEntry& other : entries) {
            same += one.function == other.function && one.index == other.index ? 1U : 0U;
        }
        EXPECT_EQ(same, 1U) << std::hex << one.function;
    }
    EXPECT_EQ(cpuid.find(0, 0)->eax & ~0x1fU, 0U);
}

TEST_F(Supported, LinuxFindsWhatItNeeds)
{
    for (const CpuidFeature& needed :
         {feature::fpu,          feature::pae,        feature::cx8,       feature::apic,
          feature::pge,          feature::cmov,       feature::fxsr,      feature::sse2,
          feature::nx,           feature::syscall,    feature::pcid,      feature::invpcid,
          feature::page_1g,      feature::smep,       feature::smap,      feature::x2apic,
          feature::tsc_deadline, feature::hypervisor, feature::long_mode, feature::lahf_lm,
          feature::rdtscp}) {
        EXPECT_TRUE(cpuid.has(needed)) << std::hex << needed.leaf << " " << needed.bit;
    }
}

TEST_F(Supported, LeavesOutWhatTheEngineCannotRun)
{
    const auto absent = [&](std::uint32_t leaf, CpuidRegister reg, unsigned bit) {
        EXPECT_FALSE(cpuid.has({leaf, 0, reg, bit})) << std::hex << leaf << " " << bit;
    };
    absent(1, CpuidRegister::Ecx, 3);             // MONITOR
    absent(1, CpuidRegister::Ecx, 5);             // VMX
    absent(7, CpuidRegister::Ebx, 4);             // HLE
    absent(7, CpuidRegister::Ebx, 11);            // RTM
    absent(7, CpuidRegister::Ebx, 14);            // MPX
    absent(7, CpuidRegister::Ebx, 16);            // AVX512F
    absent(7, CpuidRegister::Ecx, 3);             // PKU
    absent(7, CpuidRegister::Ecx, 7);             // CET_SS
    absent(7, CpuidRegister::Ecx, 16);            // LA57
    absent(7, CpuidRegister::Edx, 20);            // CET_IBT
    absent(7, CpuidRegister::Edx, 24);            // AMX-TILE
    absent(0x8000'0001, CpuidRegister::Ecx, 2);   // SVM
    absent(0x8000'0001, CpuidRegister::Ecx, 6);   // SSE4A
    absent(0x8000'0001, CpuidRegister::Ecx, 22);  // TOPOEXT
    absent(0x8000'0001, CpuidRegister::Edx, 31);  // 3DNow!
    EXPECT_EQ(cpuid.find(0x8000'001f, 0), nullptr);
    EXPECT_EQ(cpuid.lookup(0xa, 0).eax & 0xffU, 0U);
    EXPECT_EQ(cpuid.lookup(7, 1).eax, 0U);
}

TEST_F(Supported, XsaveSizesFollowTheComponents)
{
    const std::uint64_t xcr0 = cpuid.supported_xcr0();
    EXPECT_EQ(xcr0 & ~std::uint64_t{7}, 0U);
    if (cpuid.has(feature::xsave)) {
        EXPECT_EQ(xcr0 & 3U, 3U);
        const bool avx = cpuid.has(feature::avx);
        EXPECT_EQ((xcr0 & 4U) != 0, avx);
        EXPECT_EQ(cpuid.find(0xd, 0)->ecx, avx ? 832U : 576U);
        EXPECT_EQ(cpuid.find(0xd, 0)->ebx, 576U);
        if (avx) {
            EXPECT_EQ(cpuid.find(0xd, 2)->eax, 256U);
            EXPECT_EQ(cpuid.find(0xd, 2)->ebx, 576U);
        }
    } else {
        EXPECT_FALSE(cpuid.has(feature::avx) || cpuid.has(feature::avx2) ||
                     cpuid.has(feature::fma));
    }
}

TEST_F(Supported, HasKvmsLeaves)
{
    const CpuidEntry* const first = cpuid.find(0x4000'0000, 0);
    ASSERT_NE(first, nullptr);
    EXPECT_EQ(std::memcmp(&first->ebx, "KVMK", 4), 0);
    EXPECT_EQ(std::memcmp(&first->ecx, "VMKV", 4), 0);
    EXPECT_EQ(first->edx, 0x4dU);
    constexpr std::uint32_t clocks = 1U << 0U | 1U << 3U | 1U << 24U;
    EXPECT_EQ(cpuid.find(0x4000'0001, 0)->eax & clocks, clocks);
    EXPECT_EQ(cpuid.find(0x4000'0010, 0)->eax, 2'500'000U);
    EXPECT_EQ(cpuid.find(0x4000'0010, 0)->ebx, 1'000'000U);
}

TEST_F(Supported, PhysicalAddressesFitTheEngine)
{
    EXPECT_GE(cpuid.physical_address_bits(), 36U);
    EXPECT_LE(cpuid.physical_address_bits(), 48U);
    EXPECT_EQ(cpuid.find(0x8000'0008, 0)->eax >> 8U, 48U);
}

TEST(HostTsc, IsPlausibleAndConstant)
{
    EXPECT_GT(host_tsc_khz(), 100'000U);
    EXPECT_LT(host_tsc_khz(), 10'000'000U);
    EXPECT_EQ(host_tsc_khz(), host_tsc_khz());
    const std::uint64_t before = read_host_tsc();
    EXPECT_GE(read_host_tsc(), before);
}

}  // namespace
}  // namespace vmm::x86
