// SPDX-License-Identifier: Apache-2.0

#include "vmm/vcpu.hpp"

#include <utility>

#include <fmt/format.h>

#include "core/vcpu_core.hpp"
#include "core/vm_core.hpp"
#include "x86/soft/native.hpp"

namespace vmm {

using x86::StateGroup;

namespace {

Error no_irqchip(const char* operation)
{
    return {std::errc::invalid_argument,
            fmt::format("{}: this VM has no irqchip; call create_irqchip before the first vCPU",
                        operation)};
}

}  // namespace

Vcpu::Vcpu(std::shared_ptr<core::VcpuCore> core) noexcept : core_{std::move(core)} {}
Vcpu::Vcpu(Vcpu&&) noexcept = default;
Vcpu& Vcpu::operator=(Vcpu&&) noexcept = default;
Vcpu::~Vcpu() = default;

void Vcpu::Kicker::kick() const noexcept
{
    if (const auto vcpu = vcpu_.lock()) {
        vcpu->user_kick();
    }
}

std::uint32_t Vcpu::id() const noexcept
{
    return core_->id();
}

Vcpu::Kicker Vcpu::kicker() const noexcept
{
    return Kicker{core_};
}

Result<Exit> Vcpu::run() noexcept
{
    return core_->run();
}

Result<void> Vcpu::set_dirty_ring(std::span<memory::DirtyGfn> entries)
{
    return core_->set_dirty_ring(entries);
}

x86::Regs Vcpu::regs() const noexcept
{
    const x86::CpuState& s = core_->state(StateGroup::Registers);
    const auto& g = s.gpr;
    return {g[x86::Rax], g[x86::Rbx], g[x86::Rcx], g[x86::Rdx], g[x86::Rsi], g[x86::Rdi],
            g[x86::Rsp], g[x86::Rbp], g[x86::R8],  g[x86::R9],  g[x86::R10], g[x86::R11],
            g[x86::R12], g[x86::R13], g[x86::R14], g[x86::R15], s.rip,       s.rflags};
}

void Vcpu::set_regs(const x86::Regs& r) noexcept
{
    x86::CpuState& s = core_->state(StateGroup::Registers);
    const std::array<std::uint64_t, 16> values{r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp,
                                               r.rsi, r.rdi, r.r8,  r.r9,  r.r10, r.r11,
                                               r.r12, r.r13, r.r14, r.r15};
    std::copy(values.begin(), values.end(), s.gpr.begin());
    s.rip = r.rip;
    s.rflags = (r.rflags & x86::Rflags::defined) | 2U;
    const auto kind = s.inject ? s.inject->kind : x86::EventKind::HardwareException;
    if (kind != x86::EventKind::ExternalInterrupt && kind != x86::EventKind::Nmi) {
        s.inject.reset();  // An interrupt has been acknowledged, and would be lost.
    }
    core_->state_changed(StateGroup::Registers);
}

x86::Sregs Vcpu::sregs() const noexcept
{
    const x86::CpuState& s = core_->state(StateGroup::Segments);
    x86::Sregs out;
    out.cs = s.seg[x86::Cs];
    out.ds = s.seg[x86::Ds];
    out.es = s.seg[x86::Es];
    out.fs = s.seg[x86::Fs];
    out.gs = s.seg[x86::Gs];
    out.ss = s.seg[x86::Ss];
    out.tr = s.tr;
    out.ldt = s.ldt;
    out.gdt = s.gdt;
    out.idt = s.idt;
    out.cr0 = s.cr0;
    out.cr2 = s.cr2;
    out.cr3 = s.cr3;
    out.cr4 = s.cr4;
    out.cr8 = core_->read_cr8();
    out.efer = s.efer;
    out.apic_base = core_->apic_base();
    return out;
}

Result<void> Vcpu::set_sregs(const x86::Sregs& sregs)
{
    return core_->set_sregs(sregs);
}

x86::Fpu Vcpu::fpu() const noexcept
{
    x86::Fpu out;
    x86::soft::to_fpu(core_->state(StateGroup::Fpu), out);
    return out;
}

void Vcpu::set_fpu(const x86::Fpu& fpu) noexcept
{
    x86::soft::from_fpu(core_->state(StateGroup::Fpu), fpu);
    core_->state_changed(StateGroup::Fpu);
}

x86::Xsave Vcpu::xsave() const noexcept
{
    x86::Xsave out;
    x86::soft::to_xsave(core_->state(StateGroup::Fpu), out);
    return out;
}

Result<void> Vcpu::set_xsave(const x86::Xsave& xsave)
{
    VMM_TRY_VOID(x86::soft::from_xsave(core_->state(StateGroup::Fpu), xsave));
    core_->state_changed(StateGroup::Fpu);
    return success;
}

std::uint64_t Vcpu::xcr0() const noexcept
{
    return core_->state(StateGroup::Fpu).xcr0;
}

Result<void> Vcpu::set_xcr0(std::uint64_t value)
{
    const std::uint64_t supported = core_->state(StateGroup::None).cpuid.supported_xcr0() | 1U;
    const bool avx_without_sse = (value & 4U) != 0U && (value & 2U) == 0U;
    if ((value & 1U) == 0U || avx_without_sse || (value & ~supported) != 0U) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_xcr0: XCR0 = {:#x}: bit 0 must be set, AVX needs SSE, and "
                                 "this guest's CPUID.0DH offers {:#x} (SDM Vol. 2C \"XSETBV\")",
                                 value, supported)};
    }
    core_->state(StateGroup::Fpu).xcr0 = value;
    core_->state_changed(StateGroup::Fpu);
    return success;
}

Result<void> Vcpu::set_cpuid(std::span<const x86::CpuidEntry> entries)
{
    return core_->set_cpuid(entries);
}

std::vector<x86::CpuidEntry> Vcpu::cpuid() const
{
    const auto entries = core_->state(StateGroup::None).cpuid.entries();
    return {entries.begin(), entries.end()};
}

Result<std::uint64_t> Vcpu::msr(std::uint32_t index) const
{
    return core_->msr(index);
}

Result<void> Vcpu::set_msr(std::uint32_t index, std::uint64_t value)
{
    return core_->set_msr(index, value);
}

x86::VcpuEvents Vcpu::events() const noexcept
{
    return core_->events();
}

Result<void> Vcpu::set_events(const x86::VcpuEvents& events)
{
    return core_->set_events(events);
}

x86::DebugRegs Vcpu::debug_regs() const noexcept
{
    const x86::CpuState& s = core_->state(StateGroup::Debug);
    return {s.dr, s.dr6, s.dr7};
}

Result<void> Vcpu::set_debug_regs(const x86::DebugRegs& regs)
{
    if ((regs.dr6 >> 32U) != 0U || (regs.dr7 >> 32U) != 0U) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_debug_regs: DR6 = {:#x}, DR7 = {:#x}: bits 63:32 are "
                                 "reserved (SDM Vol. 3B \"Debug Registers\")",
                                 regs.dr6, regs.dr7)};
    }
    x86::CpuState& s = core_->state(StateGroup::Debug);
    s.dr = regs.db;
    s.dr6 = regs.dr6;
    s.dr7 = regs.dr7 | x86::Dr7::reset;
    core_->state_changed(StateGroup::Debug);
    return success;
}

Result<void> Vcpu::set_guest_debug(const x86::GuestDebug& debug)
{
    return core_->set_guest_debug(debug);
}

x86::MpState Vcpu::mp_state() const noexcept
{
    return core_->mp_state();
}

Result<void> Vcpu::set_mp_state(x86::MpState state)
{
    return core_->set_mp_state(state);
}

Result<x86::irqchip::LapicState> Vcpu::lapic() const
{
    if (core_->apic() == nullptr) {
        return no_irqchip("lapic");
    }
    return core_->apic()->state();
}

Result<void> Vcpu::set_lapic(const x86::irqchip::LapicState& lapic)
{
    if (core_->apic() == nullptr) {
        return no_irqchip("set_lapic");
    }
    return core_->apic()->set_state(lapic);
}

std::optional<Gpa> Vcpu::translate(Gva linear) const noexcept
{
    return core_->translate(linear);
}

VcpuStatistics Vcpu::statistics() const
{
    return core_->statistics();
}

Result<void> Vcpu::interrupt(std::uint8_t vector)
{
    return core_->interrupt(vector);
}

x86::RunState Vcpu::run_state() const noexcept
{
    return {core_->read_cr8(), core_->apic_base(),
            (core_->state(StateGroup::Registers).rflags & x86::Rflags::IF.mask) != 0U,
            core_->has_pic() || core_->ready_for_interrupt_injection(),
            core_->state(StateGroup::Registers).smm};
}

Result<void> Vcpu::set_cr8(std::uint64_t value)
{
    if (value > 15U) {
        return Error{std::errc::invalid_argument,
                     fmt::format("set_cr8: CR8 = {:#x}: 0 to 15 are permitted", value)};
    }
    core_->write_cr8(value);
    return success;
}

bool Vcpu::ready_for_interrupt_injection() const noexcept
{
    return core_->ready_for_interrupt_injection();
}

void Vcpu::request_irq_window(bool wanted) noexcept
{
    core_->request_irq_window(wanted);
}

void Vcpu::nmi() noexcept
{
    core_->nmi();
}

Result<void> Vcpu::smi()
{
    return core_->smi();
}

std::uint64_t Vcpu::tsc_offset() const noexcept
{
    return core_->state(StateGroup::None).tsc_offset;
}

void Vcpu::set_tsc_offset(std::uint64_t offset) noexcept
{
    core_->set_host_tsc_offset(offset);
}

void Vcpu::report_tpr_accesses(bool wanted) noexcept
{
    core_->report_tpr_accesses(wanted);
}

Result<void> Vcpu::set_vapic_address(Gpa word)
{
    return core_->set_vapic_address(word);
}

Result<void> Vcpu::set_tsc_khz(std::uint32_t khz)
{
    return core_->set_tsc_khz(khz);
}

std::uint32_t Vcpu::tsc_khz() const noexcept
{
    return core_->tsc_khz();
}

Result<void> Vcpu::notify_guest_stopped()
{
    return core_->notify_guest_stopped();
}

void Vcpu::enforce_pv_features(bool enforced) noexcept
{
    core_->enforce_pv_features(enforced);
}

Result<void> Vcpu::setup_mce(std::uint64_t mcg_cap)
{
    return core_->setup_mce(mcg_cap);
}

Result<void> Vcpu::inject_mce(const x86::MachineCheck& error)
{
    return core_->inject_mce(error);
}

}  // namespace vmm
