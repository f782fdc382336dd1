/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a run is on either vendor's hardware: when guest code may be executed, and the registers that no hardware switches.  Of one
 * piece with the vendor's part, since a call and a return cost as much as what most of these do.
 */

#ifndef VMM_HELPER_RUN_H
#define VMM_HELPER_RUN_H

#include <linux/sched/signal.h>
#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/nospec-branch.h>

#include "helper.h"

extern u64 vmm_host_xss, vmm_host_all_xcr0;
DECLARE_PER_CPU(u64, vmm_last_vcpu);

/* The caller's leaf for EAX and ECX, or NULL. */
static inline const struct vmm_cpuid_leaf *vmm_find_cpuid(const struct vmm_vcpu *vcpu, u32 function, u32 index)
{
	const struct vmm_cpuid_leaf *leaf;

	for (leaf = vcpu->cpuid; leaf != vcpu->cpuid + vcpu->cpuid_count; leaf++)
		if (leaf->function == function && (leaf->index == index || !(leaf->flags & VMM_CPUID_INDEXED)))
			return leaf;
	return NULL;
}

/* Takes what both vendors' areas have.  A reason if it may not be. */
static inline u32 vmm_load_common(struct vmm_vcpu *vcpu, u32 dirty)
{
	const struct vmm_vcpu_area *area = vcpu->area;
	u64 xcr0 = READ_ONCE(area->xcr0), tsc_aux = READ_ONCE(area->tsc_aux);
	int i;

	if (dirty & VMM_DIRTY_CONTROLS) {
		if (!(xcr0 & XFEATURE_MASK_FP) || xcr0 & ~vmm_host_xcr0() ||
		    (xcr0 & XFEATURE_MASK_YMM && !(xcr0 & XFEATURE_MASK_SSE)))
			return VMM_REASON_XCR0;
		vcpu->xcr0 = xcr0;
	}
	if (dirty & VMM_DIRTY_MSRS) {
		if (tsc_aux >> 32)
			return VMM_REASON_MSR;
		vcpu->tsc_aux = tsc_aux;
	}
	for (i = 0; i < 4 && dirty & VMM_DIRTY_DEBUG; i++)
		vcpu->dr[i] = READ_ONCE(area->dr[i]);
	return VMM_REASON_NONE;
}

struct vmm_host {
	u64 tsc_aux;
};

/* With interrupts off, as what it undoes. */
static __always_inline void vmm_switch_to_guest(struct vmm_vcpu *vcpu, struct vmm_host *host, u64 dr7)
{
	int i;

	if (unlikely(__this_cpu_read(vmm_last_vcpu) != vcpu->serial)) {
		__this_cpu_write(vmm_last_vcpu, vcpu->serial);
		indirect_branch_prediction_barrier();
	}
	/* The guest's FPU registers are the caller's thread's: the library loads them before VMM_RUN. */
	if (unlikely(test_thread_flag(TIF_NEED_FPU_LOAD)))
		switch_fpu_return();
	if (unlikely(dr7 & (DR_GLOBAL_ENABLE_MASK | DR_LOCAL_ENABLE_MASK)))
		for (i = 0; i < 4; i++)
			set_debugreg(vcpu->dr[i], i);
	/* KVM leaves its guest's there until the thread returns to user space. */
	if (cpu_feature_enabled(X86_FEATURE_RDTSCP)) {
		host->tsc_aux = __rdmsr(MSR_TSC_AUX);
		if (vcpu->tsc_aux != host->tsc_aux)
			native_wrmsrl(MSR_TSC_AUX, vcpu->tsc_aux);
	}
	if (vmm_host_xss)
		wrmsrl(MSR_IA32_XSS, 0);
	if (vcpu->xcr0 != vmm_host_all_xcr0 && vmm_host_all_xcr0)
		xsetbv(XCR_XFEATURE_ENABLED_MASK, vcpu->xcr0);
}

static __always_inline void vmm_switch_to_host(struct vmm_vcpu *vcpu, const struct vmm_host *host)
{
	if (vcpu->xcr0 != vmm_host_all_xcr0 && vmm_host_all_xcr0)
		xsetbv(XCR_XFEATURE_ENABLED_MASK, vmm_host_all_xcr0);
	if (vmm_host_xss)
		wrmsrl(MSR_IA32_XSS, vmm_host_xss);
	if (cpu_feature_enabled(X86_FEATURE_RDTSCP) && vcpu->tsc_aux != host->tsc_aux)
		native_wrmsrl(MSR_TSC_AUX, host->tsc_aux);
	/* The exit has cleared DR7. */
	if (unlikely(hw_breakpoint_active()))
		hw_breakpoint_restore();
}

#define VMM_SIGNALS (_TIF_SIGPENDING | _TIF_NOTIFY_SIGNAL | _TIF_NOTIFY_RESUME)

/* True: interrupts are off, and guest code may be executed until vmm_end_entry(). */
static __always_inline bool vmm_begin_entry(struct vmm_vcpu *vcpu)
{
	local_irq_disable();
	/* From here on a kick and a flush interrupt this CPU; they look at it after what is looked at below. */
	WRITE_ONCE(vcpu->guest_cpu, smp_processor_id());
	smp_mb();
	if (likely(!READ_ONCE(vcpu->area->immediate_exit) && !(read_thread_flags() & (VMM_SIGNALS | _TIF_NEED_RESCHED))))
		return true;
	WRITE_ONCE(vcpu->guest_cpu, -1);
	local_irq_enable();
	return false;
}

static __always_inline void vmm_end_entry(struct vmm_vcpu *vcpu)
{
	smp_mb(); /* The guest is left, then it is said. */
	WRITE_ONCE(vcpu->guest_cpu, -1);
	local_irq_enable();
	vcpu->area->entries++;
}

/*
 * VMM_RUN.  load: takes and checks the groups that the caller has changed; a reason if they may not be.  enter: with interrupts off, once into the guest.  handle: true
 * if the guest goes on.  store: for the caller to see.
 */
static __always_inline int vmm_run(struct vmm_vcpu *vcpu, u32 (*load)(struct vmm_vcpu *, u32 dirty),
				   void (*enter)(struct vmm_vcpu *), bool (*handle)(struct vmm_vcpu *),
				   void (*store)(struct vmm_vcpu *))
{
	struct vmm_vcpu_area *area = vcpu->area;
	u32 dirty = xchg(&area->dirty, 0) | vcpu->refused, reason = load(vcpu, dirty);
	int error = 0;

	WRITE_ONCE(area->reason, reason);
	if (unlikely(reason)) {
		vcpu->refused = dirty; /* They are dirty still. */
		return -EINVAL;
	}
	vcpu->refused = 0;
	for (;;) {
		if (likely(vmm_begin_entry(vcpu))) {
			enter(vcpu);
			vmm_end_entry(vcpu);
			if (!handle(vcpu))
				break;
		} else if (read_thread_flags() & VMM_SIGNALS) {
			/* A signal, or the kernel wants the thread. */
			WRITE_ONCE(area->exit_kind, VMM_EXIT_NONE);
			error = -EINTR;
			break;
		} else if (READ_ONCE(area->immediate_exit)) {
			WRITE_ONCE(area->exit_kind, VMM_EXIT_INTERRUPTED);
			break;
		}
		cond_resched();
	}
	store(vcpu);
	area->stored = vcpu->stored & VMM_DIRTY_ALL;
	return error;
}

#endif
