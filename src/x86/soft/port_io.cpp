// SPDX-License-Identifier: Apache-2.0

/// @file
/// IN OUT INS OUTS.
///
/// The library's devices are asked first.  What they do not answer leaves to the caller: a write
/// when the instruction is complete, a read before it.  Once the caller has filled the buffer,
/// `complete_in` does the rest of an IN, and an INS is executed again.  Repeated ones leave with as
/// many elements as the page holds, as KVM does.

#include <cstring>

#include "x86/soft/native.hpp"
#include "x86/soft/string.hpp"
#include "x86/soft/system.hpp"
#include "x86/soft/vm.hpp"

namespace vmm::x86::soft {

namespace {

/// The port of IN and OUT: immediate or DX.
std::uint16_t port_of(Cpu& cpu, const Op& op) noexcept
{
    return op.extra != 0 ? gpr_at<std::uint16_t>(cpu, Rdx * 8)
                         : static_cast<std::uint16_t>(op.immediate & 0xffU);
}

void check_access(Cpu& cpu, std::uint16_t port, unsigned size)
{
    check_io_permission(cpu, port, size);
    if ((cpu.breakpoint_control() & 0xffU) != 0) {
        note_port_access(cpu, port, size);
    }
}

std::span<std::byte> element(PortIo& io, std::size_t index, unsigned size) noexcept
{
    return std::span{io.buffer}.subspan(index * size, size);
}

bool read_device(Cpu& cpu, std::uint16_t port, std::span<std::byte> data)
{
    if (!cpu.host.may_answer_port(Port{port}, data.size())) {
        return false;
    }
    fpu_release(cpu);
    const OutOfGuest out{cpu.vm, cpu};
    return cpu.host.port_read(Port{port}, data);
}

bool write_device(Cpu& cpu, std::uint16_t port, std::span<const std::byte> data)
{
    if (!cpu.host.may_answer_port(Port{port}, data.size())) {
        return false;
    }
    fpu_release(cpu);
    const OutOfGuest out{cpu.vm, cpu};
    return cpu.host.port_write(Port{port}, data);
}

void ask_caller(Cpu& cpu,
                EngineExit::Reason reason,
                std::uint16_t port,
                unsigned size,
                std::uint64_t count)
{
    cpu.exit = EngineExit{};
    cpu.exit.reason = reason;
    cpu.exit.port = port;
    cpu.exit.size = static_cast<std::uint8_t>(size);
    cpu.exit.count = static_cast<std::uint32_t>(count);
    cpu.exit.data = std::span{cpu.port_io.buffer}.first(count * size);
    cpu.exit_pending = true;
}

/// Leaves for `count` elements, which will be in the buffer.  `length`: see PortIo.
void ask_for_input(Cpu& cpu,
                   std::uint16_t port,
                   unsigned size,
                   std::uint64_t count,
                   std::uint8_t length)
{
    PortIo& io = cpu.port_io;
    io.length = length;
    std::memset(io.buffer.data(), 0xff, count * size);  // What nobody answers reads as ones.
    io.port = port;
    io.size = static_cast<std::uint8_t>(size);
    io.count = static_cast<std::uint32_t>(count);
    io.waiting = true;
    ask_caller(cpu, EngineExit::Reason::PortRead, port, size, count);
}

/// Whether the caller has answered this access.
bool is_answered(Cpu& cpu, std::uint16_t port, unsigned size) noexcept
{
    PortIo& io = cpu.port_io;
    if (io.answered && (io.port != port || io.size != size)) {
        io.answered = false;  // The state was changed under the instruction.
    }
    return io.answered;
}

template <typename T>
[[gnu::noinline]] bool input(Cpu& cpu, const Op& op)
{
    const std::uint16_t port = port_of(cpu, op);
    check_access(cpu, port, sizeof(T));
    const std::span<std::byte> data = element(cpu.port_io, 0, sizeof(T));
    if (!read_device(cpu, port, data)) {
        ask_for_input(cpu, port, sizeof(T), 1, op.length);
        return false;
    }
    set_gpr<T>(cpu, 0, load_host<T>(data.data()));
    return true;
}

template <typename T>
const Op* in(Cpu& cpu, const Op* op)
{
    if (!input<T>(cpu, *op)) {
        return leave_to_same(cpu, op);
    }
    return leave(cpu, op);
}

template <typename T>
[[gnu::noinline]] void output(Cpu& cpu, const Op& op)
{
    const std::uint16_t port = port_of(cpu, op);
    check_access(cpu, port, sizeof(T));
    const std::span<std::byte> data = element(cpu.port_io, 0, sizeof(T));
    store_host<T>(data.data(), gpr_at<T>(cpu, 0));
    if (!write_device(cpu, port, data)) {
        ask_caller(cpu, EngineExit::Reason::PortWrite, port, sizeof(T), 1);
    }
}

/// How many elements INS or OUTS handles at once: those in one page of plain memory.
std::uint64_t batch(Cpu& cpu,
                    const Op& op,
                    const StringOperands& operands,
                    SegmentIndex segment,
                    std::uint64_t offset,
                    std::size_t size,
                    Access access)
{
    constexpr std::uint64_t trap_flag = 1U << 8U;
    if (!(op.rep || op.repne) || operands.backward() || (cpu.rflags & trap_flag) != 0) {
        return 1;
    }
    const std::uint64_t most = std::min<std::uint64_t>(operands.count(), 4096 / size);
    const std::uint64_t elements = operands.upward(segment, offset, most, size);
    std::size_t bytes = elements * size;
    const std::uint64_t linear = operands.linear(segment, offset, bytes, access);
    if (direct_run(cpu, segment, linear, bytes, access) == nullptr) {
        return 1;
    }
    return std::max<std::uint64_t>(bytes / size, 1);
}

/// Fills the buffer with up to `count` elements.  False: left for them.
template <typename T>
bool read_elements(Cpu& cpu, std::uint16_t port, std::uint64_t count)
{
    PortIo& io = cpu.port_io;
    std::uint32_t done = 0;
    while (done < count && read_device(cpu, port, element(io, done, sizeof(T)))) {
        ++done;
    }
    if (done == 0) {
        ask_for_input(cpu, port, sizeof(T), count, 0);
        return false;
    }
    io.port = port;
    io.size = sizeof(T);
    io.count = done;
    io.answered = true;
    return true;
}

/// True: the instruction is complete.
template <typename T>
[[gnu::noinline]] bool input_string(Cpu& cpu, const Op& op)
{
    StringOperands operands{cpu, op};
    const bool repeats = op.rep || op.repne;
    const auto port = gpr_at<std::uint16_t>(cpu, Rdx * 8);
    check_access(cpu, port, sizeof(T));
    if (repeats && operands.count() == 0) {
        return true;
    }
    const std::uint64_t offset = operands.destination();
    if (!is_answered(cpu, port, sizeof(T))) {
        // Faults come before the device sees anything.
        const std::uint64_t linear = operands.linear(Es, offset, sizeof(T), Access::Write);
        probe_write(cpu, Es, linear, sizeof(T));
        const std::uint64_t count = batch(cpu, op, operands, Es, offset, sizeof(T), Access::Write);
        if (!read_elements<T>(cpu, port, count)) {
            return false;
        }
    }
    PortIo& io = cpu.port_io;
    const std::uint64_t wanted = repeats ? operands.count() : 1;
    const std::uint64_t count = std::min<std::uint64_t>(io.count, wanted);
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t linear =
            operands.linear(Es, offset + i * sizeof(T), sizeof(T), Access::Write);
        store<T>(cpu, Es, linear, load_host<T>(element(io, i, sizeof(T)).data()));
    }
    io.answered = false;
    operands.advance_destination(count, sizeof(T));
    if (repeats) {
        operands.set_count(operands.count() - count);
    }
    return !repeats || operands.count() == 0;
}

template <typename T>
[[gnu::noinline]] bool output_string(Cpu& cpu, const Op& op)
{
    StringOperands operands{cpu, op};
    const bool repeats = op.rep || op.repne;
    const auto port = gpr_at<std::uint16_t>(cpu, Rdx * 8);
    check_access(cpu, port, sizeof(T));
    if (repeats && operands.count() == 0) {
        return true;
    }
    PortIo& io = cpu.port_io;
    const SegmentIndex segment = segment_of(op);
    const std::uint64_t offset = operands.source();
    const std::uint64_t count = batch(cpu, op, operands, segment, offset, sizeof(T), Access::Read);
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t linear =
            operands.linear(segment, offset + i * sizeof(T), sizeof(T), Access::Read);
        store_host<T>(element(io, i, sizeof(T)).data(), load<T>(cpu, segment, linear));
    }
    std::uint64_t done = 0;
    while (done < count && write_device(cpu, port, element(io, done, sizeof(T)))) {
        ++done;
    }
    if (done == 0) {
        ask_caller(cpu, EngineExit::Reason::PortWrite, port, sizeof(T), count);
        done = count;
    }
    operands.advance_source(done, sizeof(T));
    if (repeats) {
        operands.set_count(operands.count() - done);
    }
    return !repeats || operands.count() == 0;
}

template <typename T, bool Input>
const Op* string_io(Cpu& cpu, const Op* op)
{
    const bool done = Input ? input_string<T>(cpu, *op) : output_string<T>(cpu, *op);
    if (done) {
        return leave(cpu, op);
    }
    return cpu.port_io.waiting ? leave_to_same(cpu, op) : leave_repeating(cpu, op);
}

}  // namespace

void complete_in(Cpu& cpu)
{
    const PortIo& io = cpu.port_io;
    const std::byte* const data = io.buffer.data();
    switch (io.size) {
    case 1: set_gpr<std::uint8_t>(cpu, 0, load_host<std::uint8_t>(data)); break;
    case 2: set_gpr<std::uint16_t>(cpu, 0, load_host<std::uint16_t>(data)); break;
    default: set_gpr<std::uint32_t>(cpu, 0, load_host<std::uint32_t>(data)); break;
    }
    complete_instruction(cpu, io.length);
}

Handler select_port_io(const Insn& insn, const SelectContext& /*context*/, Op& op)
{
    const unsigned opcode = insn.opcode;
    if (insn.map != OpcodeMap::Primary || insn.vex) {
        return nullptr;
    }
    // Ports are 32 bits wide at most.
    const unsigned size = (opcode & 1U) == 0 ? 1U : (insn.operand_size == 2 ? 2U : 4U);
    const bool string = opcode >= 0x6c && opcode <= 0x6f;
    const bool by_immediate = opcode >= 0xe4 && opcode <= 0xe7;
    const bool by_register = opcode >= 0xec && opcode <= 0xef;
    if (!string && !by_immediate && !by_register) {
        return nullptr;
    }
    op.extra = by_register ? 1 : 0;
    const bool is_input = (opcode & 2U) == 0;
    return by_any_size(size, [&](auto type) -> Handler {
        using T = typename decltype(type)::type;
        if constexpr (sizeof(T) <= 4) {
            if (string) {
                return is_input ? Handler{string_io<T, true>} : Handler{string_io<T, false>};
            }
            return is_input ? Handler{in<T>} : Handler{leaving<output<T>>};
        } else {
            return nullptr;
        }
    });
}

}  // namespace vmm::x86::soft
