// SPDX-License-Identifier: Apache-2.0

/// @file
/// The I/O APIC: 24 pins, version 0x11, as KVM's.  82093AA I/O APIC datasheet.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

#include "vmm/x86/irqchip_state.hpp"
#include "x86/irqchip/apic_bus.hpp"

namespace vmm::x86::irqchip {

/// The answer to a change of an interrupt line, as KVM_IRQ_LINE_STATUS gives it.
inline constexpr int irq_masked = -1;    ///< Nobody listens.
inline constexpr int irq_coalesced = 0;  ///< The interrupt before is still pending.

/// An I/O APIC.
///
/// Lock order: this one's, then a local APIC's (messages go out under it, so that remote IRR and
/// delivery are one step).  A local APIC calls `end_of_interrupt` without its lock.
///
/// Thread safety: every member from any thread.
class IoApic final {
public:
    static constexpr std::uint64_t default_base = 0xfec0'0000;
    static constexpr std::uint64_t size_bytes = 0x100;
    static constexpr std::uint32_t pin_count = ioapic_pin_count;

    explicit IoApic(ApicBus& bus) noexcept;

    /// Drives a pin.  It is high as long as one of the sources (0 to 63) drives it; polarity is
    /// ignored, as in KVM: high is active.
    ///
    /// @return `irq_masked`, `irq_coalesced`, or the number of CPUs reached; 1 for a falling line.
    int set_line(std::uint32_t pin, unsigned source, bool level) noexcept;

    /// @return the pins, a bit each, whose interrupt has ended.
    std::uint32_t end_of_interrupt(std::uint8_t vector, bool level_triggered) noexcept;
    /// Whether an entry of the redirection table has this vector.  Takes no lock.
    [[nodiscard]] bool has_vector(std::uint8_t vector) const noexcept
    {
        constexpr unsigned bits = 64;
        // Acquire: pairs with the release in update_vectors_locked(); an interrupt that went out
        // has its vector in the set.
        return (vectors_[vector / bits].load(std::memory_order_acquire) >> vector % bits & 1U) !=
               0U;
    }

    /// The register window; any offset and size is answered.
    void read(std::uint64_t offset, std::span<std::byte> data) noexcept;
    void write(std::uint64_t offset, std::span<const std::byte> data) noexcept;

    [[nodiscard]] IoApicState state() const noexcept;
    /// Interrupts that were pending in the state are delivered.
    void set_state(const IoApicState& state) noexcept;
    /// RESET: all pins masked.
    void reset() noexcept;

private:
    [[nodiscard]] std::uint32_t read_register_locked() const noexcept;
    void write_register_locked(std::uint32_t value) noexcept;
    void write_redirection_locked(std::uint32_t pin, bool high, std::uint32_t value) noexcept;
    int service_locked(std::uint32_t pin) noexcept;
    void update_vectors_locked() noexcept;

    ApicBus& bus_;
    mutable std::mutex mutex_;
    std::uint32_t select_{};
    std::uint32_t id_{};
    std::uint32_t irr_{};            // Levels of the pins.
    std::uint32_t irr_delivered_{};  // Edges that have gone out while the line is still high.
    std::array<std::uint64_t, pin_count> table_{};
    std::array<std::uint64_t, pin_count> sources_{};  // A bit for each that drives the pin.
    // Vectors in the table, so that other vectors' EOIs need no lock.  Written under it.
    std::array<std::atomic<std::uint64_t>, 4> vectors_{};
};

}  // namespace vmm::x86::irqchip
