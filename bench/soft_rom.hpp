// SPDX-License-Identifier: Apache-2.0

/// @file
/// The guest functions of soft_bench as the firmware of a PC, for other emulators to run.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "soft_guest.hpp"

/// 64 KiB for the end of the first 4 GiB.  `function` of a workload is an offset into the section
/// of guest code.  The machine prints a line for each workload, as guest_main() says.
std::vector<std::uint8_t> make_rom(std::span<const RomWorkload> workloads);
