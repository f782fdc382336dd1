// SPDX-License-Identifier: Apache-2.0

#include "vmm/device/terminal.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bus/raw_mode.hpp"

namespace vmm::device {

namespace {

constexpr std::byte escape_key{0x01};  // Ctrl-A
constexpr std::size_t typed_ahead_limit = 65536;

constexpr std::string_view help_text = "\r\n"
                                       "Ctrl-A x       quit\r\n"
                                       "Ctrl-A b       send a break\r\n"
                                       "Ctrl-A Ctrl-A  send Ctrl-A\r\n"
                                       "Ctrl-A h       this help\r\n";

/// Keeps SIGPIPE from the process while one thread writes to what may have lost its reader.
class PipeSignalHeld final {
public:
    explicit PipeSignalHeld(bool needed) noexcept : needed_{needed}
    {
        if (!needed_) {
            return;
        }
        sigemptyset(&pipe_);
        sigaddset(&pipe_, SIGPIPE);
        sigset_t pending;
        sigpending(&pending);
        // One that was there before us is not ours to take away.
        was_pending_ = sigismember(&pending, SIGPIPE) == 1;
        pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
    }
    ~PipeSignalHeld()
    {
        if (!needed_) {
            return;
        }
        const int saved_errno = errno;
        if (broken && !was_pending_) {
            const timespec at_once{};
            while (sigtimedwait(&pipe_, nullptr, &at_once) < 0 && errno == EINTR) {
            }
        }
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
        errno = saved_errno;
    }
    PipeSignalHeld(const PipeSignalHeld&) = delete;
    PipeSignalHeld& operator=(const PipeSignalHeld&) = delete;
    PipeSignalHeld(PipeSignalHeld&&) = delete;
    PipeSignalHeld& operator=(PipeSignalHeld&&) = delete;

    bool broken{false};

private:
    bool needed_;
    bool was_pending_{false};
    sigset_t pipe_{};
    sigset_t before_{};
};

/// Whether writing to `fd` can raise SIGPIPE.
[[nodiscard]] bool may_break(int fd) noexcept
{
    struct stat status {};
    return ::fstat(fd, &status) != 0 || S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode);
}

}  // namespace

struct Terminal::Impl final {
    Impl(EventLoop& its_loop, Config its_config)
        : loop{its_loop},
          config{std::move(its_config)},
          pipe_output{may_break(config.output_fd)}
    {
    }

    void on_readable();
    void take_typed(std::span<const std::byte> bytes);
    void offer();
    void end_of_input();
    bool write(std::span<const std::byte> bytes) noexcept;

    EventLoop& loop;
    const Config config;
    bool terminal{false};
    std::atomic<bool> raw{false};

    // Held while calling back, and recursive because a callback may destroy the terminal.
    std::recursive_mutex callbacks;
    bool closed{false};

    // The loop's thread only, once create() is done.
    EventLoop::Watch watch;
    std::vector<std::byte> waiting;
    bool escaped{false};
    bool ended{false};

    std::mutex output_mutex;
    const bool pipe_output;
    bool output_broken{false};
};

void Terminal::Impl::on_readable()
{
    const std::lock_guard lock{callbacks};
    if (closed || ended) {
        return;
    }
    std::array<std::byte, 4096> buffer{};
    const ssize_t count = ::read(config.input_fd, buffer.data(), buffer.size());
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) {
        return;
    }
    if (count <= 0) {
        ended = true;
        watch.suspend();
    } else {
        const std::span bytes{buffer.data(), static_cast<std::size_t>(count)};
        if (terminal) {
            take_typed(bytes);
        } else {
            waiting.insert(waiting.end(), bytes.begin(), bytes.end());
        }
    }
    if (!closed) {
        offer();
    }
}

void Terminal::Impl::take_typed(std::span<const std::byte> bytes)
{
    for (const std::byte byte : bytes) {
        if (closed) {
            return;
        }
        if (!escaped && byte == escape_key) {
            escaped = true;
            continue;
        }
        if (std::exchange(escaped, false) && byte != escape_key) {
            if (byte == std::byte{'x'} && config.on_quit) {
                config.on_quit();
            } else if (byte == std::byte{'b'} && config.on_break) {
                offer();  // The break comes after what was typed before it.
                config.on_break();
            } else if (byte == std::byte{'h'} || byte == std::byte{'?'}) {
                write(std::as_bytes(std::span{help_text}));
            }
            continue;
        }
        if (waiting.size() < typed_ahead_limit) {
            waiting.push_back(byte);
        }
    }
}

void Terminal::Impl::offer()
{
    while (!waiting.empty() && !closed) {
        const std::size_t taken = config.sink ? config.sink(waiting) : waiting.size();
        if (taken == 0) {
            break;
        }
        const std::size_t gone = std::min(taken, waiting.size());
        waiting.erase(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(gone));
    }
    if (closed) {
        return;
    }
    if (ended) {
        if (waiting.empty()) {
            end_of_input();
        }
    } else if (!terminal) {
        if (waiting.empty()) {
            watch.resume();
        } else {
            watch.suspend();
        }
    }
}

void Terminal::Impl::end_of_input()
{
    if (watch) {
        watch.reset();
        if (config.on_end_of_input) {
            config.on_end_of_input();
        }
    }
}

bool Terminal::Impl::write(std::span<const std::byte> bytes) noexcept
{
    const std::lock_guard lock{output_mutex};
    if (output_broken) {
        return false;
    }
    PipeSignalHeld held{pipe_output};
    while (!bytes.empty()) {
        const ssize_t count = ::write(config.output_fd, bytes.data(), bytes.size());
        if (count >= 0) {
            bytes = bytes.subspan(static_cast<std::size_t>(count));
        } else if (errno == EAGAIN) {
            pollfd writable{config.output_fd, POLLOUT, 0};
            static_cast<void>(::poll(&writable, 1, -1));
        } else if (errno != EINTR) {
            held.broken = errno == EPIPE;
            output_broken = true;
            return false;
        }
    }
    return true;
}

Result<std::unique_ptr<Terminal>> Terminal::create(EventLoop& loop, Config config)
{
    if (::fcntl(config.output_fd, F_GETFD) < 0) {
        return Error::from_errno("open console: output descriptor " +
                                 std::to_string(config.output_fd));
    }
    auto impl = std::make_shared<Impl>(loop, std::move(config));
    impl->terminal = ::isatty(impl->config.input_fd) == 1;
    // Keeps the callback out until all is set up.
    const std::unique_lock lock{impl->callbacks};
    // Weak: the watch is the implementation's own.
    VMM_TRY(impl->watch,
            loop.watch_readable(impl->config.input_fd, [weak = std::weak_ptr<Impl>{impl}] {
                if (const auto alive = weak.lock()) {
                    alive->on_readable();
                }
            }));
    if (impl->terminal) {
        if (auto entered = detail::enter_raw_mode(impl->config.input_fd); !entered) {
            impl->closed = true;
            return entered.error();
        }
        impl->raw.store(true, std::memory_order_relaxed);
    }
    return std::unique_ptr<Terminal>{new Terminal{impl}};
}

Terminal::Terminal(std::shared_ptr<Impl> impl) noexcept : impl_{std::move(impl)} {}

Terminal::~Terminal()
{
    {
        const std::lock_guard lock{impl_->callbacks};
        impl_->closed = true;
    }
    impl_->watch.reset();
    restore();
}

bool Terminal::write(std::span<const std::byte> bytes) noexcept
{
    return impl_->write(bytes);
}

void Terminal::resume()
{
    impl_->loop.post([weak = std::weak_ptr<Impl>{impl_}] {
        if (const std::shared_ptr<Impl> alive = weak.lock()) {
            const std::lock_guard lock{alive->callbacks};
            if (!alive->closed) {
                alive->offer();
            }
        }
    });
}

void Terminal::restore() noexcept
{
    if (impl_->raw.exchange(false, std::memory_order_relaxed)) {
        detail::leave_raw_mode();
    }
}

bool Terminal::is_raw() const noexcept
{
    return impl_->raw.load(std::memory_order_relaxed);
}

}  // namespace vmm::device
