// SPDX-License-Identifier: Apache-2.0

/// @file
/// MMIO accesses of instructions: the library's devices first, then the caller.
///
/// An instruction that leaves for the caller is executed again from its start.  The accesses it had
/// made already must not reach their devices twice: their answers are in `MmioReplay::done`.

#include <algorithm>
#include <cstring>

#include "x86/soft/memory.hpp"
#include "x86/soft/page_walk.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

constexpr std::size_t max_fragment = 8;

bool is_same(const MmioReplay::Access& one, const MmioReplay::Access& other) noexcept
{
    return one.gpa == other.gpa && one.size == other.size && one.write == other.write;
}

/// The answer to `access` from before the instruction left, or null if it is new.
const MmioReplay::Access* replay(MmioReplay& mmio, const Op* op, const MmioReplay::Access& access)
{
    const auto next =
        mmio.done.begin() + static_cast<std::ptrdiff_t>(std::min(mmio.next, mmio.done.size()));
    if (next == mmio.done.end()) {
        return nullptr;
    }
    const auto found = std::find_if(next, mmio.done.end(),
                                    [&](const auto& each) { return is_same(each, access); });
    mmio.owner = op;
    // What is skipped belongs to earlier iterations of a string instruction, or the guest has
    // changed its page tables meanwhile: no longer of use.
    const auto kept = mmio.done.erase(next, found);
    if (kept == mmio.done.end()) {
        return nullptr;
    }
    mmio.next = static_cast<std::size_t>(kept - mmio.done.begin()) + 1;
    return &*kept;
}

/// Makes `done` the list of the instruction `op`, whose new access is `access`.
void begin_access(MmioReplay& mmio, const Op* op, const MmioReplay::Access& access)
{
    // The same op may be executed many times without leaving: a repetition starts anew.
    if (mmio.owner != op || (!mmio.done.empty() && is_same(mmio.done.front(), access)) ||
        mmio.done.size() >= MmioReplay::capacity) {
        mmio.done.clear();
    }
    mmio.owner = op;
}

void record(MmioReplay& mmio, const MmioReplay::Access& access)
{
    mmio.done.push_back(access);
    mmio.next = mmio.done.size();
}

[[noreturn]] void leave_for(Cpu& cpu, const MmioReplay::Access& access)
{
    MmioReplay& mmio = cpu.mmio;
    mmio.pending = access;
    mmio.waiting = true;
    mmio.moved.take = nullptr;
    mmio.next = 0;
    cpu.exit = EngineExit{};
    cpu.exit.reason = access.write ? EngineExit::Reason::MmioWrite : EngineExit::Reason::MmioRead;
    cpu.exit.size = access.size;
    cpu.exit.gpa = access.gpa;
    cpu.exit.data = std::span{mmio.pending.data}.first(access.size);
    throw LeaveForMmio{};
}

void access_fragment(Cpu& cpu, MmioReplay::Access& access)
{
    if (const MmioReplay::Access* const before = replay(cpu.mmio, cpu.current, access)) {
        access.data = before->data;
        return;
    }
    begin_access(cpu.mmio, cpu.current, access);
    const std::span<std::byte> data = std::span{access.data}.first(access.size);
    bool answered = false;
    {
        const OutOfGuest out{cpu.vm, cpu};
        answered = access.write ? cpu.host.mmio_write(Gpa{access.gpa}, data)
                                : cpu.host.mmio_read(Gpa{access.gpa}, data);
    }
    if (!answered) {
        leave_for(cpu, access);
    }
    record(cpu.mmio, access);
}

}  // namespace

void mmio_read(Cpu& cpu, std::uint64_t gpa, std::byte* to, std::size_t size)
{
    for (std::size_t offset = 0; offset < size; offset += max_fragment) {
        MmioReplay::Access access{};
        access.gpa = gpa + offset;
        access.size = static_cast<std::uint8_t>(std::min(size - offset, max_fragment));
        access_fragment(cpu, access);
        std::memcpy(to + offset, access.data.data(), access.size);
    }
}

void mmio_write(Cpu& cpu, std::uint64_t gpa, const std::byte* from, std::size_t size)
{
    for (std::size_t offset = 0; offset < size; offset += max_fragment) {
        MmioReplay::Access access{};
        access.gpa = gpa + offset;
        access.size = static_cast<std::uint8_t>(std::min(size - offset, max_fragment));
        access.write = true;
        std::memcpy(access.data.data(), from + offset, access.size);
        access_fragment(cpu, access);
    }
}

}  // namespace vmm::x86::soft
