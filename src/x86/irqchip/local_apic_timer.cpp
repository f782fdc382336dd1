// SPDX-License-Identifier: Apache-2.0

// The local APIC's timer.  SDM Vol. 3A "APIC Timer".

#include <algorithm>

#include "x86/irqchip/local_apic.hpp"

namespace vmm::x86::irqchip {
namespace {

using Reg = LapicRegister;

// KVM's bus frequency is 1 GHz: a tick before division is a nanosecond.
constexpr std::uint64_t bus_cycle_ns = 1;

// KVM's default for min_timer_period_us: a guest cannot occupy the host with shorter ones.
constexpr std::uint64_t min_period_ns = 200'000;

}  // namespace

std::uint32_t LocalApic::divisor_locked() const noexcept
{
    const std::uint32_t value = reg(Reg::DivideConfiguration);
    const std::uint32_t code = (value & 3U) | ((value & 8U) >> 1U);
    return 1U << ((code + 1U) & 7U);  // 0 is 2, 1 is 4 … 6 is 128, 7 is 1.
}

std::uint64_t LocalApic::period_ns_locked() const noexcept
{
    const std::uint64_t period =
        std::uint64_t{reg(Reg::InitialCount)} * divisor_locked() * bus_cycle_ns;
    return timer_mode_ == TimerMode::Periodic ? std::max(period, min_period_ns) : period;
}

void LocalApic::stop_timer_locked() noexcept
{
    timer_active_ = false;
    timer_->cancel();
}

void LocalApic::start_timer_locked() noexcept
{
    if (timer_mode_ == TimerMode::TscDeadline) {
        if (tsc_deadline_ == 0U || !tsc_.to_ns_deadline) {
            stop_timer_locked();
            return;
        }
        timer_target_ns_ = tsc_.to_ns_deadline(tsc_deadline_);
    } else {
        if (reg(Reg::InitialCount) == 0U || timer_mode_ == TimerMode::Reserved) {
            stop_timer_locked();
            return;
        }
        timer_target_ns_ = timers_.now_ns() + period_ns_locked();
    }
    timer_active_ = true;
    timer_->arm(timer_target_ns_);
}

void LocalApic::update_timer_mode_locked() noexcept
{
    const auto mode = static_cast<TimerMode>((reg(Reg::LvtTimer) >> 17U) & 3U);
    if (mode == timer_mode_) {
        return;
    }
    // "The timer is disarmed when software changes the mode to or from TSC-deadline."
    if ((mode == TimerMode::TscDeadline) != (timer_mode_ == TimerMode::TscDeadline)) {
        stop_timer_locked();
        reg(Reg::InitialCount) = 0;
        tsc_deadline_ = 0;
    }
    timer_mode_ = mode;
}

std::uint32_t LocalApic::current_count_locked() const noexcept
{
    if (!timer_active_ || timer_mode_ == TimerMode::TscDeadline || reg(Reg::InitialCount) == 0U) {
        return 0;
    }
    const std::uint64_t now = timers_.now_ns();
    std::uint64_t remaining = 0;
    if (now < timer_target_ns_) {
        remaining = timer_target_ns_ - now;
    } else if (timer_mode_ == TimerMode::Periodic) {
        // The expiry is late; the count has gone on.
        const std::uint64_t period = period_ns_locked();
        remaining = period - (now - timer_target_ns_) % period;
    }
    const std::uint64_t count = remaining / (divisor_locked() * bus_cycle_ns);
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(count, reg(Reg::InitialCount)));
}

void LocalApic::write_divide_locked(std::uint32_t value) noexcept
{
    const std::uint32_t left = current_count_locked();
    const std::uint32_t old_divisor = divisor_locked();
    reg(Reg::DivideConfiguration) = value & 0xbU;
    if (!timer_active_ || timer_mode_ == TimerMode::TscDeadline ||
        divisor_locked() == old_divisor) {
        return;
    }
    // The count goes on from where it is, at the new pace.
    timer_target_ns_ = timers_.now_ns() + std::uint64_t{left} * divisor_locked() * bus_cycle_ns;
    timer_->arm(timer_target_ns_);
}

void LocalApic::restore_timer_locked(std::uint32_t current_count) noexcept
{
    reg(Reg::DivideConfiguration) &= 0xbU;
    timer_mode_ = static_cast<TimerMode>((reg(Reg::LvtTimer) >> 17U) & 3U);
    tsc_deadline_ = 0;  // Restored through its MSR, after this.
    switch (timer_mode_) {
    case TimerMode::TscDeadline:
    case TimerMode::Reserved: return;
    case TimerMode::OneShot:
        if (current_count == 0U) {
            return;  // It had expired.
        }
        break;
    case TimerMode::Periodic: break;
    }
    start_timer_locked();
    if (timer_active_ && current_count != 0U && current_count < reg(Reg::InitialCount)) {
        timer_target_ns_ =
            timers_.now_ns() + std::uint64_t{current_count} * divisor_locked() * bus_cycle_ns;
        timer_->arm(timer_target_ns_);
    }
}

void LocalApic::tsc_changed() noexcept
{
    const std::lock_guard lock{mutex_};
    if (timer_active_ && timer_mode_ == TimerMode::TscDeadline) {
        start_timer_locked();
    }
}

/// @pre the timer's time has come
void LocalApic::expire_locked(Effects& effects) noexcept
{
    if (timer_mode_ == TimerMode::Periodic) {
        // From the deadline, not from now: no drift.  Periods that were missed are one
        // interrupt, as a pending one would have swallowed them.
        const std::uint64_t period = period_ns_locked();
        timer_target_ns_ += period * (1U + (timers_.now_ns() - timer_target_ns_) / period);
        timer_->arm(timer_target_ns_);
    } else {
        timer_active_ = false;
        tsc_deadline_ = 0;
    }
    deliver_lvt_locked(Reg::LvtTimer, effects);
}

void LocalApic::on_timer() noexcept
{
    Effects effects;
    {
        const std::lock_guard lock{mutex_};
        if (!timer_active_) {
            return;  // Stopped while this call was on its way.
        }
        if (timers_.now_ns() < timer_target_ns_) {
            timer_->arm(timer_target_ns_);  // Set anew meanwhile.
            return;
        }
        expire_locked(effects);
        effects.kick = update_locked();
    }
    perform(effects);
}

}  // namespace vmm::x86::irqchip
