// SPDX-License-Identifier: Apache-2.0

/// @file
/// Instructions about the processor itself: CPUID, time, random numbers, caches, HLT, MONITOR,
/// calls to the hypervisor.

#include <algorithm>

#include <cpuid.h>
#include <sys/random.h>

#include <x86intrin.h>

#include "vmm/x86/quirk.hpp"
#include "x86/cpuid_answer.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/system_handlers.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

const Op* hlt(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    cpu.exit = EngineExit{};
    cpu.exit.reason = EngineExit::Reason::Halt;
    cpu.exit_pending = true;
    return leave(cpu, op);
}

/// SDM Vol. 3C "Exiting from SMM": the core has what to load.
const Op* resume_from_smm(Cpu& cpu, const Op* op)
{
    if (!cpu.smm) {
        raise(Vector::UD);
    }
    cpu.exit = EngineExit{};
    cpu.exit.reason = EngineExit::Reason::Rsm;
    cpu.exit_pending = true;
    return leave(cpu, op);
}

/// VMCALL on AMD's CPUs, VMMCALL on Intel's.  `Op::extra`: VMMCALL.
const Op* hypercall(Cpu& cpu, const Op* op)
{
    if (cpu.cpuid.is_intel() == (op->extra != 0U)) {
        if (!cpu.host.has_quirk(quirk::fix_hypercall_insn)) {
            raise(Vector::UD);
        }
        // The two differ in their last byte.
        std::uint64_t linear = cpu.next_rip(*op) - 1U;
        if (!cpu.code_64()) {
            linear = (cpu.seg[Cs].base + linear) & 0xffff'ffffU;
        }
        store(cpu, Cs, linear, cpu.cpuid.is_intel() ? std::uint8_t{0xc1} : std::uint8_t{0xd9});
        return leave_to_same(cpu, op);
    }
    {
        const OutOfGuest out{cpu.vm, cpu};
        cpu.host.hypercall(cpu);
    }
    return leave(cpu, op);
}

// --- Time

void check_time_stamp(const Cpu& cpu)
{
    if (cpu.cpl != 0U && Cr4{cpu.cr4}.get(Cr4::TSD)) {
        raise(Vector::GP, 0);
    }
}

void read_time_stamp(Cpu& cpu)
{
    check_time_stamp(cpu);
    const std::uint64_t now = cpu.host.guest_tsc();
    cpu.gpr[Rax] = now & 0xffff'ffffU;
    cpu.gpr[Rdx] = now >> 32U;
}

const Op* rdtsc(Cpu& cpu, const Op* op)
{
    read_time_stamp(cpu);
    return next(cpu, op);
}

/// Unlike RDTSC it waits for what comes before it.  SDM Vol. 2B "RDTSCP".
const Op* rdtscp(Cpu& cpu, const Op* op)
{
    _mm_lfence();
    read_time_stamp(cpu);
    cpu.gpr[Rcx] = cpu.tsc_aux & 0xffff'ffffU;
    return next(cpu, op);
}

/// No performance counters are offered.
const Op* rdpmc(Cpu& /*cpu*/, const Op* /*op*/)
{
    raise(Vector::GP, 0);
}

const Op* rdpid(Cpu& cpu, const Op* op)
{
    gpr_at<std::uint64_t>(cpu, op->rm) = cpu.tsc_aux & 0xffff'ffffU;
    return next(cpu, op);
}

// --- CPUID

[[gnu::noinline]] void do_cpuid(Cpu& cpu)
{
    const auto leaf = static_cast<std::uint32_t>(cpu.gpr[Rax]);
    const auto index = static_cast<std::uint32_t>(cpu.gpr[Rcx]);
    const CpuidEntry entry = answer_cpuid(cpu, cpu.host.apic_base(), leaf, index);
    cpu.gpr[Rax] = entry.eax;
    cpu.gpr[Rbx] = entry.ebx;
    cpu.gpr[Rcx] = entry.ecx;
    cpu.gpr[Rdx] = entry.edx;
}

const Op* cpuid(Cpu& cpu, const Op* op)
{
    do_cpuid(cpu);
    return next(cpu, op);
}

// --- Random numbers

bool host_has_rdrand() noexcept
{
    static const bool has = [] {
        unsigned a = 0;
        unsigned b = 0;
        unsigned c = 0;
        unsigned d = 0;
        return __get_cpuid(1, &a, &b, &c, &d) != 0 && ((c >> 30U) & 1U) != 0U;
    }();
    return has;
}

/// 64 random bits, or false where there are none just now.
bool random_bits(std::uint64_t& value) noexcept
{
    if (host_has_rdrand()) {
        bool success = false;
        asm volatile("rdrand %0" : "=r"(value), "=@ccc"(success) : : "cc");
        return success;
    }
    return getrandom(&value, sizeof(value), GRND_NONBLOCK) == static_cast<ssize_t>(sizeof(value));
}

/// RDRAND and RDSEED: CF tells success, the other arithmetic flags are cleared.
[[gnu::noinline]] void do_random(Cpu& cpu, const Op& op)
{
    std::uint64_t value = 0;
    const bool success = random_bits(value);
    write_register(cpu, op.rm, success ? value : 0U, op.operand_size);
    cpu.set_arithmetic_flags(success ? Rflags::CF.mask : 0U);
}

const Op* random_number(Cpu& cpu, const Op* op)
{
    do_random(cpu, *op);
    return next(cpu, op);
}

// --- Caches and monitors

/// INVD, WBINVD: there is no cache to be seen.
const Op* flush_caches(Cpu& cpu, const Op* op)
{
    require_supervisor(cpu);
    return next(cpu, op);
}

/// CLFLUSH and its kin fault as a load of a byte does.
const Op* flush_line(Cpu& cpu, const Op* op)
{
    static_cast<void>(load_operand<std::uint8_t>(cpu, *op));
    return next(cpu, op);
}

const Op* hint(Cpu& cpu, const Op* op)
{
    return next(cpu, op);
}

/// MONITOR and MWAIT exist at CPL 0 only.
void require_monitor(const Cpu& cpu)
{
    if (cpu.cpl != 0U ||
        (!cpu.cpuid.has(feature::monitor) && !cpu.host.has_quirk(quirk::mwait_never_ud_faults))) {
        raise(Vector::UD);
    }
}

/// `Op::extra`: the segment of DS:rAX.
const Op* monitor(Cpu& cpu, const Op* op)
{
    require_monitor(cpu);
    const std::uint64_t extensions = cpu.code_64() ? cpu.gpr[Rcx] : cpu.gpr[Rcx] & 0xffff'ffffU;
    if (extensions != 0U) {
        raise(Vector::GP, 0);
    }
    const auto segment = static_cast<SegmentIndex>(op->extra);
    std::uint64_t linear = cpu.gpr[Rax];
    if (op->address_size != 8U) {
        linear &= op->address_size == 4U ? 0xffff'ffffU : 0xffffU;
    }
    if (!cpu.code_64()) {
        linear = segmented_address(cpu, segment, linear, 1, Access::Read);
    } else if (segment == Fs || segment == Gs) {
        linear += cpu.seg[segment].base;
    }
    static_cast<void>(load<std::uint8_t>(cpu, segment, linear));
    return next(cpu, op);
}

/// Nothing is monitored: a wake-up at once is allowed.
const Op* mwait(Cpu& cpu, const Op* op)
{
    require_monitor(cpu);
    return leave(cpu, op);
}

// --- Selection

Handler select_group7(const Insn& insn, Op& op)
{
    if (insn.mod != 3U) {
        // 5: RSTORSSP and the like, which no guest is offered.
        return insn.group == 5U ? undefined_instruction : nullptr;
    }
    switch (insn.modrm) {
    case 0xc1: return hypercall;
    case 0xd9: op.extra = 1; return hypercall;
    case 0xc8: op.extra = insn.segment <= Gs ? insn.segment : std::uint8_t{Ds}; return monitor;
    case 0xc9: return mwait;
    case 0xf9: return rdtscp;
    default: return undefined_instruction;
    }
}

/// 0F C7 with a register.
Handler select_group9(const Insn& insn)
{
    if (insn.mod != 3U) {
        return nullptr;
    }
    if (insn.group == 7U) {
        return insn.rep ? rdpid : random_number;
    }
    return insn.group == 6U && !insn.rep ? random_number : nullptr;
}

/// 0F AE with memory: CLFLUSH, CLFLUSHOPT, CLWB.
Handler select_group15(const Insn& insn)
{
    if (insn.mod == 3U || insn.rep || insn.repne) {
        return nullptr;
    }
    const bool is_flush = insn.group == 7U || (insn.group == 6U && insn.operand_size_override);
    return is_flush ? flush_line : nullptr;
}

}  // namespace

Handler select_processor_instruction(const Insn& insn, const SelectContext& /*context*/, Op& op)
{
    if (insn.map == OpcodeMap::Primary) {
        return insn.opcode == 0xf4 ? hlt : nullptr;
    }
    if (insn.map != OpcodeMap::Map0F) {
        return nullptr;
    }
    switch (insn.opcode) {
    case 0x01: return select_group7(insn, op);
    case 0x08:
    case 0x09: return flush_caches;
    case 0x1c: return insn.isa == Isa::Cldemote ? hint : nullptr;
    case 0x31: return rdtsc;
    case 0x33: return rdpmc;
    case 0xa2: return cpuid;
    case 0xaa: return resume_from_smm;
    case 0xae: return select_group15(insn);
    case 0xc7: return select_group9(insn);
    default: return nullptr;
    }
}

}  // namespace vmm::x86::soft
