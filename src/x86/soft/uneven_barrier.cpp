// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/uneven_barrier.hpp"

#include <chrono>
#include <thread>

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace vmm::x86::soft {

namespace {

bool membarrier(int command) noexcept
{
    return ::syscall(SYS_membarrier, command, 0U, 0) == 0;
}

}  // namespace

std::atomic<bool> UnevenBarrier::by_kernel_{membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)};

/// A locked operation on the thread's own stack: a full barrier, cheaper than MFENCE, and unlike
/// std::atomic_thread_fence() one that ThreadSanitizer takes.
void UnevenBarrier::full() noexcept
{
    std::atomic<int> place{};
    place.exchange(1, std::memory_order_seq_cst);
}

void UnevenBarrier::heavy() noexcept
{
    full();
    if (by_kernel_.load(std::memory_order_relaxed) &&
        !membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)) {
        // A seccomp filter that came after the start.  From here on without the kernel, and what
        // stores are on their way now have arrived long before the sleep ends.
        by_kernel_.store(false, std::memory_order_relaxed);
        std::this_thread::sleep_for(std::chrono::milliseconds{10});
    }
}

}  // namespace vmm::x86::soft
