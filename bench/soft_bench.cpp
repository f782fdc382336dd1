// SPDX-License-Identifier: Apache-2.0

/// @file
/// Guest code on the software engine, with and without its translator, beside the same code run
/// natively and by other emulators: how many times slower.
///
///     vmm-soft-bench [--beside NAME=FILE]…   the table; FILE is what a machine printed that ran
///     the ROM vmm-soft-bench --rom FILE              writes the same code as the firmware of a PC
///
/// Each guest function is run natively for its result and time, once with single steps for the
/// number of its instructions, and then at full speed; the best of several runs counts.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

#include <sys/mman.h>

#include "soft/guest_harness.hpp"
#include "soft_guest.hpp"
#include "soft_rom.hpp"
#include "soft_workloads.hpp"
#include "x86/tsc.hpp"

namespace {

using namespace vmm::x86;
namespace soft = vmm::x86::soft;
using vmm::x86::soft::test::Guest;
using vmm::x86::soft::test::Reason;

constexpr std::uint64_t return_to = 0xf000;  // HLT
constexpr std::uint64_t counter = 0xf100;
constexpr std::size_t memory_size = std::size_t{16} << 20U;

void start(Guest& guest, const Workload& workload)
{
    guest.state().rip = Guest::code + workload.offset();
    guest.state().rflags = 2;
    const std::array<std::uint8_t, 2> control{0x7f, 0x03};  // As after FNINIT.
    std::memcpy(guest.state().fpu.x87.data(), control.data(), control.size());
    guest.reg(Rsp) = Guest::stack - 8;
    guest.put<std::uint64_t>(Guest::stack - 8, return_to);
    guest.reg(Rdi) = workload.size;
    guest.reg(Rsi) = guest_memory;
}

double ticks_since(std::uint64_t begin)
{
    return static_cast<double>(read_host_tsc() - begin);
}

double best_native(const Workload& workload, std::uint8_t* memory, std::uint64_t& result)
{
    double best = 1e18;
    for (int i = 0; i < 25; ++i) {
        const std::uint64_t begin = read_host_tsc();
        result = workload.function(workload.size, memory);
        best = std::min(best, ticks_since(begin));
    }
    return best;
}

/// Negative: the result was wrong.
double best_guest(Guest& guest, const Workload& workload, std::uint64_t expected)
{
    double best = 1e18;
    for (int i = 0; i < 25; ++i) {
        start(guest, workload);
        const std::uint64_t begin = read_host_tsc();
        const Reason reason = guest.run();
        best = std::min(best, ticks_since(begin));
        if (reason != Reason::Halt || (workload.has_result && guest.reg(Rax) != expected)) {
            return -1;
        }
    }
    return best;
}

void set_up(Guest& guest)
{
    guest.long_mode();
    guest.state().cr4 |= 1U << 18U;  // OSXSAVE
    guest.state().xcr0 = 7;
    guest.vcpu->state_changed();
    std::memset(guest.ram.at(guest_memory), 1, memory_size);  // Pages of its own, each.
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

/// One emulator's times over native ones, with the geometric mean of each group.
struct Column {
    std::string name{};
    std::vector<double> ticks{};  ///< By workload, where another emulator has measured them.
    std::array<double, group_names.size()> logarithms{};
    std::array<int, group_names.size()> counts{};

    void print(const Workload& workload, double slowdown)
    {
        if (std::isnan(slowdown)) {
            std::printf(" %10s ", "-");
            return;
        }
        const auto group = static_cast<std::size_t>(workload.group);
        logarithms.at(group) += std::log(slowdown);
        ++counts.at(group);
        std::printf(" %10.2fx", slowdown);
    }
    void print_mean(std::size_t group) const
    {
        if (counts.at(group) == 0) {
            std::printf(" %10s ", "-");
        } else {
            std::printf(" %10.2fx", std::exp(logarithms.at(group) / counts.at(group)));
        }
    }
};

/// NAME=FILE, with one number a line.
Column read_column(std::string_view argument)
{
    const std::size_t equals = argument.find('=');
    Column column;
    column.name = argument.substr(0, equals);
    if (equals != std::string_view::npos) {
        std::ifstream file{std::string{argument.substr(equals + 1)}};
        for (std::string line; std::getline(file, line);) {
            column.ticks.push_back(line == "-" ? std::nan("") : std::strtod(line.c_str(), nullptr));
        }
    }
    return column;
}

int write_rom(const char* path)
{
    std::vector<RomWorkload> of_rom;
    for (const Workload& workload : workloads) {
        of_rom.push_back({workload.offset(), workload.size});
    }
    const std::vector<std::uint8_t> rom = make_rom(of_rom);
    std::ofstream file{path, std::ios::binary};
    file.write(reinterpret_cast<const char*>(rom.data()), static_cast<std::streamsize>(rom.size()));
    return file.good() ? 0 : 1;
}

/// Executable: a workload writes code there.
std::uint8_t* native_memory()
{
    void* const memory = ::mmap(nullptr, memory_size, PROT_READ | PROT_WRITE | PROT_EXEC,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<std::uint8_t*>(memory);
}

bool is_offered(const Workload& workload)
{
    return workload.group != Group::Avx ||
           (__builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0);
}

}  // namespace

int main(int argc, char** argv)
{
    std::vector<Column> columns{Column{"interpr."}, Column{"translated"}};
    for (int i = 1; i < argc; i += 2) {
        const std::string_view option{argv[i]};
        if (i + 1 < argc && option == "--rom") {
            return write_rom(argv[i + 1]);
        }
        if (i + 1 == argc || option != "--beside") {
            std::fprintf(stderr, "vmm-soft-bench [--rom FILE | --beside NAME=FILE…]\n");
            return 2;
        }
        columns.push_back(read_column(argv[i + 1]));
    }
    std::uint8_t* const memory = native_memory();
    if (memory == nullptr) {
        std::fprintf(stderr, "this host grants no memory that is writable and executable\n");
        return 1;
    }
    Guest interpreted{std::size_t{64} << 20U, soft::TranslationMode::Off};
    Guest translated{std::size_t{64} << 20U, soft::TranslationMode::On};
    set_up(interpreted);
    set_up(translated);
    const double mips = host_tsc_khz() / 1e3;
    std::printf("%-12s %12s %10s", "workload", "instructions", "MIPS");
    for (const Column& column : columns) {
        std::printf(" %11s", column.name.c_str());
    }
    std::printf("\n");
    for (std::size_t number = 0; number < workloads.size(); ++number) {
        const Workload& workload = workloads.at(number);
        if (!is_offered(workload)) {
            std::printf("%-12s this CPU has not what it takes\n", workload.name);
            continue;
        }
        std::uint64_t expected = 0;
        const double first = best_native(workload, memory, expected);
        const auto instructions = static_cast<double>(count_instructions(interpreted, workload));
        const double slow = best_guest(interpreted, workload, expected);
        const double fast = best_guest(translated, workload, expected);
        const double native = std::min(first, best_native(workload, memory, expected));
        if (slow < 0 || fast < 0) {
            std::printf("%s: wrong result\n", workload.name);
            return 1;
        }
        std::printf("%-12s %12.0f %10.0f", workload.name, instructions,
                    instructions / native * mips);
        for (Column& column : columns) {
            double ticks = number < column.ticks.size() ? column.ticks[number]
                                                        : std::numeric_limits<double>::quiet_NaN();
            ticks = &column == &columns[0] ? slow : &column == &columns[1] ? fast : ticks;
            column.print(workload, ticks / native);
        }
        std::printf("\n");
    }
    for (std::size_t group = 0; group + 1 < group_names.size(); ++group) {
        std::printf("%-36s", group_names.at(group));
        for (const Column& column : columns) {
            column.print_mean(group);
        }
        std::printf("\n");
    }
    return 0;
}
