// SPDX-License-Identifier: Apache-2.0

/// @file
/// `Vm`: which MSRs the guest may access, and which accesses the caller answers.

#include <fmt/format.h>

#include "core/vm_core.hpp"
#include "vmm/vm.hpp"
#include "x86/msr.hpp"

namespace vmm {
namespace core {
namespace {

Error bad_filter(std::string sentence)
{
    return {std::errc::invalid_argument, "set_msr_filter: " + std::move(sentence)};
}

Result<void> check_msr_filter(const x86::MsrFilter& filter)
{
    if (filter.ranges.size() > x86::MsrFilter::max_ranges) {
        return bad_filter(fmt::format("{} ranges, at most {} are possible", filter.ranges.size(),
                                      x86::MsrFilter::max_ranges));
    }
    if (filter.default_deny && filter.ranges.empty()) {
        return bad_filter("to deny what is in no range needs a range");
    }
    for (const x86::MsrFilterRange& range : filter.ranges) {
        constexpr std::size_t bits = 64;
        if (!range.reads && !range.writes) {
            return bad_filter(
                fmt::format("the range at {:#x} speaks of neither reads nor writes", range.base));
        }
        if (range.count == 0 || range.count > x86::MsrFilter::max_count ||
            range.allowed.size() * bits < range.count) {
            return bad_filter(fmt::format("the range at {:#x} has {} MSRs and {} bits; 1 to {} "
                                          "MSRs and as many bits are permitted",
                                          range.base, range.count, range.allowed.size() * bits,
                                          x86::MsrFilter::max_count));
        }
    }
    return success;
}

}  // namespace

Result<void> VmCore::set_msr_filter(const x86::MsrFilter& filter)
{
    VMM_TRY_VOID(check_msr_filter(filter));
    const std::lock_guard lock{mutex_};
    VMM_TRY_VOID(engine_->set_msr_filter(filter));
    msr_filter_.publish(filter);
    has_msr_filter_.store(filter != x86::MsrFilter{}, std::memory_order_release);
    return success;
}

void VmCore::set_msr_exits(const x86::MsrExits& exits) noexcept
{
    const auto bit = [](bool wanted, x86::MsrExitReason reason) {
        return wanted ? static_cast<std::uint32_t>(reason) : 0U;
    };
    msr_exits_.store(bit(exits.invalid, x86::MsrExitReason::Invalid) |
                         bit(exits.unknown, x86::MsrExitReason::Unknown) |
                         bit(exits.filtered, x86::MsrExitReason::Filter),
                     std::memory_order_relaxed);
}

bool VmCore::allows_msr(std::uint32_t vcpu, std::uint32_t index, bool write) const noexcept
{
    // Acquire: pairs with the store after the filter was published.
    return !has_msr_filter_.load(std::memory_order_acquire) ||
           x86::allows(*msr_filter_.read(vcpu), index, write);
}

}  // namespace core

Result<void> Vm::set_msr_filter(const x86::MsrFilter& filter)
{
    return core_->set_msr_filter(filter);
}

void Vm::set_msr_exits(const x86::MsrExits& exits) noexcept
{
    core_->set_msr_exits(exits);
}

}  // namespace vmm
