// SPDX-License-Identifier: Apache-2.0

// KVM's paravirtual features beside kvmclock, through the public API.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <system_error>
#include <thread>

#include <sys/mman.h>

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
    SmallVm small{options()};
    const auto entries = small.kvm().supported_cpuid();
    const auto leaf = std::find_if(entries.begin(), entries.end(), [](const auto& entry) {
        return entry.function == kvm_features;
    });
    ASSERT_NE(leaf, entries.end());
    const auto list = small.kvm().msr_index_list();
    for (const unsigned bit : {4U, 5U, 6U, 12U, 14U}) {
        EXPECT_NE(leaf->eax >> bit & 1U, 0U) << bit;
    }
    for (const std::uint32_t index :
         {async_pf_en, steal_time, 0x4b56'4d04U, poll_control, async_pf_int, async_pf_ack}) {
        EXPECT_EQ(std::count(list.begin(), list.end(), index), 1) << std::hex << index;
    }
}

TEST_P(PvFeatures, MsrsKeepWhatIsNotReserved)
{
    SmallVm small{options(), SmallVm::Irqchip::Full};
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
    SmallVm small{options()};
    Vcpu vcpu = small.vcpu();
    EXPECT_TRUE(vcpu.set_msr(async_pf_en, 0));
    EXPECT_FALSE(vcpu.set_msr(async_pf_en, 0x2001));
    EXPECT_FALSE(vcpu.set_msr(async_pf_int, 0xf3));
}

TEST_P(PvFeatures, StolenTimeIsWrittenWithAnEvenVersion)
{
    SmallVm small{options()};
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
    SmallVm small{options(), SmallVm::Irqchip::Full};
    Vcpu vcpu = small.vm().create_vcpu(0).value();
    vcpu.set_cpuid(cpuid_with(small.kvm(), 0)).value();
    EXPECT_TRUE(vcpu.msr(poll_control)) << "KVM does not look at CPUID unless it is told to";
    EXPECT_TRUE(vcpu.msr(0x12));
    vcpu.enforce_pv_features(true);
    if (has_kernel_irqchip()) {
        GTEST_SKIP()
            << "a VMM reads 0 from an MSR that KVM lists (Linux 6.11), though there is none";
    }
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

/// By software: KVM hands a kick to no local APIC that is not.
void enable_apic(Vcpu& vcpu)
{
    auto lapic = vcpu.lapic().value();
    lapic.set(x86::irqchip::LapicRegister::Svr, 0x1ff);
    vcpu.set_lapic(lapic).value();
}

TEST_P(PvFeatures, AVcpuMayEndAnothersHalt)
{
    if (engine() == Engine::Kvm && !has_kernel_irqchip()) {
        GTEST_SKIP() << "the host's KVM answers hypercalls, and knows no other vCPU";
    }
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm does not come back from a hypercall";
    }
    SmallVm small{options(), SmallVm::Irqchip::Full};
    place_hypercall(small, kick_cpu);
    small.place(0x1800, {0xf4, 0xe6, 0x11, 0xf4});  // hlt; out %al, $0x11; hlt
    Vcpu first = small.vcpu(0);
    Vcpu second = small.vcpu(1);
    enable_apic(second);
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

constexpr std::uint32_t pv_eoi = 0x4b56'4d04;
constexpr Gpa eoi_byte{0x4000};

/// A guest that takes vector 0x60 by a message, says so at port 0x30 when it may end it without a
/// word and at port 0x31 when not, and ends it in that way.
class SilentEoi {
public:
    explicit SilentEoi(const KvmOptions& options) : small_{options, SmallVm::Irqchip::Full}
    {
        small_.place(0x60 * 4, {0x00, 0x20, 0, 0});
        small_.place(SmallVm::code_at, {0xfb, 0xf4, 0xeb, 0xfd});  // sti; 1: hlt; jmp 1b
        small_.place(0x2000, {
                                 0xf0, 0x0f, 0xba, 0x36, 0x00, 0x40, 0,     // lock btrw $0, 0x4000
                                 0x73, 0x03,                                // jnc 1f
                                 0xe6, 0x30,                                // out %al, $0x30
                                 0xcf,                                      // iret
                                 0xe6, 0x31,                                // 1: out %al, $0x31
                                 0x66, 0x31, 0xc0,                          // xor %eax, %eax
                                 0x64, 0x66, 0x67, 0xa3, 0xb0, 0,    0, 0,  // mov %eax, %fs:0xb0
                                 0xcf,                                      // iret
                             });
        vcpu_.emplace(small_.vcpu());
        x86::Sregs sregs = vcpu_->sregs();
        sregs.fs.base = 0xfee0'0000;
        sregs.fs.limit = 0xffff'ffff;
        vcpu_->set_sregs(sregs).value();
        auto lapic = vcpu_->lapic().value();
        lapic.set(x86::irqchip::LapicRegister::Svr, 0x1ff);
        vcpu_->set_lapic(lapic).value();
    }

    [[nodiscard]] SmallVm& small() { return small_; }
    [[nodiscard]] Vcpu& vcpu() { return *vcpu_; }
    void interrupt() { small_.vm().signal_msi(Gpa{0xfee0'0000}, 0x60).value(); }
    /// The port of the next exit.
    std::uint16_t port()
    {
        const Exit exit = vcpu_->run().value();
        return exit.is<PortWrite>() ? exit.get_if<PortWrite>()->port.value() : std::uint16_t{0};
    }
    /// Whether the interrupt is in service, once the guest has come to rest.
    bool is_in_service()
    {
        vcpu_->kicker().kick();
        EXPECT_TRUE(vcpu_->run().value().is<Interrupted>());
        constexpr auto isr = static_cast<x86::irqchip::LapicRegister>(0x130);  // 0x60 to 0x7f.
        return (vcpu_->lapic().value().get(isr) & 1U) != 0U;
    }

private:
    SmallVm small_;
    std::optional<Vcpu> vcpu_;
};

TEST_P(PvFeatures, AnInterruptMayEndWithoutAWord)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm delivers no interrupt before a HLT";
    }
    SilentEoi guest{options()};
    Vcpu& vcpu = guest.vcpu();
    guest.interrupt();
    EXPECT_EQ(guest.port(), 0x31) << "it was not asked for";
    EXPECT_FALSE(vcpu.set_msr(pv_eoi, eoi_byte.value() | 2U | 1U)) << "of four bytes";
    EXPECT_FALSE(vcpu.set_msr(pv_eoi, 0x1000'0001)) << "there is no memory";
    vcpu.set_msr(pv_eoi, eoi_byte.value() | 1U).value();
    EXPECT_EQ(vcpu.msr(pv_eoi).value(), eoi_byte.value() | 1U);
    // The first ends by a write to its register before this one comes.
    guest.interrupt();
    EXPECT_EQ(guest.port(), 0x30);
    EXPECT_FALSE(guest.is_in_service());
    guest.interrupt();
    EXPECT_EQ(guest.port(), 0x30) << "and again";
    vcpu.set_msr(pv_eoi, 0).value();
    guest.interrupt();
    EXPECT_EQ(guest.port(), 0x31);
}

TEST_P(PvFeatures, AnInterruptThatComesDuringAnotherIsTakenWhenThatHasEndedWithoutAWord)
{
    if (has_kernel_irqchip()) {
        GTEST_SKIP() << "KVM takes its offer back at the next exit, which the handler's wait has";
    }
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm delivers no interrupt before a HLT";
    }
    SilentEoi guest{options()};
    Vcpu& vcpu = guest.vcpu();
    vcpu.set_msr(pv_eoi, eoi_byte.value() | 1U).value();
    // The handler waits for a byte, ends its interrupt without a word, lets interrupts through, and
    // loops: no exit of its own shows the end.
    guest.small().place(0x2000, {
                                    0xc6, 0x06, 0x10, 0x40, 1,              // movb $1, 0x4010
                                    0x80, 0x3e, 0x11, 0x40, 0,              // 1: cmpb $0, 0x4011
                                    0x74, 0xf9,                             // je 1b
                                    0xf0, 0x0f, 0xba, 0x36, 0x00, 0x40, 0,  // lock btrw $0, 0x4000
                                    0x73, 0x05,                             // jnc 3f
                                    0xfb, 0xeb, 0xfe,                       // sti; 2: jmp 2b
                                    0x90, 0x90,                             //
                                    0xe6, 0x31, 0xf4,                       // 3: out; hlt
                                });
    guest.small().place(0x61 * 4, {0x00, 0x28, 0, 0});
    guest.small().place(0x2800, {0xe6, 0x32, 0xf4});
    guest.interrupt();
    std::thread other{[&] {
        const VmMemory memory = guest.small().vm().memory();
        while (memory.read<std::uint8_t>(Gpa{0x4010}) != 1) {
            std::this_thread::yield();
        }
        EXPECT_TRUE(memory.write(Gpa{0x4011}, std::uint8_t{1}));
        while (memory.read<std::uint8_t>(eoi_byte) == 1) {
            std::this_thread::yield();
        }
        // Of the same priority class as the one in service.
        guest.small().vm().signal_msi(Gpa{0xfee0'0000}, 0x61).value();
    }};
    EXPECT_EQ(guest.port(), 0x32);
    other.join();
}

TEST_P(PvFeatures, WhatTheIoApicSendsIsEndedWithAWord)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm delivers no interrupt before a HLT";
    }
    SilentEoi guest{options()};
    guest.vcpu().set_msr(pv_eoi, eoi_byte.value() | 1U).value();
    auto io_apic = guest.small().vm().io_apic().value();
    io_apic.redirection_table[20] = 0x60;
    guest.small().vm().set_io_apic(io_apic).value();
    guest.small().vm().set_irq_line(20, true).value();
    EXPECT_EQ(guest.port(), 0x31);
}

constexpr unsigned no_word = 0;

/// Reads the task priority, writes it, and writes another register, with jumps between; then an
/// OUT.
Vcpu tpr_guest(SmallVm& small)
{
    small.place(SmallVm::code_at, {0x64, 0x66, 0x67, 0xa1, 0x80, 0, 0, 0,  // mov %fs:0x80, %eax
                                   0xeb, 0x00,                             // jmp 1f
                                   0x64, 0x66, 0x67, 0xa3, 0x80, 0, 0, 0,  // 1: mov %eax, %fs:0x80
                                   0xeb, 0x00,                             // jmp 1f
                                   0x64, 0x66, 0x67, 0xa3, 0x90, 0, 0, 0,  // 1: mov %eax, %fs:0x90
                                   0xeb, 0x00,                             // jmp 1f
                                   0xe6, 0x10, 0xf4});                     // 1: out; hlt
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.fs.base = 0xfee0'0000;
    sregs.fs.limit = 0xffff'ffff;
    vcpu.set_sregs(sregs).value();
    return vcpu;
}

TEST_P(PvFeatures, AccessesToTheTaskPriorityLeaveWhereThatIsAskedFor)
{
    if (has_kernel_irqchip() && is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm emulates real mode, and tells of an access much later";
    }
    SmallVm small{options(), SmallVm::Irqchip::Full};
    Vcpu vcpu = tpr_guest(small);
    vcpu.report_tpr_accesses(true);
    for (const bool is_write : {false, true}) {
        const Exit exit = vcpu.run().value();
        ASSERT_TRUE(exit.is<TprAccess>()) << exit.name();
        EXPECT_EQ(exit.get_if<TprAccess>()->is_write, is_write);
        const std::uint64_t at = SmallVm::code_at + (is_write ? 10U : 0U);
        if (engine() != Engine::Kvm || !is_write) {  // The host's KVM has advanced it by then.
            EXPECT_EQ(exit.get_if<TprAccess>()->rip, Gva{at});
        }
        EXPECT_GE(vcpu.regs().rip, at + 8U) << "it is done";
        EXPECT_LE(vcpu.regs().rip, at + 10U) << "and no more than the run of code that it is in";
    }
    EXPECT_TRUE(vcpu.run().value().is<PortWrite>()) << "of other registers nothing is told";
    vcpu.report_tpr_accesses(false);
    vcpu.set_regs({.rsp = 0x8000, .rip = SmallVm::code_at, .rflags = 2});
    EXPECT_TRUE(vcpu.run().value().is<PortWrite>());
}

TEST_P(PvFeatures, ThePriorityIsSharedInAWordOfMemory)
{
    if (has_kernel_irqchip() && is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm emulates real mode, and does not look at the word then";
    }
    SmallVm small{options(), SmallVm::Irqchip::Full};
    // mov 0x4000, %eax; movb $0x20, 0x4000; out %al, $0x10
    small.place(SmallVm::code_at,
                {0x66, 0xa1, 0x00, 0x40, 0xc6, 0x06, 0x00, 0x40, 0x20, 0xe6, 0x10, 0xf4});
    Vcpu vcpu = small.vcpu();
    auto lapic = vcpu.lapic().value();
    lapic.set(x86::irqchip::LapicRegister::Svr, 0x1ff);
    lapic.set(x86::irqchip::LapicRegister::Tpr, 0x73);
    lapic.set(static_cast<x86::irqchip::LapicRegister>(0x110), 1U << 5U);  // In service: 0x25.
    lapic.set(static_cast<x86::irqchip::LapicRegister>(0x210), 1U << 2U);  // Requested: 0x22.
    vcpu.set_lapic(lapic).value();
    EXPECT_FALSE(vcpu.set_vapic_address(Gpa{0x1000'0000}));
    vcpu.set_vapic_address(eoi_byte).value();
    ASSERT_TRUE(vcpu.run().value().is<PortWrite>());
    EXPECT_EQ(vcpu.regs().rax & 0xffff'ffffU, 0x2200'2073U);
    EXPECT_EQ(vcpu.lapic().value().get(x86::irqchip::LapicRegister::Tpr), 0x20U);
    vcpu.set_vapic_address(Gpa{no_word}).value();
}

TEST_P(PvFeatures, WithoutALocalApicThereIsNoPriorityToShare)
{
    SmallVm small{options()};
    EXPECT_FALSE(small.vcpu().set_vapic_address(Gpa{0x4000}));
}

TEST_P(PvFeatures, AVcpuThatWaitsMayBeToldToFlushItsTlb)
{
    if (engine() == Engine::Kvm) {
        GTEST_SKIP() << "KVM_FEATURE_PV_TLB_FLUSH is not offered";
    }
    SmallVm small{options(), SmallVm::Irqchip::Full};
    small.place(SmallVm::code_at, {0xf4});
    Vcpu vcpu = small.vcpu();
    constexpr Gpa time{0x5000};
    constexpr Gpa preempted{0x5000 + 16};
    vcpu.set_msr(steal_time, time.value() | 1U).value();
    const auto wait = [&](std::uint8_t said_by_another) {
        vcpu.set_mp_state(x86::MpState::Halted).value();
        std::thread other{[&, kicker = vcpu.kicker()] {
            while (small.vm().memory().read<std::uint8_t>(preempted) != 1) {
                std::this_thread::yield();
            }
            EXPECT_TRUE(small.vm().memory().write(preempted, said_by_another));
            kicker.kick();
        }};
        const std::uint64_t flushes = vcpu.statistics().counter("tlb_flush");
        EXPECT_TRUE(vcpu.run().value().is<Interrupted>());
        other.join();
        EXPECT_EQ(small.vm().memory().read<std::uint8_t>(preempted), 0);
        return vcpu.statistics().counter("tlb_flush") - flushes;
    };
    const std::uint64_t without = wait(1);
    EXPECT_EQ(wait(1), without);
    EXPECT_EQ(wait(3), without + 1U);
}

TEST_P(PvFeatures, AVcpuIsToldToGoOnByItsApicId)
{
    if (engine() == Engine::Kvm && !has_kernel_irqchip()) {
        GTEST_SKIP() << "the host's KVM answers hypercalls, and knows no other vCPU";
    }
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm does not come back from a hypercall";
    }
    SmallVm small{options(), SmallVm::Irqchip::Full};
    place_hypercall(small, kick_cpu);
    Vcpu first = small.vcpu(0);
    Vcpu other = small.vcpu(1);
    Vcpu wanted = small.vcpu(2);
    const auto give_apic_id = [](Vcpu& vcpu, std::uint32_t id) {
        enable_apic(vcpu);
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
    if (has_kernel_irqchip()) {
        GTEST_SKIP() << "there it waits in the kernel, whose counters are of another kind";
    }
    SmallVm small{options(), SmallVm::Irqchip::Full};
    small.place(SmallVm::code_at, {0xf4});
    Vcpu vcpu = small.vcpu();
    const auto count = [&vcpu](const char* name) { return vcpu.statistics().counter(name); };
    /// Halts, and is kicked when `name` has come to `value`.
    const auto wait_until = [&](const char* name, std::uint64_t value) {
        vcpu.set_mp_state(x86::MpState::Halted).value();
        std::thread other{[&] {
            while (count(name) < value) {
                std::this_thread::yield();
            }
            vcpu.kicker().kick();
        }};
        EXPECT_TRUE(vcpu.run().value().is<Interrupted>());
        other.join();
    };
    wait_until("blocking", 1U);
    EXPECT_EQ(count("halt_attempted_poll"), 0U);
    small.vm().set_halt_poll_ns(1'000);
    wait_until("halt_poll_fail_ns", 1'000U);
    EXPECT_EQ(count("halt_attempted_poll"), 1U);
    EXPECT_EQ(count("halt_successful_poll"), 0U);
    small.vm().set_halt_poll_ns(~0U);
    wait_until("halt_attempted_poll", 2U);
    EXPECT_EQ(count("halt_attempted_poll"), 2U);
    EXPECT_EQ(count("halt_successful_poll"), 1U);
    EXPECT_NE(count("halt_poll_success_ns"), 0U);
    vcpu.set_msr(poll_control, 0).value();
    wait_until("blocking", 1U);
    EXPECT_EQ(count("halt_attempted_poll"), 2U) << "the guest asked not to";
}

TEST_P(PvFeatures, HypercallsThatCpuidDoesNotOfferMayBeHidden)
{
    if (engine() == Engine::Kvm && !has_kernel_irqchip()) {
        GTEST_SKIP() << "the host's KVM answers hypercalls";
    }
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this /dev/kvm does not come back from a hypercall";
    }
    for (const unsigned call : {kick_cpu, sched_yield}) {
        SmallVm small{options(), SmallVm::Irqchip::Full};
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

/// Memory that the process itself may not write.
TEST_P(PvFeatures, NothingIsWrittenIntoReadOnlyMemory)
{
    constexpr std::size_t page = 4096;
    constexpr std::uint64_t rom = 0x100'0000;
    constexpr std::uint32_t system_time = 0x4b56'4d01;
    constexpr std::uint32_t wall_clock = 0x4b56'4d00;
    void* const mapped = ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(mapped, MAP_FAILED);
    {
        SmallVm small{options(), SmallVm::Irqchip::Full};
        ASSERT_TRUE(small.vm().set_user_memory_region({.slot = 1,
                                                       .flags = memory::MemoryFlags::read_only,
                                                       .guest_phys_addr = Gpa{rom},
                                                       .size_bytes = page,
                                                       .host = static_cast<std::byte*>(mapped)}));
        small.place(SmallVm::code_at, {0xe6, 0x10, 0xeb, 0xfc});  // 1: out %al, $0x10; jmp 1b
        Vcpu vcpu = small.vcpu();
        for (const std::uint32_t index : {system_time, wall_clock, steal_time, pv_eoi}) {
            static_cast<void>(vcpu.set_msr(index, rom | 1U));  // Taken or not, as KVM does.
        }
        static_cast<void>(vcpu.set_vapic_address(Gpa{rom}));
        for (int i = 0; i < 3; ++i) {
            ASSERT_TRUE(vcpu.run().value().is<PortWrite>());
        }
    }
    ::munmap(mapped, page);
}

INSTANTIATE_TEST_SUITE_P(Engines, PvFeatures, test::irqchips, test::engine_name);

}  // namespace
}  // namespace vmm
