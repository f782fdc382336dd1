// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest functions of soft_bench; see soft_guest.cpp.

#pragma once

#include <cstddef>
#include <cstdint>

using GuestFunction = std::uint64_t (*)(std::uint64_t n, std::uint8_t* memory);

/// What a machine that starts from soft_rom.cpp is to run, and where that lies in its memory.
struct RomWorkload {
    std::uint64_t function{};  ///< 0: no more.
    std::uint64_t size{};
};
inline constexpr std::uint64_t guest_memory = 0x20'0000;

extern "C" {
/// Prints the TSC ticks of each, the least of several runs, to port 0xe9, and writes 0 to port
/// 0xf4.
void guest_main(const RomWorkload* workloads);

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
std::uint64_t guest_far_chase(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_threaded(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_copy(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_fill(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_rewrite(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_matrix(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_floats(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_mandel(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_x87(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_avx2(std::uint64_t n, std::uint8_t* memory);
std::uint64_t guest_fma(std::uint64_t n, std::uint8_t* memory);
extern const std::uint8_t __start_guest_code[];
extern const std::uint8_t __stop_guest_code[];
}
