// SPDX-License-Identifier: Apache-2.0

/// @file
/// Model-specific registers: their numbers, and those that are only stored.
///
/// Three kinds exist: MSRs that instructions use (in `CpuState`; `state_msr`), MSRs of the
/// interrupt controller and the clocks (the core dispatches them), and all others, which a guest
/// writes and reads back without further effect (`MsrBank`).
/// SDM Vol. 4 "Model-Specific Registers"; APM Vol. 2 "MSR Cross-Reference".

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmm/x86/msr_filter.hpp"
#include "x86/cpu_state.hpp"

namespace vmm::x86 {

namespace msr {
inline constexpr std::uint32_t tsc = 0x10;
inline constexpr std::uint32_t kvm_wall_clock_old = 0x11;
inline constexpr std::uint32_t kvm_system_time_old = 0x12;
inline constexpr std::uint32_t platform_id = 0x17;
inline constexpr std::uint32_t platform_info = 0xce;
inline constexpr std::uint32_t apic_base = 0x1b;
inline constexpr std::uint32_t smi_count = 0x34;
inline constexpr std::uint32_t feature_control = 0x3a;
inline constexpr std::uint32_t tsc_adjust = 0x3b;
inline constexpr std::uint32_t spec_ctrl = 0x48;
inline constexpr std::uint32_t pred_cmd = 0x49;
inline constexpr std::uint32_t ucode_rev = 0x8b;
inline constexpr std::uint32_t smbase = 0x9e;
inline constexpr std::uint32_t mtrr_cap = 0xfe;
inline constexpr std::uint32_t arch_capabilities = 0x10a;
inline constexpr std::uint32_t sysenter_cs = 0x174;
inline constexpr std::uint32_t sysenter_esp = 0x175;
inline constexpr std::uint32_t sysenter_eip = 0x176;
inline constexpr std::uint32_t mcg_cap = 0x179;
inline constexpr std::uint32_t mcg_status = 0x17a;
inline constexpr std::uint32_t mcg_ctl = 0x17b;
inline constexpr std::uint32_t misc_enable = 0x1a0;
inline constexpr std::uint64_t misc_enable_mwait = 1U << 18U;  ///< ENABLE MONITOR FSM.
inline constexpr std::uint32_t debugctl = 0x1d9;
inline constexpr std::uint32_t power_ctl = 0x1fc;
inline constexpr std::uint32_t mtrr_physbase0 = 0x200;
inline constexpr std::uint32_t mtrr_fix64k = 0x250;
inline constexpr std::uint32_t mtrr_fix16k_8 = 0x258;
inline constexpr std::uint32_t mtrr_fix16k_a = 0x259;
inline constexpr std::uint32_t mtrr_fix4k_c0 = 0x268;
inline constexpr std::uint32_t mtrr_fix4k_f8 = 0x26f;
inline constexpr std::uint32_t pat = 0x277;
inline constexpr std::uint32_t mtrr_def_type = 0x2ff;
inline constexpr std::uint32_t perf_capabilities = 0x345;
inline constexpr std::uint32_t mc0_ctl = 0x400;
inline constexpr std::uint32_t tsc_deadline = 0x6e0;
inline constexpr std::uint32_t x2apic_first = 0x800;
inline constexpr std::uint32_t x2apic_last = 0x8ff;
inline constexpr std::uint32_t xss = 0xda0;
inline constexpr std::uint32_t kvm_wall_clock = 0x4b56'4d00;
inline constexpr std::uint32_t kvm_system_time = 0x4b56'4d01;
inline constexpr std::uint32_t efer = 0xc000'0080;
inline constexpr std::uint32_t star = 0xc000'0081;
inline constexpr std::uint32_t lstar = 0xc000'0082;
inline constexpr std::uint32_t cstar = 0xc000'0083;
inline constexpr std::uint32_t fmask = 0xc000'0084;
inline constexpr std::uint32_t fs_base = 0xc000'0100;
inline constexpr std::uint32_t gs_base = 0xc000'0101;
inline constexpr std::uint32_t kernel_gs_base = 0xc000'0102;
inline constexpr std::uint32_t tsc_aux = 0xc000'0103;
inline constexpr std::uint32_t amd_syscfg = 0xc001'0010;
inline constexpr std::uint32_t amd_hwcr = 0xc001'0015;
inline constexpr std::uint32_t amd_nb_cfg = 0xc001'001f;
inline constexpr std::uint32_t amd_osvw_id_length = 0xc001'0140;
inline constexpr std::uint32_t amd_osvw_status = 0xc001'0141;
inline constexpr std::uint32_t amd_ls_cfg = 0xc001'1020;
inline constexpr std::uint32_t amd_dc_cfg = 0xc001'1022;
inline constexpr std::uint32_t amd_de_cfg = 0xc001'1029;
}  // namespace msr

/// The MSR's place in the state, or null if it is none of those that instructions use.
[[nodiscard]] std::uint64_t* state_msr(CpuState& state, std::uint32_t index) noexcept;

/// Whether `value` may be written to the state MSR `index`: canonical addresses, defined bits.
[[nodiscard]] bool is_valid_state_msr(const CpuState& state,
                                      std::uint32_t index,
                                      std::uint64_t value) noexcept;

/// Whether a guest's access passes the filter.
[[nodiscard]] bool allows(const MsrFilter& filter, std::uint32_t index, bool write) noexcept;

/// Whether there is such an MSR on some guest, so that an access that failed was an invalid one.
[[nodiscard]] bool is_known_msr(std::uint32_t index) noexcept;

/// Who accesses an MSR: the host may read what a guest may not, and write read-only ones.
enum class MsrAccess : std::uint8_t { Guest, Host };

inline constexpr std::uint64_t max_mce_banks = 32;
/// IA32_MCG_CAP's MCG_CTL_P and MCG_SER_P: what can be offered.
inline constexpr std::uint64_t mce_capabilities = (1U << 8U) | (1U << 24U);

/// What recording a machine check asks for.
enum class MceOutcome : std::uint8_t { NoSuchBank, Recorded, Raise, TripleFault };

/// MSRs that are stored and read back.
class MsrBank {
public:
    MsrBank() noexcept;

    /// @return false if there is no such MSR here (#GP(0) for a guest).
    [[nodiscard]] bool read(const Cpuid& cpuid,
                            std::uint32_t index,
                            std::uint64_t& value,
                            MsrAccess access) const noexcept;
    /// @return false if there is none, or the value is reserved.
    [[nodiscard]] bool write(const Cpuid& cpuid,
                             std::uint32_t index,
                             std::uint64_t value,
                             MsrAccess access) noexcept;

    [[nodiscard]] std::uint64_t misc_enable() const noexcept { return misc_enable_; }

    /// KVM_X86_SETUP_MCE.  False if `mcg_cap` asks for what there is not.
    [[nodiscard]] bool setup_mce(std::uint64_t mcg_cap) noexcept;
    /// KVM_X86_SET_MCE.  `enabled`: CR4.MCE.
    [[nodiscard]] MceOutcome record_mce(const MachineCheck& error, bool enabled) noexcept;

private:
    static constexpr std::size_t variable_mtrr_count = 8;
    static constexpr std::size_t bank_count = max_mce_banks;

    [[nodiscard]] std::uint64_t* mtrr(std::uint32_t index) noexcept;
    [[nodiscard]] bool is_mc_bank(std::uint32_t index) const noexcept;

    std::array<std::uint64_t, 2 * variable_mtrr_count> mtrr_variable_{};
    std::array<std::uint64_t, 11> mtrr_fixed_{};
    std::uint64_t mtrr_def_type_{};
    std::uint64_t pat_{0x0007'0406'0007'0406};
    std::uint64_t misc_enable_{1};  // Fast strings.
    std::uint64_t platform_info_{};
    std::uint64_t power_ctl_{};
    std::uint64_t spec_ctrl_{};
    std::uint64_t ucode_rev_{0x1'0000'0000};
    std::uint64_t feature_control_{};
    std::uint64_t arch_capabilities_;
    std::uint64_t mcg_cap_{(1U << 8U) | 10U};  // MCG_CTL_P and ten banks.
    std::uint64_t mcg_status_{};
    std::uint64_t mcg_ctl_{};
    std::array<std::uint64_t, 4 * bank_count> mc_banks_{};
    std::uint64_t amd_hwcr_{1U << 24U};  // TscFreqSel: the TSC counts at P0 frequency.
    std::uint64_t amd_de_cfg_{2};        // LFENCE is dispatch-serialising.
};

/// KVM_GET_MSR_FEATURE_INDEX_LIST, and the value of one of them: what a guest's MSR may say.
[[nodiscard]] std::vector<std::uint32_t> msr_feature_list();
[[nodiscard]] bool read_feature_msr(std::uint32_t index, std::uint64_t& value) noexcept;

/// The MSRs that make up a guest's state, as KVM_GET_MSR_INDEX_LIST reports them.
[[nodiscard]] std::vector<std::uint32_t> msr_index_list();

}  // namespace vmm::x86
