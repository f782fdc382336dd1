// SPDX-License-Identifier: Apache-2.0

/// @file
/// Segmentation, privilege transfers, event delivery and control registers of the software
/// engine.  Functions throw `Fault` as the manual's pseudocode raises it and commit nothing before.

#pragma once

#include <cstdint>

#include "x86/soft/cpu.hpp"
#include "x86/soft/fault.hpp"

namespace vmm::x86::soft {

// --- segmentation.cpp
/// MOV/POP to a segment register (not CS), LSS and its kin.  SDM Vol. 2B "MOV—Move".
void load_segment(Cpu& cpu, SegmentIndex segment, std::uint16_t selector);

// --- transfer.cpp: far JMP, CALL, RET, IRET, SYSCALL and kin; set cpu.rip, call mode_changed().
void far_jump(Cpu& cpu,
              std::uint16_t selector,
              std::uint64_t offset,
              unsigned operand_size,
              std::uint64_t return_rip);
void far_call(Cpu& cpu,
              std::uint16_t selector,
              std::uint64_t offset,
              unsigned operand_size,
              std::uint64_t return_rip);
void far_return(Cpu& cpu, unsigned operand_size, std::uint16_t pop_bytes);
void interrupt_return(Cpu& cpu, unsigned operand_size, std::uint64_t next_rip);
void syscall(Cpu& cpu, std::uint64_t next_rip);
void sysret(Cpu& cpu, unsigned operand_size);
void sysenter(Cpu& cpu);
void sysexit(Cpu& cpu, unsigned operand_size);

// --- delivery.cpp
/// Delivers `event` through the IDT (real, protected, long mode, virtual-8086; task gates), with
/// everything that may go wrong on the way: faults become the double fault or the second fault by
/// the contributory table (SDM Vol. 3A "Interrupt 8—Double Fault Exception").  RIP, CS and flags
/// are those to be pushed.  Returns false on a triple fault: the vCPU is shut down.
[[nodiscard]] bool deliver(Cpu& cpu, const Event& event);

/// One attempt of `deliver()`: throws the `Fault` that comes up on the way, and (descriptor.hpp)
/// `TaskFault` once a task gate has switched.  INT n and its kin, whose faults are the
/// instruction's own, call this.
void deliver_once(Cpu& cpu, const Event& event);

/// What the run loop does with a `Fault` thrown by the instruction at `cpu.rip` (already
/// restored): sets RF as the manual says, CR2, DR6, then `deliver`.
[[nodiscard]] bool deliver_fault(Cpu& cpu, const Fault& fault);

// --- task.cpp
enum class TaskSwitch : std::uint8_t { Jump, Call, Iret, Gate };
/// @param next_rip Saved in the old task's TSS.
/// @param event What a task gate delivers; its error code is pushed in the new task.
void switch_task(Cpu& cpu,
                 std::uint16_t tss_selector,
                 TaskSwitch reason,
                 std::uint64_t next_rip,
                 const Event* event);

// --- control.cpp
void write_cr0(Cpu& cpu, std::uint64_t value);
void write_cr3(Cpu& cpu, std::uint64_t value);
void write_cr4(Cpu& cpu, std::uint64_t value);
void read_msr(Cpu& cpu, std::uint32_t index, std::uint64_t& value, bool& to_user);
void write_msr(Cpu& cpu, std::uint32_t index, std::uint64_t value, bool& to_user);

/// Completes an RDMSR or WRMSR that left with `EngineExit::Reason::MsrRead` or `MsrWrite`:
/// EDX:EAX from `cpu.msr_answer`, RIP to the next instruction, or #GP(0) waits to be delivered.
/// `cpu.rip` is still that of the instruction, `cpu.exit` still what it was.
void complete_msr(Cpu& cpu);
/// The rest of an IN whose answer is in `Cpu::port_io`.
void complete_in(Cpu& cpu);
/// Goes past an instruction of `length` bytes that has been completed outside of its handler.
void complete_instruction(Cpu& cpu, std::uint8_t length);

/// Whether an access to I/O port(s) is allowed (IOPL, TSS bitmap); #GP(0) if not.
void check_io_permission(Cpu& cpu, std::uint16_t port, unsigned size);

// --- debug.cpp
/// Instruction breakpoints at `linear` (CS base + cpu.rip): the DR6 bits that match, 0 if none or
/// if RFLAGS.RF or a MOV SS before keeps them off.
[[nodiscard]] std::uint64_t instruction_breakpoint(const Cpu& cpu, std::uint64_t linear) noexcept;
/// Called by the memory slow path for each access while `cpu.data_breakpoints`: notes hits in
/// `cpu.pending_debug`.
void note_data_access(Cpu& cpu, std::uint64_t linear, std::size_t size, bool write) noexcept;
/// The same for I/O breakpoints: IN, OUT and their string forms call it.  Costs nothing to call
/// only where `must_single_step()`.
void note_port_access(Cpu& cpu, std::uint16_t port, unsigned size) noexcept;
/// Whether the run loop must execute one instruction at a time: TF, breakpoints enabled.
[[nodiscard]] bool must_single_step(const Cpu& cpu) noexcept;

}  // namespace vmm::x86::soft
