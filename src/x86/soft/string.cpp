// SPDX-License-Identifier: Apache-2.0

/// @file
/// MOVS STOS LODS CMPS SCAS.  Repeated moves and stores go by pages, through the host's own string
/// instructions; all registers are up to date after each chunk, so that a fault or an interrupt
/// between two finds them as after an iteration.

#include "x86/soft/string.hpp"

#include "x86/soft/fault.hpp"

namespace vmm::x86::soft {

namespace {

void copy_forward(std::byte* to, const std::byte* from, std::size_t bytes) noexcept
{
    // Not memmove: others may write there at the same time.
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

template <typename T>
void fill(std::byte* to, T value, std::size_t elements) noexcept
{
    if constexpr (sizeof(T) == 1) {
        asm volatile("rep stosb" : "+D"(to), "+c"(elements) : "a"(value) : "memory");
    } else if constexpr (sizeof(T) == 2) {
        asm volatile("rep stosw" : "+D"(to), "+c"(elements) : "a"(value) : "memory");
    } else if constexpr (sizeof(T) == 4) {
        asm volatile("rep stosl" : "+D"(to), "+c"(elements) : "a"(value) : "memory");
    } else {
        asm volatile("rep stosq" : "+D"(to), "+c"(elements) : "a"(value) : "memory");
    }
}

/// Such an element has faults of its own: it goes alone, before the next page is touched.
template <typename T>
bool crosses_page(std::uint64_t linear) noexcept
{
    return (linear & 0xfffU) > 0x1000 - sizeof(T);
}

/// One element.
template <typename T>
void move_one(Cpu& cpu, const Op& op, StringOperands& operands)
{
    const SegmentIndex segment = segment_of(op);
    const std::uint64_t from = operands.linear(segment, operands.source(), sizeof(T), Access::Read);
    const T value = fast_load<T>(cpu, segment, from);
    const std::uint64_t to = operands.linear(Es, operands.destination(), sizeof(T), Access::Write);
    fast_store<T>(cpu, Es, to, value);
    operands.advance_source(1, sizeof(T));
    operands.advance_destination(1, sizeof(T));
}

/// Downwards from the elements at `to` and `from`.
template <typename T>
void copy_backward(std::byte* to, const std::byte* from, std::size_t elements) noexcept
{
    // SAFETY: compared only; the pages may be the same.
    const std::uintptr_t behind =
        reinterpret_cast<std::uintptr_t>(from) - reinterpret_cast<std::uintptr_t>(to);
    using Word = std::uint64_t;
    if (behind - 1 >= sizeof(Word) - 1) {
        // What is read has not been written to by the word before, or is not to be seen.
        constexpr std::size_t per_word = sizeof(Word) / sizeof(T);
        for (; elements >= per_word; elements -= per_word) {
            to -= sizeof(Word) - sizeof(T);
            from -= sizeof(Word) - sizeof(T);
            store_host<Word>(to, load_host<Word>(from));
            to -= sizeof(T);
            from -= sizeof(T);
        }
    }
    for (; elements != 0; --elements) {
        store_host<T>(to, load_host<T>(from));
        to -= sizeof(T);
        from -= sizeof(T);
    }
}

/// `move_chunk`, downwards.
template <typename T>
std::uint64_t move_down(Cpu& cpu, const Op& op, StringOperands& operands, std::uint64_t count)
{
    const SegmentIndex segment = segment_of(op);
    const std::uint64_t from = operands.linear(segment, operands.source(), sizeof(T), Access::Read);
    std::uint64_t elements = operands.downward(segment, operands.source(), from, count, sizeof(T));
    std::size_t size = sizeof(T);
    const std::byte* const source =
        elements < 2 ? nullptr : direct_run(cpu, segment, from, size, Access::Read);
    if (source == nullptr) {
        return 0;
    }
    const std::uint64_t to = operands.linear(Es, operands.destination(), sizeof(T), Access::Write);
    elements = operands.downward(Es, operands.destination(), to, elements, sizeof(T));
    std::byte* const destination =
        elements < 2 ? nullptr : direct_run(cpu, Es, to, size, Access::Write);
    if (destination == nullptr) {
        return 0;
    }
    copy_backward<T>(destination, source, elements);
    operands.advance_source(elements, sizeof(T));
    operands.advance_destination(elements, sizeof(T));
    return elements;
}

/// As many of `count` elements as lie in one page each; 0 where it must go one by one.
template <typename T>
std::uint64_t move_chunk(Cpu& cpu, const Op& op, StringOperands& operands, std::uint64_t count)
{
    if (operands.backward()) {
        return move_down<T>(cpu, op, operands, count);
    }
    const SegmentIndex segment = segment_of(op);
    const std::uint64_t page_elements = std::min<std::uint64_t>(count, 4096 / sizeof(T));
    std::uint64_t elements =
        std::min(operands.upward(segment, operands.source(), page_elements, sizeof(T)),
                 operands.upward(Es, operands.destination(), page_elements, sizeof(T)));
    if (elements < 2) {
        return 0;
    }
    const std::uint64_t from =
        operands.linear(segment, operands.source(), elements * sizeof(T), Access::Read);
    const std::uint64_t to =
        operands.linear(Es, operands.destination(), elements * sizeof(T), Access::Write);
    if (crosses_page<T>(from) || crosses_page<T>(to)) {
        return 0;
    }
    std::size_t readable = elements * sizeof(T);
    std::size_t writable = readable;
    const std::byte* const source = direct_run(cpu, segment, from, readable, Access::Read);
    if (source == nullptr) {
        return 0;
    }
    std::byte* const destination = direct_run(cpu, Es, to, writable, Access::Write);
    if (destination == nullptr) {
        return 0;
    }
    elements = std::min(readable, writable) / sizeof(T);
    const std::size_t bytes = elements * sizeof(T);
    // SAFETY: compared only; the pages may be the same.
    const std::uintptr_t ahead =
        reinterpret_cast<std::uintptr_t>(destination) - reinterpret_cast<std::uintptr_t>(source);
    if (ahead >= bytes) {
        copy_forward(destination, source, bytes);
    } else {
        // What has been written is read again: by elements, as the processor does.
        for (std::size_t i = 0; i < bytes; i += sizeof(T)) {
            store_host<T>(destination + i, load_host<T>(source + i));
        }
    }
    operands.advance_source(elements, sizeof(T));
    operands.advance_destination(elements, sizeof(T));
    return elements;
}

template <typename T>
void store_one(Cpu& cpu, const Op& /*op*/, StringOperands& operands)
{
    const std::uint64_t to = operands.linear(Es, operands.destination(), sizeof(T), Access::Write);
    fast_store<T>(cpu, Es, to, gpr_at<T>(cpu, 0));
    operands.advance_destination(1, sizeof(T));
}

template <typename T>
std::uint64_t store_chunk(Cpu& cpu, const Op& /*op*/, StringOperands& operands, std::uint64_t count)
{
    if (operands.backward()) {
        return 0;
    }
    const std::uint64_t elements = operands.upward(
        Es, operands.destination(), std::min<std::uint64_t>(count, 4096 / sizeof(T)), sizeof(T));
    if (elements < 2) {
        return 0;
    }
    const std::uint64_t to =
        operands.linear(Es, operands.destination(), elements * sizeof(T), Access::Write);
    if (crosses_page<T>(to)) {
        return 0;
    }
    std::size_t writable = elements * sizeof(T);
    std::byte* const destination = direct_run(cpu, Es, to, writable, Access::Write);
    if (destination == nullptr) {
        return 0;
    }
    const std::uint64_t done = writable / sizeof(T);
    fill<T>(destination, gpr_at<T>(cpu, 0), done);
    operands.advance_destination(done, sizeof(T));
    return done;
}

template <typename T>
void load_one(Cpu& cpu, const Op& op, StringOperands& operands)
{
    const SegmentIndex segment = segment_of(op);
    const std::uint64_t from = operands.linear(segment, operands.source(), sizeof(T), Access::Read);
    set_gpr<T>(cpu, 0, fast_load<T>(cpu, segment, from));
    operands.advance_source(1, sizeof(T));
}

template <typename T>
std::uint64_t no_chunk(Cpu& /*cpu*/, const Op& /*op*/, StringOperands& /*operands*/, std::uint64_t)
{
    return 0;
}

using One = void (*)(Cpu&, const Op&, StringOperands&);
using Chunk = std::uint64_t (*)(Cpu&, const Op&, StringOperands&, std::uint64_t);

/// True: done.  False: to be continued after the run loop.
template <One Single, Chunk Many>
[[gnu::noinline]] bool repeat(Cpu& cpu, const Op& op)
{
    StringOperands operands{cpu, op};
    if (!op.rep && !op.repne) {
        Single(cpu, op, operands);
        return true;
    }
    for (;;) {
        const std::uint64_t count = operands.count();
        if (count == 0) {
            return true;
        }
        std::uint64_t done = 0;
        if (may_repeat(cpu)) {
            done = Many(cpu, op, operands, count);
        }
        if (done == 0) {
            Single(cpu, op, operands);
            done = 1;
        }
        operands.set_count(count - done);
        if (count != done && !may_repeat(cpu)) {
            return false;
        }
    }
}

template <One Single, Chunk Many>
const Op* repeated(Cpu& cpu, const Op* op)
{
    if (!repeat<Single, Many>(cpu, *op)) {
        return leave_repeating(cpu, op);
    }
    return next(cpu, op);
}

template <typename T>
std::uint16_t compare(T a, T b) noexcept
{
    std::uint16_t flags = 0;
    asm("cmp %[b], %[a]\n\tlahf\n\tseto %%al" : "=&a"(flags) : [a] "q"(a), [b] "q"(b) : "cc");
    return flags;
}

/// CMPS and SCAS.
template <typename T, bool Scan>
[[gnu::noinline]] bool compare_string(Cpu& cpu, const Op& op)
{
    StringOperands operands{cpu, op};
    const SegmentIndex segment = segment_of(op);
    const bool repeats = op.rep || op.repne;
    for (;;) {
        const std::uint64_t count = operands.count();
        if (repeats && count == 0) {
            return true;
        }
        T first{};
        if constexpr (Scan) {
            first = gpr_at<T>(cpu, 0);
        } else {
            const std::uint64_t from =
                operands.linear(segment, operands.source(), sizeof(T), Access::Read);
            first = fast_load<T>(cpu, segment, from);
        }
        const std::uint64_t to =
            operands.linear(Es, operands.destination(), sizeof(T), Access::Read);
        const T second = fast_load<T>(cpu, Es, to);
        if constexpr (!Scan) {
            operands.advance_source(1, sizeof(T));
        }
        operands.advance_destination(1, sizeof(T));
        if (!repeats) {
            cpu.arithmetic_flags = compare(first, second);
            return true;
        }
        operands.set_count(count - 1);
        const bool ends = (first == second) != op.rep;
        // Only the last comparison sets flags, even if the instruction is interrupted before.
        if (ends || count == 1) {
            cpu.arithmetic_flags = compare(first, second);
            return true;
        }
        if (!may_repeat(cpu)) {
            return false;
        }
    }
}

template <typename T, bool Scan>
const Op* compared(Cpu& cpu, const Op* op)
{
    if (!compare_string<T, Scan>(cpu, *op)) {
        return leave_repeating(cpu, op);
    }
    return next(cpu, op);
}

}  // namespace

Handler select_string(const Insn& insn, const SelectContext& /*context*/, Op& /*op*/)
{
    if (insn.map != OpcodeMap::Primary || insn.vex || insn.opcode < 0xa4 || insn.opcode > 0xaf ||
        insn.opcode == 0xa8 || insn.opcode == 0xa9) {
        return nullptr;
    }
    return by_any_size(width(insn), [&](auto type) -> Handler {
        using T = typename decltype(type)::type;
        switch (insn.opcode & 0xfeU) {
        case 0xa4: return repeated<move_one<T>, move_chunk<T>>;
        case 0xa6: return compared<T, false>;
        case 0xaa: return repeated<store_one<T>, store_chunk<T>>;
        case 0xac: return repeated<load_one<T>, no_chunk<T>>;
        default: return compared<T, true>;
        }
    });
}

}  // namespace vmm::x86::soft
