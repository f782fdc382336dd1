// SPDX-License-Identifier: Apache-2.0

#include "machine.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "vmm/boot/acpi.hpp"
#include "vmm/boot/linux.hpp"
#include "vmm/boot/mp_table.hpp"
#include "vmm/device/acpi_pm.hpp"
#include "vmm/device/cmos.hpp"
#include "vmm/device/debug_exit.hpp"
#include "vmm/device/empty_pci.hpp"
#include "vmm/device/i8042.hpp"
#include "vmm/device/port_view.hpp"
#include "vmm/device/post_port.hpp"
#include "vmm/device/system_control.hpp"
#include "vmm/x86/topology.hpp"

namespace vmm_linux {
namespace {

using vmm::Gpa;
using vmm::Port;
using vmm::PortRange;
using vmm::Result;

/// The boot loaders' way to the guest's memory.
class GuestWriter final : public vmm::boot::ImageWriter {
public:
    explicit GuestWriter(vmm::VmMemory memory) : memory_{memory} {}

    Result<void> write(Gpa target, std::span<const std::byte> bytes) override
    {
        if (!memory_.write(target, bytes)) {
            return vmm::Error{std::errc::bad_address,
                              fmt::format("{} bytes at guest address {:#x} are not all RAM; give "
                                          "the guest more with --memory",
                                          bytes.size(), target.value())};
        }
        return vmm::success;
    }

private:
    vmm::VmMemory memory_;
};

PortRange ports(std::uint16_t first, std::uint64_t count)
{
    return *PortRange::make(Port{first}, static_cast<std::uint16_t>(count));
}

/// What a guest that has triple-faulted has left: enough to see which exception it could not take.
std::string describe(const vmm::Vcpu& vcpu, const vmm::VmMemory& memory)
{
    const vmm::x86::Regs regs = vcpu.regs();
    const vmm::x86::Sregs sregs = vcpu.sregs();
    const vmm::x86::VcpuEvents events = vcpu.events();
    std::string text = fmt::format(
        "vCPU {}: rip {:04x}:{:#x}, rsp {:04x}:{:#x}, rflags {:#x}\n"
        "  cr0 {:#x}, cr2 {:#x}, cr3 {:#x}, cr4 {:#x}, efer {:#x}\n"
        "  idt {:#x}+{:#x}, gdt {:#x}+{:#x}, tss {:#x}+{:#x}, fs {:#x}, gs {:#x}\n"
        "  rax {:#x}, rbx {:#x}, rcx {:#x}, rdx {:#x}, rsi {:#x}, rdi {:#x}, rbp {:#x}\n",
        vcpu.id(), sregs.cs.selector, regs.rip, sregs.ss.selector, regs.rsp, regs.rflags, sregs.cr0,
        sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer, sregs.idt.base, sregs.idt.limit,
        sregs.gdt.base, sregs.gdt.limit, sregs.tr.base, sregs.tr.limit, sregs.fs.base,
        sregs.gs.base, regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp);
    if (events.exception.injected != 0) {
        text += fmt::format("  delivering exception {}, error code {:#x}\n", events.exception.nr,
                            events.exception.error_code);
    }
    if (events.interrupt.injected != 0) {
        text += fmt::format("  delivering interrupt {:#x}\n", events.interrupt.nr);
    }
    const auto at = vcpu.translate(vmm::Gva{sregs.cs.base + regs.rip});
    std::array<std::uint8_t, 16> code{};
    if (at && memory.read(*at, std::as_writable_bytes(std::span{code}))) {
        text += fmt::format("  code {:02x}\n", fmt::join(code, " "));
    }
    return text;
}

}  // namespace

Result<std::unique_ptr<Machine>> Machine::create(
    const vmm::Kvm& kvm,
    const Options& options,
    const Images& images,
    std::function<void(std::span<const std::byte>)> console,
    std::function<void()> on_input_room)
{
    VMM_TRY(vmm::Vm vm, kvm.create_vm());
    std::unique_ptr<Machine> machine{new Machine{std::move(vm)}};
    VMM_TRY_VOID(machine->add_memory(options.memory_bytes));
    VMM_TRY_VOID(machine->add_devices(options, std::move(console), std::move(on_input_room)));
    VMM_TRY_VOID(machine->add_vcpus(kvm, options));
    VMM_TRY_VOID(machine->load(options, images));
    return machine;
}

Machine::~Machine() = default;

Result<void> Machine::add_memory(std::uint64_t bytes)
{
    VMM_TRY(const auto ranges, vmm::boot::ram_ranges(bytes));
    for (const vmm::boot::RamRange& range : ranges) {
        VMM_TRY(auto mapped, MappedMemory::create(range.size));
        ram_.push_back({.slot = static_cast<std::uint32_t>(memory_.size()),
                        .guest_phys_addr = range.first,
                        .size_bytes = range.size,
                        .host = mapped.data()});
        VMM_TRY_VOID(vm_.set_user_memory_region(ram_.back()));
        memory_.push_back(std::move(mapped));
    }
    return vmm::success;
}

std::function<void(bool)> Machine::irq_line(std::uint32_t gsi)
{
    return [this, gsi](bool level) { static_cast<void>(vm_.set_irq_line(gsi, level)); };
}

/// GSI n to pin n of PIC and I/O APIC, but for the timer, which a PC has on the I/O APIC's pin 2
/// (the MADT and the MP table say so too).
std::vector<vmm::x86::irqchip::GsiRoute> Machine::routing()
{
    namespace irqchip = vmm::x86::irqchip;
    constexpr std::uint32_t pic_pins = 16;
    constexpr std::uint32_t pins_per_pic = 8;
    constexpr std::uint32_t cascade = 2;
    std::vector<irqchip::GsiRoute> routes;
    for (std::uint32_t gsi = 0; gsi < irqchip::ioapic_pin_count; ++gsi) {
        if (gsi == cascade) {
            continue;
        }
        if (gsi < pic_pins) {
            const bool master = gsi < pins_per_pic;
            routes.push_back(
                {.gsi = gsi,
                 .chip = master ? irqchip::ChipId::PicMaster : irqchip::ChipId::PicSlave,
                 .pin = gsi % pins_per_pic});
        }
        routes.push_back(
            {.gsi = gsi, .chip = irqchip::ChipId::IoApic, .pin = gsi == 0 ? cascade : gsi});
    }
    return routes;
}

Result<void> Machine::add_devices(const Options& options,
                                  std::function<void(std::span<const std::byte>)> console,
                                  std::function<void()> on_input_room)
{
    namespace device = vmm::device;
    VMM_TRY_VOID(vm_.create_irqchip());
    VMM_TRY_VOID(vm_.create_pit());
    VMM_TRY_VOID(vm_.set_gsi_routing(routing()));
    const auto reset = [this] { stop({Outcome::Kind::Reset}); };

    device::Serial::Config serial;
    serial.irq = irq_line(device::com1_irq);
    serial.output = std::move(console);
    serial.on_input_room = std::move(on_input_room);
    serial.timers = &vm_.event_loop();
    serial_ = std::make_shared<device::Serial>(std::move(serial));
    VMM_TRY_VOID(vm_.attach(ports(device::com1_port, device::Serial::size), serial_));

    device::Cmos::Config cmos;
    cmos.irq = irq_line(device::cmos_irq);
    cmos.ram_below_4g = std::min(options.memory_bytes, vmm::boot::ram_hole_begin.value());
    cmos.ram_above_4g = options.memory_bytes - cmos.ram_below_4g;
    cmos.cpu_count = options.cpus;
    VMM_TRY_VOID(vm_.attach(ports(device::cmos_port, device::Cmos::size),
                            std::make_shared<device::Cmos>(vm_.event_loop(), std::move(cmos))));

    device::I8042::Config keyboard;
    keyboard.keyboard_irq = irq_line(device::i8042_keyboard_irq);
    keyboard.auxiliary_irq = irq_line(device::i8042_auxiliary_irq);
    keyboard.on_reset = reset;
    const auto i8042 = std::make_shared<device::I8042>(std::move(keyboard));
    VMM_TRY_VOID(vm_.attach(ports(device::i8042_data_port, 1), i8042));
    // A view keeps no device alive; the controller's own attachment does.
    VMM_TRY_VOID(
        vm_.attach(ports(device::i8042_command_port, 1),
                   std::make_shared<device::PortView>(*i8042, device::I8042::command_offset)));

    device::AcpiPm::Config acpi;
    acpi.sci = irq_line(device::acpi_sci_irq);
    acpi.on_power_off = [this] { stop({Outcome::Kind::PowerOff}); };
    VMM_TRY_VOID(vm_.attach(ports(device::acpi_pm_base, device::acpi_pm_size),
                            std::make_shared<device::AcpiPm>(vm_.event_loop(), std::move(acpi))));

    VMM_TRY_VOID(vm_.attach(ports(device::pci_config_port, device::EmptyPci::size),
                            std::make_shared<device::EmptyPci>(reset)));
    device::SystemControl::Config control;
    control.on_reset = reset;
    VMM_TRY_VOID(vm_.attach(ports(device::system_control_port, device::SystemControl::size),
                            std::make_shared<device::SystemControl>(std::move(control))));
    VMM_TRY_VOID(vm_.attach(ports(device::post_port, device::PostPort::size),
                            std::make_shared<device::PostPort>()));
    VMM_TRY_VOID(vm_.attach(ports(device::debug_exit_port, device::DebugExit::size),
                            std::make_shared<device::DebugExit>([this](std::uint32_t value) {
                                stop({Outcome::Kind::Status, value});
                            })));
    return vmm::success;
}

Result<void> Machine::add_vcpus(const vmm::Kvm& kvm, const Options& options)
{
    auto offer = kvm.supported_cpuid();
    for (vmm::x86::CpuidEntry& leaf : offer) {
        constexpr std::uint32_t paravirtual = 0x4000'0001;
        if (leaf.function == paravirtual) {
            leaf.eax = (leaf.eax | options.pv_added) & ~options.pv_removed;
        }
    }
    for (std::uint32_t id = 0; id < options.cpus; ++id) {
        VMM_TRY(vmm::Vcpu vcpu, vm_.create_vcpu(id));
        VMM_TRY_VOID(vcpu.set_cpuid(vmm::x86::cpuid_for_vcpu(offer, id, options.cpus)));
        vcpus_.push_back(std::move(vcpu));
    }
    return vmm::success;
}

Result<void> Machine::load(const Options& options, const Images& images)
{
    GuestWriter writer{vm_.memory()};
    vmm::boot::AcpiPlatform acpi;
    acpi.cpus = options.cpus;
    VMM_TRY(const Gpa rsdp, vmm::boot::write_acpi(writer, acpi));
    vmm::boot::MpPlatform mp;
    mp.cpus = options.cpus;
    VMM_TRY_VOID(vmm::boot::write_mp_table(writer, mp));

    vmm::boot::LinuxBoot boot;
    boot.kernel = images.kernel;
    boot.initrd = images.initrd;
    boot.command_line = options.append;
    boot.memory_bytes = options.memory_bytes;
    boot.rsdp = rsdp;
    VMM_TRY(const auto loaded, vmm::boot::load_linux(writer, boot));
    vmm::x86::Sregs sregs = loaded.entry.sregs;
    sregs.apic_base = vcpus_.front().sregs().apic_base;
    VMM_TRY_VOID(vcpus_.front().set_sregs(sregs));
    vcpus_.front().set_regs(loaded.entry.regs);
    return vmm::success;
}

Outcome Machine::run(const std::function<void(vmm::Vcpu&)>& between)
{
    std::vector<std::thread> threads;
    threads.reserve(vcpus_.size());
    for (vmm::Vcpu& vcpu : vcpus_) {
        threads.emplace_back([&] { run_vcpu(vcpu, between); });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    const std::lock_guard lock{mutex_};
    return *outcome_;
}

void Machine::print_statistics() const
{
    for (const vmm::Vcpu& vcpu : vcpus_) {
        vmm::VcpuStatistics seen = vcpu.statistics();
        seen.last_exits.clear();  // Of a guest that came to its end.
        fmt::print(stderr, "{}", vmm::to_text({&seen, 1}));
    }
}

std::string Machine::statistics() const
{
    std::vector<vmm::VcpuStatistics> all;
    all.reserve(vcpus_.size());
    for (const vmm::Vcpu& vcpu : vcpus_) {
        all.push_back(vcpu.statistics());
    }
    return vmm::to_prometheus(all);
}

void Machine::stop(Outcome outcome)
{
    {
        const std::lock_guard lock{mutex_};
        if (outcome_) {
            return;
        }
        outcome_ = std::move(outcome);
    }
    for (vmm::Vcpu& vcpu : vcpus_) {
        vcpu.kicker().kick();
    }
}

bool Machine::has_stopped()
{
    const std::lock_guard lock{mutex_};
    return outcome_.has_value();
}

void Machine::run_vcpu(vmm::Vcpu& vcpu, const std::function<void(vmm::Vcpu&)>& between)
{
    for (;;) {
        const auto exit = vcpu.run();
        if (!exit) {
            return stop({Outcome::Kind::Stuck, 0, exit.error().message()});
        }
        if (exit->is<vmm::Shutdown>()) {
            return stop({Outcome::Kind::TripleFault, 0, describe(vcpu, vm_.memory())});
        }
        if (const auto* difference = exit->get_if<vmm::Difference>()) {
            return stop({Outcome::Kind::Stuck, 0, std::string{difference->report}});
        }
        if (const auto* error = exit->get_if<vmm::InternalError>()) {
            return stop(
                {Outcome::Kind::Stuck, 0,
                 fmt::format("vCPU {} cannot execute what lies at rip {:#x}: {:02x}", vcpu.id(),
                             vcpu.regs().rip, fmt::join(error->instruction, " "))});
        }
        // A kick, or an access to nothing, which reads as all ones.
        if (has_stopped()) {
            return;
        }
        if (between) {
            exit->complete();
            between(vcpu);
        }
    }
}

}  // namespace vmm_linux
