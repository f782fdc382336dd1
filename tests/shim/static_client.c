// SPDX-License-Identifier: Apache-2.0
//
// A client of /dev/kvm that is linked statically: vmm-kvm reaches it by its system calls.  It knows nothing of this
// project.  Prints "OK", or a line for each thing that is not as on a kernel with KVM.

#define _GNU_SOURCE

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>

extern char **environ;

static int failures;

static void check(int holds, const char *what, int line)
{
    if (!holds) {
        printf("line %d: %s (errno %d, %s)\n", line, what, errno, strerror(errno));
        failures++;
    }
}
#define CHECK(condition) check((condition), #condition, __LINE__)

enum { memory_size = 0x10000, code_at = 0x1000 };

struct guest {
    int kvm;
    int vm;
    int vcpu;
    struct kvm_run *run;
    unsigned char *memory;
};

static void start_at(const struct guest *guest, uint64_t rip)
{
    struct kvm_regs regs = {.rip = rip, .rflags = 2, .rsp = 0x8000, .rax = 0x41};
    CHECK(ioctl(guest->vcpu, KVM_SET_REGS, &regs) == 0);
}

static struct guest make_guest(int has_irqchip, const void *code, size_t size)
{
    struct guest guest;
    guest.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    CHECK(guest.kvm >= 0);
    CHECK(ioctl(guest.kvm, KVM_GET_API_VERSION, 0) == 12);
    guest.vm = ioctl(guest.kvm, KVM_CREATE_VM, 0);
    CHECK(guest.vm >= 0);
    guest.memory = aligned_alloc(4096, memory_size);
    memset(guest.memory, 0, memory_size);
    memcpy(guest.memory + code_at, code, size);
    struct kvm_userspace_memory_region region = {
        .slot = 0, .guest_phys_addr = 0, .memory_size = memory_size, .userspace_addr = (uintptr_t)guest.memory};
    CHECK(ioctl(guest.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
    if (has_irqchip) {
        CHECK(ioctl(guest.vm, KVM_CREATE_IRQCHIP, 0) == 0);
    }
    guest.vcpu = ioctl(guest.vm, KVM_CREATE_VCPU, 0);
    CHECK(guest.vcpu >= 0);
    int size_of_run = ioctl(guest.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    guest.run = mmap(NULL, (size_t)size_of_run, PROT_READ | PROT_WRITE, MAP_SHARED, guest.vcpu, 0);
    CHECK(guest.run != MAP_FAILED);
    struct kvm_sregs sregs;
    CHECK(ioctl(guest.vcpu, KVM_GET_SREGS, &sregs) == 0);
    sregs.cs.selector = 0;
    sregs.cs.base = 0;
    CHECK(ioctl(guest.vcpu, KVM_SET_SREGS, &sregs) == 0);
    start_at(&guest, code_at);
    return guest;
}

static void end_guest(struct guest *guest)
{
    munmap(guest->run, 3 * 4096);
    close(guest->vcpu);
    close(guest->vm);
    close(guest->kvm);
    free(guest->memory);
}

// --- Exits.

static void test_exits(void)
{
    static const unsigned char code[] = {
        0xe6, 0x10,                          // out %al, $0x10
        0xe4, 0x11,                          // in $0x11, %al
        0xb9, 0x00, 0xf0, 0x8e, 0xd9,        // mov $0xf000, %cx; mov %cx, %ds
        0xa2, 0x34, 0x12,                    // mov %al, 0x1234
        0xf4};                               // hlt
    struct guest guest = make_guest(0, code, sizeof code);
    struct kvm_run *run = guest.run;
    CHECK(ioctl(guest.vcpu, KVM_RUN, 0) == 0);
    CHECK(run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT && run->io.port == 0x10);
    CHECK(((unsigned char *)run)[run->io.data_offset] == 0x41);
    CHECK(ioctl(guest.vcpu, KVM_RUN, 0) == 0);
    CHECK(run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_IN && run->io.port == 0x11);
    ((unsigned char *)run)[run->io.data_offset] = 0x5a;
    CHECK(ioctl(guest.vcpu, KVM_RUN, 0) == 0);
    CHECK(run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == 0xf1234 && run->mmio.is_write);
    CHECK(run->mmio.data[0] == 0x5a);
    CHECK(ioctl(guest.vcpu, KVM_RUN, 0) == 0);
    CHECK(run->exit_reason == KVM_EXIT_HLT);
    end_guest(&guest);
}

// --- What a kernel says.

static void test_errno(void)
{
    int kvm = open("/dev/kvm", O_RDWR);
    CHECK(ioctl(kvm, KVM_RUN, 0) == -1 && errno == EINVAL);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    CHECK(ioctl(vm, KVM_GET_REGS, 0) == -1 && errno == ENOTTY);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    sigset_t all, before, now;
    sigfillset(&all);
    CHECK(ioctl(vcpu, KVM_GET_REGS, 8) == -1 && errno == EFAULT);
    CHECK(sigprocmask(SIG_SETMASK, &all, &before) == 0);
    CHECK(ioctl(vcpu, KVM_GET_REGS, 8) == -1 && errno == EFAULT);
    CHECK(sigprocmask(SIG_SETMASK, &before, &now) == 0);
    CHECK(sigismember(&now, SIGSYS) && sigismember(&now, SIGSEGV) && sigismember(&now, SIGUSR1));
    CHECK(ioctl(12345, KVM_RUN, 0) == -1 && errno == EBADF);
    int copy = dup(kvm);
    CHECK(close(kvm) == 0);
    CHECK(ioctl(kvm, KVM_GET_API_VERSION, 0) == -1 && errno == EBADF);
    CHECK(ioctl(copy, KVM_GET_API_VERSION, 0) == 12);
    CHECK(dup2(copy, 77) == 77 && ioctl(77, KVM_GET_API_VERSION, 0) == 12);
    CHECK(fcntl(copy, F_DUPFD_CLOEXEC, 100) >= 100);
    char name[64] = "";
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", vcpu);
    CHECK(readlink(path, name, sizeof name - 1) > 0 && strcmp(name, "anon_inode:kvm-vcpu:0") == 0);
    close(copy);
    close(77);
    close(vcpu);
    close(vm);
    struct stat seen;
    CHECK(stat("/dev/kvm", &seen) == 0 && S_ISCHR(seen.st_mode) && major(seen.st_rdev) == 10);
    CHECK(access("/dev/kvm", R_OK | W_OK) == 0);
    CHECK(access("/dev/no-such-thing", R_OK) == -1 && errno == ENOENT);
}

// --- Signals.

static volatile sig_atomic_t handled;
static __thread int of_this_thread = 7;
static int seen_of_thread;

static void count(int number)
{
    (void)number;
    handled++;
    seen_of_thread = of_this_thread;
}

static void install(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_flags = flags};
    action.sa_handler = handler;
    CHECK(sigaction(number, &action, NULL) == 0);
}

struct runner {
    struct guest *guest;
    int result;
    int error;
    int over;
};

static void *enter(void *argument)
{
    struct runner *runner = argument;
    of_this_thread = 42;
    runner->result = ioctl(runner->guest->vcpu, KVM_RUN, 0);
    runner->error = errno;
    __atomic_store_n(&runner->over, 1, __ATOMIC_SEQ_CST);
    return &runner->over;
}

/// A guest that would never end, ended by a signal to its thread.
static void test_kick(int has_irqchip, unsigned char code)
{
    const unsigned char loop[] = {code, 0xfe};
    struct guest guest = make_guest(has_irqchip, loop, sizeof loop);
    struct runner runner = {.guest = &guest};
    pthread_t thread;
    void *joined = NULL;
    handled = 0;
    install(SIGUSR1, count, 0);
    CHECK(pthread_create(&thread, NULL, enter, &runner) == 0);
    while (!__atomic_load_n(&runner.over, __ATOMIC_SEQ_CST)) {
        pthread_kill(thread, SIGUSR1);
        struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
    }
    CHECK(pthread_join(thread, &joined) == 0 && joined == &runner.over);
    CHECK(runner.result == -1 && runner.error == EINTR);
    CHECK(guest.run->exit_reason == KVM_EXIT_INTR);
    CHECK(handled > 0 && seen_of_thread == 42);
    CHECK(of_this_thread == 7);
    end_guest(&guest);
}

static void *signal_soon(void *argument)
{
    struct timespec pause = {.tv_nsec = 20000000};
    nanosleep(&pause, NULL);
    pthread_kill(*(pthread_t *)argument, SIGUSR2);
    return NULL;
}

static void test_signals_of_other_calls(void)
{
    pthread_t self = pthread_self();
    pthread_t thread;
    int pipes[2];
    char byte = 0;
    CHECK(pipe(pipes) == 0);

    // A call that waits is ended, or begun again.
    install(SIGUSR2, count, 0);
    handled = 0;
    CHECK(pthread_create(&thread, NULL, signal_soon, &self) == 0);
    CHECK(read(pipes[0], &byte, 1) == -1 && errno == EINTR && handled == 1);
    pthread_join(thread, NULL);
    install(SIGUSR2, count, SA_RESTART);
    CHECK(pthread_create(&thread, NULL, signal_soon, &self) == 0);
    struct timespec pause = {.tv_nsec = 100000000};
    CHECK(nanosleep(&pause, &pause) == -1 && errno == EINTR && handled == 2);
    pthread_join(thread, NULL);

    // One is let through while all are blocked.
    sigset_t all, but_one, none;
    sigfillset(&all);
    but_one = all;
    sigdelset(&but_one, SIGUSR2);
    sigprocmask(SIG_SETMASK, &all, &none);
    raise(SIGUSR2);
    CHECK(handled == 2);
    CHECK(sigsuspend(&but_one) == -1 && errno == EINTR && handled == 3);
    raise(SIGUSR2);
    struct timespec second = {.tv_sec = 1};
    CHECK(ppoll(NULL, 0, &second, &but_one) == -1 && errno == EINTR && handled == 4);
    raise(SIGUSR2);
    CHECK(pselect(0, NULL, NULL, NULL, &second, &but_one) == -1 && errno == EINTR && handled == 5);
    sigprocmask(SIG_SETMASK, &none, NULL);

    install(SIGUSR2, count, SA_RESETHAND);
    raise(SIGUSR2);
    struct sigaction now;
    CHECK(handled == 6 && sigaction(SIGUSR2, NULL, &now) == 0 && now.sa_handler == SIG_DFL);
    close(pipes[0]);
    close(pipes[1]);
}

static sigjmp_buf back;

static void leap(int number)
{
    siglongjmp(back, number);
}

static int kvm_of_handler;
static int version_seen;
static void *handler_stack;

static void on_own_stack(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    (void)context;
    handler_stack = __builtin_frame_address(0);
    version_seen = ioctl(kvm_of_handler, KVM_GET_API_VERSION, 0);
    CHECK(ioctl(kvm_of_handler, KVM_GET_MSR_INDEX_LIST, 8) == -1 && errno == EFAULT);
}

static void test_handlers(void)
{
    // Faults are the client's own.
    volatile int reached = 0;
    install(SIGSEGV, leap, SA_NODEFER);
    if (sigsetjmp(back, 1) == 0) {
        *(volatile int *)16 = 1;
        reached = 1;
    }
    CHECK(!reached);
    install(SIGSEGV, SIG_DFL, 0);
    struct sigaction now;
    CHECK(sigaction(SIGSEGV, NULL, &now) == 0 && now.sa_handler == SIG_DFL);

    // A handler on a stack of its own uses KVM.
    static char stack[1 << 16];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    CHECK(sigaltstack(&alternate, NULL) == 0);
    struct sigaction action = {.sa_flags = SA_ONSTACK | SA_SIGINFO};
    action.sa_sigaction = on_own_stack;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    kvm_of_handler = open("/dev/kvm", O_RDWR);
    raise(SIGUSR1);
    CHECK(version_seen == 12);
    CHECK((char *)handler_stack >= stack && (char *)handler_stack < stack + sizeof stack);
    CHECK(sigaltstack(NULL, &alternate) == 0 && alternate.ss_size == sizeof stack);
    alternate.ss_flags = SS_DISABLE;
    sigaltstack(&alternate, NULL);
    close(kvm_of_handler);
}

// --- Signals of two kinds, as often as they come, whose handler makes system calls in the middle of others.

static int zeros;

static void call_in_handler(int number)
{
    (void)number;
    int before = errno;
    char byte = 1;
    CHECK(read(zeros, &byte, 1) == 1 && byte == 0);
    CHECK(ioctl(kvm_of_handler, KVM_GET_API_VERSION, 0) == 12);
    handled++;
    errno = before;
}

static void *call_often(void *over)
{
    sigset_t none;
    sigemptyset(&none);
    for (int i = 0; i < 3000; i++) {
        char bytes[32];
        memset(bytes, 1, sizeof bytes);
        CHECK(pread(zeros, bytes, 17, i) == 17 && bytes[16] == 0 && bytes[17] == 1);
        CHECK(ioctl(kvm_of_handler, KVM_GET_API_VERSION, 0) == 12);
        struct timespec soon = {.tv_nsec = 1000};
        CHECK(ppoll(NULL, 0, &soon, &none) == 0 || errno == EINTR);
    }
    __atomic_fetch_add((int *)over, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n((int *)over, __ATOMIC_SEQ_CST) < 3) {
        usleep(1000);
    }
    return NULL;
}

static void test_storm(void)
{
    pthread_t threads[2];
    int over = 0;
    zeros = open("/dev/zero", O_RDONLY);
    kvm_of_handler = open("/dev/kvm", O_RDWR);
    handled = 0;
    install(SIGUSR1, call_in_handler, SA_RESTART);
    install(SIGUSR2, call_in_handler, SA_RESTART);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, call_often, &over) == 0);
    }
    while (__atomic_load_n(&over, __ATOMIC_SEQ_CST) < 2) {
        for (int i = 0; i < 2; i++) {
            pthread_kill(threads[i], SIGUSR1);
            pthread_kill(threads[i], SIGUSR2);
        }
        usleep(20);
    }
    __atomic_fetch_add(&over, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    CHECK(handled > 0);
    close(zeros);
    close(kvm_of_handler);
}

// --- An interrupt through an eventfd.

static void test_irqfd(void)
{
    // sti; hlt; and the handler of vector 0x1c: mov $1, %al; out %al, $0x10
    static const unsigned char code[] = {0xfb, 0xf4, 0xeb, 0xfd};
    static const unsigned char handler[] = {0xb0, 0x01, 0xe6, 0x10, 0xf4};
    struct guest guest = make_guest(1, code, sizeof code);
    memcpy(guest.memory + 0x2000, handler, sizeof handler);
    guest.memory[0x1c * 4 + 1] = 0x20;  // 0000:2000
    // The PIC's lines at vectors from 0x18, with none masked.
    struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_PIC_MASTER};
    CHECK(ioctl(guest.vm, KVM_GET_IRQCHIP, &chip) == 0);
    chip.chip.pic.irq_base = 0x18;
    chip.chip.pic.imr = 0;
    CHECK(ioctl(guest.vm, KVM_SET_IRQCHIP, &chip) == 0);
    int line = eventfd(0, EFD_CLOEXEC);
    struct kvm_irqfd irqfd = {.fd = (__u32)line, .gsi = 4};
    CHECK(ioctl(guest.vm, KVM_IRQFD, &irqfd) == 0);
    struct kvm_lapic_state lapic;
    CHECK(ioctl(guest.vcpu, KVM_GET_LAPIC, &lapic) == 0);
    uint32_t ext_int = 0x700;  // LINT0 takes the PIC's.
    memcpy(lapic.regs + 0x350, &ext_int, sizeof ext_int);
    uint32_t enabled = 0x1ff;
    memcpy(lapic.regs + 0xf0, &enabled, sizeof enabled);
    CHECK(ioctl(guest.vcpu, KVM_SET_LAPIC, &lapic) == 0);
    struct runner runner = {.guest = &guest};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, enter, &runner) == 0);
    struct timespec pause = {.tv_nsec = 10000000};
    nanosleep(&pause, NULL);
    uint64_t one = 1;
    CHECK(write(line, &one, sizeof one) == sizeof one);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(runner.result == 0 && guest.run->exit_reason == KVM_EXIT_IO && guest.run->io.port == 0x10);
    close(line);
    end_guest(&guest);
}

// --- Threads and processes.

static int ended;

static void *end_alone(void *argument)
{
    of_this_thread += (int)(intptr_t)argument;
    char *memory = malloc(100000);
    memset(memory, 1, 100000);
    free(memory);
    __atomic_fetch_add(&ended, of_this_thread - 7, __ATOMIC_SEQ_CST);
    return NULL;
}

static void test_threads(void)
{
    enum { rounds = 50 };
    int expected = 0;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (int i = 1; i <= rounds; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, i % 2 ? &detached : NULL, end_alone, (void *)(intptr_t)i) == 0);
        if (i % 2 == 0) {
            CHECK(pthread_join(thread, NULL) == 0);
        }
        expected += i;
    }
    struct timespec pause = {.tv_nsec = 1000000};
    for (int i = 0; i < 5000 && __atomic_load_n(&ended, __ATOMIC_SEQ_CST) != expected; i++) {
        nanosleep(&pause, NULL);
    }
    CHECK(ended == expected);
    nanosleep(&pause, NULL);
}

static void test_processes(void)
{
    static const unsigned char code[] = {0xf4};
    struct guest guest = make_guest(0, code, sizeof code);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        struct kvm_regs regs;
        if (ioctl(guest.vcpu, KVM_GET_REGS, &regs) != -1 || errno != EIO) {
            _exit(1);
        }
        failures = 0;
        test_exits();
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, end_alone, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        fflush(stdout);
        _exit(failures == 0 ? 23 : 2);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 23);
    CHECK(ioctl(guest.vcpu, KVM_RUN, 0) == 0 && guest.run->exit_reason == KVM_EXIT_HLT);
    end_guest(&guest);

    // Itself, by the name that leads to its file.
    child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "client", "again", NULL);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 9);
    char self[4096] = "";
    struct stat named, opened;
    CHECK(readlink("/proc/self/exe", self, sizeof self - 1) > 0 && self[0] == '/');
    int file = open("/proc/self/exe", O_RDONLY);
    CHECK(stat(self, &named) == 0 && fstat(file, &opened) == 0 && named.st_ino == opened.st_ino);
    close(file);

    char *command[] = {"sh", "-c", "exit 5", NULL};
    CHECK(posix_spawn(&child, "/bin/sh", NULL, NULL, command, environ) == 0);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
    child = fork();
    if (child == 0) {
        *(volatile int *)16 = 1;
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

// --- What a call must not change.

static void test_registers(void)
{
    int kvm = open("/dev/kvm", O_RDWR);
    register double sum __asm__("xmm5") = 1.5;
    long result = 0;
    uint64_t rbx = 0x1111, r12 = 0x2222, r8 = 0x3333, rdx = 0;
    __asm__ volatile("mov %[rbx], %%rbx; mov %[r12], %%r12; mov %[r8], %%r8\n"
                     "syscall\n"
                     "mov %%rbx, %[rbx]; mov %%r12, %[r12]; mov %%r8, %[r8]; mov %%rdx, %[out]"
                     : "=a"(result), [rbx] "+m"(rbx), [r12] "+m"(r12), [r8] "+m"(r8), "+x"(sum), [out] "=m"(rdx)
                     : "a"((long)SYS_ioctl), "D"((long)kvm), "S"((long)KVM_GET_API_VERSION), "d"(0L)
                     : "rcx", "r11", "rbx", "r12", "r8", "memory");
    CHECK(result == 12 && rbx == 0x1111 && r12 == 0x2222 && r8 == 0x3333 && rdx == 0 && sum == 1.5);
    close(kvm);
    char *end = (char *)syscall(SYS_brk, 0L);
    CHECK((char *)syscall(SYS_brk, end + (1 << 20)) == end + (1 << 20));
    memset(end, 1, 1 << 20);
    CHECK((char *)syscall(SYS_brk, end) == end);
}

// --- What some clients look at before they open anything.

static int has_flag(const char *flag)
{
    static char text[1 << 16];
    FILE *file = fopen("/proc/cpuinfo", "r");
    size_t length = file != NULL ? fread(text, 1, sizeof text - 1, file) : 0;
    text[length] = 0;
    if (file != NULL) {
        fclose(file);
    }
    return strstr(text, flag) != NULL;
}

static void test_cpuid(void)
{
    // Where CPUID can be made to fault, it says what /dev/kvm needs.
    if (getenv("CLIENT_WANTS_VIRTUALIZATION") == NULL || !has_flag("cpuid_fault")) {
        return;
    }
    unsigned eax, ebx, ecx, edx;
    __cpuid(0, eax, ebx, ecx, edx);
    int is_intel = ebx == signature_INTEL_ebx;
    __cpuid(is_intel ? 1 : 0x80000001, eax, ebx, ecx, edx);
    CHECK((ecx & (is_intel ? 1u << 5 : 1u << 2)) != 0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "again") == 0) {
        return ioctl(open("/dev/kvm", O_RDWR), KVM_GET_API_VERSION, 0) == 12 ? 9 : 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    CHECK(argc == 3 && strcmp(argv[1], "first argument") == 0 && strcmp(argv[2], "") == 0);
    CHECK(getenv("PATH") != NULL);
    test_registers();
    test_cpuid();
    test_exits();
    test_errno();
    test_kick(0, 0xeb);  // jmp .
    test_kick(1, 0xf4);  // hlt
    test_signals_of_other_calls();
    test_handlers();
    test_storm();
    test_irqfd();
    test_threads();
    test_processes();
    if (failures == 0) {
        puts("OK");
    }
    return failures != 0;
}
