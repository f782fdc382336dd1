// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/file.hpp"

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <utility>
#include <vector>

#include <pthread.h>
#include <unistd.h>

namespace vmm::shim {
namespace {

/// Counts forks on the way from the first process to this one.
std::atomic<unsigned> process_number{0};

/// Whose table this is.  A child by vfork() runs in its parent's memory, and closes descriptors of
/// its own.
std::atomic<pid_t> owner{0};

/// Pages of it that are not used cost nothing.
std::array<std::atomic<bool>, FileTable::max_descriptors> is_ours{};

struct Table {
    std::shared_mutex mutex;
    std::map<int, std::shared_ptr<File>> files;
};

Table& table()
{
    static Table& one = *new Table;
    return one;
}

bool is_in_reach(int fd) noexcept
{
    return fd >= 0 && static_cast<std::size_t>(fd) < FileTable::max_descriptors;
}

/// A child has its parent's files, but not the threads that serve them: they are never destroyed.
void let_go(std::shared_ptr<File> file)
{
    if (file != nullptr && !file->is_of_this_process()) {
        static_cast<void>(new std::shared_ptr<File>{std::move(file)});
    }
}

}  // namespace

File::File() : process_{process_number.load(std::memory_order_relaxed)} {}

long File::may_map(std::size_t /*size*/,
                   int /*protection*/,
                   int /*flags*/,
                   off_t /*offset*/) noexcept
{
    return 0;
}

void File::mapped(void* /*at*/,
                  std::size_t /*size*/,
                  int /*protection*/,
                  int /*flags*/,
                  off_t /*offset*/) noexcept
{
}

void File::about_to_read() noexcept {}

bool File::is_of_this_process() const noexcept
{
    return process_ == process_number.load(std::memory_order_relaxed);
}

FileTable::FileTable()
{
    ::pthread_atfork([] { table().mutex.lock(); }, [] { table().mutex.unlock(); },
                     [] {
                         // Made anew: only the thread that locked it may unlock it, and that is
                         // another one to the C library now.
                         new (&table().mutex) std::shared_mutex;
                         process_number.fetch_add(1, std::memory_order_relaxed);
                         owner.store(::getpid(), std::memory_order_relaxed);
                     });
    owner.store(::getpid(), std::memory_order_relaxed);
}

FileTable& FileTable::instance()
{
    static FileTable& one = *new FileTable;
    return one;
}

const std::atomic<bool>* FileTable::hints() const noexcept
{
    return is_ours.data();
}

std::shared_ptr<File> FileTable::find(int fd) const noexcept
{
    if (!is_in_reach(fd) ||
        !is_ours[static_cast<std::size_t>(fd)].load(std::memory_order_relaxed)) {
        return nullptr;
    }
    const std::shared_lock lock{table().mutex};
    const auto found = table().files.find(fd);
    return found != table().files.end() ? found->second : nullptr;
}

bool FileTable::add(int fd, std::shared_ptr<File> file) noexcept
{
    if (!is_in_reach(fd)) {
        return false;
    }
    std::shared_ptr<File> before;
    {
        const std::unique_lock lock{table().mutex};
        before = std::exchange(table().files[fd], std::move(file));
        is_ours[static_cast<std::size_t>(fd)].store(true, std::memory_order_relaxed);
    }
    // What it led to may end here, and takes its time: not under the lock.
    let_go(std::move(before));
    return true;
}

void FileTable::remove(int fd) noexcept
{
    if (!is_in_reach(fd) ||
        !is_ours[static_cast<std::size_t>(fd)].load(std::memory_order_relaxed) ||
        ::getpid() != owner.load(std::memory_order_relaxed)) {
        return;
    }
    std::shared_ptr<File> gone;
    {
        const std::unique_lock lock{table().mutex};
        is_ours[static_cast<std::size_t>(fd)].store(false, std::memory_order_relaxed);
        const auto found = table().files.find(fd);
        if (found != table().files.end()) {
            gone = std::move(found->second);
            table().files.erase(found);
        }
    }
    let_go(std::move(gone));
}

void FileTable::duplicate(int from, int to) noexcept
{
    if (from == to || ::getpid() != owner.load(std::memory_order_relaxed)) {
        return;
    }
    if (auto file = find(from)) {
        add(to, std::move(file));
    } else {
        remove(to);
    }
}

void FileTable::remove_range(unsigned first, unsigned last) noexcept
{
    std::vector<int> gone;
    {
        const std::shared_lock lock{table().mutex};
        for (const auto& [fd, file] : table().files) {
            if (static_cast<unsigned>(fd) >= first && static_cast<unsigned>(fd) <= last) {
                gone.push_back(fd);
            }
        }
    }
    for (const int fd : gone) {
        remove(fd);
    }
}

}  // namespace vmm::shim
