// SPDX-License-Identifier: Apache-2.0

/// @file
/// Tables of ioctls: one row each, with adapters that fetch and store what the argument points at.
///
///     long get_regs(VcpuFile& vcpu, kvm_regs& out);
///     constexpr Row<VcpuFile> rows[] = {
///         {KVM_GET_REGS, "KVM_GET_REGS", writes<get_regs>},
///         …};

#pragma once

#include <algorithm>
#include <cerrno>
#include <initializer_list>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "vmm/result.hpp"
#include "x86/shim/log.hpp"
#include "x86/shim/user_memory.hpp"

namespace vmm::shim {

/// One ioctl of the files of one kind.
template <typename FileT>
struct Row {
    unsigned request;
    const char* name;
    /// KVM's result, or a negative errno.
    long (*handle)(FileT& file, unsigned long argument);
};

namespace detail {

template <auto F>
struct Reads;
template <typename FileT, typename T, long (*F)(FileT&, const T&)>
struct Reads<F> {
    static long call(FileT& file, unsigned long argument)
    {
        T value;
        return copy_in(value, UserAddress{argument}) ? F(file, value) : -EFAULT;
    }
};

template <auto F>
struct Writes;
template <typename FileT, typename T, long (*F)(FileT&, T&)>
struct Writes<F> {
    static long call(FileT& file, unsigned long argument)
    {
        T value{};
        const long result = F(file, value);
        return result < 0 || copy_out(UserAddress{argument}, value) ? result : -EFAULT;
    }
};

template <auto F>
struct Updates;
template <typename FileT, typename T, long (*F)(FileT&, T&)>
struct Updates<F> {
    static long call(FileT& file, unsigned long argument)
    {
        T value;
        if (!copy_in(value, UserAddress{argument})) {
            return -EFAULT;
        }
        const long result = F(file, value);
        return result < 0 || copy_out(UserAddress{argument}, value) ? result : -EFAULT;
    }
};

}  // namespace detail

/// Adapters: the argument points at what the function reads, fills, or both.
template <auto F>
inline constexpr auto reads = &detail::Reads<F>::call;
template <auto F>
inline constexpr auto writes = &detail::Writes<F>::call;
template <auto F>
inline constexpr auto updates = &detail::Updates<F>::call;

/// A negative errno, and a line in the log (level debug) that says why.
[[nodiscard]] long refused(const Error& error);
[[nodiscard]] inline long result_of(const Result<void>& result)
{
    return result ? 0 : refused(result.error());
}
/// Says in the log (level trace) what an ioctl gave.
void trace(const std::string& what, long result) noexcept;
/// Says once for each request in the log (level warning) that it is not known.
void note_unknown(const char* kind, unsigned request) noexcept;

/// All rows of one kind of file.
template <typename FileT>
class Table {
public:
    Table(const char* kind,
          int unknown_errno,
          std::initializer_list<std::span<const Row<FileT>>> groups)
        : kind_{kind},
          unknown_errno_{unknown_errno}
    {
        for (const auto group : groups) {
            rows_.insert(rows_.end(), group.begin(), group.end());
        }
        std::sort(rows_.begin(), rows_.end(),
                  [](const Row<FileT>& a, const Row<FileT>& b) { return a.request < b.request; });
    }

    [[nodiscard]] long call(FileT& file, unsigned request, unsigned long argument) const noexcept
    {
        const auto row =
            std::lower_bound(rows_.begin(), rows_.end(), request,
                             [](const Row<FileT>& a, unsigned b) { return a.request < b; });
        if (row == rows_.end() || row->request != request) {
            note_unknown(kind_, request);
            return -unknown_errno_;
        }
        try {
            const long result = row->handle(file, argument);
            if (is_wanted(LogLevel::Trace)) {
                trace(file.link_name() + ' ' + row->name, result);
            }
            return result;
        } catch (const std::bad_alloc&) {
            return -ENOMEM;
        }
    }

private:
    const char* kind_;
    int unknown_errno_;
    std::vector<Row<FileT>> rows_;
};

}  // namespace vmm::shim
