// SPDX-License-Identifier: Apache-2.0

#include "x86/tsc.hpp"

#include <array>
#include <limits>

#include <cpuid.h>
#include <time.h>

namespace vmm::x86 {

namespace {

constexpr std::uint64_t hertz_per_khz = 1000;
constexpr std::uint32_t least_plausible_khz = 100'000;

/// SDM Vol. 2A "CPUID", leaf 15H: TSC = crystal * EBX / EAX.  0 where the CPU does not say.
std::uint32_t khz_from_crystal() noexcept
{
    std::uint32_t eax = 0;
    std::uint32_t ebx = 0;
    std::uint32_t ecx = 0;
    std::uint32_t edx = 0;
    if (__get_cpuid_count(0x15, 0, &eax, &ebx, &ecx, &edx) == 0 || eax == 0 || ebx == 0 ||
        ecx == 0) {
        return 0;
    }
    return static_cast<std::uint32_t>(std::uint64_t{ecx} * ebx / eax / hertz_per_khz);
}

/// The timing leaf that VMware introduced and other hypervisors share.
std::uint32_t khz_from_hypervisor() noexcept
{
    std::uint32_t eax = 0;
    std::uint32_t ebx = 0;
    std::uint32_t ecx = 0;
    std::uint32_t edx = 0;
    constexpr std::uint32_t hypervisor = 1U << 31U;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & hypervisor) == 0) {
        return 0;
    }
    constexpr std::uint32_t first_leaf = 0x4000'0000;
    constexpr std::uint32_t timing_leaf = 0x4000'0010;
    constexpr std::uint32_t last_plausible_leaf = 0x4000'ffff;
    __cpuid(first_leaf, eax, ebx, ecx, edx);
    if (eax < timing_leaf || eax > last_plausible_leaf) {
        return 0;
    }
    __cpuid(timing_leaf, eax, ebx, ecx, edx);
    return eax;
}

struct Sample {
    std::uint64_t tsc{};
    std::uint64_t time_ns{};
};

std::uint64_t monotonic_ns() noexcept
{
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    constexpr std::uint64_t ns_per_second = 1'000'000'000;
    return static_cast<std::uint64_t>(now.tv_sec) * ns_per_second +
           static_cast<std::uint64_t>(now.tv_nsec);
}

/// The pair read closest together of several: a preemption in between would spoil it.
Sample sample() noexcept
{
    Sample best{};
    std::uint64_t best_span = std::numeric_limits<std::uint64_t>::max();
    for (int attempt = 0; attempt < 16; ++attempt) {
        const std::uint64_t before = read_host_tsc();
        const std::uint64_t time_ns = monotonic_ns();
        const std::uint64_t span = read_host_tsc() - before;
        if (span < best_span) {
            best_span = span;
            best = {before + span / 2, time_ns};
        }
    }
    return best;
}

std::uint32_t measured_khz() noexcept
{
    constexpr std::uint64_t duration_ns = 20'000'000;
    const Sample first = sample();
    while (monotonic_ns() - first.time_ns < duration_ns) {
        _mm_pause();
    }
    const Sample last = sample();
    constexpr std::uint64_t ns_per_ms = 1'000'000;
    return static_cast<std::uint32_t>((last.tsc - first.tsc) * ns_per_ms /
                                      (last.time_ns - first.time_ns));
}

}  // namespace

TscRatio tsc_ratio_for(std::uint32_t guest_khz, std::uint32_t host_khz) noexcept
{
    const std::uint32_t tolerance = host_khz / 4000U;
    const bool is_near = guest_khz >= host_khz - tolerance && guest_khz <= host_khz + tolerance;
    return is_near ? TscRatio{} : TscRatio{guest_khz, host_khz};
}

std::uint32_t host_tsc_khz()
{
    static const std::uint32_t khz = [] {
        for (const std::uint32_t told : std::array{khz_from_crystal(), khz_from_hypervisor()}) {
            if (told >= least_plausible_khz) {
                return told;
            }
        }
        return measured_khz();
    }();
    return khz;
}

}  // namespace vmm::x86
