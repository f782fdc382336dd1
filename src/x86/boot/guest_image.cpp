// SPDX-License-Identifier: Apache-2.0

#include "vmm/boot/guest_image.hpp"

#include <algorithm>
#include <array>

#include <fmt/format.h>

namespace vmm::boot {
namespace {

constexpr std::uint64_t page_bytes = 4096;

}  // namespace

ImageWriter::~ImageWriter() = default;

Result<void> ImageWriter::zero(Gpa target, std::uint64_t size)
{
    static constexpr std::array<std::byte, 16 * page_bytes> zeros{};
    while (size > 0) {
        const auto chunk = std::min<std::uint64_t>(size, zeros.size());
        VMM_TRY_VOID(write(target, std::span{zeros}.first(static_cast<std::size_t>(chunk))));
        size -= chunk;
        if (size > 0) {
            const auto next = target.checked_add(chunk);
            if (!next) {
                return Error{std::errc::bad_address, "clear guest memory: beyond the last address"};
            }
            target = *next;
        }
    }
    return success;
}

Result<std::vector<RamRange>> ram_ranges(std::uint64_t memory_bytes)
{
    if (memory_bytes == 0 || memory_bytes % page_bytes != 0 || memory_bytes > max_memory_bytes) {
        return Error{std::errc::invalid_argument,
                     fmt::format("memory size: {} bytes; it must be a multiple of 4096, at least "
                                 "4096 and at most {} (64 TiB)",
                                 memory_bytes, max_memory_bytes)};
    }
    const auto low = std::min(memory_bytes, ram_hole_begin.value());
    std::vector<RamRange> ranges{RamRange{.first = Gpa{0}, .size = low}};
    if (memory_bytes > low) {
        ranges.push_back(RamRange{.first = ram_hole_end, .size = memory_bytes - low});
    }
    return ranges;
}

Result<std::vector<E820Entry>> e820_map(std::uint64_t memory_bytes)
{
    VMM_TRY(const auto ranges, ram_ranges(memory_bytes));
    std::vector<E820Entry> map;
    const auto add = [&map](std::uint64_t begin, std::uint64_t end, E820Type type) {
        if (begin < end) {
            map.push_back(E820Entry{.first = Gpa{begin}, .size = end - begin, .type = type});
        }
    };
    const auto low_end = ranges.front().size;
    const auto reserved_begin = layout::extended_bios_data.value();
    const auto reserved_end = layout::high_memory.value();
    add(0, std::min(low_end, reserved_begin), E820Type::Ram);
    add(reserved_begin, std::min(low_end, reserved_end), E820Type::Reserved);
    add(reserved_end, low_end, E820Type::Ram);
    if (ranges.size() > 1) {
        const auto& high = ranges.back();
        add(high.first.value(), high.first.value() + high.size, E820Type::Ram);
    }
    return map;
}

}  // namespace vmm::boot
