// SPDX-License-Identifier: Apache-2.0

/// @file
/// An irqchip with a few vCPUs that only write down what they are told.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "irqchip/fake_timers.hpp"
#include "x86/irqchip/irqchip.hpp"

namespace vmm::test {

using namespace x86::irqchip;  // NOLINT(google-build-using-namespace): everything here is its.

/// A vCPU.
class FakeVcpu final : public VcpuSink {
public:
    void kick() noexcept override { ++kicks; }
    void deliver_nmi() noexcept override { ++nmis; }
    void deliver_init() noexcept override { ++inits; }
    void deliver_sipi(std::uint8_t vector) noexcept override { sipi = vector; }
    void deliver_smi() noexcept override { ++smis; }

    int kicks{};
    int nmis{};
    int inits{};
    int smis{};
    std::optional<std::uint8_t> sipi;
};

template <typename T>
std::span<std::byte> bytes_of(T& value)
{
    return std::as_writable_bytes(std::span{&value, 1});
}

class IrqchipFixture : public ::testing::Test {
protected:
    static constexpr std::uint32_t vcpu_count = 4;
    static constexpr std::uint64_t tsc_per_ns = 3;

    explicit IrqchipFixture(IrqchipMode mode = IrqchipMode::Full) : chip{timers, mode}
    {
        for (std::uint32_t id = 0; id < vcpu_count; ++id) {
            TscClock clock;
            clock.read = [this] { return timers.now_ns() * tsc_per_ns; };
            clock.to_ns_deadline = [](std::uint64_t tsc) {
                return (tsc + tsc_per_ns - 1U) / tsc_per_ns;
            };
            apic.at(id) = chip.create_lapic(id, vcpu.at(id), clock);
        }
    }

    // --- A guest's accesses.

    void lapic_write(std::uint32_t id, LapicRegister r, std::uint32_t value)
    {
        const Gpa gpa{LocalApic::default_base + static_cast<std::uint64_t>(r)};
        ASSERT_TRUE(chip.mmio_write(id, gpa, bytes_of(value)));
    }
    std::uint32_t lapic_read(std::uint32_t id, LapicRegister r)
    {
        std::uint32_t value = 0;
        const Gpa gpa{LocalApic::default_base + static_cast<std::uint64_t>(r)};
        EXPECT_TRUE(chip.mmio_read(id, gpa, bytes_of(value)));
        return value;
    }
    void ioapic_write(std::uint32_t index, std::uint32_t value)
    {
        ASSERT_TRUE(chip.mmio_write(0, Gpa{IoApic::default_base}, bytes_of(index)));
        ASSERT_TRUE(chip.mmio_write(0, Gpa{IoApic::default_base + 0x10}, bytes_of(value)));
    }
    std::uint32_t ioapic_read(std::uint32_t index)
    {
        std::uint32_t value = 0;
        EXPECT_TRUE(chip.mmio_write(0, Gpa{IoApic::default_base}, bytes_of(index)));
        EXPECT_TRUE(chip.mmio_read(0, Gpa{IoApic::default_base + 0x10}, bytes_of(value)));
        return value;
    }
    void redirect(std::uint32_t pin, std::uint32_t low, std::uint32_t destination = 0)
    {
        ioapic_write(0x11 + 2 * pin, destination << 24U);
        ioapic_write(0x10 + 2 * pin, low);
    }
    void out(std::uint16_t port, std::uint8_t value)
    {
        ASSERT_TRUE(chip.port_write(Port{port}, bytes_of(value)));
    }
    std::uint8_t in(std::uint16_t port)
    {
        std::uint8_t value = 0xee;
        EXPECT_TRUE(chip.port_read(Port{port}, bytes_of(value)));
        return value;
    }

    /// Software-enables every local APIC.
    void enable_all()
    {
        for (std::uint32_t id = 0; id < vcpu_count; ++id) {
            lapic_write(id, LapicRegister::Svr, 0x1ff);
        }
        lapic_write(0, LapicRegister::LvtLint0, 0x1'0000);
    }
    void eoi(std::uint32_t id) { lapic_write(id, LapicRegister::Eoi, 0); }
    void to_x2apic(std::uint32_t id)
    {
        ASSERT_TRUE(apic.at(id)->set_apic_base(apic.at(id)->apic_base() | 0x400U));
    }

    /// Which vCPUs have an interrupt with this vector; takes it.
    std::vector<std::uint32_t> take(std::uint8_t vector)
    {
        std::vector<std::uint32_t> who;
        for (std::uint32_t id = 0; id < vcpu_count; ++id) {
            if (apic.at(id)->has_interrupt()) {
                EXPECT_EQ(apic.at(id)->acknowledge(), vector);
                eoi(id);
                who.push_back(id);
            }
        }
        return who;
    }

    FakeTimers timers;
    std::array<FakeVcpu, vcpu_count> vcpu{};
    Irqchip chip;
    std::array<std::shared_ptr<LocalApic>, vcpu_count> apic{};
};

}  // namespace vmm::test
