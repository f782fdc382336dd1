// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/cpu.hpp"

#include "x86/soft/block.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/translator.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

/// Stands for the TLB while every access must be looked at: nothing is ever in it.
constinit Tlb empty_tlb{};

/// Whether an enabled breakpoint of DR7 watches data: R/W is not "execute".
bool watches_data(std::uint64_t dr7) noexcept
{
    for (unsigned number = 0; number < 4; ++number) {
        const bool enabled = ((dr7 >> (2U * number)) & 3U) != 0;
        const std::uint64_t kind = (dr7 >> (16U + 4U * number)) & 3U;
        if (enabled && kind != 0) {
            return true;
        }
    }
    return false;
}

}  // namespace

Cpu::Cpu(SoftVm& soft_vm, VcpuHost& vcpu_host) : vm(soft_vm), host(vcpu_host)
{
    blocks = std::make_unique<BlockCache>();
    translator = Translator::create(*this, vm.translation());
    mode_changed();
    vm.add(*this);
}

Cpu::~Cpu()
{
    vm.leave_guest(*this);
    vm.remove(*this);
}

void Cpu::mode_changed() noexcept
{
    const Cr0 control0{cr0};
    const Cr4 control4{cr4};
    const Rflags flag_register{rflags};
    if (!control0.get(Cr0::PE)) {
        cpl = 0;
    } else if (flag_register.get(Rflags::VM)) {
        cpl = 3;
    } else {
        cpl = seg[Ss].dpl & 3U;
    }
    if (long_mode() && seg[Cs].l != 0) {
        code_size = CodeSize::Bits64;
    } else if (seg[Cs].db != 0 && !(control0.get(Cr0::PE) && flag_register.get(Rflags::VM))) {
        code_size = CodeSize::Bits32;
    } else {
        code_size = CodeSize::Bits16;
    }

    // What the TLBs hold depends on these; privilege selects the TLB.
    constexpr std::uint64_t cr0_bits = mask_of(Cr0::PE, Cr0::WP, Cr0::PG);
    constexpr std::uint64_t cr4_bits =
        mask_of(Cr4::PSE, Cr4::PAE, Cr4::PGE, Cr4::LA57, Cr4::SMEP, Cr4::SMAP);
    constexpr std::uint64_t efer_bits = mask_of(Efer::LMA, Efer::NXE);
    const std::array<std::uint64_t, 3> paging{cr0 & cr0_bits, cr4 & cr4_bits, efer & efer_bits};
    bool flush = paging != paging_key;
    paging_key = paging;

    const std::uint64_t control = breakpoint_control();
    data_breakpoints = watches_data(control);
    std::array<std::uint64_t, 5> breakpoints{};
    if (data_breakpoints) {
        const auto& at = breakpoint_addresses();
        breakpoints = {at[0], at[1], at[2], at[3], control};
    }
    flush = flush || breakpoints != breakpoint_key;
    breakpoint_key = breakpoints;
    if (flush) {
        flush_tlb_all(*this);
    }

    const bool access_flag = flag_register.get(Rflags::AC);
    alignment_check = cpl == 3 && access_flag && control0.get(Cr0::AM);
    if (alignment_check) {
        tlb = &empty_tlb;
    } else {
        auto context = TlbContext::Supervisor;
        if (cpl == 3) {
            context = TlbContext::User;
        } else if (access_flag && control4.get(Cr4::SMAP)) {
            context = TlbContext::SupervisorUserAllowed;
        }
        tlb = &tlbs[static_cast<std::size_t>(context)];
    }
}

void Cpu::state_changed() noexcept
{
    const bool was_in_guest = in_guest.load(std::memory_order_relaxed);
    vm.enter_guest(*this);
    forget_pages(*this);
    translations_changed();
    if (!was_in_guest) {
        vm.leave_guest(*this);
    }
}

void Cpu::translations_changed() noexcept
{
    flush_translations(*this);
    mode_changed();
    const bool pae = Cr0{cr0}.get(Cr0::PG) && Cr4{cr4}.get(Cr4::PAE) && !long_mode();
    if (pae && !load_pdptes(*this, cr3)) {
        pdptes = {};  // A state that no processor can be in: all of memory faults.
    }
}

}  // namespace vmm::x86::soft
