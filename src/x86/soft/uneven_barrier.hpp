// SPDX-License-Identifier: Apache-2.0

/// @file
/// A memory barrier whose cost lies with the side that is rarely there.

#pragma once

#include <atomic>

namespace vmm::x86::soft {

/// For two threads that each store to one place and then load what the other stores to: at least
/// one of them is to see the other's store.  The usual one puts `UnevenBarrier::light()` between
/// its store and its load, which costs next to nothing where the kernel has membarrier(2), and the
/// rare one `heavy()`, which takes microseconds.
class UnevenBarrier {
public:
    static void light() noexcept
    {
        if (by_kernel_.load(std::memory_order_relaxed)) [[likely]] {
            std::atomic_signal_fence(std::memory_order_seq_cst);  // The compiler must not reorder.
        } else {
            full();
        }
    }
    static void heavy() noexcept;

private:
    static void full() noexcept;

    static std::atomic<bool> by_kernel_;
};

}  // namespace vmm::x86::soft
