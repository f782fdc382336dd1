// SPDX-License-Identifier: Apache-2.0

#include "vmm/event_loop.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "bus/asio.hpp"
#include "vmm/assert.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm {

namespace {

using Clock = std::chrono::steady_clock;

/// Asio waits no longer than this at a time, so that no deadline can overflow its arithmetic.
constexpr std::uint64_t longest_wait_ns = 3'600'000'000'000;

[[nodiscard]] std::uint64_t steady_now_ns() noexcept
{
    const auto since_boot = Clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(since_boot).count());
}

/// Blocks every signal in the calling thread; threads started meanwhile inherit that.
class SignalsBlocked final {
public:
    SignalsBlocked() noexcept
    {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;
    SignalsBlocked(SignalsBlocked&&) = delete;
    SignalsBlocked& operator=(SignalsBlocked&&) = delete;

private:
    sigset_t before_{};
};

}  // namespace

/// A watch, as its owner and the loop share it.
struct EventLoop::WatchState final {
    std::mutex mutex;
    std::condition_variable idle;
    std::function<void()> callback;
    std::weak_ptr<Impl> loop;
    UniqueFd fd;
    std::uint64_t id{};
    bool pollable{true};
    bool enabled{true};
    bool closed{false};
    bool running{false};
    // A call for a descriptor epoll does not take is on its way.
    bool queued{false};
};

/// Lock order: WatchState::mutex before Impl::mutex.
struct EventLoop::Impl final : std::enable_shared_from_this<EventLoop::Impl> {
    explicit Impl(UniqueFd epoll_fd) : epoll{std::move(epoll_fd)} {}

    void run();
    void await_readable();
    void dispatch_readable();
    void run_watch(std::uint64_t id);
    void post_always_readable(std::uint64_t id);
    void run_posted();
    void stop();
    [[nodiscard]] bool is_loop_thread() const noexcept
    {
        return thread_id.load(std::memory_order_relaxed) == std::this_thread::get_id();
    }

    boost::asio::io_context context{1};
    boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work{
        context.get_executor()};
    // Asio would put each watched descriptor into non-blocking mode, which for a terminal is
    // shared with the shell that started us.  So it watches only this one, which watches them.
    UniqueFd epoll;
    std::optional<boost::asio::posix::stream_descriptor> epoll_watch;

    std::mutex mutex;
    std::unordered_map<std::uint64_t, std::weak_ptr<WatchState>> watches;
    std::uint64_t next_id{1};
    std::deque<std::function<void()>> posted;

    // Written by the thread itself before its first callback; others only compare for equality.
    std::atomic<std::thread::id> thread_id{};
    std::thread thread;
};

void EventLoop::Impl::run()
{
    thread_id.store(std::this_thread::get_id(), std::memory_order_relaxed);
    await_readable();
    context.run();
}

void EventLoop::Impl::await_readable()
{
    epoll_watch->async_wait(boost::asio::posix::stream_descriptor::wait_read,
                            [this](const boost::system::error_code& error) {
                                if (!error) {
                                    dispatch_readable();
                                    await_readable();
                                }
                            });
}

void EventLoop::Impl::dispatch_readable()
{
    std::array<epoll_event, 32> events{};
    const int count = ::epoll_wait(epoll.get(), events.data(), static_cast<int>(events.size()), 0);
    for (int i = 0; i < count; ++i) {
        run_watch(events[static_cast<std::size_t>(i)].data.u64);
    }
}

void EventLoop::Impl::run_watch(std::uint64_t id)
{
    std::shared_ptr<WatchState> watch;
    {
        const std::lock_guard lock{mutex};
        if (const auto found = watches.find(id); found != watches.end()) {
            watch = found->second.lock();
        }
    }
    if (!watch) {
        return;
    }
    {
        const std::lock_guard lock{watch->mutex};
        watch->queued = false;
        if (watch->closed || !watch->enabled) {
            return;
        }
        watch->running = true;
    }
    watch->callback();
    bool again = false;
    {
        const std::lock_guard lock{watch->mutex};
        watch->running = false;
        again = !watch->pollable && watch->enabled && !watch->closed;
        watch->queued = again;
    }
    watch->idle.notify_all();
    if (again) {
        post_always_readable(id);
    }
}

void EventLoop::Impl::post_always_readable(std::uint64_t id)
{
    boost::asio::post(context, [this, id] { run_watch(id); });
}

void EventLoop::Impl::run_posted()
{
    std::function<void()> function;
    {
        const std::lock_guard lock{mutex};
        if (posted.empty()) {
            return;
        }
        function = std::move(posted.front());
        posted.pop_front();
    }
    function();
}

void EventLoop::Impl::stop()
{
    context.stop();
    thread.join();
    std::deque<std::function<void()>> dropped;
    {
        const std::lock_guard lock{mutex};
        dropped.swap(posted);
    }
}

Result<std::unique_ptr<EventLoop>> EventLoop::create()
{
    UniqueFd epoll{::epoll_create1(EPOLL_CLOEXEC)};
    if (!epoll) {
        return Error::from_errno("create event loop: epoll_create1");
    }
    // Asio closes the descriptor it is given.
    const int watched = ::fcntl(epoll.get(), F_DUPFD_CLOEXEC, 0);
    if (watched < 0) {
        return Error::from_errno("create event loop: fcntl(F_DUPFD_CLOEXEC)");
    }
    try {
        UniqueFd guard{watched};
        auto impl = std::make_shared<Impl>(std::move(epoll));
        impl->epoll_watch.emplace(impl->context, guard.get());
        static_cast<void>(guard.release());
        const SignalsBlocked blocked;
        impl->thread = std::thread{[raw = impl.get()] { raw->run(); }};
        return std::unique_ptr<EventLoop>{new EventLoop{std::move(impl)}};
    } catch (const std::system_error& error) {
        return Error{static_cast<std::errc>(error.code().value()),
                     std::string{"create event loop: "} + error.what()};
    }
}

EventLoop::EventLoop(std::shared_ptr<Impl> impl) noexcept : impl_{std::move(impl)} {}

EventLoop::~EventLoop()
{
    VMM_ASSERT(!is_loop_thread());
    impl_->stop();
}

std::uint64_t EventLoop::now_ns() const noexcept
{
    return steady_now_ns();
}

bool EventLoop::is_loop_thread() const noexcept
{
    return impl_->is_loop_thread();
}

void EventLoop::post(std::function<void()> function)
{
    {
        const std::lock_guard lock{impl_->mutex};
        impl_->posted.push_back(std::move(function));
    }
    // The context owns no function of the caller's: one may own a timer, which owns the context.
    boost::asio::post(impl_->context, [impl = impl_.get()] { impl->run_posted(); });
}

// --- timers -------------------------------------------------------------------------------------

/// Guests re-arm their timer far more often than it expires.  So `arm()` with a later deadline and
/// `cancel()` only note it: Asio wakes at the earlier one and then waits for the rest.
class EventLoop::LoopTimer final : public Timer {
public:
    LoopTimer(std::shared_ptr<Impl> loop, std::function<void()> on_expiry)
        : state_{std::make_shared<State>(std::move(loop), std::move(on_expiry))}
    {
    }

    ~LoopTimer() override
    {
        std::unique_lock lock{state_->mutex};
        state_->dead = true;
        state_->deadline_ns.reset();
        state_->wait.cancel();
        if (!state_->loop->is_loop_thread()) {
            state_->idle.wait(lock, [this] { return !state_->running; });
        }
    }

    void arm(std::uint64_t deadline_ns) override
    {
        const std::lock_guard lock{state_->mutex};
        state_->deadline_ns = deadline_ns;
        if (!state_->scheduled_ns || deadline_ns < *state_->scheduled_ns) {
            State::schedule_locked(state_, deadline_ns);
        }
    }

    void cancel() override
    {
        const std::lock_guard lock{state_->mutex};
        state_->deadline_ns.reset();
    }

private:
    struct State final {
        State(std::shared_ptr<Impl> its_loop, std::function<void()> function)
            : loop{std::move(its_loop)},
              on_expiry{std::move(function)},
              wait{loop->context}
        {
        }

        static void schedule_locked(const std::shared_ptr<State>& state, std::uint64_t deadline_ns);
        static void wake(const std::shared_ptr<State>& state, std::uint64_t generation);

        std::mutex mutex;
        std::condition_variable idle;
        std::shared_ptr<Impl> loop;
        std::function<void()> on_expiry;
        boost::asio::steady_timer wait;
        // What the owner asked for, and the wake-up Asio has been asked for: never later.
        std::optional<std::uint64_t> deadline_ns;
        std::optional<std::uint64_t> scheduled_ns;
        std::uint64_t generation{0};
        bool dead{false};
        bool running{false};
    };

    std::shared_ptr<State> state_;
};

void EventLoop::LoopTimer::State::schedule_locked(const std::shared_ptr<State>& state,
                                                  std::uint64_t deadline_ns)
{
    const std::uint64_t now = steady_now_ns();
    const std::uint64_t wake_ns = std::min(std::max(deadline_ns, now), now + longest_wait_ns);
    state->scheduled_ns = wake_ns;
    const std::uint64_t generation = ++state->generation;
    state->wait.expires_at(Clock::time_point{
        std::chrono::nanoseconds{static_cast<std::chrono::nanoseconds::rep>(wake_ns)}});
    // Weak: the context must not own the state, which owns the context.
    state->wait.async_wait(
        [weak = std::weak_ptr<State>{state}, generation](const boost::system::error_code&) {
            if (const std::shared_ptr<State> alive = weak.lock()) {
                wake(alive, generation);
            }
        });
}

void EventLoop::LoopTimer::State::wake(const std::shared_ptr<State>& state,
                                       std::uint64_t generation)
{
    {
        const std::lock_guard lock{state->mutex};
        if (state->dead || generation != state->generation) {
            return;
        }
        state->scheduled_ns.reset();
        if (!state->deadline_ns) {
            return;
        }
        if (*state->deadline_ns > steady_now_ns()) {
            schedule_locked(state, *state->deadline_ns);
            return;
        }
        state->deadline_ns.reset();
        state->running = true;
    }
    state->on_expiry();
    {
        const std::lock_guard lock{state->mutex};
        state->running = false;
    }
    state->idle.notify_all();
}

std::unique_ptr<Timer> EventLoop::create_timer(std::function<void()> on_expiry)
{
    return std::make_unique<LoopTimer>(impl_, std::move(on_expiry));
}

// --- file descriptors
// -----------------------------------------------------------------------------

Result<EventLoop::Watch> EventLoop::watch_readable(int fd, std::function<void()> callback)
{
    auto state = std::make_shared<WatchState>();
    state->fd.reset(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!state->fd) {
        return Error::from_errno("watch descriptor " + std::to_string(fd));
    }
    state->callback = std::move(callback);
    state->loop = impl_;
    {
        const std::lock_guard lock{impl_->mutex};
        state->id = impl_->next_id++;
        impl_->watches.emplace(state->id, state);
    }
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = state->id;
    if (::epoll_ctl(impl_->epoll.get(), EPOLL_CTL_ADD, state->fd.get(), &event) == 0) {
        return Watch{std::move(state)};
    }
    if (errno == EPERM) {
        // A regular file or the like: epoll refuses what would always be ready.
        state->pollable = false;
        state->queued = true;
        impl_->post_always_readable(state->id);
        return Watch{std::move(state)};
    }
    Error error = Error::from_errno("watch descriptor " + std::to_string(fd));
    const std::lock_guard lock{impl_->mutex};
    impl_->watches.erase(state->id);
    return error;
}

EventLoop::Watch::Watch() noexcept = default;
EventLoop::Watch::Watch(Watch&& other) noexcept = default;
EventLoop::Watch::Watch(std::shared_ptr<WatchState> state) noexcept : state_{std::move(state)} {}

EventLoop::Watch& EventLoop::Watch::operator=(Watch&& other) noexcept
{
    if (this != &other) {
        reset();
        state_ = std::move(other.state_);
    }
    return *this;
}

EventLoop::Watch::~Watch()
{
    reset();
}

void EventLoop::Watch::reset() noexcept
{
    const std::shared_ptr<WatchState> state = std::move(state_);
    if (!state) {
        return;
    }
    const std::shared_ptr<Impl> loop = state->loop.lock();
    std::unique_lock lock{state->mutex};
    state->closed = true;
    if (!loop) {
        return;
    }
    if (state->pollable && state->enabled) {
        ::epoll_ctl(loop->epoll.get(), EPOLL_CTL_DEL, state->fd.get(), nullptr);
    }
    {
        const std::lock_guard table{loop->mutex};
        loop->watches.erase(state->id);
    }
    if (!loop->is_loop_thread()) {
        state->idle.wait(lock, [&state] { return !state->running; });
    }
}

void EventLoop::Watch::suspend() noexcept
{
    if (!state_) {
        return;
    }
    const std::lock_guard lock{state_->mutex};
    if (!std::exchange(state_->enabled, false) || !state_->pollable) {
        return;
    }
    // Removed, not masked: epoll reports a hang-up whatever the mask, forever.
    if (const auto loop = state_->loop.lock()) {
        ::epoll_ctl(loop->epoll.get(), EPOLL_CTL_DEL, state_->fd.get(), nullptr);
    }
}

void EventLoop::Watch::resume() noexcept
{
    if (!state_) {
        return;
    }
    const std::lock_guard lock{state_->mutex};
    const auto loop = state_->loop.lock();
    if (std::exchange(state_->enabled, true) || !loop) {
        return;
    }
    if (!state_->pollable) {
        // While it runs, its end posts the next call.
        if (!state_->running && !std::exchange(state_->queued, true)) {
            loop->post_always_readable(state_->id);
        }
        return;
    }
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = state_->id;
    ::epoll_ctl(loop->epoll.get(), EPOLL_CTL_ADD, state_->fd.get(), &event);
}

}  // namespace vmm
