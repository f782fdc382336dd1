// SPDX-License-Identifier: Apache-2.0

// Whatever a guest does to a port, from several processors at once: no crash, no hang.  The
// sanitizer builds are what makes this a test.

#include <array>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "device/fakes.hpp"
#include "vmm/device/acpi_pm.hpp"
#include "vmm/device/cmos.hpp"
#include "vmm/device/debug_console.hpp"
#include "vmm/device/debug_exit.hpp"
#include "vmm/device/empty_pci.hpp"
#include "vmm/device/i8042.hpp"
#include "vmm/device/post_port.hpp"
#include "vmm/device/serial.hpp"
#include "vmm/device/system_control.hpp"
#include "vmm/event_loop.hpp"

namespace vmm::device {
namespace {

struct Kind {
    const char* name;
    std::function<std::unique_ptr<bus::DeviceBase>(TimerService&)> make;
};

[[nodiscard]] IrqLine ignored_line()
{
    return [](bool) {};
}

[[nodiscard]] std::vector<Kind> all_kinds()
{
    return {
        {"Serial",
         [](TimerService& timers) {
             Serial::Config config;
             config.timers = &timers;
             config.irq = ignored_line();
             config.output = [](std::span<const std::byte>) {};
             return std::make_unique<Serial>(std::move(config));
         }},
        {"Cmos",
         [](TimerService& timers) {
             Cmos::Config config;
             config.irq = ignored_line();
             return std::make_unique<Cmos>(timers, std::move(config));
         }},
        {"I8042",
         [](TimerService&) {
             I8042::Config config;
             config.keyboard_irq = ignored_line();
             return std::make_unique<I8042>(std::move(config));
         }},
        {"AcpiPm",
         [](TimerService& timers) {
             AcpiPm::Config config;
             config.sci = ignored_line();
             return std::make_unique<AcpiPm>(timers, std::move(config));
         }},
        {"DebugExit", [](TimerService&) { return std::make_unique<DebugExit>(nullptr); }},
        {"DebugConsole", [](TimerService&) { return std::make_unique<DebugConsole>(nullptr); }},
        {"PostPort", [](TimerService&) { return std::make_unique<PostPort>(); }},
        {"SystemControl",
         [](TimerService&) { return std::make_unique<SystemControl>(SystemControl::Config{}); }},
        {"EmptyPci", [](TimerService&) { return std::make_unique<EmptyPci>(nullptr); }},
    };
}

void access_at_random(bus::DeviceBase& device, std::uint32_t seed, unsigned count)
{
    std::mt19937 random{seed};
    std::array<std::byte, 8> data{};
    for (unsigned i = 0; i < count; ++i) {
        const std::uint64_t choice = random();
        // Mostly where registers are; sometimes anywhere, the top of the address space included.
        std::uint64_t offset = choice % 8;
        if (choice % 4 == 1) {
            offset = random() % 0x50;
        } else if (choice % 64 == 2) {
            offset = ~std::uint64_t{0} - random() % 4;
        }
        const std::size_t size = std::size_t{1} << (random() % 4);
        if (random() % 2 == 0) {
            device.read(offset, std::span{data}.first(size));
        } else {
            for (std::byte& byte : data) {
                byte = std::byte{static_cast<std::uint8_t>(random())};
            }
            device.write(offset, std::span<const std::byte>{data}.first(size));
        }
    }
    device.read(0, {});
    device.write(0, {});
}

class EveryDevice : public ::testing::TestWithParam<Kind> {};

TEST_P(EveryDevice, TakesRandomAccesses)
{
    for (std::uint32_t seed = 1; seed <= 5; ++seed) {
        test::FakeTimers timers;
        const auto device = GetParam().make(timers);
        for (std::uint32_t round = 0; round < 20; ++round) {
            access_at_random(*device, seed * 100 + round, 1000);
            timers.advance(1'234'567 * round);
        }
    }
}

TEST_P(EveryDevice, TakesRandomAccessesFromManyThreadsWithRealTimers)
{
    const auto loop = EventLoop::create().value();
    const auto device = GetParam().make(*loop);
    {
        std::vector<std::jthread> threads;
        for (std::uint32_t seed = 1; seed <= 3; ++seed) {
            threads.emplace_back([&device, seed] { access_at_random(*device, seed, 3000); });
        }
    }
}

INSTANTIATE_TEST_SUITE_P(All,
                         EveryDevice,
                         ::testing::ValuesIn(all_kinds()),
                         [](const auto& parameter) { return parameter.param.name; });

}  // namespace
}  // namespace vmm::device
