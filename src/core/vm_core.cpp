// SPDX-License-Identifier: Apache-2.0

#include "core/vm_core.hpp"

#include <algorithm>
#include <bit>
#include <thread>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "core/engines.hpp"
#include "core/vcpu_core.hpp"
#include "vmm/device/port_view.hpp"
#include "x86/irqchip/pit.hpp"
#include "x86/kvmclock.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {
namespace {

/// One event loop for all VMs of the process, while there is one: its callbacks are short, and a
/// thread for each of a thousand VMs would cost more than they do.
Result<std::shared_ptr<EventLoop>> shared_event_loop()
{
    static std::mutex mutex;
    static std::weak_ptr<EventLoop> current;
    static pid_t owner = 0;
    const std::lock_guard lock{mutex};
    if (auto loop = current.lock(); loop && owner == ::getpid()) {
        return loop;  // A child after fork() has its parent's loop, but not its thread.
    }
    VMM_TRY(auto made, EventLoop::create());
    // The last VM may go on the loop's own thread, when a callback there held its last vCPU for a
    // kick; a loop cannot end its own thread.
    std::shared_ptr<EventLoop> loop{made.release(), [](EventLoop* last) {
                                        if (last->is_loop_thread()) {
                                            std::thread{[last] { delete last; }}.detach();
                                        } else {
                                            delete last;
                                        }
                                    }};
    current = loop;
    owner = ::getpid();
    return loop;
}

struct Ports {
    std::uint16_t first;
    std::uint16_t count;

    [[nodiscard]] PortRange range() const noexcept { return *PortRange::make(Port{first}, count); }
};

constexpr std::uint16_t pic_base = 0x20;
constexpr Ports pic_ports[] = {{pic_base, 2}, {0xa0, 2}, {0x4d0, 2}};
constexpr std::uint16_t pit_base = 0x40;
constexpr Ports pit_ports[] = {{pit_base, 4}, {pit_base + x86::irqchip::Pit::speaker_offset, 1}};

/// Before something is made that cannot be made again.
Result<void> check_free(const VmCore::PortBus& bus,
                        std::span<const Ports> all,
                        const char* operation)
{
    for (const Ports& ports : all) {
        for (std::uint16_t n = 0; n < ports.count; ++n) {
            const auto port = static_cast<std::uint16_t>(ports.first + n);
            if (bus.answers(Port{port}, 1)) {
                return Error{std::errc::file_exists,
                             fmt::format("{}: there is a device at port {:#x} already; detach it, "
                                         "or attach it after this",
                                         operation, port)};
            }
        }
    }
    return success;
}

/// Stands where an engine answers before anybody asks the bus, so that nothing else is put there.
class EnginesDevice final : public bus::DeviceBase {
public:
    void read(std::uint64_t /*offset*/, std::span<std::byte> data) noexcept override
    {
        std::fill(data.begin(), data.end(), std::byte{0xff});
    }
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) noexcept override {}
};

/// Attaches a device whose offset 0 is port `base` at `all` its ports, or at none of them; null:
/// the engine has it.  The device must outlive the bus's use: the VM owns both.
Result<void> attach_ports(VmCore::PortBus& bus,
                          bus::DeviceBase* device,
                          std::uint16_t base,
                          std::span<const Ports> all)
{
    static EnginesDevice engines;
    bus::DeviceBase& target = device != nullptr ? *device : engines;
    for (std::size_t i = 0; i < all.size(); ++i) {
        auto added =
            bus.add(all[i].range(), std::make_shared<device::PortView>(
                                        target, static_cast<std::uint64_t>(all[i].first - base)));
        if (!added) {
            while (i != 0) {
                static_cast<void>(bus.remove(all[--i].range()));
            }
            return added;
        }
    }
    return success;
}

/// The slot that `change` is about; of size 0 if there is none.
memory::MemoryRegion slot_as_it_is(const memory::MemslotTable<>& slots,
                                   const memory::MemoryRegion& change)
{
    memory::MemoryRegion region{.slot = change.slot, .address_space = change.address_space};
    if (change.address_space > 1) {
        return region;  // Refused in a moment.
    }
    const auto table = slots.read();
    for (const auto& entry : table.entries(change.address_space)) {
        const memory::Memslot& slot = *entry.value;
        if (slot.id == change.slot) {
            region.flags = slot.flags;
            region.guest_phys_addr = Gpa{slot.base_gfn << memory::page_bits};
            region.size_bytes = slot.page_count << memory::page_bits;
            region.host = slot.host;
        }
    }
    return region;
}

}  // namespace

VmCore::VmCore(const KvmOptions& options,
               std::shared_ptr<EventLoop> event_loop,
               std::uint32_t tsc_khz)
    : options_{options},
      event_loop_{std::move(event_loop)},
      tsc_khz_{tsc_khz},
      clock_{x86::read_host_tsc(), 0},
      tsc_offset_{std::uint64_t{0} - clock_.host_tsc},
      guest_tsc_khz_{tsc_khz}
{
}

VmCore::~VmCore() = default;

Result<std::shared_ptr<VmCore>> VmCore::create(const KvmOptions& options)
{
    VMM_TRY(auto loop, shared_event_loop());
    std::shared_ptr<VmCore> vm{new VmCore{options, std::move(loop), x86::host_tsc_khz()}};
    VMM_TRY(vm->engine_, create_engine_vm(options, vm->physical_));
    return vm;
}

std::vector<x86::CpuidEntry> VmCore::supported_cpuid() const
{
    return core::supported_cpuid(options_);
}

std::uint32_t VmCore::timed_one_in() const noexcept
{
    // Reading the clock twice and keeping what it says costs a quarter of a port exit of `soft`, a
    // tenth of the library's part of one on `svm` and `vmx`, and nothing beside one on `kvm`.
    constexpr std::uint32_t some = 64;
    return options_.engine != Engine::Kvm && !options_.lockstep ? some : 1U;
}

Result<void> VmCore::tell_engine_of_memory()
{
    remote_tlb_flushes_.fetch_add(1, std::memory_order_relaxed);
    return engine_->memory_changed();
}

void VmCore::dirty_log_cleared() noexcept
{
    remote_tlb_flushes_.fetch_add(1, std::memory_order_relaxed);
    engine_->dirty_log_cleared();
}

Result<void> VmCore::set_user_memory_region(const memory::MemoryRegion& region)
{
    const memory::MemoryRegion before = slot_as_it_is(physical_.slots(), region);
    VMM_TRY_VOID(physical_.slots().set(region));
    const Result<void> told = tell_engine_of_memory();
    if (!told) {
        static_cast<void>(physical_.slots().set(before));
        static_cast<void>(tell_engine_of_memory());
    }
    return told;
}

Result<void> VmCore::check_log_is_bitmap(const char* operation) const
{
    if (dirty_rings_ == nullptr) {
        return success;
    }
    return Error{
        std::errc::no_such_device_or_address,
        fmt::format("{}: this VM logs into dirty rings; collect the entries there", operation)};
}

Result<void> VmCore::enable_dirty_rings(std::uint32_t entries)
{
    const auto refuse = [entries](std::errc code, const char* why) {
        return Error{code, fmt::format("enable_dirty_rings({}): {}", entries, why)};
    };
    if (!has_dirty_rings(options_)) {
        return refuse(std::errc::invalid_argument,
                      "this engine tells of writes only when it is asked; use dirty_log");
    }
    if (!std::has_single_bit(entries) || entries < memory::DirtyRing::min_entries) {
        return refuse(std::errc::invalid_argument,
                      "a ring has 256 to 65536 entries, a power of two");
    }
    if (entries > memory::DirtyRing::max_entries) {
        return refuse(std::errc::argument_list_too_long, "a ring has at most 65536 entries");
    }
    const std::lock_guard lock{mutex_};
    if (dirty_rings_ != nullptr || vcpu_created_) {
        return refuse(std::errc::invalid_argument,
                      "this VM has rings or a vCPU already; it comes before the first vCPU, once");
    }
    if (physical_.logs_dirty()) {
        return refuse(std::errc::invalid_argument,
                      "a slot logs into its bitmap already; it comes before the first such slot");
    }
    VMM_TRY_VOID(engine_->tell_each_write(entries));
    dirty_rings_ = std::make_unique<DirtyRings>(physical_.slots(), entries);
    physical_.slots().set_dirty_sink(*dirty_rings_);
    return success;
}

Result<std::uint32_t> VmCore::reset_dirty_rings()
{
    if (dirty_rings_ == nullptr) {
        return Error{std::errc::invalid_argument,
                     "reset_dirty_rings: this VM has no dirty rings; call enable_dirty_rings"};
    }
    const std::uint32_t freed = dirty_rings_->reset();
    if (freed != 0U) {
        dirty_log_cleared();
    }
    return freed;
}

Result<std::vector<std::uint64_t>> VmCore::dirty_log(std::uint32_t slot,
                                                     std::uint16_t address_space)
{
    VMM_TRY_VOID(check_log_is_bitmap("dirty_log"));
    if (address_space == 0) {
        VMM_TRY_VOID(engine_->collect_dirty_log(slot));
    }
    VMM_TRY(auto bitmap, physical_.slots().dirty_log(slot, address_space));
    dirty_log_cleared();
    return bitmap;
}

Result<std::vector<std::uint64_t>> VmCore::peek_dirty_log(std::uint32_t slot,
                                                          std::uint16_t address_space)
{
    VMM_TRY_VOID(check_log_is_bitmap("peek_dirty_log"));
    if (address_space == 0) {
        VMM_TRY_VOID(engine_->collect_dirty_log(slot));
    }
    return physical_.slots().peek_dirty_log(slot, address_space);
}

Result<void> VmCore::clear_dirty_log(std::uint32_t slot,
                                     std::uint64_t first_page,
                                     std::uint64_t num_pages,
                                     std::span<const std::uint64_t> bitmap,
                                     std::uint16_t address_space)
{
    VMM_TRY_VOID(check_log_is_bitmap("clear_dirty_log"));
    VMM_TRY_VOID(
        physical_.slots().clear_dirty_log(slot, first_page, num_pages, bitmap, address_space));
    dirty_log_cleared();
    return success;
}

Result<void> VmCore::set_coalesced_page(bus::CoalescedPage& page)
{
    const std::lock_guard lock{mutex_};
    if (coalesced_storage_ != nullptr) {
        return Error{std::errc::file_exists,
                     "set_coalesced_page: this VM has a ring already; one is all it can have"};
    }
    coalesced_storage_ = std::make_unique<bus::CoalescedRing>(page);
    coalesced_ring_.store(coalesced_storage_.get(), std::memory_order_release);
    return success;
}

Result<void> VmCore::set_boot_cpu_id(std::uint32_t id)
{
    const std::lock_guard lock{mutex_};
    if (vcpu_created_) {
        return Error{std::errc::device_or_resource_busy,
                     fmt::format("set_boot_cpu_id({}): a vCPU exists already; choose the "
                                 "bootstrap processor before the first one",
                                 id)};
    }
    VMM_TRY_VOID(engine_->set_boot_cpu_id(id));
    boot_cpu_id_ = id;
    return success;
}

bool VmCore::read_memory(Gpa from, std::span<std::byte> to, std::uint16_t address_space) noexcept
{
    return memory::GuestMemory{physical_.slots(), address_space}.copy_out(from, to);
}

bool VmCore::write_memory(Gpa to,
                          std::span<const std::byte> from,
                          std::uint16_t address_space) noexcept
{
    if (!memory::GuestMemory{physical_.slots(), address_space}.copy_in(to, from)) {
        return false;
    }
    engine_->memory_written(to, from.size());
    return true;
}

bool VmCore::write_for_guest(Gpa to,
                             std::span<const std::byte> from,
                             std::uint16_t address_space) noexcept
{
    if (!memory::GuestMemory{physical_.slots(), address_space}.guest_copy_in(to, from)) {
        return false;
    }
    engine_->memory_written(to, from.size());
    return true;
}

std::optional<std::uint8_t> VmCore::exchange_byte(Gpa at, std::uint8_t value) noexcept
{
    const auto before = memory::GuestMemory{physical_.slots(), 0}.exchange(at, value);
    if (before) {
        engine_->memory_written(at, sizeof value);
    }
    return before;
}

Result<void> VmCore::make_controllers(x86::irqchip::IrqchipMode mode, std::uint32_t io_apic_pins)
{
    if (options_.irqchip == IrqchipPlace::Kernel) {
        VMM_TRY(controllers_, engine_->create_irqchip(mode, io_apic_pins));
        return success;
    }
    auto made = std::make_unique<LibraryIrqchip>(*event_loop_, mode, io_apic_pins);
    irqchip_ = &made->chip();
    controllers_ = std::move(made);
    return success;
}

Result<void> VmCore::create_irqchip()
{
    const std::lock_guard lock{mutex_};
    if (controllers_ != nullptr) {
        return Error{std::errc::file_exists,
                     "create_irqchip: this VM has an irqchip already; one is all it can have"};
    }
    if (vcpu_created_) {
        return Error{std::errc::invalid_argument,
                     "create_irqchip: a vCPU exists already; create the irqchip before the first "
                     "vCPU, which gets its local APIC then"};
    }
    VMM_TRY_VOID(check_free(port_bus, pic_ports, "create_irqchip"));
    VMM_TRY_VOID(make_controllers(x86::irqchip::IrqchipMode::Full, 0));
    return attach_ports(port_bus, controllers_->pic_device().get(), pic_base, pic_ports);
}

Result<void> VmCore::create_split_irqchip(std::uint32_t io_apic_pins)
{
    constexpr std::uint32_t most_pins = 4096;
    const std::lock_guard lock{mutex_};
    if (io_apic_pins > most_pins) {
        return Error{std::errc::invalid_argument,
                     fmt::format("create_split_irqchip({}): an I/O APIC of at most {} pins",
                                 io_apic_pins, most_pins)};
    }
    if (controllers_ != nullptr || vcpu_created_) {
        return Error{std::errc::file_exists,
                     "create_split_irqchip: this VM has an irqchip or a vCPU already; it comes "
                     "before the first vCPU, and one is all a VM can have"};
    }
    return make_controllers(x86::irqchip::IrqchipMode::Split, io_apic_pins);
}

Result<void> VmCore::create_pit()
{
    const std::lock_guard lock{mutex_};
    if (!has_full_irqchip()) {
        return Error{std::errc::no_such_file_or_directory,
                     "create_pit: the PIT raises interrupts of the irqchip, and this VM has none; "
                     "call create_irqchip first"};
    }
    if (controllers_->has_pit()) {
        return Error{std::errc::file_exists, "create_pit: this VM has a PIT already"};
    }
    VMM_TRY_VOID(check_free(port_bus, pit_ports, "create_pit"));
    VMM_TRY(const auto pit, controllers_->create_pit());
    return attach_ports(port_bus, pit.get(), pit_base, pit_ports);
}

Result<std::shared_ptr<VcpuCore>> VmCore::create_vcpu(std::uint32_t id)
{
    if (id >= vcpu_id_end) {
        return Error{std::errc::invalid_argument,
                     fmt::format("create_vcpu({}): vCPU ids are 0 to {}", id, vcpu_id_end - 1U)};
    }
    {
        const std::lock_guard lock{mutex_};
        if (vcpus_.size() >= max_vcpus) {
            return Error{std::errc::invalid_argument,
                         fmt::format("create_vcpu({}): this VM has {} vCPUs, and no VM has more",
                                     id, max_vcpus)};
        }
        if (!vcpus_.emplace(id, nullptr).second) {
            return Error{std::errc::file_exists,
                         fmt::format("create_vcpu({}): this VM has a vCPU of that id", id)};
        }
        vcpu_created_ = true;
    }
    auto vcpu = VcpuCore::create(shared_from_this(), *engine_, id);
    const std::lock_guard lock{mutex_};
    if (vcpu) {
        vcpus_[id] = vcpu->get();
    } else {
        vcpus_.erase(id);
    }
    return vcpu;
}

void VmCore::forget_vcpu(std::uint32_t id) noexcept
{
    const std::lock_guard lock{mutex_};
    vcpus_.erase(id);
}

VmCore::ClockReference VmCore::clock_reference() const noexcept
{
    const std::lock_guard lock{clock_mutex_};
    return clock_;
}

std::uint64_t VmCore::clock_ns() const noexcept
{
    const ClockReference reference = clock_reference();
    return reference.ns +
           x86::scale_tsc(x86::read_host_tsc() - reference.host_tsc, x86::tsc_scale(tsc_khz_));
}

std::uint64_t VmCore::synchronised_tsc_offset(std::uint64_t value, x86::TscRatio ratio) noexcept
{
    const std::lock_guard lock{clock_mutex_};
    const std::uint64_t host = ratio.scale(x86::read_host_tsc());
    const std::uint64_t reached = host + tsc_offset_;
    const std::uint64_t second = ratio.scale(std::uint64_t{tsc_khz_} * 1000U);
    const bool is_near = value < reached + second && value + second > reached;
    if (ratio != tsc_ratio_ || (value != 0U && !is_near)) {
        tsc_offset_ = value - host;
        tsc_ratio_ = ratio;
    }
    return tsc_offset_;
}

void VmCore::note_tsc_offset(std::uint64_t offset, x86::TscRatio ratio) noexcept
{
    const std::lock_guard lock{clock_mutex_};
    tsc_offset_ = offset;
    tsc_ratio_ = ratio;
}

Result<x86::TscRatio> VmCore::check_tsc_khz(std::uint32_t khz) const
{
    constexpr std::uint32_t end = 0x7fff'ffff;
    if (khz == 0U) {
        return x86::TscRatio{};
    }
    const x86::TscRatio ratio = khz < end ? x86::tsc_ratio_for(khz, tsc_khz_) : x86::TscRatio{};
    if (khz >= end || (!ratio.is_one() && !core::has_tsc_scaling(options_))) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_tsc_khz({}): the host's TSC has {} kHz; this engine can have "
                                 "a guest's run {}",
                                 khz, tsc_khz_,
                                 core::has_tsc_scaling(options_) ? "at up to 2147483646 kHz"
                                                                 : "at that rate only")};
    }
    return ratio;
}

Result<void> VmCore::set_tsc_khz(std::uint32_t khz)
{
    VMM_TRY_VOID(check_tsc_khz(khz));
    guest_tsc_khz_.store(khz != 0U ? khz : tsc_khz_, std::memory_order_relaxed);
    return success;
}

Result<void> VmCore::set_hypercall_exits(std::uint64_t calls)
{
    const std::uint64_t possible =
        has_hypercall_exits(options_) ? std::uint64_t{1} << map_gpa_range : 0U;
    if ((calls & ~possible) != 0U) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_hypercall_exits({:#x}): {:#x} is possible with this engine",
                                 calls, possible)};
    }
    if (possible != 0U) {
        VMM_TRY_VOID(engine_->set_hypercall_exits(calls));
    }
    hypercall_exits_.store(calls, std::memory_order_relaxed);
    return success;
}

Result<void> VmCore::disable_quirks(std::uint64_t quirks)
{
    const std::uint64_t possible = possible_quirks(options_);
    if ((quirks & ~possible) != 0U) {
        return Error{std::errc::invalid_argument,
                     fmt::format("disable_quirks({:#x}): {:#x} is possible with this engine",
                                 quirks, possible)};
    }
    if (possible != 0U) {
        VMM_TRY_VOID(engine_->disable_quirks(quirks));
    }
    disabled_quirks_.store(quirks, std::memory_order_relaxed);
    return success;
}

void VmCore::set_clock_ns(std::uint64_t now) noexcept
{
    {
        const std::lock_guard lock{clock_mutex_};
        clock_ = {x86::read_host_tsc(), now};
    }
    const std::lock_guard lock{mutex_};
    for (const auto& [id, vcpu] : vcpus_) {
        if (vcpu != nullptr) {
            vcpu->clock_changed();
        }
    }
}

}  // namespace vmm::core
