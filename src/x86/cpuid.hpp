// SPDX-License-Identifier: Apache-2.0

/// @file
/// CPUID as a table handed to an engine, and features as values.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmm/x86/state.hpp"

namespace vmm::x86 {

enum class CpuidRegister : std::uint8_t { Eax, Ebx, Ecx, Edx };

/// One feature bit of CPUID.
struct CpuidFeature {
    std::uint32_t leaf;
    std::uint32_t subleaf;
    CpuidRegister reg;
    unsigned bit;
};

/// Feature bits.  SDM Vol. 2A "CPUID—CPU Identification"; APM Vol. 3 "Obtaining Processor
/// Information Via the CPUID Instruction".
namespace feature {
inline constexpr CpuidFeature sse3{1, 0, CpuidRegister::Ecx, 0};
inline constexpr CpuidFeature pclmulqdq{1, 0, CpuidRegister::Ecx, 1};
inline constexpr CpuidFeature monitor{1, 0, CpuidRegister::Ecx, 3};
inline constexpr CpuidFeature ssse3{1, 0, CpuidRegister::Ecx, 9};
inline constexpr CpuidFeature fma{1, 0, CpuidRegister::Ecx, 12};
inline constexpr CpuidFeature cx16{1, 0, CpuidRegister::Ecx, 13};
inline constexpr CpuidFeature pcid{1, 0, CpuidRegister::Ecx, 17};
inline constexpr CpuidFeature sse4_1{1, 0, CpuidRegister::Ecx, 19};
inline constexpr CpuidFeature sse4_2{1, 0, CpuidRegister::Ecx, 20};
inline constexpr CpuidFeature x2apic{1, 0, CpuidRegister::Ecx, 21};
inline constexpr CpuidFeature movbe{1, 0, CpuidRegister::Ecx, 22};
inline constexpr CpuidFeature popcnt{1, 0, CpuidRegister::Ecx, 23};
inline constexpr CpuidFeature tsc_deadline{1, 0, CpuidRegister::Ecx, 24};
inline constexpr CpuidFeature aes{1, 0, CpuidRegister::Ecx, 25};
inline constexpr CpuidFeature xsave{1, 0, CpuidRegister::Ecx, 26};
inline constexpr CpuidFeature osxsave{1, 0, CpuidRegister::Ecx, 27};
inline constexpr CpuidFeature avx{1, 0, CpuidRegister::Ecx, 28};
inline constexpr CpuidFeature f16c{1, 0, CpuidRegister::Ecx, 29};
inline constexpr CpuidFeature rdrand{1, 0, CpuidRegister::Ecx, 30};
inline constexpr CpuidFeature hypervisor{1, 0, CpuidRegister::Ecx, 31};
inline constexpr CpuidFeature fpu{1, 0, CpuidRegister::Edx, 0};
inline constexpr CpuidFeature pse{1, 0, CpuidRegister::Edx, 3};
inline constexpr CpuidFeature tsc{1, 0, CpuidRegister::Edx, 4};
inline constexpr CpuidFeature pae{1, 0, CpuidRegister::Edx, 6};
inline constexpr CpuidFeature cx8{1, 0, CpuidRegister::Edx, 8};
inline constexpr CpuidFeature apic{1, 0, CpuidRegister::Edx, 9};
inline constexpr CpuidFeature sep{1, 0, CpuidRegister::Edx, 11};
inline constexpr CpuidFeature pge{1, 0, CpuidRegister::Edx, 13};
inline constexpr CpuidFeature cmov{1, 0, CpuidRegister::Edx, 15};
inline constexpr CpuidFeature pse36{1, 0, CpuidRegister::Edx, 17};
inline constexpr CpuidFeature clflush{1, 0, CpuidRegister::Edx, 19};
inline constexpr CpuidFeature mmx{1, 0, CpuidRegister::Edx, 23};
inline constexpr CpuidFeature fxsr{1, 0, CpuidRegister::Edx, 24};
inline constexpr CpuidFeature sse{1, 0, CpuidRegister::Edx, 25};
inline constexpr CpuidFeature sse2{1, 0, CpuidRegister::Edx, 26};
inline constexpr CpuidFeature fsgsbase{7, 0, CpuidRegister::Ebx, 0};
inline constexpr CpuidFeature bmi1{7, 0, CpuidRegister::Ebx, 3};
inline constexpr CpuidFeature avx2{7, 0, CpuidRegister::Ebx, 5};
inline constexpr CpuidFeature smep{7, 0, CpuidRegister::Ebx, 7};
inline constexpr CpuidFeature bmi2{7, 0, CpuidRegister::Ebx, 8};
inline constexpr CpuidFeature erms{7, 0, CpuidRegister::Ebx, 9};
inline constexpr CpuidFeature invpcid{7, 0, CpuidRegister::Ebx, 10};
inline constexpr CpuidFeature rdseed{7, 0, CpuidRegister::Ebx, 18};
inline constexpr CpuidFeature adx{7, 0, CpuidRegister::Ebx, 19};
inline constexpr CpuidFeature smap{7, 0, CpuidRegister::Ebx, 20};
inline constexpr CpuidFeature clflushopt{7, 0, CpuidRegister::Ebx, 23};
inline constexpr CpuidFeature clwb{7, 0, CpuidRegister::Ebx, 24};
inline constexpr CpuidFeature sha{7, 0, CpuidRegister::Ebx, 29};
inline constexpr CpuidFeature umip{7, 0, CpuidRegister::Ecx, 2};
inline constexpr CpuidFeature gfni{7, 0, CpuidRegister::Ecx, 8};
inline constexpr CpuidFeature vaes{7, 0, CpuidRegister::Ecx, 9};
inline constexpr CpuidFeature vpclmulqdq{7, 0, CpuidRegister::Ecx, 10};
inline constexpr CpuidFeature rdpid{7, 0, CpuidRegister::Ecx, 22};
inline constexpr CpuidFeature fsrm{7, 0, CpuidRegister::Edx, 4};
inline constexpr CpuidFeature xsaveopt{0xd, 1, CpuidRegister::Eax, 0};
inline constexpr CpuidFeature xsavec{0xd, 1, CpuidRegister::Eax, 1};
inline constexpr CpuidFeature xgetbv1{0xd, 1, CpuidRegister::Eax, 2};
inline constexpr CpuidFeature xsaves{0xd, 1, CpuidRegister::Eax, 3};
inline constexpr CpuidFeature kvm_clocksource{0x4000'0001, 0, CpuidRegister::Eax, 0};
inline constexpr CpuidFeature kvm_clocksource2{0x4000'0001, 0, CpuidRegister::Eax, 3};
inline constexpr CpuidFeature kvm_async_pf{0x4000'0001, 0, CpuidRegister::Eax, 4};
inline constexpr CpuidFeature kvm_steal_time{0x4000'0001, 0, CpuidRegister::Eax, 5};
inline constexpr CpuidFeature kvm_pv_eoi{0x4000'0001, 0, CpuidRegister::Eax, 6};
inline constexpr CpuidFeature kvm_poll_control{0x4000'0001, 0, CpuidRegister::Eax, 12};
inline constexpr CpuidFeature kvm_async_pf_int{0x4000'0001, 0, CpuidRegister::Eax, 14};
inline constexpr CpuidFeature kvm_pv_send_ipi{0x4000'0001, 0, CpuidRegister::Eax, 11};
inline constexpr CpuidFeature lahf_lm{0x8000'0001, 0, CpuidRegister::Ecx, 0};
inline constexpr CpuidFeature lzcnt{0x8000'0001, 0, CpuidRegister::Ecx, 5};
inline constexpr CpuidFeature prefetchw{0x8000'0001, 0, CpuidRegister::Ecx, 8};
inline constexpr CpuidFeature syscall{0x8000'0001, 0, CpuidRegister::Edx, 11};
inline constexpr CpuidFeature nx{0x8000'0001, 0, CpuidRegister::Edx, 20};
inline constexpr CpuidFeature page_1g{0x8000'0001, 0, CpuidRegister::Edx, 26};
inline constexpr CpuidFeature rdtscp{0x8000'0001, 0, CpuidRegister::Edx, 27};
inline constexpr CpuidFeature long_mode{0x8000'0001, 0, CpuidRegister::Edx, 29};
}  // namespace feature

/// The CPUID leaves a guest sees, with look-up as the instruction does it.
class Cpuid {
public:
    Cpuid() = default;
    explicit Cpuid(std::span<const CpuidEntry> entries);

    [[nodiscard]] std::span<const CpuidEntry> entries() const noexcept { return entries_; }

    /// The leaf for EAX and ECX, or null.
    [[nodiscard]] const CpuidEntry* find(std::uint32_t function,
                                         std::uint32_t index) const noexcept;

    /// What CPUID returns for EAX = `function`, ECX = `index`: a leaf beyond the last one of its
    /// class gives the last basic leaf on Intel (SDM Vol. 2A "CPUID") and zeroes on AMD.
    [[nodiscard]] CpuidEntry lookup(std::uint32_t function, std::uint32_t index) const noexcept;

    [[nodiscard]] bool has(CpuidFeature f) const noexcept;
    /// The same leaves, of which those that can have `f` have it or not.
    [[nodiscard]] Cpuid with(CpuidFeature f, bool offered) const;

    /// Bits of a physical address, CPUID 8000_0008h EAX[7:0] within 32 to 52; 36 where the leaf is
    /// absent.
    [[nodiscard]] unsigned physical_address_bits() const noexcept { return physical_address_bits_; }
    /// Whether the vendor string is Intel's; AMD's rules apply where it is not.
    [[nodiscard]] bool is_intel() const noexcept { return is_intel_; }

    /// Bits of XCR0 that the guest may set: CPUID.(EAX=0DH,ECX=0):EDX:EAX.
    [[nodiscard]] std::uint64_t supported_xcr0() const noexcept;

private:
    std::vector<CpuidEntry> entries_;
    unsigned physical_address_bits_{36};
    bool is_intel_{};
};

/// What the software engine can offer on this host, as KVM_GET_SUPPORTED_CPUID reports it: the
/// host's own leaves, cut to the features that the engine runs, plus the KVM leaves
/// 0x40000000, 0x40000001 and the timing leaf 0x40000010.  `tsc_khz` is the guest TSC's frequency.
[[nodiscard]] std::vector<CpuidEntry> supported_cpuid(std::uint32_t tsc_khz);

}  // namespace vmm::x86
