// SPDX-License-Identifier: Apache-2.0

#include "x86/kvm/vm.hpp"

#include <algorithm>
#include <array>
#include <csignal>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "x86/kvm/engine.hpp"
#include "x86/kvm/irqchip.hpp"
#include "x86/kvm/vcpu.hpp"
#include "x86/msr.hpp"
#include "x86/pv_features.hpp"

namespace vmm::x86::kvm {
namespace {

/// MSRs that KVM keeps: those that instructions use, which are in `CpuState`, and speculation
/// control, which is the host CPU's.  All others leave as exits, for the core to answer.
struct MsrRange {
    std::uint32_t first;
    std::uint32_t count;
};
constexpr std::array kept_msrs{
    MsrRange{msr::spec_ctrl, 2},          // And PRED_CMD.
    MsrRange{msr::arch_capabilities, 2},  // And FLUSH_CMD.
    MsrRange{msr::sysenter_cs, 3},        //
    MsrRange{msr::xss, 1},                //
    MsrRange{msr::efer, 5},               // To FMASK.
    MsrRange{msr::fs_base, 4},            // To TSC_AUX.
};

/// With local APICs of its own also theirs (the filter cannot have x2APIC's leave), and those of
/// the paravirtual features that lean on them.
constexpr std::array apic_msrs{
    MsrRange{msr::apic_base, 1}, MsrRange{msr::tsc_deadline, 1}, MsrRange{msr::x2apic_first, 0x100},
    MsrRange{msr::kvm_async_pf_en, 6},  // To KVM_ASYNC_PF_ACK.
};

template <std::size_t n>
bool is_in(const std::array<MsrRange, n>& ranges, std::uint32_t index) noexcept
{
    return std::any_of(ranges.begin(), ranges.end(),
                       [&](const MsrRange& range) { return index - range.first < range.count; });
}

/// Has all MSRs but the kept ones leave, and of those the ones that `guests` denies.
Result<void> filter_msrs(const UniqueFd& vm, bool with_apics, const MsrFilter& guests)
{
    // Where such MSRs are: ranges are few, and a bit more costs nothing.
    constexpr std::array windows{
        MsrRange{0, 0x1000},
        MsrRange{msr::kvm_wall_clock, 0x40},
        MsrRange{msr::efer & ~0xffU, 0x200},
    };
    static_assert(2 * windows.size() <= KVM_MSR_FILTER_MAX_RANGES);
    constexpr std::size_t bits = 64;
    std::vector<MsrRange> kept{kept_msrs.begin(), kept_msrs.end()};
    if (with_apics) {
        kept.insert(kept.end(), apic_msrs.begin(), apic_msrs.end());
    }
    std::array<std::vector<std::uint64_t>, 2 * windows.size()> bitmaps;
    kvm_msr_filter filter{};
    filter.flags = KVM_MSR_FILTER_DEFAULT_DENY;
    for (std::size_t i = 0; i < bitmaps.size(); ++i) {
        const MsrRange& window = windows[i / 2];
        const bool write = i % 2 != 0;
        bitmaps[i].resize(window.count / bits);
        for (const MsrRange& range : kept) {
            for (std::uint32_t n = 0; n < range.count; ++n) {
                const std::uint32_t bit = range.first + n - window.first;
                if (bit < window.count && allows(guests, range.first + n, write)) {
                    bitmaps[i][bit / bits] |= std::uint64_t{1} << bit % bits;
                }
            }
        }
        filter.ranges[i].flags = write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ;
        filter.ranges[i].base = window.first;
        filter.ranges[i].nmsrs = window.count;
        // SAFETY: KVM's words are bytes to its header.
        filter.ranges[i].bitmap = reinterpret_cast<std::uint8_t*>(bitmaps[i].data());
    }
    VMM_TRY_VOID(control(vm, KVM_X86_SET_MSR_FILTER, "KVM_X86_SET_MSR_FILTER", &filter));
    return success;
}

Result<void> enable(const UniqueFd& vm, std::uint32_t capability, std::uint64_t argument)
{
    kvm_enable_cap wanted{};
    wanted.cap = capability;
    wanted.args[0] = argument;
    VMM_TRY_VOID(control(vm, KVM_ENABLE_CAP, "KVM_ENABLE_CAP", &wanted));
    return success;
}

/// What makes the guest's view the library's where KVM has a choice.
Result<void> configure(const UniqueFd& kvm, const UniqueFd& vm)
{
    constexpr std::uint64_t all_msr_exits =
        KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
    VMM_TRY_VOID(enable(vm, KVM_CAP_X86_USER_SPACE_MSR, all_msr_exits));
    VMM_TRY_VOID(filter_msrs(vm, false, {}));
    const auto has = [&](unsigned long capability) {
        return ::ioctl(kvm.get(), KVM_CHECK_EXTENSION, capability);
    };
    if (has(KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0) {
        // Without, user code that KVM cannot emulate gets a #UD that no CPU would raise.
        VMM_TRY_VOID(enable(vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1));
    }
    // What VMX without "unrestricted guest" needs for real mode: a page of page tables and three
    // for a TSS, where firmware would be; other hosts ignore it.
    std::uint64_t identity_map = 0xfeff'c000;
    VMM_TRY_VOID(
        control(vm, KVM_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR", &identity_map));
    VMM_TRY_VOID(control(vm, KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR", identity_map + 0x1000));
    return success;
}

}  // namespace

Result<std::shared_ptr<KvmVm>> KvmVm::create(MemorySlots& memory, int kick_signal)
{
    if (kick_signal == 0) {
        kick_signal = SIGRTMAX;
    }
    if (kick_signal < 1 || kick_signal > SIGRTMAX || kick_signal == SIGKILL ||
        kick_signal == SIGSTOP) {
        return Error{std::errc::invalid_argument,
                     fmt::format("kick signal {}: 1 to {} without SIGKILL and SIGSTOP, which "
                                 "cannot be blocked, are permitted",
                                 kick_signal, SIGRTMAX)};
    }
    VMM_TRY(const UniqueFd kvm, open_kvm());
    UniqueFd vm{::ioctl(kvm.get(), KVM_CREATE_VM, 0UL)};
    if (!vm) {
        return Error::from_errno("KVM_CREATE_VM");
    }
    VMM_TRY(const int run_size,
            control(kvm, KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE", 0UL));
    VMM_TRY_VOID(configure(kvm, vm));
    return std::make_shared<KvmVm>(std::move(vm), run_size, memory, kick_signal);
}

bool KvmVm::keeps_msr(std::uint32_t index) const noexcept
{
    return is_in(kept_msrs, index) || keeps_apic_msr(index);
}

bool KvmVm::keeps_apic_msr(std::uint32_t index) const noexcept
{
    return has_apics_ && is_in(apic_msrs, index);
}

Result<void> KvmVm::create_irqchip(irqchip::IrqchipMode mode, std::uint32_t io_apic_pins)
{
    const std::lock_guard lock{mutex_};
    if (mode == irqchip::IrqchipMode::Full) {
        VMM_TRY_VOID(control(fd_, KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP", 0UL));
    } else {
        VMM_TRY_VOID(enable(fd_, KVM_CAP_SPLIT_IRQCHIP, io_apic_pins));
    }
    // Ids in messages and in an x2APIC's page are the library's, of 32 bits.
    VMM_TRY_VOID(enable(fd_, KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS));
    VMM_TRY_VOID(filter_msrs(fd_, true, guests_msrs_));
    has_apics_ = true;
    return success;
}

Result<void> KvmVm::set_boot_cpu_id(std::uint32_t id)
{
    VMM_TRY_VOID(control(fd_, KVM_SET_BOOT_CPU_ID, "KVM_SET_BOOT_CPU_ID", std::uint64_t{id}));
    return success;
}

void KvmVm::set_halt_poll_ns(std::uint32_t longest) noexcept
{
    // A KVM without it (before Linux 5.7) polls as its module's parameter says.
    static_cast<void>(enable(fd_, KVM_CAP_HALT_POLL, longest));
}

Result<void> KvmVm::set_msr_filter(const MsrFilter& filter)
{
    const std::lock_guard lock{mutex_};
    VMM_TRY_VOID(filter_msrs(fd_, has_apics_, filter));
    guests_msrs_ = filter;
    return success;
}

Result<void> KvmVm::disable_quirks(std::uint64_t quirks)
{
    return enable(fd_, KVM_CAP_DISABLE_QUIRKS2, quirks);
}

Result<void> KvmVm::set_hypercall_exits(std::uint64_t calls)
{
    return enable(fd_, KVM_CAP_EXIT_HYPERCALL, calls);
}

Result<void> KvmVm::set(const Region& region) noexcept
{
    kvm_userspace_memory_region wanted{};
    wanted.slot = region.slot;
    wanted.flags = (region.log_dirty ? std::uint32_t{KVM_MEM_LOG_DIRTY_PAGES} : 0U) |
                   (region.read_only ? std::uint32_t{KVM_MEM_READONLY} : 0U);
    wanted.guest_phys_addr = region.gpa;
    wanted.memory_size = region.size_bytes;
    // SAFETY: an address as KVM wants it, an integer.
    wanted.userspace_addr = reinterpret_cast<std::uintptr_t>(region.host);
    VMM_TRY_VOID(control(fd_, KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &wanted));
    slots_[region.slot] = region;
    return success;
}

Result<void> KvmVm::remove(std::uint32_t slot) noexcept
{
    kvm_userspace_memory_region none{};
    none.slot = slot;
    VMM_TRY_VOID(control(fd_, KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &none));
    slots_.erase(slot);
    return success;
}

Result<void> KvmVm::memory_changed()
{
    // Changes may come in another order than they were made in, or several at once: what counts
    // is the table as it is now.
    const std::lock_guard lock{mutex_};
    const std::vector<Region> now = memory_.regions();
    std::map<std::uint32_t, Region> surplus = slots_;
    std::vector<const Region*> different;
    for (const Region& region : now) {
        surplus.erase(region.slot);
        const auto old = slots_.find(region.slot);
        if (old == slots_.end() || old->second != region) {
            different.push_back(&region);
        }
    }
    for (const auto& [slot, region] : surplus) {
        VMM_TRY_VOID(remove(slot));
    }
    // One that only moved or changed its logging is changed in place: a vCPU that runs never
    // misses it.  Several could stand in each other's way, and one that was deleted and made anew
    // cannot be changed: those go first.
    for (const Region* region : different) {
        const auto old = slots_.find(region->slot);
        if (old == slots_.end()) {
            continue;
        }
        VMM_TRY_VOID(collect_locked(old->second));
        const bool same_memory = old->second.host == region->host &&
                                 old->second.size_bytes == region->size_bytes &&
                                 old->second.read_only == region->read_only;
        if (different.size() > 1 || !same_memory) {
            VMM_TRY_VOID(remove(region->slot));
        }
    }
    for (const Region* region : different) {
        VMM_TRY_VOID(set(*region));
    }
    return success;
}

Result<void> KvmVm::collect_dirty_log(std::uint32_t slot)
{
    const std::lock_guard lock{mutex_};
    const auto found = slots_.find(slot);
    return found == slots_.end() ? success : collect_locked(found->second);
}

Result<void> KvmVm::collect_locked(const Region& region)
{
    if (!region.log_dirty || dirty_ring_entries_ != 0U) {
        return success;
    }
    constexpr std::uint64_t bits = 64;
    const std::uint64_t pages = region.size_bytes / 4096;
    std::vector<std::uint64_t> bitmap((pages + bits - 1) / bits);
    kvm_dirty_log log{};
    log.slot = region.slot;
    log.dirty_bitmap = bitmap.data();
    VMM_TRY_VOID(control(fd_, KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", &log));
    memory_.mark_dirty_pages(region.slot, bitmap);
    return success;
}

/// Where the CPU logs pages itself (PML) KVM's least is more than other engines'.
Result<void> KvmVm::enable_dirty_rings(std::uint32_t entries)
{
    VMM_TRY(const Limits limits, query_limits());
    for (;; entries *= 2) {
        const auto enabled = enable(fd_, KVM_CAP_DIRTY_LOG_RING, entries * sizeof(kvm_dirty_gfn));
        if (enabled || entries * 2 > limits.dirty_ring_entries) {
            dirty_ring_entries_ = enabled ? entries : 0;
            return enabled;
        }
    }
}

void KvmVm::reset_dirty_rings() noexcept
{
    if (dirty_ring_entries_ != 0U) {
        static_cast<void>(::ioctl(fd_.get(), KVM_RESET_DIRTY_RINGS, 0UL));
    }
}

namespace {

class KvmEngineVm final : public EngineVm {
public:
    explicit KvmEngineVm(std::shared_ptr<KvmVm> vm) noexcept : vm_{std::move(vm)} {}

    Result<std::unique_ptr<EngineVcpu>> create_vcpu(VcpuHost& host, std::uint32_t id) override
    {
        return KvmVcpu::create(vm_, host, id);
    }
    Result<std::unique_ptr<irqchip::Controllers>> create_irqchip(
        irqchip::IrqchipMode mode,
        std::uint32_t io_apic_pins) override
    {
        VMM_TRY_VOID(vm_->create_irqchip(mode, io_apic_pins));
        return std::unique_ptr<irqchip::Controllers>{std::make_unique<KvmIrqchip>(vm_, mode)};
    }
    Result<void> set_boot_cpu_id(std::uint32_t id) override { return vm_->set_boot_cpu_id(id); }
    void set_halt_poll_ns(std::uint32_t longest) noexcept override
    {
        vm_->set_halt_poll_ns(longest);
    }
    Result<void> memory_changed() override { return vm_->memory_changed(); }
    Result<void> collect_dirty_log(std::uint32_t slot) override
    {
        return vm_->collect_dirty_log(slot);
    }
    // Without rings KVM_GET_DIRTY_LOG has protected the pages again itself.
    void dirty_log_cleared() noexcept override { vm_->reset_dirty_rings(); }
    Result<void> tell_each_write(std::uint32_t at_a_time) override
    {
        return vm_->enable_dirty_rings(at_a_time);
    }
    Result<void> set_msr_filter(const MsrFilter& filter) override
    {
        return vm_->set_msr_filter(filter);
    }
    Result<void> disable_quirks(std::uint64_t quirks) override
    {
        return vm_->disable_quirks(quirks);
    }
    Result<void> set_hypercall_exits(std::uint64_t calls) override
    {
        return vm_->set_hypercall_exits(calls);
    }
    // KVM's guests see memory as the host's CPU does.
    void memory_written(Gpa /*gpa*/, std::uint64_t /*size_bytes*/) noexcept override {}

private:
    std::shared_ptr<KvmVm> vm_;
};

}  // namespace

Result<std::unique_ptr<EngineVm>> create_kvm_vm(MemorySlots& memory, int kick_signal)
{
    VMM_TRY(auto vm, KvmVm::create(memory, kick_signal));
    return std::unique_ptr<EngineVm>{std::make_unique<KvmEngineVm>(std::move(vm))};
}

}  // namespace vmm::x86::kvm
