// SPDX-License-Identifier: Apache-2.0

#include "oracle/judge.hpp"

#include <algorithm>
#include <array>
#include <span>

#include <cpuid.h>

#include "oracle/rows.hpp"
#include "x86/cpu_state.hpp"
#include "x86/soft/insn.hpp"

namespace vmm::oracle {

namespace {

using x86::soft::Insn;
using Form = Row::Form;
using Kind = Encoding::Kind;

constexpr std::uint64_t cf = 0x1;
constexpr std::uint64_t pf = 0x4;
constexpr std::uint64_t af = 0x10;
constexpr std::uint64_t zf = 0x40;
constexpr std::uint64_t sf = 0x80;
constexpr std::uint64_t of = 0x800;
constexpr std::uint64_t all = cf | pf | af | zf | sf | of;

constexpr unsigned np = 1;
constexpr unsigned p66 = 2;
constexpr unsigned pf3 = 4;
constexpr unsigned pf2 = 8;
constexpr unsigned any = 15;

/// Rows of the opcode maps and what is said of them.
struct Line {
    Kind kind{};
    unsigned map{};
    unsigned first{};
    unsigned last{};
    unsigned prefixes{any};  ///< Bits by `Encoding::pp`.
    int group{-1};           ///< ModRM.reg, or any.
    Form form{};
    const char* why{};  ///< Not judged because; or null.
    std::uint64_t undefined{};
};

constexpr const char* kernel_call = "the host's kernel answers";
constexpr const char* varies = "differs from one execution to the next";
constexpr const char* umip = "the host's kernel emulates it under UMIP";
constexpr const char* own_cpuid = "the engine's CPUID and XCR0 are its own";
constexpr const char* not_offered = "the engine does not offer it, the host may";
constexpr const char* hypervisor = "leaves for the host's own hypervisor";

constexpr std::array not_judged{
    Line{Kind::Legacy, 1, 0x05, 0x05, any, -1, Form::Any, kernel_call},      // SYSCALL
    Line{Kind::Legacy, 1, 0x34, 0x34, any, -1, Form::Any, kernel_call},      // SYSENTER
    Line{Kind::Legacy, 1, 0x31, 0x31, any, -1, Form::Any, varies},           // RDTSC
    Line{Kind::Legacy, 1, 0xa2, 0xa2, any, -1, Form::Any, own_cpuid},        // CPUID
    Line{Kind::Legacy, 1, 0xc7, 0xc7, any, 6, Form::Register, varies},       // RDRAND
    Line{Kind::Legacy, 1, 0xc7, 0xc7, any, 7, Form::Register, varies},       // RDSEED, RDPID
    Line{Kind::Legacy, 1, 0x00, 0x00, any, 0, Form::Any, umip},              // SLDT
    Line{Kind::Legacy, 1, 0x00, 0x00, any, 1, Form::Any, umip},              // STR
    Line{Kind::Legacy, 1, 0x01, 0x01, any, 0, Form::Memory, umip},           // SGDT
    Line{Kind::Legacy, 1, 0x01, 0x01, any, 1, Form::Memory, umip},           // SIDT
    Line{Kind::Legacy, 1, 0x01, 0x01, any, 4, Form::Any, umip},              // SMSW
    Line{Kind::Legacy, 1, 0x01, 0x01, any, 0, Form::Register, hypervisor},   // VMCALL
    Line{Kind::Legacy, 1, 0x01, 0x01, any, 3, Form::Register, hypervisor},   // VMMCALL
    Line{Kind::Legacy, 1, 0x01, 0x01, any, 2, Form::Register, own_cpuid},    // XGETBV
    Line{Kind::Legacy, 1, 0x01, 0x01, any, 5, Form::Any, not_offered},       // PKRU, SERIALIZE, CET
    Line{Kind::Legacy, 1, 0x01, 0x01, any, 7, Form::Register, varies},       // RDTSCP
    Line{Kind::Legacy, 1, 0x01, 0x01, p66, 1, Form::Register, not_offered},  // TDX
    Line{Kind::Legacy, 0, 0xc6, 0xc7, any, 7, Form::Register, not_offered},  // XABORT, XBEGIN
    Line{Kind::Legacy, 1, 0xae, 0xae, pf3, 4, Form::Any, not_offered},       // PTWRITE
    Line{Kind::Legacy, 2, 0xf8, 0xf9, any, -1, Form::Any, not_offered},      // MOVDIRI, MOVDIR64B
    Line{Kind::Evex, 0, 0x62, 0x62, any, -1, Form::Any, not_offered},        // AVX-512
    Line{Kind::Vex, 1, 0x41, 0x4b, any, -1, Form::Any, not_offered},         // AVX-512 masks
    Line{Kind::Vex, 1, 0x90, 0x93, any, -1, Form::Any, not_offered},
    Line{Kind::Vex, 1, 0x98, 0x99, any, -1, Form::Any, not_offered},
    Line{Kind::Vex, 3, 0x30, 0x33, any, -1, Form::Any, not_offered},
    Line{Kind::Vex, 2, 0x49, 0x49, any, -1, Form::Any, not_offered},  // AMX
    Line{Kind::Vex, 2, 0x4b, 0x4b, any, -1, Form::Any, not_offered},
    Line{Kind::Vex, 2, 0x5c, 0x5e, any, -1, Form::Any, not_offered},
    Line{Kind::Vex, 2, 0x6c, 0x6c, any, -1, Form::Any, not_offered},
    Line{Kind::Vex, 2, 0x50, 0x53, any, -1, Form::Any, not_offered},  // AVX-VNNI
    Line{Kind::Vex, 2, 0xb0, 0xb5, any, -1, Form::Any, not_offered},  // AVX-NE-CONVERT, IFMA
    Line{Kind::Vex, 2, 0xd2, 0xd3, any, -1, Form::Any, not_offered},  // AVX-VNNI-INT16
    Line{Kind::Vex, 2, 0xe0, 0xef, any, -1, Form::Any, not_offered},  // CMPCCXADD
};

/// What AMD's CPUs do otherwise, while the engine does as Intel's manual says.
constexpr const char* by_vendor = "AMD's CPUs differ, the engine does as Intel's";
constexpr std::array not_judged_by_amd{
    Line{Kind::Legacy, 1, 0x2b, 0x2b, pf3 | pf2, -1, Form::Any, not_offered},  // SSE4a: MOVNTSD
    Line{Kind::Legacy, 1, 0x78, 0x79, p66 | pf2, -1, Form::Any, not_offered},  // EXTRQ, INSERTQ
    Line{Kind::Legacy, 1, 0xb9, 0xb9, any, -1, Form::Any, by_vendor},          // UD1 has no ModRM
    Line{Kind::Legacy, 1, 0xff, 0xff, any, -1, Form::Any, by_vendor},          // UD0
    Line{Kind::Legacy, 2, 0xc8, 0xcd, np, -1, Form::Memory, by_vendor},        // SHA: unaligned
    Line{Kind::Legacy, 3, 0xcc, 0xcc, np, -1, Form::Memory, by_vendor},
    Line{Kind::Legacy, 0, 0xd9, 0xd9, any, 6, Form::Memory, by_vendor},   // FNSTENV: FCS, FDS
    Line{Kind::Legacy, 0, 0xdd, 0xdd, any, 6, Form::Memory, by_vendor},   // FNSAVE
    Line{Kind::Legacy, 0, 0x62, 0x62, any, -1, Form::Memory, by_vendor},  // BOUND: reads both
    Line{Kind::Legacy, 1, 0xa1, 0xa1, any, -1, Form::Any, by_vendor},     // POP FS: bytes read
    Line{Kind::Legacy, 1, 0xa9, 0xa9, any, -1, Form::Any, by_vendor},     // POP GS
};

/// APM Vol. 3: "Near Branches in 64-Bit Mode", where 66 makes them those of 16-bit code; far
/// pointers, whose offset is never 64 bits wide; LOCK before VERR and VERW, which access memory
/// first; VPERMQ, VPERMPD, VPINSRQ, VPEXTRQ: what VEX.W does that means nothing; the condition of
/// LOOPcc with a repeat prefix; XCHG with R8, which stays that with F3; how much MOVSXD reads
/// with 66; MOV of CR8 by LOCK; parts of a save area with 32-bit addresses.
bool differs_on_amd(const Encoding& encoding)
{
    const unsigned opcode = encoding.opcode;
    if (encoding.kind == Kind::Vex && encoding.map == 3) {
        const bool moves = opcode == 0x16 || opcode == 0x22;
        return (opcode <= 1 && !encoding.w) || (moves && encoding.is_32 && encoding.w);
    }
    if (encoding.kind != Kind::Legacy) {
        return false;
    }
    const unsigned group = encoding.group();
    bool near = false;
    bool far = false;
    bool other = false;
    if (encoding.map == 0) {
        near = (opcode >= 0x70 && opcode <= 0x7f) || (opcode >= 0xe0 && opcode <= 0xe3) ||
               opcode == 0xe8 || opcode == 0xe9 || opcode == 0xeb || opcode == 0xc2 ||
               opcode == 0xc3 || (opcode == 0xff && (group == 2 || group == 4));
        far = opcode == 0xff && (group == 3 || group == 5);
        other = ((opcode == 0xe0 || opcode == 0xe1) && (encoding.rep || encoding.repne)) ||
                (opcode == 0x90 && encoding.rep && (encoding.rex & 1U) != 0) ||
                (opcode == 0x63 && encoding.operand_size && !encoding.is_32);
    } else if (encoding.map == 1) {
        near = opcode >= 0x80 && opcode <= 0x8f;
        far = opcode == 0xb2 || opcode == 0xb4 || opcode == 0xb5;
        const bool saves = (opcode == 0xae && group != 2 && group != 3) || opcode == 0xc7;
        other = (encoding.lock && (opcode == 0 || opcode == 0x20 || opcode == 0x22)) ||
                (saves && encoding.address_size && !encoding.is_32);
    }
    return (near && encoding.operand_size && !encoding.is_32) ||
           (far && (encoding.rex & 8U) != 0) || other;
}

/// SDM Vol. 1 "EFLAGS Cross-Reference" and the instructions' own pages in Vol. 2, "Flags
/// Affected"; APM Vol. 3 agrees, or defines more.
constexpr std::array undefined_flags{
    Line{Kind::Legacy, 0, 0x27, 0x27, any, -1, Form::Any, nullptr, of},                 // DAA
    Line{Kind::Legacy, 0, 0x2f, 0x2f, any, -1, Form::Any, nullptr, of},                 // DAS
    Line{Kind::Legacy, 0, 0x37, 0x37, any, -1, Form::Any, nullptr, of | sf | zf | pf},  // AAA
    Line{Kind::Legacy, 0, 0x3f, 0x3f, any, -1, Form::Any, nullptr, of | sf | zf | pf},  // AAS
    Line{Kind::Legacy, 0, 0xd4, 0xd5, any, -1, Form::Any, nullptr, of | af | cf},       // AAM, AAD
    Line{Kind::Legacy, 0, 0x08, 0x0d, any, -1, Form::Any, nullptr, af},                 // OR
    Line{Kind::Legacy, 0, 0x20, 0x25, any, -1, Form::Any, nullptr, af},                 // AND
    Line{Kind::Legacy, 0, 0x30, 0x35, any, -1, Form::Any, nullptr, af},                 // XOR
    Line{Kind::Legacy, 0, 0x84, 0x85, any, -1, Form::Any, nullptr, af},                 // TEST
    Line{Kind::Legacy, 0, 0xa8, 0xa9, any, -1, Form::Any, nullptr, af},
    Line{Kind::Legacy, 0, 0x80, 0x83, any, 1, Form::Any, nullptr, af},
    Line{Kind::Legacy, 0, 0x80, 0x83, any, 4, Form::Any, nullptr, af},
    Line{Kind::Legacy, 0, 0x80, 0x83, any, 6, Form::Any, nullptr, af},
    Line{Kind::Legacy, 0, 0xf6, 0xf7, any, 0, Form::Any, nullptr, af},
    Line{Kind::Legacy, 0, 0xf6, 0xf7, any, 1, Form::Any, nullptr, af},
    Line{Kind::Legacy, 0, 0xf6, 0xf7, any, 4, Form::Any, nullptr, sf | zf | af | pf},  // MUL
    Line{Kind::Legacy, 0, 0xf6, 0xf7, any, 5, Form::Any, nullptr, sf | zf | af | pf},  // IMUL
    Line{Kind::Legacy, 0, 0xf6, 0xf7, any, 6, Form::Any, nullptr, all},                // DIV
    Line{Kind::Legacy, 0, 0xf6, 0xf7, any, 7, Form::Any, nullptr, all},                // IDIV
    Line{Kind::Legacy, 0, 0x69, 0x69, any, -1, Form::Any, nullptr, sf | zf | af | pf},
    Line{Kind::Legacy, 0, 0x6b, 0x6b, any, -1, Form::Any, nullptr, sf | zf | af | pf},
    Line{Kind::Legacy, 1, 0xaf, 0xaf, any, -1, Form::Any, nullptr, sf | zf | af | pf},
    Line{Kind::Legacy, 1, 0xa3, 0xa3, any, -1, Form::Any, nullptr, of | sf | af | pf},  // BT
    Line{Kind::Legacy, 1, 0xab, 0xab, any, -1, Form::Any, nullptr, of | sf | af | pf},
    Line{Kind::Legacy, 1, 0xb3, 0xb3, any, -1, Form::Any, nullptr, of | sf | af | pf},
    Line{Kind::Legacy, 1, 0xbb, 0xbb, any, -1, Form::Any, nullptr, of | sf | af | pf},
    Line{Kind::Legacy, 1, 0xba, 0xba, any, -1, Form::Any, nullptr, of | sf | af | pf},
    Line{Kind::Legacy, 1, 0xbc, 0xbd, np | p66 | pf2, -1, Form::Any, nullptr,
         cf | of | sf | af | pf},  // BSF, BSR
    Line{Kind::Legacy, 1, 0xbc, 0xbd, pf3, -1, Form::Any, nullptr, of | sf | af | pf},
    Line{Kind::Vex, 2, 0xf2, 0xf2, any, -1, Form::Any, nullptr, af | pf},      // ANDN
    Line{Kind::Vex, 2, 0xf3, 0xf3, any, -1, Form::Any, nullptr, af | pf},      // BLSR, BLSMSK, BLSI
    Line{Kind::Vex, 2, 0xf5, 0xf5, np, -1, Form::Any, nullptr, af | pf},       // BZHI
    Line{Kind::Vex, 2, 0xf7, 0xf7, np, -1, Form::Any, nullptr, af | sf | pf},  // BEXTR
};

/// Several accesses, and which of them faults first is the processor's affair.  SDM Vol. 3A
/// "Priority Among Concurrent Events": of the faults of one class the order is not defined; nor is
/// which byte of an operand a page fault names.
struct Slack {
    Kind kind{};
    unsigned map{};
    unsigned first{};
    unsigned last{};
    int group{-1};
    std::uint64_t bytes{};
    bool any_fault{};
    bool partial{};
};
constexpr std::uint64_t save_area = 0x400;
constexpr std::uint64_t anywhere = ~std::uint64_t{0};
constexpr std::array slacks{
    Slack{Kind::Legacy, 0, 0x60, 0x61, -1, 64, false, true},        // PUSHA, POPA
    Slack{Kind::Legacy, 0, 0x9a, 0x9a, -1, anywhere, true, true},   // CALL far
    Slack{Kind::Legacy, 0, 0xa6, 0xa7, -1, anywhere, true, false},  // CMPS
    Slack{Kind::Legacy, 0, 0xc4, 0xc5, -1, 16, false, false},       // LES, LDS
    Slack{Kind::Legacy, 0, 0xc8, 0xc8, -1, anywhere, true, true},   // ENTER
    Slack{Kind::Legacy, 0, 0xca, 0xcb, -1, 64, true, false},        // RET far
    Slack{Kind::Legacy, 0, 0xcf, 0xcf, -1, 64, false, false},       // IRET
    Slack{Kind::Legacy, 0, 0xe8, 0xe8, -1, anywhere, true, true},   // CALL
    Slack{Kind::Legacy, 0, 0xff, 0xff, 2, anywhere, true, true},    // CALL: target and stack
    Slack{Kind::Legacy, 0, 0xff, 0xff, 3, anywhere, true, true},    // CALL far
    Slack{Kind::Legacy, 0, 0xff, 0xff, 5, 16, false, false},        // JMP far
    Slack{Kind::Legacy, 0, 0xd9, 0xd9, 4, 32, false, false},        // FLDENV
    Slack{Kind::Legacy, 0, 0xd9, 0xd9, 6, 32, false, true},         // FSTENV
    Slack{Kind::Legacy, 0, 0xdb, 0xdb, 7, 16, false, true},         // FSTP m80
    Slack{Kind::Legacy, 0, 0xdd, 0xdd, 4, 128, false, false},       // FRSTOR
    Slack{Kind::Legacy, 0, 0xdd, 0xdd, 6, 128, false, true},        // FSAVE
    Slack{Kind::Legacy, 0, 0xdf, 0xdf, 6, 16, false, true},         // FBSTP
    Slack{Kind::Legacy, 1, 0xae, 0xae, -1, save_area, true, true},  // FXSAVE … XRSTOR
    Slack{Kind::Legacy, 1, 0xc7, 0xc7, 4, save_area, true, true},   // XSAVEC
    Slack{Kind::Legacy, 1, 0xb2, 0xb2, -1, 16, false, false},       // LSS, LFS, LGS
    Slack{Kind::Legacy, 1, 0xb4, 0xb5, -1, 16, false, false},
    Slack{Kind::Legacy, 1, 0xf7, 0xf7, -1, anywhere, true, true},  // MASKMOVQ, MASKMOVDQU
    Slack{Kind::Vex, 1, 0xf7, 0xf7, -1, anywhere, true, true},
    Slack{Kind::Vex, 2, 0x2c, 0x2f, -1, 32, false, true},  // VMASKMOV
    Slack{Kind::Vex, 2, 0x8c, 0x8e, -1, 32, false, true},
};

/// 0F opcodes that operate on MMX registers without a prefix, or convert to or from them.
bool is_mmx(const Encoding& encoding)
{
    const unsigned opcode = encoding.opcode;
    if (encoding.kind != Kind::Legacy || encoding.map != 1) {
        return false;
    }
    const bool converts = encoding.pp <= 1 && (opcode == 0x2a || opcode == 0x2c || opcode == 0x2d);
    const bool moves = opcode == 0xd6 && encoding.pp >= 2;
    const bool plain = (opcode >= 0x60 && opcode <= 0x7f) || opcode >= 0xc4;
    return converts || moves || (encoding.pp == 0 && plain);
}

void judge_faults(const Encoding& encoding, Verdict& verdict)
{
    for (const Slack& each : slacks) {
        if (each.kind == encoding.kind && each.map == encoding.map &&
            encoding.opcode >= each.first && encoding.opcode <= each.last &&
            (each.group < 0 || static_cast<unsigned>(each.group) == encoding.group())) {
            verdict.address_slack = each.bytes;
            verdict.any_fault = each.any_fault;
            verdict.partial_stores = each.partial;
        }
    }
    // SDM Vol. 2B "MASKMOVQ", "MASKMOVDQU".
    verdict.may_fault |= encoding.map == 1 && encoding.opcode == 0xf7;
    verdict.mmx_transition = is_mmx(encoding);
    const bool repeats = encoding.kind == Kind::Legacy && encoding.map == 0 &&
                         (encoding.rep || encoding.repne) && encoding.opcode >= 0xa4 &&
                         encoding.opcode <= 0xaf;
    verdict.partial_loads =
        encoding.kind == Kind::Legacy && encoding.map == 0 && encoding.opcode == 0x61;
    verdict.partial_fpu = encoding.kind == Kind::Legacy && encoding.map == 1 &&
                          encoding.opcode == 0xae &&
                          (encoding.group() == 1 || encoding.group() == 5);
    verdict.repeats = repeats;
    verdict.narrow_counters = repeats && encoding.address_size && !encoding.is_32;
    verdict.several_steps =
        encoding.map == 3 && (encoding.opcode == 0x40 || encoding.opcode == 0x41);
    verdict.mxcsr_before_store =
        encoding.kind == Kind::Vex && encoding.map == 3 && encoding.opcode == 0x1d;
}

bool matches(const Line& line, const Encoding& encoding)
{
    const bool form =
        line.form == Form::Any || (line.form == Form::Register) == encoding.has_register_form();
    return line.kind == encoding.kind && line.map == encoding.map &&
           encoding.opcode >= line.first && encoding.opcode <= line.last &&
           ((line.prefixes >> encoding.pp) & 1U) != 0 && form &&
           (line.group < 0 || static_cast<unsigned>(line.group) == encoding.group());
}

void judge_by_amd(const Encoding& encoding, Verdict& verdict)
{
    verdict.is_amd = true;
    for (const Line& line : not_judged_by_amd) {
        if (matches(line, encoding)) {
            verdict.not_judged = line.why;
        }
    }
    if (differs_on_amd(encoding)) {
        verdict.not_judged = by_vendor;
    }
    // An unmasked exception keeps a value from being stored: they look whether it could be.
    const bool is_x87 = (encoding.opcode & 0xf8U) == 0xd8 && !encoding.has_register_form();
    // Selectors are popped by as many bytes as RSP moves.
    const unsigned opcode = encoding.opcode;
    const bool pops_selector = opcode == 0xca || opcode == 0xcb || opcode == 0xcf ||
                               opcode == 0x07 || opcode == 0x17 || opcode == 0x1f;
    verdict.may_fault =
        encoding.kind == Kind::Legacy && encoding.map == 0 && (is_x87 || pops_selector);
    verdict.gathers = encoding.kind == Kind::Vex && encoding.map == 2 && encoding.opcode >= 0x90 &&
                      encoding.opcode <= 0x93;
    const bool compares = (encoding.opcode | 9U) == 0xaf;  // CMPS, SCAS.
    if (encoding.kind == Kind::Legacy && encoding.map == 0 && compares &&
        (encoding.rep || encoding.repne)) {
        verdict.undefined_flags |= all;  // Of one that faults: those of the last that did not.
    }
}

/// SDM Vol. 2B "SAL/SAR/SHL/SHR—Shift", "RCL/RCR/ROL/ROR—Rotate".
std::uint64_t undefined_of_shift(const Encoding& encoding, unsigned count, unsigned bits)
{
    count &= bits == 64 ? 63U : 31U;
    if (count == 0) {
        return 0;
    }
    const std::uint64_t overflow = count == 1 ? 0 : of;
    if (encoding.group() < 4) {
        return overflow;
    }
    const bool past = encoding.group() != 7 && count >= bits;
    return overflow | af | (past ? cf : 0);
}

void judge_shift(const Case& each, const Encoding& encoding, const Insn& insn, Verdict& verdict)
{
    const unsigned opcode = encoding.opcode;
    unsigned count = 1;
    if (opcode < 0xd0) {
        count = static_cast<unsigned>(insn.immediate & 0xffU);
    } else if (opcode >= 0xd2) {
        count = static_cast<unsigned>(each.in.gpr[x86::Rcx] & 0xffU);
    }
    const unsigned bits = (opcode & 1U) == 0 ? 8 : insn.operand_size * 8U;
    verdict.undefined_flags |= undefined_of_shift(encoding, count, bits);
}

/// SDM Vol. 2B "SHLD", "SHRD": a count above the operand's size leaves everything undefined.
void judge_double_shift(const Case& each,
                        const Encoding& encoding,
                        const Insn& insn,
                        Verdict& verdict)
{
    const bool by_cl = (encoding.opcode & 1U) != 0;
    const std::uint64_t given = by_cl ? each.in.gpr[x86::Rcx] : insn.immediate;
    const unsigned bits = insn.operand_size * 8U;
    const auto count = static_cast<unsigned>(given & (bits == 64 ? 63U : 31U));
    if (count > bits) {
        verdict.not_judged = "undefined: the count is above the operand's size";
    } else if (count != 0) {
        verdict.undefined_flags |= af | (count == 1 ? 0 : of);
    }
}

/// Where what is undefined depends on operands.
void judge_operands(const Case& each, const Encoding& encoding, const Insn& insn, Verdict& verdict)
{
    if (encoding.kind != Kind::Legacy) {
        return;
    }
    const unsigned opcode = encoding.opcode;
    if (encoding.map == 0) {
        if (opcode == 0xc0 || opcode == 0xc1 || (opcode >= 0xd0 && opcode <= 0xd3)) {
            judge_shift(each, encoding, insn, verdict);
        } else if (opcode == 0xcd && insn.immediate == 0x80) {
            verdict.not_judged = kernel_call;
        } else if (each.is_32 &&
                   (opcode == 0x06 || opcode == 0x0e || opcode == 0x16 || opcode == 0x1e)) {
            verdict.partial_push = true;
        }
        return;
    }
    if (encoding.map != 1) {
        return;
    }
    if (opcode == 0xa4 || opcode == 0xa5 || opcode == 0xac || opcode == 0xad) {
        judge_double_shift(each, encoding, insn, verdict);
    } else if ((opcode == 0xbc || opcode == 0xbd) && encoding.pp != 2) {
        // SDM Vol. 2A "BSF", "BSR": of a source of zero.  Which it is only the outcome shows, so:
        verdict.undefined_registers |= 1U << (insn.reg | 0x10U);
    } else if (opcode >= 0xc8 && opcode <= 0xcf && insn.operand_size == 2) {
        verdict.undefined_registers |= 1U << insn.rm;  // SDM Vol. 2A "BSWAP".
    } else if (each.is_32 && (opcode == 0xa0 || opcode == 0xa8)) {
        verdict.partial_push = true;
    }
}

}  // namespace

namespace {

Verdict judge_at(const Case& each, std::size_t offset)
{
    const auto code =
        std::span<const std::uint8_t>{each.code.data(), each.code_size}.subspan(offset);
    const Encoding encoding = parse(code, each.is_32);
    Verdict verdict;
    for (const Line& line : not_judged) {
        if (matches(line, encoding)) {
            verdict.not_judged = line.why;
            return verdict;
        }
    }
    if (is_amd()) {
        judge_by_amd(encoding, verdict);
        if (verdict.not_judged != nullptr) {
            return verdict;
        }
    }
    for (const Line& line : undefined_flags) {
        if (matches(line, encoding)) {
            verdict.undefined_flags |= line.undefined;
        }
    }
    judge_faults(encoding, verdict);
    Insn insn;
    const auto size = each.is_32 ? x86::soft::CodeSize::Bits32 : x86::soft::CodeSize::Bits64;
    const bool needs_operands = encoding.kind == Kind::Legacy && encoding.map < 2;
    if (needs_operands && decode(std::as_bytes(code), size, insn) == x86::soft::DecodeStatus::Ok) {
        judge_operands(each, encoding, insn, verdict);
    }
    return verdict;
}

}  // namespace

bool is_amd()
{
    static const bool amd = [] {
        unsigned eax = 0;
        unsigned ebx = 0;
        unsigned ecx = 0;
        unsigned edx = 0;
        constexpr unsigned auth = 0x6874'7541;  // Of "AuthenticAMD".
        return __get_cpuid(0, &eax, &ebx, &ecx, &edx) != 0 && ebx == auth;
    }();
    return amd;
}

Verdict judge(const Case& each)
{
    return judge_at(each, 0);
}

Verdict judge(const Case& each, const Outcome& native)
{
    if (!each.is_sequence) {
        return judge(each);
    }
    const std::uint64_t offset = native.out.rip - linear_of(each.code_offset);
    if (native.ending >= 256 || offset >= each.code_size) {
        Verdict verdict;
        verdict.is_amd = is_amd();
        return verdict;
    }
    Verdict verdict = judge_at(each, offset);
    // Those of the instructions before, which left none.
    verdict.undefined_flags = verdict.is_amd && verdict.repeats ? all : 0;
    verdict.undefined_registers = 0;
    return verdict;
}

}  // namespace vmm::oracle
