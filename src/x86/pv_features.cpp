// SPDX-License-Identifier: Apache-2.0

#include "x86/pv_features.hpp"

#include "x86/msr.hpp"

namespace vmm::x86 {

std::optional<CpuidFeature> pv_feature_of(std::uint32_t index) noexcept
{
    switch (index) {
    case msr::kvm_wall_clock_old:
    case msr::kvm_system_time_old: return feature::kvm_clocksource;
    case msr::kvm_wall_clock:
    case msr::kvm_system_time: return feature::kvm_clocksource2;
    case msr::kvm_async_pf_en: return feature::kvm_async_pf;
    case msr::kvm_async_pf_int:
    case msr::kvm_async_pf_ack: return feature::kvm_async_pf_int;
    case msr::kvm_steal_time: return feature::kvm_steal_time;
    case msr::kvm_pv_eoi: return feature::kvm_pv_eoi;
    case msr::kvm_poll_control: return feature::kvm_poll_control;
    default: return std::nullopt;
    }
}

bool PvFeatures::read(std::uint32_t index, std::uint64_t& value) const noexcept
{
    switch (index) {
    case msr::kvm_async_pf_en: value = async_pf_; return true;
    case msr::kvm_async_pf_int: value = async_pf_vector_; return true;
    case msr::kvm_async_pf_ack: value = 0; return true;
    case msr::kvm_steal_time: value = steal_time_; return true;
    case msr::kvm_pv_eoi: value = pv_eoi_; return true;
    case msr::kvm_poll_control: value = poll_control_; return true;
    default: return false;
    }
}

bool PvFeatures::write(std::uint32_t index, std::uint64_t value, bool has_lapic) noexcept
{
    switch (index) {
    case msr::kvm_async_pf_en: {
        constexpr std::uint64_t reserved = 0x30;
        // Pages that are there again are told of by an interrupt.
        if ((value & reserved) != 0U || (value != 0U && !has_lapic)) {
            return false;
        }
        async_pf_ = value;
        return true;
    }
    case msr::kvm_async_pf_int:
        if (value > 0xffU || !has_lapic) {
            return false;
        }
        async_pf_vector_ = value;
        return true;
    case msr::kvm_async_pf_ack: return true;
    case msr::kvm_steal_time: {
        constexpr std::uint64_t reserved = 0x3e;
        if ((value & reserved) != 0U) {
            return false;
        }
        steal_time_ = value;
        return true;
    }
    case msr::kvm_pv_eoi: {
        constexpr std::uint64_t misaligned = 2;
        if ((value & misaligned) != 0U) {
            return false;
        }
        pv_eoi_ = value;
        return true;
    }
    case msr::kvm_poll_control:
        if (value > 1U) {
            return false;
        }
        poll_control_ = value;
        return true;
    default: return false;
    }
}

std::optional<Gpa> PvFeatures::silent_eoi() const noexcept
{
    constexpr std::uint64_t enabled = 1;
    if ((pv_eoi_ & enabled) == 0U) {
        return std::nullopt;
    }
    return Gpa{pv_eoi_ & ~std::uint64_t{3}};
}

}  // namespace vmm::x86
