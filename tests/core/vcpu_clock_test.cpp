// SPDX-License-Identifier: Apache-2.0

/// @file
/// What a VMM sets up of a vCPU beside its registers: clocks, machine checks, priority; and kicks
/// from a signal handler.

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <thread>
#include <utility>

#include <pthread.h>
#include <signal.h>

#include "small_vm.hpp"
#include "x86/kvmclock.hpp"
#include "x86/tsc.hpp"

namespace vmm {
namespace {

using test::SmallVm;

constexpr std::uint32_t tsc = 0x10;
constexpr std::uint32_t mcg_cap = 0x179;
constexpr std::uint32_t mcg_status = 0x17a;
constexpr std::uint32_t mc0_ctl = 0x400;
constexpr std::uint32_t mc0_status = 0x401;

constexpr std::uint64_t valid_error = std::uint64_t{1} << 63U;
constexpr std::uint64_t uncorrected = std::uint64_t{1} << 61U;

class VcpuClock : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, VcpuClock, test::engines, test::engine_name);

TEST_P(VcpuClock, TscsThatAreSetOneAfterTheOtherAgree)
{
    SmallVm guest{engine()};
    Vcpu first = guest.vcpu(0);
    Vcpu second = guest.vcpu(1);
    const std::uint64_t far = std::uint64_t{1} << 50U;
    first.set_msr(tsc, far).value();
    second.set_msr(tsc, far).value();
    const std::uint64_t before = first.msr(tsc).value();
    const std::uint64_t between = second.msr(tsc).value();
    const std::uint64_t after = first.msr(tsc).value();
    EXPECT_LE(before, between);
    EXPECT_LE(between, after);
    EXPECT_GE(before, far);
}

TEST_P(VcpuClock, ANewVcpusTscAgreesWithTheOneThatWasSet)
{
    SmallVm guest{engine()};
    Vcpu first = guest.vcpu(0);
    const std::uint64_t far = std::uint64_t{1} << 50U;
    first.set_msr(tsc, far).value();
    Vcpu second = guest.vcpu(1);
    EXPECT_EQ(first.tsc_offset(), second.tsc_offset());
}

/// What another CPU has read before is not later than what is read after seeing it.  SDM Vol. 2B
/// "RDTSCP": it waits for all loads before it.
TEST_P(VcpuClock, RdtscpIsNotReadBeforeTheLoadsThatPrecedeIt)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "it does not execute RDTSCP in real mode";
    }
    SmallVm guest{engine()};
    constexpr std::uint16_t writer = 0x2000;
    guest.place(SmallVm::code_at, {0x66, 0x8b, 0x1e, 0x00, 0x30,  // loop: mov ebx, [0x3000]
                                   0x0f, 0x01, 0xf9,              // rdtscp
                                   0x66, 0x29, 0xd8,              // sub eax, ebx
                                   0x78, 0x05,                    // js back
                                   0x66, 0x4e,                    // dec esi
                                   0x75, 0xef,                    // jnz loop
                                   0xf4,                          // hlt
                                   0xbf, 0x01, 0x00,              // back: mov di, 1
                                   0xf4});                        // hlt
    guest.place(writer, {0x0f, 0x01, 0xf9,                        // loop: rdtscp
                         0x66, 0xa3, 0x00, 0x30,                  // mov [0x3000], eax
                         0xeb, 0xf7});                            // jmp loop
    Vcpu reading = guest.vcpu(0);
    Vcpu writing = guest.vcpu(1);
    auto regs = reading.regs();
    regs.rsi = 200'000;
    reading.set_regs(regs);
    regs = writing.regs();
    regs.rip = writer;
    writing.set_regs(regs);
    std::thread other{[&] { EXPECT_TRUE(writing.run().value().is<Interrupted>()); }};
    EXPECT_TRUE(reading.run().value().is<Halt>());
    writing.kicker().kick();
    other.join();
    EXPECT_EQ(reading.regs().rdi, 0U);
}

TEST_P(VcpuClock, AGuestWithoutKvmclockCannotBeToldThatItStopped)
{
    SmallVm guest{engine()};
    Vcpu vcpu = guest.vcpu();
    EXPECT_EQ(vcpu.notify_guest_stopped().error().errno_value(), EINVAL);
    constexpr std::uint32_t system_time = 0x4b56'4d01;
    vcpu.set_msr(system_time, 0x5001).value();
    vcpu.notify_guest_stopped().value();
    guest.place(SmallVm::code_at, {0xf4});
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    constexpr std::size_t flags = 0x5000 + 29;
    EXPECT_EQ(guest.byte_at(flags) & 2U, 2U);
}

/// The host's TSC around an action, and what the guest's must lie between then.
struct Around {
    std::uint64_t before;
    std::uint64_t after;
};

class TscScaling : public test::EveryEngine {
protected:
    void SetUp() override
    {
        EveryEngine::SetUp();
        if (!IsSkipped() &&
            Kvm::open({engine()}).value().check_extension(Capability::TscControl) == 0) {
            GTEST_SKIP() << "this engine scales no TSC";
        }
    }
    /// What the guest's TSC is, and at which of the host's.
    static std::pair<std::uint64_t, Around> read(const Vcpu& vcpu)
    {
        const std::uint64_t before = x86::read_host_tsc();
        const std::uint64_t value = vcpu.msr(tsc).value();
        return {value, {before, x86::read_host_tsc()}};
    }
};
INSTANTIATE_TEST_SUITE_P(Engines, TscScaling, test::engines, test::engine_name);

TEST_P(TscScaling, TheCounterRunsAtTheRateThatWasSet)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    const std::uint32_t host = small.kvm().tsc_khz();
    EXPECT_EQ(vcpu.tsc_khz(), host);
    for (const std::uint32_t khz : {host / 2U, host * 3U, 1'000'000U}) {
        vcpu.set_tsc_khz(khz).value();
        EXPECT_EQ(vcpu.tsc_khz(), khz);
        const auto [first, at_first] = read(vcpu);
        while (x86::read_host_tsc() - at_first.after < host) {
        }
        const auto [second, at_second] = read(vcpu);
        const double ratio = static_cast<double>(khz) / host;
        const auto ticks = static_cast<double>(second - first);
        EXPECT_GE(ticks + 2, static_cast<double>(at_second.before - at_first.after) * ratio);
        EXPECT_LE(ticks - 2, static_cast<double>(at_second.after - at_first.before) * ratio);
    }
    vcpu.set_tsc_khz(0).value();
    EXPECT_EQ(vcpu.tsc_khz(), host);
}

TEST_P(TscScaling, RdtscShowsWhatTheMsrShows)
{
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {0x0f, 0x31, 0xe6, 0x10});  // rdtsc; out %al, $0x10
    Vcpu vcpu = small.vcpu();
    vcpu.set_tsc_khz(small.kvm().tsc_khz() / 3U).value();
    const std::uint64_t before = vcpu.msr(tsc).value();
    ASSERT_TRUE(vcpu.run().value().is<PortWrite>());
    const std::uint64_t after = vcpu.msr(tsc).value();
    const std::uint64_t seen =
        (vcpu.regs().rdx & 0xffff'ffffU) << 32U | (vcpu.regs().rax & 0xffff'ffffU);
    EXPECT_GE(seen, before);
    EXPECT_LE(seen, after);
}

TEST_P(TscScaling, KvmclockGoesByTheScaledCounter)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    vcpu.set_tsc_khz(small.kvm().tsc_khz() / 2U).value();
    constexpr std::uint32_t system_time = 0x4b56'4d01;
    vcpu.set_msr(system_time, 0x5001).value();
    const auto page = small.vm().memory().read<x86::PvclockTimeInfo>(Gpa{0x5000}).value();
    const std::uint64_t before = small.vm().clock_ns();
    const std::uint64_t now = vcpu.msr(tsc).value();
    const std::uint64_t after = small.vm().clock_ns();
    const std::uint64_t ns =
        page.system_time +
        x86::scale_tsc(now - page.tsc_timestamp, {page.tsc_to_system_mul, page.tsc_shift});
    constexpr std::uint64_t rounding_ns = 100;
    EXPECT_GE(ns + rounding_ns, before);
    EXPECT_LE(ns, after + rounding_ns);
}

TEST_P(TscScaling, ADeadlineIsReachedByTheScaledCounter)
{
    SmallVm small{engine(), SmallVm::Irqchip::Full};
    small.place(0x40 * 4, {0x00, 0x20, 0, 0});
    small.place(0x2000, {0xe6, 0x10});            // out %al, $0x10
    small.place(SmallVm::code_at, {0xfb, 0xf4});  // sti; hlt
    Vcpu vcpu = small.vcpu();
    vcpu.set_tsc_khz(small.kvm().tsc_khz() / 2U).value();
    auto lapic = vcpu.lapic().value();
    lapic.set(x86::irqchip::LapicRegister::Svr, 0x1ff);
    constexpr std::uint32_t deadline_mode = 2U << 17U;
    lapic.set(x86::irqchip::LapicRegister::LvtTimer, deadline_mode | 0x40U);
    vcpu.set_lapic(lapic).value();
    const std::uint64_t deadline = vcpu.msr(tsc).value() + vcpu.tsc_khz() * std::uint64_t{20};
    vcpu.set_msr(0x6e0, deadline).value();
    ASSERT_TRUE(vcpu.run().value().is<PortWrite>());
    EXPECT_GE(vcpu.msr(tsc).value(), deadline);
}

TEST_P(TscScaling, VcpusGetTheRateOfTheVmAndAgree)
{
    SmallVm small{engine()};
    const std::uint32_t host = small.kvm().tsc_khz();
    EXPECT_EQ(small.vm().tsc_khz(), host);
    Vcpu before = small.vcpu(0);
    small.vm().set_tsc_khz(host * 2U).value();
    EXPECT_EQ(small.vm().tsc_khz(), host * 2U);
    EXPECT_EQ(before.tsc_khz(), host);
    Vcpu first = small.vcpu(1);
    Vcpu second = small.vcpu(2);
    EXPECT_EQ(first.tsc_khz(), host * 2U);
    for (const std::uint64_t value : {std::uint64_t{0}, std::uint64_t{1} << 50U}) {
        first.set_msr(tsc, value).value();
        second.set_msr(tsc, value).value();
        const std::uint64_t a = first.msr(tsc).value();
        const std::uint64_t b = second.msr(tsc).value();
        const std::uint64_t c = first.msr(tsc).value();
        EXPECT_LE(a, b);
        EXPECT_LE(b, c);
        EXPECT_GE(a, value);
    }
    EXPECT_EQ(first.tsc_offset(), second.tsc_offset());
}

class TscRate : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, TscRate, test::engines, test::engine_name);

TEST_P(TscRate, WhatNoCounterCanDoIsRefused)
{
    SmallVm small{engine()};
    Vcpu vcpu = small.vcpu();
    const std::uint32_t host = small.kvm().tsc_khz();
    EXPECT_EQ(vcpu.set_tsc_khz(0x7fff'ffff).error().errno_value(), EINVAL);
    EXPECT_EQ(small.vm().set_tsc_khz(0x7fff'ffff).error().errno_value(), EINVAL);
    const bool scales = small.kvm().check_extension(Capability::TscControl) != 0;
    EXPECT_EQ(vcpu.set_tsc_khz(host / 2U).has_value(), scales);
    EXPECT_EQ(small.vm().set_tsc_khz(host / 2U).has_value(), scales);
    // KVM takes 250 ppm for the host's.
    const std::uint32_t near = host + host / 5000U;
    vcpu.set_tsc_khz(near).value();
    EXPECT_EQ(vcpu.tsc_khz(), near);
    const std::uint64_t before = x86::read_host_tsc() + vcpu.tsc_offset();
    const std::uint64_t seen = vcpu.msr(tsc).value();
    EXPECT_GE(seen, before);
    EXPECT_LE(seen, x86::read_host_tsc() + vcpu.tsc_offset());
}

class MachineChecks : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, MachineChecks, test::engines, test::engine_name);

TEST_P(MachineChecks, WhatIsSetUpIsWhatTheGuestSees)
{
    SmallVm guest{engine()};
    Vcpu vcpu = guest.vcpu();
    EXPECT_EQ(vcpu.setup_mce(0).error().errno_value(), EINVAL);
    EXPECT_EQ(vcpu.setup_mce(33).error().errno_value(), EINVAL);
    EXPECT_EQ(vcpu.setup_mce(10 | (1U << 27U)).error().errno_value(), EINVAL);
    const std::uint64_t wanted = 4 | guest.kvm().mce_capabilities();
    vcpu.setup_mce(wanted).value();
    EXPECT_EQ(vcpu.msr(mcg_cap).value(), wanted);
    EXPECT_EQ(vcpu.msr(mc0_ctl).value(), ~std::uint64_t{0});
    EXPECT_EQ(vcpu.msr(mc0_ctl + 4 * 4).error().errno_value(), EINVAL) << "there are four banks";
    EXPECT_EQ(vcpu.inject_mce({.status = valid_error, .bank = 4}).error().errno_value(), EINVAL);
    EXPECT_EQ(vcpu.inject_mce({.status = 0, .bank = 0}).error().errno_value(), EINVAL);
}

TEST_P(MachineChecks, ACorrectedErrorIsRecorded)
{
    SmallVm guest{engine()};
    Vcpu vcpu = guest.vcpu();
    vcpu.inject_mce({.status = valid_error | 5U, .addr = 0x1000, .misc = 2, .bank = 0}).value();
    EXPECT_EQ(vcpu.msr(mc0_status).value(), valid_error | 5U);
    EXPECT_EQ(vcpu.msr(mc0_status + 1).value(), 0x1000U);
}

TEST_P(MachineChecks, AnUncorrectedOneWithoutAHandlerIsAShutdown)
{
    SmallVm guest{engine()};
    Vcpu vcpu = guest.vcpu();
    guest.place(SmallVm::code_at, {0xf4});
    vcpu.setup_mce(10 | guest.kvm().mce_capabilities()).value();
    vcpu.inject_mce({.status = valid_error | uncorrected, .bank = 0}).value();
    EXPECT_TRUE(vcpu.run().value().is<Shutdown>());
    EXPECT_TRUE(vcpu.run().value().is<Halt>());
}

TEST_P(MachineChecks, AnUncorrectedOneRaisesMc)
{
    SmallVm guest{engine()};
    Vcpu vcpu = guest.vcpu();
    vcpu.setup_mce(10 | guest.kvm().mce_capabilities()).value();
    x86::Sregs sregs = vcpu.sregs();
    sregs.cr4 |= x86::Cr4::MCE.mask;
    vcpu.set_sregs(sregs).value();
    guest.place(18 * 4, {0x00, 0x20, 0, 0});
    guest.place(0x2000, {0xe6, 0x33, 0xf4});
    guest.place(SmallVm::code_at, {0xf4});
    vcpu.inject_mce({.status = valid_error | uncorrected, .mcg_status = 5, .bank = 1}).value();
    EXPECT_TRUE(vcpu.run().value().is<PortWrite>());
    EXPECT_EQ(vcpu.msr(mcg_status).value(), 5U);
}

class RunStates : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, RunStates, test::engines, test::engine_name);

TEST_P(RunStates, TellsWhatKvmRunTells)
{
    SmallVm guest{engine()};
    Vcpu vcpu = guest.vcpu();
    guest.place(SmallVm::code_at, {0xfb, 0x90, 0xf4});  // sti; nop; hlt
    EXPECT_FALSE(vcpu.run_state().if_flag);
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    vcpu.set_cr8(3).value();
    EXPECT_EQ(vcpu.set_cr8(16).error().errno_value(), EINVAL);
    const x86::RunState state = vcpu.run_state();
    EXPECT_TRUE(state.if_flag);
    EXPECT_TRUE(state.ready_for_interrupt_injection);
    EXPECT_EQ(state.cr8, 3U);
    EXPECT_EQ(state.apic_base, 0xfee0'0900U);
}

class BootCpu : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, BootCpu, test::irqchips, test::engine_name);

TEST_P(BootCpu, TheOneChosenIsTheBootstrapProcessor)
{
    SmallVm guest{options(), SmallVm::Irqchip::Full};
    guest.vm().set_boot_cpu_id(1).value();
    const Vcpu other = guest.vcpu(0);
    const Vcpu boot = guest.vcpu(1);
    EXPECT_EQ(guest.vm().set_boot_cpu_id(0).error().errno_value(), EBUSY);
    EXPECT_EQ(boot.mp_state(), x86::MpState::Runnable);
    EXPECT_EQ(other.mp_state(), x86::MpState::Uninitialized);
    EXPECT_EQ(boot.sregs().apic_base, 0xfee0'0900U);
    EXPECT_EQ(other.sregs().apic_base, 0xfee0'0800U);
}

std::optional<Vcpu::Kicker> handlers_kicker;
std::atomic<bool> handler_ran{false};

class Kickers : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, Kickers, test::irqchips, test::engine_name);

TEST_P(Kickers, WorksInASignalHandlerThatInterruptsTheVcpuItself)
{
    SmallVm guest{options(), SmallVm::Irqchip::Full};
    guest.place(SmallVm::code_at, {0xf4});  // Blocks in run().
    Vcpu vcpu = guest.vcpu();
    handlers_kicker = vcpu.kicker();
    handler_ran = false;
    struct sigaction action {};
    struct sigaction before {};
    action.sa_handler = [](int) {
        handlers_kicker->kick();
        handler_ran = true;
    };
    ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
    std::atomic<bool> over{false};
    std::thread runner{[&] {
        EXPECT_TRUE(vcpu.run().value().is<Interrupted>());
        over = true;
        while (!handler_ran) {
            std::this_thread::yield();
        }
    }};
    while (!over) {
        ::pthread_kill(runner.native_handle(), SIGUSR1);
        std::this_thread::yield();
    }
    runner.join();
    ::sigaction(SIGUSR1, &before, nullptr);
    handlers_kicker.reset();
}

}  // namespace
}  // namespace vmm
