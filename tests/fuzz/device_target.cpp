// SPDX-License-Identifier: Apache-2.0

// The registers of every device of the library, by the accesses that a guest can make, with time
// that passes as the input says.

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "device/fakes.hpp"
#include "fuzz/target.hpp"
#include "vmm/device/acpi_pm.hpp"
#include "vmm/device/cmos.hpp"
#include "vmm/device/debug_console.hpp"
#include "vmm/device/debug_exit.hpp"
#include "vmm/device/empty_pci.hpp"
#include "vmm/device/i8042.hpp"
#include "vmm/device/post_port.hpp"
#include "vmm/device/serial.hpp"
#include "vmm/device/system_control.hpp"

namespace vmm::fuzz {
namespace {

using device::test::FakeTimers;

/// A device with all that surrounds it; two of the same input must do the same.
struct Bench {
    FakeTimers timers;
    std::uint64_t effects{};  ///< What left the device, as a running hash.
    std::function<void(std::span<const std::byte>)> receive{[](auto) {}};
    std::unique_ptr<bus::DeviceBase> device;

    void note(std::uint64_t value) { effects = (effects ^ value) * 0x100'0000'01b3U; }
    std::function<void(bool)> noting()
    {
        return [this](bool level) { note(level ? 2 : 1); };
    }
    std::function<void(std::span<const std::byte>)> sink()
    {
        return [this](std::span<const std::byte> bytes) {
            for (const std::byte byte : bytes) {
                note(std::to_integer<std::uint64_t>(byte));
            }
        };
    }
};

void make_serial(Bench& bench)
{
    device::Serial::Config config;
    config.timers = &bench.timers;
    config.irq = bench.noting();
    config.output = bench.sink();
    auto serial = std::make_unique<device::Serial>(std::move(config));
    bench.receive = [&serial = *serial](std::span<const std::byte> bytes) {
        FUZZ_CHECK(serial.receive(bytes) <= bytes.size());
    };
    bench.device = std::move(serial);
}

void make_cmos(Bench& bench)
{
    device::Cmos::Config config;
    config.irq = bench.noting();
    config.wall_clock_ns = [&bench] {
        return static_cast<std::int64_t>(bench.timers.now_ns()) + 1'700'000'000'000'000'000;
    };
    config.ram_below_4g = 0xc000'0000;
    bench.device = std::make_unique<device::Cmos>(bench.timers, std::move(config));
}

void make_i8042(Bench& bench)
{
    device::I8042::Config config;
    config.keyboard_irq = bench.noting();
    config.auxiliary_irq = bench.noting();
    config.on_reset = [&bench] { bench.note(3); };
    config.on_a20 = bench.noting();
    bench.device = std::make_unique<device::I8042>(std::move(config));
}

void make_acpi_pm(Bench& bench)
{
    device::AcpiPm::Config config;
    config.sci = bench.noting();
    config.on_power_off = [&bench] { bench.note(4); };
    auto pm = std::make_unique<device::AcpiPm>(bench.timers, std::move(config));
    bench.receive = [&pm = *pm](std::span<const std::byte> bytes) {
        pm.press_power_button();
        for (const std::byte byte : bytes) {
            pm.raise_gpe(std::to_integer<std::uint32_t>(byte));
        }
    };
    bench.device = std::move(pm);
}

constexpr std::array<void (*)(Bench&), 9> makers{
    make_serial,
    make_cmos,
    make_i8042,
    make_acpi_pm,
    [](Bench& bench) {
        bench.device =
            std::make_unique<device::DebugExit>([&bench](auto code) { bench.note(code); });
    },
    [](Bench& bench) { bench.device = std::make_unique<device::DebugConsole>(bench.sink()); },
    [](Bench& bench) { bench.device = std::make_unique<device::PostPort>(); },
    [](Bench& bench) {
        device::SystemControl::Config config;
        config.on_reset = [&bench] { bench.note(5); };
        config.on_a20 = bench.noting();
        bench.device = std::make_unique<device::SystemControl>(std::move(config));
    },
    [](Bench& bench) {
        bench.device = std::make_unique<device::EmptyPci>([&bench] { bench.note(6); });
    },
};

void one_access(Input& input, Bench& bench)
{
    const std::uint8_t what = input.u8();
    const std::size_t size = std::size_t{1} << ((what >> 2U) & 3U);
    std::array<std::byte, 8> data{};
    switch (what & 3U) {
    case 0: {
        const std::uint64_t offset = input.flag() ? input.number() : input.u8();
        device::test::out(*bench.device, offset, size == 1 ? input.u8() : input.u64(),
                          static_cast<unsigned>(size));
        break;
    }
    case 1: {
        bench.device->read(input.u8(), std::span{data}.first(size));
        for (const std::byte byte : data) {
            bench.note(std::to_integer<std::uint64_t>(byte));
        }
        break;
    }
    case 2:
        // A second at most: each expiry of a timer on the way is a call.
        bench.timers.advance(std::min<std::uint64_t>(input.number(), 1'000'000'000));
        break;
    default: {
        const auto bytes = input.bytes(input.below(32));
        bench.receive(std::as_bytes(bytes));
        break;
    }
    }
}

std::uint64_t run(Input input)
{
    Bench bench;
    input.pick(makers)(bench);
    for (unsigned steps = 0; steps < 500 && !input.is_empty(); ++steps) {
        const unsigned expiries = bench.timers.expiries;
        const std::uint64_t before = bench.timers.now_ns();
        one_access(input, bench);
        // No guest may have the host's timers expire more often than a host can bear.
        const std::uint64_t passed = bench.timers.now_ns() - before;
        FUZZ_CHECK(bench.timers.expiries - expiries <= 16 + passed / 20'000);
    }
    return bench.effects;
}

}  // namespace

void device(Input& input)
{
    // The same accesses, the same answers and interrupts.
    FUZZ_CHECK(run(input) == run(input));
}

Seeds device_seeds()
{
    Seeds seeds;
    const auto out8 = [](Seed& seed, unsigned offset, unsigned value) {
        seed.u8(0).u8(0).u8(offset).u8(value);
    };
    const auto in8 = [](Seed& seed, unsigned offset) { seed.u8(1).u8(offset); };
    const auto wait = [](Seed& seed, std::uint64_t ns) { seed.u8(2).number(ns); };
    {
        Seed seed;  // Serial: FIFO and interrupts on, a byte each way.
        seed.u8(0);
        out8(seed, 2, 0xc7);
        out8(seed, 3, 0x83);
        out8(seed, 0, 1);
        out8(seed, 3, 3);
        out8(seed, 4, 0xb);
        out8(seed, 1, 0xf);
        out8(seed, 0, 'x');
        seed.u8(3).u8(4).bytes({'a', 'b', 'c', 'd'});
        wait(seed, 1'000'000);
        for (unsigned offset = 0; offset < 8; ++offset) {
            in8(seed, offset);
        }
        seeds.push_back(seed.data());
    }
    {
        Seed seed;  // CMOS: every periodic rate, an alarm, a date.
        seed.u8(1);
        for (unsigned rate = 0; rate < 16; ++rate) {
            out8(seed, 0, 0xa);
            out8(seed, 1, 0x20 | rate);
            out8(seed, 0, 0xb);
            out8(seed, 1, 0x72);
            wait(seed, 1'000'000'000);
            out8(seed, 0, 0xc);
            in8(seed, 1);
        }
        for (unsigned index = 0; index < 10; ++index) {
            out8(seed, 0, index);
            out8(seed, 1, 0x12 + index);
            in8(seed, 1);
        }
        seeds.push_back(seed.data());
    }
    for (unsigned kind = 2; kind < makers.size(); ++kind) {
        Seed seed;
        seed.u8(kind);
        for (unsigned offset = 0; offset < 16; ++offset) {
            for (const unsigned value : {0xd1U, 0xffU, 0x20U, 0x60U, 0xaaU, 0x34U}) {
                out8(seed, offset, value);
                in8(seed, offset);
            }
        }
        wait(seed, 3'000'000'000);
        seeds.push_back(seed.data());
    }
    return seeds;
}

}  // namespace vmm::fuzz
