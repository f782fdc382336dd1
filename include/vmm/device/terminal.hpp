// SPDX-License-Identifier: Apache-2.0

/// @file
/// The user's terminal as a guest's console.
///
///     vmm::device::Terminal::Config config;
///     config.sink = [&](std::span<const std::byte> bytes) { return com1.receive(bytes); };
///     config.on_quit = …;
///     auto terminal = vmm::device::Terminal::create(loop, std::move(config)).value();
///     // com1's output:         terminal->write(bytes)
///     // com1's on_input_room:  terminal->resume()

#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "vmm/event_loop.hpp"
#include "vmm/export.hpp"
#include "vmm/result.hpp"

namespace vmm::device {

/// Reads one file descriptor for the guest and writes the guest's output to another.
///
/// If the input is a terminal it is put into raw mode, so that each key goes to the guest, Ctrl-C
/// too; output processing stays as it was.  Ctrl-A is for us:
///
///     Ctrl-A x       quit                Ctrl-A h  help
///     Ctrl-A Ctrl-A  send Ctrl-A         Ctrl-A b  send a break
///
/// The terminal gets its mode back on every way out: destruction, `restore()`, `exit()`, and the
/// signals that end a process (HUP, INT, QUIT, TERM, ABRT, SEGV, BUS, ILL, FPE), which then do
/// what they would have done without us.  A stop (TSTP) gives the shell its mode and a
/// continuation in the foreground takes it back.  Signals that are ignored stay so, and a handler
/// that the program has for a fault (SEGV, BUS, ILL, FPE) is left alone.
///
/// If the input is not a terminal, bytes pass unchanged and its end is told.
///
/// Callbacks run on the loop's thread; after the destructor returned none runs.  They may destroy
/// the terminal.
///
/// Thread safety: `write()`, `resume()` and `restore()` may be called from any thread.
class VMM_API Terminal final {
public:
    struct Config {
        int input_fd{0};
        int output_fd{1};
        /// Gets input and returns how many bytes, from the first on, it took.  The rest is offered
        /// again after `resume()`, and so long nothing is read, except keys at a terminal, where
        /// quitting must go on working: those past the first 64 KiB are dropped.
        std::function<std::size_t(std::span<const std::byte>)> sink{};
        /// There will be no more input, and the sink has taken all there was.
        std::function<void()> on_end_of_input{};
        /// Ctrl-A x.
        std::function<void()> on_quit{};
        /// Ctrl-A b.
        std::function<void()> on_break{};
    };

    /// The descriptors remain the caller's and must stay open; `loop` must outlive the terminal.
    ///
    /// Errors: EBADF; EBUSY where another `Terminal` of this process has a terminal in raw mode.
    [[nodiscard]] static Result<std::unique_ptr<Terminal>> create(EventLoop& loop, Config config);

    Terminal(const Terminal&) = delete;
    Terminal& operator=(const Terminal&) = delete;
    Terminal(Terminal&&) = delete;
    Terminal& operator=(Terminal&&) = delete;
    ~Terminal();

    /// Writes all of `bytes`, waiting as long as that takes; writes of several threads do not mix.
    /// False if nobody will ever read it (EPIPE, EIO …), and then at once from there on; the
    /// process gets no SIGPIPE.
    bool write(std::span<const std::byte> bytes) noexcept;

    /// The sink has room again.
    void resume();

    /// Gives the terminal its mode back now, for instance to print a message, and for good.
    void restore() noexcept;

    /// Whether the input is a terminal in raw mode.
    [[nodiscard]] bool is_raw() const noexcept;

private:
    struct Impl;
    explicit Terminal(std::shared_ptr<Impl> impl) noexcept;

    std::shared_ptr<Impl> impl_;
};

}  // namespace vmm::device
