// SPDX-License-Identifier: Apache-2.0

#include "x86/irqchip/apic_bus.hpp"

#include <algorithm>

#include "x86/irqchip/local_apic.hpp"
#include "x86/irqchip/pic.hpp"

namespace vmm::x86::irqchip {

template <typename F>
void ApicBus::for_each(F&& f) const noexcept
{
    // Pairs with the release in add(): an id below `end_` has its pointer visible.
    const std::uint32_t end = end_.load(std::memory_order_acquire);
    for (std::uint32_t id = 0; id < end; ++id) {
        if (LocalApic* apic = by_id_[id].load(std::memory_order_acquire)) {
            f(*apic);
        }
    }
}

void ApicBus::add(std::uint32_t id, LocalApic& apic) noexcept
{
    VMM_ASSERT(id < id_end);
    by_id_[id].store(&apic, std::memory_order_release);
    std::uint32_t end = end_.load(std::memory_order_relaxed);
    while (end <= id && !end_.compare_exchange_weak(end, id + 1, std::memory_order_release)) {
    }
}

void ApicBus::remove(std::uint32_t id) noexcept
{
    if (id < id_end) {
        by_id_[id].store(nullptr, std::memory_order_release);
    }
}

LocalApic* ApicBus::find(std::uint32_t id) const noexcept
{
    return id < id_end ? by_id_[id].load(std::memory_order_acquire) : nullptr;
}

int ApicBus::deliver(const InterruptMessage& message, const LocalApic* source) noexcept
{
    if (message.mode == DeliveryMode::LowestPriority || message.redirection_hint) {
        return deliver_lowest_priority(message, source);
    }
    // The common case needs no search: one physical destination, with ids as they were given.
    constexpr std::uint32_t broadcast = 0xff;
    if (message.shorthand == Shorthand::None && !message.logical &&
        message.destination != broadcast && message.destination < id_end &&
        ids_are_initial_.load(std::memory_order_relaxed)) {
        LocalApic* apic = find(message.destination);
        if (apic == nullptr || !apic->is_addressed(message, source)) {
            return -1;
        }
        return apic->accept(message) ? 1 : 0;
    }
    int accepted = -1;
    for_each([&](LocalApic& apic) {
        if (apic.is_addressed(message, source)) {
            accepted = std::max(accepted, 0) + (apic.accept(message) ? 1 : 0);
        }
    });
    return accepted;
}

int ApicBus::deliver_lowest_priority(const InterruptMessage& message,
                                     const LocalApic* source) noexcept
{
    // Which of the addressed APICs is chosen is up to the implementation (SDM Vol. 3A "Lowest
    // Priority Delivery Mode"); by vector, as KVM does, spreads devices evenly and keeps each on
    // its CPU.
    unsigned candidates = 0;
    bool any = false;
    for_each([&](const LocalApic& apic) {
        if (apic.is_addressed(message, source)) {
            any = true;
            candidates += apic.is_enabled() ? 1U : 0U;
        }
    });
    if (candidates == 0U) {
        return any ? 0 : -1;
    }
    unsigned skip = message.vector % candidates;
    LocalApic* chosen = nullptr;
    for_each([&](LocalApic& apic) {
        if (skip == ~0U || !apic.is_enabled() || !apic.is_addressed(message, source)) {
            return;
        }
        chosen = &apic;  // The last one seen serves if the set shrank meanwhile.
        --skip;
    });
    return chosen != nullptr && chosen->accept(message) ? 1 : 0;
}

InterruptMessage msi_message(Gpa address, std::uint32_t data) noexcept
{
    InterruptMessage message;
    message.destination = static_cast<std::uint32_t>((address.value() >> 12U) & 0xffU) |
                          static_cast<std::uint32_t>((address.value() >> 32U) & 0xffff'ff00U);
    message.logical = (address.value() & (1U << 2U)) != 0U;
    message.redirection_hint = (address.value() & (1U << 3U)) != 0U;
    message.vector = static_cast<std::uint8_t>(data & 0xffU);
    message.mode = static_cast<DeliveryMode>((data >> 8U) & 7U);
    message.level_triggered = (data & (1U << 15U)) != 0U;
    return message;
}

int ApicBus::deliver_msi(Gpa address, std::uint32_t data) noexcept
{
    return deliver(msi_message(address, data), nullptr);
}

bool ApicBus::pic_output() const noexcept
{
    return pic_ != nullptr && pic_->output();
}

std::optional<std::uint8_t> ApicBus::acknowledge_pic() noexcept
{
    if (!pic_output()) {
        return std::nullopt;
    }
    return pic_->acknowledge();
}

void ApicBus::pic_output_rose() noexcept
{
    for_each([](LocalApic& apic) {
        if (apic.accepts_pic_interrupt()) {
            apic.kick();
        }
    });
}

}  // namespace vmm::x86::irqchip
