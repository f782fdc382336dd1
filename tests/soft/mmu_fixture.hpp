// SPDX-License-Identifier: Apache-2.0

/// @file
/// A small guest-physical memory and a host that answers MMIO, for tests of the MMU.

#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "vmm/x86/control_registers.hpp"
#include "x86/soft/cpu.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft::test {

inline constexpr std::uint64_t page_size = 4096;

/// RAM from 0 on, page by page changeable.
class FakeMemory final : public PhysicalMemory {
public:
    explicit FakeMemory(std::size_t pages) : bytes(pages * page_size), pages_(pages), dirty_(pages)
    {
        for (std::size_t gfn = 0; gfn < pages; ++gfn) {
            pages_[gfn].host = bytes.data() + gfn * page_size;
        }
    }

    [[nodiscard]] Page page(std::uint64_t gfn) noexcept override
    {
        lookups.fetch_add(1, std::memory_order_relaxed);
        if (gfn >= pages_.size()) {
            return {};
        }
        const Slot& slot = pages_[gfn];
        return {slot.host.load(), slot.writable.load(), slot.log_dirty.load()};
    }
    void mark_dirty(std::uint64_t gfn) noexcept override
    {
        if (gfn < dirty_.size()) {
            dirty_[gfn].store(true);
        }
    }

    void set_host(std::uint64_t gfn, std::byte* host) { pages_[gfn].host.store(host); }
    void set_writable(std::uint64_t gfn, bool value) { pages_[gfn].writable.store(value); }
    void set_log_dirty(std::uint64_t gfn, bool value) { pages_[gfn].log_dirty.store(value); }
    [[nodiscard]] bool take_dirty(std::uint64_t gfn) { return dirty_[gfn].exchange(false); }

    template <typename T>
    [[nodiscard]] T get(std::uint64_t gpa) const
    {
        T value{};
        std::memcpy(&value, bytes.data() + gpa, sizeof(T));
        return value;
    }
    template <typename T>
    void put(std::uint64_t gpa, T value)
    {
        std::memcpy(bytes.data() + gpa, &value, sizeof(T));
    }

    std::vector<std::byte> bytes;
    std::atomic<std::uint64_t> lookups{};

private:
    struct Slot {
        std::atomic<std::byte*> host{};
        std::atomic<bool> writable{true};
        std::atomic<bool> log_dirty{};
    };
    std::vector<Slot> pages_;
    std::vector<std::atomic<bool>> dirty_;
};

struct MmioAccess {
    std::uint64_t gpa{};
    std::size_t size{};
    bool write{};
    std::uint64_t data{};

    friend bool operator==(const MmioAccess&, const MmioAccess&) = default;
};

/// Answers MMIO below `limit`; reads give the low byte of each address.
class FakeHost final : public VcpuHost {
public:
    bool mmio_read(Gpa gpa, std::span<std::byte> data) noexcept override
    {
        if (gpa.value() >= limit) {
            return false;
        }
        std::uint64_t value = 0;
        for (std::size_t index = 0; index < data.size(); ++index) {
            data[index] = static_cast<std::byte>(gpa.value() + index);
        }
        std::memcpy(&value, data.data(), data.size());
        accesses.push_back({gpa.value(), data.size(), false, value});
        return true;
    }
    bool mmio_write(Gpa gpa, std::span<const std::byte> data) noexcept override
    {
        if (gpa.value() >= limit) {
            return false;
        }
        std::uint64_t value = 0;
        std::memcpy(&value, data.data(), data.size());
        accesses.push_back({gpa.value(), data.size(), true, value});
        return true;
    }
    bool port_read(Port, std::span<std::byte>) noexcept override { return false; }
    bool port_write(Port, std::span<const std::byte>) noexcept override { return false; }
    MsrResult read_msr(std::uint32_t, std::uint64_t&) noexcept override { return MsrResult::Fault; }
    MsrResult write_msr(std::uint32_t, std::uint64_t) noexcept override { return MsrResult::Fault; }
    void write_cr8(std::uint64_t) noexcept override {}
    std::uint64_t read_cr8() noexcept override { return 0; }
    std::uint64_t guest_tsc() noexcept override { return 0; }
    void hypercall(CpuState&) noexcept override {}

    std::uint64_t limit{~std::uint64_t{0}};
    std::vector<MmioAccess> accesses;
};

/// CPUID with what decides about paging.
inline Cpuid paging_cpuid(unsigned physical_bits, bool page_1g, bool intel)
{
    std::vector<CpuidEntry> entries(4);
    entries[0].eax = 0xd;
    if (intel) {
        entries[0].ebx = 0x756e'6547;
        entries[0].edx = 0x4965'6e69;
        entries[0].ecx = 0x6c65'746e;
    }
    entries[1].function = 1;
    entries[1].edx = 1U << 17U;
    entries[2].function = 0x8000'0001;
    entries[2].edx = page_1g ? 1U << 26U : 0U;
    entries[3].function = 0x8000'0008;
    entries[3].eax = physical_bits;
    return Cpuid{entries};
}

inline void set_long_mode(Cpu& cpu, std::uint64_t cr3)
{
    cpu.cr0 = mask_of(Cr0::PE, Cr0::PG, Cr0::WP);
    cpu.cr4 = mask_of(Cr4::PAE, Cr4::PGE);
    cpu.efer = mask_of(Efer::LME, Efer::LMA, Efer::NXE);
    cpu.cr3 = cr3;
    cpu.seg[Cs].l = 1;
    cpu.state_changed();
}

inline void set_cpl(Cpu& cpu, std::uint8_t cpl)
{
    cpu.seg[Ss].dpl = cpl;
    cpu.mode_changed();
}

/// Maps 4 KiB pages in long mode, tables taken from `next_table` on; `root` is the first.
class LongModeTables {
public:
    LongModeTables(FakeMemory& memory, std::uint64_t first_table)
        : root(first_table),
          memory_(memory),
          next_(first_table + page_size)
    {
    }

    /// Sets the leaf entry at `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB); returns the entry's address.
    std::uint64_t map(std::uint64_t linear, std::uint64_t entry, unsigned level = 1)
    {
        std::uint64_t table = root;
        for (unsigned at = 4; at > level; --at) {
            const std::uint64_t slot = table + ((linear >> (12U + 9U * (at - 1U))) & 511U) * 8U;
            if ((memory_.get<std::uint64_t>(slot) & 1U) == 0) {
                memory_.put<std::uint64_t>(slot, next_ | 7U);
                next_ += page_size;
            }
            table = memory_.get<std::uint64_t>(slot) & 0xf'ffff'ffff'f000U;
        }
        const std::uint64_t slot = table + ((linear >> (12U + 9U * (level - 1U))) & 511U) * 8U;
        memory_.put<std::uint64_t>(slot, entry);
        return slot;
    }

    std::uint64_t root;

private:
    FakeMemory& memory_;
    std::uint64_t next_;
};

/// Runs `function`; the fault it threw, if any.
template <typename Function>
std::optional<Fault> fault_of(const Function& function)
{
    try {
        function();
    } catch (const Fault& fault) {
        return fault;
    }
    return std::nullopt;
}

/// One vCPU in the guest, with memory and host of its own.
struct Machine {
    explicit Machine(std::size_t pages)
        : memory(pages),
          vm(memory, translation_mode().value()),
          cpu_owner(std::make_unique<Cpu>(vm, host)),
          cpu(*cpu_owner)
    {
        cpu.cpuid = paging_cpuid(40, true, true);
        vm.enter_guest(cpu);
    }

    FakeMemory memory;
    FakeHost host;
    SoftVm vm;
    std::unique_ptr<Cpu> cpu_owner;
    Cpu& cpu;
};

}  // namespace vmm::x86::soft::test
