// SPDX-License-Identifier: Apache-2.0

/// @file
/// Breakpoints.  SDM Vol. 3B "Debug Registers".

#include "x86/soft/system.hpp"

namespace vmm::x86::soft {

namespace {

enum class Watch : std::uint8_t { Execute, Write, Port, Access };

/// One of the four breakpoints as DR7 sets it up.
struct Breakpoint {
    bool enabled{};
    Watch watch{};
    std::uint64_t size{};
};

Breakpoint breakpoint(std::uint64_t dr7, unsigned number) noexcept
{
    constexpr std::array<std::uint8_t, 4> sizes{1, 2, 8, 4};
    Breakpoint result{};
    result.enabled = ((dr7 >> (2U * number)) & 3U) != 0U;
    result.watch = static_cast<Watch>((dr7 >> (16U + 4U * number)) & 3U);
    result.size = sizes[(dr7 >> (18U + 4U * number)) & 3U];
    return result;
}

bool overlaps(std::uint64_t address, std::uint64_t size, std::uint64_t first, std::uint64_t count)
{
    // The low bits of the address are ignored, as its size has it.
    const std::uint64_t start = address & ~(size - 1U);
    return first - start < size || start - first < count;
}

}  // namespace

std::uint64_t instruction_breakpoint(const Cpu& cpu, std::uint64_t linear) noexcept
{
    constexpr std::uint64_t enables = 0xff;
    if ((cpu.breakpoint_control() & enables) == 0U || Rflags{cpu.rflags}.get(Rflags::RF) || cpu.mov_ss_shadow) {
        return 0;
    }
    std::uint64_t hits = 0;
    for (unsigned number = 0; number < 4; ++number) {
        const Breakpoint each = breakpoint(cpu.breakpoint_control(), number);
        if (each.enabled && each.watch == Watch::Execute && cpu.breakpoint_addresses()[number] == linear) {
            hits |= std::uint64_t{1} << number;
        }
    }
    return hits;
}

void note_data_access(Cpu& cpu, std::uint64_t linear, std::size_t size, bool write) noexcept
{
    for (unsigned number = 0; number < 4; ++number) {
        const Breakpoint each = breakpoint(cpu.breakpoint_control(), number);
        const bool is_watched =
            each.watch == Watch::Access || (each.watch == Watch::Write && write);
        if (each.enabled && is_watched && overlaps(cpu.breakpoint_addresses()[number], each.size, linear, size)) {
            cpu.pending_debug |= std::uint64_t{1} << number;
        }
    }
}

void note_port_access(Cpu& cpu, std::uint16_t port, unsigned size) noexcept
{
    if (!Cr4{cpu.cr4}.get(Cr4::DE)) {
        return;
    }
    for (unsigned number = 0; number < 4; ++number) {
        const Breakpoint each = breakpoint(cpu.breakpoint_control(), number);
        if (each.enabled && each.watch == Watch::Port &&
            overlaps(cpu.breakpoint_addresses()[number], each.size, port, size)) {
            cpu.pending_debug |= std::uint64_t{1} << number;
        }
    }
}

bool must_single_step(const Cpu& cpu) noexcept
{
    constexpr std::uint64_t enables = 0xff;
    return Rflags{cpu.rflags}.get(Rflags::TF) || cpu.debugger.single_step || (cpu.breakpoint_control() & enables) != 0U;
}

}  // namespace vmm::x86::soft
