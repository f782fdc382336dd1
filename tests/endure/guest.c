/* SPDX-License-Identifier: Apache-2.0 */

/* The first and only program of the guest that tests/endure.sh disturbs: workers that compute what
 * is known, and look at clocks, timers, processes, memory and wake-ups, until their time is over.
 * What is wrong is a line "WRONG: …" on the console, and ends the machine with status 1; the end of
 * the time with status 0, by a write to port 0xf4.
 *
 * With the argument --expect, on the host: prints what the computations must give. */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* The host may be busy, or may stop the VMM for a while: what is longer is a hang. */
enum { page = 4096, debug_exit_port = 0xf4, longest_pause_s = 900 };

static void end(int status)
{
    fflush(stdout);
    tcdrain(STDOUT_FILENO);
    ioperm(debug_exit_port, 4, 1);
    outb((unsigned char)status, debug_exit_port);
    for (;;) {
        pause();
    }
}

static void wrong(const char* format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("WRONG: %s (errno %d)\n", text, errno);
    end(1);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* ---- Computations whose results are known. */

static uint64_t next_random(uint64_t* state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t checksum(const unsigned char* bytes, size_t size)
{
    uint64_t sum = 0xcbf29ce484222325ULL;
    for (size_t i = 0; i < size; ++i) {
        sum = (sum ^ bytes[i]) * 0x100000001b3ULL;
    }
    return sum;
}

enum { file_size = 1 << 20 };

static void fill(unsigned char* bytes, size_t size, uint64_t seed)
{
    for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
        const uint64_t word = next_random(&seed);
        memcpy(bytes + i, &word, sizeof word);
    }
}

/* Integers, SSE2 and x87. */
static uint64_t compute(void)
{
    uint64_t state = 88172645463325252ULL;
    double by_sse[4] = {1, 2, 3, 4};
    long double by_x87 = 1;
    for (int i = 1; i < 200000; ++i) {
        const uint64_t r = next_random(&state);
        for (int lane = 0; lane < 4; ++lane) {
            by_sse[lane] = by_sse[lane] * 1.0000001 + (double)(r >> (8 * lane) & 0xff) / i;
        }
        by_x87 = by_x87 / 1.0000003L + 1 / (long double)(i + (int)(r & 7));
    }
    uint64_t sum = state ^ checksum((const unsigned char*)by_sse, sizeof by_sse);
    return sum ^ checksum((const unsigned char*)&by_x87, 10);
}

static uint64_t expected_sum;
static uint64_t expected_result;

static uint64_t sum_of_file(void)
{
    unsigned char* const bytes = malloc(file_size);
    fill(bytes, file_size, 4711);
    const uint64_t sum = checksum(bytes, file_size);
    free(bytes);
    return sum;
}

/* ---- Workers.  Each round of one is a second or less of work. */

static void work_compute(void)
{
    const uint64_t result = compute();
    if (result != expected_result) {
        wrong("the computation gave %llx instead of %llx", (unsigned long long)result,
              (unsigned long long)expected_result);
    }
}

static void work_files(void)
{
    char name[64];
    snprintf(name, sizeof name, "/tmp/file.%d", getpid());
    static unsigned char bytes[file_size];
    fill(bytes, file_size, 4711);
    const int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (size_t done = 0; done < file_size;) {
        const ssize_t count =
            write(fd, bytes + done, file_size - done < 65536 ? file_size - done : 65536);
        if (count <= 0) {
            wrong("a file could not be written");
        }
        done += (size_t)count;
    }
    memset(bytes, 0, sizeof bytes);
    lseek(fd, 0, SEEK_SET);
    for (size_t done = 0; done < file_size;) {
        const ssize_t count = read(fd, bytes + done, file_size - done);
        if (count <= 0) {
            wrong("a file could not be read");
        }
        done += (size_t)count;
    }
    if (checksum(bytes, file_size) != expected_sum) {
        wrong("the file has another checksum");
    }
    unsigned char* const mapped = mmap(NULL, file_size, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED || checksum(mapped, file_size) != expected_sum) {
        wrong("the mapped file has another checksum");
    }
    munmap(mapped, file_size);
    close(fd);
    unlink(name);
}

/* Two threads that may run on any CPU see one clock that never goes back. */
static pthread_mutex_t clock_lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t latest_ns;

static void* watch_clock(void* unused)
{
    (void)unused;
    for (int i = 0; i < 20000; ++i) {
        pthread_mutex_lock(&clock_lock);
        const int64_t now = now_ns();
        if (now < latest_ns) {
            wrong("the clock went back by %lld ns", (long long)(latest_ns - now));
        }
        latest_ns = now;
        pthread_mutex_unlock(&clock_lock);
    }
    return NULL;
}

static void in_threads(void* (*action)(void*))
{
    pthread_t threads[2];
    for (int i = 0; i < 2; ++i) {
        if (pthread_create(&threads[i], NULL, action, NULL) != 0) {
            wrong("a thread could not be made");
        }
    }
    for (int i = 0; i < 2; ++i) {
        pthread_join(threads[i], NULL);
    }
}

static void work_clock(void)
{
    in_threads(watch_clock);
}

static void work_sleep(void)
{
    static int turn;
    const int64_t asked = (1 + turn++ % 50) * 2000000LL;
    const struct timespec time = {0, asked};
    const int64_t begin = now_ns();
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL) != 0) {
    }
    const int64_t slept = now_ns() - begin;
    if (slept < asked || slept > asked + longest_pause_s * 1000000000LL) {
        wrong("a sleep of %lld ns took %lld", (long long)asked, (long long)slept);
    }
}

static void work_timer(void)
{
    const int64_t period = 10000000;
    const int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    const int64_t begin = now_ns();
    const struct timespec first = {(begin + period) / 1000000000, (begin + period) % 1000000000};
    const struct itimerspec times = {{0, period}, first};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &times, NULL);
    int64_t expired = 0;
    while (expired < 50) {
        uint64_t count = 0;
        if (read(timer, &count, sizeof count) != sizeof count) {
            wrong("a timer could not be read");
        }
        expired += (int64_t)count;
        const int64_t due = (now_ns() - begin) / period;
        if (expired > due || due - expired > longest_pause_s * 100) {
            wrong("a timer expired %lld times where %lld were due", (long long)expired,
                  (long long)due);
        }
    }
    close(timer);
}

static volatile sig_atomic_t alarms;

static void on_alarm(int signal)
{
    (void)signal;
    ++alarms;
}

static void work_signals(void)
{
    signal(SIGALRM, on_alarm);
    alarms = 0;
    const struct itimerval times = {{0, 5000}, {0, 5000}};
    setitimer(ITIMER_REAL, &times, NULL);
    const int64_t begin = now_ns();
    while (alarms < 20) {
        work_compute();
        if (now_ns() - begin > longest_pause_s * 1000000000LL) {
            wrong("%d alarms came in %d s", (int)alarms, longest_pause_s);
        }
    }
    const struct itimerval none = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &none, NULL);
}

static void work_forks(void)
{
    for (int i = 0; i < 10; ++i) {
        int ends[2];
        if (pipe(ends) != 0) {
            wrong("a pipe could not be made");
        }
        const pid_t child = fork();
        if (child == 0) {
            char text[16];
            close(ends[0]);
            dup2(ends[1], STDOUT_FILENO);
            snprintf(text, sizeof text, "%d", i);
            execl("/init", "init", "--child", text, NULL);
            _exit(99);
        }
        close(ends[1]);
        static unsigned char bytes[65536 + 1];
        size_t size = 0;
        for (;;) {
            const ssize_t count = read(ends[0], bytes + size, sizeof bytes - size);
            if (count <= 0) {
                break;
            }
            size += (size_t)count;
        }
        close(ends[0]);
        int status = 0;
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != i) {
            wrong("a child ended with status %#x instead of %d", status, i);
        }
        static unsigned char expected[65536];
        fill(expected, sizeof expected, (uint64_t)i + 1);
        if (size != sizeof expected || memcmp(bytes, expected, size) != 0) {
            wrong("%zu bytes came through the pipe, or others than were sent", size);
        }
    }
}

static int child(int number)
{
    static unsigned char bytes[65536];
    fill(bytes, sizeof bytes, (uint64_t)number + 1);
    for (size_t done = 0; done < sizeof bytes;) {
        const ssize_t count = write(STDOUT_FILENO, bytes + done, 4096);
        if (count <= 0) {
            return 98;
        }
        done += (size_t)count;
    }
    return number;
}

/* Pages that come, go and change while another thread of the process uses others of them. */
static void* use_memory(void* unused)
{
    (void)unused;
    enum { pages = 64 };
    for (int round = 0; round < 10; ++round) {
        unsigned char* const bytes =
            mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (bytes == MAP_FAILED) {
            wrong("no memory");
        }
        for (int i = 0; i < pages; ++i) {
            bytes[i * page + i] = (unsigned char)(i + round + 1);
        }
        mprotect(bytes, pages / 2 * page, PROT_READ);
        madvise(bytes + pages / 2 * page, pages / 4 * page, MADV_DONTNEED);
        for (int i = 0; i < pages; ++i) {
            const int is_gone = i >= pages / 2 && i < pages / 2 + pages / 4;
            if (bytes[i * page + i] != (is_gone ? 0 : (unsigned char)(i + round + 1))) {
                wrong("page %d holds %d", i, bytes[i * page + i]);
            }
        }
        munmap(bytes, pages * page);
    }
    return NULL;
}

static void work_memory(void)
{
    in_threads(use_memory);
    static unsigned char shared[16 * page];
    fill(shared, sizeof shared, 99);
    const uint64_t before = checksum(shared, sizeof shared);
    const pid_t other = fork();
    if (other == 0) {
        memset(shared, 0x5a, sizeof shared);
        _exit(shared[5 * page] == 0x5a ? 0 : 1);
    }
    int status = 0;
    waitpid(other, &status, 0);
    if (status != 0 || checksum(shared, sizeof shared) != before) {
        wrong("a child's writes were seen by its parent, or it did not see them itself");
    }
}

/* Each waits for the other: a lost wake-up hangs both, which the parent sees. */
static pthread_mutex_t turn_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static int whose_turn;

static void* take_turns(void* unused)
{
    (void)unused;
    pthread_mutex_lock(&turn_lock);
    const int mine = whose_turn++ == 0 ? 0 : 1;
    if (mine == 1) {
        whose_turn = 0;
        pthread_cond_broadcast(&turn_changed);
    } else {
        while (whose_turn != 0) {
            pthread_cond_wait(&turn_changed, &turn_lock);
        }
    }
    for (int i = 0; i < 500; ++i) {
        while (whose_turn != mine) {
            pthread_cond_wait(&turn_changed, &turn_lock);
        }
        whose_turn = 1 - mine;
        pthread_cond_broadcast(&turn_changed);
    }
    pthread_mutex_unlock(&turn_lock);
    return NULL;
}

static void work_turns(void)
{
    whose_turn = 0;
    in_threads(take_turns);
}

/* Places where the VMM adds and removes memory: it has its stamp, or nobody answers. */
static void work_slots(void)
{
    static const off_t areas[] = {0xd0000000, 0x200000000};
    enum { size = 8 * 16 * page };
    const uint32_t stamp = 0x51075107;
    const int fd = open("/dev/mem", O_RDWR | O_SYNC);
    for (int area = 0; area < 2; ++area) {
        volatile unsigned char* const bytes =
            mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, areas[area]);
        if (bytes == MAP_FAILED) {
            wrong("/dev/mem could not be mapped");
        }
        for (int at = 0; at < size; at += page) {
            volatile uint32_t* const word = (volatile uint32_t*)(bytes + at);
            const uint32_t found = *word;
            if (found != stamp && found != ~0U) {
                wrong("%#llx holds %x", (unsigned long long)(areas[area] + at), found);
            }
            *word = stamp;
        }
        munmap((void*)bytes, size);
    }
    close(fd);
    usleep(10000);
}

static const struct {
    const char* name;
    void (*round)(void);
} workers[] = {
    {"compute", work_compute}, {"files", work_files},   {"clock", work_clock},
    {"sleep", work_sleep},     {"timer", work_timer},   {"signals", work_signals},
    {"forks", work_forks},     {"memory", work_memory}, {"turns", work_turns},
    {"slots", work_slots},
};
enum { worker_count = sizeof workers / sizeof workers[0] };

static uint64_t number_from(const char* variable)
{
    const char* const text = getenv(variable);
    return text != NULL ? strtoull(text, NULL, 0) : 0;
}

/* Linux' two clocks of a guest of KVM, in turn: the time must go on where it was. */
static void change_clock_source(int turn)
{
    const int fd =
        open("/sys/devices/system/clocksource/clocksource0/current_clocksource", O_WRONLY);
    const char* const name = turn % 2 == 0 ? "kvm-clock" : "tsc";
    if (fd >= 0) {
        if (write(fd, name, strlen(name)) < 0 && turn % 2 == 0) {
            wrong("there is no kvm-clock");
        }
        close(fd);
    }
}

static void set_up(void)
{
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mkdir("/tmp", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
    const int console = open("/dev/ttyS0", O_RDWR);
    dup2(console, STDIN_FILENO);
    dup2(console, STDOUT_FILENO);
    dup2(console, STDERR_FILENO);
}

int main(int argc, char** argv)
{
    if (argc == 2 && strcmp(argv[1], "--expect") == 0) {
        printf("vmm_sum=%#llx vmm_result=%#llx\n", (unsigned long long)sum_of_file(),
               (unsigned long long)compute());
        return 0;
    }
    if (argc == 3 && strcmp(argv[1], "--child") == 0) {
        return child(atoi(argv[2]));
    }
    set_up();
    setvbuf(stdout, NULL, _IOLBF, 0);
    expected_sum = number_from("vmm_sum");
    expected_result = number_from("vmm_result");
    const int64_t seconds = (int64_t)number_from("vmm_seconds");
    printf("on %ld CPUs for %lld s\n", sysconf(_SC_NPROCESSORS_ONLN), (long long)seconds);
    if (sysconf(_SC_NPROCESSORS_ONLN) != (long)number_from("vmm_cpus")) {
        wrong("not all CPUs came up");
    }

    uint64_t* const rounds =
        mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < worker_count; ++i) {
        if (fork() == 0) {
            for (;;) {
                workers[i].round();
                __atomic_add_fetch(&rounds[i], 1, __ATOMIC_RELAXED);
            }
        }
    }
    uint64_t seen[worker_count] = {0};
    int64_t moved[worker_count];
    const int64_t begin = now_ns();
    for (int i = 0; i < worker_count; ++i) {
        moved[i] = begin;
    }
    for (int beat = 0; now_ns() - begin < seconds * 1000000000LL; ++beat) {
        sleep(2);
        const int64_t now = now_ns();
        printf("%lld s:", (long long)((now - begin) / 1000000000));
        for (int i = 0; i < worker_count; ++i) {
            const uint64_t count = __atomic_load_n(&rounds[i], __ATOMIC_RELAXED);
            printf(" %s %llu", workers[i].name, (unsigned long long)count);
            if (count != seen[i]) {
                seen[i] = count;
                moved[i] = now;
            }
            if (now - moved[i] > longest_pause_s * 1000000000LL) {
                printf("\n");
                wrong("worker %s hangs", workers[i].name);
            }
        }
        printf("\n");
        int status = 0;
        const pid_t ended = waitpid(-1, &status, WNOHANG);
        if (ended > 0) {
            wrong("a worker ended, status %#x", status);
        }
        change_clock_source(beat);
    }
    for (int i = 0; i < worker_count; ++i) {
        if (seen[i] == 0) {
            wrong("worker %s came to no end of a round", workers[i].name);
        }
    }
    printf("all is well\n");
    end(0);
}
