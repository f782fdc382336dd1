// SPDX-License-Identifier: Apache-2.0

#include "vmm/boot/raw_image.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace vmm::boot {

Result<EntryState> load_flat(ImageWriter& memory, const FlatBoot& boot)
{
    VMM_TRY(const auto ranges, ram_ranges(boot.memory_bytes));
    if (boot.image.empty()) {
        return Error{std::errc::invalid_argument,
                     "flat image: it is empty; give at least one instruction"};
    }
    // Real mode reaches no further than the first range.
    const auto room = ranges.front().size;
    const auto target = boot.target.value();
    if (target > room || room - target < boot.image.size()) {
        return Error{std::errc::not_enough_memory,
                     fmt::format("flat image: {} bytes at gpa {:#x} do not fit into {} bytes of "
                                 "memory; give more memory or a lower address",
                                 boot.image.size(), target, room)};
    }
    VMM_TRY_VOID(memory.write(boot.target, boot.image));
    return enter_real(boot.code_segment, boot.ip);
}

Result<BiosPlacement> place_bios(std::uint64_t image_bytes)
{
    constexpr std::uint64_t unit = 0x1'0000;
    constexpr std::uint64_t most = 0x100'0000;  // The local APIC is 18 MiB below 4 GiB.
    if (image_bytes == 0 || image_bytes % unit != 0 || image_bytes > most) {
        return Error{std::errc::invalid_argument,
                     fmt::format("BIOS image: {} bytes; it must be a multiple of 64 KiB, at least "
                                 "64 KiB and at most 16 MiB",
                                 image_bytes)};
    }
    BiosPlacement place;
    place.rom = Gpa{ram_hole_end.value() - image_bytes};
    place.rom_bytes = image_bytes;
    place.shadow_bytes = std::min<std::uint64_t>(image_bytes, 2 * unit);
    place.shadow_offset = image_bytes - place.shadow_bytes;
    place.shadow = Gpa{layout::high_memory.value() - place.shadow_bytes};
    place.entry = enter_reset();
    return place;
}

}  // namespace vmm::boot
