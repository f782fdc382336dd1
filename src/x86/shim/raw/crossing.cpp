// SPDX-License-Identifier: Apache-2.0

/// @file
/// The ways between client and library, in assembly language.  Offsets are CrossingState's.

#include <sys/prctl.h>

#include "x86/shim/raw/client_thread.hpp"

// NOLINTBEGIN(hicpp-no-assembler)

// What is executed here is never dispatched.  The kernel looks at the address after SYSCALL.
asm(R"(
    .text
    .p2align 4
    .globl vmm_raw_allowed, vmm_raw_allowed_end
vmm_raw_allowed:

    # Handlers return here: rt_sigreturn, RSP at the kernel's ucontext.
    .globl vmm_raw_restorer
vmm_raw_restorer:
    mov $15, %eax
    syscall

    # A system call of the client is passed on, with all registers the client's.  Where a signal
    # meets this code, vmm_raw_on_signal shows the client its own SYSCALL.
    .globl vmm_raw_pass, vmm_raw_passed, vmm_raw_pass_end
vmm_raw_pass:
    syscall
vmm_raw_passed:
    mov %gs:48, %rdi
    mov %gs:56, %rsi
    mov %gs:64, %rdx
    mov %gs:72, %r10
    mov %gs:80, %r8
    mov %gs:88, %r9
    jmp *%gs:40
vmm_raw_pass_end:

    # The end of a call by a stub that a signal has met (stub.cpp): on the client's stack already.  The
    # client's mask is set as if the client did so itself, and what waited is delivered to it.
    .globl vmm_raw_unblock, vmm_raw_unblock_end
vmm_raw_unblock:
    mov %gs:24, %rax
    wrfsbase %rax
    movb $1, %gs:8
    movq $0, %gs:120
    mov $14, %eax               # rt_sigprocmask; its arguments are there.
    syscall
    mov %gs:104, %rax
    jmp vmm_raw_passed
vmm_raw_unblock_end:

    .globl vmm_raw_syscall
vmm_raw_syscall:
    mov %rdi, %rax
    mov %rsi, %rdi
    mov %rdx, %rsi
    mov %rcx, %rdx
    mov %r8, %r10
    mov %r9, %r8
    mov 8(%rsp), %r9
    syscall
    ret

vmm_raw_allowed_end:
    nop
)");

asm(R"(
    .text
    # The handler of SIGSYS: RDI signal, RSI siginfo, RDX ucontext; RSP at the restorer's address.
    .p2align 4
    .globl vmm_raw_on_sigsys
vmm_raw_on_sigsys:
    cmpl $2, 8(%rsi)            # SYS_USER_DISPATCH; others are the client's own.
    jne vmm_raw_on_signal
    mov %gs:0, %rbx
    rdfsbase %rax
    mov %rax, 24(%rbx)
    mov 16(%rbx), %rax
    wrfsbase %rax
    movb $0, 8(%rbx)
    movb $0, 9(%rbx)
    mov 32(%rbx), %rsp
    mov %rbx, %rdi
    call vmm_raw_serve
    test %rax, %rax
    jz 2f
    # To the client: RBX the thread, RAX the ucontext.
1:  mov 24(%rbx), %rcx
    movb $1, 8(%rbx)
    wrfsbase %rcx
    mov %rax, %rsp
    jmp vmm_raw_restorer
    # The client's thread has ended: back from vmm_raw_enter().
2:  mov 32(%rbx), %rsp
    add $8, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .globl vmm_raw_enter
vmm_raw_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    sub $8, %rsp
    mov %rsp, 32(%rdi)
    mov %rdi, %rbx
    mov %rsi, %rax
    jmp 1b

    # The handler of all other signals that concern us or the client.
    .p2align 4
    .globl vmm_raw_on_signal
vmm_raw_on_signal:
    rdgsbase %rax
    test %rax, %rax
    jz 8f
    # If a system call that is passed on has been interrupted, the frame is made to show the client's
    # own SYSCALL, before a handler makes another one.  Another signal may come on the way: until
    # vmm_raw_shown, RDX stays at the frame and nothing is written but there, so that the second one
    # does it for the first, which then starts again.  R8: the frame that is looked at.
    mov %rdx, %r8
5:  mov 168(%r8), %rcx
    mov %rcx, %r10
    lea vmm_raw_on_signal(%rip), %r9
    sub %r9, %r10
    cmp $(vmm_raw_shown - vmm_raw_on_signal), %r10
    jae 6f
    mov %r9, 168(%r8)
    mov 136(%r8), %r8
    jmp 5b
    # The same on the ways of a stub.  In a stub itself: the client's SYSCALL is behind what the stub
    # loads into RCX.
6:  lea vmm_raw_stub_pages(%rip), %r9
    lea vmm_raw_stub_pages_end(%rip), %r10
1:  mov %rcx, %r11
    sub (%r9), %r11
    cmp $4096, %r11
    jb 2f
    add $8, %r9
    cmp %r10, %r9
    jne 1b
    jmp 3f
2:  and $-16, %rcx
    movslq 3(%rcx), %r9
    lea 5(%rcx, %r9), %r9
    movq $16, 144(%r8)
    mov %r9, 168(%r8)
    jmp 8f
    # On the way in: as if nothing had been done.
3:  lea vmm_raw_stub_avoid(%rip), %r9
    cmp %r9, %rcx
    jb 3f
    lea vmm_raw_stub_inside(%rip), %r9
    cmp %r9, %rcx
    jae 3f
    lea vmm_raw_stub_entering(%rip), %r9
    cmp %r9, %rcx
    jb 2f
    mov 24(%rax), %r9
    wrfsbase %r9
    movb $1, 8(%rax)
2:  mov 152(%r8), %r9
    sub $2, %r9
    movq $16, 144(%r8)
    mov %r9, 168(%r8)
    jmp 8f
    # On the way out: as if the client were there.
3:  lea vmm_raw_stub_leaving(%rip), %r9
    cmp %r9, %rcx
    jb 3f
    lea vmm_raw_stub_end(%rip), %r9
    cmp %r9, %rcx
    jae 3f
    mov 24(%rax), %r9
    wrfsbase %r9
    movb $1, 8(%rax)
    mov 104(%rax), %r9
    mov %r9, 144(%r8)
    mov 144(%rax), %r9
    mov %r9, 168(%r8)
    jmp 8f
    # The same where the client's mask is to be set, which the frame does then.
3:  lea vmm_raw_unblock(%rip), %r9
    mov %rcx, %r10
    sub %r9, %r10
    cmp $(vmm_raw_unblock_end - vmm_raw_unblock), %r10
    jae 3f
    mov 24(%rax), %r9
    wrfsbase %r9
    movb $1, 8(%rax)
    movq $0, 120(%rax)
    mov 104(%rax), %r9
    mov %r9, 144(%r8)
    mov 112(%rax), %r9
    mov %r9, 296(%r8)
    mov $1, %ecx
    jmp 1f
    # In a call that is passed on.
3:  cmpb $0, 8(%rax)
    je 8f
    lea vmm_raw_pass(%rip), %r9
    sub %r9, %rcx
    cmp $(vmm_raw_pass_end - vmm_raw_pass), %rcx
    jae 8f
1:  mov 48(%rax), %r9
    mov %r9, 104(%r8)
    mov 56(%rax), %r9
    mov %r9, 112(%r8)
    mov 64(%rax), %r9
    mov %r9, 136(%r8)
    mov 72(%rax), %r9
    mov %r9, 56(%r8)
    mov 80(%rax), %r9
    mov %r9, 40(%r8)
    mov 88(%rax), %r9
    mov %r9, 48(%r8)
    mov 40(%rax), %r9
    test %rcx, %rcx
    jnz 7f
    sub $2, %r9                 # Not executed yet, or to be executed again: from its SYSCALL.
7:  mov %r9, 168(%r8)
8:
    .globl vmm_raw_shown
vmm_raw_shown:
    push %rdi
    push %rsi
    push %rdx
    mov %rdx, %rcx
    mov %rsi, %rdx
    mov %edi, %esi
    rdgsbase %rdi
    call vmm_raw_deliver
    pop %rdx
    pop %rsi
    pop %rdi
    cmp $1, %rax
    jb 4f
    je 3f
    mov %rax, %rcx
    xor %eax, %eax
    jmp *%rcx
3:  sub $8, %rsp
    call vmm_raw_in_library
    add $8, %rsp
4:  add $8, %rsp
    jmp vmm_raw_restorer
)");

// NOLINTEND(hicpp-no-assembler)

namespace vmm::shim::raw {

// What vmm_raw_on_signal writes to.
template <int Register>
constexpr std::size_t offset_in_frame = offsetof(ucontext_t, uc_mcontext) +
                                        offsetof(mcontext_t, gregs) + Register * sizeof(greg_t);
static_assert(offsetof(ucontext_t, uc_sigmask) == 296);
static_assert(offset_in_frame<REG_RAX> == 144 && offset_in_frame<REG_RCX> == 152);
static_assert(offset_in_frame<REG_R8> == 40 && offset_in_frame<REG_R9> == 48 &&
              offset_in_frame<REG_R10> == 56 && offset_in_frame<REG_RDI> == 104 &&
              offset_in_frame<REG_RSI> == 112 && offset_in_frame<REG_RDX> == 136 &&
              offset_in_frame<REG_RIP> == 168);

int take_system_calls(ClientThread& thread) noexcept
{
    thread.in_client = SYSCALL_DISPATCH_FILTER_ALLOW;
    // NOLINTBEGIN(hicpp-no-assembler)
    asm volatile("rdfsbase %0" : "=r"(thread.library_fs));
    asm volatile("wrgsbase %0" : : "r"(&thread));
    // NOLINTEND(hicpp-no-assembler)
    const std::uint64_t first = address_of(vmm_raw_allowed);
    // The address after the last SYSCALL is inside.
    const std::uint64_t size = address_of(vmm_raw_allowed_end) - first;
    return ::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, first, size,
                   &thread.in_client) == 0
               ? 0
               : errno;
}

void release_system_calls() noexcept
{
    ::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, 0, 0, 0);
}

}  // namespace vmm::shim::raw
