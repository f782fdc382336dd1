// SPDX-License-Identifier: Apache-2.0

// Page tables of any contents in every paging mode, and accesses through them.  (What a walk must
// answer is checked against a model in tests/soft/page_walk_test.cpp.)

#include <array>
#include <optional>

#include "fuzz/target.hpp"
#include "soft/mmu_fixture.hpp"
#include "x86/soft/page_walk.hpp"

namespace vmm::fuzz {
namespace {

using namespace x86::soft;  // NOLINT(google-build-using-namespace): everything here is its.
using x86::SegmentIndex;

constexpr std::size_t pages = 16;
constexpr std::size_t table_pages = 6;  // The first, which entries lie in.
constexpr std::uint64_t ram_bytes = pages * test::page_size;

/// An address in RAM more often than not, with any bits around it.
std::uint64_t entry_of(Input& input)
{
    const std::uint64_t page = input.below(pages + 1);
    const std::uint64_t flags = input.u16() & 0xfffU;
    const std::uint64_t high = input.flag() ? input.u64() & 0xfff0'0fff'ffff'0000U : 0;
    return page << 12U | flags | high;
}

void place_tables(Input& input, test::FakeMemory& memory)
{
    for (std::size_t count = input.below(48); count != 0; --count) {
        const std::size_t page = input.below(table_pages);
        const std::size_t slot = input.flag() ? input.u16() % 512U : input.below(4);
        memory.put<std::uint64_t>(page * test::page_size + 8 * slot, entry_of(input));
    }
    const std::uint16_t read_only = input.u16();
    const std::uint16_t logged = input.u16();
    const std::uint16_t absent = input.u16() & input.u16();
    for (std::size_t gfn = 0; gfn < pages; ++gfn) {
        memory.set_writable(gfn, ((read_only >> gfn) & 1U) == 0);
        memory.set_log_dirty(gfn, ((logged >> gfn) & 1U) != 0);
        if (((absent >> gfn) & 1U) != 0) {
            memory.set_host(gfn, nullptr);
        }
    }
}

void set_mode(Input& input, test::Machine& machine)
{
    Cpu& cpu = machine.cpu;
    const std::uint8_t mode = input.u8();
    const std::uint64_t any = input.u64();
    constexpr std::uint64_t pg_pe = 0x8000'0001;
    constexpr std::uint64_t pae = 1U << 5U;
    constexpr std::uint64_t lme_lma = 0x500;
    cpu.cr0 = (any & 0x1'0000U) | (mode % 4U == 0 ? any & 1U : pg_pe);
    cpu.cr4 = (any >> 20U) & 0x0073'06b0U & ~pae;  // PSE PGE …, SMEP SMAP, PCIDE.
    cpu.efer = (any >> 8U) & 0x800U;
    if (mode % 4U >= 2) {
        cpu.cr4 |= pae;
    }
    if (mode % 4U == 3) {
        cpu.efer |= lme_lma;
        cpu.seg[x86::Cs].l = static_cast<std::uint8_t>((any >> 4U) & 1U);
    }
    cpu.cr3 = entry_of(input) & 0xf'ffff'ffff'ffffU;
    cpu.seg[x86::Ss].dpl = (any & 2U) != 0 ? 3 : 0;
    cpu.rflags = 2U | (any & 0x4'0000U);
    cpu.cpuid = test::paging_cpuid(input.u8(), (any & 4U) != 0, (any & 8U) != 0);
    cpu.state_changed();
    static_cast<void>(load_pdptes(cpu, cpu.cr3));
}

void check_walk(Input& input, Cpu& cpu, std::uint64_t linear)
{
    if ((cpu.cr0 >> 31U) == 0 || !is_canonical(cpu, linear)) {
        return;
    }
    const std::uint8_t bits = input.u8();
    WalkRequest request;
    request.write = (bits & 1U) != 0;
    request.fetch = (bits & 2U) != 0 && !request.write;
    request.user = (bits & 4U) != 0;
    request.smap_lifted = (bits & 8U) != 0;
    request.quiet = (bits & 16U) != 0;
    WalkResult first;
    std::uint32_t first_error = 0;
    const bool found = walk(cpu, linear, request, first, first_error);
    WalkResult second;
    std::uint32_t second_error = 0;
    // The first walk may have set accessed bits in a table that it walks as a page, too; so only
    // that both come back is certain then.
    const bool again = walk(cpu, linear, request, second, second_error);
    if (found && again && first.gpa == second.gpa) {
        FUZZ_CHECK(first.page_shift == second.page_shift);
    }
    if (found) {
        const std::uint64_t inside = (std::uint64_t{1} << first.page_shift) - 1U;
        FUZZ_CHECK(first.page_shift == 12 || first.page_shift == 21 || first.page_shift == 22 ||
                   first.page_shift == 30);
        FUZZ_CHECK((first.gpa & inside) == (linear & inside));
        FUZZ_CHECK(first.gpa >> 52U == 0);
    } else {
        FUZZ_CHECK((first_error & ~0x1fU) == 0);
    }
}

template <typename T>
void access(Input& input, test::Machine& machine, std::uint64_t linear)
{
    Cpu& cpu = machine.cpu;
    const auto segment = static_cast<SegmentIndex>(input.below(6));
    const std::uint8_t kind = input.u8() % 8U;
    const std::uint64_t mask = cpu.long_mode() && cpu.code_64() ? ~std::uint64_t{0} : 0xffff'ffffU;
    linear &= mask;
    try {
        switch (kind) {
        case 0: static_cast<void>(load<T>(cpu, segment, linear)); break;
        case 1: store<T>(cpu, segment, linear, static_cast<T>(input.u64())); break;
        case 2: probe_write(cpu, segment, linear, sizeof(T)); break;
        case 3: static_cast<void>(fetch_page(cpu, linear)); break;
        case 4: flush_tlb_page(cpu, linear); break;
        case 5: {
            T value{};
            read_system(cpu, linear, &value, sizeof value);
            break;
        }
        case 6: {
            // A value stored is the value loaded, where the page is memory and no table.
            const T value = static_cast<T>(input.u64());
            store<T>(cpu, segment, linear, value);
            std::uint64_t gpa = 0;
            std::uint64_t end = 0;
            if (translate_quietly(cpu, linear, gpa) &&
                translate_quietly(cpu, linear + sizeof(T) - 1U, end) && end >= gpa &&
                end - gpa == sizeof(T) - 1U && gpa >= table_pages * test::page_size &&
                end < ram_bytes && machine.memory.page(gpa >> 12U).writable &&
                machine.memory.page(gpa >> 12U).host != nullptr) {
                FUZZ_CHECK(load<T>(cpu, segment, linear) == value);
            }
            break;
        }
        default: flush_tlb_all(cpu); break;
        }
    } catch (const Fault& fault) {
        FUZZ_CHECK(static_cast<unsigned>(fault.vector) < 32);
    } catch (const LeaveForMmio&) {
        FUZZ_CHECK(cpu.mmio.waiting);
        cpu.mmio.finish();
    }
}

}  // namespace

void page_walk(Input& input)
{
    test::Machine machine{pages};
    machine.host.limit = input.flag() ? ~std::uint64_t{0} : 0;
    place_tables(input, machine.memory);
    set_mode(input, machine);
    for (unsigned steps = 0; steps < 64 && !input.is_empty(); ++steps) {
        // Only the few addresses that the small tables above map.
        const std::uint64_t linear =
            (input.number() & 0x1fffU) | std::uint64_t{input.u8() & 3U} << 12U |
            std::uint64_t{input.u8() & 3U} << 21U | std::uint64_t{input.u8() & 3U} << 30U |
            (input.flag() ? std::uint64_t{0xffff'ff80'0000'0000} : 0);
        std::uint64_t gpa = 0;
        static_cast<void>(translate_quietly(machine.cpu, linear, gpa));
        check_walk(input, machine.cpu, linear);
        switch (input.below(3)) {
        case 0: access<std::uint8_t>(input, machine, linear); break;
        case 1: access<std::uint32_t>(input, machine, linear); break;
        default: access<std::uint64_t>(input, machine, linear); break;
        }
    }
    machine.vm.leave_guest(machine.cpu);
}

Seeds page_walk_seeds()
{
    Seeds seeds;
    for (unsigned mode = 0; mode < 4; ++mode) {
        Seed seed;
        seed.u8(1).u8(5);
        // Four levels, or two, from page 0 down to page 8.
        for (unsigned level = 0; level < 4; ++level) {
            seed.u8(level).u8(0).u8(0).u8(level + 1).u16(0x67).u8(0);
        }
        seed.u8(4).u8(0).u8(1).u8(8).u16(0x67).u8(0);
        seed.u16(0).u16(0x100).u16(0).u16(0);
        seed.u8(mode).u64(0x10000).u8(0).u16(0).u8(0).u8(40);
        for (unsigned kind = 0; kind < 8; ++kind) {
            seed.u8(2).u16(0x10 * kind).u8(0).u8(0).u8(0).u8(0).u8(kind).u8(2).u8(3).u8(kind);
            seed.u64(0x1122'3344'5566'7788);
        }
        seeds.push_back(seed.data());
    }
    return seeds;
}

}  // namespace vmm::fuzz
