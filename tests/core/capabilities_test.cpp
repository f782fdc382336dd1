// SPDX-License-Identifier: Apache-2.0

// What a VMM may turn on or off of a VM, as KVM_ENABLE_CAP does.

#include <system_error>

#include "small_vm.hpp"
#include "vmm/x86/quirk.hpp"

namespace vmm {
namespace {

using test::SmallVm;

class Capabilities : public test::EveryEngine {};

constexpr std::uint16_t at = SmallVm::code_at;
constexpr std::uint32_t platform_info = 0xce;

TEST_P(Capabilities, ASlotThatBeginsToLogMayBeAllDirty)
{
    SmallVm small{engine()};
    memory::MemoryRegion region{
        .guest_phys_addr = Gpa{0}, .size_bytes = SmallVm::memory_size, .host = small.memory()};
    const auto begin = [&] {
        region.flags = 0;
        ASSERT_TRUE(small.vm().set_user_memory_region(region));
        region.flags = memory::MemoryFlags::log_dirty;
        ASSERT_TRUE(small.vm().set_user_memory_region(region));
    };
    begin();
    EXPECT_EQ(small.vm().peek_dirty_log(0).value(), (std::vector<std::uint64_t>{0, 0, 0, 0}));
    small.vm().set_initially_dirty(true);
    begin();
    constexpr std::uint64_t all = ~std::uint64_t{0};
    EXPECT_EQ(small.vm().peek_dirty_log(0).value(),
              (std::vector<std::uint64_t>{all, all, all, all}));
    EXPECT_EQ(small.vm().dirty_log(0).value().at(0), all);
    ASSERT_TRUE(small.vm().set_user_memory_region(region));
    EXPECT_EQ(small.vm().peek_dirty_log(0).value().at(0), 0U) << "it logs already";
    small.vm().set_initially_dirty(false);
    begin();
    EXPECT_EQ(small.vm().peek_dirty_log(0).value().at(0), 0U);
}

TEST_P(Capabilities, OfASlotNoPageBeyondItsEndIsDirty)
{
    SmallVm small{engine()};
    small.vm().set_initially_dirty(true);
    const std::unique_ptr<std::byte, decltype(&std::free)> pages{
        static_cast<std::byte*>(std::aligned_alloc(4096, 0x43000)), &std::free};
    ASSERT_TRUE(small.vm().set_user_memory_region({.slot = 1,
                                                   .flags = memory::MemoryFlags::log_dirty,
                                                   .guest_phys_addr = Gpa{0x100'0000},
                                                   .size_bytes = 0x43000,
                                                   .host = pages.get()}));
    EXPECT_EQ(small.vm().dirty_log(1).value(),
              (std::vector<std::uint64_t>{~std::uint64_t{0}, 0b111}));
}

TEST_P(Capabilities, APendingTripleFaultEndsTheNextRun)
{
    SmallVm small{engine()};
    small.place(at, {0xf4});
    Vcpu vcpu = small.vcpu();
    EXPECT_EQ(vcpu.events().triple_fault, 0U);
    x86::VcpuEvents events = vcpu.events();
    events.triple_fault = 1;
    ASSERT_TRUE(vcpu.set_events(events));
    EXPECT_EQ(vcpu.events().triple_fault, 1U);
    events.triple_fault = 0;
    ASSERT_TRUE(vcpu.set_events(events));
    EXPECT_EQ(vcpu.events().triple_fault, 0U) << "taken back";
    events.triple_fault = 1;
    ASSERT_TRUE(vcpu.set_events(events));
    EXPECT_TRUE(vcpu.run().value().is<Shutdown>());
    EXPECT_EQ(vcpu.events().triple_fault, 0U);
    EXPECT_EQ(vcpu.regs().rip, at) << "no instruction was executed";
    EXPECT_TRUE(vcpu.run().value().is<Halt>());
}

TEST_P(Capabilities, MsrPlatformInfoIsTheVmmsToSetAndToHide)
{
    SmallVm small{engine()};
    small.place(at, {0x66, 0xb9, 0xce, 0x00, 0x00, 0x00, 0x0f, 0x32, 0xf4});  // rdmsr 0xce; hlt
    small.place(0x2000, {0xf4});
    small.place(4U * 13U, {0x00, 0x20, 0x00, 0x00});  // #GP: 0x2000
    Vcpu vcpu = small.vcpu();
    EXPECT_EQ(vcpu.msr(platform_info).value(), 0U);
    ASSERT_TRUE(vcpu.set_msr(platform_info, 0xff00));
    EXPECT_FALSE(vcpu.set_msr(platform_info, 0x8000'0000)) << "there is no CPUID faulting";
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    EXPECT_EQ(vcpu.regs().rax & 0xffff'ffffU, 0xff00U);
    small.vm().set_platform_info_readable(false);
    EXPECT_EQ(vcpu.msr(platform_info).value(), 0xff00U) << "to the VMM it is";
    vcpu.set_regs({.rsp = 0x8000, .rip = at, .rflags = 2});
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    EXPECT_EQ(vcpu.regs().rip, 0x2001U);
}

TEST_P(Capabilities, TheTscOffsetIsWhatTheGuestIsAhead)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    constexpr std::uint64_t hour = 10'000'000'000'000;
    const std::uint64_t offset = vcpu.tsc_offset();
    const std::uint64_t before = vcpu.msr(0x10).value();
    vcpu.set_tsc_offset(offset + hour);
    EXPECT_EQ(vcpu.tsc_offset(), offset + hour);
    EXPECT_EQ(vcpu.msr(0x3b).value(), 0U) << "IA32_TSC_ADJUST is another matter";
    const std::uint64_t after = vcpu.msr(0x10).value();
    EXPECT_GE(after, before + hour);
    EXPECT_LT(after, before + 2 * hour);
    // Another one that is set by value, close to it, agrees with it.
    Vcpu other = small.vm().create_vcpu(1).value();
    ASSERT_TRUE(other.set_msr(0x10, after));
    EXPECT_EQ(other.tsc_offset(), offset + hour);
}

/// In real mode, where a hypercall's arguments have 32 bits.
TEST_P(Capabilities, AHypercallLeavesWhereThatIsAskedFor)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM emulates real mode, and takes the hypercall of its host's vendor";
    }
    SmallVm small{engine()};
    // mov $12, %eax; mov $0x3000, %ebx; mov $2, %ecx; mov $0x10, %edx; vmcall; hlt
    small.place(at,
                {0x66, 0xb8, 12, 0,    0,    0,    0x66, 0xbb, 0x00, 0x30, 0,    0,    0x66, 0xb9,
                 2,    0,    0,  0x00, 0x66, 0xba, 0x10, 0,    0,    0,    0x0f, 0x01, 0xc1, 0xf4});
    constexpr std::uint64_t map_gpa_range = 1U << 12U;
    Vcpu vcpu = small.vcpu();
    if (small.kvm().check_extension(Capability::ExitHypercall) == 0) {
        EXPECT_EQ(small.vm().set_hypercall_exits(map_gpa_range).error().errno_value(), EINVAL);
        GTEST_SKIP() << "this engine has no exit of hypercalls";
    }
    const auto again = [&] { vcpu.set_regs({.rsp = 0x8000, .rip = at, .rflags = 2}); };
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    EXPECT_EQ(vcpu.regs().rax & 0xffff'ffffU, 0xffff'fc18U) << "-KVM_ENOSYS";

    EXPECT_EQ(small.vm().set_hypercall_exits(1).error().errno_value(), EINVAL);
    ASSERT_TRUE(small.vm().set_hypercall_exits(map_gpa_range));
    again();
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<Hypercall>()) << exit.name();
    const Hypercall& call = *exit.get_if<Hypercall>();
    EXPECT_EQ(call.number, 12U);
    EXPECT_EQ(call.arguments, (std::array<std::uint64_t, 3>{0x3000, 2, 0x10}));
    EXPECT_FALSE(call.long_mode);
    *call.result = 0x1'0000'0005;
    EXPECT_TRUE(exit.complete());
    EXPECT_EQ(vcpu.regs().rax, 5U);
    EXPECT_EQ(vcpu.regs().rip, at + 27U);
    EXPECT_TRUE(vcpu.run().value().is<Halt>());

    again();
    const Exit second = vcpu.run().value();
    ASSERT_TRUE(second.is<Hypercall>());
    EXPECT_TRUE(vcpu.run().value().is<Halt>());
    EXPECT_EQ(vcpu.regs().rax & 0xffff'ffffU, 0U) << "success, unless the caller says otherwise";

    small.place(at + 8, {0x01});  // No page begins at 0x3001.
    again();
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    EXPECT_EQ(vcpu.regs().rax & 0xffff'ffffU, 0xffff'ffeaU) << "-EINVAL";
}

// --- Quirks.

constexpr std::uint16_t ud_handler = 0x2000;

/// Whether the vendor string is Intel's.
bool is_intel(const std::vector<x86::CpuidEntry>& leaves)
{
    constexpr std::uint32_t genu = 0x756e'6547;
    return !leaves.empty() && leaves.front().function == 0 && leaves.front().ebx == genu;
}

TEST_P(Capabilities, TheOtherVendorsHypercallBecomesTheCpusOwn)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM emulates real mode, and takes the hypercall of its host's vendor";
    }
    SmallVm small{engine()};
    const bool intel = is_intel(small.kvm().supported_cpuid());
    const unsigned own = intel ? 0xc1 : 0xd9;
    const unsigned others = intel ? 0xd9 : 0xc1;
    const auto possible =
        static_cast<unsigned>(small.kvm().check_extension(Capability::DisableQuirks2));
    EXPECT_EQ(small.vm().disable_quirks(possible | 0x8000U).error().errno_value(), EINVAL);
    small.place(4U * 6U, {0x00, ud_handler >> 8U, 0x00, 0x00});  // #UD
    small.place(ud_handler, {0xf4});
    Vcpu vcpu = small.vcpu();
    const auto run = [&] {
        small.place(at, {0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0x01, others, 0xf4});  // mov $1, %eax; …
        vcpu.set_regs({.rsp = 0x8000, .rip = at, .rflags = 2});
        ASSERT_TRUE(vcpu.run().value().is<Halt>());
    };
    run();
    EXPECT_EQ(small.byte_at(at + 8), own);
    EXPECT_EQ(vcpu.regs().rip, at + 10U);
    EXPECT_EQ(vcpu.regs().rax & 0xffff'ffffU, 0U) << "KVM_HC_VAPIC_POLL_IRQ";
    if ((possible & x86::quirk::fix_hypercall_insn) == 0U) {
        GTEST_SKIP() << "the host's KVM does so always";
    }
    ASSERT_TRUE(small.vm().disable_quirks(x86::quirk::fix_hypercall_insn));
    run();
    EXPECT_EQ(small.byte_at(at + 8), others);
    EXPECT_EQ(vcpu.regs().rip, ud_handler + 1U);
    ASSERT_TRUE(small.vm().disable_quirks(0));
    run();
    EXPECT_EQ(small.byte_at(at + 8), own);
}

/// A copy of the offer, of which CPUID.1:ECX[bit] is cleared.
std::vector<x86::CpuidEntry> without(std::vector<x86::CpuidEntry> leaves, unsigned bit)
{
    for (x86::CpuidEntry& each : leaves) {
        if (each.function == 1) {
            each.ecx &= ~(1U << bit);
        }
    }
    return leaves;
}

TEST_P(Capabilities, MonitorAndMwaitNeverFaultUnlessThatIsTurnedOff)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM's emulator knows no MONITOR";
    }
    SmallVm small{engine()};
    const auto possible =
        static_cast<unsigned>(small.kvm().check_extension(Capability::DisableQuirks2));
    if ((possible & x86::quirk::mwait_never_ud_faults) == 0U) {
        GTEST_SKIP() << "the host's KVM lets them pass always";
    }
    small.place(4U * 6U, {0x00, ud_handler >> 8U, 0x00, 0x00});  // #UD
    small.place(ud_handler, {0xf4});
    // xor %eax, %eax; xor %ecx, %ecx; xor %edx, %edx; monitor; mwait; hlt
    small.place(at, {0x66, 0x31, 0xc0, 0x66, 0x31, 0xc9, 0x66, 0x31, 0xd2, 0x0f, 0x01, 0xc8, 0x0f,
                     0x01, 0xc9, 0xf4});
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_cpuid(without(small.kvm().supported_cpuid(), 3)));
    const auto run_at = [&](std::uint64_t rip) {
        vcpu.set_regs({.rsp = 0x8000, .rip = rip, .rflags = 2});
        EXPECT_TRUE(vcpu.run().value().is<Halt>());
        return vcpu.regs().rip;
    };
    EXPECT_EQ(run_at(at), at + 16U);
    ASSERT_TRUE(small.vm().disable_quirks(x86::quirk::mwait_never_ud_faults));
    EXPECT_EQ(run_at(at), ud_handler + 1U) << "MONITOR";
    EXPECT_EQ(run_at(at + 12U), ud_handler + 1U) << "MWAIT";
}

TEST_P(Capabilities, MonitorIsOfferedAsMiscEnableSaysWhereThatQuirkIsOff)
{
    constexpr std::uint32_t misc_enable = 0x1a0;
    constexpr std::uint64_t mwait = 1U << 18U;
    SmallVm small{engine()};
    const auto possible =
        static_cast<unsigned>(small.kvm().check_extension(Capability::DisableQuirks2));
    if ((possible & x86::quirk::misc_enable_no_mwait) == 0U) {
        GTEST_SKIP() << "KVM lets nobody change the CPUID of a vCPU that has run";
    }
    // mov $0x1a0, %ecx; rdmsr; xor $1<<18, %eax; wrmsr
    small.place(at, {0x66, 0xb9, 0xa0, 0x01, 0, 0, 0x0f, 0x32, 0x66, 0x35, 0, 0, 4, 0, 0x0f, 0x30});
    constexpr std::uint16_t cpuid_at = at + 16U;
    small.place(cpuid_at, {0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0xf4});  // mov $1, %eax; cpuid; hlt
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_cpuid(without(small.kvm().supported_cpuid(), 3)));
    const auto offered_after = [&](std::uint16_t from) {
        vcpu.set_regs({.rsp = 0x8000, .rip = from, .rflags = 2});
        EXPECT_TRUE(vcpu.run().value().is<Halt>());
        return (vcpu.regs().rcx >> 3U & 1U) != 0U;
    };
    EXPECT_FALSE(offered_after(at)) << "the quirk";
    ASSERT_TRUE(vcpu.set_msr(misc_enable, 0));
    ASSERT_TRUE(small.vm().disable_quirks(x86::quirk::misc_enable_no_mwait));
    EXPECT_TRUE(offered_after(at)) << "the guest set it";
    EXPECT_EQ(vcpu.msr(misc_enable).value(), mwait);
    EXPECT_FALSE(offered_after(at)) << "the guest cleared it";
    ASSERT_TRUE(vcpu.set_msr(misc_enable, mwait));
    EXPECT_TRUE(offered_after(cpuid_at)) << "the VMM set it";
    ASSERT_TRUE(vcpu.set_cpuid(without(small.kvm().supported_cpuid(), 3)));
    EXPECT_TRUE(offered_after(cpuid_at)) << "new leaves follow it too";
    ASSERT_TRUE(vcpu.set_cpuid(without(small.kvm().supported_cpuid(), 0)));
    EXPECT_FALSE(vcpu.set_msr(misc_enable, 0)) << "no SSE3, no such bit";
}

INSTANTIATE_TEST_SUITE_P(Engines, Capabilities, test::engines, test::engine_name);

}  // namespace
}  // namespace vmm
