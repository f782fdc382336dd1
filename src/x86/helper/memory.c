// SPDX-License-Identifier: GPL-2.0
/*
 * Guest memory: slots of the caller's address space, and the nested page tables that map them.
 *
 * No page is pinned.  A page is looked up in the caller's page tables when the guest touches it, and the entry is
 * taken away, from tables and TLBs, before the caller's mapping changes (mmu_interval_notifier).  So the guest reaches
 * what its caller could reach itself at that moment, and nothing else.
 */

#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/uaccess.h>
#include <asm/io.h>
#include <asm/pgtable.h>

#include "helper.h"

#define TABLE_BITS 9
#define TABLE_ENTRIES (1 << TABLE_BITS)

static u64 *table_of(u64 entry)
{
	return __va(__sme_clr(entry) & PTE_PFN_MASK);
}

static u64 *new_table(void)
{
	return (u64 *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
}

/* Whether an entry of a table of this level maps memory, of 4 KiB, 2 MiB or 1 GiB. */
static bool is_leaf(u64 entry, int level)
{
	return level == 1 || entry & _PAGE_PSE;
}

static u64 pages_of(int level)
{
	return 1ull << (TABLE_BITS * (level - 1));
}

static void free_table(u64 *table, int level)
{
	int i;

	for (i = 0; level > 1 && i < TABLE_ENTRIES; i++)
		if (table[i] && !is_leaf(table[i], level))
			free_table(table_of(table[i]), level - 1);
	free_page((unsigned long)table);
}

/*
 * The entry of a level for a page, or the one above that maps more than that.  NULL where a table is missing; *spare, if there is
 * one, is put there first.  *step: the number of pages up to the end of what the entry, or the table, is for.
 */
static u64 *find_entry(struct vmm_vm *vm, u64 gfn, int level, u64 **spare, u64 *step)
{
	u64 *table = vm->root;
	int at;

	for (at = vm->levels;; at--) {
		u64 *entry = &table[(gfn / pages_of(at)) & (TABLE_ENTRIES - 1)];

		*step = pages_of(at) - (gfn & (pages_of(at) - 1));
		if (!*entry && at > level && spare && *spare) {
			WRITE_ONCE(*entry, __sme_set(__pa(*spare)) | vmm_vendor->table_bits);
			*spare = NULL;
		}
		if (at == level || (*entry && is_leaf(*entry, at)))
			return entry;
		if (!*entry)
			return NULL;
		table = table_of(*entry);
	}
}

/*
 * Entries or permissions were taken away, under table_lock: returns when no CPU uses them any more.  A vCPU says that
 * it is in the guest before it looks at vm->flushes; one of the two sees the other.
 */
static void flush(struct vmm_vm *vm)
{
	struct vmm_vcpu *vcpu;

	atomic64_inc(&vm->flushes);
	smp_mb__after_atomic();
	cpumask_clear(&vm->kicked);
	list_for_each_entry(vcpu, &vm->vcpus, link) {
		int cpu = READ_ONCE(vcpu->guest_cpu);

		if (cpu >= 0)
			cpumask_set_cpu(cpu, &vm->kicked);
	}
	vmm_interrupt_cpus(&vm->kicked);
}

static void unmap(struct vmm_vm *vm, u64 first, u64 pages)
{
	u64 gfn, step;
	bool any = false;

	for (gfn = first; gfn < first + pages; gfn += step) {
		u64 *entry = find_entry(vm, gfn, 1, NULL, &step);

		if (entry && *entry) {
			WRITE_ONCE(*entry, 0);
			any = true;
		}
	}
	if (any)
		flush(vm);
}

static bool invalidate(struct mmu_interval_notifier *notifier, const struct mmu_notifier_range *range,
		       unsigned long sequence)
{
	struct vmm_slot *slot = container_of(notifier, struct vmm_slot, notifier);
	unsigned long first = max(range->start, slot->hva) & PAGE_MASK;
	unsigned long last = min_t(unsigned long, range->end, slot->hva + (slot->pages << PAGE_SHIFT));

	spin_lock(&slot->vm->table_lock);
	mmu_interval_set_seq(notifier, sequence);
	if (first < last)
		unmap(slot->vm, slot->gfn + ((first - slot->hva) >> PAGE_SHIFT),
		      DIV_ROUND_UP(last - first, PAGE_SIZE));
	spin_unlock(&slot->vm->table_lock);
	return true;
}

static const struct mmu_interval_notifier_ops notifier_ops = { .invalidate = invalidate };

static struct vmm_slot *find_slot(struct vmm_vm *vm, u32 id)
{
	struct vmm_slot *slot;

	list_for_each_entry(slot, &vm->slots, link)
		if (slot->id == id)
			return slot;
	return NULL;
}

static struct vmm_slot *slot_at(struct vmm_vm *vm, u64 gfn)
{
	struct vmm_slot *slot;

	list_for_each_entry(slot, &vm->slots, link)
		if (gfn - slot->gfn < slot->pages)
			return slot;
	return NULL;
}

static void free_slot(struct vmm_slot *slot)
{
	kvfree(slot->dirty);
	kfree(slot);
}

static size_t dirty_words(const struct vmm_slot *slot)
{
	return DIV_ROUND_UP_ULL(slot->pages, BITS_PER_LONG);
}

/* All entries go with the slot's, and all tables: what a guest once touched is not charged for ever. */
static int remove_slot(struct vmm_vm *vm, struct vmm_region *region)
{
	struct vmm_slot *slot = find_slot(vm, region->slot);
	u64 *root;

	if (!slot) {
		region->reason = VMM_REASON_NO_SUCH_SLOT;
		return -ENOENT;
	}
	root = new_table();
	if (!root)
		return -ENOMEM;
	list_del(&slot->link);
	mmu_interval_notifier_remove(&slot->notifier);
	spin_lock(&vm->table_lock);
	swap(vm->root, root);
	flush(vm);
	spin_unlock(&vm->table_lock);
	free_table(root, vm->levels);
	free_slot(slot);
	return 0;
}

static u32 check_region(const struct vmm_region *region)
{
	u64 guest_end = region->guest_address + region->size;
	u64 host_end = region->host_address + region->size;

	if (!PAGE_ALIGNED(region->guest_address | region->host_address | region->size))
		return VMM_REASON_ALIGNMENT;
	if (guest_end < region->guest_address || guest_end > BIT_ULL(vmm_guest_address_bits()))
		return VMM_REASON_GUEST_ADDRESS;
	if (host_end < region->host_address || host_end > TASK_SIZE_MAX)
		return VMM_REASON_HOST_ADDRESS;
	return VMM_REASON_NONE;
}

static int add_slot(struct vmm_vm *vm, struct vmm_region *region)
{
	struct vmm_slot *slot, *other;
	int error;

	region->reason = check_region(region);
	if (region->reason)
		return -EINVAL;
	if (find_slot(vm, region->slot)) {
		region->reason = VMM_REASON_SLOT_TAKEN;
		return -EEXIST;
	}
	list_for_each_entry(other, &vm->slots, link) {
		u64 gfn = region->guest_address >> PAGE_SHIFT;

		if (gfn < other->gfn + other->pages && other->gfn < gfn + (region->size >> PAGE_SHIFT)) {
			region->reason = VMM_REASON_OVERLAP;
			return -EEXIST;
		}
	}
	slot = kzalloc(sizeof(*slot), GFP_KERNEL_ACCOUNT);
	if (!slot)
		return -ENOMEM;
	slot->vm = vm;
	slot->id = region->slot;
	slot->flags = region->flags;
	slot->gfn = region->guest_address >> PAGE_SHIFT;
	slot->pages = region->size >> PAGE_SHIFT;
	slot->hva = region->host_address;
	if (slot->flags & VMM_REGION_LOG_DIRTY)
		slot->dirty = kvcalloc(2 * dirty_words(slot), sizeof(long), GFP_KERNEL_ACCOUNT);
	error = slot->flags & VMM_REGION_LOG_DIRTY && !slot->dirty ? -ENOMEM :
		mmu_interval_notifier_insert(&slot->notifier, vm->mm, slot->hva, region->size, &notifier_ops);
	if (error) {
		free_slot(slot);
		return error;
	}
	list_add(&slot->link, &vm->slots);
	return 0;
}

int vmm_set_region(struct vmm_vm *vm, struct vmm_region *region)
{
	int error;

	if (region->reserved || region->flags & ~(VMM_REGION_READ_ONLY | VMM_REGION_LOG_DIRTY | VMM_REGION_TELL_DIRTY) ||
	    (region->flags & VMM_REGION_TELL_DIRTY && !(region->flags & VMM_REGION_LOG_DIRTY))) {
		region->reason = VMM_REASON_FLAGS;
		return -EINVAL;
	}
	if (region->slot >= VMM_MAX_REGIONS) {
		region->reason = VMM_REASON_SLOT;
		return -EINVAL;
	}
	if (down_write_killable(&vm->slots_lock))
		return -EINTR;
	error = region->size ? add_slot(vm, region) : remove_slot(vm, region);
	up_write(&vm->slots_lock);
	return error;
}

/* Moves some words of a slot's bits into the copy behind them, and has each further write to those pages set its bit again. */
static void collect_dirty(struct vmm_vm *vm, struct vmm_slot *slot, unsigned long *copy, size_t first, size_t end)
{
	size_t i, bit;
	bool any = false;

	for (i = first; i < end; i++) {
		spin_lock(&vm->table_lock);
		copy[i] = slot->dirty[i];
		slot->dirty[i] = 0;
		for_each_set_bit(bit, &copy[i], BITS_PER_LONG) {
			u64 step, *entry = find_entry(vm, slot->gfn + i * BITS_PER_LONG + bit, 1, NULL, &step);

			if (entry)
				WRITE_ONCE(*entry, *entry & ~_PAGE_RW);
			any = true;
		}
		spin_unlock(&vm->table_lock);
		if (!(i & 63))
			cond_resched();
	}
	if (any) {
		spin_lock(&vm->table_lock);
		flush(vm);
		spin_unlock(&vm->table_lock);
	}
}

int vmm_take_dirty(struct vmm_vm *vm, struct vmm_dirty *dirty)
{
	struct vmm_slot *slot;
	unsigned long *copy;
	size_t i, words, end = dirty->first + dirty->words;
	int error = 0;

	/* For writing: the copy is the slot's. */
	if (down_write_killable(&vm->slots_lock))
		return -EINTR;
	slot = find_slot(vm, dirty->slot);
	words = slot && slot->dirty ? dirty_words(slot) : 0;
	if (!words) {
		dirty->reason = VMM_REASON_NO_SUCH_SLOT;
		error = -ENOENT;
	} else if (dirty->first > words || dirty->words > words - dirty->first) {
		dirty->reason = VMM_REASON_PAGES;
		error = -EINVAL;
	} else {
		copy = slot->dirty + words;
		collect_dirty(vm, slot, copy, dirty->first, end);
		if (copy_to_user(u64_to_user_ptr(dirty->bitmap), copy + dirty->first, dirty->words * sizeof(*copy))) {
			error = -EFAULT;
			spin_lock(&vm->table_lock);
			for (i = dirty->first; i < end; i++)
				slot->dirty[i] |= copy[i];
			spin_unlock(&vm->table_lock);
		}
	}
	up_write(&vm->slots_lock);
	return error;
}

/*
 * The caller's page at `hva`.  *writable: in, whether a write is to be possible; out, whether it is.  A page that is
 * only read may be one that the caller itself may only read.
 */
static int get_page_at(unsigned long hva, bool write, bool *writable, struct page **page)
{
	int got = get_user_pages_fast(hva, 1, *writable ? FOLL_WRITE : 0, page);

	if (got != 1 && *writable && !write) {
		*writable = false;
		got = get_user_pages_fast(hva, 1, 0, page);
	}
	if (got != 1)
		return got < 0 ? got : -EFAULT;
	/* The guest's writes are not seen as the CPU's own are; of other files, writable means accounted as dirty. */
	if (*writable && PageSwapBacked(*page))
		set_page_dirty_lock(*page);
	return 0;
}

/* The level at which the caller's own page tables map `hva`; under table_lock, after the notifier's sequence was looked at. */
static int host_level(unsigned long hva)
{
	unsigned long flags;
	int level = 1;
	pgd_t pgd;
	p4d_t p4d;
	pud_t pud;
	pmd_t pmd;

	/* Whoever frees a page table interrupts this CPU first. */
	local_irq_save(flags);
	pgd = READ_ONCE(*pgd_offset(current->mm, hva));
	if (!pgd_present(pgd))
		goto out;
	p4d = READ_ONCE(*p4d_offset(&pgd, hva));
	if (!p4d_present(p4d))
		goto out;
	pud = READ_ONCE(*pud_offset(&p4d, hva));
	if (!pud_present(pud) || pud_leaf(pud)) {
		level = pud_present(pud) ? 3 : 1;
		goto out;
	}
	pmd = READ_ONCE(*pmd_offset(&pud, hva));
	if (pmd_present(pmd) && pmd_leaf(pmd))
		level = 2;
out:
	local_irq_restore(flags);
	return level;
}

/* The level at which a page of a slot may be mapped: all of that is in the slot, as the caller's tables have it. */
static int level_in_slot(const struct vmm_slot *slot, u64 gfn)
{
	int level;

	if (slot->dirty)
		return 1; /* Logged page by page. */
	level = min(host_level(slot->hva + ((gfn - slot->gfn) << PAGE_SHIFT)), vmm_vendor->largest);
	for (; level > 1; level--) {
		u64 pages = pages_of(level), first = gfn & ~(pages - 1);

		if (!((slot->gfn ^ slot->hva >> PAGE_SHIFT) & (pages - 1)) && first >= slot->gfn &&
		    first + pages <= slot->gfn + slot->pages)
			break;
	}
	return level;
}

/* 0: the page is mapped, or it is worth another try.  1: the same, and it is logged that it is written. */
static int map_in_slot(struct vmm_slot *slot, u64 gfn, bool write)
{
	struct vmm_vm *vm = slot->vm;
	unsigned long sequence = mmu_interval_read_begin(&slot->notifier);
	bool writable = write || !(slot->flags & (VMM_REGION_READ_ONLY | VMM_REGION_LOG_DIRTY));
	u64 *entry, *spare = NULL, step, value;
	struct page *page;
	int level, logged = 0, error = get_page_at(slot->hva + ((gfn - slot->gfn) << PAGE_SHIFT), write, &writable, &page);

	if (error)
		return error;
	for (;;) {
		spin_lock(&vm->table_lock);
		if (mmu_interval_read_retry(&slot->notifier, sequence))
			break;
		level = level_in_slot(slot, gfn);
		entry = find_entry(vm, gfn, level, &spare, &step);
		if (entry && level > 1 && *entry && !is_leaf(*entry, level)) {
			/* There was less in one piece: the table stays. */
			level = 1;
			entry = find_entry(vm, gfn, level, &spare, &step);
		}
		if (entry) {
			u64 old = *entry, address = page_to_phys(page) & ~((pages_of(level) << PAGE_SHIFT) - 1);

			value = __sme_set(address) | vmm_vendor->page_bits | (writable ? _PAGE_RW : 0) |
				(level > 1 ? _PAGE_PSE : 0);
			if (step > pages_of(level))
				value = 0; /* Of a larger piece, which is one no more: the next fault finds it gone. */
			WRITE_ONCE(*entry, value);
			if (old && (old ^ value) & ~_PAGE_RW)
				flush(vm);
			logged = writable && slot->dirty && !__test_and_set_bit(gfn - slot->gfn, slot->dirty);
			break;
		}
		spin_unlock(&vm->table_lock);
		if (!spare)
			spare = new_table();
		if (!spare) {
			put_page(page);
			return -ENOMEM;
		}
	}
	spin_unlock(&vm->table_lock);
	if (spare)
		free_page((unsigned long)spare);
	put_page(page);
	return logged;
}

/* A nested page fault.  True: the guest goes on.  Else the exit is the caller's, or of another kind than it is. */
bool vmm_fault(struct vmm_vcpu *vcpu, u64 gpa, bool write)
{
	struct vmm_vm *vm = vcpu->vm;
	struct vmm_slot *slot;
	bool in_slot;
	int error;

	down_read(&vm->slots_lock);
	slot = slot_at(vm, gpa >> PAGE_SHIFT);
	in_slot = slot && !(write && slot->flags & VMM_REGION_READ_ONLY);
	error = in_slot ? map_in_slot(slot, gpa >> PAGE_SHIFT, write) : 0;
	if (error > 0 && slot->flags & VMM_REGION_TELL_DIRTY) {
		WRITE_ONCE(vcpu->area->dirty_slot, slot->id);
		WRITE_ONCE(vcpu->area->dirty_page, (gpa >> PAGE_SHIFT) - slot->gfn);
		WRITE_ONCE(vcpu->area->exit_kind, VMM_EXIT_DIRTY);
		in_slot = false;
	}
	up_read(&vm->slots_lock);
	if (error < 0) {
		WRITE_ONCE(vcpu->area->error, -error);
		WRITE_ONCE(vcpu->area->exit_kind, VMM_EXIT_MEMORY);
	}
	return in_slot && error >= 0;
}

int vmm_memory_init(struct vmm_vm *vm)
{
	init_rwsem(&vm->slots_lock);
	spin_lock_init(&vm->table_lock);
	INIT_LIST_HEAD(&vm->slots);
	INIT_LIST_HEAD(&vm->vcpus);
	vm->levels = vmm_vendor->levels;
	vm->root = new_table();
	return vm->root ? 0 : -ENOMEM;
}

void vmm_memory_destroy(struct vmm_vm *vm)
{
	struct vmm_slot *slot, *next;

	list_for_each_entry_safe(slot, next, &vm->slots, link) {
		mmu_interval_notifier_remove(&slot->notifier);
		free_slot(slot);
	}
	free_table(vm->root, vm->levels);
}
