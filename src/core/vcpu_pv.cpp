// SPDX-License-Identifier: Apache-2.0

/// @file
/// KVM's paravirtual features of a vCPU, beside kvmclock.

#include "core/vcpu_core.hpp"
#include "core/vm_core.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {

bool VcpuCore::has_pv_feature(x86::CpuidFeature feature) noexcept
{
    return !enforces_pv_features_ || state(x86::StateGroup::None).cpuid.has(feature);
}

bool VcpuCore::access_pv_msr(std::uint32_t index, std::uint64_t& value, bool write) noexcept
{
    if (!write) {
        return pv_.read(index, value);
    }
    const bool done = pv_.write(index, value, lapic_ != nullptr);
    if (done && index == x86::msr::kvm_steal_time) {
        steal_time_tsc_ = 0;
        update_steal_time();
    }
    return done;
}

/// The guest looks once in a tick of its own; asking the kernel takes a microsecond.
void VcpuCore::update_steal_time() noexcept
{
    const std::optional<Gpa> at = pv_.steal_time();
    if (!at) {
        return;
    }
    const std::uint64_t now = x86::read_host_tsc();
    const std::uint64_t millisecond = vm_->tsc_khz();
    if (steal_time_tsc_ != 0U && now - steal_time_tsc_ < millisecond) {
        return;
    }
    steal_time_tsc_ = now;
    const std::uint64_t delay = run_delay_.ns();
    x86::StealTime time;
    const auto bytes = std::as_writable_bytes(std::span{&time, 1});
    if (!vm_->read_memory(*at, bytes)) {
        return;
    }
    // Odd while it changes; the guest may have given it an odd number to begin with.
    time.version |= 1U;
    time.preempted = 0;
    static_cast<void>(vm_->write_memory(*at, bytes));
    time.steal_ns += delay - std::exchange(stolen_ns_, delay);
    static_cast<void>(vm_->write_memory(*at, bytes));
    ++time.version;
    static_cast<void>(vm_->write_memory(*at, bytes));
}

}  // namespace vmm::core
