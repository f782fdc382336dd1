// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <future>
#include <latch>
#include <limits>
#include <optional>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmm/event_loop.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm {
namespace {

using namespace std::chrono_literals;

constexpr auto long_enough = 30s;
constexpr std::uint64_t an_hour = 3'600'000'000'000;

class EventLoopTest : public ::testing::Test {
protected:
    /// Returns when everything posted before, and every callback begun before, is over.
    void settle()
    {
        std::promise<void> done;
        loop_->post([&done] { done.set_value(); });
        ASSERT_EQ(done.get_future().wait_for(long_enough), std::future_status::ready);
    }

    /// Waits, on the loop's own clock, until it has had the occasion to expire a timer set before.
    void pass(std::uint64_t ns)
    {
        std::promise<void> done;
        const auto timer = loop_->create_timer([&done] { done.set_value(); });
        timer->arm(loop_->now_ns() + ns);
        ASSERT_EQ(done.get_future().wait_for(long_enough), std::future_status::ready);
    }

    std::unique_ptr<EventLoop> loop_{EventLoop::create().value()};
};

TEST_F(EventLoopTest, PostedFunctionsRunInOrderOnTheLoopsThread)
{
    std::vector<int> order;
    std::atomic<bool> elsewhere{false};
    for (int i = 0; i < 100; ++i) {
        loop_->post([&, i] {
            order.push_back(i);
            elsewhere = elsewhere || !loop_->is_loop_thread();
        });
    }
    settle();

    EXPECT_EQ(order.size(), 100U);
    EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
    EXPECT_FALSE(elsewhere);
    EXPECT_FALSE(loop_->is_loop_thread());
}

TEST_F(EventLoopTest, ATimerExpiresAtItsDeadlineAndNotBefore)
{
    std::promise<std::uint64_t> expired;
    const auto timer = loop_->create_timer([&] { expired.set_value(loop_->now_ns()); });
    const std::uint64_t deadline = loop_->now_ns() + 5'000'000;
    timer->arm(deadline);

    auto future = expired.get_future();
    ASSERT_EQ(future.wait_for(long_enough), std::future_status::ready);
    EXPECT_GE(future.get(), deadline);
}

TEST_F(EventLoopTest, ADeadlineInThePastExpiresOnTheLoopsThread)
{
    std::promise<bool> expired;
    const auto timer = loop_->create_timer([&] { expired.set_value(loop_->is_loop_thread()); });
    timer->arm(0);

    auto future = expired.get_future();
    ASSERT_EQ(future.wait_for(long_enough), std::future_status::ready);
    EXPECT_TRUE(future.get());
}

TEST_F(EventLoopTest, ATimerExpiresOnce)
{
    std::atomic<int> count{0};
    const auto timer = loop_->create_timer([&] { ++count; });
    timer->arm(loop_->now_ns());
    pass(3'000'000);

    EXPECT_EQ(count, 1);
}

TEST_F(EventLoopTest, AnEarlierDeadlineReplacesALater)
{
    std::promise<void> expired;
    const auto timer = loop_->create_timer([&] { expired.set_value(); });
    timer->arm(loop_->now_ns() + an_hour);
    timer->arm(loop_->now_ns() + 1'000'000);

    EXPECT_EQ(expired.get_future().wait_for(long_enough), std::future_status::ready);
}

TEST_F(EventLoopTest, ALaterDeadlineReplacesAnEarlier)
{
    std::promise<std::uint64_t> expired;
    const auto timer = loop_->create_timer([&] { expired.set_value(loop_->now_ns()); });
    const std::uint64_t now = loop_->now_ns();
    timer->arm(now + 2'000'000);
    timer->arm(now + 20'000'000);

    auto future = expired.get_future();
    ASSERT_EQ(future.wait_for(long_enough), std::future_status::ready);
    EXPECT_GE(future.get(), now + 20'000'000);
}

TEST_F(EventLoopTest, ACancelledTimerDoesNotExpireAndCanBeArmedAgain)
{
    std::atomic<int> count{0};
    const auto timer = loop_->create_timer([&] { ++count; });
    timer->arm(loop_->now_ns() + 10'000'000);
    timer->cancel();
    pass(20'000'000);
    EXPECT_EQ(count, 0);

    timer->arm(loop_->now_ns());
    pass(3'000'000);
    EXPECT_EQ(count, 1);
}

TEST_F(EventLoopTest, TheLastDeadlineOfAllIsFine)
{
    std::atomic<int> count{0};
    const auto timer = loop_->create_timer([&] { ++count; });
    timer->arm(std::numeric_limits<std::uint64_t>::max());
    pass(2'000'000);
    EXPECT_EQ(count, 0);
}

TEST_F(EventLoopTest, ATimerMayArmItself)
{
    std::promise<void> done;
    int count = 0;
    std::unique_ptr<Timer> timer;
    timer = loop_->create_timer([&] {
        if (++count == 10) {
            done.set_value();
        } else {
            timer->arm(loop_->now_ns() + 1000);
        }
    });
    timer->arm(loop_->now_ns());

    EXPECT_EQ(done.get_future().wait_for(long_enough), std::future_status::ready);
    settle();
    EXPECT_EQ(count, 10);
}

TEST_F(EventLoopTest, ATimerMayDestroyItself)
{
    std::promise<void> done;
    std::unique_ptr<Timer> timer;
    timer = loop_->create_timer([&] {
        timer.reset();
        done.set_value();
    });
    timer->arm(loop_->now_ns());

    EXPECT_EQ(done.get_future().wait_for(long_enough), std::future_status::ready);
    settle();
}

TEST_F(EventLoopTest, DestroyingATimerWaitsForItsRunningCall)
{
    std::latch begun{1};
    std::latch go_on{1};
    std::atomic<bool> ended{false};
    auto timer = loop_->create_timer([&] {
        begun.count_down();
        go_on.wait();
        ended = true;
    });
    timer->arm(loop_->now_ns());
    begun.wait();
    std::jthread releaser{[&] { go_on.count_down(); }};
    timer.reset();

    EXPECT_TRUE(ended);
}

TEST_F(EventLoopTest, TimersMayOutliveTheLoop)
{
    std::atomic<int> count{0};
    auto timer = loop_->create_timer([&] { ++count; });
    timer->arm(loop_->now_ns() + an_hour);
    loop_.reset();
    timer->arm(0);
    timer->cancel();
    timer.reset();

    EXPECT_EQ(count, 0);
}

TEST_F(EventLoopTest, APostedFunctionThatOwnsATimerIsNotLeakedWithTheLoop)
{
    std::latch begun{1};
    std::latch go_on{1};
    loop_->post([&] {
        begun.count_down();
        go_on.wait();
    });
    begun.wait();
    auto token = std::make_shared<int>(1);
    std::shared_ptr<Timer> timer = loop_->create_timer([] {});
    loop_->post([token, timer] { timer->arm(0); });
    timer.reset();
    std::jthread releaser{[&] { go_on.count_down(); }};
    loop_.reset();

    EXPECT_EQ(token.use_count(), 1);
}

TEST_F(EventLoopTest, ManyThreadsMayArmAndCancelAndDestroy)
{
    std::atomic<std::uint64_t> count{0};
    const auto shared = loop_->create_timer([&] { ++count; });
    const auto work = [&](unsigned seed) {
        for (unsigned i = 0; i < 500; ++i) {
            shared->arm(loop_->now_ns() + (i * seed) % 1000);
            auto own = loop_->create_timer([&] { ++count; });
            own->arm(loop_->now_ns() + (i % 3) * 10'000);
            if (i % 2 == 0) {
                own->cancel();
                shared->cancel();
            }
        }
    };
    {
        std::jthread first{work, 7U};
        std::jthread second{work, 13U};
        work(17);
    }
    shared->arm(loop_->now_ns());
    pass(1'000'000);
    EXPECT_GE(count, 1U);
}

class WatchTest : public EventLoopTest {
protected:
    void SetUp() override
    {
        std::array<int, 2> ends{};
        ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
        reader_.reset(ends[0]);
        writer_.reset(ends[1]);
    }
    void put(char byte) { ASSERT_EQ(::write(writer_.get(), &byte, 1), 1); }
    [[nodiscard]] char take()
    {
        char byte = 0;
        return ::read(reader_.get(), &byte, 1) == 1 ? byte : '\0';
    }

    UniqueFd reader_;
    UniqueFd writer_;
};

TEST_F(WatchTest, CallsUntilAllIsRead)
{
    std::promise<std::string> got;
    std::string text;
    const auto watch = loop_
                           ->watch_readable(reader_.get(),
                                            [&] {
                                                text.push_back(take());
                                                if (text.size() == 3) {
                                                    got.set_value(text);
                                                }
                                            })
                           .value();
    put('a');
    put('b');
    put('c');

    auto future = got.get_future();
    ASSERT_EQ(future.wait_for(long_enough), std::future_status::ready);
    EXPECT_EQ(future.get(), "abc");
}

TEST_F(WatchTest, LeavesTheDescriptorBlocking)
{
    const auto watch = loop_->watch_readable(reader_.get(), [] {}).value();
    settle();
    EXPECT_EQ(::fcntl(reader_.get(), F_GETFL) & O_NONBLOCK, 0);
}

TEST_F(WatchTest, WorksAfterTheCallersDescriptorIsClosed)
{
    std::promise<void> called;
    EventLoop::Watch watch;
    std::latch assigned{1};
    watch = loop_
                ->watch_readable(reader_.get(),
                                 [&] {
                                     assigned.wait();
                                     called.set_value();
                                     watch.suspend();
                                 })
                .value();
    assigned.count_down();
    reader_.reset();
    put('x');
    EXPECT_EQ(called.get_future().wait_for(long_enough), std::future_status::ready);
    settle();
}

TEST_F(WatchTest, TellsTheEnd)
{
    std::promise<char> got;
    EventLoop::Watch watch;
    std::latch assigned{1};
    watch = loop_
                ->watch_readable(reader_.get(),
                                 [&] {
                                     assigned.wait();
                                     got.set_value(take());
                                     watch.reset();
                                 })
                .value();
    assigned.count_down();
    writer_.reset();

    auto future = got.get_future();
    ASSERT_EQ(future.wait_for(long_enough), std::future_status::ready);
    EXPECT_EQ(future.get(), '\0');
    settle();
}

TEST_F(WatchTest, SuspendedItDoesNotCallEvenAtAHangUp)
{
    std::atomic<int> calls{0};
    auto watch = loop_->watch_readable(reader_.get(), [&] { ++calls; }).value();
    watch.suspend();
    settle();
    const int before = calls;
    put('x');
    writer_.reset();
    pass(2'000'000);
    EXPECT_EQ(calls, before);

    watch.resume();
    pass(2'000'000);
    EXPECT_GT(calls, before);
}

TEST_F(WatchTest, AfterResetItDoesNotCall)
{
    std::atomic<int> calls{0};
    auto watch = loop_->watch_readable(reader_.get(), [&] { ++calls; }).value();
    watch.reset();
    EXPECT_FALSE(watch);
    put('x');
    pass(2'000'000);
    EXPECT_EQ(calls, 0);
}

TEST_F(WatchTest, TwoWatchesOfOneDescriptorBothCall)
{
    std::latch both{2};
    EventLoop::Watch first;
    EventLoop::Watch second;
    std::latch assigned{1};
    first = loop_
                ->watch_readable(reader_.get(),
                                 [&] {
                                     assigned.wait();
                                     both.count_down();
                                     first.reset();
                                 })
                .value();
    second = loop_
                 ->watch_readable(reader_.get(),
                                  [&] {
                                      assigned.wait();
                                      both.count_down();
                                      second.reset();
                                  })
                 .value();
    assigned.count_down();
    put('x');
    both.wait();
    settle();
}

TEST_F(EventLoopTest, ARegularFileIsAlwaysReadable)
{
    const UniqueFd null{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
    UniqueFd file{::open("/proc/self/exe", O_RDONLY | O_CLOEXEC)};
    for (const int fd : {null.get(), file.get()}) {
        std::atomic<int> calls{0};
        std::promise<void> thrice;
        auto watch = loop_
                         ->watch_readable(fd,
                                          [&] {
                                              if (++calls == 3) {
                                                  thrice.set_value();
                                              }
                                          })
                         .value();
        ASSERT_EQ(thrice.get_future().wait_for(long_enough), std::future_status::ready);
        watch.suspend();
        watch.resume();
        watch.suspend();
        settle();
        const int before = calls;
        settle();
        EXPECT_EQ(calls, before);
    }
}

TEST_F(EventLoopTest, WatchesMayOutliveTheLoop)
{
    const UniqueFd event{::eventfd(1, EFD_CLOEXEC)};
    auto watch = loop_->watch_readable(event.get(), [] {}).value();
    loop_.reset();
    watch.suspend();
    watch.resume();
    watch.reset();
}

TEST_F(EventLoopTest, ABadDescriptorIsRefused)
{
    const auto watch = loop_->watch_readable(-1, [] {});
    ASSERT_FALSE(watch);
    EXPECT_EQ(watch.error().errno_value(), EBADF);
}

}  // namespace
}  // namespace vmm
