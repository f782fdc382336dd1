/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR Apache-2.0 */
/*
 * What the helper module and the library say to one another.  ABI.md is its manual.
 *
 * C for the kernel, C++ for the library: fixed-width types, no padding that is not named, offsets asserted below.
 */

#ifndef VMM_HELPER_ABI_H
#define VMM_HELPER_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Both sides must have the same.  Any change of what is below is a new one. */
#define VMM_ABI_VERSION 6

#define VMM_DEVICE "vmm" /* /dev/vmm */

/* ---- Why something was refused: in `reason`, beside the errno. ---- */

#define VMM_REASON_NONE 0
#define VMM_REASON_VERSION 1		  /* Another VMM_ABI_VERSION. */
#define VMM_REASON_FLAGS 2		  /* A flag or a reserved field that is not 0. */
#define VMM_REASON_OTHER_PROCESS 3	  /* The VM belongs to another address space. */
#define VMM_REASON_VCPU_ID 4		  /* Not below VMM_VCPU_ID_END. */
#define VMM_REASON_SLOT 5		  /* Beyond VMM_MAX_REGIONS. */
#define VMM_REASON_SLOT_TAKEN 6		  /* A region is changed by removing it first. */
#define VMM_REASON_NO_SUCH_SLOT 7
#define VMM_REASON_ALIGNMENT 8		  /* Addresses and sizes are multiples of 4096. */
#define VMM_REASON_GUEST_ADDRESS 9	  /* Wraps, or lies beyond the CPU's physical addresses. */
#define VMM_REASON_HOST_ADDRESS 10	  /* Wraps, or is no user address. */
#define VMM_REASON_OVERLAP 11		  /* Two regions at one guest-physical address. */
#define VMM_REASON_INTERCEPTS 12	/* Bits that stand for no intercept. */
#define VMM_REASON_INTERRUPT_CONTROL 13 /* Of int_ctl, int_vector, int_state: bits that are not the caller's. */
#define VMM_REASON_EVENT 14		/* event_inj is no event. */
#define VMM_REASON_EFER 15
#define VMM_REASON_CR0 16
#define VMM_REASON_CR3 17
#define VMM_REASON_CR4 18
#define VMM_REASON_LONG_MODE 19 /* EFER.LME, CR0, CR4.PAE, CS.L and CS.D together. */
#define VMM_REASON_DEBUG 20	/* DR6 or DR7 beyond 32 bits. */
#define VMM_REASON_XCR0 21
#define VMM_REASON_OPTIONS 22
#define VMM_REASON_CONTROLS 23	/* VMX: controls that are not the caller's, or that this CPU has not. */
#define VMM_REASON_MASKS 24	/* VMX: cr0_mask or cr4_mask gives the guest a bit that it may not own. */
#define VMM_REASON_MSR 25	/* A value that WRMSR would not take. */
#define VMM_REASON_CPUID 26	/* More than VMM_MAX_CPUID leaves. */
#define VMM_REASON_PAGES 27	/* Of VMM_TAKE_DIRTY: words that the slot's log has not. */

/* ---- The device ---- */

#define VMM_VENDOR_SVM 1
#define VMM_VENDOR_VMX 2

#define VMM_FEATURE_NEXT_RIP (1u << 0)	   /* `next_rip` is valid at intercepts of instructions. */
#define VMM_FEATURE_DECODE_ASSISTS (1u << 1) /* `insn_bytes` are, at nested page faults. */
#define VMM_FEATURE_PAUSE_FILTER (1u << 2)
#define VMM_FEATURE_RDTSCP (1u << 3)  /* VMX: the secondary controls that a guest needs for these instructions. */
#define VMM_FEATURE_INVPCID (1u << 4)
#define VMM_FEATURE_XSAVES (1u << 5)

struct vmm_info {
	__u32 version;
	__u32 vendor;
	__u32 features;
	__u32 max_vcpus;
	__u32 max_regions;
	__u32 vcpu_area_size; /* Bytes to map of a vCPU. */
	__u32 guest_address_bits;
	__u32 reserved;
};

struct vmm_create {
	__u32 argument; /* VM: VMM_ABI_VERSION.  vCPU: its id. */
	__u32 reason;	/* Out. */
};

/* ---- A VM ---- */

#define VMM_VCPU_ID_END 4096
#define VMM_MAX_REGIONS 32768

#define VMM_REGION_READ_ONLY (1u << 0) /* Writes are exits. */
#define VMM_REGION_LOG_DIRTY (1u << 1)
#define VMM_REGION_TELL_DIRTY (1u << 2) /* With LOG_DIRTY: the write that sets a bit is an exit, VMM_EXIT_DIRTY. */

struct vmm_region {
	__u32 slot;
	__u32 flags;
	__u64 guest_address;
	__u64 size; /* 0 removes the slot. */
	__u64 host_address;
	__u32 reason; /* Out. */
	__u32 reserved;
};

struct vmm_dirty {
	__u32 slot;
	__u32 reason; /* Out. */
	__u64 bitmap; /* Address of one bit a page, in whole 64-bit words. */
	__u64 first;  /* Word of the slot's log, of 64 pages each, and how many of them. */
	__u64 words;
};

/* ---- A vCPU's CPUID, as far as the helper is to answer it ---- */

#define VMM_MAX_CPUID 256

#define VMM_CPUID_INDEXED (1u << 0) /* The leaf is this one only where ECX is `index`. */

struct vmm_cpuid_leaf {
	__u32 function;
	__u32 index;
	__u32 flags;
	__u32 eax;
	__u32 ebx;
	__u32 ecx;
	__u32 edx;
	__u32 reserved;
};

struct vmm_cpuid {
	__u32 count;  /* 0: every CPUID is an exit. */
	__u32 reason; /* Out. */
	__u64 leaves; /* Address of `count` of them. */
};

/* ---- A vCPU: the area that it shares with its caller ---- */

/* What the caller has changed since the last run; the rest is as the helper left it. */
#define VMM_DIRTY_CONTROLS (1u << 0) /* XCR0 too. */
#define VMM_DIRTY_SEGMENTS (1u << 1)
#define VMM_DIRTY_SYSTEM (1u << 2) /* CRs and EFER. */
#define VMM_DIRTY_DEBUG (1u << 3)  /* DR0 to DR3, DR6 and DR7. */
#define VMM_DIRTY_MSRS (1u << 4) /* TSC_AUX too. */
#define VMM_DIRTY_TLB (1u << 5)	  /* No field: the guest's translations are forgotten before it goes on. */
#define VMM_DIRTY_ALL 0x3fu

#define VMM_EXIT_NONE 0
#define VMM_EXIT_INTERRUPTED 1 /* `immediate_exit` was set. */
#define VMM_EXIT_HARDWARE 2    /* The vendor's part says what. */
#define VMM_EXIT_MEMORY 3      /* A page of the caller's could not be had; `error` says why. */
#define VMM_EXIT_FAILED 4      /* VMX: no entry was made; `error` is the VM-instruction error. */
#define VMM_EXIT_DIRTY 5       /* The guest is about to write `dirty_page`, of a slot with VMM_REGION_TELL_DIRTY. */

struct vmm_segment {
	__u16 selector;
	__u16 attributes; /* As in a VMCB: descriptor bits 55:52 and 47:40.  VMX: not present is unusable. */
	__u32 limit;
	__u64 base;
};

#define VMM_SVM_INTERCEPT_ALL_MSRS (1u << 0) /* Those too that VMLOAD and VMSAVE switch. */

/*
 * AMD.  The names are those of APM Vol. 2 "Layout of VMCB".
 */
struct vmm_svm {
	/* 0x000: requests. */
	__u32 intercepts[6];
	__u32 pause_filter; /* Count in bits 15:0, threshold in 31:16. */
	__u32 int_ctl;
	__u32 int_vector;
	__u32 int_state;
	__u32 event_inj; /* Out: what is still, or again, to be injected. */
	__u32 event_inj_error;

	/* 0x030: the exit. */
	__u64 exit_code;
	__u64 exit_info_1;
	__u64 exit_info_2;
	__u32 exit_int_info;
	__u32 exit_int_info_error;
	__u64 next_rip;
	__u8 insn_len;
	__u8 insn_bytes[15];
	__u32 cpl;     /* Out only: an entry takes SS.DPL. */
	__u32 options; /* Request: VMM_SVM_*. */

	/* 0x070: state. */
	struct vmm_segment es;
	struct vmm_segment cs;
	struct vmm_segment ss;
	struct vmm_segment ds;
	struct vmm_segment fs;
	struct vmm_segment gs;
	struct vmm_segment gdtr;
	struct vmm_segment ldtr;
	struct vmm_segment idtr;
	struct vmm_segment tr;
	/* 0x110 */
	__u64 efer; /* Without SVME, which is the helper's. */
	__u64 cr0;
	__u64 cr2;
	__u64 cr3;
	__u64 cr4;
	__u64 dr6;
	__u64 dr7;
	/* 0x148 */
	__u64 star;
	__u64 lstar;
	__u64 cstar;
	__u64 sfmask;
	__u64 kernel_gs_base;
	__u64 sysenter_cs;
	__u64 sysenter_esp;
	__u64 sysenter_eip;
	/* 0x188 */
	__u32 small_exits[6]; /* Request.  Bit n: exit code n needs nothing stored of 0x048 to 0x188; see `stored`. */
	/* 0x1a0 */
};

#define VMM_VMX_INTERCEPT_ALL_MSRS (1u << 0) /* Those too that the helper or the VMCS switches. */

/*
 * Intel.  The names are those of SDM Vol. 3C "Virtual Machine Control Structures".
 */
struct vmm_vmx {
	/* 0x000: requests. */
	__u32 primary;	  /* Processor-based controls. */
	__u32 secondary;
	__u32 exceptions; /* The exception bitmap. */
	__u32 options;	  /* VMM_VMX_*. */
	__u64 cr0_mask;	  /* Bits of CR0 and CR4 that the guest reads from the shadows, and leaves to change. */
	__u64 cr4_mask;
	__u64 cr0_shadow;
	__u64 cr4_shadow;
	__u64 small_exits; /* Bit n: exit reason n needs neither segments nor CRs stored; see `stored`. */
	__u32 interruptibility;
	__u32 event_inj; /* VM-entry interruption information.  Out: what is still, or again, to be injected. */
	__u32 event_inj_error;
	__u32 reserved;

	/* 0x048: the exit. */
	__u32 exit_reason;
	__u32 instruction_length;
	__u64 exit_qualification;
	__u64 guest_physical;
	__u64 pending_debug;
	__u32 exit_event; /* VM-exit interruption information. */
	__u32 exit_event_error;

	/* 0x070: state. */
	struct vmm_segment es;
	struct vmm_segment cs;
	struct vmm_segment ss;
	struct vmm_segment ds;
	struct vmm_segment fs;
	struct vmm_segment gs;
	struct vmm_segment gdtr;
	struct vmm_segment ldtr;
	struct vmm_segment idtr;
	struct vmm_segment tr;
	/* 0x110 */
	__u64 efer;
	__u64 cr0; /* As the CPU has it, without NE; CR4 without VMXE. */
	__u64 cr2;
	__u64 cr3;
	__u64 cr4;
	__u64 pdptes[4]; /* Where PAE paging is used. */
	/* 0x158 */
	__u64 dr7;
	/* 0x160 */
	__u64 star;
	__u64 lstar;
	__u64 sfmask;
	__u64 kernel_gs_base;
	__u64 sysenter_cs;
	__u64 sysenter_esp;
	__u64 sysenter_eip;
	/* 0x198 */
};

struct vmm_vcpu_area {
	__u32 dirty;	      /* VMM_DIRTY_*; taken by the helper. */
	__u32 immediate_exit; /* Set by any thread of the caller's: no guest code from here on. */
	__u32 running;	      /* The helper's: VMM_RUN is being executed, and a kick would end it. */
	__u32 exit_kind;
	__u32 reason;
	__u32 error;	/* VMM_EXIT_MEMORY: an errno. */
	__u64 entries; /* Of the guest, since creation. */

	__u64 gpr[16]; /* 0x020: RAX, RCX, RDX, RBX, RSP … as instructions number them. */
	__u64 rip;
	__u64 rflags;
	__u64 dr[4];
	__u64 xcr0;
	__u64 tsc_offset;
	__u64 tsc_aux;
	__u32 stored; /* VMM_DIRTY_*: groups that are as the guest left them; the helper's. */
	__u32 dirty_slot; /* VMM_EXIT_DIRTY. */
	__u64 served; /* CPUIDs that the helper has answered, since creation. */
	__u64 dirty_page; /* VMM_EXIT_DIRTY: counted from the slot's first. */

	union { /* 0x100 */
		struct vmm_svm svm;
		struct vmm_vmx vmx;
		__u8 vendor[0x1000 - 0x100];
	};
};

/* ---- The calls.  vmm_ioctl(n) on the device, a VM, a vCPU. ---- */

#define VMM_IOCTL 0xBD

#define VMM_GET_INFO _IOR(VMM_IOCTL, 0x00, struct vmm_info)
#define VMM_CREATE_VM _IOWR(VMM_IOCTL, 0x01, struct vmm_create)

#define VMM_CREATE_VCPU _IOWR(VMM_IOCTL, 0x10, struct vmm_create)
#define VMM_SET_REGION _IOWR(VMM_IOCTL, 0x11, struct vmm_region)
#define VMM_TAKE_DIRTY _IOWR(VMM_IOCTL, 0x12, struct vmm_dirty)

#define VMM_RUN _IO(VMM_IOCTL, 0x20)
#define VMM_KICK _IO(VMM_IOCTL, 0x21)
#define VMM_FETCH _IO(VMM_IOCTL, 0x22)
#define VMM_SET_CPUID _IOWR(VMM_IOCTL, 0x23, struct vmm_cpuid)

/* ---- What both sides count on ---- */

#ifdef __cplusplus
#define VMM_ABI_ASSERT(condition) static_assert(condition, #condition)
#else
#define VMM_ABI_ASSERT(condition) _Static_assert(condition, #condition)
#endif
#define VMM_ABI_AT(type, member, offset) VMM_ABI_ASSERT(__builtin_offsetof(struct type, member) == (offset))

VMM_ABI_ASSERT(sizeof(struct vmm_info) == 0x20);
VMM_ABI_ASSERT(sizeof(struct vmm_create) == 8);
VMM_ABI_ASSERT(sizeof(struct vmm_region) == 0x28);
VMM_ABI_ASSERT(sizeof(struct vmm_dirty) == 0x20);
VMM_ABI_ASSERT(sizeof(struct vmm_cpuid_leaf) == 0x20);
VMM_ABI_ASSERT(sizeof(struct vmm_cpuid) == 0x10);
VMM_ABI_ASSERT(sizeof(struct vmm_segment) == 0x10);
VMM_ABI_AT(vmm_svm, int_vector, 0x20);
VMM_ABI_AT(vmm_svm, exit_code, 0x30);
VMM_ABI_AT(vmm_svm, next_rip, 0x50);
VMM_ABI_AT(vmm_svm, options, 0x6c);
VMM_ABI_AT(vmm_svm, es, 0x70);
VMM_ABI_AT(vmm_svm, efer, 0x110);
VMM_ABI_AT(vmm_svm, star, 0x148);
VMM_ABI_AT(vmm_svm, small_exits, 0x188);
VMM_ABI_ASSERT(sizeof(struct vmm_svm) == 0x1a0);
VMM_ABI_AT(vmm_vmx, cr0_mask, 0x10);
VMM_ABI_AT(vmm_vmx, interruptibility, 0x38);
VMM_ABI_AT(vmm_vmx, exit_reason, 0x48);
VMM_ABI_AT(vmm_vmx, es, 0x70);
VMM_ABI_AT(vmm_vmx, efer, 0x110);
VMM_ABI_AT(vmm_vmx, dr7, 0x158);
VMM_ABI_AT(vmm_vmx, star, 0x160);
VMM_ABI_ASSERT(sizeof(struct vmm_vmx) == 0x198);
VMM_ABI_AT(vmm_vcpu_area, gpr, 0x20);
VMM_ABI_AT(vmm_vcpu_area, rip, 0xa0);
VMM_ABI_AT(vmm_vcpu_area, dr, 0xb0);
VMM_ABI_AT(vmm_vcpu_area, xcr0, 0xd0);
VMM_ABI_AT(vmm_vcpu_area, stored, 0xe8);
VMM_ABI_AT(vmm_vcpu_area, served, 0xf0);
VMM_ABI_AT(vmm_vcpu_area, dirty_page, 0xf8);
VMM_ABI_AT(vmm_vcpu_area, svm, 0x100);
VMM_ABI_AT(vmm_vcpu_area, vmx, 0x100);
VMM_ABI_ASSERT(sizeof(struct vmm_vcpu_area) == 0x1000);

#endif
