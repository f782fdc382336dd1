// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <future>
#include <latch>
#include <mutex>
#include <string>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "device/fakes.hpp"
#include "vmm/device/terminal.hpp"
#include "vmm/unique_fd.hpp"

namespace vmm::device {
namespace {

using namespace std::chrono_literals;
using test::bytes_of;

constexpr auto long_enough = 30s;

/// A pseudo-terminal: we type and look at `user`, the console under test has `console`.
struct Pty {
    Pty()
    {
        int user_fd = -1;
        int console_fd = -1;
        if (::openpty(&user_fd, &console_fd, nullptr, nullptr, nullptr) == 0) {
            user.reset(user_fd);
            console.reset(console_fd);
        }
    }
    [[nodiscard]] termios mode() const
    {
        termios now{};
        EXPECT_EQ(::tcgetattr(console.get(), &now), 0);
        return now;
    }
    [[nodiscard]] bool is_raw() const
    {
        return (mode().c_lflag & static_cast<tcflag_t>(ICANON | ECHO | ISIG)) == 0;
    }
    [[nodiscard]] bool is_cooked() const
    {
        constexpr tcflag_t cooked = ICANON | ECHO | ISIG;
        return (mode().c_lflag & cooked) == cooked;
    }
    void type(std::string_view text) const
    {
        ASSERT_EQ(::write(user.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
    }

    UniqueFd user;
    UniqueFd console;
};

/// Collects what a console's callbacks say.
class Ear {
public:
    [[nodiscard]] Terminal::Config config(int input_fd, int output_fd)
    {
        Terminal::Config config;
        config.input_fd = input_fd;
        config.output_fd = output_fd;
        config.sink = [this](std::span<const std::byte> bytes) {
            const std::lock_guard lock{mutex_};
            const std::size_t taken = std::min(bytes.size(), room_);
            room_ -= taken;
            text_ += test::text_of(bytes.first(taken));
            changed_.notify_all();
            return taken;
        };
        config.on_end_of_input = [this] { note(ends_); };
        config.on_quit = [this] { note(quits_); };
        config.on_break = [this] {
            const std::lock_guard lock{mutex_};
            text_ += "<break>";
            changed_.notify_all();
        };
        return config;
    }
    void set_room(std::size_t bytes)
    {
        const std::lock_guard lock{mutex_};
        room_ = bytes;
    }
    [[nodiscard]] std::string wait_for_text(std::size_t size)
    {
        return wait([&] { return text_.size() >= size; });
    }
    [[nodiscard]] bool wait_for_quit()
    {
        static_cast<void>(wait([&] { return quits_ > 0; }));
        return quits_ == 1;
    }
    [[nodiscard]] bool wait_for_end()
    {
        static_cast<void>(wait([&] { return ends_ > 0; }));
        return ends_ == 1;
    }
    [[nodiscard]] int ends()
    {
        const std::lock_guard lock{mutex_};
        return ends_;
    }

private:
    void note(int& counter)
    {
        const std::lock_guard lock{mutex_};
        ++counter;
        changed_.notify_all();
    }
    [[nodiscard]] std::string wait(const std::function<bool()>& until)
    {
        std::unique_lock lock{mutex_};
        EXPECT_TRUE(changed_.wait_for(lock, long_enough, until));
        return text_;
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::string text_;
    std::size_t room_{~std::size_t{0}};
    int quits_{0};
    int ends_{0};
};

[[nodiscard]] std::pair<UniqueFd, UniqueFd> make_pipe()
{
    std::array<int, 2> ends{-1, -1};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    return {UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

[[nodiscard]] std::string read_some(int fd)
{
    std::array<char, 4096> buffer{};
    const ssize_t count = ::read(fd, buffer.data(), buffer.size());
    return count > 0 ? std::string{buffer.data(), static_cast<std::size_t>(count)} : std::string{};
}

/// Writes `text`, waiting for a reader where it must.
void write_all(int fd, std::string_view text)
{
    while (!text.empty()) {
        const ssize_t count = ::write(fd, text.data(), text.size());
        ASSERT_GT(count, 0);
        text.remove_prefix(static_cast<std::size_t>(count));
    }
}

class TerminalTest : public ::testing::Test {
protected:
    void start() { terminal_ = Terminal::create(*loop_, ear_.config(tty(), tty())).value(); }
    [[nodiscard]] int tty() const { return pty_.console.get(); }

    Pty pty_;
    Ear ear_;
    std::unique_ptr<EventLoop> loop_{EventLoop::create().value()};
    std::unique_ptr<Terminal> terminal_;
};

TEST_F(TerminalTest, RawModeBeginsAndEndsWithIt)
{
    const termios before = pty_.mode();
    ASSERT_TRUE(pty_.is_cooked());
    start();
    EXPECT_TRUE(terminal_->is_raw());
    EXPECT_TRUE(pty_.is_raw());
    EXPECT_EQ(pty_.mode().c_oflag, before.c_oflag);
    terminal_.reset();

    const termios after = pty_.mode();
    EXPECT_EQ(after.c_lflag, before.c_lflag);
    EXPECT_EQ(after.c_iflag, before.c_iflag);
    EXPECT_EQ(after.c_oflag, before.c_oflag);
    EXPECT_EQ(after.c_cflag, before.c_cflag);
}

TEST_F(TerminalTest, RestoresEarlyAndOnce)
{
    start();
    terminal_->restore();
    EXPECT_TRUE(pty_.is_cooked());
    EXPECT_FALSE(terminal_->is_raw());
    Pty other;
    Ear other_ear;
    const auto second =
        Terminal::create(*loop_, other_ear.config(other.console.get(), other.console.get()))
            .value();
    terminal_.reset();
    EXPECT_TRUE(other.is_raw());
}

TEST_F(TerminalTest, ASecondRawTerminalIsRefused)
{
    start();
    Pty other;
    Ear other_ear;
    const auto second =
        Terminal::create(*loop_, other_ear.config(other.console.get(), other.console.get()));
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().errno_value(), EBUSY);
    EXPECT_TRUE(other.is_cooked());
    terminal_.reset();
    EXPECT_TRUE(pty_.is_cooked());
}

TEST_F(TerminalTest, KeysReachTheGuestControlKeysToo)
{
    start();
    pty_.type("ls\r\x03\x04\x1a\x13\x11\x1c");
    EXPECT_EQ(ear_.wait_for_text(9), "ls\r\x03\x04\x1a\x13\x11\x1c");
}

TEST_F(TerminalTest, CtrlAXQuits)
{
    start();
    pty_.type("a\x01x");
    EXPECT_TRUE(ear_.wait_for_quit());
    EXPECT_EQ(ear_.wait_for_text(1), "a");
}

TEST_F(TerminalTest, CtrlATwiceSendsItAndOtherKeysAfterItAreOurs)
{
    start();
    pty_.type("1\x01\x01x2\x01z3\x01"
              "b4");
    EXPECT_EQ(ear_.wait_for_text(13), "1\x01x23<break>4");
}

TEST_F(TerminalTest, CtrlAHPrintsHelp)
{
    start();
    pty_.type("\x01h");
    std::string help;
    while (help.find("quit") == std::string::npos) {
        pollfd readable{pty_.user.get(), POLLIN, 0};
        ASSERT_EQ(::poll(&readable, 1, 30'000), 1);
        help += read_some(pty_.user.get());
    }
}

TEST_F(TerminalTest, QuittingWorksWhileTheGuestTakesNothing)
{
    ear_.set_room(0);
    start();
    pty_.type("typed ahead");
    pty_.type("\x01x");
    EXPECT_TRUE(ear_.wait_for_quit());
    ear_.set_room(1000);
    terminal_->resume();
    EXPECT_EQ(ear_.wait_for_text(11), "typed ahead");
}

TEST_F(TerminalTest, ACallbackMayDestroyIt)
{
    std::promise<void> done;
    Terminal::Config config = ear_.config(tty(), tty());
    std::latch assigned{1};
    config.on_quit = [&] {
        assigned.wait();
        terminal_.reset();
        done.set_value();
    };
    terminal_ = Terminal::create(*loop_, std::move(config)).value();
    assigned.count_down();
    pty_.type("\x01xmore");
    ASSERT_EQ(done.get_future().wait_for(long_enough), std::future_status::ready);
    EXPECT_TRUE(pty_.is_cooked());
}

TEST_F(TerminalTest, TheEndOfTheUsersSideIsTheEndOfInput)
{
    start();
    pty_.user.reset();
    EXPECT_TRUE(ear_.wait_for_end());
}

TEST_F(TerminalTest, OutputReachesTheUser)
{
    start();
    EXPECT_TRUE(terminal_->write(bytes_of("login: ")));
    EXPECT_EQ(read_some(pty_.user.get()), "login: ");
}

// --- ways out: each in a child process, which has the terminal and dies -------------------------

class TerminalWayOut : public ::testing::Test {
protected:
    /// Runs `leave` in a child with the terminal in raw mode; returns its wait status.
    [[nodiscard]] int run(const std::function<void(Terminal&)>& leave) const
    {
        const pid_t child = ::fork();
        if (child == 0) {
            Ear ear;
            const auto loop = EventLoop::create().value();
            const auto terminal =
                Terminal::create(*loop, ear.config(pty_.console.get(), pty_.console.get())).value();
            if (!pty_.is_raw()) {
                ::_exit(99);
            }
            leave(*terminal);
            ::_exit(98);
        }
        int status = 0;
        EXPECT_EQ(::waitpid(child, &status, 0), child);
        return status;
    }

    Pty pty_;
};

TEST_F(TerminalWayOut, FatalSignalsRestoreAndKillAsEver)
{
    for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT}) {
        const int status = run([number](Terminal&) { ::raise(number); });
        EXPECT_TRUE(WIFSIGNALED(status)) << number;
        EXPECT_EQ(WTERMSIG(status), number);
        EXPECT_TRUE(pty_.is_cooked()) << number;
    }
}

TEST_F(TerminalWayOut, AbortRestores)
{
    const int status = run([](Terminal&) { std::abort(); });
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), SIGABRT);
    EXPECT_TRUE(pty_.is_cooked());
}

TEST_F(TerminalWayOut, AFaultRestoresWhereNobodyElseHandlesIt)
{
    struct sigaction before {};
    ASSERT_EQ(::sigaction(SIGSEGV, nullptr, &before), 0);
    if (before.sa_handler != SIG_DFL) {
        GTEST_SKIP() << "the sanitizer handles SIGSEGV";
    }
    const int status = run([](Terminal&) { ::raise(SIGSEGV); });
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), SIGSEGV);
    EXPECT_TRUE(pty_.is_cooked());
}

TEST_F(TerminalWayOut, ExitRestores)
{
    const int status = run([](Terminal&) { std::exit(7); });
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_TRUE(pty_.is_cooked());
}

TEST_F(TerminalWayOut, AHandlerOfTheProgramsRunsInTheEnd)
{
    struct sigaction exits {};
    exits.sa_handler = [](int) { ::_exit(42); };
    struct sigaction before {};
    ASSERT_EQ(::sigaction(SIGTERM, &exits, &before), 0);
    const int status = run([](Terminal&) { ::raise(SIGTERM); });
    ::sigaction(SIGTERM, &before, nullptr);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 42);
    EXPECT_TRUE(pty_.is_cooked());
}

TEST_F(TerminalWayOut, AnIgnoredSignalStaysIgnored)
{
    struct sigaction ignore {};
    ignore.sa_handler = SIG_IGN;
    struct sigaction before {};
    ASSERT_EQ(::sigaction(SIGHUP, &ignore, &before), 0);
    const int status = run([this](Terminal&) {
        ::raise(SIGHUP);
        ::_exit(pty_.is_raw() ? 0 : 1);
    });
    ::sigaction(SIGHUP, &before, nullptr);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(TerminalWayOut, AStopGivesTheTerminalBackAndAContinuationTakesIt)
{
    const pid_t child = ::fork();
    if (child == 0) {
        // A group of its own with a parent in the session, so that it is not orphaned: a stop
        // signal is ignored in an orphaned group.
        ::setpgid(0, 0);
        Ear ear;
        const auto loop = EventLoop::create().value();
        const auto terminal =
            Terminal::create(*loop, ear.config(pty_.console.get(), pty_.console.get())).value();
        ::raise(SIGTSTP);
        ::_exit(pty_.is_raw() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
    if (!WIFSTOPPED(status)) {
        GTEST_SKIP() << "the test's own process group is orphaned";
    }
    EXPECT_TRUE(pty_.is_cooked());
    ASSERT_EQ(::kill(child, SIGCONT), 0);
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(TerminalTest, HandlersGoWithTheTerminal)
{
    start();
    terminal_.reset();
    struct sigaction now {};
    ASSERT_EQ(::sigaction(SIGTERM, nullptr, &now), 0);
    EXPECT_EQ(now.sa_handler, SIG_DFL);
}

// --- without a terminal --------------------------------------------------------------------------

class PipedTest : public ::testing::Test {
protected:
    void start()
    {
        terminal_ =
            Terminal::create(*loop_, ear_.config(input_.first.get(), output_.second.get())).value();
    }

    std::pair<UniqueFd, UniqueFd> input_{make_pipe()};
    std::pair<UniqueFd, UniqueFd> output_{make_pipe()};
    Ear ear_;
    std::unique_ptr<EventLoop> loop_{EventLoop::create().value()};
    std::unique_ptr<Terminal> terminal_;
};

TEST_F(PipedTest, BytesPassUnchangedAndTheEndIsTold)
{
    start();
    EXPECT_FALSE(terminal_->is_raw());
    const std::string text = "a\x01x\x03\n";
    write_all(input_.second.get(), text);
    EXPECT_EQ(ear_.wait_for_text(text.size()), text);
    input_.second.reset();
    EXPECT_TRUE(ear_.wait_for_end());
}

TEST_F(PipedTest, ASlowSinkGetsEverythingBeforeTheEnd)
{
    std::string sent;
    for (unsigned i = 0; i < 300'000; ++i) {
        sent.push_back(static_cast<char>('a' + i % 26));
    }
    ear_.set_room(0);
    start();
    std::jthread writer{[this, &sent] {
        write_all(input_.second.get(), sent);
        input_.second.reset();
    }};
    for (std::size_t got = 0; got < sent.size();) {
        EXPECT_EQ(ear_.ends(), 0);
        const std::size_t room = std::min<std::size_t>(10'000, sent.size() - got);
        ear_.set_room(room);
        terminal_->resume();
        got += room;
        ASSERT_EQ(ear_.wait_for_text(got), sent.substr(0, got));
    }
    EXPECT_TRUE(ear_.wait_for_end());
}

TEST_F(PipedTest, ARegularFileIsReadToItsEnd)
{
    std::FILE* file = std::tmpfile();
    ASSERT_NE(file, nullptr);
    std::fputs("from a file\n", file);
    std::fflush(file);
    std::rewind(file);
    terminal_ = Terminal::create(*loop_, ear_.config(::fileno(file), output_.second.get())).value();
    EXPECT_EQ(ear_.wait_for_text(12), "from a file\n");
    EXPECT_TRUE(ear_.wait_for_end());
    terminal_.reset();
    std::fclose(file);
}

TEST_F(PipedTest, AReaderThatLeftIsNotFatal)
{
    start();
    EXPECT_TRUE(terminal_->write(bytes_of("seen")));
    EXPECT_EQ(read_some(output_.first.get()), "seen");
    output_.first.reset();
    EXPECT_FALSE(terminal_->write(bytes_of("unseen")));
    EXPECT_FALSE(terminal_->write(bytes_of("unseen")));
    sigset_t pending;
    sigpending(&pending);
    EXPECT_EQ(sigismember(&pending, SIGPIPE), 0);
}

TEST_F(PipedTest, ANonBlockingOutputGetsAllOfALongWrite)
{
    ASSERT_EQ(::fcntl(output_.second.get(), F_SETFL, O_NONBLOCK), 0);
    start();
    const std::string sent(1'000'000, 'y');
    std::promise<bool> written;
    std::jthread writer{[&] { written.set_value(terminal_->write(bytes_of(sent))); }};
    std::string got;
    while (got.size() < sent.size()) {
        got += read_some(output_.first.get());
    }
    EXPECT_EQ(got, sent);
    EXPECT_TRUE(written.get_future().get());
}

TEST_F(PipedTest, BadDescriptorsAreRefused)
{
    EXPECT_EQ(Terminal::create(*loop_, ear_.config(-1, output_.second.get())).error().errno_value(),
              EBADF);
    EXPECT_EQ(Terminal::create(*loop_, ear_.config(input_.first.get(), -1)).error().errno_value(),
              EBADF);
}

}  // namespace
}  // namespace vmm::device
