// SPDX-License-Identifier: Apache-2.0

#include "x86/msr.hpp"

#include <algorithm>
#include <iterator>

#include "x86/pv_features.hpp"

namespace vmm::x86 {
namespace {

constexpr std::uint64_t mcg_ctl_present = 1U << 8U;
constexpr std::uint64_t mcg_bank_count = 0xff;
constexpr std::uint64_t mcg_status_in_progress = 1U << 2U;
constexpr std::uint64_t mc_valid = std::uint64_t{1} << 63U;
constexpr std::uint64_t mc_overflow = std::uint64_t{1} << 62U;
constexpr std::uint64_t mc_uncorrected = std::uint64_t{1} << 61U;
constexpr std::uint64_t all_ones = ~std::uint64_t{0};

/// RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO,
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO: a software CPU does
/// not speculate, and a guest that knows leaves its mitigations out.
constexpr std::uint64_t arch_capabilities_value =
    (1U << 0U) | (1U << 1U) | (1U << 3U) | (1U << 4U) | (1U << 5U) | (1U << 6U) | (1U << 8U) |
    (1U << 13U) | (1U << 14U) | (1U << 15U) | (1U << 20U) | (1U << 24U) | (1U << 26U) |
    (1U << 27U) | (std::uint64_t{1} << 62U);

/// Sign bit 47 fills 63:48.
bool is_canonical(std::uint64_t address) noexcept
{
    const auto top = static_cast<std::int64_t>(address) >> 47U;
    return top == 0 || top == -1;
}

/// SDM Vol. 3A "IA32_PAT MSR": types 0, 1, 4, 5, 6 and 7 exist; 2 and 3 are reserved.
bool is_valid_pat(std::uint64_t value) noexcept
{
    for (unsigned entry = 0; entry < 8; ++entry) {
        const std::uint64_t type = (value >> (8U * entry)) & 0xffU;
        if (type > 7U || type == 2U || type == 3U) {
            return false;
        }
    }
    return true;
}

/// SDM Vol. 3A "Memory Type Range Registers": types 0, 1, 4, 5 and 6.
bool is_valid_memory_type(std::uint64_t type) noexcept
{
    return type < 8U && ((1U << type) & 0x73U) != 0U;
}

/// Speculation-control MSRs of the guest's CPUID: IBRS/IBPB/STIBP/SSBD of Intel or AMD.
bool has_spec_ctrl(const Cpuid& cpuid) noexcept
{
    return cpuid.has({7, 0, CpuidRegister::Edx, 26}) || cpuid.has({7, 0, CpuidRegister::Edx, 27}) ||
           cpuid.has({7, 0, CpuidRegister::Edx, 31}) ||
           cpuid.has({0x8000'0008, 0, CpuidRegister::Ebx, 14}) ||
           cpuid.has({0x8000'0008, 0, CpuidRegister::Ebx, 15}) ||
           cpuid.has({0x8000'0008, 0, CpuidRegister::Ebx, 24});
}

bool has_pred_cmd(const Cpuid& cpuid) noexcept
{
    return cpuid.has({7, 0, CpuidRegister::Edx, 26}) ||
           cpuid.has({0x8000'0008, 0, CpuidRegister::Ebx, 12});
}

/// MSRs that read as zero and ignore writes: KVM accepts them because guests touch them blindly.
bool is_ignored(const Cpuid& cpuid, std::uint32_t index) noexcept
{
    switch (index) {
    case msr::platform_id:
    case msr::debugctl:
    case 0x1db:  // LASTBRANCHFROMIP and its kin.
    case 0x1dc:
    case 0x1dd:
    case 0x1de:
    case 0x34:  // SMI count.
        return true;
    case msr::amd_syscfg:
    case msr::amd_nb_cfg:
    case msr::amd_ls_cfg:
    case msr::amd_dc_cfg:
    case msr::amd_osvw_id_length:
    case msr::amd_osvw_status:
    case 0xc001'0000:  // Event selects and counters 0-3.
    case 0xc001'0001:
    case 0xc001'0002:
    case 0xc001'0003:
    case 0xc001'0004:
    case 0xc001'0005:
    case 0xc001'0006:
    case 0xc001'0007:
    case 0xc001'0055:  // Interrupt pending message.
    case 0xc001'102a:  // BU_CFG2.
        return !cpuid.is_intel();
    default: return false;
    }
}

}  // namespace

std::uint64_t* state_msr(CpuState& state, std::uint32_t index) noexcept
{
    switch (index) {
    case msr::efer: return &state.efer;
    case msr::star: return &state.star;
    case msr::lstar: return &state.lstar;
    case msr::cstar: return &state.cstar;
    case msr::fmask: return &state.fmask;
    case msr::fs_base: return &state.seg[Fs].base;
    case msr::gs_base: return &state.seg[Gs].base;
    case msr::kernel_gs_base: return &state.kernel_gs_base;
    case msr::tsc_aux: return &state.tsc_aux;
    case msr::sysenter_cs: return &state.sysenter_cs;
    case msr::sysenter_esp: return &state.sysenter_esp;
    case msr::sysenter_eip: return &state.sysenter_eip;
    case msr::xss: return &state.xss;
    default: return nullptr;
    }
}

bool is_valid_state_msr(const CpuState& state, std::uint32_t index, std::uint64_t value) noexcept
{
    switch (index) {
    case msr::efer: return (value & ~Efer::defined) == 0U;
    case msr::lstar:
    case msr::cstar:
    case msr::fs_base:
    case msr::gs_base:
    case msr::kernel_gs_base:
    case msr::sysenter_esp:
    case msr::sysenter_eip: return is_canonical(value);
    case msr::tsc_aux: return (value >> 32U) == 0U;
    case msr::xss: return value == 0U;
    default: static_cast<void>(state); return true;
    }
}

bool allows(const MsrFilter& filter, std::uint32_t index, bool write) noexcept
{
    if (index >= msr::x2apic_first && index <= msr::x2apic_last) {
        return true;
    }
    for (const MsrFilterRange& range : filter.ranges) {
        // As KVM has it, one that reaches beyond the last MSR has none.
        const std::uint32_t end = range.base + range.count;
        if ((write ? range.writes : range.reads) && index >= range.base && index < end) {
            constexpr std::uint32_t bits = 64;
            const std::uint32_t n = index - range.base;
            return (range.allowed[n / bits] >> (n % bits) & 1U) != 0U;
        }
    }
    return !filter.default_deny;
}

bool is_known_msr(std::uint32_t index) noexcept
{
    struct Range {
        std::uint32_t first;
        std::uint32_t last;
    };
    constexpr Range known[] = {
        {msr::tsc, msr::kvm_system_time_old},
        {msr::platform_id, msr::platform_id},
        {msr::apic_base, msr::apic_base},
        {msr::smi_count, msr::smi_count},
        {msr::feature_control, msr::tsc_adjust},
        {msr::spec_ctrl, msr::pred_cmd},
        {msr::ucode_rev, msr::ucode_rev},
        {msr::smbase, msr::smbase},
        {msr::platform_info, msr::platform_info},
        {msr::mtrr_cap, msr::mtrr_cap},
        {msr::arch_capabilities, msr::arch_capabilities},
        {msr::sysenter_cs, msr::sysenter_eip},
        {msr::mcg_cap, msr::mcg_ctl},
        {msr::misc_enable, msr::misc_enable},
        {msr::power_ctl, msr::power_ctl},
        {msr::mtrr_physbase0, msr::mtrr_physbase0 + 15},
        {msr::mtrr_fix64k, msr::mtrr_fix64k},
        {msr::mtrr_fix16k_8, msr::mtrr_fix16k_a},
        {msr::mtrr_fix4k_c0, msr::mtrr_fix4k_f8},
        {msr::pat, msr::pat},
        {msr::mtrr_def_type, msr::mtrr_def_type},
        {msr::perf_capabilities, msr::perf_capabilities},
        {msr::mc0_ctl, msr::mc0_ctl + 4 * max_mce_banks - 1},
        {msr::tsc_deadline, msr::tsc_deadline},
        {msr::x2apic_first, msr::x2apic_last},
        {msr::xss, msr::xss},
        {msr::kvm_wall_clock, msr::kvm_wall_clock + 8},  // Those of its other PV features too.
        {msr::efer, msr::fmask},
        {msr::fs_base, msr::tsc_aux},
        {msr::amd_hwcr, msr::amd_hwcr},
        {msr::amd_de_cfg, msr::amd_de_cfg},
    };
    return std::any_of(std::begin(known), std::end(known), [&](const Range& range) {
        return index >= range.first && index <= range.last;
    });
}

std::uint64_t* MsrBank::mtrr(std::uint32_t index) noexcept
{
    if (index >= msr::mtrr_physbase0 && index < msr::mtrr_physbase0 + mtrr_variable_.size()) {
        return &mtrr_variable_[index - msr::mtrr_physbase0];
    }
    switch (index) {
    case msr::mtrr_fix64k: return mtrr_fixed_.data();
    case msr::mtrr_fix16k_8: return &mtrr_fixed_[1];
    case msr::mtrr_fix16k_a: return &mtrr_fixed_[2];
    default: break;
    }
    if (index >= msr::mtrr_fix4k_c0 && index <= msr::mtrr_fix4k_f8) {
        return &mtrr_fixed_[3 + index - msr::mtrr_fix4k_c0];
    }
    return nullptr;
}

MsrBank::MsrBank() noexcept : arch_capabilities_{arch_capabilities_value} {}

bool MsrBank::is_mc_bank(std::uint32_t index) const noexcept
{
    return index >= msr::mc0_ctl && index - msr::mc0_ctl < 4U * (mcg_cap_ & mcg_bank_count);
}

bool MsrBank::setup_mce(std::uint64_t mcg_cap) noexcept
{
    const std::uint64_t banks = mcg_cap & mcg_bank_count;
    constexpr std::uint64_t extended_states = 0xff'0000;
    if (banks == 0U || banks > max_mce_banks ||
        (mcg_cap & ~(mce_capabilities | mcg_bank_count | extended_states)) != 0U) {
        return false;
    }
    mcg_cap_ = mcg_cap;
    if ((mcg_cap & mcg_ctl_present) != 0U) {
        mcg_ctl_ = all_ones;
    }
    for (std::size_t bank = 0; bank < banks; ++bank) {
        mc_banks_[4 * bank] = all_ones;
    }
    return true;
}

MceOutcome MsrBank::record_mce(const MachineCheck& error, bool enabled) noexcept
{
    if (error.bank >= (mcg_cap_ & mcg_bank_count) || (error.status & mc_valid) == 0U) {
        return MceOutcome::NoSuchBank;
    }
    const std::size_t ctl = std::size_t{4} * error.bank;
    std::uint64_t& status = mc_banks_[ctl + 1];
    const bool uncorrected = (error.status & mc_uncorrected) != 0U;
    if (uncorrected) {
        const bool reports = (mcg_cap_ & mcg_ctl_present) == 0U || mcg_ctl_ == all_ones;
        if (!reports || mc_banks_[ctl] != all_ones) {
            return MceOutcome::Recorded;  // The guest does not want to know.
        }
        if (!enabled || (mcg_status_ & mcg_status_in_progress) != 0U) {
            return MceOutcome::TripleFault;
        }
    } else if ((status & mc_valid) != 0U && (status & mc_uncorrected) != 0U) {
        status |= mc_overflow;  // A worse one is there.
        return MceOutcome::Recorded;
    }
    status = error.status | ((status & mc_valid) != 0U ? mc_overflow : 0U);
    mc_banks_[ctl + 2] = error.addr;
    mc_banks_[ctl + 3] = error.misc;
    if (!uncorrected) {
        return MceOutcome::Recorded;
    }
    mcg_status_ = error.mcg_status;
    return MceOutcome::Raise;
}

bool MsrBank::read(const Cpuid& cpuid,
                   std::uint32_t index,
                   std::uint64_t& value,
                   MsrAccess access) const noexcept
{
    if (const std::uint64_t* range = const_cast<MsrBank*>(this)->mtrr(index)) {
        value = *range;
        return true;
    }
    if (is_mc_bank(index)) {
        value = mc_banks_[index - msr::mc0_ctl];
        return true;
    }
    switch (index) {
    case msr::mtrr_cap: value = 0x500U | variable_mtrr_count; return true;  // WC, fixed ranges.
    case msr::mtrr_def_type: value = mtrr_def_type_; return true;
    case msr::pat: value = pat_; return true;
    case msr::misc_enable: value = misc_enable_; return true;
    case msr::platform_info: value = platform_info_; return true;
    case msr::power_ctl: value = power_ctl_; return true;
    case msr::ucode_rev: value = ucode_rev_; return true;
    case msr::feature_control: value = feature_control_; return cpuid.is_intel();
    case msr::mcg_cap: value = mcg_cap_; return true;
    case msr::mcg_status: value = mcg_status_; return true;
    case msr::mcg_ctl: value = mcg_ctl_; return true;
    case msr::spec_ctrl: value = spec_ctrl_; return has_spec_ctrl(cpuid);
    case msr::arch_capabilities:
        value = arch_capabilities_;
        return access == MsrAccess::Host || cpuid.has({7, 0, CpuidRegister::Edx, 29});
    case msr::amd_hwcr: value = amd_hwcr_; return !cpuid.is_intel();
    case msr::amd_de_cfg: value = amd_de_cfg_; return !cpuid.is_intel();
    default: value = 0; return is_ignored(cpuid, index);
    }
}

bool MsrBank::write(const Cpuid& cpuid,
                    std::uint32_t index,
                    std::uint64_t value,
                    MsrAccess access) noexcept
{
    if (std::uint64_t* range = mtrr(index)) {
        *range = value;
        return true;
    }
    if (is_mc_bank(index)) {
        const std::uint32_t kind = (index - msr::mc0_ctl) % 4U;
        // SDM Vol. 3B "IA32_MCi_CTL MSRs": all zeroes or all ones; a guest clears status only.
        if (access == MsrAccess::Guest &&
            ((kind == 0U && value != 0U && value != ~std::uint64_t{0}) ||
             (kind == 1U && value != 0U))) {
            return false;
        }
        mc_banks_[index - msr::mc0_ctl] = value;
        return true;
    }
    switch (index) {
    case msr::mtrr_def_type:
        if ((value & ~std::uint64_t{0xcff}) != 0U || !is_valid_memory_type(value & 0xffU)) {
            return false;
        }
        mtrr_def_type_ = value;
        return true;
    case msr::pat:
        if (!is_valid_pat(value)) {
            return false;
        }
        pat_ = value;
        return true;
    case msr::misc_enable: misc_enable_ = value; return true;
    case msr::platform_info: {
        constexpr std::uint64_t cpuid_faulting = 1U << 31U;  // Not there.
        if (access == MsrAccess::Guest || (value & cpuid_faulting) != 0U) {
            return false;
        }
        platform_info_ = value;
        return true;
    }
    case msr::power_ctl: power_ctl_ = value; return true;
    case msr::ucode_rev:
        // A guest writes it before CPUID to have the revision loaded; only the host sets it.
        if (access == MsrAccess::Host) {
            ucode_rev_ = value;
        }
        return true;
    case msr::feature_control:
        if (access == MsrAccess::Guest && (feature_control_ & 1U) != 0U) {
            return false;
        }
        feature_control_ = value;
        return cpuid.is_intel();
    case msr::mcg_cap: return access == MsrAccess::Host && value == mcg_cap_;
    case msr::mcg_status:
        if (access == MsrAccess::Guest && value != 0U) {
            return false;
        }
        mcg_status_ = value;
        return true;
    case msr::mcg_ctl:
        if (value != 0U && value != ~std::uint64_t{0}) {
            return false;
        }
        mcg_ctl_ = value;
        return true;
    case msr::arch_capabilities:
        // The VMM may promise less than there is, and no more.
        if (access == MsrAccess::Guest || (value & ~arch_capabilities_value) != 0U) {
            return false;
        }
        arch_capabilities_ = value;
        return true;
    case msr::spec_ctrl:
        if (!has_spec_ctrl(cpuid) || (value & ~std::uint64_t{0x7}) != 0U) {
            return false;
        }
        spec_ctrl_ = value;
        return true;
    case msr::pred_cmd: return has_pred_cmd(cpuid) && (value & ~std::uint64_t{1}) == 0U;
    case msr::amd_hwcr: amd_hwcr_ = value; return !cpuid.is_intel();
    case msr::amd_de_cfg: return !cpuid.is_intel();
    default: return is_ignored(cpuid, index);
    }
}

std::vector<std::uint32_t> msr_feature_list()
{
    return {msr::ucode_rev, msr::arch_capabilities, msr::perf_capabilities, msr::amd_de_cfg};
}

bool read_feature_msr(std::uint32_t index, std::uint64_t& value) noexcept
{
    switch (index) {
    case msr::ucode_rev: value = 0x1'0000'0000; return true;
    case msr::arch_capabilities: value = arch_capabilities_value; return true;
    case msr::perf_capabilities: value = 0; return true;  // There are no counters.
    case msr::amd_de_cfg: value = 2; return true;         // LFENCE is dispatch-serialising.
    default: return false;
    }
}

std::vector<std::uint32_t> msr_index_list()
{
    std::vector<std::uint32_t> list{msr::tsc,
                                    msr::kvm_wall_clock_old,
                                    msr::kvm_system_time_old,
                                    msr::apic_base,
                                    msr::tsc_adjust,
                                    msr::arch_capabilities,
                                    msr::sysenter_cs,
                                    msr::sysenter_esp,
                                    msr::sysenter_eip,
                                    msr::mcg_status,
                                    msr::mcg_ctl,
                                    msr::platform_info,
                                    msr::misc_enable,
                                    msr::power_ctl,
                                    msr::pat,
                                    msr::mtrr_def_type,
                                    msr::tsc_deadline,
                                    msr::kvm_wall_clock,
                                    msr::kvm_system_time,
                                    msr::kvm_async_pf_en,
                                    msr::kvm_steal_time,
                                    msr::kvm_pv_eoi,
                                    msr::kvm_poll_control,
                                    msr::kvm_async_pf_int,
                                    msr::kvm_async_pf_ack,
                                    msr::star,
                                    msr::lstar,
                                    msr::cstar,
                                    msr::fmask,
                                    msr::fs_base,
                                    msr::gs_base,
                                    msr::kernel_gs_base,
                                    msr::tsc_aux,
                                    msr::efer};
    for (std::uint32_t i = 0; i < 16; ++i) {
        list.push_back(msr::mtrr_physbase0 + i);
    }
    list.insert(list.end(), {msr::mtrr_fix64k, msr::mtrr_fix16k_8, msr::mtrr_fix16k_a});
    for (std::uint32_t i = msr::mtrr_fix4k_c0; i <= msr::mtrr_fix4k_f8; ++i) {
        list.push_back(i);
    }
    std::sort(list.begin(), list.end());
    return list;
}

}  // namespace vmm::x86
