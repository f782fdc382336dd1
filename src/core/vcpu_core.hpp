// SPDX-License-Identifier: Apache-2.0

/// @file
/// What a virtual CPU is behind `Vcpu`: KVM's run loop over an engine.
///
/// The loop: complete the I/O left from the last exit; handle requests (kick, INIT, SIPI); block
/// while halted; pick the event to inject by the manuals' priority; enter the engine; handle its
/// exit here, or hand it to the caller.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "core/dirty_rings.hpp"
#include "core/doorbell.hpp"
#include "core/exit_counters.hpp"
#include "core/run_delay.hpp"
#include "vmm/exit.hpp"
#include "vmm/vcpu.hpp"
#include "x86/engine.hpp"
#include "x86/irqchip/local_apic.hpp"
#include "x86/kvmclock.hpp"
#include "x86/msr.hpp"
#include "x86/pv_features.hpp"
#include "x86/smm.hpp"
#include "x86/tsc.hpp"

namespace vmm::core {

class VmCore;

class VcpuCore final : public x86::VcpuHost, public x86::irqchip::VcpuSink {
public:
    [[nodiscard]] static Result<std::shared_ptr<VcpuCore>> create(std::shared_ptr<VmCore> vm,
                                                                  x86::EngineVm& engine,
                                                                  std::uint32_t id);
    VcpuCore(std::shared_ptr<VmCore> vm, std::uint32_t id);
    VcpuCore(const VcpuCore&) = delete;
    VcpuCore& operator=(const VcpuCore&) = delete;
    VcpuCore(VcpuCore&&) = delete;
    VcpuCore& operator=(VcpuCore&&) = delete;
    ~VcpuCore() override;

    [[nodiscard]] std::uint32_t id() const noexcept { return id_; }

    Result<Exit> run() noexcept;
    /// False: the instruction has one more access, which the next `run()` returns at once.
    bool complete_pending() noexcept;
    /// The user's kick.  Async-signal-safe.
    void user_kick() noexcept;

    Result<void> set_dirty_ring(std::span<memory::DirtyGfn> entries);

    // --- State, as `Vcpu` documents it.
    [[nodiscard]] x86::CpuState& state(x86::StateGroup current = x86::StateGroup::All) noexcept
    {
        return engine_->state(current);
    }
    void state_changed(x86::StateGroup changed = x86::StateGroup::All) noexcept
    {
        engine_->state_changed(changed);
    }
    Result<void> set_sregs(const x86::Sregs& sregs);
    Result<void> set_cpuid(std::span<const x86::CpuidEntry> entries);
    Result<std::uint64_t> msr(std::uint32_t index);
    Result<void> set_msr(std::uint32_t index, std::uint64_t value);
    [[nodiscard]] x86::VcpuEvents events() noexcept;
    Result<void> set_events(const x86::VcpuEvents& events);
    Result<void> set_guest_debug(const x86::GuestDebug& debug);
    [[nodiscard]] x86::MpState mp_state() noexcept;
    Result<void> set_mp_state(x86::MpState state);
    /// The library's or the engine's; null without an irqchip.
    [[nodiscard]] x86::irqchip::ApicRegisters* apic() noexcept { return apic_; }
    [[nodiscard]] std::optional<Gpa> translate(Gva linear) noexcept;
    Result<void> interrupt(std::uint8_t vector);
    [[nodiscard]] bool ready_for_interrupt_injection() noexcept;
    void request_irq_window(bool wanted) noexcept { user_irq_window_ = wanted; }
    [[nodiscard]] bool has_pic() const noexcept;
    /// Whether the caller has the PIC: there is no irqchip, or a split one whose LINT0 lets it
    /// through.
    [[nodiscard]] bool takes_user_interrupts() const noexcept;
    void nmi() noexcept { deliver_nmi(); }
    Result<void> smi();
    void set_host_tsc_offset(std::uint64_t offset) noexcept;
    void report_tpr_accesses(bool wanted) noexcept;
    Result<void> set_vapic_address(Gpa word);
    Result<void> set_tsc_khz(std::uint32_t khz);
    [[nodiscard]] std::uint32_t tsc_khz() const noexcept { return tsc_khz_; }
    Result<void> notify_guest_stopped();
    void enforce_pv_features(bool enforced) noexcept;
    Result<void> setup_mce(std::uint64_t mcg_cap);
    Result<void> inject_mce(const x86::MachineCheck& error);
    /// kvmclock was set: the guest's page needs new contents.  Any thread.
    void clock_changed() noexcept;

    // --- x86::VcpuHost.
    bool mmio_read(Gpa gpa, std::span<std::byte> data) noexcept override;
    bool mmio_write(Gpa gpa, std::span<const std::byte> data) noexcept override;
    bool port_read(Port port, std::span<std::byte> data) noexcept override;
    bool port_write(Port port, std::span<const std::byte> data) noexcept override;
    bool may_answer_port(Port port, std::size_t size) noexcept override;
    bool may_answer_mmio(Gpa gpa, std::size_t size) noexcept override;
    x86::MsrResult read_msr(std::uint32_t index, std::uint64_t& value) noexcept override;
    x86::MsrResult write_msr(std::uint32_t index, std::uint64_t value) noexcept override;
    bool allows_msr(std::uint32_t index, bool write) noexcept override;
    x86::MsrResult refuse_msr(x86::MsrExitReason why) noexcept override;
    void write_cr8(std::uint64_t value) noexcept override;
    std::uint64_t read_cr8() noexcept override;
    std::uint64_t apic_base() noexcept override;
    std::uint64_t guest_tsc() noexcept override;
    void hypercall(x86::CpuState& state) noexcept override;
    bool has_quirk(std::uint64_t quirk) noexcept override;

    /// As `Vcpu` documents it.  Any thread.
    [[nodiscard]] VcpuStatistics statistics() const;

    // --- x86::irqchip::VcpuSink.  Any thread.
    void kick() noexcept override;
    void deliver_nmi() noexcept override;
    void deliver_init() noexcept override;
    void deliver_sipi(std::uint8_t vector) noexcept override;
    void deliver_smi() noexcept override;
    void unhalt() noexcept override;

private:
    [[nodiscard]] bool is_bootstrap() const noexcept;
    void mark_bootstrap() noexcept;
    void keep_user_interrupt(const x86::VcpuEvents& events) noexcept;
    [[nodiscard]] x86::irqchip::TscClock tsc_clock();
    [[nodiscard]] bool access_tsc_msr(std::uint32_t index,
                                      std::uint64_t& value,
                                      bool write,
                                      x86::MsrAccess access) noexcept;
    [[nodiscard]] bool access_kvmclock_msr(std::uint32_t index,
                                           std::uint64_t& value,
                                           bool write) noexcept;
    /// Whether CPUID offers it, where that is asked for.
    [[nodiscard]] bool has_pv_feature(x86::CpuidFeature feature) noexcept;
    [[nodiscard]] bool access_pv_msr(std::uint32_t index,
                                     std::uint64_t& value,
                                     bool write) noexcept;
    void update_steal_time() noexcept;
    void note_preempted() noexcept;
    void note_not_preempted() noexcept;
    [[nodiscard]] bool clear_preempted(Gpa steal_time) noexcept;
    /// What guest memory shows of the local APIC, before guest code runs and after.
    void share_lapic() noexcept;
    void take_back_lapic() noexcept;
    /// The guest accesses the register of the local APIC at this offset of its page.
    void note_lapic_access(std::uint64_t offset, std::size_t size, bool is_write) noexcept;
    [[nodiscard]] bool access_smm_msr(std::uint32_t index,
                                      std::uint64_t& value,
                                      bool write,
                                      x86::MsrAccess access) noexcept;
    void set_tsc_offset(std::uint64_t offset) noexcept;
    /// What the guest's TSC runs at: what was set, or what is near enough to it.
    [[nodiscard]] std::uint32_t running_tsc_khz() const noexcept;
    void update_kvmclock() noexcept;
    [[nodiscard]] bool access_msr(std::uint32_t index,
                                  std::uint64_t& value,
                                  bool write,
                                  x86::MsrAccess access) noexcept;
    /// What the vCPU itself has left to do before guest code runs next.  True: the caller is to
    /// see something first, as `left`.
    [[nodiscard]] bool handle_request(Exit& left) noexcept;
    void flush_tlb_if_asked() noexcept;
    void handle_init_and_sipi() noexcept;
    [[nodiscard]] bool is_runnable() noexcept;
    [[nodiscard]] bool has_wake_event() noexcept;
    [[nodiscard]] bool has_user_interrupt() const noexcept
    {
        return user_interrupt_.has_value() && takes_user_interrupts();
    }
    [[nodiscard]] bool has_interrupt() const noexcept
    {
        return has_user_interrupt() || (lapic_ != nullptr && lapic_->has_interrupt());
    }
    void block() noexcept;
    void wait_for_event() noexcept;
    [[nodiscard]] bool may_go_on() noexcept;
    [[nodiscard]] bool poll_for_event() noexcept;
    /// False: `choose_event()` would find none, and no window to ask for.
    [[nodiscard]] bool may_have_event() const noexcept
    {
        return lapic_ != nullptr || waits_for_window_ || block_events_ || user_irq_window_ ||
               user_interrupt_.has_value() || smi_pending_.load(std::memory_order_relaxed) ||
               nmi_pending_.load(std::memory_order_relaxed) != 0U;
    }
    void choose_event() noexcept;
    void choose_event(x86::CpuState& cpu) noexcept;
    /// To an engine that delivers them itself.
    void hand_over_nmis() noexcept;
    void note_delivered_nmi(x86::CpuState& cpu) noexcept;
    /// An SMI is pending and the vCPU not in its handler.
    [[nodiscard]] bool has_smi() noexcept
    {
        return smi_pending_.load(std::memory_order_relaxed) &&
               !state(x86::StateGroup::Registers).smm;
    }
    [[nodiscard]] bool has_latched_init() noexcept;
    void enter_smm() noexcept;
    /// RSM.  False: what is to be loaded is no state of a CPU, or not there.
    [[nodiscard]] bool leave_smm() noexcept;
    /// Whether control registers, EFER and CS fit together, as `set_sregs()` has it.
    [[nodiscard]] static bool can_be_in(const x86::CpuState& cpu);
    /// True: the caller is to see it, as `left`.
    [[nodiscard]] bool handle(const x86::EngineExit& exit, std::uint64_t rip, Exit& left) noexcept;
    [[nodiscard]] bool answer_mmio_write(Gpa gpa, std::span<const std::byte> data) noexcept;
    [[nodiscard]] bool answer_port_write(Port port, std::span<const std::byte> data) noexcept;
    void wake() noexcept;
    /// With `quirk::misc_enable_no_mwait` turned off CPUID.1:ECX[3] follows IA32_MISC_ENABLE.
    [[nodiscard]] bool write_misc_enable(std::uint64_t value, x86::MsrAccess access) noexcept;
    [[nodiscard]] bool is_monitor_enabled() const noexcept;
    void follow_misc_enable() noexcept;
    /// A hypercall that leaves: `run()` returns it next.
    void leave_for_hypercall(const x86::CpuState& cpu, bool is_64) noexcept;
    /// The caller has answered it.
    void finish_hypercall() noexcept;

    const std::shared_ptr<VmCore> vm_;
    const std::uint32_t id_;
    std::uint32_t tsc_khz_;  // Of the guest's TSC, as it was set.
    x86::TscRatio tsc_ratio_;
    std::shared_ptr<x86::irqchip::LocalApic> lapic_;  // Null without an irqchip of the library's.
    std::unique_ptr<x86::EngineVcpu> engine_;
    x86::EngineApic* engine_apic_{};       // Null unless the engine has the irqchip.
    x86::irqchip::ApicRegisters* apic_{};  // Either of the two, or null.
    x86::MsrBank msrs_;
    x86::KvmClock kvmclock_;
    x86::PvFeatures pv_;
    RunDelay run_delay_;
    bool has_request_{};  // One of those that `handle_request()` looks at.
    bool reports_tpr_{};
    std::optional<TprAccess> tpr_access_;   // Until `run()` has told of it.
    Gpa vapic_word_{0};                     // 0: none.
    bool eoi_is_shared_{};                  // The guest may end its interrupt without a word.
    bool is_preempted_{};                   // And its memory says so.
    bool flushes_tlb_{};                    // Before guest code runs next.
    std::uint64_t stolen_ns_{};             // What `run_delay_` said last.
    std::uint64_t steal_time_tsc_{};        // When the guest was told; 0: never.
    bool enforces_pv_features_{};           // MSRs and hypercalls exist by CPUID.
    std::uint64_t apic_base_{0xfee0'0900};  // Without a local APIC.
    std::uint64_t tsc_adjust_{};
    std::uint64_t smi_count_{};
    std::uint32_t smbase_{x86::smbase_at_reset};
    bool smm_inside_nmi_{};  // NMIs were blocked when SMM was entered.
    x86::MpState mp_state_{x86::MpState::Runnable};
    /// An access that nobody answered, at this generation of the bus.
    template <typename A>
    struct Unanswered {
        std::uint64_t generation{};
        A at{};
        std::size_t size{};  // 0: none yet.

        friend bool operator==(const Unanswered&, const Unanswered&) = default;
    };
    Unanswered<Port> unanswered_port_;
    Unanswered<Gpa> unanswered_mmio_;
    std::optional<Hypercall> hypercall_;  // Until it is answered.
    bool hypercall_shown_{};              // The caller has it.
    std::uint64_t hypercall_result_{};
    x86::MsrExitReason msr_refusal_{};           // Of the MSR access that leaves.
    std::shared_ptr<VcpuDirtyRing> dirty_ring_;  // Null where pages are logged otherwise.
    ExitCounters counters_;
    bool io_pending_{};        // The last exit was an access that the next entry completes.
    bool waits_for_window_{};  // The engine has been asked for one.
    bool block_events_{};      // A debugger wants no interrupt.
    bool user_irq_window_{};   // The caller wants `IrqWindow`.
    bool monitor_changed_{};   // By IA32_MISC_ENABLE: CPUID is to follow.
    bool shutdown_{};  // A triple fault is pending, as of a machine check: the next run ends so.
    std::optional<std::uint8_t> user_interrupt_;   // KVM_INTERRUPT, waiting.
    std::optional<x86::Event> pending_exception_;  // Of set_events(), not yet taken up.

    // Set by other threads, taken by the vCPU's.
    std::atomic<bool> kicked_{};
    std::atomic<unsigned> nmi_pending_{};
    std::atomic<bool> init_pending_{};
    std::atomic<bool> smi_pending_{};
    std::atomic<bool> clock_changed_{};
    std::atomic<bool> unhalted_{};
    static constexpr int no_sipi = -1;
    std::atomic<int> sipi_vector_{no_sipi};

    Doorbell doorbell_;
};

}  // namespace vmm::core
