// SPDX-License-Identifier: Apache-2.0

/// @file
/// The interrupt controllers that a VM owns.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/bus/device.hpp"
#include "vmm/result.hpp"
#include "vmm/timer.hpp"
#include "vmm/x86/irqchip_state.hpp"
#include "x86/irqchip/apic_bus.hpp"
#include "x86/irqchip/io_apic.hpp"
#include "x86/irqchip/local_apic.hpp"
#include "x86/irqchip/pic.hpp"
#include "x86/irqchip/routing.hpp"

namespace vmm::x86::irqchip {

class Pit;

/// Sources of a shared level, as `Irqchip::set_line` takes them.
inline constexpr unsigned irq_source_user = 0;
inline constexpr unsigned irq_source_resample = 1;
inline constexpr unsigned irq_source_pit = 2;

/// PIC pair, I/O APIC and local APICs, wired together.
///
/// Lock order: I/O APIC, local APIC, timer.  The PIC's, the PIT's and the routing table's locks
/// are leaves, and so is `mutex_`.  Ack notifiers and the EOI hook are called without any lock, on
/// the thread that caused them; they may call back into any member.
///
/// Thread safety: every member from any thread, unless it says otherwise.
class Irqchip final : private EoiListener, private PicListener {
public:
    using AckNotifier = std::function<void()>;
    using EoiHook = std::function<void(std::uint32_t vcpu_id, std::uint8_t vector)>;

    /// @param timers  Must outlive the irqchip.
    explicit Irqchip(TimerService& timers, IrqchipMode mode = IrqchipMode::Full);
    Irqchip(const Irqchip&) = delete;
    Irqchip& operator=(const Irqchip&) = delete;
    Irqchip(Irqchip&&) = delete;
    Irqchip& operator=(Irqchip&&) = delete;
    /// @pre no vCPU runs, and no local APIC is used any more
    ~Irqchip() override;

    [[nodiscard]] IrqchipMode mode() const noexcept { return mode_; }

    // --- Local APICs.

    /// A local APIC for the vCPU with this id, in its reset state.  Null if the id is 4096 or
    /// more, or in use.  Not to be used after the irqchip is gone.
    [[nodiscard]] std::shared_ptr<LocalApic> create_lapic(std::uint32_t id,
                                                          VcpuSink& sink,
                                                          TscClock tsc);
    /// Takes it off the bus; when this returns, its sink is not called any more.
    void remove_lapic(std::uint32_t id) noexcept;
    /// Null if there is none.
    [[nodiscard]] LocalApic* lapic(std::uint32_t id) const noexcept { return bus_.find(id); }

    // --- The guest's accesses.

    /// Whether accesses of the vCPU to `gpa` may be answered.
    [[nodiscard]] bool is_mmio(std::uint32_t vcpu_id, Gpa gpa) const noexcept;
    /// An access by a vCPU to its local APIC's page or to the I/O APIC.  False: neither is there.
    [[nodiscard]] bool mmio_read(std::uint32_t vcpu_id,
                                 Gpa gpa,
                                 std::span<std::byte> data) noexcept;
    [[nodiscard]] bool mmio_write(std::uint32_t vcpu_id,
                                  Gpa gpa,
                                  std::span<const std::byte> data) noexcept;
    /// An access to the PIC's ports (0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1).  False: it is none.
    [[nodiscard]] bool port_read(Port port, std::span<std::byte> data) noexcept;
    [[nodiscard]] bool port_write(Port port, std::span<const std::byte> data) noexcept;
    /// The PIC pair as a device, whose offset 0 is port 0x20; null in split mode.
    [[nodiscard]] std::shared_ptr<bus::DeviceBase> pic_device() const noexcept { return pic_; }

    // --- Interrupts.

    /// KVM_IRQ_LINE_STATUS.  @param source  0 to 63; a line is high while any source drives it.
    ///
    /// @return below 0 masked or led nowhere, 0 coalesced, above 0 the number of CPUs reached.
    int set_line(std::uint32_t gsi, unsigned source, bool level) noexcept;

    /// Raises and lowers a GSI, by the same routes even if they change meanwhile: a line that was
    /// raised by routes of before would stay up, and have no edge any more.
    void pulse(std::uint32_t gsi, unsigned source) noexcept;

    /// KVM_SIGNAL_MSI.
    ///
    /// @return the number of CPUs reached; 0 if the guest blocks it or it is for no CPU.
    int signal_msi(Gpa address, std::uint32_t data) noexcept;

    /// The hypercall KVM_HC_SEND_IPI: what `icr` says, to the APICs `first_id` + i for each bit i
    /// of the bitmap of two words of `word_bits` bits.
    ///
    /// @return the number of CPUs reached; -EINVAL for an `icr` with a destination of its own.
    std::int64_t send_ipis(const std::array<std::uint64_t, 2>& bitmap,
                           unsigned word_bits,
                           std::uint32_t first_id,
                           std::uint64_t icr) noexcept;

    /// The hypercall KVM_HC_KICK_CPU: ends the HLT of the vCPU with this APIC id.
    void kick_cpu(std::uint32_t apic_id) noexcept;

    /// KVM_SET_GSI_ROUTING.  EINVAL, and nothing changes, for an entry that is not valid.
    Result<void> set_routing(std::span<const GsiRoute> routes) { return routing_.replace(routes); }
    [[nodiscard]] std::vector<GsiRoute> routing() const { return routing_.all(); }

    /// `RoutingTable::has_level_message()`.
    [[nodiscard]] bool has_level_message(std::uint32_t end_gsi, std::uint8_t vector) const noexcept
    {
        return routing_.has_level_message(end_gsi, vector);
    }

    /// Calls when the guest has ended an interrupt of the GSI (resamplefd).
    /// @return a number for `remove_ack_notifier`.
    std::uint64_t add_ack_notifier(std::uint32_t gsi, AckNotifier notifier);
    /// A call that is on its way may still come.
    void remove_ack_notifier(std::uint64_t number) noexcept;

    /// Split mode: called for the EOI of a level-triggered vector (KVM_EXIT_IOAPIC_EOI).  Set it
    /// before a vCPU runs.
    void set_eoi_hook(EoiHook hook) { eoi_hook_ = std::move(hook); }

    /// KVM_CREATE_PIT2: an 8254 that drives GSI 0, and gives ticks that the guest could not take
    /// in time later (KVM_REINJECT_CONTROL is on).  Attach it to its ports.
    [[nodiscard]] std::shared_ptr<Pit> create_pit();

    // --- State, as KVM_GET_IRQCHIP and KVM_SET_IRQCHIP.  Not in split mode: reads zeros.

    [[nodiscard]] PicState pic_state(ChipId chip) const noexcept;
    void set_pic_state(ChipId chip, const PicState& state) noexcept;
    [[nodiscard]] IoApicState io_apic_state() const noexcept;
    void set_io_apic_state(const IoApicState& state) noexcept;
    /// RESET of the chips; vCPUs reset their local APICs.
    void reset() noexcept;

private:
    struct Notifier {
        std::uint64_t number;
        std::uint32_t gsi;
        AckNotifier call;
    };

    void end_of_interrupt(std::uint32_t apic_id,
                          std::uint8_t vector,
                          bool level_triggered) noexcept override;
    [[nodiscard]] bool needs_eoi(std::uint8_t vector) const noexcept override
    {
        return io_apic_ != nullptr && io_apic_->has_vector(vector);
    }
    void pic_output_rose() noexcept override;
    void pic_acknowledged(std::uint16_t pins) noexcept override;
    int set_pin(const GsiRoute& route, unsigned source, bool level) noexcept;
    void notify(ChipId chip, std::uint32_t pin) noexcept;

    TimerService& timers_;
    const IrqchipMode mode_;
    const std::shared_ptr<Pic> pic_;  // Null in split mode.
    ApicBus bus_;
    const std::unique_ptr<IoApic> io_apic_;  // Null in split mode.
    RoutingTable routing_;
    EoiHook eoi_hook_;

    std::mutex mutex_;  // All below.
    std::shared_ptr<const std::vector<Notifier>> notifiers_;
    std::uint64_t next_notifier_{1};
    std::atomic<bool> has_notifiers_{};
    std::vector<std::weak_ptr<Pit>> pits_;
    // By id.  An APIC stays when its vCPU goes: a message may be on its way to it.
    std::vector<std::shared_ptr<LocalApic>> lapics_;
};

}  // namespace vmm::x86::irqchip
