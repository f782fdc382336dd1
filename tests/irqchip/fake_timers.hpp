// SPDX-License-Identifier: Apache-2.0

/// @file
/// A clock that the test turns by hand.

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "vmm/timer.hpp"

namespace vmm::test {

/// Expiries happen inside `advance()`, in the order of their deadlines.
///
/// Thread safety: all members from any thread, but one thread at a time advances.
class FakeTimers final : public TimerService {
public:
    explicit FakeTimers(std::uint64_t now_ns = 1'000'000) : now_ns_{now_ns} {}

    [[nodiscard]] std::uint64_t now_ns() const noexcept override
    {
        const std::lock_guard lock{mutex_};
        return now_ns_;
    }

    [[nodiscard]] std::unique_ptr<Timer> create_timer(std::function<void()> on_expiry) override
    {
        auto timer = std::make_unique<FakeTimer>(*this, std::move(on_expiry));
        const std::lock_guard lock{mutex_};
        timers_.push_back(timer.get());
        return timer;
    }

    void advance(std::uint64_t ns) { advance_to(now_ns() + ns); }

    void advance_to(std::uint64_t target)
    {
        for (;;) {
            std::function<void()> call;
            {
                const std::lock_guard lock{mutex_};
                FakeTimer* first = first_due(target);
                if (first == nullptr) {
                    now_ns_ = std::max(now_ns_, target);
                    return;
                }
                now_ns_ = std::max(now_ns_, *first->deadline_);
                first->deadline_.reset();
                ++expiries_;
                call = first->on_expiry_;
            }
            call();
        }
    }

    /// The clock jumps, and what expires meanwhile does so late, after the jump.
    void jump(std::uint64_t ns)
    {
        {
            const std::lock_guard lock{mutex_};
            now_ns_ += ns;
        }
        advance(0);
    }

    /// How many timers are armed.
    [[nodiscard]] std::size_t armed() const
    {
        const std::lock_guard lock{mutex_};
        return static_cast<std::size_t>(
            std::count_if(timers_.begin(), timers_.end(),
                          [](const FakeTimer* t) { return t->deadline_.has_value(); }));
    }

    /// How many timers have expired so far.
    [[nodiscard]] std::size_t expiries() const
    {
        const std::lock_guard lock{mutex_};
        return expiries_;
    }

private:
    class FakeTimer final : public Timer {
    public:
        FakeTimer(FakeTimers& service, std::function<void()> on_expiry)
            : service_{service},
              on_expiry_{std::move(on_expiry)}
        {
        }
        FakeTimer(const FakeTimer&) = delete;
        FakeTimer& operator=(const FakeTimer&) = delete;
        FakeTimer(FakeTimer&&) = delete;
        FakeTimer& operator=(FakeTimer&&) = delete;
        ~FakeTimer() override
        {
            const std::lock_guard lock{service_.mutex_};
            auto& all = service_.timers_;
            all.erase(std::remove(all.begin(), all.end(), this), all.end());
        }

        void arm(std::uint64_t deadline_ns) override
        {
            const std::lock_guard lock{service_.mutex_};
            deadline_ = deadline_ns;
        }
        void cancel() override
        {
            const std::lock_guard lock{service_.mutex_};
            deadline_.reset();
        }

    private:
        friend class FakeTimers;

        FakeTimers& service_;
        std::function<void()> on_expiry_;
        std::optional<std::uint64_t> deadline_;
    };

    [[nodiscard]] FakeTimer* first_due(std::uint64_t target) const
    {
        FakeTimer* first = nullptr;
        for (FakeTimer* timer : timers_) {
            if (timer->deadline_ && *timer->deadline_ <= std::max(target, now_ns_) &&
                (first == nullptr || *timer->deadline_ < *first->deadline_)) {
                first = timer;
            }
        }
        return first;
    }

    mutable std::mutex mutex_;
    std::uint64_t now_ns_;
    std::size_t expiries_{};
    std::vector<FakeTimer*> timers_;
};

}  // namespace vmm::test
