// SPDX-License-Identifier: Apache-2.0

#include "vmm/device/irqfd.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

namespace vmm::device {

namespace {

/// The kernel's number for the eventfd behind `fd`, from proc(5) "/proc/pid/fdinfo".
[[nodiscard]] std::optional<std::uint64_t> eventfd_id(int fd)
{
    std::ifstream info{"/proc/self/fdinfo/" + std::to_string(fd)};
    for (std::string line; std::getline(info, line);) {
        constexpr std::string_view name = "eventfd-id:";
        if (line.compare(0, name.size(), name) == 0) {
            return std::strtoull(line.c_str() + name.size(), nullptr, 10);
        }
    }
    return std::nullopt;
}

}  // namespace

Result<EventFd> EventFd::from_fd(int fd)
{
    UniqueFd own{::fcntl(fd, F_DUPFD_CLOEXEC, 0)};
    if (!own) {
        return Error::from_errno("use descriptor " + std::to_string(fd) + " as an eventfd");
    }
    const std::optional<std::uint64_t> id = eventfd_id(own.get());
    if (!id) {
        return Error{std::errc::invalid_argument, "use descriptor " + std::to_string(fd) +
                                                      " as an eventfd: it is of another kind; "
                                                      "make one with eventfd(2)"};
    }
    return EventFd{std::move(own), *id};
}

void EventFd::signal() const noexcept
{
    // A full count would block the writer, and a vCPU must not wait for whoever reads it.
    pollfd writable{fd_.get(), POLLOUT, 0};
    const std::uint64_t one = 1;
    if (::poll(&writable, 1, 0) == 1 && (writable.revents & POLLOUT) != 0) {
        while (::write(fd_.get(), &one, sizeof one) < 0 && errno == EINTR) {
        }
    }
}

std::uint64_t EventFd::take() const noexcept
{
    std::uint64_t count = 0;
    const iovec vector{&count, sizeof count};
    // The descriptor may block, being the caller's, and another may read it between our look and
    // our read; RWF_NOWAIT is for this one read only.
    ssize_t got = ::preadv2(fd_.get(), &vector, 1, -1, RWF_NOWAIT);
    if (got < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
        pollfd readable{fd_.get(), POLLIN, 0};
        got = ::poll(&readable, 1, 0) == 1 ? ::read(fd_.get(), &count, sizeof count) : 0;
    }
    return got == static_cast<ssize_t>(sizeof count) ? count : 0;
}

struct IrqfdTable::Irqfd final {
    EventFd event;
    std::uint32_t gsi{};
    std::optional<EventFd> resample;
    EventLoop::Watch watch;
};

IrqfdTable::IrqfdTable(EventLoop& loop, SetGsi set_gsi, PulseGsi pulse)
    : loop_{loop},
      set_gsi_{std::move(set_gsi)},
      pulse_{pulse ? std::move(pulse) : [this](std::uint32_t gsi) {
          set_gsi_(gsi, true);
          set_gsi_(gsi, false);
      }}
{
}

IrqfdTable::~IrqfdTable()
{
    // Each watch waits for its callback, which uses this.
    irqfds_.clear();
}

Result<void> IrqfdTable::assign(int eventfd, std::uint32_t gsi)
{
    return add(eventfd, gsi, std::nullopt);
}

Result<void> IrqfdTable::assign_resample(int eventfd, std::uint32_t gsi, int resamplefd)
{
    VMM_TRY(auto resample, EventFd::from_fd(resamplefd));
    return add(eventfd, gsi, std::move(resample));
}

Result<void> IrqfdTable::add(int eventfd, std::uint32_t gsi, std::optional<EventFd> resample)
{
    VMM_TRY(auto event, EventFd::from_fd(eventfd));
    const std::lock_guard lock{mutex_};
    const bool busy = std::any_of(irqfds_.begin(), irqfds_.end(), [&event](const auto& irqfd) {
        return irqfd->event.is_same(event);
    });
    if (busy) {
        return Error{std::errc::device_or_resource_busy,
                     "assign irqfd " + std::to_string(eventfd) + " to gsi " + std::to_string(gsi) +
                         ": the eventfd is assigned already; deassign it first"};
    }
    auto irqfd = std::make_shared<Irqfd>(
        Irqfd{std::move(event), gsi, std::move(resample), EventLoop::Watch{}});
    // Weak: the watch is the irqfd's own.
    VMM_TRY(irqfd->watch,
            loop_.watch_readable(irqfd->event.fd(), [this, weak = std::weak_ptr<Irqfd>{irqfd}] {
                if (const auto alive = weak.lock()) {
                    on_signal(*alive);
                }
            }));
    irqfds_.push_back(std::move(irqfd));
    return success;
}

void IrqfdTable::on_signal(const Irqfd& irqfd) const
{
    if (irqfd.event.take() == 0) {
        return;
    }
    if (irqfd.resample) {
        set_gsi_(irqfd.gsi, true);
    } else {
        pulse_(irqfd.gsi);
    }
}

Result<void> IrqfdTable::deassign(int eventfd, std::uint32_t gsi)
{
    VMM_TRY(const auto event, EventFd::from_fd(eventfd));
    std::shared_ptr<Irqfd> removed;
    bool last = true;
    {
        const std::lock_guard lock{mutex_};
        const auto found = std::find_if(irqfds_.begin(), irqfds_.end(), [&](const auto& irqfd) {
            return irqfd->gsi == gsi && irqfd->event.is_same(event);
        });
        if (found == irqfds_.end()) {
            return success;
        }
        removed = std::move(*found);
        irqfds_.erase(found);
        last = std::none_of(irqfds_.begin(), irqfds_.end(), [gsi](const auto& irqfd) {
            return irqfd->gsi == gsi && irqfd->resample;
        });
    }
    // Waits for a running callback, so not under the lock.
    removed->watch.reset();
    // What it raised must not stay up with nobody left to lower it.
    if (removed->resample && last) {
        set_gsi_(gsi, false);
    }
    return success;
}

void IrqfdTable::acknowledge(std::uint32_t gsi)
{
    std::vector<std::shared_ptr<Irqfd>> resampling;
    {
        const std::lock_guard lock{mutex_};
        std::copy_if(irqfds_.begin(), irqfds_.end(), std::back_inserter(resampling),
                     [gsi](const auto& irqfd) { return irqfd->gsi == gsi && irqfd->resample; });
    }
    if (resampling.empty()) {
        return;
    }
    // Lowered before anybody is asked to look: who still needs it raises it again.
    set_gsi_(gsi, false);
    for (const std::shared_ptr<Irqfd>& irqfd : resampling) {
        irqfd->resample->signal();
    }
}

}  // namespace vmm::device
