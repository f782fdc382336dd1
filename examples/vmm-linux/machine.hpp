// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "mapped_memory.hpp"
#include "options.hpp"
#include "vmm/device/serial.hpp"
#include "vmm/vmm.hpp"

namespace vmm_linux {

/// Why the machine stopped.
struct Outcome {
    enum class Kind : std::uint8_t { PowerOff, Reset, Status, TripleFault, Stuck, Quit };
    Kind kind{};
    std::uint32_t status{};  ///< `Status`: what the guest wrote to port 0xf4.
    std::string detail{};    ///< `Stuck`: what stood in the way.  `TripleFault`: the state it left.
};

/// Kernel and initrd, read once and used for each boot.
struct Images {
    std::vector<std::byte> kernel;
    std::vector<std::byte> initrd;
};

/// A PC without PCI: RAM, interrupt controllers, PIT, RTC, keyboard controller, ACPI power
/// management, one serial line, and a port to exit by.
class Machine {
public:
    /// Builds it and loads the kernel.  `console` is where the serial line's output goes.
    [[nodiscard]] static vmm::Result<std::unique_ptr<Machine>> create(
        const vmm::Kvm& kvm,
        const Options& options,
        const Images& images,
        std::function<void(std::span<const std::byte>)> console,
        std::function<void()> on_input_room);

    ~Machine();
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;
    Machine(Machine&&) = delete;
    Machine& operator=(Machine&&) = delete;

    /// Runs until the guest or `stop()` ends it.  `between`, if any, is called on the thread of a
    /// virtual CPU each time that it has left the guest and is to go on.
    [[nodiscard]] Outcome run(const std::function<void(vmm::Vcpu&)>& between = {});

    /// Ends `run()`; the first reason given counts.  Any thread.
    void stop(Outcome outcome);
    [[nodiscard]] bool has_stopped();

    // What the machine is made of.
    [[nodiscard]] vmm::Vm& vm() noexcept { return vm_; }
    [[nodiscard]] std::span<vmm::Vcpu> vcpus() noexcept { return vcpus_; }
    /// Memory slot n is the n-th of these.
    [[nodiscard]] std::span<const vmm::memory::MemoryRegion> ram() const noexcept { return ram_; }
    [[nodiscard]] static std::vector<vmm::x86::irqchip::GsiRoute> routing();

    [[nodiscard]] vmm::device::Serial& serial() noexcept { return *serial_; }

    /// To standard error, between two runs.
    void print_statistics() const;
    /// What it counts, in Prometheus' text format.  Any thread, while it runs.
    [[nodiscard]] std::string statistics() const;

private:
    explicit Machine(vmm::Vm vm) : vm_{std::move(vm)} {}

    vmm::Result<void> add_memory(std::uint64_t bytes);
    vmm::Result<void> add_devices(const Options& options,
                                  std::function<void(std::span<const std::byte>)> console,
                                  std::function<void()> on_input_room);
    vmm::Result<void> add_vcpus(const vmm::Kvm& kvm, const Options& options);
    vmm::Result<void> load(const Options& options, const Images& images);
    void run_vcpu(vmm::Vcpu& vcpu, const std::function<void(vmm::Vcpu&)>& between);
    [[nodiscard]] std::function<void(bool)> irq_line(std::uint32_t gsi);

    std::vector<MappedMemory> memory_;  // First: outlives the VM that uses it.
    std::vector<vmm::memory::MemoryRegion> ram_;
    vmm::Vm vm_;
    std::shared_ptr<vmm::device::Serial> serial_;
    std::vector<vmm::Vcpu> vcpus_;

    std::mutex mutex_;
    std::condition_variable stopped_;
    std::optional<Outcome> outcome_;
};

}  // namespace vmm_linux
