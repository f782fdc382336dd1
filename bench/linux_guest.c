/* SPDX-License-Identifier: Apache-2.0 */

/* What system calls, page faults, forks and context switches cost in a Linux guest: the best of many short runs, so
 * that a busy host spoils few numbers.  One line each: NAME NANOSECONDS. */

#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int request[2];
static int answer[2];
static volatile char* untouched;

static void call(void)
{
    syscall(SYS_getppid);
}

static void fork_and_wait(void)
{
    const pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    waitpid(child, 0, 0);
}

static void there_and_back(void)
{
    char byte = 1;
    if (write(request[1], &byte, 1) != 1 || read(answer[0], &byte, 1) != 1) {
        _exit(1);
    }
}

static void touch(void)
{
    *untouched = 1;
    untouched += 4096;
}

static void measure(const char* name, int runs, int times, void (*action)(void))
{
    double best = 1e18;
    for (int run = 0; run < runs; ++run) {
        const double begin = now_ns();
        for (int i = 0; i < times; ++i) {
            action();
        }
        const double each = (now_ns() - begin) / times;
        best = each < best ? each : best;
    }
    printf("%s %.0f\n", name, best);
}

int main(void)
{
    const size_t pages = 8192;
    if (pipe(request) != 0 || pipe(answer) != 0) {
        return 1;
    }
    const pid_t other = fork();
    if (other == 0) {
        char byte;
        while (read(request[0], &byte, 1) == 1 && write(answer[1], &byte, 1) == 1) {
        }
        _exit(0);
    }
    untouched = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (untouched == MAP_FAILED) {
        return 1;
    }
    madvise((void*)untouched, pages * 4096, MADV_NOHUGEPAGE);
    measure("getppid", 400, 200, call);
    measure("fork_and_wait", 100, 1, fork_and_wait);
    measure("pipe_there_and_back", 300, 4, there_and_back);
    measure("first_touch_of_a_page", 500, 16, touch);
    kill(other, SIGKILL);
    return 0;
}
