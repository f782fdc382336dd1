// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest functions of soft_bench; see soft_guest.cpp.

#pragma once

#include <cstddef>
#include <cstdint>

using GuestFunction = std::uint64_t (*)(std::uint64_t n, std::uint8_t* memory);

extern "C" {
std::uint64_t guest_sieve(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_crc32(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_sort(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_fib(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_string(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_chase(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_alu(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_interpreter(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_carry(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_hash(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_atomic(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_copy(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_matrix(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_mandel(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_x87(std::uint64_t n, std::uint8_t* memory);
extern const std::uint8_t __start_guest_code[];
extern const std::uint8_t __stop_guest_code[];
}
