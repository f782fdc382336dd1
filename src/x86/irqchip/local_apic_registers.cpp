// SPDX-License-Identifier: Apache-2.0

// The local APIC's registers as the guest reads and writes them: the page, and x2APIC's MSRs.

#include <algorithm>
#include <array>
#include <cstring>

#include "x86/irqchip/local_apic.hpp"
#include "x86/irqchip/local_apic_bits.hpp"

namespace vmm::x86::irqchip {
namespace {

using Reg = LapicRegister;

}  // namespace

// --- The register page.

std::optional<std::uint32_t> LocalApic::read_register_locked(std::uint32_t offset) noexcept
{
    if (apic::is_bitmap(offset)) {
        return regs_[offset >> 4U];
    }
    const auto r = static_cast<Reg>(offset);
    switch (r) {
    case Reg::CurrentCount: return current_count_locked();
    case Reg::Apr: return is_x2apic() ? std::nullopt : std::optional{0U};
    case Reg::Dfr:
        if (is_x2apic()) {
            return std::nullopt;
        }
        return reg(r);
    case Reg::Id:
    case Reg::Version:
    case Reg::Tpr:
    case Reg::Ppr:
    case Reg::Ldr:
    case Reg::Svr:
    case Reg::Esr:
    case Reg::IcrLow:
    case Reg::IcrHigh:
    case Reg::LvtTimer:
    case Reg::LvtThermal:
    case Reg::LvtPerformance:
    case Reg::LvtLint0:
    case Reg::LvtLint1:
    case Reg::LvtError:
    case Reg::InitialCount:
    case Reg::DivideConfiguration: return reg(r);
    case Reg::Eoi:
    case Reg::SelfIpi: break;  // Write-only.
    case Reg::Isr:
    case Reg::Tmr:
    case Reg::Irr: break;  // Answered above.
    }
    return std::nullopt;
}

bool LocalApic::write_register_locked(std::uint32_t offset,
                                      std::uint32_t value,
                                      Effects& effects) noexcept
{
    const auto r = static_cast<Reg>(offset);
    switch (r) {
    case Reg::Tpr: reg(r) = value & 0xffU; return true;
    case Reg::Eoi: end_of_interrupt_locked(effects); return true;
    case Reg::Svr: write_svr_locked(value); return true;
    case Reg::IcrLow: write_icr_locked(value, reg(Reg::IcrHigh), effects); return true;
    case Reg::LvtTimer:
    case Reg::LvtThermal:
    case Reg::LvtPerformance:
    case Reg::LvtLint0:
    case Reg::LvtLint1:
    case Reg::LvtError: write_lvt_locked(r, value); return true;
    case Reg::InitialCount:
        if (timer_mode_ != TimerMode::TscDeadline) {
            reg(r) = value;
            start_timer_locked();
        }
        return true;
    case Reg::DivideConfiguration: write_divide_locked(value); return true;
    case Reg::Id:
    case Reg::Ldr:
    case Reg::Dfr:
    case Reg::IcrHigh:
    case Reg::Esr:
    case Reg::SelfIpi: return write_mode_dependent_locked(r, value, effects);
    case Reg::Version:
    case Reg::Apr:
    case Reg::Ppr:
    case Reg::Isr:
    case Reg::Tmr:
    case Reg::Irr:
    case Reg::CurrentCount: break;  // Read-only.
    }
    return false;
}

bool LocalApic::write_mode_dependent_locked(Reg r, std::uint32_t value, Effects& effects) noexcept
{
    if (r == Reg::Esr) {
        if (is_x2apic() && value != 0U) {
            return false;
        }
        // "A write to the ESR … updates the register with the errors since the last write."
        reg(Reg::Esr) = std::exchange(pending_errors_, 0U);
        return true;
    }
    if (r == Reg::SelfIpi) {
        if (!is_x2apic() || (value & ~0xffU) != 0U) {
            return false;
        }
        constexpr std::uint32_t shorthand_self = 1U << 18U;
        const std::uint32_t icr = reg(Reg::IcrLow);
        const std::uint32_t icr_high = reg(Reg::IcrHigh);
        write_icr_locked(shorthand_self | value, 0, effects);
        reg(Reg::IcrLow) = icr;
        reg(Reg::IcrHigh) = icr_high;
        return true;
    }
    if (is_x2apic()) {
        return false;
    }
    if (r == Reg::Id) {
        reg(r) = value & 0xff00'0000U;
        if ((value >> 24U) != (initial_id_ & 0xffU)) {
            bus_.ids_changed();
        }
    } else if (r == Reg::Dfr) {
        reg(r) = value | 0x0fff'ffffU;
    } else {
        reg(r) = value & 0xff00'0000U;  // LDR and ICR's high half.
    }
    return true;
}

std::uint32_t LocalApic::writable_locked(Reg r) const noexcept
{
    switch (r) {
    case Reg::Svr: {
        const bool directed = (reg(Reg::Version) & apic::version_suppress_eoi_broadcast) != 0U;
        return 0x3ffU | (directed ? apic::svr_suppress_eoi_broadcast : 0U);
    }
    case Reg::LvtTimer: return 0x3'00ffU | (features_.tsc_deadline ? 1U << 18U : 0U);
    case Reg::LvtLint0:
    case Reg::LvtLint1: return 0x1'a7ffU;  // Trigger mode, polarity, delivery mode.
    case Reg::LvtError: return 0x1'00ffU;
    default: return 0x1'07ffU;
    }
}

void LocalApic::write_svr_locked(std::uint32_t value) noexcept
{
    reg(Reg::Svr) = value & writable_locked(Reg::Svr);
    if (!software_enabled()) {
        // SDM Vol. 3A "Local APIC State After It Has Been Software Disabled".
        for (const Reg lvt : apic::lvt_registers) {
            reg(lvt) |= apic::lvt_masked;
        }
    }
}

void LocalApic::write_lvt_locked(Reg r, std::uint32_t value) noexcept
{
    reg(r) = (value & writable_locked(r)) | (software_enabled() ? 0U : apic::lvt_masked);
    if (r == Reg::LvtTimer) {
        update_timer_mode_locked();
    }
}

void LocalApic::write_icr_locked(std::uint32_t low, std::uint32_t high, Effects& effects) noexcept
{
    constexpr std::uint32_t delivery_status = 1U << 12U;
    low &= ~delivery_status;
    reg(Reg::IcrLow) = low;
    reg(Reg::IcrHigh) = high;

    InterruptMessage message;
    message.destination = is_x2apic() ? high : high >> 24U;
    message.vector = static_cast<std::uint8_t>(low);
    message.mode = static_cast<DeliveryMode>((low >> 8U) & 7U);
    message.logical = (low & (1U << 11U)) != 0U;
    message.asserted = (low & (1U << 14U)) != 0U;
    message.level_triggered = (low & (1U << 15U)) != 0U;
    message.shorthand = static_cast<Shorthand>((low >> 18U) & 3U);
    const bool has_vector =
        message.mode == DeliveryMode::Fixed || message.mode == DeliveryMode::LowestPriority;
    if (has_vector && message.vector < apic::first_legal_vector) {
        record_error_locked(apic::esr_send_illegal_vector);
        return;
    }
    if (has_vector && !message.level_triggered) {
        message.asserted = true;  // The level bit counts only for level-triggered ones.
    }
    effects.ipi = message;
}

void LocalApic::end_of_interrupt_locked(Effects& effects) noexcept
{
    const int highest = highest_locked(Reg::Isr);
    if (highest < 0) {
        return;
    }
    const auto vector = static_cast<std::uint8_t>(highest);
    clear_bit_locked(Reg::Isr, vector);
    const bool level = test_bit_locked(Reg::Tmr, vector);
    if (!level || (reg(Reg::Svr) & apic::svr_suppress_eoi_broadcast) == 0U) {
        effects.eoi = Eoi{vector, level};
    }
}

void LocalApic::mmio_read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    std::uint32_t value = 0;
    const std::uint64_t within = offset & 0xfU;
    Effects effects;
    {
        const std::lock_guard lock{mutex_};
        if (!hardware_enabled() || is_x2apic()) {
            // KVM, with its default quirks, lets the page lie over whatever is below.
            std::fill(data.begin(), data.end(), std::byte{0xff});
            return;
        }
        // One to four bytes within a register; anything else reads zeros.
        const bool fits = within + data.size() <= sizeof value;
        const auto read = fits && offset < page_size
                              ? read_register_locked(static_cast<std::uint32_t>(offset & ~0xfULL))
                              : std::nullopt;
        if (!read && fits) {
            record_error_locked(apic::esr_illegal_register);
            effects.kick = update_locked();
        }
        value = read.value_or(0U) >> (8U * static_cast<unsigned>(fits ? within : 0U));
    }
    for (std::size_t i = 0; i < data.size(); ++i) {
        data[i] = i < sizeof value ? static_cast<std::byte>(value >> (8U * i)) : std::byte{};
    }
    perform(effects);
}

void LocalApic::mmio_write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    // SDM Vol. 3A: registers are written with 32-bit accesses to 128-bit boundaries; KVM ignores
    // all others.
    if (data.size() != sizeof(std::uint32_t) || (offset & 0xfU) != 0U || offset >= page_size) {
        return;
    }
    std::uint32_t value = 0;
    std::memcpy(&value, data.data(), sizeof value);
    Effects effects;
    {
        const std::lock_guard lock{mutex_};
        if (!hardware_enabled() || is_x2apic()) {
            return;
        }
        if (!write_register_locked(static_cast<std::uint32_t>(offset), value, effects)) {
            record_error_locked(apic::esr_illegal_register);
        }
        effects.kick = update_locked();
    }
    perform(effects);
}

// --- MSRs.

bool LocalApic::read_msr(std::uint32_t index, std::uint64_t& value) noexcept
{
    const std::lock_guard lock{mutex_};
    if (index == apic::msr_tsc_deadline) {
        value = timer_mode_ == TimerMode::TscDeadline ? tsc_deadline_ : 0U;
        return features_.tsc_deadline;
    }
    if (index < apic::msr_x2apic_first || index > apic::msr_x2apic_last || !is_x2apic()) {
        return false;
    }
    const std::uint32_t offset = (index - apic::msr_x2apic_first) << 4U;
    const auto r = static_cast<Reg>(offset);
    if (r == Reg::IcrHigh) {
        return false;
    }
    const auto read = read_register_locked(offset);
    if (!read) {
        return false;
    }
    value = *read;
    if (r == Reg::IcrLow) {
        value |= static_cast<std::uint64_t>(reg(Reg::IcrHigh)) << 32U;
    }
    return true;
}

void LocalApic::write_deadline_locked(std::uint64_t value, Effects& effects) noexcept
{
    if (!hardware_enabled() || timer_mode_ != TimerMode::TscDeadline) {
        return;
    }
    tsc_deadline_ = value;
    start_timer_locked();
    if (timer_active_ && timer_target_ns_ <= timers_.now_ns()) {
        // It is over: the interrupt comes behind this very instruction.
        timer_->cancel();
        expire_locked(effects);
    }
}

/// @pre in x2APIC mode, `index` is one of its MSRs
bool LocalApic::write_x2apic_locked(std::uint32_t index,
                                    std::uint64_t value,
                                    Effects& effects) noexcept
{
    constexpr std::uint32_t icr_reserved = 0xfff3'2000;
    const auto low = static_cast<std::uint32_t>(value);
    const auto high = static_cast<std::uint32_t>(value >> 32U);
    const std::uint32_t offset = (index - apic::msr_x2apic_first) << 4U;
    const auto r = static_cast<Reg>(offset);
    if (r == Reg::IcrLow) {
        if ((low & icr_reserved) != 0U) {
            return false;
        }
        write_icr_locked(low, high, effects);
        return true;
    }
    return high == 0U && (r != Reg::Eoi || low == 0U) &&
           write_register_locked(offset, low, effects);
}

bool LocalApic::write_msr(std::uint32_t index, std::uint64_t value) noexcept
{
    Effects effects;
    {
        const std::lock_guard lock{mutex_};
        if (index == apic::msr_tsc_deadline && features_.tsc_deadline) {
            write_deadline_locked(value, effects);
        } else if (index < apic::msr_x2apic_first || index > apic::msr_x2apic_last ||
                   !is_x2apic() || !write_x2apic_locked(index, value, effects)) {
            return false;
        }
        effects.kick = update_locked();
    }
    perform(effects);
    return true;
}

}  // namespace vmm::x86::irqchip
