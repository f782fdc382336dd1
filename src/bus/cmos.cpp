// SPDX-License-Identifier: Apache-2.0

// MC146818A data sheet, "Address Map", "Registers" and "Update Cycle"; the bytes past the chip's
// own are the PC AT's and firmware's conventions.

#include "vmm/device/cmos.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include "bus/bytes.hpp"

namespace vmm::device {

namespace {

constexpr std::uint8_t seconds = 0x00;
constexpr std::uint8_t seconds_alarm = 0x01;
constexpr std::uint8_t minutes = 0x02;
constexpr std::uint8_t minutes_alarm = 0x03;
constexpr std::uint8_t hours = 0x04;
constexpr std::uint8_t hours_alarm = 0x05;
constexpr std::uint8_t day_of_week = 0x06;
constexpr std::uint8_t day_of_month = 0x07;
constexpr std::uint8_t month = 0x08;
constexpr std::uint8_t year = 0x09;
constexpr std::uint8_t register_a = 0x0a;
constexpr std::uint8_t register_b = 0x0b;
constexpr std::uint8_t register_c = 0x0c;
constexpr std::uint8_t register_d = 0x0d;

constexpr std::uint8_t a_update_in_progress = 0x80;
constexpr std::uint8_t a_divider = 0x70;
constexpr std::uint8_t a_divider_32768_hz = 0x20;
constexpr std::uint8_t a_rate = 0x0f;

constexpr std::uint8_t b_set = 0x80;
constexpr std::uint8_t b_binary = 0x04;
constexpr std::uint8_t b_24_hours = 0x02;

// The same bits in C as flags and in B as enables.
constexpr std::uint8_t periodic = 0x40;
constexpr std::uint8_t alarm = 0x20;
constexpr std::uint8_t update_ended = 0x10;
constexpr std::uint8_t sources = periodic | alarm | update_ended;
constexpr std::uint8_t c_interrupt_request = 0x80;

constexpr std::uint8_t d_valid_ram_and_time = 0x80;
constexpr std::uint8_t hour_pm = 0x80;
// "Don't care" is any alarm byte "from C0 to FF".
constexpr std::uint8_t alarm_any = 0xc0;

constexpr std::int64_t second_ns = 1'000'000'000;
constexpr std::int64_t seconds_a_day = 86400;
// tBUC + tUC at 32.768 kHz: "update in progress" precedes the new second by this.
constexpr std::int64_t update_ns = 244'000 + 1'984'000;

/// Division towards minus infinity, for times before 1970.
[[nodiscard]] constexpr std::int64_t floor_div(std::int64_t value, std::int64_t by) noexcept
{
    return value / by - (value % by < 0 ? 1 : 0);
}

[[nodiscard]] constexpr std::int64_t floor_mod(std::int64_t value, std::int64_t by) noexcept
{
    return value - floor_div(value, by) * by;
}

[[nodiscard]] constexpr bool is_time(std::uint8_t index) noexcept
{
    return index == seconds || index == minutes || index == hours ||
           (index >= day_of_week && index <= year) || index == cmos_century_index;
}

[[nodiscard]] std::int64_t host_wall_clock_ns()
{
    const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(since_epoch).count();
}

}  // namespace

Cmos::Cmos(TimerService& timers, Config config)
    : config_{std::move(config)},
      timers_{timers},
      pin_{config_.irq},
      timer_{timers.create_timer([this] { on_timer(); })}
{
    memory_[register_a] = a_divider_32768_hz | 0x06;  // 1024 Hz, what every PC firmware leaves
    memory_[register_b] = b_24_hours;
    memory_[register_d] = d_valid_ram_and_time;
    fill_memory_sizes();
    collected_until_ns_ = now_locked();
}

void Cmos::fill_memory_sizes()
{
    constexpr std::uint64_t kib = 1024;
    constexpr std::uint64_t mib = 1024 * kib;
    const auto store = [this](std::size_t index, std::uint64_t value, std::uint64_t limit) {
        const std::uint64_t stored = std::min(value, limit);
        memory_[index] = detail::byte_of(stored, 0);
        memory_[index + 1] = detail::byte_of(stored, 1);
        if (limit > 0xffff) {
            memory_[index + 2] = detail::byte_of(stored, 2);
        }
    };
    const auto above = [this](std::uint64_t start) {
        return config_.ram_below_4g > start ? config_.ram_below_4g - start : 0;
    };
    memory_[0x14] = 0x02;  // Equipment: a coprocessor.
    store(0x15, std::min<std::uint64_t>(config_.ram_below_4g / kib, 640), 0xffff);
    store(0x17, above(mib) / kib, 0xffff);
    store(0x30, above(mib) / kib, 0xffff);
    store(0x34, above(16 * mib) / (64 * kib), 0xffff);
    store(0x5b, config_.ram_above_4g / (64 * kib), 0xff'ffff);
    const std::uint32_t cpus = std::clamp<std::uint32_t>(config_.cpu_count, 1, 256);
    memory_[0x5f] = static_cast<std::uint8_t>(cpus - 1);
    // The AT firmware's checksum of bytes 0x10 to 0x2d, most significant byte first.
    std::uint32_t sum = 0;
    for (std::size_t i = 0x10; i <= 0x2d; ++i) {
        sum += memory_[i];
    }
    memory_[0x2e] = detail::byte_of(sum, 1);
    memory_[0x2f] = detail::byte_of(sum, 0);
}

void Cmos::read(std::uint64_t offset, std::span<std::byte> data) noexcept
{
    for (std::byte& byte : data) {
        byte = std::byte{detail::open_bus};
        if (offset++ == 1) {
            const std::lock_guard lock{mutex_};
            byte = std::byte{read_byte_locked()};
            update_locked();
        }
    }
    pin_.deliver();
}

void Cmos::write(std::uint64_t offset, std::span<const std::byte> data) noexcept
{
    for (const std::byte byte : data) {
        const std::uint8_t value = detail::to_u8(byte);
        const std::lock_guard lock{mutex_};
        if (offset == 0) {
            index_ = value & 0x7f;
            nmi_masked_ = (value & 0x80) != 0;
        } else if (offset == 1) {
            write_byte_locked(value);
            update_locked();
        }
        ++offset;
    }
    pin_.deliver();
}

bool Cmos::is_nmi_masked() const noexcept
{
    const std::lock_guard lock{mutex_};
    return nmi_masked_;
}

std::uint8_t Cmos::read_byte_locked()
{
    if (index_ == register_a) {
        const bool updating = is_updating_locked(now_locked());
        return static_cast<std::uint8_t>(memory_[register_a] |
                                         (updating ? a_update_in_progress : 0));
    }
    if (index_ == register_c) {
        collect_events_locked();
        const std::uint8_t flags = std::exchange(memory_[register_c], std::uint8_t{0});
        const bool request = (flags & memory_[register_b] & sources) != 0;
        return static_cast<std::uint8_t>(flags | (request ? c_interrupt_request : 0));
    }
    if (is_time(index_) && is_running_locked()) {
        latch_time_locked(now_locked());
    }
    return memory_[index_];
}

void Cmos::write_byte_locked(std::uint8_t value)
{
    if (index_ == register_a || index_ == register_b) {
        write_mode_locked(index_, value);
    } else if (index_ == register_c || index_ == register_d) {
        return;  // Read-only.
    } else if (is_time(index_) && is_running_locked()) {
        // Setting a counter of the running clock: the others, and the fraction, go on.
        const std::int64_t now = now_locked();
        latch_time_locked(now);
        memory_[index_] = value;
        offset_ns_ += (latched_seconds_locked() - floor_div(now, second_ns)) * second_ns;
        collected_until_ns_ = now_locked();
    } else if (index_ == seconds_alarm || index_ == minutes_alarm || index_ == hours_alarm) {
        collect_events_locked();
        memory_[index_] = value;
    } else {
        memory_[index_] = value;
    }
}

/// Registers A and B can stop the clock and start it.
void Cmos::write_mode_locked(std::uint8_t index, std::uint8_t value)
{
    collect_events_locked();
    const bool was_running = is_running_locked();
    const std::int64_t now = now_locked();
    if (was_running) {
        latch_time_locked(now);
    }
    const std::uint8_t before = memory_[index];
    memory_[index] =
        index == register_a ? value & static_cast<std::uint8_t>(~a_update_in_progress) : value;
    if (index == register_b && (value & b_set) != 0) {
        memory_[register_b] &= static_cast<std::uint8_t>(~update_ended);  // "SET … clears UIE"
    }
    const bool running = is_running_locked();
    if (was_running && !running) {
        stopped_fraction_ns_ = floor_mod(now, second_ns);
    }
    // "When the divider is changed from reset to an operating time base, the first update cycle
    // is one-half second later."
    if (index == register_a && (before & a_divider) != a_divider_32768_hz) {
        stopped_fraction_ns_ = second_ns / 2;
    }
    if (!was_running && running) {
        const std::int64_t guest = latched_seconds_locked() * second_ns + stopped_fraction_ns_;
        offset_ns_ += guest - now;
    }
    collected_until_ns_ = now_locked();
}

std::int64_t Cmos::now_locked() const
{
    return (config_.wall_clock_ns ? config_.wall_clock_ns() : host_wall_clock_ns()) + offset_ns_;
}

bool Cmos::is_running_locked() const noexcept
{
    return (memory_[register_b] & b_set) == 0 &&
           (memory_[register_a] & a_divider) == a_divider_32768_hz;
}

bool Cmos::is_updating_locked(std::int64_t now) const noexcept
{
    return is_running_locked() && floor_mod(now, second_ns) >= second_ns - update_ns;
}

std::uint8_t Cmos::encode_locked(std::uint32_t value) const noexcept
{
    const bool binary = (memory_[register_b] & b_binary) != 0;
    return static_cast<std::uint8_t>(binary ? value : (value / 10 % 10) << 4 | value % 10);
}

std::uint32_t Cmos::decode_locked(std::uint8_t value) const noexcept
{
    const bool binary = (memory_[register_b] & b_binary) != 0;
    return binary ? value : static_cast<std::uint32_t>((value >> 4) * 10 + (value & 0x0f));
}

std::uint8_t Cmos::encode_hour_locked(std::uint32_t hour) const noexcept
{
    if ((memory_[register_b] & b_24_hours) != 0) {
        return encode_locked(hour);
    }
    const std::uint8_t twelve = encode_locked(hour % 12 == 0 ? 12 : hour % 12);
    return static_cast<std::uint8_t>(twelve | (hour >= 12 ? hour_pm : 0));
}

std::uint32_t Cmos::decode_hour_locked(std::uint8_t value) const noexcept
{
    if ((memory_[register_b] & b_24_hours) != 0) {
        return decode_locked(value);
    }
    const std::uint32_t twelve = decode_locked(value & 0x7f) % 12;
    return twelve + ((value & hour_pm) != 0 ? 12 : 0);
}

void Cmos::latch_time_locked(std::int64_t now)
{
    using std::chrono::days;
    const std::int64_t total = floor_div(now, second_ns);
    const std::int64_t day = floor_div(total, seconds_a_day);
    const auto in_day = static_cast<std::uint32_t>(floor_mod(total, seconds_a_day));
    const std::chrono::sys_days date{days{static_cast<days::rep>(day)}};
    const std::chrono::year_month_day civil{date};
    const auto full_year = static_cast<std::uint32_t>(std::clamp(int{civil.year()}, 0, 9999));
    memory_[seconds] = encode_locked(in_day % 60);
    memory_[minutes] = encode_locked(in_day / 60 % 60);
    memory_[hours] = encode_hour_locked(in_day / 3600);
    memory_[day_of_week] = encode_locked(std::chrono::weekday{date}.c_encoding() + 1);
    memory_[day_of_month] = encode_locked(unsigned{civil.day()});
    memory_[month] = encode_locked(unsigned{civil.month()});
    memory_[year] = encode_locked(full_year % 100);
    // BCD even in binary mode: it is memory to the chip, and firmware keeps it so.
    const std::uint32_t century = full_year / 100;
    memory_[cmos_century_index] = static_cast<std::uint8_t>((century / 10) << 4 | century % 10);
}

/// Whatever the guest wrote, some time comes of it: fields past their range carry over.
std::int64_t Cmos::latched_seconds_locked() const
{
    const std::uint8_t raw_century = memory_[cmos_century_index];
    const int century = (raw_century >> 4) * 10 + (raw_century & 0x0f);
    const int full_year = century * 100 + static_cast<int>(decode_locked(memory_[year]));
    const std::uint32_t raw_month = std::clamp<std::uint32_t>(decode_locked(memory_[month]), 1, 12);
    // Years of which nanoseconds in 64 bits hold the time and any difference.
    const std::chrono::sys_days first{std::chrono::year{std::clamp(full_year, 1970, 2199)} /
                                      std::chrono::month{raw_month} / std::chrono::day{1}};
    const std::int64_t day_in_month = decode_locked(memory_[day_of_month]);
    const std::int64_t day = first.time_since_epoch().count() + day_in_month - 1;
    return day * seconds_a_day + std::int64_t{decode_hour_locked(memory_[hours])} * 3600 +
           std::int64_t{decode_locked(memory_[minutes])} * 60 + decode_locked(memory_[seconds]);
}

/// Table "Periodic Interrupt Rate", for a 32.768 kHz time base; 0 is none.
std::int64_t Cmos::period_ns_locked() const noexcept
{
    const unsigned rate = memory_[register_a] & a_rate;
    if (rate == 0 || (memory_[register_a] & a_divider) != a_divider_32768_hz) {
        return 0;
    }
    const unsigned shift = rate <= 2 ? rate + 6 : rate - 1;
    return (std::int64_t{1} << shift) * second_ns / 32768;
}

/// Whether the alarm matches at a second in (after, until], times in nanoseconds.
bool Cmos::alarm_between_locked(std::int64_t after, std::int64_t until) const noexcept
{
    const std::int64_t last = floor_div(until, second_ns);
    // A day has every time of day.
    const std::int64_t first = std::max(floor_div(after, second_ns) + 1, last - seconds_a_day + 1);
    const auto matches = [](std::uint8_t wanted, std::uint8_t found) {
        return wanted >= alarm_any || wanted == found;
    };
    for (std::int64_t second = first; second <= last; ++second) {
        const auto in_day = static_cast<std::uint32_t>(floor_mod(second, seconds_a_day));
        if (matches(memory_[seconds_alarm], encode_locked(in_day % 60)) &&
            matches(memory_[minutes_alarm], encode_locked(in_day / 60 % 60)) &&
            matches(memory_[hours_alarm], encode_hour_locked(in_day / 3600))) {
            return true;
        }
    }
    return false;
}

/// Notes in register C what has happened since the last look.
void Cmos::collect_events_locked()
{
    const std::int64_t now = now_locked();
    const std::int64_t before = std::exchange(collected_until_ns_, now);
    if (now <= before) {
        return;  // The host's clock was set back.
    }
    const std::int64_t period = period_ns_locked();
    if (period != 0 && floor_div(now, period) != floor_div(before, period)) {
        memory_[register_c] |= periodic;
    }
    if (is_running_locked() && floor_div(now, second_ns) != floor_div(before, second_ns)) {
        memory_[register_c] |= update_ended;
        if (alarm_between_locked(before, now)) {
            memory_[register_c] |= alarm;
        }
    }
}

/// Sets the pin, and the timer for the next event that could move it.
void Cmos::update_locked()
{
    const std::uint8_t enabled = memory_[register_b] & sources;
    const bool request = (memory_[register_c] & enabled) != 0;
    pin_.set(request);
    if (request || enabled == 0) {
        timer_->cancel();
        return;
    }
    const std::int64_t now = now_locked();
    std::int64_t wait = 0;
    if (const std::int64_t period = period_ns_locked(); (enabled & periodic) != 0 && period != 0) {
        wait = period - floor_mod(now, period);
    }
    if ((enabled & (alarm | update_ended)) != 0 && is_running_locked()) {
        const std::int64_t to_second = second_ns - floor_mod(now, second_ns);
        wait = wait == 0 ? to_second : std::min(wait, to_second);
    }
    if (wait == 0) {
        timer_->cancel();
    } else {
        timer_->arm(timers_.now_ns() + static_cast<std::uint64_t>(wait));
    }
}

void Cmos::on_timer()
{
    {
        const std::lock_guard lock{mutex_};
        collect_events_locked();
        update_locked();
    }
    pin_.deliver();
}

}  // namespace vmm::device
