// SPDX-License-Identifier: Apache-2.0

#include "x86/shim/signals.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "x86/shim/descriptors.hpp"
#include "x86/shim/library_scope.hpp"
#include "x86/shim/user_memory.hpp"

namespace vmm::shim {
namespace {

using Action = struct sigaction;

constexpr int signal_count = 65;

thread_local RunScope* current_run = nullptr;
thread_local const sigset_t* client_mask = nullptr;

/// The kernel's set of signals is 8 bytes; the C library's begins with it.
constexpr std::size_t kernel_set_size = 8;

/// Not by the C library, which leaves out the signals that it keeps for itself: the client may have
/// another C library.
bool set_mask(const sigset_t& mask, sigset_t* before) noexcept
{
    return ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, before, kernel_set_size) == 0;
}

std::atomic<SigactionFunction> real_sigaction{&::sigaction};

/// What the client wants done at each signal.  Records are never destroyed: a handler may have one
/// in its hands.
std::array<std::atomic<const Action*>, signal_count> wanted{};
std::mutex changes;

/// @pre `changes` is locked
const Action* keep(const Action& action)
{
    static auto& kept = *new std::deque<Action>;
    return &kept.emplace_back(action);
}

bool is_fault(int signal, const siginfo_t& info) noexcept
{
    const bool may_be = signal == SIGSEGV || signal == SIGBUS || signal == SIGFPE ||
                        signal == SIGILL || signal == SIGTRAP || signal == SIGSYS;
    return may_be && info.si_code > 0;
}

/// What the kernel would have done, had we not taken the signal.
void default_action(int signal, const siginfo_t& info) noexcept
{
    Action plain{};
    plain.sa_handler = SIG_DFL;
    real_sigaction.load()(signal, &plain, nullptr);
    if (!is_fault(signal, info)) {
        // A fault comes again by itself, when the instruction is executed again.
        ::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), ::syscall(SYS_gettid), signal, &info);
    }
}

void call_clients(int signal, siginfo_t* info, void* context) noexcept
{
    const auto index = static_cast<std::size_t>(signal);
    const Action* const action = wanted[index].load(std::memory_order_acquire);
    if (action == nullptr || action->sa_handler == SIG_DFL) {
        default_action(signal, *info);
        return;
    }
    if (action->sa_handler == SIG_IGN) {
        if (is_fault(signal, *info)) {
            default_action(signal, *info);
        }
        return;
    }
    const Action handler = *action;
    const auto flags = static_cast<unsigned>(handler.sa_flags);
    if ((flags & SA_RESETHAND) != 0) {
        wanted[index].store(nullptr, std::memory_order_release);
    }
    const ClientScope outside;
    if ((flags & unsigned{SA_SIGINFO}) != 0) {
        handler.sa_sigaction(signal, info, context);
    } else {
        handler.sa_handler(signal);
    }
}

void on_signal(int signal, siginfo_t* info, void* context) noexcept
{
    const int saved_errno = errno;
    if (!take_signal(signal, *info, *static_cast<ucontext_t*>(context))) {
        call_clients(signal, info, context);
    }
    errno = saved_errno;
}

/// What the kernel is to have for what the client wants.
Action ours_for(const Action& action) noexcept
{
    Action ours = action;
    ours.sa_sigaction = &on_signal;
    // The handler is called later than the kernel thinks, so what it resets is reset by us.
    ours.sa_flags = (action.sa_flags & ~static_cast<int>(SA_RESETHAND)) | SA_SIGINFO;
    return ours;
}

bool has_handler(const Action& action) noexcept
{
    return action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
}

bool is_always_ours(int signal) noexcept
{
    return signal == SIGSEGV || signal == SIGBUS;
}

std::atomic<bool> faults_are_ours{false};

std::uint64_t bits_of(const sigset_t& set) noexcept
{
    std::uint64_t bits = 0;
    std::memcpy(&bits, &set, kernel_set_size);
    return bits;
}

/// Signals without a handler of the client's that ours stands for.
std::atomic<std::uint64_t> defaults_are_ours{0};

/// A signal that is blocked but for KVM_RUN ends that and stays pending: the client, which has no
/// handler for it, waits for it afterwards.  With KVM it is never delivered.  Here it is, so that
/// our handler has to be there.
void take_defaults(const sigset_t& mask) noexcept
{
    sigset_t now{};
    if (client_mask != nullptr) {
        now = *client_mask;
    } else if (::syscall(SYS_rt_sigprocmask, SIG_SETMASK, nullptr, &now, kernel_set_size) != 0) {
        return;
    }
    const std::uint64_t unblocked = bits_of(now) & ~bits_of(mask);
    if ((unblocked & ~defaults_are_ours.load()) == 0) {
        return;
    }
    const std::lock_guard lock{changes};
    for (int signal = 1; signal < signal_count; ++signal) {
        const std::uint64_t bit = std::uint64_t{1} << static_cast<unsigned>(signal - 1);
        Action kernels{};
        if ((unblocked & bit) == 0 || real_sigaction.load()(signal, nullptr, &kernels) != 0) {
            continue;
        }
        if (kernels.sa_handler == SIG_DFL) {
            Action ours{};
            ours.sa_sigaction = &on_signal;
            ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
            real_sigaction.load()(signal, &ours, nullptr);
        }
        defaults_are_ours |= bit;
    }
}

/// A thread that has been in KVM_RUN.
struct Runner {
    std::atomic<const RunScope*> scope{nullptr};
    std::atomic<bool> is_looked_at{false};  ///< By one who has locked `Runners::mutex`.
};

/// All of them.  One that ends leaves its place to the next thread with its name.
struct Runners {
    std::mutex mutex;
    std::map<pthread_t, Runner> by_thread;
};

Runners& runners()
{
    static Runners& all = *new Runners;
    return all;
}

Runner& this_runner()
{
    thread_local Runner* mine = nullptr;
    if (mine == nullptr) {
        const std::lock_guard lock{runners().mutex};
        mine = &runners().by_thread[::pthread_self()];
    }
    return *mine;
}

}  // namespace

void end_run(pthread_t thread) noexcept
{
    const std::lock_guard lock{runners().mutex};
    const auto found = runners().by_thread.find(thread);
    if (found == runners().by_thread.end()) {
        return;
    }
    Runner& runner = found->second;
    runner.is_looked_at.store(true);
    if (const RunScope* const scope = runner.scope.load(); scope != nullptr) {
        scope->end();
    }
    runner.is_looked_at.store(false);
}

bool take_signal(int signal, const siginfo_t& info, ucontext_t& context) noexcept
{
    if (is_fault(signal, info)) {
        return fix_up_fault(context) ||
               (current_run != nullptr && signal == SIGSEGV && info.si_code == SEGV_MAPERR &&
                current_run->stand_in(reinterpret_cast<std::uintptr_t>(info.si_addr)));
    }
    if (current_run == nullptr) {
        return false;
    }
    current_run->put_aside(signal, info);
    return true;
}

void set_client_mask(const sigset_t* mask) noexcept
{
    client_mask = mask;
}

void set_real_sigaction(SigactionFunction function) noexcept
{
    real_sigaction.store(function);
}

void own_signals() noexcept
{
    const std::lock_guard lock{changes};
    if (faults_are_ours.exchange(true)) {
        return;
    }
    for (const int signal : {SIGSEGV, SIGBUS}) {
        Action before{};
        const auto index = static_cast<std::size_t>(signal);
        if (real_sigaction.load()(signal, nullptr, &before) != 0) {
            continue;
        }
        if (wanted[index].load() == nullptr) {
            wanted[index].store(keep(before));
        }
        Action ours = ours_for(before);
        // A fault may come on an alternate stack's thread, and while others are handled.
        ours.sa_flags |= SA_ONSTACK | SA_NODEFER;
        real_sigaction.load()(signal, &ours, nullptr);
    }
}

int change_action(int signal, const struct sigaction* action, struct sigaction* old) noexcept
{
    const auto real = real_sigaction.load();
    if (signal <= 0 || signal >= signal_count || LibraryScope::is_inside()) {
        return real(signal, action, old);
    }
    const auto index = static_cast<std::size_t>(signal);
    const std::lock_guard lock{changes};
    const Action* const before = wanted[index].load(std::memory_order_acquire);
    Action kernels{};
    if (action == nullptr) {
        if (real(signal, nullptr, &kernels) != 0) {
            return -1;
        }
    } else {
        const bool take = has_handler(*action) || (is_always_ours(signal) && faults_are_ours);
        const Action* const record = keep(*action);
        defaults_are_ours &= ~(std::uint64_t{1} << static_cast<unsigned>(signal - 1));
        // Before the kernel has it, so that no signal meets a handler without a record.
        wanted[index].store(record, std::memory_order_release);
        Action given = take ? ours_for(*action) : *action;
        if (is_always_ours(signal)) {
            given.sa_flags |= SA_NODEFER | SA_ONSTACK;
        }
        if (real(signal, &given, &kernels) != 0) {
            wanted[index].store(before, std::memory_order_release);
            return -1;
        }
    }
    if (old != nullptr) {
        *old = before != nullptr ? *before : kernels;
        if (before == nullptr && old->sa_sigaction == &on_signal) {
            old->sa_handler = SIG_DFL;  // SA_RESETHAND has been there.
        }
    }
    return 0;
}

RunScope::RunScope(const Vcpu::Kicker& kicker,
                   const HostRanges& ranges,
                   const std::optional<sigset_t>& mask) noexcept
    : kicker_{kicker},
      ranges_{ranges}
{
    this_runner().scope.store(this, std::memory_order_release);
    current_run = this;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (const sigset_t* const wanted_mask = mask ? &*mask : client_mask; wanted_mask != nullptr) {
        if (mask) {
            take_defaults(*mask);
        }
        masked_ = set_mask(*wanted_mask, &before_);
    }
}

RunScope::~RunScope()
{
    Runner& runner = this_runner();
    runner.scope.exchange(nullptr);
    if (runner.is_looked_at.load()) {
        const std::lock_guard until_it_has_been_ended{runners().mutex};
    }
    if (masked_) {
        static_cast<void>(set_mask(before_, nullptr));
    }
    std::atomic_signal_fence(std::memory_order_seq_cst);
    current_run = nullptr;
    const std::size_t count = std::min(waiting_count_.load(std::memory_order_relaxed), max_waiting);
    for (std::size_t i = 0; i < count; ++i) {
        Waiting& each = waiting_[i];
        ::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), ::syscall(SYS_gettid), each.signal,
                  &each.info);
    }
}

void RunScope::put_aside(int signal, const siginfo_t& info) noexcept
{
    const std::size_t at = waiting_count_.load(std::memory_order_relaxed);
    if (at < max_waiting) {
        waiting_[at] = {signal, info};
        waiting_count_.store(at + 1, std::memory_order_relaxed);
    }
    kicker_.kick();
}

bool RunScope::stand_in(std::uintptr_t address) noexcept
{
    const std::size_t at = fault_count_.load(std::memory_order_relaxed);
    const std::uintptr_t page = address & ~(shim_page_size - 1);
    if (at == max_faults || !ranges_.contains(address)) {
        return false;
    }
    // The system call itself: the C library's function is hooked, and may not be async-signal-safe.
    const long mapped = ::syscall(SYS_mmap, page, shim_page_size, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (mapped != static_cast<long>(page)) {
        return false;
    }
    faults_[at] = page;
    fault_count_.store(at + 1, std::memory_order_relaxed);
    kicker_.kick();
    return true;
}

bool RunScope::take_faults() noexcept
{
    const std::size_t count = fault_count_.exchange(0, std::memory_order_relaxed);
    for (std::size_t i = 0; i < count; ++i) {
        ::syscall(SYS_munmap, faults_[i], shim_page_size);
    }
    return count != 0;
}

}  // namespace vmm::shim
