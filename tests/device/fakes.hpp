// SPDX-License-Identifier: Apache-2.0

/// @file
/// What device tests stand on: a clock turned by hand, a wire that records, register access.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vmm/bus/device.hpp"
#include "vmm/device/irq_line.hpp"
#include "vmm/timer.hpp"

namespace vmm::device::test {

/// A `TimerService` whose time passes in `advance()` only.  Single-threaded.
class FakeTimers final : public TimerService {
public:
    [[nodiscard]] std::uint64_t now_ns() const noexcept override { return now_; }

    [[nodiscard]] std::unique_ptr<Timer> create_timer(std::function<void()> on_expiry) override
    {
        auto timer = std::make_unique<FakeTimer>(*this, std::move(on_expiry));
        timers_.push_back(timer.get());
        return timer;
    }

    /// Lets time pass, stopping at each deadline on the way.
    void advance(std::uint64_t ns)
    {
        const std::uint64_t end = now_ + ns;
        while (FakeTimer* next = earliest(end)) {
            now_ = std::max(now_, *next->deadline);
            next->deadline.reset();
            ++expiries;
            next->on_expiry();
        }
        now_ = end;
    }

    [[nodiscard]] bool is_armed() const
    {
        return std::any_of(timers_.begin(), timers_.end(),
                           [](const FakeTimer* timer) { return timer->deadline.has_value(); });
    }

    unsigned expiries{0};

private:
    struct FakeTimer final : Timer {
        FakeTimer(FakeTimers& its_owner, std::function<void()> function)
            : owner{its_owner},
              on_expiry{std::move(function)}
        {
        }
        ~FakeTimer() override { std::erase(owner.timers_, this); }
        FakeTimer(const FakeTimer&) = delete;
        FakeTimer& operator=(const FakeTimer&) = delete;
        FakeTimer(FakeTimer&&) = delete;
        FakeTimer& operator=(FakeTimer&&) = delete;
        void arm(std::uint64_t deadline_ns) override { deadline = deadline_ns; }
        void cancel() override { deadline.reset(); }

        FakeTimers& owner;
        std::function<void()> on_expiry;
        std::optional<std::uint64_t> deadline;
    };

    [[nodiscard]] FakeTimer* earliest(std::uint64_t end)
    {
        FakeTimer* found = nullptr;
        for (FakeTimer* timer : timers_) {
            if (timer->deadline && *timer->deadline <= end &&
                (found == nullptr || *timer->deadline < *found->deadline)) {
                found = timer;
            }
        }
        return found;
    }

    std::vector<FakeTimer*> timers_;
    std::uint64_t now_{1'000'000'000};
};

/// The far end of an interrupt wire.
struct Wire {
    [[nodiscard]] IrqLine line()
    {
        return [this](bool level) {
            high = level;
            rises += level ? 1U : 0U;
            ++changes;
        };
    }

    bool high{false};
    unsigned rises{0};
    unsigned changes{0};
};

inline void out8(bus::DeviceBase& device, std::uint64_t offset, unsigned value)
{
    const std::byte byte{static_cast<std::uint8_t>(value)};
    device.write(offset, {&byte, 1});
}

[[nodiscard]] inline unsigned in8(bus::DeviceBase& device, std::uint64_t offset)
{
    std::byte byte{0xa5};
    device.read(offset, {&byte, 1});
    return std::to_integer<unsigned>(byte);
}

inline void out(bus::DeviceBase& device, std::uint64_t offset, std::uint64_t value, unsigned size)
{
    std::vector<std::byte> bytes;
    for (unsigned i = 0; i < size; ++i) {
        bytes.push_back(std::byte{static_cast<std::uint8_t>(value >> (8 * i))});
    }
    device.write(offset, bytes);
}

[[nodiscard]] inline std::uint64_t in(bus::DeviceBase& device, std::uint64_t offset, unsigned size)
{
    std::vector<std::byte> bytes(size, std::byte{0xa5});
    device.read(offset, bytes);
    std::uint64_t value = 0;
    for (unsigned i = 0; i < size; ++i) {
        value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
    }
    return value;
}

[[nodiscard]] inline std::span<const std::byte> bytes_of(std::string_view text)
{
    return std::as_bytes(std::span{text});
}

[[nodiscard]] inline std::string text_of(std::span<const std::byte> bytes)
{
    std::string text;
    for (const std::byte byte : bytes) {
        text.push_back(static_cast<char>(byte));
    }
    return text;
}

}  // namespace vmm::device::test
