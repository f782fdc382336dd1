// SPDX-License-Identifier: Apache-2.0

// Dirty rings through the public API.

#include <array>
#include <atomic>
#include <functional>
#include <set>
#include <system_error>
#include <thread>
#include <vector>

#include "effort.hpp"
#include "small_vm.hpp"
#include "vmm/memory/dirty_ring.hpp"

namespace vmm {
namespace {

using memory::DirtyGfn;
using memory::DirtyRing;
using memory::DirtyRingReader;

class DirtyRings : public test::EveryEngine {
protected:
    void SetUp() override
    {
        EveryEngine::SetUp();
        if (IsSkipped()) {
            return;
        }
        if (Kvm::open({engine()}).value().check_extension(Capability::DirtyLogRing) == 0) {
            GTEST_SKIP() << "the engine has none";
        }
        if (is_emulated_kvm()) {
            GTEST_SKIP()
                << "this KVM emulates real mode, where guests go astray behind a full ring";
        }
    }
};

constexpr std::uint64_t logged_at = 0x10'0000;  // Above the memory of `SmallVm`.
constexpr std::size_t logged_size = 0x20'0000;

/// A VM with 2 MiB that log, above 1 MiB, and a program that writes to pages of it.
class LoggingVm {
public:
    explicit LoggingVm(Engine engine, std::uint32_t entries = DirtyRing::min_entries)
        : small{engine},
          ring(entries),
          logged{static_cast<std::byte*>(std::aligned_alloc(4096, logged_size)), &std::free}
    {
        std::fill_n(logged.get(), logged_size, std::byte{});
        small.vm().enable_dirty_rings(entries).value();
        small.vm()
            .set_user_memory_region({.slot = 7,
                                     .flags = memory::MemoryFlags::log_dirty,
                                     .guest_phys_addr = Gpa{logged_at},
                                     .size_bytes = logged_size,
                                     .host = logged.get()})
            .value();
    }

    /// A vCPU whose FS begins at the memory that logs.
    Vcpu vcpu()
    {
        Vcpu made = small.vcpu();
        made.set_dirty_ring(ring).value();
        x86::Sregs sregs = made.sregs();
        sregs.fs.base = logged_at;
        sregs.fs.limit = 0xffff'ffff;
        made.set_sregs(sregs).value();
        return made;
    }

    test::SmallVm small;
    std::vector<DirtyGfn> ring;
    std::unique_ptr<std::byte, decltype(&std::free)> logged;
};

TEST_P(DirtyRings, APageWrittenIsAnEntryUntilItWasResetAndThenAgain)
{
    LoggingVm vm{engine()};
    // movb $1, %fs:0x3000; movb $1, %fs:0x3001; hlt, twice
    const auto write = {0x64U, 0xc6U, 0x06U, 0U,    0x30U, 1U,   0x64U,
                        0xc6U, 0x06U, 1U,    0x30U, 1U,    0xf4U};
    vm.small.place(0x1000, write);
    vm.small.place(0x100d, write);
    vm.small.place(0x101a, write);
    Vcpu vcpu = vm.vcpu();
    DirtyRingReader reader{vm.ring};
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    const auto page = reader.take();
    ASSERT_TRUE(page);
    EXPECT_EQ(page->address_space, 0U);
    EXPECT_EQ(page->slot, 7U);
    EXPECT_EQ(page->page, 3U);
    EXPECT_FALSE(reader.take()) << "once";
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    EXPECT_FALSE(reader.take()) << "it is to be read after the reset, which comes yet";
    EXPECT_EQ(vm.small.vm().reset_dirty_rings().value(), 1U);
    EXPECT_EQ(vm.small.vm().reset_dirty_rings().value(), 0U);
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    ASSERT_TRUE(reader.take());
}

TEST_P(DirtyRings, AFullRingEndsEachRunUntilEntriesAreFree)
{
    LoggingVm vm{engine()};
    // mov $0x200000, %ecx; 1: sub $0x1000, %ecx; movb $1, %fs:(%ecx); jnz is of the sub: test
    // first.
    vm.small.place(0x1000, {0x66, 0xb9, 0x00, 0x00, 0x20, 0x00,        // mov $0x200000, %ecx
                            0x66, 0x81, 0xe9, 0x00, 0x10, 0x00, 0x00,  // 1: sub $0x1000, %ecx
                            0x64, 0x67, 0xc6, 0x01, 0x01,              // movb $1, %fs:(%ecx)
                            0x75, 0xf2,                                // jnz 1b
                            0xf4});                                    // hlt
    Vcpu vcpu = vm.vcpu();
    DirtyRingReader reader{vm.ring};
    std::set<std::uint64_t> pages;
    unsigned full = 0;
    for (;;) {
        const Exit exit = vcpu.run().value();
        if (exit.is<DirtyRingFull>() && full == 0) {
            ASSERT_TRUE(vcpu.run().value().is<DirtyRingFull>()) << "nothing was collected";
        }
        while (const auto page = reader.take()) {
            EXPECT_EQ(page->slot, 7U);
            pages.insert(page->page);
        }
        if (!exit.is<DirtyRingFull>()) {
            ASSERT_TRUE(exit.is<Halt>()) << exit.name();
            break;
        }
        ++full;
        EXPECT_GE(vm.small.vm().reset_dirty_rings().value(),
                  DirtyRing::min_entries - DirtyRing::reserved);
    }
    EXPECT_EQ(pages.size(), logged_size / 4096);
    EXPECT_GE(full, 2U);
}

TEST_P(DirtyRings, WhatTheVmmWritesIsInTheFirstRingAndNotLostWhereThereIsNone)
{
    LoggingVm vm{engine()};
    ASSERT_TRUE(vm.small.vm().memory().write(Gpa{logged_at + 0x5000}, std::uint8_t{1}));
    Vcpu vcpu = vm.vcpu();
    DirtyRingReader reader{vm.ring};
    ASSERT_TRUE(vm.small.vm().memory().write(Gpa{logged_at + 0x6000}, std::uint8_t{1}));
    EXPECT_EQ(reader.take()->page, 6U);
    EXPECT_EQ(vm.small.vm().reset_dirty_rings().value(), 1U);
    EXPECT_EQ(reader.take()->page, 5U);
}

TEST_P(DirtyRings, MorePagesThanOneRingHoldsAreNotLost)
{
    LoggingVm vm{engine()};
    Vcpu vcpu = vm.vcpu();
    for (std::uint64_t page = 0; page < 400; ++page) {
        ASSERT_TRUE(vm.small.vm().memory().write(Gpa{logged_at + page * 4096}, std::uint8_t{1}));
    }
    DirtyRingReader reader{vm.ring};
    std::set<std::uint64_t> pages;
    do {
        while (const auto page = reader.take()) {
            pages.insert(page->page);
        }
    } while (vm.small.vm().reset_dirty_rings().value() != 0);
    EXPECT_EQ(pages.size(), 400U);
}

/// As a migration does it: what was told is copied once it was reset, while two vCPUs write on.
TEST_P(DirtyRings, ACopyOfWhatIsToldIsTheMemoryInTheEnd)
{
    LoggingVm vm{engine()};
    const unsigned rounds = static_cast<unsigned>(test::effort("VMM_DIRTY_ROUNDS", 20));
    vm.small.place(0x1000,
                   {0x66, 0xba, rounds & 0xffU, rounds >> 8U, 0,    0,     // mov $rounds, %edx
                    0x66, 0xb9, 0x00,           0x00,         0x20, 0x00,  // 2: mov $0x200000, %ecx
                    0x66, 0x81, 0xe9,           0x00,         0x10, 0x00,
                    0x00,                                            // 1: sub $0x1000, %ecx
                    0x64, 0x67, 0x66,           0xff,         0x01,  // incl %fs:(%ecx)
                    0x66, 0x85, 0xc9,                                // test %ecx, %ecx
                    0x75, 0xef,                                      // jnz 1b
                    0x66, 0x4a,                                      // dec %edx
                    0x75, 0xe5,                                      // jnz 2b
                    0xf4});                                          // hlt
    std::array<std::vector<DirtyGfn>, 2> rings{std::vector<DirtyGfn>(DirtyRing::min_entries),
                                               std::vector<DirtyGfn>(DirtyRing::min_entries)};
    std::vector<Vcpu> vcpus;
    for (std::uint32_t id = 0; id < rings.size(); ++id) {
        vcpus.push_back(vm.small.vcpu(id));
        vcpus.back().set_dirty_ring(rings.at(id)).value();
        x86::Sregs sregs = vcpus.back().sregs();
        sregs.fs.base = logged_at + 4U * id;  // A word of its own in each page.
        sregs.fs.limit = 0xffff'ffff;
        vcpus.back().set_sregs(sregs).value();
    }
    std::atomic<unsigned> halted{0};
    const auto run = [&](Vcpu& vcpu) {
        for (;;) {
            const Exit exit = vcpu.run().value();
            if (exit.is<DirtyRingFull>()) {
                std::this_thread::yield();
                continue;
            }
            EXPECT_TRUE(exit.is<Halt>()) << exit.name();
            ++halted;
            return;
        }
    };
    std::thread first{run, std::ref(vcpus[0])};
    std::thread second{run, std::ref(vcpus[1])};

    std::vector<std::byte> copy(logged_size);
    std::array<DirtyRingReader, 2> readers{DirtyRingReader{rings[0]}, DirtyRingReader{rings[1]}};
    for (unsigned quiet = 0; quiet < 2;) {
        const bool is_over = halted == rings.size();
        std::set<std::uint64_t> pages;
        for (DirtyRingReader& reader : readers) {
            while (const auto page = reader.take()) {
                pages.insert(page->page);
            }
        }
        const bool was_reset = vm.small.vm().reset_dirty_rings().value() != 0;
        quiet = is_over && pages.empty() && !was_reset ? quiet + 1 : 0;
        for (const std::uint64_t page : pages) {
            ASSERT_TRUE(vm.small.vm().memory().read(Gpa{logged_at + page * 4096},
                                                    std::span{copy}.subspan(page * 4096, 4096)));
        }
    }
    first.join();
    second.join();
    std::vector<std::byte> memory(logged_size);
    ASSERT_TRUE(vm.small.vm().memory().read(Gpa{logged_at}, std::span{memory}));
    EXPECT_TRUE(copy == memory);
    EXPECT_EQ(std::to_integer<unsigned>(memory[0]), rounds & 0xffU);
    EXPECT_EQ(std::to_integer<unsigned>(memory[logged_size - 4092]), rounds & 0xffU);
}

TEST_P(DirtyRings, EntriesThatTheCallerForgesHarmNobody)
{
    LoggingVm vm{engine()};
    vm.small.place(0x1000, {0x64, 0xc6, 0x06, 0, 0x30, 1, 0xf4});
    Vcpu vcpu = vm.vcpu();
    ASSERT_TRUE(vcpu.run().value().is<Halt>());
    for (DirtyGfn& entry : vm.ring) {
        entry = {DirtyGfn::reset, 0xffff'ffff, ~std::uint64_t{0}};
    }
    EXPECT_EQ(vm.small.vm().reset_dirty_rings().value(), 1U);
}

TEST_P(DirtyRings, ErrorsAreKvms)
{
    test::SmallVm small{engine()};
    const auto code = [](const auto& result) { return result.error().code(); };
    Vm& vm = small.vm();
    EXPECT_EQ(code(vm.reset_dirty_rings()), std::errc::invalid_argument);
    EXPECT_EQ(code(vm.enable_dirty_rings(0)), std::errc::invalid_argument);
    EXPECT_EQ(code(vm.enable_dirty_rings(128)), std::errc::invalid_argument);
    EXPECT_EQ(code(vm.enable_dirty_rings(300)), std::errc::invalid_argument);
    EXPECT_EQ(code(vm.enable_dirty_rings(131'072)), std::errc::argument_list_too_long);
    ASSERT_TRUE(vm.enable_dirty_rings(65'536));
    EXPECT_EQ(code(vm.enable_dirty_rings(65'536)), std::errc::invalid_argument) << "twice";
    EXPECT_EQ(code(vm.dirty_log(0)), std::errc::no_such_device_or_address);
    EXPECT_EQ(code(vm.clear_dirty_log(0, 0, 64, std::vector<std::uint64_t>(1))),
              std::errc::no_such_device_or_address);
    Vcpu vcpu = small.vcpu();
    std::vector<DirtyGfn> entries(65'536);
    EXPECT_EQ(code(vcpu.set_dirty_ring(std::span{entries}.first(256))),
              std::errc::invalid_argument);
    ASSERT_TRUE(vcpu.set_dirty_ring(entries));
    EXPECT_EQ(code(vcpu.set_dirty_ring(entries)), std::errc::file_exists);
}

TEST_P(DirtyRings, ComeBeforeTheFirstVcpuAndTheFirstSlotThatLogs)
{
    const auto code = [](const auto& result) { return result.error().code(); };
    test::SmallVm with_vcpu{engine()};
    Vcpu vcpu = with_vcpu.vcpu();
    EXPECT_EQ(code(with_vcpu.vm().enable_dirty_rings(4096)), std::errc::invalid_argument);
    test::SmallVm with_log{engine()};
    with_log.vm()
        .set_user_memory_region({.flags = memory::MemoryFlags::log_dirty,
                                 .guest_phys_addr = Gpa{0},
                                 .size_bytes = test::SmallVm::memory_size,
                                 .host = with_log.memory()})
        .value();
    EXPECT_EQ(code(with_log.vm().enable_dirty_rings(4096)), std::errc::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Engines, DirtyRings, test::engines, test::engine_name);

}  // namespace
}  // namespace vmm
