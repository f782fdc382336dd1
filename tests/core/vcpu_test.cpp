// SPDX-License-Identifier: Apache-2.0

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include <gtest/gtest.h>

#include "core/probe_guest.hpp"
#include "core/small_vm.hpp"
#include "vmm/vcpu.hpp"

namespace vmm {
namespace {

using test::SmallVm;

class VcpuTest : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, VcpuTest, test::engines, test::engine_name);
class VcpuIrqchipTest : public VcpuTest {};
INSTANTIATE_TEST_SUITE_P(Engines, VcpuIrqchipTest, test::irqchips, test::engine_name);

TEST_P(VcpuTest, StartsInTheResetState)
{
    SmallVm small{engine()};
    const Vcpu vcpu = small.vm().create_vcpu(0).value();
    const x86::Regs regs = vcpu.regs();
    const x86::Sregs sregs = vcpu.sregs();
    EXPECT_EQ(regs.rip, 0xfff0U);
    EXPECT_EQ(regs.rflags, 2U);
    EXPECT_EQ(sregs.cs.selector, 0xf000U);
    EXPECT_EQ(sregs.cs.base, 0xffff'0000U);
    EXPECT_EQ(sregs.cr0, 0x6000'0010U);
    EXPECT_EQ(vcpu.debug_regs().dr6, 0xffff'0ff0U);
    EXPECT_EQ(vcpu.debug_regs().dr7, 0x400U);
    EXPECT_EQ(vcpu.mp_state(), x86::MpState::Runnable);
}

TEST_P(VcpuTest, RegistersRoundTrip)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    x86::Regs regs{.rax = 1,
                   .rbx = 2,
                   .rcx = 3,
                   .rdx = 4,
                   .rsi = 5,
                   .rdi = 6,
                   .rsp = 7,
                   .rbp = 8,
                   .r8 = 9,
                   .r9 = 10,
                   .r10 = 11,
                   .r11 = 12,
                   .r12 = 13,
                   .r13 = 14,
                   .r14 = 15,
                   .r15 = 16,
                   .rip = 17,
                   .rflags = 0x8d7};
    vcpu.set_regs(regs);
    EXPECT_EQ(vcpu.regs(), regs);
}

TEST_P(VcpuTest, AKickBeforeTheRunIsNotLost)
{
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {0xf4});
    Vcpu vcpu = small.vcpu();
    vcpu.kicker().kick();
    EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST_P(VcpuTest, AKickEndsAnEndlessLoop)
{
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xeb, 0xfe});  // out %al, $0x10; jmp .
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    std::thread other{[kicker = vcpu.kicker()] { kicker.kick(); }};
    EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    other.join();
    EXPECT_EQ(vcpu.regs().rip, SmallVm::code_at + 2U);
}

TEST_P(VcpuIrqchipTest, AKickWakesAHaltedOne)
{
    SmallVm small{options(), SmallVm::Irqchip::Full};
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xf4});  // out; hlt
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    std::thread other{[kicker = vcpu.kicker()] { kicker.kick(); }};
    EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    other.join();
}

TEST_P(VcpuTest, AKickerOutlivesItsVcpu)
{
    SmallVm small{engine()};
    const auto kicker = [&] { return small.vcpu().kicker(); }();
    kicker.kick();
}

TEST_P(VcpuTest, CompleteFinishesAPortReadWithoutRunning)
{
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {0xe4, 0x10, 0xf4});  // in $0x10, %al; hlt
    Vcpu vcpu = small.vcpu();
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortRead>());
    EXPECT_EQ(exit.get_if<PortRead>()->data[0], std::byte{0xff});
    exit.get_if<PortRead>()->data[0] = std::byte{0x5a};
    exit.complete();
    EXPECT_EQ(vcpu.regs().rax & 0xffU, 0x5aU);
    EXPECT_EQ(vcpu.regs().rip, SmallVm::code_at + 2U);
    exit.complete();
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    EXPECT_EQ(vcpu.regs().rax & 0xffU, 0x5aU);
}

TEST_P(VcpuTest, MmioExitsCarryAddressAndData)
{
    SmallVm small{engine()};
    // mov $0xffff, %ax; mov %ax, %ds; mov 0x8010, %eax (0x108000); mov %ax, 0x8010; hlt
    small.place(SmallVm::code_at,
                {0xb8, 0xff, 0xff, 0x8e, 0xd8, 0x66, 0xa1, 0x10, 0x80, 0xa3, 0x14, 0x80, 0xf4});
    Vcpu vcpu = small.vcpu();
    Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MmioRead>());
    EXPECT_EQ(exit.get_if<MmioRead>()->gpa, Gpa{0x10'8000});
    ASSERT_EQ(exit.get_if<MmioRead>()->data.size(), 4U);
    for (unsigned i = 0; i < 4; ++i) {
        exit.get_if<MmioRead>()->data[i] = std::byte(0x11 * (i + 1));
    }
    exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MmioWrite>());
    EXPECT_EQ(exit.get_if<MmioWrite>()->gpa, Gpa{0x10'8004});
    ASSERT_EQ(exit.get_if<MmioWrite>()->data.size(), 2U);
    EXPECT_EQ(exit.get_if<MmioWrite>()->data[0], std::byte{0x11});
    exit.complete();
    EXPECT_EQ(vcpu.regs().rip, SmallVm::code_at + 12U);
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    EXPECT_EQ(vcpu.regs().rax, 0x4433'2211U);
}

TEST_P(VcpuTest, AReadThatNobodyAnswersIsAllOnes)
{
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {
                                      0xa2, 0x00, 0x00,        // mov %al, 0
                                      0xa0, 0x01, 0x00,        // mov 1, %al
                                      0xe6, 0x10,              // out %al, $0x10
                                      0x30, 0xc0,              // xor %al, %al
                                      0x02, 0x06, 0x02, 0x00,  // add 2, %al
                                      0xe6, 0x10,              // out %al, $0x10
                                  });
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.ds.base = 0x20'0000;
    vcpu.set_sregs(sregs).value();
    ASSERT_TRUE(vcpu.run()->is<MmioWrite>());
    for (int i = 0; i < 2; ++i) {
        ASSERT_TRUE(vcpu.run()->is<MmioRead>());
        const Exit exit = vcpu.run().value();
        ASSERT_TRUE(exit.is<PortWrite>());
        EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{0xff});
    }
}

TEST_P(VcpuTest, ATripleFaultIsAShutdown)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM delivers real-mode interrupts beyond the limit of the IDT";
    }
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {0x0f, 0x0b});  // ud2, with no interrupt table
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.idt.limit = 0;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    EXPECT_TRUE(vcpu.run()->is<Shutdown>());
}

TEST_P(VcpuTest, MemoryThatTheProcessHasUnmappedIsAnError)
{
    if (engine() == Engine::Soft) {
        GTEST_SKIP() << "it would be a SIGSEGV of this process";
    }
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM emulates real mode, and what it emulates ends otherwise";
    }
    SmallVm small{engine()};
    constexpr std::size_t size = 0x1000;
    void* const page =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(page, MAP_FAILED);
    small.vm()
        .set_user_memory_region({.slot = 1,
                                 .guest_phys_addr = Gpa{0x20'0000},
                                 .size_bytes = size,
                                 .host = static_cast<std::byte*>(page)})
        .value();
    // mov %fs:0, %al; hlt
    small.place(0x1000, {0x64, 0xa0, 0x00, 0x00, 0xf4});
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.fs.base = 0x20'0000;
    vcpu.set_sregs(sregs).value();
    ASSERT_EQ(::munmap(page, size), 0);
    for (int i = 0; i < 2; ++i) {
        const auto refused = vcpu.run();
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code(), std::errc::bad_address);
    }
    ASSERT_EQ(::mmap(page, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
              page);
    *static_cast<std::byte*>(page) = std::byte{0x5a};
    EXPECT_TRUE(vcpu.run().value().is<Halt>());
    EXPECT_EQ(vcpu.regs().rax & 0xffU, 0x5aU);
    small.vm().set_user_memory_region({.slot = 1}).value();
    ::munmap(page, size);
}

TEST_P(VcpuTest, CodeInNoSlotIsAnInternalError)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.cs.base = 0x4000'0000;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    EXPECT_TRUE(vcpu.run()->is<InternalError>());
}

TEST_P(VcpuTest, RefusedStateNamesTheFieldAndTheManual)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.cr4 = 0x2000;
    auto refused = vcpu.set_sregs(sregs);
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().errno_value(), EINVAL);
    EXPECT_NE(refused.error().message().find("CR4 = 0x2000"), std::string::npos);
    EXPECT_NE(refused.error().message().find("SDM"), std::string::npos);

    sregs = vcpu.sregs();
    sregs.cr0 |= 0x8000'0000;  // PG without PE
    EXPECT_EQ(vcpu.set_sregs(sregs).error().errno_value(), EINVAL);
    sregs = vcpu.sregs();
    sregs.efer = 0x400;  // LMA without LME and PG
    EXPECT_EQ(vcpu.set_sregs(sregs).error().errno_value(), EINVAL);
    EXPECT_EQ(vcpu.set_xcr0(2).error().errno_value(), EINVAL);
    EXPECT_EQ(vcpu.set_debug_regs({.dr7 = std::uint64_t{1} << 32U}).error().errno_value(), EINVAL);
    EXPECT_EQ(vcpu.set_mp_state(x86::MpState::Halted).error().errno_value(), EINVAL);
    EXPECT_EQ(vcpu.msr(0x1234'5678).error().errno_value(), EINVAL);
}

TEST_P(VcpuIrqchipTest, MsrsOfTheIndexListRoundTrip)
{
    SmallVm small{options(), SmallVm::Irqchip::Full};
    Vcpu vcpu = small.vcpu();
    for (const std::uint32_t index : small.kvm().msr_index_list()) {
        const auto value = vcpu.msr(index);
        ASSERT_TRUE(value.has_value()) << std::hex << index;
        if (index != 0xfe) {  // IA32_MTRRCAP is read-only.
            EXPECT_TRUE(vcpu.set_msr(index, *value).has_value()) << std::hex << index;
        }
    }
}

TEST_P(VcpuTest, ACpuidFeatureTheHostLacksIsRefused)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    auto entries = small.kvm().supported_cpuid();
    for (x86::CpuidEntry& entry : entries) {
        if (entry.function == 7 && entry.index == 0) {
            entry.ebx |= 1U << 16U;  // AVX512F: this engine runs none of it.
        }
    }
    const auto refused = vcpu.set_cpuid(entries);
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().errno_value(), EINVAL);
}

TEST_P(VcpuTest, FpuAndXsaveStateRoundTrip)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    x86::Fpu fpu = vcpu.fpu();
    fpu.fcw = 0x27f;
    fpu.mxcsr = 0x1f80;
    fpu.xmm[3][5] = 0xab;
    fpu.fpr[2][9] = 0x40;
    vcpu.set_fpu(fpu);
    EXPECT_EQ(vcpu.fpu(), fpu);
    const x86::Xsave image = vcpu.xsave();
    ASSERT_TRUE(vcpu.set_xsave(image).has_value());
    EXPECT_EQ(vcpu.xsave(), image);
    EXPECT_EQ(vcpu.fpu(), fpu);
}

/// An interrupt table entry of real mode, and a handler there that writes `vector` to port 0x80.
void place_handler(SmallVm& small, unsigned vector, std::uint16_t handler)
{
    small.place(vector * 4U, {handler & 0xffU, unsigned{handler} >> 8U, 0, 0});
    // mov $vector, %al; out %al, $0x80; iret
    small.place(handler, {0xb0, vector, 0xe6, 0x80, 0xcf});
}

TEST_P(VcpuTest, AnInterruptWaitsForTheGuestToAllowIt)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM opens no interrupt window before a HLT";
    }
    SmallVm small{engine()};
    place_handler(small, 0x30, 0x2000);
    // out %al, $0x10; sti; nop; nop; hlt
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xfb, 0x90, 0x90, 0xf4});
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    EXPECT_FALSE(vcpu.ready_for_interrupt_injection());
    ASSERT_TRUE(vcpu.interrupt(0x30).has_value());
    EXPECT_EQ(vcpu.interrupt(0x31).error().errno_value(), EEXIST);
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>());
    EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{0x30});
    // The return address is behind the instruction in the shadow of STI.
    EXPECT_EQ(small.byte_at(0x8000 - 6), (SmallVm::code_at + 4U) & 0xffU);
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST_P(VcpuTest, CpuidIsAsLongAsItsPrefixesMakeIt)
{
    SmallVm small{engine()};
    // xor %eax, %eax; cpuid (with and without a prefix); mov %bl, %al; out %al, $0x10; hlt
    small.place(SmallVm::code_at, {0x66, 0x31, 0xc0, 0x66, 0x0f, 0xa2, 0x88, 0xd8, 0xe6, 0x10,
                                   0x66, 0x31, 0xc0, 0x0f, 0xa2, 0x88, 0xd8, 0xe6, 0x10, 0xf4});
    Vcpu vcpu = small.vcpu();
    const auto offer = small.kvm().supported_cpuid();
    ASSERT_TRUE(vcpu.set_cpuid(offer));
    for (int i = 0; i < 2; ++i) {
        const Exit exit = vcpu.run().value();
        ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
        EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte(offer.front().ebx & 0xffU));
        EXPECT_EQ(vcpu.regs().rax & 0xffU, offer.front().ebx & 0xffU);
    }
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    EXPECT_EQ(vcpu.regs().rip, SmallVm::code_at + 20U);
}

TEST_P(VcpuTest, AnIrqWindowExitComesWhenInterruptsAreAllowed)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM opens no interrupt window before a HLT";
    }
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {0x90, 0xfb, 0x90, 0xf4});  // nop; sti; nop; hlt
    Vcpu vcpu = small.vcpu();
    vcpu.request_irq_window(true);
    EXPECT_TRUE(vcpu.run()->is<IrqWindow>());
    EXPECT_TRUE(vcpu.ready_for_interrupt_injection());
    EXPECT_EQ(vcpu.regs().rip, SmallVm::code_at + 3U);
    vcpu.request_irq_window(false);
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST_P(VcpuTest, AnNmiIsDeliveredOnce)
{
    SmallVm small{engine()};
    place_handler(small, 2, 0x2000);
    small.place(SmallVm::code_at, {0xf4, 0xf4});
    Vcpu vcpu = small.vcpu();
    vcpu.nmi();
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>());
    EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{2});
    EXPECT_TRUE(vcpu.events().nmi.masked);
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    EXPECT_FALSE(vcpu.events().nmi.masked);
}

// KVM's kvm_vcpu_has_events(): a pending NMI wakes only where it may be delivered.
TEST(Vcpu, ANmiDoesNotWakeAHandlerThatBlocksNmis)
{
    SmallVm small{Engine::Soft, SmallVm::Irqchip::Full};
    small.place(8, {0x00, 0x20, 0x00, 0x00});
    small.place(0x2000, {0xe6, 0x10, 0xf4, 0xe6, 0x11});  // out; hlt; out
    small.place(SmallVm::code_at, {0xf4});
    Vcpu vcpu = small.vcpu();
    vcpu.nmi();
    ASSERT_EQ(vcpu.run()->get_if<PortWrite>()->port, Port{0x10});
    vcpu.nmi();
    std::atomic<bool> done{};
    std::thread kicks{[&done, kicker = vcpu.kicker()] {
        while (!done) {
            kicker.kick();
            std::this_thread::yield();
        }
    }};
    Exit exit = vcpu.run().value();
    while (exit.is<Interrupted>() && vcpu.mp_state() != x86::MpState::Halted) {
        exit = vcpu.run().value();
    }
    for (int i = 0; i < 10 && exit.is<Interrupted>(); ++i) {
        exit = vcpu.run().value();
    }
    done = true;
    kicks.join();
    EXPECT_TRUE(exit.is<Interrupted>()) << exit.name();
    EXPECT_EQ(vcpu.mp_state(), x86::MpState::Halted);
}

TEST(Vcpu, SettingEferAsAnMsrKeepsLma)
{
    SmallVm small;
    Vcpu vcpu = small.vcpu();
    constexpr std::uint32_t efer = 0xc000'0080;
    vcpu.set_msr(efer, 0x500).value();
    EXPECT_EQ(vcpu.msr(efer).value(), 0x100U);
    x86::Sregs sregs = vcpu.sregs();
    sregs.cr0 |= 0x8000'0001;
    sregs.cr4 |= 0x20;
    sregs.efer = 0x500;
    vcpu.set_sregs(sregs).value();
    vcpu.set_msr(efer, 0x101).value();
    EXPECT_EQ(vcpu.msr(efer).value(), 0x501U);
}

TEST(Vcpu, ACpuidWithAnAbsurdAddressWidthIsTakenAsFarAsAnAddressGoes)
{
    SmallVm small;
    Vcpu vcpu = small.vcpu();
    std::vector<x86::CpuidEntry> entries = small.kvm().supported_cpuid();
    for (x86::CpuidEntry& entry : entries) {
        entry.eax |= entry.function == 0x8000'0008 ? 0xffU : 0U;
    }
    vcpu.set_cpuid(entries).value();
    x86::Sregs sregs = vcpu.sregs();
    sregs.cr0 |= 0x8000'0001;
    sregs.cr4 |= 0x20;
    sregs.efer |= 0x500;
    sregs.cr3 = std::uint64_t{1} << 51U;
    EXPECT_TRUE(vcpu.set_sregs(sregs).has_value());
    sregs.cr3 = std::uint64_t{1} << 52U;
    EXPECT_FALSE(vcpu.set_sregs(sregs).has_value());
}

TEST_P(VcpuTest, AnNmiThatComesDuringAnotherWaitsForItsIret)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM keeps a pending NMI back";
    }
    SmallVm small{engine()};
    place_handler(small, 2, 0x2000);
    small.place(SmallVm::code_at, {0xf4, 0xf4});
    Vcpu vcpu = small.vcpu();
    vcpu.nmi();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());  // In the handler.
    vcpu.nmi();
    EXPECT_TRUE(vcpu.events().nmi.pending);
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    EXPECT_FALSE(vcpu.events().nmi.pending);
    EXPECT_EQ(vcpu.regs().rsp, 0x8000U - 6U);  // The first one's IRET came between.
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    EXPECT_EQ(vcpu.regs().rsp, 0x8000U);
}

// kvm_update_cpuid_runtime(): CPUID.1:EDX.APIC is IA32_APIC_BASE's enable bit.
TEST_P(VcpuIrqchipTest, CpuidShowsWhetherTheApicIsEnabled)
{
    SmallVm small{options(), SmallVm::Irqchip::Full};
    // mov $1, %eax; cpuid; out %edx, $0x10
    small.place(SmallVm::code_at,
                {0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x66, 0x89, 0xd0, 0x66, 0xe7, 0x10});
    Vcpu vcpu = small.vcpu();
    const auto has_apic = [&] {
        vcpu.set_regs({.rsp = 0x8000, .rip = SmallVm::code_at, .rflags = 2});
        const Exit exit = vcpu.run().value();
        std::uint32_t edx = 0;
        if (const auto* out = exit.get_if<PortWrite>()) {
            std::memcpy(&edx, out->data.data(), sizeof edx);
        }
        return (edx >> 9U & 1U) != 0U;
    };
    EXPECT_TRUE(has_apic());
    ASSERT_TRUE(vcpu.set_msr(0x1b, 0xfee0'0100).has_value());
    if (engine() == Engine::Soft) {
        EXPECT_FALSE(has_apic());
    }
    ASSERT_TRUE(vcpu.set_msr(0x1b, 0xfee0'0900).has_value());
    EXPECT_TRUE(has_apic());
}

// KVM's process_nmi(): one is kept while one is with the guest, and two otherwise.
TEST_P(VcpuTest, NmisThatComeDuringAnotherAreOne)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM keeps a pending NMI back";
    }
    SmallVm small{engine()};
    place_handler(small, 2, 0x2000);
    small.place(SmallVm::code_at, {0xf4, 0xf4});
    Vcpu vcpu = small.vcpu();
    vcpu.nmi();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());  // In the handler.
    vcpu.nmi();
    vcpu.nmi();
    vcpu.nmi();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    vcpu.nmi();
    vcpu.nmi();
    vcpu.nmi();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST_P(VcpuTest, TheGuestReadsTheClockThatTheVmmSees)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "RDTSC of this KVM's guests ignores the offset";
    }
    SmallVm small{engine()};
    // rdtsc; out %al, $0x10; hlt
    small.place(SmallVm::code_at, {0x0f, 0x31, 0xe6, 0x10, 0xf4});
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_msr(0x10, 1'000'000'000'000).has_value());
    const std::uint64_t before = *vcpu.msr(0x10);
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    const std::uint64_t after = *vcpu.msr(0x10);
    const std::uint64_t seen = vcpu.regs().rdx << 32U | (vcpu.regs().rax & 0xffff'ffffU);
    EXPECT_GE(before, 1'000'000'000'000U);
    EXPECT_GE(seen, before);
    EXPECT_LE(seen, after);
}

TEST_P(VcpuIrqchipTest, MsrsThatAreNotTheCpusAreTheLibrarys)
{
    SmallVm small{options(), SmallVm::Irqchip::Full};
    // mov $MSR, %ecx; rdmsr; out %eax, $0x10, of PAT and of APIC_BASE.
    small.place(SmallVm::code_at,
                {0x66, 0xb9, 0x77, 0x02, 0x00, 0x00, 0x0f, 0x32, 0x66, 0xe7, 0x10,
                 0x66, 0xb9, 0x1b, 0x00, 0x00, 0x00, 0x0f, 0x32, 0x66, 0xe7, 0x10});
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.set_msr(0x277, 0x0107'0406'0007'0400).has_value());
    const auto port_write = [&] {
        const Exit exit = vcpu.run().value();
        std::uint32_t value = 0;
        if (const auto* out = exit.get_if<PortWrite>()) {
            std::memcpy(&value, out->data.data(), sizeof value);
        }
        return value;
    };
    EXPECT_EQ(port_write(), 0x0007'0400U);
    EXPECT_EQ(port_write(), 0xfee0'0900U);
}

TEST_P(VcpuTest, AnMsrThatDoesNotExistFaultsInTheGuest)
{
    SmallVm small{engine()};
    place_handler(small, 13, 0x2000);
    small.place(SmallVm::code_at, {0x66, 0xb9, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x32});
    Vcpu vcpu = small.vcpu();
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>());
    EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{13});
}

TEST_P(VcpuTest, StateOfEveryKindGoesInAndComesOutOfTheGuest)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM's emulator knows no x87";
    }
    SmallVm small{engine()};
    // movaps %xmm1, %xmm2; fld1; mov %dr1, %eax; mov %eax, %dr0; out %al, $0x10; hlt
    small.place(SmallVm::code_at, {0x0f, 0x28, 0xd1, 0xd9, 0xe8, 0x0f, 0x21, 0xc8, 0x0f, 0x23, 0xc0,
                                   0xe6, 0x10, 0xf4});
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.cr4 |= 1U << 9U;  // OSFXSR
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    x86::Fpu fpu = vcpu.fpu();
    fpu.xmm[1][3] = 0x42;
    fpu.fcw = 0x37f;
    vcpu.set_fpu(fpu);
    ASSERT_TRUE(vcpu.set_debug_regs({.db = {0, 0x1234, 0, 0}}).has_value());
    ASSERT_TRUE(vcpu.set_msr(0xc000'0082, 0x5678).has_value());
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    EXPECT_EQ(vcpu.fpu().xmm[2][3], 0x42U);
    EXPECT_EQ(vcpu.fpu().ftwx, 0x80U);
    EXPECT_EQ(vcpu.fpu().fpr[0][9], 0x3fU);
    EXPECT_EQ(vcpu.debug_regs().db[0], 0x1234U);
    EXPECT_EQ(vcpu.msr(0xc000'0082).value(), 0x5678U);
}

TEST_P(VcpuTest, AMoveFromMmioLeavesTheRestOfTheStateAsItIs)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM's emulator knows no SSE";
    }
    SmallVm small{engine()};
    // movaps %xmm1, %xmm2; mov %fs:0, %ax; movaps %xmm2, %xmm3; movups %xmm3, %fs:0
    small.place(SmallVm::code_at, {0x0f, 0x28, 0xd1, 0x64, 0xa1, 0x00, 0x00, 0x0f, 0x28, 0xda, 0x64,
                                   0x0f, 0x11, 0x1e, 0x00, 0x00});
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.cr4 |= 1U << 9U;  // OSFXSR
    sregs.fs.base = 0x1000'0000;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    x86::Fpu fpu = vcpu.fpu();
    fpu.xmm[1][3] = 0x42;
    vcpu.set_fpu(fpu);
    ASSERT_TRUE(vcpu.set_msr(0xc000'0082, 0x5678).has_value());
    const Exit read = vcpu.run().value();
    ASSERT_TRUE(read.is<MmioRead>());
    read.get_if<MmioRead>()->data[0] = std::byte{0x17};
    EXPECT_EQ(vcpu.fpu().xmm[2][3], 0x42U);
    // What the VMM changes meanwhile counts too.
    fpu = vcpu.fpu();
    fpu.xmm[2][4] = 0x43;
    vcpu.set_fpu(fpu);
    const Exit write = vcpu.run().value();
    ASSERT_TRUE(write.is<MmioWrite>());
    EXPECT_EQ(write.get_if<MmioWrite>()->data[3], std::byte{0x42});
    EXPECT_EQ(write.get_if<MmioWrite>()->data[4], std::byte{0x43});
    EXPECT_EQ(vcpu.regs().rax & 0xffU, 0x17U);
    EXPECT_EQ(vcpu.msr(0xc000'0082).value(), 0x5678U);
}

TEST_P(VcpuTest, KicksFromManyThreadsLeaveNoSignalBehind)
{
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {0xeb, 0xfe});  // jmp .
    Vcpu vcpu = small.vcpu();
    std::atomic<bool> done{};
    std::vector<std::thread> others;
    for (int i = 0; i < 3; ++i) {
        others.emplace_back([&, kicker = vcpu.kicker()] {
            while (!done.load()) {
                kicker.kick();
                std::this_thread::yield();
            }
        });
    }
    // With one CPU (Bochs) the guest and the others take turns by the scheduler's.
    const int rounds = std::thread::hardware_concurrency() > 1 ? 200 : 5;
    for (int i = 0; i < rounds; ++i) {
        EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    }
    done.store(true);
    for (std::thread& other : others) {
        other.join();
    }
    sigset_t pending;
    ::sigpending(&pending);
    EXPECT_FALSE(::sigismember(&pending, SIGRTMAX));
    sigset_t blocked;
    ::pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
    EXPECT_FALSE(::sigismember(&blocked, SIGRTMAX));
}

extern "C" void count_signal(int);
std::atomic<int> signals_counted{};
void count_signal(int /*signal*/)
{
    signals_counted.fetch_add(1);
}

TEST_P(VcpuTest, ASignalOfTheProgramsIsHandledAndTheGuestGoesOn)
{
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xeb, 0xfe});  // out %al, $0x10; jmp .
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    signals_counted.store(0);
    std::signal(SIGUSR1, &count_signal);  // For good: the last one may still be on its way.
    std::thread other{[runner = ::pthread_self(), kicker = vcpu.kicker()] {
        // More than one: the thread sanitizer's runtime holds a signal back until the thread makes
        // a call, and one that comes just before KVM_RUN would wait for ever.
        while (signals_counted.load() == 0) {
            ::pthread_kill(runner, SIGUSR1);
            std::this_thread::yield();
        }
        kicker.kick();
    }};
    EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    other.join();
    EXPECT_GE(signals_counted.load(), 1);
}

TEST_P(VcpuTest, AnInjectedExceptionHasItsErrorCode)
{
    SmallVm small{engine()};
    place_handler(small, 6, 0x2000);
    small.place(SmallVm::code_at, {0xf4});
    Vcpu vcpu = small.vcpu();
    x86::VcpuEvents events = vcpu.events();
    events.exception.injected = 1;
    events.exception.nr = 6;
    ASSERT_TRUE(vcpu.set_events(events).has_value());
    EXPECT_EQ(vcpu.events().exception.nr, 6U);
    EXPECT_TRUE(vcpu.run()->is<PortWrite>());
    events.exception.nr = 32;
    EXPECT_EQ(vcpu.set_events(events).error().errno_value(), EINVAL);
}

TEST_P(VcpuTest, TranslateFollowsTheGuestsPageTables)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "KVM_TRANSLATE of this KVM ignores paging";
    }
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    EXPECT_EQ(vcpu.translate(Gva{0x1234}), Gpa{0x1234});
    // 32-bit paging: directory at 0x3000, its entry 1 a table at 0x4000, its entry 2 page 0x5000.
    small.place(0x3004, {0x03, 0x40, 0, 0});
    small.place(0x4008, {0x03, 0x50, 0, 0});
    x86::Sregs sregs = vcpu.sregs();
    sregs.cr3 = 0x3000;
    sregs.cr0 |= 0x8000'0001;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    EXPECT_EQ(vcpu.translate(Gva{0x40'2abc}), Gpa{0x5abc});
    EXPECT_FALSE(vcpu.translate(Gva{0x1234}).has_value());
}

TEST_P(VcpuIrqchipTest, AnApplicationProcessorStartsBySipi)
{
    SmallVm small{options(), SmallVm::Irqchip::Full};
    // The BSP writes ICR through x2APIC: INIT then SIPI vector 2 to APIC id 1, then spins.
    small.place(SmallVm::code_at,
                {0xb9, 0x1b, 0x00,                        // mov $IA32_APIC_BASE, %cx
                 0x0f, 0x32,                              // rdmsr
                 0x80, 0xcc, 0x0c,                        // or $EN|EXTD, %ah
                 0x0f, 0x30,                              // wrmsr
                 0xb9, 0x30, 0x08,                        // mov $0x830, %cx (ICR)
                 0x66, 0xba, 0x01, 0x00, 0x00, 0x00,      // mov $1, %edx
                 0x66, 0xb8, 0x00, 0x45, 0x00, 0x00,      // mov $0x4500, %eax (INIT, assert)
                 0x0f, 0x30,                              // wrmsr
                 0x66, 0xb8, 0x02, 0x46, 0x00, 0x00,      // mov $0x4602, %eax (SIPI 2)
                 0x0f, 0x30,                              // wrmsr
                 0xe6, 0x10, 0xf4});                      // out %al, $0x10; hlt
    small.place(0x2000, {0x8c, 0xc8, 0xe6, 0x80, 0xf4});  // mov %cs, %ax; out %al, $0x80; hlt
    Vcpu bootstrap = small.vcpu(0);
    Vcpu application = small.vm().create_vcpu(1).value();
    application.set_cpuid(small.kvm().supported_cpuid()).value();
    EXPECT_EQ(application.mp_state(), x86::MpState::Uninitialized);

    std::thread other{[&] {
        const Exit exit = application.run().value();
        ASSERT_TRUE(exit.is<PortWrite>());
        EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{0x80});
    }};
    EXPECT_TRUE(bootstrap.run()->is<PortWrite>());
    other.join();
    EXPECT_EQ(application.sregs().cs.selector, 0x200U);
    EXPECT_EQ(application.sregs().cs.base, 0x2000U);
}

TEST_P(VcpuIrqchipTest, TheApicTimerInterruptsAndWakesFromHlt)
{
    SmallVm small{options(), SmallVm::Irqchip::Full};
    place_handler(small, 0x40, 0x2100);
    small.place(
        SmallVm::code_at,
        {0xb9, 0x1b, 0x00, 0x0f, 0x32, 0x80, 0xcc, 0x0c, 0x0f, 0x30,        // x2APIC on
         0xb9, 0x0f, 0x08, 0x66, 0xb8, 0xff, 0x01, 0,    0,                 // SVR = 0x1ff
         0x66, 0x31, 0xd2, 0x0f, 0x30,                                      // wrmsr
         0xb9, 0x32, 0x08, 0x66, 0xb8, 0x40, 0,    0,    0,    0x0f, 0x30,  // LVT timer = 0x40
         0xb9, 0x38, 0x08, 0x66, 0xb8, 0x40, 0x42, 0x0f, 0,    0x0f, 0x30,  // count 1,000,000
         0xfb, 0xf4, 0xeb, 0xfd});                                          // sti; hlt; jmp
    Vcpu vcpu = small.vcpu();
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>());
    EXPECT_EQ(exit.get_if<PortWrite>()->data[0], std::byte{0x40});
}

std::uint64_t statistic(const Vcpu& vcpu, std::string_view name)
{
    return vcpu.statistics().counter(name);
}

TEST(VcpuStatistics, HotCodeIsTranslatedUnlessTheInterpreterIsAskedFor)
{
    if (std::getenv("VMM_SOFT") != nullptr) {
        GTEST_SKIP() << "VMM_SOFT overrides what this test asks for";
    }
    for (const SoftMode mode : {SoftMode::Translator, SoftMode::Interpreter}) {
        SmallVm small{KvmOptions{.engine = Engine::Soft, .soft_mode = mode}};
        core::place_probe_guest(small.memory());
        Vcpu vcpu = small.vcpu();
        vcpu.set_regs({.rip = core::probe_guest_entry, .rflags = 2});
        std::uint64_t exits = 1;
        while (!vcpu.run()->is<Halt>()) {
            ++exits;
        }
        EXPECT_EQ(statistic(vcpu, "exits"), exits);
        EXPECT_NE(statistic(vcpu, "blocks"), 0U);
        EXPECT_EQ(statistic(vcpu, "translations") != 0, mode == SoftMode::Translator);
    }
}

}  // namespace
}  // namespace vmm
