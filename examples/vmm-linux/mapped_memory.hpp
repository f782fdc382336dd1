// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <cstddef>
#include <utility>

#include <sys/mman.h>

#include "vmm/result.hpp"

namespace vmm_linux {

/// Anonymous memory for a guest's RAM: zero, allocated as the guest touches it.
class MappedMemory {
public:
    [[nodiscard]] static vmm::Result<MappedMemory> create(std::size_t size)
    {
        void* const address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (address == MAP_FAILED) {
            return vmm::Error::from_errno("memory for the guest");
        }
        // Fewer host page faults; not being able to is no harm.
        static_cast<void>(::madvise(address, size, MADV_HUGEPAGE));
        return MappedMemory{static_cast<std::byte*>(address), size};
    }

    MappedMemory(MappedMemory&& other) noexcept
        : data_{std::exchange(other.data_, nullptr)},
          size_{std::exchange(other.size_, 0)}
    {
    }
    MappedMemory& operator=(MappedMemory&& other) noexcept
    {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    MappedMemory(const MappedMemory&) = delete;
    MappedMemory& operator=(const MappedMemory&) = delete;
    ~MappedMemory()
    {
        if (data_ != nullptr) {
            static_cast<void>(::munmap(data_, size_));
        }
    }

    [[nodiscard]] std::byte* data() const noexcept { return data_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
    MappedMemory(std::byte* data, std::size_t size) noexcept : data_{data}, size_{size} {}

    std::byte* data_;
    std::size_t size_;
};

}  // namespace vmm_linux
