// SPDX-License-Identifier: Apache-2.0

// What does it cost to leave a guest and enter it again?
//
// Each benchmark runs an endless guest loop whose body leaves the guest once (port and MMIO) or
// does one thing that the engine or the library answers inside (CPUID, RDMSR; per 1,000).  The
// same guests run on each engine that works here and, by bare ioctls, on /dev/kvm.

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "raw_kvm.hpp"
#include "vmm/vmm.hpp"

namespace {

constexpr std::size_t memory_size = 0x10'0000;
constexpr std::uint16_t code_at = 0x1000;

using Memory = std::unique_ptr<std::byte, decltype(&std::free)>;

Memory make_memory(const std::vector<unsigned>& code)
{
    Memory memory{static_cast<std::byte*>(std::aligned_alloc(4096, memory_size)), &std::free};
    std::fill_n(memory.get(), memory_size, std::byte{});
    for (std::size_t i = 0; i < code.size(); ++i) {
        memory.get()[code_at + i] = std::byte(code[i]);
    }
    return memory;
}

/// A guest on one of the library's engines.
class Guest {
public:
    Guest(vmm::Engine engine, const std::vector<unsigned>& code, bool irqchip = false)
        : memory_{make_memory(code)},
          kvm_{vmm::Kvm::open({engine}).value()},
          vm_{kvm_.create_vm().value()}
    {
        vm_.set_user_memory_region(
               {.guest_phys_addr = vmm::Gpa{0}, .size_bytes = memory_size, .host = memory_.get()})
            .value();
        if (irqchip) {
            vm_.create_irqchip().value();
        }
        vcpu_ = std::make_unique<vmm::Vcpu>(vm_.create_vcpu(0).value());
        vcpu_->set_cpuid(kvm_.supported_cpuid()).value();
        vmm::x86::Sregs sregs = vcpu_->sregs();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        // Beyond the slot: where MMIO goes.
        sregs.fs.base = 0x1000'0000;
        vcpu_->set_sregs(sregs).value();
        vcpu_->set_regs({.rsp = 0x8000, .rip = code_at, .rflags = 2});
    }

    void run() { benchmark::DoNotOptimize(vcpu_->run()); }
    [[nodiscard]] vmm::Vcpu& vcpu() { return *vcpu_; }
    [[nodiscard]] vmm::Vm& vm() { return vm_; }
    [[nodiscard]] std::byte* memory() { return memory_.get(); }

private:
    Memory memory_;
    vmm::Kvm kvm_;
    vmm::Vm vm_;
    std::unique_ptr<vmm::Vcpu> vcpu_;
};

/// A guest and how many of the things it measures happen in one run.
struct Workload {
    const char* name;
    std::vector<unsigned> code;
    unsigned per_run;
};

const std::vector<Workload>& workloads()
{
    static const std::vector<Workload> all{
        // 1: out %al, $0x10; jmp 1b
        {"pio_out", {0xe6, 0x10, 0xeb, 0xfc}, 1},
        // 1: in $0x10, %al; jmp 1b
        {"pio_in", {0xe4, 0x10, 0xeb, 0xfc}, 1},
        // 1: mov %fs:0, %ax; jmp 1b
        {"mmio_read", {0x64, 0xa1, 0x00, 0x00, 0xeb, 0xfa}, 1},
        // 1: mov %ax, %fs:0; jmp 1b
        {"mmio_write", {0x64, 0xa3, 0x00, 0x00, 0xeb, 0xfa}, 1},
        // 1: mov $1000, %bp; 2: xor %ax, %ax; cpuid; dec %bp; jnz 2b; out %al, $0x10; jmp 1b
        {"cpuid",
         {0xbd, 0xe8, 0x03, 0x31, 0xc0, 0x0f, 0xa2, 0x4d, 0x75, 0xf9, 0xe6, 0x10, 0xeb, 0xf2},
         1000},
        // 1: mov $1000, %bp; mov $0x277 (PAT), %cx; 2: rdmsr; dec %bp; jnz 2b; out; jmp 1b
        {"rdmsr",
         {0xbd, 0xe8, 0x03, 0xb9, 0x77, 0x02, 0x0f, 0x32, 0x4d, 0x75, 0xfb, 0xe6, 0x10, 0xeb, 0xf1},
         1000},
    };
    return all;
}

void measure(benchmark::State& state, const Workload& workload, const std::function<void()>& run)
{
    for (auto _ : state) {
        run();
    }
    state.counters["ns"] =
        benchmark::Counter(static_cast<double>(state.iterations()) * workload.per_run * 1e-9,
                           benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

/// From `kick()` on another thread to the return of `run()`, of a guest that loops.
void measure_kick(benchmark::State& state, vmm::Engine engine)
{
    Guest guest{engine, {0xe6, 0x10, 0xeb, 0xfe}};  // out %al, $0x10; jmp .
    guest.run();
    const auto kicker = guest.vcpu().kicker();
    std::atomic<bool> wanted{false};
    std::atomic<bool> done{false};
    std::atomic<std::int64_t> kicked_at{0};
    const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
    std::thread other{[&] {
        while (!done.load()) {
            if (wanted.exchange(false)) {
                const auto until = now() + 20'000;  // Let the guest get going.
                while (now() < until) {
                }
                kicked_at.store(now());
                kicker.kick();
            }
        }
    }};
    for (auto _ : state) {
        wanted.store(true);
        guest.run();
        state.SetIterationTime(static_cast<double>(now() - kicked_at.load()) * 1e-9);
    }
    done.store(true);
    other.join();
}

/// From raising an interrupt line to the guest's handler, of a guest that waits in HLT.
void measure_wake(benchmark::State& state, vmm::Engine engine)
{
    // Virtual wire: the PIC's vector 0x20 + 1.  1: sti; hlt; jmp 1b
    Guest guest{engine,
                {0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0,
                 0x03, 0xe6, 0x21, 0xb0, 0x00, 0xe6, 0x21, 0xe6, 0x10, 0xfb, 0xf4, 0xeb, 0xfc},
                true};
    // Handler at 0x2000: out %al, $0x10; mov $0x20, %al; out %al, $0x20; iret
    const std::vector<unsigned> handler{0xe6, 0x10, 0xb0, 0x20, 0xe6, 0x20, 0xcf};
    for (std::size_t i = 0; i < handler.size(); ++i) {
        guest.memory()[0x2000 + i] = std::byte(handler[i]);
    }
    guest.memory()[0x21 * 4 + 1] = std::byte{0x20};
    guest.run();
    std::atomic<bool> wanted{false};
    std::atomic<bool> done{false};
    std::atomic<std::int64_t> raised_at{0};
    const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
    std::thread other{[&] {
        while (!done.load()) {
            if (wanted.exchange(false)) {
                const auto until = now() + 100'000;  // Let the vCPU go to sleep.
                while (now() < until) {
                }
                raised_at.store(now());
                static_cast<void>(guest.vm().set_irq_line(1, true));
                static_cast<void>(guest.vm().set_irq_line(1, false));
            }
        }
    }};
    for (auto _ : state) {
        wanted.store(true);
        guest.run();
        state.SetIterationTime(static_cast<double>(now() - raised_at.load()) * 1e-9);
    }
    done.store(true);
    other.join();
}

/// To create a slot and to delete it again, each seen by 8 vCPUs that run.
void measure_slot_change(benchmark::State& state, vmm::Engine engine)
{
    constexpr unsigned vcpu_count = 8;
    const Memory memory = make_memory({0xeb, 0xfe});  // jmp .
    const Memory extra = make_memory({});
    const vmm::Kvm kvm = vmm::Kvm::open({engine}).value();
    vmm::Vm vm = kvm.create_vm().value();
    vm.set_user_memory_region(
          {.guest_phys_addr = vmm::Gpa{0}, .size_bytes = memory_size, .host = memory.get()})
        .value();
    std::vector<vmm::Vcpu> vcpus;
    for (unsigned id = 0; id < vcpu_count; ++id) {
        vcpus.push_back(vm.create_vcpu(id).value());
        vmm::x86::Sregs sregs = vcpus.back().sregs();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        vcpus.back().set_sregs(sregs).value();
        vcpus.back().set_regs({.rip = code_at, .rflags = 2});
    }
    std::vector<std::thread> threads;
    for (vmm::Vcpu& vcpu : vcpus) {
        threads.emplace_back([&vcpu] { static_cast<void>(vcpu.run()); });
    }
    vmm::memory::MemoryRegion region{.slot = 1,
                                     .guest_phys_addr = vmm::Gpa{0x1000'0000},
                                     .size_bytes = memory_size,
                                     .host = extra.get()};
    for (auto _ : state) {
        region.size_bytes = memory_size;
        vm.set_user_memory_region(region).value();
        region.size_bytes = 0;
        vm.set_user_memory_region(region).value();
    }
    for (vmm::Vcpu& vcpu : vcpus) {
        vcpu.kicker().kick();
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

std::size_t resident_bytes()
{
    std::ifstream file{"/proc/self/statm"};
    std::size_t total = 0;
    std::size_t resident = 0;
    file >> total >> resident;
    return resident * 4096;
}

/// 1,000 VMs at once in this process, and what one of them, with a vCPU that has run, keeps.
void measure_thousand(benchmark::State& state, vmm::Engine engine)
{
    constexpr std::size_t count = 1000;
    const Memory memory = make_memory({0xe6, 0x10, 0xeb, 0xfc});
    const vmm::Kvm kvm = vmm::Kvm::open({engine}).value();
    for (auto _ : state) {
        const std::size_t before = resident_bytes();
        std::vector<vmm::Vm> vms;
        std::vector<vmm::Vcpu> vcpus;
        for (std::size_t i = 0; i < count; ++i) {
            vms.push_back(kvm.create_vm().value());
            vms.back()
                .set_user_memory_region({.guest_phys_addr = vmm::Gpa{0},
                                         .size_bytes = memory_size,
                                         .host = memory.get()})
                .value();
        }
        const std::size_t with_vms = resident_bytes();
        for (vmm::Vm& vm : vms) {
            vcpus.push_back(vm.create_vcpu(0).value());
            vmm::x86::Sregs sregs = vcpus.back().sregs();
            sregs.cs.base = 0;
            sregs.cs.selector = 0;
            vcpus.back().set_sregs(sregs).value();
            vcpus.back().set_regs({.rip = code_at, .rflags = 2});
            benchmark::DoNotOptimize(vcpus.back().run());
        }
        const std::size_t with_vcpus = resident_bytes();
        state.counters["bytes_vm"] = static_cast<double>((with_vms - before) / count);
        state.counters["bytes_vcpu"] = static_cast<double>((with_vcpus - with_vms) / count);
    }
}

void register_engine(vmm::Engine engine)
{
    const std::string prefix = std::string{vmm::name(engine)} + "/";
    for (const Workload& workload : workloads()) {
        benchmark::RegisterBenchmark((prefix + workload.name).c_str(),
                                     [&workload, engine](benchmark::State& state) {
                                         Guest guest{engine, workload.code};
                                         measure(state, workload, [&] { guest.run(); });
                                     });
    }
    benchmark::RegisterBenchmark((prefix + "kick_to_return").c_str(), measure_kick, engine)
        ->UseManualTime()
        ->Iterations(2000);
    benchmark::RegisterBenchmark((prefix + "irq_to_handler").c_str(), measure_wake, engine)
        ->UseManualTime()
        ->Iterations(2000);
    benchmark::RegisterBenchmark((prefix + "slot_add_and_delete_8_vcpus").c_str(),
                                 measure_slot_change, engine)
        ->UseRealTime()
        ->Iterations(200);
    benchmark::RegisterBenchmark((prefix + "thousand_vms").c_str(), measure_thousand, engine)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond)
        ->Iterations(1);
    benchmark::RegisterBenchmark((prefix + "create_vm_and_vcpu").c_str(),
                                 [engine](benchmark::State& state) {
                                     const vmm::Kvm kvm = vmm::Kvm::open({engine}).value();
                                     for (auto _ : state) {
                                         vmm::Vm vm = kvm.create_vm().value();
                                         benchmark::DoNotOptimize(vm.create_vcpu(0).value());
                                     }
                                 });
}

void register_kvm()
{
    for (const Workload& workload : workloads()) {
        benchmark::RegisterBenchmark(
            (std::string{"dev_kvm/"} + workload.name).c_str(),
            [&workload](benchmark::State& state) {
                const Memory memory = make_memory(workload.code);
                auto guest = bench::RawKvm::create(memory.get(), memory_size, code_at);
                if (!guest) {
                    state.SkipWithError("/dev/kvm cannot run it");
                    return;
                }
                measure(state, workload, [&] { benchmark::DoNotOptimize(guest->run()); });
            });
    }
}

}  // namespace

int main(int argc, char** argv)
{
    benchmark::Initialize(&argc, argv);
    for (const vmm::EngineReport& report : vmm::probe_engines()) {
        fmt::print(stderr, "engine {}: {}\n", vmm::name(report.engine), report.reason);
        if (report.usable) {
            register_engine(report.engine);
        }
    }
    if (bench::RawKvm::opens()) {
        register_kvm();
    }
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
