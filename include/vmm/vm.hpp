// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual machine: guest memory, buses, interrupt controllers and virtual CPUs.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/bus/device.hpp"
#include "vmm/event_loop.hpp"
#include "vmm/export.hpp"
#include "vmm/memory/guest_memory.hpp"
#include "vmm/memory/memslots.hpp"
#include "vmm/result.hpp"
#include "vmm/vcpu.hpp"
#include "vmm/x86/irqchip_state.hpp"

namespace vmm {

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
    /// @return ENOENT if the slot does not log, EINVAL for a bad slot id.
    [[nodiscard]] Result<std::vector<std::uint64_t>> dirty_log(std::uint32_t slot);

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

    // --- Interrupts and timers.

    /// KVM_CREATE_IRQCHIP: PIC pair, I/O APIC and, for each vCPU, a local APIC, with the default
    /// routing.
    ///
    /// @return EEXIST the second time, EINVAL once a vCPU exists.
    Result<void> create_irqchip();
    /// KVM_CREATE_PIT2: an 8254 with the speaker gate at port 0x61.
    ///
    /// @return EEXIST the second time, ENOENT without an irqchip.
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

    // --- vCPUs.

    /// KVM_CREATE_VCPU.  `id` is also the APIC id; id 0 is the bootstrap processor.
    ///
    /// @return EEXIST for an id in use, EINVAL for one of 1,024 or more.
    [[nodiscard]] Result<Vcpu> create_vcpu(std::uint32_t id);

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
