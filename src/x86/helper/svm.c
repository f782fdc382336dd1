// SPDX-License-Identifier: GPL-2.0
/*
 * AMD SVM: one vCPU's runs.
 *
 * All that a guest's entry changes on a CPU is put back before interrupts are enabled again, EFER.SVME included.  So
 * nothing is left for CPU hotplug, suspend, reboot or a context switch to look after, and kvm_amd, which refuses to
 * start where SVME is set and clears it when its last VM dies, comes and goes as it likes.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/irq_work.h>
#include <linux/moduleparam.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <asm/io.h>
#include <asm/svm.h>
#include <asm/trap_pf.h>
#include <asm/trapnr.h>

#include "run.h"

void vmm_svm_enter(u64 guest, u64 host, u64 *gpr);

/*
 * For emulators: QEMU 7.2 keeps in mind the external interrupt that VMRUN has injected, and delivers it once more whenever it
 * stops the CPU for something else than an interrupt (another CPU's misaligned LOCK, say) before the guest's next exit or exception.
 */
static bool leave_behind_interrupt;
module_param(leave_behind_interrupt, bool, 0444);
MODULE_PARM_DESC(leave_behind_interrupt, "1: a guest is left right behind the delivery of an injected interrupt (for emulators)");

#define EXIT_INVALID 0xffffffffu
#define EVENT_FIELDS (SVM_EVTINJ_VEC_MASK | SVM_EVTINJ_TYPE_MASK | SVM_EVTINJ_VALID_ERR | SVM_EVTINJ_VALID)

/* What a CPU needs for guests.  ASIDs count up within a generation, whose first entry flushes all of them. */
struct vmm_cpu {
	void *pages;	 /* Two. */
	u64 hsave, host; /* Their physical addresses: for VMRUN, for VMSAVE. */
	u64 generation;
	u32 next_asid;
	struct irq_work interrupt; /* Of the CPU by itself. */
};
static DEFINE_PER_CPU(struct vmm_cpu, cpus);

static u32 asid_count;
static void *iopm;	  /* All ports intercepted. */
static void *msrpm;	  /* All MSRs but those that VMLOAD and VMSAVE switch. */
static void *msrpm_all;	  /* All MSRs intercepted. */
static void *flush_guest; /* A VMCB that flushes the TLB and leaves at once; behind it, an empty page table. */

#define IOPM_ORDER 2
#define MSRPM_ORDER 1
#define FLUSH_GUEST_ORDER 1
#define CPU_ORDER 1

/* Behind an exit that the caller calls small these stay in the VMCB until somebody asks. */
#define LAZY (VMM_DIRTY_SEGMENTS | VMM_DIRTY_SYSTEM | VMM_DIRTY_DEBUG | VMM_DIRTY_MSRS)

/* Which the area has in the VMCB's order. */
#define SEGMENTS_SIZE (offsetofend(struct vmm_svm, tr) - offsetof(struct vmm_svm, es))
#define MSRS_SIZE (offsetofend(struct vmm_svm, sysenter_eip) - offsetof(struct vmm_svm, star))
#define COPY_GROUP(to, from, first, size)                                                                            \
	memcpy((u8 *)(to) + offsetof(typeof(*(to)), first), (const u8 *)(from) + offsetof(typeof(*(from)), first), size)
static_assert(SEGMENTS_SIZE == offsetofend(struct vmcb_save_area, tr) - offsetof(struct vmcb_save_area, es));
static_assert(offsetof(struct vmm_svm, idtr) - offsetof(struct vmm_svm, es) ==
	      offsetof(struct vmcb_save_area, idtr) - offsetof(struct vmcb_save_area, es));
static_assert(MSRS_SIZE == offsetofend(struct vmcb_save_area, sysenter_eip) - offsetof(struct vmcb_save_area, star));

#define BIT_IN_WORD(intercept) (1u << ((intercept) & 31))

/*
 * What is intercepted whatever the caller asks for: what is the host's business, what would let a guest see or change
 * the host's state, what could stop the CPU.
 */
static const u32 mandatory[6] = {
	BIT_IN_WORD(INTERCEPT_CR4_WRITE),
	0x000f000f, /* DR0 to DR3, which VMRUN does not switch. */
	/* #DB and #AC: a guest can have them raised endlessly with no interrupt in between. */
	BIT(X86_TRAP_DB) | BIT(X86_TRAP_AC) | BIT(X86_TRAP_MC),
	BIT_IN_WORD(INTERCEPT_INTR) | BIT_IN_WORD(INTERCEPT_NMI) | BIT_IN_WORD(INTERCEPT_SMI) |
		BIT_IN_WORD(INTERCEPT_INIT) | BIT_IN_WORD(INTERCEPT_RDPMC) | BIT_IN_WORD(INTERCEPT_RSM) |
		BIT_IN_WORD(INTERCEPT_INVD) | BIT_IN_WORD(INTERCEPT_INVLPGA) | BIT_IN_WORD(INTERCEPT_IOIO_PROT) |
		BIT_IN_WORD(INTERCEPT_MSR_PROT) | BIT_IN_WORD(INTERCEPT_FERR_FREEZE) |
		BIT_IN_WORD(INTERCEPT_SHUTDOWN),
	BIT_IN_WORD(INTERCEPT_VMRUN) | BIT_IN_WORD(INTERCEPT_VMLOAD) | BIT_IN_WORD(INTERCEPT_VMSAVE) |
		BIT_IN_WORD(INTERCEPT_STGI) | BIT_IN_WORD(INTERCEPT_CLGI) | BIT_IN_WORD(INTERCEPT_SKINIT) |
		BIT_IN_WORD(INTERCEPT_WBINVD) | BIT_IN_WORD(INTERCEPT_MONITOR) | BIT_IN_WORD(INTERCEPT_MWAIT) |
		BIT_IN_WORD(INTERCEPT_MWAIT_COND) | BIT_IN_WORD(INTERCEPT_XSETBV) | BIT_IN_WORD(INTERCEPT_RDPRU),
	BIT_IN_WORD(INTERCEPT_INVLPGB) | BIT_IN_WORD(INTERCEPT_INVLPGB_ILLEGAL) | BIT_IN_WORD(INTERCEPT_MCOMMIT) |
		BIT_IN_WORD(INTERCEPT_TLBSYNC),
};
/* The bits that are intercepts.  Traps behind writes of control registers, in word 4, are for encrypted guests. */
static const u32 known[6] = { ~0u, ~0u, ~0u, ~0u, 0x7fff, 0x1f };

#define CALLERS_INT_CTL (V_TPR_MASK | V_IRQ_INJECTION_BITS_MASK)
#define GUEST_EFER (EFER_SCE | EFER_LME | EFER_LMA | EFER_NX | EFER_FFXSR)

static void pass_msr(u32 index)
{
	/* APM Vol. 2 "MSR Intercepts": two bits an MSR, in blocks of 0x2000 MSRs. */
	u32 bit = 2 * (index & 0x1fff) + (index >= 0xc0000000 ? 0x4000 : 0);

	__clear_bit(bit, msrpm);
	__clear_bit(bit + 1, msrpm);
}

/* ---- From the shared area to the VMCB.  The area is read once; what is checked is what is used. ---- */

static u32 load_controls(struct vmcb_control_area *to, const struct vmm_vcpu_area *area)
{
	u32 i, filter = READ_ONCE(area->svm.pause_filter), options = READ_ONCE(area->svm.options);

	for (i = 0; i < ARRAY_SIZE(mandatory); i++) {
		u32 wanted = READ_ONCE(area->svm.intercepts[i]);

		if (wanted & ~known[i])
			return VMM_REASON_INTERCEPTS;
		to->intercepts[i] = wanted | mandatory[i];
	}
	if (options & ~VMM_SVM_INTERCEPT_ALL_MSRS)
		return VMM_REASON_OPTIONS;
	to->msrpm_base_pa = __sme_set(__pa(options & VMM_SVM_INTERCEPT_ALL_MSRS ? msrpm_all : msrpm));
	to->pause_filter_count = filter & 0xffff;
	to->pause_filter_thresh = filter >> 16;
	to->tsc_offset = READ_ONCE(area->tsc_offset);
	return VMM_REASON_NONE;
}

static u32 load_events(struct vmcb_control_area *to, const struct vmm_vcpu_area *area)
{
	u32 int_ctl = READ_ONCE(area->svm.int_ctl);
	u32 vector = READ_ONCE(area->svm.int_vector);
	u32 state = READ_ONCE(area->svm.int_state);
	u32 event = READ_ONCE(area->svm.event_inj);

	if (int_ctl & ~CALLERS_INT_CTL || vector > 0xff || state & ~SVM_INTERRUPT_SHADOW_MASK)
		return VMM_REASON_INTERRUPT_CONTROL;
	if (event & SVM_EVTINJ_VALID) {
		u32 type = event & SVM_EVTINJ_TYPE_MASK, number = event & SVM_EVTINJ_VEC_MASK;

		if (event & ~EVENT_FIELDS ||
		    (type != SVM_EVTINJ_TYPE_INTR && type != SVM_EVTINJ_TYPE_NMI && type != SVM_EVTINJ_TYPE_EXEPT &&
		     type != SVM_EVTINJ_TYPE_SOFT) ||
		    (type == SVM_EVTINJ_TYPE_EXEPT && (number == X86_TRAP_NMI || number > 31)))
			return VMM_REASON_EVENT;
		to->event_inj_err = READ_ONCE(area->svm.event_inj_error);
	}
	to->int_ctl = int_ctl | V_INTR_MASKING_MASK;
	to->int_vector = vector;
	to->int_state = state;
	to->event_inj = event & SVM_EVTINJ_VALID ? event : 0;
	return VMM_REASON_NONE;
}

/* APM Vol. 2 "Canonicalization and Consistency Checks", so that the caller hears which; on what is in the VMCB. */
static u32 check_system(const struct vmcb_save_area *save)
{
	bool long_mode = save->efer & EFER_LME && save->cr0 & X86_CR0_PG;

	if ((save->efer ^ EFER_SVME) & ~(u64)GUEST_EFER)
		return VMM_REASON_EFER;
	if (save->cr0 >> 32 || (save->cr0 & X86_CR0_NW && !(save->cr0 & X86_CR0_CD)) ||
	    (save->cr0 & X86_CR0_PG && !(save->cr0 & X86_CR0_PE)))
		return VMM_REASON_CR0;
	if (save->cr3 >> boot_cpu_data.x86_phys_bits)
		return VMM_REASON_CR3;
	if (save->cr4 & ~vmm_guest_cr4())
		return VMM_REASON_CR4;
	if (long_mode && (!(save->cr4 & X86_CR4_PAE) ||
			  (save->cs.attrib & SVM_SELECTOR_L_MASK && save->cs.attrib & SVM_SELECTOR_DB_MASK)))
		return VMM_REASON_LONG_MODE;
	if (save->dr6 >> 32 || save->dr7 >> 32)
		return VMM_REASON_DEBUG;
	return VMM_REASON_NONE;
}

/* The groups that the caller has changed.  A reason if they may not be. */
static noinline u32 load_groups(struct vmm_vcpu *vcpu, u32 dirty)
{
	struct vmm_vcpu_area *area = vcpu->area;
	struct vmm_svm *from = &area->svm;
	struct vmcb *vmcb = vcpu->vmcb;
	u32 reason = VMM_REASON_NONE;

	vcpu->stored |= dirty & VMM_DIRTY_ALL;
	if (dirty & VMM_DIRTY_CONTROLS) {
		memcpy(vcpu->small_exits, from->small_exits, sizeof(vcpu->small_exits));
		reason = load_controls(&vmcb->control, area);
	}
	if (dirty & VMM_DIRTY_SEGMENTS) {
		COPY_GROUP(&vmcb->save, from, es, SEGMENTS_SIZE);
		vmcb->save.cpl = (vmcb->save.ss.attrib >> 5) & 3;
	}
	if (dirty & VMM_DIRTY_MSRS)
		COPY_GROUP(&vmcb->save, from, star, MSRS_SIZE);
	if (dirty & VMM_DIRTY_SYSTEM) {
		vmcb->save.efer = READ_ONCE(from->efer) ^ EFER_SVME; /* It must be clear. */
		vmcb->save.cr0 = READ_ONCE(from->cr0);
		vmcb->save.cr2 = READ_ONCE(from->cr2);
		vmcb->save.cr3 = READ_ONCE(from->cr3);
		vmcb->save.cr4 = READ_ONCE(from->cr4);
	}
	if (dirty & VMM_DIRTY_DEBUG) {
		vmcb->save.dr6 = READ_ONCE(from->dr6);
		vmcb->save.dr7 = READ_ONCE(from->dr7);
	}
	if (!reason)
		reason = check_system(&vmcb->save);
	if (!reason)
		reason = vmm_load_common(vcpu, dirty);
	if (!reason && dirty & VMM_DIRTY_TLB)
		vcpu->generation = 0;
	return reason;
}

static u32 load(struct vmm_vcpu *vcpu, u32 dirty)
{
	struct vmm_vcpu_area *area = vcpu->area;
	struct vmcb *vmcb = vcpu->vmcb;
	u32 reason = load_events(&vmcb->control, area);

	if (unlikely(dirty) && !reason)
		reason = load_groups(vcpu, dirty);
	vmcb->save.rax = READ_ONCE(area->gpr[0]);
	vmcb->save.rsp = READ_ONCE(area->gpr[4]);
	vmcb->save.rip = READ_ONCE(area->rip);
	vmcb->save.rflags = READ_ONCE(area->rflags);
	return reason;
}

/* ---- And back. ---- */

/* Of these groups what the area has not yet. */
static void store_groups(struct vmm_vcpu *vcpu, u32 groups)
{
	struct vmm_svm *to = &vcpu->area->svm;
	struct vmcb_save_area *save = &((struct vmcb *)vcpu->vmcb)->save;

	groups &= ~vcpu->stored;
	if (groups & VMM_DIRTY_SEGMENTS) {
		COPY_GROUP(to, save, es, SEGMENTS_SIZE);
		to->cpl = save->cpl;
	}
	if (groups & VMM_DIRTY_SYSTEM) {
		to->efer = save->efer & ~(u64)EFER_SVME;
		to->cr0 = save->cr0;
		to->cr2 = save->cr2;
		to->cr3 = save->cr3;
		to->cr4 = save->cr4;
	}
	if (groups & VMM_DIRTY_DEBUG) {
		to->dr6 = save->dr6;
		to->dr7 = save->dr7;
	}
	if (groups & VMM_DIRTY_MSRS)
		COPY_GROUP(to, save, star, MSRS_SIZE);
	vcpu->stored |= groups;
}

static bool is_small(const struct vmm_vcpu *vcpu, u32 code)
{
	return code < 32 * ARRAY_SIZE(vcpu->small_exits) && vcpu->small_exits[code / 32] & BIT_IN_WORD(code);
}

static void store(struct vmm_vcpu *vcpu)
{
	struct vmm_vcpu_area *area = vcpu->area;
	struct vmcb *vmcb = vcpu->vmcb;
	struct vmcb_control_area *control = &vmcb->control;
	struct vmcb_save_area *save = &vmcb->save;
	struct vmm_svm *to = &area->svm;

	area->gpr[0] = save->rax;
	area->gpr[4] = save->rsp;
	area->rip = save->rip;
	area->rflags = save->rflags;
	to->int_ctl = control->int_ctl & CALLERS_INT_CTL;
	to->int_state = control->int_state & SVM_INTERRUPT_SHADOW_MASK;
	to->event_inj = control->event_inj;
	to->event_inj_error = control->event_inj_err;
	to->exit_code = (u64)control->exit_code_hi << 32 | control->exit_code;
	to->exit_info_1 = control->exit_info_1;
	to->exit_info_2 = control->exit_info_2;
	vcpu->stored &= ~LAZY;
	if (is_small(vcpu, control->exit_code))
		return;
	to->exit_int_info = control->exit_int_info;
	to->exit_int_info_error = control->exit_int_info_err;
	to->next_rip = control->next_rip;
	to->insn_len = control->insn_len;
	memcpy(to->insn_bytes, control->insn_bytes, sizeof(to->insn_bytes));
	store_groups(vcpu, LAZY);
}

/* ---- One entry.  Interrupts are off. ---- */

/*
 * SVM's ways on this CPU, for the time of one entry.  Where SVME is set already, kvm_amd runs VMs here: then no
 * translation of theirs may be found under our ASID, nor of ours under theirs, and the TLB is flushed on both sides of
 * the entry.  Where it is not and VM_HSAVE_PA is what we left, nobody has used SVM meanwhile.
 */
struct ownership {
	u64 efer;
	u64 hsave;
	bool shared;
};

static void new_generation(struct vmm_cpu *cpu)
{
	cpu->generation++;
	cpu->next_asid = 1;
}

static void own_svm(struct vmm_cpu *cpu, struct ownership *own)
{
	own->efer = __rdmsr(MSR_EFER);
	own->hsave = __rdmsr(MSR_VM_HSAVE_PA);
	own->shared = own->efer & EFER_SVME;
	if (!own->shared)
		native_wrmsrl(MSR_EFER, own->efer | EFER_SVME);
	if (unlikely(own->hsave != cpu->hsave)) {
		wrmsrl(MSR_VM_HSAVE_PA, cpu->hsave);
		new_generation(cpu);
	}
}

static noinline void flush_tlb(struct vmm_cpu *cpu)
{
	u64 gpr[16] = {};

	asm volatile("clgi");
	vmm_svm_enter(__sme_set(__pa(flush_guest)), cpu->host, gpr);
	asm volatile("stgi");
}

static void disown_svm(struct vmm_cpu *cpu, struct ownership *own)
{
	if (likely(!own->shared)) {
		native_wrmsrl(MSR_EFER, own->efer);
	} else {
		flush_tlb(cpu);
		native_wrmsrl(MSR_VM_HSAVE_PA, own->hsave);
	}
}

static void choose_asid(struct vmm_vcpu *vcpu, struct vmm_cpu *cpu)
{
	struct vmcb_control_area *control = &((struct vmcb *)vcpu->vmcb)->control;
	u64 flushes = atomic64_read(&vcpu->vm->flushes);

	control->tlb_ctl = TLB_CONTROL_DO_NOTHING;
	if (likely(vcpu->cpu == raw_smp_processor_id() && vcpu->generation == cpu->generation && vcpu->flushes == flushes))
		return;
	/* A fresh ASID has no translations: as good as a flush, and every CPU can do it. */
	if (cpu->next_asid >= asid_count)
		new_generation(cpu);
	if (cpu->next_asid == 1)
		control->tlb_ctl = TLB_CONTROL_FLUSH_ALL_ASID;
	control->asid = cpu->next_asid++;
	vcpu->cpu = raw_smp_processor_id();
	vcpu->generation = cpu->generation;
	vcpu->flushes = flushes;
	smp_rmb(); /* A root that is newer than the number has that of its own. */
	control->nested_cr3 = __sme_set(__pa(READ_ONCE(vcpu->vm->root)));
}

/* CPUID by the caller's table.  True: the guest goes on behind it. */
static bool serve_cpuid(struct vmm_vcpu *vcpu)
{
	struct vmm_vcpu_area *area = vcpu->area;
	struct vmcb *vmcb = vcpu->vmcb;
	const struct vmm_cpuid_leaf *leaf;

	/* A single step, and prefixes without NRIP, are the caller's. */
	if (!boot_cpu_has(X86_FEATURE_NRIPS) || vmcb->save.rflags & X86_EFLAGS_TF)
		return false;
	leaf = vmm_find_cpuid(vcpu, vmcb->save.rax, READ_ONCE(area->gpr[1]));
	if (!leaf)
		return false;
	vmcb->save.rax = leaf->eax;
	area->gpr[1] = leaf->ecx;
	area->gpr[2] = leaf->edx;
	area->gpr[3] = leaf->ebx;
	vmcb->save.rip = vmcb->control.next_rip;
	vmcb->save.rflags &= ~(u64)X86_EFLAGS_RF;
	vmcb->control.int_state &= ~(u32)SVM_INTERRUPT_SHADOW_MASK;
	vmcb->control.event_inj = 0;
	vmcb->control.tlb_ctl = TLB_CONTROL_DO_NOTHING;
	area->served++;
	return true;
}

static bool injects_interrupt(u32 event)
{
	return event & SVM_EVTINJ_VALID && (event & SVM_EVTINJ_TYPE_MASK) == SVM_EVTINJ_TYPE_INTR;
}

static void nothing(struct irq_work *unused)
{
}

/* With a shadow, or an event to inject. */
static noinline void prepare_event(struct vmm_vcpu *vcpu)
{
	const struct vmcb *vmcb = vcpu->vmcb;

	vcpu->shadow = vmcb->control.int_state;
	vcpu->shadow_rip = vmcb->save.rip;
	if (leave_behind_interrupt && injects_interrupt(vmcb->control.event_inj))
		irq_work_queue(this_cpu_ptr(&cpus.interrupt));
}

/* QEMU 7.2's VMRUN takes no notice of a shadow, which lasts while no instruction is executed. */
static noinline void keep_shadow(struct vmm_vcpu *vcpu)
{
	struct vmcb *vmcb = vcpu->vmcb;

	if (vmcb->save.rip == vcpu->shadow_rip)
		vmcb->control.int_state |= vcpu->shadow;
	vcpu->shadow = 0;
}

static void enter(struct vmm_vcpu *vcpu)
{
	struct vmm_cpu *cpu = this_cpu_ptr(&cpus);
	struct vmcb *vmcb = vcpu->vmcb;
	struct ownership own;
	struct vmm_host switched;

	if (unlikely(vmcb->control.int_state | vmcb->control.event_inj))
		prepare_event(vcpu);
	own_svm(cpu, &own);
	choose_asid(vcpu, cpu);
	vmm_switch_to_guest(vcpu, &switched, vmcb->save.dr7);
	vmcb->control.clean = 0;

	asm volatile("clgi");
	/* What waits for the host ends the next entry at once. */
	do
		vmm_svm_enter(vcpu->vmcb_address, cpu->host, vcpu->area->gpr);
	while (unlikely(vmcb->control.exit_code == SVM_EXIT_CPUID) && serve_cpuid(vcpu));
	asm volatile("stgi");
	/* An NMI that ended the guest has been served by now. */

	vmm_switch_to_host(vcpu, &switched);
	disown_svm(cpu, &own);
	if (unlikely(vcpu->shadow))
		keep_shadow(vcpu);
	if (unlikely(vmcb->control.exit_code == SVM_EXIT_EXCP_BASE + X86_TRAP_MC))
		asm volatile("int $18"); /* As the CPU would have done outside of a guest. */
}

/* The event whose delivery the exit came into the middle of is delivered again. */
static void keep_event(struct vmcb_control_area *control)
{
	u32 event = control->exit_int_info;
	u32 type = event & SVM_EXITINTINFO_TYPE_MASK;
	u32 vector = event & SVM_EXITINTINFO_VEC_MASK;

	if (control->exit_code == EXIT_INVALID)
		return; /* It was not looked at. */
	control->event_inj = 0;
	/* RIP is still at the instruction that raised it: that is executed again. */
	if (!(event & SVM_EXITINTINFO_VALID) || type == SVM_EXITINTINFO_TYPE_SOFT ||
	    (type == SVM_EXITINTINFO_TYPE_EXEPT && (vector == X86_TRAP_BP || vector == X86_TRAP_OF)))
		return;
	control->event_inj = event & EVENT_FIELDS;
	control->event_inj_err = control->exit_int_info_err;
}

/* True: the guest goes on. */
static bool handle(struct vmm_vcpu *vcpu)
{
	struct vmcb *vmcb = vcpu->vmcb;

	keep_event(&vmcb->control);
	WRITE_ONCE(vcpu->area->exit_kind, VMM_EXIT_HARDWARE);
	switch (vmcb->control.exit_code) {
	case SVM_EXIT_INTR:
	case SVM_EXIT_NMI:
	case SVM_EXIT_SMI:
	case SVM_EXIT_INIT:
	case SVM_EXIT_EXCP_BASE + X86_TRAP_MC:
		return true;
	case SVM_EXIT_NPF:
		return vmm_fault(vcpu, vmcb->control.exit_info_2, vmcb->control.exit_info_1 & X86_PF_WRITE);
	default:
		return false;
	}
}

int vmm_svm_run(struct vmm_vcpu *vcpu)
{
	return vmm_run(vcpu, load, enter, handle, store);
}

static void fetch(struct vmm_vcpu *vcpu)
{
	store_groups(vcpu, LAZY);
}

/* ---- vCPUs ---- */

static void init_vmcb(struct vmcb *vmcb)
{
	memcpy(vmcb->control.intercepts, mandatory, sizeof(mandatory));
	vmcb->control.iopm_base_pa = __sme_set(__pa(iopm));
	vmcb->control.msrpm_base_pa = __sme_set(__pa(msrpm));
	vmcb->control.int_ctl = V_INTR_MASKING_MASK;
	vmcb->save.efer = EFER_SVME;
	vmcb->save.g_pat = 0x0007040600070406ull; /* As after RESET. */
	vmcb->save.dr6 = DR6_RESERVED;
	vmcb->save.dr7 = 0x400;
}

static int create_vcpu(struct vmm_vcpu *vcpu)
{
	struct vmcb *vmcb = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);

	if (!vmcb)
		return -ENOMEM;
	init_vmcb(vmcb);
	vmcb->control.nested_ctl = SVM_NESTED_CTL_NP_ENABLE;
	vcpu->vmcb = vmcb;
	vcpu->vmcb_address = __sme_set(__pa(vmcb));
	return 0;
}

static void destroy_vcpu(struct vmm_vcpu *vcpu)
{
	free_page((unsigned long)vcpu->vmcb);
}

/* ---- CPUs ---- */

static int check_cpu(unsigned int number)
{
	u64 vm_cr;

	if (!boot_cpu_has(X86_FEATURE_SVM) || !(cpuid_ecx(0x80000001) & BIT(2)) ||
	    !(cpuid_edx(SVM_CPUID_FUNC) & BIT(0)) || cpuid_ebx(SVM_CPUID_FUNC) < 2) {
		pr_err("CPU %u has no SVM with nested paging\n", number);
		return -EOPNOTSUPP;
	}
	rdmsrl(MSR_VM_CR, vm_cr);
	if (vm_cr & SVM_VM_CR_SVM_DIS_MASK) {
		pr_err("CPU %u: the firmware has disabled SVM (VM_CR.SVMDIS)\n", number);
		return -EPERM;
	}
	return 0;
}

/* VM_HSAVE_PA is not to name a page that is freed. */
static int leave_cpu(unsigned int number)
{
	struct vmm_cpu *cpu = this_cpu_ptr(&cpus);
	u64 hsave;

	rdmsrl(MSR_VM_HSAVE_PA, hsave);
	if (hsave == cpu->hsave)
		wrmsrl(MSR_VM_HSAVE_PA, 0);
	return 0;
}

static void free_all(void)
{
	int number;

	for_each_possible_cpu(number)
		free_pages((unsigned long)per_cpu(cpus, number).pages, CPU_ORDER);
	free_pages((unsigned long)iopm, IOPM_ORDER);
	free_pages((unsigned long)msrpm, MSRPM_ORDER);
	free_pages((unsigned long)msrpm_all, MSRPM_ORDER);
	free_pages((unsigned long)flush_guest, FLUSH_GUEST_ORDER);
}

static int allocate_all(void)
{
	int number;

	for_each_possible_cpu(number) {
		struct vmm_cpu *cpu = per_cpu_ptr(&cpus, number);

		cpu->pages = (void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, CPU_ORDER);
		if (!cpu->pages)
			return -ENOMEM;
		cpu->hsave = __sme_set(__pa(cpu->pages));
		cpu->host = cpu->hsave + PAGE_SIZE;
		cpu->generation = 1;
		cpu->next_asid = 1;
		cpu->interrupt = IRQ_WORK_INIT_HARD(nothing);
	}
	iopm = (void *)__get_free_pages(GFP_KERNEL, IOPM_ORDER);
	msrpm = (void *)__get_free_pages(GFP_KERNEL, MSRPM_ORDER);
	msrpm_all = (void *)__get_free_pages(GFP_KERNEL, MSRPM_ORDER);
	flush_guest = (void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, FLUSH_GUEST_ORDER);
	return iopm && msrpm && msrpm_all && flush_guest ? 0 : -ENOMEM;
}

/* Real mode, with no page of memory: not an instruction is executed. */
static void make_flush_guest(struct vmcb *vmcb)
{
	init_vmcb(vmcb);
	vmcb->control.asid = 1;
	vmcb->control.tlb_ctl = TLB_CONTROL_FLUSH_ALL_ASID;
	vmcb->control.nested_ctl = SVM_NESTED_CTL_NP_ENABLE;
	vmcb->control.nested_cr3 = __sme_set(__pa(vmcb) + PAGE_SIZE);
	vmcb->save.cs.attrib = 0x9b;
	vmcb->save.cs.limit = 0xffff;
	vmcb->save.ss.attrib = 0x93;
	vmcb->save.ss.limit = 0xffff;
	vmcb->save.cr0 = X86_CR0_ET;
	vmcb->save.rflags = X86_EFLAGS_FIXED;
}

static int init(void)
{
	static const u32 passed[] = { MSR_IA32_SYSENTER_CS, MSR_IA32_SYSENTER_ESP, MSR_IA32_SYSENTER_EIP, MSR_STAR,
				      MSR_LSTAR, MSR_CSTAR, MSR_SYSCALL_MASK, MSR_FS_BASE, MSR_GS_BASE,
				      MSR_KERNEL_GS_BASE };
	int i, error;

	if (!boot_cpu_has(X86_FEATURE_SVM) || !boot_cpu_has(X86_FEATURE_NPT))
		return -EOPNOTSUPP;
	asid_count = cpuid_ebx(SVM_CPUID_FUNC);
	/* Nested tables have the depth of the host's own. */
	vmm_svm.levels = native_read_cr4() & X86_CR4_LA57 ? 5 : 4;
	vmm_svm.largest = boot_cpu_has(X86_FEATURE_GBPAGES) ? 3 : 2;
	vmm_svm.features = (boot_cpu_has(X86_FEATURE_NRIPS) ? VMM_FEATURE_NEXT_RIP : 0) |
			   (boot_cpu_has(X86_FEATURE_DECODEASSISTS) ? VMM_FEATURE_DECODE_ASSISTS : 0) |
			   (boot_cpu_has(X86_FEATURE_PAUSEFILTER) ? VMM_FEATURE_PAUSE_FILTER : 0);
	error = allocate_all();
	if (error)
		return error;
	memset(iopm, 0xff, PAGE_SIZE << IOPM_ORDER);
	memset(msrpm, 0xff, PAGE_SIZE << MSRPM_ORDER);
	memset(msrpm_all, 0xff, PAGE_SIZE << MSRPM_ORDER);
	for (i = 0; i < ARRAY_SIZE(passed); i++)
		pass_msr(passed[i]);
	make_flush_guest(flush_guest);
	return 0;
}

/* APM Vol. 2 "Nested Paging": entries are those of long mode, and all accesses are user accesses. */
#define ENTRY_BITS (_PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED | _PAGE_DIRTY)

struct vmm_vendor vmm_svm = {
	.id = VMM_VENDOR_SVM,
	.table_bits = ENTRY_BITS | _PAGE_RW,
	.page_bits = ENTRY_BITS,
	.init = init,
	.exit = free_all,
	.check_cpu = check_cpu,
	.leave_cpu = leave_cpu,
	.create_vcpu = create_vcpu,
	.destroy_vcpu = destroy_vcpu,
	.run = vmm_svm_run,
	.fetch = fetch,
};
