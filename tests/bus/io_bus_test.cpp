// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <cerrno>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "vmm/bus/io_bus.hpp"

namespace vmm::bus {
namespace {

/// Keeps what was asked of it.
class Recorder {
public:
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept
    {
        last_offset = offset;
        last_size = data.size();
        std::fill(data.begin(), data.end(), std::byte{answer});
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept
    {
        last_offset = offset;
        last_size = data.size();
        if (!data.empty()) {
            answer = std::to_integer<std::uint8_t>(data[0]);
        }
    }

    std::optional<std::uint64_t> last_offset{};
    std::size_t last_size{};
    std::uint8_t answer{0x5a};
};

static_assert(Attachable<Recorder> && Attachable<Recorder*> &&
              Attachable<std::shared_ptr<Recorder>> && Attachable<DeviceBase*> &&
              Attachable<std::unique_ptr<DeviceBase>> && !Attachable<int> && !Attachable<int*> &&
              !Attachable<DeviceBase>);
static_assert(BusAddress<Port> && BusAddress<Gpa> && !BusAddress<std::uint64_t>);

PortRange ports(std::uint16_t first, std::uint16_t size)
{
    return *PortRange::make(Port{first}, size);
}

int error_of(const Result<void>& result)
{
    return result ? 0 : result.error().errno_value();
}

class IoBusTest : public testing::Test {
protected:
    bool read(std::uint16_t port, std::size_t size)
    {
        return bus_.read(Port{port}, std::span{data_}.first(size));
    }
    bool write(std::uint16_t port, std::size_t size)
    {
        return bus_.write(Port{port}, std::span{data_}.first(size));
    }

    std::array<std::byte, 8> data_{};
    Recorder device_;
    IoBus<Port, Recorder*> bus_;
};

TEST_F(IoBusTest, NobodyAnswersOnAnEmptyBus)
{
    data_.fill(std::byte{7});
    EXPECT_FALSE(read(0, 1));
    EXPECT_FALSE(write(0xffff, 1));
    EXPECT_EQ(data_[0], std::byte{7});
    EXPECT_EQ(bus_.size(), 0U);
}

TEST_F(IoBusTest, ADeviceSeesOffsetsIntoItsRange)
{
    bus_.add(ports(0x3f8, 8), &device_).value();
    EXPECT_TRUE(read(0x3fd, 1));
    EXPECT_EQ(device_.last_offset, 5U);
    EXPECT_EQ(data_[0], std::byte{0x5a});
    EXPECT_TRUE(write(0x3f8, 8));
    EXPECT_EQ(device_.last_offset, 0U);
    EXPECT_EQ(device_.last_size, 8U);
}

TEST_F(IoBusTest, AnAccessThatStraddlesTheEndBelongsToNobody)
{
    bus_.add(ports(0x100, 4), &device_).value();
    bus_.add(ports(0x104, 4), &device_).value();
    EXPECT_TRUE(read(0x102, 2));
    EXPECT_FALSE(read(0x103, 2));
    EXPECT_FALSE(read(0xff, 2));
    EXPECT_FALSE(read(0x107, 2));
    EXPECT_TRUE(bus_.answers(Port{0x104}, 4));
    EXPECT_FALSE(bus_.answers(Port{0x104}, 5));
}

TEST_F(IoBusTest, ARangeMayEndAtTheTop)
{
    bus_.add(ports(0xffff, 1), &device_).value();
    EXPECT_TRUE(read(0xffff, 1));
    EXPECT_FALSE(read(0xffff, 2));

    IoBus<Gpa, Recorder*> mmio;
    mmio.add(*GpaRange::make(Gpa{~0ULL - 7}, 8), &device_).value();
    EXPECT_TRUE(mmio.write(Gpa{~0ULL - 7}, data_));
    EXPECT_FALSE(mmio.write(Gpa{~0ULL - 6}, data_));
    EXPECT_TRUE(mmio.write(Gpa{~0ULL}, std::span{data_}.first(1)));
}

TEST_F(IoBusTest, AnExactRangeHasOneAccess)
{
    bus_.add(ports(0x100, 2), &device_, Match::Exact).value();
    EXPECT_TRUE(write(0x100, 2));
    EXPECT_FALSE(write(0x100, 1));
    EXPECT_FALSE(write(0x101, 1));
    EXPECT_FALSE(write(0x100, 4));
}

TEST_F(IoBusTest, AnAccessOfUnknownLengthGoesByItsAddress)
{
    bus_.add(ports(0x100, 2), &device_).value();
    bus_.add(ports(0x102, 2), &device_, Match::Exact).value();
    EXPECT_TRUE(write(0x101, 0));
    EXPECT_EQ(device_.last_offset, 1U);
    EXPECT_EQ(device_.last_size, 0U);
    EXPECT_TRUE(write(0x102, 0));
    EXPECT_FALSE(write(0x103, 0));
    EXPECT_FALSE(write(0x104, 0));
}

TEST_F(IoBusTest, AnOverlapIsEexistAndChangesNothing)
{
    bus_.add(ports(0x100, 4), &device_).value();
    Recorder other;
    EXPECT_EQ(error_of(bus_.add(ports(0x100, 4), &other)), EEXIST);
    EXPECT_EQ(error_of(bus_.add(ports(0x103, 1), &other)), EEXIST);
    EXPECT_EQ(error_of(bus_.add(ports(0xff, 2), &other)), EEXIST);
    EXPECT_EQ(error_of(bus_.add(ports(0, 0x8000), &other)), EEXIST);
    EXPECT_TRUE(read(0x103, 1));
    EXPECT_FALSE(other.last_offset);
    EXPECT_EQ(error_of(bus_.add(ports(0x104, 1), &other)), 0);
    EXPECT_EQ(error_of(bus_.add(ports(0xff, 1), &other)), 0);
}

TEST_F(IoBusTest, OnlyWhatWasAddedCanBeRemoved)
{
    bus_.add(ports(0x100, 4), &device_).value();
    EXPECT_EQ(error_of(bus_.remove(ports(0x100, 3))), ENOENT);
    EXPECT_EQ(error_of(bus_.remove(ports(0x101, 3))), ENOENT);
    EXPECT_EQ(error_of(bus_.remove(ports(0x200, 1))), ENOENT);
    const std::string message = bus_.remove(ports(0x101, 3)).error().message();
    EXPECT_NE(message.find("0x100 to 0x103"), std::string::npos) << message;
    EXPECT_EQ(error_of(bus_.remove(ports(0x100, 4))), 0);
    EXPECT_FALSE(read(0x100, 1));
    EXPECT_EQ(error_of(bus_.remove(ports(0x100, 4))), ENOENT);
}

TEST_F(IoBusTest, ANullDeviceIsRefused)
{
    EXPECT_EQ(error_of(bus_.add(ports(0, 1), nullptr)), EINVAL);
    EXPECT_EQ(bus_.size(), 0U);
}

TEST_F(IoBusTest, AThousandRangesAreAllItHas)
{
    for (std::uint16_t i = 0; i < 1000; ++i) {
        bus_.add(ports(static_cast<std::uint16_t>(i * 2), 1), &device_).value();
    }
    EXPECT_EQ(error_of(bus_.add(ports(5000, 1), &device_)), ENOSPC);
    EXPECT_EQ(error_of(bus_.add(ports(4, 1), &device_)), EEXIST);
    EXPECT_TRUE(read(1998, 1));
    EXPECT_FALSE(read(1997, 1));
    bus_.remove(ports(4, 1)).value();
    EXPECT_EQ(error_of(bus_.add(ports(5000, 1), &device_)), 0);
    EXPECT_TRUE(read(5000, 1));
}

TEST_F(IoBusTest, ADeviceHeldByValueKeepsItsStateAcrossChanges)
{
    IoBus<Port, Recorder> bus;
    bus.add(ports(0x10, 1), Recorder{}).value();
    data_[0] = std::byte{0x77};
    EXPECT_TRUE(bus.write(Port{0x10}, std::span{data_}.first(1)));
    bus.add(ports(0x20, 1), Recorder{}).value();
    EXPECT_TRUE(bus.read(Port{0x10}, data_.size() > 1 ? std::span{data_}.first(1) : data_));
    EXPECT_EQ(data_[0], std::byte{0x77});
}

TEST_F(IoBusTest, RemovingDestroysWhatTheBusHeld)
{
    const auto device = std::make_shared<Recorder>();
    IoBus<Port, std::shared_ptr<Recorder>> bus;
    bus.add(ports(0x10, 1), device).value();
    EXPECT_EQ(device.use_count(), 2);
    bus.remove(ports(0x10, 1)).value();
    EXPECT_EQ(device.use_count(), 1);
}

TEST_F(IoBusTest, TheGenerationGrowsWithEachChangeAndNothingElse)
{
    const auto first = bus_.generation();
    ASSERT_TRUE(bus_.add(ports(0x10, 4), &device_).has_value());
    const auto second = bus_.generation();
    EXPECT_GT(second, first);
    ASSERT_FALSE(bus_.add(ports(0x10, 4), &device_).has_value());
    ASSERT_FALSE(bus_.remove(ports(0x20, 4)).has_value());
    EXPECT_EQ(bus_.generation(), second);
    ASSERT_TRUE(bus_.remove(ports(0x10, 4)).has_value());
    EXPECT_GT(bus_.generation(), second);
}

TEST_F(IoBusTest, AHintNeverChangesTheAnswer)
{
    Recorder other;
    bus_.add(ports(0x10, 4), &device_).value();
    bus_.add(ports(0x20, 4), &other).value();
    IoBus<Port, Recorder*>::Hint hint;
    const auto one = std::span{data_}.first(1);
    EXPECT_TRUE(bus_.read(Port{0x20}, one, hint));
    EXPECT_EQ(other.last_offset, 0U);
    EXPECT_TRUE(bus_.read(Port{0x11}, one, hint));
    EXPECT_EQ(device_.last_offset, 1U);
    EXPECT_FALSE(bus_.write(Port{0x18}, one, hint));
    EXPECT_TRUE(bus_.write(Port{0x12}, one, hint));
    bus_.remove(ports(0x10, 4)).value();
    EXPECT_FALSE(bus_.read(Port{0x11}, one, hint));
    EXPECT_TRUE(bus_.read(Port{0x23}, one, hint));
    EXPECT_EQ(other.last_offset, 3U);
}

}  // namespace
}  // namespace vmm::bus
