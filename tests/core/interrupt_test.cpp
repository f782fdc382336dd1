// SPDX-License-Identifier: Apache-2.0

// Interrupts and what goes on in the host at the same time.

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include <gtest/gtest.h>

#include "core/small_vm.hpp"

namespace vmm {
namespace {

using test::SmallVm;

class InterruptTest : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, InterruptTest, test::engines, test::engine_name);

/// Kicks a vCPU time and again.
class Kicks {
public:
    Kicks(const Vcpu& vcpu, std::chrono::microseconds pause)
        : thread_{[this, kicker = vcpu.kicker(), pause]() mutable {
              while (!done_) {
                  std::this_thread::sleep_for(pause);
                  kicker.kick();
              }
          }}
    {
    }
    Kicks(const Kicks&) = delete;
    Kicks& operator=(const Kicks&) = delete;
    Kicks(Kicks&&) = delete;
    Kicks& operator=(Kicks&&) = delete;
    ~Kicks()
    {
        done_ = true;
        thread_.join();
    }

private:
    std::atomic<bool> done_{false};
    std::thread thread_;
};

/// Where the host's machine is an emulated one, misaligned locked accesses stop its other CPUs.
class MisalignedLocks {
public:
    MisalignedLocks()
        : thread_{[this] {
              while (!done_) {
                  asm volatile("lock incl %0" : "+m"(line_[3]) : : "memory");
                  std::this_thread::sleep_for(std::chrono::microseconds{100});
              }
          }}
    {
    }
    MisalignedLocks(const MisalignedLocks&) = delete;
    MisalignedLocks& operator=(const MisalignedLocks&) = delete;
    MisalignedLocks(MisalignedLocks&&) = delete;
    MisalignedLocks& operator=(MisalignedLocks&&) = delete;
    ~MisalignedLocks()
    {
        done_ = true;
        thread_.join();
    }

private:
    alignas(64) std::array<std::uint8_t, 64> line_{};
    std::atomic<bool> done_{false};
    std::thread thread_;
};

TEST_P(InterruptTest, AnInterruptIsDeliveredOnceWhateverStopsTheCpuMeanwhile)
{
    constexpr std::uint8_t vector = 0x40;
    constexpr std::size_t counter_at = 0x3000;
    SmallVm small{engine()};
    small.place(vector * 4U, {0x00, 0x20, 0x00, 0x00});
    small.place(0x2000, {0xff, 0x06, 0x00, 0x30, 0xcf});      // incw counter; iret
    small.place(SmallVm::code_at, {0xfb, 0x43, 0xeb, 0xfd});  // sti; 1: inc %bx; jmp 1b
    Vcpu vcpu = small.vcpu();
    const auto delivered = [&] {
        return small.byte_at(counter_at) + 256U * small.byte_at(counter_at + 1);
    };
    const Kicks kicks{vcpu, std::chrono::milliseconds{2}};
    const MisalignedLocks locks;
    const unsigned rounds = std::thread::hardware_concurrency() > 1 ? 100 : 10;
    for (unsigned round = 0; round < rounds; ++round) {
        ASSERT_TRUE(vcpu.interrupt(vector));
        for (int runs = 0; delivered() == round && runs < 100; ++runs) {
            const Exit exit = vcpu.run().value();
            ASSERT_TRUE(exit.is<Interrupted>()) << exit.name();
        }
        ASSERT_EQ(delivered(), round + 1U);
    }
}

TEST_P(InterruptTest, NoWindowOpensBehindStiWhateverInterruptsTheGuest)
{
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM opens no interrupt window before a HLT";
    }
    SmallVm small{engine()};
    small.place(SmallVm::code_at, {0x90, 0xfb, 0x90, 0xf4});  // nop; sti; nop; hlt
    Vcpu vcpu = small.vcpu();
    vcpu.request_irq_window(true);
    const Kicks kicks{vcpu, std::chrono::microseconds{100}};
    const x86::Regs begin = vcpu.regs();
    const unsigned rounds = std::thread::hardware_concurrency() > 1 ? 300 : 10;
    for (unsigned round = 0; round < rounds; ++round) {
        vcpu.set_regs(begin);
        bool is_open = false;
        while (!is_open) {
            const Exit exit = vcpu.run().value();
            is_open = exit.is<IrqWindow>();
            ASSERT_TRUE(is_open || exit.is<Interrupted>()) << exit.name();
        }
        ASSERT_EQ(vcpu.regs().rip, SmallVm::code_at + 3U);
    }
}

}  // namespace
}  // namespace vmm
