// SPDX-License-Identifier: Apache-2.0

#include <atomic>
#include <thread>

#include <gtest/gtest.h>

#include "core/small_vm.hpp"
#include "vmm/vcpu.hpp"

namespace vmm {
namespace {

using test::SmallVm;

TEST(Vcpu, StartsInTheResetState)
{
    SmallVm small;
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

TEST(Vcpu, RegistersRoundTrip)
{
    SmallVm small;
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

TEST(Vcpu, AKickBeforeTheRunIsNotLost)
{
    SmallVm small;
    small.place(SmallVm::code_at, {0xf4});
    Vcpu vcpu = small.vcpu();
    vcpu.kicker().kick();
    EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST(Vcpu, AKickEndsAnEndlessLoop)
{
    SmallVm small;
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xeb, 0xfe});  // out %al, $0x10; jmp .
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    std::thread other{[kicker = vcpu.kicker()] { kicker.kick(); }};
    EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    other.join();
    EXPECT_EQ(vcpu.regs().rip, SmallVm::code_at + 2U);
}

TEST(Vcpu, AKickWakesAHaltedOne)
{
    SmallVm small{SmallVm::Irqchip::Full};
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xf4});  // out; hlt
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    std::thread other{[kicker = vcpu.kicker()] { kicker.kick(); }};
    EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    other.join();
}

TEST(Vcpu, AKickerOutlivesItsVcpu)
{
    SmallVm small;
    const auto kicker = [&] { return small.vcpu().kicker(); }();
    kicker.kick();
}

TEST(Vcpu, CompleteFinishesAPortReadWithoutRunning)
{
    SmallVm small;
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

TEST(Vcpu, MmioExitsCarryAddressAndData)
{
    SmallVm small;
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

TEST(Vcpu, ATripleFaultIsAShutdown)
{
    SmallVm small;
    small.place(SmallVm::code_at, {0x0f, 0x0b});  // ud2, with no interrupt table
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.idt.limit = 0;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    EXPECT_TRUE(vcpu.run()->is<Shutdown>());
}

TEST(Vcpu, CodeInNoSlotIsAnInternalError)
{
    SmallVm small;
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.cs.base = 0x4000'0000;
    ASSERT_TRUE(vcpu.set_sregs(sregs).has_value());
    EXPECT_TRUE(vcpu.run()->is<InternalError>());
}

TEST(Vcpu, RefusedStateNamesTheFieldAndTheManual)
{
    SmallVm small;
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

TEST(Vcpu, MsrsOfTheIndexListRoundTrip)
{
    SmallVm small{SmallVm::Irqchip::Full};
    Vcpu vcpu = small.vcpu();
    for (const std::uint32_t index : small.kvm().msr_index_list()) {
        const auto value = vcpu.msr(index);
        ASSERT_TRUE(value.has_value()) << std::hex << index;
        if (index != 0xfe) {  // IA32_MTRRCAP is read-only.
            EXPECT_TRUE(vcpu.set_msr(index, *value).has_value()) << std::hex << index;
        }
    }
}

TEST(Vcpu, ACpuidFeatureTheHostLacksIsRefused)
{
    SmallVm small;
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

TEST(Vcpu, FpuAndXsaveStateRoundTrip)
{
    SmallVm small;
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

TEST(Vcpu, AnInterruptWaitsForTheGuestToAllowIt)
{
    SmallVm small;
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

TEST(Vcpu, AnIrqWindowExitComesWhenInterruptsAreAllowed)
{
    SmallVm small;
    small.place(SmallVm::code_at, {0x90, 0xfb, 0x90, 0xf4});  // nop; sti; nop; hlt
    Vcpu vcpu = small.vcpu();
    vcpu.request_irq_window(true);
    EXPECT_TRUE(vcpu.run()->is<IrqWindow>());
    EXPECT_TRUE(vcpu.ready_for_interrupt_injection());
    EXPECT_EQ(vcpu.regs().rip, SmallVm::code_at + 3U);
    vcpu.request_irq_window(false);
    EXPECT_TRUE(vcpu.run()->is<Halt>());
}

TEST(Vcpu, AnNmiIsDeliveredOnce)
{
    SmallVm small;
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
    SmallVm small{SmallVm::Irqchip::Full};
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

TEST(Vcpu, AnInjectedExceptionHasItsErrorCode)
{
    SmallVm small;
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

TEST(Vcpu, TranslateFollowsTheGuestsPageTables)
{
    SmallVm small;
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

TEST(Vcpu, AnApplicationProcessorStartsBySipi)
{
    SmallVm small{SmallVm::Irqchip::Full};
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

TEST(Vcpu, TheApicTimerInterruptsAndWakesFromHlt)
{
    SmallVm small{SmallVm::Irqchip::Full};
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

}  // namespace
}  // namespace vmm
