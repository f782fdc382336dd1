// SPDX-License-Identifier: Apache-2.0

/// @file
/// What soft_bench runs as guest code: this file's section, copied into a guest.  No calls out of
/// it, no constants in memory, general registers only.

#include "soft_guest.hpp"

#define GUEST extern "C" __attribute__((section("guest_code"), noinline, used))

namespace {
using u8 = std::uint8_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
}  // namespace

GUEST u64 guest_sieve(u64 n, u8* memory)
{
    for (u64 i = 0; i < n; ++i) {
        memory[i] = 1;
        asm volatile("" : : : "memory");
    }
    u64 found = 0;
    for (u64 i = 2; i < n; ++i) {
        if (memory[i] != 0) {
            ++found;
            for (u64 j = i * 2; j < n; j += i) {
                memory[j] = 0;
            }
        }
    }
    return found;
}

GUEST u64 guest_crc32(u64 n, u8* memory)
{
    auto* const table = reinterpret_cast<volatile u32*>(memory);
    for (u32 i = 0; i < 256; ++i) {
        u32 value = i;
        for (int bit = 0; bit < 8; ++bit) {
            value = (value >> 1U) ^ ((value & 1U) != 0 ? 0xedb8'8320U : 0U);
        }
        table[i] = value;
    }
    u32 crc = ~0U;
    for (u64 i = 0; i < n; ++i) {
        crc = (crc >> 8U) ^ table[(crc ^ memory[1024 + i % 4096]) & 0xffU];
    }
    return crc;
}

GUEST void guest_sift(u32* a, u64 root, u64 end)
{
    for (u64 child = 2 * root + 1; child < end; child = 2 * root + 1) {
        if (child + 1 < end && a[child] < a[child + 1]) {
            ++child;
        }
        if (a[root] >= a[child]) {
            return;
        }
        const u32 other = a[root];
        a[root] = a[child];
        a[child] = other;
        root = child;
    }
}

GUEST u64 guest_sort(u64 n, u8* memory)
{
    auto* const a = reinterpret_cast<u32*>(memory);
    u32 seed = 12345;
    for (u64 i = 0; i < n; ++i) {
        seed = seed * 1664525U + 1013904223U;
        a[i] = seed;
    }
    for (u64 i = n / 2; i-- > 0;) {
        guest_sift(a, i, n);
    }
    for (u64 i = n - 1; i > 0; --i) {
        const u32 other = a[0];
        a[0] = a[i];
        a[i] = other;
        guest_sift(a, 0, i);
    }
    return a[n / 2];
}

GUEST u64 guest_fib(u64 n, u8* memory)
{
    return n < 2 ? n : guest_fib(n - 1, memory) + guest_fib(n - 2, memory);
}

GUEST u64 guest_string(u64 n, u8* memory)
{
    for (u64 i = 0; i < 4095; ++i) {
        memory[i] = static_cast<u8>('a' + i % 23);
        asm volatile("" : : : "memory");
    }
    memory[4095] = 0;
    u64 total = 0;
    for (u64 i = 0; i < n; ++i) {
        const volatile u8* p = memory;
        while (*p != 0) {
            total += *p == 'q' ? 1U : 0U;
            ++p;
        }
    }
    return total;
}

GUEST u64 guest_chase(u64 n, u8* memory)
{
    auto* const next = reinterpret_cast<volatile u64*>(memory);
    constexpr u64 count = 2048;
    for (u64 i = 0; i < count; ++i) {
        next[i] = (i * 797 + 1) % count;
    }
    u64 at = 0;
    for (u64 i = 0; i < n; ++i) {
        at = next[at];
    }
    return at;
}

GUEST u64 guest_alu(u64 n, u8* memory)
{
    u64 a = n;
    u64 b = 0x9e37'79b9'7f4a'7c15U;
    u64 c = reinterpret_cast<u64>(memory);
    for (u64 i = 0; i < n; ++i) {
        a ^= b << 13U;
        b += a >> 7U;
        c = (c * 31) ^ (a & b);
        a += (c >> 3U) | (b << 5U);
    }
    return a ^ b ^ c;
}

/// Carries through 256-bit numbers.
GUEST u64 guest_carry(u64 n, u8* memory)
{
    u64 a = n;
    u64 b = reinterpret_cast<u64>(memory);
    u64 c = 1;
    u64 d = 0;
    for (u64 i = 0; i < n; ++i) {
        asm("add %[i], %[a]; adc %[a], %[b]; adc %[b], %[c]; adc %[c], %[d]; adc $0, %[a]"
            : [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [d] "+r"(d)
            : [i] "r"(i)
            : "cc");
    }
    return a ^ b ^ c ^ d;
}

/// Rounds as of a hash: more values than registers.
GUEST u64 guest_hash(u64 n, u8* memory)
{
    auto* const words = reinterpret_cast<volatile u32*>(memory);
    for (u32 i = 0; i < 64; ++i) {
        words[i] = i * 0x9e37'79b9U;
    }
    u32 a = 1;
    u32 b = 2;
    u32 c = 3;
    u32 d = 4;
    u32 e = 5;
    u32 f = 6;
    u32 g = 7;
    u32 h = 8;
    const auto rotate = [](u32 value, unsigned by) {
        return (value >> by) | (value << (32U - by));
    };
    for (u64 i = 0; i < n; ++i) {
        const u32 s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
        const u32 first = h + s1 + ((e & f) ^ (~e & g)) + words[i % 64];
        const u32 s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
        const u32 second = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + first;
        d = c;
        c = b;
        b = a;
        a = first + second;
    }
    return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h;
}

GUEST u64 guest_atomic(u64 n, u8* memory)
{
    auto* const counter = reinterpret_cast<u64*>(memory);
    __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
    for (u64 i = 0; i < n; ++i) {
        __atomic_fetch_add(counter, i, __ATOMIC_SEQ_CST);
    }
    return *counter;
}

GUEST u64 guest_copy(u64 n, u8* memory)
{
    for (u64 i = 0; i < n; ++i) {
        const u8* from = memory;
        u8* to = memory + 65'536;
        u64 count = 32'768;
        asm volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
    }
    return memory[65'536];
}

GUEST u64 guest_fill(u64 n, u8* memory)
{
    for (u64 i = 0; i < n; ++i) {
        u8* to = memory;
        u64 count = 8'192;
        asm volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(i) : "memory");
    }
    return memory[0];
}

/// Each step waits for a line of 8 MiB.
GUEST u64 guest_far_chase(u64 n, u8* memory)
{
    constexpr u64 lines = 131'072;
    u64 none = 0;
    asm("" : "+r"(none));
    u64 at = 0;
    for (u64 i = 0; i < n; ++i) {
        const u64 read = *reinterpret_cast<volatile u64*>(memory + at * 64);
        at = (at * 797 + 1 + (read & none)) % lines;
    }
    return at;
}

/// Writes a function, and calls it.
GUEST u64 guest_rewrite(u64 n, u8* memory)
{
    u64 total = 0;
    for (u64 i = 0; i < n; ++i) {
        *reinterpret_cast<volatile u64*>(memory) = 0xc300'0000'00b8U | (i % 251) << 8U;  // mov, ret
        total += reinterpret_cast<u64 (*)()>(memory)();
    }
    return total;
}

GUEST u64 guest_step_add(u64 a, u64 b)
{
    return a + b;
}
GUEST u64 guest_step_rotate(u64 a, u64 b)
{
    return ((a << 3U) | (a >> 61U)) ^ b;
}
GUEST u64 guest_step_mix(u64 a, u64 b)
{
    return a ^ (b >> 5U);
}

/// Each step is called by a table.
GUEST u64 guest_threaded(u64 n, u8* memory)
{
    using Step = u64 (*)(u64, u64);
    auto* const steps = reinterpret_cast<Step volatile*>(memory);
    for (u64 i = 0; i < 64; ++i) {
        const u64 which = (i * 7 + i / 8) % 3;
        steps[i] = &guest_step_add;
        if (which == 1) {
            steps[i] = &guest_step_rotate;
        } else if (which == 2) {
            steps[i] = &guest_step_mix;
        }
    }
    u64 a = 1;
    for (u64 i = 0; i < n; ++i) {
        a = steps[i % 64](a, i);
    }
    return a;
}

/// A small virtual machine: indirect jumps.
GUEST u64 guest_interpreter(u64 n, u8* memory)
{
    volatile u8* const program = memory;
    for (u64 i = 0; i < 256; ++i) {
        program[i] = static_cast<u8>((i * 7 + i / 16) % 6);
    }
    u64 a = 1;
    u64 b = 2;
    for (u64 i = 0; i < n; ++i) {
        switch (program[i % 256]) {
        case 0: a += b; break;
        case 1: b ^= a; break;
        case 2: a = (a << 3U) | (a >> 61U); break;
        case 3: b -= i; break;
        case 4: a ^= b >> 5U; break;
        default: b += 77; break;
        }
    }
    return a + b;
}

GUEST void guest_print(u64 value)
{
    u64 unit = 1;
    while (value / unit >= 10) {
        unit *= 10;
    }
    for (; unit != 0; unit /= 10) {
        const auto digit = static_cast<u8>('0' + value / unit % 10);
        asm volatile("outb %b0, $0xe9" : : "a"(digit));
    }
    asm volatile("outb %b0, $0xe9" : : "a"(u8{'\n'}));
}

GUEST void guest_main(const RomWorkload* workloads)
{
    asm volatile("fninit");
    for (; workloads->function != 0; ++workloads) {
        u64 best = ~u64{0};
        for (int i = 0; i < 25; ++i) {
            const u64 begin = __builtin_ia32_rdtsc();
            reinterpret_cast<GuestFunction>(workloads->function)(
                workloads->size, reinterpret_cast<u8*>(guest_memory));
            const u64 time = __builtin_ia32_rdtsc() - begin;
            best = time < best ? time : best;
        }
        guest_print(best);
    }
    for (;;) {
        asm volatile("outb %b0, $0xf4" : : "a"(u8{0}));
    }
}
