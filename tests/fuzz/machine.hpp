// SPDX-License-Identifier: Apache-2.0

/// @file
/// A virtual machine for fuzzers, built by the public API: memory with descriptor and page tables
/// that make sense until the input changes them, and every way to change state from outside.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "fuzz/target.hpp"
#include "vmm/vmm.hpp"

namespace vmm::fuzz {

enum class Mode : std::uint8_t { Real, Protected, Paged, Pae, Long, Compatibility };

class Machine {
public:
    static constexpr std::size_t memory_size = 0x4'0000;
    static constexpr std::uint64_t code_at = 0x1000;

    /// What is where in memory.
    struct Layout {
        static constexpr std::uint64_t gdt = 0x2000;
        static constexpr std::uint64_t idt = 0x3000;
        static constexpr std::uint64_t tss = 0x4000;
        static constexpr std::uint64_t handlers = 0x6000;
        static constexpr std::uint64_t data_end = 0xb000;  ///< Stacks and data up to here.
        static constexpr std::uint64_t tables = 0x3'8000;  ///< Of pages, to the end.
    };

    enum class Irqchip : std::uint8_t { Absent, Present };

    explicit Machine(Irqchip irqchip);

    /// Puts the vCPU into a mode, at `code_at`, with tables for it.
    void enter(Mode mode);

    [[nodiscard]] std::byte* memory() noexcept { return memory_; }
    [[nodiscard]] Kvm& kvm() noexcept { return kvm_; }
    [[nodiscard]] Vm& vm() noexcept { return vm_; }
    [[nodiscard]] Vcpu& vcpu() noexcept { return vcpu_; }
    [[nodiscard]] bool has_irqchip() const noexcept { return irqchip_ == Irqchip::Present; }

    /// One call of the API, with whatever arguments; what it accepts must read back.
    void change_state(Input& input);

    /// Runs, answers exits as the input says and changes state between exit and completion; comes
    /// back after `most_exits` at the latest.  A guest that does not exit is kicked (watchdog.hpp).
    void run(Input& input, unsigned most_exits);

private:
    void place_descriptors(Mode mode);
    void place_gates(Mode mode);
    void place_page_tables(Mode mode);
    void put(std::uint64_t at, std::uint64_t value, std::size_t size = 8) noexcept;

    void change_registers(Input& input);
    void change_system_registers(Input& input);
    void change_fpu(Input& input);
    void change_events(Input& input);
    void change_msr(Input& input);
    void change_cpuid(Input& input);
    void change_interrupts(Input& input);
    void change_memory(Input& input);
    void change_buses(Input& input);
    void answer(Input& input, const Exit& exit);

    Irqchip irqchip_;
    std::byte* memory_;
    Kvm& kvm_;
    Vm vm_;
    Vcpu vcpu_;
};

}  // namespace vmm::fuzz
