// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM_RUN as clients know it.

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <map>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <sys/eventfd.h>
#include <sys/wait.h>

#include "client.hpp"
#include "machine.hpp"
#include "vmm/bus/coalesced.hpp"
#include "vmm/unique_fd.hpp"
#include "x86/shim/signals.hpp"

namespace vmm::shim::test {
namespace {

TEST(KvmRun, ImmediateExitSettlesAnIn)
{
    const Guest guest;
    guest.code({0xe4, 0x10, 0xe6, 0x11, 0xf4});  // in $0x10, %al; out %al, $0x11; hlt
    ASSERT_EQ(guest.enter(), 0);
    ASSERT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_IO));
    EXPECT_EQ(guest.run().io.direction, KVM_EXIT_IO_IN);
    EXPECT_EQ(guest.run().io.port, 0x10U);
    EXPECT_EQ(guest.run().io.size, 1U);
    EXPECT_EQ(guest.run().io.count, 1U);
    EXPECT_EQ(guest.run().io.data_offset, 4096U);
    *guest.port_data() = std::byte{0x5a};
    guest.run().immediate_exit = 1;
    EXPECT_EQ(guest.enter(), -EINTR);
    EXPECT_EQ(guest.run().immediate_exit, 1U) << "it is the client's";
    EXPECT_EQ(guest.regs().rip, Guest::code_at + 2);
    EXPECT_EQ(guest.regs().rax, 0x5aU);
    guest.run().immediate_exit = 0;
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().io.direction, KVM_EXIT_IO_OUT);
    EXPECT_EQ(*guest.port_data(), std::byte{0x5a});
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_HLT));
}

TEST(KvmRun, ADirtyRingTellsOfWhatTheGuestWrites)
{
    constexpr std::uint64_t ring_bytes = 4096;
    const Descriptor system = open_kvm();
    const Descriptor vm{call(system.get(), KVM_CREATE_VM)};
    EXPECT_EQ(call(vm.get(), KVM_RESET_DIRTY_RINGS), -EINVAL) << "not enabled";
    kvm_enable_cap wanted{};
    wanted.cap = KVM_CAP_DIRTY_LOG_RING;
    for (const std::uint64_t bytes : {std::uint64_t{0}, ring_bytes + 16, ring_bytes / 2}) {
        wanted.args[0] = bytes;
        EXPECT_EQ(call(vm.get(), KVM_ENABLE_CAP, &wanted), -EINVAL) << bytes;
    }
    wanted.args[0] = 2U << 20U;
    EXPECT_EQ(call(vm.get(), KVM_ENABLE_CAP, &wanted), -E2BIG);
    wanted.args[0] = ring_bytes;
    ASSERT_EQ(call(vm.get(), KVM_ENABLE_CAP, &wanted), 0);
    EXPECT_EQ(call(vm.get(), KVM_ENABLE_CAP, &wanted), -EINVAL) << "twice";

    const Pages memory{0x10000};
    memory.place(0x1000, {0xc6, 0x06, 0, 0x30, 1, 0xf4});  // movb $1, 0x3000; hlt
    ASSERT_EQ(set_region(vm.get(), 3, KVM_MEM_LOG_DIRTY_PAGES, 0, 0x10000, memory.data()), 0);
    std::uint64_t word = 0;
    kvm_dirty_log log{};
    log.slot = 3;
    log.dirty_bitmap = &word;
    EXPECT_EQ(call(vm.get(), KVM_GET_DIRTY_LOG, &log), -ENXIO);
    const Descriptor vcpu{call(vm.get(), KVM_CREATE_VCPU)};
    constexpr off_t ring_at = KVM_DIRTY_LOG_PAGE_OFFSET * 4096L;
    EXPECT_EQ(may_map(vcpu.get(), ring_bytes, PROT_READ, MAP_PRIVATE, ring_at), -EINVAL);
    EXPECT_EQ(may_map(vcpu.get(), ring_bytes, PROT_READ | PROT_EXEC, MAP_SHARED, ring_at), -EINVAL);
    EXPECT_EQ(may_map(vcpu.get(), 12288, PROT_READ, MAP_PRIVATE, 0), 0);
    ASSERT_EQ(may_map(vcpu.get(), ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring_at), 0);
    void* const at =
        ::mmap(nullptr, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), ring_at);
    ASSERT_NE(at, MAP_FAILED);
    const std::span ring{static_cast<kvm_dirty_gfn*>(at), ring_bytes / sizeof(kvm_dirty_gfn)};
    kvm_sregs sregs{};
    ASSERT_EQ(call(vcpu.get(), KVM_GET_SREGS, &sregs), 0);
    sregs.cs.selector = 0;
    sregs.cs.base = 0;
    ASSERT_EQ(call(vcpu.get(), KVM_SET_SREGS, &sregs), 0);
    kvm_regs regs{};
    regs.rip = 0x1000;
    regs.rflags = 2;
    ASSERT_EQ(call(vcpu.get(), KVM_SET_REGS, &regs), 0);
    ASSERT_EQ(call(vcpu.get(), KVM_RUN), 0);
    // The kernel's KVM tells of a page that was only read too: of the one with the code.
    std::size_t told = 0;
    for (; ring[told].flags != 0U; ++told) {
        EXPECT_EQ(ring[told].flags, static_cast<__u32>(KVM_DIRTY_GFN_F_DIRTY));
        EXPECT_EQ(ring[told].slot, 3U);
        ring[told].flags = KVM_DIRTY_GFN_F_RESET;
    }
    ASSERT_GE(told, 1U);
    EXPECT_EQ(ring[told - 1].offset, 3U);
    EXPECT_LE(told, is_on_kvm() ? 2U : 1U);
    EXPECT_EQ(call(vm.get(), KVM_RESET_DIRTY_RINGS), static_cast<long>(told));
    EXPECT_EQ(ring[0].flags, 0U);
    ::munmap(at, ring_bytes);
}

TEST(KvmRun, ADebuggerStepsAndBreaks)
{
    if (is_on_kvm() && vmm::test::is_tcg_machine()) {
        GTEST_SKIP() << "QEMU's SVM does not intercept what a debugger needs";
    }
    const Guest guest;
    guest.code({0xb0, 0x05, 0xcc, 0x90, 0xf4});  // mov $5, %al; int3; nop; hlt
    kvm_guest_debug debug{};
    debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP;
    ASSERT_EQ(call(guest.vcpu(), KVM_SET_GUEST_DEBUG, &debug), 0);
    ASSERT_EQ(guest.enter(), 0);
    ASSERT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_DEBUG));
    EXPECT_EQ(guest.run().debug.arch.exception, 1U);
    EXPECT_EQ(guest.run().debug.arch.pc, Guest::code_at + 2);
    EXPECT_EQ(guest.run().debug.arch.dr6, 0xffff'4ff0U);
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().debug.arch.exception, 3U);
    EXPECT_EQ(guest.run().debug.arch.pc, Guest::code_at + 2);
    // The breakpoint is the guest's own: its debugger hands it on, and a second one must wait.
    debug.control = KVM_GUESTDBG_INJECT_BP;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_GUEST_DEBUG, &debug), 0);
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_GUEST_DEBUG, &debug), -EBUSY);
    kvm_vcpu_events events{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_VCPU_EVENTS, &events), 0);
    EXPECT_EQ(events.exception.nr, 3U);
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_GUEST_DEBUG, 8UL), -EFAULT);
    debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
    debug.arch.debugreg[7] = std::uint64_t{1} << 32U;
    EXPECT_EQ(call(guest.vcpu(), KVM_SET_GUEST_DEBUG, &debug), -EINVAL);
}

TEST(KvmRun, TheClientAnswersMsrs)
{
    const Guest guest;
    kvm_enable_cap wanted{};
    wanted.cap = KVM_CAP_X86_USER_SPACE_MSR;
    wanted.args[0] = KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN;
    ASSERT_EQ(call(guest.vm(), KVM_ENABLE_CAP, &wanted), 0);
    std::array<__u8, 8> none{};
    kvm_msr_filter filter{};
    filter.ranges[0] = {KVM_MSR_FILTER_READ, 1, 0xc000'0100, none.data()};
    ASSERT_EQ(call(guest.vm(), KVM_X86_SET_MSR_FILTER, &filter), 0);
    // mov $0xc0000100, %ecx; rdmsr; mov $0x474f, %cx; wrmsr; hlt
    guest.code(
        {0x66, 0xb9, 0x00, 0x01, 0x00, 0xc0, 0x0f, 0x32, 0xb9, 0x4f, 0x47, 0x0f, 0x30, 0xf4});
    guest.run().msr.error = 0x55;
    ASSERT_EQ(guest.enter(), 0);
    ASSERT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_X86_RDMSR));
    EXPECT_EQ(guest.run().msr.error, 0U);
    EXPECT_EQ(guest.run().msr.reason, static_cast<__u32>(KVM_MSR_EXIT_REASON_FILTER));
    EXPECT_EQ(guest.run().msr.index, 0xc000'0100U);
    guest.run().msr.data = 0x1'0000'0002;
    ASSERT_EQ(guest.enter(), 0);
    ASSERT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_X86_WRMSR));
    EXPECT_EQ(guest.run().msr.reason, static_cast<__u32>(KVM_MSR_EXIT_REASON_UNKNOWN));
    EXPECT_EQ(guest.run().msr.index, 0xc000'474fU);
    EXPECT_EQ(guest.run().msr.data, 0x1'0000'0002U);
    guest.run().msr.error = 1;
    guest.run().immediate_exit = 1;
    EXPECT_EQ(guest.enter(), -EINTR);
    kvm_vcpu_events events{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_VCPU_EVENTS, &events), 0);
    EXPECT_EQ(events.exception.nr, 13U);
    EXPECT_EQ(guest.regs().rip, Guest::code_at + 11) << "a fault: of the instruction";
}

/// What a client finds in a file of statistics.
struct Statistics {
    /// `struct kvm_stats_desc` without its name.
    struct Descriptor {
        std::uint32_t flags;
        std::int16_t exponent;
        std::uint16_t size;
        std::uint32_t offset;
        std::uint32_t bucket_size;
    };

    explicit Statistics(int fd)
    {
        if (const auto file = FileTable::instance().find(fd)) {
            file->about_to_read();  // As the hook of pread(2) does it.
        }
        kvm_stats_header header{};
        EXPECT_EQ(::pread(fd, &header, sizeof header, 0), static_cast<ssize_t>(sizeof header));
        std::vector<char> name(header.name_size);
        EXPECT_EQ(::pread(fd, name.data(), name.size(), header.id_offset),
                  static_cast<ssize_t>(name.size()));
        id = name.data();
        for (std::uint32_t i = 0; i < header.num_desc; ++i) {
            Descriptor descriptor{};
            const auto at =
                static_cast<off_t>(header.desc_offset + i * (sizeof descriptor + name.size()));
            EXPECT_EQ(::pread(fd, &descriptor, sizeof descriptor, at),
                      static_cast<ssize_t>(sizeof descriptor));
            EXPECT_GT(
                ::pread(fd, name.data(), name.size(), at + static_cast<off_t>(sizeof descriptor)),
                0);
            std::uint64_t value = 0;
            EXPECT_EQ(::pread(fd, &value, sizeof value,
                              static_cast<off_t>(header.data_offset + descriptor.offset)),
                      static_cast<ssize_t>(sizeof value));
            values[name.data()] = value;
            sizes[name.data()] = descriptor.size;
        }
    }

    std::string id{};
    std::map<std::string, std::uint64_t> values{};
    std::map<std::string, unsigned> sizes{};
};

TEST(KvmRun, StatisticsAreAFileWithTheNumbersOfTheTime)
{
    const Guest guest;
    EXPECT_EQ(call(guest.system(), KVM_CHECK_EXTENSION, KVM_CAP_BINARY_STATS_FD), 1);
    const Descriptor of_vcpu{call(guest.vcpu(), KVM_GET_STATS_FD)};
    const Descriptor of_vm{call(guest.vm(), KVM_GET_STATS_FD)};
    EXPECT_EQ(call(guest.system(), KVM_GET_STATS_FD), -EINVAL);
    EXPECT_EQ(call(of_vcpu.get(), KVM_GET_STATS_FD), -ENOTTY);
    guest.code({0xe4, 0x10, 0xe6, 0x11, 0xf4});  // in $0x10, %al; out %al, $0x11; hlt
    for (const unsigned exits : {1U, 2U, 3U}) {
        ASSERT_EQ(guest.enter(), 0);
        const Statistics seen{of_vcpu.get()};
        EXPECT_EQ(seen.id, "kvm-" + std::to_string(::getpid()) + "/vcpu-0");
        if (is_kernel()) {
            EXPECT_GE(seen.values.at("exits"), exits) << "page faults and interrupts too";
        } else {
            EXPECT_EQ(seen.values.at("exits"), exits);
        }
        EXPECT_EQ(seen.values.at("io_exits"), std::min(exits, 2U));
        EXPECT_EQ(seen.values.at("halt_exits"), exits / 3);
        EXPECT_EQ(seen.sizes.at("halt_wait_hist"), 32U);
        EXPECT_EQ(seen.values.count("blocks"), 0U) << "KVM has no such";
    }
    const Statistics vm{of_vm.get()};
    EXPECT_EQ(vm.id, "kvm-" + std::to_string(::getpid()));
    EXPECT_EQ(vm.values.count("remote_tlb_flush"), 1U);
    EXPECT_EQ(::write(of_vm.get(), "", 1), -1);
}

TEST(KvmRun, MmioGoesBothWays)
{
    const Guest guest;
    // mov $0x3000, %ax; mov %ax, %ds; mov %al, 0; mov 1, %al; hlt
    guest.code({0xb8, 0x00, 0x30, 0x8e, 0xd8, 0xa2, 0, 0, 0xa0, 1, 0, 0xf4});
    ASSERT_EQ(guest.enter(), 0);
    ASSERT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_MMIO));
    EXPECT_EQ(guest.run().mmio.phys_addr, 0x30000U);
    EXPECT_EQ(guest.run().mmio.is_write, 1U);
    EXPECT_EQ(guest.run().mmio.len, 1U);
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().mmio.phys_addr, 0x30001U);
    EXPECT_EQ(guest.run().mmio.is_write, 0U);
    guest.run().mmio.data[0] = 0x77;
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_HLT));
    EXPECT_EQ(guest.regs().rax, 0x3077U);
}

TEST(KvmRun, AReadOnlySlotIsReadAndItsWritesLeave)
{
    const Guest guest;
    const Pages rom{0x1000};
    rom.place(0, {0x42});
    ASSERT_EQ(set_region(guest.vm(), 1, KVM_MEM_READONLY, 0x20000, 0x1000, rom.data()), 0);
    // mov $0x2000, %ax; mov %ax, %ds; mov 0, %al; mov %al, 1; hlt
    guest.code({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa0, 0, 0, 0xa2, 1, 0, 0xf4});
    ASSERT_EQ(guest.enter(), 0);
    ASSERT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_MMIO));
    EXPECT_EQ(guest.run().mmio.phys_addr, 0x20001U);
    EXPECT_EQ(guest.run().mmio.data[0], 0x42U);
    EXPECT_EQ(rom.data()[1], std::byte{0});
}

TEST(KvmRun, ATripleFaultIsAShutdown)
{
    const Guest guest;
    guest.code({0x0f, 0x0b});
    kvm_sregs sregs{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_SREGS, &sregs), 0);
    sregs.idt.limit = 0;
    ASSERT_EQ(call(guest.vcpu(), KVM_SET_SREGS, &sregs), 0);
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_SHUTDOWN));
}

TEST(KvmRun, AnInterruptWaitsForItsWindow)
{
    const Guest guest;
    guest.code({0x90, 0xfb, 0x90, 0x90, 0xf4});          // nop; sti; nop; nop; hlt
    guest.memory().place(0x20 * 4, {0x00, 0x20, 0, 0});  // Vector 0x20 leads to 0:2000.
    guest.memory().place(0x2000, {0xe6, 0x33, 0xf4});    // out %al, $0x33; hlt
    guest.run().request_interrupt_window = 1;
    ASSERT_EQ(guest.enter(), 0);
    ASSERT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_IRQ_WINDOW_OPEN));
    EXPECT_EQ(guest.run().if_flag, 1U);
    EXPECT_EQ(guest.run().ready_for_interrupt_injection, 1U);
    guest.run().request_interrupt_window = 0;
    const kvm_interrupt interrupt{0x20};
    ASSERT_EQ(call(guest.vcpu(), KVM_INTERRUPT, &interrupt), 0);
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_IO));
    EXPECT_EQ(guest.run().io.port, 0x33U);
}

TEST(KvmRun, RegistersTravelInTheRunArea)
{
    const Guest guest;
    guest.code({0x40, 0xf4});  // inc %ax; hlt
    guest.run().kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().s.regs.regs.rax, 1U);
    EXPECT_EQ(guest.run().s.regs.sregs.cs.base, 0U);
    guest.run().s.regs.regs.rax = 41;
    guest.run().s.regs.regs.rip = Guest::code_at;
    guest.run().kvm_dirty_regs = KVM_SYNC_X86_REGS;
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().s.regs.regs.rax, 42U);
    EXPECT_EQ(guest.run().kvm_dirty_regs, 0U);
    guest.run().kvm_valid_regs = 1UL << 40U;
    EXPECT_EQ(guest.enter(), -EINVAL);
}

TEST(KvmRun, AnIoeventfdIsSignalledWithoutAnExit)
{
    const Guest guest;
    guest.code({0xe6, 0x55, 0xf4});  // out %al, $0x55; hlt
    const UniqueFd event{::eventfd(0, EFD_NONBLOCK)};
    kvm_ioeventfd wanted{};
    wanted.addr = 0x55;
    wanted.len = 1;
    wanted.fd = event.get();
    wanted.flags = KVM_IOEVENTFD_FLAG_PIO;
    ASSERT_EQ(call(guest.vm(), KVM_IOEVENTFD, &wanted), 0);
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_HLT));
    eventfd_t count = 0;
    EXPECT_EQ(::eventfd_read(event.get(), &count), 0);
    EXPECT_EQ(count, 1U);
}

TEST(KvmRun, WritesToCoalescedZonesAreInTheRing)
{
    const Guest guest;
    const kvm_coalesced_mmio_zone zone{0x30000, 0x1000, {0}};
    ASSERT_EQ(call(guest.vm(), KVM_REGISTER_COALESCED_MMIO, &zone), 0);
    // mov $0x3000, %ax; mov %ax, %ds; mov %al, 4; hlt
    guest.code({0xb8, 0x21, 0x30, 0x8e, 0xd8, 0xa2, 4, 0, 0xf4});
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_HLT));
    auto* const page = reinterpret_cast<bus::CoalescedPage*>(guest.port_data() + 4096);
    const auto write = bus::CoalescedRing{*page}.pop();
    ASSERT_TRUE(write);
    EXPECT_EQ(write->phys_addr, 0x30214U);
    EXPECT_EQ(write->data[0], std::byte{0x21});
}

TEST(KvmRun, AnIrqfdWakesAHaltedGuest)
{
    const Guest guest(Guest::Irqchip::Full);
    // The PIC: vectors from 0x20, IRQ 4 unmasked; out %al, $0x44; sti; hlt
    guest.code({0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21,
                0xb0, 0x01, 0xe6, 0x21, 0xb0, 0xef, 0xe6, 0x21, 0xe6, 0x44, 0xfb, 0xf4});
    guest.memory().place(0x24 * 4, {0x00, 0x20, 0, 0});
    guest.memory().place(0x2000, {0xe6, 0x33});  // out %al, $0x33
    kvm_lapic_state lapic{};
    ASSERT_EQ(call(guest.vcpu(), KVM_GET_LAPIC, &lapic), 0);
    const UniqueFd event{::eventfd(0, EFD_NONBLOCK)};
    kvm_irqfd wanted{};
    wanted.fd = static_cast<__u32>(event.get());
    wanted.gsi = 4;
    ASSERT_EQ(call(guest.vm(), KVM_IRQFD, &wanted), 0);
    ASSERT_EQ(guest.enter(), 0);
    ASSERT_EQ(guest.run().io.port, 0x44U) << "from here on the PIC takes it";
    ASSERT_EQ(::eventfd_write(event.get(), 1), 0);
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_IO));
    EXPECT_EQ(guest.run().io.port, 0x33U);
}

TEST(KvmRun, AGuestThatMeetsAPageOfNobodyIsEfault)
{
    const Guest guest;
    auto* const page = static_cast<std::byte*>(
        ::mmap(nullptr, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_EQ(set_region(guest.vm(), 1, 0, 0x20000, 0x1000, page), 0);
    ASSERT_EQ(::munmap(page, 0x1000), 0);
    // mov $0x2000, %ax; mov %ax, %ds; mov 0, %al; jmp .
    guest.code({0xb8, 0x00, 0x20, 0x8e, 0xd8, 0xa0, 0, 0, 0xeb, 0xfe});
    EXPECT_EQ(guest.enter(), -EFAULT);
    unsigned char resident = 0;
    EXPECT_EQ(::mincore(page, 0x1000, &resident), -1) << "nothing is left there";
}

/// As the hook of pthread_cancel() does it; also while runs begin and end.
TEST(KvmRun, ARunIsEndedByTheNameOfItsThread)
{
    if (is_kernel()) {
        GTEST_SKIP() << "the kernel cancels its own";
    }
    const Guest guest;
    guest.code({0xeb, 0xfe});  // jmp .
    std::atomic<bool> done{false};
    std::thread runner{[&] {
        for (int i = 0; i < 200; ++i) {
            EXPECT_EQ(guest.enter(), -EINTR);
        }
        done = true;
    }};
    end_run(::pthread_self());  // In no run: nothing to end.
    while (!done) {
        end_run(runner.native_handle());
    }
    runner.join();
    EXPECT_EQ(guest.regs().rip, Guest::code_at);
}

TEST(KvmRun, TheVmLivesAsLongAsItsVcpu)
{
    Guest guest;
    guest.code({0xf4});
    guest.vm_descriptor().reset();
    ASSERT_EQ(guest.enter(), 0);
    EXPECT_EQ(guest.run().exit_reason, static_cast<__u32>(KVM_EXIT_HLT));
}

TEST(Fork, AChildHasNoUseOfItsParentsVms)
{
    const Guest guest;
    const pid_t child = ::fork();
    if (child == 0) {
        kvm_regs regs{};
        const bool refused = call(guest.vm(), KVM_CHECK_EXTENSION, 3) == -EIO &&
                             call(guest.vcpu(), KVM_GET_REGS, &regs) == -EIO &&
                             call(guest.vcpu(), KVM_RUN) == -EIO;
        ::_exit(refused ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    kvm_regs regs{};
    EXPECT_EQ(call(guest.vcpu(), KVM_GET_REGS, &regs), 0);
}

TEST(Descriptors, ADuplicateKeepsTheFileOpen)
{
    const Descriptor kvm = open_kvm();
    Descriptor vm{call(kvm.get(), KVM_CREATE_VM)};
    const int copy = ::dup(vm.get());
    if (!is_kernel()) {
        FileTable::instance().duplicate(vm.get(), copy);
        EXPECT_EQ(FileTable::instance().find(copy)->link_name(), "anon_inode:kvm-vm");
    }
    const Descriptor second{copy};
    vm.reset();
    EXPECT_EQ(call(second.get(), KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
}

}  // namespace
}  // namespace vmm::shim::test
