// SPDX-License-Identifier: Apache-2.0

/// @file
/// The thread that waits, so that virtual CPUs need not: timers, file descriptors and functions
/// posted by other threads, each called back on one thread of the library's own.
///
///     auto loop = vmm::EventLoop::create().value();
///     auto timer = loop->create_timer([&] { … });
///     timer->arm(loop->now_ns() + 1'000'000);
///     auto watch = loop->watch_readable(fd, [&] { … read(fd) … }).value();

#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "vmm/export.hpp"
#include "vmm/result.hpp"
#include "vmm/timer.hpp"

namespace vmm {

/// One thread that calls back.
///
/// Callbacks run one at a time, on the loop's thread, with every signal blocked.  They must not
/// throw.  A callback may create, arm, cancel and destroy timers and watches, its own too, and
/// may post; it must not destroy the loop.
///
/// Timers and watches may outlive the loop: they never call again.
///
/// Thread safety: every member but the destructor may be called from any thread.
class VMM_API EventLoop final : public TimerService {
    struct Impl;
    struct WatchState;

public:
    /// A file descriptor being watched.  Destroying it ends the watch and waits for a running call
    /// to end, unless destroyed on the loop's thread.
    ///
    /// Thread safety: `suspend()` and `resume()` may be called from any thread.
    class VMM_API Watch final {
    public:
        /// Watches nothing.
        Watch() noexcept;
        Watch(Watch&& other) noexcept;
        Watch& operator=(Watch&& other) noexcept;
        Watch(const Watch&) = delete;
        Watch& operator=(const Watch&) = delete;
        ~Watch();

        /// Ends the watch, as the destructor does.
        void reset() noexcept;
        /// No call begins after this returns until `resume()`; one may still be running.
        void suspend() noexcept;
        void resume() noexcept;
        [[nodiscard]] explicit operator bool() const noexcept { return state_ != nullptr; }

    private:
        friend class EventLoop;
        explicit Watch(std::shared_ptr<WatchState> state) noexcept;

        std::shared_ptr<WatchState> state_;
    };

    /// Starts the thread.
    ///
    /// Errors: EMFILE, ENFILE, ENOMEM, EAGAIN where the host has no descriptor or thread to give.
    [[nodiscard]] static Result<std::unique_ptr<EventLoop>> create();

    /// Waits for a running callback and stops the thread.  Functions posted and not yet called are
    /// dropped.
    /// @pre not called on the loop's thread
    ~EventLoop() override;

    /// CLOCK_MONOTONIC.
    [[nodiscard]] std::uint64_t now_ns() const noexcept override;
    [[nodiscard]] std::unique_ptr<Timer> create_timer(std::function<void()> on_expiry) override;

    /// Calls back whenever `fd` can be read without blocking, at its end and on its errors, again
    /// and again until `callback` has read what there is (level-triggered).  Regular files and
    /// others that poll(2) does not know are always readable.
    ///
    /// The loop keeps a duplicate, so the caller may close `fd`; it changes no flag of it.
    ///
    /// Errors: EBADF, EMFILE, ENOMEM, ENOSPC.
    [[nodiscard]] Result<Watch> watch_readable(int fd, std::function<void()> callback);

    /// Calls `function` once, soon, on the loop's thread; functions posted by one thread run in
    /// the order posted.
    void post(std::function<void()> function);

    /// Whether the caller runs on the loop's thread.
    [[nodiscard]] bool is_loop_thread() const noexcept;

private:
    class LoopTimer;
    explicit EventLoop(std::shared_ptr<Impl> impl) noexcept;

    std::shared_ptr<Impl> impl_;
};

}  // namespace vmm
