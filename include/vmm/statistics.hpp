// SPDX-License-Identifier: Apache-2.0

/// @file
/// What virtual machines and virtual CPUs have done, and where their time goes.
///
///     const vmm::VcpuStatistics seen = vcpu.statistics();  // any thread, while the guest runs
///     std::puts(vmm::to_text({&seen, 1}).c_str());

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/address.hpp"
#include "vmm/export.hpp"

namespace vmm {

/// A number and its name; where KVM has the same, KVM's name.
struct Statistic {
    std::string_view name{};  ///< Static: never dangles.
    std::uint64_t value{};
};

/// Why a virtual CPU left guest code.
enum class ExitKind : std::uint8_t {
    PortRead,  ///< To the caller, as the exits of these names.
    PortWrite,
    MmioRead,
    MmioWrite,
    DevicePortRead,  ///< Answered by the library: its devices, interrupt controllers, ioeventfds.
    DevicePortWrite,
    DeviceMmioRead,
    DeviceMmioWrite,
    MsrRead,  ///< To the caller.
    MsrWrite,
    Hypercall,
    Halt,
    Shutdown,
    Request,  ///< A kick, or an interrupt from another thread.
    IrqWindow,
    NmiWindow,
    Debug,
    InternalError,
    EntryFailure,
    Difference,
};
inline constexpr std::size_t exit_kinds = 20;

/// "port_read", "device_mmio_write", …
[[nodiscard]] VMM_API std::string_view name(ExitKind kind) noexcept;

/// Times by their order of magnitude: bucket 0 counts 0 ns, bucket n those from 2^(n-1) to
/// 2^n - 1 ns, the last one longer ones too.
using TimeHistogram = std::array<std::uint64_t, 32>;

/// The exits of one kind.
///
/// The time is what passes until the guest goes on: in the library, and in the caller.  On `soft`,
/// `svm` and `vmx`, where reading a clock is a good part of what an exit costs, one access in some
/// 64 is timed, at random; all other exits, those of `kvm` and those in lockstep are timed each.
struct ExitStatistics {
    ExitKind kind{};
    std::uint64_t count{};
    std::uint64_t timed{};  ///< How many of them what follows is about.
    std::uint64_t total_ns{};
    std::uint64_t minimum_ns{};
    std::uint64_t maximum_ns{};
    TimeHistogram histogram{};
};

/// One exit.
struct ExitRecord {
    ExitKind kind{};
    /// The port, guest-physical address, MSR, or the lower 56 bits of a hypercall's RAX; else 0.
    std::uint64_t where{};
    Gva rip{};  ///< The offset in CS.  0 of what the library answered.
};

/// All about one virtual CPU.
struct VcpuStatistics {
    std::uint32_t vcpu{};  ///< Its id.
    /// `exits`, `io_exits`, … as KVM has them, then the engine's own.  Which ones there are depends
    /// on the engine and may change with each version.
    std::vector<Statistic> counters{};
    TimeHistogram halt_wait_hist{};        ///< How long it was halted.
    std::vector<ExitStatistics> exits{};   ///< Of each kind that there was.
    std::vector<ExitRecord> last_exits{};  ///< Up to 64; the youngest last.

    /// The counter of that name, or 0.
    [[nodiscard]] VMM_API std::uint64_t counter(std::string_view wanted) const noexcept;
    /// How many exits of that kind there were.
    [[nodiscard]] VMM_API std::uint64_t count(ExitKind kind) const noexcept;
};

/// For people: counters, and a table of exits by reason, the most frequent first.
[[nodiscard]] VMM_API std::string to_text(std::span<const VcpuStatistics> vcpus);
/// An array of objects, one a vCPU, with the members of `VcpuStatistics`.
[[nodiscard]] VMM_API std::string to_json(std::span<const VcpuStatistics> vcpus);
/// Prometheus' text format: `vmm_exit_reason_total{vcpu,reason}`, the histogram
/// `vmm_exit_nanoseconds`, and each counter as `vmm_NAME{vcpu}`.
[[nodiscard]] VMM_API std::string to_prometheus(std::span<const VcpuStatistics> vcpus);

}  // namespace vmm
