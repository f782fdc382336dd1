// SPDX-License-Identifier: GPL-2.0
/*
 * What the host has, and what a guest may have of it, on either vendor's hardware.
 */

#include <linux/mm.h>
#include <linux/uaccess.h>

#include "run.h"

u64 vmm_host_xss, vmm_host_all_xcr0;
DEFINE_PER_CPU(u64, vmm_last_vcpu);

void vmm_host_init(void)
{
	if (boot_cpu_has(X86_FEATURE_OSXSAVE))
		vmm_host_all_xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK);
	if (boot_cpu_has(X86_FEATURE_XSAVES))
		rdmsrl(MSR_IA32_XSS, vmm_host_xss);
}

u64 vmm_host_xcr0(void)
{
	return vmm_host_all_xcr0 ? vmm_host_all_xcr0 & (XFEATURE_MASK_FPSSE | XFEATURE_MASK_YMM) : XFEATURE_MASK_FP;
}

/* Without PKE, whose register is the caller's; LA57, which NPT takes from the host; and what came later. */
u64 vmm_guest_cr4(void)
{
	return X86_CR4_VME | X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE | X86_CR4_PAE | X86_CR4_MCE |
	       X86_CR4_PGE | X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT |
	       (boot_cpu_has(X86_FEATURE_UMIP) ? X86_CR4_UMIP : 0) |
	       (boot_cpu_has(X86_FEATURE_FSGSBASE) ? X86_CR4_FSGSBASE : 0) |
	       (boot_cpu_has(X86_FEATURE_PCID) ? X86_CR4_PCIDE : 0) | (vmm_host_all_xcr0 ? X86_CR4_OSXSAVE : 0) |
	       (boot_cpu_has(X86_FEATURE_SMEP) ? X86_CR4_SMEP : 0) |
	       (boot_cpu_has(X86_FEATURE_SMAP) ? X86_CR4_SMAP : 0);
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
