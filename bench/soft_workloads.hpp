// SPDX-License-Identifier: Apache-2.0

/// @file
/// What soft_bench and those beside it run.

#pragma once

#include <array>
#include <cstdint>

#include "soft_guest.hpp"

enum class Group : std::uint8_t { Integer, Vector, Avx, Bulk, Other };
inline constexpr std::array group_names{"integer", "SSE and x87", "AVX2 and FMA", "bulk moves",
                                        "other"};

struct Workload {
    const char* name;
    GuestFunction function;
    std::uint64_t size;
    bool has_result{true};  ///< That is the same at another address.
    Group group{};

    [[nodiscard]] std::uint64_t offset() const
    {
        return static_cast<std::uint64_t>(reinterpret_cast<const std::uint8_t*>(function) -
                                          __start_guest_code);
    }
};

inline constexpr std::array workloads{
    Workload{"alu", guest_alu, 20'000, false},
    Workload{"sieve", guest_sieve, 30'000},
    Workload{"crc32", guest_crc32, 20'000, false},
    Workload{"chase", guest_chase, 50'000},
    Workload{"far chase", guest_far_chase, 20'000, true, Group::Other},
    Workload{"fib", guest_fib, 18},
    Workload{"interpreter", guest_interpreter, 20'000},
    Workload{"threaded", guest_threaded, 30'000},
    Workload{"string", guest_string, 10},
    Workload{"sort", guest_sort, 2'000},
    Workload{"carry", guest_carry, 30'000, false},
    Workload{"hash", guest_hash, 20'000},
    Workload{"atomic", guest_atomic, 30'000},
    Workload{"copy", guest_copy, 50, true, Group::Bulk},
    Workload{"fill", guest_fill, 50, true, Group::Bulk},
    Workload{"matrix", guest_matrix, 4, true, Group::Vector},
    Workload{"floats", guest_floats, 100, true, Group::Vector},
    Workload{"mandel", guest_mandel, 500, true, Group::Vector},
    Workload{"x87", guest_x87, 10'000, true, Group::Vector},
    Workload{"avx2", guest_avx2, 200, true, Group::Avx},
    Workload{"fma", guest_fma, 200, true, Group::Avx},
    Workload{"rewrite", guest_rewrite, 500, true, Group::Other},
};
