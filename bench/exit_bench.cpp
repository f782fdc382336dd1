// SPDX-License-Identifier: Apache-2.0

// What does it cost to leave a guest and enter it again?
//
// Each benchmark runs an endless guest loop whose body leaves the guest once (port and MMIO) or
// does one thing that the engine or the library answers inside (CPUID, RDMSR; per 1,000).  The
// same guests run on each engine that works here and, by bare ioctls, on /dev/kvm.

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <pthread.h>

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
    void kick(std::thread::native_handle_type /*runs*/) { vcpu_->kicker().kick(); }
    void set_irq_line(std::uint32_t gsi, bool level)
    {
        static_cast<void>(vm_.set_irq_line(gsi, level));
    }
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

/// The same on /dev/kvm.
class RawGuest {
public:
    explicit RawGuest(const std::vector<unsigned>& code, bool irqchip = false)
        : memory_{make_memory(code)},
          kvm_{bench::RawKvm::create(memory_.get(), memory_size, code_at, irqchip)}
    {
        // A first run tells whether KVM can run the guest at all.
        works_ = kvm_ && kvm_->run() == 0;
    }

    [[nodiscard]] bool works() const { return works_; }
    void run() { benchmark::DoNotOptimize(kvm_->run()); }
    void kick(std::thread::native_handle_type runs) { kvm_->kick(runs); }
    void set_irq_line(std::uint32_t gsi, bool level) { kvm_->set_irq_line(gsi, level); }
    [[nodiscard]] std::byte* memory() { return memory_.get(); }

private:
    Memory memory_;
    std::optional<bench::RawKvm> kvm_;
    bool works_{};
};

std::int64_t now_ns()
{
    return std::chrono::steady_clock::now().time_since_epoch().count();
}

bool has_one_processor()
{
    return std::thread::hardware_concurrency() == 1;
}

/// Times `guest.run()` from what another thread does to the guest `delay_ns` after it began.
/// What has no effect for two seconds is done again, and spoils the row: a machine that loses
/// interrupts has no latency to tell.
template <typename AnyGuest, typename Act>
void measure_from_elsewhere(benchmark::State& state,
                            AnyGuest& guest,
                            std::int64_t delay_ns,
                            const Act& act)
{
    constexpr std::int64_t patience_ns = 2'000'000'000;
    // Where both threads share one processor, whoever spins keeps the other from running.
    const bool shared = has_one_processor();
    const auto give_way = [shared] {
        if (shared) {
            std::this_thread::yield();
        }
    };
    std::atomic<std::uint64_t> begun{0};
    std::atomic<std::uint64_t> returned{0};
    std::atomic<bool> done{false};
    std::atomic<std::int64_t> acted_at{0};
    int lost = 0;
    std::thread other{[&] {
        while (!done.load()) {
            const std::uint64_t current = begun.load();
            if (current == returned.load()) {
                give_way();
                continue;
            }
            if (shared) {
                std::this_thread::sleep_for(std::chrono::nanoseconds{delay_ns});
            } else {
                const auto until = now_ns() + delay_ns;
                while (now_ns() < until) {
                }
            }
            acted_at.store(now_ns());
            act();
            while (returned.load() < current) {
                give_way();
                if (now_ns() - acted_at.load() > patience_ns) {
                    ++lost;
                    acted_at.store(now_ns());
                    act();
                }
            }
        }
    }};
    for (auto _ : state) {
        ++begun;
        guest.run();
        state.SetIterationTime(static_cast<double>(now_ns() - acted_at.load()) * 1e-9);
        ++returned;
    }
    done.store(true);
    other.join();
    if (lost > 0) {
        state.SkipWithError(fmt::format("{} of {} had no effect in two seconds", lost,
                                        static_cast<std::int64_t>(state.iterations()))
                                .c_str());
    }
}

// With IF set: Bochs takes no interrupt of the host out of a guest that loops without.
// out %al, $0x10; sti; jmp .
const std::vector<unsigned>& kicked_guest()
{
    static const std::vector<unsigned> code{0xe6, 0x10, 0xfb, 0xeb, 0xfe};
    return code;
}

/// From a kick on another thread to the return of `run()`, of a guest that loops.
template <typename AnyGuest>
void measure_kick(benchmark::State& state, AnyGuest& guest)
{
    const auto runs = ::pthread_self();
    measure_from_elsewhere(state, guest, 20'000, [&] { guest.kick(runs); });
}

/// A guest with the PIC in virtual wire mode: IRQ 1 has vector 0x21.  `rest` follows after STI.
std::vector<unsigned> interruptible_guest(const std::vector<unsigned>& rest)
{
    std::vector<unsigned> code{0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21,
                               0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x03, 0xe6, 0x21,
                               0xb0, 0x00, 0xe6, 0x21, 0xe6, 0x10, 0xfb};
    code.insert(code.end(), rest.begin(), rest.end());
    return code;
}
// hlt; jmp back to it
const std::vector<unsigned> halting{0xf4, 0xeb, 0xfd};
// sti; jmp .
const std::vector<unsigned> looping{0xfb, 0xeb, 0xfe};

void place_handler(std::byte* memory)
{
    // At 0x2000: out %al, $0x10; mov $0x20, %al; out %al, $0x20; iret
    const std::vector<unsigned> handler{0xe6, 0x10, 0xb0, 0x20, 0xe6, 0x20, 0xcf};
    for (std::size_t i = 0; i < handler.size(); ++i) {
        memory[0x2000 + i] = std::byte(handler[i]);
    }
    memory[0x21 * 4 + 1] = std::byte{0x20};
}

/// From raising an interrupt line to the exit that the guest's handler makes.
template <typename AnyGuest>
void measure_interrupt(benchmark::State& state, AnyGuest& guest)
{
    place_handler(guest.memory());
    // Time enough for a vCPU to go to sleep.
    measure_from_elsewhere(state, guest, 100'000, [&] {
        guest.set_irq_line(1, true);
        guest.set_irq_line(1, false);
    });
}

constexpr unsigned slot_change_vcpus = 8;

/// To create a slot and to delete it again, each seen by 8 vCPUs that run.
void measure_slot_change(benchmark::State& state, vmm::Engine engine)
{
    const Memory memory = make_memory(looping);
    const Memory extra = make_memory({});
    const vmm::Kvm kvm = vmm::Kvm::open({engine}).value();
    vmm::Vm vm = kvm.create_vm().value();
    vm.set_user_memory_region(
          {.guest_phys_addr = vmm::Gpa{0}, .size_bytes = memory_size, .host = memory.get()})
        .value();
    std::vector<vmm::Vcpu> vcpus;
    for (unsigned id = 0; id < slot_change_vcpus; ++id) {
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

void measure_raw_slot_change(benchmark::State& state)
{
    const Memory memory = make_memory(looping);
    const Memory extra = make_memory({});
    auto kvm = bench::RawKvm::create(memory.get(), memory_size, code_at);
    while (kvm && kvm->vcpu_count() < slot_change_vcpus && kvm->add_vcpu(code_at)) {
    }
    if (!kvm || kvm->vcpu_count() < slot_change_vcpus) {
        state.SkipWithError("/dev/kvm cannot run it");
        return;
    }
    std::vector<std::thread> threads;
    std::atomic<unsigned> ended{0};
    for (std::size_t i = 0; i < kvm->vcpu_count(); ++i) {
        threads.emplace_back([&kvm, &ended, i] {
            static_cast<void>(kvm->run(i));
            ++ended;
        });
    }
    for (auto _ : state) {
        const bool done = kvm->set_slot(1, 0x1000'0000, extra.get(), memory_size) &&
                          kvm->set_slot(1, 0x1000'0000, extra.get(), 0);
        if (!done) {
            state.SkipWithError("KVM_SET_USER_MEMORY_REGION failed");
            break;
        }
    }
    while (ended.load() < threads.size()) {
        for (std::size_t i = 0; i < threads.size(); ++i) {
            kvm->kick(threads[i].native_handle(), i);
        }
        std::this_thread::yield();
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
        // Signed: the allocator may have given memory back meanwhile.
        const auto each = [](std::size_t from, std::size_t to) {
            return (static_cast<double>(to) - static_cast<double>(from)) / count;
        };
        state.counters["bytes_vm"] = each(before, with_vms);
        state.counters["bytes_vcpu"] = each(with_vms, with_vcpus);
    }
}

// With one processor each of these takes a time slice of the system's or more.
const int event_iterations = has_one_processor() ? 30 : 300;
const int slot_iterations = has_one_processor() ? 5 : 100;

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
    const auto add = [&](const char* name, auto run) {
        benchmark::RegisterBenchmark((prefix + name).c_str(), run)
            ->UseManualTime()
            ->Iterations(event_iterations);
    };
    add("kick_to_return", [engine](benchmark::State& state) {
        Guest guest{engine, kicked_guest()};
        guest.run();
        measure_kick(state, guest);
    });
    add("irq_to_handler", [engine](benchmark::State& state) {
        Guest guest{engine, interruptible_guest(looping), true};
        guest.run();
        measure_interrupt(state, guest);
    });
    add("irq_to_handler_from_hlt", [engine](benchmark::State& state) {
        Guest guest{engine, interruptible_guest(halting), true};
        guest.run();
        measure_interrupt(state, guest);
    });
    benchmark::RegisterBenchmark((prefix + "slot_add_and_delete_8_vcpus").c_str(),
                                 measure_slot_change, engine)
        ->UseRealTime()
        ->Iterations(slot_iterations);
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

/// `measure(state, guest)` if /dev/kvm runs the guest.
template <typename Measure>
void measure_raw(benchmark::State& state,
                 const std::vector<unsigned>& code,
                 bool irqchip,
                 const Measure& measure)
{
    RawGuest guest{code, irqchip};
    if (!guest.works()) {
        state.SkipWithError("/dev/kvm cannot run it");
        return;
    }
    measure(state, guest);
}

void register_kvm()
{
    const std::string prefix{"dev_kvm/"};
    for (const Workload& workload : workloads()) {
        benchmark::RegisterBenchmark(
            (prefix + workload.name).c_str(), [&workload](benchmark::State& state) {
                measure_raw(state, workload.code, false, [&](auto& each, RawGuest& guest) {
                    measure(each, workload, [&] { guest.run(); });
                });
            });
    }
    const auto add = [&](const char* name, const std::vector<unsigned>& code, bool irqchip,
                         auto measure) {
        benchmark::RegisterBenchmark(
            (prefix + name).c_str(),
            [=](benchmark::State& state) { measure_raw(state, code, irqchip, measure); })
            ->UseManualTime()
            ->Iterations(event_iterations);
    };
    add("kick_to_return", kicked_guest(), false, measure_kick<RawGuest>);
    add("irq_to_handler", interruptible_guest(looping), true, measure_interrupt<RawGuest>);
    add("irq_to_handler_from_hlt", interruptible_guest(halting), true, measure_interrupt<RawGuest>);
    benchmark::RegisterBenchmark((prefix + "slot_add_and_delete_8_vcpus").c_str(),
                                 measure_raw_slot_change)
        ->UseRealTime()
        ->Iterations(slot_iterations);
    benchmark::RegisterBenchmark(
        (prefix + "create_vm_and_vcpu").c_str(), [](benchmark::State& state) {
            const Memory memory = make_memory({});
            for (auto _ : state) {
                benchmark::DoNotOptimize(bench::RawKvm::create(memory.get(), memory_size, code_at));
            }
        });
}

}  // namespace

int main(int argc, char** argv)
{
    // What RawKvm::kick() sends: without SA_RESTART, so that KVM_RUN ends.
    struct sigaction nothing {};
    nothing.sa_handler = [](int) {};
    ::sigaction(SIGUSR1, &nothing, nullptr);

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
