// SPDX-License-Identifier: Apache-2.0

#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "device/fakes.hpp"
#include "vmm/device/serial.hpp"
#include "vmm/event_loop.hpp"

namespace vmm::device {
namespace {

using test::bytes_of;
using test::in8;
using test::out8;

// Registers.
constexpr std::uint64_t rbr = 0;
constexpr std::uint64_t thr = 0;
constexpr std::uint64_t ier = 1;
constexpr std::uint64_t iir = 2;
constexpr std::uint64_t fcr = 2;
constexpr std::uint64_t lcr = 3;
constexpr std::uint64_t mcr = 4;
constexpr std::uint64_t lsr = 5;
constexpr std::uint64_t msr = 6;
constexpr std::uint64_t scr = 7;

class SerialTest : public ::testing::Test {
protected:
    [[nodiscard]] Serial::Config config()
    {
        Serial::Config config;
        config.irq = wire_.line();
        config.output = [this](std::span<const std::byte> bytes) {
            output_ += test::text_of(bytes);
        };
        config.on_input_room = [this] { ++rooms_; };
        return config;
    }

    /// As a driver leaves it: FIFOs with trigger level 8, receive interrupt, OUT2.
    void open()
    {
        out8(uart_, fcr, 0x81);
        out8(uart_, mcr, 0x0b);
        out8(uart_, ier, 0x05);
    }

    [[nodiscard]] std::string read_all()
    {
        std::string text;
        while ((in8(uart_, lsr) & 1) != 0) {
            text.push_back(static_cast<char>(in8(uart_, rbr)));
        }
        return text;
    }

    test::Wire wire_;
    std::string output_;
    unsigned rooms_{0};
    Serial uart_{config()};
};

TEST_F(SerialTest, AfterResetItIsIdle)
{
    EXPECT_EQ(in8(uart_, ier), 0x00U);
    EXPECT_EQ(in8(uart_, iir), 0x01U);
    EXPECT_EQ(in8(uart_, lcr), 0x00U);
    EXPECT_EQ(in8(uart_, mcr), 0x00U);
    EXPECT_EQ(in8(uart_, lsr), 0x60U);
    EXPECT_EQ(in8(uart_, msr), 0xb0U);
    EXPECT_FALSE(wire_.high);
}

TEST_F(SerialTest, WritesGoOutInOrder)
{
    for (const char letter : std::string{"hello"}) {
        out8(uart_, thr, static_cast<unsigned char>(letter));
        EXPECT_EQ(in8(uart_, lsr), 0x60U);
    }

    EXPECT_EQ(output_, "hello");
}

TEST_F(SerialTest, TheDivisorLatchHidesTwoRegisters)
{
    out8(uart_, ier, 0x0f);
    out8(uart_, lcr, 0x83);
    out8(uart_, 0, 0x34);
    out8(uart_, 1, 0x12);

    EXPECT_EQ(in8(uart_, 0), 0x34U);
    EXPECT_EQ(in8(uart_, 1), 0x12U);
    out8(uart_, lcr, 0x03);
    EXPECT_EQ(in8(uart_, ier), 0x0fU);
    EXPECT_EQ(output_, "");
}

TEST_F(SerialTest, UndefinedBitsReadAsZero)
{
    out8(uart_, ier, 0xff);
    out8(uart_, mcr, 0xff);

    EXPECT_EQ(in8(uart_, ier), 0x0fU);
    EXPECT_EQ(in8(uart_, mcr), 0x1fU);
}

TEST_F(SerialTest, TheScratchRegisterKeepsAByteAndStatusRegistersDoNot)
{
    out8(uart_, scr, 0xa5);
    out8(uart_, lsr, 0x00);
    out8(uart_, msr, 0x00);

    EXPECT_EQ(in8(uart_, scr), 0xa5U);
    EXPECT_EQ(in8(uart_, lsr), 0x60U);
    EXPECT_EQ(in8(uart_, msr), 0xb0U);
}

// How Linux's 8250 driver and others tell a 16550A: both FIFO bits, and no 64-byte FIFO.
TEST_F(SerialTest, IsIdentifiedAsA16550A)
{
    EXPECT_EQ(in8(uart_, iir) >> 6, 0U);
    out8(uart_, fcr, 0x01);
    EXPECT_EQ(in8(uart_, iir) >> 6, 3U);
    out8(uart_, fcr, 0x21);
    EXPECT_EQ(in8(uart_, iir) >> 5, 6U);
    out8(uart_, fcr, 0x00);
    EXPECT_EQ(in8(uart_, iir) >> 6, 0U);
}

TEST_F(SerialTest, FifoControlIsIgnoredWithoutItsEnableBit)
{
    open();
    ASSERT_EQ(uart_.receive(bytes_of("ab")), 2U);
    out8(uart_, ier, 0);
    out8(uart_, fcr, 0xc0);  // Also disables the FIFOs.

    EXPECT_EQ(in8(uart_, iir), 0x01U);
}

TEST_F(SerialTest, LoopbackConnectsModemControlToModemStatus)
{
    out8(uart_, mcr, 0x1a);  // LOOP, OUT2, RTS: what the Linux driver tests
    EXPECT_EQ(in8(uart_, msr) & 0xf0U, 0x90U);
    out8(uart_, mcr, 0x15);  // LOOP, OUT1, DTR
    EXPECT_EQ(in8(uart_, msr) & 0xf0U, 0x60U);
    out8(uart_, mcr, 0x00);
    EXPECT_EQ(in8(uart_, msr) & 0xf0U, 0xb0U);
}

TEST_F(SerialTest, ModemStatusChangesInterruptUntilRead)
{
    Serial::Config ungated = config();
    ungated.out2_gates_irq = false;
    Serial uart{std::move(ungated)};
    out8(uart, mcr, 0x1b);
    static_cast<void>(in8(uart, msr));
    out8(uart, ier, 0x08);
    ASSERT_FALSE(wire_.high);

    out8(uart, mcr, 0x19);  // RTS falls, so CTS does.

    EXPECT_TRUE(wire_.high);
    EXPECT_EQ(in8(uart, iir), 0x00U);
    EXPECT_EQ(in8(uart, msr), 0xa1U);
    EXPECT_FALSE(wire_.high);
    EXPECT_EQ(in8(uart, msr), 0xa0U);
}

TEST_F(SerialTest, TheRingIndicatorCountsAtItsTrailingEdgeOnly)
{
    out8(uart_, mcr, 0x10);
    static_cast<void>(in8(uart_, msr));
    out8(uart_, mcr, 0x14);
    EXPECT_EQ(in8(uart_, msr), 0x40U);
    out8(uart_, mcr, 0x10);
    EXPECT_EQ(in8(uart_, msr), 0x04U);
}

TEST_F(SerialTest, LoopbackReturnsBytesAndNothingGoesOut)
{
    out8(uart_, fcr, 0x07);
    out8(uart_, mcr, 0x10);
    for (unsigned i = 0; i < 20; ++i) {
        out8(uart_, thr, i);
    }

    EXPECT_EQ(output_, "");
    EXPECT_EQ(in8(uart_, lsr) & 0x03U, 0x03U);  // Ready, overrun.
    for (unsigned i = 0; i < 16; ++i) {
        EXPECT_EQ(in8(uart_, rbr), i);
    }
    EXPECT_EQ(in8(uart_, lsr) & 0x03U, 0x00U);
}

TEST_F(SerialTest, WithoutFifosANewByteReplacesTheOld)
{
    out8(uart_, mcr, 0x10);
    out8(uart_, thr, 'a');
    out8(uart_, thr, 'b');

    EXPECT_EQ(in8(uart_, lsr) & 0x03U, 0x03U);
    EXPECT_EQ(in8(uart_, rbr), static_cast<unsigned>('b'));
}

TEST_F(SerialTest, EnablingTheTransmitterInterruptRaisesItEachTime)
{
    out8(uart_, mcr, 0x08);
    out8(uart_, ier, 0x02);
    EXPECT_TRUE(wire_.high);
    EXPECT_EQ(in8(uart_, iir), 0x02U);
    EXPECT_FALSE(wire_.high);
    EXPECT_EQ(in8(uart_, iir), 0x01U);

    out8(uart_, ier, 0x00);
    out8(uart_, ier, 0x02);
    EXPECT_TRUE(wire_.high);
    EXPECT_EQ(in8(uart_, iir), 0x02U);
}

TEST_F(SerialTest, AByteTransmittedRaisesTheTransmitterInterrupt)
{
    out8(uart_, mcr, 0x08);
    out8(uart_, ier, 0x02);
    static_cast<void>(in8(uart_, iir));
    ASSERT_FALSE(wire_.high);

    out8(uart_, thr, 'x');

    EXPECT_TRUE(wire_.high);
}

TEST_F(SerialTest, Out2ConnectsTheInterrupt)
{
    out8(uart_, ier, 0x02);
    EXPECT_FALSE(wire_.high);
    out8(uart_, mcr, 0x08);
    EXPECT_TRUE(wire_.high);
    out8(uart_, mcr, 0x00);
    EXPECT_FALSE(wire_.high);
    EXPECT_EQ(in8(uart_, iir), 0x02U);
}

TEST_F(SerialTest, BelowTheTriggerLevelTheTimeOutInterrupts)
{
    open();
    ASSERT_EQ(uart_.receive(bytes_of("1234567")), 7U);

    EXPECT_TRUE(wire_.high);
    EXPECT_EQ(in8(uart_, iir), 0xccU);
    ASSERT_EQ(uart_.receive(bytes_of("8")), 1U);
    EXPECT_EQ(in8(uart_, iir), 0xc4U);
    EXPECT_EQ(read_all(), "12345678");
    EXPECT_FALSE(wire_.high);
    EXPECT_EQ(in8(uart_, iir), 0xc1U);
}

TEST_F(SerialTest, LineStatusComesBeforeDataBeforeTransmitter)
{
    open();
    out8(uart_, ier, 0x07);
    uart_.receive_break();

    EXPECT_EQ(in8(uart_, iir), 0xc6U);
    EXPECT_EQ(in8(uart_, lsr), 0xf1U);  // Error in FIFO, idle, break, ready.
    EXPECT_EQ(in8(uart_, iir), 0xccU);
    EXPECT_EQ(in8(uart_, rbr), 0U);
    EXPECT_EQ(in8(uart_, iir), 0xc2U);
    EXPECT_EQ(in8(uart_, iir), 0xc1U);
}

TEST_F(SerialTest, ABreakShowsWhenItIsAtTheTopOfTheFifo)
{
    open();
    ASSERT_EQ(uart_.receive(bytes_of("a")), 1U);
    uart_.receive_break();
    ASSERT_EQ(uart_.receive(bytes_of("b")), 1U);

    EXPECT_EQ(in8(uart_, lsr), 0xe1U);  // Somewhere in the FIFO, but not this byte.
    EXPECT_EQ(in8(uart_, rbr), static_cast<unsigned>('a'));
    EXPECT_EQ(in8(uart_, lsr) & 0x10U, 0x10U);
    EXPECT_EQ(in8(uart_, lsr) & 0x10U, 0x00U);
    EXPECT_EQ(in8(uart_, rbr), 0U);
    EXPECT_EQ(in8(uart_, lsr), 0x61U);
    EXPECT_EQ(in8(uart_, rbr), static_cast<unsigned>('b'));
}

TEST_F(SerialTest, InputBeyondTheFifoWaitsAndArrivesWhole)
{
    open();
    std::string sent;
    for (unsigned i = 0; i < 1000; ++i) {
        sent.push_back(static_cast<char>('a' + i % 26));
    }
    ASSERT_EQ(uart_.receive(bytes_of(sent)), sent.size());

    EXPECT_EQ(read_all(), sent);
}

TEST_F(SerialTest, AFullQueueRefusesAndSaysWhenThereIsRoom)
{
    open();
    const std::string sent(Serial::input_capacity + 100, 'x');
    const std::size_t taken = uart_.receive(bytes_of(sent));
    EXPECT_EQ(taken, Serial::input_capacity);
    EXPECT_EQ(uart_.receive(bytes_of("y")), 1U);  // 16 have moved into the FIFO.
    ASSERT_LT(uart_.receive(bytes_of(sent)), sent.size());
    EXPECT_EQ(rooms_, 0U);

    EXPECT_EQ(read_all().size(), Serial::input_capacity + 16);
    EXPECT_EQ(rooms_, 1U);
}

TEST_F(SerialTest, NoRoomIsToldToThoseWhoWereNotRefused)
{
    open();
    ASSERT_EQ(uart_.receive(bytes_of("abc")), 3U);
    EXPECT_EQ(read_all(), "abc");
    EXPECT_EQ(rooms_, 0U);
}

// The order of a Linux start-up: clear the FIFOs, read every register, test the transmitter
// interrupt, print some, then enable interrupts.
TEST_F(SerialTest, InputThatComesBeforeTheDriverIsNotLost)
{
    ASSERT_EQ(uart_.receive(bytes_of("echo hello\n")), 11U);

    out8(uart_, fcr, 0x01);
    out8(uart_, fcr, 0x07);
    out8(uart_, fcr, 0x00);
    for (const std::uint64_t reg : {lsr, rbr, iir, msr}) {
        static_cast<void>(in8(uart_, reg));
    }
    out8(uart_, mcr, 0x0b);
    out8(uart_, ier, 0x02);
    static_cast<void>(in8(uart_, iir));
    out8(uart_, ier, 0x00);
    for (const std::uint64_t reg : {lsr, rbr, iir, msr}) {
        static_cast<void>(in8(uart_, reg));
    }
    out8(uart_, fcr, 0x81);
    out8(uart_, ier, 0x05);

    EXPECT_TRUE(wire_.high);
    EXPECT_EQ(read_all(), "echo hello\n");
}

TEST_F(SerialTest, APollingGuestReceivesAfterAFifoReset)
{
    out8(uart_, fcr, 0x07);
    ASSERT_EQ(uart_.receive(bytes_of("k")), 1U);

    unsigned polls = 0;
    while ((in8(uart_, lsr) & 1) == 0 && polls < 100) {
        ++polls;
    }

    EXPECT_LT(polls, 100U);
    EXPECT_EQ(in8(uart_, rbr), static_cast<unsigned>('k'));
}

TEST_F(SerialTest, APollingGuestThatNeverSetsAnythingUpReceives)
{
    ASSERT_EQ(uart_.receive(bytes_of("ok")), 2U);
    EXPECT_EQ(in8(uart_, lsr), 0x61U);
    EXPECT_EQ(read_all(), "ok");
}

TEST_F(SerialTest, LoweringRtsHoldsInputBack)
{
    open();
    out8(uart_, mcr, 0x09);
    ASSERT_EQ(uart_.receive(bytes_of("z")), 1U);
    EXPECT_EQ(in8(uart_, lsr), 0x60U);
    out8(uart_, mcr, 0x0b);
    EXPECT_TRUE(wire_.high);
    EXPECT_EQ(read_all(), "z");
}

TEST_F(SerialTest, WithTimersInputComesAFifoFullAtATime)
{
    test::FakeTimers timers;
    Serial::Config paced = config();
    paced.timers = &timers;
    Serial uart{std::move(paced)};
    const auto read_available = [&uart] {
        unsigned count = 0;
        while ((in8(uart, lsr) & 1) != 0) {
            static_cast<void>(in8(uart, rbr));
            ++count;
        }
        return count;
    };
    out8(uart, fcr, 0x81);
    out8(uart, mcr, 0x0b);
    out8(uart, ier, 0x05);
    ASSERT_EQ(uart.receive(bytes_of(std::string(40, 'x'))), 40U);

    EXPECT_EQ(read_available(), 16U);
    EXPECT_FALSE(wire_.high);
    EXPECT_EQ(in8(uart, iir), 0xc1U);
    timers.advance(Serial::input_interval_ns - 1);
    EXPECT_EQ(read_available(), 0U);
    timers.advance(1);
    EXPECT_TRUE(wire_.high);
    EXPECT_EQ(read_available(), 16U);
    timers.advance(Serial::input_interval_ns);
    EXPECT_EQ(in8(uart, iir), 0xc4U);
    EXPECT_EQ(read_available(), 8U);
    EXPECT_FALSE(timers.is_armed());
}

TEST_F(SerialTest, AGuestThatDoesNotReadCostsNoTimers)
{
    test::FakeTimers timers;
    Serial::Config paced = config();
    paced.timers = &timers;
    Serial uart{std::move(paced)};
    out8(uart, fcr, 0x81);
    out8(uart, ier, 0x05);
    ASSERT_EQ(uart.receive(bytes_of(std::string(40, 'x'))), 40U);
    timers.advance(1'000'000'000);

    EXPECT_LE(timers.expiries, 1U);
    unsigned count = 0;
    for (unsigned i = 0; i < 10; ++i) {
        while ((in8(uart, lsr) & 1) != 0) {
            static_cast<void>(in8(uart, rbr));
            ++count;
        }
        timers.advance(Serial::input_interval_ns);
    }
    EXPECT_EQ(count, 40U);
}

TEST_F(SerialTest, AWideAccessIsOneToEachRegister)
{
    test::out(uart_, 6, 0x5a00, 2);
    EXPECT_EQ(in8(uart_, scr), 0x5aU);
    EXPECT_EQ(test::in(uart_, 5, 4), 0xff5ab060U);
    EXPECT_EQ(test::in(uart_, 8, 8), ~std::uint64_t{0});
}

TEST_F(SerialTest, SenderAndReceiverOnDifferentThreadsLoseNothing)
{
    open();
    std::string sent;
    for (unsigned i = 0; i < 20000; ++i) {
        sent.push_back(static_cast<char>('!' + i % 90));
    }
    std::jthread host{[this, &sent] {
        std::size_t done = 0;
        while (done < sent.size()) {
            done += uart_.receive(bytes_of(std::string_view{sent}.substr(done, 300)));
            std::this_thread::yield();
        }
    }};
    std::string got;
    while (got.size() < sent.size()) {
        got += read_all();
    }

    EXPECT_EQ(got, sent);
}

TEST_F(SerialTest, APacedLineOnTheEventLoopLosesNothing)
{
    const auto loop = EventLoop::create().value();
    Serial::Config paced;
    paced.timers = loop.get();
    Serial uart{std::move(paced)};
    out8(uart, fcr, 0x81);
    out8(uart, ier, 0x05);
    std::string sent;
    for (unsigned i = 0; i < 4000; ++i) {
        sent.push_back(static_cast<char>('!' + i % 90));
    }
    ASSERT_EQ(uart.receive(bytes_of(sent)), sent.size());
    std::string got;
    while (got.size() < sent.size()) {
        if ((in8(uart, lsr) & 1) != 0) {
            got.push_back(static_cast<char>(in8(uart, rbr)));
        }
    }

    EXPECT_EQ(got, sent);
}

}  // namespace
}  // namespace vmm::device
