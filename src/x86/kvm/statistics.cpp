// SPDX-License-Identifier: Apache-2.0

#include "x86/kvm/statistics.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace vmm::x86::kvm {
namespace {

constexpr std::array<std::string_view, 24> told_of{
    "pf_taken",
    "pf_fixed",
    "pf_emulate",
    "pf_spurious",
    "pf_fast",
    "pf_mmio_spte_created",
    "pf_guest",
    "tlb_flush",
    "invlpg",
    "nmi_window_exits",
    "l1d_flush",
    "irq_exits",
    "host_state_reload",
    "fpu_reload",
    "insn_emulation",
    "insn_emulation_fail",
    "hypercalls",
    "req_event",
    "preemption_reported",
    "preemption_other",
    "notify_window_exits",
    "directed_yield_attempted",
    "directed_yield_successful",
    "nested_run",
};

/// With its own local APICs, what the core has no part in.
constexpr std::array<std::string_view, 13> told_of_with_apics{
    "exits",
    "io_exits",
    "halt_exits",
    "halt_wakeup",
    "halt_wait_ns",
    "halt_attempted_poll",
    "halt_successful_poll",
    "halt_poll_success_ns",
    "halt_poll_fail_ns",
    "blocking",
    "irq_window_exits",
    "irq_injections",
    "nmi_injections",
};

/// The name as `names` has it, which outlives the file.
template <std::size_t n>
std::optional<std::string_view> find(const std::array<std::string_view, n>& names,
                                     std::string_view name) noexcept
{
    const auto* const found = std::find(names.begin(), names.end(), name);
    return found != names.end() ? std::optional{*found} : std::nullopt;
}

/// `struct kvm_stats_desc` without its name, whose array of no size C++ does not have.
struct Descriptor {
    std::uint32_t flags;
    std::int16_t exponent;
    std::uint16_t size;
    std::uint32_t offset;
    std::uint32_t bucket_size;
};
static_assert(sizeof(Descriptor) == 16);

bool read_at(const UniqueFd& fd, void* to, std::size_t size, std::uint64_t offset) noexcept
{
    return ::pread(fd.get(), to, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size);
}

}  // namespace

HostStatistics::HostStatistics(const UniqueFd& vcpu, bool has_apics)
    : fd_{::ioctl(vcpu.get(), KVM_GET_STATS_FD, 0UL)}
{
    constexpr std::uint32_t most_names = 256;
    constexpr std::uint32_t most_statistics = 1024;
    kvm_stats_header header{};
    if (!fd_ || !read_at(fd_, &header, sizeof header, 0) || header.name_size > most_names ||
        header.num_desc > most_statistics) {
        fd_ = {};
        return;
    }
    const std::size_t stride = sizeof(Descriptor) + header.name_size;
    std::vector<char> text(stride * header.num_desc);
    if (!read_at(fd_, text.data(), text.size(), header.desc_offset)) {
        return;
    }
    for (std::uint32_t i = 0; i < header.num_desc; ++i) {
        Descriptor descriptor{};
        std::memcpy(&descriptor, text.data() + i * stride, sizeof descriptor);
        const char* const at = text.data() + i * stride + sizeof descriptor;
        const std::string_view name{at, ::strnlen(at, header.name_size)};
        auto found = find(told_of, name);
        if (!found && has_apics) {
            found = find(told_of_with_apics, name);
        }
        if (found && descriptor.size == 1) {
            places_.push_back({*found, std::uint64_t{header.data_offset} + descriptor.offset});
        }
    }
}

std::vector<std::pair<std::string_view, std::uint64_t>> HostStatistics::read() const
{
    std::vector<std::pair<std::string_view, std::uint64_t>> all;
    for (const Place& each : places_) {
        std::uint64_t value = 0;
        if (read_at(fd_, &value, sizeof value, each.offset)) {
            all.emplace_back(each.name, value);
        }
    }
    return all;
}

}  // namespace vmm::x86::kvm
