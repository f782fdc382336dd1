// SPDX-License-Identifier: Apache-2.0

/// @file
/// Entering and leaving translated code.

#include "x86/soft/emitter.hpp"
#include "x86/soft/native_operand.hpp"

namespace vmm::x86::soft {

namespace {

using Xbyak::util::ptr;

std::size_t distance(const Cpu& cpu, const void* part) noexcept
{
    return static_cast<std::size_t>(static_cast<const std::byte*>(part) -
                                    reinterpret_cast<const std::byte*>(&cpu));
}

constexpr std::array<int, 6> callee_saved{Xbyak::Operand::RBX, Xbyak::Operand::RBP,
                                          Xbyak::Operand::R12, Xbyak::Operand::R13,
                                          Xbyak::Operand::R14, Xbyak::Operand::R15};

}  // namespace

CpuLayout::CpuLayout(const Cpu& cpu) noexcept
    : rip(distance(cpu, &cpu.rip)),
      block_rip(distance(cpu, &cpu.gpr[block_rip_slot / 8])),
      flags(distance(cpu, &cpu.arithmetic_flags)),
      rflags(distance(cpu, &cpu.rflags)),
      current(distance(cpu, &cpu.current)),
      tlb(distance(cpu, &cpu.tlb)),
      requests(distance(cpu, &cpu.requests)),
      table(distance(cpu, &cpu.chain.table)),
      generation(distance(cpu, &cpu.chain.generation)),
      code_page(distance(cpu, &cpu.translated.code_page)),
      vectors(distance(cpu, &cpu.translated.vectors)),
      pauses_left(distance(cpu, &cpu.translated.pauses_left)),
      notes(distance(cpu, &cpu.translated.notes)),
      notes_end(distance(cpu, &cpu.translated.notes_end)),
      spare(distance(cpu, cpu.translated.spare.data())),
      windows(distance(cpu, cpu.translated.windows.data())),
      cr0(distance(cpu, &cpu.cr0)),
      cr4(distance(cpu, &cpu.cr4)),
      xcr0(distance(cpu, &cpu.xcr0)),
      ymm(distance(cpu, cpu.fpu.ymm.data())),
      mxcsr(distance(cpu, &cpu.fpu.mxcsr)),
      host_mxcsr(distance(cpu, &cpu.host_mxcsr)),
      mxcsr_live(distance(cpu, &cpu.mxcsr_live)),
      x87(distance(cpu, cpu.fpu.x87.data())),
      x87_live(distance(cpu, &cpu.x87_live))
{
    for (std::size_t i = 0; i < segment_base.size(); ++i) {
        segment_base[i] = distance(cpu, &cpu.seg[i].base);
    }
}

SharedCode SharedEmitter::emit(const void* take_edge)
{
    const CpuLayout& layout = context_.layout;
    SharedCode code;
    Xbyak::Label no_note;
    code.enter = getCurr();
    emit_enter(no_note);

    // The RIP of no note has been met.
    align(16);
    Xbyak::Label untranslated;
    L(no_note);
    mov(ptr[r15 + layout.rip], r10);
    jmp(untranslated, T_NEAR);

    align(16);
    code.exit = getCurr();
    add(r10, ptr[r15 + layout.code_page]);
    mov(ptr[r15 + layout.block_rip], r10);
    mov(ptr[r15 + layout.current], r11);
    store_state();
    mov(rdi, r15);
    mov(rsi, r11);
    restore_host();
    jmp(ptr[rsi + offsetof(Op, interpret)]);

    align(16);
    code.edge = getCurr();
    Xbyak::Label leave;
    add(r10, ptr[r15 + layout.code_page]);
    mov(ptr[r15 + layout.rip], r10);
    L(leave);
    store_state();
    mov(rdi, r15);
    mov(rsi, r11);
    restore_host();
    mov(rax, reinterpret_cast<std::uintptr_t>(take_edge));
    jmp(rax);

    align(16);
    code.untranslated = getCurr();
    L(untranslated);
    xor_(r11d, r11d);
    jmp(leave, T_NEAR);

    align(16);
    code.moved = getCurr();
    emit_moved(leave);

    align(16);
    code.fill_site = getCurr();
    emit_fill_site(untranslated);

    align(16);
    code.load_vectors = getCurr();
    emit_load_vectors();
    return code;
}

/// rax = the jump table's entry for r10, as jump_entry() in dispatch.hpp.  rax goes to `spare`.
void SharedEmitter::find_jump_entry()
{
    static_assert(sizeof(JumpEntry) == 32 && (Chain::table_size & (Chain::table_size - 1)) == 0);
    const CpuLayout& layout = context_.layout;
    mov(ptr[r15 + layout.spare], rax);
    mov(rax, r10);
    shr(rax, 12);
    xor_(rax, r10);
    and_(eax, static_cast<std::uint32_t>(Chain::table_size - 1));
    shl(eax, 5);
    add(rax, ptr[r15 + layout.table]);
}

/// To what is there now, if the jump table has it.
void SharedEmitter::emit_moved(const Xbyak::Label& leave)
{
    const CpuLayout& layout = context_.layout;
    Xbyak::Label unknown;
    add(r10, ptr[r15 + layout.code_page]);
    mov(ptr[r15 + layout.rip], r10);
    mov(ptr[r15 + layout.spare + 8], r11);
    find_jump_entry();
    cmp(r10, ptr[rax + offsetof(JumpEntry, rip)]);
    jne(unknown);
    mov(r10, ptr[r15 + layout.generation]);
    cmp(r10, ptr[rax + offsetof(JumpEntry, generation)]);
    jne(unknown);
    mov(r11, ptr[rax + offsetof(JumpEntry, code)]);
    cmp(r11, ptr[r15 + layout.spare + 8]);
    je(unknown);
    mov(rax, ptr[r15 + layout.spare]);
    jmp(r11);
    L(unknown);
    mov(rax, ptr[r15 + layout.spare]);
    xor_(r11d, r11d);
    jmp(leave, T_NEAR);
}

/// Not with what is not translated: nothing would tell the site that it is.
void SharedEmitter::emit_fill_site(const Xbyak::Label& untranslated)
{
    const CpuLayout& layout = context_.layout;
    Xbyak::Label refuse;
    find_jump_entry();
    cmp(r10, ptr[rax + offsetof(JumpEntry, rip)]);
    jne(refuse);
    and_(r10, 0xffff'f000U);
    mov(ptr[r15 + layout.spare + 8], r10);
    mov(r10, ptr[r15 + layout.generation]);
    cmp(r10, ptr[rax + offsetof(JumpEntry, generation)]);
    jne(refuse);
    mov(r10, ptr[rax + offsetof(JumpEntry, code)]);
    lea(rax, ptr[rip + untranslated]);
    cmp(r10, rax);
    je(refuse);
    mov(ptr[r11 + offsetof(FarSite, code)], r10);
    mov(r10, ptr[r15 + layout.spare + 8]);
    mov(ptr[r11 + offsetof(FarSite, target_page)], r10);
    mov(r10, ptr[r15 + layout.code_page]);
    mov(ptr[r11 + offsetof(FarSite, page)], r10);
    mov(r10, ptr[r15 + layout.generation]);
    mov(ptr[r11 + offsetof(FarSite, generation)], r10);
    mov(rax, ptr[r15 + layout.spare]);
    cmp(eax, eax);
    ret();
    L(refuse);
    mov(rax, ptr[r15 + layout.spare]);
    test(r15, r15);  // Never 0.
    ret();
}

void SharedEmitter::emit_enter(const Xbyak::Label& no_note)
{
    const CpuLayout& layout = context_.layout;
    for (const int number : callee_saved) {
        push(Xbyak::Reg64(number));
    }
    mov(r15, rdi);
    // The last note is like that of any call, but no guest is there.
    constexpr std::uint32_t no_rip = 1;
    constexpr auto no_stack_pointer = static_cast<std::uint32_t>(-1);  // Above all.
    lea(r10, ptr[rip + no_note]);
    push(no_stack_pointer);
    push(no_rip);
    push(r10);
    mov(ptr[r15 + layout.notes], rsp);
    lea(r10, ptr[rsp - CallNote::most * sizeof(CallNote)]);
    mov(ptr[r15 + layout.notes_end], r10);
    mov(r10, ptr[r15 + layout.block_rip]);
    and_(r10, 0xffff'f000U);
    mov(ptr[r15 + layout.code_page], r10);
    movzx(eax, word[r15 + layout.flags]);
    for (std::size_t i = 0; i < host_register.size(); ++i) {
        if (host_register[i] != spilled) {
            mov(Xbyak::Reg64(host_register[i]), ptr[r15 + i * 8]);
        }
    }
    jmp(r11);
}

/// Flags (parked), general and vector registers.
void SharedEmitter::store_state()
{
    const CpuLayout& layout = context_.layout;
    mov(ptr[r15 + layout.flags], ax);
    for (std::size_t i = 0; i < host_register.size(); ++i) {
        if (host_register[i] != spilled) {
            mov(ptr[r15 + i * 8], Xbyak::Reg64(host_register[i]));
        }
    }
    Xbyak::Label done;
    cmp(dword[r15 + layout.vectors], 0);
    je(done, T_NEAR);
    save_vectors();
    L(done);
}

void SharedEmitter::save_vectors()
{
    const CpuLayout& layout = context_.layout;
    mov(dword[r15 + layout.vectors], 0);
    for (std::size_t i = 0; i < 16; ++i) {
        if (context_.avx) {
            vmovups(ptr[r15 + layout.ymm + i * 32], Xbyak::Ymm(static_cast<int>(i)));
        } else {
            movups(ptr[r15 + layout.ymm + i * 32], Xbyak::Xmm(static_cast<int>(i)));
        }
    }
    if (context_.avx) {
        vzeroupper();
    }
}

void SharedEmitter::restore_host()
{
    mov(rsp, ptr[r15 + context_.layout.notes]);
    add(rsp, sizeof(CallNote));
    for (auto number = callee_saved.rbegin(); number != callee_saved.rend(); ++number) {
        pop(Xbyak::Reg64(*number));
    }
}

/// Brings the YMM registers and MXCSR to the host's if the guest may use them, and no exception is
/// unmasked.  ZF: yes.
void SharedEmitter::emit_load_vectors()
{
    using namespace native_detail;
    const CpuLayout& layout = context_.layout;
    Xbyak::Label refuse;
    Xbyak::Label level;
    Xbyak::Label live;
    Xbyak::Label dirty;
    Xbyak::Label done;
    test(dword[r15 + layout.cr0], static_cast<std::uint32_t>(cr0_em | cr0_ts));
    jne(refuse, T_NEAR);
    test(dword[r15 + layout.cr4], static_cast<std::uint32_t>(cr4_osfxsr));
    je(refuse, T_NEAR);
    mov(r11d, dword[r15 + layout.mxcsr]);
    not_(r11d);
    test(r11d, mxcsr_masks);
    jne(refuse, T_NEAR);
    if (context_.avx) {
        test(dword[r15 + layout.cr4], static_cast<std::uint32_t>(cr4_osxsave));
        mov(r11d, 1);
        je(level);
        mov(r11d, dword[r15 + layout.xcr0]);
        and_(r11d, 6);
        cmp(r11d, 6);
        mov(r11d, 1);
        jne(level);
        mov(r11d, 2);
        L(level);
    } else {
        mov(r11d, 1);
    }
    cmp(r11d, r10d);
    jb(refuse, T_NEAR);
    mov(dword[r15 + layout.vectors], r11d);
    cmp(byte[r15 + layout.mxcsr_live], 0);
    jne(live);
    stmxcsr(dword[r15 + layout.host_mxcsr]);
    mov(r11d, dword[r15 + layout.mxcsr]);
    and_(r11d, mxcsr_valid);
    mov(dword[r15 + layout.spare], r11d);
    ldmxcsr(dword[r15 + layout.spare]);
    mov(byte[r15 + layout.mxcsr_live], 1);
    L(live);
    if (context_.avx) {
        // Upper halves that are all zero are not touched: SSE instructions are faster so.
        vmovups(xmm0, ptr[r15 + layout.ymm + 16]);
        for (std::size_t i = 1; i < 16; ++i) {
            vorps(xmm0, xmm0, ptr[r15 + layout.ymm + i * 32 + 16]);
        }
        vptest(xmm0, xmm0);
        jne(dirty, T_NEAR);
        vzeroupper();
    }
    for (std::size_t i = 0; i < 16; ++i) {
        movups(Xbyak::Xmm(static_cast<int>(i)), ptr[r15 + layout.ymm + i * 32]);
    }
    jmp(done, T_NEAR);
    if (context_.avx) {
        L(dirty);
        for (std::size_t i = 0; i < 16; ++i) {
            vmovups(Xbyak::Ymm(static_cast<int>(i)), ptr[r15 + layout.ymm + i * 32]);
        }
    }
    L(done);
    cmp(eax, eax);
    ret();
    L(refuse);
    test(r10d, r10d);  // Never 0.
    ret();
}

}  // namespace vmm::x86::soft
