// SPDX-License-Identifier: Apache-2.0
//
// A client of /dev/kvm that makes ioctl(2) by instructions of its own, and looks at what becomes of them.  With
// CLIENT_WANTS_PATCHES in the environment it wants them changed where that is safe, and left alone where it is not;
// without, it is a client as any other.  Prints "OK", or a line for each thing that is not as it should be.

#define _GNU_SOURCE

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <linux/kvm.h>

static int failures;

static void check(int holds, const char *what, int line)
{
    if (!holds) {
        printf("line %d: %s (errno %d, %s)\n", line, what, errno, strerror(errno));
        __atomic_fetch_add(&failures, 1, __ATOMIC_SEQ_CST);
    }
}
#define CHECK(condition) check((condition), #condition, __LINE__)

// --- The sites.  Each is a function long f(long fd, long request, void *argument), and gives what the kernel gives.

__asm__(
    ".text\n"
    // Something before it that can be read in one way only.
    ".macro before\n"
    "  .rept 8\n"
    "  mov %rdi, %rax\n"
    "  mov %rax, %rdi\n"
    "  .endr\n"
    ".endm\n"
    ".macro plain_site name\n"
    "  .p2align 4\n"
    "  before\n"
    "  .globl \\name\n"
    "\\name: mov $16, %eax\n"
    "  syscall\n"
    "  ret\n"
    ".endm\n"
    "  plain_site site_plain\n"
    "  plain_site site_of_fork\n"
    "  plain_site site_of_child\n"
    "  plain_site site_of_handler\n"
    "  plain_site site_of_run\n"
    // For threads that come at once: 64 bytes each, the site from 48 on.
    "  .globl sites_of_race\n"
    "  .p2align 6\n"
    "sites_of_race:\n"
    "  .rept 32\n"
    "  .p2align 6\n"
    "  before\n"
    "  mov $16, %eax\n"
    "  syscall\n"
    "  ret\n"
    "  .endr\n"
    // The five bytes are not within 16 that are aligned.
    "  .p2align 4\n"
    "  before\n"
    "  .fill 13, 1, 0x90\n"
    "  .globl site_across\n"
    "site_across: mov $16, %eax\n"
    "  syscall\n"
    "  ret\n"
    // The same bytes are the end of another instruction: mov $16, %r8d.
    "  .p2align 4\n"
    "  .globl site_ambiguous, site_ambiguous_mov\n"
    "site_ambiguous: push $16\n"
    "  pop %rax\n"
    "  .byte 0x41\n"
    "site_ambiguous_mov: .byte 0xb8, 0x10, 0, 0, 0\n"
    "  syscall\n"
    "  lea (%rax, %r8), %rax\n"  // 16 more than the kernel gave.
    "  ret\n"
    // And of a store into the red zone.
    "  .p2align 4\n"
    "  .globl site_store, site_store_mov\n"
    "site_store: movl $1, -0x48(%rsp)\n"
    "  push $16\n"
    "  pop %rax\n"
    "  .byte 0xc7, 0x44, 0x24\n"  // movl $16, -0x48(%rsp)
    "site_store_mov: .byte 0xb8, 0x10, 0, 0, 0\n"
    "  syscall\n"
    "  add -0x48(%rsp), %eax\n"
    "  ret\n"
    // The number comes from elsewhere.
    "  .p2align 4\n"
    "  .globl site_far\n"
    "site_far: mov $16, %eax\n"
    "  nop\n"
    "  syscall\n"
    "  ret\n"
    // Another way leads to the same SYSCALL, with another number: getppid().
    "  .p2align 4\n"
    "  before\n"
    "  .globl site_of_two, site_of_two_other\n"
    "site_of_two: mov $16, %eax\n"
    "1: syscall\n"
    "  ret\n"
    "site_of_two_other: mov $110, %eax\n"
    "  jmp 1b\n"
    // With a trap behind each instruction.
    "  before\n"
    "  .globl stepped, stepped_site, stepped_end\n"
    "stepped: pushf\n"
    "  orl $0x100, (%rsp)\n"
    "  popf\n"
    "stepped_site: mov $16, %eax\n"
    "  syscall\n"
    "  pushf\n"
    "  andl $~0x100, (%rsp)\n"
    "  popf\n"
    "  nop\n"
    "stepped_end: ret\n");

typedef long site_function(long fd, long request, void *argument);
extern site_function site_plain, site_of_fork, site_of_child, site_of_handler, site_of_run, site_across, site_ambiguous,
    site_store, site_far, site_of_two, stepped;
extern long site_of_two_other(void);
extern const unsigned char stepped_site[], stepped_end[], sites_of_race[][64], site_ambiguous_mov[], site_store_mov[];

static int wants_patches;

static int is_patched(const void *code)
{
    return *(const volatile unsigned char *)code == 0xe9;
}

static void check_patched(const void *code, int expected, int line)
{
    if (wants_patches) {
        check(is_patched(code) == expected, expected ? "the site is changed" : "the site is left alone", line);
    }
}
#define CHECK_PATCHED(site) check_patched((const void *)(site), 1, __LINE__)
#define CHECK_UNTOUCHED(site) check_patched((const void *)(site), 0, __LINE__)

static int kvm;
static int other;  // A pipe with bytes in it.

static long version(site_function *site)
{
    return site(kvm, KVM_GET_API_VERSION, NULL);
}

/// What a site has to do for both kinds of descriptors.
static void check_site(site_function *site, int line)
{
    int waiting = 0;
    check(version(site) == 12, "the version", line);
    check(version(site) == 12, "the version again", line);
    check(site(other, FIONREAD, &waiting) == 0 && waiting == 3, "FIONREAD of a pipe", line);
    check(site(other, KVM_GET_API_VERSION, NULL) == -ENOTTY, "an ioctl that a pipe does not know", line);
    check(site(-1, KVM_GET_API_VERSION, NULL) == -EBADF, "no descriptor", line);
    check(site(987654, KVM_GET_API_VERSION, NULL) == -EBADF, "a descriptor that is not open", line);
    check(site(kvm, KVM_GET_MSR_INDEX_LIST, (void *)8) == -EFAULT, "a bad address", line);
    check(site(kvm, KVM_RUN, NULL) == -EINVAL, "an ioctl that the file does not know", line);
}

// --- Guests.

enum { memory_size = 0x10000, code_at = 0x1000 };

struct guest {
    int vm;
    int vcpu;
    struct kvm_run *run;
    unsigned char *memory;
};

static struct guest make_guest(const void *code, size_t size)
{
    struct guest guest;
    guest.vm = ioctl(kvm, KVM_CREATE_VM, 0);
    CHECK(guest.vm >= 0);
    guest.memory = aligned_alloc(4096, memory_size);
    memset(guest.memory, 0, memory_size);
    memcpy(guest.memory + code_at, code, size);
    struct kvm_userspace_memory_region region = {
        .slot = 0, .guest_phys_addr = 0, .memory_size = memory_size, .userspace_addr = (uintptr_t)guest.memory};
    CHECK(ioctl(guest.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
    guest.vcpu = ioctl(guest.vm, KVM_CREATE_VCPU, 0);
    CHECK(guest.vcpu >= 0);
    guest.run = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, guest.vcpu, 0);
    CHECK(guest.run != MAP_FAILED);
    struct kvm_sregs sregs;
    CHECK(ioctl(guest.vcpu, KVM_GET_SREGS, &sregs) == 0);
    sregs.cs.selector = 0;
    sregs.cs.base = 0;
    CHECK(ioctl(guest.vcpu, KVM_SET_SREGS, &sregs) == 0);
    struct kvm_regs regs = {.rip = code_at, .rflags = 2, .rsp = 0x8000};
    CHECK(ioctl(guest.vcpu, KVM_SET_REGS, &regs) == 0);
    return guest;
}

static void end_guest(struct guest *guest)
{
    munmap(guest->run, 3 * 4096);
    close(guest->vcpu);
    close(guest->vm);
    free(guest->memory);
}

// --- What a call must not change.

struct image {
    uint64_t rdi, rsi, rdx, r10, r8, r9, rbx, rbp, r12, r13, r14, r15;
    uint64_t rax, flags;
    uint32_t mxcsr;
    uint16_t control, status;
    uint64_t red_zone[16];
    unsigned char vectors[32][64] __attribute__((aligned(64)));
    uint64_t masks[8];
    double st0, st1;
    uint64_t has_avx;
    uint64_t has_avx512;
};

void probe(const struct image *in, struct image *out);

#define OFFSET(member) [member] "i"(offsetof(struct image, member))
static __attribute__((used, noinline)) void emit_probe(void)
{
    __asm__ volatile(
        ".pushsection .text\n"
        ".p2align 4\n"
        ".globl probe, site_of_probe\n"
        "probe:\n"
        "  push %%rbx; push %%rbp; push %%r12; push %%r13; push %%r14; push %%r15\n"
        "  push %%rsi\n"
        "  mov %%rdi, %%rax\n"
        "  ldmxcsr %c[mxcsr](%%rax)\n"
        "  fninit\n"
        "  fldl %c[st1](%%rax)\n"
        "  fldl %c[st0](%%rax)\n"
        "  fldcw %c[control](%%rax)\n"
        "  lea %c[vectors](%%rax), %%rcx\n"
        "  cmpq $0, %c[has_avx512](%%rax)\n"
        "  je 3f\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, "
        "28, 29, 30, 31\n"
        "  vmovups \\n*64(%%rcx), %%zmm\\n\n"
        "  .endr\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7\n"
        "  kmovq %c[masks] + \\n*8(%%rax), %%k\\n\n"
        "  .endr\n"
        "  jmp 2f\n"
        "3:\n"
        "  cmpq $0, %c[has_avx](%%rax)\n"
        "  je 1f\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
        "  vmovups \\n*64(%%rcx), %%ymm\\n\n"
        "  .endr\n"
        "  jmp 2f\n"
        "1:\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
        "  movups \\n*64(%%rcx), %%xmm\\n\n"
        "  .endr\n"
        "2:\n"
        "  push %c[flags](%%rax)\n"
        "  popf\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
        "  mov %c[red_zone] + \\n*8(%%rax), %%rcx\n"
        "  mov %%rcx, -128 + \\n*8(%%rsp)\n"
        "  .endr\n"
        "  mov %c[rdi](%%rax), %%rdi; mov %c[rsi](%%rax), %%rsi; mov %c[rdx](%%rax), %%rdx\n"
        "  mov %c[r10](%%rax), %%r10; mov %c[r8](%%rax), %%r8; mov %c[r9](%%rax), %%r9\n"
        "  mov %c[rbx](%%rax), %%rbx; mov %c[rbp](%%rax), %%rbp; mov %c[r12](%%rax), %%r12\n"
        "  mov %c[r13](%%rax), %%r13; mov %c[r14](%%rax), %%r14; mov %c[r15](%%rax), %%r15\n"
        "  .p2align 4\n"
        "site_of_probe:\n"
        "  mov $16, %%eax\n"
        "  syscall\n"
        "  mov (%%rsp), %%rcx\n"
        "  mov %%rax, %c[rax](%%rcx)\n"
        "  mov %%rdi, %c[rdi](%%rcx); mov %%rsi, %c[rsi](%%rcx); mov %%rdx, %c[rdx](%%rcx)\n"
        "  mov %%r10, %c[r10](%%rcx); mov %%r8, %c[r8](%%rcx); mov %%r9, %c[r9](%%rcx)\n"
        "  mov %%rbx, %c[rbx](%%rcx); mov %%rbp, %c[rbp](%%rcx); mov %%r12, %c[r12](%%rcx)\n"
        "  mov %%r13, %c[r13](%%rcx); mov %%r14, %c[r14](%%rcx); mov %%r15, %c[r15](%%rcx)\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
        "  mov -128 + \\n*8(%%rsp), %%rax\n"
        "  mov %%rax, %c[red_zone] + \\n*8(%%rcx)\n"
        "  .endr\n"
        "  pushf\n"
        "  pop %c[flags](%%rcx)\n"
        "  cld\n"
        "  stmxcsr %c[mxcsr](%%rcx)\n"
        "  fnstcw %c[control](%%rcx)\n"
        "  fstpl %c[st0](%%rcx)\n"
        "  fstpl %c[st1](%%rcx)\n"
        "  fnstsw %c[status](%%rcx)\n"
        "  fninit\n"
        "  lea %c[vectors](%%rcx), %%rax\n"
        "  cmpq $0, %c[has_avx512](%%rcx)\n"
        "  je 3f\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, "
        "28, 29, 30, 31\n"
        "  vmovups %%zmm\\n, \\n*64(%%rax)\n"
        "  .endr\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7\n"
        "  kmovq %%k\\n, %c[masks] + \\n*8(%%rcx)\n"
        "  .endr\n"
        "  vzeroupper\n"
        "  jmp 2f\n"
        "3:\n"
        "  cmpq $0, %c[has_avx](%%rcx)\n"
        "  je 1f\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
        "  vmovups %%ymm\\n, \\n*64(%%rax)\n"
        "  .endr\n"
        "  vzeroupper\n"
        "  jmp 2f\n"
        "1:\n"
        "  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
        "  movups %%xmm\\n, \\n*64(%%rax)\n"
        "  .endr\n"
        "2:\n"
        "  movl $0x1f80, -8(%%rsp)\n"
        "  ldmxcsr -8(%%rsp)\n"
        "  pop %%rsi\n"
        "  pop %%r15; pop %%r14; pop %%r13; pop %%r12; pop %%rbp; pop %%rbx\n"
        "  ret\n"
        ".popsection\n"
        :
        : OFFSET(rdi), OFFSET(rsi), OFFSET(rdx), OFFSET(r10), OFFSET(r8), OFFSET(r9), OFFSET(rbx), OFFSET(rbp),
          OFFSET(r12), OFFSET(r13), OFFSET(r14), OFFSET(r15), OFFSET(rax), OFFSET(flags), OFFSET(mxcsr),
          OFFSET(control), OFFSET(status), OFFSET(red_zone), OFFSET(vectors), OFFSET(masks), OFFSET(st0), OFFSET(st1),
          OFFSET(has_avx), OFFSET(has_avx512));
}
extern const unsigned char site_of_probe[];

/// Has signals come to this thread soon, in the midst of what it does next.
static void stir(uint64_t *seed);

static uint64_t random_of(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state ^ *state >> 29;
}

/// One call with registers and red zone of random contents.  @return RAX
static long probe_once(uint64_t *seed, int fd, unsigned long request, void *argument, int line)
{
    struct image in;
    struct image out;
    for (size_t i = 0; i < sizeof in / 8; i++) {
        uint64_t word = random_of(seed);
        memcpy((char *)&in + i * 8, &word, 8);
    }
    in.rdi = (uint64_t)fd;
    in.rsi = request;
    in.rdx = (uint64_t)argument;
    enum { flags_that_may_be = 0x4cd5 | 0x800 };  // CF, PF, AF, ZF, SF, DF, OF, NT
    in.flags = (in.flags & flags_that_may_be) | 0x202;
    in.mxcsr = 0x1f80 | (in.mxcsr & 0xe03f);
    in.control = (uint16_t)(0x37f | (in.control & 0xc00));
    in.st0 = (double)(int64_t)random_of(seed);
    in.st1 = (double)(int64_t)random_of(seed);
    in.has_avx = __builtin_cpu_supports("avx") != 0;
    in.has_avx512 = __builtin_cpu_supports("avx512bw") != 0;
    const size_t width = in.has_avx512 ? 64 : in.has_avx ? 32 : 16;
    memset(&out, 0, sizeof out);
    stir(seed);
    out.has_avx = in.has_avx;
    out.has_avx512 = in.has_avx512;
    probe(&in, &out);
    check(memcmp(&in, &out, offsetof(struct image, rax)) == 0, "general registers", line);
    check(in.flags == out.flags, "flags", line);
    check(in.mxcsr == out.mxcsr, "MXCSR", line);
    check(in.control == out.control && in.st0 == out.st0 && in.st1 == out.st1 && (out.status & 0x3800) == 0, "x87",
          line);
    check(memcmp(in.red_zone, out.red_zone, sizeof in.red_zone) == 0, "the red zone", line);
    for (int i = 0; i < (in.has_avx512 ? 32 : 16); i++) {
        check(memcmp(in.vectors[i], out.vectors[i], width) == 0, "a vector register", line);
    }
    check(!in.has_avx512 || memcmp(in.masks, out.masks, sizeof in.masks) == 0, "a mask register", line);
    return (long)out.rax;
}

/// The same for calls that are served, that are not, and that fail.
static void probe_all(uint64_t *seed, int vcpu, int rounds)
{
    struct kvm_regs regs = {.rip = 0x1234, .rflags = 2};
    struct kvm_fpu fpu;
    int waiting = 0;
    for (int i = 0; i < rounds; i++) {
        regs.rbx = (unsigned)i;
        CHECK(probe_once(seed, vcpu, KVM_SET_REGS, &regs, __LINE__) == 0);
        memset(&regs, 0, sizeof regs);
        CHECK(probe_once(seed, vcpu, KVM_GET_REGS, &regs, __LINE__) == 0);
        CHECK(regs.rbx == (unsigned)i && regs.rip == 0x1234);
        CHECK(probe_once(seed, vcpu, KVM_GET_FPU, &fpu, __LINE__) == 0);
        CHECK(probe_once(seed, vcpu, KVM_GET_REGS, (void *)8, __LINE__) == -EFAULT);
        CHECK(probe_once(seed, kvm, KVM_GET_API_VERSION, NULL, __LINE__) == 12);
        CHECK(probe_once(seed, other, FIONREAD, &waiting, __LINE__) == 0 && waiting == 3);
        CHECK(probe_once(seed, -1, KVM_GET_REGS, &regs, __LINE__) == -EBADF);
    }
}

// --- Sites that may be changed, and others.

static void test_sites(void)
{
    CHECK_UNTOUCHED(site_plain);
    int waiting = 0;
    CHECK(site_plain(other, FIONREAD, &waiting) == 0 && waiting == 3);
    CHECK_UNTOUCHED(site_plain);  // Not for what is not ours.
    check_site(site_plain, __LINE__);
    CHECK_PATCHED(site_plain);
    check_site(site_plain, __LINE__);

    check_site(site_far, __LINE__);
    CHECK_UNTOUCHED(site_far);

    check_site(site_of_two, __LINE__);
    CHECK_PATCHED(site_of_two);
    CHECK(site_of_two_other() == getppid());
    check_site(site_of_two, __LINE__);

    for (int i = 0; i < 3; i++) {
        CHECK(version(site_ambiguous) == 12 + 16);
        CHECK(version(site_store) == 12 + 16);
    }
    CHECK_UNTOUCHED(site_ambiguous_mov);
    CHECK_UNTOUCHED(site_store_mov);
}

static void *wait_for(void *over)
{
    while (!__atomic_load_n((int *)over, __ATOMIC_SEQ_CST)) {
        usleep(1000);
    }
    return NULL;
}

static void test_site_across(void)
{
    int over = 0;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, wait_for, &over) == 0);
    check_site(site_across, __LINE__);
    CHECK_UNTOUCHED(site_across);
    __atomic_store_n(&over, 1, __ATOMIC_SEQ_CST);
    CHECK(pthread_join(thread, NULL) == 0);
}

static const unsigned char made_code[] = {0xb8, 0x10, 0, 0, 0, 0x0f, 0x05, 0xc3};

/// Code that a client has made, and a file's that others see.
static void test_made_code(void)
{
    unsigned char *page =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(page, 0x90, 4096);
    memcpy(page + 64, made_code, sizeof made_code);
    check_site((site_function *)(uintptr_t)(page + 64), __LINE__);
    CHECK_UNTOUCHED(page + 64);
    memcpy(page + 128, made_code, sizeof made_code);
    CHECK(mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0);
    check_site((site_function *)(uintptr_t)(page + 128), __LINE__);
    CHECK_UNTOUCHED(page + 128);
    munmap(page, 4096);

    char name[] = "/tmp/site-client-XXXXXX";
    int file = mkstemp(name);
    CHECK(file >= 0);
    unlink(name);
    unsigned char contents[4096];
    memset(contents, 0x90, sizeof contents);
    memcpy(contents + 256, made_code, sizeof made_code);
    CHECK(write(file, contents, sizeof contents) == sizeof contents);
    unsigned char *shared = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
    if (shared != MAP_FAILED) {  // Not where /tmp is mounted so.
        check_site((site_function *)(uintptr_t)(shared + 256), __LINE__);
        CHECK_UNTOUCHED(shared + 256);
    }
    // Privately mapped it is text as any other, and the file keeps what it has.
    page = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    if (page != MAP_FAILED) {
        check_site((site_function *)(uintptr_t)(page + 256), __LINE__);
        CHECK_PATCHED(page + 256);
        munmap(page, 4096);
        unsigned char now[4096];
        CHECK(pread(file, now, sizeof now, 0) == sizeof now && memcmp(now, contents, sizeof now) == 0);
        // Something else is there now.
        unsigned char *again =
            mmap(page, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, 0);
        CHECK(again == page);
        check_site((site_function *)(uintptr_t)(page + 256), __LINE__);
        munmap(page, 4096);
    }
    if (shared != MAP_FAILED) {
        check_site((site_function *)(uintptr_t)(shared + 256), __LINE__);
        munmap(shared, 4096);
    }
    close(file);
}

// --- Threads that come to a site for the first time at once.

enum { racers = 4, race_sites = 32 };
static int arrived[race_sites];

static void *race(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    for (int i = 0; i < race_sites; i++) {
        site_function *site = (site_function *)(uintptr_t)(sites_of_race[i] + 48);
        __atomic_fetch_add(&arrived[i], 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&arrived[i], __ATOMIC_SEQ_CST) < racers) {
        }
        for (unsigned j = (unsigned)(random_of(&seed) % 64); j > 0; j--) {
            __asm__ volatile("pause");
        }
        for (int j = 0; j < 100; j++) {
            int waiting = 0;
            CHECK(version(site) == 12);
            CHECK(site(other, FIONREAD, &waiting) == 0 && waiting == 3);
        }
    }
    return NULL;
}

static void test_race(void)
{
    pthread_t threads[racers];
    for (int i = 0; i < racers; i++) {
        CHECK(pthread_create(&threads[i], NULL, race, (void *)(uintptr_t)(i + 1)) == 0);
    }
    for (int i = 0; i < racers; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    for (int i = 0; i < race_sites; i++) {
        CHECK_PATCHED(sites_of_race[i] + 48);
    }
}

// --- Signals all the time, whose handlers call too.

static volatile sig_atomic_t storms[3];
static int storm_vcpu;
static __thread sigjmp_buf *way_out;

static void call_in_handler(int kind)
{
    int before = errno;
    int waiting = 0;
    struct kvm_regs regs;
    CHECK(version(site_of_handler) == 12);
    CHECK(site_of_handler(storm_vcpu, KVM_GET_REGS, &regs) == 0);
    CHECK(site_of_handler(other, FIONREAD, &waiting) == 0 && waiting == 3);
    CHECK(ioctl(storm_vcpu, KVM_GET_REGS, 8) == -1 && errno == EFAULT);
    storms[kind]++;
    errno = before;
}

static void on_plain(int number)
{
    (void)number;
    call_in_handler(0);
}

static void on_alternate_stack(int number, siginfo_t *info, void *context)
{
    (void)info;
    (void)context;
    (void)number;
    uint64_t guard[64];
    for (int i = 0; i < 64; i++) {
        ((volatile uint64_t *)guard)[i] = (uint64_t)i * 3;
    }
    call_in_handler(1);
    for (int i = 0; i < 64; i++) {
        CHECK(((volatile uint64_t *)guard)[i] == (uint64_t)i * 3);
    }
}

static void on_leave(int number)
{
    (void)number;
    storms[2]++;
    if (way_out != NULL) {
        siglongjmp(*way_out, 1);
    }
}

struct storm {
    timer_t timers[3];
    void *stack;
};

static __thread struct storm *weather_here;

static void stir(uint64_t *seed)
{
    if (weather_here == NULL) {
        return;
    }
    // Once each: a handler that is slower than they come would never end.
    for (int i = 0; i < 3; i++) {
        struct itimerspec times = {.it_value = {.tv_nsec = (long)(random_of(seed) % 20000) + 1}};
        CHECK(timer_settime(weather_here->timers[i], 0, &times, NULL) == 0);
    }
}

enum { storm_rounds = 400 };

static struct storm start_storm(void)
{
    static const int numbers[3] = {34 + 4, 34 + 5, 34 + 6};  // Of those that no C library keeps.
    struct storm storm;
    storm.stack = malloc(1 << 17);
    stack_t alternate = {.ss_sp = storm.stack, .ss_size = 1 << 17};
    CHECK(sigaltstack(&alternate, NULL) == 0);
    for (int i = 0; i < 3; i++) {
        struct sigevent event;
        memset(&event, 0, sizeof event);
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = numbers[i];
#ifdef sigev_notify_thread_id
        event.sigev_notify_thread_id = (int)syscall(SYS_gettid);
#else
        event._sigev_un._tid = (int)syscall(SYS_gettid);
#endif
        CHECK(timer_create(CLOCK_MONOTONIC, &event, &storm.timers[i]) == 0);
    }
    return storm;
}

static void end_storm(struct storm *storm)
{
    for (int i = 0; i < 3; i++) {
        CHECK(timer_delete(storm->timers[i]) == 0);
    }
    stack_t none = {.ss_flags = SS_DISABLE};
    CHECK(sigaltstack(&none, NULL) == 0);
    free(storm->stack);
}

static void *weather(void *argument)
{
    uint64_t seed = (uintptr_t)argument;
    sigset_t before, after, one;
    sigemptyset(&one);
    sigaddset(&one, SIGHUP);
    CHECK(pthread_sigmask(SIG_BLOCK, &one, NULL) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &before) == 0);
    static const unsigned char halt[] = {0xf4};
    struct guest guest = make_guest(halt, sizeof halt);
    struct storm storm = start_storm();
    weather_here = &storm;
    probe_all(&seed, guest.vcpu, storm_rounds);
    // A handler that does not come back.
    for (volatile int i = 0; i < 50; i++) {
        sigjmp_buf here;
        if (sigsetjmp(here, 1) == 0) {
            way_out = &here;
            for (;;) {
                stir(&seed);
                for (int j = 0; j < 100; j++) {
                    CHECK(version(site_plain) == 12);
                }
            }
        }
        way_out = NULL;
    }
    weather_here = NULL;
    end_storm(&storm);
    probe_all(&seed, guest.vcpu, 10);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &after) == 0);
    CHECK(memcmp(&before, &after, 8) == 0);
    end_guest(&guest);
    return NULL;
}

static void install(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_flags = flags};
    action.sa_handler = handler;
    CHECK(sigaction(number, &action, NULL) == 0);
}

static void test_storm(void)
{
    static const unsigned char halt[] = {0xf4};
    struct guest guest = make_guest(halt, sizeof halt);
    storm_vcpu = guest.vcpu;
    install(34 + 4, on_plain, SA_RESTART | SA_NODEFER | SA_ONSTACK);
    struct sigaction action = {.sa_flags = SA_ONSTACK | SA_SIGINFO | SA_RESTART};
    action.sa_sigaction = on_alternate_stack;
    CHECK(sigaction(34 + 5, &action, NULL) == 0);
    // It leaves its own frame only, and no other handler's.
    struct sigaction leaves = {.sa_flags = SA_RESTART};
    leaves.sa_handler = on_leave;
    CHECK(sigaction(34 + 6, &leaves, NULL) == 0);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, weather, (void *)(uintptr_t)(i + 7)) == 0);
    }
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(storms[0] > 0 && storms[1] > 0 && storms[2] > 0);
    CHECK_PATCHED(site_of_handler);
    CHECK_PATCHED(site_of_probe);
    end_guest(&guest);
}

// --- What a handler sees.

static volatile int steps;
static volatile int steps_at_syscall;

static void on_step(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    const greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint64_t at = (uint64_t)registers[REG_RIP] - (uint64_t)(uintptr_t)stepped_site;
    CHECK(at < (uint64_t)(stepped_end - stepped_site) + 1);
    if (at == 5) {
        CHECK(registers[REG_RAX] == 16);
        steps_at_syscall++;
    }
    steps++;
}

static void test_steps(void)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO};
    action.sa_sigaction = on_step;
    CHECK(sigaction(SIGTRAP, &action, NULL) == 0);
    for (int i = 0; i < 3; i++) {
        int waiting = 0;
        steps = steps_at_syscall = 0;
        CHECK(version(stepped) == 12);
        CHECK(steps >= 3 && steps_at_syscall == 1);
        CHECK(stepped(other, FIONREAD, &waiting) == 0 && waiting == 3);
    }
    CHECK_PATCHED(stepped_site);
}

// --- KVM_RUN.

static volatile sig_atomic_t kicked;

static void on_kick(int number)
{
    (void)number;
    kicked++;
}

static void *kick_often(void *argument)
{
    pthread_t *runner = argument;
    while (__atomic_load_n(&kicked, __ATOMIC_SEQ_CST) < 100) {
        pthread_kill(*runner, SIGUSR1);
        usleep(100);
    }
    return NULL;
}

static void test_run(void)
{
    static const unsigned char loop[] = {0xeb, 0xfe};
    struct guest guest = make_guest(loop, sizeof loop);
    struct kvm_regs regs;
    CHECK(site_of_run(guest.vcpu, KVM_GET_REGS, &regs) == 0 && regs.rip == code_at);
    CHECK_PATCHED(site_of_run);
    install(SIGUSR1, on_kick, 0);
    kicked = 0;
    pthread_t self = pthread_self();
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, kick_often, &self) == 0);
    int ends = 0;
    do {
        CHECK(site_of_run(guest.vcpu, KVM_RUN, NULL) == -EINTR);
        CHECK(guest.run->exit_reason == KVM_EXIT_INTR);
        CHECK(kicked > 0);
        ends++;
    } while (kicked < 100);
    CHECK(ends > 1 && pthread_join(thread, NULL) == 0);

    // One that is blocked, but for KVM_RUN, ends it and stays.
    struct {
        uint32_t length;
        unsigned char set[8];
    } mask = {.length = 8};
    CHECK(site_of_run(guest.vcpu, KVM_SET_SIGNAL_MASK, &mask) == 0);
    sigset_t one, old, pending;
    sigemptyset(&one);
    sigaddset(&one, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &one, &old) == 0);
    for (int i = 0; i < 20; i++) {
        const int before = kicked;
        CHECK(pthread_kill(self, SIGUSR1) == 0);
        CHECK(site_of_run(guest.vcpu, KVM_RUN, NULL) == -EINTR);
        CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1) == 1 && kicked == before);
        struct timespec none = {0, 0};
        CHECK(sigtimedwait(&one, NULL, &none) == SIGUSR1);
    }
    CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
    end_guest(&guest);
}

// --- Processes.

static void test_fork(void)
{
    static const unsigned char halt[] = {0xf4};
    check_site(site_of_fork, __LINE__);
    CHECK_PATCHED(site_of_fork);
    struct guest guest = make_guest(halt, sizeof halt);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        failures = 0;
        struct kvm_regs regs;
        CHECK(site_of_fork(guest.vcpu, KVM_GET_REGS, &regs) == -EIO);
        kvm = open("/dev/kvm", O_RDWR);
        check_site(site_of_fork, __LINE__);
        CHECK_PATCHED(site_of_fork);
        check_site(site_of_child, __LINE__);
        CHECK_PATCHED(site_of_child);
        test_run();
        uint64_t seed = 5;
        struct guest own = make_guest(halt, sizeof halt);
        probe_all(&seed, own.vcpu, 20);
        fflush(stdout);
        _exit(failures == 0 ? 23 : 2);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 23);
    CHECK_UNTOUCHED(site_of_child);
    check_site(site_of_child, __LINE__);
    CHECK_PATCHED(site_of_child);
    CHECK(site_of_fork(guest.vcpu, KVM_RUN, NULL) == 0 && guest.run->exit_reason == KVM_EXIT_HLT);
    end_guest(&guest);
}

/// Where the shim says that it can.
static int can_patch(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(0xd, 1, &eax, &ebx, &ecx, &edx) && (eax & 2) != 0;
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    wants_patches = getenv("CLIENT_WANTS_PATCHES") != NULL && can_patch();
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    CHECK(kvm >= 0);
    int pipes[2];
    CHECK(pipe(pipes) == 0 && write(pipes[1], "abc", 3) == 3);
    other = pipes[0];
    static const unsigned char halt[] = {0xf4};
    struct guest guest = make_guest(halt, sizeof halt);
    uint64_t seed = 1;
    test_sites();
    test_site_across();
    test_made_code();
    probe_all(&seed, guest.vcpu, 1000);
    CHECK_PATCHED(site_of_probe);
    test_steps();
    test_race();
    test_storm();
    test_run();
    test_fork();
    end_guest(&guest);
    if (failures == 0) {
        puts("OK");
    }
    return failures != 0;
}
