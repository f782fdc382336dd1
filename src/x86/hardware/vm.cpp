// SPDX-License-Identifier: Apache-2.0

#include "x86/hardware/vm.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include <cpuid.h>

#include "x86/cpuid.hpp"
#include "x86/hardware/helper.hpp"

namespace vmm::x86::hardware {

Result<void> HelperVm::add(const Region& region)
{
    vmm_region wanted{};
    wanted.slot = region.slot;
    wanted.flags = (region.read_only ? VMM_REGION_READ_ONLY : 0U) |
                   (region.log_dirty ? VMM_REGION_LOG_DIRTY : 0U);
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
    if (!region.log_dirty) {
        return success;
    }
    constexpr std::uint64_t bits = 64;
    const std::uint64_t pages = region.size_bytes / 4096;
    std::vector<std::uint64_t> bitmap((pages + bits - 1) / bits);
    vmm_dirty wanted{};
    wanted.slot = region.slot;
    // SAFETY: an address as the helper wants it, an integer.
    wanted.bitmap = reinterpret_cast<std::uintptr_t>(bitmap.data());
    VMM_TRY_VOID(call_helper(fd_, VMM_TAKE_DIRTY, "VMM_TAKE_DIRTY", wanted));
    memory_.mark_dirty_pages(region.slot, bitmap);
    return success;
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
    /// The helper has protected its pages again when it was asked for its log.
    void dirty_log_cleared() noexcept override { vm_->emulator().dirty_log_cleared(); }
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
