/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The world switch of AMD SVM.
 */

#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>

	.section .noinstr.text, "ax"

/*
 * void vmm_svm_enter(u64 guest, u64 host, u64 *gpr)
 *
 * guest: physical address of the VMCB.  host: of a page for what VMLOAD and VMSAVE move.  gpr: the guest's registers
 * by number, of which RAX and RSP are in the VMCB.  Called, and returns, with GIF and IF clear.
 */
SYM_FUNC_START(vmm_svm_enter)
	push %rbp
	push %r15
	push %r14
	push %r13
	push %r12
	push %rbx
	push %rdx
	push %rsi
	push %rdi

	/*
	 * With IF set an external interrupt ends the guest, whatever the guest's IF is.  GIF holds it back until then.
	 * Not right before VMRUN: the shadow of STI may become the guest's.
	 */
	sti
	mov %rsi, %rax
	vmsave %rax

	mov %rdx, %rax
	mov 0x08(%rax), %rcx
	mov 0x10(%rax), %rdx
	mov 0x18(%rax), %rbx
	mov 0x28(%rax), %rbp
	mov 0x30(%rax), %rsi
	mov 0x38(%rax), %rdi
	mov 0x40(%rax), %r8
	mov 0x48(%rax), %r9
	mov 0x50(%rax), %r10
	mov 0x58(%rax), %r11
	mov 0x60(%rax), %r12
	mov 0x68(%rax), %r13
	mov 0x70(%rax), %r14
	mov 0x78(%rax), %r15

	mov (%rsp), %rax
	vmload %rax
	vmrun %rax
	cli
	vmsave %rax

	mov 0x10(%rsp), %rax
	mov %rcx, 0x08(%rax)
	mov %rdx, 0x10(%rax)
	mov %rbx, 0x18(%rax)
	mov %rbp, 0x28(%rax)
	mov %rsi, 0x30(%rax)
	mov %rdi, 0x38(%rax)
	mov %r8, 0x40(%rax)
	mov %r9, 0x48(%rax)
	mov %r10, 0x50(%rax)
	mov %r11, 0x58(%rax)
	mov %r12, 0x60(%rax)
	mov %r13, 0x68(%rax)
	mov %r14, 0x70(%rax)
	mov %r15, 0x78(%rax)

	/* The host's GS among it. */
	mov 0x08(%rsp), %rax
	vmload %rax

	/* Nothing of the guest's is left for speculation to use. */
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RETPOLINE
	UNTRAIN_RET
	xor %ecx, %ecx
	xor %edx, %edx
	xor %esi, %esi
	xor %edi, %edi
	xor %r8d, %r8d
	xor %r9d, %r9d
	xor %r10d, %r10d
	xor %r11d, %r11d

	add $0x18, %rsp
	pop %rbx
	pop %r12
	pop %r13
	pop %r14
	pop %r15
	pop %rbp
	RET
SYM_FUNC_END(vmm_svm_enter)
