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
	u32 slot_count;

	spinlock_t table_lock;	     /* The nested page tables, dirty bits, vcpus. */
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
	void *vmcb;
	u32 index;  /* The caller's id. */
	u64 serial; /* Unique in the module's life. */
	/* What the TLB of `cpu` knows the guest by. */
	int cpu;
	u64 generation;
	u32 asid;
	u64 flushes; /* vm->flushes when it was last flushed. */
	u64 xcr0, tsc_aux; /* Checked copies. */
	u64 dr[4];
};

/* How an attempt to map a page ended. */
enum vmm_fault {
	VMM_FAULT_MAPPED, /* Or it is worth another try. */
	VMM_FAULT_NO_SLOT, /* Nothing there that the access is permitted to. */
	VMM_FAULT_ERROR,  /* An errno. */
};

/* memory.c */
int vmm_memory_init(struct vmm_vm *vm);
void vmm_memory_destroy(struct vmm_vm *vm);
int vmm_set_region(struct vmm_vm *vm, struct vmm_region *region);
int vmm_take_dirty(struct vmm_vm *vm, struct vmm_dirty *dirty);
enum vmm_fault vmm_map_page(struct vmm_vm *vm, u64 gpa, bool write, int *error);

/* svm.c */
int vmm_svm_init(void);
void vmm_svm_exit(void);
u32 vmm_svm_features(void);
u64 vmm_svm_xcr0(void);
int vmm_svm_create_vcpu(struct vmm_vcpu *vcpu);
void vmm_svm_destroy_vcpu(struct vmm_vcpu *vcpu);
int vmm_svm_run(struct vmm_vcpu *vcpu);

/* main.c */
unsigned int vmm_guest_address_bits(void);
void vmm_interrupt_cpus(const struct cpumask *cpus);

#endif
