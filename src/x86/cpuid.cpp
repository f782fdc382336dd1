// SPDX-License-Identifier: Apache-2.0

#include "x86/cpuid.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>
#include <utility>

#include <cpuid.h>

#include "x86/tsc.hpp"

namespace vmm::x86 {

namespace {

constexpr std::uint32_t extended_class = 0x8000'0000;
constexpr std::uint32_t hypervisor_class = 0x4000'0000;
constexpr std::uint32_t centaur_class = 0xc000'0000;
constexpr std::uint32_t topology_leaf = 0xb;
constexpr std::uint32_t topology_v2_leaf = 0x1f;

std::uint32_t CpuidEntry::*register_of(CpuidRegister reg) noexcept
{
    switch (reg) {
    case CpuidRegister::Eax: return &CpuidEntry::eax;
    case CpuidRegister::Ebx: return &CpuidEntry::ebx;
    case CpuidRegister::Ecx: return &CpuidEntry::ecx;
    case CpuidRegister::Edx: break;
    }
    return &CpuidEntry::edx;
}

/// The leaf whose EAX tells the last leaf of the class that `function` belongs to.
std::uint32_t class_of(std::uint32_t function) noexcept
{
    if (function >= centaur_class) {
        return centaur_class;
    }
    if (function >= extended_class) {
        return extended_class;
    }
    // Hypervisors stack their leaves at steps of 0x100.
    return function >= hypervisor_class ? function & 0xffff'ff00U : 0;
}

bool has_vendor(const CpuidEntry& entry, const char (&name)[13]) noexcept
{
    std::array<char, 12> vendor{};
    std::memcpy(vendor.data(), &entry.ebx, 4);
    std::memcpy(vendor.data() + 4, &entry.edx, 4);
    std::memcpy(vendor.data() + 8, &entry.ecx, 4);
    return std::memcmp(vendor.data(), name, vendor.size()) == 0;
}

}  // namespace

// --- Look-up

Cpuid::Cpuid(std::span<const CpuidEntry> entries) : entries_(entries.begin(), entries.end())
{
    if (const CpuidEntry* const sizes = find(extended_class + 8, 0)) {
        // The VMM may put any number there; what is shifted by it must be an address.
        physical_address_bits_ = std::clamp(sizes->eax & 0xffU, 32U, 52U);
    }
    if (const CpuidEntry* const vendor = find(0, 0)) {
        is_intel_ = has_vendor(*vendor, "GenuineIntel");
    }
}

const CpuidEntry* Cpuid::find(std::uint32_t function, std::uint32_t index) const noexcept
{
    const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const CpuidEntry& each) {
        return each.function == function &&
               ((each.flags & CpuidEntry::significant_index) == 0 || each.index == index);
    });
    return found == entries_.end() ? nullptr : &*found;
}

Cpuid Cpuid::with(CpuidFeature f, bool offered) const
{
    Cpuid changed{*this};
    for (CpuidEntry& each : changed.entries_) {
        if (each.function == f.leaf && each.index == f.subleaf) {
            std::uint32_t& word = each.*register_of(f.reg);
            const std::uint32_t bit = std::uint32_t{1} << f.bit;
            word = offered ? word | bit : word & ~bit;
        }
    }
    return changed;
}

CpuidEntry Cpuid::lookup(std::uint32_t function, std::uint32_t index) const noexcept
{
    CpuidEntry none{};
    none.function = function;
    none.index = index;
    const CpuidEntry* entry = find(function, index);
    const CpuidEntry* const basic = find(0, 0);
    std::uint32_t redirected = function;
    if (entry == nullptr && basic != nullptr && is_intel_) {
        const CpuidEntry* const own_class = find(class_of(function), 0);
        if (own_class == nullptr || function > own_class->eax) {
            redirected = basic->eax;
            entry = find(redirected, index);
        }
    }
    if (entry != nullptr) {
        CpuidEntry answer = *entry;
        answer.function = function;
        answer.index = index;
        return answer;
    }
    // Sub-leaves beyond the last: ECX still tells the sub-leaf and EDX the x2APIC ID.
    if (redirected == topology_leaf || redirected == topology_v2_leaf) {
        if (const CpuidEntry* const level = find(redirected, 1)) {
            none.ecx = index & 0xffU;
            none.edx = level->edx;
        }
    }
    return none;
}

bool Cpuid::has(CpuidFeature f) const noexcept
{
    const CpuidEntry* const entry = find(f.leaf, f.subleaf);
    return entry != nullptr && (entry->*register_of(f.reg) >> (f.bit & 31U) & 1U) != 0;
}

std::uint64_t Cpuid::supported_xcr0() const noexcept
{
    const CpuidEntry* const entry = find(0xd, 0);
    return entry == nullptr ? 1 : std::uint64_t{entry->edx} << 32U | entry->eax;
}

// --- What the engine offers

namespace {

CpuidEntry host_leaf(std::uint32_t function, std::uint32_t index = 0) noexcept
{
    CpuidEntry entry{};
    entry.function = function;
    entry.index = index;
    std::uint32_t eax = 0;
    std::uint32_t ebx = 0;
    std::uint32_t ecx = 0;
    std::uint32_t edx = 0;
    // Zeroes for a leaf that the host has not.
    if (__get_cpuid_count(function, index, &eax, &ebx, &ecx, &edx) != 0) {
        entry.eax = eax;
        entry.ebx = ebx;
        entry.ecx = ecx;
        entry.edx = edx;
    }
    return entry;
}

CpuidEntry leaf(std::uint32_t function,
                std::uint32_t eax,
                std::uint32_t ebx,
                std::uint32_t ecx,
                std::uint32_t edx) noexcept
{
    CpuidEntry entry{};
    entry.function = function;
    entry.eax = eax;
    entry.ebx = ebx;
    entry.ecx = ecx;
    entry.edx = edx;
    return entry;
}

/// The bits of features of one register.
std::uint32_t bits_of(std::initializer_list<CpuidFeature> features) noexcept
{
    std::uint32_t mask = 0;
    for (const CpuidFeature& each : features) {
        mask |= 1U << each.bit;
    }
    return mask;
}

constexpr std::uint32_t bit(unsigned number)
{
    return 1U << number;
}

/// Builds the list leaf by leaf.  "Native" features come from the host's instructions, so it must
/// have them; "modelled" ones the engine carries out itself, on any host.
class Offer {
public:
    explicit Offer(std::uint32_t tsc_khz)
        : tsc_khz_(tsc_khz),
          host_basic_(host_leaf(0)),
          intel_(has_vendor(host_basic_, "GenuineIntel"))
    {
        const CpuidEntry host = host_leaf(1);
        // AVX needs the host kernel's consent too: XCR0 tells.
        if ((host.ecx & bits_of({feature::osxsave})) != 0) {
            xcr0_ = read_host_xcr0() & 7U;
        }
    }

    std::vector<CpuidEntry> build()
    {
        add_basic();
        add_hypervisor();
        add_extended();
        return std::move(entries_);
    }

private:
    static std::uint64_t read_host_xcr0() noexcept
    {
        std::uint32_t low = 0;
        std::uint32_t high = 0;
        asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return std::uint64_t{high} << 32U | low;
    }

    [[nodiscard]] bool has_avx() const noexcept { return (xcr0_ & 4U) != 0; }

    void add(const CpuidEntry& entry) { entries_.push_back(entry); }
    void add_indexed(CpuidEntry entry, std::uint32_t index)
    {
        entry.index = index;
        entry.flags = CpuidEntry::significant_index;
        entries_.push_back(entry);
    }

    void add_basic()
    {
        const CpuidEntry clock = host_leaf(0x15);
        const bool has_clock = intel_ && clock.eax != 0 && clock.ebx != 0 && clock.ecx != 0 &&
                               tsc_khz_ == host_tsc_khz();
        add(leaf(0, has_clock ? 0x15 : 0xd, host_basic_.ebx, host_basic_.ecx, host_basic_.edx));
        add_features_1();
        if (intel_) {
            add(host_leaf(2));
            add_intel_caches();
        }
        add(leaf(6, bit(2), 0, 0, 0));  // The APIC timer always runs.
        add_features_7();
        add(leaf(0xa, 0, 0, 0, 0));
        add_indexed(leaf(topology_leaf, 0, 0, 0, 0), 0);
        add_xsave();
        if (has_clock) {
            add(clock);
        }
    }

    void add_features_1()
    {
        CpuidEntry entry = host_leaf(1);
        std::uint32_t native = bits_of(
            {feature::sse3, feature::pclmulqdq, feature::ssse3, feature::cx16, feature::sse4_1,
             feature::sse4_2, feature::movbe, feature::popcnt, feature::aes, feature::rdrand});
        if (xcr0_ != 0) {
            native |= bits_of({feature::xsave});
        }
        if (has_avx()) {
            native |= bits_of({feature::avx, feature::fma, feature::f16c});
        }
        entry.ecx = (entry.ecx & native) | bits_of({feature::pcid, feature::x2apic,
                                                    feature::tsc_deadline, feature::hypervisor});
        entry.edx = common_edx() | bits_of({feature::sep, feature::clflush}) |
                    (entry.edx & bit(27)) | bits_of({feature::sse, feature::sse2});
        entry.ebx &= 0xff00U;  // The line size of CLFLUSH; the rest is topology.
        add(entry);
    }

    /// EDX of leaf 1, which AMD repeats in leaf 8000_0001h.  Every x86-64 processor has these.
    static std::uint32_t common_edx() noexcept
    {
        constexpr std::uint32_t vme_de = bit(1) | bit(2);
        constexpr std::uint32_t msr_mce_mtrr_mca_pat =
            bit(5) | bit(7) | bit(12) | bit(14) | bit(16);
        return vme_de | msr_mce_mtrr_mca_pat |
               bits_of({feature::fpu, feature::pse, feature::tsc, feature::pae, feature::cx8,
                        feature::apic, feature::pge, feature::cmov, feature::pse36, feature::mmx,
                        feature::fxsr});
    }

    void add_intel_caches()
    {
        constexpr std::uint32_t max_caches = 8;
        for (std::uint32_t index = 0; index < max_caches; ++index) {
            CpuidEntry cache = host_leaf(4, index);
            cache.eax &= 0x3fffU;  // Bits 31:14 tell who shares it: topology.
            add_indexed(cache, index);
            if ((cache.eax & 0x1fU) == 0) {
                return;
            }
        }
    }

    void add_features_7()
    {
        CpuidEntry entry = host_leaf(7);
        constexpr std::uint32_t tsc_adjust = bit(1);
        constexpr std::uint32_t x87_pointer_rules = bit(6) | bit(13);  // FDP, FCS and FDS.
        std::uint32_t native = x87_pointer_rules |
                               bits_of({feature::bmi1, feature::bmi2, feature::rdseed, feature::adx,
                                        feature::clflushopt, feature::clwb, feature::sha});
        std::uint32_t native_ecx = bits_of({feature::gfni});
        if (has_avx()) {
            native |= bits_of({feature::avx2});
            native_ecx |= bits_of({feature::vaes, feature::vpclmulqdq});
        }
        entry.eax = 0;
        entry.ebx = (entry.ebx & native) | tsc_adjust |
                    bits_of({feature::fsgsbase, feature::smep, feature::erms, feature::invpcid,
                             feature::smap});
        entry.ecx = (entry.ecx & native_ecx) | bits_of({feature::umip, feature::rdpid});
        // IBRS and ARCH_CAPABILITIES let a guest see that it needs no mitigation of its own: there
        // is no speculation across privilege levels of a software CPU.
        constexpr std::uint32_t ibrs = bit(26);
        constexpr std::uint32_t arch_capabilities = bit(29);
        entry.edx = bits_of({feature::fsrm}) | (intel_ ? ibrs : 0U) | arch_capabilities;
        add_indexed(entry, 0);
    }

    /// Sizes of the state components x87, SSE and AVX.  SDM Vol. 1 "XSAVE-Supported Features".
    void add_xsave()
    {
        if (xcr0_ == 0) {
            add_indexed(leaf(0xd, 0, 0, 0, 0), 0);
            return;
        }
        constexpr std::uint32_t legacy_and_header = 512 + 64;
        constexpr std::uint32_t avx_size = 256;
        const std::uint32_t size = legacy_and_header + (has_avx() ? avx_size : 0U);
        const auto components = static_cast<std::uint32_t>(xcr0_);
        // EBX is for what XCR0 enables: the core and the CPUID instruction keep it current.
        add_indexed(leaf(0xd, components, legacy_and_header, size, 0), 0);
        const std::uint32_t forms =
            host_leaf(0xd, 1).eax &
            bits_of({feature::xsaveopt, feature::xsavec, feature::xgetbv1, feature::xsaves});
        add_indexed(leaf(0xd, forms, legacy_and_header, 0, 0), 1);
        if (has_avx()) {
            add_indexed(leaf(0xd, avx_size, legacy_and_header, 0, 0), 2);
        }
    }

    void add_hypervisor()
    {
        constexpr std::uint32_t last_leaf = hypervisor_class + 0x10;
        constexpr std::array<char, 12> name{'K', 'V', 'M', 'K', 'V', 'M', 'K', 'V', 'M', 0, 0, 0};
        std::array<std::uint32_t, 3> words{};
        std::memcpy(words.data(), name.data(), name.size());
        add(leaf(hypervisor_class, last_leaf, words[0], words[1], words[2]));
        // Documentation/virt/kvm/x86/cpuid: clocksource, no delay after port I/O, clocksource2,
        // clocksource-stable.
        add(leaf(
            hypervisor_class + 1,
            bit(1) | bit(24) |
                bits_of({feature::kvm_clocksource, feature::kvm_clocksource2, feature::kvm_async_pf,
                         feature::kvm_steal_time, feature::kvm_pv_eoi, feature::kvm_pv_send_ipi,
                         feature::kvm_poll_control, feature::kvm_async_pf_int}),
            0, 0, 0));
        constexpr std::uint32_t apic_bus_khz = 1'000'000;
        add(leaf(last_leaf, tsc_khz_, apic_bus_khz, 0, 0));
    }

    void add_extended()
    {
        constexpr std::uint32_t amd_last = extended_class + 0x21;
        constexpr std::uint32_t intel_last = extended_class + 8;
        if (intel_) {
            add(leaf(extended_class, intel_last, 0, 0, 0));
        } else {
            add(leaf(extended_class, amd_last, host_basic_.ebx, host_basic_.ecx, host_basic_.edx));
        }
        add_extended_features();
        for (const std::uint32_t brand : {2U, 3U, 4U}) {
            add(host_leaf(extended_class + brand));
        }
        if (!intel_) {
            add(host_leaf(extended_class + 5));
        }
        add(host_leaf(extended_class + 6));
        add(leaf(extended_class + 7, 0, 0, 0, bit(8)));  // The TSC's rate never changes.
        add_address_sizes();
        if (!intel_) {
            constexpr std::uint32_t lfence_serializes = bit(2);
            constexpr std::uint32_t null_clears_base = bit(6);
            constexpr std::uint32_t srso_no = bit(29);
            constexpr std::uint32_t tsa_no = bit(1) | bit(2);  // Store queue, L1 cache.
            add(leaf(amd_last,
                     (host_leaf(amd_last).eax & null_clears_base) | lfence_serializes | srso_no, 0,
                     tsa_no, 0));
        }
    }

    void add_extended_features()
    {
        CpuidEntry entry = host_leaf(extended_class + 1);
        const std::uint32_t native = bits_of({feature::lzcnt});
        entry.ecx = (entry.ecx & native) | bits_of({feature::lahf_lm, feature::prefetchw});
        std::uint32_t repeated = 0;
        if (!intel_) {
            constexpr std::uint32_t mmx_extensions = bit(22);
            repeated = common_edx() | mmx_extensions;
        } else {
            entry.eax = 0;
        }
        entry.ebx = 0;
        entry.edx = repeated | bits_of({feature::syscall, feature::nx, feature::page_1g,
                                        feature::rdtscp, feature::long_mode});
        add(entry);
    }

    void add_address_sizes()
    {
        constexpr std::uint32_t linear_bits = 48;
        const std::uint32_t host_bits = host_leaf(extended_class + 8).eax & 0xffU;
        const std::uint32_t physical_bits = std::clamp(host_bits, 36U, 48U);
        std::uint32_t ebx = 0;
        if (!intel_) {
            // IBPB, IBRS; not affected by speculative store bypass and by branch type confusion.
            ebx = bit(12) | bit(14) | bit(26) | bit(29);
        }
        add(leaf(extended_class + 8, physical_bits | linear_bits << 8U, ebx, 0, 0));
    }

    std::uint32_t tsc_khz_;
    CpuidEntry host_basic_;
    bool intel_;
    std::uint64_t xcr0_{};
    std::vector<CpuidEntry> entries_;
};

}  // namespace

std::vector<CpuidEntry> supported_cpuid(std::uint32_t tsc_khz)
{
    return Offer{tsc_khz}.build();
}

}  // namespace vmm::x86
