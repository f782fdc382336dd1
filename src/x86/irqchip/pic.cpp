// SPDX-License-Identifier: Apache-2.0

#include "x86/irqchip/pic.hpp"

#include <algorithm>

namespace vmm::x86::irqchip {
namespace {

constexpr unsigned cascade_pin = 2;
constexpr unsigned no_priority = 8;

// Pins that the ELCR may make level-triggered: not the timer, keyboard, cascade, clock and FPU.
constexpr std::uint8_t elcr_mask_master = 0xf8;
constexpr std::uint8_t elcr_mask_slave = 0xde;

constexpr std::uint8_t bit(unsigned pin) noexcept
{
    return static_cast<std::uint8_t>(1U << (pin & 7U));
}

constexpr void set(std::uint8_t& bits, unsigned pin) noexcept
{
    bits = static_cast<std::uint8_t>(bits | bit(pin));
}

constexpr void clear(std::uint8_t& bits, unsigned pin) noexcept
{
    bits = static_cast<std::uint8_t>(bits & ~bit(pin));
}

/// Distance of the first set bit from the pin with the highest priority.
unsigned priority_of(std::uint8_t bits, std::uint8_t priority_add) noexcept
{
    for (unsigned priority = 0; priority < no_priority; ++priority) {
        if ((bits & bit(priority + priority_add)) != 0U) {
            return priority;
        }
    }
    return no_priority;
}

}  // namespace

Pic::Pic(PicListener& listener) noexcept : listener_{&listener}
{
    reset();
}

void Pic::reset() noexcept
{
    const std::lock_guard lock{mutex_};
    chips_ = {};
    chips_[0].s.elcr_mask = elcr_mask_master;
    chips_[1].s.elcr_mask = elcr_mask_slave;
    output_.store(false, std::memory_order_release);
}

void Pic::disconnect() noexcept
{
    listener_.store(nullptr);
}

void Pic::perform(const Effects& effects) noexcept
{
    PicListener* listener = listener_.load();
    if (listener == nullptr) {
        return;
    }
    if (effects.rose) {
        listener->pic_output_rose();
    }
    if (effects.acknowledged != 0U) {
        listener->pic_acknowledged(effects.acknowledged);
    }
}

// --- Inputs, priorities, output.

int Pic::set_line(std::uint32_t pin, unsigned source, bool level) noexcept
{
    if (pin >= pin_count) {
        return -1;
    }
    Effects effects;
    int status = 0;
    {
        const std::lock_guard lock{mutex_};
        Chip& chip = chips_[pin / 8U];
        std::uint64_t& sources = chip.sources[pin % 8U];
        const std::uint64_t source_bit = std::uint64_t{1} << (source & 63U);
        sources = level ? sources | source_bit : sources & ~source_bit;
        status = set_input_locked(chip, pin % 8U, sources != 0U);
        update_locked(effects);
    }
    perform(effects);
    return status;
}

int Pic::set_input_locked(Chip& chip, unsigned pin, bool level) noexcept
{
    PicState& s = chip.s;
    const bool was_requested = (s.irr & bit(pin)) != 0U;
    const bool was_high = (s.last_irr & bit(pin)) != 0U;
    int status = 1;
    if ((s.elcr & bit(pin)) != 0U) {
        if (level) {
            status = was_requested ? 0 : 1;
            set(s.irr, pin);
        } else {
            clear(s.irr, pin);
        }
    } else if (level && !was_high) {
        status = was_requested ? 0 : 1;
        set(s.irr, pin);
    }
    if (level) {
        set(s.last_irr, pin);
    } else {
        clear(s.last_irr, pin);
    }
    return (s.imr & bit(pin)) != 0U ? -1 : status;
}

/// The pin that asks for service with a higher priority than all in service, or -1.
int Pic::request_locked(const Chip& chip) const noexcept
{
    const PicState& s = chip.s;
    const auto requested = static_cast<std::uint8_t>(s.irr & ~s.imr);
    const unsigned priority = priority_of(requested, s.priority_add);
    if (priority == no_priority) {
        return -1;
    }
    std::uint8_t in_service = s.isr;
    if (s.special_mask != 0U) {
        // "Enables interrupts from all other levels (lower as well as higher) that are not
        // masked."
        in_service = static_cast<std::uint8_t>(in_service & ~s.imr);
    }
    if (s.special_fully_nested_mode != 0U && !is_slave(chip)) {
        // The slave's further interrupts of higher priority come through.
        clear(in_service, cascade_pin);
    }
    if (priority >= priority_of(in_service, s.priority_add)) {
        return -1;
    }
    return static_cast<int>((priority + s.priority_add) & 7U);
}

void Pic::update_locked(Effects& effects) noexcept
{
    if (request_locked(chips_[1]) >= 0) {
        // An edge each time, so that the slave's next request is seen after the master's EOI.
        set_input_locked(chips_[0], cascade_pin, true);
        set_input_locked(chips_[0], cascade_pin, false);
    }
    const bool output = request_locked(chips_[0]) >= 0;
    if (output && !output_.load(std::memory_order_relaxed)) {
        effects.rose = true;
    }
    output_.store(output, std::memory_order_release);
}

// --- Service.

void Pic::in_service_locked(Chip& chip, unsigned pin, Effects& effects) noexcept
{
    PicState& s = chip.s;
    set(s.isr, pin);
    if ((s.elcr & bit(pin)) == 0U) {
        clear(s.irr, pin);
    }
    if (s.auto_eoi != 0U) {
        if (s.rotate_on_auto_eoi != 0U) {
            s.priority_add = static_cast<std::uint8_t>((pin + 1U) & 7U);
        }
        end_locked(chip, pin, effects);
    }
}

void Pic::end_locked(Chip& chip, unsigned pin, Effects& effects) noexcept
{
    clear(chip.s.isr, pin);
    const unsigned first = is_slave(chip) ? 8U : 0U;
    effects.acknowledged = static_cast<std::uint16_t>(effects.acknowledged | (1U << (pin + first)));
}

std::uint8_t Pic::acknowledge() noexcept
{
    constexpr unsigned spurious = 7;
    Effects effects;
    unsigned vector = 0;
    {
        const std::lock_guard lock{mutex_};
        Chip& master = chips_[0];
        Chip& slave = chips_[1];
        const int pin = request_locked(master);
        if (pin < 0) {
            vector = master.s.irq_base + spurious;
        } else {
            in_service_locked(master, static_cast<unsigned>(pin), effects);
            vector = master.s.irq_base + static_cast<unsigned>(pin);
            if (pin == static_cast<int>(cascade_pin)) {
                const int slave_pin = request_locked(slave);
                if (slave_pin >= 0) {
                    in_service_locked(slave, static_cast<unsigned>(slave_pin), effects);
                }
                vector = slave.s.irq_base +
                         (slave_pin < 0 ? spurious : static_cast<unsigned>(slave_pin));
            }
        }
        update_locked(effects);
    }
    perform(effects);
    return static_cast<std::uint8_t>(vector);
}

// --- Registers.

void Pic::write_icw1_locked(Chip& chip, std::uint8_t value, Effects& effects) noexcept
{
    PicState& s = chip.s;
    // Edges that were waiting are lost, and so is what was in service: who waits for their end
    // must hear of it.
    const auto lost = static_cast<std::uint8_t>(s.isr | (s.irr & ~s.elcr));
    for (unsigned pin = 0; pin < 8U; ++pin) {
        if ((lost & bit(pin)) != 0U) {
            end_locked(chip, pin, effects);
        }
    }
    s.init4 = value & 1U;
    s.last_irr = 0;
    s.irr = static_cast<std::uint8_t>(s.irr & s.elcr);
    s.isr = 0;
    s.imr = 0;
    s.priority_add = 0;
    s.special_mask = 0;
    s.read_reg_select = 0;
    s.poll = 0;
    if (s.init4 == 0U) {
        s.special_fully_nested_mode = 0;
        s.auto_eoi = 0;
    }
    s.init_state = 1;
}

void Pic::write_ocw2_locked(Chip& chip, std::uint8_t value, Effects& effects) noexcept
{
    PicState& s = chip.s;
    const unsigned level = value & 7U;
    const auto rotate_below = [&s](unsigned pin) {
        s.priority_add = static_cast<std::uint8_t>((pin + 1U) & 7U);
    };
    switch (value >> 5U) {
    case 0: s.rotate_on_auto_eoi = 0; break;
    case 4: s.rotate_on_auto_eoi = 1; break;
    case 1:    // Non-specific EOI.
    case 5: {  // Rotate on non-specific EOI.
        const unsigned priority = priority_of(s.isr, s.priority_add);
        if (priority == no_priority) {
            break;
        }
        const unsigned pin = (priority + s.priority_add) & 7U;
        if (value >> 5U == 5U) {
            rotate_below(pin);
        }
        end_locked(chip, pin, effects);
        break;
    }
    case 3: end_locked(chip, level, effects); break;
    case 6: rotate_below(level); break;
    case 7:
        rotate_below(level);
        end_locked(chip, level, effects);
        break;
    default: break;  // 2: no operation.
    }
}

void Pic::write_command_locked(Chip& chip, std::uint8_t value, Effects& effects) noexcept
{
    PicState& s = chip.s;
    if ((value & 0x10U) != 0U) {
        write_icw1_locked(chip, value, effects);
    } else if ((value & 0x08U) != 0U) {  // OCW3.
        s.poll = (value & 4U) != 0U ? 1 : s.poll;
        if ((value & 2U) != 0U) {
            s.read_reg_select = value & 1U;
        }
        if ((value & 0x40U) != 0U) {
            s.special_mask = (value >> 5U) & 1U;
        }
    } else {
        write_ocw2_locked(chip, value, effects);
    }
}

void Pic::write_data_locked(Chip& chip, std::uint8_t value) noexcept
{
    PicState& s = chip.s;
    switch (s.init_state) {
    case 1:  // ICW2.
        s.irq_base = value & 0xf8U;
        s.init_state = 2;
        break;
    case 2:  // ICW3: the cascade's wiring is fixed in a PC.
        s.init_state = s.init4 != 0U ? 3 : 0;
        break;
    case 3:  // ICW4.
        s.special_fully_nested_mode = (value >> 4U) & 1U;
        s.auto_eoi = (value >> 1U) & 1U;
        s.init_state = 0;
        break;
    default: s.imr = value; break;
    }
}

std::uint8_t Pic::read_locked(Chip& chip, bool data_port, Effects& effects) noexcept
{
    PicState& s = chip.s;
    if (s.poll != 0U) {
        // "The 8259A treats the next RD pulse as an interrupt acknowledge."
        s.poll = 0;
        const int pin = request_locked(chip);
        if (pin < 0) {
            return 0;
        }
        in_service_locked(chip, static_cast<unsigned>(pin), effects);
        return static_cast<std::uint8_t>(0x80U | static_cast<unsigned>(pin));
    }
    if (data_port) {
        return s.imr;
    }
    return s.read_reg_select != 0U ? s.isr : s.irr;
}

void Pic::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    std::fill(data.begin(), data.end(), std::byte{});
    if (data.size() != 1) {
        return;  // The chips sit on an 8-bit bus; KVM answers nothing wider.
    }
    Effects effects;
    std::uint8_t value = 0;
    {
        const std::lock_guard lock{mutex_};
        if ((offset & ~1ULL) == elcr_offset) {
            value = chips_[offset & 1U].s.elcr;
        } else if ((offset & ~1ULL) == 0 || (offset & ~1ULL) == slave_offset) {
            value =
                read_locked(chips_[offset >= slave_offset ? 1 : 0], (offset & 1U) != 0U, effects);
            update_locked(effects);
        }
    }
    data[0] = std::byte{value};
    perform(effects);
}

void Pic::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    if (data.size() != 1) {
        return;
    }
    const auto value = std::to_integer<std::uint8_t>(data[0]);
    Effects effects;
    {
        const std::lock_guard lock{mutex_};
        if ((offset & ~1ULL) == elcr_offset) {
            PicState& s = chips_[offset & 1U].s;
            s.elcr = static_cast<std::uint8_t>(value & s.elcr_mask);
        } else if ((offset & ~1ULL) == 0 || (offset & ~1ULL) == slave_offset) {
            Chip& chip = chips_[offset >= slave_offset ? 1 : 0];
            if ((offset & 1U) == 0U) {
                write_command_locked(chip, value, effects);
            } else {
                write_data_locked(chip, value);
            }
        }
        update_locked(effects);
    }
    perform(effects);
}

// --- State.

PicState Pic::state(bool slave) const noexcept
{
    const std::lock_guard lock{mutex_};
    return chips_[slave ? 1 : 0].s;
}

void Pic::set_state(bool slave, const PicState& state) noexcept
{
    Effects effects;
    {
        const std::lock_guard lock{mutex_};
        PicState& s = chips_[slave ? 1 : 0].s;
        s = state;
        s.elcr_mask = slave ? elcr_mask_slave : elcr_mask_master;
        s.elcr = static_cast<std::uint8_t>(s.elcr & s.elcr_mask);
        s.priority_add &= 7U;
        s.irq_base &= 0xf8U;
        s.init_state = s.init_state > 3U ? std::uint8_t{0} : s.init_state;
        if (!slave) {
            clear(s.last_irr, cascade_pin);  // Low between edges, or the slave's next is not seen.
        }
        update_locked(effects);
    }
    perform(effects);
}

}  // namespace vmm::x86::irqchip
