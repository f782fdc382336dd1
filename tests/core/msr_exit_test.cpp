// SPDX-License-Identifier: Apache-2.0

#include <atomic>
#include <cerrno>
#include <optional>
#include <thread>

#include <gtest/gtest.h>

#include "core/small_vm.hpp"
#include "vmm/vcpu.hpp"
#include "vmm/vm.hpp"

namespace vmm {
namespace {

using test::SmallVm;
using x86::MsrExitReason;
using x86::MsrFilter;

constexpr std::uint64_t at = SmallVm::code_at;
constexpr std::uint64_t gp_handler = 0x2000;
constexpr std::uint32_t core_thread_count = 0x35;
constexpr std::uint32_t pat = 0x277;
constexpr std::uint32_t efer = 0xc000'0080;
constexpr std::uint32_t fs_base = 0xc000'0100;
constexpr std::uint32_t nobodys = 0x474f'4f00;

MsrFilter denied(std::uint32_t index, bool reads, bool writes)
{
    MsrFilter filter;
    filter.ranges.push_back(
        {.reads = reads, .writes = writes, .base = index, .count = 1, .allowed = {0}});
    return filter;
}

/// A guest in real mode; its #GP leads to an OUT at port 0x13.
class MsrExitTest : public test::EveryEngine {
protected:
    void SetUp() override
    {
        EveryEngine::SetUp();
        if (!IsSkipped()) {
            small_.emplace(engine());
            small_->place(13 * 4, {0x00, 0x20, 0x00, 0x00});
            small_->place(gp_handler, {0xe6, 0x13, 0xf4});  // out %al, $0x13; hlt
        }
    }

    /// mov $index, %ecx; rdmsr; out %al, $0x10; hlt
    Vcpu reader_of(std::uint32_t index)
    {
        small_->place(at, {0x66, 0xb9, index & 0xffU, index >> 8U & 0xffU, index >> 16U & 0xffU,
                           index >> 24U, 0x0f, 0x32, 0xe6, 0x10, 0xf4});
        return small_->vcpu(next_id_++);
    }
    /// mov $index, %ecx; mov $value, %eax; mov %ebx, %edx; wrmsr; out %al, $0x10; hlt
    Vcpu writer_of(std::uint32_t index, std::uint32_t value)
    {
        small_->place(at, {0x66,
                           0xb9,
                           index & 0xffU,
                           index >> 8U & 0xffU,
                           index >> 16U & 0xffU,
                           index >> 24U,
                           0x66,
                           0xb8,
                           value & 0xffU,
                           value >> 8U & 0xffU,
                           value >> 16U & 0xffU,
                           value >> 24U,
                           0x66,
                           0x89,
                           0xda,
                           0x0f,
                           0x30,
                           0xe6,
                           0x10,
                           0xf4});
        return small_->vcpu(next_id_++);
    }
    static constexpr std::uint64_t rdmsr_at = at + 6;
    static constexpr std::uint64_t wrmsr_at = at + 15;

    [[nodiscard]] Vm& vm() { return small_->vm(); }

    static void expect_port(const Exit& exit, std::uint16_t port)
    {
        ASSERT_TRUE(exit.is<PortWrite>()) << exit.name();
        EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{port});
    }
    std::optional<SmallVm> small_;
    std::uint32_t next_id_{};
};
INSTANTIATE_TEST_SUITE_P(Engines, MsrExitTest, test::engines, test::engine_name);

TEST_P(MsrExitTest, AReadThatTheFilterDeniesIsTheCallersToAnswer)
{
    vm().set_msr_filter(denied(core_thread_count, true, false)).value();
    vm().set_msr_exits({.filtered = true});
    Vcpu vcpu = reader_of(core_thread_count);
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MsrRead>()) << exit.name();
    EXPECT_EQ(exit.get_if<MsrRead>()->index, core_thread_count);
    EXPECT_EQ(exit.get_if<MsrRead>()->reason, MsrExitReason::Filter);
    EXPECT_EQ(exit.get_if<MsrRead>()->answer->value, 0U);
    EXPECT_FALSE(exit.get_if<MsrRead>()->answer->fault);
    EXPECT_EQ(vcpu.regs().rip, rdmsr_at);
    exit.get_if<MsrRead>()->answer->value = 0x1234'5678'9abc'def0;
    EXPECT_TRUE(exit.complete());
    EXPECT_EQ(vcpu.regs().rip, rdmsr_at + 2);
    EXPECT_EQ(vcpu.regs().rax, 0x9abc'def0U);
    EXPECT_EQ(vcpu.regs().rdx, 0x1234'5678U);
    expect_port(*vcpu.run(), 0x10);
}

TEST_P(MsrExitTest, AWriteShowsItsValueAndGoesOn)
{
    vm().set_msr_filter(denied(pat, false, true)).value();
    vm().set_msr_exits({.filtered = true});
    Vcpu vcpu = writer_of(pat, 0x0606'0606);
    x86::Regs regs = vcpu.regs();
    regs.rbx = 0x0101'0101;
    vcpu.set_regs(regs);
    const Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MsrWrite>()) << exit.name();
    EXPECT_EQ(exit.get_if<MsrWrite>()->index, pat);
    EXPECT_EQ(exit.get_if<MsrWrite>()->value, 0x0101'0101'0606'0606U);
    EXPECT_EQ(vcpu.regs().rip, wrmsr_at);
    expect_port(*vcpu.run(), 0x10);
    EXPECT_EQ(*vcpu.msr(pat), 0x0007'0406'0007'0406U) << "it was the caller's to carry out";
}

TEST_P(MsrExitTest, AFaultInTheAnswerIsAGeneralProtectionFaultOfTheInstruction)
{
    vm().set_msr_filter(denied(core_thread_count, true, true)).value();
    vm().set_msr_exits({.filtered = true});
    for (const bool write : {false, true}) {
        Vcpu vcpu = write ? writer_of(core_thread_count, 1) : reader_of(core_thread_count);
        const Exit exit = vcpu.run().value();
        if (const auto* read = exit.get_if<MsrRead>()) {
            read->answer->fault = true;
        } else {
            ASSERT_TRUE(exit.is<MsrWrite>()) << exit.name();
            exit.get_if<MsrWrite>()->answer->fault = true;
        }
        EXPECT_TRUE(exit.complete());
        EXPECT_EQ(vcpu.regs().rip, write ? wrmsr_at : rdmsr_at);
        EXPECT_EQ(vcpu.events().exception.nr, 13U);
        expect_port(*vcpu.run(), 0x13);
        EXPECT_EQ(*vm().memory().read<std::uint16_t>(Gpa{0x8000 - 6}), write ? wrmsr_at : rdmsr_at);
    }
}

TEST_P(MsrExitTest, WithoutExitsWhatIsDeniedRaisesAGeneralProtectionFault)
{
    vm().set_msr_filter(denied(fs_base, true, false)).value();
    vm().set_msr_exits({.invalid = true, .unknown = true});
    Vcpu vcpu = reader_of(fs_base);
    expect_port(*vcpu.run(), 0x13);
    EXPECT_EQ(*vm().memory().read<std::uint16_t>(Gpa{0x8000 - 6}), rdmsr_at);
}

TEST_P(MsrExitTest, MsrsThatInstructionsUseAreFilteredToo)
{
    vm().set_msr_filter(denied(fs_base, true, false)).value();
    vm().set_msr_exits({.filtered = true});
    Vcpu reader = reader_of(fs_base);
    EXPECT_TRUE(reader.run()->is<MsrRead>());
    vm().set_msr_filter({}).value();
    reader = reader_of(fs_base);
    expect_port(*reader.run(), 0x10);
}

TEST_P(MsrExitTest, AWriteOfAnMsrWhoseReadsAreDeniedPasses)
{
    vm().set_msr_filter(denied(pat, true, false)).value();
    vm().set_msr_exits({.filtered = true});
    Vcpu vcpu = writer_of(pat, 0x0606'0606);
    expect_port(*vcpu.run(), 0x10);
    EXPECT_EQ(*vcpu.msr(pat), 0x0606'0606U);
}

TEST_P(MsrExitTest, AnUnknownMsrLeavesForThatReason)
{
    vm().set_msr_exits({.unknown = true});
    Vcpu reader = reader_of(nobodys);
    Exit exit = reader.run().value();
    ASSERT_TRUE(exit.is<MsrRead>()) << exit.name();
    EXPECT_EQ(exit.get_if<MsrRead>()->reason, MsrExitReason::Unknown);
    Vcpu writer = writer_of(nobodys, 2);
    exit = writer.run().value();
    ASSERT_TRUE(exit.is<MsrWrite>()) << exit.name();
    EXPECT_EQ(exit.get_if<MsrWrite>()->reason, MsrExitReason::Unknown);
    expect_port(*writer.run(), 0x10);
}

TEST_P(MsrExitTest, AnInvalidValueLeavesForThatReason)
{
    vm().set_msr_exits({.invalid = true});
    for (const std::uint32_t index : {pat, efer}) {
        Vcpu vcpu = writer_of(index, 0x0202'0202);
        const Exit exit = vcpu.run().value();
        ASSERT_TRUE(exit.is<MsrWrite>()) << exit.name() << ' ' << std::hex << index;
        EXPECT_EQ(exit.get_if<MsrWrite>()->index, index);
        EXPECT_EQ(exit.get_if<MsrWrite>()->reason, MsrExitReason::Invalid);
        EXPECT_EQ(exit.get_if<MsrWrite>()->value, 0x0202'0202U);
    }
}

TEST_P(MsrExitTest, OfTwoRangesTheFirstCountsAndWhatIsInNoneIsAsTheDefaultSays)
{
    MsrFilter filter;
    filter.default_deny = true;
    filter.ranges.push_back({.reads = true, .base = pat, .count = 1, .allowed = {1}});
    filter.ranges.push_back({.reads = true, .base = pat - 8, .count = 64, .allowed = {0}});
    vm().set_msr_filter(filter).value();
    vm().set_msr_exits({.filtered = true});
    Vcpu vcpu = reader_of(pat);
    expect_port(*vcpu.run(), 0x10);
    vcpu = reader_of(pat - 1);
    EXPECT_TRUE(vcpu.run()->is<MsrRead>());
    vcpu = reader_of(fs_base);
    EXPECT_TRUE(vcpu.run()->is<MsrRead>());
    vcpu = writer_of(pat, 0);
    EXPECT_TRUE(vcpu.run()->is<MsrWrite>());
}

TEST_P(MsrExitTest, TheX2ApicsAreNeverFiltered)
{
    MsrFilter filter = denied(pat, true, true);
    filter.default_deny = true;
    vm().set_msr_filter(filter).value();
    vm().set_msr_exits({.invalid = true, .filtered = true});
    for (const std::uint32_t index : {0x800U, 0x8ffU}) {
        Vcpu vcpu = reader_of(index);
        const Exit exit = vcpu.run().value();
        ASSERT_TRUE(exit.is<MsrRead>()) << exit.name();
        EXPECT_EQ(exit.get_if<MsrRead>()->reason, MsrExitReason::Invalid) << "there is no APIC";
    }
    for (const std::uint32_t index : {0x7ffU, 0x900U}) {
        Vcpu vcpu = reader_of(index);
        EXPECT_EQ(vcpu.run()->get_if<MsrRead>()->reason, MsrExitReason::Filter);
    }
}

TEST_P(MsrExitTest, TheCallersOwnAccessesAreNotFiltered)
{
    vm().set_msr_filter(denied(pat, true, true)).value();
    Vcpu vcpu = reader_of(pat);
    EXPECT_TRUE(vcpu.msr(pat));
    EXPECT_TRUE(vcpu.set_msr(pat, 0x0606'0606));
}

TEST_P(MsrExitTest, FiltersThatCannotBeAreRefusedAndChangeNothing)
{
    vm().set_msr_filter(denied(pat, true, true)).value();
    vm().set_msr_exits({.filtered = true});
    const auto refused = [&](const MsrFilter& filter) {
        const auto set = vm().set_msr_filter(filter);
        return !set && set.error().errno_value() == EINVAL;
    };
    EXPECT_TRUE(refused({.default_deny = true}));
    EXPECT_TRUE(refused(denied(pat, false, false)));
    MsrFilter filter = denied(pat, true, true);
    filter.ranges[0].count = 0;
    EXPECT_TRUE(refused(filter));
    filter.ranges[0].count = 65;
    EXPECT_TRUE(refused(filter)) << "64 bits";
    filter.ranges[0].allowed.assign(MsrFilter::max_count / 64 + 1, 0);
    filter.ranges[0].count = MsrFilter::max_count + 1;
    EXPECT_TRUE(refused(filter));
    filter.ranges.assign(17, denied(pat, true, true).ranges[0]);
    EXPECT_TRUE(refused(filter));
    Vcpu vcpu = reader_of(pat);
    EXPECT_TRUE(vcpu.run()->is<MsrRead>()) << "the filter of before";

    filter.ranges.assign(16, denied(pat, true, true).ranges[0]);
    filter.ranges[0].count = MsrFilter::max_count;
    filter.ranges[0].allowed.assign(MsrFilter::max_count / 64, ~std::uint64_t{0});
    EXPECT_TRUE(vm().set_msr_filter(filter));
    // As with KVM, a range that reaches beyond the last MSR has none.
    filter = denied(0xffff'ffff, true, true);
    filter.ranges[0].count = 2;
    EXPECT_TRUE(vm().set_msr_filter(filter));
    vcpu = reader_of(0xffff'ffff);
    expect_port(*vcpu.run(), 0x13);
}

TEST_P(MsrExitTest, AFilterChangesUnderARunningGuest)
{
    vm().set_msr_exits({.filtered = true});
    // 1: mov $0xc0000100, %ecx; rdmsr; jmp 1b
    small_->place(at, {0x66, 0xb9, 0x00, 0x01, 0x00, 0xc0, 0x0f, 0x32, 0xeb, 0xf6});
    Vcpu vcpu = small_->vcpu();
    std::atomic<bool> stop{};
    std::thread other{[&] {
        while (!stop.load()) {
            vm().set_msr_filter(denied(fs_base, true, false)).value();
            vm().set_msr_filter({}).value();
        }
        vm().set_msr_filter(denied(fs_base, true, false)).value();
    }};
    for (int left = 0; left < 20; ++left) {
        ASSERT_TRUE(vcpu.run()->is<MsrRead>());
    }
    stop.store(true);
    other.join();
    EXPECT_TRUE(vcpu.run()->is<MsrRead>());
}

TEST(MsrExits, AnswersGoToBothOfTwoEnginesInLockstep)
{
    SmallVm small{KvmOptions{.engine = Engine::Soft,
                             .lockstep = Engine::Soft,
                             .lockstep_soft_mode = SoftMode::Interpreter}};
    small.vm().set_msr_filter(denied(fs_base, true, true)).value();
    small.vm().set_msr_exits({.filtered = true});
    small.place(13 * 4, {0x00, 0x20, 0x00, 0x00});
    small.place(gp_handler, {0xe6, 0x13, 0xf4});
    // mov $0xc0000100, %ecx; rdmsr; wrmsr; rdmsr
    small.place(at, {0x66, 0xb9, 0x00, 0x01, 0x00, 0xc0, 0x0f, 0x32, 0x0f, 0x30, 0x0f, 0x32});
    Vcpu vcpu = small.vcpu();
    Exit exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MsrRead>()) << exit.name();
    exit.get_if<MsrRead>()->answer->value = 0x5'0000'0007;
    exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MsrWrite>()) << exit.name();
    EXPECT_EQ(exit.get_if<MsrWrite>()->value, 0x5'0000'0007U);
    exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<MsrRead>()) << exit.name();
    exit.get_if<MsrRead>()->answer->fault = true;
    exit = vcpu.run().value();
    ASSERT_TRUE(exit.is<PortWrite>())
        << (exit.is<Difference>() ? exit.get_if<Difference>()->report : exit.name());
}

}  // namespace
}  // namespace vmm
