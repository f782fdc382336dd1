// SPDX-License-Identifier: Apache-2.0

/// @file
/// Bits of the local APIC's registers.  SDM Vol. 3A "Advanced Programmable Interrupt Controller".

#pragma once

#include <array>
#include <cstdint>

#include "vmm/x86/irqchip_state.hpp"

namespace vmm::x86::irqchip::apic {

inline constexpr std::uint64_t base_bootstrap = 1U << 8U;
inline constexpr std::uint64_t base_x2apic = 1U << 10U;
inline constexpr std::uint64_t base_enable = 1U << 11U;
inline constexpr std::uint64_t base_reserved = 0x2ff;

inline constexpr std::uint32_t svr_enable = 1U << 8U;
inline constexpr std::uint32_t svr_suppress_eoi_broadcast = 1U << 12U;
inline constexpr std::uint32_t version_suppress_eoi_broadcast = 1U << 24U;
inline constexpr std::uint32_t lvt_masked = 1U << 16U;
inline constexpr std::uint32_t lvt_level = 1U << 15U;
inline constexpr std::uint32_t lint0_ext_int = 7U << 8U;

// SDM Vol. 3A "Error Status Register (ESR)".
inline constexpr std::uint32_t esr_send_illegal_vector = 1U << 5U;
inline constexpr std::uint32_t esr_receive_illegal_vector = 1U << 6U;
inline constexpr std::uint32_t esr_illegal_register = 1U << 7U;

inline constexpr std::uint8_t first_legal_vector = 16;

// What a bus thread must know to match a destination.
inline constexpr std::uint32_t match_hardware_enabled = 1;
inline constexpr std::uint32_t match_software_enabled = 2;
inline constexpr std::uint32_t match_x2apic = 4;
inline constexpr std::uint32_t match_flat = 8;
inline constexpr std::uint32_t match_cluster = 16;

inline constexpr std::uint32_t msr_tsc_deadline = 0x6e0;
inline constexpr std::uint32_t msr_x2apic_first = 0x800;
inline constexpr std::uint32_t msr_x2apic_last = 0x83f;

inline constexpr std::array lvt_registers{LapicRegister::LvtTimer,       LapicRegister::LvtThermal,
                                          LapicRegister::LvtPerformance, LapicRegister::LvtLint0,
                                          LapicRegister::LvtLint1,       LapicRegister::LvtError};

constexpr bool is_bitmap(std::uint32_t offset) noexcept
{
    return offset >= 0x100 && offset < 0x280;
}

constexpr bool is_x2apic_base(std::uint64_t base) noexcept
{
    return (base & base_x2apic) != 0U;
}

constexpr bool is_enabled_base(std::uint64_t base) noexcept
{
    return (base & base_enable) != 0U;
}

/// SDM Vol. 3A "Deriving Logical x2APIC ID from the Local x2APIC ID".
constexpr std::uint32_t x2apic_logical_id(std::uint32_t id) noexcept
{
    return ((id >> 4U) << 16U) | (1U << (id & 0xfU));
}

}  // namespace vmm::x86::irqchip::apic
