// SPDX-License-Identifier: Apache-2.0

/// @file
/// Control registers, EFER and the model-specific registers behind RDMSR and WRMSR.
///
/// SDM Vol. 3A "Control Registers", Vol. 2B "MOV—Move to/from Control Registers"; what a guest may
/// set follows its CPUID, as KVM has it.

#include "x86/msr.hpp"
#include "x86/soft/descriptor.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

[[noreturn]] void refuse()
{
    raise(Vector::GP, 0);
}

bool uses_pae_paging(std::uint64_t cr0, std::uint64_t cr4, std::uint64_t efer) noexcept
{
    return Cr0{cr0}.get(Cr0::PG) && Cr4{cr4}.get(Cr4::PAE) && !Efer{efer}.get(Efer::LMA);
}

/// Bits of CR4 that the guest's CPUID brings about.  Protection keys and shadow stacks are none of
/// the engine's, whatever CPUID says.
std::uint64_t permitted_cr4(const Cpuid& cpuid) noexcept
{
    std::uint64_t bits = mask_of(Cr4::VME, Cr4::PVI, Cr4::TSD, Cr4::DE, Cr4::PSE, Cr4::PAE,
                                 Cr4::MCE, Cr4::PGE, Cr4::PCE, Cr4::OSFXSR, Cr4::OSXMMEXCPT);
    const auto add = [&](CpuidFeature feature, std::uint64_t bit) {
        bits |= cpuid.has(feature) ? bit : 0U;
    };
    add(feature::umip, Cr4::UMIP.mask);
    add(feature::fsgsbase, Cr4::FSGSBASE.mask);
    add(feature::pcid, Cr4::PCIDE.mask);
    add(feature::xsave, Cr4::OSXSAVE.mask);
    add(feature::smep, Cr4::SMEP.mask);
    add(feature::smap, Cr4::SMAP.mask);
    return bits;
}

std::uint64_t permitted_efer(const Cpuid& cpuid) noexcept
{
    std::uint64_t bits = 0;
    bits |= cpuid.has(feature::syscall) ? Efer::SCE.mask : 0U;
    bits |= cpuid.has(feature::nx) ? Efer::NXE.mask : 0U;
    bits |= cpuid.has(feature::long_mode) ? mask_of(Efer::LME, Efer::LMA) : 0U;
    return bits;
}

/// False: the value is refused.
bool write_efer(Cpu& cpu, std::uint64_t value)
{
    if ((value & ~permitted_efer(cpu.cpuid)) != 0U) {
        return false;
    }
    const Efer old{cpu.efer};
    if (Cr0{cpu.cr0}.get(Cr0::PG) && old.get(Efer::LME) != Efer{value}.get(Efer::LME)) {
        return false;
    }
    // LMA is the processor's.
    const std::uint64_t now = (value & ~Efer::LMA.mask) | (cpu.efer & Efer::LMA.mask);
    if (((now ^ cpu.efer) & Efer::NXE.mask) != 0U) {
        flush_tlb_all(cpu);
    }
    cpu.efer = now;
    cpu.mode_changed();
    return true;
}

/// Whether the guest has the state MSR at all.
bool has_state_msr(const Cpuid& cpuid, std::uint32_t index) noexcept
{
    switch (index) {
    case msr::star: return cpuid.has(feature::syscall);
    case msr::lstar:
    case msr::cstar:
    case msr::fmask:
    case msr::fs_base:
    case msr::gs_base:
    case msr::kernel_gs_base: return cpuid.has(feature::long_mode);
    case msr::tsc_aux: return cpuid.has(feature::rdtscp) || cpuid.has(feature::rdpid);
    case msr::xss: return cpuid.has(feature::xsaves);
    default: return true;
    }
}

}  // namespace

void write_cr0(Cpu& cpu, std::uint64_t value)
{
    if ((value >> 32U) != 0U) {
        refuse();
    }
    const Cr0 now{(value & Cr0::defined) | Cr0::ET.mask};
    const Cr0 old{cpu.cr0};
    if (!now.is_valid()) {
        refuse();
    }
    std::uint64_t efer = cpu.efer;
    if (now.get(Cr0::PG) && !old.get(Cr0::PG)) {
        if (Efer{efer}.get(Efer::LME)) {
            // SDM Vol. 3A "IA-32e Mode Operation": PAE must be on, and CS.L off.
            if (!Cr4{cpu.cr4}.get(Cr4::PAE) || cpu.seg[Cs].l != 0U) {
                refuse();
            }
            efer |= Efer::LMA.mask;
        }
    } else if (!now.get(Cr0::PG) && old.get(Cr0::PG)) {
        if (cpu.code_64() || Cr4{cpu.cr4}.get(Cr4::PCIDE)) {
            refuse();
        }
        efer &= ~Efer::LMA.mask;
    }
    constexpr std::uint64_t loads_pdptes = mask_of(Cr0::CD, Cr0::NW, Cr0::PG);
    const std::uint64_t changed = now.raw() ^ old.raw();
    if ((changed & loads_pdptes) != 0U && uses_pae_paging(now.raw(), cpu.cr4, efer) &&
        !load_pdptes(cpu, cpu.cr3)) {
        refuse();
    }
    cpu.cr0 = now.raw();
    cpu.efer = efer;
    if ((changed & mask_of(Cr0::PG, Cr0::WP, Cr0::PE)) != 0U) {
        flush_tlb_all(cpu);
    }
    cpu.mode_changed();
}

void write_cr3(Cpu& cpu, std::uint64_t value)
{
    constexpr std::uint64_t no_flush = std::uint64_t{1} << 63U;
    bool keeps = false;
    if (cpu.long_mode()) {
        if (Cr4{cpu.cr4}.get(Cr4::PCIDE)) {
            keeps = (value & no_flush) != 0U;
            value &= ~no_flush;
        }
        if ((value >> cpu.cpuid.physical_address_bits()) != 0U) {
            refuse();
        }
    } else {
        value &= 0xffff'ffffU;
        if (uses_pae_paging(cpu.cr0, cpu.cr4, cpu.efer) && !load_pdptes(cpu, value)) {
            refuse();
        }
    }
    const bool is_same = cpu.cr3 == value;
    cpu.cr3 = value;
    if (!(keeps && is_same)) {
        switch_address_space(cpu, keeps);
    }
}

void write_cr4(Cpu& cpu, std::uint64_t value)
{
    if ((value & ~permitted_cr4(cpu.cpuid)) != 0U) {
        refuse();
    }
    const Cr4 now{value};
    const Cr4 old{cpu.cr4};
    if (cpu.long_mode() && !now.get(Cr4::PAE)) {
        refuse();
    }
    if (now.get(Cr4::PCIDE) && !old.get(Cr4::PCIDE) &&
        (!cpu.long_mode() || (cpu.cr3 & 0xfffU) != 0U)) {
        refuse();
    }
    const std::uint64_t changed = now.raw() ^ old.raw();
    constexpr std::uint64_t loads_pdptes = mask_of(Cr4::PAE, Cr4::PGE, Cr4::PSE, Cr4::SMEP);
    if ((changed & loads_pdptes) != 0U && uses_pae_paging(cpu.cr0, value, cpu.efer) &&
        !load_pdptes(cpu, cpu.cr3)) {
        refuse();
    }
    cpu.cr4 = value;
    constexpr std::uint64_t flushes =
        mask_of(Cr4::PAE, Cr4::PGE, Cr4::PSE, Cr4::SMEP, Cr4::SMAP, Cr4::PCIDE);
    if ((changed & flushes) != 0U) {
        flush_tlb_all(cpu);
    }
    cpu.mode_changed();
}

namespace {

/// What the host's answer means to the instruction.
void take_msr_result(MsrResult result, bool& to_user)
{
    switch (result) {
    case MsrResult::Done: return;
    case MsrResult::Fault: refuse();
    case MsrResult::ToUser: to_user = true; return;
    }
}

/// WRMSR of an MSR that is in the state.  False: the value is refused.
bool write_state_msr(Cpu& cpu, std::uint32_t index, std::uint64_t* place, std::uint64_t value)
{
    if (index == msr::efer) {
        return write_efer(cpu, value);
    }
    if (!has_state_msr(cpu.cpuid, index) || !is_valid_state_msr(cpu, index, value)) {
        return false;
    }
    // SDM Vol. 2B "SYSCALL": the mask and the code selector have 32 bits.
    const bool is_narrow = index == msr::fmask || index == msr::sysenter_cs;
    *place = is_narrow ? value & 0xffff'ffffU : value;
    return true;
}

}  // namespace

void read_msr(Cpu& cpu, std::uint32_t index, std::uint64_t& value, bool& to_user)
{
    to_user = false;
    if (!cpu.host.allows_msr(index, false)) {
        take_msr_result(cpu.host.refuse_msr(MsrExitReason::Filter), to_user);
        return;
    }
    if (const std::uint64_t* const place = state_msr(cpu, index)) {
        if (has_state_msr(cpu.cpuid, index)) {
            value = *place;
        } else {
            take_msr_result(cpu.host.refuse_msr(MsrExitReason::Invalid), to_user);
        }
        return;
    }
    MsrResult result{};
    {
        const OutOfGuest out{cpu.vm, cpu};
        result = cpu.host.read_msr(index, value);
    }
    take_msr_result(result, to_user);
}

void write_msr(Cpu& cpu, std::uint32_t index, std::uint64_t value, bool& to_user)
{
    to_user = false;
    if (!cpu.host.allows_msr(index, true)) {
        take_msr_result(cpu.host.refuse_msr(MsrExitReason::Filter), to_user);
        return;
    }
    if (std::uint64_t* const place = state_msr(cpu, index)) {
        if (!write_state_msr(cpu, index, place, value)) {
            take_msr_result(cpu.host.refuse_msr(MsrExitReason::Invalid), to_user);
        }
        return;
    }
    MsrResult result{};
    {
        const OutOfGuest out{cpu.vm, cpu};
        result = cpu.host.write_msr(index, value);
    }
    take_msr_result(result, to_user);
}

void complete_msr(Cpu& cpu)
{
    if (cpu.msr_answer.fault) {
        Event event{EventKind::HardwareException, static_cast<std::uint8_t>(Vector::GP)};
        event.has_error_code = true;
        cpu.inject = event;
        return;
    }
    if (cpu.exit.reason == EngineExit::Reason::MsrRead) {
        cpu.gpr[Rax] = cpu.msr_answer.value & 0xffff'ffffU;
        cpu.gpr[Rdx] = cpu.msr_answer.value >> 32U;
    }
    complete_instruction(cpu, cpu.exit.instruction_size);
}

void complete_instruction(Cpu& cpu, std::uint8_t length)
{
    constexpr std::uint64_t dr6_bs = std::uint64_t{1} << 14U;
    cpu.rip = cpu.ip_mask(cpu.rip + length);
    cpu.rflags &= ~Rflags::RF.mask;
    cpu.sti_shadow = false;
    cpu.mov_ss_shadow = false;
    if ((cpu.rflags & Rflags::TF.mask) != 0 || cpu.debugger.single_step) {
        cpu.pending_debug |= dr6_bs;
    }
}

void check_io_permission(Cpu& cpu, std::uint16_t port, unsigned size)
{
    if (!cpu.protected_mode() ||
        (!cpu.virtual_8086() && cpu.cpl <= Rflags{cpu.rflags}.get(Rflags::IOPL))) {
        return;
    }
    constexpr std::uint32_t io_map_base_offset = 0x66;
    const Segment& task = cpu.tr;
    const bool has_map =
        task.type == system_type::tss_busy || task.type == system_type::tss_available;
    if (task.unusable != 0U || !has_map || task.limit < io_map_base_offset + 1U) {
        refuse();
    }
    const std::uint32_t base =
        load_system<std::uint16_t>(cpu, table_address(cpu, task.base + io_map_base_offset));
    const std::uint32_t offset = base + port / 8U;
    // Two bytes are always read: a wide access may reach into the second.
    if (offset + 1U > task.limit) {
        refuse();
    }
    const std::uint32_t map =
        load_system<std::uint16_t>(cpu, table_address(cpu, task.base + offset));
    const std::uint32_t wanted = ((1U << size) - 1U) << (port % 8U);
    if ((map & wanted) != 0U) {
        refuse();
    }
}

}  // namespace vmm::x86::soft
