// SPDX-License-Identifier: Apache-2.0

#include "publisher.hpp"

#include <csignal>
#include <utility>

#include <poll.h>
#include <sys/eventfd.h>

#include "../vmm-top/runtime_folder.hpp"

namespace vmm_linux {

using vmm::Result;
using vmm::UniqueFd;

Result<std::unique_ptr<Publisher>> Publisher::create(std::function<std::string()> look)
{
    const std::string folder = vmm_top::runtime_folder();
    if (::mkdir(folder.c_str(), S_IRWXU) != 0 && errno != EEXIST) {
        return vmm::Error::from_errno(folder);
    }
    if (!vmm_top::is_private(folder)) {
        return vmm::Error{std::errc::permission_denied,
                          folder + " is not a folder of this user's alone (mode 0700)"};
    }
    std::string path = folder + "/linux-" + std::to_string(::getpid());
    VMM_TRY(const sockaddr_un address, vmm_top::socket_address(path));
    static_cast<void>(::unlink(path.c_str()));  // Of an earlier process of this number.
    UniqueFd socket = vmm_top::make_socket();
    UniqueFd stop{::eventfd(0, EFD_CLOEXEC)};
    constexpr int waiting_clients = 16;
    if (!socket || !stop || ::bind(socket.get(), vmm_top::generic(address), sizeof address) != 0 ||
        ::listen(socket.get(), waiting_clients) != 0) {
        return vmm::Error::from_errno(path);
    }
    return std::unique_ptr<Publisher>{
        new Publisher{std::move(path), std::move(socket), std::move(stop), std::move(look)}};
}

Publisher::Publisher(std::string path,
                     UniqueFd socket,
                     UniqueFd stop,
                     std::function<std::string()> look)
    : path_{std::move(path)},
      socket_{std::move(socket)},
      stop_{std::move(stop)},
      look_{std::move(look)},
      thread_{[this] { serve(); }}
{
}

Publisher::~Publisher()
{
    static_cast<void>(::eventfd_write(stop_.get(), 1));
    thread_.join();
    static_cast<void>(::unlink(path_.c_str()));
}

void Publisher::serve() const
{
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
    for (;;) {
        pollfd waiting[] = {{socket_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
        if (::poll(waiting, 2, -1) < 0 && errno != EINTR) {
            return;
        }
        if (waiting[1].revents != 0) {
            return;
        }
        const UniqueFd client{::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
        if (!client) {
            continue;
        }
        // One that does not read keeps others waiting no longer than this.
        const timeval patience{1, 0};
        static_cast<void>(
            ::setsockopt(client.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience));
        const std::string text = look_();
        std::size_t sent = 0;
        while (sent < text.size()) {
            const ssize_t count =
                ::send(client.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
            if (count <= 0) {
                break;
            }
            sent += static_cast<std::size_t>(count);
        }
    }
}

}  // namespace vmm_linux
