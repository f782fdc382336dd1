// SPDX-License-Identifier: Apache-2.0

// A board's memory map and buses, without a virtual machine: an emulator of any CPU can use these
// components.  It links nothing of vmm; the headers are all there is.

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string_view>

#include "vmm/bus/coalesced.hpp"
#include "vmm/bus/io_bus.hpp"
#include "vmm/bus/ioeventfd.hpp"
#include "vmm/memory/guest_memory.hpp"
#include "vmm/memory/memslots.hpp"

namespace {

/// A serial port that can only send, and says it is always ready to.
class Console {
public:
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept
    {
        constexpr std::uint64_t line_status = 5;
        constexpr std::byte ready{0x60};
        for (std::byte& byte : data) {
            byte = offset == line_status ? ready : std::byte{};
        }
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept
    {
        if (offset == 0 && data.size() == 1) {
            std::putchar(std::to_integer<int>(data[0]));
        }
    }
};

/// A doorbell that counts in a place of the program's.
struct Doorbell {
    int* rings;
    void signal() const noexcept { ++*rings; }
    bool is_same(const Doorbell& other) const noexcept { return rings == other.rings; }
};

void check(bool as_expected, const char* what)
{
    if (!as_expected) {
        std::fprintf(stderr, "bus-only: %s\n", what);
        std::exit(EXIT_FAILURE);
    }
}

constexpr std::size_t ram_size = 0x10000;
alignas(4096) std::array<std::byte, ram_size> ram;
alignas(4096) std::array<std::byte, 0x1000> rom;

void memory_map()
{
    vmm::memory::MemslotTable<> slots;
    slots
        .set({.slot = 0,
              .flags = vmm::memory::MemoryFlags::log_dirty,
              .guest_phys_addr = vmm::Gpa{0},
              .size_bytes = ram.size(),
              .host = ram.data()})
        .value();
    slots
        .set({.slot = 1,
              .flags = vmm::memory::MemoryFlags::read_only,
              .guest_phys_addr = vmm::Gpa{0xfffff000},
              .size_bytes = rom.size(),
              .host = rom.data()})
        .value();

    // What a refusal looks like.
    const auto refused = slots.set({.slot = 2,
                                    .guest_phys_addr = vmm::Gpa{0xf000},
                                    .size_bytes = rom.size(),
                                    .host = rom.data()});
    check(!refused && refused.error().errno_value() == EEXIST, "an overlap was not refused");
    std::printf("refused: %s\n", refused.error().message().c_str());

    const vmm::memory::GuestMemory memory{slots};
    check(memory.guest_write(vmm::Gpa{0x3ffe}, 0x12345678U), "RAM cannot be written");
    check(memory.read<std::uint32_t>(vmm::Gpa{0x3ffe}) == 0x12345678U, "RAM does not keep");
    check(!memory.guest_write(vmm::Gpa{0xfffffff0}, 0xeaU), "ROM can be written");
    check(slots.dirty_log(0).value().at(0) == 0b11000, "the dirty log is not right");
    std::puts("memory: one write straddled two pages, both are in the dirty log");
}

void buses()
{
    vmm::bus::IoBus<vmm::Port, std::shared_ptr<Console>> ports;
    const auto com1 = *vmm::PortRange::make(vmm::Port{0x3f8}, 8);
    ports.add(com1, std::make_shared<Console>()).value();

    vmm::bus::IoBus<vmm::Port, std::shared_ptr<Console>>::Hint hint;  // one a vCPU
    for (const char letter : std::string_view{"ports: hello from 0x3f8\n"}) {
        const std::array data{static_cast<std::byte>(letter)};
        check(ports.write(vmm::Port{0x3f8}, data, hint), "the console does not answer");
    }
    std::array<std::byte, 2> two{};
    check(!ports.read(vmm::Port{0x3ff}, two), "an access beyond the end was answered");
    ports.remove(com1).value();

    int rings = 0;
    vmm::bus::IoEventTable<vmm::Gpa, Doorbell> doorbells;
    doorbells.add({.address = vmm::Gpa{0xfe003000}, .length = 2}, Doorbell{&rings}).value();
    check(doorbells.write(vmm::Gpa{0xfe003000}, two) && rings == 1, "the doorbell is silent");

    vmm::bus::CoalescedPage page;
    vmm::bus::CoalescedRing ring{page};
    vmm::bus::CoalescedZones<vmm::Gpa> screen{vmm::bus::CoalescedKind::Mmio};
    screen.add(*vmm::GpaRange::make(vmm::Gpa{0xa0000}, 0x20000)).value();
    for (std::uint64_t x = 0; x < 80; ++x) {
        check(screen.write(vmm::Gpa{0xb8000 + 2 * x}, two, ring), "a write was not put aside");
    }
    const std::size_t drawn = ring.drain([](const vmm::bus::CoalescedEntry&) {});
    std::printf("doorbell: %d ring; screen: %zu writes put aside\n", rings, drawn);
    check(drawn == 80, "writes were lost");
}

}  // namespace

int main()
{
    memory_map();
    buses();
    return EXIT_SUCCESS;
}
