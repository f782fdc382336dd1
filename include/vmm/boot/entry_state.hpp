// SPDX-License-Identifier: Apache-2.0

/// @file
/// What the boot processor's registers must hold when the guest starts.
///
/// The loaders give these back; the caller hands them to the vCPU as they are.  `enter_…` write
/// the descriptor table and the page tables that a mode needs to the guest's memory.

#pragma once

#include <cstdint>

#include "vmm/address.hpp"
#include "vmm/boot/guest_image.hpp"
#include "vmm/export.hpp"
#include "vmm/result.hpp"
#include "vmm/x86/state.hpp"

namespace vmm::boot {

/// The processor mode a guest is entered in.
enum class EntryMode : std::uint8_t {
    Real,             ///< 16-bit, as after a reset.
    Protected32Flat,  ///< 32-bit, 4 GiB segments, no paging.
    Long64,           ///< 64-bit, the first 4 GiB mapped to themselves by 2 MiB pages.
};

/// All of the state that is not as a reset leaves it.
struct EntryState {
    EntryMode mode{EntryMode::Real};
    x86::Regs regs{};
    x86::Sregs sregs{};
};

/// Selectors of the descriptor table that the loaders write.  Linux asks for these two.
inline constexpr std::uint16_t entry_code_selector = 0x10;
inline constexpr std::uint16_t entry_data_selector = 0x18;
inline constexpr std::uint16_t entry_task_selector = 0x20;

/// Real mode at `code_segment`:`ip`.  DS, ES and SS equal CS; SP is 0, so that the first push
/// lands at the segment's top.
[[nodiscard]] VMM_API EntryState enter_real(std::uint16_t code_segment, std::uint16_t ip);

/// The state after a reset: real mode at 0xfffffff0 (SDM Vol. 3A "Processor State After Reset").
[[nodiscard]] VMM_API EntryState enter_reset();

/// 32-bit protected mode at `entry`, interrupts off; writes the descriptor table.
[[nodiscard]] VMM_API Result<EntryState> enter_protected32(ImageWriter& memory, Gpa entry);

/// 64-bit mode at `entry`, interrupts off; writes the descriptor table and the page tables.
[[nodiscard]] VMM_API Result<EntryState> enter_long64(ImageWriter& memory, Gpa entry);

}  // namespace vmm::boot
