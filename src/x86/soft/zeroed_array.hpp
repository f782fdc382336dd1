// SPDX-License-Identifier: Apache-2.0

/// @file
/// A large array that takes memory only where it has been written to.

#pragma once

#include <cstddef>
#include <new>
#include <type_traits>

#include <sys/mman.h>

namespace vmm::x86::soft {

/// @tparam T  all zeroes is one of its values.
template <typename T>
class ZeroedArray {
    static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

public:
    explicit ZeroedArray(std::size_t size) : size_(size)
    {
        void* const memory = ::mmap(nullptr, size * sizeof(T), PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            throw std::bad_alloc{};
        }
        data_ = static_cast<T*>(memory);
    }
    ~ZeroedArray() { ::munmap(data_, size_ * sizeof(T)); }
    ZeroedArray(const ZeroedArray&) = delete;
    ZeroedArray& operator=(const ZeroedArray&) = delete;
    ZeroedArray(ZeroedArray&&) = delete;
    ZeroedArray& operator=(ZeroedArray&&) = delete;

    [[nodiscard]] T* data() noexcept { return data_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

    /// Elements [from, from + count) are zero again.  Whole pages are given back.
    void clear(std::size_t from, std::size_t count) noexcept
    {
        ::madvise(data_ + from, count * sizeof(T), MADV_DONTNEED);
    }

private:
    std::size_t size_;
    T* data_{};
};

}  // namespace vmm::x86::soft
