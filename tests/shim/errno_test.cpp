// SPDX-License-Identifier: Apache-2.0

/// @file
/// What KVM answers, call by call.  The numbers are those of Linux 6.18 on hardware; where ours
/// differ, the row says why.

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <span>
#include <vector>

#include <sys/eventfd.h>

#include "client.hpp"
#include "vmm/unique_fd.hpp"
#include "x86/shim/lists.hpp"

namespace vmm::shim::test {
namespace {

TEST(SystemErrno, VersionsAndSizes)
{
    const Descriptor kvm = open_kvm();
    EXPECT_EQ(call(kvm.get(), KVM_GET_API_VERSION), 12);
    EXPECT_EQ(call(kvm.get(), KVM_GET_API_VERSION, 1), -EINVAL);
    EXPECT_EQ(call(kvm.get(), KVM_CREATE_VM, 0x1234), -EINVAL);
    EXPECT_EQ(call(kvm.get(), KVM_GET_VCPU_MMAP_SIZE), 12288);
    EXPECT_EQ(call(kvm.get(), KVM_GET_VCPU_MMAP_SIZE, 1), -EINVAL);
    EXPECT_EQ(call(kvm.get(), KVM_CHECK_EXTENSION, 9999), 0);
    EXPECT_EQ(call(kvm.get(), KVM_CHECK_EXTENSION, ~0UL), 0);
    EXPECT_EQ(call(kvm.get(), KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO), 2);
}

TEST(SystemErrno, UnknownOnesAreInvalidOnTheSystemAndOnVcpusAndNoTtyOnVms)
{
    const Guest guest;
    constexpr unsigned long unknown = 0xaefe;
    constexpr unsigned long of_a_terminal = 0x5401;
    EXPECT_EQ(call(guest.system(), unknown), -EINVAL);
    EXPECT_EQ(call(guest.system(), of_a_terminal), -EINVAL);
    EXPECT_EQ(call(guest.system(), KVM_RUN), -EINVAL);
    EXPECT_EQ(call(guest.vm(), unknown), -ENOTTY);
    EXPECT_EQ(call(guest.vm(), of_a_terminal), -ENOTTY);
    EXPECT_EQ(call(guest.vm(), KVM_RUN), -ENOTTY);
    EXPECT_EQ(call(guest.vm(), KVM_CREATE_VM), -ENOTTY);
    EXPECT_EQ(call(guest.vcpu(), unknown), -EINVAL);
    EXPECT_EQ(call(guest.vcpu(), of_a_terminal), -EINVAL);
    EXPECT_EQ(call(guest.vcpu(), KVM_CREATE_VM), -EINVAL);
}

TEST(SystemErrno, ShortListsOfMsrsTellTheLength)
{
    const Descriptor kvm = open_kvm();
    std::array<std::uint32_t, 600> list{};
    EXPECT_EQ(call(kvm.get(), request::get_msr_index_list, list.data()), -E2BIG);
    EXPECT_GT(list[0], 20U);
    EXPECT_EQ(call(kvm.get(), request::get_msr_index_list, list.data()), 0);
    EXPECT_EQ(call(kvm.get(), request::get_msr_index_list, 1UL), -EFAULT);
    list[0] = 0;
    EXPECT_EQ(call(kvm.get(), request::get_msr_feature_index_list, list.data()), -E2BIG);
    EXPECT_GT(list[0], 0U);
}

struct CpuidList {
    CpuidHead head{};
    std::array<kvm_cpuid_entry2, 300> entries{};
};

TEST(SystemErrno, AShortListOfCpuidDoesNotTellTheLength)
{
    const Descriptor kvm = open_kvm();
    CpuidList list;
    list.head.nent = 3;
    EXPECT_EQ(call(kvm.get(), request::get_supported_cpuid, &list), -E2BIG);
    EXPECT_EQ(list.head.nent, 3U);
    list.head.nent = 300;
    EXPECT_EQ(call(kvm.get(), request::get_supported_cpuid, &list), 0);
    EXPECT_GT(list.head.nent, 10U);
    EXPECT_LT(list.head.nent, 80U) << "kvm-bindings and kvmtool hold no more";
}

TEST(SystemErrno, EmulatedInstructionsAreAListLikeTheOther)
{
    const Descriptor kvm = open_kvm();
    EXPECT_EQ(call(kvm.get(), KVM_CHECK_EXTENSION, KVM_CAP_EXT_EMUL_CPUID), 1);
    EXPECT_EQ(call(kvm.get(), request::get_emulated_cpuid, 1UL), -EFAULT);
    CpuidList list;
    list.head.nent = 300;
    EXPECT_EQ(call(kvm.get(), request::get_emulated_cpuid, &list), 0);
    EXPECT_LT(list.head.nent, 10U);
    for (const kvm_cpuid_entry2& leaf : std::span{list.entries}.first(list.head.nent)) {
        EXPECT_TRUE(leaf.function <= 7U || leaf.function >> 28U == 8U) << leaf.function;
    }
    if (list.head.nent > 1U) {
        list.head.nent = 1;
        EXPECT_EQ(call(kvm.get(), request::get_emulated_cpuid, &list), -E2BIG);
    }
    list.head.nent = 0;
    EXPECT_EQ(call(kvm.get(), request::get_emulated_cpuid, &list), -E2BIG);
}

TEST(SystemErrno, EveryMsrOfTheListCanBeReadAndWrittenBack)
{
    const Guest guest(Guest::Irqchip::Full);
    std::array<std::uint32_t, 600> list{};
    list[0] = 599;
    ASSERT_EQ(call(guest.system(), request::get_msr_index_list, list.data()), 0);
    struct {
        MsrsHead head;
        kvm_msr_entry entry;
    } one{};
    for (std::uint32_t i = 1; i <= list[0]; ++i) {
        constexpr std::uint32_t arch_capabilities = 0x10a;  // CPUID has not been set.
        one.head.nmsrs = 1;
        one.entry.index = list[i];
        if (list[i] == arch_capabilities) {
            continue;
        }
        EXPECT_EQ(call(guest.vcpu(), request::get_msrs, &one), 1) << std::hex << list[i];
        EXPECT_EQ(call(guest.vcpu(), request::set_msrs, &one), 1) << std::hex << list[i];
    }
}

TEST(VmErrno, Slots)
{
    const Descriptor kvm = open_kvm();
    const Descriptor vm{call(kvm.get(), KVM_CREATE_VM)};
    const Pages pages{1U << 22U};
    const auto set = [&](std::uint32_t slot, std::uint32_t flags, std::uint64_t gpa,
                         std::uint64_t size, std::size_t offset = 0) {
        return set_region(vm.get(), slot, flags, gpa, size, pages.data() + offset);
    };
    EXPECT_EQ(set(0, 0, 0, 0x1800), -EINVAL);
    EXPECT_EQ(set(0, 0, 0x10, 0x1000), -EINVAL);
    EXPECT_EQ(set(0, 0, 0, 0x1000, 8), -EINVAL);
    EXPECT_EQ(set(0, 0x80, 0, 0x1000), -EINVAL);
    EXPECT_EQ(set(40000, 0, 0, 0x1000), -EINVAL);
    EXPECT_EQ(set(5U << 16U, 0, 0, 0x1000), -EINVAL);
    EXPECT_EQ(set(0, 0, ~0xfffUL, 0x2000), -EINVAL);
    EXPECT_EQ(set(3, 0, 0, 0), -EINVAL);
    EXPECT_EQ(set_region(vm.get(), 0, 0, 0, 0x1000, reinterpret_cast<void*>(0xffff'8000'0000'0000)),
              -EINVAL);
    EXPECT_EQ(set(0, 0, 0, 0x10'0000), 0);
    EXPECT_EQ(set(1, 0, 0x8'0000, 0x10'0000), -EEXIST);
    EXPECT_EQ(set(1, 0, 0x10'0000, 0x10'0000), 0);
    EXPECT_EQ(set(0, 0, 0, 0x8'0000), -EINVAL);
    EXPECT_EQ(set(0, 0, 0, 0x10'0000, 0x1000), -EINVAL);
    EXPECT_EQ(set(0, KVM_MEM_READONLY, 0, 0x10'0000), -EINVAL);
    EXPECT_EQ(set(0, 0, 0, 0x10'0000), 0);
    EXPECT_EQ(set(0, KVM_MEM_LOG_DIRTY_PAGES, 0, 0x10'0000), 0);
    EXPECT_EQ(set(1, 0, 0x40'0000, 0x10'0000), 0);
    EXPECT_EQ(set(1, 0, 0x1000, 0x10'0000), -EEXIST);
    EXPECT_EQ(set(1, 0, 0, 0), 0);

    std::array<std::uint64_t, 4> bitmap{};
    kvm_dirty_log log{};
    log.dirty_bitmap = bitmap.data();
    EXPECT_EQ(call(vm.get(), KVM_GET_DIRTY_LOG, &log), 0);
    log.slot = 9;
    EXPECT_EQ(call(vm.get(), KVM_GET_DIRTY_LOG, &log), -ENOENT);
    log.slot = 40000;
    EXPECT_EQ(call(vm.get(), KVM_GET_DIRTY_LOG, &log), -EINVAL);
    log.slot = 0;
    log.dirty_bitmap = reinterpret_cast<void*>(8);
    EXPECT_EQ(call(vm.get(), KVM_GET_DIRTY_LOG, &log), -EFAULT);
    log.dirty_bitmap = bitmap.data();
    EXPECT_EQ(set(0, 0, 0, 0x10'0000), 0);
    EXPECT_EQ(call(vm.get(), KVM_GET_DIRTY_LOG, &log), -ENOENT);
}

TEST(VcpuErrno, SecondFormOfTheSpecialRegisters)
{
    const Guest guest;
    EXPECT_EQ(call(guest.vm(), KVM_CHECK_EXTENSION, KVM_CAP_SREGS2), 1);
    kvm_sregs2 sregs{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_SREGS2, &sregs), 0);
    EXPECT_EQ(sregs.flags, 0U);
    EXPECT_EQ(sregs.apic_base, 0xfee0'0900U);
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_SREGS2, &sregs), 0);
    sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_SREGS2, &sregs), -EINVAL) << "there is no paging";
    sregs.flags = 2;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_SREGS2, &sregs), -EINVAL);
    EXPECT_EQ(call(guest.vcpu(), KVM_GET_SREGS2, 8UL), -EFAULT);

    const std::array<std::uint64_t, 4> pointers{0x3001, 0x4001, 0x5001, 0};
    std::memcpy(guest.memory().data() + 0x2020, pointers.data(), sizeof pointers);
    sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
    // KVM takes these and the library those in memory.
    std::copy(pointers.begin(), pointers.end(), std::begin(sregs.pdptrs));
    sregs.cr0 = 0x8000'0011;
    sregs.cr3 = 0x2020;
    sregs.cr4 = 1U << 5U;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_SREGS2, &sregs), 0);
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_SREGS2, &sregs), 0);
    EXPECT_EQ(sregs.flags, static_cast<__u64>(KVM_SREGS2_FLAGS_PDPTRS_VALID));
    EXPECT_TRUE(std::equal(pointers.begin(), pointers.end(), std::begin(sregs.pdptrs)));
}

TEST(VcpuErrno, PendingExceptionsWithWhatTheyBring)
{
    const Guest guest;
    kvm_vcpu_events events{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_VCPU_EVENTS, &events), 0);
    EXPECT_EQ(events.flags & KVM_VCPUEVENT_VALID_PAYLOAD, 0U);
    events.flags = KVM_VCPUEVENT_VALID_PAYLOAD;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VCPU_EVENTS, &events), -EINVAL) << "not enabled";
    kvm_enable_cap wanted{};
    wanted.cap = KVM_CAP_EXCEPTION_PAYLOAD;
    wanted.args[0] = 1;
    ASSERT_EQ(call(guest.vm(), KVM_CHECK_EXTENSION, KVM_CAP_EXCEPTION_PAYLOAD), 1);
    ASSERT_EQ(call(guest.vm(), KVM_ENABLE_CAP, &wanted), 0);
    events.exception.pending = 1;
    events.exception.nr = 14;
    events.exception.has_error_code = 1;
    events.exception.error_code = 2;
    events.exception_has_payload = 1;
    events.exception_payload = 0x1234'5678;
    ASSERT_EQ(call(guest.vcpu(), KVM_SET_VCPU_EVENTS, &events), 0);
    kvm_sregs sregs{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_SREGS, &sregs), 0);
    EXPECT_EQ(sregs.cr2, 0U) << "it is to come with the exception";
    kvm_vcpu_events seen{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_VCPU_EVENTS, &seen), 0);
    EXPECT_NE(seen.flags & KVM_VCPUEVENT_VALID_PAYLOAD, 0U);
    EXPECT_EQ(seen.exception.pending, 1U);
    EXPECT_EQ(seen.exception.injected, 0U);
    EXPECT_EQ(seen.exception.nr, 14U);
    EXPECT_EQ(seen.exception.error_code, 2U);
    EXPECT_EQ(seen.exception_has_payload, 1U);
    EXPECT_EQ(seen.exception_payload, 0x1234'5678U);
    guest.memory().place(14 * 4, {0x00, 0x20, 0x00, 0x00});
    guest.memory().place(0x2000, {0xf4});
    ASSERT_EQ(guest.enter(), 0);
    ASSERT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_HLT));
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_SREGS, &sregs), 0);
    EXPECT_EQ(sregs.cr2, 0x1234'5678U);
    events.exception.nr = 2;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VCPU_EVENTS, &events), -EINVAL);
}

TEST(VmErrno, MsrFilters)
{
    const Guest guest;
    const auto set = [&](const kvm_msr_filter& filter) {
        return call(guest.vm(), KVM_X86_SET_MSR_FILTER, &filter);
    };
    std::array<std::uint8_t, 0x600> bitmap{};
    kvm_msr_filter filter{};
    EXPECT_EQ(call(guest.vm(), KVM_X86_SET_MSR_FILTER, 8UL), -EFAULT);
    EXPECT_EQ(set(filter), 0);
    filter.flags = 2;
    EXPECT_EQ(set(filter), -EINVAL);
    filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
    EXPECT_EQ(set(filter), -EINVAL) << "nothing would be left";
    filter.ranges[15] = {KVM_MSR_FILTER_READ, 0x600 * 8, 0, bitmap.data()};
    EXPECT_EQ(set(filter), 0);
    filter.ranges[15].nmsrs += 1;
    EXPECT_EQ(set(filter), -EINVAL);
    filter.ranges[15].nmsrs = 65;
    filter.ranges[15].bitmap = reinterpret_cast<__u8*>(8);
    EXPECT_EQ(set(filter), -EFAULT);
    filter.ranges[15].flags = 4;
    EXPECT_EQ(set(filter), -EINVAL);
    filter.ranges[15].flags = 0;
    EXPECT_EQ(set(filter), -EINVAL);
    filter.flags = 0;
    filter.ranges[15].nmsrs = 0;
    EXPECT_EQ(set(filter), 0) << "a range without MSRs is none, whatever its flags";

    kvm_enable_cap wanted{};
    wanted.cap = KVM_CAP_X86_USER_SPACE_MSR;
    wanted.args[0] = 7;
    EXPECT_EQ(call(guest.vm(), KVM_ENABLE_CAP, &wanted), 0);
    wanted.args[0] = 8;
    EXPECT_EQ(call(guest.vm(), KVM_ENABLE_CAP, &wanted), -EINVAL);
    EXPECT_EQ(call(guest.vcpu(), KVM_ENABLE_CAP, &wanted), -EINVAL);
    EXPECT_EQ(call(guest.vm(), KVM_CHECK_EXTENSION, KVM_CAP_X86_USER_SPACE_MSR), 1);
    EXPECT_EQ(call(guest.vm(), KVM_CHECK_EXTENSION, KVM_CAP_X86_MSR_FILTER), 1);
}

TEST(VmErrno, WithoutAnIrqchip)
{
    const Descriptor kvm = open_kvm();
    const Descriptor vm{call(kvm.get(), KVM_CREATE_VM)};
    kvm_irq_level line{};
    line.irq = 4;
    EXPECT_EQ(call(vm.get(), KVM_IRQ_LINE, &line), -ENXIO);
    EXPECT_EQ(call(vm.get(), KVM_IRQ_LINE_STATUS, &line), -ENXIO);
    kvm_msi message{};
    message.address_lo = 0xfee0'0000;
    EXPECT_EQ(call(vm.get(), KVM_SIGNAL_MSI, &message), -EINVAL);
    kvm_irqchip chip{};
    EXPECT_EQ(call(vm.get(), KVM_GET_IRQCHIP, &chip), -ENXIO);
    const UniqueFd event{::eventfd(0, 0)};
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<__u32>(event.get());
    irqfd.gsi = 5;
    EXPECT_EQ(call(vm.get(), KVM_IRQFD, &irqfd), -EINVAL);
    kvm_pit_state2 pit{};
    EXPECT_EQ(call(vm.get(), KVM_GET_PIT2, &pit), -ENXIO);
    RoutingHead routing;
    EXPECT_EQ(call(vm.get(), request::set_gsi_routing, &routing), -EINVAL);
    kvm_pit_config config{};
    const long pit_alone = call(vm.get(), KVM_CREATE_PIT2, &config);
    EXPECT_TRUE(pit_alone == -ENOENT || (is_kernel() && pit_alone == 0)) << "Linux before 6.18";
}

TEST(VmErrno, WithAnIrqchip)
{
    const Descriptor kvm = open_kvm();
    const Descriptor vm{call(kvm.get(), KVM_CREATE_VM)};
    kvm_pit_config config{};
    EXPECT_EQ(call(vm.get(), KVM_CREATE_IRQCHIP), 0);
    EXPECT_EQ(call(vm.get(), KVM_CREATE_IRQCHIP), -EEXIST);
    EXPECT_EQ(call(vm.get(), KVM_CREATE_PIT2, &config), 0);
    EXPECT_EQ(call(vm.get(), KVM_CREATE_PIT2, &config), -EEXIST);
    kvm_irqchip chip{};
    chip.chip_id = 7;
    EXPECT_EQ(call(vm.get(), KVM_GET_IRQCHIP, &chip), -EINVAL);

    const UniqueFd event{::eventfd(0, 0)};
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<__u32>(event.get());
    irqfd.gsi = 5;
    EXPECT_EQ(call(vm.get(), KVM_IRQFD, &irqfd), 0);
    EXPECT_EQ(call(vm.get(), KVM_IRQFD, &irqfd), -EBUSY);
    irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
    EXPECT_EQ(call(vm.get(), KVM_IRQFD, &irqfd), 0);
    EXPECT_EQ(call(vm.get(), KVM_IRQFD, &irqfd), 0);
    irqfd.flags = 0x80;
    EXPECT_EQ(call(vm.get(), KVM_IRQFD, &irqfd), -EINVAL);
    irqfd.flags = 0;
    irqfd.fd = 9999;
    EXPECT_EQ(call(vm.get(), KVM_IRQFD, &irqfd), -EBADF);

    struct {
        RoutingHead head;
        kvm_irq_routing_entry entry;
    } routing{};
    routing.head.nr = 1;
    routing.entry.type = 99;
    EXPECT_EQ(call(vm.get(), request::set_gsi_routing, &routing), -EINVAL);
    routing.head.nr = 5000;
    EXPECT_EQ(call(vm.get(), request::set_gsi_routing, &routing), -EINVAL);
    routing.head = {0, 1};
    EXPECT_EQ(call(vm.get(), request::set_gsi_routing, &routing), -EINVAL);
    routing.head = {0, 0};
    EXPECT_EQ(call(vm.get(), request::set_gsi_routing, &routing), 0);
}

TEST(VmErrno, Ioeventfds)
{
    const Descriptor kvm = open_kvm();
    const Descriptor vm{call(kvm.get(), KVM_CREATE_VM)};
    const UniqueFd event{::eventfd(0, 0)};
    kvm_ioeventfd wanted{};
    wanted.addr = 0x510;
    wanted.len = 2;
    wanted.fd = event.get();
    wanted.flags = KVM_IOEVENTFD_FLAG_PIO;
    EXPECT_EQ(call(vm.get(), KVM_IOEVENTFD, &wanted), 0);
    EXPECT_EQ(call(vm.get(), KVM_IOEVENTFD, &wanted), -EEXIST);
    wanted.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
    EXPECT_EQ(call(vm.get(), KVM_IOEVENTFD, &wanted), 0);
    EXPECT_EQ(call(vm.get(), KVM_IOEVENTFD, &wanted), -ENOENT);
    wanted.flags = 0;
    wanted.len = 3;
    EXPECT_EQ(call(vm.get(), KVM_IOEVENTFD, &wanted), -EINVAL);
    wanted.len = 4;
    wanted.flags = 0x100;
    EXPECT_EQ(call(vm.get(), KVM_IOEVENTFD, &wanted), -EINVAL);
    wanted.flags = 0;
    wanted.addr = ~1UL;
    EXPECT_EQ(call(vm.get(), KVM_IOEVENTFD, &wanted), -EINVAL);
}

TEST(VmErrno, CapabilitiesAddressesAndVcpus)
{
    Guest guest(Guest::Irqchip::Full);
    kvm_enable_cap enable{};
    enable.cap = 9999;
    EXPECT_EQ(call(guest.vm(), KVM_ENABLE_CAP, &enable), -EINVAL);
    EXPECT_EQ(call(guest.vm(), KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
    EXPECT_EQ(call(guest.vm(), KVM_SET_TSS_ADDR, 0xfffb'd000), 0);
    EXPECT_EQ(call(guest.vm(), KVM_SET_TSS_ADDR, 0xffff'e000), -EINVAL);
    EXPECT_EQ(call(guest.vm(), KVM_CREATE_VCPU, 0), -EEXIST);
    EXPECT_EQ(call(guest.vm(), KVM_CREATE_VCPU, 5000), -EINVAL);
    EXPECT_EQ(call(guest.vm(), KVM_SET_BOOT_CPU_ID, 1), -EBUSY);
    const __u64 address = 0xfffb'c000;
    EXPECT_EQ(call(guest.vm(), KVM_SET_IDENTITY_MAP_ADDR, &address), -EINVAL);
    const Descriptor other{call(guest.system(), KVM_CREATE_VM)};
    EXPECT_EQ(call(other.get(), KVM_SET_IDENTITY_MAP_ADDR, &address), 0);
    const Descriptor vcpu{call(other.get(), KVM_CREATE_VCPU)};
    EXPECT_EQ(call(other.get(), KVM_CREATE_IRQCHIP), -EINVAL);
}

TEST(VmErrno, WhatIsEnabledByKvmEnableCap)
{
    const Guest guest;
    const auto enable = [&](unsigned capability, __u64 argument) {
        kvm_enable_cap wanted{};
        wanted.cap = capability;
        wanted.args[0] = argument;
        return call(guest.vm(), KVM_ENABLE_CAP, &wanted);
    };
    EXPECT_EQ(enable(KVM_CAP_X86_DISABLE_EXITS, 0xf), 0);
    EXPECT_EQ(enable(KVM_CAP_X86_DISABLE_EXITS, 0x10), -EINVAL);
    EXPECT_EQ(enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1), 0);
    EXPECT_EQ(enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 2), -EINVAL);
    EXPECT_EQ(enable(KVM_CAP_MSR_PLATFORM_INFO, 0), 0);
    if (call(guest.vm(), KVM_CHECK_EXTENSION, KVM_CAP_EXIT_HYPERCALL) != 0) {
        EXPECT_EQ(enable(KVM_CAP_EXIT_HYPERCALL, 1U << 12U), 0);
    }
    EXPECT_EQ(enable(KVM_CAP_EXIT_HYPERCALL, 1U << 11U), -EINVAL);
    EXPECT_EQ(enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET), -EINVAL);
    EXPECT_EQ(enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3), 0);
    EXPECT_EQ(enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 5), -EINVAL);
    EXPECT_EQ(set_region(guest.vm(), 0, KVM_MEM_LOG_DIRTY_PAGES, 0, Guest::memory_size,
                         guest.memory().data()),
              0);
    std::array<std::uint64_t, 1> bitmap{};
    kvm_dirty_log log{};
    log.dirty_bitmap = bitmap.data();
    EXPECT_EQ(call(guest.vm(), KVM_GET_DIRTY_LOG, &log), 0);
    EXPECT_EQ(bitmap[0], 0xffffU) << "its sixteen pages";

    kvm_vcpu_events events{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_VCPU_EVENTS, &events), 0);
    EXPECT_EQ(events.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 0U);
    events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VCPU_EVENTS, &events), -EINVAL);
    EXPECT_EQ(enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1), 0);
    events.triple_fault.pending = 1;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VCPU_EVENTS, &events), 0);
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_VCPU_EVENTS, &events), 0);
    EXPECT_NE(events.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 0U);
    EXPECT_EQ(events.triple_fault.pending, 1U);
    EXPECT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().exit_reason, unsigned{KVM_EXIT_SHUTDOWN});
}

bool host_clock_is_tsc()
{
    std::ifstream file{"/sys/devices/system/clocksource/clocksource0/current_clocksource"};
    std::string name;
    return file >> name && name == "tsc";
}

TEST(VcpuErrno, TheTscOffsetIsAnAttribute)
{
    const Guest guest;
    std::uint64_t offset = 0;
    const auto ask = [&](unsigned long request, unsigned group, unsigned number, const void* at) {
        const kvm_device_attr attribute{0, group, number, reinterpret_cast<__u64>(at)};
        return call(guest.vcpu(), request, &attribute);
    };
    EXPECT_EQ(ask(KVM_HAS_DEVICE_ATTR, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, nullptr), 0);
    EXPECT_EQ(ask(KVM_HAS_DEVICE_ATTR, KVM_VCPU_TSC_CTRL, 1, nullptr), -ENXIO);
    EXPECT_EQ(ask(KVM_HAS_DEVICE_ATTR, 1, KVM_VCPU_TSC_OFFSET, nullptr), -ENXIO);
    EXPECT_EQ(ask(KVM_GET_DEVICE_ATTR, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, nullptr), -EFAULT);
    EXPECT_EQ(ask(KVM_SET_DEVICE_ATTR, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, nullptr), -EFAULT);
    ASSERT_EQ(ask(KVM_GET_DEVICE_ATTR, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, &offset), 0);
    const std::uint64_t wanted = offset + 12345;
    ASSERT_EQ(ask(KVM_SET_DEVICE_ATTR, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, &wanted), 0);
    ASSERT_EQ(ask(KVM_GET_DEVICE_ATTR, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, &offset), 0);
    if (!is_kernel() || host_clock_is_tsc()) {
        EXPECT_EQ(offset, wanted) << "KVM moves it where the host's TSC is not to be trusted";
    }
}

TEST(VmErrno, Devices)
{
    const Guest guest;
    kvm_create_device device{};
    device.type = 99;
    EXPECT_EQ(call(guest.vm(), KVM_CREATE_DEVICE, &device), -ENODEV);
    device.flags = KVM_CREATE_DEVICE_TEST;
    EXPECT_EQ(call(guest.vm(), KVM_CREATE_DEVICE, &device), -ENODEV);
    device.type = KVM_DEV_TYPE_FSL_MPIC_20;
    EXPECT_EQ(call(guest.vm(), KVM_CREATE_DEVICE, &device), -ENODEV);
    device.type = KVM_DEV_TYPE_VFIO;
    EXPECT_EQ(call(guest.vm(), KVM_CREATE_DEVICE, &device), 0);
    EXPECT_EQ(call(guest.vm(), KVM_CREATE_DEVICE, 1UL), -EFAULT);
    device.flags = 0;
    ASSERT_EQ(call(guest.vm(), KVM_CREATE_DEVICE, &device), 0) << "a test makes none";
    Descriptor vfio{static_cast<long>(device.fd)};
    if (!is_kernel()) {
        EXPECT_EQ(FileTable::instance().find(vfio.get())->link_name(), "anon_inode:kvm-vfio");
    }
    EXPECT_EQ(call(guest.vm(), KVM_CREATE_DEVICE, &device), -EBUSY);
    vfio.reset();
    ASSERT_EQ(call(guest.vm(), KVM_CREATE_DEVICE, &device), 0);
    const Descriptor again{static_cast<long>(device.fd)};
    EXPECT_EQ(call(again.get(), KVM_RUN), -ENOTTY);
    EXPECT_EQ(may_map(again.get(), 4096, PROT_READ, MAP_SHARED, 0), -ENODEV);
}

TEST(DeviceErrno, AttributesOfVfio)
{
    const Guest guest;
    kvm_create_device device{};
    device.type = KVM_DEV_TYPE_VFIO;
    ASSERT_EQ(call(guest.vm(), KVM_CREATE_DEVICE, &device), 0);
    const Descriptor vfio{static_cast<long>(device.fd)};
    const auto ask = [&](unsigned long request, unsigned group, unsigned number, const void* at) {
        const kvm_device_attr attribute{0, group, number, reinterpret_cast<__u64>(at)};
        return call(vfio.get(), request, &attribute);
    };
    int group = -1;
    for (const unsigned number : {1U, 2U}) {
        EXPECT_EQ(ask(KVM_HAS_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, number, nullptr), 0);
        EXPECT_EQ(ask(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, number, nullptr), -EFAULT);
        EXPECT_EQ(ask(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, number, &group), -EBADF);
        EXPECT_EQ(ask(KVM_GET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, number, &group), -EPERM);
    }
    EXPECT_EQ(
        ask(KVM_HAS_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE, nullptr),
        -ENXIO);
    EXPECT_EQ(ask(KVM_SET_DEVICE_ATTR, 9, KVM_DEV_VFIO_GROUP_ADD, nullptr), -ENXIO);
    group = guest.vm();
    EXPECT_EQ(ask(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, &group),
              -EINVAL);
    EXPECT_EQ(ask(KVM_SET_DEVICE_ATTR, KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_DEL, &group),
              -ENOENT);
    EXPECT_EQ(call(vfio.get(), KVM_SET_DEVICE_ATTR, 1UL), -EFAULT);
}

TEST(VcpuErrno, StateOfReset)
{
    const Descriptor kvm = open_kvm();
    const Descriptor vm{call(kvm.get(), KVM_CREATE_VM)};
    const Descriptor vcpu{call(vm.get(), KVM_CREATE_VCPU)};
    kvm_regs regs{};
    kvm_sregs sregs{};
    ASSERT_EQ(call(vcpu.get(), KVM_GET_REGS, &regs), 0);
    ASSERT_EQ(call(vcpu.get(), KVM_GET_SREGS, &sregs), 0);
    EXPECT_EQ(regs.rip, 0xfff0U);
    EXPECT_EQ(regs.rflags, 2U);
    EXPECT_EQ(regs.rdx, 0x600U);
    EXPECT_EQ(sregs.cs.selector, 0xf000U);
    EXPECT_EQ(sregs.cs.base, 0xffff'0000U);
    constexpr unsigned accessed = 1;
    constexpr unsigned of_386 = 8;  // And not of a 286.
    EXPECT_EQ(sregs.cs.type | (is_kernel() ? accessed : 0U), 0xbU) << "KVM on AMD: 0xa";
    EXPECT_EQ(sregs.cr0, 0x6000'0010U);
    EXPECT_EQ(sregs.apic_base, 0xfee0'0900U);
    EXPECT_EQ(sregs.ldt.type, 2U);
    EXPECT_EQ(sregs.tr.type | (is_kernel() ? of_386 : 0U), 0xbU) << "KVM on AMD: 3";
    kvm_debugregs debug{};
    ASSERT_EQ(call(vcpu.get(), KVM_GET_DEBUGREGS, &debug), 0);
    EXPECT_EQ(debug.dr6, 0xffff'0ff0U);
    EXPECT_EQ(debug.dr7, 0x400U);
}

TEST(VcpuErrno, SpecialRegisters)
{
    const Guest guest;
    kvm_sregs good{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_SREGS, &good), 0);
    const auto set = [&](auto change) {
        kvm_sregs sregs = good;
        change(sregs);
        return call(guest.vcpu(), KVM_SET_SREGS, &sregs);
    };
    EXPECT_EQ(set([](kvm_sregs& s) { s.cr0 = 0x8000'0000; }), -EINVAL);
    EXPECT_EQ(set([](kvm_sregs& s) { s.efer = 0x500; }), -EINVAL);
    EXPECT_EQ(set([](kvm_sregs& s) { s.cs.l = 1; }), -EINVAL);
    EXPECT_EQ(set([](kvm_sregs& s) { s.cr4 |= 1UL << 30U; }), -EINVAL);
    EXPECT_EQ(set([](kvm_sregs& s) {
                  s.cr0 = 0x8000'0001;
                  s.efer = 0x500;
              }),
              -EINVAL);
    EXPECT_EQ(set([](kvm_sregs& s) { s.apic_base = 1; }), -EINVAL);
    EXPECT_EQ(set([](kvm_sregs& s) { s.interrupt_bitmap[0] = 6; }), 0);
    kvm_sregs got{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_SREGS, &got), 0);
    EXPECT_EQ(got.interrupt_bitmap[0], 2U) << "of several the first";
}

TEST(VcpuErrno, InterruptsAndState)
{
    const Guest guest(Guest::Irqchip::Full);
    EXPECT_EQ(call(guest.vcpu(), KVM_RUN, 1), -EINVAL);
    EXPECT_EQ(call(guest.vcpu(), KVM_GET_REGS, 1UL), -EFAULT);
    kvm_mp_state state{};
    EXPECT_EQ(call(guest.vcpu(), KVM_GET_MP_STATE, &state), 0);
    EXPECT_EQ(state.mp_state, KVM_MP_STATE_RUNNABLE);
    state.mp_state = 77;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_MP_STATE, &state), -EINVAL);
    kvm_interrupt interrupt{300};
    EXPECT_EQ(call(guest.vcpu(), KVM_INTERRUPT, &interrupt), -EINVAL);
    interrupt.irq = 32;
    EXPECT_EQ(call(guest.vcpu(), KVM_INTERRUPT, &interrupt), -ENXIO);
    EXPECT_EQ(call(guest.vcpu(), KVM_NMI), 0);
    const bool has_smm = call(guest.vm(), KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM) != 0;
    EXPECT_EQ(call(guest.vcpu(), KVM_SMI), has_smm ? 0 : -ENOTTY);
    EXPECT_EQ(call(guest.vcpu(), KVM_KVMCLOCK_CTRL), -EINVAL);
    kvm_tpr_access_ctl control{};
    control.enabled = 1;
    EXPECT_EQ(call(guest.vcpu(), KVM_TPR_ACCESS_REPORTING, &control), 0);
    control.flags = 1;
    EXPECT_EQ(call(guest.vcpu(), KVM_TPR_ACCESS_REPORTING, &control), -EINVAL);
    kvm_vapic_addr word{0x2000};
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VAPIC_ADDR, &word), 0);
    word.vapic_addr = 0x7000'0000;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VAPIC_ADDR, &word), -EINVAL);
    word.vapic_addr = 0;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VAPIC_ADDR, &word), 0);
    const long khz = call(guest.vcpu(), KVM_GET_TSC_KHZ);
    const long other_khz = khz / 2;
    EXPECT_GT(khz, 1000);
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_TSC_KHZ, 0UL), 0);
    const bool scales = call(guest.vm(), KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) != 0;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_TSC_KHZ, static_cast<unsigned long>(other_khz)),
              scales ? 0 : -EINVAL);
    if (!is_kernel()) {  // Which shows what it has refused, too.
        EXPECT_EQ(call(guest.vcpu(), KVM_GET_TSC_KHZ), scales ? other_khz : khz);
    }
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_TSC_KHZ, 0UL), 0);
    kvm_translation translation{};
    translation.linear_address = 0x1234;
    EXPECT_EQ(call(guest.vcpu(), KVM_TRANSLATE, &translation), 0);
    EXPECT_EQ(translation.physical_address, 0x1234U);
    EXPECT_EQ(translation.valid, 1U);
}

TEST(VcpuErrno, WithoutAnIrqchip)
{
    const Guest guest;
    kvm_lapic_state lapic{};
    EXPECT_EQ(call(guest.vcpu(), KVM_GET_LAPIC, &lapic), -EINVAL);
    kvm_mp_state state{KVM_MP_STATE_HALTED};
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_MP_STATE, &state), -EINVAL);
    kvm_vapic_addr address{};
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VAPIC_ADDR, &address), -EINVAL);
    kvm_interrupt interrupt{0x20};
    EXPECT_EQ(call(guest.vcpu(), KVM_INTERRUPT, &interrupt), 0);
    kvm_vcpu_events events{};
    EXPECT_EQ(call(guest.vcpu(), KVM_GET_VCPU_EVENTS, &events), 0);
    EXPECT_EQ(events.interrupt.injected, 1U);
    EXPECT_EQ(events.interrupt.nr, 0x20U);
}

TEST(VcpuErrno, MsrsStopAtTheFirstThatThereIsNot)
{
    const Guest guest;
    struct {
        MsrsHead head;
        std::array<kvm_msr_entry, 300> entries;
    } msrs{};
    msrs.head.nmsrs = 3;
    msrs.entries[0].index = 0x10;
    msrs.entries[1].index = 0xdead'beef;
    msrs.entries[2].index = 0x174;
    EXPECT_EQ(call(guest.vcpu(), request::get_msrs, &msrs), 1);
    EXPECT_EQ(call(guest.vcpu(), request::set_msrs, &msrs), 1);
    msrs.head.nmsrs = 256;
    EXPECT_EQ(call(guest.vcpu(), request::get_msrs, &msrs), -E2BIG);
    msrs.head.nmsrs = 1;
    msrs.entries[0] = {0xc000'0080, 0, ~0ULL};
    EXPECT_EQ(call(guest.vcpu(), request::set_msrs, &msrs), 0);
}

TEST(VcpuErrno, Cpuid)
{
    const Guest guest;
    guest.code({0xf4});
    CpuidList list;
    list.head.nent = 300;
    ASSERT_EQ(call(guest.system(), request::get_supported_cpuid, &list), 0);
    const std::uint32_t count = list.head.nent;
    EXPECT_EQ(call(guest.vcpu(), request::set_cpuid2, &list), 0);
    list.head.nent = 300;
    EXPECT_EQ(call(guest.vcpu(), request::set_cpuid2, &list), -E2BIG);
    list.head.nent = 1;
    EXPECT_EQ(call(guest.vcpu(), request::get_cpuid2, &list), -E2BIG);
    EXPECT_EQ(list.head.nent, 1U);
    list.head.nent = count;
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(call(guest.vcpu(), request::set_cpuid2, &list), 0) << "the same is fine";
    list.entries[1].ecx ^= 1U << 12U;
    EXPECT_EQ(call(guest.vcpu(), request::set_cpuid2, &list), -EINVAL) << "the guest has run";
}

TEST(VcpuErrno, DebugXcrEventsAndMask)
{
    const Guest guest;
    kvm_debugregs debug{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_DEBUGREGS, &debug), 0);
    debug.flags = 1;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_DEBUGREGS, &debug), -EINVAL);
    debug.flags = 0;
    debug.dr7 = 1UL << 40U;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_DEBUGREGS, &debug), -EINVAL);
    kvm_xcrs xcrs{};
    xcrs.nr_xcrs = 1;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_XCRS, &xcrs), -EINVAL);
    xcrs.xcrs[0].value = 1;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_XCRS, &xcrs), 0);
    kvm_vcpu_events events{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_VCPU_EVENTS, &events), 0);
    EXPECT_EQ(events.flags, 0xdU);
    events.flags = 0x1000;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VCPU_EVENTS, &events), -EINVAL);
    events.flags = KVM_VCPUEVENT_VALID_PAYLOAD;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VCPU_EVENTS, &events), -EINVAL);
    events.flags = 0;
    events.exception.injected = 1;
    events.exception.nr = 40;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_VCPU_EVENTS, &events), -EINVAL);
    std::array<std::uint32_t, 3> mask{4, 0, 0};
    EXPECT_EQ(call(guest.vcpu(), request::set_signal_mask, mask.data()), -EINVAL);
    mask[0] = 8;
    EXPECT_EQ(call(guest.vcpu(), request::set_signal_mask, mask.data()), 0);
    EXPECT_EQ(call(guest.vcpu(), request::set_signal_mask, 0UL), 0);
}

}  // namespace
}  // namespace vmm::shim::test
