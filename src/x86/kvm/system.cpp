// SPDX-License-Identifier: Apache-2.0

#include "x86/kvm/system.hpp"

#include <algorithm>
#include <array>
#include <optional>

#include <fcntl.h>

#include <fmt/format.h>

#include "x86/cpuid.hpp"
#include "x86/kvm/engine.hpp"

namespace vmm::x86::kvm {
namespace {

struct Needed {
    unsigned long capability;
    int least;
    const char* name;
};

/// Linux 5.10 has the youngest of them.
constexpr std::array needed{
    Needed{KVM_CAP_USER_MEMORY, 1, "KVM_CAP_USER_MEMORY"},
    Needed{KVM_CAP_READONLY_MEM, 1, "KVM_CAP_READONLY_MEM"},
    Needed{KVM_CAP_IMMEDIATE_EXIT, 1, "KVM_CAP_IMMEDIATE_EXIT"},
    Needed{KVM_CAP_SYNC_REGS, KVM_SYNC_X86_VALID_FIELDS, "KVM_CAP_SYNC_REGS"},
    Needed{KVM_CAP_VCPU_EVENTS, 1, "KVM_CAP_VCPU_EVENTS"},
    Needed{KVM_CAP_DEBUGREGS, 1, "KVM_CAP_DEBUGREGS"},
    Needed{KVM_CAP_XSAVE, 1, "KVM_CAP_XSAVE"},
    Needed{KVM_CAP_X86_USER_SPACE_MSR, 1, "KVM_CAP_X86_USER_SPACE_MSR"},
    Needed{KVM_CAP_X86_MSR_FILTER, 1, "KVM_CAP_X86_MSR_FILTER"},
};

// --- CPUID

/// Bits of one register of the library's offer that are taken from elsewhere than from it.
struct Choice {
    std::uint32_t function;
    CpuidRegister reg;
    std::uint32_t own;   ///< The library carries these out itself: whatever KVM says.
    std::uint32_t kvms;  ///< KVM's word alone: they speak of the host's CPU.
};

constexpr std::uint32_t bit(unsigned number)
{
    return 1U << number;
}

constexpr std::array choices{
    // x2APIC, TSC deadline, hypervisor.
    Choice{1, CpuidRegister::Ecx, bit(21) | bit(24) | bit(31), 0},
    // MSRs, machine checks, APIC, MTRRs, MCA, PAT.
    Choice{1, CpuidRegister::Edx, bit(5) | bit(7) | bit(9) | bit(12) | bit(14) | bit(16), 0},
    // TSC_ADJUST; what x87 pointers hold.
    Choice{7, CpuidRegister::Ebx, bit(1), bit(6) | bit(13)},
    Choice{7, CpuidRegister::Ecx, 0, 0},
    // MD_CLEAR, IBRS, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
    Choice{7, CpuidRegister::Edx, 0, bit(10) | bit(26) | bit(27) | bit(28) | bit(29) | bit(31)},
    Choice{0x8000'0001, CpuidRegister::Ecx, 0, 0},
    Choice{0x8000'0001, CpuidRegister::Edx, bit(5) | bit(7) | bit(9) | bit(12) | bit(14) | bit(16),
           0},
    Choice{0x8000'0008, CpuidRegister::Ebx, 0, ~0U},
    Choice{0x8000'0021, CpuidRegister::Eax, 0, ~0U},
};

std::uint32_t& register_of(CpuidEntry& entry, CpuidRegister reg) noexcept
{
    switch (reg) {
    case CpuidRegister::Eax: return entry.eax;
    case CpuidRegister::Ebx: return entry.ebx;
    case CpuidRegister::Ecx: return entry.ecx;
    case CpuidRegister::Edx: break;
    }
    return entry.edx;
}

std::vector<CpuidEntry> kvm_cpuid(const UniqueFd& kvm, unsigned long request)
{
    const auto list = std::make_unique<CpuidList>();
    list->count = CpuidList::most;
    if (::ioctl(kvm.get(), request, list.get()) < 0) {
        return {};
    }
    std::vector<CpuidEntry> entries;
    for (std::uint32_t i = 0; i < list->count; ++i) {
        const kvm_cpuid_entry2& e = list->entries[i];
        entries.push_back({e.function, e.index, e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX, e.eax,
                           e.ebx, e.ecx, e.edx});
    }
    return entries;
}

CpuidEntry* find(std::vector<CpuidEntry>& list, std::uint32_t function, std::uint32_t index)
{
    const auto found = std::find_if(list.begin(), list.end(), [&](const CpuidEntry& each) {
        return each.function == function && each.index == index;
    });
    return found == list.end() ? nullptr : &*found;
}

/// XSAVE as far as KVM has it: the components x87, SSE and AVX, and the forms of the instruction.
void limit_xsave(std::vector<CpuidEntry>& offer, const Cpuid& kvms)
{
    constexpr std::uint32_t avx_component = 4;
    CpuidEntry* const sizes = find(offer, 0xd, 0);
    if (sizes == nullptr) {
        return;
    }
    const bool has_xsave = kvms.has(feature::xsave);
    sizes->eax &= has_xsave ? static_cast<std::uint32_t>(kvms.supported_xcr0()) : 0U;
    if (CpuidEntry* const forms = find(offer, 0xd, 1)) {
        const CpuidEntry* const theirs = kvms.find(0xd, 1);
        forms->eax &= has_xsave && theirs != nullptr ? theirs->eax : 0U;
    }
    if ((sizes->eax & avx_component) == 0U) {
        constexpr std::uint32_t legacy_and_header = 512 + 64;
        sizes->ebx = sizes->ecx = sizes->eax == 0U ? 0U : legacy_and_header;
        std::erase_if(offer, [](const CpuidEntry& e) { return e.function == 0xd && e.index == 2; });
    }
}

/// Of KVM's paravirtual features those that lean on its local APICs as far as KVM has them; the
/// others are the library's.
void limit_pv_features(std::vector<CpuidEntry>& offer, const Cpuid& kvms)
{
    constexpr std::uint32_t features = 0x4000'0001;
    constexpr std::uint32_t with_apics =
        1U << feature::kvm_async_pf.bit | 1U << feature::kvm_steal_time.bit |
        1U << feature::kvm_pv_eoi.bit | 1U << feature::kvm_pv_send_ipi.bit |
        1U << feature::kvm_poll_control.bit | 1U << feature::kvm_async_pf_int.bit;
    if (CpuidEntry* const ours = find(offer, features, 0)) {
        const CpuidEntry* const theirs = kvms.find(features, 0);
        ours->eax &= ~with_apics | (theirs != nullptr ? theirs->eax : 0U);
    }
}

}  // namespace

Result<UniqueFd> open_kvm()
{
    UniqueFd kvm{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    if (!kvm) {
        return Error::from_errno("open /dev/kvm");
    }
    const int version = ::ioctl(kvm.get(), KVM_GET_API_VERSION, 0UL);
    if (version != KVM_API_VERSION) {
        return Error{std::errc::no_such_device,
                     fmt::format("/dev/kvm has API version {}, {} is the one there is", version,
                                 KVM_API_VERSION)};
    }
    for (const Needed& each : needed) {
        const int has = ::ioctl(kvm.get(), KVM_CHECK_EXTENSION, each.capability);
        if ((has & each.least) != each.least) {
            return Error{std::errc::no_such_device,
                         fmt::format("/dev/kvm lacks {}, which Linux 5.10 has", each.name)};
        }
    }
    return kvm;
}

Result<Limits> query_limits()
{
    VMM_TRY(const UniqueFd kvm, open_kvm());
    const auto ask = [&](unsigned long capability) {
        return ::ioctl(kvm.get(), KVM_CHECK_EXTENSION, capability);
    };
    const int vcpus = ask(KVM_CAP_MAX_VCPUS);
    const int ids = ask(KVM_CAP_MAX_VCPU_ID);
    const int quirks = std::max(ask(KVM_CAP_DISABLE_QUIRKS2), 0);
    const int hypercalls = std::max(ask(KVM_CAP_EXIT_HYPERCALL), 0);
    const int ring_bytes = std::max(ask(KVM_CAP_DIRTY_LOG_RING), 0);
    constexpr std::uint32_t entry_bytes = sizeof(kvm_dirty_gfn);
    return Limits{.memory_slots = ask(KVM_CAP_NR_MEMSLOTS),
                  .vcpus = vcpus,
                  .vcpu_ids = ids > 0 ? ids : vcpus,
                  .quirks = static_cast<std::uint64_t>(quirks),
                  .hypercall_exits = static_cast<std::uint32_t>(hypercalls),
                  .dirty_ring_entries = static_cast<std::uint32_t>(ring_bytes) / entry_bytes,
                  .irqchip = ask(KVM_CAP_IRQCHIP) > 0 && ask(KVM_CAP_SPLIT_IRQCHIP) > 0 &&
                             ask(KVM_CAP_PIT2) > 0 && ask(KVM_CAP_X2APIC_API) > 0};
}

std::vector<CpuidEntry> emulated_cpuid()
{
    const auto kvm = open_kvm();
    return kvm ? kvm_cpuid(*kvm, get_emulated_cpuid) : std::vector<CpuidEntry>{};
}

std::vector<CpuidEntry> supported_cpuid(std::uint32_t tsc_khz, bool kernel_apics)
{
    const auto kvm = open_kvm();
    if (!kvm) {
        return {};
    }
    const std::vector<CpuidEntry> entries = kvm_cpuid(*kvm, get_supported_cpuid);
    const Cpuid kvms{entries};
    std::vector<CpuidEntry> offer = x86::supported_cpuid(tsc_khz);
    for (const Choice& choice : choices) {
        CpuidEntry* const entry = find(offer, choice.function, 0);
        if (entry == nullptr) {
            continue;
        }
        const CpuidEntry* const found = kvms.find(choice.function, 0);
        CpuidEntry theirs = found != nullptr ? *found : CpuidEntry{};
        std::uint32_t& ours = register_of(*entry, choice.reg);
        const std::uint32_t has = register_of(theirs, choice.reg);
        ours = (ours & ~choice.kvms & (has | choice.own)) | (has & choice.kvms);
    }
    if (CpuidEntry* const sizes = find(offer, 0x8000'0008, 0)) {
        const unsigned bits = std::min(sizes->eax & 0xffU, kvms.physical_address_bits());
        sizes->eax = (sizes->eax & ~0xffU) | bits;
    }
    limit_xsave(offer, kvms);
    if (kernel_apics) {
        limit_pv_features(offer, kvms);
    }
    return offer;
}

}  // namespace vmm::x86::kvm
