// SPDX-License-Identifier: Apache-2.0

/// @file
/// The MP configuration table, for kernels without ACPI (Intel MultiProcessor Specification 1.4,
/// "MP Configuration Table").

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/boot/guest_image.hpp"
#include "vmm/export.hpp"
#include "vmm/result.hpp"

namespace vmm::boot {

/// What the table says of the machine.
struct MpPlatform {
    std::uint32_t cpus{1};  ///< 1 … 255; APIC ids are 0 … cpus - 1.
    Gpa local_apic{0xfee0'0000};
    Gpa io_apic{0xfec0'0000};
    /// Must differ from every CPU's id for some kernels; 0xff takes the first free one.
    std::uint8_t io_apic_id{0xff};
    std::uint8_t sci_irq{9};                   ///< Level-triggered, active high.
    std::uint32_t cpu_signature{0x0000'0f00};  ///< CPUID.1:EAX.
    std::uint32_t cpu_features{0x0000'0201};   ///< CPUID.1:EDX.
};

/// The largest number of CPUs the table can describe: APIC ids have 8 bits, 255 is broadcast.
inline constexpr std::uint32_t mp_max_cpus = 255;

/// The floating pointer structure and, behind it, the configuration table, for `first`.
///
/// EINVAL: `cpus` or `sci_irq` out of range, or `first` no multiple of 16 in the first 4 GiB.
[[nodiscard]] VMM_API Result<std::vector<std::byte>> build_mp_table(const MpPlatform& platform,
                                                                    Gpa first = layout::mp_table);

/// Builds the table and writes it to `layout::mp_table`, where a guest looks for it.
[[nodiscard]] VMM_API Result<void> write_mp_table(ImageWriter& memory, const MpPlatform& platform);

}  // namespace vmm::boot
