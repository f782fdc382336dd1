// SPDX-License-Identifier: Apache-2.0

/// @file
/// System calls that look at `/dev/kvm`, and at where descriptors lead.

#include <algorithm>
#include <cerrno>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "x86/shim/device_node.hpp"
#include "x86/shim/file.hpp"
#include "x86/shim/raw/call.hpp"
#include "x86/shim/raw/user_path.hpp"

namespace vmm::shim::raw {
namespace {

std::string& program_path()
{
    static auto& path = *new std::string;
    return path;
}

/// A host without `/dev/kvm` is shown as one that has it.
template <typename Stat>
Outcome with_kvm(const Call& call, UserAddress path, UserAddress to) noexcept
{
    if (UserPath{path}.view() != kvm_node) {
        return pass_on;
    }
    const long result = call.perform();
    if (result != -ENOENT) {
        return result;
    }
    Stat ours;
    describe_kvm_node(ours);
    return copy_out(to, ours) ? 0 : -EFAULT;
}

}  // namespace

void set_program_path(std::string path) noexcept
{
    program_path() = std::move(path);
}

void replace_own_path(Call& call, std::size_t path) noexcept
{
    const UserPath asked{call.address(path)};
    if (below_proc_self(asked.view()) == "exe") {
        call.replace(path, reinterpret_cast<std::uint64_t>(program_path().c_str()));
    }
}

Outcome do_exec(Call& call, std::size_t path, std::size_t arguments) noexcept
{
    const UserPath asked{call.address(path)};
    if (below_proc_self(asked.view()) != "exe") {
        return pass_on;
    }
    // What is started is vmm-kvm-raw, which is told what to become.
    static char name[] = "vmm-kvm-raw";
    try {
        std::vector<std::uint64_t>& strings = call.thread().passed_strings;
        strings = {reinterpret_cast<std::uint64_t>(&name[0]),
                   reinterpret_cast<std::uint64_t>(program_path().c_str())};
        UserAddress at = call.address(arguments);
        std::uint64_t each = 0;
        do {
            if (at.value() == 0 || !copy_in(each, at)) {
                return -EFAULT;
            }
            strings.push_back(each);
            at = at + sizeof each;
        } while (each != 0);
        if (strings.size() == 3) {
            return -EINVAL;  // Not even a name of its own.
        }
        call.replace(arguments, reinterpret_cast<std::uint64_t>(strings.data()));
    } catch (const std::bad_alloc&) {
        return -ENOMEM;
    }
    return pass_on;
}

Outcome do_stat(Call& call, std::size_t path, std::size_t to) noexcept
{
    return with_kvm<struct stat>(call, call.address(path), call.address(to));
}

Outcome do_statx(Call& call) noexcept
{
    return with_kvm<struct statx>(call, call.address(1), call.address(4));
}

Outcome do_access(Call& call, std::size_t path, std::size_t mode) noexcept
{
    if (UserPath{call.address(path)}.view() != kvm_node) {
        return pass_on;
    }
    return (call.argument(mode) & X_OK) != 0 ? -EACCES : 0;
}

Outcome do_readlink(Call& call, std::size_t path) noexcept
{
    const UserPath asked{call.address(path)};
    std::string name;
    if (const auto fd = descriptor_of(asked.view())) {
        if (const auto file = FileTable::instance().find(*fd)) {
            name = file->link_name();
        }
    } else if (below_proc_self(asked.view()) == "exe") {
        name = program_path();
    }
    if (name.empty()) {
        return pass_on;
    }
    const int size = call.number_argument(path + 2);
    if (size <= 0) {
        return -EINVAL;
    }
    const std::size_t length = std::min(static_cast<std::size_t>(size), name.size());
    return copy_out(call.address(path + 1), name.data(), length) ? static_cast<long>(length)
                                                                 : -EFAULT;
}

}  // namespace vmm::shim::raw
