/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The helper module: what its files share.
 */

#ifndef VMM_HELPER_H
#define VMM_HELPER_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>

#include "helper_abi.h"

/* The caller's memory at a range of guest-physical addresses. */
struct vmm_slot {
	struct list_head link;		    /* In vmm_vm.slots. */
	struct mmu_interval_notifier notifier; /* Of the caller's mapping. */
	struct vmm_vm *vm;
	u32 id;
	u32 flags;
	u64 gfn;
	u64 pages;
	unsigned long hva;
	unsigned long *dirty; /* VMM_REGION_LOG_DIRTY: one bit a page, under vm->table_lock; and room for a copy. */
};

struct vmm_vm {
	struct kref references; /* The file, and each vCPU's. */
	struct mm_struct *mm;	/* The address space that it was created in; its memory is the guest's. */

	/*
	 * slots_lock (held over a page fault for reading) > the mm's locks > table_lock.
	 */
	struct rw_semaphore slots_lock; /* slots. */
	struct list_head slots;

	spinlock_t table_lock;	     /* The nested page tables (NPT or EPT), dirty bits, vcpus. */
	u64 *root;		     /* Nested page tables. */
	int levels;
	struct list_head vcpus;
	atomic64_t flushes;	     /* Grows when translations became stale. */
	struct cpumask kicked;	     /* Scratch. */
};

struct vmm_vcpu {
	struct vmm_vm *vm;
	struct list_head link; /* In vm->vcpus. */
	struct vmm_vcpu_area *area;
	unsigned long busy; /* Bit 0: a thread is in VMM_RUN. */
	int guest_cpu;	    /* The CPU that runs its guest code, or is about to; else -1. */

	u32 refused; /* Dirty groups of a run that was refused. */
	u32 stored;  /* Groups that the area has. */
	u32 small_exits[6];		/* SVM: a copy. */
	struct vmm_cpuid_leaf *cpuid;	/* A copy, or NULL. */
	u32 cpuid_count;
	u64 vmcb_address; /* SVM: physical. */
	u32 shadow;	  /* SVM: the interrupt shadow that an entry was made with, and RIP. */
	u64 shadow_rip;
	union {
		void *vmcb;
		struct vmx_vcpu *vmx;
	};
	u32 index;  /* The caller's id. */
	u64 serial; /* Unique in the module's life. */
	/* What the TLB of `cpu` knows the guest by. */
	int cpu;
	u64 generation;
	u64 flushes; /* vm->flushes when it was last flushed. */
	u64 xcr0, tsc_aux; /* Checked copies. */
	u64 dr[4];
};

/* What the two vendors' hardware is to the rest. */
struct vmm_vendor {
	u32 id; /* VMM_VENDOR_* */
	/* Of an entry of the nested page tables: for a table, for a page.  Write permission is _PAGE_RW in both. */
	u64 table_bits, page_bits;
	int levels;   /* Of the nested page tables.  This and the next two, by init(). */
	int largest;  /* The highest one whose entries may map memory: 2, 2 MiB; 3, 1 GiB. */
	u32 features; /* VMM_FEATURE_* */
	int (*init)(void);
	void (*exit)(void);	/* Behind a failed init() too. */
	int (*check_cpu)(unsigned int number); /* On each CPU; those that come later are not let on otherwise. */
	int (*leave_cpu)(unsigned int number); /* Or NULL. */
	int (*create_vcpu)(struct vmm_vcpu *vcpu);
	void (*destroy_vcpu)(struct vmm_vcpu *vcpu);
	int (*run)(struct vmm_vcpu *vcpu); /* VMM_RUN. */
	void (*fetch)(struct vmm_vcpu *vcpu);
};
int vmm_svm_run(struct vmm_vcpu *vcpu);
extern struct vmm_vendor vmm_svm, vmm_vmx;
extern struct vmm_vendor *vmm_vendor;

/* memory.c */
int vmm_memory_init(struct vmm_vm *vm);
void vmm_memory_destroy(struct vmm_vm *vm);
int vmm_set_region(struct vmm_vm *vm, struct vmm_region *region);
int vmm_take_dirty(struct vmm_vm *vm, struct vmm_dirty *dirty);
bool vmm_fault(struct vmm_vcpu *vcpu, u64 gpa, bool write);

/* host.c */
void vmm_host_init(void);
u64 vmm_host_xcr0(void);
u64 vmm_guest_cr4(void);
long vmm_set_cpuid(struct vmm_vcpu *vcpu, struct vmm_cpuid *cpuid);

/* main.c */
unsigned int vmm_guest_address_bits(void);
void vmm_interrupt_cpus(const struct cpumask *cpus);

#endif
