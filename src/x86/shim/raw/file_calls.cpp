// SPDX-License-Identifier: Apache-2.0

/// @file
/// System calls on descriptors.

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "x86/shim/device_node.hpp"
#include "x86/shim/file.hpp"
#include "x86/shim/raw/call.hpp"
#include "x86/shim/raw/stub.hpp"
#include "x86/shim/raw/user_path.hpp"
#include "x86/shim/signals.hpp"
#include "x86/shim/system_file.hpp"

namespace vmm::shim::raw {
namespace {

Outcome open_if_kvm(Call& call, std::size_t path, std::uint64_t flags) noexcept
{
    if (UserPath{call.address(path)}.view() != kvm_node) {
        replace_own_path(call, path);
        return pass_on;
    }
    return open_system((flags & O_CLOEXEC) != 0);
}

/// A handler's frame of the library must not come over what the client has on its alternate stack.
void spare_alternate_stack(const Call& call) noexcept
{
    const stack_t& alternate = call.context().uc_stack;
    const auto first = reinterpret_cast<std::uint64_t>(alternate.ss_sp);
    if ((static_cast<unsigned>(alternate.ss_flags) & SS_DISABLE) != 0 ||
        call.stack() - first >= alternate.ss_size) {
        return;
    }
    // Until the client goes on: its frame brings it back.
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    ::sigaltstack(&none, nullptr);
}

class ClientMask {
public:
    explicit ClientMask(ucontext_t& context) noexcept
    {
        ::sigemptyset(&mask_);
        const KernelSet mask = mask_of(context);
        std::memcpy(&mask_, &mask, sizeof mask);
        set_client_mask(&mask_);
    }
    ClientMask(const ClientMask&) = delete;
    ClientMask& operator=(const ClientMask&) = delete;
    ClientMask(ClientMask&&) = delete;
    ClientMask& operator=(ClientMask&&) = delete;
    ~ClientMask() { set_client_mask(nullptr); }

private:
    sigset_t mask_{};
};

}  // namespace

Outcome do_open(Call& call) noexcept
{
    return open_if_kvm(call, 0, call.argument(1));
}

Outcome do_openat(Call& call) noexcept
{
    return open_if_kvm(call, 1, call.argument(2));
}

Outcome do_openat2(Call& call) noexcept
{
    open_how how{};
    if (call.argument(3) < sizeof how || !copy_in(how, call.address(2))) {
        return pass_on;  // The kernel knows the errno.
    }
    return open_if_kvm(call, 1, how.flags);
}

Outcome do_close(Call& call) noexcept
{
    FileTable::instance().remove(call.number_argument(0));
    return pass_on;
}

Outcome do_close_range(Call& call) noexcept
{
    const long result = call.perform();
    if (result == 0 && (call.argument(2) & CLOSE_RANGE_CLOEXEC) == 0) {
        FileTable::instance().remove_range(static_cast<unsigned>(call.argument(0)),
                                           static_cast<unsigned>(call.argument(1)));
    }
    return result;
}

Outcome do_ioctl(Call& call) noexcept
{
    const auto file = FileTable::instance().find(call.number_argument(0));
    if (file == nullptr) {
        return pass_on;
    }
    spare_alternate_stack(call);
    const ClientMask mask{call.context()};
    consider_stub(static_cast<std::uint64_t>(call.context().uc_mcontext.gregs[REG_RIP]));
    return file->ioctl(static_cast<unsigned>(call.argument(1)), call.argument(2));
}

Outcome do_mmap(Call& call) noexcept
{
    const int flags = call.number_argument(3);
    if ((flags & MAP_ANONYMOUS) != 0) {
        return pass_on;
    }
    const auto file = FileTable::instance().find(call.number_argument(4));
    if (file == nullptr) {
        return pass_on;
    }
    const long refused = file->may_map(call.argument(1), call.number_argument(2), flags,
                                       static_cast<off_t>(call.argument(5)));
    if (refused != 0) {
        return refused;
    }
    const long result = call.perform();
    // The kernel's errno are -4095 to -1; addresses of user space are positive.
    if (result >= 0) {
        // SAFETY: what mmap(2) gave.
        file->mapped(reinterpret_cast<void*>(result), call.argument(1), call.number_argument(2),
                     flags, static_cast<off_t>(call.argument(5)));
    }
    return result;
}

Outcome do_dup(Call& call) noexcept
{
    const int from = call.number_argument(0);
    const long result = call.perform();
    if (result >= 0) {
        FileTable::instance().duplicate(from, static_cast<int>(result));
    }
    return result;
}

Outcome do_dup2(Call& call) noexcept
{
    return do_dup(call);
}

Outcome do_fcntl(Call& call) noexcept
{
    const int command = call.number_argument(1);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? do_dup(call) : pass_on;
}

}  // namespace vmm::shim::raw
