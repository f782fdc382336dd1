// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guests without a boot protocol: a flat real-mode program, and a BIOS.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmm/address.hpp"
#include "vmm/boot/entry_state.hpp"
#include "vmm/boot/guest_image.hpp"
#include "vmm/export.hpp"
#include "vmm/result.hpp"

namespace vmm::boot {

/// A flat binary, and where it is entered.
struct FlatBoot {
    std::span<const std::byte> image{};
    Gpa target{0x7c00};
    std::uint16_t code_segment{0};
    std::uint16_t ip{0x7c00};
    std::uint64_t memory_bytes{};
};

/// Copies a flat binary to its place; the guest starts in real mode.
///
/// EINVAL: empty image or memory size.  ENOMEM: the image does not fit.
[[nodiscard]] VMM_API Result<EntryState> load_flat(ImageWriter& memory, const FlatBoot& boot);

/// Where a BIOS image belongs.  The caller maps it: at `rom` as a read-only slot, and a copy of
/// its last `shadow_bytes` at `shadow`, below 1 MiB.
struct BiosPlacement {
    Gpa rom{};
    std::uint64_t rom_bytes{};
    Gpa shadow{};
    std::uint64_t shadow_offset{};  ///< Into the image.
    std::uint64_t shadow_bytes{};   ///< At most 128 KiB.
    EntryState entry{};             ///< The state after a reset.
};

/// Places a BIOS of a whole number of 64 KiB, up to 16 MiB, at the top of the first 4 GiB.
///
/// EINVAL for another size.
[[nodiscard]] VMM_API Result<BiosPlacement> place_bios(std::uint64_t image_bytes);

}  // namespace vmm::boot
