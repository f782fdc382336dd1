// SPDX-License-Identifier: Apache-2.0

/// @file
/// Publication: data that many threads read at every step and few change.
///
/// `Published<T>` holds one immutable `T` at a time, its current generation.  A reader takes a
/// guard, looks, and drops the guard: it takes no lock and never waits, whatever writers do.  A
/// writer makes a new `T`, publishes it, and gets control back when no reader can see the old one
/// any more, so that whatever the old one referred to may be freed.  (Linux's SRCU is the same
/// bargain.)
///
///     vmm::memory::Published<std::vector<int>> primes{{2, 3, 5}};
///
///     {
///         const auto guard = primes.read();  // any thread, at any time
///         assert(guard->back() == 5);        // also if a writer publishes meanwhile
///     }
///     primes.update([](const std::vector<int>& old) {
///         auto next = old;
///         next.push_back(7);
///         return next;
///     });  // returns when nobody reads {2, 3, 5} any more
///     assert(primes.read()->back() == 7);
///
/// How it works.  A reader adds 1 to a counter, loads the pointer, and subtracts 1 from the same
/// counter at the end; counters are spread over cache lines by thread.  A writer swaps the pointer
/// and then waits until it has seen each counter at 0.  In the single total order of these
/// sequentially consistent operations, a reader that counted itself before such a 0 has left, and
/// one that counts itself after it loads the new pointer.  Each counter exists twice, and new
/// readers are sent to one half while a writer waits for the other, so that a stream of new readers
/// cannot hold a writer up.  Thread sanitizers understand all of it: there are no fences.
///
/// Includes nothing else of this library.

#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>

namespace vmm::memory {

/// What can be published: an object type that is made whole before readers see it, and whose
/// destruction cannot fail.
// clang-format off
template <typename T>
concept Publishable = std::is_object_v<T> && !std::is_const_v<T> &&
                      std::move_constructible<T> && std::is_nothrow_destructible_v<T>;
// clang-format on

/// One immutable generation of a `T` at a time.
///
/// Thread safety: all members from any thread.  A thread that holds a guard must not publish to
/// the same object: it would wait for itself.
template <Publishable T>
class Published {
    struct alignas(64) Shard {
        std::array<std::atomic<std::uint64_t>, 2> readers{};
    };

public:
    /// While one lives, the generation it shows lives.  Guards nest.
    class [[nodiscard]] Guard {
    public:
        Guard(const Guard&) = delete;
        Guard& operator=(const Guard&) = delete;
        Guard(Guard&&) = delete;
        Guard& operator=(Guard&&) = delete;
        // Release: what this reader did comes before the writer's load of 0.
        ~Guard() { readers_->fetch_sub(1, std::memory_order_release); }

        [[nodiscard]] const T& operator*() const noexcept { return *value_; }
        [[nodiscard]] const T* operator->() const noexcept { return value_; }

    private:
        friend class Published;
        explicit Guard(const Published& from, Shard& shard) noexcept
            : readers_{&shard.readers[from.half_.load(std::memory_order_relaxed) & 1U]}
        {
            // Pairs with the exchange of the pointer and the load of 0 in publish(): see the top.
            readers_->fetch_add(1, std::memory_order_seq_cst);
            value_ = from.current_.load(std::memory_order_seq_cst);
        }

        std::atomic<std::uint64_t>* readers_;
        const T* value_;
    };

    /// Publishes the first generation.
    explicit Published(T first = T{}) : current_{new T(std::move(first))} {}
    Published(const Published&) = delete;
    Published& operator=(const Published&) = delete;
    Published(Published&&) = delete;
    Published& operator=(Published&&) = delete;
    /// @pre No guard is left.
    ~Published() { delete current_.load(std::memory_order_relaxed); }

    /// Enters: the guard shows the generation that is current now.  Never waits.
    Guard read() const noexcept { return Guard{*this, shards_[shard_of_this_thread()]}; }
    /// The same for a caller that knows a number of its own, such as a vCPU's id: readers with
    /// different numbers do not share a cache line (modulo 16).
    Guard read(std::size_t reader) const noexcept { return Guard{*this, shards_[reader % shards]}; }

    /// Publishes `next` and returns when no reader can see what was current before, which is
    /// destroyed.  Writers take turns.
    ///
    /// @pre This thread holds no guard of this object.
    void publish(T next)
    {
        const std::lock_guard lock{writers_};
        replace_locked(std::make_unique<T>(std::move(next)));
    }

    /// Publishes what `change` makes of the current generation.  Other writers wait meanwhile, so
    /// that no change is lost.
    ///
    /// @pre This thread holds no guard of this object.
    template <std::invocable<const T&> F>
        requires(std::convertible_to<std::invoke_result_t<F, const T&>, T>)
    void update(F&& change)
    {
        const std::lock_guard lock{writers_};
        // Relaxed: only writers store it, and they hold the lock.
        const T& old = *current_.load(std::memory_order_relaxed);
        replace_locked(std::make_unique<T>(std::invoke(std::forward<F>(change), old)));
    }

private:
    static constexpr std::size_t shards = 16;

    static std::size_t shard_of_this_thread() noexcept
    {
        const std::thread::id id = std::this_thread::get_id();
        if constexpr (sizeof(id) == sizeof(std::uint64_t)) {
            // An address, in Linux: the product spreads its middle bits to the top.
            constexpr std::uint64_t golden = 0x9e37'79b9'7f4a'7c15U;
            return (std::bit_cast<std::uint64_t>(id) * golden) >> 60U;
        } else {
            return std::hash<std::thread::id>{}(id) % shards;
        }
    }

    void replace_locked(std::unique_ptr<T> next) noexcept
    {
        const std::unique_ptr<const T> old{
            current_.exchange(next.release(), std::memory_order_seq_cst)};
        // Relaxed: which half a reader takes decides only how long a writer waits.
        const unsigned half = half_.load(std::memory_order_relaxed) & 1U;
        wait_for(half ^ 1U);  // Those that were late to count themselves in.
        half_.store(half ^ 1U, std::memory_order_relaxed);
        wait_for(half);
    }

    void wait_for(unsigned half) const noexcept
    {
        for (const Shard& shard : shards_) {
            unsigned rounds = 0;
            // Also acquires what the readers released.
            while (shard.readers[half].load(std::memory_order_seq_cst) != 0) {
                // A reader that was preempted needs a processor; one in a slow device, patience.
                constexpr unsigned rounds_of_yielding = 200;
                if (++rounds < rounds_of_yielding) {
                    std::this_thread::yield();
                } else {
                    std::this_thread::sleep_for(std::chrono::microseconds{50});
                }
            }
        }
    }

    std::atomic<const T*> current_;
    std::atomic<unsigned> half_{0};
    mutable std::array<Shard, shards> shards_;
    std::mutex writers_;
};

}  // namespace vmm::memory
