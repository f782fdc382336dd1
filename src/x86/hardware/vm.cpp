// SPDX-License-Identifier: Apache-2.0

#include "x86/hardware/vm.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include <cpuid.h>

#include "x86/cpuid.hpp"
#include "x86/hardware/helper.hpp"

namespace vmm::x86::hardware {
namespace {

constexpr std::uint64_t word_bits = 64;

/// Of its log.
std::uint64_t words_of(const MemorySlots::Region& region) noexcept
{
    return (region.size_bytes / 4096 + word_bits - 1) / word_bits;
}

}  // namespace

Result<void> HelperVm::add(const Region& region)
{
    vmm_region wanted{};
    wanted.slot = region.slot;
    wanted.flags = (region.read_only ? VMM_REGION_READ_ONLY : 0U) |
                   (region.log_dirty ? VMM_REGION_LOG_DIRTY : 0U) |
                   (region.log_dirty && tells_writes_ ? VMM_REGION_TELL_DIRTY : 0U);
    wanted.guest_address = region.gpa;
    wanted.size = region.size_bytes;
    // SAFETY: an address as the helper wants it, an integer.
    wanted.host_address = reinterpret_cast<std::uintptr_t>(region.host);
    VMM_TRY_VOID(call_helper(fd_, VMM_SET_REGION, "VMM_SET_REGION", wanted));
    slots_[region.slot] = region;
    return success;
}

Result<void> HelperVm::remove(std::uint32_t slot)
{
    vmm_region none{};
    none.slot = slot;
    VMM_TRY_VOID(call_helper(fd_, VMM_SET_REGION, "VMM_SET_REGION", none));
    slots_.erase(slot);
    return success;
}

/// What a vCPU touches while a slot is away, the emulator carries out: it looks into the library's
/// own table.
Result<void> HelperVm::memory_changed()
{
    const std::lock_guard lock{mutex_};
    const std::vector<Region> now = memory_.regions();
    std::map<std::uint32_t, Region> surplus = slots_;
    std::vector<const Region*> missing;
    for (const Region& region : now) {
        const auto old = surplus.find(region.slot);
        if (old != surplus.end() && old->second == region) {
            surplus.erase(old);
        } else {
            missing.push_back(&region);
        }
    }
    for (const auto& [slot, region] : surplus) {
        VMM_TRY_VOID(collect_locked(region));
        VMM_TRY_VOID(remove(slot));
    }
    for (const Region* region : missing) {
        VMM_TRY_VOID(add(*region));
    }
    return emulator_->memory_changed();
}

Result<void> HelperVm::collect_dirty_log(std::uint32_t slot)
{
    const std::lock_guard lock{mutex_};
    const auto found = slots_.find(slot);
    return found == slots_.end() ? success : collect_locked(found->second);
}

void HelperVm::add(EngineVcpu& vcpu)
{
    const std::lock_guard lock{mutex_};
    vcpus_.push_back(&vcpu);
}

void HelperVm::remove(EngineVcpu& vcpu) noexcept
{
    const std::lock_guard lock{mutex_};
    std::erase(vcpus_, &vcpu);
}

void HelperVm::msr_filter_changed() noexcept
{
    const std::lock_guard lock{mutex_};
    ++msr_filters_;
    for (EngineVcpu* const vcpu : vcpus_) {
        vcpu->request_exit();
    }
}

Result<void> HelperVm::collect_locked(const Region& region)
{
    if (!region.log_dirty || tells_writes_) {
        return success;
    }
    VMM_TRY(const auto bitmap, take_log(region.slot, {0, words_of(region)}));
    memory_.mark_dirty_pages(region.slot, bitmap);
    return success;
}

Result<std::vector<std::uint64_t>> HelperVm::take_log(std::uint32_t slot, Words words)
{
    std::vector<std::uint64_t> bitmap(words.end - words.first);
    vmm_dirty wanted{};
    wanted.slot = slot;
    // SAFETY: an address as the helper wants it, an integer.
    wanted.bitmap = reinterpret_cast<std::uintptr_t>(bitmap.data());
    wanted.first = words.first;
    wanted.words = bitmap.size();
    VMM_TRY_VOID(call_helper(fd_, VMM_TAKE_DIRTY, "VMM_TAKE_DIRTY", wanted));
    return bitmap;
}

/// What is to be protected again is noted first: a page that is in a ring and not noted would be
/// written unseen once its entry was reset.
void HelperVm::page_written(std::uint32_t slot, std::uint64_t page) noexcept
{
    {
        const std::lock_guard lock{written_mutex_};
        const std::uint64_t word = page / word_bits;
        Words& words = written_.try_emplace(slot, Words{word, word + 1}).first->second;
        words = {std::min(words.first, word), std::max(words.end, word + 1)};
    }
    memory_.mark_slot_dirty(slot, page);
}

/// Of pages whose entries are still in a ring the next write is told in vain: their bit is set.
void HelperVm::protect_written_pages() noexcept
{
    const std::lock_guard lock{mutex_};
    std::map<std::uint32_t, Words> written;
    {
        const std::lock_guard written_lock{written_mutex_};
        written.swap(written_);
    }
    for (auto [slot, words] : written) {
        // The slot may be another one by now, whose pages are all protected.
        const auto found = slots_.find(slot);
        if (found != slots_.end() && found->second.log_dirty) {
            words.end = std::min(words.end, words_of(found->second));
            words.first = std::min(words.first, words.end);
            static_cast<void>(take_log(slot, words));
        }
    }
}

namespace {

class HardwareEngineVm final : public EngineVm {
public:
    HardwareEngineVm(std::shared_ptr<HelperVm> vm, CreateVcpu create) noexcept
        : vm_{std::move(vm)},
          create_vcpu_{create}
    {
    }

    Result<std::unique_ptr<EngineVcpu>> create_vcpu(VcpuHost& host, std::uint32_t id) override
    {
        return create_vcpu_(vm_, host, id);
    }
    Result<void> memory_changed() override { return vm_->memory_changed(); }
    Result<void> collect_dirty_log(std::uint32_t slot) override
    {
        return vm_->collect_dirty_log(slot);
    }
    /// Without rings the helper has protected its pages again when it was asked for its log.
    void dirty_log_cleared() noexcept override
    {
        vm_->protect_written_pages();
        vm_->emulator().dirty_log_cleared();
    }
    Result<void> tell_each_write(std::uint32_t /*at_a_time*/) override
    {
        vm_->tell_each_write();
        return success;
    }
    Result<void> set_msr_filter(const MsrFilter& /*filter*/) override
    {
        vm_->msr_filter_changed();
        return success;
    }
    void memory_written(Gpa gpa, std::uint64_t size_bytes) noexcept override
    {
        vm_->emulator().memory_written(gpa, size_bytes);
    }

private:
    std::shared_ptr<HelperVm> vm_;
    CreateVcpu create_vcpu_;
};

/// What the software engine models on any host and this one leaves to the CPU.
constexpr std::array executed_features{
    feature::pcid, feature::fsgsbase, feature::smep,  feature::invpcid,
    feature::smap, feature::umip,     feature::rdpid, feature::erms,
    feature::fsrm, feature::rdtscp,   feature::nx,    feature::page_1g,
};

bool host_has_feature(CpuidFeature wanted)
{
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    if (__get_cpuid_count(wanted.leaf, wanted.subleaf, &eax, &ebx, &ecx, &edx) == 0) {
        return false;
    }
    const std::array values{eax, ebx, ecx, edx};
    return ((values.at(static_cast<std::size_t>(wanted.reg)) >> wanted.bit) & 1U) != 0U;
}

}  // namespace

void withdraw(std::vector<CpuidEntry>& offer, CpuidFeature unwanted)
{
    for (CpuidEntry& entry : offer) {
        if (entry.function == unwanted.leaf && entry.index == unwanted.subleaf) {
            const std::array registers{&entry.eax, &entry.ebx, &entry.ecx, &entry.edx};
            *registers.at(static_cast<std::size_t>(unwanted.reg)) &= ~(1U << unwanted.bit);
        }
    }
}

std::vector<CpuidEntry> supported_cpuid(std::uint32_t tsc_khz)
{
    std::vector<CpuidEntry> offer = x86::supported_cpuid(tsc_khz);
    for (const CpuidFeature& each : executed_features) {
        if (!host_has_feature(each)) {
            withdraw(offer, each);
        }
    }
    return offer;
}

Result<std::unique_ptr<EngineVm>> create_hardware_vm(PhysicalMemory& pages,
                                                     MemorySlots& slots,
                                                     CreateVcpu create_vcpu)
{
    VMM_TRY(const Device device, open_helper());
    VMM_TRY(auto emulator, soft::create_emulator_vm(pages));
    vmm_create wanted{};
    wanted.argument = VMM_ABI_VERSION;
    VMM_TRY(const int fd, call_helper(device.fd, VMM_CREATE_VM, "VMM_CREATE_VM", wanted));
    auto vm = std::make_shared<HelperVm>(UniqueFd{fd}, device.info.features, std::move(emulator),
                                         pages, slots);
    return std::unique_ptr<EngineVm>{
        std::make_unique<HardwareEngineVm>(std::move(vm), create_vcpu)};
}

}  // namespace vmm::x86::hardware
