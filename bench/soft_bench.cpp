// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest code on the software engine, with and without its translator, beside the same code run
/// natively: MIPS, and how many times slower.
///
/// Each guest function is run natively for its result and time, once with single steps for the
/// number of its instructions, and then at full speed; the best of several runs counts.

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "soft/guest_harness.hpp"
#include "soft_guest.hpp"

namespace {

using namespace vmm::x86;
namespace soft = vmm::x86::soft;
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
    bool has_result{true};  ///< That is the same at another address.
    bool is_vector{};
};

void start(Guest& guest, const Workload& workload)
{
    guest.state().rip = Guest::code + static_cast<std::uint64_t>(
                                          reinterpret_cast<const std::uint8_t*>(workload.function) -
                                          __start_guest_code);
    guest.state().rflags = 2;
    const std::array<std::uint8_t, 2> control{0x7f, 0x03};  // As after FNINIT.
    std::memcpy(guest.state().fpu.x87.data(), control.data(), control.size());
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
    for (int i = 0; i < 9; ++i) {
        const auto begin = Clock::now();
        result = workload.function(workload.size, memory);
        best = std::min(best, seconds_since(begin));
    }
    return best;
}

/// Negative: the result was wrong.
double best_guest(Guest& guest, const Workload& workload, std::uint64_t expected)
{
    double best = 1e9;
    for (int i = 0; i < 25; ++i) {
        start(guest, workload);
        const auto begin = Clock::now();
        const Reason reason = guest.run();
        best = std::min(best, seconds_since(begin));
        if (reason != Reason::Halt || (workload.has_result && guest.reg(Rax) != expected)) {
            return -1;
        }
    }
    return best;
}

void set_up(Guest& guest)
{
    guest.long_mode();
    guest.load(Guest::code, std::span{__start_guest_code, __stop_guest_code});
    guest.put<std::uint8_t>(return_to, 0xf4);
    // #DB: inc qword [counter]; iretq
    guest.load(Guest::idt_code + 2, {0xeb, 0x7c});
    guest.load(Guest::idt_code + 0x80,
               {0x48, 0xff, 0x04, 0x25, 0x00, 0xf1, 0x00, 0x00, 0x48, 0xcf});
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

/// The geometric means of a group of workloads.
struct Mean {
    double interpreter{};
    double translator{};
    int count{};

    void add(double first, double second)
    {
        interpreter += std::log(first);
        translator += std::log(second);
        ++count;
    }
    void print(const char* name) const
    {
        std::printf("%-12s %45s %10.2fx %10.2fx\n", name, "", std::exp(interpreter / count),
                    std::exp(translator / count));
    }
};

}  // namespace

int main()
{
    const std::vector<Workload> workloads{
        {"alu", guest_alu, 20'000, false},
        {"sieve", guest_sieve, 30'000},
        {"crc32", guest_crc32, 20'000, false},
        {"chase", guest_chase, 50'000},
        {"fib", guest_fib, 18},
        {"interpreter", guest_interpreter, 20'000},
        {"string", guest_string, 10},
        {"sort", guest_sort, 2'000},
        {"carry", guest_carry, 30'000, false},
        {"hash", guest_hash, 20'000},
        {"atomic", guest_atomic, 30'000},
        {"copy", guest_copy, 50},
        {"matrix", guest_matrix, 4, true, true},
        {"mandel", guest_mandel, 500, true, true},
        {"x87", guest_x87, 10'000, true, true},
    };
    Guest interpreted{std::size_t{64} << 20U, soft::TranslationMode::Off};
    Guest translated{std::size_t{64} << 20U, soft::TranslationMode::On};
    set_up(interpreted);
    set_up(translated);
    std::vector<std::uint8_t> memory(std::size_t{1} << 20U);
    std::printf("%-12s %12s %10s %10s %10s %11s %11s\n", "workload", "instructions", "native",
                "interpr.", "translated", "interpr.", "translated");
    Mean integer;
    Mean vector;
    for (const Workload& workload : workloads) {
        std::uint64_t expected = 0;
        const double native = best_native(workload, memory.data(), expected);
        const auto instructions = static_cast<double>(count_instructions(interpreted, workload));
        const double slow = best_guest(interpreted, workload, expected);
        const double fast = best_guest(translated, workload, expected);
        if (slow < 0 || fast < 0) {
            std::printf("%s: wrong result\n", workload.name);
            return 1;
        }
        (workload.is_vector ? vector : integer).add(slow / native, fast / native);
        std::printf("%-12s %12.0f %10.0f %10.0f %10.0f %10.2fx %10.2fx\n", workload.name,
                    instructions, instructions / native / 1e6, instructions / slow / 1e6,
                    instructions / fast / 1e6, slow / native, fast / native);
    }
    integer.print("integer");
    vector.print("SSE and x87");
    return 0;
}
