// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/vmm: VMs and vCPUs as file descriptors.  ABI.md says what each call does.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/anon_inodes.h>
#include <linux/cpuhotplug.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/static_call.h>
#include <linux/uaccess.h>

#include "helper.h"

struct vmm_vendor *vmm_vendor;
DEFINE_STATIC_CALL(vendor_run, vmm_svm_run);

static enum cpuhp_state hotplug_state;
static atomic64_t serials = ATOMIC64_INIT(0);

static void nothing(void *unused)
{
}

/* Ends guest code on these CPUs and returns when it is left. */
void vmm_interrupt_cpus(const struct cpumask *cpus)
{
	preempt_disable();
	smp_call_function_many(cpus, nothing, NULL, true);
	preempt_enable();
}

unsigned int vmm_guest_address_bits(void)
{
	return min_t(unsigned int, boot_cpu_data.x86_phys_bits, 48);
}

static void free_vm(struct kref *references)
{
	struct vmm_vm *vm = container_of(references, struct vmm_vm, references);

	vmm_memory_destroy(vm);
	mmdrop(vm->mm);
	kfree(vm);
}

/* ---- vCPUs ---- */

static long run(struct vmm_vcpu *vcpu)
{
	struct vmm_vcpu_area *area = vcpu->area;
	long result;

	WRITE_ONCE(area->running, 1);
	smp_mb(); /* Whoever sets immediate_exit looks at `running` behind it. */
	result = static_call(vendor_run)(vcpu);
	WRITE_ONCE(area->running, 0);
	return result;
}

static long fetch(struct vmm_vcpu *vcpu)
{
	vmm_vendor->fetch(vcpu);
	vcpu->area->stored = vcpu->stored & VMM_DIRTY_ALL;
	return 0;
}

static long kick(struct vmm_vcpu *vcpu)
{
	int cpu = READ_ONCE(vcpu->guest_cpu);

	if (cpu >= 0)
		smp_call_function_single(cpu, nothing, NULL, 0);
	return 0;
}

static noinline long set_cpuid(struct vmm_vcpu *vcpu, void __user *user)
{
	struct vmm_cpuid cpuid;
	long result;

	if (copy_from_user(&cpuid, user, sizeof(cpuid)))
		return -EFAULT;
	cpuid.reason = VMM_REASON_NONE;
	result = vmm_set_cpuid(vcpu, &cpuid);
	return result && copy_to_user(user, &cpuid, sizeof(cpuid)) ? -EFAULT : result;
}

static long vcpu_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	struct vmm_vcpu *vcpu = file->private_data;
	long result;

	if (unlikely(argument && request != VMM_SET_CPUID))
		return -EINVAL;
	if (unlikely(request == VMM_KICK))
		return kick(vcpu);
	if (current->mm != vcpu->vm->mm)
		return -EIO;
	if (test_and_set_bit_lock(0, &vcpu->busy))
		return -EBUSY;
	if (likely(request == VMM_RUN))
		result = run(vcpu);
	else if (request == VMM_FETCH)
		result = fetch(vcpu);
	else if (request == VMM_SET_CPUID)
		result = set_cpuid(vcpu, (void __user *)argument);
	else
		result = -ENOTTY;
	clear_bit_unlock(0, &vcpu->busy);
	return result;
}

static vm_fault_t area_fault(struct vm_fault *fault)
{
	struct vmm_vcpu *vcpu = fault->vma->vm_file->private_data;

	if (fault->pgoff)
		return VM_FAULT_SIGBUS;
	fault->page = virt_to_page(vcpu->area);
	get_page(fault->page);
	return 0;
}

static const struct vm_operations_struct area_operations = { .fault = area_fault };

static int vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED) || vma->vm_flags & VM_EXEC)
		return -EINVAL;
	vma->vm_ops = &area_operations;
	return 0;
}

/* One that is in vm->vcpus, or whose link is empty. */
static void free_vcpu(struct vmm_vcpu *vcpu)
{
	spin_lock(&vcpu->vm->table_lock);
	list_del(&vcpu->link);
	spin_unlock(&vcpu->vm->table_lock);
	vmm_vendor->destroy_vcpu(vcpu);
	free_page((unsigned long)vcpu->area);
	kvfree(vcpu->cpuid);
	kfree(vcpu);
}

static int vcpu_release(struct inode *inode, struct file *file)
{
	struct vmm_vcpu *vcpu = file->private_data;
	struct vmm_vm *vm = vcpu->vm;

	free_vcpu(vcpu);
	kref_put(&vm->references, free_vm);
	return 0;
}

static const struct file_operations vcpu_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = vcpu_ioctl,
	.mmap = vcpu_mmap,
	.release = vcpu_release,
	.llseek = noop_llseek,
};

/* False: there is one of that id. */
static bool add_vcpu(struct vmm_vm *vm, struct vmm_vcpu *vcpu)
{
	struct vmm_vcpu *other;
	bool unique = true;

	spin_lock(&vm->table_lock);
	list_for_each_entry(other, &vm->vcpus, link)
		if (other->index == vcpu->index)
			unique = false;
	if (unique)
		list_add(&vcpu->link, &vm->vcpus);
	spin_unlock(&vm->table_lock);
	return unique;
}

static long create_vcpu(struct vmm_vm *vm, struct vmm_create *create)
{
	struct vmm_vcpu *vcpu;
	long result = -ENOMEM;

	if (create->argument >= VMM_VCPU_ID_END) {
		create->reason = VMM_REASON_VCPU_ID;
		return -EINVAL;
	}
	vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL_ACCOUNT);
	if (!vcpu)
		return -ENOMEM;
	vcpu->vm = vm;
	vcpu->index = create->argument;
	vcpu->guest_cpu = vcpu->cpu = -1;
	vcpu->serial = atomic64_inc_return(&serials);
	vcpu->refused = vcpu->stored = VMM_DIRTY_ALL;
	INIT_LIST_HEAD(&vcpu->link);
	vcpu->area = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (!vcpu->area)
		goto fail;
	vcpu->area->xcr0 = XFEATURE_MASK_FP;
	vcpu->area->stored = VMM_DIRTY_ALL;
	result = vmm_vendor->create_vcpu(vcpu);
	if (result)
		goto fail;
	result = -EEXIST;
	if (!add_vcpu(vm, vcpu)) {
		create->reason = VMM_REASON_VCPU_ID;
		goto fail;
	}
	kref_get(&vm->references);
	result = anon_inode_getfd("vmm-vcpu", &vcpu_operations, vcpu, O_RDWR | O_CLOEXEC);
	if (result >= 0)
		return result;
	kref_put(&vm->references, free_vm); /* Not the last: the VM's file is open. */
fail:
	free_vcpu(vcpu);
	return result;
}

/* ---- VMs ---- */

static long vm_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	struct vmm_vm *vm = file->private_data;
	void __user *user = (void __user *)argument;
	union {
		struct vmm_create create;
		struct vmm_region region;
		struct vmm_dirty dirty;
	} data;
	u32 *reason;
	long result;

	if (_IOC_TYPE(request) != VMM_IOCTL || _IOC_SIZE(request) > sizeof(data))
		return -ENOTTY;
	switch (request) {
	case VMM_CREATE_VCPU:
		reason = &data.create.reason;
		break;
	case VMM_SET_REGION:
		reason = &data.region.reason;
		break;
	case VMM_TAKE_DIRTY:
		reason = &data.dirty.reason;
		break;
	default:
		return -ENOTTY;
	}
	if (copy_from_user(&data, user, _IOC_SIZE(request)))
		return -EFAULT;
	*reason = VMM_REASON_NONE;
	if (current->mm != vm->mm) {
		*reason = VMM_REASON_OTHER_PROCESS;
		result = -EIO;
	} else if (request == VMM_CREATE_VCPU) {
		result = create_vcpu(vm, &data.create);
	} else if (request == VMM_SET_REGION) {
		result = vmm_set_region(vm, &data.region);
	} else {
		result = vmm_take_dirty(vm, &data.dirty);
	}
	/* The reason is all that comes back, and only with a failure. */
	if (result < 0 && copy_to_user(user, &data, _IOC_SIZE(request)))
		return -EFAULT;
	return result;
}

static int vm_release(struct inode *inode, struct file *file)
{
	struct vmm_vm *vm = file->private_data;

	kref_put(&vm->references, free_vm);
	return 0;
}

static const struct file_operations vm_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = vm_ioctl,
	.release = vm_release,
	.llseek = noop_llseek,
};

static long create_vm(void)
{
	struct vmm_vm *vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	long result;

	if (!vm)
		return -ENOMEM;
	kref_init(&vm->references);
	result = vmm_memory_init(vm);
	if (result) {
		kfree(vm);
		return result;
	}
	vm->mm = current->mm;
	mmgrab(vm->mm);
	result = anon_inode_getfd("vmm-vm", &vm_operations, vm, O_RDWR | O_CLOEXEC);
	if (result < 0)
		kref_put(&vm->references, free_vm);
	return result;
}

/* ---- The device ---- */

static long device_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	void __user *user = (void __user *)argument;
	struct vmm_info info = {
		.version = VMM_ABI_VERSION,
		.vendor = vmm_vendor->id,
		.features = vmm_vendor->features,
		.max_vcpus = VMM_VCPU_ID_END,
		.max_regions = VMM_MAX_REGIONS,
		.vcpu_area_size = sizeof(struct vmm_vcpu_area),
		.guest_address_bits = vmm_guest_address_bits(),
	};
	struct vmm_create create;

	switch (request) {
	case VMM_GET_INFO:
		return copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
	case VMM_CREATE_VM:
		if (copy_from_user(&create, user, sizeof(create)))
			return -EFAULT;
		if (create.argument == VMM_ABI_VERSION)
			return create_vm();
		create.reason = VMM_REASON_VERSION;
		return copy_to_user(user, &create, sizeof(create)) ? -EFAULT : -EPROTO;
	default:
		return -ENOTTY;
	}
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = VMM_DEVICE,
	.fops = &device_operations,
	.mode = 0660,
};

static int __init vmm_init(void)
{
	int error;

	vmm_vendor = boot_cpu_has(X86_FEATURE_VMX) ? &vmm_vmx : &vmm_svm;
	static_call_update(vendor_run, vmm_vendor->run);
	vmm_host_init();
	error = vmm_vendor->init();
	if (error) {
		pr_err("this machine's CPUs have no usable SVM with nested paging, nor VMX with EPT, VPID and unrestricted guests (%d)\n",
		       error);
		goto fail;
	}
	error = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "virt/vmm:online", vmm_vendor->check_cpu, vmm_vendor->leave_cpu);
	if (error < 0)
		goto fail;
	hotplug_state = error;
	error = misc_register(&device);
	if (!error)
		return 0;
	cpuhp_remove_state(hotplug_state);
fail:
	vmm_vendor->exit();
	return error;
}

static void __exit vmm_exit(void)
{
	misc_deregister(&device);
	cpuhp_remove_state(hotplug_state);
	vmm_vendor->exit();
}

module_init(vmm_init);
module_exit(vmm_exit);
MODULE_DESCRIPTION("Entry to guests for the vmm library");
MODULE_LICENSE("GPL");
