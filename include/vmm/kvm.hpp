// SPDX-License-Identifier: Apache-2.0

/// @file
/// The system object: what `/dev/kvm` is to KVM.
///
///     vmm::Kvm kvm = vmm::Kvm::open().value();
///     vmm::Vm vm = kvm.create_vm().value();
///     vmm::Vcpu vcpu = vm.create_vcpu(0).value();
///     vmm::Exit exit = vcpu.run().value();

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/export.hpp"
#include "vmm/result.hpp"
#include "vmm/vm.hpp"
#include "vmm/x86/state.hpp"

namespace vmm {

/// What runs the guest.
enum class Engine : std::uint8_t {
    Auto,  ///< The fastest that works on this host.
    Soft,  ///< A software x86-64 CPU in this process; needs nothing.
    Kvm,   ///< The kernel's KVM.
    Svm,   ///< Our own AMD SVM entry path, through the helper module.
    Vmx,   ///< Our own Intel VMX entry path, through the helper module.
};

/// "auto", "soft", "kvm", "svm" or "vmx".
[[nodiscard]] VMM_API std::string_view name(Engine engine) noexcept;
[[nodiscard]] VMM_API std::optional<Engine> engine_from_name(std::string_view name) noexcept;

/// How the `soft` engine executes guest code.  What a guest sees is the same.
enum class SoftMode : std::uint8_t {
    Translator,   ///< Hot 64-bit code becomes host code; what is not hot is interpreted.
    Interpreter,  ///< All is interpreted: several times slower, and no code is generated for it.
    Stress,       ///< For tests of the engine: translates at once, forgets at random.  Slow.
};

/// "translator", "interpreter" or "stress".
[[nodiscard]] VMM_API std::string_view name(SoftMode mode) noexcept;
[[nodiscard]] VMM_API std::optional<SoftMode> soft_mode_from_name(std::string_view name) noexcept;

/// Who has the interrupt controllers that `Vm::create_irqchip()` and `Vm::create_split_irqchip()`
/// make, and with them the local APICs, HLT, INIT and SIPI.
enum class IrqchipPlace : std::uint8_t {
    Library,  ///< This library: the same on each engine.
    /// The kernel's KVM: on `Engine::kvm` alone.  Interrupts, IPIs and timers cost no exit, and a
    /// vCPU that halts sleeps in the kernel.
    Kernel,
};

/// "library" or "kernel".
[[nodiscard]] VMM_API std::string_view name(IrqchipPlace place) noexcept;
[[nodiscard]] VMM_API std::optional<IrqchipPlace> irqchip_place_from_name(
    std::string_view name) noexcept;

/// Whether an engine can run guests here.
struct EngineReport {
    Engine engine{};
    bool usable{};
    bool automatic{};  ///< `Engine::Auto` may take it: usable, and at the speed it is meant for.
    std::string reason{};  ///< One sentence: how it was found usable, or why it is not.
    std::string fix{};     ///< What would make it usable; empty if it is, or if nothing would.
};

/// Looks at each engine, best first.  A candidate is trusted only after it has run a tiny guest
/// through real, protected and long mode; takes some milliseconds.
[[nodiscard]] VMM_API std::vector<EngineReport> probe_engines();

/// KVM's capabilities (KVM_CAP_…) that this library answers for, by KVM's numbers.
enum class Capability : std::uint32_t {
    Irqchip = 0,
    Hlt = 1,
    UserMemory = 3,
    Vapic = 6,
    ExtCpuid = 7,
    Clocksource = 8,
    NrVcpus = 9,
    NrMemslots = 10,
    NopIoDelay = 12,
    MpState = 14,
    SyncMmu = 16,
    DestroyMemoryRegionWorks = 21,
    UserNmi = 22,
    SetGuestDebug = 23,
    ReinjectControl = 24,
    IrqRouting = 25,
    IrqInjectStatus = 26,
    JoinMemoryRegionsWorks = 30,
    Mce = 31,
    Irqfd = 32,
    Pit2 = 33,
    SetBootCpuId = 34,
    PitState2 = 35,
    Ioeventfd = 36,
    AdjustClock = 39,
    InternalErrorData = 40,
    VcpuEvents = 41,
    DebugRegs = 50,
    X86RobustSinglestep = 51,
    Xsave = 55,
    Xcrs = 56,
    AsyncPf = 59,
    TscControl = 60,
    GetTscKhz = 61,
    MaxVcpus = 66,
    TscDeadlineTimer = 72,
    KvmclockCtrl = 76,
    SignalMsi = 77,
    ReadonlyMem = 81,
    IrqfdResample = 82,
    DeviceCtrl = 89,
    ExtEmulCpuid = 95,
    IoapicPolarityIgnored = 97,
    IoeventfdNoLength = 100,
    X86Smm = 117,
    MultiAddressSpace = 118,
    SplitIrqchip = 121,
    IoeventfdAnyLength = 122,
    VcpuAttributes = 127,
    MaxVcpuId = 128,
    ImmediateExit = 136,
    GetMsrFeatures = 153,
    MsrPlatformInfo = 159,
    CoalescedPio = 162,
    ExceptionPayload = 164,
    ManualDirtyLogProtect2 = 168,  ///< 1: manually; 2: all dirty at first (`set_initially_dirty`).
    HaltPoll = 182,
    AsyncPfInt = 183,
    X86UserSpaceMsr = 188,
    X86MsrFilter = 189,
    EnforcePvFeatureCpuid = 190,
    DirtyLogRing = 192,    ///< The most bytes of one ring.
    SetGuestDebug2 = 195,  ///< The bits of KVM_GUESTDBG_* that are known.
    ExitHypercall = 201,   ///< The hypercalls, by bit, that `Vm::set_hypercall_exits` takes.
    DisableQuirks2 = 213,  ///< The quirks, by bit, that `Vm::disable_quirks` takes.
    VmTscControl = 214,
    X86TripleFaultEvent = 218,
    DirtyLogRingAcqRel = 223,
};

struct KvmOptions {
    Engine engine{Engine::Auto};
    /// What the `kvm` engine interrupts KVM_RUN with; 0 is SIGRTMAX.  It is blocked in a thread
    /// while that is in `Vcpu::run()` and is never delivered, so no handler is installed or needed.
    int kick_signal{};
    /// A second engine that runs the same guest on a copy of its memory and is compared with the
    /// first at every exit; the first difference is an exit, `Difference`.  For finding errors in
    /// engines.  One vCPU; a guest must not look at a TSC that an engine has from the hardware
    /// (RDTSC on `kvm`), and gets interrupts only where it has left the engines, so one that waits
    /// for one in a loop without any access waits longer than it should.
    std::optional<Engine> lockstep{};
    /// How the `soft` engine executes.  VMM_SOFT in the environment, which has one of the modes'
    /// names, is obeyed instead: for experiments with a program as it is.
    SoftMode soft_mode{SoftMode::Translator};
    /// The same of the second engine in lockstep, which then does not look at the environment;
    /// unset: as the first.
    std::optional<SoftMode> lockstep_soft_mode{};
    /// Whether exits are counted and timed; clear, `Vcpu::statistics()` has what else is counted.
    bool statistics{true};
    /// Who has the interrupt controllers.  With `IrqchipPlace::Kernel` the API is the same, and
    /// KVM's where KVM differs from the library:
    ///
    /// - `Vm::create_irqchip()` is KVM_CREATE_IRQCHIP; `Vm::create_split_irqchip()` is
    ///   KVM_CAP_SPLIT_IRQCHIP, with which a resampling irqfd is refused (EINVAL), and where each
    ///   end of an interrupt leaves whose vector a route of the first pins has, also of one that
    ///   was not level-triggered.
    /// - The MSRs of steal time, asynchronous page faults, silent EOI and poll control are KVM's
    ///   too, offered as far as KVM offers them.
    /// - `Vm::set_halt_poll_ns()` begins with the host's own (kvm.halt_poll_ns).
    /// - `Vcpu::report_tpr_accesses()` sees nothing where the CPU has the task priority itself.
    /// - Statistics of halts, interrupts and port accesses are KVM's, and `exits` are all that left
    ///   guest code; exits by reason have those that left KVM.
    IrqchipPlace irqchip{IrqchipPlace::Library};
};

/// An opened engine.  Move-only; virtual machines created from it may outlive it.
///
/// Thread safety: const members may be called from any thread.
class VMM_API Kvm {
public:
    /// Opens an engine.
    ///
    /// @return ENODEV if the engine asked for does not work here; the message says why and what
    /// would fix it.  `Engine::Auto` fails only if no engine works.  EINVAL if the `soft` engine
    /// may be taken and VMM_SOFT in the environment names none of its modes, or for
    /// `IrqchipPlace::Kernel` on an engine other than `kvm` (`Auto` is one) or in lockstep.
    [[nodiscard]] static Result<Kvm> open(const KvmOptions& options = {});

    Kvm(Kvm&&) noexcept;
    Kvm& operator=(Kvm&&) noexcept;
    Kvm(const Kvm&) = delete;
    Kvm& operator=(const Kvm&) = delete;
    ~Kvm();

    /// The engine in use; never `Auto`.
    [[nodiscard]] Engine engine() const noexcept;

    /// KVM_GET_API_VERSION: 12.
    [[nodiscard]] int api_version() const noexcept { return 12; }

    /// KVM_CHECK_EXTENSION: 0 for what is absent, else 1 or the number that the capability
    /// stands for.
    [[nodiscard]] int check_extension(Capability capability) const noexcept;

    /// KVM_GET_SUPPORTED_CPUID: all that a guest may be offered on this host.
    [[nodiscard]] std::vector<x86::CpuidEntry> supported_cpuid() const;

    /// KVM_GET_EMULATED_CPUID: instructions that the engine executes though the host's CPU may lack
    /// them.  Empty on `svm` and `vmx`, where they are the CPU's.
    [[nodiscard]] std::vector<x86::CpuidEntry> emulated_cpuid() const;

    /// KVM_GET_MSR_INDEX_LIST: the MSRs that make up a guest's state.
    [[nodiscard]] std::vector<std::uint32_t> msr_index_list() const;

    /// KVM_GET_MSR_FEATURE_INDEX_LIST: MSRs by which a CPU describes itself.
    [[nodiscard]] std::vector<std::uint32_t> msr_feature_list() const;
    /// KVM_GET_MSRS on the system: the most that one of those may say to a guest, or nothing for
    /// another MSR.
    [[nodiscard]] std::optional<std::uint64_t> feature_msr(std::uint32_t index) const noexcept;

    /// KVM_X86_GET_MCE_CAP_SUPPORTED: the bits of IA32_MCG_CAP that `Vcpu::setup_mce` takes.
    [[nodiscard]] std::uint64_t mce_capabilities() const noexcept;

    /// Frequency of the guest's time-stamp counter, in kHz, unless `set_tsc_khz` says otherwise.
    [[nodiscard]] std::uint32_t tsc_khz() const noexcept;

    /// KVM_CREATE_VM.  Any number per process.
    [[nodiscard]] Result<Vm> create_vm() const;

private:
    explicit Kvm(const KvmOptions& options) noexcept : options_{options} {}

    KvmOptions options_;  // The engine is never `Auto`.
};

}  // namespace vmm
