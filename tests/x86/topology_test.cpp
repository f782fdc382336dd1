// SPDX-License-Identifier: Apache-2.0

#include <gtest/gtest.h>

#include "vmm/x86/topology.hpp"
#include "x86/cpuid.hpp"

namespace vmm::x86 {
namespace {

class Topology : public testing::TestWithParam<std::uint32_t> {};

TEST_P(Topology, EachVcpuHasItsApicIdAndAllAgreeOnTheCount)
{
    const std::uint32_t count = GetParam();
    const auto supported = supported_cpuid(2'500'000);
    for (std::uint32_t id = 0; id < count; ++id) {
        const Cpuid cpuid{cpuid_for_vcpu(supported, id, count)};
        EXPECT_EQ(cpuid.lookup(1, 0).ebx >> 24U, id & 0xffU);
        EXPECT_EQ((cpuid.lookup(1, 0).ebx >> 16U) & 0xffU, count);
        EXPECT_EQ(cpuid.has({1, 0, CpuidRegister::Edx, 28}), count > 1U);
        EXPECT_EQ(cpuid.lookup(0xb, 0).edx, id);
        EXPECT_EQ(cpuid.lookup(0xb, 1).ebx, count);
        // Enough bits of the APIC id for all cores of the package.
        EXPECT_GE(1U << (cpuid.lookup(0xb, 1).eax & 0x1fU), count);
        EXPECT_EQ(cpuid.lookup(0xb, 2).ecx & 0xff00U, 0U);
    }
}

INSTANTIATE_TEST_SUITE_P(Counts, Topology, testing::Values(1U, 2U, 3U, 4U, 16U, 255U));

}  // namespace
}  // namespace vmm::x86
