// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest instructions per second of the software engine over a mix of integer code.
///
/// Each guest function is run natively for its result and time, once with single steps for the
/// number of its instructions, and then at full speed.

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "soft/guest_harness.hpp"
#include "soft_guest.hpp"

namespace {

using namespace vmm::x86;
using vmm::x86::soft::test::Guest;
using vmm::x86::soft::test::Reason;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t return_to = 0xf000;  // HLT
constexpr std::uint64_t counter = 0xf100;
constexpr std::uint64_t memory_at = 0x20'0000;

struct Workload {
    const char* name;
    GuestFunction function;
    std::uint64_t size;
};

void start(Guest& guest, const Workload& workload)
{
    guest.state().rip = Guest::code + static_cast<std::uint64_t>(
                                          reinterpret_cast<const std::uint8_t*>(workload.function) -
                                          __start_guest_code);
    guest.state().rflags = 2;
    guest.reg(Rsp) = Guest::stack - 8;
    guest.put<std::uint64_t>(Guest::stack - 8, return_to);
    guest.reg(Rdi) = workload.size;
    guest.reg(Rsi) = memory_at;
}

double seconds_since(Clock::time_point begin)
{
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

double best_native(const Workload& workload, std::uint8_t* memory, std::uint64_t& result)
{
    double best = 1e9;
    for (int i = 0; i < 5; ++i) {
        const auto begin = Clock::now();
        result = workload.function(workload.size, memory);
        best = std::min(best, seconds_since(begin));
    }
    return best;
}

std::uint64_t count_instructions(Guest& guest, const Workload& workload)
{
    start(guest, workload);
    guest.put<std::uint64_t>(counter, 0);
    guest.state().rflags |= 0x100;
    guest.vcpu->state_changed();
    if (guest.run() != Reason::Halt) {
        return 0;
    }
    guest.state().rflags = 2;
    guest.vcpu->state_changed();
    return guest.get<std::uint64_t>(counter);
}

}  // namespace

int main()
{
    const std::vector<Workload> workloads{
        {"alu", guest_alu, 20'000},     {"sieve", guest_sieve, 30'000},
        {"crc32", guest_crc32, 20'000}, {"chase", guest_chase, 50'000},
        {"fib", guest_fib, 18},         {"interpreter", guest_interpreter, 20'000},
        {"string", guest_string, 10},   {"sort", guest_sort, 2'000},
    };
    Guest guest{std::size_t{64} << 20U};
    guest.long_mode();
    guest.load(Guest::code, std::span{__start_guest_code, __stop_guest_code});
    guest.put<std::uint8_t>(return_to, 0xf4);
    // #DB: inc qword [counter]; iretq
    guest.load(Guest::idt_code + 2, {0xeb, 0x7c});
    guest.load(Guest::idt_code + 0x80,
               {0x48, 0xff, 0x04, 0x25, 0x00, 0xf1, 0x00, 0x00, 0x48, 0xcf});
    std::vector<std::uint8_t> memory(std::size_t{1} << 20U);
    std::printf("%-12s %12s %10s %10s %8s\n", "workload", "instructions", "MIPS", "native",
                "slower");
    double log_sum = 0;
    double log_slower = 0;
    for (const Workload& workload : workloads) {
        std::uint64_t expected = 0;
        const double native = best_native(workload, memory.data(), expected);
        const std::uint64_t instructions = count_instructions(guest, workload);
        double best = 1e9;
        for (int i = 0; i < 40; ++i) {
            start(guest, workload);
            const auto begin = Clock::now();
            const Reason reason = guest.run();
            best = std::min(best, seconds_since(begin));
            const bool differs = workload.function != guest_alu && guest.reg(Rax) != expected &&
                                 workload.function != guest_crc32;
            if (reason != Reason::Halt || differs) {
                std::printf("%s: wrong result\n", workload.name);
                return 1;
            }
        }
        const double mips = static_cast<double>(instructions) / best / 1e6;
        log_sum += std::log(mips);
        log_slower += std::log(best / native);
        std::printf("%-12s %12llu %10.0f %10.0f %7.1fx\n", workload.name,
                    static_cast<unsigned long long>(instructions), mips,
                    static_cast<double>(instructions) / native / 1e6, best / native);
    }
    const auto count = static_cast<double>(workloads.size());
    std::printf("%-12s %12s %10.0f %10s %7.1fx\n", "geomean", "", std::exp(log_sum / count), "",
                std::exp(log_slower / count));
    return 0;
}
