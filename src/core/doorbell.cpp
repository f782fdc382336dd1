// SPDX-License-Identifier: Apache-2.0

#include "core/doorbell.hpp"

#include <limits>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace vmm::core {

static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t), "a futex is a word");

void Doorbell::ring() noexcept
{
    rings_.fetch_add(1, std::memory_order_seq_cst);
    // Sequentially consistent with wait(): who does not see the waiter has its ring seen by it.
    if (waiters_.load(std::memory_order_seq_cst) != 0U) {
        ::syscall(SYS_futex, &rings_, FUTEX_WAKE_PRIVATE, std::numeric_limits<int>::max(), nullptr,
                  nullptr, 0);
    }
}

void Doorbell::wait(std::uint32_t seen) noexcept
{
    waiters_.fetch_add(1, std::memory_order_seq_cst);
    ::syscall(SYS_futex, &rings_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    waiters_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace vmm::core
