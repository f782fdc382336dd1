// SPDX-License-Identifier: Apache-2.0

/// @file
/// The local APIC, in xAPIC and x2APIC mode.  SDM Vol. 3A "Advanced Programmable Interrupt
/// Controller (APIC)"; where it leaves a choice, KVM's.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "vmm/result.hpp"
#include "vmm/timer.hpp"
#include "vmm/x86/irqchip_state.hpp"
#include "x86/irqchip/apic_bus.hpp"
#include "x86/irqchip/apic_registers.hpp"

namespace vmm::x86::irqchip {

/// The vCPU behind a local APIC.
///
/// Thread safety: called from any thread, with the I/O APIC's lock possibly held; an
/// implementation must not call back into the irqchip, other than `LocalApic::has_interrupt()`.
class VcpuSink {
public:
    VcpuSink() = default;
    VcpuSink(const VcpuSink&) = delete;
    VcpuSink& operator=(const VcpuSink&) = delete;
    VcpuSink(VcpuSink&&) = delete;
    VcpuSink& operator=(VcpuSink&&) = delete;
    virtual ~VcpuSink() = default;

    /// `has_interrupt()` has become true: look at it before running more of the guest.
    virtual void kick() noexcept = 0;
    virtual void deliver_nmi() noexcept = 0;
    /// The vCPU's thread answers with `LocalApic::init()`.
    virtual void deliver_init() noexcept = 0;
    virtual void deliver_sipi(std::uint8_t vector) noexcept = 0;
    virtual void deliver_smi() noexcept = 0;
    /// The HLT that the vCPU is in, or its next, ends: KVM_HC_KICK_CPU, which KVM sends as a remote
    /// read.
    virtual void unhalt() noexcept {}
};

/// The guest's time-stamp counter, for the timer's TSC-deadline mode.
///
/// Called only on the thread that calls `write_msr`, `set_state` or `tsc_changed`, with the
/// APIC's lock held.
struct TscClock {
    std::function<std::uint64_t()> read;
    /// When the counter will reach `tsc`, on the `TimerService`'s clock; the present or the past
    /// if it has already.
    std::function<std::uint64_t(std::uint64_t tsc)> to_ns_deadline;
};

/// What the guest's CPUID says about the APIC.
struct LapicFeatures {
    bool x2apic{true};
    bool tsc_deadline{true};
    std::uint8_t physical_address_bits{52};
};

/// A local APIC.
///
/// Lock order: the I/O APIC's lock, then this one's; under this one's only the timer's.  IPIs,
/// EOIs and kicks go out after it is released.
///
/// Thread safety: every member from any thread.  `has_interrupt()` takes no lock.
class LocalApic final : public ApicRegisters {
public:
    static constexpr std::uint64_t default_base = 0xfee0'0000;
    static constexpr std::uint64_t page_size = 0x1000;

    /// In the state after RESET, without a vCPU.  APIC id 0 is the bootstrap processor.
    LocalApic(ApicBus& bus, TimerService& timers, std::uint32_t id, bool has_io_apic);
    LocalApic(const LocalApic&) = delete;
    LocalApic& operator=(const LocalApic&) = delete;
    LocalApic(LocalApic&&) = delete;
    LocalApic& operator=(LocalApic&&) = delete;
    ~LocalApic() override;

    /// Puts the vCPU behind the APIC, and the APIC into its reset state.
    void connect(VcpuSink& sink, TscClock tsc);
    /// Takes it away.  When this returns, no call of the sink is running or will come.
    void disconnect() noexcept;

    [[nodiscard]] std::uint32_t initial_id() const noexcept { return initial_id_; }
    void set_features(const LapicFeatures& features) noexcept;

    // --- The vCPU's run loop.

    /// Whether `acknowledge()` would return a vector: an interrupt of higher priority than the
    /// processor's, or one of the PIC if this APIC lets it through.
    [[nodiscard]] bool has_interrupt() const noexcept
    {
        // Acquire: pairs with the release in update_locked(), so that who sees the hint sees the
        // interrupt.
        return deliverable_.load(std::memory_order_acquire) ||
               (accepts_pic_interrupt() && bus_.pic_output());
    }
    /// The interrupt-acknowledge cycle: the vector to deliver now.  The PIC comes first.
    [[nodiscard]] std::optional<std::uint8_t> acknowledge() noexcept;
    /// Whether the PIC's output reaches this CPU: LINT0 is in ExtINT mode, or the APIC is off.
    [[nodiscard]] bool accepts_pic_interrupt() const noexcept
    {
        return accepts_pic_.load(std::memory_order_acquire);
    }
    /// The guest has ended an interrupt of the caller's I/O APIC: the vCPU leaves to say so.
    void leave_for_eoi(std::uint8_t vector) noexcept;
    /// What `leave_for_eoi()` was told, once.
    [[nodiscard]] std::optional<std::uint8_t> take_eoi() noexcept
    {
        if (ended_.load(std::memory_order_relaxed) < 0) {
            return std::nullopt;
        }
        return static_cast<std::uint8_t>(ended_.exchange(-1));
    }
    [[nodiscard]] std::uint8_t tpr() const noexcept;
    void set_tpr(std::uint8_t value) noexcept;
    /// TPR bits 7:4.
    [[nodiscard]] std::uint8_t cr8() const noexcept override
    {
        return static_cast<std::uint8_t>(tpr() >> 4U);
    }
    void set_cr8(std::uint8_t value) noexcept override
    {
        set_tpr(static_cast<std::uint8_t>((value & 0xfU) << 4U));
    }

    /// Whether nobody needs to know when the interrupt in service ends, but for this APIC itself:
    /// there is one, nothing else is requested, and no I/O APIC has its vector.  If so the guest
    /// may end it without a word, until `take_back_end()`; what is requested meanwhile kicks,
    /// whatever its priority.
    [[nodiscard]] bool offer_silent_end() noexcept;
    /// @param ended  The guest has ended it: as a write to the EOI register.
    void take_back_end(bool ended) noexcept;
    /// KVM_SET_VAPIC_ADDR: what the guest is shown; nothing while the APIC is disabled.
    [[nodiscard]] std::optional<std::uint32_t> vapic_word() const noexcept;

    /// RESET.
    void reset() noexcept;
    /// INIT: all but the APIC id and IA32_APIC_BASE.
    void init() noexcept;

    // --- The guest's accesses.

    /// Whether the register page is where `gpa` is: IA32_APIC_BASE says where.  Memory that is
    /// there, too, hides it.
    [[nodiscard]] bool is_in_page(Gpa gpa) const noexcept
    {
        return (gpa.value() & ~(page_size - 1)) == page_.load(std::memory_order_relaxed);
    }
    /// Reads the register page.  Any offset and size is answered; see KVM's rules in the source.
    void mmio_read(std::uint64_t offset, std::span<std::byte> data) noexcept;
    void mmio_write(std::uint64_t offset, std::span<const std::byte> data) noexcept;
    /// IA32_TSC_DEADLINE and the x2APIC MSRs.  False: #GP(0).
    [[nodiscard]] bool read_msr(std::uint32_t index, std::uint64_t& value) noexcept;
    [[nodiscard]] bool write_msr(std::uint32_t index, std::uint64_t value) noexcept;
    /// IA32_APIC_BASE.
    [[nodiscard]] std::uint64_t apic_base() const noexcept override;
    /// Reserved bits and illegal transitions are refused: #GP(0).
    [[nodiscard]] bool set_apic_base(std::uint64_t value, ApicBaseWriter writer) noexcept override;
    [[nodiscard]] bool set_apic_base(std::uint64_t value) noexcept
    {
        return set_apic_base(value, ApicBaseWriter::Guest);
    }

    /// The guest's TSC was set: a TSC deadline is now at another time.
    void tsc_changed() noexcept;

    // --- State, as KVM_GET_LAPIC and KVM_SET_LAPIC.

    [[nodiscard]] LapicState state() const noexcept override;
    /// Set IA32_APIC_BASE first: it decides the mode that the page is for.
    ///
    /// @return EINVAL if in x2APIC mode the page holds another APIC's id.
    Result<void> set_state(const LapicState& state) override;

    // --- The bus, and what else is wired to this APIC.

    [[nodiscard]] bool is_addressed(const InterruptMessage& message,
                                    const LocalApic* source) const noexcept;
    /// Enabled by IA32_APIC_BASE and by software.
    [[nodiscard]] bool is_enabled() const noexcept;
    /// @return whether the message was accepted; a disabled APIC accepts no vectors.
    bool accept(const InterruptMessage& message) noexcept;
    void kick() noexcept;
    /// A local source fires: LINT0/1 (rising edge), thermal sensor, performance counter.
    void local_interrupt(LapicRegister lvt) noexcept;

private:
    static constexpr std::size_t register_count = 64;

    enum class TimerMode : std::uint8_t { OneShot, Periodic, TscDeadline, Reserved };

    struct Eoi {
        std::uint8_t vector;
        bool level;
    };
    /// What a register access leaves to do once the lock is released.
    struct Effects {
        std::optional<InterruptMessage> ipi;
        std::optional<Eoi> eoi;
        std::optional<DeliveryMode> local;  // An NMI, SMI or INIT of a local source.
        bool kick{};
    };

    /// Calls `f` with the sink, if there is one, and keeps it from going away meanwhile.
    template <typename F>
    void with_sink(F&& f) noexcept;
    void perform(const Effects& effects) noexcept;
    [[nodiscard]] std::uint32_t& reg(LapicRegister r) noexcept
    {
        return regs_[static_cast<std::size_t>(r) >> 4U];
    }
    [[nodiscard]] std::uint32_t reg(LapicRegister r) const noexcept
    {
        return regs_[static_cast<std::size_t>(r) >> 4U];
    }
    [[nodiscard]] bool hardware_enabled() const noexcept;
    [[nodiscard]] bool software_enabled() const noexcept;
    [[nodiscard]] bool is_x2apic() const noexcept;

    [[nodiscard]] int highest_locked(LapicRegister first) const noexcept;
    void set_bit_locked(LapicRegister first, std::uint8_t vector) noexcept;
    void clear_bit_locked(LapicRegister first, std::uint8_t vector) noexcept;
    [[nodiscard]] bool test_bit_locked(LapicRegister first, std::uint8_t vector) const noexcept;
    [[nodiscard]] std::uint32_t ppr_locked() const noexcept;
    /// Recomputes what other threads may look at without the lock.
    /// @return whether an interrupt has become deliverable, so that a kick is due.
    [[nodiscard]] bool update_locked() noexcept;

    void reset_registers_locked() noexcept;
    void set_mode_registers_locked(std::uint64_t old_base) noexcept;
    [[nodiscard]] std::uint32_t version_locked() const noexcept;
    [[nodiscard]] std::optional<std::uint32_t> read_register_locked(std::uint32_t offset) noexcept;
    [[nodiscard]] bool write_register_locked(std::uint32_t offset,
                                             std::uint32_t value,
                                             Effects& effects) noexcept;
    [[nodiscard]] bool write_mode_dependent_locked(LapicRegister r,
                                                   std::uint32_t value,
                                                   Effects& effects) noexcept;
    void write_deadline_locked(std::uint64_t value, Effects& effects) noexcept;
    [[nodiscard]] bool write_x2apic_locked(std::uint32_t index,
                                           std::uint64_t value,
                                           Effects& effects) noexcept;
    /// Of SVR or an LVT register.
    [[nodiscard]] std::uint32_t writable_locked(LapicRegister r) const noexcept;
    void write_svr_locked(std::uint32_t value) noexcept;
    void write_lvt_locked(LapicRegister r, std::uint32_t value) noexcept;
    void write_icr_locked(std::uint32_t low, std::uint32_t high, Effects& effects) noexcept;
    void end_of_interrupt_locked(Effects& effects) noexcept;
    void post_locked(std::uint8_t vector, bool level) noexcept;
    void record_error_locked(std::uint32_t bit) noexcept;
    void deliver_lvt_locked(LapicRegister lvt, Effects& effects) noexcept;

    // The timer (local_apic_timer.cpp).
    void on_timer() noexcept;
    void update_timer_mode_locked() noexcept;
    void start_timer_locked() noexcept;
    void expire_locked(Effects& effects) noexcept;
    void stop_timer_locked() noexcept;
    void write_divide_locked(std::uint32_t value) noexcept;
    [[nodiscard]] std::uint32_t divisor_locked() const noexcept;
    [[nodiscard]] std::uint64_t period_ns_locked() const noexcept;
    [[nodiscard]] std::uint32_t current_count_locked() const noexcept;
    void restore_timer_locked(std::uint32_t current_count) noexcept;

    ApicBus& bus_;
    TimerService& timers_;
    const std::uint32_t initial_id_;
    const bool has_io_apic_;

    mutable std::mutex mutex_;
    std::array<std::uint32_t, register_count> regs_{};  // The first word of each 16 bytes.
    std::uint64_t base_{};
    LapicFeatures features_{};
    std::uint32_t pending_errors_{};  // What the next write to ESR will show.
    TscClock tsc_;

    bool end_is_offered_{};  // `offer_silent_end()` said so.

    TimerMode timer_mode_{};
    bool timer_active_{};
    std::uint64_t timer_target_ns_{};
    std::uint64_t tsc_deadline_{};

    // For readers without the lock; written under it.
    std::atomic<bool> deliverable_{};
    std::atomic<bool> accepts_pic_{};
    std::atomic<bool> in_service_{};  // Some interrupt is.
    std::atomic<std::uint64_t> page_{default_base};
    std::atomic<int> ended_{-1};  // The vector that the vCPU leaves for.
    std::atomic<std::uint32_t> match_id_{};
    std::atomic<std::uint32_t> match_ldr_{};
    std::atomic<std::uint32_t> match_flags_{};

    std::atomic<VcpuSink*> sink_{};
    std::atomic<std::uint32_t> sink_calls_{};

    std::unique_ptr<Timer> timer_;  // Last: destroying it waits for on_timer().
};

}  // namespace vmm::x86::irqchip
