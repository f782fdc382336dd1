// SPDX-License-Identifier: Apache-2.0

// How many instructions does it take to leave a guest and enter it again?
//
// Only where an instruction is a tick of the TSC: in the emulated machines of bench/exit_count.sh.
// Guest, host kernel and user space are counted together.  A row is the least of many rounds,
// since the host's timer has its instructions too.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <x86intrin.h>

#include "raw_kvm.hpp"
#include "vmm/vmm.hpp"

namespace {

constexpr std::size_t memory_size = 0x10'0000;
constexpr std::uint16_t code_at = 0x1000;

struct Workload {
    const char* name;
    std::vector<unsigned> code;
    unsigned per_run;
    unsigned guests_own;  ///< Instructions of the guest beside the one that leaves it.
};

const std::vector<Workload>& workloads()
{
    static const std::vector<Workload> all{
        // 1: out %al, $0x10; jmp 1b
        {"port exit, OUT", {0xe6, 0x10, 0xeb, 0xfc}, 1, 1},
        // 1: in $0x10, %al; jmp 1b
        {"port exit, IN", {0xe4, 0x10, 0xeb, 0xfc}, 1, 1},
        // 1: mov %fs:0, %ax; jmp 1b
        {"MMIO exit, read", {0x64, 0xa1, 0x00, 0x00, 0xeb, 0xfa}, 1, 1},
        // 1: mov $1000, %bp; 2: xor %ax, %ax; cpuid; dec %bp; jnz 2b; out %al, $0x10; jmp 1b
        {"CPUID",
         {0xbd, 0xe8, 0x03, 0x31, 0xc0, 0x0f, 0xa2, 0x4d, 0x75, 0xf9, 0xe6, 0x10, 0xeb, 0xf2},
         1000,
         3},
    };
    return all;
}

std::byte* place(const std::vector<unsigned>& code)
{
    auto* const memory = static_cast<std::byte*>(std::aligned_alloc(4096, memory_size));
    std::fill_n(memory, memory_size, std::byte{});
    std::transform(code.begin(), code.end(), memory + code_at,
                   [](unsigned byte) { return std::byte(byte); });
    return memory;
}

/// Ticks of one of what `workload` does.
template <typename Run>
std::uint64_t count(const Workload& workload, const Run& run)
{
    constexpr int rounds = 60;
    const unsigned runs = workload.per_run > 1 ? 1 : 50;
    run();
    std::uint64_t least = std::numeric_limits<std::uint64_t>::max();
    for (int round = 0; round < rounds; ++round) {
        const std::uint64_t begun = __rdtsc();
        for (unsigned i = 0; i < runs; ++i) {
            run();
        }
        least = std::min<std::uint64_t>(least, __rdtsc() - begun);
    }
    return least / runs / workload.per_run - workload.guests_own;
}

/// Exit status 1 for what is no exit of the guest's.
void expect(bool good)
{
    if (!good) {
        std::puts("a run failed");
        std::exit(1);
    }
}

std::uint64_t count_engine(vmm::Engine engine, const Workload& workload)
{
    std::byte* const memory = place(workload.code);
    vmm::Kvm kvm = vmm::Kvm::open({engine}).value();
    vmm::Vm vm = kvm.create_vm().value();
    vm.set_user_memory_region(
          {.guest_phys_addr = vmm::Gpa{0}, .size_bytes = memory_size, .host = memory})
        .value();
    vmm::Vcpu vcpu = vm.create_vcpu(0).value();
    vcpu.set_cpuid(kvm.supported_cpuid()).value();
    vmm::x86::Sregs sregs = vcpu.sregs();
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    sregs.fs.base = 0x1000'0000;  // Beyond the slot.
    vcpu.set_sregs(sregs).value();
    vcpu.set_regs({.rsp = 0x8000, .rip = code_at, .rflags = 2});
    return count(workload, [&] { expect(static_cast<bool>(vcpu.run())); });
}

std::uint64_t count_raw_kvm(const Workload& workload)
{
    std::byte* const memory = place(workload.code);
    const auto kvm = bench::RawKvm::create(memory, memory_size, code_at);
    expect(kvm && kvm->set_cpuid());
    return count(workload, [&] { expect(kvm->run() == 0); });
}

void report(const char* on, const std::function<std::uint64_t(const Workload&)>& count_one)
{
    for (const Workload& each : workloads()) {
        std::printf("%-9s %-16s %6llu\n", on, each.name,
                    static_cast<unsigned long long>(count_one(each)));
        std::fflush(stdout);
    }
}

}  // namespace

int main()
{
    const auto on_engine = [](vmm::Engine engine) {
        return [engine](const Workload& workload) { return count_engine(engine, workload); };
    };
    for (const vmm::EngineReport& each : vmm::probe_engines()) {
        if (each.usable && (each.engine == vmm::Engine::Svm || each.engine == vmm::Engine::Vmx)) {
            report(std::string{vmm::name(each.engine)}.c_str(), on_engine(each.engine));
        }
    }
    if (bench::RawKvm::opens()) {
        report("/dev/kvm", count_raw_kvm);
    }
}
