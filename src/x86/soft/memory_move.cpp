// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/memory_move.hpp"

#include <cstring>

#include "x86/soft/memory.hpp"
#include "x86/soft/page_walk.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

/// Whether the access is what these functions are for: of one page, nothing to be looked at byte by
/// byte, and no access of the instruction answered before.
bool is_simple(const Cpu& cpu, std::uint64_t linear, std::size_t size) noexcept
{
    return !cpu.alignment_check && !cpu.data_breakpoints && cpu.mmio.done.empty() &&
           (linear & 0xfffU) + size <= 0x1000;
}

/// Offers the access to the library's devices.
bool is_answered(Cpu& cpu, std::uint64_t gpa, std::span<std::byte> data, bool write)
{
    if (!cpu.host.may_answer_mmio(Gpa{gpa}, data.size())) {
        return false;
    }
    const OutOfGuest out{cpu.vm, cpu};
    return write ? cpu.host.mmio_write(Gpa{gpa}, data) : cpu.host.mmio_read(Gpa{gpa}, data);
}

void leave_for(Cpu& cpu, std::uint64_t gpa, std::size_t size, bool write)
{
    cpu.exit = EngineExit{};
    cpu.exit.reason = write ? EngineExit::Reason::MmioWrite : EngineExit::Reason::MmioRead;
    cpu.exit.size = static_cast<std::uint8_t>(size);
    cpu.exit.gpa = gpa;
    cpu.exit.data = std::span{cpu.mmio.pending.data}.first(size);
    cpu.exit_pending = true;
}

}  // namespace

Moved load_moved(Cpu& cpu,
                 const Op& op,
                 std::uint64_t linear,
                 std::size_t size,
                 std::uint8_t slot,
                 TakeLoaded take)
{
    const auto segment = static_cast<SegmentIndex>(op.segment);
    std::array<std::byte, 8> data{};
    std::uint64_t gpa = 0;
    Tried tried = Tried::Done;
    if (is_simple(cpu, linear, size)) {
        tried = try_read(cpu, segment, linear, data.data(), size, gpa);
    } else {
        read_slow(cpu, segment, linear, data.data(), size);
    }
    if (tried == Tried::PageFault) {
        return Moved::Repeats;
    }
    if (tried == Tried::Done || is_answered(cpu, gpa, std::span{data}.first(size), false)) {
        take(cpu, slot, data.data());
        return Moved::Done;
    }
    cpu.mmio.moved = {take, slot, op.length};
    cpu.mmio.waiting = true;
    leave_for(cpu, gpa, size, false);
    return Moved::Repeats;
}

Moved store_moved(Cpu& cpu, const Op& op, std::uint64_t linear, const void* from, std::size_t size)
{
    const auto segment = static_cast<SegmentIndex>(op.segment);
    std::uint64_t gpa = 0;
    Tried tried = Tried::Done;
    if (is_simple(cpu, linear, size)) {
        tried = try_write(cpu, segment, linear, from, size, gpa);
    } else {
        write_slow(cpu, segment, linear, from, size);
    }
    if (tried != Tried::Mmio) {
        return tried == Tried::Done ? Moved::Done : Moved::Repeats;
    }
    std::memcpy(cpu.mmio.pending.data.data(), from, size);
    if (is_answered(cpu, gpa, std::span{cpu.mmio.pending.data}.first(size), true)) {
        return Moved::Done;
    }
    leave_for(cpu, gpa, size, true);
    return Moved::Leaves;
}

void complete_load(Cpu& cpu)
{
    const MmioReplay::Moved moved = cpu.mmio.moved;
    cpu.mmio.finish();
    moved.take(cpu, moved.slot, cpu.mmio.pending.data.data());
    complete_instruction(cpu, moved.length);
}

}  // namespace vmm::x86::soft
