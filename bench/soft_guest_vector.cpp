// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest code of soft_bench with SSE and x87 registers; constants come from memory.

#include "soft_guest.hpp"

#define GUEST extern "C" __attribute__((section("guest_code"), noinline, used))

namespace {
using u8 = std::uint8_t;
using u64 = std::uint64_t;
constexpr u64 size = 32;
}  // namespace

/// Packed doubles.
GUEST u64 guest_matrix(u64 n, u8* memory)
{
    auto* const a = reinterpret_cast<double*>(memory);
    auto* const b = a + size * size;
    auto* const c = b + size * size;
    for (u64 i = 0; i < size * size; ++i) {
        a[i] = static_cast<double>(static_cast<std::int64_t>(i % 7));
        b[i] = static_cast<double>(static_cast<std::int64_t>(i % 5));
        asm volatile("" : : : "memory");
    }
    for (u64 round = 0; round < n; ++round) {
        for (u64 i = 0; i < size; ++i) {
            for (u64 j = 0; j < size; j += 2) {
                using Pair = double __attribute__((vector_size(16)));
                Pair sum = {};
                for (u64 k = 0; k < size; ++k) {
                    const double left = a[i * size + k];
                    Pair right;
                    asm volatile("movupd %1, %0" : "=x"(right) : "m"(b[k * size + j]));
                    sum += right * left;
                }
                asm volatile("movupd %1, %0" : "=m"(c[i * size + j]) : "x"(sum) : "memory");
            }
        }
    }
    return static_cast<u64>(static_cast<std::int64_t>(c[5 * size + 6]));
}

/// Scalar floats: iterations of z = z*z + c.
GUEST u64 guest_mandel(u64 n, u8* memory)
{
    auto* const values = reinterpret_cast<volatile float*>(memory);
    values[0] = static_cast<float>(static_cast<std::int64_t>(n) % 3) / static_cast<float>(n);
    u64 total = 0;
    for (u64 i = 0; i < n; ++i) {
        const float re = values[0] * static_cast<float>(static_cast<std::int64_t>(i));
        const float im = values[0];
        float x = re;
        float y = im;
        for (int k = 0; k < 50; ++k) {
            const float xx = x * x;
            const float yy = y * y;
            y = x * y;
            y = y + y + im;
            x = xx - yy + re;
            total += xx < yy ? 1U : 0U;
        }
    }
    return total;
}

GUEST u64 guest_x87(u64 n, u8* memory)
{
    auto* const values = reinterpret_cast<volatile long double*>(memory);
    values[0] = static_cast<long double>(static_cast<std::int64_t>(n));
    long double x = values[0];
    long double sum = x;
    for (u64 i = 0; i < n; ++i) {
        x = values[0] / (x + values[0]);
        sum = sum * x + values[0];
    }
    return static_cast<u64>(static_cast<std::int64_t>(sum));
}

/// Packed floats: c = a * b + c.
GUEST u64 guest_floats(u64 n, u8* memory)
{
    using Four = float __attribute__((vector_size(16)));
    auto* const a = reinterpret_cast<Four*>(memory);
    constexpr u64 count = 256;
    for (u64 i = 0; i < 4 * count; ++i) {
        reinterpret_cast<volatile float*>(memory)[i] =
            static_cast<float>(static_cast<std::int32_t>(i % 13));
    }
    Four sum = {};
    for (u64 round = 0; round < n; ++round) {
        for (u64 i = 0; i < count; ++i) {
            sum += a[i] * a[count - 1 - i];
        }
        asm volatile("" : "+x"(sum) : : "memory");
    }
    return static_cast<u64>(static_cast<std::int64_t>(sum[0] + sum[1] + sum[2] + sum[3]));
}

namespace {
using EightInts = std::uint32_t __attribute__((vector_size(32)));
using FourDoubles = double __attribute__((vector_size(32)));
}  // namespace

GUEST __attribute__((target("avx2"))) u64 guest_avx2(u64 n, u8* memory)
{
    auto* const a = reinterpret_cast<EightInts*>(memory);
    constexpr u64 count = 128;
    for (u64 i = 0; i < 8 * count; ++i) {
        reinterpret_cast<volatile std::uint32_t*>(memory)[i] = static_cast<std::uint32_t>(i * i);
    }
    EightInts x = {};
    EightInts y = {};
    for (u64 round = 0; round < n; ++round) {
        for (u64 i = 0; i < count; ++i) {
            x += a[i] ^ y;
            y = (y << 5U) - x;
        }
        asm volatile("" : "+x"(x), "+x"(y) : : "memory");
    }
    const EightInts all = x ^ y;
    const u64 result = all[0] ^ all[3] ^ all[7];
    asm volatile("vzeroupper");
    return result;
}

GUEST __attribute__((target("avx2,fma"))) u64 guest_fma(u64 n, u8* memory)
{
    auto* const a = reinterpret_cast<FourDoubles*>(memory);
    constexpr u64 count = 128;
    for (u64 i = 0; i < 4 * count; ++i) {
        reinterpret_cast<volatile double*>(memory)[i] =
            static_cast<double>(static_cast<std::int64_t>(i % 11));
    }
    FourDoubles x = {};
    FourDoubles y = {};
    for (u64 round = 0; round < n; ++round) {
        for (u64 i = 0; i < count; i += 2) {
            asm("vfmadd231pd %1, %2, %0" : "+x"(x) : "m"(a[i]), "x"(a[i + 1]));
            asm("vfmadd231pd %1, %2, %0" : "+x"(y) : "m"(a[i + 1]), "x"(a[i]));
        }
        asm volatile("" : "+x"(x), "+x"(y) : : "memory");
    }
    const FourDoubles all = x + y;
    const u64 result = static_cast<u64>(static_cast<std::int64_t>(all[0] + all[3]));
    asm volatile("vzeroupper");
    return result;
}
