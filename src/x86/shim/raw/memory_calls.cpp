// SPDX-License-Identifier: Apache-2.0

/// @file
/// System calls about memory.

#include <cerrno>
#include <mutex>

#include <sys/mman.h>

#include "x86/shim/raw/call.hpp"

namespace vmm::shim::raw {
namespace {

/// The process's own program break moves for the library's C library; the client has this one.
class Break {
public:
    [[nodiscard]] std::uint64_t move(std::uint64_t wanted) noexcept
    {
        const std::lock_guard lock{mutex_};
        if (first_ == 0) {
            void* const area = ::mmap(nullptr, most, PROT_NONE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (area == MAP_FAILED) {
                return 0;
            }
            first_ = now_ = reinterpret_cast<std::uint64_t>(area);
        }
        if (wanted < first_ || wanted > first_ + most) {
            return now_;
        }
        const std::uint64_t end = up_to_page(now_);
        const std::uint64_t new_end = up_to_page(wanted);
        if (new_end > end && !map(end, new_end - end, PROT_READ | PROT_WRITE, 0)) {
            return now_;
        }
        if (new_end < end && !map(new_end, end - new_end, PROT_NONE, MAP_NORESERVE)) {
            return now_;
        }
        now_ = wanted;
        return now_;
    }

private:
    static constexpr std::uint64_t most = std::uint64_t{1} << 34U;
    static constexpr std::uint64_t page = 4096;

    static std::uint64_t up_to_page(std::uint64_t address) noexcept
    {
        return (address + page - 1) & ~(page - 1);
    }
    static bool map(std::uint64_t at, std::uint64_t size, int protection, int flags) noexcept
    {
        // SAFETY: inside the area.
        return ::mmap(reinterpret_cast<void*>(at), size, protection,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, -1, 0) != MAP_FAILED;
    }

    std::mutex mutex_;
    std::uint64_t first_{};
    std::uint64_t now_{};
};

}  // namespace

Outcome do_brk(Call& call) noexcept
{
    static auto& one = *new Break;
    return static_cast<long>(one.move(call.argument(0)));
}

Outcome do_munmap(Call& call) noexcept
{
    const std::uint64_t at = call.argument(0);
    const std::uint64_t size = call.argument(1);
    if (call.stack() - at >= size) {
        return pass_on;
    }
    // A thread that has nothing left to do but to end: SIGSYS would find no stack at the next call.
    ClientThread& thread = call.thread();
    thread.unmapped_at = at;
    thread.unmapped_size = size;
    return 0;
}

}  // namespace vmm::shim::raw
