/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The world switch of Intel VMX.
 */

#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>

#define HOST_RSP_FIELD 0x6c14

	.section .noinstr.text, "ax"

/*
 * bool vmm_vmx_enter(u64 *gpr, bool resume)
 *
 * gpr: the guest's registers by number, of which RSP is in the VMCS.  resume: the VMCS is launched.  True: the guest was
 * entered, and is left.  Called, and returns, with IF clear.
 */
SYM_FUNC_START(vmm_vmx_enter)
	push %rbp
	push %r15
	push %r14
	push %r13
	push %r12
	push %rbx
	push %rdi

	mov $HOST_RSP_FIELD, %eax
	vmwrite %rsp, %rax
	jbe .Lfail

	test %sil, %sil
	mov 0x00(%rdi), %rax
	mov 0x08(%rdi), %rcx
	mov 0x10(%rdi), %rdx
	mov 0x18(%rdi), %rbx
	mov 0x28(%rdi), %rbp
	mov 0x30(%rdi), %rsi
	mov 0x40(%rdi), %r8
	mov 0x48(%rdi), %r9
	mov 0x50(%rdi), %r10
	mov 0x58(%rdi), %r11
	mov 0x60(%rdi), %r12
	mov 0x68(%rdi), %r13
	mov 0x70(%rdi), %r14
	mov 0x78(%rdi), %r15
	mov 0x38(%rdi), %rdi

	jnz .Lresume
	vmlaunch
	jmp .Lfail
.Lresume:
	vmresume
	jbe .Lfail
SYM_INNER_LABEL(vmm_vmx_exit, SYM_L_GLOBAL)
	ANNOTATE_NOENDBR
	push %rax
	mov 0x08(%rsp), %rax
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
	pop (%rax)
	mov $1, %eax

.Lleave:
	/* Nothing of the guest's is left for speculation to use. */
	FILL_RETURN_BUFFER %rcx, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE
	xor %ecx, %ecx
	xor %edx, %edx
	xor %esi, %esi
	xor %edi, %edi
	xor %r8d, %r8d
	xor %r9d, %r9d
	xor %r10d, %r10d
	xor %r11d, %r11d

	add $0x08, %rsp
	pop %rbx
	pop %r12
	pop %r13
	pop %r14
	pop %r15
	pop %rbp
	RET

.Lfail:
	xor %eax, %eax
	jmp .Lleave
SYM_FUNC_END(vmm_vmx_enter)
