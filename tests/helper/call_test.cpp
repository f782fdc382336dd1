// SPDX-License-Identifier: Apache-2.0

// The helper's calls and what they refuse: src/x86/helper/ABI.md.

#include <array>
#include <fstream>
#include <string>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include "helper/caller.hpp"

namespace vmm {
namespace {

using test::call;
using test::Caller;

class HelperCall : public test::HelperTest {};

TEST_F(HelperCall, RunsAGuestUntilItHalts)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xb0, 0x42, 0xa2, 0x00, 0x20, 0xf4});  // mov $0x42, %al; to 0x2000
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.area->exit_kind, std::uint32_t{VMM_EXIT_HARDWARE});
    EXPECT_EQ(c.ended(), Caller::Ended::Hlt);
    EXPECT_EQ(c.area->rip, Caller::code_at + 5);
    EXPECT_EQ(c.memory[0x2000], std::byte{0x42});
    EXPECT_EQ(c.area->running, 0U);
}

/// The guest's CR8 is its own on SVM, and the caller's to keep on VMX.
TEST_F(HelperCall, TheHostsTaskPriorityIsOutOfReach)
{
    constexpr std::uint64_t tables = 0x4000;
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    // The first 2 MiB to themselves.
    c.place(tables, {0x07, 0x50});
    c.place(tables + 0x1000, {0x07, 0x60});
    c.place(tables + 0x2000, {0x87});
    c.place(Caller::code_at, {0xb8, 0x0f, 0x00, 0x00, 0x00,  // mov $15, %eax
                              0x44, 0x0f, 0x22, 0xc0,        // mov %rax, %cr8
                              0xf4});
    const auto enter_long_mode = [](auto& state) {
        state.efer = 0x500;  // LME, LMA
        state.cr0 = 0x8000'0031;
        state.cr3 = tables;
        state.cr4 = 0x20;
        state.cs.attributes = 0xa9b;
        state.cs.limit = 0xffff'ffff;
    };
    if (c.is_vmx()) {
        enter_long_mode(c.area->vmx);
    } else {
        enter_long_mode(c.area->svm);
    }
    ASSERT_EQ(c.run(), 0);
    ASSERT_EQ(c.area->exit_kind, std::uint32_t{VMM_EXIT_HARDWARE});
    if (c.is_vmx()) {
        EXPECT_EQ(c.area->vmx.exit_reason, 28U) << "control-register access";
        EXPECT_EQ(c.area->rip, Caller::code_at + 5);
    } else {
        EXPECT_EQ(c.ended(), Caller::Ended::Hlt);
        EXPECT_EQ(c.area->svm.int_ctl & 0xffU, 15U) << "V_TPR";
    }
}

TEST_F(HelperCall, AnotherVersionIsRefused)
{
    Caller c;
    vmm_create create{VMM_ABI_VERSION + 1, 0};
    EXPECT_EQ(call(c.device, VMM_CREATE_VM, &create), -EPROTO);
    EXPECT_EQ(create.reason, std::uint32_t{VMM_REASON_VERSION});
}

TEST_F(HelperCall, AVcpusIdIsTakenOnceAndBounded)
{
    Caller c;
    vmm_create create{0, 0};
    EXPECT_EQ(call(c.vm, VMM_CREATE_VCPU, &create), -EEXIST);
    create = {VMM_VCPU_ID_END, 0};
    EXPECT_EQ(call(c.vm, VMM_CREATE_VCPU, &create), -EINVAL);
    EXPECT_EQ(create.reason, std::uint32_t{VMM_REASON_VCPU_ID});
    create = {VMM_VCPU_ID_END - 1, 0};
    const UniqueFd last{call(c.vm, VMM_CREATE_VCPU, &create)};
    EXPECT_TRUE(last);
}

TEST_F(HelperCall, RegionsThatBreakARuleAreRefusedWithIt)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    const auto refused = [&](int error, std::uint32_t reason, auto change) {
        vmm_region region = c.whole();
        region.slot = 1;
        region.guest_address = Caller::memory_size;
        change(region);
        EXPECT_EQ(call(c.vm, VMM_SET_REGION, &region), -error) << reason;
        EXPECT_EQ(region.reason, reason);
    };
    refused(EEXIST, VMM_REASON_SLOT_TAKEN, [](auto& r) { r.slot = 0; });
    refused(EEXIST, VMM_REASON_OVERLAP, [](auto& r) { r.guest_address -= 0x1000; });
    refused(EINVAL, VMM_REASON_SLOT, [](auto& r) { r.slot = VMM_MAX_REGIONS; });
    refused(EINVAL, VMM_REASON_FLAGS, [](auto& r) { r.flags = 4; });
    refused(EINVAL, VMM_REASON_FLAGS, [](auto& r) { r.reserved = 1; });
    refused(EINVAL, VMM_REASON_ALIGNMENT, [](auto& r) { r.guest_address += 0x800; });
    refused(EINVAL, VMM_REASON_ALIGNMENT, [](auto& r) { r.host_address += 1; });
    refused(EINVAL, VMM_REASON_GUEST_ADDRESS, [](auto& r) { r.guest_address = ~0xfffULL; });
    refused(EINVAL, VMM_REASON_GUEST_ADDRESS, [](auto& r) { r.guest_address = 1ULL << 52U; });
    refused(EINVAL, VMM_REASON_HOST_ADDRESS, [](auto& r) { r.host_address = ~0xfffULL; });
    refused(EINVAL, VMM_REASON_HOST_ADDRESS,
            [](auto& r) { r.host_address = 0xffff'8880'0000'0000; });
    refused(ENOENT, VMM_REASON_NO_SUCH_SLOT, [](auto& r) { r.size = 0; });
    vmm_region region = c.whole();
    region.slot = 1;
    region.guest_address = Caller::memory_size;
    EXPECT_EQ(call(c.vm, VMM_SET_REGION, &region), 0) << "the same without a mistake";
}

/// Runs a state with something spoilt: it is refused, for this reason, without an entry.
template <typename Change>
void expect_refused(Caller& c, std::uint32_t reason, const Change& change)
{
    c.reset();
    change(*c.area);
    const std::uint64_t entries = c.area->entries;
    EXPECT_EQ(c.run(), -EINVAL) << reason;
    EXPECT_EQ(c.area->reason, reason);
    EXPECT_EQ(c.area->entries, entries);
}

/// What both vendors' guests may not have.
void expect_refusals_of_both(Caller& c, auto part)
{
    const auto refused = [&](std::uint32_t reason, auto change) {
        expect_refused(c, reason, [&](vmm_vcpu_area& a) { change(part(a)); });
    };
    refused(VMM_REASON_OPTIONS, [](auto& v) { v.options = 2; });
    refused(VMM_REASON_EVENT, [](auto& v) { v.event_inj = 0x8000'0130; });
    refused(VMM_REASON_EVENT, [](auto& v) { v.event_inj = 0x8000'0302; });
    refused(VMM_REASON_EFER, [](auto& v) { v.efer = 0x1000; });
    refused(VMM_REASON_CR0, [](auto& v) { v.cr0 = 0x2000'0010; });
    refused(VMM_REASON_CR0, [](auto& v) { v.cr0 = 0x8000'0010; });
    refused(VMM_REASON_CR0, [](auto& v) { v.cr0 = 1ULL << 32U; });
    refused(VMM_REASON_CR3, [](auto& v) { v.cr3 = 1ULL << 52U; });
    refused(VMM_REASON_CR4, [](auto& v) { v.cr4 = 1U << 22U; });
    refused(VMM_REASON_CR4, [](auto& v) { v.cr4 = 1U << 13U; });
    refused(VMM_REASON_CR4, [](auto& v) { v.cr4 = 1ULL << 32U; });
    refused(VMM_REASON_LONG_MODE, [](auto& v) {
        v.efer = 0x500;
        v.cr0 = 0x8000'0011;
    });
    refused(VMM_REASON_DEBUG, [](auto& v) { v.dr7 = 1ULL << 32U; });
    expect_refused(c, VMM_REASON_XCR0, [](auto& a) { a.xcr0 = 0; });
    expect_refused(c, VMM_REASON_XCR0, [](auto& a) { a.xcr0 = 0x201; });
    expect_refused(c, VMM_REASON_MSR, [](auto& a) { a.tsc_aux = 1ULL << 32U; });
}

void expect_refusals_of_svm(Caller& c)
{
    const auto refused = [&](std::uint32_t reason, auto change) {
        expect_refused(c, reason, [&](vmm_vcpu_area& a) { change(a.svm); });
    };
    refused(VMM_REASON_INTERCEPTS, [](auto& v) { v.intercepts[4] = 1U << 15U; });
    refused(VMM_REASON_INTERRUPT_CONTROL, [](auto& v) { v.int_ctl = 1U << 31U; });
    refused(VMM_REASON_INTERRUPT_CONTROL, [](auto& v) { v.int_vector = 0x100; });
    refused(VMM_REASON_INTERRUPT_CONTROL, [](auto& v) { v.int_state = 2; });
    refused(VMM_REASON_DEBUG, [](auto& v) { v.dr6 = 1ULL << 32U; });
    refused(VMM_REASON_LONG_MODE, [](auto& v) {
        v.efer = 0x100;
        v.cr0 = 0x8000'0011;
        v.cr4 = 0x20;
        v.cs.attributes = 0x69b;
    });
}

void expect_refusals_of_vmx(Caller& c)
{
    const auto refused = [&](std::uint32_t reason, auto change) {
        expect_refused(c, reason, [&](vmm_vcpu_area& a) { change(a.vmx); });
    };
    // TPR shadow, I/O bitmaps, monitor trap flag; APIC accesses, EPT, posted and virtual
    // interrupts, VM functions, VMCS shadowing, page-modification logging.
    for (const unsigned bit : {21U, 25U, 27U, 31U}) {
        refused(VMM_REASON_CONTROLS, [&](auto& v) { v.primary = 1U << bit; });
    }
    for (const unsigned bit : {0U, 1U, 4U, 5U, 7U, 8U, 9U, 13U, 14U, 17U, 18U, 20U, 25U}) {
        refused(VMM_REASON_CONTROLS, [&](auto& v) { v.secondary = 1U << bit; });
    }
    // PG, NW, CD, NE; VMXE, PAE, SMEP.
    for (const unsigned bit : {5U, 29U, 30U, 31U, 32U}) {
        refused(VMM_REASON_MASKS, [&](auto& v) { v.cr0_mask = ~(1ULL << bit); });
    }
    for (const unsigned bit : {5U, 13U, 20U, 63U}) {
        refused(VMM_REASON_MASKS, [&](auto& v) { v.cr4_mask = ~(1ULL << bit); });
    }
    refused(VMM_REASON_INTERRUPT_CONTROL, [](auto& v) { v.interruptibility = 4; });
    refused(VMM_REASON_EVENT, [](auto& v) { v.event_inj = 0x8000'0480; });
    refused(VMM_REASON_EVENT, [](auto& v) { v.event_inj = 0x8000'1080; });
    refused(VMM_REASON_LONG_MODE, [](auto& v) { v.efer = 0x400; });
    refused(VMM_REASON_LONG_MODE, [](auto& v) { v.cr4 = 1U << 17U; });
    refused(VMM_REASON_MSR, [](auto& v) { v.lstar = 1ULL << 47U; });
    refused(VMM_REASON_MSR, [](auto& v) { v.kernel_gs_base = 1ULL << 63U; });
    refused(VMM_REASON_MSR, [](auto& v) { v.sfmask = 1ULL << 32U; });
}

TEST_F(HelperCall, StateThatAGuestMayNotHaveIsRefusedAndStaysDirty)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xf4});
    if (c.is_vmx()) {
        expect_refusals_of_both(
            c, [](vmm_vcpu_area & a) -> auto& { return a.vmx; });
        expect_refusals_of_vmx(c);
    } else {
        expect_refusals_of_both(
            c, [](vmm_vcpu_area & a) -> auto& { return a.svm; });
        expect_refusals_of_svm(c);
    }
    c.reset();
    c.area->dirty = 0;
    EXPECT_EQ(c.run(), 0) << "what was refused is taken again";
    EXPECT_EQ(c.ended(), Caller::Ended::Hlt);
}

/// `c`'s guest executes CPUID with 0x1234 in EAX and 7 in ECX, and halts.
void run_cpuid(Caller& c)
{
    // mov $0x1234, %ax; mov $7, %cx; cpuid; hlt
    c.place(Caller::code_at, {0xb8, 0x34, 0x12, 0xb9, 0x07, 0x00, 0x0f, 0xa2, 0xf4});
    c.reset();
    c.area->gpr[0] = c.area->gpr[1] = 0;
    if (!c.is_vmx()) {
        c.area->svm.intercepts[3] |= 1U << 18U;
    }
    ASSERT_EQ(c.run(), 0);
}

/// What the VMCB says of the next instruction, the helper needs: without it the exit is the
/// caller's.
TEST_F(HelperCall, CpuidIsAnsweredByTheCallersTable)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    const std::array<vmm_cpuid_leaf, 3> leaves{
        {{0x1234, 6, VMM_CPUID_INDEXED, 1, 2, 3, 4, 0},
         {0x1234, 7, VMM_CPUID_INDEXED, 0x8000'0005, 0x8000'0006, 0x8000'0007, 0x8000'0008, 0},
         {0x1235, 0, 0, 9, 9, 9, 9, 0}}};
    vmm_cpuid table{};
    table.count = leaves.size();
    table.leaves = reinterpret_cast<std::uintptr_t>(leaves.data());
    ASSERT_EQ(call(c.vcpu, VMM_SET_CPUID, &table), 0);
    run_cpuid(c);
    if ((c.info.features & VMM_FEATURE_NEXT_RIP) == 0) {
        EXPECT_EQ(c.area->svm.exit_code, 0x72U);
        GTEST_SKIP() << "this CPU does not say where the next instruction is";
    }
    EXPECT_EQ(c.ended(), Caller::Ended::Hlt);
    EXPECT_EQ(c.area->served, 1U);
    EXPECT_EQ(c.area->gpr[0], 0x8000'0005U);
    EXPECT_EQ(c.area->gpr[3], 0x8000'0006U);
    EXPECT_EQ(c.area->gpr[1], 0x8000'0007U);
    EXPECT_EQ(c.area->gpr[2], 0x8000'0008U);

    table.count = 1;
    ASSERT_EQ(call(c.vcpu, VMM_SET_CPUID, &table), 0);
    run_cpuid(c);
    EXPECT_EQ(c.ended(), Caller::Ended::Other) << "a leaf that is not there is the caller's";
    EXPECT_EQ(c.area->rip, Caller::code_at + 6);
    EXPECT_EQ(c.area->served, 1U);
}

TEST_F(HelperCall, ATableThatBreaksARuleIsRefusedAndTheOldOneStays)
{
    Caller c;
    vmm_cpuid_leaf leaf{};
    vmm_cpuid table{};
    table.leaves = reinterpret_cast<std::uintptr_t>(&leaf);
    const auto refused = [&](int error, std::uint32_t reason) {
        EXPECT_EQ(call(c.vcpu, VMM_SET_CPUID, &table), -error);
        EXPECT_EQ(table.reason, reason);
    };
    table.count = VMM_MAX_CPUID + 1;
    refused(EINVAL, VMM_REASON_CPUID);
    table.count = 1;
    leaf.flags = 2;
    refused(EINVAL, VMM_REASON_FLAGS);
    leaf.flags = 0;
    leaf.reserved = 1;
    refused(EINVAL, VMM_REASON_FLAGS);
    leaf.reserved = 0;
    table.leaves = 8;
    refused(EFAULT, VMM_REASON_NONE);
    EXPECT_EQ(call(c.vcpu, VMM_SET_CPUID), -EFAULT);
    EXPECT_EQ(call(c.vm, VMM_SET_CPUID, &table), -ENOTTY);
}

/// Segments and control registers are stored behind every exit but those that say otherwise.
TEST_F(HelperCall, WhatIsNotStoredIsFetched)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xb8, 0x34, 0x12, 0x8e, 0xd8, 0xe6, 0x10});  // %ds = 0x1234; out
    if (c.is_vmx()) {
        c.area->vmx.small_exits = 1ULL << 30U;
    } else {
        c.area->svm.small_exits[3] = 1U << 27U;
    }
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.area->rip, Caller::code_at + 5);
    constexpr std::uint32_t lazy = VMM_DIRTY_SEGMENTS | VMM_DIRTY_SYSTEM;
    EXPECT_EQ(c.area->stored & lazy, 0U);
    ASSERT_EQ(call(c.vcpu, VMM_FETCH), 0);
    EXPECT_EQ(c.area->stored & lazy, lazy);
    EXPECT_EQ(c.ds().base, 0x12340U);
    EXPECT_EQ(c.ds().selector, 0x1234U);
}

TEST_F(HelperCall, MemoryOutsideOfSlotsIsAnExit)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xa0, 0x00, 0x00});  // mov 0, %al
    c.ds().base = 0x50'0000;
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.area->exit_kind, std::uint32_t{VMM_EXIT_HARDWARE});
    EXPECT_EQ(c.ended(), Caller::Ended::PageFault);
    EXPECT_EQ(c.fault_address(), 0x50'0000U);
    EXPECT_EQ(c.area->rip, Caller::code_at);
}

TEST_F(HelperCall, WritesToAReadOnlySlotAreExits)
{
    Caller c;
    ASSERT_EQ(c.add_memory(VMM_REGION_READ_ONLY), 0);
    c.place(Caller::code_at, {0xa0, 0x00, 0x20, 0xa2, 0x00, 0x20});  // from and to 0x2000
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.ended(), Caller::Ended::PageFault);
    EXPECT_EQ(c.area->rip, Caller::code_at + 3);
}

TEST_F(HelperCall, APageThatTheCallerHasNotIsAnErrorOfTheRun)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xa2, 0x00, 0x30, 0xf4});  // mov %al, 0x3000; hlt
    ASSERT_EQ(c.run(), 0);
    ASSERT_EQ(c.ended(), Caller::Ended::Hlt);
    // The guest has the page; it loses it with its caller.
    ASSERT_EQ(::munmap(c.memory + 0x3000, 0x1000), 0);
    c.area->rip = Caller::code_at;
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.area->exit_kind, std::uint32_t{VMM_EXIT_MEMORY});
    EXPECT_EQ(c.area->error, std::uint32_t{EFAULT});
    // And finds what the caller maps there.
    ASSERT_NE(::mmap(c.memory + 0x3000, 0x1000, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
              MAP_FAILED);
    c.area->gpr[0] = 0x5a;
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.ended(), Caller::Ended::Hlt);
    EXPECT_EQ(c.memory[0x3000], std::byte{0x5a});
}

/// What the caller's page tables have in one piece is one in the guest's, until it is one no more.
TEST_F(HelperCall, ALargePageIsMappedAtOnce)
{
    constexpr std::uint64_t large = 0x20'0000;
    constexpr std::uint64_t guest_at = 0x60'0000;
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    void* const space =
        ::mmap(nullptr, 3 * large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(space, MAP_FAILED);
    const auto aligned = (reinterpret_cast<std::uintptr_t>(space) + large - 1) & ~(large - 1);
    auto* const memory = reinterpret_cast<std::byte*>(aligned);
    static_cast<void>(::madvise(memory, large, MADV_HUGEPAGE));
    std::memset(memory, 0x5a, large);
    std::ifstream maps{"/proc/self/smaps_rollup"};
    std::uint64_t huge_kb = 0;
    for (std::string word; maps >> word;) {
        if (word == "AnonHugePages:") {
            maps >> huge_kb;
        }
    }
    if (huge_kb == 0) {
        GTEST_SKIP() << "no transparent huge page to be had here";
    }
    vmm_region region{1, 0, guest_at, large, aligned, 0, 0};
    ASSERT_EQ(call(c.vm, VMM_SET_REGION, &region), 0);

    // mov $512, %ecx; xor %esi, %esi; 1: mov (%esi), %al; add $0x1000, %esi; dec %cx; jnz 1b; hlt
    c.place(Caller::code_at, {0xb9, 0x00, 0x02, 0x66, 0x31, 0xf6, 0x67, 0x8a, 0x06, 0x66,
                              0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, 0x49, 0x75, 0xf3, 0xf4});
    c.ds() = {0, 0x893, 0xffff'ffff, guest_at};
    const std::uint64_t entries = c.area->entries;
    ASSERT_EQ(c.run(), 0);
    ASSERT_EQ(c.ended(), Caller::Ended::Hlt);
    EXPECT_EQ(c.area->gpr[1] & 0xffffU, 0U);
    EXPECT_LT(c.area->entries - entries, 400U) << "512 with pages of 4 KiB, and more";

    // A page of it goes; the guest finds an empty one in its place, and the others as they are.
    ASSERT_EQ(::madvise(memory + 0x3000, 0x1000, MADV_DONTNEED), 0);
    c.reset();
    c.ds().base = guest_at;
    c.place(Caller::code_at, {0xa0, 0x00, 0x30, 0x8a, 0x26, 0x00, 0x40, 0xf4});  // to AL and AH
    ASSERT_EQ(c.run(), 0);
    ASSERT_EQ(c.ended(), Caller::Ended::Hlt);
    EXPECT_EQ(c.area->gpr[0] & 0xffffU, 0x5a00U);
    ::munmap(space, 3 * large);
}

TEST_F(HelperCall, WhatTheCallerMayOnlyReadTheGuestMayNotWrite)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xa0, 0x00, 0x30, 0xa2, 0x00, 0x30});
    ASSERT_EQ(::mprotect(c.memory + 0x3000, 0x1000, PROT_READ), 0);
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.area->exit_kind, std::uint32_t{VMM_EXIT_MEMORY});
    EXPECT_EQ(c.area->rip, Caller::code_at + 3) << "the read was permitted";
}

TEST_F(HelperCall, ARemovedSlotIsGoneAtOnce)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xf4});
    ASSERT_EQ(c.run(), 0);
    vmm_region none{};
    ASSERT_EQ(call(c.vm, VMM_SET_REGION, &none), 0);
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.ended(), Caller::Ended::PageFault);
}

TEST_F(HelperCall, TheDirtyLogHasEachWriteOnce)
{
    Caller c;
    ASSERT_EQ(c.add_memory(VMM_REGION_LOG_DIRTY), 0);
    c.place(Caller::code_at, {0xa2, 0x00, 0x30, 0xf4});
    std::array<std::uint64_t, Caller::memory_size / 4096 / 64> bits{};
    vmm_dirty dirty{};
    dirty.bitmap = reinterpret_cast<std::uintptr_t>(bits.data());
    dirty.words = bits.size();
    for (int i = 0; i < 3; ++i) {
        c.area->rip = Caller::code_at;
        ASSERT_EQ(c.run(), 0);
        ASSERT_EQ(c.ended(), Caller::Ended::Hlt);
        ASSERT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), 0);
        EXPECT_EQ(bits[0], 1U << 3U);
        ASSERT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), 0);
        EXPECT_EQ(bits[0], 0U);
    }
    // Bits that could not be handed over are not lost.
    c.area->rip = Caller::code_at;
    ASSERT_EQ(c.run(), 0);
    vmm_dirty nowhere{};
    nowhere.words = bits.size();
    EXPECT_EQ(call(c.vm, VMM_TAKE_DIRTY, &nowhere), -EFAULT);
    ASSERT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), 0);
    EXPECT_EQ(bits[0], 1U << 3U);
    dirty.slot = 7;
    EXPECT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), -ENOENT);
}

TEST_F(HelperCall, TheDirtyLogIsTakenByWords)
{
    Caller c;
    ASSERT_EQ(c.add_memory(VMM_REGION_LOG_DIRTY), 0);
    // mov $0x8000, %ax; mov %ax, %ds; mov %al, 0x3000; hlt: page 0x83
    c.place(Caller::code_at, {0xb8, 0x00, 0x80, 0x8e, 0xd8, 0xa2, 0x00, 0x30, 0xf4});
    ASSERT_EQ(c.run(), 0);
    std::uint64_t word = 0;
    vmm_dirty dirty{};
    dirty.bitmap = reinterpret_cast<std::uintptr_t>(&word);
    dirty.first = 1;
    dirty.words = 1;
    ASSERT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), 0);
    EXPECT_EQ(word, 0U);
    dirty.first = 2;
    ASSERT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), 0);
    EXPECT_EQ(word, 1U << 3U);
    constexpr std::uint64_t all = Caller::memory_size / 4096 / 64;
    const auto refused = [&](std::uint64_t first, std::uint64_t words) {
        dirty.first = first;
        dirty.words = words;
        EXPECT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), -EINVAL);
        EXPECT_EQ(dirty.reason, static_cast<__u32>(VMM_REASON_PAGES));
    };
    refused(0, all + 1);
    refused(all, 1);
    refused(all + 1, 0);
    refused(1, ~std::uint64_t{0});
}

TEST_F(HelperCall, AWriteThatIsLoggedMayBeTold)
{
    Caller c;
    EXPECT_EQ(c.add_memory(VMM_REGION_TELL_DIRTY), -EINVAL) << "nothing is logged";
    ASSERT_EQ(c.add_memory(VMM_REGION_LOG_DIRTY | VMM_REGION_TELL_DIRTY), 0);
    // mov 0x3000, %al; mov %al, 0x3000; mov %al, 0x3001; hlt
    c.place(Caller::code_at, {0xa0, 0x00, 0x30, 0xa2, 0x00, 0x30, 0xa2, 0x01, 0x30, 0xf4});
    std::array<std::uint64_t, Caller::memory_size / 4096 / 64> bits{};
    vmm_dirty dirty{};
    dirty.bitmap = reinterpret_cast<std::uintptr_t>(bits.data());
    dirty.words = bits.size();
    for (int i = 0; i < 2; ++i) {
        c.area->rip = Caller::code_at;
        ASSERT_EQ(c.run(), 0);
        ASSERT_EQ(c.area->exit_kind, static_cast<__u32>(VMM_EXIT_DIRTY));
        EXPECT_EQ(c.area->dirty_slot, 0U);
        EXPECT_EQ(c.area->dirty_page, 3U);
        EXPECT_EQ(c.area->rip, Caller::code_at + 3) << "it is not made yet";
        ASSERT_EQ(c.run(), 0);
        ASSERT_EQ(c.ended(), Caller::Ended::Hlt) << "once";
        ASSERT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), 0);
        EXPECT_EQ(bits[0], 1U << 3U);
    }
}

TEST_F(HelperCall, AKickEndsAnEndlessGuest)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xfe, 0x06, 0x00, 0x20, 0xeb, 0xfa});  // incb 0x2000; jmp
    std::thread other{[&] {
        const auto* const counter = reinterpret_cast<const volatile unsigned char*>(c.memory);
        while (counter[0x2000] == 0) {
        }
        __atomic_store_n(&c.area->immediate_exit, 1U, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&c.area->running, __ATOMIC_SEQ_CST) != 0) {
            EXPECT_EQ(call(c.vcpu, VMM_KICK), 0);
        }
    }};
    EXPECT_EQ(c.run(), 0);
    EXPECT_EQ(c.area->exit_kind, std::uint32_t{VMM_EXIT_INTERRUPTED});
    other.join();
    const std::uint64_t entries = c.area->entries;
    EXPECT_EQ(c.run(), 0) << "while it is set there is no guest code";
    EXPECT_EQ(c.area->entries, entries);
}

TEST_F(HelperCall, OneThreadRunsAVcpuAtATime)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xeb, 0xfe});
    std::thread other{[&] {
        while (__atomic_load_n(&c.area->running, __ATOMIC_SEQ_CST) == 0) {
        }
        while (call(c.vcpu, VMM_RUN) != -EBUSY) {  // The other may be between two calls.
        }
        __atomic_store_n(&c.area->immediate_exit, 1U, __ATOMIC_SEQ_CST);
        EXPECT_EQ(call(c.vcpu, VMM_KICK), 0);
    }};
    int result = 0;
    do {
        result = call(c.vcpu, VMM_RUN);
    } while (result == -EINTR || result == -EBUSY || c.area->exit_kind != VMM_EXIT_INTERRUPTED);
    other.join();
}

TEST_F(HelperCall, AVmBelongsToItsAddressSpace)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xf4});
    const pid_t child = ::fork();
    if (child == 0) {
        vmm_region region = c.whole();
        region.slot = 1;
        region.guest_address = Caller::memory_size;
        const bool as_said = call(c.vcpu, VMM_RUN) == -EIO &&
                             call(c.vm, VMM_SET_REGION, &region) == -EIO &&
                             region.reason == VMM_REASON_OTHER_PROCESS;
        ::_exit(as_said ? 0 : 1);
    }
    int status = 1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(c.run(), 0);
    EXPECT_EQ(c.ended(), Caller::Ended::Hlt);
}

TEST_F(HelperCall, AVcpuOutlivesItsVmsDescriptor)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xf4});
    c.vm.reset();
    EXPECT_EQ(c.run(), 0);
    EXPECT_EQ(c.ended(), Caller::Ended::Hlt);
}

}  // namespace
}  // namespace vmm
