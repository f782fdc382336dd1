// SPDX-License-Identifier: GPL-2.0
/*
 * Intel VMX: one vCPU's runs.
 *
 * As with SVM, nothing stays behind on a CPU: VMX operation is entered for the time of one entry, with interrupts off, and
 * the VMCS is cleared before it is left.  So CPU hotplug, suspend, reboot and context switches have nothing to look
 * after, and kvm_intel, which will not start where CR4.VMXE is set, comes and goes as it likes.  Where VMX operation is on
 * already it is kvm_intel's: it is left on, and its current VMCS is made current again.
 *
 * Translations are tagged with the EPT root's address, so those of two VMs, or of ours and kvm_intel's, are never mixed
 * up; the VPID tells the vCPUs of a VM apart.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/gfp.h>
#include <linux/moduleparam.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <asm/cpu_entry_area.h>
#include <asm/desc.h>
#include <asm/io.h>
#include <asm/perf_event.h>
#include <asm/tlbflush.h>
#include <asm/trapnr.h>
#include <asm/vmx.h>

#include "run.h"

bool vmm_vmx_enter(u64 *gpr, bool resume);
void vmm_vmx_exit(void);

/* Beside VMM_DIRTY_*: what is in the registers' fields of the VMCS, and what they need. */
#define REGISTERS (1u << 31)
#define LAZY (VMM_DIRTY_SEGMENTS | VMM_DIRTY_SYSTEM) /* Stored when somebody asks. */

struct vmx_vcpu {
	void *vmcs;
	bool launched_once; /* The VMCS has what never changes. */
	struct vmm_vmx in;  /* Checked copies of what the caller wants. */
	u32 dirty;	    /* Groups that the VMCS is to be told. */
	u64 rip, rsp, rflags, tsc_offset;
	bool flush;	    /* The guest's translations are to be forgotten. */
	u64 root;	    /* EPT's, when they last were. */

	u32 event, event_error; /* For the next entry. */
	u32 injected;		/* What the VMCS still has of that. */
	bool entered;		/* Else `failure` says why not. */
	u32 failure;
	u32 reason, exit_event;
	u64 qualification, gpa;

	u64 cr2, kernel_gs_base; /* Which VMX does not switch. */
	u64 host_cr3, host_cr4, host_fs_base; /* What is in the VMCS. */
};

static DEFINE_PER_CPU(struct page *, vmxon_region);
static DEFINE_PER_CPU(u64, generation); /* Grows when nothing is known of a CPU's translations. */

/* Capabilities, the same on every CPU. */
static struct config {
	u64 basic;
	u32 timer;		/* Of guest_ticks. */
	u32 ept, vpid;		/* The halves of IA32_VMX_EPT_VPID_CAP. */
	u32 pin, exit, entry;	/* What is always set. */
	u32 primary, secondary; /* The same, of these. */
	u32 primary_allowed, secondary_allowed; /* What may be. */
} config;

/*
 * Bochs 2.7 holds external interrupts back while the guest's IF is 0, if it was when the guest was entered: an endless loop
 * would be the end of the machine.
 */
static ulong guest_ticks;
module_param(guest_ticks, ulong, 0444);
MODULE_PARM_DESC(guest_ticks, "leave a VMX guest after so many TSC ticks, whatever comes (0: never; for emulators)");

static unsigned long *msr_bitmap;     /* All MSRs but the three below. */
static unsigned long *msr_bitmap_all; /* All MSRs. */
static u64 host_star, host_lstar, host_sfmask;
static u8 *l1d_fill; /* What replaces the L1 data cache's contents where no command does. */

#define L1D_FILL_ORDER 4

/* What is set whatever the caller asks for, and what else it may ask for.  CR8 would be the host's task priority. */
#define PIN_MANDATORY (PIN_BASED_EXT_INTR_MASK | PIN_BASED_NMI_EXITING | PIN_BASED_VIRTUAL_NMIS)
#define PRIMARY_MANDATORY                                                                                             \
	(CPU_BASED_USE_TSC_OFFSETTING | CPU_BASED_MWAIT_EXITING | CPU_BASED_RDPMC_EXITING | CPU_BASED_MOV_DR_EXITING |  \
	 CPU_BASED_UNCOND_IO_EXITING | CPU_BASED_USE_MSR_BITMAPS | CPU_BASED_MONITOR_EXITING |                         \
	 CPU_BASED_CR8_LOAD_EXITING | CPU_BASED_CR8_STORE_EXITING | CPU_BASED_ACTIVATE_SECONDARY_CONTROLS)
#define PRIMARY_CALLERS                                                                                               \
	(CPU_BASED_INTR_WINDOW_EXITING | CPU_BASED_HLT_EXITING | CPU_BASED_INVLPG_EXITING | CPU_BASED_RDTSC_EXITING |   \
	 CPU_BASED_CR3_LOAD_EXITING | CPU_BASED_CR3_STORE_EXITING | CPU_BASED_NMI_WINDOW_EXITING |                      \
	 CPU_BASED_PAUSE_EXITING)
#define SECONDARY_MANDATORY                                                                                           \
	(SECONDARY_EXEC_ENABLE_EPT | SECONDARY_EXEC_ENABLE_VPID | SECONDARY_EXEC_WBINVD_EXITING |                       \
	 SECONDARY_EXEC_UNRESTRICTED_GUEST)
/* Where the CPU has them.  XSS is 0 while the guest runs. */
#define SECONDARY_OPTIONAL (SECONDARY_EXEC_ENCLS_EXITING | SECONDARY_EXEC_XSAVES)
#define SECONDARY_CALLERS                                                                                             \
	(SECONDARY_EXEC_DESC | SECONDARY_EXEC_ENABLE_RDTSCP | SECONDARY_EXEC_RDRAND_EXITING |                           \
	 SECONDARY_EXEC_ENABLE_INVPCID | SECONDARY_EXEC_RDSEED_EXITING)
#define EXIT_MANDATORY (VM_EXIT_HOST_ADDR_SPACE_SIZE | VM_EXIT_LOAD_IA32_EFER)
#define ENTRY_MANDATORY (VM_ENTRY_LOAD_DEBUG_CONTROLS | VM_ENTRY_LOAD_IA32_EFER)
/* A guest can have these raised endlessly with no interrupt in between. */
#define EXCEPTIONS_MANDATORY (BIT(X86_TRAP_DB) | BIT(X86_TRAP_AC) | BIT(X86_TRAP_MC))

/* Bits that a guest may change unseen.  PG decides EFER.LMA, which is an entry control. */
#define GUESTS_CR0 (X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_WP | X86_CR0_AM)
#define GUESTS_CR4                                                                                                    \
	(X86_CR4_TSD | X86_CR4_DE | X86_CR4_PGE | X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT)
#define GUEST_EFER (EFER_SCE | EFER_LME | EFER_LMA | EFER_NX)
#define CALLERS_INTERRUPTIBILITY (GUEST_INTR_STATE_STI | GUEST_INTR_STATE_MOV_SS | GUEST_INTR_STATE_NMI)
#define EVENT_FIELDS (INTR_INFO_VECTOR_MASK | INTR_INFO_INTR_TYPE_MASK | INTR_INFO_DELIVER_CODE_MASK | INTR_INFO_VALID_MASK)

/* SDM Vol. 3C "Extended-Page-Table Mechanism". */
#define EPT_READ_EXECUTE 5ull
#define EPT_WRITE _PAGE_RW
#define EPT_WRITE_BACK (6ull << 3)
#define EPT_IGNORE_PAT BIT_ULL(6)
#define EPT_LEVELS 4
#define EPTP_ATTRIBUTES (6ull | (EPT_LEVELS - 1) << 3)
#define VIOLATION_WRITE BIT(1)
#define VIOLATION_NMI_UNBLOCKED BIT(12)
#define VECTORING_NMI_UNBLOCKED BIT(12)
#define INVALIDATE_SINGLE 1ul
#define INVALIDATE_ALL 2ul

static_assert(EPT_WRITE == 2);

/* ---- The instructions ---- */

static bool vmxon(u64 region)
{
	bool failed;

	asm volatile("vmxon %1" : "=@ccbe"(failed) : "m"(region) : "memory");
	return !failed;
}

static void vmxoff(void)
{
	asm volatile("vmxoff" : : : "cc", "memory");
}

/* False outside of VMX operation. */
static bool vmptrst(u64 *vmcs)
{
	bool on = true;

	asm volatile("1: vmptrst %1\n\t"
		     "jmp 3f\n\t"
		     "2: movb $0, %0\n\t"
		     "3:\n\t" _ASM_EXTABLE(1b, 2b)
		     : "+qm"(on), "=m"(*vmcs)
		     :
		     : "memory");
	return on;
}

static bool vmptrld(u64 vmcs)
{
	bool failed;

	asm volatile("vmptrld %1" : "=@ccbe"(failed) : "m"(vmcs) : "memory");
	return !failed;
}

static void vmclear(u64 vmcs)
{
	asm volatile("vmclear %0" : : "m"(vmcs) : "cc", "memory");
}

static u64 vmread(u64 field)
{
	u64 value = 0;

	asm volatile("vmread %1, %0" : "+rm"(value) : "r"(field) : "cc");
	return value;
}

static void vmwrite(u64 field, u64 value)
{
	bool failed;

	asm volatile("vmwrite %2, %1" : "=@ccbe"(failed) : "r"(field), "rm"(value));
	WARN_ONCE(failed, "vmm: VMWRITE of %#llx to field %#llx failed\n", value, field);
}

static void invept(u64 eptp)
{
	struct {
		u64 eptp, zero;
	} operand = { eptp, 0 };
	u64 type = config.ept & VMX_EPT_EXTENT_CONTEXT_BIT ? INVALIDATE_SINGLE : INVALIDATE_ALL;

	asm volatile("invept %0, %1" : : "m"(operand), "r"(type) : "cc", "memory");
}

static void invvpid(u16 vpid)
{
	struct {
		u64 vpid, address;
	} operand = { vpid, 0 };
	u64 type = config.vpid & VMX_VPID_EXTENT_SINGLE_CONTEXT_BIT ? INVALIDATE_SINGLE : INVALIDATE_ALL;

	asm volatile("invvpid %0, %1" : : "m"(operand), "r"(type) : "cc", "memory");
}

/* ---- VMX operation, for a time with interrupts off. ---- */

struct ownership {
	bool was_on;
	u64 vmcs; /* That was current. */
};

#define NO_VMCS (~0ull)

static bool own_vmx(struct vmx_vcpu *v, struct ownership *own)
{
	bool on = true;

	own->was_on = cr4_read_shadow() & X86_CR4_VMXE && vmptrst(&own->vmcs);
	if (!own->was_on) {
		intel_pt_handle_vmx(1);
		cr4_set_bits_irqsoff(X86_CR4_VMXE);
		on = vmxon(page_to_phys(__this_cpu_read(vmxon_region)));
	}
	if (on && vmptrld(__pa(v->vmcs)))
		return true;
	WARN_ONCE(1, "vmm: VMXON or VMPTRLD failed\n");
	if (!own->was_on) {
		if (on)
			vmxoff();
		cr4_clear_bits_irqsoff(X86_CR4_VMXE);
		intel_pt_handle_vmx(0);
	}
	return false;
}

static void disown_vmx(struct vmx_vcpu *v, struct ownership *own)
{
	vmclear(__pa(v->vmcs));
	if (!own->was_on) {
		vmxoff();
		cr4_clear_bits_irqsoff(X86_CR4_VMXE);
		intel_pt_handle_vmx(0);
	} else if (own->vmcs != NO_VMCS) {
		vmptrld(own->vmcs);
	}
}

/* ---- From the shared area to checked copies. ---- */

static bool is_canonical(u64 address)
{
	return (u64)((s64)(address << 16) >> 16) == address;
}

static u32 check_controls(const struct vmm_vmx *in)
{
	if (in->primary & ~(PRIMARY_CALLERS & config.primary_allowed) ||
	    in->secondary & ~(SECONDARY_CALLERS & config.secondary_allowed))
		return VMM_REASON_CONTROLS;
	if (in->options & ~VMM_VMX_INTERCEPT_ALL_MSRS)
		return VMM_REASON_OPTIONS;
	if (~in->cr0_mask & ~(u64)GUESTS_CR0 || ~in->cr4_mask & ~(u64)GUESTS_CR4)
		return VMM_REASON_MASKS;
	return VMM_REASON_NONE;
}

/* SDM Vol. 3C "Checks on the Guest State Area", of those where a wrong value would leave the guest another mode than is said. */
static u32 check_system(const struct vmm_vmx *in)
{
	bool long_mode = in->efer & EFER_LME && in->cr0 & X86_CR0_PG;

	if (in->efer & ~(u64)GUEST_EFER)
		return VMM_REASON_EFER;
	if (in->cr0 >> 32 || (in->cr0 & X86_CR0_NW && !(in->cr0 & X86_CR0_CD)) ||
	    (in->cr0 & X86_CR0_PG && !(in->cr0 & X86_CR0_PE)))
		return VMM_REASON_CR0;
	if (in->cr3 >> boot_cpu_data.x86_phys_bits)
		return VMM_REASON_CR3;
	if (in->cr4 & ~vmm_guest_cr4())
		return VMM_REASON_CR4;
	if (long_mode != !!(in->efer & EFER_LMA) || (long_mode && !(in->cr4 & X86_CR4_PAE)) ||
	    (!long_mode && in->cr4 & X86_CR4_PCIDE))
		return VMM_REASON_LONG_MODE;
	if (in->dr7 >> 32)
		return VMM_REASON_DEBUG;
	if (!is_canonical(in->lstar) || !is_canonical(in->kernel_gs_base) || in->sfmask >> 32)
		return VMM_REASON_MSR;
	return VMM_REASON_NONE;
}

static u32 check_event(u32 event, u32 interruptibility)
{
	u32 type = event & INTR_INFO_INTR_TYPE_MASK, vector = event & INTR_INFO_VECTOR_MASK;

	if (interruptibility & ~CALLERS_INTERRUPTIBILITY)
		return VMM_REASON_INTERRUPT_CONTROL;
	if (event & INTR_INFO_VALID_MASK &&
	    (event & ~EVENT_FIELDS ||
	     (type != INTR_TYPE_EXT_INTR && type != INTR_TYPE_NMI_INTR && type != INTR_TYPE_HARD_EXCEPTION) ||
	     (type == INTR_TYPE_NMI_INTR && vector != X86_TRAP_NMI) ||
	     (type == INTR_TYPE_HARD_EXCEPTION && (vector == X86_TRAP_NMI || vector > 31))))
		return VMM_REASON_EVENT;
	return VMM_REASON_NONE;
}

#define COPY_FIELDS(to, from, first, last)                                                                            \
	memcpy((u8 *)(to) + offsetof(struct vmm_vmx, first), (const u8 *)(from) + offsetof(struct vmm_vmx, first),     \
	       offsetofend(struct vmm_vmx, last) - offsetof(struct vmm_vmx, first))

static void copy_groups(struct vmm_vmx *to, const struct vmm_vmx *from, u32 groups)
{
	if (groups & VMM_DIRTY_CONTROLS)
		COPY_FIELDS(to, from, primary, small_exits);
	if (groups & VMM_DIRTY_SEGMENTS)
		COPY_FIELDS(to, from, es, tr);
	if (groups & VMM_DIRTY_SYSTEM)
		COPY_FIELDS(to, from, efer, pdptes);
	if (groups & VMM_DIRTY_DEBUG)
		COPY_FIELDS(to, from, dr7, dr7);
	if (groups & VMM_DIRTY_MSRS)
		COPY_FIELDS(to, from, star, sysenter_eip);
	barrier(); /* What is checked is what is used. */
}

/* The groups that the caller has changed.  A reason if they may not be. */
static noinline u32 load_groups(struct vmm_vcpu *vcpu, u32 dirty)
{
	struct vmx_vcpu *v = vcpu->vmx;
	u32 reason;

	copy_groups(&v->in, &vcpu->area->vmx, dirty);
	reason = check_controls(&v->in);
	if (!reason)
		reason = check_system(&v->in);
	if (!reason)
		reason = vmm_load_common(vcpu, dirty);
	if (reason)
		return reason;
	v->tsc_offset = READ_ONCE(vcpu->area->tsc_offset);
	if (dirty & VMM_DIRTY_SYSTEM)
		v->cr2 = v->in.cr2;
	if (dirty & VMM_DIRTY_MSRS)
		v->kernel_gs_base = v->in.kernel_gs_base;
	v->flush |= !!(dirty & VMM_DIRTY_TLB);
	return VMM_REASON_NONE;
}

static u32 load(struct vmm_vcpu *vcpu, u32 dirty)
{
	struct vmm_vcpu_area *area = vcpu->area;
	struct vmx_vcpu *v = vcpu->vmx;
	u32 event = READ_ONCE(area->vmx.event_inj), interruptibility = READ_ONCE(area->vmx.interruptibility);
	u32 reason = check_event(event, interruptibility);

	if (unlikely(dirty) && !reason)
		reason = load_groups(vcpu, dirty);
	if (unlikely(reason))
		return reason;
	v->event = event & INTR_INFO_VALID_MASK ? event : 0;
	v->event_error = READ_ONCE(area->vmx.event_inj_error);
	v->in.interruptibility = interruptibility;
	v->rip = READ_ONCE(area->rip);
	v->rsp = READ_ONCE(area->gpr[4]);
	v->rflags = READ_ONCE(area->rflags);
	v->dirty |= dirty | REGISTERS;
	vcpu->stored |= dirty | REGISTERS;
	return VMM_REASON_NONE;
}

/* ---- The VMCS.  It is current. ---- */

/*
 * Where the area has the VMCS's segments, as indices from `es`: ES to GS, LDTR and TR; then GDTR and IDTR, which have a limit and
 * a base only.
 */
static const u8 places[] = { 0, 1, 2, 3, 4, 5, 7, 9, 6, 8 };
#define SELECTORS 8
static_assert(offsetof(struct vmm_vmx, tr) - offsetof(struct vmm_vmx, es) == 9 * sizeof(struct vmm_segment));
static_assert(GUEST_GDTR_LIMIT == GUEST_ES_LIMIT + 2 * SELECTORS && GUEST_GDTR_BASE == GUEST_ES_BASE + 2 * SELECTORS);

static void write_segments(const struct vmm_vmx *in)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(places); i++) {
		const struct vmm_segment *from = &in->es + places[i];

		vmwrite(GUEST_ES_LIMIT + 2 * i, from->limit);
		vmwrite(GUEST_ES_BASE + 2 * i, from->base);
		if (i >= SELECTORS)
			continue;
		vmwrite(GUEST_ES_SELECTOR + 2 * i, from->selector);
		/* SDM Vol. 3C "Guest Register State": bits 55:52 of the descriptor are in 15:12; bit 16, unusable. */
		vmwrite(GUEST_ES_AR_BYTES + 2 * i, (from->attributes & 0xff) | (from->attributes & 0xf00) << 4 |
							   (from->attributes & 0x80 ? 0 : BIT(16)));
	}
}

static void read_segments(struct vmm_vmx *out)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(places); i++) {
		struct vmm_segment *to = &out->es + places[i];
		u32 rights;

		to->limit = vmread(GUEST_ES_LIMIT + 2 * i);
		to->base = vmread(GUEST_ES_BASE + 2 * i);
		if (i >= SELECTORS)
			continue;
		rights = vmread(GUEST_ES_AR_BYTES + 2 * i);
		to->selector = vmread(GUEST_ES_SELECTOR + 2 * i);
		to->attributes = (rights & 0xff & ~(rights >> 9 & 0x80)) | (rights >> 4 & 0xf00);
	}
}

static bool uses_pdptes(u64 cr0, u64 cr4, u64 efer)
{
	return cr0 & X86_CR0_PG && cr4 & X86_CR4_PAE && !(efer & EFER_LMA);
}

static void write_system(const struct vmm_vmx *in)
{
	int i;

	vmwrite(GUEST_CR0, in->cr0 | X86_CR0_NE);
	vmwrite(GUEST_CR3, in->cr3);
	vmwrite(GUEST_CR4, in->cr4 | X86_CR4_VMXE);
	vmwrite(GUEST_IA32_EFER, in->efer);
	vmwrite(VM_ENTRY_CONTROLS, config.entry | (in->efer & EFER_LMA ? VM_ENTRY_IA32E_MODE : 0));
	for (i = 0; i < 4 && uses_pdptes(in->cr0, in->cr4, in->efer); i++)
		vmwrite(GUEST_PDPTR0 + 2 * i, in->pdptes[i]);
}

static void read_system(struct vmm_vmx *out, u64 efer)
{
	u64 cr0 = vmread(GUEST_CR0), cr4 = vmread(GUEST_CR4) & ~(u64)X86_CR4_VMXE;
	int i;

	out->cr0 = cr0;
	out->cr3 = vmread(GUEST_CR3);
	out->cr4 = cr4;
	for (i = 0; i < 4 && uses_pdptes(cr0, cr4, efer); i++)
		out->pdptes[i] = vmread(GUEST_PDPTR0 + 2 * i);
}

static void write_controls(const struct vmx_vcpu *v)
{
	const struct vmm_vmx *in = &v->in;

	vmwrite(CPU_BASED_VM_EXEC_CONTROL, in->primary | config.primary);
	vmwrite(SECONDARY_VM_EXEC_CONTROL, in->secondary | config.secondary);
	vmwrite(EXCEPTION_BITMAP, in->exceptions | EXCEPTIONS_MANDATORY);
	vmwrite(MSR_BITMAP, __pa(in->options & VMM_VMX_INTERCEPT_ALL_MSRS ? msr_bitmap_all : msr_bitmap));
	vmwrite(CR0_GUEST_HOST_MASK, in->cr0_mask);
	vmwrite(CR4_GUEST_HOST_MASK, in->cr4_mask);
	vmwrite(CR0_READ_SHADOW, in->cr0_shadow);
	vmwrite(CR4_READ_SHADOW, in->cr4_shadow);
	vmwrite(TSC_OFFSET, v->tsc_offset);
}

static void write_registers(struct vmx_vcpu *v)
{
	vmwrite(GUEST_RIP, v->rip);
	vmwrite(GUEST_RSP, v->rsp);
	vmwrite(GUEST_RFLAGS, v->rflags);
	vmwrite(GUEST_INTERRUPTIBILITY_INFO, v->in.interruptibility);
}

/* What stays as it is for the life of a VMCS, or until it is run on another CPU. */
static void write_constants(struct vmm_vcpu *vcpu)
{
	static const u16 zeros[] = { CR3_TARGET_COUNT, PAGE_FAULT_ERROR_CODE_MASK, PAGE_FAULT_ERROR_CODE_MATCH,
				     VM_EXIT_MSR_STORE_COUNT, VM_EXIT_MSR_LOAD_COUNT, VM_ENTRY_MSR_LOAD_COUNT,
				     GUEST_IA32_DEBUGCTL, GUEST_ACTIVITY_STATE, GUEST_PENDING_DBG_EXCEPTIONS,
				     HOST_DS_SELECTOR, HOST_ES_SELECTOR, HOST_FS_SELECTOR, HOST_GS_SELECTOR };
	int i;

	vmwrite(VIRTUAL_PROCESSOR_ID, 0xffff - vcpu->index);
	vmwrite(PIN_BASED_VM_EXEC_CONTROL, config.pin);
	if (config.pin & PIN_BASED_VMX_PREEMPTION_TIMER)
		vmwrite(VMX_PREEMPTION_TIMER_VALUE, config.timer);
	vmwrite(VM_EXIT_CONTROLS, config.exit);
	vmwrite(VMCS_LINK_POINTER, NO_VMCS);
	for (i = 0; i < ARRAY_SIZE(zeros); i++)
		vmwrite(zeros[i], 0);
	if (config.secondary & SECONDARY_EXEC_ENCLS_EXITING)
		vmwrite(ENCLS_EXITING_BITMAP, ~0ull);
	if (config.secondary & SECONDARY_EXEC_XSAVES)
		vmwrite(XSS_EXIT_BITMAP, 0);
	vmwrite(HOST_CS_SELECTOR, __KERNEL_CS);
	vmwrite(HOST_SS_SELECTOR, __KERNEL_DS);
	vmwrite(HOST_RIP, (unsigned long)vmm_vmx_exit);
}

static void write_host_of_cpu(const struct desc_ptr *gdt, const struct desc_ptr *idt)
{
	static const struct {
		u32 field, msr;
	} msrs[] = { { HOST_GS_BASE, MSR_GS_BASE },
		     { HOST_IA32_SYSENTER_CS, MSR_IA32_SYSENTER_CS },
		     { HOST_IA32_SYSENTER_ESP, MSR_IA32_SYSENTER_ESP },
		     { HOST_IA32_SYSENTER_EIP, MSR_IA32_SYSENTER_EIP },
		     { HOST_IA32_EFER, MSR_EFER } };
	u64 value;
	int i;

	vmwrite(HOST_TR_SELECTOR, GDT_ENTRY_TSS * 8);
	vmwrite(HOST_TR_BASE, (u64)&get_cpu_entry_area(raw_smp_processor_id())->tss.x86_tss);
	vmwrite(HOST_GDTR_BASE, gdt->address);
	vmwrite(HOST_IDTR_BASE, idt->address);
	for (i = 0; i < ARRAY_SIZE(msrs); i++) {
		rdmsrl(msrs[i].msr, value);
		vmwrite(msrs[i].field, value);
	}
	vmwrite(HOST_CR0, read_cr0());
}

static void write_host_of_thread(struct vmx_vcpu *v, u64 fs_base)
{
	u64 cr3 = __read_cr3(), cr4 = native_read_cr4();

	if (cr3 != v->host_cr3)
		vmwrite(HOST_CR3, v->host_cr3 = cr3);
	if (cr4 != v->host_cr4)
		vmwrite(HOST_CR4, v->host_cr4 = cr4);
	if (fs_base != v->host_fs_base)
		vmwrite(HOST_FS_BASE, v->host_fs_base = fs_base);
}

/* What this CPU's TLB may know of the guest that is no longer so. */
static void flush_stale(struct vmm_vcpu *vcpu)
{
	struct vmx_vcpu *v = vcpu->vmx;
	u64 flushes = atomic64_read(&vcpu->vm->flushes);
	u64 root;

	smp_rmb(); /* A root that is newer than the number has that of its own. */
	root = __pa(READ_ONCE(vcpu->vm->root));
	if (root != v->root)
		vmwrite(EPT_POINTER, root | EPTP_ATTRIBUTES);
	if (root != v->root || flushes != vcpu->flushes || vcpu->cpu != raw_smp_processor_id() ||
	    vcpu->generation != __this_cpu_read(generation))
		invept(root | EPTP_ATTRIBUTES);
	else if (v->flush)
		invvpid(0xffff - vcpu->index);
	v->root = root;
	v->flush = false;
	vcpu->flushes = flushes;
}

static void write_vmcs(struct vmm_vcpu *vcpu, u64 fs_base, const struct desc_ptr *gdt, const struct desc_ptr *idt)
{
	struct vmx_vcpu *v = vcpu->vmx;

	if (!v->launched_once) {
		write_constants(vcpu);
		v->launched_once = true;
	}
	if (vcpu->cpu != raw_smp_processor_id() || vcpu->generation != __this_cpu_read(generation))
		write_host_of_cpu(gdt, idt);
	write_host_of_thread(v, fs_base);
	flush_stale(vcpu);
	vcpu->cpu = raw_smp_processor_id();
	vcpu->generation = __this_cpu_read(generation);
	if (v->dirty & REGISTERS)
		write_registers(v);
	if (v->dirty & VMM_DIRTY_CONTROLS)
		write_controls(v);
	if (v->dirty & VMM_DIRTY_SEGMENTS)
		write_segments(&v->in);
	if (v->dirty & VMM_DIRTY_SYSTEM)
		write_system(&v->in);
	if (v->dirty & VMM_DIRTY_DEBUG)
		vmwrite(GUEST_DR7, v->in.dr7);
	if (v->dirty & VMM_DIRTY_MSRS) {
		vmwrite(GUEST_SYSENTER_CS, v->in.sysenter_cs);
		vmwrite(GUEST_SYSENTER_ESP, v->in.sysenter_esp);
		vmwrite(GUEST_SYSENTER_EIP, v->in.sysenter_eip);
	}
	v->dirty = 0;
	if (v->event | v->injected) {
		vmwrite(VM_ENTRY_INTR_INFO_FIELD, v->event);
		vmwrite(VM_ENTRY_EXCEPTION_ERROR_CODE, v->event_error);
		v->injected = v->event;
	}
}

/* ---- And back. ---- */

static void store_registers(struct vmm_vcpu *vcpu)
{
	struct vmm_vcpu_area *area = vcpu->area;
	struct vmm_vmx *to = &area->vmx;
	u64 pending = vmread(GUEST_PENDING_DBG_EXCEPTIONS);

	area->rip = vmread(GUEST_RIP);
	area->gpr[4] = vmread(GUEST_RSP);
	area->rflags = vmread(GUEST_RFLAGS);
	to->interruptibility = vmread(GUEST_INTERRUPTIBILITY_INFO) & CALLERS_INTERRUPTIBILITY;
	to->pending_debug = pending;
	if (pending) /* The caller's now. */
		vmwrite(GUEST_PENDING_DBG_EXCEPTIONS, 0);
}

/* What the area has not yet, of these groups. */
static void store_groups(struct vmm_vcpu *vcpu, u32 groups)
{
	groups &= ~vcpu->stored;
	if (groups & REGISTERS)
		store_registers(vcpu);
	if (groups & VMM_DIRTY_SEGMENTS)
		read_segments(&vcpu->area->vmx);
	if (groups & VMM_DIRTY_SYSTEM)
		read_system(&vcpu->area->vmx, vcpu->vmx->in.efer);
	vcpu->stored |= groups;
}

/* The event whose delivery the exit came into the middle of is delivered again. */
static void keep_event(struct vmx_vcpu *v)
{
	u32 event = vmread(IDT_VECTORING_INFO_FIELD), type = event & INTR_INFO_INTR_TYPE_MASK;

	v->event = 0;
	/* RIP is still at the instruction that raised those of software: that is executed again. */
	if (!(event & VECTORING_INFO_VALID_MASK) ||
	    (type != INTR_TYPE_EXT_INTR && type != INTR_TYPE_NMI_INTR && type != INTR_TYPE_HARD_EXCEPTION))
		return;
	v->event = event & EVENT_FIELDS;
	if (event & VECTORING_INFO_DELIVER_CODE_MASK)
		v->event_error = vmread(IDT_VECTORING_ERROR_CODE);
	if (type == INTR_TYPE_NMI_INTR)
		vmwrite(GUEST_INTERRUPTIBILITY_INFO, vmread(GUEST_INTERRUPTIBILITY_INFO) & ~(u64)GUEST_INTR_STATE_NMI);
}

/* An IRET had ended the blocking of NMIs when it faulted, and is executed again. */
static void block_nmis(void)
{
	vmwrite(GUEST_INTERRUPTIBILITY_INFO, vmread(GUEST_INTERRUPTIBILITY_INFO) | GUEST_INTR_STATE_NMI);
}

/* The exit that has just come. */
static void read_exit(struct vmm_vcpu *vcpu)
{
	struct vmx_vcpu *v = vcpu->vmx;
	struct vmm_vmx *to = &vcpu->area->vmx;
	u32 groups = REGISTERS;

	vcpu->stored &= ~(REGISTERS | LAZY);
	v->reason = vmread(VM_EXIT_REASON);
	v->qualification = vmread(EXIT_QUALIFICATION);
	v->exit_event = 0;
	if (v->reason & VMX_EXIT_REASONS_FAILED_VMENTRY) {
		store_groups(vcpu, REGISTERS | LAZY);
		return;
	}
	v->injected = 0;
	keep_event(v);
	switch (v->reason) {
	case EXIT_REASON_EXTERNAL_INTERRUPT:
	case EXIT_REASON_PREEMPTION_TIMER:
	case EXIT_REASON_INIT_SIGNAL:
		return;
	case EXIT_REASON_EPT_VIOLATION:
		v->gpa = vmread(GUEST_PHYSICAL_ADDRESS);
		if (v->qualification & VIOLATION_NMI_UNBLOCKED && !v->event)
			block_nmis();
		return;
	case EXIT_REASON_EXCEPTION_NMI:
		v->exit_event = vmread(VM_EXIT_INTR_INFO);
		if (v->exit_event & INTR_INFO_DELIVER_CODE_MASK)
			to->exit_event_error = vmread(VM_EXIT_INTR_ERROR_CODE);
		if (v->exit_event & VECTORING_NMI_UNBLOCKED && !v->event)
			block_nmis();
		break;
	default:
		break;
	}
	to->instruction_length = vmread(VM_EXIT_INSTRUCTION_LEN);
	if (v->reason >= 64 || !(v->in.small_exits & BIT_ULL(v->reason)))
		groups |= LAZY;
	store_groups(vcpu, groups);
}

/* ---- One entry.  Interrupts are off. ---- */

/* VERW, where microcode has it overwrite the CPU's buffers. */
static void clear_cpu_buffers(void)
{
	static const u16 selector = __KERNEL_DS;

	asm volatile("verw %0" : : "m"(selector) : "cc");
}

/* The administrator has said l1tf=off; a kernel without kvm_intel does not tell. */
static bool is_l1tf_accepted(void)
{
	return IS_ENABLED(CONFIG_KVM_INTEL) && l1tf_mitigation == L1TF_MITIGATION_OFF;
}

/*
 * Intel's guidance on L1TF, MDS, TAA and MMIO stale data: a guest may look into what the host has left in the L1 data cache
 * and in buffers.
 */
static void clear_cache(void)
{
	int i;

	if (!boot_cpu_has_bug(X86_BUG_L1TF) || is_l1tf_accepted())
		return;
	if (boot_cpu_has(X86_FEATURE_FLUSH_L1D)) {
		native_wrmsrl(MSR_IA32_FLUSH_CMD, L1D_FLUSH);
		return;
	}
	/* Pages first, so that no walk comes between the lines. */
	for (i = 0; i < PAGE_SIZE << L1D_FILL_ORDER; i += PAGE_SIZE)
		READ_ONCE(l1d_fill[i]);
#pragma GCC unroll 16
	for (i = 0; i < PAGE_SIZE << L1D_FILL_ORDER; i += 64)
		READ_ONCE(l1d_fill[i]);
	asm volatile("lfence" : : : "memory");
}

static void clear_buffers(void)
{
	if (boot_cpu_has_bug(X86_BUG_MDS) || boot_cpu_has_bug(X86_BUG_TAA) || boot_cpu_has_bug(X86_BUG_MMIO_STALE_DATA))
		clear_cpu_buffers();
}

struct host_segments {
	u16 ds, es, fs, gs;
	u64 fs_base, kernel_gs_base, debugctl;
	struct desc_ptr gdt, idt;
};

static void save_host(struct host_segments *host)
{
	savesegment(ds, host->ds);
	savesegment(es, host->es);
	savesegment(fs, host->fs);
	savesegment(gs, host->gs);
	host->fs_base = __rdmsr(MSR_FS_BASE);
	host->kernel_gs_base = __rdmsr(MSR_KERNEL_GS_BASE);
	host->debugctl = __rdmsr(MSR_IA32_DEBUGCTLMSR);
	native_store_gdt(&host->gdt);
	store_idt(&host->idt);
}

/* An exit leaves limits of 0xffff, null selectors, and no debug control. */
static void restore_host(const struct host_segments *host)
{
	native_load_gdt(&host->gdt);
	native_load_idt(&host->idt);
	if (host->ds | host->es) {
		loadsegment(ds, host->ds);
		loadsegment(es, host->es);
	}
	if (host->fs) {
		loadsegment(fs, host->fs);
		native_wrmsrl(MSR_FS_BASE, host->fs_base);
	}
	if (host->gs) {
		load_gs_index(host->gs);
		native_wrmsrl(MSR_KERNEL_GS_BASE, host->kernel_gs_base);
	}
	if (host->debugctl)
		native_wrmsrl(MSR_IA32_DEBUGCTLMSR, host->debugctl);
}

/* What SYSCALL uses: to the guest's values, from the host's, or back. */
static void switch_syscall_msrs(const struct vmx_vcpu *v, bool to_guest)
{
	if (!(v->in.efer & EFER_SCE))
		return; /* SYSCALL is #UD. */
	if (v->in.star != host_star)
		native_wrmsrl(MSR_STAR, to_guest ? v->in.star : host_star);
	if (v->in.lstar != host_lstar)
		native_wrmsrl(MSR_LSTAR, to_guest ? v->in.lstar : host_lstar);
	if (v->in.sfmask != host_sfmask)
		native_wrmsrl(MSR_SYSCALL_MASK, to_guest ? v->in.sfmask : host_sfmask);
}

static bool is_event(u32 event, u32 type, u32 vector)
{
	return event & INTR_INFO_VALID_MASK && (event & INTR_INFO_INTR_TYPE_MASK) == type &&
	       (event & INTR_INFO_VECTOR_MASK) == vector;
}

/* CPUID by the caller's table.  True: the guest goes on behind it. */
static bool serve_cpuid(struct vmm_vcpu *vcpu)
{
	u64 *gpr = vcpu->area->gpr, rip = vmread(GUEST_RIP), next = rip + vmread(VM_EXIT_INSTRUCTION_LEN);
	u64 rflags = vmread(GUEST_RFLAGS), blocking = vmread(GUEST_INTERRUPTIBILITY_INFO);
	const struct vmm_cpuid_leaf *leaf;

	/* A single step, and a RIP that may have to wrap, are the caller's. */
	if (rflags & X86_EFLAGS_TF || (rip ^ next) >> 32)
		return false;
	leaf = vmm_find_cpuid(vcpu, READ_ONCE(gpr[0]), READ_ONCE(gpr[1]));
	if (!leaf)
		return false;
	gpr[0] = leaf->eax;
	gpr[1] = leaf->ecx;
	gpr[2] = leaf->edx;
	gpr[3] = leaf->ebx;
	vmwrite(GUEST_RIP, next);
	if (rflags & X86_EFLAGS_RF)
		vmwrite(GUEST_RFLAGS, rflags & ~(u64)X86_EFLAGS_RF);
	if (blocking & (GUEST_INTR_STATE_STI | GUEST_INTR_STATE_MOV_SS))
		vmwrite(GUEST_INTERRUPTIBILITY_INFO,
			blocking & ~(u64)(GUEST_INTR_STATE_STI | GUEST_INTR_STATE_MOV_SS));
	vcpu->area->served++;
	return true;
}

static void enter(struct vmm_vcpu *vcpu)
{
	struct vmx_vcpu *v = vcpu->vmx;
	struct host_segments host;
	struct ownership own;
	struct vmm_host switched;
	bool resume = false;

	save_host(&host);
	v->entered = false;
	v->failure = 0;
	if (!own_vmx(v, &own))
		return;
	write_vmcs(vcpu, host.fs_base, &host.gdt, &host.idt);
	vmm_switch_to_guest(vcpu, &switched, v->in.dr7);
	native_wrmsrl(MSR_KERNEL_GS_BASE, v->kernel_gs_base);
	switch_syscall_msrs(v, true);
	if (native_read_cr2() != v->cr2)
		native_write_cr2(v->cr2);
	clear_cache();
	/* What waits for the host ends the next entry at once.  Between two entries nothing of the host's gets into the cache. */
	do {
		clear_buffers();
		v->entered = vmm_vmx_enter(vcpu->area->gpr, resume);
		resume = true;
	} while (v->entered && vmread(VM_EXIT_REASON) == EXIT_REASON_CPUID && serve_cpuid(vcpu));
	v->cr2 = native_read_cr2();
	v->kernel_gs_base = __rdmsr(MSR_KERNEL_GS_BASE);
	native_wrmsrl(MSR_KERNEL_GS_BASE, host.kernel_gs_base);
	switch_syscall_msrs(v, false);
	vmm_switch_to_host(vcpu, &switched);
	if (v->entered) {
		restore_host(&host);
		read_exit(vcpu);
	} else {
		v->failure = vmread(VM_INSTRUCTION_ERROR);
	}
	disown_vmx(v, &own);
	/* The host's, as the CPU would have served them outside of a guest.  Behind the first, NMIs are blocked until its IRET. */
	if (v->entered && is_event(v->exit_event, INTR_TYPE_NMI_INTR, X86_TRAP_NMI))
		asm volatile("int $2");
	else if (v->entered && is_event(v->exit_event, INTR_TYPE_HARD_EXCEPTION, X86_TRAP_MC))
		asm volatile("int $18");
}

/* With interrupts on. */
static void fetch_groups(struct vmm_vcpu *vcpu, u32 groups)
{
	struct vmx_vcpu *v = vcpu->vmx;
	struct ownership own;

	if (!(groups & ~vcpu->stored))
		return;
	local_irq_disable();
	if (own_vmx(v, &own)) {
		store_groups(vcpu, groups);
		disown_vmx(v, &own);
	}
	local_irq_enable();
}

/* True: the guest goes on. */
static bool handle(struct vmm_vcpu *vcpu)
{
	struct vmx_vcpu *v = vcpu->vmx;

	if (unlikely(!v->entered)) {
		WRITE_ONCE(vcpu->area->error, v->failure);
		WRITE_ONCE(vcpu->area->exit_kind, VMM_EXIT_FAILED);
		return false;
	}
	WRITE_ONCE(vcpu->area->exit_kind, VMM_EXIT_HARDWARE);
	switch (v->reason) {
	case EXIT_REASON_EXTERNAL_INTERRUPT:
	case EXIT_REASON_PREEMPTION_TIMER:
	case EXIT_REASON_INIT_SIGNAL:
		return true;
	case EXIT_REASON_EXCEPTION_NMI:
		return is_event(v->exit_event, INTR_TYPE_NMI_INTR, X86_TRAP_NMI) ||
		       is_event(v->exit_event, INTR_TYPE_HARD_EXCEPTION, X86_TRAP_MC);
	case EXIT_REASON_EPT_VIOLATION:
		if (vmm_fault(vcpu, v->gpa, v->qualification & VIOLATION_WRITE))
			return true;
		fetch_groups(vcpu, REGISTERS | LAZY);
		return false;
	default:
		return false;
	}
}

static void store(struct vmm_vcpu *vcpu)
{
	struct vmx_vcpu *v = vcpu->vmx;
	struct vmm_vmx *to = &vcpu->area->vmx;

	fetch_groups(vcpu, REGISTERS);
	to->exit_reason = v->reason;
	to->exit_qualification = v->qualification;
	to->guest_physical = v->gpa;
	to->exit_event = v->exit_event;
	to->event_inj = v->event;
	to->event_inj_error = v->event_error;
	to->cr2 = v->cr2;
	to->kernel_gs_base = v->kernel_gs_base;
}

static int run(struct vmm_vcpu *vcpu)
{
	return vmm_run(vcpu, load, enter, handle, store);
}

static void fetch(struct vmm_vcpu *vcpu)
{
	fetch_groups(vcpu, LAZY);
}

/* ---- vCPUs ---- */

static int create_vcpu(struct vmm_vcpu *vcpu)
{
	struct vmx_vcpu *v = kzalloc(sizeof(*v), GFP_KERNEL_ACCOUNT);

	vcpu->vmx = v; /* destroy_vcpu() comes behind a failure too. */
	if (!v)
		return -ENOMEM;
	v->vmcs = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (!v->vmcs)
		return -ENOMEM;
	*(u32 *)v->vmcs = vmx_basic_vmcs_revision_id(config.basic);
	v->root = NO_VMCS;
	vcpu->stored |= REGISTERS;
	v->in.dr7 = 0x400;
	return 0;
}

static void destroy_vcpu(struct vmm_vcpu *vcpu)
{
	if (vcpu->vmx)
		free_page((unsigned long)vcpu->vmx->vmcs);
	kfree(vcpu->vmx);
}

/* ---- CPUs ---- */

/* The controls that an MSR allows: 31:0 must be 1, 63:32 may be.  False: not all that is wanted. */
static bool read_controls(u32 msr, u32 wanted, u32 *always, u32 *allowed)
{
	u64 value;

	if (rdmsrl_safe(msr, &value))
		return false;
	*always = wanted | (u32)value;
	*allowed = value >> 32;
	return !(*always & ~*allowed);
}

static int read_config(struct config *to)
{
	const u32 ept_extents = VMX_EPT_EXTENT_CONTEXT_BIT | VMX_EPT_EXTENT_GLOBAL_BIT;
	const u32 vpid_extents = VMX_VPID_EXTENT_SINGLE_CONTEXT_BIT | VMX_VPID_EXTENT_GLOBAL_CONTEXT_BIT;
	const u32 ept_needed = VMX_EPT_PAGE_WALK_4_BIT | VMX_EPTP_WB_BIT | VMX_EPT_INVEPT_BIT;
	bool exact;
	u64 caps, misc;
	u32 ignored, pin = PIN_MANDATORY | (guest_ticks ? PIN_BASED_VMX_PREEMPTION_TIMER : 0);

	memset(to, 0, sizeof(*to));
	if (rdmsrl_safe(MSR_IA32_VMX_BASIC, &to->basic))
		return -EOPNOTSUPP;
	exact = to->basic & VMX_BASIC_TRUE_CTLS;
	if (!read_controls(exact ? MSR_IA32_VMX_TRUE_PINBASED_CTLS : MSR_IA32_VMX_PINBASED_CTLS, pin, &to->pin, &ignored) ||
	    !read_controls(exact ? MSR_IA32_VMX_TRUE_PROCBASED_CTLS : MSR_IA32_VMX_PROCBASED_CTLS, PRIMARY_MANDATORY,
			   &to->primary, &to->primary_allowed) ||
	    !read_controls(MSR_IA32_VMX_PROCBASED_CTLS2, SECONDARY_MANDATORY, &to->secondary, &to->secondary_allowed) ||
	    !read_controls(exact ? MSR_IA32_VMX_TRUE_EXIT_CTLS : MSR_IA32_VMX_EXIT_CTLS, EXIT_MANDATORY, &to->exit,
			   &ignored) ||
	    !read_controls(exact ? MSR_IA32_VMX_TRUE_ENTRY_CTLS : MSR_IA32_VMX_ENTRY_CTLS, ENTRY_MANDATORY, &to->entry,
			   &ignored) ||
	    rdmsrl_safe(MSR_IA32_VMX_EPT_VPID_CAP, &caps) || rdmsrl_safe(MSR_IA32_VMX_MISC, &misc))
		return -EOPNOTSUPP;
	to->timer = min_t(u64, guest_ticks >> vmx_misc_preemption_timer_rate(misc), U32_MAX);
	to->secondary |= SECONDARY_OPTIONAL & to->secondary_allowed;
	to->ept = caps;
	to->vpid = caps >> 32;
	if ((to->ept & ept_needed) != ept_needed || !(to->ept & ept_extents) || !(to->vpid & VMX_VPID_INVVPID_BIT) ||
	    !(to->vpid & vpid_extents))
		return -EOPNOTSUPP;
	return 0;
}

static int check_cpu(unsigned int number)
{
	struct config here;
	u64 control;

	if (!(cpuid_ecx(1) & BIT(5)) || rdmsrl_safe(MSR_IA32_FEAT_CTL, &control) || !(control & FEAT_CTL_LOCKED) ||
	    !(control & FEAT_CTL_VMX_ENABLED_OUTSIDE_SMX)) {
		pr_err("CPU %u has no VMX, or the firmware has disabled it (IA32_FEATURE_CONTROL)\n", number);
		return -EPERM;
	}
	if (read_config(&here) || memcmp(&here, &config, sizeof(here))) {
		pr_err("CPU %u has other VMX capabilities than the first one\n", number);
		return -EOPNOTSUPP;
	}
	__this_cpu_inc(generation);
	return 0;
}

static void free_all(void)
{
	int number;

	for_each_possible_cpu(number)
		if (per_cpu(vmxon_region, number))
			__free_page(per_cpu(vmxon_region, number));
	free_page((unsigned long)msr_bitmap);
	free_page((unsigned long)msr_bitmap_all);
	free_pages((unsigned long)l1d_fill, L1D_FILL_ORDER);
}

static int allocate_all(void)
{
	int number;

	for_each_possible_cpu(number) {
		struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO);

		per_cpu(vmxon_region, number) = page;
		if (!page)
			return -ENOMEM;
		*(u32 *)page_address(page) = vmx_basic_vmcs_revision_id(config.basic);
	}
	msr_bitmap = (void *)__get_free_page(GFP_KERNEL);
	msr_bitmap_all = (void *)__get_free_page(GFP_KERNEL);
	l1d_fill = (void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, L1D_FILL_ORDER);
	return msr_bitmap && msr_bitmap_all && l1d_fill ? 0 : -ENOMEM;
}

static void pass_msr(u32 index)
{
	/* SDM Vol. 3C "MSR-Bitmap Address": reads of the low and the high MSRs, then writes; 1 KiB each. */
	u32 bit = (index & 0x1fff) + (index >= 0xc0000000 ? 0x2000 : 0);

	__clear_bit(bit, msr_bitmap);
	__clear_bit(bit + 0x4000, msr_bitmap);
}

static int init(void)
{
	int error = read_config(&config);

	if (error)
		return error;
	rdmsrl(MSR_STAR, host_star);
	rdmsrl(MSR_LSTAR, host_lstar);
	rdmsrl(MSR_SYSCALL_MASK, host_sfmask);
	vmm_vmx.largest = !(config.ept & VMX_EPT_2MB_PAGE_BIT) ? 1 : config.ept & VMX_EPT_1GB_PAGE_BIT ? 3 : 2;
	vmm_vmx.features = VMM_FEATURE_NEXT_RIP |
			   (config.secondary_allowed & SECONDARY_EXEC_ENABLE_RDTSCP ? VMM_FEATURE_RDTSCP : 0) |
			   (config.secondary_allowed & SECONDARY_EXEC_ENABLE_INVPCID ? VMM_FEATURE_INVPCID : 0) |
			   (config.secondary & SECONDARY_EXEC_XSAVES ? VMM_FEATURE_XSAVES : 0);
	error = allocate_all();
	if (error)
		return error;
	memset(msr_bitmap, 0xff, PAGE_SIZE);
	memset(msr_bitmap_all, 0xff, PAGE_SIZE);
	pass_msr(MSR_FS_BASE);
	pass_msr(MSR_GS_BASE);
	pass_msr(MSR_KERNEL_GS_BASE);
	return 0;
}

struct vmm_vendor vmm_vmx = {
	.id = VMM_VENDOR_VMX,
	.table_bits = EPT_READ_EXECUTE | EPT_WRITE,
	.page_bits = EPT_READ_EXECUTE | EPT_WRITE_BACK | EPT_IGNORE_PAT,
	.init = init,
	.levels = EPT_LEVELS,
	.exit = free_all,
	.check_cpu = check_cpu,
	.create_vcpu = create_vcpu,
	.destroy_vcpu = destroy_vcpu,
	.run = run,
	.fetch = fetch,
};
