// SPDX-License-Identifier: Apache-2.0

// The helper's calls and what they refuse: src/x86/helper/ABI.md.

#include <array>
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
    EXPECT_EQ(c.area->svm.exit_code, Caller::exit_hlt);
    EXPECT_EQ(c.area->rip, Caller::code_at + 5);
    EXPECT_EQ(c.memory[0x2000], std::byte{0x42});
    EXPECT_EQ(c.area->running, 0U);
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
    create = {VMM_MAX_VCPUS, 0};
    EXPECT_EQ(call(c.vm, VMM_CREATE_VCPU, &create), -EINVAL);
    EXPECT_EQ(create.reason, std::uint32_t{VMM_REASON_VCPU_ID});
    create = {VMM_MAX_VCPUS - 1, 0};
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

TEST_F(HelperCall, StateThatAGuestMayNotHaveIsRefusedAndStaysDirty)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xf4});
    const auto refused = [&](std::uint32_t reason, auto change) {
        c.reset();
        change(*c.area);
        const std::uint64_t entries = c.area->entries;
        EXPECT_EQ(c.run(), -EINVAL) << reason;
        EXPECT_EQ(c.area->reason, reason);
        EXPECT_EQ(c.area->entries, entries);
    };
    refused(VMM_REASON_INTERCEPTS, [](auto& a) { a.svm.intercepts[4] = 1U << 15U; });
    refused(VMM_REASON_OPTIONS, [](auto& a) { a.svm.options = 2; });
    refused(VMM_REASON_INTERRUPT_CONTROL, [](auto& a) { a.svm.int_ctl = 1U << 31U; });
    refused(VMM_REASON_INTERRUPT_CONTROL, [](auto& a) { a.svm.int_vector = 0x100; });
    refused(VMM_REASON_INTERRUPT_CONTROL, [](auto& a) { a.svm.int_state = 2; });
    refused(VMM_REASON_EVENT, [](auto& a) { a.svm.event_inj = 0x8000'0130; });
    refused(VMM_REASON_EFER, [](auto& a) { a.svm.efer = 0x1000; });
    refused(VMM_REASON_EVENT, [](auto& a) { a.svm.event_inj = 0x8000'0302; });
    refused(VMM_REASON_CR0, [](auto& a) { a.svm.cr0 = 0x2000'0010; });
    refused(VMM_REASON_CR0, [](auto& a) { a.svm.cr0 = 0x8000'0010; });
    refused(VMM_REASON_CR0, [](auto& a) { a.svm.cr0 = 1ULL << 32U; });
    refused(VMM_REASON_CR3, [](auto& a) { a.svm.cr3 = 1ULL << 52U; });
    refused(VMM_REASON_CR4, [](auto& a) { a.svm.cr4 = 1U << 22U; });
    refused(VMM_REASON_CR4, [](auto& a) { a.svm.cr4 = 1ULL << 32U; });
    refused(VMM_REASON_LONG_MODE, [](auto& a) {
        a.svm.efer = 0x100;
        a.svm.cr0 = 0x8000'0011;
    });
    refused(VMM_REASON_LONG_MODE, [](auto& a) {
        a.svm.efer = 0x100;
        a.svm.cr0 = 0x8000'0011;
        a.svm.cr4 = 0x20;
        a.svm.cs.attributes = 0x69b;
    });
    refused(VMM_REASON_DEBUG, [](auto& a) { a.svm.dr6 = 1ULL << 32U; });
    refused(VMM_REASON_DEBUG, [](auto& a) { a.svm.dr7 = 1ULL << 32U; });
    refused(VMM_REASON_XCR0, [](auto& a) { a.xcr0 = 0; });
    refused(VMM_REASON_XCR0, [](auto& a) { a.xcr0 = 0x201; });
    c.reset();
    c.area->dirty = 0;
    EXPECT_EQ(c.run(), 0) << "what was refused is taken again";
    EXPECT_EQ(c.area->svm.exit_code, Caller::exit_hlt);
}

TEST_F(HelperCall, MemoryOutsideOfSlotsIsAnExit)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xa0, 0x00, 0x00});  // mov 0, %al
    c.area->svm.ds.base = 0x50'0000;
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.area->exit_kind, std::uint32_t{VMM_EXIT_HARDWARE});
    EXPECT_EQ(c.area->svm.exit_code, Caller::exit_page_fault);
    EXPECT_EQ(c.area->svm.exit_info_2, 0x50'0000U);
    EXPECT_EQ(c.area->rip, Caller::code_at);
}

TEST_F(HelperCall, WritesToAReadOnlySlotAreExits)
{
    Caller c;
    ASSERT_EQ(c.add_memory(VMM_REGION_READ_ONLY), 0);
    c.place(Caller::code_at, {0xa0, 0x00, 0x20, 0xa2, 0x00, 0x20});  // from and to 0x2000
    ASSERT_EQ(c.run(), 0);
    EXPECT_EQ(c.area->svm.exit_code, Caller::exit_page_fault);
    EXPECT_EQ(c.area->rip, Caller::code_at + 3);
}

TEST_F(HelperCall, APageThatTheCallerHasNotIsAnErrorOfTheRun)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xa2, 0x00, 0x30, 0xf4});  // mov %al, 0x3000; hlt
    ASSERT_EQ(c.run(), 0);
    ASSERT_EQ(c.area->svm.exit_code, Caller::exit_hlt);
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
    EXPECT_EQ(c.area->svm.exit_code, Caller::exit_hlt);
    EXPECT_EQ(c.memory[0x3000], std::byte{0x5a});
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
    EXPECT_EQ(c.area->svm.exit_code, Caller::exit_page_fault);
}

TEST_F(HelperCall, TheDirtyLogHasEachWriteOnce)
{
    Caller c;
    ASSERT_EQ(c.add_memory(VMM_REGION_LOG_DIRTY), 0);
    c.place(Caller::code_at, {0xa2, 0x00, 0x30, 0xf4});
    std::array<std::uint64_t, Caller::memory_size / 4096 / 64> bits{};
    vmm_dirty dirty{};
    dirty.bitmap = reinterpret_cast<std::uintptr_t>(bits.data());
    for (int i = 0; i < 3; ++i) {
        c.area->rip = Caller::code_at;
        ASSERT_EQ(c.run(), 0);
        ASSERT_EQ(c.area->svm.exit_code, Caller::exit_hlt);
        ASSERT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), 0);
        EXPECT_EQ(bits[0], 1U << 3U);
        ASSERT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), 0);
        EXPECT_EQ(bits[0], 0U);
    }
    // Bits that could not be handed over are not lost.
    c.area->rip = Caller::code_at;
    ASSERT_EQ(c.run(), 0);
    vmm_dirty nowhere{};
    EXPECT_EQ(call(c.vm, VMM_TAKE_DIRTY, &nowhere), -EFAULT);
    ASSERT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), 0);
    EXPECT_EQ(bits[0], 1U << 3U);
    dirty.slot = 7;
    EXPECT_EQ(call(c.vm, VMM_TAKE_DIRTY, &dirty), -ENOENT);
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
    EXPECT_EQ(c.area->svm.exit_code, Caller::exit_hlt);
}

TEST_F(HelperCall, AVcpuOutlivesItsVmsDescriptor)
{
    Caller c;
    ASSERT_EQ(c.add_memory(), 0);
    c.place(Caller::code_at, {0xf4});
    c.vm.reset();
    EXPECT_EQ(c.run(), 0);
    EXPECT_EQ(c.area->svm.exit_code, Caller::exit_hlt);
}

}  // namespace
}  // namespace vmm
