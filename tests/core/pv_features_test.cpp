// SPDX-License-Identifier: Apache-2.0

// KVM's paravirtual features beside kvmclock, through the public API.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>

#include "small_vm.hpp"

namespace vmm {
namespace {

using test::SmallVm;

constexpr std::uint32_t async_pf_en = 0x4b56'4d02;
constexpr std::uint32_t steal_time = 0x4b56'4d03;
constexpr std::uint32_t poll_control = 0x4b56'4d05;
constexpr std::uint32_t async_pf_int = 0x4b56'4d06;
constexpr std::uint32_t async_pf_ack = 0x4b56'4d07;
constexpr std::uint32_t kvm_features = 0x4000'0001;

class PvFeatures : public test::EveryEngine {};

std::vector<x86::CpuidEntry> cpuid_with(const Kvm& kvm, std::uint32_t features)
{
    auto entries = kvm.supported_cpuid();
    for (x86::CpuidEntry& entry : entries) {
        if (entry.function == kvm_features) {
            entry.eax = features;
        }
    }
    return entries;
}

TEST_P(PvFeatures, AreOfferedByCpuidAndSavedWithTheMsrs)
{
    SmallVm small{engine()};
    const auto entries = small.kvm().supported_cpuid();
    const auto leaf = std::find_if(entries.begin(), entries.end(), [](const auto& entry) {
        return entry.function == kvm_features;
    });
    ASSERT_NE(leaf, entries.end());
    const auto list = small.kvm().msr_index_list();
    for (const unsigned bit : {4U, 5U, 12U, 14U}) {
        EXPECT_NE(leaf->eax >> bit & 1U, 0U) << bit;
    }
    for (const std::uint32_t index :
         {async_pf_en, steal_time, poll_control, async_pf_int, async_pf_ack}) {
        EXPECT_EQ(std::count(list.begin(), list.end(), index), 1) << std::hex << index;
    }
}

TEST_P(PvFeatures, MsrsKeepWhatIsNotReserved)
{
    SmallVm small{engine(), SmallVm::Irqchip::Full};
    Vcpu vcpu = small.vcpu();
    EXPECT_EQ(vcpu.msr(poll_control).value(), 1U);
    EXPECT_TRUE(vcpu.set_msr(poll_control, 0));
    EXPECT_EQ(vcpu.msr(poll_control).value(), 0U);
    EXPECT_FALSE(vcpu.set_msr(poll_control, 2));
    EXPECT_TRUE(vcpu.set_msr(async_pf_en, 0x2000 | 9U));
    EXPECT_EQ(vcpu.msr(async_pf_en).value(), 0x2009U);
    EXPECT_FALSE(vcpu.set_msr(async_pf_en, 0x2011));
    EXPECT_TRUE(vcpu.set_msr(async_pf_int, 0xf3));
    EXPECT_EQ(vcpu.msr(async_pf_int).value(), 0xf3U);
    EXPECT_FALSE(vcpu.set_msr(async_pf_int, 0x100));
    EXPECT_TRUE(vcpu.set_msr(async_pf_ack, 1));
    EXPECT_EQ(vcpu.msr(async_pf_ack).value(), 0U);
    EXPECT_FALSE(vcpu.set_msr(steal_time, 0x2003));
    EXPECT_TRUE(vcpu.set_msr(steal_time, 0x2001));
    EXPECT_EQ(vcpu.msr(steal_time).value(), 0x2001U);
}

TEST_P(PvFeatures, AsynchronousPageFaultsNeedALocalApic)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    EXPECT_TRUE(vcpu.set_msr(async_pf_en, 0));
    EXPECT_FALSE(vcpu.set_msr(async_pf_en, 0x2001));
    EXPECT_FALSE(vcpu.set_msr(async_pf_int, 0xf3));
}

TEST_P(PvFeatures, StolenTimeIsWrittenWithAnEvenVersion)
{
    SmallVm small{engine()};
    constexpr std::size_t at = 0x2040;
    small.place(at + 8, {7, 0, 0, 0});  // An odd version.
    small.place(at + 16, {1});          // "Preempted".
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_msr(steal_time, at | 1U));
    const auto version = small.vm().memory().read<std::uint32_t>(Gpa{at + 8}).value();
    EXPECT_GE(version, 8U);
    EXPECT_EQ(version % 2U, 0U);
    EXPECT_EQ(small.byte_at(at + 16), 0U);
    EXPECT_EQ(small.vm().memory().read<std::uint64_t>(Gpa{at}).value(), 0U) << "none as yet";
    ASSERT_TRUE(vcpu.set_msr(steal_time, 0xffff'ffff'f001)) << "no memory: nothing is written";
    small.place(0x1000, {0xf4});
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
}

TEST_P(PvFeatures, ExistByCpuidWhereThatIsAskedFor)
{
    SmallVm small{engine(), SmallVm::Irqchip::Full};
    Vcpu vcpu = small.vm().create_vcpu(0).value();
    vcpu.set_cpuid(cpuid_with(small.kvm(), 0)).value();
    EXPECT_TRUE(vcpu.msr(poll_control)) << "KVM does not look at CPUID unless it is told to";
    EXPECT_TRUE(vcpu.msr(0x12));
    vcpu.enforce_pv_features(true);
    for (const std::uint32_t index : {0x11U, 0x12U, 0x4b56'4d00U, 0x4b56'4d01U, async_pf_en,
                                      steal_time, poll_control, async_pf_int, async_pf_ack}) {
        EXPECT_FALSE(vcpu.msr(index)) << std::hex << index;
        EXPECT_FALSE(vcpu.set_msr(index, 0)) << std::hex << index;
    }
    vcpu.set_cpuid(cpuid_with(small.kvm(), 1U << 12U)).value();
    EXPECT_TRUE(vcpu.msr(poll_control));
    EXPECT_FALSE(vcpu.msr(steal_time));
    vcpu.enforce_pv_features(false);
    EXPECT_TRUE(vcpu.msr(steal_time));
}

/// mov $call, %eax; mov $1, %ecx; vmcall; hlt
void place_hypercall(SmallVm& small, unsigned call)
{
    small.place(SmallVm::code_at, {0x66, 0xb8, call, 0, 0, 0, 0x66, 0xb9, 1, 0, 0, 0, 0x0f, 0x01,
                                   0xc1, 0xe6, 0x10, 0xf4});
}

constexpr unsigned kick_cpu = 5;
constexpr unsigned sched_yield = 11;
constexpr std::uint32_t enosys = 0xffff'fc18;

TEST_P(PvFeatures, AVcpuMayEndAnothersHalt)
{
    if (engine() == Engine::Kvm) {
        GTEST_SKIP() << "the host's KVM answers hypercalls, and knows no other vCPU";
    }
    SmallVm small{engine(), SmallVm::Irqchip::Full};
    place_hypercall(small, kick_cpu);
    small.place(0x1800, {0xf4, 0xe6, 0x11, 0xf4});  // hlt; out %al, $0x11; hlt
    Vcpu first = small.vcpu(0);
    Vcpu second = small.vcpu(1);
    second.set_mp_state(x86::MpState::Runnable).value();
    second.set_regs({.rsp = 0x8000, .rip = 0x1800, .rflags = 2});  // It takes no interrupts.
    std::thread other{[&] {
        const Exit exit = second.run().value();
        EXPECT_TRUE(exit.is<PortWrite>()) << exit.name();
    }};
    EXPECT_TRUE(first.run().value().is<PortWrite>());
    EXPECT_EQ(first.regs().rax & 0xffff'ffffU, 0U);
    other.join();
}

TEST_P(PvFeatures, AVcpuIsToldToGoOnByItsApicId)
{
    if (engine() == Engine::Kvm) {
        GTEST_SKIP() << "the host's KVM answers hypercalls, and knows no other vCPU";
    }
    SmallVm small{engine(), SmallVm::Irqchip::Full};
    place_hypercall(small, kick_cpu);
    Vcpu first = small.vcpu(0);
    Vcpu other = small.vcpu(1);
    Vcpu wanted = small.vcpu(2);
    const auto give_apic_id = [](Vcpu& vcpu, std::uint32_t id) {
        auto lapic = vcpu.lapic().value();
        lapic.set(x86::irqchip::LapicRegister::Id, id << 24U);
        vcpu.set_lapic(lapic).value();
        vcpu.set_mp_state(x86::MpState::Halted).value();
    };
    give_apic_id(other, 5);
    give_apic_id(wanted, 1);
    ASSERT_TRUE(first.run().value().is<PortWrite>());
    EXPECT_EQ(other.mp_state(), x86::MpState::Halted);
    EXPECT_EQ(wanted.mp_state(), x86::MpState::Runnable);
}

TEST_P(PvFeatures, AVcpuThatWaitsLooksByItselfForAsLongAsTheVmSays)
{
    SmallVm small{engine(), SmallVm::Irqchip::Full};
    small.place(SmallVm::code_at, {0xf4});
    Vcpu vcpu = small.vcpu();
    const auto wait = [&] {
        vcpu.set_mp_state(x86::MpState::Halted).value();
        std::thread other{[kicker = vcpu.kicker()] {
            std::this_thread::sleep_for(std::chrono::milliseconds{2});
            kicker.kick();
        }};
        EXPECT_TRUE(vcpu.run().value().is<Interrupted>());
        other.join();
    };
    wait();
    EXPECT_EQ(vcpu.statistics().counter("halt_attempted_poll"), 0U);
    small.vm().set_halt_poll_ns(1'000);
    wait();
    EXPECT_EQ(vcpu.statistics().counter("halt_attempted_poll"), 1U);
    EXPECT_EQ(vcpu.statistics().counter("halt_successful_poll"), 0U);
    EXPECT_GE(vcpu.statistics().counter("halt_poll_fail_ns"), 1'000U);
    small.vm().set_halt_poll_ns(~0U);
    wait();
    EXPECT_EQ(vcpu.statistics().counter("halt_attempted_poll"), 2U);
    EXPECT_EQ(vcpu.statistics().counter("halt_successful_poll"), 1U);
    EXPECT_NE(vcpu.statistics().counter("halt_poll_success_ns"), 0U);
    vcpu.set_msr(poll_control, 0).value();
    wait();
    EXPECT_EQ(vcpu.statistics().counter("halt_attempted_poll"), 2U) << "the guest asked not to";
}

TEST_P(PvFeatures, HypercallsThatCpuidDoesNotOfferMayBeHidden)
{
    if (engine() == Engine::Kvm) {
        GTEST_SKIP() << "the host's KVM answers hypercalls";
    }
    for (const unsigned call : {kick_cpu, sched_yield}) {
        SmallVm small{engine(), SmallVm::Irqchip::Full};
        place_hypercall(small, call);
        Vcpu vcpu = small.vcpu();
        ASSERT_TRUE(vcpu.run().value().is<PortWrite>());
        EXPECT_EQ(vcpu.regs().rax & 0xffff'ffffU, 0U) << "a vCPU 1 there is not, nor an error";
        vcpu.enforce_pv_features(true);
        vcpu.set_regs({.rsp = 0x8000, .rip = SmallVm::code_at, .rflags = 2});
        ASSERT_TRUE(vcpu.run().value().is<PortWrite>());
        EXPECT_EQ(vcpu.regs().rax & 0xffff'ffffU, enosys);
    }
}

INSTANTIATE_TEST_SUITE_P(Engines, PvFeatures, test::engines, test::engine_name);

}  // namespace
}  // namespace vmm
