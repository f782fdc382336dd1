// SPDX-License-Identifier: Apache-2.0

/// @file
/// The host's time-stamp counter.

#pragma once

#include <cstdint>

#include <x86intrin.h>

namespace vmm::x86 {

/// The counter now; about 10 ns.
[[nodiscard]] inline std::uint64_t read_host_tsc() noexcept
{
    return __rdtsc();
}

/// The counter's frequency in kHz: from CPUID where the CPU or the host's hypervisor tells it, else
/// measured against CLOCK_MONOTONIC_RAW, which takes about 20 ms the first time.  Any thread.
[[nodiscard]] std::uint32_t host_tsc_khz();

}  // namespace vmm::x86
