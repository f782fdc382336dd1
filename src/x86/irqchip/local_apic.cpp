// SPDX-License-Identifier: Apache-2.0

#include "x86/irqchip/local_apic.hpp"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "x86/irqchip/local_apic_bits.hpp"

namespace vmm::x86::irqchip {
namespace {

using Reg = LapicRegister;
}  // namespace

// --- Life and death.

LocalApic::LocalApic(ApicBus& bus, TimerService& timers, std::uint32_t id, bool has_io_apic)
    : bus_{bus},
      timers_{timers},
      initial_id_{id},
      has_io_apic_{has_io_apic},
      timer_{timers.create_timer([this] { on_timer(); })}
{
    reset();
}

LocalApic::~LocalApic() = default;

void LocalApic::connect(VcpuSink& sink, TscClock tsc)
{
    {
        const std::lock_guard lock{mutex_};
        tsc_ = std::move(tsc);
    }
    reset();
    sink_.store(&sink);
}

void LocalApic::disconnect() noexcept
{
    sink_.store(nullptr);
    // Sequentially consistent on both sides: a caller that the loop does not see has seen null.
    while (sink_calls_.load() != 0U) {
        std::this_thread::yield();
    }
    const std::lock_guard lock{mutex_};
    stop_timer_locked();
    tsc_ = {};
}

template <typename F>
void LocalApic::with_sink(F&& f) noexcept
{
    sink_calls_.fetch_add(1);
    if (VcpuSink* sink = sink_.load()) {
        f(*sink);
    }
    sink_calls_.fetch_sub(1);
}

void LocalApic::leave_for_eoi(std::uint8_t vector) noexcept
{
    ended_.store(vector);
    kick();
}

void LocalApic::kick() noexcept
{
    with_sink([](VcpuSink& sink) { sink.kick(); });
}

void LocalApic::set_features(const LapicFeatures& features) noexcept
{
    const std::lock_guard lock{mutex_};
    features_ = features;
    reg(Reg::Version) = version_locked();
}

std::uint32_t LocalApic::version_locked() const noexcept
{
    constexpr std::uint32_t version = 0x14;
    constexpr std::uint32_t last_lvt = apic::lvt_registers.size() - 1U;
    // Directed EOI needs an I/O APIC with an EOI register, which ours is not.
    const bool directed_eoi = features_.x2apic && !has_io_apic_;
    return version | (last_lvt << 16U) | (directed_eoi ? apic::version_suppress_eoi_broadcast : 0U);
}

void LocalApic::reset() noexcept
{
    const std::lock_guard lock{mutex_};
    base_ = default_base | apic::base_enable | (initial_id_ == 0U ? apic::base_bootstrap : 0U);
    page_.store(default_base, std::memory_order_relaxed);
    reg(Reg::Id) = initial_id_ << 24U;
    reset_registers_locked();
    static_cast<void>(update_locked());
}

void LocalApic::init() noexcept
{
    const std::lock_guard lock{mutex_};
    reset_registers_locked();
    static_cast<void>(update_locked());
}

/// SDM Vol. 3A "Local APIC State After Power-Up or Reset".
void LocalApic::reset_registers_locked() noexcept
{
    stop_timer_locked();
    const std::uint32_t id = reg(Reg::Id);
    regs_.fill(0);
    reg(Reg::Id) = id;
    reg(Reg::Version) = version_locked();
    reg(Reg::Dfr) = ~0U;
    reg(Reg::Ldr) = is_x2apic() ? apic::x2apic_logical_id(initial_id_) : 0U;
    reg(Reg::Svr) = 0xff;
    for (const Reg lvt : apic::lvt_registers) {
        reg(lvt) = apic::lvt_masked;
    }
    if (initial_id_ == 0U) {
        // Deviates: masked in the manual.  Firmware sets up virtual wire mode; guests that are
        // booted without one expect it from KVM.
        reg(Reg::LvtLint0) = apic::lint0_ext_int;
    }
    pending_errors_ = 0;
    timer_mode_ = TimerMode::OneShot;
    tsc_deadline_ = 0;
}

// --- Bitmaps and priorities.

bool LocalApic::hardware_enabled() const noexcept
{
    return apic::is_enabled_base(base_);
}

bool LocalApic::software_enabled() const noexcept
{
    return (reg(Reg::Svr) & apic::svr_enable) != 0U;
}

bool LocalApic::is_x2apic() const noexcept
{
    return apic::is_x2apic_base(base_);
}

int LocalApic::highest_locked(Reg first) const noexcept
{
    const std::size_t at = static_cast<std::size_t>(first) >> 4U;
    for (std::size_t word = 8; word-- > 0;) {
        const std::uint32_t bits = regs_[at + word];
        if (bits != 0U) {
            return static_cast<int>(word * 32U) + 31 - std::countl_zero(bits);
        }
    }
    return -1;
}

void LocalApic::set_bit_locked(Reg first, std::uint8_t vector) noexcept
{
    regs_[(static_cast<std::size_t>(first) >> 4U) + vector / 32U] |= 1U << (vector % 32U);
}

void LocalApic::clear_bit_locked(Reg first, std::uint8_t vector) noexcept
{
    regs_[(static_cast<std::size_t>(first) >> 4U) + vector / 32U] &= ~(1U << (vector % 32U));
}

bool LocalApic::test_bit_locked(Reg first, std::uint8_t vector) const noexcept
{
    return ((regs_[(static_cast<std::size_t>(first) >> 4U) + vector / 32U] >> (vector % 32U)) &
            1U) != 0U;
}

/// SDM Vol. 3A "Task and Processor Priorities".
std::uint32_t LocalApic::ppr_locked() const noexcept
{
    const int highest = highest_locked(Reg::Isr);
    const std::uint32_t in_service = highest < 0 ? 0U : static_cast<std::uint32_t>(highest) & 0xf0U;
    const std::uint32_t task = reg(Reg::Tpr);
    return (task & 0xf0U) >= in_service ? task : in_service;
}

bool LocalApic::update_locked() noexcept
{
    const std::uint32_t ppr = ppr_locked();
    reg(Reg::Ppr) = ppr;
    const int requested = highest_locked(Reg::Irr);
    const bool deliverable = hardware_enabled() && requested >= 0 &&
                             (static_cast<std::uint32_t>(requested) & 0xf0U) > (ppr & 0xf0U);
    const bool in_service = highest_locked(Reg::Isr) >= 0;
    if (in_service_.load(std::memory_order_relaxed) != in_service) {
        in_service_.store(in_service, std::memory_order_relaxed);
    }
    const std::uint32_t lint0 = reg(Reg::LvtLint0);
    const bool accepts_pic = !hardware_enabled() || ((lint0 & apic::lvt_masked) == 0U &&
                                                     (lint0 & 0x700U) == apic::lint0_ext_int);

    const std::uint32_t id = reg(Reg::Id);
    // An id above 254 has no place in the xAPIC register; the bus knows it in full.
    const bool initial = is_x2apic() || (id >> 24U) == (initial_id_ & 0xffU);
    match_id_.store(initial ? initial_id_ : id >> 24U, std::memory_order_relaxed);
    match_ldr_.store(reg(Reg::Ldr), std::memory_order_relaxed);
    const std::uint32_t model = reg(Reg::Dfr) >> 28U;
    match_flags_.store((hardware_enabled() ? apic::match_hardware_enabled : 0U) |
                           (software_enabled() ? apic::match_software_enabled : 0U) |
                           (is_x2apic() ? apic::match_x2apic : 0U) |
                           (model == 0xfU ? apic::match_flat : 0U) |
                           (model == 0U ? apic::match_cluster : 0U),
                       std::memory_order_release);

    const bool was_deliverable = deliverable_.load(std::memory_order_relaxed);
    const bool accepted_pic = accepts_pic_.load(std::memory_order_relaxed);
    if (was_deliverable != deliverable) {
        deliverable_.store(deliverable, std::memory_order_release);
    }
    if (accepted_pic != accepts_pic) {
        accepts_pic_.store(accepts_pic);
    }
    // What has ended without a word may hold it back only as far as is known here.
    const bool may_be_deliverable = end_is_offered_ && requested >= 0;
    return may_be_deliverable || (!was_deliverable && deliverable) ||
           (!accepted_pic && accepts_pic && bus_.pic_output());
}

std::uint8_t LocalApic::tpr() const noexcept
{
    const std::lock_guard lock{mutex_};
    return static_cast<std::uint8_t>(reg(Reg::Tpr));
}

void LocalApic::set_tpr(std::uint8_t value) noexcept
{
    bool rose = false;
    {
        const std::lock_guard lock{mutex_};
        reg(Reg::Tpr) = value;
        rose = update_locked();
    }
    if (rose) {
        kick();
    }
}

bool LocalApic::offer_silent_end() noexcept
{
    if (!in_service_.load(std::memory_order_relaxed)) {
        return false;  // Its vCPU's thread, which asks, would know.
    }
    const std::lock_guard lock{mutex_};
    if (!hardware_enabled() || !software_enabled() || highest_locked(Reg::Irr) >= 0) {
        return false;
    }
    const int highest = highest_locked(Reg::Isr);
    if (highest < 0) {
        return false;
    }
    const auto vector = static_cast<std::uint8_t>(highest);
    end_is_offered_ = !test_bit_locked(Reg::Tmr, vector) && !bus_.needs_eoi(vector);
    return end_is_offered_;
}

void LocalApic::take_back_end(bool ended) noexcept
{
    Effects effects;
    {
        const std::lock_guard lock{mutex_};
        end_is_offered_ = false;
        if (ended) {
            end_of_interrupt_locked(effects);
        }
        effects.kick = update_locked();
    }
    perform(effects);
}

std::optional<std::uint32_t> LocalApic::vapic_word() const noexcept
{
    const std::lock_guard lock{mutex_};
    if (!hardware_enabled()) {
        return std::nullopt;
    }
    const auto or_none = [](int vector) {
        return vector < 0 ? 0U : static_cast<std::uint32_t>(vector);
    };
    return (reg(Reg::Tpr) & 0xffU) | (or_none(highest_locked(Reg::Isr)) & 0xf0U) << 8U |
           or_none(highest_locked(Reg::Irr)) << 24U;
}

std::optional<std::uint8_t> LocalApic::acknowledge() noexcept
{
    std::optional<std::uint8_t> vector;
    if (accepts_pic_interrupt()) {
        vector = bus_.acknowledge_pic();
    }
    if (!vector && deliverable_.load(std::memory_order_acquire)) {
        const std::lock_guard lock{mutex_};
        if (deliverable_.load(std::memory_order_relaxed)) {
            vector = static_cast<std::uint8_t>(highest_locked(Reg::Irr));
            clear_bit_locked(Reg::Irr, *vector);
            set_bit_locked(Reg::Isr, *vector);
            static_cast<void>(update_locked());
        }
    }
    if (vector && has_interrupt()) {
        // Another one of higher priority is there; what kick announced it may be spent.
        kick();
    }
    return vector;
}

// --- Messages from the bus.

bool LocalApic::is_addressed(const InterruptMessage& message,
                             const LocalApic* source) const noexcept
{
    const std::uint32_t flags = match_flags_.load(std::memory_order_acquire);
    if ((flags & apic::match_hardware_enabled) == 0U) {
        return false;
    }
    switch (message.shorthand) {
    case Shorthand::None: break;
    case Shorthand::Self: return this == source;
    case Shorthand::All: return true;
    case Shorthand::Others: return this != source;
    }
    const bool x2apic = (flags & apic::match_x2apic) != 0U;
    const std::uint32_t destination = message.destination;
    // A device's message has 8 bits of destination, and 0xff in them is a broadcast for x2APICs
    // too.
    if (destination == 0xffU && (!x2apic || source == nullptr)) {
        return true;
    }
    if (destination == ~0U && x2apic) {
        return true;
    }
    if (!message.logical) {
        return destination == match_id_.load(std::memory_order_relaxed);
    }
    const std::uint32_t ldr = match_ldr_.load(std::memory_order_relaxed);
    if (x2apic) {
        return (ldr >> 16U) == (destination >> 16U) && (ldr & destination & 0xffffU) != 0U;
    }
    if (destination > 0xffU) {
        return false;
    }
    const std::uint32_t logical_id = ldr >> 24U;
    if ((flags & apic::match_flat) != 0U) {
        return (logical_id & destination) != 0U;
    }
    return (flags & apic::match_cluster) != 0U && (logical_id >> 4U) == (destination >> 4U) &&
           (logical_id & destination & 0xfU) != 0U;
}

bool LocalApic::is_enabled() const noexcept
{
    constexpr std::uint32_t both = apic::match_hardware_enabled | apic::match_software_enabled;
    return (match_flags_.load(std::memory_order_relaxed) & both) == both;
}

bool LocalApic::accept(const InterruptMessage& message) noexcept
{
    switch (message.mode) {
    case DeliveryMode::Fixed:
    case DeliveryMode::LowestPriority: break;
    case DeliveryMode::Smi: with_sink([](VcpuSink& sink) { sink.deliver_smi(); }); return true;
    case DeliveryMode::Nmi: with_sink([](VcpuSink& sink) { sink.deliver_nmi(); }); return true;
    case DeliveryMode::Init:
        if (message.level_triggered && !message.asserted) {
            return false;  // INIT level de-assert: no effect on processors since the Pentium 4.
        }
        with_sink([](VcpuSink& sink) { sink.deliver_init(); });
        return true;
    case DeliveryMode::Startup:
        with_sink([&](VcpuSink& sink) { sink.deliver_sipi(message.vector); });
        return true;
    case DeliveryMode::Reserved: with_sink([](VcpuSink& sink) { sink.unhalt(); }); return true;
    case DeliveryMode::ExtInt: return false;  // The PIC's interrupts come through LINT0 only.
    }
    if (message.level_triggered && !message.asserted) {
        return false;
    }
    bool rose = false;
    bool accepted = false;
    {
        const std::lock_guard lock{mutex_};
        if (!hardware_enabled() || !software_enabled()) {
            return false;
        }
        accepted = message.vector >= apic::first_legal_vector;
        if (accepted) {
            post_locked(message.vector, message.level_triggered);
        } else {
            record_error_locked(apic::esr_receive_illegal_vector);
        }
        rose = update_locked();
    }
    if (rose) {
        kick();
    }
    return accepted;
}

void LocalApic::post_locked(std::uint8_t vector, bool level) noexcept
{
    if (level) {
        set_bit_locked(Reg::Tmr, vector);
    } else {
        clear_bit_locked(Reg::Tmr, vector);
    }
    set_bit_locked(Reg::Irr, vector);
}

void LocalApic::record_error_locked(std::uint32_t bit) noexcept
{
    const bool first = pending_errors_ == 0U;
    pending_errors_ |= bit;
    const std::uint32_t lvt = reg(Reg::LvtError);
    const auto vector = static_cast<std::uint8_t>(lvt);
    if (first && (lvt & apic::lvt_masked) == 0U && vector >= apic::first_legal_vector) {
        post_locked(vector, false);
    }
}

void LocalApic::deliver_lvt_locked(Reg lvt, Effects& effects) noexcept
{
    const std::uint32_t entry = reg(lvt);
    if (!hardware_enabled() || (entry & apic::lvt_masked) != 0U) {
        return;
    }
    if (lvt == Reg::LvtPerformance) {
        reg(lvt) |= apic::lvt_masked;  // SDM Vol. 3B "Generating an Interrupt on Overflow".
    }
    const auto mode = lvt == Reg::LvtTimer || lvt == Reg::LvtError
                          ? DeliveryMode::Fixed
                          : static_cast<DeliveryMode>((entry >> 8U) & 7U);
    switch (mode) {
    case DeliveryMode::Fixed: {
        const auto vector = static_cast<std::uint8_t>(entry);
        if (vector < apic::first_legal_vector) {
            record_error_locked(apic::esr_receive_illegal_vector);
            return;
        }
        const bool is_lint = lvt == Reg::LvtLint0 || lvt == Reg::LvtLint1;
        post_locked(vector, is_lint && (entry & apic::lvt_level) != 0U);
        return;
    }
    case DeliveryMode::Smi:
    case DeliveryMode::Nmi:
    case DeliveryMode::Init: effects.local = mode; return;
    case DeliveryMode::LowestPriority:
    case DeliveryMode::Reserved:
    case DeliveryMode::Startup:
    case DeliveryMode::ExtInt: return;  // ExtINT: the vCPU asks the PIC by itself.
    }
}

void LocalApic::local_interrupt(Reg lvt) noexcept
{
    if (std::find(apic::lvt_registers.begin(), apic::lvt_registers.end(), lvt) ==
        apic::lvt_registers.end()) {
        return;
    }
    Effects effects;
    {
        const std::lock_guard lock{mutex_};
        deliver_lvt_locked(lvt, effects);
        effects.kick = update_locked();
    }
    perform(effects);
}

void LocalApic::perform(const Effects& effects) noexcept
{
    if (effects.eoi) {
        bus_.end_of_interrupt(initial_id_, effects.eoi->vector, effects.eoi->level);
    }
    if (effects.ipi) {
        bus_.deliver(*effects.ipi, this);
    }
    if (effects.local) {
        InterruptMessage message;
        message.mode = *effects.local;
        accept(message);
    }
    if (effects.kick) {
        kick();
    }
}

// --- IA32_APIC_BASE.

std::uint64_t LocalApic::apic_base() const noexcept
{
    const std::lock_guard lock{mutex_};
    return base_;
}

bool LocalApic::set_apic_base(std::uint64_t value, ApicBaseWriter writer) noexcept
{
    bool rose = false;
    {
        const std::lock_guard lock{mutex_};
        const unsigned bits = std::clamp<unsigned>(features_.physical_address_bits, 32, 52);
        const std::uint64_t reserved = apic::base_reserved | ~((std::uint64_t{1} << bits) - 1U) |
                                       (features_.x2apic ? 0U : apic::base_x2apic);
        if ((value & reserved) != 0U ||
            (apic::is_x2apic_base(value) && !apic::is_enabled_base(value))) {
            return false;
        }
        // SDM Vol. 3A "x2APIC State Transitions": x2APIC mode is entered from xAPIC mode and left
        // through the disabled state.
        const bool to_xapic = apic::is_enabled_base(value) && !apic::is_x2apic_base(value);
        const bool illegal =
            (is_x2apic() && to_xapic) || (!hardware_enabled() && apic::is_x2apic_base(value));
        if (illegal && writer == ApicBaseWriter::Guest) {
            return false;
        }
        page_.store(value & ~(page_size - 1), std::memory_order_relaxed);
        set_mode_registers_locked(std::exchange(base_, value));
        rose = update_locked();
    }
    if (rose) {
        kick();
    }
    return true;
}

void LocalApic::set_mode_registers_locked(std::uint64_t old_base) noexcept
{
    if (apic::is_enabled_base(old_base) && !hardware_enabled()) {
        stop_timer_locked();
        return;
    }
    if (!apic::is_enabled_base(old_base) && hardware_enabled()) {
        // SDM Vol. 3A "x2APIC State Transitions": the state is as after power-up, but for the id.
        reset_registers_locked();
        reg(Reg::Id) = initial_id_ << 24U;
    }
    if (is_x2apic() && (!apic::is_x2apic_base(old_base) || !apic::is_enabled_base(old_base))) {
        reg(Reg::Id) = initial_id_;
        reg(Reg::Ldr) = apic::x2apic_logical_id(initial_id_);
    } else if (!is_x2apic() && apic::is_x2apic_base(old_base) && hardware_enabled()) {
        reg(Reg::Id) = initial_id_ << 24U;
        reg(Reg::Ldr) = 0;
    }
}

// --- State.

LapicState LocalApic::state() const noexcept
{
    const std::lock_guard lock{mutex_};
    LapicState state;
    for (std::size_t i = 0; i < register_count; ++i) {
        state.set(static_cast<Reg>(i << 4U), regs_[i]);
    }
    state.set(Reg::CurrentCount, current_count_locked());
    return state;
}

Result<void> LocalApic::set_state(const LapicState& state)
{
    bool rose = false;
    {
        const std::lock_guard lock{mutex_};
        if (is_x2apic() && state.get(Reg::Id) != initial_id_) {
            return Error{std::errc::invalid_argument,
                         "KVM_SET_LAPIC: APIC id " + std::to_string(state.get(Reg::Id)) +
                             " in the state of vCPU " + std::to_string(initial_id_) +
                             "; in x2APIC mode it must be the vCPU's id"};
        }
        stop_timer_locked();
        for (std::size_t i = 0; i < register_count; ++i) {
            regs_[i] = state.get(static_cast<Reg>(i << 4U));
        }
        reg(Reg::Version) = version_locked();
        reg(Reg::Eoi) = 0;
        reg(Reg::SelfIpi) = 0;
        if (is_x2apic()) {
            reg(Reg::Ldr) = apic::x2apic_logical_id(initial_id_);
        } else {
            reg(Reg::Id) &= 0xff00'0000U;
            reg(Reg::IcrHigh) &= 0xff00'0000U;
            if ((reg(Reg::Id) >> 24U) != (initial_id_ & 0xffU)) {
                bus_.ids_changed();
            }
        }
        reg(Reg::Tpr) &= 0xffU;
        // Vectors below 16 cannot be in service; if requested, they have too little priority ever
        // to be taken, and KVM keeps them.
        regs_[static_cast<std::size_t>(Reg::Isr) >> 4U] &= 0xffff'0000U;
        // Without the side effects of a write: as after reset, LINT0 may be open with the APIC
        // disabled by software.
        reg(Reg::Svr) &= writable_locked(Reg::Svr);
        for (const Reg lvt : apic::lvt_registers) {
            reg(lvt) &= writable_locked(lvt);
        }
        pending_errors_ = 0;
        restore_timer_locked(reg(Reg::CurrentCount));
        static_cast<void>(update_locked());
        rose = deliverable_.load(std::memory_order_relaxed);
    }
    if (rose) {
        kick();
    }
    return success;
}

}  // namespace vmm::x86::irqchip
