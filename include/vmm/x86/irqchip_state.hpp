// SPDX-License-Identifier: Apache-2.0

/// @file
/// State of the in-library interrupt controllers, as KVM_GET_LAPIC, KVM_GET_IRQCHIP and
/// KVM_GET_PIT2 give it, and the entries of the GSI routing table.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "vmm/address.hpp"

namespace vmm::x86::irqchip {

/// Offsets into the local APIC's register page.  SDM Vol. 3A "Local APIC Register Address Map".
enum class LapicRegister : std::uint16_t {
    Id = 0x020,
    Version = 0x030,
    Tpr = 0x080,
    Apr = 0x090,
    Ppr = 0x0a0,
    Eoi = 0x0b0,
    Ldr = 0x0d0,
    Dfr = 0x0e0,
    Svr = 0x0f0,
    Isr = 0x100,  ///< The first of eight.
    Tmr = 0x180,  ///< The first of eight.
    Irr = 0x200,  ///< The first of eight.
    Esr = 0x280,
    IcrLow = 0x300,
    IcrHigh = 0x310,
    LvtTimer = 0x320,
    LvtThermal = 0x330,
    LvtPerformance = 0x340,
    LvtLint0 = 0x350,
    LvtLint1 = 0x360,
    LvtError = 0x370,
    InitialCount = 0x380,
    CurrentCount = 0x390,
    DivideConfiguration = 0x3e0,
    SelfIpi = 0x3f0,
};

/// A local APIC's register page (struct kvm_lapic_state).
///
/// In x2APIC mode the ID register holds the 32-bit id, as KVM has it with
/// KVM_X2APIC_API_USE_32BIT_IDS, and ICR's high half stands at `IcrHigh`.
struct LapicState {
    std::array<std::uint8_t, 1024> regs{};

    /// The 32-bit register at `reg`.
    [[nodiscard]] constexpr std::uint32_t get(LapicRegister reg) const noexcept
    {
        const auto at = static_cast<std::size_t>(reg);
        std::uint32_t value = 0;
        for (std::size_t i = 0; i < 4; ++i) {
            value |= static_cast<std::uint32_t>(regs[at + i]) << (8U * i);
        }
        return value;
    }
    constexpr void set(LapicRegister reg, std::uint32_t value) noexcept
    {
        const auto at = static_cast<std::size_t>(reg);
        for (std::size_t i = 0; i < 4; ++i) {
            regs[at + i] = static_cast<std::uint8_t>(value >> (8U * i));
        }
    }

    friend bool operator==(const LapicState&, const LapicState&) noexcept = default;
};

/// One 8259A (struct kvm_pic_state).
struct PicState {
    std::uint8_t last_irr{};  ///< Input levels, for edge detection.
    std::uint8_t irr{};
    std::uint8_t imr{};
    std::uint8_t isr{};
    std::uint8_t priority_add{};  ///< The input with the highest priority.
    std::uint8_t irq_base{};      ///< Vector of input 0.
    std::uint8_t read_reg_select{};
    std::uint8_t poll{};
    std::uint8_t special_mask{};
    std::uint8_t init_state{};  ///< 0, or the number of the ICW expected (2 to 4), less one.
    std::uint8_t auto_eoi{};
    std::uint8_t rotate_on_auto_eoi{};
    std::uint8_t special_fully_nested_mode{};
    std::uint8_t init4{};  ///< ICW4 will come.
    std::uint8_t elcr{};   ///< Inputs that are level-triggered.
    std::uint8_t elcr_mask{};

    friend bool operator==(const PicState&, const PicState&) noexcept = default;
};

inline constexpr std::size_t ioapic_pin_count = 24;

/// The I/O APIC (struct kvm_ioapic_state).
struct IoApicState {
    std::uint64_t base_address{0xfec0'0000};
    std::uint32_t ioregsel{};
    std::uint32_t id{};
    std::uint32_t irr{};  ///< Levels of the inputs.
    std::uint32_t pad{};
    std::array<std::uint64_t, ioapic_pin_count> redirection_table{};

    friend bool operator==(const IoApicState&, const IoApicState&) noexcept = default;
};

/// One counter of the 8254 (struct kvm_pit_channel_state).
struct PitChannelState {
    std::uint32_t count{};  ///< Reload value, 1 to 65536.
    std::uint16_t latched_count{};
    std::uint8_t count_latched{};
    std::uint8_t status_latched{};
    std::uint8_t status{};
    std::uint8_t read_state{};
    std::uint8_t write_state{};
    std::uint8_t write_latch{};
    std::uint8_t rw_mode{};
    std::uint8_t mode{};
    std::uint8_t bcd{};
    std::uint8_t gate{};
    std::int64_t count_load_time{};  ///< Host nanoseconds; ignored when set: counting restarts.

    friend bool operator==(const PitChannelState&, const PitChannelState&) noexcept = default;
};

/// The 8254 (struct kvm_pit_state2).
struct PitState {
    std::array<PitChannelState, 3> channels{};
    std::uint32_t flags{};  ///< `pit_speaker_data_on` or 0.

    friend bool operator==(const PitState&, const PitState&) noexcept = default;
};

inline constexpr std::uint32_t pit_speaker_data_on = 2;

/// KVM_IRQCHIP_…
enum class ChipId : std::uint32_t { PicMaster = 0, PicSlave = 1, IoApic = 2 };

/// KVM_IRQ_ROUTING_…
enum class GsiRouteType : std::uint32_t { Irqchip = 1, Msi = 2 };

/// Where a GSI leads (struct kvm_irq_routing_entry).  A GSI may lead to several irqchip pins, on
/// different chips, or to one MSI.
struct GsiRoute {
    std::uint32_t gsi{};
    GsiRouteType type{GsiRouteType::Irqchip};
    ChipId chip{};             ///< `Irqchip`.
    std::uint32_t pin{};       ///< `Irqchip`: 0 to 7 for a PIC, 0 to 23 for the I/O APIC.
    Gpa msi_address{};         ///< `Msi`.
    std::uint32_t msi_data{};  ///< `Msi`.

    friend bool operator==(const GsiRoute&, const GsiRoute&) noexcept = default;
};

/// A route to a pin.
[[nodiscard]] constexpr GsiRoute pin_route(std::uint32_t gsi,
                                           ChipId chip,
                                           std::uint32_t pin) noexcept
{
    return {gsi, GsiRouteType::Irqchip, chip, pin, Gpa{}, 0};
}
/// A route to a message.
[[nodiscard]] constexpr GsiRoute msi_route(std::uint32_t gsi,
                                           Gpa address,
                                           std::uint32_t data) noexcept
{
    return {gsi, GsiRouteType::Msi, ChipId{}, 0, address, data};
}

static_assert(sizeof(LapicState) == 1024 && sizeof(PicState) == 16 &&
              sizeof(PitChannelState) == 24);
static_assert(sizeof(IoApicState) == 24 + 8 * ioapic_pin_count);
static_assert(std::is_trivially_copyable_v<LapicState> && std::is_trivially_copyable_v<PicState> &&
              std::is_trivially_copyable_v<IoApicState> && std::is_trivially_copyable_v<PitState>);

}  // namespace vmm::x86::irqchip
