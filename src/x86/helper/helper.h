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
	union {
		void *vmcb;
		struct vmx_vcpu *vmx;
	};
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

/* What the two vendors' hardware is to the rest. */
struct vmm_vendor {
	u32 id; /* VMM_VENDOR_* */
	/* Of an entry of the nested page tables: for a table, for a page.  Write permission is _PAGE_RW in both. */
	u64 table_bits, page_bits;
	int (*init)(void);
	void (*exit)(void);
	u32 (*features)(void);
	int (*table_levels)(void);
	int (*create_vcpu)(struct vmm_vcpu *vcpu);
	void (*destroy_vcpu)(struct vmm_vcpu *vcpu);
	int (*run)(struct vmm_vcpu *vcpu);
	void (*fetch)(struct vmm_vcpu *vcpu);
};
extern const struct vmm_vendor vmm_svm, vmm_vmx;
extern const struct vmm_vendor *vmm_vendor;

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

/* host.c */
struct vmm_host {
	u64 tsc_aux;
};
void vmm_host_init(void);
u64 vmm_host_xcr0(void);
u64 vmm_guest_cr4(void);
u32 vmm_load_common(struct vmm_vcpu *vcpu);
void vmm_switch_to_guest(struct vmm_vcpu *vcpu, struct vmm_host *host, u64 dr7);
void vmm_switch_to_host(struct vmm_vcpu *vcpu, const struct vmm_host *host);
bool vmm_want_back(void);
bool vmm_begin_entry(struct vmm_vcpu *vcpu, bool *again);
void vmm_end_entry(struct vmm_vcpu *vcpu);
long vmm_set_cpuid(struct vmm_vcpu *vcpu, struct vmm_cpuid *cpuid);

/* The caller's leaf for EAX and ECX, or NULL. */
static inline const struct vmm_cpuid_leaf *vmm_find_cpuid(const struct vmm_vcpu *vcpu, u32 function, u32 index)
{
	const struct vmm_cpuid_leaf *leaf;

	for (leaf = vcpu->cpuid; leaf != vcpu->cpuid + vcpu->cpuid_count; leaf++)
		if (leaf->function == function && (leaf->index == index || !(leaf->flags & VMM_CPUID_INDEXED)))
			return leaf;
	return NULL;
}

/*
 * VMM_RUN.  load: takes and checks what the caller has changed.  enter: with interrupts off, once into the guest.  handle: true
 * if the guest goes on.  store: for the caller to see.
 */
static __always_inline int vmm_run(struct vmm_vcpu *vcpu, int (*load)(struct vmm_vcpu *), void (*enter)(struct vmm_vcpu *),
				   bool (*handle)(struct vmm_vcpu *), void (*store)(struct vmm_vcpu *))
{
	bool again = true;
	int error;

	WRITE_ONCE(vcpu->area->exit_kind, VMM_EXIT_NONE);
	error = load(vcpu);
	if (error)
		return error;
	while (again) {
		if (vmm_want_back()) {
			error = -EINTR;
			break;
		}
		if (vmm_begin_entry(vcpu, &again)) {
			enter(vcpu);
			vmm_end_entry(vcpu);
			again = handle(vcpu);
		}
	}
	store(vcpu);
	return error;
}

/* main.c */
unsigned int vmm_guest_address_bits(void);
void vmm_interrupt_cpus(const struct cpumask *cpus);

#endif
