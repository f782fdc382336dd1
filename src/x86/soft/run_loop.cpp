// SPDX-License-Identifier: Apache-2.0

#include "x86/soft/run_loop.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "x86/soft/block.hpp"
#include "x86/soft/descriptor.hpp"
#include "x86/soft/dispatch.hpp"
#include "x86/soft/fault.hpp"
#include "x86/soft/memory.hpp"
#include "x86/soft/memory_move.hpp"
#include "x86/soft/native.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/translator.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

/// How much of the host's stack handlers may use before a branch returns (dispatch.hpp).
constexpr std::uintptr_t max_stack = std::uintptr_t{64} * 1024;

constexpr std::uint64_t bit(unsigned number) noexcept
{
    return std::uint64_t{1} << number;
}
constexpr std::uint64_t flag_tf = bit(8);
constexpr std::uint64_t flag_if = bit(9);
constexpr std::uint64_t flag_rf = bit(16);
constexpr std::uint64_t dr6_bs = bit(14);

std::uint64_t code_linear(const Cpu& cpu) noexcept
{
    return cpu.code_64() ? cpu.rip : (cpu.seg[Cs].base + cpu.rip) & 0xffff'ffffU;
}

std::uintptr_t stack_pointer_now() noexcept
{
    std::uintptr_t now = 0;
    asm("mov %%rsp, %0" : "=r"(now));
    return now;
}

}  // namespace

void RunLoop::exit_with(EngineExit::Reason reason) noexcept
{
    cpu_.exit = EngineExit{};
    cpu_.exit.reason = reason;
}

/// The bytes at RIP go with an internal error, as far as they can be had.
void RunLoop::leave_unknown() noexcept
{
    EngineExit& exit = cpu_.exit;
    exit.instruction_size = 0;
    try {
        const CodePage page = fetch_page(cpu_, code_linear(cpu_));
        if (page.host != nullptr) {
            const std::size_t size = std::min(page.size, exit.instruction.size());
            for (std::size_t i = 0; i < size; ++i) {
                exit.instruction[i] = load_host<std::uint8_t>(page.host + i);
            }
            exit.instruction_size = static_cast<std::uint8_t>(size);
        }
    } catch (const Fault&) {
        // Without them, then.
    }
}

RunLoop::Next RunLoop::take_requests()
{
    const std::uint32_t requests = cpu_.requests.load(std::memory_order_seq_cst);
    if (requests == 0) [[likely]] {
        return Next::Execute;
    }
    if ((requests & ~request::exit) != 0) {
        cpu_.vm.take_requests(cpu_);
    }
    if ((requests & request::exit) != 0) {
        cpu_.requests.fetch_and(~request::exit, std::memory_order_seq_cst);
        exit_with(EngineExit::Reason::Interrupted);
        return Next::Exit;
    }
    return Next::Again;
}

/// Delivers; false: an exit is due, which is in `cpu.exit`.
template <typename Deliver>
bool RunLoop::deliver_or_exit(const Deliver& deliver_it)
{
    try {
        if (deliver_it()) {
            return true;
        }
        exit_with(EngineExit::Reason::Shutdown);
    } catch (const LeaveForMmio&) {
        // Descriptors or the stack lie in MMIO: as for KVM, beyond what can be completed.
        cpu_.mmio.finish();
        exit_with(EngineExit::Reason::InternalError);
        leave_unknown();
    }
    cpu_.exit_pending = true;
    return false;
}

/// A debug exception that a debugger takes; the guest sees nothing of it.
void RunLoop::leave_for_debugger(std::uint64_t dr6_bits) noexcept
{
    exit_with(EngineExit::Reason::Debug);
    cpu_.exit.debug.exception = static_cast<std::uint8_t>(Vector::DB);
    cpu_.exit.debug.pc = code_linear(cpu_);
    cpu_.exit.debug.dr6 = Dr6::reset | dr6_bits;
    cpu_.exit.debug.dr7 = cpu_.breakpoint_control();
    cpu_.exit_pending = true;
}

bool RunLoop::deliver_debug_trap()
{
    if (cpu_.debugger.takes_debug_exceptions()) {
        leave_for_debugger(std::exchange(cpu_.pending_debug, 0));
        return false;
    }
    Event trap{};
    trap.kind = EventKind::HardwareException;
    trap.vector = static_cast<std::uint8_t>(Vector::DB);
    trap.payload = cpu_.pending_debug;
    cpu_.pending_debug = 0;
    return deliver_or_exit([&] { return deliver(cpu_, trap); });
}

/// Traps of the instruction before, then what the core injects.  False: an exit is due.
bool RunLoop::deliver_pending()
{
    if (cpu_.pending_debug != 0 && !cpu_.mov_ss_shadow) {
        const bool first = !cpu_.inject || cpu_.inject->kind == EventKind::ExternalInterrupt ||
                           cpu_.inject->kind == EventKind::Nmi;
        if (first && !deliver_debug_trap()) {
            return false;
        }
    }
    if (cpu_.inject) {
        const Event event = *cpu_.inject;
        cpu_.inject.reset();
        cpu_.sti_shadow = false;
        cpu_.mov_ss_shadow = false;
        return deliver_or_exit([&] { return deliver(cpu_, event); });
    }
    return true;
}

/// All that may come between two instructions.
RunLoop::Next RunLoop::before_instruction()
{
    if (const Next requested = take_requests(); requested != Next::Execute) {
        return requested;
    }
    if (cpu_.inject || (cpu_.pending_debug != 0 && !cpu_.mov_ss_shadow)) [[unlikely]] {
        return deliver_pending() ? Next::Again : Next::Exit;
    }
    const bool shadow = cpu_.sti_shadow || cpu_.mov_ss_shadow;
    if (cpu_.nmi_window_requested && !cpu_.nmi_blocked && !shadow) {
        exit_with(EngineExit::Reason::NmiWindow);
        return Next::Exit;
    }
    if (cpu_.smi_window_requested && !shadow) {
        exit_with(EngineExit::Reason::Interrupted);
        return Next::Exit;
    }
    if (cpu_.irq_window_requested && (cpu_.rflags & flag_if) != 0 && !shadow) {
        exit_with(EngineExit::Reason::IrqWindow);
        return Next::Exit;
    }
    return Next::Execute;
}

/// The instruction did not complete: what was taken back for it comes again.
void RunLoop::unfinished() noexcept
{
    cpu_.sti_shadow = cpu_.sti_shadow || had_sti_shadow_;
    cpu_.mov_ss_shadow = cpu_.mov_ss_shadow || had_mov_ss_shadow_;
    if (had_resume_) {
        cpu_.rflags |= flag_rf;
    }
}

void RunLoop::fault(const Fault& raised, bool restore_rip)
{
    if (restore_rip && executing_) {
        cpu_.rip = cpu_.instruction_rip();
    }
    executing_ = false;
    ++cpu_.counters.faults;
    cpu_.mmio.finish();
    cpu_.port_io.answered = false;
    cpu_.exit_pending = false;
    cpu_.sti_shadow = false;
    cpu_.mov_ss_shadow = false;
    if (raised.vector == Vector::DB && cpu_.debugger.takes_debug_exceptions()) {
        leave_for_debugger(raised.payload);
        return;
    }
    static_cast<void>(deliver_or_exit([&] { return deliver_fault(cpu_, raised); }));
}

void RunLoop::execute(Block& block)
{
    // The shadows and RF are those of one instruction; it may set them anew.
    had_sti_shadow_ = cpu_.sti_shadow;
    had_mov_ss_shadow_ = cpu_.mov_ss_shadow;
    had_resume_ = (cpu_.rflags & flag_rf) != 0;
    stepping_ = (cpu_.rflags & flag_tf) != 0 || cpu_.debugger.single_step;
    cpu_.no_step_trap = false;
    cpu_.sti_shadow = false;
    cpu_.mov_ss_shadow = false;
    cpu_.rflags &= ~flag_rf;

    cpu_.gpr[17] = cpu_.rip;
    executing_ = true;
    const Op* op = block.ops();
    const Op* const first = op;
    do {
        cpu_.current = op;
        op = op->handler(cpu_, op);
    } while (op != nullptr);
    executing_ = false;
    // A read that waits for the caller, a breakpoint: the instruction is not complete.
    const bool waits = cpu_.exit_pending && (cpu_.port_io.waiting || cpu_.mmio.waiting ||
                                             cpu_.exit.reason == EngineExit::Reason::Debug ||
                                             cpu_.exit.reason == EngineExit::Reason::MsrRead ||
                                             cpu_.exit.reason == EngineExit::Reason::MsrWrite);
    if (waits) {
        if (cpu_.current == first) {
            unfinished();
        }
    } else if (stepping_ && !cpu_.mov_ss_shadow && !cpu_.no_step_trap && !cpu_.page_fault.pending) {
        cpu_.pending_debug |= dr6_bs;
    }
}

/// One block, or one instruction, if it is a plain move or may be another.  False: an exit is due.
bool RunLoop::step(bool single, bool only_move)
{
    try {
        if ((cpu_.breakpoint_control() & 0xffU) != 0) [[unlikely]] {
            if (const std::uint64_t hits = instruction_breakpoint(cpu_, code_linear(cpu_))) {
                if (!cpu_.debugger.takes_debug_exceptions()) {
                    cpu_.rflags |= flag_rf;  // So that the instruction can be restarted.
                }
                throw Fault{Vector::DB, false, 0, hits};
            }
        }
        Block* const block = cpu_.blocks->find(cpu_, single);
        if (block == nullptr) {
            exit_with(EngineExit::Reason::InternalError);  // Code outside of memory.
            return false;
        }
        if (only_move && !block->ops()->plain_move) {
            is_other_ = true;
            return true;
        }
        execute(*block);
        if (cpu_.page_fault.pending) {
            cpu_.page_fault.pending = false;
            fault({Vector::PF, true, cpu_.page_fault.error_code, cpu_.page_fault.linear}, false);
        }
    } catch (const Fault& raised) {
        fault(raised, true);
    } catch (const TaskFault& raised) {
        fault(raised.fault, false);  // RIP is the new task's.
    } catch (const LeaveForMmio&) {
        const bool is_first = executing_ && cpu_.current != nullptr && cpu_.current->offset == 0;
        if (executing_) {
            cpu_.rip = cpu_.instruction_rip();
        }
        executing_ = false;
        if (is_first) {
            unfinished();
        }
        pending_rip_ = cpu_.rip;
        return false;
    }
    if (cpu_.exit_pending) {
        cpu_.exit_pending = false;
        const EngineExit::Reason reason = cpu_.exit.reason;
        if (reason == EngineExit::Reason::InternalError) {
            leave_unknown();
        }
        msr_pending_ =
            reason == EngineExit::Reason::MsrRead || reason == EngineExit::Reason::MsrWrite;
        pending_rip_ = cpu_.rip;
        return false;
    }
    return true;
}

bool RunLoop::is_pending() const noexcept
{
    return cpu_.mmio.waiting || cpu_.port_io.waiting || msr_pending_;
}

void RunLoop::state_changed() noexcept
{
    if (is_pending() && cpu_.rip != pending_rip_) {
        cpu_.mmio.finish();
        cpu_.port_io.waiting = false;
        msr_pending_ = false;
    }
}

bool RunLoop::complete()
{
    if (msr_pending_) {
        msr_pending_ = false;
        complete_msr(cpu_);
        return true;
    }
    if (cpu_.port_io.waiting && cpu_.port_io.length != 0) {
        cpu_.port_io.waiting = false;
        complete_in(cpu_);
        return true;
    }
    if (cpu_.mmio.waiting && cpu_.mmio.moved.take != nullptr) {
        complete_load(cpu_);
        return true;
    }
    if (cpu_.mmio.waiting) {
        cpu_.mmio.answered();
    }
    if (cpu_.port_io.waiting) {
        cpu_.port_io.waiting = false;
        cpu_.port_io.answered = true;
    }
    // Others may have changed what the instruction depends on.
    if ((cpu_.requests.load(std::memory_order_seq_cst) & ~request::exit) != 0) {
        cpu_.vm.take_requests(cpu_);
    }
    cpu_.chain.floor = stack_pointer_now() - max_stack;
    const bool done = step(true);
    if (!is_pending()) {
        cpu_.mmio.finish();
        cpu_.port_io.answered = false;
    }
    return done;
}

bool RunLoop::run_one()
{
    if ((cpu_.requests.load(std::memory_order_seq_cst) & ~request::exit) != 0) {
        cpu_.vm.take_requests(cpu_);
    }
    if (cpu_.inject || (cpu_.pending_debug != 0 && !cpu_.mov_ss_shadow)) {
        const bool delivered = deliver_pending();
        cpu_.exit_pending = false;
        msr_pending_ = false;
        return delivered;
    }
    cpu_.chain.floor = stack_pointer_now() - max_stack;
    cpu_.blocks->collect(cpu_);
    return step(true);
}

RunLoop::Move RunLoop::run_move()
{
    if ((cpu_.requests.load(std::memory_order_seq_cst) & ~request::exit) != 0) {
        cpu_.vm.take_requests(cpu_);
    }
    cpu_.chain.floor = stack_pointer_now() - max_stack;
    cpu_.blocks->collect(cpu_);
    is_other_ = false;
    const std::uint64_t faults = cpu_.counters.faults.value();
    const bool done = step(true, true);
    const bool repeats = cpu_.mmio.waiting && cpu_.mmio.moved.take == nullptr;
    return {!is_other_, cpu_.counters.faults.value() != faults, repeats, done};
}

void RunLoop::run()
{
    cpu_.chain.floor = stack_pointer_now() - max_stack;
    for (;;) {
        const Next next = before_instruction();
        if (next == Next::Exit) {
            cpu_.exit_pending = false;
            msr_pending_ = false;
            return;
        }
        if (next == Next::Again) {
            continue;
        }
        cpu_.blocks->collect(cpu_);
        if (cpu_.translator != nullptr) {
            cpu_.translator->check_owner();
        }
        const bool shadow = cpu_.sti_shadow || cpu_.mov_ss_shadow;
        const bool single = must_single_step(cpu_) ||
                            (shadow && (cpu_.irq_window_requested || cpu_.nmi_window_requested ||
                                        cpu_.smi_window_requested || cpu_.pending_debug != 0));
        ++cpu_.counters.run_loops;
        if (!step(single)) {
            return;
        }
    }
}

}  // namespace vmm::x86::soft
