// SPDX-License-Identifier: Apache-2.0

// Events by eventfd while all about them changes: each is delivered, or coalesced as KVM would, and
// none is lost.  VMM_EVENTS=1000000 gives it its full length.

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <memory>
#include <thread>

#include <sys/eventfd.h>

#include "effort.hpp"
#include "small_vm.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm {
namespace {

using test::SmallVm;
using x86::irqchip::ChipId;

constexpr std::uint32_t gsi = 40;
constexpr std::uint32_t pin = 16;
constexpr Gpa doorbell_gpa{0x20'0000};
constexpr Port doorbell_port{0x55};

// What host and guest say to each other.
constexpr Gpa rung{0x3000};       // How often the guest has rung each doorbell.
constexpr Gpa signalled{0x3010};  // The number of the last signal.
constexpr Gpa seen{0x3020};       // What the last interrupt found there.
constexpr Gpa taken{0x3028};      // How many interrupts the guest has taken.

/// Answers nothing in particular.
class Silent final : public bus::DeviceBase {
public:
    void read(std::uint64_t /*offset*/, std::span<std::byte> data) noexcept override
    {
        std::fill(data.begin(), data.end(), std::byte{});
    }
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept override {}
};

class EventStorm : public test::EveryEngine {
protected:
    void SetUp() override
    {
        EveryEngine::SetUp();
        if (!IsSkipped() && is_emulated_kvm()) {
            GTEST_SKIP() << "this /dev/kvm delivers no interrupt before a HLT";
        }
    }
};
INSTANTIATE_TEST_SUITE_P(Engines, EventStorm, test::irqchips, test::engine_name);

/// Rings a doorbell at a port and one in memory `rings` times, tells port 0x56, and waits.  Both
/// interrupts lead to code that notes which signal was the last.
void place_guest(SmallVm& small, std::uint32_t rings)
{
    for (const unsigned vector : {0x31U, 0x32U}) {
        small.place(vector * 4U, {0x00, 0x20, 0x00, 0x00});
    }
    small.place(0x2000, {
                            0x66, 0x50,                             // push %eax
                            0x66, 0xa1, 0x10, 0x30,                 // mov signalled, %eax
                            0x66, 0xa3, 0x20, 0x30,                 // mov %eax, seen
                            0x66, 0xff, 0x06, 0x28, 0x30,           // incl taken
                            0x66, 0x31, 0xc0,                       // xor %eax, %eax
                            0x64, 0x66, 0x67, 0xa3, 0xb0, 0, 0, 0,  // mov %eax, %fs:0xb0 (EOI)
                            0x66, 0x58,                             // pop %eax
                            0xcf,                                   // iret
                        });
    small.place(SmallVm::code_at, {
                                      0xfb,  // sti
                                      0xe6,
                                      0x55,  // 1: out %al, $0x55
                                      0x65,
                                      0xa2,
                                      0x00,
                                      0x00,  // mov %al, %gs:0
                                      0x66,
                                      0xff,
                                      0x06,
                                      0x00,
                                      0x30,  // incl rung
                                      0x66,
                                      0x81,
                                      0x3e,
                                      0x00,
                                      0x30,  // cmpl $rings, rung
                                      rings & 0xffU,
                                      rings >> 8U & 0xffU,
                                      rings >> 16U & 0xffU,
                                      rings >> 24U,  //
                                      0x72,
                                      0xe8,  // jb 1b
                                      0xe6,
                                      0x56,  // out %al, $0x56
                                      0xf4,  // 2: hlt
                                      0xeb,
                                      0xfd,  // jmp 2b
                                  });
}

Vcpu make_vcpu(SmallVm& small)
{
    Vcpu vcpu = small.vcpu();
    x86::Sregs sregs = vcpu.sregs();
    sregs.fs.base = 0xfee0'0000;
    sregs.fs.limit = 0xffff'ffff;
    sregs.gs.base = doorbell_gpa.value();
    vcpu.set_sregs(sregs).value();
    auto lapic = vcpu.lapic().value();
    constexpr std::size_t spurious = 0xf0;
    const std::uint32_t enabled = 0x1ff;
    std::memcpy(lapic.regs.data() + spurious, &enabled, sizeof enabled);
    vcpu.set_lapic(lapic).value();
    return vcpu;
}

/// Changes where the GSI leads, slots, devices and other events, as long as it lives.
class Changer {
public:
    explicit Changer(Vm& vm) : vm_{vm}, thread_{[this] { run(); }} {}
    Changer(const Changer&) = delete;
    Changer& operator=(const Changer&) = delete;
    Changer(Changer&&) = delete;
    Changer& operator=(Changer&&) = delete;
    ~Changer() { stop(); }

    /// How often it has changed all of them.
    std::uint64_t stop()
    {
        stop_.store(true);
        if (thread_.joinable()) {
            thread_.join();
        }
        return rounds_;
    }

private:
    void run()
    {
        const auto pages = std::unique_ptr<std::byte, decltype(&std::free)>{
            static_cast<std::byte*>(std::aligned_alloc(4096, 0x10000)), &std::free};
        const UniqueFd other{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
        const auto silent = std::make_shared<Silent>();
        const bus::IoEvent<Port> at_port{.address = Port{0x57}, .length = 1};
        const bus::IoEvent<Gpa> at_gpa{.address = Gpa{0x20'0010}, .length = 4};
        const PortRange ports = *PortRange::make(Port{0x60}, 4);
        const GpaRange range = *GpaRange::make(Gpa{0x30'0000}, 0x1000);
        memory::MemoryRegion slot{.slot = 5,
                                  .guest_phys_addr = Gpa{0x40'0000},
                                  .size_bytes = 0x10000,
                                  .host = pages.get()};
        while (!stop_.load()) {
            const bool odd = rounds_ % 2 != 0;
            route(odd);
            slot.flags = odd ? memory::MemoryFlags::log_dirty : 0U;
            slot.size_bytes = 0x10000;
            vm_.set_user_memory_region(slot).value();
            vm_.attach(ports, silent).value();
            vm_.attach(range, silent).value();
            vm_.add_ioeventfd(at_port, other.get()).value();
            vm_.add_ioeventfd(at_gpa, other.get()).value();
            vm_.assign_irqfd(other.get(), gsi + 1).value();
            route(!odd);
            vm_.deassign_irqfd(other.get(), gsi + 1).value();
            vm_.remove_ioeventfd(at_gpa, other.get()).value();
            vm_.remove_ioeventfd(at_port, other.get()).value();
            vm_.detach(range).value();
            vm_.detach(ports).value();
            slot.size_bytes = 0;
            vm_.set_user_memory_region(slot).value();
            ++rounds_;
        }
    }
    void route(bool by_message)
    {
        using x86::irqchip::GsiRoute;
        const GsiRoute here = by_message ? x86::irqchip::msi_route(gsi, Gpa{0xfee0'0000}, 0x32)
                                         : x86::irqchip::pin_route(gsi, ChipId::IoApic, pin);
        vm_.set_gsi_routing(std::array<GsiRoute, 1>{here}).value();
    }

    Vm& vm_;
    std::atomic<bool> stop_{};
    std::uint64_t rounds_{};
    std::thread thread_;
};

std::uint64_t take(const UniqueFd& event)
{
    eventfd_t count = 0;
    return ::eventfd_read(event.get(), &count) == 0 ? count : 0;
}

TEST_P(EventStorm, LosesNothing)
{
    const auto events = static_cast<std::uint32_t>(test::effort("VMM_EVENTS", 3'000));
    SmallVm small{options(), SmallVm::Irqchip::Full};
    place_guest(small, events);
    Vm& vm = small.vm();
    const UniqueFd interrupt{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    const UniqueFd by_port{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    const UniqueFd by_memory{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    vm.add_ioeventfd(bus::IoEvent<Port>{.address = doorbell_port, .length = 1}, by_port.get())
        .value();
    vm.add_ioeventfd(bus::IoEvent<Gpa>{.address = doorbell_gpa, .length = 1}, by_memory.get())
        .value();
    Vcpu vcpu = make_vcpu(small);
    auto io_apic = vm.io_apic().value();
    io_apic.redirection_table[pin] = 0x31;  // Fixed, edge-triggered, to APIC 0.
    vm.set_io_apic(io_apic).value();

    std::atomic<bool> done{};
    std::atomic<bool> has_rung{};
    std::thread guest{[&] {
        while (!done.load()) {
            const Exit exit = vcpu.run().value();
            if (exit.is<PortWrite>()) {
                EXPECT_EQ(exit.get_if<PortWrite>()->port, Port{0x56});
                has_rung.store(true);
            } else {
                EXPECT_TRUE(exit.is<Interrupted>()) << exit.name();
            }
        }
    }};
    Changer changer{vm};
    // The first route comes from there.
    vm.set_gsi_routing(std::array{x86::irqchip::pin_route(gsi, ChipId::IoApic, pin)}).value();
    vm.assign_irqfd(interrupt.get(), gsi).value();

    std::uint64_t rung_by_port = 0;
    std::uint64_t rung_by_memory = 0;
    const auto collect = [&] {
        rung_by_port += take(by_port);
        rung_by_memory += take(by_memory);
    };
    const auto begin = std::chrono::steady_clock::now();
    // Bounded in the process's own time, in which one that is stopped does not grow older.
    const auto waits_for = [&](const auto& condition) {
        constexpr std::clock_t longest = std::clock_t{120} * CLOCKS_PER_SEC;
        const std::clock_t first = std::clock();
        while (!condition()) {
            if (std::clock() - first > longest) {
                return false;
            }
            std::this_thread::yield();
        }
        return true;
    };
    const VmMemory memory = vm.memory();
    std::uint32_t sent = 0;
    std::uint64_t bursts = 0;
    bool lost = false;
    while (sent < events && !lost) {
        // A burst may become one interrupt, but its last signal must have one behind it.
        constexpr std::uint64_t longest = 64;
        const auto burst = static_cast<std::uint32_t>(
            std::min<std::uint64_t>(1U + bursts * 7U % longest, events - sent));
        for (std::uint32_t n = 0; n < burst; ++n) {
            EXPECT_TRUE(memory.write(signalled, ++sent));
            EXPECT_EQ(::eventfd_write(interrupt.get(), 1), 0);
        }
        ++bursts;
        lost = !waits_for([&] { return memory.read<std::uint32_t>(seen) == sent; });
        collect();
    }
    EXPECT_FALSE(lost) << "signal " << sent << " of the irqfd was lost; the guest saw "
                       << memory.read<std::uint32_t>(seen).value();
    EXPECT_TRUE(waits_for([&] { return has_rung.load(); }));
    const auto time = std::chrono::steady_clock::now() - begin;
    const std::uint64_t rounds = changer.stop();
    done.store(true);
    vcpu.kicker().kick();
    guest.join();
    collect();

    EXPECT_EQ(memory.read<std::uint32_t>(rung).value(), events);
    EXPECT_EQ(rung_by_port, events);
    EXPECT_EQ(rung_by_memory, events);
    const std::uint32_t interrupts = memory.read<std::uint32_t>(taken).value();
    EXPECT_GE(interrupts, bursts) << "each burst has one of its own";
    EXPECT_LE(interrupts, sent);
    EXPECT_GT(rounds, 0U);
    RecordProperty("interrupts", static_cast<int>(interrupts));
    RecordProperty("changes", static_cast<int>(rounds));
    RecordProperty(
        "milliseconds",
        static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(time).count()));
}

}  // namespace
}  // namespace vmm
