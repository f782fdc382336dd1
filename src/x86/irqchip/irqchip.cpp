// SPDX-License-Identifier: Apache-2.0

#include "x86/irqchip/irqchip.hpp"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "x86/irqchip/pit.hpp"

namespace vmm::x86::irqchip {
namespace {

constexpr std::uint16_t first_pic_port = 0x20;

/// The port as the PIC's offset, if it is one of its ports.
std::optional<std::uint64_t> pic_offset(Port port) noexcept
{
    switch (port.value()) {
    case 0x20:
    case 0x21:
    case 0xa0:
    case 0xa1:
    case 0x4d0:
    case 0x4d1: return static_cast<std::uint64_t>(port.value()) - first_pic_port;
    default: return std::nullopt;
    }
}

bool is_in(Gpa gpa, std::uint64_t base, std::uint64_t size) noexcept
{
    return gpa.value() >= base && gpa.value() - base < size;
}

}  // namespace

Irqchip::Irqchip(TimerService& timers, IrqchipMode mode)
    : timers_{timers},
      mode_{mode},
      pic_{mode == IrqchipMode::Full ? std::make_shared<Pic>(static_cast<PicListener&>(*this))
                                     : nullptr},
      bus_{static_cast<EoiListener&>(*this), pic_.get()},
      io_apic_{mode == IrqchipMode::Full ? std::make_unique<IoApic>(bus_) : nullptr},
      routing_{mode},
      notifiers_{std::make_shared<const std::vector<Notifier>>()}
{
}

Irqchip::~Irqchip()
{
    // A bus may keep the PIT and the PIC for longer than this lives.
    for (const std::weak_ptr<Pit>& weak : pits_) {
        if (const std::shared_ptr<Pit> pit = weak.lock()) {
            pit->disconnect();
        }
    }
    if (pic_ != nullptr) {
        pic_->disconnect();
    }
    for (const std::shared_ptr<LocalApic>& apic : lapics_) {
        if (apic != nullptr) {
            apic->disconnect();
        }
    }
}

std::shared_ptr<LocalApic> Irqchip::create_lapic(std::uint32_t id, VcpuSink& sink, TscClock tsc)
{
    if (id >= ApicBus::id_end) {
        return nullptr;
    }
    const std::lock_guard lock{mutex_};
    if (bus_.find(id) != nullptr) {
        return nullptr;
    }
    if (lapics_.size() <= id) {
        lapics_.resize(std::size_t{id} + 1U);
    }
    std::shared_ptr<LocalApic>& apic = lapics_[id];
    if (apic == nullptr) {
        apic = std::make_shared<LocalApic>(bus_, timers_, id, io_apic_ != nullptr);
    }
    apic->connect(sink, std::move(tsc));
    bus_.add(id, *apic);
    return apic;
}

void Irqchip::remove_lapic(std::uint32_t id) noexcept
{
    const std::lock_guard lock{mutex_};
    if (LocalApic* apic = bus_.find(id)) {
        bus_.remove(id);
        apic->disconnect();
    }
}

// --- The guest's accesses.

bool Irqchip::is_mmio(std::uint32_t vcpu_id, Gpa gpa) const noexcept
{
    const LocalApic* const apic = bus_.find(vcpu_id);
    return (apic != nullptr && apic->is_in_page(gpa)) ||
           is_in(gpa, IoApic::default_base, IoApic::size_bytes);
}

bool Irqchip::mmio_read(std::uint32_t vcpu_id, Gpa gpa, std::span<std::byte> data) noexcept
{
    LocalApic* const apic = bus_.find(vcpu_id);
    if (apic != nullptr && apic->is_in_page(gpa)) {
        apic->mmio_read(gpa.value() % LocalApic::page_size, data);
        return true;
    }
    if (io_apic_ != nullptr && is_in(gpa, IoApic::default_base, IoApic::size_bytes)) {
        io_apic_->read(gpa.value() - IoApic::default_base, data);
        return true;
    }
    return false;
}

bool Irqchip::mmio_write(std::uint32_t vcpu_id, Gpa gpa, std::span<const std::byte> data) noexcept
{
    LocalApic* const apic = bus_.find(vcpu_id);
    if (apic != nullptr && apic->is_in_page(gpa)) {
        apic->mmio_write(gpa.value() % LocalApic::page_size, data);
        return true;
    }
    if (io_apic_ != nullptr && is_in(gpa, IoApic::default_base, IoApic::size_bytes)) {
        io_apic_->write(gpa.value() - IoApic::default_base, data);
        return true;
    }
    return false;
}

std::int64_t Irqchip::send_ipis(const std::array<std::uint64_t, 2>& bitmap,
                                unsigned word_bits,
                                std::uint32_t first_id,
                                std::uint64_t icr) noexcept
{
    constexpr std::uint64_t logical_or_shorthand = (1U << 11U) | (3U << 18U);
    constexpr std::int64_t einval = -EINVAL;
    if ((icr & logical_or_shorthand) != 0U) {
        return einval;
    }
    std::int64_t reached = 0;
    for (unsigned i = 0; i < 2U * word_bits; ++i) {
        const std::uint64_t id = std::uint64_t{first_id} + i;
        if (((bitmap[i / word_bits] >> (i % word_bits)) & 1U) == 0U || id >= ApicBus::id_end) {
            continue;
        }
        if (LocalApic* const apic = bus_.find(static_cast<std::uint32_t>(id))) {
            InterruptMessage message;
            message.vector = static_cast<std::uint8_t>(icr);
            message.mode = static_cast<DeliveryMode>((icr >> 8U) & 7U);
            message.level_triggered = (icr & (1U << 15U)) != 0U;
            message.asserted = (icr & (1U << 14U)) != 0U;
            reached += apic->accept(message) ? 1 : 0;
        }
    }
    return reached;
}

void Irqchip::kick_cpu(std::uint32_t apic_id) noexcept
{
    // As KVM has it: a remote read, which has no other meaning any more.
    InterruptMessage message;
    message.destination = apic_id;
    message.mode = DeliveryMode::Reserved;
    static_cast<void>(bus_.deliver(message, nullptr));
}

bool Irqchip::port_read(Port port, std::span<std::byte> data) noexcept
{
    const auto offset = pic_offset(port);
    if (pic_ == nullptr || !offset) {
        return false;
    }
    pic_->read(*offset, data);
    return true;
}

bool Irqchip::port_write(Port port, std::span<const std::byte> data) noexcept
{
    const auto offset = pic_offset(port);
    if (pic_ == nullptr || !offset) {
        return false;
    }
    pic_->write(*offset, data);
    return true;
}

// --- Interrupts.

int Irqchip::set_pin(const GsiRoute& route, unsigned source, bool level) noexcept
{
    if (route.type == GsiRouteType::Msi) {
        return level ? bus_.deliver_msi(route.msi_address, route.msi_data) : irq_masked;
    }
    if (pic_ == nullptr) {
        return irq_masked;
    }
    switch (route.chip) {
    case ChipId::PicMaster: return pic_->set_line(route.pin, source, level);
    case ChipId::PicSlave: return pic_->set_line(route.pin + 8U, source, level);
    case ChipId::IoApic: return io_apic_->set_line(route.pin, source, level);
    }
    return irq_masked;
}

int Irqchip::set_line(std::uint32_t gsi, unsigned source, bool level) noexcept
{
    int status = irq_masked;
    for (const GsiRoute& route : routing_.find(gsi)) {
        const int reached = set_pin(route, source, level);
        if (reached >= 0) {
            status = std::max(status, 0) + reached;
        }
    }
    return status;
}

void Irqchip::pulse(std::uint32_t gsi, unsigned source) noexcept
{
    const auto routes = routing_.find(gsi);
    for (const bool level : {true, false}) {
        for (const GsiRoute& route : routes) {
            set_pin(route, source, level);
        }
    }
}

int Irqchip::signal_msi(Gpa address, std::uint32_t data) noexcept
{
    return std::max(bus_.deliver_msi(address, data), 0);
}

void Irqchip::end_of_interrupt(std::uint32_t apic_id,
                               std::uint8_t vector,
                               bool level_triggered) noexcept
{
    if (io_apic_ == nullptr) {
        if (level_triggered && eoi_hook_) {
            eoi_hook_(apic_id, vector);
        }
        return;
    }
    const std::uint32_t ended = io_apic_->end_of_interrupt(vector, level_triggered);
    if (ended == 0U || !has_notifiers_.load(std::memory_order_relaxed)) {
        return;
    }
    for (std::uint32_t pin = 0; pin < IoApic::pin_count; ++pin) {
        if ((ended >> pin & 1U) != 0U) {
            notify(ChipId::IoApic, pin);
        }
    }
}

void Irqchip::pic_output_rose() noexcept
{
    bus_.pic_output_rose();
}

void Irqchip::pic_acknowledged(std::uint16_t pins) noexcept
{
    if (!has_notifiers_.load(std::memory_order_relaxed)) {
        return;
    }
    for (std::uint32_t pin = 0; pin < Pic::pin_count; ++pin) {
        if ((static_cast<unsigned>(pins) >> pin & 1U) != 0U) {
            notify(pin < 8U ? ChipId::PicMaster : ChipId::PicSlave, pin % 8U);
        }
    }
}

void Irqchip::notify(ChipId chip, std::uint32_t pin) noexcept
{
    std::shared_ptr<const std::vector<Notifier>> notifiers;
    {
        const std::lock_guard lock{mutex_};
        notifiers = notifiers_;
    }
    for (const Notifier& notifier : *notifiers) {
        const RoutingTable::Routes routes = routing_.find(notifier.gsi);
        const bool leads_here = std::any_of(routes.begin(), routes.end(), [&](const GsiRoute& r) {
            return r.type == GsiRouteType::Irqchip && r.chip == chip && r.pin == pin;
        });
        if (leads_here) {
            notifier.call();
        }
    }
}

std::uint64_t Irqchip::add_ack_notifier(std::uint32_t gsi, AckNotifier notifier)
{
    const std::lock_guard lock{mutex_};
    auto changed = std::make_shared<std::vector<Notifier>>(*notifiers_);
    const std::uint64_t number = next_notifier_++;
    changed->push_back(Notifier{number, gsi, std::move(notifier)});
    notifiers_ = std::move(changed);
    has_notifiers_.store(true, std::memory_order_relaxed);
    return number;
}

void Irqchip::remove_ack_notifier(std::uint64_t number) noexcept
{
    const std::lock_guard lock{mutex_};
    auto changed = std::make_shared<std::vector<Notifier>>(*notifiers_);
    changed->erase(std::remove_if(changed->begin(), changed->end(),
                                  [number](const Notifier& n) { return n.number == number; }),
                   changed->end());
    has_notifiers_.store(!changed->empty(), std::memory_order_relaxed);
    notifiers_ = std::move(changed);
}

std::shared_ptr<Pit> Irqchip::create_pit()
{
    auto pit = std::make_shared<Pit>(
        timers_, [this](bool level) { return set_line(0, irq_source_pit, level); });
    pit->set_reinject(true);
    add_ack_notifier(0, [weak = std::weak_ptr{pit}] {
        if (const std::shared_ptr<Pit> alive = weak.lock()) {
            alive->acknowledged();
        }
    });
    const std::lock_guard lock{mutex_};
    pits_.push_back(pit);
    return pit;
}

// --- State.

PicState Irqchip::pic_state(ChipId chip) const noexcept
{
    return pic_ != nullptr ? pic_->state(chip == ChipId::PicSlave) : PicState{};
}

void Irqchip::set_pic_state(ChipId chip, const PicState& state) noexcept
{
    if (pic_ != nullptr) {
        pic_->set_state(chip == ChipId::PicSlave, state);
    }
}

IoApicState Irqchip::io_apic_state() const noexcept
{
    return io_apic_ != nullptr ? io_apic_->state() : IoApicState{};
}

void Irqchip::set_io_apic_state(const IoApicState& state) noexcept
{
    if (io_apic_ != nullptr) {
        io_apic_->set_state(state);
    }
}

void Irqchip::reset() noexcept
{
    if (pic_ != nullptr) {
        pic_->reset();
        io_apic_->reset();
    }
}

}  // namespace vmm::x86::irqchip
