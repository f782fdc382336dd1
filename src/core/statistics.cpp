// SPDX-License-Identifier: Apache-2.0

#include "vmm/statistics.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include <fmt/format.h>

namespace vmm {
namespace {

constexpr std::array<std::string_view, exit_kinds> kind_names{"port_read",
                                                              "port_write",
                                                              "mmio_read",
                                                              "mmio_write",
                                                              "device_port_read",
                                                              "device_port_write",
                                                              "device_mmio_read",
                                                              "device_mmio_write",
                                                              "msr_read",
                                                              "msr_write",
                                                              "hypercall",
                                                              "halt",
                                                              "shutdown",
                                                              "request",
                                                              "irq_window",
                                                              "nmi_window",
                                                              "debug",
                                                              "internal_error",
                                                              "entry_failure",
                                                              "difference"};

using Out = std::back_insert_iterator<std::string>;

/// The buckets up to the last that is not empty.
std::span<const std::uint64_t> used(const TimeHistogram& histogram) noexcept
{
    const auto last = std::find_if(histogram.rbegin(), histogram.rend(),
                                   [](std::uint64_t each) { return each != 0U; });
    return std::span{histogram}.first(static_cast<std::size_t>(histogram.rend() - last));
}

std::string describe(const ExitRecord& record)
{
    return record.where == 0U ? std::string{name(record.kind)}
                              : fmt::format("{} {:#x}", name(record.kind), record.where);
}

void write_text(std::string& text, const VcpuStatistics& seen)
{
    Out out{text};
    fmt::format_to(out, "vCPU {}\n", seen.vcpu);
    for (const Statistic& each : seen.counters) {
        fmt::format_to(out, "  {:<24} {:>14}\n", each.name, each.value);
    }
    std::vector<ExitStatistics> exits = seen.exits;
    std::stable_sort(exits.begin(), exits.end(),
                     [](const auto& a, const auto& b) { return a.count > b.count; });
    if (!exits.empty()) {
        fmt::format_to(out, "  {:<20} {:>12} {:>10} {:>14} {:>10} {:>12} {:>10}\n", "exits",
                       "count", "timed", "total ns", "minimum", "maximum", "mean");
    }
    for (const ExitStatistics& each : exits) {
        fmt::format_to(out, "  {:<20} {:>12} {:>10} {:>14} {:>10} {:>12} {:>10}\n", name(each.kind),
                       each.count, each.timed, each.total_ns, each.minimum_ns, each.maximum_ns,
                       each.timed != 0U ? each.total_ns / each.timed : 0U);
    }
    if (!seen.last_exits.empty()) {
        text += "  last exits, the youngest first\n";
    }
    for (auto record = seen.last_exits.rbegin(); record != seen.last_exits.rend(); ++record) {
        fmt::format_to(out, "    {:<32} rip {:#x}\n", describe(*record), record->rip.value());
    }
}

void write_json(std::string& text, const VcpuStatistics& seen)
{
    Out out{text};
    fmt::format_to(out, "{{\"vcpu\": {}, \"counters\": {{", seen.vcpu);
    const char* separator = "";
    for (const Statistic& each : seen.counters) {
        fmt::format_to(out, "{}\"{}\": {}", std::exchange(separator, ", "), each.name, each.value);
    }
    fmt::format_to(out, "}}, \"halt_wait_hist\": [{}], \"exits\": [",
                   fmt::join(used(seen.halt_wait_hist), ", "));
    separator = "";
    for (const ExitStatistics& each : seen.exits) {
        fmt::format_to(out,
                       "{}{{\"reason\": \"{}\", \"count\": {}, \"timed\": {}, \"total_ns\": {}, "
                       "\"minimum_ns\": {}, \"maximum_ns\": {}, \"histogram\": [{}]}}",
                       std::exchange(separator, ", "), name(each.kind), each.count, each.timed,
                       each.total_ns, each.minimum_ns, each.maximum_ns,
                       fmt::join(used(each.histogram), ", "));
    }
    text += "], \"last_exits\": [";
    separator = "";
    for (const ExitRecord& each : seen.last_exits) {
        fmt::format_to(out, "{}{{\"reason\": \"{}\", \"where\": {}, \"rip\": {}}}",
                       std::exchange(separator, ", "), name(each.kind), each.where,
                       each.rip.value());
    }
    text += "]}";
}

void write_histogram(std::string& text, std::uint32_t vcpu, const ExitStatistics& exits)
{
    Out out{text};
    const std::string labels = fmt::format("vcpu=\"{}\",reason=\"{}\"", vcpu, name(exits.kind));
    std::uint64_t below = 0;
    std::uint64_t bound = 0;
    for (const std::uint64_t bucket : used(exits.histogram)) {
        below += bucket;
        fmt::format_to(out, "vmm_exit_nanoseconds_bucket{{{},le=\"{}\"}} {}\n", labels, bound,
                       below);
        bound = 2U * bound + 1U;
    }
    fmt::format_to(out,
                   "vmm_exit_nanoseconds_bucket{{{0},le=\"+Inf\"}} {1}\n"
                   "vmm_exit_nanoseconds_sum{{{0}}} {2}\n"
                   "vmm_exit_nanoseconds_count{{{0}}} {1}\n",
                   labels, exits.timed, exits.total_ns);
}

}  // namespace

std::string_view name(ExitKind kind) noexcept
{
    const auto index = static_cast<std::size_t>(kind);
    return index < kind_names.size() ? kind_names[index] : "?";
}

std::uint64_t VcpuStatistics::counter(std::string_view wanted) const noexcept
{
    const auto found = std::find_if(counters.begin(), counters.end(),
                                    [&](const Statistic& each) { return each.name == wanted; });
    return found != counters.end() ? found->value : 0U;
}

std::uint64_t VcpuStatistics::count(ExitKind kind) const noexcept
{
    const auto found = std::find_if(exits.begin(), exits.end(),
                                    [&](const ExitStatistics& each) { return each.kind == kind; });
    return found != exits.end() ? found->count : 0U;
}

std::string to_text(std::span<const VcpuStatistics> vcpus)
{
    std::string text;
    for (const VcpuStatistics& each : vcpus) {
        write_text(text, each);
    }
    return text;
}

std::string to_json(std::span<const VcpuStatistics> vcpus)
{
    std::string text = "[";
    const char* separator = "";
    for (const VcpuStatistics& each : vcpus) {
        text += std::exchange(separator, ",\n ");
        write_json(text, each);
    }
    return text + "]\n";
}

std::string to_prometheus(std::span<const VcpuStatistics> vcpus)
{
    std::string text = "# TYPE vmm_exit_reason_total counter\n";
    Out out{text};
    for (const VcpuStatistics& seen : vcpus) {
        for (const ExitStatistics& each : seen.exits) {
            fmt::format_to(out, "vmm_exit_reason_total{{vcpu=\"{}\",reason=\"{}\"}} {}\n",
                           seen.vcpu, name(each.kind), each.count);
        }
    }
    text += "# TYPE vmm_exit_nanoseconds histogram\n";
    for (const VcpuStatistics& seen : vcpus) {
        for (const ExitStatistics& each : seen.exits) {
            write_histogram(text, seen.vcpu, each);
        }
    }
    // All samples of one name together: each vCPU of an engine has the same counters.
    std::vector<std::string_view> names;
    for (const VcpuStatistics& seen : vcpus) {
        for (const Statistic& each : seen.counters) {
            if (std::find(names.begin(), names.end(), each.name) == names.end()) {
                names.push_back(each.name);
            }
        }
    }
    for (const std::string_view counter : names) {
        fmt::format_to(out, "# TYPE vmm_{} untyped\n", counter);
        for (const VcpuStatistics& seen : vcpus) {
            fmt::format_to(out, "vmm_{}{{vcpu=\"{}\"}} {}\n", counter, seen.vcpu,
                           seen.counter(counter));
        }
    }
    return text;
}

}  // namespace vmm
