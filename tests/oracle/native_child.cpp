// SPDX-License-Identifier: Apache-2.0

/// @file
/// The loop of the child process.
///
/// It runs on the host's stack and thread pointer, both of which a case takes away; signals find
/// them again in the stub.  So nothing here may be instrumented, and system calls go through the
/// stub: the kernel obeys no others.

#include <csignal>
#include <cstddef>
#include <cstring>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

#include "oracle/native_cpu.hpp"
#include "oracle/native_stub.hpp"

#define ORACLE_PLAIN __attribute__((no_sanitize("address", "undefined", "thread")))

namespace vmm::oracle {

namespace {

constexpr int failed_to_start = 97;

/// As the kernel has it.
struct KernelSigaction {
    std::uint64_t handler{};
    std::uint64_t flags{};
    std::uint64_t restorer{};
    std::uint64_t mask{};
};

[[noreturn]] void give_up()
{
    ::_exit(failed_to_start);
}

void catch_signals(const Stub& stub)
{
    stack_t stack{};
    stack.ss_sp = reinterpret_cast<void*>(signal_stack_base);
    stack.ss_size = signal_stack_bytes;
    if (::syscall(SYS_sigaltstack, &stack, nullptr) != 0) {
        give_up();
    }
    constexpr std::uint64_t sa_restorer = 0x0400'0000;
    KernelSigaction action{};
    action.handler = stub.on_signal;
    action.restorer = stub.restorer;
    action.flags = static_cast<std::uint64_t>(SA_SIGINFO) | static_cast<std::uint64_t>(SA_ONSTACK) |
                   static_cast<std::uint64_t>(SA_NODEFER) | sa_restorer;
    for (const int signal : {SIGSEGV, SIGILL, SIGFPE, SIGBUS, SIGTRAP, SIGSYS, SIGVTALRM}) {
        if (::syscall(SYS_rt_sigaction, signal, &action, nullptr, sizeof action.mask) != 0) {
            give_up();
        }
    }
    // A case that runs through two ticks of its CPU time is ended.
    const itimerval tick{{0, 10'000}, {0, 10'000}};
    ::setitimer(ITIMER_VIRTUAL, &tick, nullptr);
}

/// Only the stub's own SYSCALL instructions are obeyed; others raise SIGSYS.
void forbid_system_calls(const Stub& stub)
{
    const auto low = [&](std::size_t number) {
        return static_cast<std::uint32_t>(stub.after_syscall[number]);
    };
    const std::array<sock_filter, 8> program{{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, instruction_pointer)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low(0), 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low(1), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    }};
    sock_fprog filter{};
    filter.len = program.size();
    filter.filter = const_cast<sock_filter*>(program.data());
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) != 0) {
        give_up();
    }
}

/// Maps the arena at its addresses; returns where all of it can be written.
std::uint8_t* map_arena()
{
    const int file = ::memfd_create("oracle", MFD_CLOEXEC);
    if (file < 0 || ::ftruncate(file, arena_bytes) != 0) {
        give_up();
    }
    constexpr int shared = MAP_SHARED | MAP_POPULATE;
    const auto map = [&](std::uint64_t at, std::size_t size, int protection, std::uint32_t offset) {
        void* const wanted = reinterpret_cast<void*>(at);
        if (::mmap(wanted, size, protection, shared | MAP_FIXED_NOREPLACE, file,
                   static_cast<::off_t>(offset)) != wanted) {
            give_up();
        }
    };
    map(code_base, code_bytes, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
    map(data_base, data_writable_bytes, PROT_READ | PROT_WRITE, code_bytes);
    map(data_base + data_writable_bytes, data_bytes - data_writable_bytes, PROT_READ,
        code_bytes + data_writable_bytes);
    void* const all = ::mmap(nullptr, arena_bytes, PROT_READ | PROT_WRITE, shared, file, 0);
    if (all == MAP_FAILED) {
        give_up();
    }
    return static_cast<std::uint8_t*>(all);
}

ORACLE_PLAIN void load(Context& context, const Case& each)
{
    constexpr std::size_t mxcsr = 24;
    constexpr std::size_t xmm = 160;
    XsaveArea& fpu = context.in_fpu;
    __builtin_memcpy(&context.in, &each.in, sizeof(State));
    __builtin_memcpy(fpu.legacy.data(), each.in.x87.data(), each.in.x87.size());
    __builtin_memcpy(fpu.legacy.data() + mxcsr, &each.in.mxcsr, 4);
    for (std::size_t number = 0; number < 16; ++number) {
        const std::uint8_t* const from = each.in.ymm.data()[number].data();
        __builtin_memcpy(fpu.legacy.data() + xmm + 16 * number, from, 16);
        __builtin_memcpy(fpu.ymm_high.data()[number].data(), from + 16, 16);
    }
    fpu.xstate_bv = 7;
    context.frame = {linear_of(each.code_offset), each.is_32 ? user_code_32 : user_code_64,
                     each.in.rflags, each.in.gpr.data()[4], user_data};
}

/// From an XSAVE area, honouring components that are in their initial state.
ORACLE_PLAIN void take_fpu(const XsaveArea& fpu, State& out)
{
    constexpr std::size_t mxcsr = 24;
    constexpr std::size_t xmm = 160;
    __builtin_memset(out.x87.data(), 0, out.x87.size());
    if ((fpu.xstate_bv & 1U) != 0) {
        __builtin_memcpy(out.x87.data(), fpu.legacy.data(), out.x87.size());
        __builtin_memset(out.x87.data() + mxcsr, 0, 8);
    } else {
        out.x87.data()[0] = 0x7f;
        out.x87.data()[1] = 0x03;
    }
    __builtin_memcpy(&out.mxcsr, fpu.legacy.data() + mxcsr, 4);
    for (std::size_t number = 0; number < 16; ++number) {
        std::uint8_t* const to = out.ymm.data()[number].data();
        __builtin_memset(to, 0, 32);
        if ((fpu.xstate_bv & 2U) != 0) {
            __builtin_memcpy(to, fpu.legacy.data() + xmm + 16 * number, 16);
        }
        if ((fpu.xstate_bv & 4U) != 0) {
            __builtin_memcpy(to + 16, fpu.ymm_high.data()[number].data(), 16);
        }
    }
}

/// What the kernel saved of a case that a signal ended.
ORACLE_PLAIN void take_signal(Context& context, bool is_32, Outcome& outcome)
{
    static constexpr std::array<int, 16> order{REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                               REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                               REG_R12, REG_R13, REG_R14, REG_R15};
    constexpr std::uint64_t page_fault = 14;
    const auto* const saved = reinterpret_cast<const ucontext_t*>(context.signal_context);
    const auto& registers = saved->uc_mcontext.gregs;
    for (std::size_t number = 0; number < 16; ++number) {
        outcome.out.gpr.data()[number] =
            static_cast<std::uint64_t>(registers[order.data()[number]]);
    }
    outcome.out.rip = static_cast<std::uint64_t>(registers[REG_RIP]);
    outcome.out.rflags = static_cast<std::uint64_t>(registers[REG_EFL]);
    const auto selectors = static_cast<std::uint64_t>(registers[REG_CSGSFS]);
    outcome.out.selector.data()[1] = static_cast<std::uint16_t>(selectors);
    outcome.out.selector.data()[2] = static_cast<std::uint16_t>(selectors >> 48U);
    take_fpu(*reinterpret_cast<const XsaveArea*>(saved->uc_mcontext.fpregs), outcome.out);
    const auto vector = static_cast<std::uint64_t>(registers[REG_TRAPNO]);
    outcome.ending = static_cast<std::uint16_t>(vector);
    outcome.error_code = static_cast<std::uint32_t>(registers[REG_ERR]);
    if (vector == page_fault) {
        outcome.address = static_cast<std::uint64_t>(registers[REG_CR2]);
    }
    // TF was set by the last instruction: the trap comes after the first one of the exit, which
    // changes nothing.
    const std::uint64_t rip = outcome.out.rip;
    const bool in_exit = rip > exit_64 && rip < exit_64 + 0x1000 && rip != exit_32;
    if (vector == 1 && (in_exit || (is_32 && rip == exit_64))) {
        outcome.ending = ReachedExit;
        outcome.out.rip = 0;
        outcome.out.selector.data()[1] = 0;
    }
    if (context.signal == static_cast<std::uint64_t>(SIGSYS)) {
        outcome.ending = SystemCall;
    } else if (context.signal == static_cast<std::uint64_t>(SIGVTALRM)) {
        outcome.ending = TimedOut;
    }
}

class Server {
public:
    Server(Batch& batch, const Stub& stub, std::uint8_t* arena)
        : batch_{batch},
          stub_{stub},
          arena_{arena},
          context_{*reinterpret_cast<Context*>(context_base)}
    {
    }

    ORACLE_PLAIN void run_batch()
    {
        __builtin_memcpy(before_.data(), batch_.image.data(), arena_bytes);
        __builtin_memcpy(arena_, before_.data(), arena_bytes);
        for (std::uint32_t i = batch_.first; i < batch_.count; ++i) {
            batch_.current.store(i, std::memory_order_release);
            run(batch_.cases.data()[i], batch_.outcomes.data()[i]);
        }
    }

    ORACLE_PLAIN void futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value)
    {
        stub_.system_call(SYS_futex, reinterpret_cast<std::uint64_t>(&word),
                          static_cast<std::uint64_t>(operation), value, 0);
    }

private:
    ORACLE_PLAIN void patch(std::uint32_t offset, const std::uint8_t* bytes, std::uint32_t size)
    {
        __builtin_memcpy(arena_ + offset, bytes, size);
        __builtin_memcpy(before_.data() + offset, bytes, size);
    }

    ORACLE_PLAIN void run(const Case& each, Outcome& outcome)
    {
        for (const Patch& one : each.patches) {
            patch(one.offset, one.bytes.data(), one.size);
        }
        patch(each.code_offset, each.code.data(), each.code_size);
        load(context_, each);
        ++context_.case_number;
        outcome.error_code = 0;
        outcome.address = 0;
        if (stub_.run_case() == 0) {
            __builtin_memcpy(&outcome.out, &context_.out, sizeof(State));
            take_fpu(context_.out_fpu, outcome.out);
            outcome.ending = ReachedExit;
            outcome.out.rip = 0;
            outcome.out.selector.data()[1] = 0;
        } else {
            outcome.out = context_.out;
            take_signal(context_, each.is_32, outcome);
        }
        take_changes(arena_, before_.data(), outcome);
        for (const Patch& one : each.patches) {
            patch(one.offset, batch_.image.data() + one.offset, one.size);
        }
        patch(each.code_offset, batch_.image.data() + each.code_offset, each.code_size);
    }

    Batch& batch_;
    const Stub& stub_;
    std::uint8_t* arena_;
    Context& context_;
    Arena before_{};
};

[[noreturn]] ORACLE_PLAIN void serve(Server& server, Batch& batch)
{
    for (std::uint32_t seen = batch.done.load(std::memory_order_acquire);;) {
        const std::uint32_t posted = batch.posted.load(std::memory_order_acquire);
        if (posted == seen) {
            server.futex(batch.posted, FUTEX_WAIT, posted);
            continue;
        }
        server.run_batch();
        seen = posted;
        batch.done.store(seen, std::memory_order_release);
        server.futex(batch.done, FUTEX_WAKE, 1);
    }
}

}  // namespace

void serve_cases(Batch& batch)
{
    ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    static Stub stub;
    if (!map_stub(stub)) {
        give_up();
    }
    static Server server{batch, stub, map_arena()};
    catch_signals(stub);
    forbid_system_calls(stub);
    serve(server, batch);
}

}  // namespace vmm::oracle
