// SPDX-License-Identifier: Apache-2.0

#include "x86/lockstep/shadow_memory.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include <sys/mman.h>

namespace vmm::x86::lockstep {

void ShadowMemory::Unmap::operator()(std::byte* memory) const noexcept
{
    static_cast<void>(::munmap(memory, size));
}

PhysicalMemory::Page ShadowMemory::page(std::uint64_t gfn) noexcept
{
    const std::lock_guard lock{mutex_};
    const std::uint64_t gpa = gfn << 12U;
    for (const Shadow& each : shadows_) {
        if (gpa - each.original.gpa < each.original.size_bytes) {
            return {each.bytes.get() + (gpa - each.original.gpa), !each.original.read_only, false};
        }
    }
    return {};
}

std::vector<MemorySlots::Region> ShadowMemory::regions()
{
    const std::lock_guard lock{mutex_};
    std::vector<Region> all;
    for (const Shadow& each : shadows_) {
        Region region = each.original;
        region.host = each.bytes.get();
        region.log_dirty = false;
        all.push_back(region);
    }
    return all;
}

void ShadowMemory::follow_slots()
{
    const std::vector<Region> now = original_.regions();
    const std::lock_guard lock{mutex_};
    std::vector<Shadow> next;
    for (const Region& region : now) {
        const auto old = std::find_if(shadows_.begin(), shadows_.end(), [&](const Shadow& each) {
            return each.original.slot == region.slot && each.original.host == region.host &&
                   each.original.size_bytes == region.size_bytes;
        });
        if (old != shadows_.end()) {
            next.push_back({region, old->bytes});
            continue;
        }
        void* const memory = ::mmap(nullptr, region.size_bytes, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            throw std::bad_alloc{};
        }
        auto* const bytes = static_cast<std::byte*>(memory);
        next.push_back({region, {bytes, Unmap{region.size_bytes}}});
        std::memcpy(bytes, region.host, region.size_bytes);
    }
    shadows_ = std::move(next);
}

void ShadowMemory::copy(std::uint64_t gpa, std::uint64_t size_bytes) noexcept
{
    const std::lock_guard lock{mutex_};
    for (const Shadow& each : shadows_) {
        const std::uint64_t first = std::max(gpa, each.original.gpa);
        const std::uint64_t end =
            std::min(gpa + size_bytes, each.original.gpa + each.original.size_bytes);
        if (first < end) {
            const std::uint64_t offset = first - each.original.gpa;
            std::memcpy(each.bytes.get() + offset, each.original.host + offset, end - first);
        }
    }
}

void ShadowMemory::copy_all() noexcept
{
    const std::lock_guard lock{mutex_};
    for (const Shadow& each : shadows_) {
        std::memcpy(each.bytes.get(), each.original.host, each.original.size_bytes);
    }
}

std::vector<ShadowMemory::Word> ShadowMemory::differences(std::size_t most)
{
    std::vector<Word> found;
    constexpr std::uint64_t accessed = 1U << 5U;
    const std::lock_guard lock{mutex_};
    for (const Shadow& each : shadows_) {
        for (std::uint64_t page = 0; page < each.original.size_bytes; page += 4096) {
            if (std::memcmp(each.bytes.get() + page, each.original.host + page, 4096) == 0) {
                continue;
            }
            for (std::uint64_t at = page; at < page + 4096; at += 4) {
                std::uint32_t ours = 0;
                std::uint32_t theirs = 0;
                std::memcpy(&ours, each.original.host + at, sizeof ours);
                std::memcpy(&theirs, each.bytes.get() + at, sizeof theirs);
                if (((ours ^ theirs) & ~accessed) != 0 && found.size() < most) {
                    found.push_back({each.original.gpa + at, ours, theirs});
                }
            }
        }
    }
    return found;
}

}  // namespace vmm::x86::lockstep
