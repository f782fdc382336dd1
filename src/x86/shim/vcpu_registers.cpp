// SPDX-License-Identifier: Apache-2.0

/// @file
/// vCPU ioctls: registers, special registers, debug registers, address translation.

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <span>

#include <linux/kvm.h>

#include "x86/shim/convert.hpp"
#include "x86/shim/vcpu_file.hpp"

namespace vmm::shim {

kvm_sregs sregs_of(Vcpu& vcpu)
{
    kvm_sregs out = to_kvm(vcpu.sregs());
    const x86::VcpuEvents events = vcpu.events();
    if (events.interrupt.injected != 0 && events.interrupt.soft == 0) {
        constexpr unsigned bits = 64;
        out.interrupt_bitmap[events.interrupt.nr / bits] |= __u64{1}
                                                            << (events.interrupt.nr % bits);
    }
    return out;
}

long set_sregs(Vcpu& vcpu, const kvm_sregs& sregs)
{
    const long result = result_of(vcpu.set_sregs(from_kvm(sregs)));
    if (result != 0) {
        return result;
    }
    // Of several interrupts the first is the one that KVM injects.
    const auto* const word =
        std::find_if(std::begin(sregs.interrupt_bitmap), std::end(sregs.interrupt_bitmap),
                     [](__u64 each) { return each != 0; });
    if (word != std::end(sregs.interrupt_bitmap)) {
        x86::VcpuEvents events = vcpu.events();
        const auto first = static_cast<unsigned>(word - std::begin(sregs.interrupt_bitmap)) * 64U +
                           static_cast<unsigned>(std::countr_zero(*word));
        events.interrupt.injected = 1;
        events.interrupt.soft = 0;
        events.interrupt.nr = static_cast<std::uint8_t>(first);
        if (const long set = result_of(vcpu.set_events(events)); set != 0) {
            return set;
        }
    }
    // KVM: who puts the bootstrap processor where RESET does wants it to run.
    constexpr std::uint64_t reset_base = 0xffff'0000;
    constexpr std::uint16_t reset_selector = 0xf000;
    constexpr std::uint64_t reset_rip = 0xfff0;
    constexpr std::uint64_t bootstrap = 1U << 8U;
    if ((sregs.apic_base & bootstrap) != 0 && sregs.cs.base == reset_base &&
        sregs.cs.selector == reset_selector && (sregs.cr0 & 1U) == 0 &&
        vcpu.regs().rip == reset_rip) {
        static_cast<void>(vcpu.set_mp_state(x86::MpState::Runnable));
    }
    return 0;
}

namespace {

long get_regs(VcpuFile& file, kvm_regs& out)
{
    out = to_kvm(file.vcpu().regs());
    return 0;
}

long set_regs_of(VcpuFile& file, const kvm_regs& regs)
{
    file.vcpu().set_regs(from_kvm(regs));
    return 0;
}

long get_sregs(VcpuFile& file, kvm_sregs& out)
{
    out = sregs_of(file.vcpu());
    return 0;
}

long set_sregs_of(VcpuFile& file, const kvm_sregs& sregs)
{
    return set_sregs(file.vcpu(), sregs);
}

long get_debugregs(VcpuFile& file, kvm_debugregs& out)
{
    const x86::DebugRegs regs = file.vcpu().debug_regs();
    std::copy(regs.db.begin(), regs.db.end(), std::begin(out.db));
    out.dr6 = regs.dr6;
    out.dr7 = regs.dr7;
    return 0;
}

long set_debugregs(VcpuFile& file, const kvm_debugregs& wanted)
{
    if (wanted.flags != 0) {
        return -EINVAL;
    }
    x86::DebugRegs regs;
    std::copy(std::begin(wanted.db), std::end(wanted.db), regs.db.begin());
    regs.dr6 = wanted.dr6;
    regs.dr7 = wanted.dr7;
    return result_of(file.vcpu().set_debug_regs(regs));
}

long translate(VcpuFile& file, kvm_translation& translation)
{
    const auto gpa = file.vcpu().translate(Gva{translation.linear_address});
    translation.physical_address = gpa ? gpa->value() : ~__u64{0};
    translation.valid = gpa ? 1 : 0;
    translation.writeable = 1;
    translation.usermode = 0;
    return 0;
}

static_assert(offsetof(kvm_sregs2, flags) == offsetof(kvm_sregs, interrupt_bitmap));

/// Whether CR3 leads to four page-directory pointers, which KVM's second form of the registers has.
bool has_pdptrs(const kvm_sregs2& sregs) noexcept
{
    return (sregs.cr0 & x86::Cr0::PG.mask) != 0 && (sregs.cr4 & x86::Cr4::PAE.mask) != 0 &&
           (sregs.efer & x86::Efer::LMA.mask) == 0;
}

/// Engines here take the pointers from memory, whenever they need them.
long get_sregs2(VcpuFile& file, kvm_sregs2& out)
{
    const kvm_sregs sregs = to_kvm(file.vcpu().sregs());
    std::memcpy(&out, &sregs, offsetof(kvm_sregs, interrupt_bitmap));
    constexpr std::uint64_t table = 0xffff'ffe0;
    if (has_pdptrs(out) &&
        file.vm().vm().memory().read(Gpa{out.cr3 & table},
                                     std::as_writable_bytes(std::span{out.pdptrs}))) {
        out.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
    }
    return 0;
}

long set_sregs2(VcpuFile& file, const kvm_sregs2& wanted)
{
    if ((wanted.flags & ~__u64{KVM_SREGS2_FLAGS_PDPTRS_VALID}) != 0 ||
        (wanted.flags != 0 && !has_pdptrs(wanted))) {
        return -EINVAL;
    }
    kvm_sregs sregs{};
    std::memcpy(&sregs, &wanted, offsetof(kvm_sregs, interrupt_bitmap));
    return set_sregs(file.vcpu(), sregs);
}

constexpr Row<VcpuFile> rows[] = {
    {KVM_GET_REGS, "KVM_GET_REGS", writes<get_regs>},
    {KVM_SET_REGS, "KVM_SET_REGS", reads<set_regs_of>},
    {KVM_GET_SREGS, "KVM_GET_SREGS", writes<get_sregs>},
    {KVM_SET_SREGS, "KVM_SET_SREGS", reads<set_sregs_of>},
    {KVM_GET_SREGS2, "KVM_GET_SREGS2", writes<get_sregs2>},
    {KVM_SET_SREGS2, "KVM_SET_SREGS2", reads<set_sregs2>},
    {KVM_GET_DEBUGREGS, "KVM_GET_DEBUGREGS", writes<get_debugregs>},
    {KVM_SET_DEBUGREGS, "KVM_SET_DEBUGREGS", reads<set_debugregs>},
    {KVM_TRANSLATE, "KVM_TRANSLATE", updates<translate>},
};

}  // namespace

std::span<const Row<VcpuFile>> vcpu_register_rows() noexcept
{
    return rows;
}

}  // namespace vmm::shim
