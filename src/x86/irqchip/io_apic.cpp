// SPDX-License-Identifier: Apache-2.0

#include "x86/irqchip/io_apic.hpp"

#include <algorithm>

namespace vmm::x86::irqchip {
namespace {

constexpr std::uint64_t register_select = 0x00;
constexpr std::uint64_t register_window = 0x10;

constexpr std::uint32_t index_id = 0;
constexpr std::uint32_t index_version = 1;
constexpr std::uint32_t index_arbitration = 2;
constexpr std::uint32_t index_redirection = 0x10;

constexpr std::uint64_t entry_logical = 1U << 11U;
constexpr std::uint64_t entry_delivery_status = 1U << 12U;
constexpr std::uint64_t entry_remote_irr = 1U << 14U;
constexpr std::uint64_t entry_level = 1U << 15U;
constexpr std::uint64_t entry_masked = 1U << 16U;
constexpr std::uint64_t entry_read_only = entry_delivery_status | entry_remote_irr;
constexpr std::uint64_t entry_defined = 0xff00'0000'0001'ffff;

constexpr bool has(std::uint64_t entry, std::uint64_t flag) noexcept
{
    return (entry & flag) != 0U;
}

}  // namespace

IoApic::IoApic(ApicBus& bus) noexcept : bus_{bus}
{
    reset();
}

void IoApic::reset() noexcept
{
    const std::lock_guard lock{mutex_};
    select_ = 0;
    id_ = 0;
    irr_ = 0;
    irr_delivered_ = 0;
    table_.fill(entry_masked);
    sources_.fill(0);
    update_vectors_locked();
}

int IoApic::set_line(std::uint32_t pin, unsigned source, bool level) noexcept
{
    if (pin >= pin_count) {
        return irq_masked;
    }
    const std::lock_guard lock{mutex_};
    const std::uint64_t source_bit = std::uint64_t{1} << (source & 63U);
    sources_[pin] = level ? sources_[pin] | source_bit : sources_[pin] & ~source_bit;

    const std::uint32_t bit = 1U << pin;
    if (sources_[pin] == 0U) {
        irr_ &= ~bit;
        return 1;
    }
    const bool was_high = has(irr_, bit);
    irr_ |= bit;
    if (!has(table_[pin], entry_level)) {
        if (was_high) {
            return irq_coalesced;
        }
        irr_delivered_ &= ~bit;
    } else if (has(table_[pin], entry_remote_irr) && !has(table_[pin], entry_masked)) {
        return irq_coalesced;
    }
    return service_locked(pin);
}

int IoApic::service_locked(std::uint32_t pin) noexcept
{
    std::uint64_t& entry = table_[pin];
    const bool level = has(entry, entry_level);
    if (has(entry, entry_masked) || (level && has(entry, entry_remote_irr))) {
        return irq_masked;
    }
    InterruptMessage message;
    message.destination = static_cast<std::uint32_t>(entry >> 56U);
    message.vector = static_cast<std::uint8_t>(entry);
    message.mode = static_cast<DeliveryMode>((entry >> 8U) & 7U);
    message.logical = has(entry, entry_logical);
    message.level_triggered = level;
    if (!level) {
        irr_delivered_ |= 1U << pin;
    }
    const int reached = bus_.deliver(message, nullptr);
    if (level && reached > 0) {
        entry |= entry_remote_irr;
    }
    return reached;
}

std::uint32_t IoApic::end_of_interrupt(std::uint8_t vector, bool level_triggered) noexcept
{
    if (!has_vector(vector)) {
        return 0;
    }
    const std::lock_guard lock{mutex_};
    std::uint32_t ended = 0;
    for (std::uint32_t pin = 0; pin < pin_count; ++pin) {
        std::uint64_t& entry = table_[pin];
        if ((entry & 0xffU) != vector) {
            continue;
        }
        ended |= 1U << pin;
        if (!level_triggered || !has(entry, entry_level)) {
            continue;
        }
        entry &= ~entry_remote_irr;
        if (has(irr_, 1U << pin)) {
            service_locked(pin);
        }
    }
    return ended;
}

void IoApic::update_vectors_locked() noexcept
{
    std::array<std::uint64_t, 4> vectors{};
    for (const std::uint64_t entry : table_) {
        const std::uint64_t vector = entry & 0xffU;
        vectors[vector / 64U] |= std::uint64_t{1} << (vector % 64U);
    }
    for (std::size_t i = 0; i < vectors.size(); ++i) {
        vectors_[i].store(vectors[i], std::memory_order_release);
    }
}

std::uint32_t IoApic::read_register_locked() const noexcept
{
    constexpr std::uint32_t version = 0x11;
    if (select_ == index_version) {
        return ((pin_count - 1U) << 16U) | version;
    }
    if (select_ == index_id || select_ == index_arbitration) {
        return id_ << 24U;
    }
    if (select_ >= index_redirection && (select_ - index_redirection) / 2U < pin_count) {
        const std::uint64_t entry = table_[(select_ - index_redirection) / 2U];
        return static_cast<std::uint32_t>((select_ & 1U) != 0U ? entry >> 32U : entry);
    }
    return ~0U;
}

void IoApic::write_register_locked(std::uint32_t value) noexcept
{
    if (select_ == index_id) {
        id_ = (value >> 24U) & 0xfU;
    } else if (select_ >= index_redirection && (select_ - index_redirection) / 2U < pin_count) {
        write_redirection_locked((select_ - index_redirection) / 2U, (select_ & 1U) != 0U, value);
    }
}

void IoApic::write_redirection_locked(std::uint32_t pin, bool high, std::uint32_t value) noexcept
{
    std::uint64_t& entry = table_[pin];
    const std::uint64_t kept = entry & entry_read_only;
    entry = high ? (entry & 0xffff'ffffU) | (std::uint64_t{value} << 32U)
                 : (entry & ~std::uint64_t{0xffff'ffff}) | value;
    entry = (entry & entry_defined & ~entry_read_only) | kept;
    if (!has(entry, entry_level)) {
        // Guests clear a stuck remote IRR by making the pin edge-triggered for a moment.
        entry &= ~entry_remote_irr;
    }
    update_vectors_locked();
    // A level that was masked until now goes out; an edge is gone.
    if (has(entry, entry_level) && has(irr_, 1U << pin)) {
        service_locked(pin);
    }
}

void IoApic::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    std::uint32_t value = 0;
    {
        const std::lock_guard lock{mutex_};
        if (offset % size_bytes == register_select) {
            value = select_;
        } else if (offset % size_bytes == register_window) {
            value = read_register_locked();
        }
    }
    for (std::size_t i = 0; i < data.size(); ++i) {
        data[i] = i < sizeof value ? static_cast<std::byte>(value >> (8U * i)) : std::byte{};
    }
}

void IoApic::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    // Shorter accesses count as zero-extended, of longer ones the low half.
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < std::min(data.size(), sizeof value); ++i) {
        value |= std::to_integer<std::uint32_t>(data[i]) << (8U * i);
    }
    const std::lock_guard lock{mutex_};
    if (offset % size_bytes == register_select) {
        select_ = value & 0xffU;
    } else if (offset % size_bytes == register_window) {
        write_register_locked(value);
    }
}

IoApicState IoApic::state() const noexcept
{
    const std::lock_guard lock{mutex_};
    IoApicState state;
    state.ioregsel = select_;
    state.id = id_;
    // An edge that has gone out must not do so again where this is restored.
    state.irr = irr_ & ~irr_delivered_;
    state.redirection_table = table_;
    return state;
}

void IoApic::set_state(const IoApicState& state) noexcept
{
    const std::lock_guard lock{mutex_};
    select_ = state.ioregsel & 0xffU;
    id_ = state.id & 0xfU;
    irr_ = 0;
    irr_delivered_ = 0;
    for (std::size_t pin = 0; pin < table_.size(); ++pin) {
        table_[pin] = state.redirection_table[pin] & entry_defined;
    }
    update_vectors_locked();
    for (std::uint32_t pin = 0; pin < pin_count; ++pin) {
        if (has(state.irr, 1U << pin)) {
            irr_ |= 1U << pin;
            service_locked(pin);
        }
    }
}

}  // namespace vmm::x86::irqchip
