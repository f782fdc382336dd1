// SPDX-License-Identifier: Apache-2.0

/// @file
/// VM ioctls: capabilities, addresses, vCPUs, the clock.

#include "x86/shim/vm_file.hpp"

#include <cerrno>
#include <chrono>

#include <fcntl.h>
#include <linux/kvm.h>
#include <unistd.h>

#include <x86intrin.h>

#include "x86/shim/library_scope.hpp"
#include "x86/shim/statistics_file.hpp"
#include "x86/shim/system_file.hpp"
#include "x86/shim/vm_device_file.hpp"

namespace vmm::shim {
namespace {

long check_vm_extension(VmFile& file, unsigned long capability)
{
    return check_extension(file.kvm(), capability);
}

/// Once, and not above what there can be.
long limit_vcpu_ids(VmFile& file, __u64 end)
{
    const auto most = static_cast<__u64>(file.kvm().check_extension(Capability::MaxVcpuId));
    if (end == 0 || end > most || file.has_vcpu) {
        return -EINVAL;
    }
    std::uint64_t none = 0;
    return file.vcpu_id_end.compare_exchange_strong(none, end) || none == end ? 0 : -EINVAL;
}

long create_split_irqchip(VmFile& file, __u64 io_apic_pins)
{
    if (io_apic_pins > 0xffff'ffffU) {
        return -EINVAL;
    }
    const long result =
        result_of(file.vm().create_split_irqchip(static_cast<std::uint32_t>(io_apic_pins)));
    if (result == 0) {
        file.has_irqchip = true;
    }
    return result;
}

long enable_dirty_rings(VmFile& file, __u64 bytes)
{
    constexpr std::size_t most = memory::DirtyRing::max_entries * sizeof(memory::DirtyGfn);
    if (bytes > most && (bytes & (bytes - 1)) == 0) {
        return -E2BIG;
    }
    if (bytes > most || bytes % sizeof(memory::DirtyGfn) != 0) {
        return -EINVAL;
    }
    const long result = result_of(
        file.vm().enable_dirty_rings(static_cast<std::uint32_t>(bytes / sizeof(memory::DirtyGfn))));
    if (result == 0) {
        file.dirty_ring_size = bytes;
    }
    return result;
}

long set_manual_dirty_log(VmFile& file, __u64 wanted)
{
    constexpr __u64 enabled = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
    const __u64 known = (wanted & enabled) != 0 ? enabled | KVM_DIRTY_LOG_INITIALLY_SET : 0;
    if ((wanted & ~known) != 0) {
        return -EINVAL;
    }
    file.dirty_log_is_manual = wanted != 0;
    file.vm().set_initially_dirty((wanted & KVM_DIRTY_LOG_INITIALLY_SET) != 0);
    return 0;
}

long enable_capability(VmFile& file, const kvm_enable_cap& wanted)
{
    if (wanted.flags != 0) {
        return -EINVAL;
    }
    switch (wanted.cap) {
    case KVM_CAP_X2APIC_API:
        if ((wanted.args[0] &
             ~(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)) != 0) {
            return -EINVAL;
        }
        if ((wanted.args[0] & KVM_X2APIC_API_USE_32BIT_IDS) != 0) {
            file.x2apic_ids_are_32_bits = true;
        }
        return 0;
    case KVM_CAP_SPLIT_IRQCHIP: return create_split_irqchip(file, wanted.args[0]);
    case KVM_CAP_X86_USER_SPACE_MSR: return set_msr_exits(file, wanted.args[0]);
    case KVM_CAP_EXCEPTION_PAYLOAD: file.shows_payloads = wanted.args[0] != 0; return 0;
    case KVM_CAP_MAX_VCPU_ID: return limit_vcpu_ids(file, wanted.args[0]);
    case KVM_CAP_X86_TRIPLE_FAULT_EVENT: file.shows_triple_faults = wanted.args[0] != 0; return 0;
    case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: return set_manual_dirty_log(file, wanted.args[0]);
    case KVM_CAP_X86_DISABLE_EXITS:
        // Of PAUSE there are none to begin with; as KVM, no error where a CPU could not do it.
        return (wanted.args[0] & ~__u64{KVM_X86_DISABLE_VALID_EXITS}) == 0 ? 0 : -EINVAL;
    case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
        // It is so anyway.
        return wanted.args[0] <= 1 ? 0 : -EINVAL;
    case KVM_CAP_MSR_PLATFORM_INFO:
        file.vm().set_platform_info_readable(wanted.args[0] != 0);
        return 0;
    case KVM_CAP_HALT_POLL:
        if (wanted.args[0] > 0xffff'ffffU) {
            return -EINVAL;
        }
        file.vm().set_halt_poll_ns(static_cast<std::uint32_t>(wanted.args[0]));
        return 0;
    case KVM_CAP_DISABLE_QUIRKS2: return result_of(file.vm().disable_quirks(wanted.args[0]));
    case KVM_CAP_EXIT_HYPERCALL: return result_of(file.vm().set_hypercall_exits(wanted.args[0]));
    case KVM_CAP_DIRTY_LOG_RING:
    case KVM_CAP_DIRTY_LOG_RING_ACQ_REL: return enable_dirty_rings(file, wanted.args[0]);
    default: return -EINVAL;
    }
}

/// A bound for the memory of shadow page tables, which engines here do not need.
long set_nr_mmu_pages(VmFile& file, unsigned long pages)
{
    constexpr unsigned long least = 20;
    if (pages < least) {
        return -EINVAL;
    }
    file.mmu_pages = pages;
    return 0;
}

long get_nr_mmu_pages(VmFile& file, unsigned long /*argument*/)
{
    return static_cast<long>(file.mmu_pages.load());
}

/// Where Intel's VMX keeps a task-state segment for real mode; engines here need none.
long set_tss_addr(VmFile& /*file*/, unsigned long address)
{
    constexpr unsigned long last = 0xffff'd000;
    return address <= last ? 0 : -EINVAL;
}

long set_identity_map_addr(VmFile& file, const __u64& /*address*/)
{
    return file.has_vcpu ? -EINVAL : 0;
}

long set_boot_cpu_id(VmFile& file, unsigned long id)
{
    return result_of(file.vm().set_boot_cpu_id(static_cast<std::uint32_t>(id)));
}

std::uint64_t realtime_ns() noexcept
{
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

long get_clock(VmFile& file, kvm_clock_data& out)
{
    out.flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    out.realtime = realtime_ns();
    out.host_tsc = __rdtsc();
    out.clock = file.vm().clock_ns();
    return 0;
}

long set_clock(VmFile& file, const kvm_clock_data& wanted)
{
    constexpr unsigned known = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    if ((wanted.flags & ~known) != 0) {
        return -EINVAL;
    }
    std::uint64_t clock = wanted.clock;
    if ((wanted.flags & KVM_CLOCK_REALTIME) != 0) {
        // Time has passed since it was read; but not backwards.
        const std::uint64_t now = realtime_ns();
        clock += now > wanted.realtime ? now - wanted.realtime : 0;
    }
    file.vm().set_clock_ns(clock);
    return 0;
}

long get_tsc_khz(VmFile& file, unsigned long /*argument*/)
{
    return static_cast<long>(file.vm().tsc_khz());
}

long set_tsc_khz(VmFile& file, unsigned long wanted)
{
    return result_of(file.vm().set_tsc_khz(static_cast<std::uint32_t>(wanted)));
}

/// The numbers live as long as the descriptor, as KVM's do.
long get_stats_fd(VmFile& file, unsigned long /*argument*/)
{
    StatisticsSource source;
    source.id = "kvm-" + std::to_string(::getpid());
    source.look = [vm = file.shared_from_this()] {
        VcpuStatistics numbers;
        numbers.counters = vm->vm().statistics();
        return numbers;
    };
    return give_statistics(std::move(source), "anon_inode:kvm-vm-stats");
}

constexpr Row<VmFile> rows[] = {
    {KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION", check_vm_extension},
    {KVM_ENABLE_CAP, "KVM_ENABLE_CAP", reads<enable_capability>},
    {KVM_CREATE_VCPU, "KVM_CREATE_VCPU", create_vcpu},
    {KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR", set_tss_addr},
    {KVM_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR", reads<set_identity_map_addr>},
    {KVM_SET_BOOT_CPU_ID, "KVM_SET_BOOT_CPU_ID", set_boot_cpu_id},
    {KVM_SET_NR_MMU_PAGES, "KVM_SET_NR_MMU_PAGES", set_nr_mmu_pages},
    {KVM_GET_NR_MMU_PAGES, "KVM_GET_NR_MMU_PAGES", get_nr_mmu_pages},
    {KVM_GET_TSC_KHZ, "KVM_GET_TSC_KHZ", get_tsc_khz},
    {KVM_SET_TSC_KHZ, "KVM_SET_TSC_KHZ", set_tsc_khz},
    {KVM_GET_CLOCK, "KVM_GET_CLOCK", writes<get_clock>},
    {KVM_SET_CLOCK, "KVM_SET_CLOCK", reads<set_clock>},
    {KVM_CREATE_DEVICE, "KVM_CREATE_DEVICE", updates<create_device>},
    {KVM_GET_STATS_FD, "KVM_GET_STATS_FD", get_stats_fd},
};

}  // namespace

std::span<const Row<VmFile>> vm_rows() noexcept
{
    return rows;
}

bool VmFile::offer_ring(const UniqueFd& vcpu_memfd)
{
    const std::lock_guard lock{ring_mutex_};
    if (ring_memfd_) {
        return false;
    }
    UniqueFd own{::fcntl(vcpu_memfd.get(), F_DUPFD_CLOEXEC, 0)};
    auto area = own ? RunArea::map(own) : Error::from_errno("keep a vCPU's memory");
    if (!area) {
        static_cast<void>(refused(area.error()));
        return false;  // Without a ring all writes leave, one by one.
    }
    ring_area_.emplace(*std::move(area));
    ring_memfd_ = std::move(own);
    return static_cast<bool>(vm_.set_coalesced_page(ring_area_->coalesced()));
}

long VmFile::ioctl(unsigned request, unsigned long argument) noexcept
{
    static const auto& table = *new Table<VmFile>{"a VM",
                                                  ENOTTY,
                                                  {vm_rows(), vm_memory_rows(), vm_interrupt_rows(),
                                                   vm_irqchip_rows(), vm_io_rows(), vm_msr_rows()}};
    if (!is_of_this_process()) {
        return -EIO;
    }
    const LibraryScope inside;
    return table.call(*this, request, argument);
}

}  // namespace vmm::shim
