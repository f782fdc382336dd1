// SPDX-License-Identifier: Apache-2.0

/// @file
/// A vCPU that executes single instructions given as bytes, and an oracle: the host CPU executing
/// the very same bytes on the same registers.

#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "x86/engine.hpp"
#include "x86/soft/cpu.hpp"
#include "x86/soft/fault.hpp"
#include "x86/soft/native.hpp"
#include "x86/soft/native_operand.hpp"
#include "x86/soft/vm.hpp"
#include "x86/soft/x87.hpp"

namespace vmm::x86::soft::test {

using Bytes = std::vector<std::uint8_t>;

/// RAM at 0 … 64 KiB, page-aligned in the host; nothing above.
class NativeMemory final : public PhysicalMemory {
public:
    static constexpr std::uint64_t size = 0x10000;

    [[nodiscard]] Page page(std::uint64_t gfn) noexcept override
    {
        return gfn < size / 4096 ? Page{ram->data() + gfn * 4096, true, false} : Page{};
    }
    void mark_dirty(std::uint64_t) noexcept override {}

    struct alignas(4096) Ram : std::array<std::byte, size> {};
    std::unique_ptr<Ram> ram = std::make_unique<Ram>();
};

/// Answers MMIO at 1 MiB … 2 MiB from a page of bytes; uses the x87 unit meanwhile, as code of a
/// user may.
class NativeHost final : public VcpuHost {
public:
    bool mmio_read(Gpa gpa, std::span<std::byte> data) noexcept override;
    bool mmio_write(Gpa gpa, std::span<const std::byte> data) noexcept override;
    bool port_read(Port, std::span<std::byte>) noexcept override { return false; }
    bool port_write(Port, std::span<const std::byte>) noexcept override { return false; }
    MsrResult read_msr(std::uint32_t, std::uint64_t&) noexcept override { return MsrResult::Fault; }
    MsrResult write_msr(std::uint32_t, std::uint64_t) noexcept override { return MsrResult::Fault; }
    void write_cr8(std::uint64_t) noexcept override {}
    std::uint64_t read_cr8() noexcept override { return 0; }
    std::uint64_t guest_tsc() noexcept override { return 0; }
    void hypercall(CpuState&) noexcept override {}

    std::array<std::byte, 4096> device{};
    volatile long double work = 1.5L;
};

inline constexpr std::uint64_t mmio_base = 0x10'0000;

/// Which exception an instruction ended with.
struct Outcome {
    bool selected{};  ///< Decoded, and select_native() knows it.
    std::optional<Fault> fault{};
    bool left_for_mmio{};
};

/// One vCPU in 64-bit mode, everything enabled, CPUID the host's.
class NativeMachine {
public:
    NativeMachine();

    /// Decodes and selects, without executing.
    [[nodiscard]] bool prepare(const Bytes& code, CodeSize size = CodeSize::Bits64);
    /// Executes what `prepare()` prepared.
    Outcome execute();
    Outcome run(const Bytes& code, CodeSize size = CodeSize::Bits64);

    /// Goes to 32-bit protected mode with flat segments.
    void set_32_bit();

    [[nodiscard]] std::byte* at(std::uint64_t gpa) { return memory.ram->data() + gpa; }
    template <typename T>
    [[nodiscard]] T get(std::uint64_t gpa)
    {
        T value;
        std::memcpy(&value, at(gpa), sizeof(T));
        return value;
    }
    template <typename T>
    void put(std::uint64_t gpa, T value)
    {
        std::memcpy(at(gpa), &value, sizeof(T));
    }

    NativeMemory memory;
    NativeHost host;
    SoftVm vm{memory, translation_mode().value()};
    std::unique_ptr<Cpu> owner;
    Cpu& cpu;
    Insn insn{};

private:
    std::array<Op, 2> ops_{};
};

/// All that an instruction of user code may read or change.
struct alignas(64) HostContext {
    std::array<std::uint64_t, 16> gpr{};  // RSP is not loaded.
    std::uint64_t flags{};
    std::array<std::uint64_t, 7> padding{};
    alignas(64) std::array<std::byte, 512> fxsave{};  // MXCSR is loaded from here.
    alignas(64) std::array<std::array<std::byte, 32>, 16> ymm{};
};

/// Executes `code` on the host with the context.  Never on instructions that may fault.
void run_on_host(const Bytes& code, HostContext& context);

[[nodiscard]] HostContext context_of(const Cpu& cpu);
/// Registers as text where they differ; empty where they do not.
[[nodiscard]] std::string difference(const Cpu& cpu, const HostContext& expected);

using Random = std::mt19937_64;

/// Random registers: vectors with many special floating-point values, small integers …
void randomise(Cpu& cpu, Random& random);
/// An x87 state with all exceptions masked and random registers, tags and TOP.
void randomise_x87(Cpu& cpu, Random& random);
void fill_with_operands(std::span<std::byte> bytes, Random& random);

}  // namespace vmm::x86::soft::test
