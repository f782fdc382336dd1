// SPDX-License-Identifier: Apache-2.0
//
// A client of /dev/kvm that measures what its ioctls cost: a line "NAME NANOSECONDS" for each.  Without /dev/kvm it
// has the one of another descriptor alone.  See ioctl.sh.

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include <linux/kvm.h>

enum { calls = 20000, rounds = 15 };

/// Of this thread's own: what others take from the machine is not in it.
static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/// The median of the rounds.
static void measure(const char *name, int fd, unsigned long request, void *argument)
{
    double each[rounds];
    for (int round = 0; round < rounds; round++) {
        const double start = now();
        for (int i = 0; i < calls; i++) {
            ioctl(fd, request, argument);
        }
        each[round] = (now() - start) / calls;
    }
    qsort(each, rounds, sizeof each[0], ascending);
    printf("%s %.1f\n", name, each[rounds / 2]);
}

int main(void)
{
    const int other = open("/dev/null", O_RDWR);
    const int kvm = open("/dev/kvm", O_RDWR);
    if (kvm < 0) {
        measure("other", other, KVM_GET_API_VERSION, NULL);
        return 0;
    }
    const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    unsigned char *memory = aligned_alloc(4096, 4096);
    static const unsigned char code[] = {0xe6, 0x10, 0xeb, 0xfc};  // out %al, $0x10; jmp
    memcpy(memory, code, sizeof code);
    struct kvm_userspace_memory_region region = {.memory_size = 4096, .userspace_addr = (uintptr_t)memory};
    const int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rflags = 2};
    if (vcpu < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) != 0 || ioctl(vcpu, KVM_GET_SREGS, &sregs) != 0) {
        perror("a guest");
        return 1;
    }
    sregs.cs.selector = 0;
    sregs.cs.base = 0;
    if (ioctl(vcpu, KVM_SET_SREGS, &sregs) != 0 || ioctl(vcpu, KVM_SET_REGS, &regs) != 0 ||
        ioctl(vcpu, KVM_RUN, 0) != 0) {
        perror("a guest");
        return 1;
    }
    measure("other", other, KVM_GET_API_VERSION, NULL);
    measure("version", kvm, KVM_GET_API_VERSION, NULL);
    measure("extension", vm, KVM_CHECK_EXTENSION, (void *)KVM_CAP_NR_MEMSLOTS);
    measure("get_regs", vcpu, KVM_GET_REGS, &regs);
    measure("set_regs", vcpu, KVM_SET_REGS, &regs);
    measure("get_sregs", vcpu, KVM_GET_SREGS, &sregs);
    measure("run", vcpu, KVM_RUN, NULL);
    return 0;
}
