// SPDX-License-Identifier: Apache-2.0

/// @file
/// What a virtual machine is behind `Vm`: shared by the handle and its vCPUs, so that it lives
/// until the last of them is gone.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "core/dirty_rings.hpp"
#include "core/engines.hpp"
#include "core/guest_physical.hpp"
#include "core/library_irqchip.hpp"
#include "core/vm_devices.hpp"
#include "core/write_sinks.hpp"
#include "vmm/bus/io_bus.hpp"
#include "vmm/event_loop.hpp"
#include "vmm/kvm.hpp"
#include "vmm/memory/epoch.hpp"
#include "vmm/memory/memslots.hpp"
#include "x86/engine.hpp"
#include "x86/irqchip/controllers.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {

class VcpuCore;

/// Lock order: `mutex_`, then nothing of a vCPU.  The data plane takes no lock.
class VmCore : public std::enable_shared_from_this<VmCore> {
public:
    /// KVM's: ids may have gaps, as APIC ids have.
    static constexpr std::uint32_t vcpu_id_end = 4096;
    static constexpr std::uint32_t max_vcpus = 1024;

    [[nodiscard]] static Result<std::shared_ptr<VmCore>> create(const KvmOptions& options);

    VmCore(const VmCore&) = delete;
    VmCore& operator=(const VmCore&) = delete;
    VmCore(VmCore&&) = delete;
    VmCore& operator=(VmCore&&) = delete;
    ~VmCore();

    Result<void> set_user_memory_region(const memory::MemoryRegion& region);
    Result<std::vector<std::uint64_t>> dirty_log(std::uint32_t slot, std::uint16_t address_space);
    Result<std::vector<std::uint64_t>> peek_dirty_log(std::uint32_t slot,
                                                      std::uint16_t address_space);
    Result<void> clear_dirty_log(std::uint32_t slot,
                                 std::uint64_t first_page,
                                 std::uint64_t num_pages,
                                 std::span<const std::uint64_t> bitmap,
                                 std::uint16_t address_space);
    void set_initially_dirty(bool dirty) { physical_.slots().set_initially_dirty(dirty); }
    Result<void> enable_dirty_rings(std::uint32_t entries);
    Result<std::uint32_t> reset_dirty_rings();
    /// Null without `enable_dirty_rings()`.
    [[nodiscard]] DirtyRings* dirty_rings() const noexcept { return dirty_rings_.get(); }
    [[nodiscard]] bool read_memory(Gpa from,
                                   std::span<std::byte> to,
                                   std::uint16_t address_space = 0) noexcept;
    /// As the VMM, into read-only slots too.
    [[nodiscard]] bool write_memory(Gpa to,
                                    std::span<const std::byte> from,
                                    std::uint16_t address_space = 0) noexcept;
    /// As the guest, which has said where: what it cannot write itself is not written for it.
    [[nodiscard]] bool write_for_guest(Gpa to,
                                       std::span<const std::byte> from,
                                       std::uint16_t address_space = 0) noexcept;

    [[nodiscard]] bool exists(Gpa at) noexcept
    {
        std::array<std::byte, 1> byte{};
        return read_memory(at, byte);
    }
    /// Puts a byte into guest memory as the guest and gives what was there, in one step; nothing
    /// where the guest could not.
    [[nodiscard]] std::optional<std::uint8_t> exchange_byte(Gpa at, std::uint8_t value) noexcept;

    Result<void> create_irqchip();
    Result<void> create_split_irqchip(std::uint32_t io_apic_pins);
    Result<void> create_pit();
    /// The library's or the engine's; null without an irqchip.
    [[nodiscard]] x86::irqchip::Controllers* controllers() const noexcept
    {
        return controllers_.get();
    }

    Result<void> set_coalesced_page(bus::CoalescedPage& page);
    /// Null before `set_coalesced_page()`.
    [[nodiscard]] bus::CoalescedRing* coalesced_ring() const noexcept
    {
        return coalesced_ring_.load(std::memory_order_acquire);
    }

    Result<void> set_msr_filter(const x86::MsrFilter& filter);
    void set_msr_exits(const x86::MsrExits& exits) noexcept;
    /// Whether the filter lets a vCPU access an MSR.
    [[nodiscard]] bool allows_msr(std::uint32_t vcpu,
                                  std::uint32_t index,
                                  bool write) const noexcept;
    /// Whether an access that is refused for this reason leaves to the caller.
    [[nodiscard]] bool leaves_for_msr(x86::MsrExitReason why) const noexcept
    {
        return (msr_exits_.load(std::memory_order_relaxed) & static_cast<std::uint32_t>(why)) != 0U;
    }

    void set_platform_info_readable(bool readable) noexcept
    {
        platform_info_readable_.store(readable, std::memory_order_relaxed);
    }
    [[nodiscard]] bool is_platform_info_readable() const noexcept
    {
        return platform_info_readable_.load(std::memory_order_relaxed);
    }

    static constexpr unsigned map_gpa_range = 12;  ///< KVM_HC_MAP_GPA_RANGE.
    Result<void> set_hypercall_exits(std::uint64_t calls);
    [[nodiscard]] bool leaves_for_hypercall(std::uint64_t number) const noexcept
    {
        constexpr std::uint64_t bits = 64;
        return number < bits &&
               (hypercall_exits_.load(std::memory_order_relaxed) >> number & 1U) != 0U;
    }

    Result<void> disable_quirks(std::uint64_t quirks);
    [[nodiscard]] bool has_quirk(std::uint64_t quirk) const noexcept
    {
        return (disabled_quirks_.load(std::memory_order_relaxed) & quirk) == 0U;
    }

    Result<void> set_boot_cpu_id(std::uint32_t id);
    [[nodiscard]] std::uint32_t boot_cpu_id() const noexcept { return boot_cpu_id_; }

    Result<std::shared_ptr<VcpuCore>> create_vcpu(std::uint32_t id);
    void forget_vcpu(std::uint32_t id) noexcept;

    /// kvmclock: nanoseconds since the VM was made, or since and from what `set_clock_ns` set.
    [[nodiscard]] std::uint64_t clock_ns() const noexcept;
    void set_clock_ns(std::uint64_t now) noexcept;

    struct ClockReference {
        std::uint64_t host_tsc{};
        std::uint64_t ns{};
    };
    /// "At this host TSC kvmclock shows this": one pair for all vCPUs, so that their clocks agree
    /// to the nanosecond.
    [[nodiscard]] ClockReference clock_reference() const noexcept;
    /// The offset for a vCPU whose TSC the VMM sets to `value`, or that is new, with 0.  A VMM sets
    /// those of all vCPUs one after the other and means them to agree: 0, and what lies within a
    /// second of what the one set before has reached by now, gives the same offset again, if both
    /// run at the same rate.
    [[nodiscard]] std::uint64_t synchronised_tsc_offset(std::uint64_t value,
                                                        x86::TscRatio ratio) noexcept;
    /// A vCPU got this one: what is set next, by value, agrees with it.
    void note_tsc_offset(std::uint64_t offset, x86::TscRatio ratio) noexcept;

    /// Whether a TSC may run at this rate, and if so how.
    [[nodiscard]] Result<x86::TscRatio> check_tsc_khz(std::uint32_t khz) const;
    Result<void> set_tsc_khz(std::uint32_t khz);
    /// Of vCPUs that are created now.
    [[nodiscard]] std::uint32_t guest_tsc_khz() const noexcept
    {
        return guest_tsc_khz_.load(std::memory_order_relaxed);
    }

    void set_halt_poll_ns(std::uint32_t longest) noexcept
    {
        halt_poll_ns_.store(longest, std::memory_order_relaxed);
        engine_->set_halt_poll_ns(longest);
    }
    [[nodiscard]] std::uint32_t halt_poll_ns() const noexcept
    {
        return halt_poll_ns_.load(std::memory_order_relaxed);
    }

    /// How often all vCPUs had to drop their translations.
    [[nodiscard]] std::uint64_t remote_tlb_flushes() const noexcept
    {
        return remote_tlb_flushes_.load(std::memory_order_relaxed);
    }
    /// Of port, MMIO and MSR accesses one in so many is timed.
    [[nodiscard]] std::uint32_t timed_one_in() const noexcept;
    [[nodiscard]] bool counts_exits() const noexcept { return options_.statistics; }

    [[nodiscard]] bool has_smm() const noexcept { return core::has_smm(options_); }

    /// All that a guest of this VM may be offered.
    [[nodiscard]] std::vector<x86::CpuidEntry> supported_cpuid() const;

    /// The library's, with the local APICs of its vCPUs; null where it has none.
    [[nodiscard]] x86::irqchip::Irqchip* irqchip() const noexcept { return irqchip_; }
    /// Whether there is an irqchip with a PIC and an I/O APIC, whoever has it.
    [[nodiscard]] bool has_full_irqchip() const noexcept
    {
        return controllers_ != nullptr && controllers_->mode() == x86::irqchip::IrqchipMode::Full;
    }
    [[nodiscard]] EventLoop& event_loop() const noexcept { return *event_loop_; }
    /// The host's.
    [[nodiscard]] std::uint32_t tsc_khz() const noexcept { return tsc_khz_; }

    using PortBus = bus::IoBus<Port, std::shared_ptr<bus::DeviceBase>>;
    using MmioBus = bus::IoBus<Gpa, std::shared_ptr<bus::DeviceBase>>;
    PortBus port_bus;
    MmioBus mmio_bus;
    WriteSinks<Port> port_sinks{bus::CoalescedKind::Pio};
    WriteSinks<Gpa> mmio_sinks{bus::CoalescedKind::Mmio};
    VmDevices devices;

private:
    [[nodiscard]] Result<void> make_controllers(x86::irqchip::IrqchipMode mode,
                                                std::uint32_t io_apic_pins);
    [[nodiscard]] Result<void> tell_engine_of_memory();
    [[nodiscard]] Result<void> check_log_is_bitmap(const char* operation) const;
    void dirty_log_cleared() noexcept;
    VmCore(const KvmOptions& options, std::shared_ptr<EventLoop> event_loop, std::uint32_t tsc_khz);

    const KvmOptions options_;
    std::shared_ptr<EventLoop> event_loop_;
    std::uint32_t tsc_khz_;
    mutable std::mutex clock_mutex_;
    ClockReference clock_;
    std::uint64_t tsc_offset_;  // What the TSC was set to last, as an offset.
    x86::TscRatio tsc_ratio_;   // And how fast it runs.
    std::atomic<std::uint32_t> guest_tsc_khz_;
    std::atomic<std::uint32_t> halt_poll_ns_{};
    std::unique_ptr<DirtyRings> dirty_rings_;  // Before the slots, which tell it.
    GuestPhysical physical_;
    std::unique_ptr<x86::EngineVm> engine_;
    std::unique_ptr<x86::irqchip::Controllers> controllers_;
    x86::irqchip::Irqchip* irqchip_{};  // In `controllers_`, if those are the library's.
    std::unique_ptr<bus::CoalescedRing> coalesced_storage_;
    std::atomic<bus::CoalescedRing*> coalesced_ring_{};
    std::atomic<bool> has_msr_filter_{};  // Without, the filter need not be looked at.
    memory::Published<x86::MsrFilter> msr_filter_;
    std::atomic<std::uint64_t> remote_tlb_flushes_{};
    std::atomic<std::uint32_t> msr_exits_{};  // Of `x86::MsrExitReason`.
    std::atomic<bool> platform_info_readable_{true};
    std::atomic<std::uint64_t> disabled_quirks_{};
    std::atomic<std::uint64_t> hypercall_exits_{};  // By number.

    std::mutex mutex_;  // vcpus_ and all that is made once.
    std::map<std::uint32_t, VcpuCore*> vcpus_;
    bool vcpu_created_{};
    std::uint32_t boot_cpu_id_{};
};

}  // namespace vmm::core
