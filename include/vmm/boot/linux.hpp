// SPDX-License-Identifier: Apache-2.0

/// @file
/// Loads a Linux kernel (or another that keeps to its boot protocols) into a guest.
///
/// Three forms are taken: a bzImage, entered in 64-bit or in 32-bit mode ("The Linux/x86 Boot
/// Protocol"); an ELF kernel with a PVH note, entered in 32-bit mode ("x86/HVM direct boot ABI");
/// and an ELF kernel without one, entered at its entry point with Linux's zero page.
///
/// Images may hold anything: a broken one is refused with a sentence that says what was found
/// and what would work, before or after part of it was written to the guest's memory.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "vmm/address.hpp"
#include "vmm/boot/entry_state.hpp"
#include "vmm/boot/guest_image.hpp"
#include "vmm/export.hpp"
#include "vmm/result.hpp"

namespace vmm::boot {

/// Which of a kernel's entries to take.
enum class KernelEntry : std::uint8_t {
    Automatic,    ///< 64-bit for a bzImage that has it; PVH for an ELF image that has it.
    Protected32,  ///< A bzImage's 32-bit entry.
    Long64,       ///< A bzImage's 64-bit entry.
    Pvh,          ///< An ELF image's PVH entry.
    Elf,          ///< An ELF image's own entry point, even where it has a PVH note.
};

/// What to boot.  The spans need to live only during the call.
struct LinuxBoot {
    std::span<const std::byte> kernel{};
    std::span<const std::byte> initrd{};  ///< Empty: none.
    std::string command_line{};
    std::uint64_t memory_bytes{};  ///< The machine's RAM, laid out as `ram_ranges()` says.
    std::optional<Gpa> rsdp{};     ///< The ACPI root pointer, if tables were written.
    KernelEntry entry{KernelEntry::Automatic};
};

/// What was loaded, and the state to enter it with.
struct LoadedKernel {
    EntryState entry{};
    Gpa kernel{};                ///< Lowest byte of the kernel.
    std::uint64_t kernel_end{};  ///< First address the kernel does not claim for itself.
    Gpa initrd{};                ///< 0 if there is none.
};

/// Loads a kernel of whichever form `boot.kernel` is.
///
/// ENOEXEC: not a kernel, truncated, or of a kind that cannot be entered.  ENOMEM: kernel or
/// initrd do not fit into the machine's RAM.  E2BIG: command line longer than the kernel takes.
/// EINVAL: the memory size, or an entry that the image does not have.
[[nodiscard]] VMM_API Result<LoadedKernel> load_linux(ImageWriter& memory, const LinuxBoot& boot);

/// As `load_linux()`, for a bzImage only.
[[nodiscard]] VMM_API Result<LoadedKernel> load_bzimage(ImageWriter& memory, const LinuxBoot& boot);

/// As `load_linux()`, for an ELF image only.
[[nodiscard]] VMM_API Result<LoadedKernel> load_elf(ImageWriter& memory, const LinuxBoot& boot);

}  // namespace vmm::boot
