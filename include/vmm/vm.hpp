// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual machine: guest memory, buses, interrupt controllers and virtual CPUs.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/bus/coalesced.hpp"
#include "vmm/bus/device.hpp"
#include "vmm/bus/ioeventfd.hpp"
#include "vmm/event_loop.hpp"
#include "vmm/export.hpp"
#include "vmm/memory/guest_memory.hpp"
#include "vmm/memory/memslots.hpp"
#include "vmm/result.hpp"
#include "vmm/vcpu.hpp"
#include "vmm/x86/irqchip_state.hpp"
#include "vmm/x86/msr_filter.hpp"

namespace vmm {

class VmDevice;

namespace core {
class VmCore;
}

/// Guest memory as the VMM reaches it; writes are seen by the dirty log and by the guest's
/// instruction fetch.
///
/// Thread safety: every member from any thread.  A race with the guest is the guest's.
class VMM_API VmMemory {
public:
    /// Copies out of guest memory.  False, and `to` is undefined, if any byte is in no slot.
    [[nodiscard]] bool read(Gpa from, std::span<std::byte> to) const noexcept;
    /// Copies into guest memory, read-only slots too.  False, and nothing is written, if any byte
    /// is in no slot.
    [[nodiscard]] bool write(Gpa to, std::span<const std::byte> from) const noexcept;

    /// A `T` at `from`, or nothing if any byte is in no slot.
    template <typename T>
    [[nodiscard]] std::optional<T> read(Gpa from) const noexcept
    {
        static_assert(std::is_trivially_copyable_v<T>);
        T value;
        if (!read(from, std::as_writable_bytes(std::span{&value, 1}))) {
            return std::nullopt;
        }
        return value;
    }
    template <typename T>
    [[nodiscard]] bool write(Gpa to, const T& value) const noexcept
    {
        static_assert(std::is_trivially_copyable_v<T>);
        return write(to, std::as_bytes(std::span{&value, 1}));
    }

private:
    friend class Vm;
    explicit VmMemory(core::VmCore& vm) noexcept : vm_{&vm} {}

    core::VmCore* vm_;
};

/// A virtual machine.  Created by `Kvm::create_vm()`; lives until it and all its vCPUs are gone,
/// as KVM's do.
///
/// Thread safety: every member may be called from any thread, also while vCPUs run, except that
/// members which change memory or buses must not be called from within a device's callback.
class VMM_API Vm {
public:
    explicit Vm(std::shared_ptr<core::VmCore> core) noexcept;
    Vm(Vm&&) noexcept;
    Vm& operator=(Vm&&) noexcept;
    Vm(const Vm&) = delete;
    Vm& operator=(const Vm&) = delete;
    ~Vm();

    // --- Memory.

    /// KVM_SET_USER_MEMORY_REGION: creates, moves, re-flags or (size 0) deletes a slot.  Returns
    /// when no vCPU can use the table from before.  The memory stays the caller's and must
    /// outlive the slot.
    ///
    /// @return EINVAL (alignment, ids, flags, a forbidden change) or EEXIST (overlap).
    Result<void> set_user_memory_region(const memory::MemoryRegion& region);

    /// KVM_GET_DIRTY_LOG: one bit a page written since the last call, and clears them.
    ///
    /// @return ENOENT if the slot does not log, EINVAL for a bad slot id, ENXIO with dirty rings.
    [[nodiscard]] Result<std::vector<std::uint64_t>> dirty_log(std::uint32_t slot,
                                                               std::uint16_t address_space = 0);
    /// KVM_GET_DIRTY_LOG under KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: the same and clears nothing.
    [[nodiscard]] Result<std::vector<std::uint64_t>> peek_dirty_log(
        std::uint32_t slot,
        std::uint16_t address_space = 0);
    /// KVM_CLEAR_DIRTY_LOG: clears those of `num_pages` from `first_page` on that are set in
    /// `bitmap`, whose bit 0 is `first_page`.
    ///
    /// @return ENOENT if the slot does not log; EINVAL for a bad slot id, a `first_page` or
    /// `num_pages` that is no multiple of 64 (but for the slot's end), or pages outside the slot.
    Result<void> clear_dirty_log(std::uint32_t slot,
                                 std::uint64_t first_page,
                                 std::uint64_t num_pages,
                                 std::span<const std::uint64_t> bitmap,
                                 std::uint16_t address_space = 0);

    /// KVM_DIRTY_LOG_INITIALLY_SET: whether all pages of a slot are dirty when it begins to log,
    /// instead of none; of slots that begin after this.  Not with dirty rings.
    void set_initially_dirty(bool dirty);

    /// KVM_CAP_DIRTY_LOG_RING: from now on a page that is written, in a slot that logs, is an entry
    /// in the ring of the vCPU that wrote it (`Vcpu::set_dirty_ring`), and the dirty log of a slot
    /// can no longer be had.  What the VMM itself writes is in the first vCPU's.
    ///
    /// @param entries  Of each ring: a power of two, 256 to 65,536.
    /// @return EINVAL for another number, the second time, once a vCPU or a slot that logs exists,
    /// or on an engine that cannot (`Capability::DirtyLogRing`); E2BIG above 65,536.
    Result<void> enable_dirty_rings(std::uint32_t entries);
    /// KVM_RESET_DIRTY_RINGS: frees the entries that were collected.  Their pages are logged again
    /// when they are written after this returned; read their contents then, not before.
    ///
    /// @return how many; EINVAL without `enable_dirty_rings()`.
    Result<std::uint32_t> reset_dirty_rings();

    [[nodiscard]] VmMemory memory() const noexcept;

    // --- Buses.

    /// Puts a device at I/O ports: accesses that lie wholly inside no longer leave `run()`.
    ///
    /// @return EEXIST if a port is taken, ENOSPC beyond 1,000 ranges.
    Result<void> attach(PortRange ports, std::shared_ptr<bus::DeviceBase> device);
    /// Puts a device at guest-physical addresses.  Memory slots have precedence.
    Result<void> attach(GpaRange range, std::shared_ptr<bus::DeviceBase> device);
    /// Takes it away again; returns when no vCPU is in it.  ENOENT if nothing is there.
    Result<void> detach(PortRange ports);
    Result<void> detach(GpaRange range);

    /// KVM_IOEVENTFD: a write that matches adds 1 to the eventfd and does not leave `run()`.  The
    /// VM keeps a reference of its own to the eventfd.  Length 0 matches any.
    ///
    /// @return EBADF, or EINVAL for a descriptor of another kind, a length that is not 0, 1, 2, 4
    /// or 8, a value to match without a length, or a range that wraps; EEXIST if some write would
    /// match two.
    Result<void> add_ioeventfd(const bus::IoEvent<Port>& event, int eventfd);
    Result<void> add_ioeventfd(const bus::IoEvent<Gpa>& event, int eventfd);
    /// Takes it away; when this returns, no write signals it any more.  ENOENT if it is not there.
    Result<void> remove_ioeventfd(const bus::IoEvent<Port>& event, int eventfd);
    Result<void> remove_ioeventfd(const bus::IoEvent<Gpa>& event, int eventfd);

    /// KVM_REGISTER_COALESCED_MMIO: writes to these addresses are put aside in the ring, and
    /// leave `run()` only when that is full.  Devices in the library come first.  Before
    /// `set_coalesced_page()` there is no ring, and they all leave.
    ///
    /// @return ENOSPC beyond 1,000 zones.
    Result<void> add_coalesced_zone(PortRange zone);
    Result<void> add_coalesced_zone(GpaRange zone);
    /// Takes away the zones that have all of `zone`; none is no error.
    Result<void> remove_coalesced_zone(PortRange zone);
    Result<void> remove_coalesced_zone(GpaRange zone);
    /// Where writes are put aside: memory of the caller, who takes them out by a
    /// `bus::CoalescedRing` of its own.  It must outlive the VM.
    ///
    /// @return EEXIST the second time.
    Result<void> set_coalesced_page(bus::CoalescedPage& page);

    // --- Interrupts and timers.

    /// KVM_CREATE_IRQCHIP: PIC pair, I/O APIC and, for each vCPU, a local APIC, with the default
    /// routing.  Whose they are says `KvmOptions::irqchip`, of the split ones and of the PIT too.
    ///
    /// @return EEXIST the second time or where a device is at the PIC's ports, EINVAL once a vCPU
    /// exists.
    Result<void> create_irqchip();
    /// KVM_CAP_SPLIT_IRQCHIP: a local APIC for each vCPU, and nothing else.  The caller has the I/O
    /// APIC and the PIC: it sends messages (`signal_msi()`, or routes of type `Msi`), gets
    /// `IoapicEoi` for what the first `io_apic_pins` GSIs lead to, and gives a PIC's vectors by
    /// `Vcpu::interrupt()`.
    ///
    /// @param io_apic_pins  0 to 4096.
    /// @return EINVAL above that, EEXIST with an irqchip or once a vCPU exists.
    Result<void> create_split_irqchip(std::uint32_t io_apic_pins);
    /// KVM_CREATE_PIT2: an 8254 with the speaker gate at port 0x61 (KVM_PIT_SPEAKER_DUMMY).
    ///
    /// @return EEXIST the second time or where a device is at its ports, ENOENT without an irqchip
    /// that has a PIC.
    Result<void> create_pit();

    /// KVM_IRQ_LINE_STATUS: drives a GSI.
    ///
    /// @return below 0 masked, 0 coalesced, above 0 the number of CPUs it reached; ENXIO without
    /// an irqchip.
    Result<int> set_irq_line(std::uint32_t gsi, bool level);
    /// KVM_SIGNAL_MSI.
    ///
    /// @return above 0 delivered, 0 blocked; EINVAL without an irqchip.
    Result<int> signal_msi(Gpa address, std::uint32_t data);
    /// KVM_SET_GSI_ROUTING: replaces the whole table.
    ///
    /// @return EINVAL for an unknown type or pin, or without an irqchip.
    Result<void> set_gsi_routing(std::span<const x86::irqchip::GsiRoute> routes);

    /// KVM_IRQFD: from now on a signal of `eventfd` pulses `gsi`.  The VM keeps a reference of its
    /// own to the eventfd and takes its count.
    ///
    /// @return EINVAL without an irqchip or for a descriptor of another kind, EBADF, EBUSY for an
    /// eventfd that is assigned already, to whatever GSI.
    Result<void> assign_irqfd(int eventfd, std::uint32_t gsi);
    /// KVM_IRQFD_FLAG_RESAMPLE: a signal of `eventfd` raises `gsi` until the guest has ended the
    /// interrupt, which signals `resamplefd`: who still needs it signals again.
    Result<void> assign_irqfd(int eventfd, std::uint32_t gsi, int resamplefd);
    /// Undoes it; no signal is acted on after this returned.  A pair that is not assigned is fine.
    Result<void> deassign_irqfd(int eventfd, std::uint32_t gsi);

    /// KVM_GET_IRQCHIP and KVM_SET_IRQCHIP.  Interrupts that wait in the state set are delivered.
    ///
    /// @return ENXIO without an irqchip that has them; EINVAL for `ChipId::IoApic` as a PIC.
    [[nodiscard]] Result<x86::irqchip::PicState> pic(x86::irqchip::ChipId chip) const;
    Result<void> set_pic(x86::irqchip::ChipId chip, const x86::irqchip::PicState& state);
    [[nodiscard]] Result<x86::irqchip::IoApicState> io_apic() const;
    Result<void> set_io_apic(const x86::irqchip::IoApicState& state);

    /// KVM_GET_PIT2 and KVM_SET_PIT2; counting restarts.  @return ENXIO without a PIT.
    [[nodiscard]] Result<x86::irqchip::PitState> pit() const;
    Result<void> set_pit(const x86::irqchip::PitState& state);
    /// KVM_REINJECT_CONTROL: whether ticks that the guest could not take in time come later (as
    /// they do at first) or are lost.  @return ENXIO without a PIT.
    Result<void> set_pit_reinject(bool enabled);

    /// KVM_SET_TSC_KHZ of a VM: the rate of the time-stamp counters of vCPUs that are created from
    /// now on, instead of the host's; 0 is the host's.  See `Vcpu::set_tsc_khz`.
    Result<void> set_tsc_khz(std::uint32_t khz);
    [[nodiscard]] std::uint32_t tsc_khz() const noexcept;

    /// KVM_CAP_HALT_POLL: how long a vCPU that waits looks by itself whether it may go on before it
    /// gives up its thread, unless the guest asks not to by MSR_KVM_POLL_CONTROL; 0 at first, or
    /// with the kernel's irqchip what the host's KVM has.
    void set_halt_poll_ns(std::uint32_t longest) noexcept;

    // --- MSRs.

    /// KVM_X86_SET_MSR_FILTER: which MSRs the guest may access, instead of what was set before.
    /// An access that is denied raises #GP(0), or leaves (`set_msr_exits`).
    ///
    /// @return EINVAL for a default of "deny" without any range, more than 16 ranges, a range that
    /// speaks of neither reads nor writes, is longer than `MsrFilter::max_count`, or has fewer bits
    /// than MSRs.
    Result<void> set_msr_filter(const x86::MsrFilter& filter);
    /// KVM_CAP_X86_USER_SPACE_MSR: which accesses leave with `MsrRead` and `MsrWrite`; none at
    /// first.
    void set_msr_exits(const x86::MsrExits& exits) noexcept;

    /// KVM_CAP_MSR_PLATFORM_INFO: whether the guest may read MSR_PLATFORM_INFO, as at first; a VMM
    /// can always.
    void set_platform_info_readable(bool readable) noexcept;

    /// KVM_CAP_EXIT_HYPERCALL: which hypercalls leave with `Hypercall`: bit n is that of number n.
    /// KVM_HC_MAP_GPA_RANGE (12) is the one that can; none does at first, and the guest gets
    /// ENOSYS.
    ///
    /// @return EINVAL for others, or any on an engine that cannot (`Capability::ExitHypercall`).
    Result<void> set_hypercall_exits(std::uint64_t calls);

    /// KVM_CAP_DISABLE_QUIRKS2: turns these of KVM's quirks (`x86::quirk`, vmm/x86/quirk.hpp) off,
    /// and all others on; best before the first vCPU runs.  None is off at first.  Any thread.
    ///
    /// @return EINVAL for a bit that is not in `check_extension(Capability::DisableQuirks2)`.
    Result<void> disable_quirks(std::uint64_t quirks);

    // --- Devices of the device API.

    /// KVM_CREATE_DEVICE: makes a device of a type that this process knows (`vmm/vm_device.hpp`).
    ///
    /// @return ENODEV for another type, EBUSY for a second one where one is all a VM can have, or
    /// what making it gives.
    [[nodiscard]] Result<std::shared_ptr<VmDevice>> create_device(std::uint32_t type);

    // --- vCPUs.

    /// KVM_SET_BOOT_CPU_ID: which vCPU is the bootstrap processor; 0 unless set.
    ///
    /// @return EBUSY once a vCPU exists.
    Result<void> set_boot_cpu_id(std::uint32_t id);

    /// KVM_CREATE_VCPU.  `id` is also the APIC id.
    ///
    /// @return EEXIST for an id in use, EINVAL for one of 4,096 or more, or where the VM has 1,024
    ///         vCPUs.
    [[nodiscard]] Result<Vcpu> create_vcpu(std::uint32_t id);

    /// What this VM has done since its creation, with KVM's names: `remote_tlb_flush`, how often
    /// all vCPUs had to drop their translations, for a slot or a dirty log.  Any thread.
    [[nodiscard]] std::vector<Statistic> statistics() const;

    /// Where timers of this VM expire, for devices that need one too.
    [[nodiscard]] EventLoop& event_loop() const noexcept;

    /// KVM_GET_CLOCK: kvmclock in nanoseconds.
    [[nodiscard]] std::uint64_t clock_ns() const noexcept;
    /// KVM_SET_CLOCK.
    void set_clock_ns(std::uint64_t now) noexcept;

private:
    std::shared_ptr<core::VmCore> core_;
};

}  // namespace vmm
