// SPDX-License-Identifier: Apache-2.0

/// @file
/// Bugs as an engine may have them, planted by changing what it is given or what it gives.

#include <array>

#include "oracle/oracle.hpp"
#include "x86/cpu_state.hpp"

namespace vmm::oracle {

namespace {

using x86::Rcx;
using x86::Rdx;

constexpr std::uint64_t carry_flag = 0x1;
constexpr std::uint64_t zero_flag = 0x40;
constexpr std::uint64_t overflow_flag = 0x800;
constexpr std::uint16_t page_fault = 14;
constexpr std::uint32_t rounding = 0x6000;

bool is_legacy(const Encoding& encoding, unsigned map) noexcept
{
    return encoding.kind == Encoding::Kind::Legacy && encoding.map == map;
}

constexpr std::array bugs{
    // SHL by one: OF is the new CF, not whether it differs from the sign.
    PlantedBug{"shift-flags",
               [](const Encoding& encoding) {
                   return is_legacy(encoding, 0) && (encoding.opcode & 0xfeU) == 0xd0 &&
                          encoding.group() == 4;
               },
               nullptr,
               [](const Case&, Outcome& outcome) {
                   const bool carry = (outcome.out.rflags & carry_flag) != 0;
                   outcome.out.rflags =
                       (outcome.out.rflags & ~overflow_flag) | (carry ? overflow_flag : 0);
               }},
    // ADD, MUL, SUB, DIV of floating-point numbers always round to nearest.
    PlantedBug{
        "sse-rounding",
        [](const Encoding& encoding) {
            const unsigned opcode = encoding.opcode;
            return encoding.map == 1 &&
                   (opcode == 0x58 || opcode == 0x59 || opcode == 0x5c || opcode == 0x5e);
        },
        [](Case& each) { each.in.mxcsr &= ~rounding; },
        [](const Case& each, Outcome& outcome) { outcome.out.mxcsr |= each.in.mxcsr & rounding; }},
    // An instruction that reads, changes and writes faults as if it only read.
    PlantedBug{"page-fault-error",
               [](const Encoding& encoding) {
                   return is_legacy(encoding, 0) && encoding.opcode < 0x38 &&
                          (encoding.opcode & 7U) < 2;
               },
               nullptr,
               [](const Case&, Outcome& outcome) {
                   if (outcome.ending == page_fault) {
                       outcome.error_code &= ~2U;
                   }
               }},
    // LOCK CMPXCHG16B that fails leaves RDX as it was.
    PlantedBug{"cmpxchg16b",
               [](const Encoding& encoding) {
                   return is_legacy(encoding, 1) && encoding.opcode == 0xc7 &&
                          encoding.group() == 1 && encoding.w && encoding.lock;
               },
               nullptr,
               [](const Case& each, Outcome& outcome) {
                   if (outcome.ending == ReachedExit && (outcome.out.rflags & zero_flag) == 0) {
                       outcome.out.gpr[Rdx] = each.in.gpr[Rdx];
                   }
               }},
    // REP STOS counts the element whose store faults.
    PlantedBug{"rep-count",
               [](const Encoding& encoding) {
                   return is_legacy(encoding, 0) && (encoding.opcode & 0xfeU) == 0xaa &&
                          encoding.rep && !encoding.address_size;
               },
               nullptr,
               [](const Case&, Outcome& outcome) {
                   if (outcome.ending == page_fault) {
                       --outcome.out.gpr[Rcx];
                   }
               }},
};

}  // namespace

std::span<const PlantedBug> planted_bugs() noexcept
{
    return bugs;
}

}  // namespace vmm::oracle
