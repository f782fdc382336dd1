// SPDX-License-Identifier: Apache-2.0

/// @file
/// Names for generated code, in the file that `perf report` reads: `/tmp/perf-PID.map`.  Written
/// only if VMM_PERF_MAP is set in the environment.

#pragma once

#include <cstddef>
#include <cstdint>

namespace vmm::x86::soft {

/// `size` bytes of host code at `code` are the guest's at `rip`.  Any thread.
void note_for_perf(const void* code, std::size_t size, std::uint64_t rip) noexcept;

}  // namespace vmm::x86::soft
