// SPDX-License-Identifier: Apache-2.0

#include "vmm/boot/mp_table.hpp"

#include <string_view>

#include <fmt/format.h>

#include "x86/boot/bytes.hpp"

namespace vmm::boot {
namespace {

// MultiProcessor Specification 1.4, "Base MP Configuration Table Entries".
constexpr std::uint8_t entry_processor = 0;
constexpr std::uint8_t entry_bus = 1;
constexpr std::uint8_t entry_io_apic = 2;
constexpr std::uint8_t entry_io_interrupt = 3;
constexpr std::uint8_t entry_local_interrupt = 4;
constexpr std::uint8_t interrupt_vectored = 0;
constexpr std::uint8_t interrupt_nmi = 1;
constexpr std::uint8_t interrupt_external = 3;
constexpr std::uint16_t as_the_bus_does = 0;
constexpr std::uint16_t level_active_high = 0xd;
constexpr std::uint8_t apic_version = 0x14;
constexpr std::uint8_t io_apic_version = 0x11;
constexpr std::uint8_t specification_1_4 = 4;
constexpr std::size_t pointer_bytes = 16;
constexpr std::size_t header_bytes = 44;

class Entries {
public:
    void processor(std::uint8_t id, const MpPlatform& platform)
    {
        begin(entry_processor);
        table_.append(id);
        table_.append(apic_version);
        table_.append<std::uint8_t>(id == 0 ? 3 : 1);  // Enabled; the first is the bootstrap CPU.
        table_.append(platform.cpu_signature);
        table_.append(platform.cpu_features);
        table_.append<std::uint64_t>(0);
    }
    void isa_bus()
    {
        begin(entry_bus);
        table_.append<std::uint8_t>(0);
        table_.append_text("ISA   ");
    }
    void io_apic(std::uint8_t id, Gpa address)
    {
        begin(entry_io_apic);
        table_.append(id);
        table_.append(io_apic_version);
        table_.append<std::uint8_t>(1);  // Usable.
        table_.append(static_cast<std::uint32_t>(address.value()));
    }
    void interrupt(std::uint8_t entry,
                   std::uint8_t type,
                   std::uint16_t flags,
                   std::uint8_t irq,
                   std::uint8_t target,
                   std::uint8_t pin)
    {
        begin(entry);
        table_.append(type);
        table_.append(flags);
        table_.append<std::uint8_t>(0);  // Bus.
        table_.append(irq);
        table_.append(target);
        table_.append(pin);
    }

    [[nodiscard]] std::uint16_t count() const noexcept { return count_; }
    [[nodiscard]] const ByteTable& table() const noexcept { return table_; }

private:
    void begin(std::uint8_t type)
    {
        table_.append(type);
        ++count_;
    }

    ByteTable table_;
    std::uint16_t count_{};
};

Entries build_entries(const MpPlatform& platform, std::uint8_t io_apic_id)
{
    Entries entries;
    for (std::uint32_t id = 0; id < platform.cpus; ++id) {
        entries.processor(static_cast<std::uint8_t>(id), platform);
    }
    entries.isa_bus();
    entries.io_apic(io_apic_id, platform.io_apic);
    for (std::uint8_t irq = 0; irq < 16; ++irq) {
        if (irq == 2) {
            continue;  // The cascade; its pin is the timer's.
        }
        const std::uint8_t pin = irq == 0 ? 2 : irq;
        entries.interrupt(entry_io_interrupt, interrupt_vectored,
                          irq == platform.sci_irq ? level_active_high : as_the_bus_does, irq,
                          io_apic_id, pin);
    }
    constexpr std::uint8_t every_cpu = 0xff;
    entries.interrupt(entry_local_interrupt, interrupt_external, as_the_bus_does, 0, 0, 0);
    entries.interrupt(entry_local_interrupt, interrupt_nmi, as_the_bus_does, 0, every_cpu, 1);
    return entries;
}

}  // namespace

Result<std::vector<std::byte>> build_mp_table(const MpPlatform& platform, Gpa first)
{
    if (platform.cpus == 0 || platform.cpus > mp_max_cpus) {
        return Error{std::errc::invalid_argument,
                     fmt::format("MP table: {} CPUs; 1 to {} can be described, more need ACPI",
                                 platform.cpus, mp_max_cpus)};
    }
    if (platform.sci_irq > 15) {
        return Error{std::errc::invalid_argument,
                     fmt::format("MP table: interrupt {} for ACPI; ISA interrupts are 0 to 15",
                                 platform.sci_irq)};
    }
    if (!first.is_aligned(16) || first.value() >= 0xffff'0000) {
        return Error{std::errc::invalid_argument,
                     fmt::format("MP table: gpa {:#x}; a multiple of 16 in the first 4 GiB is "
                                 "needed",
                                 first.value())};
    }
    const auto io_apic_id =
        platform.io_apic_id != 0xff
            ? platform.io_apic_id
            : static_cast<std::uint8_t>(platform.cpus < 255 ? platform.cpus : 0);
    const auto entries = build_entries(platform, io_apic_id);

    ByteTable table;
    table.append_text("_MP_");
    table.append(static_cast<std::uint32_t>(first.value() + pointer_bytes));
    table.append<std::uint8_t>(1);  // Its length in paragraphs.
    table.append(specification_1_4);
    table.append<std::uint8_t>(0);   // Checksum.
    table.append<std::uint8_t>(0);   // There is a configuration table.
    table.append<std::uint32_t>(0);  // Virtual-wire mode.
    table.put_checksum(10, 0, pointer_bytes);

    table.append_text("PCMP");
    table.append(static_cast<std::uint16_t>(header_bytes + entries.table().size()));
    table.append(specification_1_4);
    table.append<std::uint8_t>(0);  // Checksum.
    table.append_text("VMM     ");
    table.append_text("VIRTUAL PC  ");
    table.append<std::uint32_t>(0);  // No OEM table.
    table.append<std::uint16_t>(0);
    table.append(entries.count());
    table.append(static_cast<std::uint32_t>(platform.local_apic.value()));
    table.append<std::uint32_t>(0);  // No extended table.
    table.append_bytes(entries.table().bytes());
    table.put_checksum(pointer_bytes + 7, pointer_bytes, table.size() - pointer_bytes);
    return std::move(table).take();
}

Result<void> write_mp_table(ImageWriter& memory, const MpPlatform& platform)
{
    VMM_TRY(const auto table, build_mp_table(platform));
    VMM_ASSERT(table.size() <= layout::mp_table_bytes);
    return memory.write(layout::mp_table, table);
}

}  // namespace vmm::boot
