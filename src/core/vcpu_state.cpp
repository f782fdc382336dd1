// SPDX-License-Identifier: Apache-2.0

/// @file
/// Setting a vCPU's state from outside: what must hold, and the sentence when it does not.

#include <algorithm>

#include <fmt/format.h>

#include "core/vcpu_core.hpp"
#include "core/vm_core.hpp"
#include "vmm/x86/quirk.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {
namespace {

using x86::Cr0;
using x86::Cr4;
using x86::Efer;
using x86::StateGroup;

Error refused(std::string sentence)
{
    return {std::errc::invalid_argument, "set_sregs: " + std::move(sentence)};
}

/// A CR4 bit and the CPUID feature that it needs.
struct Cr4Feature {
    std::uint64_t mask;
    const char* name;
    const char* cpuid;
    x86::CpuidFeature feature;
};

constexpr Cr4Feature cr4_features[] = {
    {Cr4::OSXSAVE.mask, "OSXSAVE", "CPUID.1:ECX.XSAVE", x86::feature::xsave},
    {Cr4::SMEP.mask, "SMEP", "CPUID.7:EBX.SMEP", x86::feature::smep},
    {Cr4::SMAP.mask, "SMAP", "CPUID.7:EBX.SMAP", x86::feature::smap},
    {Cr4::FSGSBASE.mask, "FSGSBASE", "CPUID.7:EBX.FSGSBASE", x86::feature::fsgsbase},
    {Cr4::PCIDE.mask, "PCIDE", "CPUID.1:ECX.PCID", x86::feature::pcid},
    {Cr4::UMIP.mask, "UMIP", "CPUID.7:ECX.UMIP", x86::feature::umip},
};

constexpr std::uint64_t cr4_never = Cr4::LA57.mask | Cr4::VMXE.mask | Cr4::SMXE.mask |
                                    Cr4::PKE.mask | Cr4::CET.mask | Cr4::PKS.mask |
                                    ~((std::uint64_t{1} << 25U) - 1U) | (1U << 15U) | (1U << 19U);

Result<void> check_cr4(const x86::Cpuid& cpuid, std::uint64_t cr4)
{
    if ((cr4 & cr4_never) != 0U) {
        return refused(fmt::format("CR4 = {:#x}: bits {:#x} are reserved for this guest (SDM "
                                   "Vol. 3A \"Control Registers\")",
                                   cr4, cr4 & cr4_never));
    }
    for (const Cr4Feature& f : cr4_features) {
        if ((cr4 & f.mask) != 0U && !cpuid.has(f.feature)) {
            return refused(fmt::format("CR4 = {:#x}: {} is reserved for this guest ({} = 0; SDM "
                                       "Vol. 3A \"Control Registers\"); call set_cpuid first",
                                       cr4, f.name, f.cpuid));
        }
    }
    return success;
}

/// SDM Vol. 3C "VM-Entry Checks on Guest Control Registers"; KVM refuses the same.
Result<void> check_sregs(const x86::Cpuid& cpuid, const x86::Sregs& s)
{
    const Cr0 cr0{s.cr0};
    const bool pg = cr0.get(Cr0::PG);
    const bool lme = Efer{s.efer}.get(Efer::LME);
    const bool lma = Efer{s.efer}.get(Efer::LMA);
    if (!cr0.is_valid()) {
        return refused(fmt::format("CR0 = {:#x}: PG needs PE, NW needs CD, and bits 63:32 are "
                                   "reserved (SDM Vol. 2B \"MOV—Move to/from Control Registers\")",
                                   s.cr0));
    }
    if ((s.efer & ~Efer::defined) != 0U) {
        return refused(fmt::format("EFER = {:#x}: bits {:#x} are reserved for this guest", s.efer,
                                   s.efer & ~Efer::defined));
    }
    if (pg && lme) {
        if (!Cr4{s.cr4}.get(Cr4::PAE) || !lma) {
            return refused(fmt::format("CR0.PG and EFER.LME are set, so CR4.PAE and EFER.LMA must "
                                       "be: CR4 = {:#x}, EFER = {:#x} (SDM Vol. 3A \"Initializing "
                                       "IA-32e Mode\")",
                                       s.cr4, s.efer));
        }
        if ((s.cr3 >> cpuid.physical_address_bits()) != 0U) {
            return refused(fmt::format("CR3 = {:#x} lies beyond the guest's {} physical address "
                                       "bits",
                                       s.cr3, cpuid.physical_address_bits()));
        }
    } else if (lma || s.cs.l != 0U) {
        return refused(fmt::format("EFER.LMA and CS.L need long mode: CR0 = {:#x}, EFER = {:#x}, "
                                   "CS.L = {}",
                                   s.cr0, s.efer, s.cs.l));
    }
    if (s.cr8 > 15U) {
        return refused(fmt::format("CR8 = {:#x}: 0 to 15 are permitted", s.cr8));
    }
    return check_cr4(cpuid, s.cr4);
}

/// What the software engine has the host's CPU execute: a guest that was promised more than the
/// host has would bring the host's #UD down on this process.
constexpr x86::CpuidFeature host_executed_features[] = {
    x86::feature::sse3,
    x86::feature::pclmulqdq,
    x86::feature::ssse3,
    x86::feature::fma,
    x86::feature::cx16,
    x86::feature::sse4_1,
    x86::feature::sse4_2,
    x86::feature::movbe,
    x86::feature::popcnt,
    x86::feature::aes,
    x86::feature::xsave,
    x86::feature::avx,
    x86::feature::f16c,
    x86::feature::rdrand,
    x86::feature::bmi1,
    x86::feature::avx2,
    x86::feature::bmi2,
    x86::feature::rdseed,
    x86::feature::adx,
    x86::feature::clflushopt,
    x86::feature::clwb,
    x86::feature::sha,
    x86::feature::gfni,
    x86::feature::vaes,
    x86::feature::vpclmulqdq,
    x86::feature::xsaveopt,
    x86::feature::xsavec,
    x86::feature::xgetbv1,
    x86::feature::xsaves,
    x86::feature::lzcnt,
    {7, 0, x86::CpuidRegister::Ebx, 16},  // AVX512F: nothing of AVX-512 is executed.
};

const char* cpuid_register_name(x86::CpuidRegister reg) noexcept
{
    switch (reg) {
    case x86::CpuidRegister::Eax: return "EAX";
    case x86::CpuidRegister::Ebx: return "EBX";
    case x86::CpuidRegister::Ecx: return "ECX";
    case x86::CpuidRegister::Edx: return "EDX";
    }
    return "?";
}

}  // namespace

bool VcpuCore::can_be_in(const x86::CpuState& cpu)
{
    x86::Sregs s;
    s.cs = cpu.seg[x86::Cs];
    s.cr0 = cpu.cr0;
    s.cr3 = cpu.cr3;
    s.cr4 = cpu.cr4;
    s.efer = cpu.efer;
    return static_cast<bool>(check_sregs(cpu.cpuid, s));
}

Result<void> VcpuCore::set_sregs(const x86::Sregs& s)
{
    x86::CpuState& cpu = state(StateGroup::Segments);
    // As long as the CPU's model is not chosen, it may become all that there is.
    const bool has_model = !cpu.cpuid.entries().empty();
    VMM_TRY_VOID(check_sregs(has_model ? cpu.cpuid : x86::Cpuid{vm_->supported_cpuid()}, s));
    if (apic_ != nullptr) {
        if (!apic_->set_apic_base(s.apic_base, x86::irqchip::ApicBaseWriter::Host)) {
            return refused(fmt::format("apic_base = {:#x}: not a state the local APIC can be put "
                                       "in (SDM Vol. 3A \"Local APIC Status and Location\")",
                                       s.apic_base));
        }
        apic_->set_cr8(static_cast<std::uint8_t>(s.cr8));
    } else {
        const std::uint64_t beyond = ~std::uint64_t{0} << cpu.cpuid.physical_address_bits();
        constexpr std::uint64_t reserved = 0x2ff;
        if ((s.apic_base & (reserved | beyond)) != 0U) {
            return refused(fmt::format("apic_base = {:#x}: bits {:#x} are reserved (SDM Vol. 3A "
                                       "\"Local APIC Status and Location\")",
                                       s.apic_base, s.apic_base & (reserved | beyond)));
        }
        cpu.cr8 = s.cr8;
        apic_base_ = s.apic_base;
    }
    cpu.seg[x86::Cs] = s.cs;
    cpu.seg[x86::Ds] = s.ds;
    cpu.seg[x86::Es] = s.es;
    cpu.seg[x86::Fs] = s.fs;
    cpu.seg[x86::Gs] = s.gs;
    cpu.seg[x86::Ss] = s.ss;
    cpu.tr = s.tr;
    cpu.ldt = s.ldt;
    cpu.gdt = s.gdt;
    cpu.idt = s.idt;
    cpu.cr0 = s.cr0 | Cr0::ET.mask;
    cpu.cr2 = s.cr2;
    cpu.cr3 = s.cr3;
    cpu.cr4 = s.cr4;
    cpu.efer = s.efer;
    state_changed(StateGroup::Segments);
    return success;
}

Result<void> VcpuCore::set_cpuid(std::span<const x86::CpuidEntry> entries)
{
    constexpr std::size_t most = 256;
    if (entries.size() > most) {
        return Error{
            std::errc::argument_list_too_long,
            fmt::format("set_cpuid: {} entries, at most {} are permitted", entries.size(), most)};
    }
    x86::Cpuid cpuid{entries};
    if (!vm_->has_quirk(x86::quirk::misc_enable_no_mwait)) {
        cpuid = cpuid.with(x86::feature::monitor, is_monitor_enabled());
    }
    const x86::Cpuid supported{vm_->supported_cpuid()};
    for (const x86::CpuidFeature& f : host_executed_features) {
        if (cpuid.has(f) && !supported.has(f)) {
            return Error{std::errc::invalid_argument,
                         fmt::format("set_cpuid: leaf {:#x}, register {}, bit {}: this host's CPU "
                                     "lacks that feature; start from Kvm::supported_cpuid()",
                                     f.leaf, cpuid_register_name(f.reg), f.bit)};
        }
    }
    if ((cpuid.supported_xcr0() & ~supported.supported_xcr0()) != 0U) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_cpuid: leaf 0xd offers the state components {:#x}, this "
                                 "host and engine have {:#x}; start from Kvm::supported_cpuid()",
                                 cpuid.supported_xcr0(), supported.supported_xcr0())};
    }
    VMM_TRY_VOID(engine_->set_cpuid(cpuid));
    if (lapic_ != nullptr) {
        lapic_->set_features({cpuid.has(x86::feature::x2apic),
                              cpuid.has(x86::feature::tsc_deadline),
                              static_cast<std::uint8_t>(cpuid.physical_address_bits())});
    }
    return success;
}

Result<std::uint64_t> VcpuCore::msr(std::uint32_t index)
{
    constexpr StateGroup msrs = StateGroup::Segments | StateGroup::Msrs;
    if (const std::uint64_t* place = x86::state_msr(state(msrs), index)) {
        return *place;
    }
    std::uint64_t value = 0;
    if (!(engine_->has_msr(index) ? engine_->read_msr(index, value)
                                  : access_msr(index, value, false, x86::MsrAccess::Host))) {
        return Error{std::errc::invalid_argument,
                     fmt::format("msr({:#x}): this guest has no such MSR", index)};
    }
    return value;
}

Result<void> VcpuCore::set_msr(std::uint32_t index, std::uint64_t value)
{
    constexpr StateGroup msrs = StateGroup::Segments | StateGroup::Msrs;
    x86::CpuState& cpu = state(msrs);
    if (std::uint64_t* place = x86::state_msr(cpu, index)) {
        if (!x86::is_valid_state_msr(cpu, index, value)) {
            return Error{std::errc::invalid_argument,
                         fmt::format("set_msr({:#x}): {:#x} has reserved bits set or is no "
                                     "canonical address",
                                     index, value)};
        }
        // LMA is a result of paging, not to be written; KVM keeps it too.
        const std::uint64_t kept = index == x86::msr::efer ? Efer::LMA.mask : 0U;
        *place = (value & ~kept) | (*place & kept);
        state_changed(msrs);
        return success;
    }
    if (!(engine_->has_msr(index) ? engine_->write_msr(index, value)
                                  : access_msr(index, value, true, x86::MsrAccess::Host))) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_msr({:#x}): this guest has no such MSR, or {:#x} has "
                                 "reserved bits set",
                                 index, value)};
    }
    if (index == x86::msr::apic_base) {
        state_changed(StateGroup::Msrs);  // CPUID follows it.
    }
    return success;
}

Result<void> VcpuCore::setup_mce(std::uint64_t mcg_cap)
{
    if (!msrs_.setup_mce(mcg_cap)) {
        return Error{std::errc::invalid_argument,
                     fmt::format("setup_mce({:#x}): 1 to {} banks in bits 7:0 are possible, and "
                                 "of the other bits those of Kvm::mce_capabilities(), {:#x} (SDM "
                                 "Vol. 3B \"Machine-Check Architecture\")",
                                 mcg_cap, x86::max_mce_banks, x86::mce_capabilities)};
    }
    return success;
}

Result<void> VcpuCore::inject_mce(const x86::MachineCheck& error)
{
    const auto raised =
        msrs_.record_mce(error, (state(StateGroup::Segments).cr4 & Cr4::MCE.mask) != 0U);
    switch (raised) {
    case x86::MceOutcome::NoSuchBank:
        return Error{std::errc::invalid_argument,
                     fmt::format("inject_mce: bank {}: setup_mce gave this vCPU fewer banks, or "
                                 "the status {:#x} is not valid (bit 63)",
                                 error.bank, error.status)};
    case x86::MceOutcome::Recorded: return success;
    case x86::MceOutcome::Raise:
        state(StateGroup::Registers).inject = x86::Event{
            x86::EventKind::HardwareException, static_cast<std::uint8_t>(x86::Vector::MC)};
        return success;
    case x86::MceOutcome::TripleFault: shutdown_ = true; return success;
    }
    return success;
}

x86::VcpuEvents VcpuCore::events() noexcept
{
    const x86::CpuState& cpu = state(StateGroup::Registers);
    x86::VcpuEvents out;
    if (cpu.inject) {
        const x86::Event& event = *cpu.inject;
        switch (event.kind) {
        case x86::EventKind::HardwareException:
        case x86::EventKind::SoftwareException:
        case x86::EventKind::PrivilegedSoftwareException:
            out.exception = {1, event.vector, static_cast<std::uint8_t>(event.has_error_code), 0,
                             event.error_code};
            out.exception_payload = event.payload;
            if (pending_exception_ == event) {
                out.exception.injected = 0;
                out.exception.pending = 1;
            }
            break;
        case x86::EventKind::ExternalInterrupt: out.interrupt = {1, event.vector, 0, 0}; break;
        case x86::EventKind::SoftwareInterrupt: out.interrupt = {1, event.vector, 1, 0}; break;
        case x86::EventKind::Nmi: out.nmi.injected = 1; break;
        }
    }
    if (user_interrupt_ && out.interrupt.injected == 0U) {
        out.interrupt = {1, *user_interrupt_, 0, 0};
    }
    out.interrupt.shadow =
        static_cast<std::uint8_t>((cpu.mov_ss_shadow ? 1U : 0U) | (cpu.sti_shadow ? 2U : 0U));
    const bool with_engine = engine_apic_ != nullptr && engine_apic_->is_nmi_pending();
    out.nmi.pending = with_engine || nmi_pending_.load() != 0U ? 1 : 0;
    out.nmi.masked = cpu.nmi_blocked ? 1 : 0;
    out.smi.smm = cpu.smm ? 1 : 0;
    out.smi.pending = smi_pending_.load() ? 1 : 0;
    out.smi.smm_inside_nmi = smm_inside_nmi_ ? 1 : 0;
    out.smi.latched_init = has_latched_init() ? 1 : 0;
    out.triple_fault = shutdown_ ? 1 : 0;
    const int sipi = sipi_vector_.load();
    out.sipi_vector = sipi == no_sipi ? 0U : static_cast<std::uint32_t>(sipi);
    return out;
}

/// An interrupt beside an event that comes first waits as one of `interrupt()` does; with an
/// irqchip the local APIC has it.
void VcpuCore::keep_user_interrupt(const x86::VcpuEvents& events) noexcept
{
    if (apic_ == nullptr && events.interrupt.injected != 0U && events.interrupt.soft == 0U) {
        user_interrupt_ = events.interrupt.nr;
    }
}

Result<void> VcpuCore::set_events(const x86::VcpuEvents& events)
{
    const bool exception = events.exception.injected != 0U || events.exception.pending != 0U;
    if (exception && (events.exception.nr > 31U || events.exception.nr == 2U)) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_events: exception vector {}: exceptions are 0 to 31, "
                                 "without 2 (NMI)",
                                 events.exception.nr)};
    }
    const bool smm = events.smi.smm != 0U;
    if ((smm || events.smi.pending != 0U) &&
        (!vm_->has_smm() || mp_state_ == x86::MpState::InitReceived)) {
        return Error{std::errc::invalid_argument,
                     "set_events: this engine has no system-management mode, or the vCPU waits "
                     "for a SIPI, where no SMI reaches it"};
    }
    x86::CpuState& cpu = state(StateGroup::Registers);
    smi_pending_.store(events.smi.pending != 0U);
    smm_inside_nmi_ = smm && events.smi.smm_inside_nmi != 0U;
    if (smm && lapic_ != nullptr) {
        init_pending_.store(events.smi.latched_init != 0U);
    }
    const bool smm_changed = std::exchange(cpu.smm, smm) != smm;
    cpu.inject.reset();
    pending_exception_.reset();
    user_interrupt_.reset();
    if (exception) {
        cpu.inject = x86::Event{x86::EventKind::HardwareException,
                                events.exception.nr,
                                0,
                                events.exception.has_error_code != 0U,
                                events.exception.error_code,
                                events.exception_payload};
        if (events.exception.injected == 0U) {
            pending_exception_ = cpu.inject;
        }
        keep_user_interrupt(events);
    } else if (events.nmi.injected != 0U) {
        cpu.inject = x86::Event{x86::EventKind::Nmi, 2};
        keep_user_interrupt(events);
    } else if (events.interrupt.injected != 0U) {
        cpu.inject = x86::Event{events.interrupt.soft != 0U ? x86::EventKind::SoftwareInterrupt
                                                            : x86::EventKind::ExternalInterrupt,
                                events.interrupt.nr};
    }
    cpu.mov_ss_shadow = (events.interrupt.shadow & 1U) != 0U;
    cpu.sti_shadow = (events.interrupt.shadow & 2U) != 0U;
    cpu.nmi_blocked = events.nmi.masked != 0U;
    if (engine_apic_ != nullptr) {
        nmi_pending_.store(0U);
        engine_apic_->set_nmi_pending(events.nmi.pending != 0U);
    } else {
        nmi_pending_.store(events.nmi.pending != 0U ? 1U : 0U);
    }
    shutdown_ = events.triple_fault != 0U;
    state_changed(smm_changed ? StateGroup::All : StateGroup::Registers);
    return success;
}

VcpuStatistics VcpuCore::statistics() const
{
    const auto count = [&](ExitKind kind) { return counters_.count(kind); };
    VcpuStatistics out;
    out.vcpu = id_;
    // What the engine counts better itself comes from there.
    const auto engine = engine_->counters();
    const auto add = [&](std::string_view name, std::uint64_t value) {
        const bool has = std::any_of(engine.begin(), engine.end(),
                                     [&](const auto& each) { return each.first == name; });
        if (!has) {
            out.counters.push_back({name, value});
        }
    };
    add("exits", counters_.total());
    add("io_exits", count(ExitKind::PortRead) + count(ExitKind::PortWrite) +
                        count(ExitKind::DevicePortRead) + count(ExitKind::DevicePortWrite));
    add("mmio_exits", count(ExitKind::MmioRead) + count(ExitKind::MmioWrite));
    add("signal_exits", counters_.signal_exits.value());
    add("irq_window_exits", count(ExitKind::IrqWindow));
    add("nmi_window_exits", count(ExitKind::NmiWindow));
    add("halt_exits", count(ExitKind::Halt));
    add("request_irq_exits", counters_.request_irq_exits.value());
    add("hypercalls", count(ExitKind::Hypercall));
    add("irq_injections", counters_.irq_injections.value());
    add("nmi_injections", counters_.nmi_injections.value());
    add("guest_mode", 0);  // No guest has guests.
    add("halt_wakeup", counters_.halt_wakeup.value());
    add("halt_wait_ns", counters_.halt_wait_ns.value());
    add("halt_attempted_poll", counters_.halt_attempted_poll.value());
    add("halt_successful_poll", counters_.halt_successful_poll.value());
    add("halt_poll_success_ns", counters_.halt_poll_success_ns.value());
    add("halt_poll_fail_ns", counters_.halt_poll_fail_ns.value());
    add("blocking", counters_.blocking.value());
    for (const auto& [name, value] : engine) {
        out.counters.push_back({name, value});
    }
    std::transform(counters_.halt_wait_hist.begin(), counters_.halt_wait_hist.end(),
                   out.halt_wait_hist.begin(),
                   [](const x86::Counter& each) { return each.value(); });
    out.exits = counters_.by_kind();
    out.last_exits = counters_.last();
    return out;
}

x86::MpState VcpuCore::mp_state() noexcept
{
    if (engine_apic_ != nullptr) {
        return engine_apic_->mp_state();
    }
    // One that was told to go on is no longer halted, though it may not have noticed.
    return mp_state_ == x86::MpState::Halted && unhalted_.load() ? x86::MpState::Runnable
                                                                 : mp_state_;
}

Result<void> VcpuCore::set_guest_debug(const x86::GuestDebug& debug)
{
    if (debug.hardware_breakpoints && (debug.dr7 >> 32U) != 0U) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_guest_debug: DR7 = {:#x}: bits 63:32 are reserved (SDM Vol. "
                                 "3B \"Debug Registers\")",
                                 debug.dr7)};
    }
    VMM_TRY_VOID(engine_->set_guest_debug(debug));
    block_events_ = debug.block_interrupts;
    return success;
}

Result<void> VcpuCore::set_mp_state(x86::MpState wanted)
{
    if (static_cast<std::uint32_t>(wanted) > 4U) {
        return Error{std::errc::invalid_argument, "set_mp_state: 0 to 4 are permitted"};
    }
    if (engine_apic_ != nullptr) {
        return engine_apic_->set_mp_state(wanted);
    }
    if (lapic_ == nullptr && wanted != x86::MpState::Runnable) {
        return Error{std::errc::invalid_argument,
                     "set_mp_state: without an irqchip a vCPU is always runnable"};
    }
    if (wanted == x86::MpState::SipiReceived) {
        mp_state_ = x86::MpState::InitReceived;
        return success;
    }
    mp_state_ = wanted;
    return success;
}

std::uint64_t VcpuCore::apic_base() noexcept
{
    return apic_ != nullptr ? apic_->apic_base() : apic_base_;
}

std::optional<Gpa> VcpuCore::translate(Gva linear) noexcept
{
    std::uint64_t gpa = 0;
    if (!engine_->translate(linear.value(), gpa)) {
        return std::nullopt;
    }
    return Gpa{gpa};
}

Result<void> VcpuCore::interrupt(std::uint8_t vector)
{
    if (vm_->has_full_irqchip()) {
        return Error{std::errc::no_such_device_or_address,
                     fmt::format("interrupt({}): this VM has a PIC; use set_irq_line or "
                                 "signal_msi",
                                 vector)};
    }
    if (engine_apic_ != nullptr) {
        return engine_apic_->interrupt(vector);
    }
    if (user_interrupt_) {
        return Error{std::errc::file_exists,
                     fmt::format("interrupt({}): vector {} still waits; ask for an IrqWindow exit",
                                 vector, *user_interrupt_)};
    }
    user_interrupt_ = vector;
    return success;
}

bool VcpuCore::ready_for_interrupt_injection() noexcept
{
    if (engine_apic_ != nullptr) {
        return engine_apic_->takes_interrupts();
    }
    const x86::CpuState& cpu = state(StateGroup::Registers);
    return (cpu.rflags & x86::Rflags::IF.mask) != 0U && !cpu.sti_shadow && !cpu.mov_ss_shadow &&
           !cpu.inject && !user_interrupt_ && takes_user_interrupts();
}

}  // namespace vmm::core
