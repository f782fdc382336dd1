// SPDX-License-Identifier: Apache-2.0

/// @file
/// One case of the oracle: instruction bytes, a user-visible machine state and memory; and what
/// came out of it.  Plain data, as it lies in memory shared with the process that runs it natively.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vmm::oracle {

// --- Where a case lives: the same linear addresses on both sides, below 4 GiB for 32-bit code.
//
//     code      two pages, readable, writable, executable; nothing around them
//     data      two pages readable and writable, one read-only, none executable; nothing around
//     exits     reaching `exit_64` (or `exit_32` from 32-bit code) ends the case
//
// The arena is code and data in one run of bytes; offsets into it name memory.

inline constexpr std::uint64_t code_base = 0x1000'0000;
inline constexpr std::uint32_t code_bytes = 0x2000;
inline constexpr std::uint64_t data_base = 0x2000'1000;
inline constexpr std::uint32_t data_writable_bytes = 0x2000;
inline constexpr std::uint32_t data_bytes = 0x3000;
inline constexpr std::uint32_t arena_bytes = code_bytes + data_bytes;
/// What a case can change; the rest is the read-only page.
inline constexpr std::uint32_t arena_writable_bytes = code_bytes + data_writable_bytes;

inline constexpr std::uint64_t exit_64 = 0x3000'0000;
inline constexpr std::uint64_t exit_32 = 0x3000'0100;

[[nodiscard]] constexpr std::uint64_t linear_of(std::uint32_t arena_offset) noexcept
{
    return arena_offset < code_bytes ? code_base + arena_offset
                                     : data_base + (arena_offset - code_bytes);
}

/// The selectors that Linux gives user code.  SDM Vol. 3A "Segment Selectors": RPL 3.
inline constexpr std::uint16_t user_code_32 = 0x23;
inline constexpr std::uint16_t user_data = 0x2b;
inline constexpr std::uint16_t user_code_64 = 0x33;

/// What user code sees of the processor.
struct alignas(64) State {
    std::array<std::uint64_t, 16> gpr{};
    std::uint64_t rip{};
    std::uint64_t rflags{};
    std::uint64_t fs_base{};
    std::uint64_t gs_base{};
    std::array<std::uint16_t, 6> selector{};  ///< ES, CS, SS, DS, FS, GS.
    std::uint32_t mxcsr{};
    /// The start of an FXSAVE64 image: control words, pointers, ST0 … ST7.  MXCSR is above.
    alignas(32) std::array<std::uint8_t, 160> x87{};
    alignas(32) std::array<std::array<std::uint8_t, 32>, 16> ymm{};
};

/// Bytes of memory that a case wants different from the batch's common image.
struct Patch {
    std::uint32_t offset{};  ///< Into the arena.
    std::uint32_t size{};
    std::array<std::uint8_t, 64> bytes{};
};

inline constexpr std::size_t max_code = 192;

struct Case {
    State in{};  ///< RIP and the selectors of CS and SS follow from what is below.
    std::array<std::uint8_t, max_code> code{};
    std::uint32_t code_size{};
    std::uint32_t code_offset{};  ///< Into the arena.
    bool is_32{};
    bool is_sequence{};  ///< Several instructions.
    std::array<Patch, 2> patches{};
};

/// How a case ended, if not with an exception's vector.
enum Ending : std::uint16_t {
    ReachedExit = 0x100,
    ReachedOther,  ///< The exit of the other code size: a far transfer led there.
    SystemCall,    ///< SYSCALL and its kin, or INT 80h: the kernel's, not the processor's.
    TimedOut,
    Died,  ///< The process ended; the engine shut down.
};

/// Eight bytes of memory that a case has changed.
struct Change {
    std::uint32_t offset{};
    std::uint64_t value{};

    friend bool operator==(const Change&, const Change&) = default;
};

struct Outcome {
    State out{};
    std::uint16_t ending{};  ///< A vector below 256, or an `Ending`.
    bool in_32{};            ///< The exit reached was that of 32-bit code.  Of the engine only.
    std::uint32_t error_code{};
    std::uint64_t address{};        ///< CR2 of a page fault.
    std::uint32_t changes_count{};  ///< May be more than `changes` holds.
    std::array<Change, 128> changes{};
};

using Arena = std::array<std::uint8_t, arena_bytes>;

/// Notes where `now` differs from `before`, and makes it equal again.  True if code was changed.
__attribute__((no_sanitize("address", "undefined"))) inline bool
take_changes(std::uint8_t* now, const std::uint8_t* before, Outcome& outcome)
{
    constexpr std::uint32_t block = 1024;
    bool code_changed = false;
    outcome.changes_count = 0;
    for (std::uint32_t at = 0; at < arena_writable_bytes; at += block) {
        if (__builtin_memcmp(now + at, before + at, block) == 0) [[likely]] {
            continue;
        }
        for (std::uint32_t word = at; word < at + block; word += 8) {
            std::uint64_t value = 0;
            std::uint64_t old = 0;
            __builtin_memcpy(&value, now + word, 8);
            __builtin_memcpy(&old, before + word, 8);
            if (value == old) {
                continue;
            }
            if (outcome.changes_count < outcome.changes.size()) {
                outcome.changes[outcome.changes_count] = {word, value};
            }
            ++outcome.changes_count;
            code_changed = code_changed || word < code_bytes;
            __builtin_memcpy(now + word, &old, 8);
        }
    }
    return code_changed;
}

}  // namespace vmm::oracle
