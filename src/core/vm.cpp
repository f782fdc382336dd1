// SPDX-License-Identifier: Apache-2.0

#include "vmm/vm.hpp"

#include <utility>

#include "core/vcpu_core.hpp"
#include "core/vm_core.hpp"

namespace vmm {

bool VmMemory::read(Gpa from, std::span<std::byte> to) const noexcept
{
    return vm_->read_memory(from, to);
}

bool VmMemory::write(Gpa to, std::span<const std::byte> from) const noexcept
{
    return vm_->write_memory(to, from);
}

Vm::Vm(std::shared_ptr<core::VmCore> core) noexcept : core_{std::move(core)} {}
Vm::Vm(Vm&&) noexcept = default;
Vm& Vm::operator=(Vm&&) noexcept = default;
Vm::~Vm() = default;

Result<void> Vm::set_user_memory_region(const memory::MemoryRegion& region)
{
    return core_->set_user_memory_region(region);
}

Result<std::vector<std::uint64_t>> Vm::dirty_log(std::uint32_t slot, std::uint16_t address_space)
{
    return core_->dirty_log(slot, address_space);
}

Result<std::vector<std::uint64_t>> Vm::peek_dirty_log(std::uint32_t slot,
                                                      std::uint16_t address_space)
{
    return core_->peek_dirty_log(slot, address_space);
}

Result<void> Vm::clear_dirty_log(std::uint32_t slot,
                                 std::uint64_t first_page,
                                 std::uint64_t num_pages,
                                 std::span<const std::uint64_t> bitmap,
                                 std::uint16_t address_space)
{
    return core_->clear_dirty_log(slot, first_page, num_pages, bitmap, address_space);
}

void Vm::set_initially_dirty(bool dirty)
{
    core_->set_initially_dirty(dirty);
}

void Vm::set_platform_info_readable(bool readable) noexcept
{
    core_->set_platform_info_readable(readable);
}

Result<void> Vm::set_hypercall_exits(std::uint64_t calls)
{
    return core_->set_hypercall_exits(calls);
}

Result<void> Vm::disable_quirks(std::uint64_t quirks)
{
    return core_->disable_quirks(quirks);
}

Result<void> Vm::enable_dirty_rings(std::uint32_t entries)
{
    return core_->enable_dirty_rings(entries);
}

Result<std::uint32_t> Vm::reset_dirty_rings()
{
    return core_->reset_dirty_rings();
}

VmMemory Vm::memory() const noexcept
{
    return VmMemory{*core_};
}

Result<void> Vm::attach(PortRange ports, std::shared_ptr<bus::DeviceBase> device)
{
    return core_->port_bus.add(ports, std::move(device));
}

Result<void> Vm::attach(GpaRange range, std::shared_ptr<bus::DeviceBase> device)
{
    return core_->mmio_bus.add(range, std::move(device));
}

Result<void> Vm::detach(PortRange ports)
{
    return core_->port_bus.remove(ports);
}

Result<void> Vm::detach(GpaRange range)
{
    return core_->mmio_bus.remove(range);
}

Result<void> Vm::add_ioeventfd(const bus::IoEvent<Port>& event, int eventfd)
{
    return core_->port_sinks.add_event(event, eventfd);
}

Result<void> Vm::add_ioeventfd(const bus::IoEvent<Gpa>& event, int eventfd)
{
    return core_->mmio_sinks.add_event(event, eventfd);
}

Result<void> Vm::remove_ioeventfd(const bus::IoEvent<Port>& event, int eventfd)
{
    return core_->port_sinks.remove_event(event, eventfd);
}

Result<void> Vm::remove_ioeventfd(const bus::IoEvent<Gpa>& event, int eventfd)
{
    return core_->mmio_sinks.remove_event(event, eventfd);
}

Result<void> Vm::add_coalesced_zone(PortRange zone)
{
    return core_->port_sinks.add_zone(zone);
}

Result<void> Vm::add_coalesced_zone(GpaRange zone)
{
    return core_->mmio_sinks.add_zone(zone);
}

Result<void> Vm::remove_coalesced_zone(PortRange zone)
{
    return core_->port_sinks.remove_zone(zone);
}

Result<void> Vm::remove_coalesced_zone(GpaRange zone)
{
    return core_->mmio_sinks.remove_zone(zone);
}

Result<void> Vm::set_coalesced_page(bus::CoalescedPage& page)
{
    return core_->set_coalesced_page(page);
}

Result<void> Vm::set_boot_cpu_id(std::uint32_t id)
{
    return core_->set_boot_cpu_id(id);
}

Result<void> Vm::create_irqchip()
{
    return core_->create_irqchip();
}

Result<void> Vm::create_split_irqchip(std::uint32_t io_apic_pins)
{
    return core_->create_split_irqchip(io_apic_pins);
}

Result<void> Vm::create_pit()
{
    return core_->create_pit();
}

Result<std::shared_ptr<VmDevice>> Vm::create_device(std::uint32_t type)
{
    return core_->devices.create(type, Vm{core_});
}

Result<Vcpu> Vm::create_vcpu(std::uint32_t id)
{
    VMM_TRY(auto vcpu, core_->create_vcpu(id));
    return Vcpu{std::move(vcpu)};
}

std::vector<Statistic> Vm::statistics() const
{
    const std::uint64_t flushes = core_->remote_tlb_flushes();
    return {{"remote_tlb_flush", flushes}, {"remote_tlb_flush_requests", flushes}};
}

EventLoop& Vm::event_loop() const noexcept
{
    return core_->event_loop();
}

Result<void> Vm::set_tsc_khz(std::uint32_t khz)
{
    return core_->set_tsc_khz(khz);
}

std::uint32_t Vm::tsc_khz() const noexcept
{
    return core_->guest_tsc_khz();
}

void Vm::set_halt_poll_ns(std::uint32_t longest) noexcept
{
    core_->set_halt_poll_ns(longest);
}

std::uint64_t Vm::clock_ns() const noexcept
{
    return core_->clock_ns();
}

void Vm::set_clock_ns(std::uint64_t now) noexcept
{
    core_->set_clock_ns(now);
}

}  // namespace vmm
