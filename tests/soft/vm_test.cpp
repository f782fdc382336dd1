// SPDX-License-Identifier: Apache-2.0

// The protocol between vCPU threads.  Meant for ThreadSanitizer too: all ordering is by SoftVm.

#include <thread>

#include <gtest/gtest.h>

#include "mmu_fixture.hpp"

namespace vmm::x86::soft::test {
namespace {

constexpr std::size_t ram_pages = 16;

/// A vCPU on a thread of its own that runs `block` again and again, as the run loop would.
class Runner {
public:
    template <typename Block>
    Runner(SoftVm& vm, VcpuHost& host, Block block)
        : cpu(std::make_unique<Cpu>(vm, host)),
          thread_([this, &vm, block] {
              while (!stop_.load()) {
                  vm.enter_guest(*cpu);
                  for (unsigned count = 0; count < 50 && !stop_.load(); ++count) {
                      if (cpu->requests.load() != 0) {
                          vm.take_requests(*cpu);
                      }
                      block(*cpu);
                      blocks_done.fetch_add(1);
                  }
                  vm.leave_guest(*cpu);
              }
          })
    {
    }
    ~Runner()
    {
        stop_.store(true);
        thread_.join();
    }
    Runner(const Runner&) = delete;
    Runner& operator=(const Runner&) = delete;
    Runner(Runner&&) = delete;
    Runner& operator=(Runner&&) = delete;

    void await_progress(std::uint64_t blocks) const
    {
        const std::uint64_t until = blocks_done.load() + blocks;
        while (blocks_done.load() < until) {
            std::this_thread::yield();
        }
    }

    std::atomic<std::uint64_t> blocks_done{};
    std::unique_ptr<Cpu> cpu;

private:
    std::atomic<bool> stop_{};
    std::thread thread_;
};

TEST(SoftVm, NobodyUsesAPageAfterMemoryChanged)
{
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    std::vector<std::uint64_t> one(512);
    std::vector<std::uint64_t> other(512);
    memory.set_host(3, reinterpret_cast<std::byte*>(one.data()));
    const auto count = [](Cpu& cpu) {
        store(cpu, Ds, 0x3000, load<std::uint64_t>(cpu, Ds, 0x3000) + 1);
    };
    const Runner first{vm, host, count};
    const Runner second{vm, host, count};
    for (unsigned round = 0; round < 100; ++round) {
        std::vector<std::uint64_t>& now = round % 2 == 0 ? other : one;
        std::vector<std::uint64_t>& old = round % 2 == 0 ? one : other;
        first.await_progress(1);
        memory.set_host(3, reinterpret_cast<std::byte*>(now.data()));
        vm.memory_changed();
        // Nobody writes here any more: a race would be seen, by value or by the sanitizer.
        const std::uint64_t last = old[0];
        first.await_progress(20);
        second.await_progress(20);
        ASSERT_EQ(old[0], last);
        old[0] = 0;
    }
}

TEST(SoftVm, ExclusiveFunctionsAreAlone)
{
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    std::uint64_t counter = 0;  // Not atomic: only exclusion guards it.
    std::atomic<std::uint64_t> executed{};
    std::atomic<bool> inside{};
    const auto block = [&](Cpu& cpu) {
        ASSERT_FALSE(inside.load()) << "guest code while another is exclusive";
        if (executed.load() % 3 == 0) {
            vm.exclusive(cpu, [&] {
                inside.store(true);
                ++counter;
                inside.store(false);
            });
            executed.fetch_add(1);
        } else {
            executed.fetch_add(1);
            vm.exclusive(cpu, [&] { ++counter; });
        }
    };
    {
        const Runner first{vm, host, block};
        const Runner second{vm, host, block};
        const Runner third{vm, host, block};
        first.await_progress(200);
        second.await_progress(200);
        third.await_progress(200);
    }
    EXPECT_EQ(counter, executed.load());
}

void add_one(std::byte* bytes, void* /*context*/)
{
    store_host(bytes, load_host<std::uint64_t>(bytes) + 1);
}

TEST(SoftVm, LockedAccessesAcrossPagesLoseNothing)
{
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    constexpr std::uint64_t blocks = 500;
    const auto worker = [&](std::atomic<std::uint64_t>& left) {
        return [&](Cpu& cpu) {
            if (left.load() != 0) {
                locked_slow(cpu, Ds, 0x1ffc, 8, add_one, nullptr);
                left.fetch_sub(1);
            } else {
                std::this_thread::yield();
            }
        };
    };
    std::atomic<std::uint64_t> one{blocks};
    std::atomic<std::uint64_t> two{blocks};
    {
        const Runner first{vm, host, worker(one)};
        const Runner second{vm, host, worker(two)};
        while (one.load() + two.load() != 0) {
            std::this_thread::yield();
        }
    }
    EXPECT_EQ(memory.get<std::uint64_t>(0x1ffc), 2 * blocks);
}

TEST(SoftVm, WritesAfterAMarkAreReported)
{
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    Cpu decoder{vm, host};
    const Runner writer{vm, host, [](Cpu& cpu) {
                            store(cpu, Ds, 0x5000, load<std::uint64_t>(cpu, Ds, 0x5000) + 1);
                        }};
    for (unsigned round = 0; round < 100; ++round) {
        vm.enter_guest(decoder);
        vm.mark_code_page(decoder, 5, false);
        vm.mark_code_bytes(0x5000, 8);
        const auto decoded = load_host<std::uint64_t>(memory.bytes.data() + 0x5000);
        while (load_host<std::uint64_t>(memory.bytes.data() + 0x5000) == decoded) {
            std::this_thread::yield();
        }
        // The bytes have changed under the mark.  Within a block of the writer we hear of it.
        writer.await_progress(2);
        ASSERT_NE(decoder.requests.load() & request::invalidate_code, 0U);
        vm.take_requests(decoder);
        vm.unmark_code_page(5);
        vm.leave_guest(decoder);
        writer.await_progress(2);
    }
}

TEST(SoftVm, WhoIsInTheGuestAloneIsKnown)
{
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    Cpu self{vm, host};
    Cpu other{vm, host};
    vm.enter_guest(self);
    EXPECT_FALSE(vm.has_others_in_guest(self)) << "a PAUSE of it waits for no vCPU";
    vm.enter_guest(other);
    EXPECT_TRUE(vm.has_others_in_guest(self));
    vm.leave_guest(other);
    EXPECT_FALSE(vm.has_others_in_guest(self));
    vm.leave_guest(self);
}

TEST(SoftVm, TwoThatWaitForOneAnotherGoOn)
{
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    const auto block = [&](Cpu& cpu) { vm.synchronise(request::flush_tlb, &cpu); };
    const Runner first{vm, host, block};
    const Runner second{vm, host, block};
    const Runner third{vm, host, [&](Cpu& cpu) {
                           vm.mark_code_page(cpu, 7);
                           vm.exclusive(cpu, [] {});
                           vm.unmark_code_page(7);
                       }};
    first.await_progress(200);
    second.await_progress(200);
    third.await_progress(100);
    for (unsigned round = 0; round < 50; ++round) {
        vm.memory_changed();
        vm.dirty_log_cleared();
        vm.memory_written(0, 0x10000);
    }
}

TEST(SoftVm, ThoseOutOfTheGuestAreNotWaitedFor)
{
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    Cpu out{vm, host};
    Cpu in{vm, host};
    vm.enter_guest(in);
    static_cast<void>(load<std::uint8_t>(out, Ds, 0));
    vm.synchronise(request::flush_tlb, &in);
    EXPECT_EQ(out.requests.load(), request::flush_tlb);
    vm.enter_guest(out);
    EXPECT_EQ(out.requests.load(), 0U);
    EXPECT_EQ(out.tlb->entries[0].read_tag, TlbEntry::invalid);
    vm.leave_guest(out);
    vm.leave_guest(in);
}

TEST(SoftVm, AnExitRequestStaysForTheRunLoop)
{
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    Cpu cpu{vm, host};
    cpu.requests.fetch_or(request::exit | request::flush_tlb);
    vm.enter_guest(cpu);
    EXPECT_EQ(cpu.requests.load(), request::exit);
    vm.take_requests(cpu);
    EXPECT_EQ(cpu.requests.load(), request::exit);
    vm.leave_guest(cpu);
}

TEST(SoftVm, VcpusComeAndGoWhileOthersRun)
{
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    const Runner lasting{vm, host, [&](Cpu& cpu) { vm.exclusive(cpu, [] {}); }};
    for (unsigned round = 0; round < 30; ++round) {
        const Runner passing{vm, host, [](Cpu& cpu) { store<std::uint8_t>(cpu, Ds, 0x2000, 1); }};
        passing.await_progress(2);
        vm.memory_changed();
    }
    lasting.await_progress(1);
}

TEST(SoftVm, CallbacksOfTheHostDoNotHoldOthersUp)
{
    // A device that waits, while its vCPU is in an MMIO access, for somebody who changes memory.
    FakeMemory memory{ram_pages};
    FakeHost host;
    SoftVm vm{memory};
    Cpu cpu{vm, host};
    vm.enter_guest(cpu);
    {
        const OutOfGuest out{vm, cpu};
        std::thread{[&] { vm.memory_changed(); }}.join();
    }
    EXPECT_TRUE(cpu.in_guest.load());
    EXPECT_EQ(cpu.requests.load(), request::invalidate_code) << "taken at the end of the block";
    vm.leave_guest(cpu);
}

}  // namespace
}  // namespace vmm::x86::soft::test
