// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/statistics_file.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include <fcntl.h>
#include <linux/kvm.h>
#include <unistd.h>

#include "x86/shim/descriptors.hpp"
#include "x86/shim/dispatch.hpp"
#include "x86/shim/library_scope.hpp"

namespace vmm::shim {
namespace {

/// KVM's KVM_STATS_NAME_SIZE.
constexpr std::size_t name_size = 48;

constexpr std::uint32_t counter =
    KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10;
constexpr std::uint32_t boolean =
    KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_BOOLEAN | KVM_STATS_BASE_POW10;
constexpr std::uint32_t time =
    KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10;
constexpr std::uint32_t time_histogram =
    KVM_STATS_TYPE_LOG_HIST | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10;
constexpr std::int16_t nanoseconds = -9;

struct Known {
    std::string_view name;
    std::uint32_t flags{counter};
    std::int16_t exponent{};
};

/// Those of Linux 6.1, in its order.
constexpr Known of_vms[] = {
    {"remote_tlb_flush"},
    {"remote_tlb_flush_requests"},
};
constexpr Known of_vcpus[] = {
    {"halt_successful_poll"},
    {"halt_attempted_poll"},
    {"halt_wakeup"},
    {"halt_poll_success_ns", time, nanoseconds},
    {"halt_poll_fail_ns", time, nanoseconds},
    {"halt_wait_ns", time, nanoseconds},
    {"halt_wait_hist", time_histogram, nanoseconds},
    {"blocking", boolean},
    {"pf_taken"},
    {"pf_fixed"},
    {"pf_emulate"},
    {"pf_spurious"},
    {"pf_fast"},
    {"pf_mmio_spte_created"},
    {"pf_guest"},
    {"tlb_flush"},
    {"invlpg"},
    {"exits"},
    {"io_exits"},
    {"mmio_exits"},
    {"signal_exits"},
    {"irq_window_exits"},
    {"nmi_window_exits"},
    {"l1d_flush"},
    {"halt_exits"},
    {"request_irq_exits"},
    {"irq_exits"},
    {"host_state_reload"},
    {"fpu_reload"},
    {"insn_emulation"},
    {"insn_emulation_fail"},
    {"hypercalls"},
    {"irq_injections"},
    {"nmi_injections"},
    {"req_event"},
    {"preemption_reported"},
    {"preemption_other"},
    {"guest_mode", boolean},
    {"notify_window_exits"},
};

/// `struct kvm_stats_desc` with its name, whose array of no size C++ does not have.
struct Descriptor {
    std::uint32_t flags;
    std::int16_t exponent;
    std::uint16_t size;
    std::uint32_t offset;
    std::uint32_t bucket_size;
    char name[name_size];
};
static_assert(sizeof(Descriptor) == 16 + name_size);

/// The numbers of one statistic; none if there is no such now.
std::vector<std::uint64_t> values_of(const VcpuStatistics& seen, const Known& known)
{
    if (known.flags == time_histogram) {
        return {seen.halt_wait_hist.begin(), seen.halt_wait_hist.end()};
    }
    for (const Statistic& each : seen.counters) {
        if (each.name == known.name) {
            return {each.value};
        }
    }
    return {};
}

class StatisticsFile final : public File {
public:
    StatisticsFile(StatisticsSource source, std::string link_name, UniqueFd content)
        : source_{std::move(source)},
          link_name_{std::move(link_name)},
          content_{std::move(content)}
    {
    }

    /// Writes what does not change: header, id, descriptors.
    void write_head()
    {
        std::vector<Descriptor> descriptors;
        std::uint32_t offset = 0;
        const VcpuStatistics seen = source_.look();
        const std::span<const Known> all =
            source_.of_vcpu ? std::span<const Known>{of_vcpus} : std::span<const Known>{of_vms};
        for (const Known& each : all) {
            const std::size_t count = values_of(seen, each).size();
            if (count == 0) {
                continue;
            }
            Descriptor& one = descriptors.emplace_back();
            one.flags = each.flags;
            one.exponent = each.exponent;
            one.size = static_cast<std::uint16_t>(count);
            one.offset = offset;
            each.name.copy(one.name, name_size - 1);
            offset += static_cast<std::uint32_t>(count * sizeof(std::uint64_t));
            shown_.push_back(each);
        }
        kvm_stats_header header{};
        header.name_size = name_size;
        header.num_desc = static_cast<__u32>(descriptors.size());
        header.id_offset = sizeof header;
        header.desc_offset = sizeof header + name_size;
        header.data_offset =
            header.desc_offset + static_cast<__u32>(descriptors.size() * sizeof(Descriptor));
        data_offset_ = header.data_offset;
        char id[name_size]{};
        source_.id.copy(id, name_size - 1);
        put(&header, sizeof header, 0);
        put(id, sizeof id, header.id_offset);
        put(descriptors.data(), descriptors.size() * sizeof(Descriptor), header.desc_offset);
        write_values(seen);
    }

    void about_to_read() noexcept override
    {
        const LibraryScope inside;
        try {
            write_values(source_.look());
        } catch (const std::bad_alloc&) {
            // The numbers of before, then.
        }
    }

    [[nodiscard]] long ioctl(unsigned /*request*/, unsigned long /*argument*/) noexcept override
    {
        return -ENOTTY;
    }
    [[nodiscard]] std::string link_name() const override { return link_name_; }

private:
    void write_values(const VcpuStatistics& seen)
    {
        std::vector<std::uint64_t> data;
        for (const Known& each : shown_) {
            const std::vector<std::uint64_t> values = values_of(seen, each);
            data.insert(data.end(), values.begin(), values.end());
        }
        put(data.data(), data.size() * sizeof(std::uint64_t), data_offset_);
    }
    void put(const void* from, std::size_t size, std::uint32_t offset) noexcept
    {
        static_cast<void>(::pwrite(content_.get(), from, size, static_cast<off_t>(offset)));
    }

    const StatisticsSource source_;
    const std::string link_name_;
    const UniqueFd content_;  // Ours may be written, the client's only read.
    std::vector<Known> shown_;
    std::uint32_t data_offset_{};
};

}  // namespace

long give_statistics(StatisticsSource source, std::string link_name)
{
    auto content = make_memfd("kvm-stats", 0);
    if (!content) {
        return refused(content.error());
    }
    const std::string path = "/proc/self/fd/" + std::to_string(content->get());
    UniqueFd clients{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!clients) {
        return -errno;
    }
    auto file = std::make_shared<StatisticsFile>(std::move(source), std::move(link_name),
                                                 *std::move(content));
    file->write_head();
    return install(std::move(clients), std::move(file));
}

}  // namespace vmm::shim
