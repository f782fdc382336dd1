// SPDX-License-Identifier: GPL-2.0
/*
 * What a run is on either vendor's hardware: when guest code may be executed, and the registers that no hardware switches.
 */

#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <asm/debugreg.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/nospec-branch.h>

#include "helper.h"

static u64 host_xcr0, host_xss;
static DEFINE_PER_CPU(u64, last_vcpu);

void vmm_host_init(void)
{
	if (boot_cpu_has(X86_FEATURE_OSXSAVE))
		host_xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK);
	if (boot_cpu_has(X86_FEATURE_XSAVES))
		rdmsrl(MSR_IA32_XSS, host_xss);
}

u64 vmm_host_xcr0(void)
{
	return host_xcr0 ? host_xcr0 & (XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM) : XFEATURE_MASK_FP;
}

/* Without PKE, whose register is the caller's; LA57, which NPT takes from the host; and what came later. */
u64 vmm_guest_cr4(void)
{
	return X86_CR4_VME | X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE | X86_CR4_PAE | X86_CR4_MCE |
	       X86_CR4_PGE | X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT |
	       (boot_cpu_has(X86_FEATURE_UMIP) ? X86_CR4_UMIP : 0) |
	       (boot_cpu_has(X86_FEATURE_FSGSBASE) ? X86_CR4_FSGSBASE : 0) |
	       (boot_cpu_has(X86_FEATURE_PCID) ? X86_CR4_PCIDE : 0) | (host_xcr0 ? X86_CR4_OSXSAVE : 0) |
	       (boot_cpu_has(X86_FEATURE_SMEP) ? X86_CR4_SMEP : 0) |
	       (boot_cpu_has(X86_FEATURE_SMAP) ? X86_CR4_SMAP : 0);
}

/* Takes what is always taken.  A reason if it may not be. */
u32 vmm_load_common(struct vmm_vcpu *vcpu)
{
	const struct vmm_vcpu_area *area = vcpu->area;
	u64 xcr0 = READ_ONCE(area->xcr0), tsc_aux = READ_ONCE(area->tsc_aux);
	int i;

	if (!(xcr0 & XFEATURE_MASK_FP) || xcr0 & ~vmm_host_xcr0() ||
	    (xcr0 & XFEATURE_MASK_YMM && !(xcr0 & XFEATURE_MASK_SSE)))
		return VMM_REASON_XCR0;
	if (tsc_aux >> 32)
		return VMM_REASON_MSR;
	vcpu->xcr0 = xcr0;
	vcpu->tsc_aux = tsc_aux;
	for (i = 0; i < 4; i++)
		vcpu->dr[i] = READ_ONCE(area->dr[i]);
	return VMM_REASON_NONE;
}

/* The vCPU is the calling thread's. */
long vmm_set_cpuid(struct vmm_vcpu *vcpu, struct vmm_cpuid *cpuid)
{
	struct vmm_cpuid_leaf *leaves = NULL;
	u32 i;

	if (cpuid->count > VMM_MAX_CPUID) {
		cpuid->reason = VMM_REASON_CPUID;
		return -EINVAL;
	}
	if (cpuid->count) {
		leaves = kvmalloc_array(cpuid->count, sizeof(*leaves), GFP_KERNEL_ACCOUNT);
		if (!leaves)
			return -ENOMEM;
		if (copy_from_user(leaves, u64_to_user_ptr(cpuid->leaves), cpuid->count * sizeof(*leaves))) {
			kvfree(leaves);
			return -EFAULT;
		}
	}
	for (i = 0; i < cpuid->count; i++) {
		if (leaves[i].reserved || leaves[i].flags & ~VMM_CPUID_INDEXED) {
			kvfree(leaves);
			cpuid->reason = VMM_REASON_FLAGS;
			return -EINVAL;
		}
	}
	kvfree(vcpu->cpuid);
	vcpu->cpuid = leaves;
	vcpu->cpuid_count = cpuid->count;
	return 0;
}

/* With interrupts off, as what it undoes. */
void vmm_switch_to_guest(struct vmm_vcpu *vcpu, struct vmm_host *host, u64 dr7)
{
	int i;

	if (__this_cpu_read(last_vcpu) != vcpu->serial) {
		__this_cpu_write(last_vcpu, vcpu->serial);
		indirect_branch_prediction_barrier();
	}
	/* The guest's FPU registers are the caller's thread's: the library loads them before VMM_RUN. */
	if (test_thread_flag(TIF_NEED_FPU_LOAD))
		switch_fpu_return();
	if (dr7 & (DR_GLOBAL_ENABLE_MASK | DR_LOCAL_ENABLE_MASK))
		for (i = 0; i < 4; i++)
			set_debugreg(vcpu->dr[i], i);
	/* KVM leaves its guest's there until the thread returns to user space. */
	if (boot_cpu_has(X86_FEATURE_RDTSCP)) {
		host->tsc_aux = __rdmsr(MSR_TSC_AUX);
		if (vcpu->tsc_aux != host->tsc_aux)
			native_wrmsrl(MSR_TSC_AUX, vcpu->tsc_aux);
	}
	if (host_xss)
		wrmsrl(MSR_IA32_XSS, 0);
	if (host_xcr0 && vcpu->xcr0 != host_xcr0)
		xsetbv(XCR_XFEATURE_ENABLED_MASK, vcpu->xcr0);
}

void vmm_switch_to_host(struct vmm_vcpu *vcpu, const struct vmm_host *host)
{
	if (host_xcr0 && vcpu->xcr0 != host_xcr0)
		xsetbv(XCR_XFEATURE_ENABLED_MASK, host_xcr0);
	if (host_xss)
		wrmsrl(MSR_IA32_XSS, host_xss);
	if (boot_cpu_has(X86_FEATURE_RDTSCP) && vcpu->tsc_aux != host->tsc_aux)
		wrmsrl(MSR_TSC_AUX, host->tsc_aux);
	/* The exit has cleared DR7. */
	if (hw_breakpoint_active())
		hw_breakpoint_restore();
}

/* A signal, or the kernel wants the thread. */
bool vmm_want_back(void)
{
	return signal_pending(current) || test_thread_flag(TIF_NOTIFY_RESUME);
}

/* True: interrupts are off, and guest code may be executed until vmm_end_entry().  *again: else, whether to try again. */
bool vmm_begin_entry(struct vmm_vcpu *vcpu, bool *again)
{
	cond_resched();
	local_irq_disable();
	/* From here on a kick and a flush interrupt this CPU; they look at it after what is looked at below. */
	WRITE_ONCE(vcpu->guest_cpu, smp_processor_id());
	smp_mb();
	if (READ_ONCE(vcpu->area->immediate_exit)) {
		*again = false;
	} else if (!vmm_want_back() && !need_resched()) {
		return true;
	}
	WRITE_ONCE(vcpu->guest_cpu, -1);
	local_irq_enable();
	if (!*again)
		WRITE_ONCE(vcpu->area->exit_kind, VMM_EXIT_INTERRUPTED);
	return false;
}

void vmm_end_entry(struct vmm_vcpu *vcpu)
{
	smp_mb(); /* The guest is left, then it is said. */
	WRITE_ONCE(vcpu->guest_cpu, -1);
	local_irq_enable();
	vcpu->area->entries++;
}
