// SPDX-License-Identifier: Apache-2.0

#include "x86/irqchip/pit.hpp"

#include <algorithm>
#include <utility>

namespace vmm::x86::irqchip {
namespace {

__extension__ using U128 = unsigned __int128;

constexpr std::uint64_t ns_per_s = 1'000'000'000;

// KVM's lower bound of 200 us for a period of interrupts.
constexpr std::uint64_t min_period_ticks = 239;

// How a counter is accessed: the value of the control word's RW field, and within a word the
// half that is next.
constexpr std::uint8_t access_low = 1;
constexpr std::uint8_t access_high = 2;
constexpr std::uint8_t access_word = 3;
constexpr std::uint8_t access_word_high = 4;

constexpr std::uint64_t to_ticks(std::uint64_t ns) noexcept
{
    return static_cast<std::uint64_t>(static_cast<U128>(ns) * Pit::frequency_hz / ns_per_s);
}

/// Rounded up: at that time the tick has happened.
constexpr std::uint64_t to_ns(std::uint64_t ticks) noexcept
{
    return static_cast<std::uint64_t>(
        (static_cast<U128>(ticks) * ns_per_s + (Pit::frequency_hz - 1U)) / Pit::frequency_hz);
}

std::uint32_t from_bcd(std::uint16_t value) noexcept
{
    std::uint32_t result = 0;
    for (unsigned shift = 16; shift != 0U; shift -= 4U) {
        result = result * 10U + ((static_cast<unsigned>(value) >> (shift - 4U)) & 0xfU);
    }
    return result;
}

std::uint16_t to_bcd(std::uint32_t value) noexcept
{
    std::uint32_t result = 0;
    for (unsigned shift = 0; shift < 16U; shift += 4U) {
        result |= (value % 10U) << shift;
        value /= 10U;
    }
    return static_cast<std::uint16_t>(result);
}

std::uint8_t low_byte(std::uint16_t value) noexcept
{
    return static_cast<std::uint8_t>(value);
}

std::uint8_t high_byte(std::uint16_t value) noexcept
{
    return static_cast<std::uint8_t>(value >> 8U);
}

}  // namespace

Pit::Pit(TimerService& timers, Line line)
    : timers_{timers},
      line_{std::move(line)},
      reinject_timer_{timers.create_timer([this] { on_reinject(); })},
      timer_{timers.create_timer([this] { on_timer(); })}
{
    channels_[2].gate = false;
}

Pit::~Pit() = default;

void Pit::disconnect() noexcept
{
    std::unique_ptr<Timer> timer;
    std::unique_ptr<Timer> reinject_timer;
    {
        const std::lock_guard lock{mutex_};
        timer_active_ = false;
        timer = std::move(timer_);
        reinject_timer = std::move(reinject_timer_);
    }
    // Destroyed here, without the lock, as that waits for a call that may want it.
}

// --- Counting.

std::uint64_t Pit::ticks(const Channel& channel, std::uint64_t now) noexcept
{
    const bool counts = channel.running && now > channel.start_ns;
    return channel.ticks_before + (counts ? to_ticks(now - channel.start_ns) : 0U);
}

bool Pit::output(const Channel& channel, std::uint64_t now) noexcept
{
    if (!channel.loaded) {
        return channel.mode != 0U;
    }
    const std::uint64_t elapsed = ticks(channel, now);
    const std::uint64_t count = channel.count;
    const bool triggered = channel.running;  // Modes 1 and 5 run from their first trigger on.
    switch (channel.mode) {
    case 0: return elapsed >= count;
    case 1: return !triggered || elapsed >= count;
    case 2: return !channel.gate || elapsed % count != count - 1U;
    case 3: return !channel.gate || elapsed % count < (count + 1U) / 2U;
    case 4: return elapsed != count;
    case 5: return !triggered || elapsed != count;
    default: return true;
    }
}

std::uint16_t Pit::value(const Channel& channel, std::uint64_t now) noexcept
{
    const std::uint64_t elapsed = ticks(channel, now);
    const std::uint64_t count = channel.count;
    const std::uint64_t modulus = channel.bcd ? 10'000 : 0x1'0000;
    std::uint64_t left = 0;
    if (channel.mode == 2U) {
        left = count - elapsed % count;
    } else if (channel.mode == 3U) {
        left = count - (2U * (elapsed % count)) % count;
    } else {
        left = (count + modulus - elapsed % modulus) % modulus;  // Goes on below zero.
    }
    left %= modulus;
    return channel.bcd ? to_bcd(static_cast<std::uint32_t>(left))
                       : static_cast<std::uint16_t>(left);
}

void Pit::start(Channel& channel, std::uint64_t now) noexcept
{
    channel.count = channel.reload;
    channel.ticks_before = 0;
    channel.start_ns = now;
    channel.running = true;
}

void Pit::load_locked(std::size_t index, std::uint16_t raw, std::uint64_t now) noexcept
{
    Channel& channel = channels_[index];
    const std::uint32_t largest = channel.bcd ? 10'000U : 0x1'0000U;
    const std::uint32_t count = channel.bcd ? from_bcd(raw) : raw;
    channel.reload = count == 0U ? largest : count;
    channel.loaded = true;
    if (channel.mode == 1U || channel.mode == 5U) {
        if (!channel.running) {
            channel.count = channel.reload;
        }
    } else {
        start(channel, now);
        channel.running = channel.gate;
    }
    if (index == 0U) {
        schedule_locked();
    }
}

void Pit::set_gate_locked(Channel& channel, bool gate, std::uint64_t now) noexcept
{
    const bool rises = gate && !channel.gate;
    const bool falls = !gate && channel.gate;
    if (channel.loaded) {
        switch (channel.mode) {
        case 1:
        case 5:
            if (rises) {
                start(channel, now);
            }
            break;
        case 2:
        case 3:
            if (rises) {
                start(channel, now);
            }
            break;
        default:
            if (rises) {
                channel.start_ns = now;
                channel.running = true;
            }
            break;
        }
        if (falls && channel.mode != 1U && channel.mode != 5U) {
            channel.ticks_before = ticks(channel, now);
            channel.running = false;
        }
    }
    channel.gate = gate;
}

// --- Registers.

void Pit::latch_count(Channel& channel, std::uint64_t now) noexcept
{
    if (channel.count_latched == 0U) {
        channel.latched_count = value(channel, now);
        channel.count_latched = channel.rw_mode;
    }
}

void Pit::latch_status(Channel& channel, std::uint64_t now) noexcept
{
    if (!channel.status_latched) {
        constexpr unsigned null_count = 0x40;
        channel.status = static_cast<std::uint8_t>(
            (output(channel, now) ? 0x80U : 0U) | (channel.loaded ? 0U : null_count) |
            (static_cast<unsigned>(channel.rw_mode) << 4U) |
            ((static_cast<unsigned>(channel.mode) & 7U) << 1U) | (channel.bcd ? 1U : 0U));
        channel.status_latched = true;
    }
}

void Pit::write_control_locked(std::uint8_t control, std::uint64_t now) noexcept
{
    const unsigned select = control >> 6U;
    if (select == 3U) {  // Read-back command.
        for (unsigned i = 0; i < channels_.size(); ++i) {
            if ((control & (2U << i)) == 0U) {
                continue;
            }
            if ((control & 0x20U) == 0U) {
                latch_count(channels_[i], now);
            }
            if ((control & 0x10U) == 0U) {
                latch_status(channels_[i], now);
            }
        }
        return;
    }
    Channel& channel = channels_[select];
    const auto access = static_cast<std::uint8_t>((control >> 4U) & 3U);
    if (access == 0U) {
        latch_count(channel, now);
        return;
    }
    channel.rw_mode = access;
    channel.read_state = access;
    channel.write_state = access;
    const unsigned mode = (control >> 1U) & 7U;
    channel.mode = static_cast<std::uint8_t>(mode > 5U ? mode - 4U : mode);
    channel.bcd = (control & 1U) != 0U;
    channel.loaded = false;
    channel.running = false;
    channel.ticks_before = 0;
    channel.count_latched = 0;
    channel.status_latched = false;
    if (select == 0U) {
        schedule_locked();
    }
}

void Pit::write_count_locked(std::size_t index, std::uint8_t byte, std::uint64_t now) noexcept
{
    Channel& channel = channels_[index];
    switch (channel.write_state) {
    case access_low: load_locked(index, byte, now); break;
    case access_high: load_locked(index, static_cast<std::uint16_t>(byte << 8U), now); break;
    case access_word:
        channel.write_latch = byte;
        channel.write_state = access_word_high;
        break;
    default:
        channel.write_state = access_word;
        load_locked(index, static_cast<std::uint16_t>((byte << 8U) | channel.write_latch), now);
        break;
    }
}

std::uint8_t Pit::read_count_locked(Channel& channel, std::uint64_t now) noexcept
{
    if (channel.status_latched) {
        channel.status_latched = false;
        return channel.status;
    }
    if (channel.count_latched != 0U) {
        const std::uint8_t access = channel.count_latched;
        channel.count_latched = access == access_word ? access_high : std::uint8_t{0};
        return access == access_high ? high_byte(channel.latched_count)
                                     : low_byte(channel.latched_count);
    }
    const std::uint16_t current = value(channel, now);
    switch (channel.read_state) {
    case access_low: return low_byte(current);
    case access_high: return high_byte(current);
    case access_word: channel.read_state = access_word_high; return low_byte(current);
    default: channel.read_state = access_word; return high_byte(current);
    }
}

std::uint8_t Pit::read_speaker_locked(std::uint64_t now) const noexcept
{
    const Channel& channel = channels_[2];
    const bool refresh = ((now >> 14U) & 1U) != 0U;  // Toggles; about every 15 us on a PC.
    return static_cast<std::uint8_t>((channel.gate ? 1U : 0U) | (speaker_data_ ? 2U : 0U) |
                                     (refresh ? 0x10U : 0U) | (output(channel, now) ? 0x20U : 0U));
}

void Pit::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    std::fill(data.begin(), data.end(), std::byte{});
    if (data.empty()) {
        return;
    }
    const std::lock_guard lock{mutex_};
    const std::uint64_t now = timers_.now_ns();
    if (offset < channels_.size()) {
        data[0] = std::byte{read_count_locked(channels_[offset], now)};
    } else if (offset == speaker_offset) {
        data[0] = std::byte{read_speaker_locked(now)};
    }
}

void Pit::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    if (data.empty()) {
        return;
    }
    const auto byte = std::to_integer<std::uint8_t>(data[0]);
    const std::lock_guard lock{mutex_};
    const std::uint64_t now = timers_.now_ns();
    if (offset < channels_.size()) {
        write_count_locked(offset, byte, now);
    } else if (offset == channels_.size()) {
        write_control_locked(byte, now);
    } else if (offset == speaker_offset) {
        speaker_data_ = (byte & 2U) != 0U;
        set_gate_locked(channels_[2], (byte & 1U) != 0U, now);
    }
}

// --- Channel 0's interrupt: the rising edge of its output.

bool Pit::is_periodic_locked() const noexcept
{
    return channels_[0].mode == 2U || channels_[0].mode == 3U;
}

std::uint64_t Pit::period_ticks_locked() const noexcept
{
    const std::uint64_t count = channels_[0].count;
    return is_periodic_locked() ? std::max(count, min_period_ticks) : count;
}

std::uint64_t Pit::expiry_ns_locked(std::uint64_t tick) const noexcept
{
    // From when the count was loaded, so that rounding does not add up.
    return channels_[0].start_ns + to_ns(tick * period_ticks_locked());
}

void Pit::schedule_locked() noexcept
{
    if (timer_ == nullptr) {
        return;
    }
    const Channel& channel = channels_[0];
    pending_ = 0;
    acknowledged_ = true;
    // Modes 1 and 5 wait for a rising gate, and channel 0's is always high.
    timer_active_ = channel.loaded && channel.mode <= 4U && channel.mode != 1U;
    if (!timer_active_) {
        timer_->cancel();
        return;
    }
    next_tick_ = 1;
    timer_->arm(expiry_ns_locked(next_tick_));
}

void Pit::on_timer() noexcept
{
    bool inject = false;
    {
        const std::lock_guard lock{mutex_};
        if (!timer_active_ || timer_ == nullptr) {
            return;
        }
        const std::uint64_t now = timers_.now_ns();
        if (now < expiry_ns_locked(next_tick_)) {
            timer_->arm(expiry_ns_locked(next_tick_));  // Programmed anew meanwhile.
            return;
        }
        std::uint64_t happened = 1;
        if (is_periodic_locked()) {
            const std::uint64_t last =
                to_ticks(now - channels_[0].start_ns) / period_ticks_locked();
            happened = last - next_tick_ + 1U;
            next_tick_ = last + 1U;
            timer_->arm(expiry_ns_locked(next_tick_));
        } else {
            timer_active_ = false;
        }
        if (reinject_) {
            const std::uint64_t waiting = pending_ + happened;
            const bool lost = waiting > max_backlog;
            pending_ = static_cast<std::uint32_t>(std::min<std::uint64_t>(waiting, max_backlog));
            inject = acknowledged_ || lost;
            acknowledged_ = false;
        } else {
            inject = true;  // However many: a pending interrupt swallows the others.
        }
    }
    if (inject) {
        pulse();
    }
}

void Pit::pulse() noexcept
{
    const int status = line_(true);
    line_(false);
    if (status < 0) {
        // Masked: nothing will be acknowledged, and nothing is owed once it is unmasked.
        const std::lock_guard lock{mutex_};
        pending_ = 0;
        acknowledged_ = true;
    }
}

void Pit::acknowledged() noexcept
{
    const std::lock_guard lock{mutex_};
    if (!reinject_ || reinject_timer_ == nullptr) {
        return;
    }
    acknowledged_ = true;
    if (pending_ > 0U) {
        --pending_;
    }
    if (pending_ > 0U) {
        // On the timers' thread, so that two pulses cannot overlap.
        reinject_timer_->arm(timers_.now_ns());
    }
}

void Pit::on_reinject() noexcept
{
    {
        const std::lock_guard lock{mutex_};
        if (!acknowledged_ || pending_ == 0U) {
            return;
        }
        acknowledged_ = false;
    }
    pulse();
}

void Pit::set_reinject(bool enabled) noexcept
{
    const std::lock_guard lock{mutex_};
    reinject_ = enabled;
    pending_ = 0;
    acknowledged_ = true;
}

// --- State.

PitState Pit::state() const noexcept
{
    const std::lock_guard lock{mutex_};
    PitState state;
    for (std::size_t i = 0; i < channels_.size(); ++i) {
        const Channel& from = channels_[i];
        PitChannelState& to = state.channels[i];
        to.count = from.reload;
        to.latched_count = from.latched_count;
        to.count_latched = from.count_latched;
        to.status_latched = from.status_latched ? 1 : 0;
        to.status = from.status;
        to.read_state = from.read_state;
        to.write_state = from.write_state;
        to.write_latch = from.write_latch;
        to.rw_mode = from.rw_mode;
        to.mode = from.mode;
        to.bcd = from.bcd ? 1 : 0;
        to.gate = from.gate ? 1 : 0;
        to.count_load_time = static_cast<std::int64_t>(from.start_ns);
    }
    state.flags = speaker_data_ ? pit_speaker_data_on : 0U;
    return state;
}

void Pit::set_state(const PitState& state) noexcept
{
    const std::lock_guard lock{mutex_};
    const std::uint64_t now = timers_.now_ns();
    const auto access = [](std::uint8_t value, std::uint8_t last) {
        return value >= access_low && value <= last ? value : access_word;
    };
    for (std::size_t i = 0; i < channels_.size(); ++i) {
        const PitChannelState& from = state.channels[i];
        Channel& to = channels_[i];
        to = Channel{};
        to.bcd = from.bcd != 0U;
        to.reload = std::clamp(from.count, 1U, to.bcd ? 10'000U : 0x1'0000U);
        to.count = to.reload;
        to.latched_count = from.latched_count;
        to.count_latched = from.count_latched <= access_word ? from.count_latched : std::uint8_t{0};
        to.status_latched = from.status_latched != 0U;
        to.status = from.status;
        to.rw_mode = access(from.rw_mode, access_word);
        to.read_state = access(from.read_state, access_word_high);
        to.write_state = access(from.write_state, access_word_high);
        to.write_latch = from.write_latch;
        to.mode = from.mode <= 5U ? from.mode : unprogrammed;
        to.gate = i != 2U || from.gate != 0U;
        to.loaded = to.mode != unprogrammed;
        if (to.loaded && to.mode != 1U && to.mode != 5U) {
            start(to, now);
            to.running = to.gate;
        }
    }
    speaker_data_ = (state.flags & pit_speaker_data_on) != 0U;
    schedule_locked();
}

}  // namespace vmm::x86::irqchip
