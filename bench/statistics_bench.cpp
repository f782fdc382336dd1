// SPDX-License-Identifier: Apache-2.0

// What does it add to an exit that exits are counted and timed?
//
// Two guests with the same endless loop, one of them with `KvmOptions::statistics` clear, run in
// turn for rounds so short that few of them are interrupted by what else the machine does.  Says
// for each engine and loop the median of the rounds' times and that of the ratios of two rounds
// one after the other.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "vmm/vmm.hpp"

namespace {

constexpr std::size_t memory_size = 0x10'0000;
constexpr std::uint16_t code_at = 0x1000;

class Guest {
public:
    Guest(vmm::Engine engine, const std::vector<unsigned>& code, bool counts)
        : memory_{static_cast<std::byte*>(std::aligned_alloc(4096, memory_size)), &std::free},
          kvm_{vmm::Kvm::open({.engine = engine, .statistics = counts}).value()},
          vm_{kvm_.create_vm().value()},
          vcpu_{[&] {
              std::fill_n(memory_.get(), memory_size, std::byte{});
              std::transform(code.begin(), code.end(), memory_.get() + code_at,
                             [](unsigned byte) { return std::byte(byte); });
              vm_.set_user_memory_region({.guest_phys_addr = vmm::Gpa{0},
                                          .size_bytes = memory_size,
                                          .host = memory_.get()})
                  .value();
              return vm_.create_vcpu(0).value();
          }()}
    {
        vcpu_.set_cpuid(kvm_.supported_cpuid()).value();
        vmm::x86::Sregs sregs = vcpu_.sregs();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        sregs.fs.base = 0x1000'0000;  // Beyond the slot: where MMIO goes.
        vcpu_.set_sregs(sregs).value();
        vcpu_.set_regs({.rsp = 0x8000, .rip = code_at, .rflags = 2});
    }

    /// Nanoseconds of an exit.
    double round(unsigned exits)
    {
        const auto begin = std::chrono::steady_clock::now();
        for (unsigned i = 0; i < exits; ++i) {
            vcpu_.run().value();
        }
        const std::chrono::duration<double, std::nano> took =
            std::chrono::steady_clock::now() - begin;
        return took.count() / exits;
    }

private:
    std::unique_ptr<std::byte, decltype(&std::free)> memory_;
    vmm::Kvm kvm_;
    vmm::Vm vm_;
    vmm::Vcpu vcpu_;
};

double median(std::vector<double> values)
{
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

void compare(vmm::Engine engine, std::string_view name, const std::vector<unsigned>& code)
{
    // Where each object lies in memory counts too: several pairs.
    constexpr int pairs = 9;
    constexpr int rounds = 300;
    constexpr unsigned exits = 1'000;
    std::vector<double> with;
    std::vector<double> without;
    std::vector<double> ratios;
    for (int pair = 0; pair < pairs; ++pair) {
        Guest counting{engine, code, true};
        Guest other{engine, code, false};
        counting.round(10 * exits);
        other.round(10 * exits);
        for (int i = 0; i < rounds; ++i) {
            // Either is first as often as the other.
            const bool first = i % 2 == 0;
            const double a = (first ? counting : other).round(exits);
            const double b = (first ? other : counting).round(exits);
            with.push_back(first ? a : b);
            without.push_back(first ? b : a);
            ratios.push_back(with.back() / without.back());
        }
    }
    fmt::print("{:5} {:11} {:8.1f} ns, without {:8.1f} ns, ratio {:.4f}\n", vmm::name(engine), name,
               median(with), median(without), median(ratios));
    std::fflush(stdout);
}

}  // namespace

int main()
{
    for (const vmm::EngineReport& report : vmm::probe_engines()) {
        if (!report.usable) {
            continue;
        }
        compare(report.engine, "port write", {0xe6, 0x10, 0xeb, 0xfc});
        compare(report.engine, "port read", {0xe4, 0x10, 0xeb, 0xfc});
        compare(report.engine, "MMIO read", {0x64, 0xa1, 0x00, 0x00, 0xeb, 0xfa});
        compare(report.engine, "MMIO write", {0x64, 0xa3, 0x00, 0x00, 0xeb, 0xfa});
    }
}
