// SPDX-License-Identifier: Apache-2.0

#include <array>
#include <chrono>
#include <condition_variable>
#include <future>
#include <mutex>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmm/device/irqfd.hpp"

namespace vmm::device {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

[[nodiscard]] UniqueFd make_eventfd(unsigned count = 0)
{
    return UniqueFd{::eventfd(count, EFD_CLOEXEC)};  // Blocking: the harder case.
}

class IrqfdTest : public ::testing::Test {
protected:
    using Change = std::pair<std::uint32_t, bool>;

    void record(std::uint32_t gsi, bool level)
    {
        {
            const std::lock_guard lock{mutex_};
            changes_.emplace_back(gsi, level);
        }
        changed_.notify_all();
    }
    [[nodiscard]] std::vector<Change> wait_for(std::size_t count)
    {
        std::unique_lock lock{mutex_};
        changed_.wait_for(lock, 30s, [&] { return changes_.size() >= count; });
        return changes_;
    }
    /// Lets the loop look at its descriptors twice.
    void settle()
    {
        const UniqueFd probe = make_eventfd(1);
        for (int i = 0; i < 2; ++i) {
            std::promise<void> seen;
            EventLoop::Watch watch;
            std::promise<void> assigned;
            auto ready = assigned.get_future();
            watch = loop_
                        ->watch_readable(probe.get(),
                                         [&] {
                                             ready.wait();
                                             watch.reset();
                                             seen.set_value();
                                         })
                        .value();
            assigned.set_value();
            seen.get_future().wait();
        }
    }
    static void signal(const UniqueFd& fd)
    {
        const std::uint64_t one = 1;
        ASSERT_EQ(::write(fd.get(), &one, sizeof one), 8);
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<Change> changes_;
    std::unique_ptr<EventLoop> loop_{EventLoop::create().value()};
    IrqfdTable table_{*loop_, [this](std::uint32_t gsi, bool level) { record(gsi, level); }};
};

TEST_F(IrqfdTest, ASignalIsAPulse)
{
    const UniqueFd event = make_eventfd();
    ASSERT_TRUE(table_.assign(event.get(), 5));
    signal(event);
    EXPECT_THAT(wait_for(2), ElementsAre(Change{5, true}, Change{5, false}));
    signal(event);
    EXPECT_EQ(wait_for(4).size(), 4U);
}

TEST_F(IrqfdTest, ASignalGivenBeforeTheAssignmentCounts)
{
    const UniqueFd event = make_eventfd(3);
    ASSERT_TRUE(table_.assign(event.get(), 7));
    EXPECT_THAT(wait_for(2), ElementsAre(Change{7, true}, Change{7, false}));
}

TEST_F(IrqfdTest, ADescriptorMayBeClosedOnceAssigned)
{
    UniqueFd event = make_eventfd();
    const UniqueFd other{::dup(event.get())};
    ASSERT_TRUE(table_.assign(event.get(), 5));
    event.reset();
    signal(other);
    EXPECT_EQ(wait_for(2).size(), 2U);
}

TEST_F(IrqfdTest, OneEventfdServesOneGsi)
{
    const UniqueFd event = make_eventfd();
    const UniqueFd same{::dup(event.get())};
    const UniqueFd other = make_eventfd();
    ASSERT_TRUE(table_.assign(event.get(), 5));
    for (const int fd : {event.get(), same.get()}) {
        const auto again = table_.assign(fd, 5000);
        ASSERT_FALSE(again);
        EXPECT_EQ(again.error().errno_value(), EBUSY);
    }
    EXPECT_TRUE(table_.assign(other.get(), 5));
}

TEST_F(IrqfdTest, BadDescriptorsAreRefused)
{
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const UniqueFd reader{ends[0]};
    const UniqueFd writer{ends[1]};
    const UniqueFd event = make_eventfd();

    EXPECT_EQ(table_.assign(-1, 5).error().errno_value(), EBADF);
    EXPECT_EQ(table_.assign(reader.get(), 5).error().errno_value(), EINVAL);
    EXPECT_EQ(table_.assign_resample(event.get(), 5, -1).error().errno_value(), EBADF);
    EXPECT_EQ(table_.deassign(-1, 5).error().errno_value(), EBADF);
    EXPECT_TRUE(table_.assign(event.get(), 5));
}

TEST_F(IrqfdTest, DeassignedItIsSilentAndFree)
{
    const UniqueFd event = make_eventfd();
    ASSERT_TRUE(table_.assign(event.get(), 5));
    EXPECT_TRUE(table_.deassign(event.get(), 6));  // Not that pair: no error, no effect.
    EXPECT_FALSE(table_.assign(event.get(), 6));
    EXPECT_TRUE(table_.deassign(event.get(), 5));
    EXPECT_TRUE(table_.deassign(event.get(), 5));
    signal(event);
    settle();
    EXPECT_THAT(wait_for(0), IsEmpty());
    EXPECT_TRUE(table_.assign(event.get(), 6));
    EXPECT_THAT(wait_for(2), ElementsAre(Change{6, true}, Change{6, false}));
}

TEST_F(IrqfdTest, AResamplingOneStaysUpUntilAcknowledged)
{
    const UniqueFd event = make_eventfd();
    const UniqueFd resample = make_eventfd();
    const EventFd resample_view = EventFd::from_fd(resample.get()).value();
    ASSERT_TRUE(table_.assign_resample(event.get(), 11, resample.get()));
    signal(event);
    EXPECT_THAT(wait_for(1), ElementsAre(Change{11, true}));
    EXPECT_EQ(resample_view.take(), 0U);

    table_.acknowledge(10);
    EXPECT_EQ(resample_view.take(), 0U);
    table_.acknowledge(11);
    EXPECT_THAT(wait_for(2), ElementsAre(Change{11, true}, Change{11, false}));
    EXPECT_EQ(resample_view.take(), 1U);
}

TEST_F(IrqfdTest, DeassigningAResamplingOneLowersTheLine)
{
    const UniqueFd event = make_eventfd();
    const UniqueFd resample = make_eventfd();
    ASSERT_TRUE(table_.assign_resample(event.get(), 11, resample.get()));
    signal(event);
    EXPECT_EQ(wait_for(1).size(), 1U);
    ASSERT_TRUE(table_.deassign(event.get(), 11));
    EXPECT_THAT(wait_for(2), ElementsAre(Change{11, true}, Change{11, false}));
}

TEST(EventFd, AFullCountDoesNotBlockTheSignaller)
{
    const UniqueFd fd = make_eventfd();
    const std::uint64_t most = 0xffff'ffff'ffff'fffe;
    ASSERT_EQ(::write(fd.get(), &most, sizeof most), 8);
    const EventFd event = EventFd::from_fd(fd.get()).value();
    event.signal();
    EXPECT_EQ(event.take(), most);
    EXPECT_EQ(event.take(), 0U);
    event.signal();
    event.signal();
    EXPECT_EQ(event.take(), 2U);
}

}  // namespace
}  // namespace vmm::device
