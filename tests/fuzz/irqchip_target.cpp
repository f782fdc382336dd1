// SPDX-License-Identifier: Apache-2.0

// The interrupt controllers and the PIT, from all sides: registers, MSRs, lines, MSIs, routing,
// states set from outside; time passes as the input says.

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "fuzz/target.hpp"
#include "irqchip/fake_timers.hpp"
#include "x86/irqchip/irqchip.hpp"
#include "x86/irqchip/pit.hpp"
#include "x86/msr.hpp"

namespace vmm::fuzz {
namespace {

using namespace x86::irqchip;  // NOLINT(google-build-using-namespace): everything here is its.

constexpr std::uint32_t vcpu_count = 3;

struct Sink final : VcpuSink {
    void kick() noexcept override { ++kicks; }
    void deliver_nmi() noexcept override {}
    void deliver_init() noexcept override { init = true; }
    void deliver_sipi(std::uint8_t /*vector*/) noexcept override {}
    void deliver_smi() noexcept override {}

    std::uint64_t kicks{};
    bool init{};
};

template <typename T>
std::span<std::byte> bytes_of(T& value)
{
    return std::as_writable_bytes(std::span{&value, 1});
}

class Chips {
public:
    explicit Chips(IrqchipMode mode) : chip_{timers_, mode}, pit_{chip_.create_pit()}
    {
        for (std::uint32_t id = 0; id < vcpu_count; ++id) {
            TscClock clock;
            clock.read = [this] { return timers_.now_ns() * 3U; };
            clock.to_ns_deadline = [](std::uint64_t tsc) { return tsc / 3U; };
            apic_.at(id) = chip_.create_lapic(id, sink_.at(id), clock);
            FUZZ_CHECK(apic_.at(id) != nullptr);
        }
        chip_.add_ack_notifier(4, [this] { ++acknowledged_; });
    }

    void step(Input& input)
    {
        const auto id = static_cast<std::uint32_t>(input.below(vcpu_count));
        switch (input.below(14)) {
        case 0:
        case 1: lapic_access(input, id); break;
        case 2: io_apic_access(input, id); break;
        case 3: pic_access(input); break;
        case 4: pit_access(input); break;
        case 5: apic_msr(input, id); break;
        case 6:
            static_cast<void>(chip_.set_line(line(input), input.u8() % 3U, input.flag()));
            break;
        case 7: msi(input); break;
        case 8: take_interrupts(id); break;
        case 9: pass_time(input); break;
        case 10: set_routing(input); break;
        case 11: set_lapic_state(input, id); break;
        case 12: set_chip_state(input); break;
        default: rare(input, id); break;
        }
        for (std::uint32_t each = 0; each < vcpu_count; ++each) {
            if (std::exchange(sink_.at(each).init, false)) {
                apic_.at(each)->init();
            }
        }
    }

private:
    static std::uint32_t line(Input& input)
    {
        return input.u8() % 8U == 0 ? static_cast<std::uint32_t>(input.number())
                                    : static_cast<std::uint32_t>(input.below(26));
    }

    void lapic_access(Input& input, std::uint32_t id)
    {
        const std::uint64_t offset =
            input.flag() ? (input.u8() & 0x3fU) << 4U : input.u16() & 0xfffU;
        const Gpa gpa{LocalApic::default_base + offset};
        std::uint64_t value = input.number();
        const auto bytes = bytes_of(value).first(std::size_t{1} << (input.u8() & 3U));
        if (input.flag()) {
            static_cast<void>(chip_.mmio_write(id, gpa, bytes));
        } else {
            static_cast<void>(chip_.mmio_read(id, gpa, bytes));
        }
    }

    void io_apic_access(Input& input, std::uint32_t id)
    {
        std::uint32_t index = input.u8() & 0x3fU;
        auto value = static_cast<std::uint32_t>(input.number());
        const Gpa base{IoApic::default_base};
        static_cast<void>(chip_.mmio_write(id, base, bytes_of(index)));
        static_cast<void>(chip_.mmio_write(id, Gpa{base.value() + 0x10}, bytes_of(value)));
        static_cast<void>(
            chip_.mmio_read(id, Gpa{base.value() + (input.u8() & 0xfcU)}, bytes_of(value)));
    }

    void pic_access(Input& input)
    {
        constexpr std::array<std::uint16_t, 6> ports{0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1};
        const Port port{input.pick(ports)};
        std::uint32_t value = input.u8();
        const auto bytes = bytes_of(value).first(std::size_t{1} << (input.u8() % 3U));
        static_cast<void>(input.flag() ? chip_.port_write(port, bytes)
                                       : chip_.port_read(port, bytes));
    }

    void pit_access(Input& input)
    {
        constexpr std::array<std::uint64_t, 5> offsets{0, 1, 2, 3, Pit::speaker_offset};
        const std::uint64_t offset = input.flag() ? input.pick(offsets) : 3;
        std::uint8_t value = input.u8();
        if (input.flag()) {
            pit_->write(offset, bytes_of(value));
        } else {
            pit_->read(offset, bytes_of(value));
        }
    }

    void apic_msr(Input& input, std::uint32_t id)
    {
        const std::uint64_t value = input.number();
        const std::uint8_t what = input.u8();
        LocalApic& apic = *apic_.at(id);
        if (what % 8U == 0) {
            const bool host = input.flag();
            const bool set = apic.set_apic_base(
                value | (what & 0xc0U) << 4U, host ? ApicBaseWriter::Host : ApicBaseWriter::Guest);
            FUZZ_CHECK(!set || apic.apic_base() == (value | (what & 0xc0U) << 4U));
            return;
        }
        const std::uint32_t index =
            what % 8U == 1 ? x86::msr::tsc_deadline : x86::msr::x2apic_first + (what >> 1U);
        std::uint64_t read = 0;
        static_cast<void>(apic.write_msr(index, value));
        static_cast<void>(apic.read_msr(index, read));
    }

    void msi(Input& input)
    {
        const Gpa address{0xfee0'0000U + (input.number() & 0xf'ffffU)};
        static_cast<void>(chip_.signal_msi(address, static_cast<std::uint32_t>(input.number())));
    }

    void take_interrupts(std::uint32_t id)
    {
        // Each is of higher priority than the one before, or the PIC's: 16 classes and 2 chips.
        LocalApic& apic = *apic_.at(id);
        for (unsigned taken = 0; apic.has_interrupt() && taken < 32; ++taken) {
            static_cast<void>(apic.acknowledge());
        }
    }

    void pass_time(Input& input)
    {
        const std::uint64_t ns = std::min<std::uint64_t>(input.number(), 300'000'000);
        const std::size_t before = timers_.expiries();
        timers_.advance(ns);
        // Not below 200 us an APIC's period and the PIT's; what waits may come at once.
        FUZZ_CHECK(timers_.expiries() - before <= 2'000 + (2 + vcpu_count) * ns / 190'000);
    }

    void set_routing(Input& input)
    {
        std::vector<GsiRoute> routes;
        for (std::size_t count = input.below(8); count != 0; --count) {
            const std::uint32_t gsi = line(input);
            if (input.flag()) {
                routes.push_back(
                    msi_route(gsi, Gpa{0xfee0'0000U + (input.u32() & 0xf'ffffU)}, input.u32()));
            } else {
                GsiRoute route = pin_route(gsi, static_cast<ChipId>(input.u8() % 4U),
                                           static_cast<std::uint32_t>(input.below(26)));
                route.type = static_cast<GsiRouteType>(input.u8() % 8U == 0 ? input.u8() : 1U);
                routes.push_back(route);
            }
        }
        const std::vector<GsiRoute> before = chip_.routing();
        if (chip_.set_routing(routes)) {
            FUZZ_CHECK(chip_.routing().size() == routes.size());
        } else {
            FUZZ_CHECK(chip_.routing() == before);
        }
    }

    void set_lapic_state(Input& input, std::uint32_t id)
    {
        LapicState state = apic_.at(id)->state();
        if (input.flag()) {
            input.fill(state);
        }
        for (std::size_t count = input.below(8); count != 0; --count) {
            state.set(static_cast<LapicRegister>((input.u8() & 0x3fU) << 4U), input.u32());
        }
        if (apic_.at(id)->set_state(state)) {
            // What one saves is what one had, after it was set once.
            const LapicState saved = apic_.at(id)->state();
            FUZZ_CHECK(apic_.at(id)->set_state(saved).has_value());
            const LapicState again = apic_.at(id)->state();
            FUZZ_CHECK(again == saved);
        }
    }

    void set_chip_state(Input& input)
    {
        if (chip_.mode() == IrqchipMode::Split) {
            return;
        }
        switch (input.below(3)) {
        case 0: {
            const ChipId which = input.flag() ? ChipId::PicSlave : ChipId::PicMaster;
            PicState state = chip_.pic_state(which);
            input.fill(state);
            chip_.set_pic_state(which, state);
            const PicState saved = chip_.pic_state(which);
            chip_.set_pic_state(which, saved);
            FUZZ_CHECK(chip_.pic_state(which) == saved);
            break;
        }
        case 1: {
            IoApicState state = chip_.io_apic_state();
            input.fill(state);
            chip_.set_io_apic_state(state);
            const IoApicState saved = chip_.io_apic_state();
            chip_.set_io_apic_state(saved);
            FUZZ_CHECK(chip_.io_apic_state() == saved);
            break;
        }
        default: {
            PitState state = pit_->state();
            input.fill(state);
            pit_->set_state(state);
            PitState saved = pit_->state();
            pit_->set_state(saved);
            FUZZ_CHECK(pit_->state() == saved);
            break;
        }
        }
    }

    void rare(Input& input, std::uint32_t id)
    {
        switch (input.below(6)) {
        case 0: chip_.reset(); break;
        case 1: apic_.at(id)->reset(); break;
        case 2: apic_.at(id)->tsc_changed(); break;
        case 3:
            apic_.at(id)->set_cr8(static_cast<std::uint8_t>(input.below(16)));
            FUZZ_CHECK(apic_.at(id)->cr8() < 16);
            break;
        case 4: pit_->set_reinject(input.flag()); break;
        default: apic_.at(id)->set_features({input.flag(), input.flag(), input.u8()}); break;
        }
    }

    test::FakeTimers timers_;
    std::array<Sink, vcpu_count> sink_{};
    std::uint64_t acknowledged_{};
    Irqchip chip_;
    std::shared_ptr<Pit> pit_;
    std::array<std::shared_ptr<LocalApic>, vcpu_count> apic_{};
};

}  // namespace

void irqchip(Input& input)
{
    Chips chips{input.u8() % 8U == 0 ? IrqchipMode::Split : IrqchipMode::Full};
    for (unsigned steps = 0; steps < 400 && !input.is_empty(); ++steps) {
        chips.step(input);
    }
}

Seeds irqchip_seeds()
{
    const auto lapic = [](Seed& seed, unsigned id, unsigned reg, std::uint64_t value) {
        seed.u8(id).u8(0).u8(1).u8(reg >> 4U).number(value).u8(2).u8(1);
    };
    const auto redirect = [](Seed& seed, unsigned pin, std::uint32_t low) {
        seed.u8(0).u8(2).u8(0x10 + 2 * pin).number(low).u8(0x10);
    };
    const auto set_line = [](Seed& seed, unsigned gsi, unsigned level) {
        seed.u8(0).u8(6).u8(1).u8(gsi).u8(0).u8(level);
    };
    Seed wired;
    wired.u8(1);
    lapic(wired, 0, 0xf0, 0x1ff);
    redirect(wired, 4, 0x8031);
    redirect(wired, 5, 0x0032);
    for (const unsigned gsi : {4U, 5U}) {
        set_line(wired, gsi, 1);
        wired.u8(0).u8(8);
        lapic(wired, 0, 0xb0, 0);
        set_line(wired, gsi, 0);
    }
    Seed timer;
    timer.u8(1);
    lapic(timer, 0, 0xf0, 0x1ff);
    lapic(timer, 0, 0x320, 0x2'0040);
    lapic(timer, 0, 0x3e0, 0xb);
    lapic(timer, 0, 0x380, 1);
    timer.u8(0).u8(9).number(5'000'000).u8(0).u8(8);
    lapic(timer, 0, 0xb0, 0);
    timer.u8(0).u8(11).u8(0).u8(1).u8(0x32).u32(0x4'0041).u8(0).u8(5).number(1'000'000).u8(1);
    timer.u8(0).u8(9).number(5'000'000);
    Seed ipi;
    ipi.u8(1);
    for (unsigned id = 0; id < vcpu_count; ++id) {
        lapic(ipi, id, 0xf0, 0x1ff);
    }
    for (const std::uint32_t low : {0xc'4031U, 0x4'0431U, 0xc'4500U, 0xc'4608U, 0x8'4032U}) {
        lapic(ipi, 0, 0x310, 0x0100'0000);
        lapic(ipi, 0, 0x300, low);
        ipi.u8(1).u8(8);
    }
    ipi.u8(0).u8(7).number(0x1000).number(0x41).u8(0).u8(5).number(0xfee0'0d00).u8(0).u8(1);
    Seed pic;
    pic.u8(1);
    for (const auto& [port, value] : {std::pair{0U, 0x11U},
                                      {1U, 0x20U},
                                      {1U, 4U},
                                      {1U, 1U},
                                      {1U, 0U},
                                      {2U, 0x11U},
                                      {3U, 0x28U},
                                      {3U, 2U},
                                      {3U, 1U},
                                      {3U, 0U},
                                      {4U, 0x20U}}) {
        pic.u8(0).u8(3).u8(port).u8(value).u8(0).u8(1);
    }
    set_line(pic, 0, 1);
    pic.u8(0).u8(8).u8(0).u8(3).u8(0).u8(0x20).u8(0).u8(1);
    for (unsigned mode = 0; mode < 6; ++mode) {
        pic.u8(0).u8(4).u8(0).u8(0x30 | mode << 1U).u8(1);
        pic.u8(0).u8(4).u8(1).u8(0).u8(1).u8(1).u8(0).u8(4).u8(1).u8(0).u8(0).u8(1);
        pic.u8(0).u8(9).number(2'000'000);
        pic.u8(0).u8(4).u8(0).u8(0xc2).u8(1).u8(0).u8(4).u8(1).u8(0).u8(0).u8(0);
    }
    Seed routing;
    routing.u8(1).u8(0).u8(10).u8(3);
    routing.u8(1).u8(5).u8(0).u8(2).u8(7).u8(1).u8(1).u8(5).u8(0).u8(0).u8(3).u8(1);
    routing.u8(1).u8(20).u8(1).u32(0x1000).u32(0x51);
    set_line(routing, 5, 1);
    set_line(routing, 20, 1);
    return {wired.data(), timer.data(), ipi.data(), pic.data(), routing.data()};
}

}  // namespace vmm::fuzz
