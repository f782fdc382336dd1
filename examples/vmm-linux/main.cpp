// SPDX-License-Identifier: Apache-2.0

// Boots a Linux kernel with its console on this terminal.

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "machine.hpp"
#include "options.hpp"
#include "panic_watch.hpp"
#include "publisher.hpp"
#include "vmm/device/terminal.hpp"
#include "vmm/unique_fd.hpp"

namespace {

using vmm::Result;
using vmm_linux::Images;
using vmm_linux::Machine;
using vmm_linux::Options;
using vmm_linux::Outcome;
using vmm_linux::PanicWatch;

constexpr int cannot_run = 1;
constexpr int wrong_usage = 2;
constexpr int triple_faulted = 124;
constexpr int panicked = 125;
constexpr int stuck = 126;
constexpr int quit = 130;

Result<std::vector<std::byte>> read_file(const std::string& path, const char* what)
{
    const auto refused = [&] {
        return vmm::Error{static_cast<std::errc>(errno),
                          fmt::format("{} {}: {}; give the path of a readable file", what, path,
                                      std::generic_category().message(errno))};
    };
    const vmm::UniqueFd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!file) {
        return refused();
    }
    constexpr std::size_t step = 1U << 20U;
    std::vector<std::byte> bytes;
    for (;;) {
        const std::size_t size = bytes.size();
        bytes.resize(size + step);
        const ssize_t count = ::read(file.get(), bytes.data() + size, step);
        if (count < 0 && errno != EINTR) {
            return refused();
        }
        bytes.resize(size + static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
        if (count == 0) {
            return bytes;
        }
    }
}

Result<Images> read_images(const Options& options)
{
    VMM_TRY(auto kernel, read_file(options.kernel, "kernel"));
    Images images{std::move(kernel), {}};
    if (!options.initrd.empty()) {
        VMM_TRY(images.initrd, read_file(options.initrd, "initrd"));
    }
    return images;
}

/// The terminal outlives the machines that use it one after the other.
class Console {
public:
    Result<void> open(vmm::EventLoop& loop)
    {
        vmm::device::Terminal::Config config;
        config.sink = [this](std::span<const std::byte> bytes) -> std::size_t {
            const std::lock_guard lock{mutex_};
            return machine_ != nullptr ? machine_->serial().receive(bytes) : 0;
        };
        config.on_quit = [this] {
            const std::lock_guard lock{mutex_};
            if (machine_ != nullptr) {
                machine_->stop({Outcome::Kind::Quit});
            }
        };
        config.on_break = [this] {
            const std::lock_guard lock{mutex_};
            if (machine_ != nullptr) {
                machine_->serial().receive_break();
            }
        };
        VMM_TRY(terminal_, vmm::device::Terminal::create(loop, std::move(config)));
        return vmm::success;
    }

    void attach(Machine* machine)
    {
        {
            const std::lock_guard lock{mutex_};
            machine_ = machine;
        }
        if (machine != nullptr) {
            terminal_->resume();
        }
    }

    void write(std::span<const std::byte> bytes)
    {
        static_cast<void>(terminal_->write(bytes));
        const std::lock_guard lock{mutex_};
        panic_.look_at(bytes);
        if (panic_.is_over()) {
            if (machine_ != nullptr) {
                machine_->stop({Outcome::Kind::Reset});
            }
        }
    }
    void resume() { terminal_->resume(); }
    void close() { terminal_.reset(); }
    [[nodiscard]] bool saw_panic()
    {
        const std::lock_guard lock{mutex_};
        return panic_.has_begun();
    }

private:
    std::unique_ptr<vmm::device::Terminal> terminal_;
    std::mutex mutex_;
    PanicWatch panic_;
    Machine* machine_{};
};

/// What a stopped machine means for this process; a line says so where it is not the usual end.
int status_of(const Outcome& outcome, bool saw_panic)
{
    if (saw_panic) {
        fmt::print(stderr, "vmm-linux: the guest panicked\n");
        return panicked;
    }
    switch (outcome.kind) {
    case Outcome::Kind::PowerOff:
    case Outcome::Kind::Reset: return 0;
    case Outcome::Kind::Status: return static_cast<int>(outcome.status & 0xffU);
    case Outcome::Kind::TripleFault:
        fmt::print(stderr, "vmm-linux: the guest triple-faulted\n{}", outcome.detail);
        return triple_faulted;
    case Outcome::Kind::Stuck: fmt::print(stderr, "vmm-linux: {}\n", outcome.detail); return stuck;
    case Outcome::Kind::Quit: fmt::print(stderr, "vmm-linux: quit\n"); return quit;
    }
    return stuck;
}

/// Runs it in the sight of vmm-top.
Outcome run(Machine& machine)
{
    const auto publisher = vmm_linux::Publisher::create([&] { return machine.statistics(); });
    if (!publisher) {
        fmt::print(stderr, "vmm-linux: vmm-top will not see this machine: {}\n",
                   publisher.error().message());
    }
    return machine.run();
}

Result<int> boot(const Options& options)
{
    VMM_TRY(const Images images, read_images(options));
    VMM_TRY(const vmm::Kvm kvm, vmm::Kvm::open({.engine = options.engine,
                                                .lockstep = options.lockstep,
                                                .soft_mode = options.soft_mode,
                                                .lockstep_soft_mode = options.lockstep_soft_mode,
                                                .irqchip = options.irqchip}));
    VMM_TRY(const auto loop, vmm::EventLoop::create());
    Console console;
    bool opened = false;
    for (;;) {
        VMM_TRY(const auto machine,
                Machine::create(
                    kvm, options, images,
                    [&](std::span<const std::byte> bytes) { console.write(bytes); },
                    [&] { console.resume(); }));
        if (!std::exchange(opened, true)) {
            VMM_TRY_VOID(console.open(*loop));
        }
        console.attach(machine.get());
        const Outcome outcome = run(*machine);
        console.attach(nullptr);
        if (options.statistics) {
            machine->print_statistics();
        }
        if (outcome.kind != Outcome::Kind::Reset || !options.reboot || console.saw_panic()) {
            console.close();
            return status_of(outcome, console.saw_panic());
        }
    }
}

}  // namespace

int main(int argc, char** argv)
{
    const auto options = vmm_linux::parse_options(argc, argv);
    if (!options) {
        fmt::print(stderr, "vmm-linux: {}\n", options.error().message());
        return wrong_usage;
    }
    if (options->help) {
        fmt::print("{}", vmm_linux::usage);
        return 0;
    }
    const auto status = boot(*options);
    if (!status) {
        fmt::print(stderr, "vmm-linux: {}\n", status.error().message());
        return cannot_run;
    }
    return *status;
}
