// SPDX-License-Identifier: Apache-2.0

#include <atomic>
#include <cstddef>
#include <memory>
#include <numeric>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "core/exit_counters.hpp"
#include "core/small_vm.hpp"
#include "vmm/statistics.hpp"
#include "vmm/vcpu.hpp"
#include "vmm/vm.hpp"

namespace vmm {
namespace {

using core::ExitCounters;
using test::SmallVm;

class StatisticsTest : public test::EveryEngine {};
INSTANTIATE_TEST_SUITE_P(Engines, StatisticsTest, test::engines, test::engine_name);
class IrqchipStatistics : public StatisticsTest {};
INSTANTIATE_TEST_SUITE_P(Engines, IrqchipStatistics, test::irqchips, test::engine_name);

class Silent final : public bus::DeviceBase {
public:
    void read(std::uint64_t /*offset*/, std::span<std::byte> /*data*/) noexcept override {}
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept override {}
};

const ExitStatistics& of(const VcpuStatistics& seen, ExitKind kind)
{
    static const ExitStatistics none{};
    for (const ExitStatistics& each : seen.exits) {
        if (each.kind == kind) {
            return each;
        }
    }
    return none;
}

TEST_P(StatisticsTest, EachExitOfAScriptedGuestIsCountedOnceByItsReason)
{
    SmallVm small{engine()};
    small.vm().attach(*PortRange::make(Port{0x40}, 1), std::make_shared<Silent>()).value();
    // mov $7, %cx; 1: out %al, $0x10; in $0x11, %al; in $0x11, %al; out %al, $0x40; loop 1b; hlt
    small.place(SmallVm::code_at, {0xb9, 0x07, 0x00, 0xe6, 0x10, 0xe4, 0x11, 0xe4, 0x11, 0xe6, 0x40,
                                   0xe2, 0xf6, 0xf4});
    Vcpu vcpu = small.vcpu();
    unsigned exits = 0;
    while (!vcpu.run()->is<Halt>()) {
        ++exits;
    }
    EXPECT_EQ(exits, 21U);
    const VcpuStatistics seen = vcpu.statistics();
    EXPECT_EQ(seen.vcpu, 0U);
    EXPECT_EQ(seen.count(ExitKind::PortWrite), 7U);
    EXPECT_EQ(seen.count(ExitKind::PortRead), 14U);
    EXPECT_EQ(seen.count(ExitKind::DevicePortWrite), 7U);
    EXPECT_EQ(seen.count(ExitKind::Halt), 1U);
    EXPECT_EQ(seen.exits.size(), 4U) << "and nothing else";
    EXPECT_EQ(seen.counter("exits"), 29U);
    EXPECT_EQ(seen.counter("io_exits"), 28U);
    EXPECT_EQ(seen.counter("mmio_exits"), 0U);
    EXPECT_EQ(seen.counter("halt_exits"), 1U);
    EXPECT_EQ(seen.counter("signal_exits"), 0U);
    ASSERT_EQ(seen.last_exits.size(), 29U);
    EXPECT_EQ(seen.last_exits.back().kind, ExitKind::Halt);
    EXPECT_EQ(seen.last_exits.back().rip, Gva{SmallVm::code_at + 14U});
    EXPECT_EQ(seen.last_exits.front().kind, ExitKind::PortWrite);
    EXPECT_EQ(seen.last_exits.front().where, 0x10U);
}

TEST_P(StatisticsTest, MmioKicksAndMsrsAreCounted)
{
    SmallVm small{engine()};
    small.vm().set_msr_exits({.unknown = true});
    // mov $0x474f4f00, %ecx; rdmsr; mov $0xffff, %ax; mov %ax, %ds; mov %al, 0x20; mov 0x20, %al;
    // hlt
    small.place(SmallVm::code_at, {0x66, 0xb9, 0x00, 0x4f, 0x4f, 0x47, 0x0f, 0x32, 0xb8, 0xff,
                                   0xff, 0x8e, 0xd8, 0xa2, 0x20, 0x00, 0xa0, 0x20, 0x00, 0xf4});
    Vcpu vcpu = small.vcpu();
    vcpu.kicker().kick();
    EXPECT_TRUE(vcpu.run()->is<Interrupted>());
    EXPECT_TRUE(vcpu.run()->is<MsrRead>());
    EXPECT_TRUE(vcpu.run()->is<MmioWrite>());
    EXPECT_TRUE(vcpu.run()->is<MmioRead>());
    EXPECT_TRUE(vcpu.run()->is<Halt>());
    const VcpuStatistics seen = vcpu.statistics();
    EXPECT_EQ(seen.counter("signal_exits"), 1U);
    EXPECT_EQ(seen.counter("mmio_exits"), 2U);
    EXPECT_EQ(seen.count(ExitKind::MsrRead), 1U);
    EXPECT_EQ(of(seen, ExitKind::MmioRead).count, 1U);
    EXPECT_EQ(seen.counter("guest_mode"), 0U);
}

TEST_P(StatisticsTest, TimesAddUp)
{
    SmallVm small{engine()};
    // mov $1000, %cx; 1: out %al, $0x10; loop 1b; hlt
    small.place(SmallVm::code_at, {0xb9, 0xe8, 0x03, 0xe6, 0x10, 0xe2, 0xfc, 0xf4});
    Vcpu vcpu = small.vcpu();
    while (!vcpu.run()->is<Halt>()) {
    }
    const VcpuStatistics all = vcpu.statistics();
    const ExitStatistics& seen = of(all, ExitKind::PortWrite);
    EXPECT_EQ(seen.count, 1000U);
    EXPECT_GE(seen.timed, engine() != Engine::Kvm ? 5U : 1000U);
    EXPECT_LE(seen.timed, engine() != Engine::Kvm ? 40U : 1000U);
    EXPECT_LE(seen.minimum_ns, seen.total_ns / seen.timed);
    EXPECT_GE(seen.maximum_ns, seen.total_ns / seen.timed);
    EXPECT_EQ(std::accumulate(seen.histogram.begin(), seen.histogram.end(), std::uint64_t{}),
              seen.timed);
    EXPECT_NE(seen.histogram[ExitCounters::bucket_of(seen.maximum_ns)], 0U);
    EXPECT_NE(seen.histogram[ExitCounters::bucket_of(seen.minimum_ns)], 0U);
    EXPECT_EQ(all.last_exits.size(), 64U) << "the last ones";
}

TEST_P(IrqchipStatistics, InterruptsAndHaltsAreCounted)
{
    SmallVm small{options(), SmallVm::Irqchip::Full};
    if (is_emulated_kvm()) {
        GTEST_SKIP() << "this KVM opens no interrupt window before a HLT";
    }
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xf4, 0xe6, 0x11});  // out; hlt; out
    Vcpu vcpu = small.vcpu();
    ASSERT_TRUE(vcpu.run()->is<PortWrite>());
    small.place(2 * 4, {0x00, 0x20, 0x00, 0x00});
    small.place(0x2000, {0xcf});  // iret
    std::thread other{[&] {
        while (vcpu.statistics().counter("blocking") == 0) {
            std::this_thread::yield();
        }
        vcpu.nmi();
    }};
    const Exit exit = vcpu.run().value();
    other.join();
    ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
    const VcpuStatistics seen = vcpu.statistics();
    EXPECT_EQ(seen.counter("halt_exits"), 1U);
    EXPECT_GE(seen.counter("nmi_injections"), 1U);
    if (!has_kernel_irqchip()) {  // KVM counts those that a page fault has put off again.
        EXPECT_EQ(seen.counter("nmi_injections"), 1U);
    }
    EXPECT_EQ(seen.counter("irq_injections"), 0U);
    EXPECT_EQ(seen.counter("blocking"), 0U);
    EXPECT_NE(seen.counter("halt_wait_ns"), 0U);
    if (!has_kernel_irqchip()) {  // There the NMI comes with a kick, which counts as no wake-up.
        EXPECT_EQ(seen.counter("halt_wakeup"), 1U);
        EXPECT_EQ(std::accumulate(seen.halt_wait_hist.begin(), seen.halt_wait_hist.end(),
                                  std::uint64_t{}),
                  1U);
    }
}

TEST_P(StatisticsTest, AnyThreadReadsThemWhileTheGuestRuns)
{
    SmallVm small{engine()};
    // 1: out %al, $0x10; in $0x11, %al; jmp 1b
    small.place(SmallVm::code_at, {0xe6, 0x10, 0xe4, 0x11, 0xeb, 0xfa});
    Vcpu vcpu = small.vcpu();
    std::atomic<bool> stop{};
    std::thread other{[&] {
        std::uint64_t before = 0;
        while (!stop.load()) {
            const VcpuStatistics seen = vcpu.statistics();
            EXPECT_GE(seen.counter("exits"), before);
            before = seen.counter("exits");
            const ExitRecord* last = nullptr;
            for (const ExitRecord& record : seen.last_exits) {
                EXPECT_EQ(record.where, record.kind == ExitKind::PortWrite ? 0x10U : 0x11U);
                EXPECT_TRUE(last == nullptr || last->kind != record.kind) << "they take turns";
                last = &record;
            }
        }
    }};
    for (int left = 0; left < 3000; ++left) {
        ASSERT_TRUE(vcpu.run());
    }
    stop.store(true);
    other.join();
}

TEST(Statistics, AHypercallIsCountedWhateverItsNumber)
{
    SmallVm small;
    small.place(SmallVm::code_at, {0x0f, 0x01, 0xc1, 0xf4});  // vmcall; hlt
    Vcpu vcpu = small.vcpu();
    x86::Regs regs = vcpu.regs();
    regs.rax = 0xffff'ffff'ffff'fff0;
    vcpu.set_regs(regs);
    ASSERT_TRUE(vcpu.run()->is<Halt>());
    const VcpuStatistics seen = vcpu.statistics();
    EXPECT_EQ(seen.counter("hypercalls"), 1U);
    ASSERT_EQ(seen.last_exits.size(), 2U);
    EXPECT_EQ(seen.last_exits[0].kind, ExitKind::Hypercall);
    EXPECT_EQ(seen.last_exits[0].where, 0xff'ffff'ffff'fff0U);
}

TEST(Statistics, ASlotHasAllVcpusDropTheirTranslations)
{
    SmallVm small;
    const auto flushes = [&] { return small.vm().statistics().front().value; };
    EXPECT_EQ(small.vm().statistics().front().name, "remote_tlb_flush");
    const std::uint64_t before = flushes();
    small.vm()
        .set_user_memory_region({.slot = 1,
                                 .guest_phys_addr = Gpa{0x20'0000},
                                 .size_bytes = 0x1000,
                                 .host = small.memory()})
        .value();
    EXPECT_EQ(flushes(), before + 1);
}

TEST(ExitCounterTimes, BucketsAreThoseOfTheirHighestBit)
{
    EXPECT_EQ(ExitCounters::bucket_of(0), 0U);
    EXPECT_EQ(ExitCounters::bucket_of(1), 1U);
    EXPECT_EQ(ExitCounters::bucket_of(2), 2U);
    EXPECT_EQ(ExitCounters::bucket_of(3), 2U);
    EXPECT_EQ(ExitCounters::bucket_of(4), 3U);
    EXPECT_EQ(ExitCounters::bucket_of((1ULL << 30U) - 1U), 30U);
    EXPECT_EQ(ExitCounters::bucket_of(1ULL << 30U), 31U);
    EXPECT_EQ(ExitCounters::bucket_of(~0ULL), 31U);
}

VcpuStatistics sample()
{
    VcpuStatistics one;
    one.vcpu = 3;
    one.counters = {{"exits", 5}, {"halt_exits", 1}};
    ExitStatistics exits{ExitKind::PortRead, 4, 3, 9, 0, 6, {}};
    exits.histogram[0] = 1;
    exits.histogram[2] = 1;
    exits.histogram[3] = 1;
    one.exits.push_back(exits);
    one.last_exits.push_back({ExitKind::PortRead, 0x60, Gva{0x1000}});
    return one;
}

TEST(StatisticsOutput, Prometheus)
{
    const VcpuStatistics one = sample();
    EXPECT_EQ(to_prometheus({&one, 1}),
              "# TYPE vmm_exit_reason_total counter\n"
              "vmm_exit_reason_total{vcpu=\"3\",reason=\"port_read\"} 4\n"
              "# TYPE vmm_exit_nanoseconds histogram\n"
              "vmm_exit_nanoseconds_bucket{vcpu=\"3\",reason=\"port_read\",le=\"0\"} 1\n"
              "vmm_exit_nanoseconds_bucket{vcpu=\"3\",reason=\"port_read\",le=\"1\"} 1\n"
              "vmm_exit_nanoseconds_bucket{vcpu=\"3\",reason=\"port_read\",le=\"3\"} 2\n"
              "vmm_exit_nanoseconds_bucket{vcpu=\"3\",reason=\"port_read\",le=\"7\"} 3\n"
              "vmm_exit_nanoseconds_bucket{vcpu=\"3\",reason=\"port_read\",le=\"+Inf\"} 3\n"
              "vmm_exit_nanoseconds_sum{vcpu=\"3\",reason=\"port_read\"} 9\n"
              "vmm_exit_nanoseconds_count{vcpu=\"3\",reason=\"port_read\"} 3\n"
              "# TYPE vmm_exits untyped\n"
              "vmm_exits{vcpu=\"3\"} 5\n"
              "# TYPE vmm_halt_exits untyped\n"
              "vmm_halt_exits{vcpu=\"3\"} 1\n");
}

TEST(StatisticsOutput, Json)
{
    const std::array two{sample(), VcpuStatistics{}};
    EXPECT_EQ(to_json(two),
              "[{\"vcpu\": 3, \"counters\": {\"exits\": 5, \"halt_exits\": 1}, "
              "\"halt_wait_hist\": [], \"exits\": [{\"reason\": \"port_read\", \"count\": 4, "
              "\"timed\": 3, \"total_ns\": 9, \"minimum_ns\": 0, \"maximum_ns\": 6, "
              "\"histogram\": [1, 0, 1, 1]}], \"last_exits\": [{\"reason\": \"port_read\", "
              "\"where\": 96, \"rip\": 4096}]},\n"
              " {\"vcpu\": 0, \"counters\": {}, \"halt_wait_hist\": [], \"exits\": [], "
              "\"last_exits\": []}]\n");
}

TEST(StatisticsOutput, Text)
{
    const VcpuStatistics one = sample();
    const std::string text = to_text({&one, 1});
    EXPECT_NE(text.find("vCPU 3\n"), std::string::npos);
    EXPECT_NE(text.find("port_read"), std::string::npos);
    EXPECT_NE(text.find("port_read 0x60"), std::string::npos);
}

TEST(StatisticsOutput, EachKindHasAName)
{
    for (std::size_t kind = 0; kind < exit_kinds; ++kind) {
        EXPECT_GT(name(static_cast<ExitKind>(kind)).size(), 3U);
    }
    EXPECT_EQ(name(ExitKind::Difference), "difference");
    EXPECT_EQ(name(ExitKind::Request), "request");
    EXPECT_EQ(name(static_cast<ExitKind>(exit_kinds)), "?");
}

}  // namespace
}  // namespace vmm
