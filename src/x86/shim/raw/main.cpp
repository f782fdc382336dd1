// SPDX-License-Identifier: Apache-2.0

/// @file
/// vmm-kvm-raw, which vmm-kvm starts in the place of a client that a preload library cannot reach:
/// becomes the client, and serves its system calls.
///
///     vmm-kvm-raw PROGRAM NAME [ARGUMENT…]       NAME is the client's argument 0.

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include <asm/hwcap2.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "x86/shim/raw/actions.hpp"
#include "x86/shim/raw/call.hpp"
#include "x86/shim/raw/client_thread.hpp"
#include "x86/shim/raw/image.hpp"
#include "x86/shim/raw/start_stack.hpp"
#include "x86/shim/raw/stub.hpp"

namespace {

using namespace vmm;
using namespace vmm::shim::raw;

constexpr int status_cannot = 1;
constexpr int status_usage = 2;

[[noreturn]] void die(int status, const std::string& message)
{
    std::fprintf(stderr, "vmm-kvm: %s\n", message.c_str());
    std::exit(status);
}

template <typename T>
T checked(Result<T> result)
{
    if (!result) {
        die(status_cannot, result.error().message());
    }
    return *std::move(result);
}

/// Where the client begins.
void start_at(ucontext_t& at, std::uint64_t entry, std::uint64_t stack) noexcept
{
    at = {};
    constexpr unsigned long segments_are_there = 6;  // UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS.
    constexpr greg_t user_cs = 0x33;
    constexpr greg_t user_ss = 0x2b;
    constexpr greg_t flags = 0x202;
    at.uc_flags = segments_are_there;
    at.uc_stack.ss_flags = SS_DISABLE;
    greg_t* const registers = &at.uc_mcontext.gregs[0];
    registers[REG_RIP] = static_cast<greg_t>(entry);
    registers[REG_RSP] = static_cast<greg_t>(stack);
    registers[REG_EFL] = flags;
    registers[REG_CSGSFS] = user_cs | user_ss << 48U;
    sigset_t mask;
    ::sigemptyset(&mask);
    vmm_raw_syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, reinterpret_cast<std::uint64_t>(&mask),
                    sizeof(KernelSet));
    std::memcpy(&at.uc_sigmask, &mask, sizeof(KernelSet));
    mask_of(at) &= ~never_blocked;
}

void name_process(const char* name) noexcept
{
    const char* const slash = std::strrchr(name, '/');
    ::prctl(PR_SET_NAME, slash != nullptr ? slash + 1 : name);
}

}  // namespace

int main(int argc, char** argv)
{
    if (argc < 3) {
        die(status_usage, "vmm-kvm-raw is started by vmm-kvm");
    }
    const char* const path = argv[1];
    if ((::getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE) == 0) {
        die(status_cannot, std::string{path} +
                               " makes its system calls itself; to serve them needs a CPU and a "
                               "kernel with FSGSBASE: use a dynamically linked build of it");
    }
    // The C library's preparations for threads, among them the handler of a signal that the client
    // may want too.
    std::thread{[] {}}.join();

    static ClientThread thread;
    thread.is_main = true;
    thread.tid = ::getpid();
    start_stubs();
    if (!make_stub_state(thread)) {
        die(status_cannot, "no memory");
    }
    start_actions();
    if (const int error = take_system_calls(thread); error != 0) {
        die(status_cannot, std::string{path} +
                               " makes its system calls itself; to serve them needs Syscall User "
                               "Dispatch (Linux 5.11): " +
                               std::strerror(error) + "; use a dynamically linked build of it");
    }
    const Image program = checked(load_image(path));
    const Image interpreter =
        program.interpreter.empty() ? Image{} : checked(load_image(program.interpreter));
    const std::uint64_t stack =
        checked(make_stack({.path = path,
                            .arguments = {argv + 2, static_cast<std::size_t>(argc - 2)},
                            .environment = environ,
                            .program = program,
                            .interpreter_base = interpreter.base}));
    set_program_path(std::filesystem::canonical(path));
    name_process(path);
    show_virtualization();
    ucontext_t start;
    start_at(start, interpreter.entry != 0 ? interpreter.entry : program.entry, stack);
    vmm_raw_enter(&thread, &start);
    return status_cannot;  // Not reached: the first thread ends by exit(2) of its own.
}
