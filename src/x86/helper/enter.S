/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The world switches of AMD SVM and Intel VMX.
 *
 * Both are called, and return, with IF clear.  gpr: the guest's registers by number, as far as the vendor's block has them not.
 */

#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>

#define HOST_RSP_FIELD 0x6c14

.macro PUSH_HOST_REGISTERS
	push %rbp
	push %r15
	push %r14
	push %r13
	push %r12
	push %rbx
.endm

.macro POP_HOST_REGISTERS
	pop %rbx
	pop %r12
	pop %r13
	pop %r14
	pop %r15
	pop %rbp
.endm

/* All but RAX and RSP, and but RDI, which is last where it is the base. */
.macro LOAD_GUEST_REGISTERS base:req
	mov 0x08(\base), %rcx
	mov 0x10(\base), %rdx
	mov 0x18(\base), %rbx
	mov 0x28(\base), %rbp
	mov 0x30(\base), %rsi
	.irp number, 8, 9, 10, 11, 12, 13, 14, 15
	mov 8 * \number(\base), %r\number
	.endr
	mov 0x38(\base), %rdi
.endm

/* All but RAX and RSP, to where RAX points. */
.macro STORE_GUEST_REGISTERS
	mov %rcx, 0x08(%rax)
	mov %rdx, 0x10(%rax)
	mov %rbx, 0x18(%rax)
	mov %rbp, 0x28(%rax)
	mov %rsi, 0x30(%rax)
	mov %rdi, 0x38(%rax)
	.irp number, 8, 9, 10, 11, 12, 13, 14, 15
	mov %r\number, 8 * \number(%rax)
	.endr
.endm

/*
 * Nothing of the guest's is left for speculation to use: the return stack where the CPU has one of these features, and the registers
 * that are not loaded from the stack.  As FILL_RETURN_BUFFER, whose loop takes twice the instructions.
 */
.macro FORGET_GUEST feature:req feature2:req
	ALTERNATIVE_2 "jmp .Lforgotten\@", "", \feature, "", \feature2
	.rept RSB_CLEAR_LOOPS
	__FILL_RETURN_SLOT
	.endr
	add $(8 * RSB_CLEAR_LOOPS), %rsp
	lfence
.Lforgotten\@:
	.irp register, ecx, edx, esi, edi, r8d, r9d, r10d, r11d
	xor %\register, %\register
	.endr
.endm

	.section .noinstr.text, "ax"

/*
 * void vmm_svm_enter(u64 guest, u64 host, u64 *gpr)
 *
 * guest: physical address of the VMCB, which has RAX and RSP.  host: of a page for what VMLOAD and VMSAVE move.  Called, and
 * returns, with GIF clear.
 */
SYM_FUNC_START(vmm_svm_enter)
	PUSH_HOST_REGISTERS
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
	LOAD_GUEST_REGISTERS %rax
	mov (%rsp), %rax
	vmload %rax
	vmrun %rax
	cli
	vmsave %rax

	mov 0x10(%rsp), %rax
	STORE_GUEST_REGISTERS
	/* The host's GS among it. */
	mov 0x08(%rsp), %rax
	vmload %rax

	FORGET_GUEST X86_FEATURE_RETPOLINE, X86_FEATURE_RETPOLINE_LFENCE
	UNTRAIN_RET
	add $0x18, %rsp
	POP_HOST_REGISTERS
	RET
SYM_FUNC_END(vmm_svm_enter)

/*
 * bool vmm_vmx_enter(u64 *gpr, bool resume)
 *
 * The VMCS, which is current, has RSP.  resume: it is launched.  True: the guest was entered, and is left.
 */
SYM_FUNC_START(vmm_vmx_enter)
	PUSH_HOST_REGISTERS
	push %rdi

	mov $HOST_RSP_FIELD, %eax
	vmwrite %rsp, %rax
	jbe .Lfail

	test %sil, %sil
	mov 0x00(%rdi), %rax
	LOAD_GUEST_REGISTERS %rdi
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
	STORE_GUEST_REGISTERS
	pop (%rax)
	mov $1, %eax

.Lleave:
	FORGET_GUEST X86_FEATURE_RSB_VMEXIT, X86_FEATURE_RSB_VMEXIT_LITE
	add $0x08, %rsp
	POP_HOST_REGISTERS
	RET

.Lfail:
	xor %eax, %eax
	jmp .Lleave
SYM_FUNC_END(vmm_vmx_enter)
