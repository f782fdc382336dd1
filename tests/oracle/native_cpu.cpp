// SPDX-License-Identifier: Apache-2.0

#include "oracle/native_cpu.hpp"

#include <cerrno>
#include <csignal>
#include <ctime>
#include <new>
#include <stdexcept>
#include <system_error>

#include <linux/futex.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace vmm::oracle {

namespace {

[[noreturn]] void throw_errno(const char* what)
{
    throw std::system_error(errno, std::generic_category(), what);
}

long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value, timespec* timeout)
{
    return ::syscall(SYS_futex, &word, operation, value, timeout, nullptr, 0);
}

}  // namespace

NativeCpu::NativeCpu()
{
    constexpr unsigned long fsgsbase = 2;  // HWCAP2_FSGSBASE
    if ((::getauxval(AT_HWCAP2) & fsgsbase) == 0 || __builtin_cpu_supports("avx2") == 0) {
        throw std::runtime_error("the oracle needs AVX2, and FSGSBASE allowed by the kernel");
    }
    void* const memory = ::mmap(nullptr, sizeof(Batch), PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        throw_errno("mmap of the batch");
    }
    batch_ = new (memory) Batch;
    spawn();
}

NativeCpu::~NativeCpu()
{
    if (child_ > 0) {
        ::kill(child_, SIGKILL);
        ::waitpid(child_, nullptr, 0);
    }
    ::munmap(batch_, sizeof(Batch));
}

void NativeCpu::spawn()
{
    child_ = ::fork();
    if (child_ < 0) {
        throw_errno("fork");
    }
    if (child_ == 0) {
        serve_cases(*batch_);
    }
}

void NativeCpu::post(std::uint32_t first)
{
    batch_->first = first;
    batch_->posted.fetch_add(1, std::memory_order_release);
    futex(batch_->posted, FUTEX_WAKE, 1, nullptr);
}

void NativeCpu::start(std::uint32_t count)
{
    batch_->count = count;
    post(0);
}

bool NativeCpu::has_died()
{
    return ::waitpid(child_, nullptr, WNOHANG) == child_;
}

/// The child died in a case: so that is its outcome.  A new one runs the rest.
void NativeCpu::bury()
{
    const std::uint32_t current = batch_->current.load(std::memory_order_acquire);
    if (current >= batch_->count) {
        child_ = -1;
        throw std::runtime_error("the oracle's child process ends before it runs a case");
    }
    batch_->outcomes[current] = Outcome{};
    batch_->outcomes[current].ending = Died;
    batch_->done.store(batch_->posted.load(std::memory_order_relaxed), std::memory_order_relaxed);
    batch_->current.store(batch_->count, std::memory_order_relaxed);
    spawn();
    post(current + 1);
}

void NativeCpu::wait()
{
    for (;;) {
        const std::uint32_t posted = batch_->posted.load(std::memory_order_relaxed);
        const std::uint32_t done = batch_->done.load(std::memory_order_acquire);
        if (done == posted) {
            return;
        }
        timespec tick{0, 50'000'000};
        if (futex(batch_->done, FUTEX_WAIT, done, &tick) != 0 && errno == ETIMEDOUT && has_died()) {
            bury();
        }
    }
}

}  // namespace vmm::oracle
