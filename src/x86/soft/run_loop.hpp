// SPDX-License-Identifier: Apache-2.0

/// @file
/// From one exit to the next.

#pragma once

#include <cstdint>

#include "x86/soft/cpu.hpp"

namespace vmm::x86::soft {

struct Block;
struct Fault;

/// Runs guest code on one vCPU.
///
/// @pre The vCPU is in the guest (`SoftVm::enter_guest`), its flags are in `arithmetic_flags`.
class RunLoop {
public:
    explicit RunLoop(Cpu& cpu) noexcept : cpu_(cpu) {}

    /// Until an exit, which is in `cpu.exit`.
    void run();
    /// Delivers what waits to be delivered, or else executes one instruction; heeds neither windows
    /// nor `request::exit`.  False: there is an exit, which is in `cpu.exit`.
    [[nodiscard]] bool run_one();
    /// What became of an instruction that was to be a plain move (`Op::plain_move`).
    struct Move {
        bool is_one{};   ///< Else nothing has been done.
        bool faulted{};  ///< The fault is delivered.
        bool repeats{};  ///< It is executed once more to be completed.
        bool done{};     ///< Else there is an exit, which is in `cpu.exit`.
    };
    /// Executes the instruction at RIP if it is a plain move.  There is nothing to be delivered.
    [[nodiscard]] Move run_move();
    /// Completes what the last exit left pending, and nothing else.  False: there is another exit.
    [[nodiscard]] bool complete();

    /// Whether the last exit left an instruction to be completed.
    [[nodiscard]] bool is_pending() const noexcept;
    /// The state was changed from outside: nothing is pending any more where RIP has moved.
    void state_changed() noexcept;

private:
    enum class Next : std::uint8_t { Execute, Again, Exit };

    [[nodiscard]] Next before_instruction();
    [[nodiscard]] Next take_requests();
    template <typename Deliver>
    [[nodiscard]] bool deliver_or_exit(const Deliver& deliver_it);
    [[nodiscard]] bool deliver_pending();
    [[nodiscard]] bool deliver_debug_trap();
    void leave_for_debugger(std::uint64_t dr6_bits) noexcept;
    [[nodiscard]] bool step(bool single, bool only_move = false);
    void execute(Block& block);
    void fault(const Fault& raised, bool restore_rip);
    void unfinished() noexcept;
    void exit_with(EngineExit::Reason reason) noexcept;
    void leave_unknown() noexcept;

    Cpu& cpu_;
    std::uint64_t pending_rip_{};  ///< Of the instruction that waits for the caller.
    bool msr_pending_{};
    bool executing_{};
    bool is_other_{};  ///< `step()` was to execute a plain move only, and there is none.
    bool stepping_{};  ///< TF was set before the instruction, or a debugger steps.
    bool had_sti_shadow_{};
    bool had_mov_ss_shadow_{};
    bool had_resume_{};  ///< RF was set before the instruction.
};

}  // namespace vmm::x86::soft
