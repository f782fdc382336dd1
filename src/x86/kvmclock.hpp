// SPDX-License-Identifier: Apache-2.0

/// @file
/// kvmclock, the paravirtual clock.  KVM documentation "KVM-specific MSRs": MSR_KVM_SYSTEM_TIME
/// and MSR_KVM_WALL_CLOCK.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "vmm/address.hpp"

namespace vmm::x86 {

/// What the guest reads its time from: struct pvclock_vcpu_time_info.  An odd version means that
/// it is being written.
///
///     ns = system_time + ((tsc - tsc_timestamp) shifted left by tsc_shift) * mul / 2^32
struct PvclockTimeInfo {
    std::uint32_t version{};
    std::uint32_t pad0{};
    std::uint64_t tsc_timestamp{};
    std::uint64_t system_time{};  ///< Nanoseconds at `tsc_timestamp`.
    std::uint32_t tsc_to_system_mul{};
    std::int8_t tsc_shift{};
    std::uint8_t flags{};
    std::uint8_t pad[2]{};

    friend bool operator==(const PvclockTimeInfo&, const PvclockTimeInfo&) noexcept = default;
};

inline constexpr std::uint8_t pvclock_tsc_stable = 1;     ///< Times of all vCPUs are comparable.
inline constexpr std::uint8_t pvclock_guest_stopped = 2;  ///< The host had the guest stopped.

/// struct pvclock_wall_clock: the time of day when the system time was 0.
struct PvclockWallClock {
    std::uint32_t version{};
    std::uint32_t sec{};
    std::uint32_t nsec{};
};

static_assert(sizeof(PvclockTimeInfo) == 32 && sizeof(PvclockWallClock) == 12);

/// TSC ticks to nanoseconds as a shift and a 32-bit fraction.
struct TscScale {
    std::uint32_t mul{};
    std::int8_t shift{};

    friend bool operator==(TscScale, TscScale) noexcept = default;
};

/// The scale for a TSC of `tsc_khz`; all zeros (time stands still) for a frequency of 0.
[[nodiscard]] TscScale tsc_scale(std::uint32_t tsc_khz) noexcept;

/// What a guest computes for `tsc_delta` ticks.
[[nodiscard]] std::uint64_t scale_tsc(std::uint64_t tsc_delta, TscScale scale) noexcept;

/// The page contents for "at `tsc` it is `system_ns`", with version 0.
[[nodiscard]] PvclockTimeInfo pvclock_time_info(std::uint64_t tsc,
                                                std::uint64_t system_ns,
                                                std::uint32_t tsc_khz,
                                                std::uint8_t flags) noexcept;

/// A vCPU's kvmclock MSRs, and the writes to guest memory that they ask for.
///
/// Thread safety: none; it belongs to the vCPU's thread.
class KvmClock {
public:
    /// Writes guest memory; false if there is none.
    using WriteMemory = std::function<bool(Gpa, std::span<const std::byte>)>;

    /// MSR_KVM_SYSTEM_TIME(_NEW): bit 0 enables, the rest is the address.  Write the page with
    /// `update` then.
    void set_system_time(std::uint64_t msr) noexcept { system_time_ = msr; }
    [[nodiscard]] std::uint64_t system_time() const noexcept { return system_time_; }
    [[nodiscard]] bool is_enabled() const noexcept { return (system_time_ & 1U) != 0U; }

    /// Writes the page, if the guest has enabled it: now, at `tsc`, it is `system_ns`.
    /// @return whether it was written.
    bool update(const WriteMemory& write,
                std::uint64_t tsc,
                std::uint64_t system_ns,
                std::uint32_t tsc_khz,
                bool tsc_stable);

    /// KVM_KVMCLOCK_CTRL: the next update tells the guest that it was stopped.
    void set_guest_stopped() noexcept { guest_stopped_ = true; }

    /// MSR_KVM_WALL_CLOCK(_NEW): writes the time of day at which the system time was 0.
    /// @return whether it was written; an address of 0 asks for nothing.
    bool set_wall_clock(const WriteMemory& write, std::uint64_t msr, std::uint64_t epoch_ns);
    [[nodiscard]] std::uint64_t wall_clock() const noexcept { return wall_clock_; }

    /// RESET: both are off.
    void reset() noexcept { *this = KvmClock{}; }

private:
    std::uint64_t system_time_{};
    std::uint64_t wall_clock_{};
    std::uint32_t version_{};
    std::uint32_t wall_clock_version_{};
    bool guest_stopped_{};
};

}  // namespace vmm::x86
