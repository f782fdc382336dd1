// SPDX-License-Identifier: Apache-2.0

#include "x86/kvmclock.hpp"

#include <atomic>
#include <cstring>

namespace vmm::x86 {
namespace {

__extension__ using U128 = unsigned __int128;

constexpr std::uint64_t ns_per_s = 1'000'000'000;

/// The version goes first and last, odd in between, so that a reader sees a torn record.
template <typename T>
bool write_versioned(const KvmClock::WriteMemory& write, Gpa gpa, T record, std::uint32_t& version)
{
    const auto write_version = [&] {
        const std::uint32_t current = ++version;
        return write(gpa, std::as_bytes(std::span{&current, 1}));
    };
    if (!write_version()) {
        --version;
        return false;
    }
    record.version = version;
    // The guest's other CPUs may read (vDSO): the order of the three stores counts.  The host is an
    // x86 too and keeps stores in order, so that the compiler is the only one to hold back.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    const bool written = write(gpa, std::as_bytes(std::span{&record, 1}));
    std::atomic_signal_fence(std::memory_order_seq_cst);
    return write_version() && written;
}

}  // namespace

TscScale tsc_scale(std::uint32_t tsc_khz) noexcept
{
    if (tsc_khz == 0U) {
        return {};
    }
    // mul / 2^32 * 2^shift = 10^9 / frequency, with mul in [2^31, 2^32) for full precision.
    std::uint64_t frequency = std::uint64_t{tsc_khz} * 1000U;
    int shift = 0;
    while (frequency > 2U * ns_per_s) {
        frequency /= 2U;
        --shift;
    }
    while (frequency <= ns_per_s) {
        frequency *= 2U;
        ++shift;
    }
    // From the unhalved frequency: the bits shifted out above count.
    const U128 exact = static_cast<U128>(std::uint64_t{tsc_khz} * 1000U) << (shift > 0 ? shift : 0);
    const U128 numerator = static_cast<U128>(ns_per_s) << (32 + (shift < 0 ? -shift : 0));
    const U128 mul = (numerator + exact / 2U) / exact;
    constexpr U128 largest = 0xffff'ffffU;
    return {static_cast<std::uint32_t>(mul > largest ? largest : mul),
            static_cast<std::int8_t>(shift)};
}

std::uint64_t scale_tsc(std::uint64_t tsc_delta, TscScale scale) noexcept
{
    const std::uint64_t shifted = scale.shift < 0 ? tsc_delta >> static_cast<unsigned>(-scale.shift)
                                                  : tsc_delta << static_cast<unsigned>(scale.shift);
    return static_cast<std::uint64_t>((static_cast<U128>(shifted) * scale.mul) >> 32U);
}

PvclockTimeInfo pvclock_time_info(std::uint64_t tsc,
                                  std::uint64_t system_ns,
                                  std::uint32_t tsc_khz,
                                  std::uint8_t flags) noexcept
{
    const TscScale scale = tsc_scale(tsc_khz);
    PvclockTimeInfo info;
    info.tsc_timestamp = tsc;
    info.system_time = system_ns;
    info.tsc_to_system_mul = scale.mul;
    info.tsc_shift = scale.shift;
    info.flags = flags;
    return info;
}

bool KvmClock::update(const WriteMemory& write,
                      std::uint64_t tsc,
                      std::uint64_t system_ns,
                      std::uint32_t tsc_khz,
                      bool tsc_stable)
{
    if (!is_enabled()) {
        return false;
    }
    const auto flags = static_cast<std::uint8_t>((tsc_stable ? pvclock_tsc_stable : 0U) |
                                                 (guest_stopped_ ? pvclock_guest_stopped : 0U));
    const PvclockTimeInfo info = pvclock_time_info(tsc, system_ns, tsc_khz, flags);
    const bool written =
        write_versioned(write, Gpa{system_time_ & ~std::uint64_t{1}}, info, version_);
    guest_stopped_ = guest_stopped_ && !written;
    return written;
}

bool KvmClock::set_wall_clock(const WriteMemory& write, std::uint64_t msr, std::uint64_t epoch_ns)
{
    wall_clock_ = msr;
    if (msr == 0U) {
        return false;
    }
    PvclockWallClock record;
    record.sec = static_cast<std::uint32_t>(epoch_ns / ns_per_s);
    record.nsec = static_cast<std::uint32_t>(epoch_ns % ns_per_s);
    return write_versioned(write, Gpa{msr}, record, wall_clock_version_);
}

}  // namespace vmm::x86
