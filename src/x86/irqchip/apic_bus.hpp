// SPDX-License-Identifier: Apache-2.0

/// @file
/// What connects the local APICs with each other, the I/O APIC and the PIC.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include "vmm/address.hpp"

namespace vmm::x86::irqchip {

class LocalApic;
class Pic;

/// SDM Vol. 3A "Interrupt Command Register (ICR)".
enum class DeliveryMode : std::uint8_t {
    Fixed = 0,
    LowestPriority = 1,
    Smi = 2,
    Reserved = 3,
    Nmi = 4,
    Init = 5,
    Startup = 6,
    ExtInt = 7,
};

enum class Shorthand : std::uint8_t { None = 0, Self = 1, All = 2, Others = 3 };

/// An interrupt on its way to one or more local APICs.
struct InterruptMessage {
    std::uint32_t destination{};
    std::uint8_t vector{};
    DeliveryMode mode{};
    Shorthand shorthand{};
    bool logical{};  ///< The destination is a logical one.
    bool level_triggered{};
    bool asserted{true};      ///< Clear only for the INIT level de-assert of old.
    bool redirection_hint{};  ///< MSI: one of the destinations is enough.
};

/// Who must know about the end of an interrupt.
class EoiListener {
public:
    EoiListener() = default;
    EoiListener(const EoiListener&) = delete;
    EoiListener& operator=(const EoiListener&) = delete;
    EoiListener(EoiListener&&) = delete;
    EoiListener& operator=(EoiListener&&) = delete;
    virtual ~EoiListener() = default;

    /// A local APIC's guest has written EOI for `vector`.  Called without any lock held.
    virtual void end_of_interrupt(std::uint32_t apic_id,
                                  std::uint8_t vector,
                                  bool level_triggered) noexcept = 0;

    /// Whether the end of an edge-triggered interrupt of this vector may matter to it.  Takes no
    /// lock.
    [[nodiscard]] virtual bool needs_eoi(std::uint8_t vector) const noexcept
    {
        static_cast<void>(vector);
        return true;
    }
};

/// The set of local APICs, and delivery to those that a message is for.
///
/// Thread safety: all members from any thread; delivery takes no lock but those of the APICs that
/// accept.  An APIC that has been in the set must live as long as the bus.
class ApicBus final {
public:
    static constexpr std::uint32_t id_end = 4096;  ///< KVM's, for KVM_CAP_MAX_VCPU_ID.

    /// @param pic  Null where there is none (split irqchip).
    ApicBus(EoiListener& listener, Pic* pic) noexcept : listener_{listener}, pic_{pic} {}
    ApicBus(const ApicBus&) = delete;
    ApicBus& operator=(const ApicBus&) = delete;
    ApicBus(ApicBus&&) = delete;
    ApicBus& operator=(ApicBus&&) = delete;
    ~ApicBus() = default;

    /// @pre `id < id_end`
    void add(std::uint32_t id, LocalApic& apic) noexcept;
    void remove(std::uint32_t id) noexcept;
    /// Null if no APIC has this initial id.
    [[nodiscard]] LocalApic* find(std::uint32_t id) const noexcept;

    /// Delivers to every APIC that the message is for, or to one of them for lowest priority.
    ///
    /// @param source  The APIC that sends an IPI; null for a device's interrupt.
    /// @return the number of APICs that accepted it; -1 if it was for none that exists.
    int deliver(const InterruptMessage& message, const LocalApic* source) noexcept;

    /// Delivers a message-signalled interrupt.  Result as of `deliver`.
    int deliver_msi(Gpa address, std::uint32_t data) noexcept;

    void end_of_interrupt(std::uint32_t apic_id, std::uint8_t vector, bool level) noexcept
    {
        listener_.end_of_interrupt(apic_id, vector, level);
    }

    [[nodiscard]] bool needs_eoi(std::uint8_t vector) const noexcept
    {
        return listener_.needs_eoi(vector);
    }

    /// Whether the PIC's INTR output is up.
    [[nodiscard]] bool pic_output() const noexcept;
    /// The PIC's interrupt-acknowledge cycle; nothing if its output is down.
    [[nodiscard]] std::optional<std::uint8_t> acknowledge_pic() noexcept;
    /// The PIC's output rose: kicks the vCPUs that listen to it.
    void pic_output_rose() noexcept;

    /// A guest has changed an APIC id: from now on ids must be searched for.
    void ids_changed() noexcept { ids_are_initial_.store(false, std::memory_order_relaxed); }

private:
    int deliver_lowest_priority(const InterruptMessage& message, const LocalApic* source) noexcept;

    template <typename F>
    void for_each(F&& f) const noexcept;

    EoiListener& listener_;
    Pic* pic_;
    std::array<std::atomic<LocalApic*>, id_end> by_id_{};
    std::atomic<std::uint32_t> end_{0};  // One past the highest id that was ever in use.
    std::atomic<bool> ids_are_initial_{true};
};

/// The message that an MSI's address and data spell.  SDM Vol. 3A "Message Signalled Interrupts";
/// address bits 63:40 extend the destination, as KVM_X2APIC_API_USE_32BIT_IDS has it.
[[nodiscard]] InterruptMessage msi_message(Gpa address, std::uint32_t data) noexcept;

}  // namespace vmm::x86::irqchip
