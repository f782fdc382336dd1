// SPDX-License-Identifier: Apache-2.0

/// @file
/// The host's time-stamp counter.

#pragma once

#include <cstdint>

#include <x86intrin.h>

namespace vmm::x86 {

/// The counter now; about 10 ns.
[[nodiscard]] inline std::uint64_t read_host_tsc() noexcept
{
    return __rdtsc();
}

/// Tells the host's CPU that this is a loop that waits.
inline void pause() noexcept
{
    _mm_pause();
}

/// The counter's frequency in kHz: from CPUID where the CPU or the host's hypervisor tells it, else
/// measured against CLOCK_MONOTONIC_RAW, which takes about 20 ms the first time.  Any thread.
[[nodiscard]] std::uint32_t host_tsc_khz();

/// How fast a guest's counter runs beside the host's: guest = host * ratio / 2^48.
class TscRatio {
public:
    /// As fast as the host's.
    constexpr TscRatio() noexcept = default;
    /// @pre neither is 0, and `guest_khz` is less than 2^16 times `host_khz`
    constexpr TscRatio(std::uint32_t guest_khz, std::uint32_t host_khz) noexcept
        : ratio_{static_cast<std::uint64_t>((U128{guest_khz} << fraction_bits) / host_khz)}
    {
    }

    [[nodiscard]] constexpr bool is_one() const noexcept { return ratio_ == one; }
    /// Ticks of the guest for ticks of the host.
    [[nodiscard]] constexpr std::uint64_t scale(std::uint64_t host_ticks) const noexcept
    {
        return is_one() ? host_ticks
                        : static_cast<std::uint64_t>((U128{host_ticks} * ratio_) >> fraction_bits);
    }

    friend constexpr bool operator==(TscRatio, TscRatio) noexcept = default;

private:
    __extension__ using U128 = unsigned __int128;
    static constexpr unsigned fraction_bits = 48;
    static constexpr std::uint64_t one = std::uint64_t{1} << fraction_bits;

    std::uint64_t ratio_{one};
};

/// The ratio that a guest with a counter of `guest_khz` needs: none within 250 ppm of the host's,
/// which is KVM's tolerance.
[[nodiscard]] TscRatio tsc_ratio_for(std::uint32_t guest_khz, std::uint32_t host_khz) noexcept;

}  // namespace vmm::x86
