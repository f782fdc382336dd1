// SPDX-License-Identifier: Apache-2.0

// Random accesses, which must not crash, and many threads, which must lose no interrupt.

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "irqchip/fixture.hpp"
#include "x86/irqchip/pit.hpp"

namespace vmm::test {
namespace {

class RandomAccess : public IrqchipFixture, public ::testing::WithParamInterface<unsigned> {};

TEST_P(RandomAccess, NothingThatAGuestDoesCrashesOrHangs)
{
    std::mt19937_64 random{GetParam()};
    const auto pit = chip.create_pit();
    const auto pic = chip.pic_device();
    chip.add_ack_notifier(20, [this] { chip.set_line(20, 3, false); });
    for (std::size_t i = 0; i < 200'000; ++i) {
        const std::uint64_t r = random();
        const std::uint64_t value = random() >> (random() % 64U);
        const auto id = static_cast<std::uint32_t>(r & 3U);
        std::array<std::byte, 8> data{};
        std::memcpy(data.data(), &value, sizeof value);
        static constexpr std::array<std::size_t, 8> sizes{1, 2, 4, 4, 4, 4, 8, 3};
        const std::span bytes{data.data(), sizes.at((r >> 2U) & 7U)};
        const std::uint64_t offset = (r >> 8U) & 0xfffU;
        const std::uint64_t aligned = ((r & (1U << 6U)) != 0U) ? offset & 0x3f0U : offset;
        const auto msr = static_cast<std::uint32_t>(0x800U + (offset & 0x4fU));
        std::uint64_t out_value = 0;
        switch ((r >> 24U) % 20U) {
        case 0:
        case 1:
        case 2:
        case 3:
            static_cast<void>(chip.mmio_write(id, Gpa{LocalApic::default_base + aligned}, bytes));
            break;
        case 4:
            static_cast<void>(chip.mmio_read(id, Gpa{LocalApic::default_base + aligned}, bytes));
            break;
        case 5:
        case 6:
            static_cast<void>(
                chip.mmio_write(id, Gpa{IoApic::default_base + (offset & 0x1fU)}, bytes));
            break;
        case 7:
            static_cast<void>(
                chip.mmio_read(id, Gpa{IoApic::default_base + (offset & 0xffU)}, bytes));
            break;
        case 8: static_cast<void>(apic.at(id)->write_msr(msr, value)); break;
        case 9: static_cast<void>(apic.at(id)->read_msr(msr, out_value)); break;
        case 10: static_cast<void>(apic.at(id)->write_msr(0x6e0, value)); break;
        case 11: {
            static constexpr std::array<std::uint64_t, 4> bases{0xfee0'0000, 0xfee0'0800,
                                                                0xfee0'0c00, 0xfee0'0800};
            const bool wild = (r & 0x80U) != 0U;
            static_cast<void>(apic.at(id)->set_apic_base(wild ? value : bases.at(value & 3U)));
            break;
        }
        case 12:
            pic->write(std::array<std::uint64_t, 6>{0, 1, 0x80, 0x81, 0x4b0, 0x4b1}.at(offset % 6U),
                       bytes.first(1));
            break;
        case 13: pic->read(offset, bytes); break;
        case 14: pit->write(offset & 0x3fU, bytes); break;
        case 15: pit->read(offset & 0x3fU, bytes); break;
        case 16:
            chip.set_line(static_cast<std::uint32_t>(offset & 0x1fU), id, (value & 1U) != 0U);
            break;
        case 17:
            chip.signal_msi(Gpa{0xfee0'0000 | (value & 0xf'ffff)},
                            static_cast<std::uint32_t>(r >> 32U));
            break;
        case 18: timers.advance(value % 1'000'000U); break;
        default:
            if (apic.at(id)->has_interrupt()) {
                static_cast<void>(apic.at(id)->acknowledge());
            }
            break;
        }
        if (i % 997 == 0) {
            LapicState state;
            for (std::uint8_t& byte : state.regs) {
                byte = static_cast<std::uint8_t>(random());
            }
            static_cast<void>(apic.at(id)->set_state(state));
            static_cast<void>(apic.at(id)->state());
            IoApicState io_state;
            io_state.irr = static_cast<std::uint32_t>(random());
            io_state.ioregsel = static_cast<std::uint32_t>(random());
            for (std::uint64_t& entry : io_state.redirection_table) {
                entry = random();
            }
            chip.set_io_apic_state(io_state);
            std::array<std::uint8_t, sizeof(PicState)> raw{};
            raw.fill(static_cast<std::uint8_t>(random()));
            const auto pic_state = std::bit_cast<PicState>(raw);
            chip.set_pic_state((random() & 1U) != 0U ? ChipId::PicMaster : ChipId::PicSlave,
                               pic_state);
            PitState pit_state;
            pit_state.channels.at(i % 3).count = static_cast<std::uint32_t>(random());
            pit_state.channels.at(i % 3).mode = static_cast<std::uint8_t>(random() % 8U);
            pit->set_state(pit_state);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomAccess, ::testing::Range(1U, 5U));

/// A vCPU that waits for kicks, as the core's does.
class WaitingVcpu final : public VcpuSink {
public:
    void kick() noexcept override
    {
        kicks.fetch_add(1, std::memory_order_release);
        kicks.notify_all();
    }
    void deliver_nmi() noexcept override { kick(); }
    void deliver_init() noexcept override {}
    void deliver_sipi(std::uint8_t) noexcept override {}
    void deliver_smi() noexcept override {}

    std::atomic<unsigned> kicks{};
};

/// Each sender hands its interrupt over and waits until it was taken, so each must arrive.  A lost
/// kick would make the vCPU sleep for ever, and the test's time-out fail it.
TEST(IrqchipThreads, NoInterruptIsLost)
{
    constexpr unsigned vcpus = 4;
    constexpr unsigned senders = 3;
    constexpr unsigned rounds = 4'000;
    constexpr std::uint8_t first_vector = 0x40;  // A class for each sender.
    constexpr std::uint8_t level_vector = 0x90;
    constexpr std::uint8_t ipi_vector = 0xa0;

    FakeTimers timers;
    Irqchip chip{timers};
    std::array<WaitingVcpu, vcpus> sink;
    std::array<std::shared_ptr<LocalApic>, vcpus> apic;
    const auto write = [&](std::uint32_t id, LapicRegister r, std::uint32_t value) {
        static_cast<void>(chip.mmio_write(
            id, Gpa{LocalApic::default_base + static_cast<std::uint64_t>(r)}, bytes_of(value)));
    };
    for (unsigned id = 0; id < vcpus; ++id) {
        apic.at(id) = chip.create_lapic(id, sink.at(id), {});
        write(id, LapicRegister::Svr, 0x1ff);
        write(id, LapicRegister::LvtLint0, 0x1'0000);
    }
    for (std::uint32_t id = 0; id < vcpus; ++id) {
        // Pin 16 + id: level-triggered, to that vCPU.
        std::uint32_t index = 0x10 + 2 * (16 + id) + 1;
        std::uint32_t value = id << 24U;
        for (int half = 0; half < 2; ++half) {
            static_cast<void>(chip.mmio_write(0, Gpa{IoApic::default_base}, bytes_of(index)));
            static_cast<void>(
                chip.mmio_write(0, Gpa{IoApic::default_base + 0x10}, bytes_of(value)));
            --index;
            value = 0x8000U | level_vector;
        }
    }

    std::array<std::array<std::atomic<unsigned>, 256>, vcpus> taken{};
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (unsigned id = 0; id < vcpus; ++id) {
        threads.emplace_back([&, id] {
            while (!stop.load()) {
                const unsigned seen = sink.at(id).kicks.load(std::memory_order_acquire);
                if (!apic.at(id)->has_interrupt()) {
                    if (!stop.load()) {
                        sink.at(id).kicks.wait(seen);
                    }
                    continue;
                }
                const auto vector = apic.at(id)->acknowledge();
                if (!vector) {
                    continue;
                }
                if (*vector == level_vector) {
                    chip.set_line(16 + id, 1, false);
                }
                write(id, LapicRegister::Eoi, 0);
                if (*vector != ipi_vector) {
                    // Tell the next vCPU, which need not take each: they merge.
                    write(id, LapicRegister::IcrHigh, ((id + 1) % vcpus) << 24U);
                    write(id, LapicRegister::IcrLow, ipi_vector);
                }
                taken.at(id).at(*vector).fetch_add(1);
                taken.at(id).at(*vector).notify_all();
            }
        });
    }
    std::vector<std::thread> sending;
    for (unsigned s = 0; s < senders; ++s) {
        sending.emplace_back([&, s] {
            const auto vector = static_cast<std::uint8_t>(first_vector + 0x10U * s);
            for (unsigned i = 0; i < rounds; ++i) {
                const unsigned id = (s + i) % vcpus;
                std::atomic<unsigned>& count = taken.at(id).at(vector);
                const unsigned before = count.load();
                EXPECT_EQ(chip.signal_msi(Gpa{0xfee0'0000U | (id << 12U)}, vector), 1);
                count.wait(before);
            }
        });
    }
    sending.emplace_back([&] {
        for (unsigned i = 0; i < rounds; ++i) {
            const unsigned id = i % vcpus;
            std::atomic<unsigned>& count = taken.at(id).at(level_vector);
            const unsigned before = count.load();
            chip.set_line(16 + id, 1, true);
            count.wait(before);
        }
    });
    sending.emplace_back([&] {
        // Meanwhile vCPUs come and go, and the table changes.
        for (unsigned i = 0; i < 500; ++i) {
            WaitingVcpu guest;
            const auto lapic = chip.create_lapic(8 + i % 2, guest, {});
            static_cast<void>(chip.set_routing(default_routing()));
            chip.signal_msi(Gpa{0xfee0'8000}, 0x400);
            chip.remove_lapic(8 + i % 2);
        }
    });
    for (std::thread& thread : sending) {
        thread.join();
    }
    stop.store(true);
    for (WaitingVcpu& vcpu : sink) {
        vcpu.kick();
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    unsigned total = 0;
    for (unsigned id = 0; id < vcpus; ++id) {
        for (unsigned s = 0; s < senders; ++s) {
            total += taken.at(id).at(first_vector + 0x10U * s).load();
        }
    }
    EXPECT_EQ(total, senders * rounds);
}

/// Legacy interrupts: a device on IRQ 3 that waits for each to be taken, and the PIT on IRQ 0 with
/// reinjection, both through the PIC.
TEST(IrqchipThreads, NoPicInterruptIsLost)
{
    constexpr unsigned rounds = 2'000;
    constexpr std::uint8_t base = 0x20;

    FakeTimers timers;
    Irqchip chip{timers};
    WaitingVcpu sink;
    const auto apic = chip.create_lapic(0, sink, {});
    const auto out = [&](std::uint16_t port, unsigned value) {
        auto byte = static_cast<std::uint8_t>(value);
        static_cast<void>(chip.port_write(Port{port}, bytes_of(byte)));
    };
    for (const unsigned icw : {0x20U, 0x04U, 0x01U}) {
        if (icw == 0x20U) {
            out(0x20, 0x11);
        }
        out(0x21, icw);
    }
    const auto pit = chip.create_pit();
    for (const auto& [offset, value] : {std::pair{3U, 0x34U}, {0U, 0xa9U}, {0U, 0x04U}}) {
        const std::byte byte{static_cast<std::uint8_t>(value)};
        pit->write(offset, {&byte, 1});
    }

    std::array<std::atomic<unsigned>, 8> taken{};
    std::atomic<bool> stop{false};
    std::thread vcpu{[&] {
        while (!stop.load()) {
            const unsigned seen = sink.kicks.load(std::memory_order_acquire);
            if (!apic->has_interrupt()) {
                if (!stop.load()) {
                    sink.kicks.wait(seen);
                }
                continue;
            }
            const auto vector = apic->acknowledge();
            if (!vector || *vector < base || *vector >= base + 8) {
                continue;
            }
            out(0x20, 0x60U | (*vector - base));
            taken.at(*vector - base).fetch_add(1);
            taken.at(*vector - base).notify_all();
        }
    }};
    std::thread device{[&] {
        for (unsigned i = 0; i < rounds; ++i) {
            const unsigned before = taken[3].load();
            chip.set_line(3, 1, true);
            chip.set_line(3, 1, false);
            taken[3].wait(before);
        }
    }};
    for (unsigned i = 1; i <= rounds; ++i) {
        timers.advance(1'000'000);  // A little more than a tick.
        unsigned count = taken[0].load();
        while (count < i) {
            taken[0].wait(count);
            count = taken[0].load();
            timers.advance(0);  // Ticks that wait for their turn.
        }
    }
    device.join();
    stop.store(true);
    sink.kick();
    vcpu.join();
    EXPECT_EQ(taken[3].load(), rounds);
    EXPECT_GE(taken[0].load(), rounds);
}

}  // namespace
}  // namespace vmm::test
